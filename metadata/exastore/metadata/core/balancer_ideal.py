"""How many slots each device should hold: its share by weight, under the caps of the rule.

A device holds at most one slot of a PG, and a domain at most what the rule's limits leave it. What
a cap leaves over is shared by the rest in proportion (water filling): there is a water level, slots
per weight, at which a device without caps above it holds level * weight; below a capped domain the
level is lower, so that its devices hold the cap together, in proportion again.
"""

from dataclasses import dataclass

import numpy as np

from exastore.metadata.core.balance import slots_per_device
from exastore.metadata.core.columns import PlacementColumns
from exastore.metadata.core.topology import DeviceState, Float64Array, Int32Array, Uint8Array


@dataclass(frozen=True, slots=True)
class _Caps:
    """The caps of one level, of G domains.

    Attributes:
        domain: Shape (D,). Domain of each device.
        parent: Shape (what the level below has,). Domain of each item below: a device at first.
        most: Shape (G,). Slots that each domain can hold.
    """

    domain: Int32Array
    parent: Int32Array
    most: Float64Array


def _caps(columns: PlacementColumns, pg_count: int, kept: Float64Array) -> list[_Caps]:
    """Caps of all levels that the rule limits, the smallest domains first.

    Args:
        columns: From `placement_columns`.
        pg_count: Rows of the table.
        kept: Shape (D,). Slots on devices that are not UP, which stay.
    """
    limits = [(columns.domain_of_device, columns.max_per_domain)]
    limits += zip(columns.limit_domain, columns.limit_max.tolist(), strict=True)
    counts = [int(domain.max(initial=-1)) + 1 for domain, _ in limits]
    found: list[_Caps] = []
    below: Int32Array = np.arange(len(kept), dtype=np.int32)
    for index in sorted(range(len(limits)), key=lambda i: -counts[i]):
        domain, most = limits[index]
        parent = np.zeros(int(below.max(initial=-1)) + 1, dtype=np.int32)
        parent[below] = domain
        held = np.bincount(domain, kept, counts[index])
        found.append(_Caps(domain, parent, np.maximum(most * float(pg_count) - held, 0.0)))
        below = domain
    return found


def _filled(share: Float64Array, caps: list[_Caps]) -> Float64Array:
    """Slots below each domain of the last of `caps`, under the caps of the levels before it."""
    for i, cap in enumerate(caps):
        share = np.bincount(cap.parent, share, len(cap.most)).astype(np.float64)
        if i + 1 < len(caps):
            share = np.minimum(share, cap.most)
    return share


def _water_level(
    weight: Float64Array,
    pg_count: float,
    caps: list[_Caps],
    domain: Int32Array,
    total: Float64Array,
) -> Float64Array:
    """Shape (G,): the level at which each domain holds `total[g]`.

    `domain` has shape (D,), `caps` ends with the level of these domains, whose own caps do not
    count. Bisection: 200 halvings end at neighbouring floats.
    """
    low: Float64Array = np.zeros(len(total))
    highest = (total.sum() + pg_count + 1.0) / weight[weight > 0].min()
    high: Float64Array = np.full(len(total), highest)
    for _ in range(200):
        middle = (low + high) / 2
        is_enough = _filled(np.minimum(middle[domain] * weight, pg_count), caps) >= total
        low, high = np.where(is_enough, low, middle), np.where(is_enough, middle, high)
        if (low == middle).all() and (high == middle).all():
            break
    return high


def ideal_slots(
    columns: PlacementColumns, rows: Int32Array, device_state: Uint8Array
) -> Float64Array:
    """Shape (D,): how many slots each UP device should hold; 0 for the others.

    Devices that are not UP keep theirs, which count towards the caps of their domains.
    """
    device_count, pg_count = len(columns.device_weight), float(len(rows))
    is_up = np.asarray(device_state) == DeviceState.UP
    counts = slots_per_device(rows, device_count)
    weight = np.where(is_up, columns.device_weight, 0.0)
    total = float(counts[is_up].sum())
    if total == 0 or not (weight > 0).any():
        return np.zeros(device_count)
    ideal: Float64Array = weight * (total / weight.sum())
    caps = _caps(columns, len(rows), np.where(is_up, 0.0, counts))
    if ideal.max() <= pg_count and all(
        (np.bincount(cap.domain, ideal, len(cap.most)) <= cap.most).all() for cap in caps
    ):
        return ideal
    # One level for all; then, from the largest domains down, that of each domain by itself.
    everything = np.zeros(device_count, dtype=np.int32)
    top = _Caps(everything, np.zeros(len(caps[-1].most), dtype=np.int32), np.array([np.inf]))
    level = _water_level(weight, pg_count, [*caps, top], everything, np.array([total]))[everything]
    for depth in range(len(caps), 0, -1):
        chain, domain = caps[:depth], caps[depth - 1].domain
        share = np.minimum(level * weight, pg_count)
        inside = np.minimum(_filled(share, chain), caps[depth - 1].most)
        level = _water_level(weight, pg_count, chain, domain, inside)[domain]
    return np.minimum(level * weight, pg_count)
