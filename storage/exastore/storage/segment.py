"""Segments: how a log file begins, and how it is read again after a crash.

A segment is a 32-byte head and records, one after the other. Preallocated space behind the last
record reads as zeros. `scan` walks the records by their headers alone, without reading the data,
and finds the next record after a damaged one by looking for the magic: a header verifies only at
its own place, so bytes of a chunk that look like a record are never taken for one.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from exastore.storage.crc import Buffer, crc32c
from exastore.storage.disk import DiskFile
from exastore.storage.errors import BadRecord, ChunkCorrupt, DeviceUnusable
from exastore.storage.record import (
    MAGIC,
    MAX_HEADER_BYTES,
    Place,
    RecordHeader,
    RecordKind,
    decode_header,
    verify_data,
)

SEGMENT_MAGIC = b"EXASEG01"
_HEAD = struct.Struct("<8sI16sI")  # magic, segment number, device uuid, CRC-32C
HEAD_BYTES = 32
_SMALL_WINDOW_BYTES = 4096
_LARGE_WINDOW_BYTES = 1 << 20


def encode_head(device_uuid: bytes, segment: int) -> bytes:
    """The first bytes of a segment."""
    head = _HEAD.pack(SEGMENT_MAGIC, segment, device_uuid, 0)
    return head[:-4] + struct.pack("<I", crc32c(head[:-4]))


def check_head(head: Buffer, device_uuid: bytes, segment: int) -> None:
    """Raise BadRecord unless `head` begins this segment of this device."""
    if bytes(head) == encode_head(device_uuid, segment):
        return
    if len(head) == HEAD_BYTES:
        magic, number, uuid, crc = _HEAD.unpack(head)
        if magic == SEGMENT_MAGIC and crc == crc32c(bytes(head)[:-4]):
            raise DeviceUnusable(
                f"segment {segment} is segment {number} of device {uuid.hex()}: a copied or renamed"
                " file; move it away"
            )
    raise BadRecord("no segment head")


class Found(NamedTuple):
    """A record whose header verifies."""

    offset_bytes: int
    header: RecordHeader


class Damaged(NamedTuple):
    """A stretch that should hold records and does not."""

    offset_bytes: int
    end_bytes: int
    reason: str


class _Window:
    """Reads a file in pieces that fit the size of its records."""

    def __init__(self, file: DiskFile, size_bytes: int) -> None:
        self._file = file
        self.size_bytes = size_bytes
        self._start = 0
        self._data = memoryview(b"")

    def get(self, offset_bytes: int, length_bytes: int, window_bytes: int) -> memoryview:
        """Up to `length_bytes` bytes from `offset_bytes`; fewer at the end of the file."""
        length_bytes = max(0, min(length_bytes, self.size_bytes - offset_bytes))
        at = offset_bytes - self._start
        if at < 0 or at + length_bytes > len(self._data):
            self._start = offset_bytes
            wanted = min(max(window_bytes, length_bytes), self.size_bytes - offset_bytes)
            self._data = memoryview(self._file.pread(wanted, offset_bytes))
            at = 0
        return self._data[at : at + length_bytes]


def scan(
    file: DiskFile, device_uuid: bytes, segment: int, size_bytes: int, start_bytes: int = HEAD_BYTES
) -> Iterator[Found | Damaged]:
    """The records and the damage of a segment from `start_bytes` on, in order.

    Zeros up to the end are neither: they were never written, or their write was lost. Who knows
    how the segment ended (by a MARK) can tell which.
    """
    window = _Window(file, size_bytes)
    offset = start_bytes
    window_bytes = _SMALL_WINDOW_BYTES
    while offset < size_bytes:
        place = Place(device_uuid, segment, offset)
        buffer = window.get(offset, MAX_HEADER_BYTES, window_bytes)
        try:
            header = decode_header(buffer, place)
            if offset + header.record_bytes > size_bytes:
                raise BadRecord(f"record cut off after {size_bytes - offset} bytes")
        except BadRecord as error:
            end = _next_record(file, device_uuid, segment, offset + 1, size_bytes)
            if end == size_bytes and _all_zero(file, offset, size_bytes):
                return
            yield Damaged(offset, end, str(error))
            offset = end
            continue
        yield Found(offset, header)
        offset += header.record_bytes
        big = header.data_bytes > _SMALL_WINDOW_BYTES
        window_bytes = _SMALL_WINDOW_BYTES if big else _LARGE_WINDOW_BYTES


def _next_record(
    file: DiskFile, device_uuid: bytes, segment: int, start_bytes: int, size_bytes: int
) -> int:
    """Offset of the next header that verifies at its place; the size if there is none."""
    offset = start_bytes
    overlap = MAX_HEADER_BYTES
    while offset < size_bytes:
        data = file.pread(min(_LARGE_WINDOW_BYTES + overlap, size_bytes - offset), offset)
        at = data.find(MAGIC)
        while at >= 0:
            place = Place(device_uuid, segment, offset + at)
            try:
                header = decode_header(data[at : at + MAX_HEADER_BYTES], place)
                if place.offset_bytes + header.record_bytes <= size_bytes:
                    return place.offset_bytes
            except BadRecord:
                pass
            at = data.find(MAGIC, at + 1)
        if len(data) <= overlap:
            break
        offset += len(data) - overlap
    return size_bytes


def _all_zero(file: DiskFile, start_bytes: int, size_bytes: int) -> bool:
    offset = start_bytes
    while offset < size_bytes:
        data = file.pread(min(_LARGE_WINDOW_BYTES, size_bytes - offset), offset)
        if not data or data.count(0) != len(data):
            return not data
        offset += len(data)
    return True


@dataclass(slots=True)
class Recovered:
    """What a segment holds, once it is clear what a crash may have torn.

    Attributes:
        records: Records to apply, in order.
        damage: Damage of acknowledged records.
        torn: Stretches that a crash left behind; nothing in them was acknowledged, as far as the
            segment can prove the contrary.
        end_bytes: Where to go on appending; behind the last good record.
        sealed: The last record is a MARK.
    """

    records: list[Found]
    damage: list[Damaged]
    torn: list[Damaged]
    end_bytes: int
    sealed: bool


def recover(
    file: DiskFile,
    device_uuid: bytes,
    segment: int,
    size_bytes: int,
    *,
    last: bool,
    start_bytes: int = HEAD_BYTES,
) -> Recovered:
    """Read a segment again from `start_bytes` on.

    In the last segment, and only behind the last record that proves all before it durable, an
    incomplete or damaged record is a torn tail; anywhere else it is damage.
    """
    items = list(scan(file, device_uuid, segment, size_bytes, start_bytes))
    proven = len(items)
    if last:
        flagged = [
            n for n, i in enumerate(items) if isinstance(i, Found) and i.header.prior_durable
        ]
        proven = flagged[-1] if flagged else 0
    recovered = Recovered([], [], [], start_bytes, False)
    for number, item in enumerate(items):
        if isinstance(item, Found) and number >= proven:
            item = _verified(file, item)
        if isinstance(item, Damaged):
            (recovered.damage if number < proven else recovered.torn).append(item)
            continue
        recovered.records.append(item)
        recovered.end_bytes = item.offset_bytes + item.header.record_bytes
        recovered.sealed = item.header.kind is RecordKind.MARK
    if not last:
        recovered.end_bytes = max(
            [recovered.end_bytes, *(item.end_bytes for item in recovered.damage)]
        )
    return recovered


def _verified(file: DiskFile, found: Found) -> Found | Damaged:
    offset, header = found
    if header.kind is RecordKind.SKIP:
        return found
    data = file.pread(header.data_bytes, offset + header.header_bytes)
    try:
        verify_data(header, data)
    except ChunkCorrupt as error:
        return Damaged(offset, offset + header.record_bytes, str(error))
    return found


__all__ = [
    "HEAD_BYTES",
    "Damaged",
    "Found",
    "Recovered",
    "check_head",
    "encode_head",
    "recover",
    "scan",
]
