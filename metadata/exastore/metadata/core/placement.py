"""Placement: weighted straw2 (CRUSH) down the failure domains, under a domain rule.

Laws:
1. A choice is a pure function of topology, rule, device states, PG, slot and seed.
2. A row never names a device twice and never breaks the rule.
3. Slots keep their position (CRUSH's `indep`): an empty slot is filled where it is.
4. A slot is NO_DEVICE only if no eligible device keeps the rule: when the draws run out, an exact
   scan over the domains decides. The rule bounds each domain by itself, so filling slots one by one
   in any order fills as many as can be filled.

The draws are in `straw2.py`. A trial draws a domain of the rule's level from the root and then a
device in it; one that meets a full domain or an ineligible device is repeated with the next trial
number, in rounds over the slots that are still empty, as in CRUSH's `chooseleaf indep`. For PG p
without a seed the choices are those of CRUSH for input p, up to the deviations named there and the
identifiers of buckets: (level, index) here, so that growth of one level renames no other.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from exastore.erasure.jit import njit
from exastore.metadata.core.straw2 import (
    LANES,
    ROOT_LEVEL,
    Tree,
    Uint32Array,
    descend,
    hash2,
    hash3,
    log_draw_table,
)
from exastore.metadata.core.topology import (
    NO_DEVICE,
    DeviceState,
    DomainLevel,
    Float64Array,
    Int32Array,
    PlacementRule,
    Topology,
    Uint8Array,
)

BoolArray = NDArray[np.bool_]

#: Rounds of draws before the exact scan, as Ceph's choose_total_tries + 1.
TRIES = 51
#: DeviceState.UP as a plain integer, which kernels may read.
UP = 1
#: Bits of a bucket's index in its hash identifier; the level sits above them.
INDEX_BITS = 28


class PlacementColumns(NamedTuple):
    """A topology and a rule, as arrays for the kernels. D devices, G rule domains.

    Attributes:
        level: DomainLevel of the rule.
        max_per_domain: Most slots of one PG in one domain.
        bucket_children_max: Most children of any bucket, with the filling.
        tree: The buckets.
        domain_bucket: Shape (G,). Bucket number of each domain; empty at DEVICE level.
        domain_weight: Shape (G,). Sum of device weights.
        domain_id: Shape (G,). What is hashed for each domain.
        domain_device_start: Shape (G + 1,). CSR bounds of `domain_device`.
        domain_device: Shape (D,). Devices by domain.
        domain_of_device: Shape (D,). Domain of each device.
        device_weight: Shape (D,).
    """

    level: int
    max_per_domain: int
    bucket_children_max: int
    tree: Tree
    domain_bucket: Int32Array
    domain_weight: Float64Array
    domain_id: Uint32Array
    domain_device_start: Int32Array
    domain_device: Int32Array
    domain_of_device: Int32Array
    device_weight: Float64Array


def _csr(parent: Int32Array, parent_count: int) -> tuple[Int32Array, Int32Array]:
    """Start offsets and children of each parent, children in ascending order."""
    children = np.argsort(parent, kind="stable").astype(np.int32)
    start = np.zeros(parent_count + 1, dtype=np.int32)
    np.cumsum(np.bincount(parent, minlength=parent_count), out=start[1:])
    return start, children


def _item_id(level: int, count: int) -> Uint32Array:
    """Hash identifiers of one level: devices are their index, buckets carry their level on top."""
    return np.arange(count, dtype=np.uint32) | np.uint32(level << INDEX_BITS)


def _padded(start: Int32Array) -> tuple[Int32Array, NDArray[np.intp]]:
    """Bounds with every bucket filled up to whole vectors, and where each position reads from."""
    count = np.diff(start).astype(np.int64)
    padded_count = -(-count // LANES) * LANES
    padded_start = np.zeros(len(start), dtype=np.int64)
    np.cumsum(padded_count, out=padded_start[1:])
    bucket = np.repeat(np.arange(len(count)), padded_count)
    position = np.arange(padded_start[-1]) - padded_start[bucket]
    position = np.where(position < count[bucket], position, 0)
    return padded_start.astype(np.int32), (start[bucket] + position).astype(np.intp)


def placement_columns(topology: Topology, rule: PlacementRule) -> PlacementColumns:
    """Builds the columns. O(D log D): build once per topology and keep."""
    region_count = int(topology.zone_region.max(initial=-1)) + 1
    parents: list[Int32Array] = [
        topology.device_node,
        topology.node_rack,
        topology.rack_zone,
        topology.zone_region,
        np.zeros(region_count, dtype=np.int32),
    ]
    counts = [*(len(parent) for parent in parents), 1]
    #: Number of the first bucket of each level; devices are not buckets.
    first_bucket = [0, 0, *(int(total) for total in np.cumsum(counts[1:-1]))]

    weights: list[Float64Array] = [np.asarray(topology.device_weight, dtype=np.float64)]
    child_start: list[Int32Array] = [np.zeros(1, dtype=np.int32)]
    child_count: list[Int32Array] = []
    child_item: list[Int32Array] = []
    child_id: list[Uint32Array] = []
    child_weight: list[Float64Array] = []
    is_uniform: list[BoolArray] = []
    for level, parent in enumerate(parents):
        parent_count = counts[level + 1]
        start, children = _csr(parent, parent_count)
        padded_start, source = _padded(start)
        children = children[source]
        weight = weights[level][children]
        lowest, highest = np.full(parent_count, np.inf), np.zeros(parent_count)
        bucket = np.repeat(np.arange(parent_count), np.diff(padded_start))
        np.minimum.at(lowest, bucket, weight)
        np.maximum.at(highest, bucket, weight)
        child_start.append(padded_start[1:] + child_start[-1][-1])
        child_count.append(np.diff(start))
        child_item.append((children + first_bucket[level]).astype(np.int32))
        child_id.append(_item_id(level, counts[level])[children])
        child_weight.append(weight)
        is_uniform.append((lowest == highest) & (lowest > 0))
        sums = np.bincount(parent, weights=weights[level], minlength=parent_count)
        weights.append(sums.astype(np.float64))

    level = int(rule.level)
    domain_of_device = topology.domain_of_device(rule.level)
    domain_device_start, domain_device = _csr(domain_of_device, counts[level])
    domain_bucket = np.arange(counts[level] if level else 0) + first_bucket[level]
    starts = np.concatenate(child_start)
    weight = np.concatenate(child_weight)
    bucket_columns = [
        starts[:-1],
        starts[1:],
        np.concatenate(child_count),
        np.concatenate(is_uniform),
    ]
    with np.errstate(divide="ignore", over="ignore"):
        inverse = 1.0 / weight
    return PlacementColumns(
        level=level,
        max_per_domain=rule.max_per_domain,
        bucket_children_max=int(np.diff(starts).max(initial=0)),
        tree=Tree(
            bucket=np.stack(bucket_columns, axis=1).astype(np.int32),
            child_item=np.concatenate(child_item),
            child_id=np.concatenate(child_id),
            child_weight_inverse=inverse,
            log_draw=log_draw_table().copy(),
        ),
        domain_bucket=domain_bucket.astype(np.int32),
        domain_weight=weights[level].copy(),
        domain_id=_item_id(level, counts[level]),
        domain_device_start=domain_device_start,
        domain_device=domain_device,
        domain_of_device=domain_of_device,
        device_weight=weights[0].copy(),
    )


@njit
def _in_row(row: Int32Array, device: int) -> bool:
    for i in range(len(row)):
        if row[i] == device:
            return True
    return False


@njit
def _is_eligible(
    device_weight: Float64Array, device_state: Uint8Array, row: Int32Array, device: int
) -> bool:
    """Whether the device may take a slot of `row`, as far as the device itself goes."""
    return device_state[device] == UP and device_weight[device] > 0.0 and not _in_row(row, device)


@njit
def _domain_has_room(
    domain_of_device: Int32Array, max_per_domain: int, row: Int32Array, slot: int, domain: int
) -> bool:
    """Whether the slots of `row` other than `slot` leave room in `domain`."""
    used = 0
    for i in range(len(row)):
        device = row[i]
        if i != slot and device >= 0 and domain_of_device[device] == domain:
            used += 1
    return used < max_per_domain


@njit
def keeps_rule(columns: PlacementColumns, row: Int32Array, slot: int, device: int) -> bool:
    """Whether `device` in `slot` keeps the rule with the row's other slots. Callable from kernels.

    Asks nothing about the device's state: a device that is to take back what it holds already may
    be one that takes no new placement.
    """
    for i in range(len(row)):
        if i != slot and row[i] == device:
            return False
    return bool(
        _domain_has_room(
            columns.domain_of_device,
            columns.max_per_domain,
            row,
            slot,
            columns.domain_of_device[device],
        )
    )


@njit
def _try_once(
    columns: PlacementColumns,
    device_state: Uint8Array,
    row: Int32Array,
    slot: int,
    x: np.uint32,
    r: np.uint32,
    scratch: Uint32Array,
) -> int:
    """One trial: a domain, then a device in it (CRUSH's chooseleaf). NO_DEVICE if it is no use."""
    level = columns.level
    tree = columns.tree
    root = len(tree.bucket) - 1
    device = descend(tree, root, ROOT_LEVEL - level, x, r, scratch)
    if device < 0:
        return NO_DEVICE
    domain = device - columns.domain_bucket[0] if level > 0 else device
    if not _domain_has_room(columns.domain_of_device, columns.max_per_domain, row, slot, domain):
        return NO_DEVICE
    if level > 0:
        device = descend(tree, device, level, x, np.uint32(slot + r), scratch)
    if device < 0 or not _is_eligible(columns.device_weight, device_state, row, device):
        return NO_DEVICE
    return device


@njit
def _scan(
    columns: PlacementColumns,
    device_state: Uint8Array,
    row: Int32Array,
    slot: int,
    x: np.uint32,
    r: np.uint32,
) -> int:
    """straw2 over every domain that has room and an eligible device, then over its devices.

    Cost: the number of domains and the devices of one, unless many domains are dead.
    """
    best_domain, best_draw = -1, -np.inf
    for domain in range(len(columns.domain_weight)):
        if not _domain_has_room(
            columns.domain_of_device, columns.max_per_domain, row, slot, domain
        ):
            continue
        is_live = False
        for j in range(
            columns.domain_device_start[domain], columns.domain_device_start[domain + 1]
        ):
            if _is_eligible(columns.device_weight, device_state, row, columns.domain_device[j]):
                is_live = True
                break
        if is_live:
            u = hash3(x, columns.domain_id[domain], r) & np.uint32(65535)
            draw = columns.tree.log_draw[u] * (1.0 / columns.domain_weight[domain])
            if draw > best_draw:
                best_domain, best_draw = domain, draw
    if best_domain < 0:
        return NO_DEVICE
    best_device, best_draw = NO_DEVICE, -np.inf
    for j in range(
        columns.domain_device_start[best_domain], columns.domain_device_start[best_domain + 1]
    ):
        device = columns.domain_device[j]
        if _is_eligible(columns.device_weight, device_state, row, device):
            u = hash3(x, np.uint32(device), np.uint32(slot + r)) & np.uint32(65535)
            draw = columns.tree.log_draw[u] * (1.0 / columns.device_weight[device])
            if draw > best_draw:
                best_device, best_draw = device, draw
    return int(best_device)


@njit
def choose_replacement(
    columns: PlacementColumns,
    device_state: Uint8Array,
    row: Int32Array,
    slot: int,
    pg: int,
    attempt_seed: int,
) -> int:
    """A new device for one slot of a placement group. Callable from other kernels.

    Eligible is a device that is UP, has a weight above 0, is not in the row, and keeps the rule
    with the row's other slots. Usually a few descents of the tree, whatever the number of devices.

    Args:
        columns: From `placement_columns`.
        device_state: Shape (D,), dtype uint8. Values of DeviceState.
        row: Shape (n,), dtype int32. The PG's devices; `row[slot]` may still be the old one, which
            is never chosen again.
        slot: Which slot of the row.
        pg: Index of the PG, 32 bits are used.
        attempt_seed: Another value gives an independent choice; 32 bits are used.

    Returns:
        A device index, or NO_DEVICE if there is no eligible device.
    """
    x = hash2(np.uint32(pg), np.uint32(attempt_seed))
    scratch = np.empty(columns.bucket_children_max, dtype=np.uint32)
    width = len(row)
    for trial in range(TRIES):
        device = _try_once(
            columns, device_state, row, slot, x, np.uint32(slot + width * trial), scratch
        )
        if device >= 0:
            return device
    return _scan(columns, device_state, row, slot, x, np.uint32(slot + width * TRIES))


@njit
def _place(
    columns: PlacementColumns,
    device_state: Uint8Array,
    seed: np.uint32,
    first_pg: int,
    rows: Int32Array,
) -> None:
    """Fills `rows` (Shape (P, n), all NO_DEVICE) for the PGs first_pg, first_pg + 1, ..."""
    scratch = np.empty(columns.bucket_children_max, dtype=np.uint32)
    width = rows.shape[1]
    for p in range(rows.shape[0]):
        row = rows[p]
        x = np.uint32(first_pg + p)
        if seed != np.uint32(0):
            x = hash2(x, seed)
        left = width
        for trial in range(TRIES):
            if left == 0:
                break
            for slot in range(width):
                if row[slot] < 0:
                    r = np.uint32(slot + width * trial)
                    device = _try_once(columns, device_state, row, slot, x, r, scratch)
                    if device >= 0:
                        row[slot] = device
                        left -= 1
        if left:
            for slot in range(width):
                if row[slot] < 0:
                    r = np.uint32(slot + width * TRIES)
                    row[slot] = _scan(columns, device_state, row, slot, x, r)


def all_up(device_count: int) -> Uint8Array:
    """Shape (D,): every device UP."""
    return np.full(device_count, DeviceState.UP, dtype=np.uint8)


def place_with_columns(
    columns: PlacementColumns,
    pg_count: int,
    n: int,
    *,
    seed: int = 0,
    device_state: Uint8Array | None = None,
    first_pg: int = 0,
) -> Int32Array:
    """As `place_pgs`, for columns that are at hand; may be called in blocks of PGs."""
    device_count = len(columns.device_weight)
    state = all_up(device_count) if device_state is None else np.array(device_state, np.uint8)
    if len(state) != device_count:
        raise ValueError(f"device_state has {len(state)} entries for {device_count} devices")
    rows = np.full((pg_count, n), NO_DEVICE, dtype=np.int32)
    if device_count > 0:
        _place(columns, state, np.uint32(seed & 0xFFFFFFFF), first_pg, rows)
    return rows


def place_pgs(
    topology: Topology,
    rule: PlacementRule,
    pg_count: int,
    n: int,
    *,
    seed: int = 0,
    device_state: Uint8Array | None = None,
) -> Int32Array:
    """Places `pg_count` placement groups of n slots.

    Args:
        topology: The failure domains.
        rule: What every row keeps.
        pg_count: Number of placement groups.
        n: Slots of each.
        seed: 32 bits; another seed gives an independent placement.
        device_state: Shape (D,). Only UP devices take slots. None: all are UP.

    Returns:
        Shape (pg_count, n), dtype int32: device of each slot; NO_DEVICE only where no eligible
        device is left.
    """
    columns = placement_columns(topology, rule)
    return place_with_columns(columns, pg_count, n, seed=seed, device_state=device_state)


def domain_count_with_weight(topology: Topology, level: DomainLevel) -> int:
    """How many domains of `level` hold a device that can take data."""
    usable = np.asarray(topology.device_weight) > 0
    return len(np.unique(topology.domain_of_device(level)[usable]))
