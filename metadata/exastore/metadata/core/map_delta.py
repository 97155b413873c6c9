"""Cluster maps as deltas: what changed from one epoch to a later one, in few bytes.

A delta carries the columns that change in the life of a cluster (device states and weights, the PG
table); names and addresses travel beside it. Whoever applies a delta computes the checksum of the
whole table that results and compares it with the sender's: if they differ, it asks for a full map.

Theory of operation: every column is a run of whole numbers, stored as their minimum and, with as
few bits as the largest needs, what each is above it. So a column of equal values costs nothing but
its head, neighbouring devices of a failed rack cost nothing each, and a slot that moves costs its
distance from the one before, and its target: about 33 bits in a map of 100,000 devices and 720,000
groups of 14. What usually follows from something else is not stored: a row whose devices change
has the new epoch, and a slot that leaves a device has it as its previous one.

Layout: version, from_epoch, epoch, device count; then pairs of columns (where, what) for states,
weights, slot devices, slot states, previous devices and PG epochs. Integers are LEB128 varints,
signed ones zigzag.
"""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from exastore.metadata.core.errors import InvalidMapDelta
from exastore.metadata.core.topology import (
    NO_DEVICE,
    ClusterMap,
    Float64Array,
    Int32Array,
    Int64Array,
    SlotState,
    Uint8Array,
    frozen,
)

_VERSION = 1
#: Widest column: 64-bit floats are stored as their bits.
_WIDTH_MAX = 64


@dataclass(frozen=True, slots=True)
class MapTable:
    """The columns of a map that change in the life of a cluster; see `ClusterMap`.

    Attributes:
        epoch: Version of the map.
        device_state: Shape (D,), dtype uint8.
        device_weight: Shape (D,), dtype float64.
        pg_devices: Shape (P, n), dtype int32.
        pg_slot_state: Shape (P, n), dtype uint8.
        pg_epoch: Shape (P,), dtype int64.
        pg_previous: Shape (P, n), dtype int32.
    """

    epoch: int
    device_state: Uint8Array
    device_weight: Float64Array
    pg_devices: Int32Array
    pg_slot_state: Uint8Array
    pg_epoch: Int64Array
    pg_previous: Int32Array

    @classmethod
    def empty(cls) -> "MapTable":
        """What a receiver has before its first map."""
        return table_of_message(0, (), ())


class DeviceMessage(Protocol):
    """A device of a `ClusterMap` message."""

    @property
    def state(self) -> int: ...
    @property
    def weight(self) -> float: ...


class GroupMessage(Protocol):
    """A placement group of a `ClusterMap` message."""

    @property
    def device_indexes(self) -> Sequence[int]: ...
    @property
    def slot_states(self) -> Sequence[int]: ...
    @property
    def epoch(self) -> int: ...
    @property
    def previous_device_indexes(self) -> Sequence[int]: ...


class DeltaMessage(Protocol):
    """A delta as it travels."""

    @property
    def from_epoch(self) -> int: ...
    @property
    def epoch(self) -> int: ...
    @property
    def columns(self) -> bytes: ...
    @property
    def checksum(self) -> int: ...


def table_of(cluster_map: ClusterMap) -> MapTable:
    """The table of a map; shares its arrays."""
    return MapTable(
        epoch=cluster_map.epoch,
        device_state=cluster_map.device_state,
        device_weight=cluster_map.topology.device_weight,
        pg_devices=cluster_map.pg_devices,
        pg_slot_state=cluster_map.pg_slot_state,
        pg_epoch=cluster_map.pg_epoch,
        pg_previous=cluster_map.pg_previous,
    )


def table_of_message(
    epoch: int, devices: Sequence[DeviceMessage], pgs: Sequence[GroupMessage]
) -> MapTable:
    """The table of a map as it travels: devices and groups in the order of their indexes.

    Raises:
        InvalidMapDelta: The groups differ in their number of slots.
    """
    n = len(pgs[0].device_indexes) if pgs else 0
    # An absent device travels as 0xffffffff, which is NO_DEVICE as a signed number.
    none = (NO_DEVICE & 0xFFFFFFFF,) * n
    try:
        rows = np.array([pg.device_indexes for pg in pgs], dtype=np.uint32).reshape(len(pgs), n)
        states = np.array([pg.slot_states for pg in pgs], dtype=np.uint8).reshape(len(pgs), n)
        previous = np.array(
            [pg.previous_device_indexes or none for pg in pgs], dtype=np.uint32
        ).reshape(len(pgs), n)
    except ValueError as error:
        raise InvalidMapDelta(f"groups of different size: {error}") from error
    return MapTable(
        epoch=epoch,
        device_state=frozen(np.array([device.state for device in devices], dtype=np.uint8)),
        device_weight=frozen(np.array([device.weight for device in devices], dtype=np.float64)),
        pg_devices=frozen(rows.view(np.int32)),
        pg_slot_state=frozen(states),
        pg_epoch=frozen(np.array([pg.epoch for pg in pgs], dtype=np.int64)),
        pg_previous=frozen(previous.view(np.int32)),
    )


def checksum(table: MapTable) -> int:
    """CRC-32 over epoch, shapes and all columns."""
    head = np.array([table.epoch, len(table.device_state), *table.pg_devices.shape], dtype="<i8")
    crc = zlib.crc32(head.data)
    for column in (
        table.device_state,
        table.device_weight,
        table.pg_devices,
        table.pg_slot_state,
        table.pg_epoch,
        table.pg_previous,
    ):
        crc = zlib.crc32(np.ascontiguousarray(column).reshape(-1).view(np.uint8).data, crc)
    return crc


def encode_delta(old: MapTable, new: MapTable) -> bytes:
    """What `apply_delta` makes `new` of `old` from.

    Raises:
        InvalidMapDelta: Devices or groups have become fewer, or groups more: no map does that.
    """
    device_count, old_count = len(new.device_state), len(old.device_state)
    if new.pg_devices.shape != old.pg_devices.shape or device_count < old_count:
        raise InvalidMapDelta("the tables are not of one cluster")
    out = bytearray([_VERSION])
    for number in (old.epoch, new.epoch, device_count):
        _put_varint(out, number)
    state, weight = _grown(old, device_count)
    where = np.flatnonzero(state != new.device_state)
    _put_changes(out, where, new.device_state[where])
    where = np.flatnonzero(weight != new.device_weight)
    _put_changes(out, where, new.device_weight[where].view(np.int64))
    rows, states = new.pg_devices.ravel(), new.pg_slot_state.ravel()
    moved = np.flatnonzero(old.pg_devices.ravel() != rows)
    _put_changes(out, moved, rows[moved])
    if len(moved):
        _put_column(out, states[moved].astype(np.int64))
    expected_state, expected_previous, expected_epoch = _expected(old, new.epoch, moved)
    expected_state[moved] = states[moved]
    where = np.flatnonzero(expected_state != states)
    _put_changes(out, where, states[where])
    expected_previous[states == SlotState.CLEAN] = NO_DEVICE
    previous = new.pg_previous.ravel()
    where = np.flatnonzero(expected_previous != previous)
    _put_changes(out, where, previous[where])
    where = np.flatnonzero(expected_epoch != new.pg_epoch)
    _put_changes(out, where, new.pg_epoch[where])
    return bytes(out)


def apply_delta(old: MapTable, delta: bytes) -> MapTable:
    """The table that `delta` leads to.

    Raises:
        InvalidMapDelta: It does not begin at this table, or is damaged.
    """
    reader = _Reader(delta)
    if reader.byte() != _VERSION:
        raise InvalidMapDelta("a delta of a version that is not known here")
    from_epoch, epoch, device_count = reader.varint(), reader.varint(), reader.varint()
    if from_epoch != old.epoch or device_count < len(old.device_state):
        raise InvalidMapDelta(f"a delta from epoch {from_epoch} for a map of epoch {old.epoch}")
    if device_count - len(old.device_state) > 8 * len(delta):
        raise InvalidMapDelta("more devices than the delta can speak of")
    state, weight = _grown(old, device_count)
    where, what = reader.changes(device_count)
    state[where] = what
    where, what = reader.changes(device_count)
    weight[where] = what.view(np.float64)
    rows = old.pg_devices.copy()
    moved, what = reader.changes(rows.size)
    rows.ravel()[moved] = what
    slot_state, previous, pg_epoch = _expected(old, epoch, moved)
    if len(moved):
        slot_state[moved] = reader.column(len(moved))
    where, what = reader.changes(rows.size)
    slot_state[where] = what
    previous[slot_state == SlotState.CLEAN] = NO_DEVICE
    where, what = reader.changes(rows.size)
    previous[where] = what
    where, what = reader.changes(len(pg_epoch))
    pg_epoch[where] = what
    return MapTable(
        epoch=epoch,
        device_state=frozen(state),
        device_weight=frozen(weight),
        pg_devices=frozen(rows),
        pg_slot_state=frozen(slot_state.reshape(rows.shape)),
        pg_epoch=frozen(pg_epoch),
        pg_previous=frozen(previous.reshape(rows.shape)),
    )


def apply_deltas(table: MapTable, deltas: Sequence[DeltaMessage]) -> MapTable:
    """The table that deltas in a row lead to; the checksum of the last proves all of them.

    Raises:
        InvalidMapDelta: They do not begin at this table, or lead elsewhere: get the full map.
    """
    for delta in deltas:
        table = apply_delta(table, delta.columns)
        if table.epoch != delta.epoch:
            raise InvalidMapDelta(f"a delta to epoch {table.epoch} that says {delta.epoch}")
    if deltas and checksum(table) != deltas[-1].checksum:
        raise InvalidMapDelta(f"the map of epoch {table.epoch} has another checksum")
    return table


def _grown(old: MapTable, device_count: int) -> tuple[Uint8Array, Float64Array]:
    """States and weights with room for new devices, of which nothing is expected."""
    added = device_count - len(old.device_state)
    state = np.concatenate([old.device_state, np.zeros(added, dtype=np.uint8)])
    weight = np.concatenate([old.device_weight, np.zeros(added, dtype=np.float64)])
    return state, weight


def _expected(
    old: MapTable, epoch: int, moved: Int64Array
) -> tuple[Uint8Array, Int32Array, Int64Array]:
    """Slot states and previous devices, both flat, and PG epochs, as far as they follow from old
    ones and from which slots moved."""
    state, previous = old.pg_slot_state.ravel().copy(), old.pg_previous.ravel().copy()
    pg_epoch = old.pg_epoch.copy()
    leaves_clean = moved[state[moved] == SlotState.CLEAN]
    previous[leaves_clean] = old.pg_devices.ravel()[leaves_clean]
    pg_epoch[moved // max(1, old.pg_devices.shape[1])] = epoch
    return state, previous, pg_epoch


# ---- columns of whole numbers ----


def _put_varint(out: bytearray, number: int) -> None:
    while number >= 0x80:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)


def _put_changes(out: bytearray, where: Int64Array, what: NDArray[np.integer]) -> None:
    """Ascending places, as the first and the distances between them, and a value for each."""
    _put_varint(out, len(where))
    if len(where):
        _put_varint(out, int(where[0]))
        _put_column(out, np.diff(where))
        _put_column(out, what.astype(np.int64))


def _put_column(out: bytearray, values: Int64Array) -> None:
    low = int(values.min()) if len(values) else 0
    _put_varint(out, low << 1 if low >= 0 else ((-low) << 1) - 1)
    # Differences of 64-bit numbers: modulo 2**64, as they are added again.
    above = values.view(np.uint64) - np.uint64(low & 0xFFFFFFFFFFFFFFFF)
    width = int(above.max(initial=0)).bit_length()
    out.append(width)
    if width:
        shifts = np.arange(width, dtype=np.uint64)
        bits = (above[:, None] >> shifts) & np.uint64(1)
        out += np.packbits(bits.astype(np.uint8), axis=None, bitorder="little").tobytes()


class _Reader:
    """Takes a delta apart; everything is checked, as it comes from another machine."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def byte(self) -> int:
        if self._at >= len(self._data):
            raise InvalidMapDelta("a delta that ends early")
        self._at += 1
        return self._data[self._at - 1]

    def varint(self) -> int:
        number = shift = 0
        while True:
            byte = self.byte()
            number |= (byte & 0x7F) << shift
            if byte < 0x80:
                return number
            shift += 7
            if shift > _WIDTH_MAX + 7:
                raise InvalidMapDelta("a number that does not end")

    def changes(self, size: int) -> tuple[Int64Array, Int64Array]:
        """Places below `size`, and their values."""
        count = self.varint()
        if count > size:
            raise InvalidMapDelta(f"{count} changes of {size} entries")
        if not count:
            none = np.zeros(0, dtype=np.int64)
            return none, none
        first = self.varint()
        if first >= size:
            raise InvalidMapDelta("a change of something that is not there")
        where = np.cumsum(np.concatenate([np.array([first], np.int64), self.column(count - 1)]))
        if where[-1] >= size or (np.diff(where) <= 0).any():
            raise InvalidMapDelta("a change of something that is not there")
        return where, self.column(count)

    def column(self, count: int) -> Int64Array:
        """That many numbers."""
        zigzag = self.varint()
        low = zigzag >> 1 if not zigzag & 1 else -((zigzag + 1) >> 1)
        width = self.byte()
        above = np.zeros(count, dtype=np.uint64)
        if width > _WIDTH_MAX:
            raise InvalidMapDelta(f"a column of {width} bits")
        if width:
            size = (count * width + 7) // 8
            packed = np.frombuffer(self._data, dtype=np.uint8)[self._at : self._at + size]
            if len(packed) < size:
                raise InvalidMapDelta("a delta that ends early")
            self._at += size
            bits = np.unpackbits(packed, count=count * width, bitorder="little")
            shifts = np.arange(width, dtype=np.uint64)
            above = (bits.reshape(count, width).astype(np.uint64) << shifts).sum(
                axis=1, dtype=np.uint64
            )
        return (above + np.uint64(low & 0xFFFFFFFFFFFFFFFF)).view(np.int64)
