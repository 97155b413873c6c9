"""New cluster maps from old ones, and the check of a map's laws.

Every function that changes something returns a new map with the next epoch; what did not change is
shared with the old map, whose arrays are read-only.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from exastore.metadata.core.errors import InvalidClusterMap, UnknownIndex
from exastore.metadata.core.placement import (
    all_up,
    check_placeable,
    place_with_columns,
    placement_columns,
)
from exastore.metadata.core.pools import DEFAULT_POOL, broken_rows, check_pools, pools_of
from exastore.metadata.core.topology import (
    NO_DEVICE,
    ClusterMap,
    DeviceState,
    Float64Array,
    Int32Array,
    PlacementRule,
    Pool,
    SlotState,
    Topology,
    Uint8Array,
    frozen,
)

#: The most failure-domain members that one hash identifier has room for.
INDEX_COUNT_MAX = 1 << 28


def new_map(
    topology: Topology,
    rule: PlacementRule,
    code: str,
    n: int,
    pg_count: int,
    *,
    seed: int = 0,
    device_state: Uint8Array | None = None,
    epoch: int = 1,
    pools: Sequence[Pool] = (),
) -> ClusterMap:
    """The first map of a cluster: places all PGs, every slot CLEAN.

    Pools, if there are any, cover all groups, and then `rule` is of no use.

    Raises:
        TooFewDomains: A row could not be filled.
    """
    state = all_up(topology.device_count) if device_state is None else device_state.copy()
    check_pools(pools, pg_count)
    rows = np.empty((pg_count, n), dtype=np.int32)
    for pool in pools or (Pool(DEFAULT_POOL, rule, 0, pg_count),):
        check_placeable(topology, pool.rule, n, state)
        rows[pool.pgs] = place_with_columns(
            placement_columns(topology, pool.rule),
            pool.pg_count,
            n,
            seed=seed,
            device_state=state,
            first_pg=pool.first_pg,
        )
    return ClusterMap(
        epoch=epoch,
        code=code,
        topology=topology,
        rule=rule,
        device_state=frozen(state),
        pg_devices=frozen(rows),
        pg_slot_state=frozen(np.full(rows.shape, SlotState.CLEAN, dtype=np.uint8)),
        pg_epoch=frozen(np.full(pg_count, epoch, dtype=np.int64)),
        pg_previous=frozen(np.full(rows.shape, NO_DEVICE, dtype=np.int32)),
        pools=tuple(pools),
    )


def with_device_state(cluster_map: ClusterMap, changes: Mapping[int, DeviceState]) -> ClusterMap:
    """The map with some device states changed; the same map if all of them hold already."""
    state = cluster_map.device_state.copy()
    for device, new_state in changes.items():
        if not 0 <= device < len(state):
            raise UnknownIndex("device", device, len(state))
        state[device] = new_state
    if np.array_equal(state, cluster_map.device_state):
        return cluster_map
    return replace(cluster_map, epoch=cluster_map.epoch + 1, device_state=frozen(state))


def with_device_weight(cluster_map: ClusterMap, changes: Mapping[int, float]) -> ClusterMap:
    """The map with some device weights changed. The PG table stays: balancing moves slots."""
    weight = cluster_map.topology.device_weight.copy()
    for device, new_weight in changes.items():
        if not 0 <= device < len(weight):
            raise UnknownIndex("device", device, len(weight))
        weight[device] = new_weight
    topology = replace(cluster_map.topology, device_weight=frozen(weight))
    return replace(cluster_map, epoch=cluster_map.epoch + 1, topology=topology)


def _appended(array: Int32Array, value: int) -> Int32Array:
    return frozen(np.append(array, np.int32(value)))


def topology_with_node(
    topology: Topology,
    *,
    rack: int,
    zone: int = 0,
    region: int = 0,
    device_weights: Sequence[float] = (),
) -> Topology:
    """The topology with one more node and its devices.

    Args:
        topology: The old one.
        rack: The node's rack; the number of racks names a new one.
        zone: Zone of a new rack; the number of zones names a new one. Unused for a known rack.
        region: Region of a new zone. Unused for a known zone.
        device_weights: Weight of each device of the node; they get the next device indexes.
    """
    zone_region, rack_zone = topology.zone_region, topology.rack_zone
    region_count = int(zone_region.max(initial=-1)) + 1
    if not 0 <= rack <= len(rack_zone):
        raise UnknownIndex("rack", rack, len(rack_zone))
    if rack == len(rack_zone):
        if not 0 <= zone <= len(zone_region):
            raise UnknownIndex("zone", zone, len(zone_region))
        if zone == len(zone_region):
            if not 0 <= region <= region_count:
                raise UnknownIndex("region", region, region_count)
            zone_region = _appended(zone_region, region)
        rack_zone = _appended(rack_zone, zone)
    with_node = replace(
        topology,
        node_rack=_appended(topology.node_rack, rack),
        rack_zone=rack_zone,
        zone_region=zone_region,
    )
    return topology_with_devices(with_node, len(topology.node_rack), device_weights)


def topology_with_devices(
    topology: Topology, node: int, device_weights: Sequence[float]
) -> Topology:
    """The topology with more devices in a node, under the next device indexes."""
    if not 0 <= node < len(topology.node_rack):
        raise UnknownIndex("node", node, len(topology.node_rack))
    nodes = np.full(len(device_weights), node, dtype=np.int32)
    weights = np.array(device_weights, dtype=np.float64)
    return replace(
        topology,
        device_node=frozen(np.concatenate([topology.device_node, nodes])),
        device_weight=frozen(np.concatenate([topology.device_weight, weights])),
    )


def empty_topology() -> Topology:
    """No region, no device: nodes are added with `topology_with_node`."""
    none = frozen(np.zeros(0, dtype=np.int32))
    weights: Float64Array = frozen(np.zeros(0, dtype=np.float64))
    return Topology(none, none, none, none, weights)


def with_topology(cluster_map: ClusterMap, topology: Topology) -> ClusterMap:
    """The map with a grown topology: new devices are UP and hold nothing yet."""
    added = topology.device_count - cluster_map.topology.device_count
    if added < 0:
        raise InvalidClusterMap("devices never leave a cluster map: set them OUT")
    state = np.concatenate([cluster_map.device_state, all_up(added)])
    return replace(
        cluster_map,
        epoch=cluster_map.epoch + 1,
        topology=topology,
        device_state=frozen(state),
    )


def with_node(
    cluster_map: ClusterMap,
    *,
    rack: int,
    zone: int = 0,
    region: int = 0,
    device_weights: Sequence[float] = (),
) -> ClusterMap:
    """The map with one more node; see `topology_with_node`."""
    topology = topology_with_node(
        cluster_map.topology, rack=rack, zone=zone, region=region, device_weights=device_weights
    )
    return with_topology(cluster_map, topology)


def with_devices(cluster_map: ClusterMap, node: int, device_weights: Sequence[float]) -> ClusterMap:
    """The map with more devices in a node."""
    return with_topology(
        cluster_map, topology_with_devices(cluster_map.topology, node, device_weights)
    )


def _require(holds: bool, facts: str) -> None:
    if not holds:
        raise InvalidClusterMap(facts)


def validate_topology(topology: Topology) -> None:
    """Raises InvalidClusterMap unless every parent exists and every weight is a number >= 0."""
    region_count = int(topology.zone_region.max(initial=-1)) + 1
    levels = (
        ("device", topology.device_node, len(topology.node_rack), "node"),
        ("node", topology.node_rack, len(topology.rack_zone), "rack"),
        ("rack", topology.rack_zone, len(topology.zone_region), "zone"),
        ("zone", topology.zone_region, region_count, "region"),
    )
    for child, parents, parent_count, parent in levels:
        _require(parents.dtype == np.int32, f"the {parent} of each {child} must be int32")
        _require(len(parents) < INDEX_COUNT_MAX, f"more than {INDEX_COUNT_MAX} {child}s")
        strays = np.flatnonzero((parents < 0) | (parents >= parent_count))
        if len(strays):
            first = int(strays[0])
            raise InvalidClusterMap(f"{child} {first} is in no {parent}: {parents[first]}")
    weight = topology.device_weight
    _require(len(weight) == topology.device_count, "every device needs one weight")
    _require(bool(np.all(np.isfinite(weight) & (weight >= 0))), "weights must be finite, >= 0")


def validate_cluster_map(cluster_map: ClusterMap) -> None:
    """Checks every law of a map.

    Raises:
        InvalidClusterMap: Names the first law that is broken.
    """
    topology, rows = cluster_map.topology, cluster_map.pg_devices
    validate_topology(topology)
    _require(cluster_map.epoch >= 1, "epochs start at 1")
    for pool in pools_of(cluster_map):
        _require(pool.rule.max_per_domain >= 1, "a rule must allow 1 chunk per domain")
    state = cluster_map.device_state
    _require(state.shape == (topology.device_count,), "every device needs one state")
    _require(bool(np.isin(state, list(DeviceState)).all()), "unknown device state")
    _require(rows.ndim == 2, "the PG table has two dimensions")
    _require(cluster_map.pg_slot_state.shape == rows.shape, "every slot needs one state")
    _require(bool(np.isin(cluster_map.pg_slot_state, list(SlotState)).all()), "unknown slot state")
    _require(cluster_map.pg_epoch.shape == rows.shape[:1], "every PG needs one epoch")
    in_range = (rows == NO_DEVICE) | ((rows >= 0) & (rows < topology.device_count))
    _require(bool(in_range.all()), "a slot names a device that does not exist")
    pg_epoch = cluster_map.pg_epoch
    _require(
        bool(((pg_epoch >= 1) & (pg_epoch <= cluster_map.epoch)).all()),
        "a PG is newer than its map",
    )
    previous = cluster_map.pg_previous
    _require(previous.shape == rows.shape, "every slot needs one previous device")
    _require(previous.dtype == np.int32, "previous devices must be int32")
    has_previous = previous != NO_DEVICE
    in_range = ~has_previous | ((previous >= 0) & (previous < topology.device_count))
    _require(bool(in_range.all()), "a slot was held by a device that does not exist")
    is_clean = cluster_map.pg_slot_state == SlotState.CLEAN
    _require(not (has_previous & is_clean).any(), "a CLEAN slot names a previous device")
    is_moving = cluster_map.pg_slot_state == SlotState.MOVING
    _require(not (is_moving & ~has_previous).any(), "a MOVING slot names no previous device")
    check_pools(cluster_map.pools, len(rows))
    broken = np.flatnonzero(broken_rows(cluster_map))
    if len(broken):
        pg = int(broken[0])
        raise InvalidClusterMap(f"{len(broken)} PGs break the rule, first {pg}: {rows[pg]}")
    arrays = (
        *(topology.device_node, topology.node_rack, topology.rack_zone, topology.zone_region),
        *(topology.device_weight, state, rows, cluster_map.pg_slot_state, pg_epoch),
        previous,
    )
    _require(not any(array.flags.writeable for array in arrays), "a map's arrays are read-only")
