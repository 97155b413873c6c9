"""The cluster map as a message and as the core's columns.

The message is the stored and the public form and holds identities; the columns are what placement
and repair work on. A rack is named by (region, zone, rack), so equal rack names in two zones are
two racks; domains are numbered in the order in which the nodes name them.
"""

from collections.abc import Hashable, Mapping, Sequence

import numpy as np

from exastore.metadata.core.topology import (
    NO_DEVICE,
    ClusterMap,
    DomainLevel,
    Int32Array,
    PlacementRule,
    Pool,
    Topology,
    frozen,
)
from exastore.proto.v1 import common_pb2

#: NO_DEVICE in messages, whose indexes are unsigned.
WIRE_NO_DEVICE = 0xFFFFFFFF


def topology_of(nodes: Sequence[common_pb2.Node], devices: Sequence[common_pb2.Device]) -> Topology:
    """Columns of the failure domains."""
    regions = _Numbering()
    zones = _Numbering()
    racks = _Numbering()
    classes = class_numbers(devices)
    node_rack: list[int] = []
    for node in nodes:
        region = regions.number((node.region,), 0)
        zone = zones.number((node.region, node.zone), region)
        node_rack.append(racks.number((node.region, node.zone, node.rack), zone))
    return Topology(
        device_node=_int32([device.node_index for device in devices]),
        node_rack=_int32(node_rack),
        rack_zone=_int32(racks.parents),
        zone_region=_int32(zones.parents),
        device_weight=frozen(np.array([device.weight for device in devices], dtype=np.float64)),
        device_class=_int32([classes[device.device_class] for device in devices]),
    )


def region_numbers(nodes: Sequence[common_pb2.Node]) -> dict[str, int]:
    """The index of each region by its name."""
    names = dict.fromkeys(node.region for node in nodes)
    return {name: index for index, name in enumerate(names)}


def class_numbers(devices: Sequence[common_pb2.Device]) -> dict[str, int]:
    """The number of each device class by its name; 0 is that of devices without one."""
    names = dict.fromkeys(("", *(device.device_class for device in devices)))
    return {name: index for index, name in enumerate(names)}


def pools_of_message(message: common_pb2.ClusterMap) -> tuple[Pool, ...]:
    """The core's pools of a map; empty: it names none.

    A region or a class that nothing belongs to has a number that nothing has.
    """
    if not message.pools:
        return ()
    regions, classes = region_numbers(message.nodes), class_numbers(message.devices)
    found: list[Pool] = []
    for pool in message.pools:
        first, *also = ((DomainLevel(item.level), item.max_chunks) for item in pool.limits)
        rule = PlacementRule(
            *first,
            tuple(also),
            regions=_chosen(pool.regions, regions),
            device_classes=_chosen(pool.device_classes, classes),
        )
        found.append(Pool(pool.name, rule, pool.first_pg, pool.pg_count))
    return tuple(found)


def _chosen(names: Sequence[str], numbers: Mapping[str, int]) -> tuple[int, ...] | None:
    return tuple(numbers.get(name, len(numbers)) for name in names) or None


def columns_of(message: common_pb2.ClusterMap, rule: PlacementRule) -> ClusterMap:
    """The core's map of a message."""
    pg_devices = np.array([pg.device_indexes for pg in message.pgs], dtype=np.int64)
    pg_devices[pg_devices == WIRE_NO_DEVICE] = NO_DEVICE
    previous = np.full(pg_devices.shape, NO_DEVICE, dtype=np.int64)
    for row, pg in zip(previous, message.pgs, strict=True):
        if pg.previous_device_indexes:  # absent when no slot has one, and in older maps
            row[:] = pg.previous_device_indexes
    previous[previous == WIRE_NO_DEVICE] = NO_DEVICE
    return ClusterMap(
        epoch=message.epoch,
        code=message.code,
        topology=topology_of(message.nodes, message.devices),
        rule=rule,
        device_state=frozen(np.array([device.state for device in message.devices], dtype=np.uint8)),
        pg_devices=frozen(pg_devices.astype(np.int32)),
        pg_slot_state=frozen(np.array([pg.slot_states for pg in message.pgs], dtype=np.uint8)),
        pg_epoch=frozen(np.array([pg.epoch for pg in message.pgs], dtype=np.int64)),
        pg_previous=frozen(previous.astype(np.int32)),
        pools=pools_of_message(message),
    )


def with_columns(message: common_pb2.ClusterMap, columns: ClusterMap) -> common_pb2.ClusterMap:
    """A copy of the message with epoch, device states and PG table of the columns."""
    changed = common_pb2.ClusterMap()
    changed.CopyFrom(message)
    changed.epoch = columns.epoch
    for device, state in zip(changed.devices, columns.device_state.tolist(), strict=True):
        device.state = state
    del changed.pgs[:]
    rows = zip(
        columns.pg_devices.tolist(),
        columns.pg_slot_state.tolist(),
        columns.pg_epoch.tolist(),
        columns.pg_previous.tolist(),
        strict=True,
    )
    for index, (devices, slot_states, epoch, previous) in enumerate(rows):
        has_previous = any(device != NO_DEVICE for device in previous)
        changed.pgs.add(
            index=index,
            device_indexes=_wire_indexes(devices),
            slot_states=slot_states,
            epoch=epoch,
            previous_device_indexes=_wire_indexes(previous) if has_previous else (),
        )
    return changed


def _wire_indexes(devices: Sequence[int]) -> list[int]:
    return [WIRE_NO_DEVICE if device == NO_DEVICE else device for device in devices]


class _Numbering:
    """Dense numbers for names, in the order of their first use, with each one's parent."""

    def __init__(self) -> None:
        self._numbers: dict[Hashable, int] = {}
        self.parents: list[int] = []

    def number(self, name: Hashable, parent: int) -> int:
        known = self._numbers.get(name)
        if known is None:
            known = self._numbers[name] = len(self.parents)
            self.parents.append(parent)
        return known


def _int32(values: Sequence[int]) -> Int32Array:
    return frozen(np.array(values, dtype=np.int32))
