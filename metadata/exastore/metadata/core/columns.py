"""A topology and a rule as columns for the kernels of placement.

Devices that residency or class keep out have no weight in the columns, which everything that uses
them respects: they are never drawn, take no repair and no move.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from exastore.metadata.core.straw2 import (
    LANES,
    Tree,
    Uint32Array,
    log_draw_table,
    with_child_ids,
)
from exastore.metadata.core.topology import Float64Array, Int32Array, PlacementRule, Topology

BoolArray = NDArray[np.bool_]

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
        device_weight: Shape (D,). 0 where the rule lets no data in.
        limit_max: Shape (A,). The most slots of a PG at each other level that the rule limits.
        limit_domain: Shape (A, D). Domain of each device at these levels.
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
    limit_max: Int32Array
    limit_domain: Int32Array


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

    allowed = rule.allowed(topology)
    weights: list[Float64Array] = [np.where(allowed, topology.device_weight, 0.0)]
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
    count = np.concatenate(child_count)
    bucket_columns = [starts[:-1], starts[1:], count, np.concatenate(is_uniform), 0 * count]
    with np.errstate(divide="ignore", over="ignore"):
        inverse = 1.0 / weight
    tree = Tree(
        bucket=np.stack(bucket_columns, axis=1).astype(np.int32),
        child_item=np.concatenate(child_item),
        child_id=np.zeros(0, dtype=np.uint32),
        child_weight_inverse=inverse,
        log_draw=log_draw_table(),
    )
    limit_domain = np.zeros((len(rule.also), topology.device_count), dtype=np.int32)
    for i, (also_level, _) in enumerate(rule.also):
        limit_domain[i] = topology.domain_of_device(also_level)
    return PlacementColumns(
        level=level,
        max_per_domain=rule.max_per_domain,
        bucket_children_max=int(np.diff(starts).max(initial=0)),
        tree=with_child_ids(tree, np.concatenate(child_id)),
        domain_bucket=domain_bucket.astype(np.int32),
        domain_weight=weights[level].copy(),
        domain_id=_item_id(level, counts[level]),
        domain_device_start=domain_device_start,
        domain_device=domain_device,
        domain_of_device=domain_of_device,
        device_weight=weights[0].copy(),
        limit_max=np.array([most for _, most in rule.also], dtype=np.int32),
        limit_domain=limit_domain,
    )
