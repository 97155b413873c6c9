"""The cluster map as columns: failure domains, devices, the PG table, under one epoch.

Laws:
1. A map is a value. Its arrays are read-only; a change makes a new map with the next epoch.
2. Indexes are dense and never reused: a device, node, rack, zone or region keeps its for ever.
3. `pg_devices[p]` are n different devices, or NO_DEVICE where none keeps the rule.

Eight devices and ten million go through the same functions.
"""

from dataclasses import dataclass, field
from enum import IntEnum
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

Int32Array = NDArray[np.int32]
Int64Array = NDArray[np.int64]
Float64Array = NDArray[np.float64]
Uint8Array = NDArray[np.uint8]

Scalar = TypeVar("Scalar", bound=np.generic)

#: Marks a PG slot that has no device.
NO_DEVICE = -1


class DeviceState(IntEnum):
    """As in `common.proto`."""

    UP = 1
    DOWN = 2
    OUT = 3
    DRAINING = 4


class SlotState(IntEnum):
    """As in `common.proto`."""

    CLEAN = 0
    REBUILDING = 1
    MOVING = 2


class DomainLevel(IntEnum):
    """Failure domains, smallest first."""

    DEVICE = 0
    NODE = 1
    RACK = 2
    ZONE = 3
    REGION = 4


def frozen(array: NDArray[Scalar]) -> NDArray[Scalar]:
    """The array itself, made read-only."""
    array.setflags(write=False)
    return array


@dataclass(frozen=True, slots=True)
class Topology:
    """Who contains whom. D devices, N nodes, R racks, Z zones.

    Attributes:
        device_node: Shape (D,). Node of each device.
        node_rack: Shape (N,). Rack of each node.
        rack_zone: Shape (R,). Zone of each rack.
        zone_region: Shape (Z,). Region of each zone.
        device_weight: Shape (D,). Relative share of data, by convention TiB; 0 takes none.
        device_class: Shape (<= D,). What kind of device it is, for rules that ask; devices beyond
            its end are of class 0, so that a topology without classes needs none.
    """

    device_node: Int32Array
    node_rack: Int32Array
    rack_zone: Int32Array
    zone_region: Int32Array
    device_weight: Float64Array
    device_class: Int32Array = field(default_factory=lambda: frozen(np.zeros(0, dtype=np.int32)))

    @property
    def device_count(self) -> int:
        return len(self.device_node)

    @property
    def class_of_device(self) -> Int32Array:
        """Shape (D,): `device_class`, with class 0 where it says nothing."""
        classes = np.zeros(self.device_count, dtype=np.int32)
        classes[: len(self.device_class)] = self.device_class
        return classes

    def domain_of_device(self, level: DomainLevel) -> Int32Array:
        """Shape (D,): the index of each device's domain at `level`."""
        domain = np.arange(self.device_count, dtype=np.int32)
        for parents in (self.device_node, self.node_rack, self.rack_zone, self.zone_region)[:level]:
            domain = parents[domain]
        return domain.astype(np.int32)

    @classmethod
    def uniform(
        cls,
        *,
        region_count: int = 1,
        zones_per_region: int = 1,
        racks_per_zone: int = 1,
        nodes_per_rack: int = 1,
        devices_per_node: int = 1,
        device_weight: float = 1.0,
    ) -> "Topology":
        """A regular tree, numbered in depth-first order."""
        zone_count = region_count * zones_per_region
        rack_count = zone_count * racks_per_zone
        node_count = rack_count * nodes_per_rack
        device_count = node_count * devices_per_node

        def parents(count: int, per_parent: int) -> Int32Array:
            return frozen((np.arange(count, dtype=np.int64) // per_parent).astype(np.int32))

        return cls(
            device_node=parents(device_count, devices_per_node),
            node_rack=parents(node_count, nodes_per_rack),
            rack_zone=parents(rack_count, racks_per_zone),
            zone_region=parents(zone_count, zones_per_region),
            device_weight=frozen(np.full(device_count, device_weight, dtype=np.float64)),
        )


@dataclass(frozen=True, slots=True)
class PlacementRule:
    """What every row keeps; never two slots on one device, besides.

    The limits hold all at once. As domains are nested, they form a laminar family: filling slots
    one by one, in any order, fills as many as can be filled.

    Attributes:
        level: Where a draw spreads the slots of a row first.
        max_per_domain: The most slots of one row in a domain of that level.
        also: The most slots at other levels.
        regions: Indexes of the regions that may hold the data (residency); None: all.
        device_classes: Classes of the devices that may hold the data; None: all.
    """

    level: DomainLevel = DomainLevel.NODE
    max_per_domain: int = 1
    also: tuple[tuple[DomainLevel, int], ...] = ()
    regions: tuple[int, ...] | None = None
    device_classes: tuple[int, ...] | None = None

    @property
    def limits(self) -> tuple[tuple[DomainLevel, int], ...]:
        """All limits, that of `level` first."""
        return (self.level, self.max_per_domain), *self.also

    def allowed(self, topology: Topology) -> NDArray[np.bool_]:
        """Shape (D,): devices that residency and class let hold the data."""
        may = np.ones(topology.device_count, dtype=np.bool_)
        if self.regions is not None:
            may &= np.isin(topology.domain_of_device(DomainLevel.REGION), self.regions)
        if self.device_classes is not None:
            may &= np.isin(topology.class_of_device, self.device_classes)
        return may


@dataclass(frozen=True, slots=True)
class Pool:
    """Placement groups first_pg, first_pg + 1, ... under one rule: where some buckets may live.

    Attributes:
        name: What buckets and operators call it.
        rule: What its rows keep.
        first_pg: Its first placement group.
        pg_count: How many it has.
    """

    name: str
    rule: PlacementRule
    first_pg: int
    pg_count: int

    @property
    def pgs(self) -> slice:
        """Its rows in the PG table."""
        return slice(self.first_pg, self.first_pg + self.pg_count)


@dataclass(frozen=True, slots=True)
class ClusterMap:
    """Topology and PG table under one epoch. P placement groups of n slots.

    Attributes:
        epoch: Version of the map; only grows.
        code: Codec name, for example "rs-4-2".
        topology: The failure domains.
        rule: What placement must keep, where the map names no pools.
        device_state: Shape (D,), dtype uint8. Values of DeviceState.
        pg_devices: Shape (P, n), dtype int32. Device of each slot, NO_DEVICE where there is none.
        pg_slot_state: Shape (P, n), dtype uint8. Values of SlotState.
        pg_epoch: Shape (P,), dtype int64. The epoch at which the row's devices last changed; writes
            under an older epoch are fenced.
        pg_previous: Shape (P, n), dtype int32. Of a slot that is REBUILDING, the device that held
            it CLEAN before; NO_DEVICE where there is none. It equals `pg_devices` while that
            device, returned, catches up. Of a slot that is MOVING, the device that it leaves, which
            keeps every chunk written before the move until the slot is CLEAN again.
        pools: Runs of groups with rules of their own, see `pools`; empty: all keep `rule`.
    """

    epoch: int
    code: str
    topology: Topology
    rule: PlacementRule
    device_state: Uint8Array
    pg_devices: Int32Array
    pg_slot_state: Uint8Array
    pg_epoch: Int64Array
    pg_previous: Int32Array
    pools: tuple[Pool, ...] = ()
