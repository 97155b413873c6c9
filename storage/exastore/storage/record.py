"""The record: the one thing that is ever written into a segment.

    offset  bytes  field
    0       4      magic
    4       1      format version
    5       1      kind (low 7 bits), prior-durable flag (high bit)
    6       1      chunk index
    7       1      length of the code's name
    8       4      placement group
    12      4      generation
    16      4      length of the data
    20      16     stripe id
    36      4      CRC-32C of the header
    40      c      name of the code
    40+c    4*b    CRC-32C of each 64 KiB block of the data; in a tombstone what it kills, 16 bytes
    40+c+4b        the data

Laws:
1. The header CRC covers the header, the code's name, the block CRCs *and the place*: the device's
   uuid, the segment's number and the offset. A record that lies anywhere else than where it was
   written (misdirected write, swapped or copied files) does not verify. The place takes no bytes.
2. Every byte of a record is covered by the header CRC or by one block CRC,
   except what a SKIP lies over.
3. The prior-durable flag says that everything before this record in its segment was fsynced when
   the record was written. It tells rot of acknowledged data from a tail torn by a crash.

A chunk costs 40 bytes, the name of its code ("rs-4-2": 6) and 4 bytes per started 64 KiB.

A tombstone kills the records of its identity that lie before a place in the log: its own, or, when
compaction moved it, the one where it was written first. So moving it kills nothing that is younger.
It also names the oldest segment that may hold such a record: when none of the segments from there
to its place is left, the tombstone has nothing more to kill.
"""

import struct
from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple

from exastore.storage.crc import Buffer, combine_crc32c, crc32c
from exastore.storage.errors import BadRecord, ChunkCorrupt, InvalidChunk

MAGIC = b"\xe8XaR"
FORMAT_VERSION = 2
BLOCK_BYTES = 65_536
MAX_CHUNK_BYTES = 4 << 20
FIXED_BYTES = 40
STRIPE_ID_BYTES = 16
#: The longest possible header: 255 bytes of code name, 64 block CRCs.
MAX_HEADER_BYTES = FIXED_BYTES + 255 + 4 * (MAX_CHUNK_BYTES // BLOCK_BYTES)

_PRIOR_DURABLE = 0x80
_FIXED = struct.Struct("<4sBBBBIII16sI")
_PLACE = struct.Struct("<16sIQ")
_KILL = struct.Struct("<IQI")


class RecordKind(IntEnum):
    """What a record says."""

    CHUNK = 1
    TOMBSTONE = 2  # the chunk of this identity is deleted
    MARK = 3  # nothing, but it carries the prior-durable flag: ends a segment, or a clean shutdown
    SKIP = 4  # lies over what a crash tore, so that later records follow; its data has no CRC


class ChunkKey(NamedTuple):
    """Where a chunk belongs: one slot of one stripe."""

    pg: int
    stripe_id: bytes
    chunk_index: int


class Place(NamedTuple):
    """Where a record lies."""

    device_uuid: bytes
    segment: int
    offset_bytes: int


class Position(NamedTuple):
    """A place in the log of a device; ordered as the log is."""

    segment: int
    offset_bytes: int


class Kill(NamedTuple):
    """What a tombstone kills.

    Attributes:
        segment, offset_bytes: Records of the identity before this place; both 0: before the
            tombstone's own place.
        oldest_segment: No segment before this one holds any of them.
    """

    segment: int = 0
    offset_bytes: int = 0
    oldest_segment: int = 0

    def before(self, own: Position) -> Position:
        """Where killing ends, for a tombstone that lies at `own`."""
        return Position(self.segment, self.offset_bytes) if self.segment else own


_NO_KILL = Kill()


@dataclass(frozen=True, slots=True)
class RecordHeader:
    """Everything about a record except its data."""

    kind: RecordKind
    key: ChunkKey
    generation: int = 0
    code: str = ""
    data_bytes: int = 0
    block_crcs: tuple[int, ...] = ()
    prior_durable: bool = False
    kill: Kill = _NO_KILL

    @property
    def header_bytes(self) -> int:
        return FIXED_BYTES + len(self.code.encode()) + _tail_bytes(self.kind, self.data_bytes)

    @property
    def record_bytes(self) -> int:
        return self.header_bytes + self.data_bytes

    @property
    def crc32c(self) -> int:
        """CRC-32C over all data, from the CRCs of the blocks."""
        return combined_crc(self.block_crcs, self.data_bytes)


def _tail_bytes(kind: int, data_bytes: int) -> int:
    """Bytes of a header behind the name of the code."""
    if kind == RecordKind.TOMBSTONE:
        return _KILL.size
    return 0 if kind == RecordKind.SKIP else 4 * block_count(data_bytes)


MARK_KEY = ChunkKey(0, bytes(STRIPE_ID_BYTES), 0)


def block_count(data_bytes: int) -> int:
    """Blocks of a chunk; the last may be short."""
    return -(-data_bytes // BLOCK_BYTES)


def block_crcs(data: Buffer) -> tuple[int, ...]:
    """CRC-32C of each block of `data`."""
    if len(data) <= BLOCK_BYTES:
        return (crc32c(data),) if len(data) else ()
    view = memoryview(data)
    return tuple(crc32c(view[at : at + BLOCK_BYTES]) for at in range(0, len(data), BLOCK_BYTES))


def combined_crc(crcs: tuple[int, ...], data_bytes: int) -> int:
    """CRC-32C of the whole, from the CRCs of the blocks."""
    whole = 0
    for number, crc in enumerate(crcs):
        length = min(BLOCK_BYTES, data_bytes - number * BLOCK_BYTES)
        whole = combine_crc32c(whole, crc, length)
    return whole


def check_key(key: ChunkKey, generation: int, code: str, data_bytes: int) -> None:
    """Raise InvalidChunk if a record cannot carry this identity or length."""
    if not 0 <= key.pg < 1 << 32 or not 0 <= generation < 1 << 32:
        raise InvalidChunk(f"pg {key.pg} and generation {generation} must fit 32 bits")
    if len(key.stripe_id) != STRIPE_ID_BYTES:
        raise InvalidChunk(f"a stripe id has 16 bytes, this one {len(key.stripe_id)}")
    if not 0 <= key.chunk_index < 255:
        raise InvalidChunk(f"chunk index {key.chunk_index} is not in 0..254")
    if len(code.encode()) > 255:
        raise InvalidChunk("the name of the code is longer than 255 bytes")
    if not 0 <= data_bytes <= MAX_CHUNK_BYTES:
        raise InvalidChunk(f"a chunk has at most {MAX_CHUNK_BYTES} bytes, this one {data_bytes}")


def _header_crc(fixed: Buffer, tail: Buffer, place: Place) -> int:
    return crc32c(b"".join((fixed, tail, _PLACE.pack(*place))))


def encode_header(header: RecordHeader, place: Place) -> bytes:
    """The bytes that stand before the data of the record at `place`."""
    key = header.key
    code = header.code.encode()
    flags = header.kind | (_PRIOR_DURABLE if header.prior_durable else 0)
    if header.kind is RecordKind.TOMBSTONE:
        tail = code + _KILL.pack(*header.kill)
    else:
        tail = code + struct.pack(f"<{len(header.block_crcs)}I", *header.block_crcs)
    fields = (
        MAGIC, FORMAT_VERSION, flags, key.chunk_index, len(code),
        key.pg, header.generation, header.data_bytes, key.stripe_id,
    )  # fmt: skip
    crc = _header_crc(_FIXED.pack(*fields, 0)[:-4], tail, place)
    return _FIXED.pack(*fields, crc) + tail


def decode_header(buffer: Buffer, place: Place) -> RecordHeader:
    """The header at the start of `buffer`, checked against the place it was read from.

    Raises:
        BadRecord: not a record, damaged, cut off, or not written for this place.
    """
    if len(buffer) < FIXED_BYTES:
        raise BadRecord(f"only {len(buffer)} bytes of a header")
    fields = _FIXED.unpack_from(buffer)
    magic, version, flags, index, code_bytes, pg, generation, data_bytes, stripe_id, crc = fields
    if magic != MAGIC:
        raise BadRecord("no magic")
    if version != FORMAT_VERSION:
        raise BadRecord(f"format version {version}, this software knows {FORMAT_VERSION}")
    if data_bytes > MAX_CHUNK_BYTES:
        raise BadRecord(f"impossible length {data_bytes}")
    tail_bytes = _tail_bytes(flags & ~_PRIOR_DURABLE, data_bytes)
    end = FIXED_BYTES + code_bytes + tail_bytes
    if len(buffer) < end:
        raise BadRecord(f"header of {end} bytes cut off after {len(buffer)}")
    view = memoryview(buffer)
    tail = view[FIXED_BYTES:end]
    if _header_crc(view[: FIXED_BYTES - 4], tail, place) != crc:
        raise BadRecord("the header does not match its CRC at this place")
    try:
        kind = RecordKind(flags & ~_PRIOR_DURABLE)
        code = bytes(tail[:code_bytes]).decode()
    except ValueError as error:
        raise BadRecord(f"the header is not of this format: {error}") from error
    is_tombstone = kind is RecordKind.TOMBSTONE
    crcs = () if is_tombstone else struct.unpack_from(f"<{tail_bytes // 4}I", tail, code_bytes)
    return RecordHeader(
        kind=kind,
        key=ChunkKey(pg, stripe_id, index),
        generation=generation,
        code=code,
        data_bytes=data_bytes,
        block_crcs=crcs,
        prior_durable=bool(flags & _PRIOR_DURABLE),
        kill=Kill(*_KILL.unpack_from(tail, code_bytes)) if is_tombstone else _NO_KILL,
    )


def verify_data(header: RecordHeader, data: Buffer) -> None:
    """Raise ChunkCorrupt unless `data` is what the header says."""
    verify_blocks(header, 0, data, header.data_bytes)


def verify_blocks(header: RecordHeader, first: int, data: Buffer, expected_bytes: int) -> None:
    """Raise ChunkCorrupt unless `data` is what the header says of the blocks from `first` on."""
    if len(data) != expected_bytes:
        raise ChunkCorrupt(f"{len(data)} bytes of {expected_bytes}")
    found = block_crcs(data)
    stored = header.block_crcs[first : first + len(found)]
    if found != stored:
        bad = [first + i for i, (a, b) in enumerate(zip(found, stored, strict=True)) if a != b]
        raise ChunkCorrupt(f"blocks {bad} of {len(header.block_crcs)} do not match their CRC")
