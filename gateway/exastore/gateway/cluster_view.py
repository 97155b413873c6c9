"""The cluster map as the data path uses it, and the choice of a placement group. Pure.

Laws:
1. A view is a value: one epoch, read-only arrays.
2. A choice depends on the view, the devices to avoid, the groups tried and a turn counter alone.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from exastore.metadata.core.errors import InvalidMapDelta
from exastore.metadata.core.map_delta import MapTable, apply_deltas, table_of_message
from exastore.metadata.core.topology import (
    NO_DEVICE,
    DeviceState,
    Int32Array,
    Int64Array,
    SlotState,
    Uint8Array,
)
from exastore.proto.v1 import common_pb2

BoolArray = NDArray[np.bool_]

#: As in `core.pools`, which brings numba.
DEFAULT_POOL = "default"


@dataclass(frozen=True, slots=True)
class ClusterView:
    """P placement groups of n slots over D devices.

    Attributes:
        code: Codec name.
        node_address: host:port of each node, by its index.
        device_node: Node of each device, by its index.
        device_address: host:port of the node of each device.
        table: What changes in the life of the cluster.
        pools: Placement groups of each pool; empty: there is one pool, of all of them.
    """

    code: str
    node_address: tuple[str, ...]
    device_node: tuple[int, ...]
    device_address: tuple[str, ...]
    table: MapTable
    pools: Mapping[str, range] = field(default_factory=dict[str, range])

    @property
    def epoch(self) -> int:
        """Version of the map."""
        return self.table.epoch

    @property
    def device_state(self) -> Uint8Array:
        """Shape (D,). Values of DeviceState."""
        return self.table.device_state

    @property
    def pg_devices(self) -> Int32Array:
        """Shape (P, n). Device of each slot, or NO_DEVICE."""
        return self.table.pg_devices

    @property
    def pg_slot_state(self) -> Uint8Array:
        """Shape (P, n). Values of SlotState."""
        return self.table.pg_slot_state

    @property
    def pg_epoch(self) -> Int64Array:
        """Shape (P,). The epoch at which the row's devices last changed."""
        return self.table.pg_epoch

    @property
    def pg_count(self) -> int:
        return len(self.pg_devices)

    @property
    def slot_count(self) -> int:
        return int(self.pg_devices.shape[1])

    def is_in_pool(self, pg: int, pool: str) -> bool:
        """Whether a group belongs to the pool of this name; the default one has no name."""
        return not self.pools or pg in self.pools.get(pool or DEFAULT_POOL, ())

    def devices_of(self, pg: int) -> list[int]:
        """The n devices of a placement group, in slot order."""
        row: list[int] = self.pg_devices[pg].tolist()
        return row

    def holders(self, pg: int, slot: int, written_epoch: int) -> tuple[int, ...]:
        """The devices that may hold a chunk, the likeliest first.

        A slot that moves has two: what was written before the move is on the device it leaves.
        """
        table = self.table
        device = int(table.pg_devices[pg, slot])
        if table.pg_slot_state[pg, slot] != SlotState.MOVING:
            return (device,)
        previous = int(table.pg_previous[pg, slot])
        is_older = written_epoch < table.pg_epoch[pg]
        return (previous, device) if is_older else (device, previous)

    @classmethod
    def from_message(cls, message: common_pb2.ClusterMap) -> "ClusterView":
        """The view of a map as a metadata server sends it.

        Raises:
            InvalidMapDelta: Its groups differ in their number of slots.
        """
        devices, pgs = message.devices, message.pgs
        assert [device.index for device in devices] == list(range(len(devices)))
        assert [pg.index for pg in pgs] == list(range(len(pgs)))
        return cls._of(
            message.code,
            [node.address for node in message.nodes],
            [device.node_index for device in devices],
            table_of_message(message.epoch, devices, pgs),
            {
                pool.name: range(pool.first_pg, pool.first_pg + pool.pg_count)
                for pool in message.pools
            },
        )

    def after(self, message: common_pb2.ClusterMap) -> "ClusterView":
        """The view that the deltas of the message lead to.

        Raises:
            InvalidMapDelta: They do not fit this view: the full map is needed.
        """
        table = apply_deltas(self.table, message.deltas)
        addresses = dict(enumerate(self.node_address))
        nodes = dict(enumerate(self.device_node))
        for delta in message.deltas:
            addresses.update({node.index: node.address for node in delta.nodes})
            nodes.update({device.index: device.node_index for device in delta.devices})
        if len(nodes) != len(table.device_state):
            raise InvalidMapDelta("a new device without its node")
        return self._of(
            message.code,
            [addresses[index] for index in range(len(addresses))],
            [nodes[index] for index in range(len(nodes))],
            table,
            self.pools,
        )

    @classmethod
    def _of(
        cls,
        code: str,
        addresses: Sequence[str],
        nodes: Sequence[int],
        table: MapTable,
        pools: Mapping[str, range],
    ) -> "ClusterView":
        return cls(
            code=code,
            node_address=tuple(addresses),
            device_node=tuple(nodes),
            device_address=tuple(
                addresses[node] if node < len(addresses) else "" for node in nodes
            ),
            table=table,
            pools=pools,
        )


def writable_slots(view: ClusterView, avoided: Collection[int]) -> BoolArray:
    """Shape (P, n): slots whose device takes new chunks and is not to be avoided.

    A slot that is being rebuilt counts: its device takes new chunks already.
    """
    takes = (view.device_state == DeviceState.UP) | (view.device_state == DeviceState.DRAINING)
    for device in avoided:
        takes[device] = False
    placed = view.pg_devices != NO_DEVICE
    result: BoolArray = placed & takes[np.where(placed, view.pg_devices, 0)]
    return result


class PgChooser:
    """Chooses the placement group of the next stripe: the most writable slots, then in turn.

    Among equals it prefers groups without slots under repair and without draining devices.
    """

    __slots__ = ("_best", "_key", "_score", "_slot_limit", "_turn", "_writable")

    def __init__(self, first_turn: int = 0, slot_limit: int | None = None) -> None:
        #: Only so many slots of each group are written; None: all.
        self._slot_limit = slot_limit
        #: Grows by one with each choice; gateways start at different turns.
        self._turn = first_turn
        #: What the arrays below were computed for.
        self._key: tuple[int, frozenset[int]] | None = None
        #: By pool.
        self._best: dict[str, Int64Array] = {}
        self._score: Int64Array = np.empty(0, np.int64)
        self._writable: BoolArray = np.empty((0, 0), np.bool_)

    def choose(
        self,
        view: ClusterView,
        avoided: frozenset[int],
        tried: Collection[int] = (),
        pool: str = "",
    ) -> int | None:
        """A group of the pool that is not in `tried`, or None when all were."""
        self._rank(view, avoided)
        self._turn += 1
        candidates = None if tried else self._best.get(pool)
        if candidates is None:
            candidates = self._best_of(view, tried, pool)
        if not tried:
            self._best[pool] = candidates
        if not len(candidates):
            return None
        return int(candidates[self._turn % len(candidates)])

    def _best_of(self, view: ClusterView, tried: Collection[int], pool: str) -> Int64Array:
        """The groups of the pool with the highest score."""
        score = self._score
        if view.pools:
            groups = view.pools.get(pool or DEFAULT_POOL, range(0))
            score = np.full(len(score), -1, dtype=np.int64)
            score[groups.start : groups.stop] = self._score[groups.start : groups.stop]
        if tried:
            score = score.copy()
            score[[pg for pg in tried if pg < len(score)]] = -1
        top = int(score.max(initial=-1))
        return np.flatnonzero(score == top) if top >= 0 else np.empty(0, np.int64)

    def writable(self, view: ClusterView, avoided: frozenset[int], pg: int) -> list[int]:
        """The slots of `pg` that take chunks now."""
        self._rank(view, avoided)
        slots: list[int] = np.flatnonzero(self._writable[pg]).tolist()
        return slots

    def _rank(self, view: ClusterView, avoided: frozenset[int]) -> None:
        key = (view.epoch, avoided)
        if key == self._key:
            return
        slots = writable_slots(view, avoided)
        placed = np.where(view.pg_devices != NO_DEVICE, view.pg_devices, 0)
        settled = (
            slots
            & (view.pg_slot_state != SlotState.REBUILDING)
            & (view.device_state[placed] == DeviceState.UP)
        )
        slots, settled = slots[:, : self._slot_limit], settled[:, : self._slot_limit]
        self._writable = slots
        self._score = slots.sum(axis=1, dtype=np.int64) * (view.slot_count + 1)
        self._score += settled.sum(axis=1)
        self._best = {}
        self._key = key
