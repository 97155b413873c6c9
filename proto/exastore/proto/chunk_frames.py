"""Chunks on the wire: messages whose large bytes are the last field, read and made without copies.

Protobuf copies a `bytes` field when it parses a message, once more each time Python asks for it,
and twice when it makes one. Here the small fields go through protobuf; the bytes are a view of the
message that gRPC received, and are joined to the message that it sends. What is on the wire is the
same message: either side may use plain protobuf instead.
"""

from dataclasses import dataclass
from typing import Final

from exastore.proto.v1 import storage_pb2

Buffer = bytes | memoryview

_LENGTH_DELIMITED: Final = 2
#: Field numbers of `data`; both are the last of their message.
_WRITE_DATA: Final = storage_pb2.WriteChunkRequest.DATA_FIELD_NUMBER
_READ_DATA: Final = storage_pb2.ReadChunkResponse.DATA_FIELD_NUMBER


@dataclass(frozen=True, slots=True)
class WriteFrame:
    """A WriteChunkRequest: `header` is it without its data."""

    header: storage_pb2.WriteChunkRequest
    data: Buffer

    def encode(self) -> bytes:
        return _joined(self.header.SerializeToString(), _WRITE_DATA, self.data)

    @classmethod
    def decode(cls, raw: bytes) -> "WriteFrame":
        """Raises what protobuf raises for a damaged message."""
        start, data = _split(raw, _WRITE_DATA)
        header = storage_pb2.WriteChunkRequest.FromString(raw[:start])
        if data is None:
            data = memoryview(header.data)
            header.data = b""
        return cls(header, data)


@dataclass(frozen=True, slots=True)
class ReadFrame:
    """A ReadChunkResponse: `header` is it without its data."""

    header: storage_pb2.ReadChunkResponse
    data: Buffer

    @property
    def request_id(self) -> int:
        return self.header.request_id

    @property
    def status(self) -> storage_pb2.ChunkStatus.ValueType:
        return self.header.status

    @property
    def message(self) -> str:
        return self.header.message

    @property
    def crc32c(self) -> int:
        return self.header.crc32c

    def encode(self) -> bytes:
        return _joined(self.header.SerializeToString(), _READ_DATA, self.data)

    @classmethod
    def decode(cls, raw: bytes) -> "ReadFrame":
        """Raises what protobuf raises for a damaged message."""
        start, data = _split(raw, _READ_DATA)
        header = storage_pb2.ReadChunkResponse.FromString(raw[:start])
        if data is None:
            data = memoryview(header.data)
            header.data = b""
        return cls(header, data)


def _joined(header: bytes, number: int, data: Buffer) -> bytes:
    if not len(data):
        return header
    key = bytes((number << 3 | _LENGTH_DELIMITED,))
    return b"".join((header, key, _varint(len(data)), data))


def _split(raw: bytes, number: int) -> tuple[int, memoryview | None]:
    """Where the bytes field begins, and its bytes, if it is the last one.

    Otherwise the message's end and None: protobuf has to parse all of it.
    """
    position, end = 0, len(raw)
    try:
        while position < end:
            start = position
            key, position = _read_varint(raw, position)
            kind = key & 7
            if kind == 0:
                _, position = _read_varint(raw, position)
            elif kind == _LENGTH_DELIMITED:
                length, position = _read_varint(raw, position)
                if key >> 3 == number and position + length == end:
                    return start, memoryview(raw)[position:]
                position += length
            elif kind == 5:
                position += 4
            elif kind == 1:
                position += 8
            else:
                break
    except IndexError:
        pass
    return end, None


def _read_varint(raw: bytes, position: int) -> tuple[int, int]:
    value = raw[position]
    position += 1
    if value < 0x80:
        return value, position
    value &= 0x7F
    shift = 7
    while True:
        byte = raw[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7


def _varint(value: int) -> bytes:
    result = bytearray()
    while value >= 0x80:
        result.append(value & 0x7F | 0x80)
        value >>= 7
    result.append(value)
    return bytes(result)
