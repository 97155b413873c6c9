"""Spares, room, lazy and pipelined repair in the plain twin: see `limits` and `links`."""

from itertools import pairwise
from typing import TYPE_CHECKING

from exastore.metadata.core.redundancy import redundancy_of

if TYPE_CHECKING:
    from exastore.sim._reference import ReferenceTrial, Slot


def spare_at_s(trial: "ReferenceTrial", device: int) -> float:
    """When there is a spare for a failed device; it is ordered anew now."""
    spares = trial.scenario.spares
    if spares.reorder_s == 0:
        return trial.now
    ordered = trial.orders[trial.zone_of[trial.node_of[device]]]
    ordered.append(trial.now)
    before = len(ordered) - 1 - spares.per_zone
    return max(trial.now, ordered[before] + spares.reorder_s) if before >= 0 else trial.now


def is_full(trial: "ReferenceTrial", device: int) -> bool:
    """Whether one more run is more than the device takes."""
    limit = trial.scenario.repair.fill_limit * trial.scenario.device.capacity_bytes
    count = len(trial.held[device]) + len(trial.queue[device]) + (device in trial.work) + 1
    return bool(0 < limit < count * trial.model["slot_bytes"])


def begin_repair(trial: "ReferenceTrial", slot: "Slot") -> None:
    """A run is missing: it waits for a device, or until its PG misses more."""
    pg, index = slot
    missing = {i for i in range(trial.code.n) if (pg, i) in trial.missing}
    threshold = trial.scenario.repair.lazy_redundancy
    if threshold >= 0 and redundancy_of(trial.code.name).of(missing) > threshold:
        trial.rows[pg, index] = -1
        trial.put_off[pg].insert(0, slot)
        return
    trial.waiting += [slot, *trial.put_off.pop(pg, [])]


def links_of(trial: "ReferenceTrial", target: int, sources: list[int]) -> list[tuple[str, int]]:
    """The links of a rebuild, once for each part that crosses them."""
    nodes = [trial.node_of[device] for device in sources]
    to = trial.node_of[target]
    hops = list(pairwise([*nodes, to]))
    if not trial.model["is_pipelined"]:
        hops = [(node, to) for node in nodes]
    used: list[tuple[str, int]] = []
    for here, there in hops:
        if here != there:
            used += [("node out", here), ("node in", there)]
        for name, of in (("rack", trial.rack_of), ("zone", trial.zone_of)):
            if of[here] != of[there]:
                used += [(f"{name} out", of[here]), (f"{name} in", of[there])]
    return used
