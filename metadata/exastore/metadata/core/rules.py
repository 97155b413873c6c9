"""Whether a rule can be kept: how many slots a placement group can have under it."""

from collections.abc import Collection
from dataclasses import replace

import numpy as np

from exastore.metadata.core.errors import ImpossibleRule, TooFewDomains
from exastore.metadata.core.topology import (
    DeviceState,
    DomainLevel,
    Int32Array,
    Int64Array,
    PlacementRule,
    Topology,
    Uint8Array,
)


def domain_count_with_weight(topology: Topology, level: DomainLevel) -> int:
    """How many domains of `level` hold a device that can take data."""
    usable = np.asarray(topology.device_weight) > 0
    return len(np.unique(topology.domain_of_device(level)[usable]))


def placeable_slots(
    topology: Topology, rule: PlacementRule, device_state: Uint8Array | None = None
) -> int:
    """How many slots one placement group can have.

    From devices up, level by level: what the domains below have room for, at most the limit.
    """
    usable = (np.asarray(topology.device_weight) > 0) & rule.allowed(topology)
    if device_state is not None:
        usable &= device_state == DeviceState.UP
    domain: Int32Array = np.arange(topology.device_count, dtype=np.int32)
    room: Int64Array = usable.astype(np.int64)
    for level in DomainLevel:
        limits = [most for limited, most in rule.limits if limited == level]
        parent = topology.domain_of_device(level)
        count = int(parent.max(initial=-1)) + 1
        # Every domain below lies in one of this level: any of its devices tells which.
        above = np.zeros(len(room), dtype=np.int64)
        above[domain] = parent
        room = np.bincount(above, room, count).astype(np.int64)
        domain = parent
        if limits:
            room = np.minimum(room, max(min(limits), 0))
    return int(room.sum())


def check_placeable(
    topology: Topology, rule: PlacementRule, n: int, device_state: Uint8Array | None = None
) -> None:
    """Whether placement groups of n slots can keep the rule.

    Raises:
        ImpossibleRule: A field asks for what is not there, or allows nothing.
        TooFewDomains: All fields make sense, but too few slots keep them all.
    """
    for index, (level, most) in enumerate(rule.limits):
        if most < 1:
            field = "max_per_domain" if index == 0 else f"also[{index - 1}]"
            name = level.name.lower()
            raise ImpossibleRule(
                field, most, f"no {name} may hold a chunk", f"allow at least 1 per {name}"
            )
    region_count = int(topology.zone_region.max(initial=-1)) + 1
    _check_choice("regions", rule.regions, range(region_count))
    _check_choice("device_classes", rule.device_classes, set(topology.class_of_device.tolist()))
    have = placeable_slots(topology, rule, device_state)
    if have >= n:
        return
    # The limit to blame is the one without which most would fit.
    best, field, level, most = -1, "max_per_domain", rule.level, rule.max_per_domain
    for index, (limited, limit) in enumerate(rule.limits):
        relaxed = _without_limit(rule, index)
        room = placeable_slots(topology, relaxed, device_state)
        if room > best:
            best, level, most = room, limited, limit
            field = "max_per_domain" if index == 0 else f"also[{index - 1}]"
    raise TooFewDomains(n, have, level.name.lower(), most, field)


def _without_limit(rule: PlacementRule, index: int) -> PlacementRule:
    """The rule without one of its `limits`."""
    if index == 0:
        return replace(rule, level=DomainLevel.DEVICE, max_per_domain=1)
    return replace(rule, also=rule.also[: index - 1] + rule.also[index:])


def _check_choice(field: str, chosen: tuple[int, ...] | None, known: Collection[int]) -> None:
    """Raises ImpossibleRule if the field names nothing, or something that is not there."""
    if chosen is None:
        return
    what = field.removesuffix("es" if field.endswith("sses") else "s").replace("_", " ")
    if not chosen:
        raise ImpossibleRule(field, chosen, f"no {what} is allowed", f"name at least one {what}")
    unknown = [index for index in chosen if index not in known]
    if unknown:
        there = ", ".join(str(index) for index in sorted(known)) or "none"
        raise ImpossibleRule(
            field, chosen, f"there is no {what} {unknown[0]}", f"name some of those there: {there}"
        )
