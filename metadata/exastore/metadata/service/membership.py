"""What heartbeats and silence do to the cluster map, as functions from a map to the next.

Each returns a copy with the next epoch, or None when nothing changes.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence

from exastore.metadata.core.balancer import apply_balance_to_rows, plan_balance_of_rows
from exastore.metadata.core.balancer_recovery import plan_even_recovery
from exastore.metadata.core.placement import place_with_columns, placement_columns
from exastore.metadata.core.pools import DEFAULT_POOL
from exastore.metadata.core.rules import placeable_slots
from exastore.metadata.core.topology import NO_DEVICE, Int32Array, PlacementRule, Pool, Topology
from exastore.metadata.service.convert import pools_of_message, topology_of
from exastore.metadata.service.errors import NotReady
from exastore.proto.v1 import common_pb2, metadata_pb2, pool_pb2

_TIB = float(1 << 40)
_UP = common_pb2.DEVICE_STATE_UP
_DOWN = common_pb2.DEVICE_STATE_DOWN
_OUT = common_pb2.DEVICE_STATE_OUT
_DRAINING = common_pb2.DEVICE_STATE_DRAINING

#: States in which a device serves reads.
READABLE = (_UP, _DRAINING)


def first_map(
    heartbeats: Iterable[metadata_pb2.HeartbeatRequest],
    *,
    cluster_id: str,
    code: str,
    n: int,
    pg_count: int,
    rule: PlacementRule,
    pools: Sequence[pool_pb2.Pool] = (),
) -> common_pb2.ClusterMap:
    """Epoch 1: nodes in the order of their ids, every PG placed, the table balanced.

    Who reads for whom when a device dies is evened out, too. Pools, if there are any, cover all
    groups, and then `rule` and `pg_count` are of no use.

    Raises NotReady when a rule needs more failure domains than have joined.
    """
    message = common_pb2.ClusterMap(epoch=1, cluster_id=cluster_id, code=code)
    for heartbeat in sorted(heartbeats, key=lambda item: item.node.id):
        _add_node(message, heartbeat.node)
        for report in heartbeat.devices:
            _add_device(message, len(message.nodes) - 1, report)
    message.pools.extend(pools)
    topology = topology_of(message.nodes, message.devices)
    for pool in pools_of_message(message) or (Pool(DEFAULT_POOL, rule, 0, pg_count),):
        table = _first_rows(topology, pool, code, n)
        for index, row in enumerate(table.tolist(), start=pool.first_pg):
            message.pgs.add(index=index, device_indexes=row, slot_states=[0] * n, epoch=1)
    return message


def _first_rows(topology: Topology, pool: Pool, code: str, n: int) -> Int32Array:
    """Shape (P, n): the rows of a pool, balanced. Raises NotReady."""
    columns = placement_columns(topology, pool.rule)
    room = placeable_slots(topology, pool.rule)
    if room < n:
        limits = ", ".join(f"{most} per {level.name.lower()}" for level, most in pool.rule.limits)
        usable = int((columns.device_weight > 0).sum())
        raise NotReady(
            f"pool {pool.name!r}: {code} needs room for {n} chunks of a stripe, at most {limits}; "
            f"the {usable} devices that joined and may hold them leave room for {room}: add more"
        )
    table = place_with_columns(columns, pool.pg_count, n, first_pg=pool.first_pg)
    if (table == NO_DEVICE).any():
        raise NotReady(f"{code} cannot be placed on the devices that joined: add more")
    # No data is there yet, so slots move for nothing.
    table = apply_balance_to_rows(table, plan_balance_of_rows(columns, table))
    plan = plan_even_recovery(columns, table)
    return apply_balance_to_rows(table, plan)


def admitted(
    message: common_pb2.ClusterMap, heartbeat: metadata_pb2.HeartbeatRequest
) -> common_pb2.ClusterMap | None:
    """The map after a heartbeat: new nodes and devices, new addresses.

    States of devices are the business of `NodeHealth`.
    """
    if _is_known(message, heartbeat):
        return None
    changed = common_pb2.ClusterMap()
    changed.CopyFrom(message)
    changed.epoch += 1
    node_index = next((n.index for n in changed.nodes if n.id == heartbeat.node.id), None)
    if node_index is None:
        node_index = _add_node(changed, heartbeat.node)
    else:
        node = changed.nodes[node_index]
        node.CopyFrom(heartbeat.node)
        node.index = node_index
    devices = {device.uuid: device for device in changed.devices}
    for report in heartbeat.devices:
        device = devices.get(report.uuid)
        if device is None:
            device = _add_device(changed, node_index, report)
        device.node_index = node_index
    return _if_changed(message, changed)


def with_states(
    message: common_pb2.ClusterMap, states: Mapping[int, common_pb2.DeviceState.ValueType]
) -> common_pb2.ClusterMap | None:
    """The map with these states of devices, by index."""
    changed = common_pb2.ClusterMap()
    changed.CopyFrom(message)
    changed.epoch += 1
    for index, state in states.items():
        changed.devices[index].state = state
    return _if_changed(message, changed)


def holders(pg: common_pb2.PlacementGroup, slot: int) -> tuple[int, ...]:
    """The devices that hold the chunks of a slot together; none that is being rebuilt does.

    A slot that moves has two: the one that it leaves, and the one that takes what is written now.
    """
    state = pg.slot_states[slot]
    if state == common_pb2.SLOT_STATE_CLEAN:
        return (pg.device_indexes[slot],)
    if state == common_pb2.SLOT_STATE_MOVING:
        return (pg.previous_device_indexes[slot], pg.device_indexes[slot])
    return ()


def serves(message: common_pb2.ClusterMap, device: int) -> bool:
    """Whether the device, which need not exist, can be read."""
    return device < len(message.devices) and message.devices[device].state in READABLE


def rack_of(message: common_pb2.ClusterMap, device: int) -> str:
    """The rack of the device's node, with where it is, as nodes name their own."""
    node = message.nodes[message.devices[device].node_index]
    return rack_name(node)


def rack_name(node: common_pb2.Node) -> str:
    """A rack with where it is: two racks of one name in two zones are two."""
    return f"{node.region}/{node.zone}/{node.rack}"


def is_quiet(message: common_pb2.ClusterMap | None, pg: int) -> bool:
    """Every slot is clean and its device can be reached."""
    if message is None or pg >= len(message.pgs):
        return False
    group = message.pgs[pg]
    return all(
        state == common_pb2.SLOT_STATE_CLEAN and serves(message, device)
        for device, state in zip(group.device_indexes, group.slot_states, strict=True)
    )


def missing_slots(message: common_pb2.ClusterMap, unreadable: Collection[int]) -> list[int]:
    """[p]: slots of PG p that cannot be read; `unreadable` are device indexes."""
    n = len(message.pgs[0].device_indexes) if message.pgs else 0
    counts: list[int] = []
    for pg in message.pgs:
        missing = 0
        for slot in range(n):
            devices = holders(pg, slot)
            missing += not devices or any(device in unreadable for device in devices)
        counts.append(missing)
    return counts


def pgs_by_missing(message: common_pb2.ClusterMap, missing: Sequence[int]) -> list[int]:
    """[i]: PGs with i slots that cannot be read; n + 1 entries. `missing`: of `missing_slots`."""
    n = len(message.pgs[0].device_indexes) if message.pgs else 0
    return [missing.count(count) for count in range(n + 1)]


def _is_known(message: common_pb2.ClusterMap, heartbeat: metadata_pb2.HeartbeatRequest) -> bool:
    """Whether the map has the node and all its devices just so; copies nothing large."""
    node = next((node for node in message.nodes if node.id == heartbeat.node.id), None)
    if node is None:
        return False
    told = common_pb2.Node()
    told.CopyFrom(heartbeat.node)
    told.index = node.index
    known = {device.uuid for device in message.devices if device.node_index == node.index}
    return told == node and all(report.uuid in known for report in heartbeat.devices)


def _if_changed(
    message: common_pb2.ClusterMap, changed: common_pb2.ClusterMap
) -> common_pb2.ClusterMap | None:
    same = changed.nodes == message.nodes and changed.devices == message.devices
    return None if same else changed


def _add_node(message: common_pb2.ClusterMap, node: common_pb2.Node) -> int:
    index = len(message.nodes)
    added = message.nodes.add()
    added.CopyFrom(node)
    added.index = index
    return index


def _add_device(
    message: common_pb2.ClusterMap, node_index: int, report: metadata_pb2.DeviceReport
) -> common_pb2.Device:
    return message.devices.add(
        index=len(message.devices),
        uuid=report.uuid,
        node_index=node_index,
        weight=report.weight or report.capacity_bytes / _TIB or 1.0,
        state=_DOWN if report.fenced else _UP,
        capacity_bytes=report.capacity_bytes,
        device_class=report.device_class,
    )
