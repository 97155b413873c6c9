"""The cluster map as the data path uses it, and the choice of a placement group. Pure.

Laws:
1. A view is a value: one epoch, read-only arrays.
2. A choice depends on the view, the devices to avoid, the groups tried and a turn counter alone.
"""

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from exastore.metadata.core.topology import (
    NO_DEVICE,
    DeviceState,
    Int32Array,
    Int64Array,
    SlotState,
    Uint8Array,
    frozen,
)
from exastore.proto.v1 import common_pb2

BoolArray = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class ClusterView:
    """P placement groups of n slots over D devices.

    Attributes:
        epoch: Version of the map.
        code: Codec name.
        device_address: host:port of the node of each device; length D.
        device_state: Shape (D,). Values of DeviceState.
        pg_devices: Shape (P, n). Device of each slot, or NO_DEVICE.
        pg_slot_state: Shape (P, n). Values of SlotState.
        pg_epoch: Shape (P,). The epoch at which the entry last changed.
    """

    epoch: int
    code: str
    device_address: tuple[str, ...]
    device_state: Uint8Array
    pg_devices: Int32Array
    pg_slot_state: Uint8Array
    pg_epoch: Int64Array

    @property
    def pg_count(self) -> int:
        return len(self.pg_devices)

    @property
    def slot_count(self) -> int:
        return int(self.pg_devices.shape[1])

    def devices_of(self, pg: int) -> list[int]:
        """The n devices of a placement group, in slot order."""
        row: list[int] = self.pg_devices[pg].tolist()
        return row

    @classmethod
    def from_message(cls, message: common_pb2.ClusterMap) -> "ClusterView":
        """The columns of a map as a metadata server sends it."""
        nodes = {node.index: node.address for node in message.nodes}
        devices = sorted(message.devices, key=lambda device: device.index)
        assert [device.index for device in devices] == list(range(len(devices)))
        pgs = sorted(message.pgs, key=lambda pg: pg.index)
        assert [pg.index for pg in pgs] == list(range(len(pgs)))
        shape = (len(pgs), len(pgs[0].device_indexes) if pgs else 0)
        # An absent device travels as 0xffffffff, which is NO_DEVICE as a signed number.
        slots = np.array([list(pg.device_indexes) for pg in pgs], dtype=np.uint32).astype(np.int32)
        states = np.array([list(pg.slot_states) for pg in pgs], dtype=np.uint8)
        return cls(
            epoch=message.epoch,
            code=message.code,
            device_address=tuple(nodes.get(device.node_index, "") for device in devices),
            device_state=frozen(np.array([device.state for device in devices], dtype=np.uint8)),
            pg_devices=frozen(slots.reshape(shape)),
            pg_slot_state=frozen(states.reshape(shape)),
            pg_epoch=frozen(np.array([pg.epoch for pg in pgs], dtype=np.int64)),
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

    __slots__ = ("_best", "_key", "_score", "_turn", "_writable")

    def __init__(self, first_turn: int = 0) -> None:
        #: Grows by one with each choice; gateways start at different turns.
        self._turn = first_turn
        #: What the arrays below were computed for.
        self._key: tuple[int, frozenset[int]] | None = None
        self._best: Int64Array = np.empty(0, np.int64)
        self._score: Int64Array = np.empty(0, np.int64)
        self._writable: Int64Array = np.empty(0, np.int64)

    def choose(
        self, view: ClusterView, avoided: frozenset[int], tried: Collection[int] = ()
    ) -> int | None:
        """A group not in `tried`, or None when all were."""
        self._rank(view, avoided)
        self._turn += 1
        candidates = self._best
        if tried:
            score = self._score.copy()
            score[[pg for pg in tried if pg < len(score)]] = -1
            top = int(score.max(initial=-1))
            if top < 0:
                return None
            candidates = np.flatnonzero(score == top)
        if not len(candidates):
            return None
        return int(candidates[self._turn % len(candidates)])

    def writable_count(self, view: ClusterView, avoided: frozenset[int], pg: int) -> int:
        """How many slots of `pg` take chunks now."""
        self._rank(view, avoided)
        return int(self._writable[pg])

    def _rank(self, view: ClusterView, avoided: frozenset[int]) -> None:
        key = (view.epoch, avoided)
        if key == self._key:
            return
        slots = writable_slots(view, avoided)
        placed = np.where(view.pg_devices != NO_DEVICE, view.pg_devices, 0)
        settled = (
            slots
            & (view.pg_slot_state == SlotState.CLEAN)
            & (view.device_state[placed] == DeviceState.UP)
        )
        self._writable = slots.sum(axis=1).astype(np.int64)
        self._score = self._writable * (view.slot_count + 1) + settled.sum(axis=1)
        self._best = np.flatnonzero(self._score == self._score.max(initial=0))
        self._key = key
