"""Frames that carry chunks, and calls of metadata servers, without gRPC. Pure: no sockets.

    offset  bytes  field
    0       2      magic, "xb"
    2       1      kind
    3       1      0
    4       4      length of the header
    8       4      length of the data
    12      h      header: a message of protobuf, a request id or a secret, by the kind
    12+h    d      data: the chunk, or the message of a call

Integers are little-endian. The header of a chunk is the message of `storage.proto` without its
`data`, so both ways of the chunks carry the same fields; its CRC-32C covers the data end to end.

Laws of `FrameReader`:
1. Data go from the socket straight into a buffer of their own, except at most the first
   SCRATCH_BYTES of them, which may come along with the header.
2. Memory is bounded by the frame that is being read: lengths are judged before anything is
   allocated.
"""

import struct
from collections.abc import Callable
from enum import IntEnum
from typing import Final, NamedTuple

from exastore.proto.buffer_pool import chunk_buffers

VERSION: Final = 1
PREFIX: Final = struct.Struct("<2sBBII")
MAGIC: Final = b"xb"
#: Of reads with very many runs; other headers have some 60 bytes.
MAX_HEADER_BYTES: Final = 256 << 10
#: More than any chunk has.
MAX_DATA_BYTES: Final = 8 << 20
SECRET_BYTES: Final = 32
#: What is read at once where a frame begins: many small frames, or the head of a large one.
SCRATCH_BYTES: Final = 4096

REQUEST_ID: Final = struct.Struct("<Q")


class FrameKind(IntEnum):
    """What a frame carries."""

    HELLO = 1  # client's secret
    WELCOME = 2  # node's secret
    WRITE = 3  # WriteChunkRequest, the chunk
    WRITTEN = 4  # WriteChunkResponse
    READ = 5  # ReadChunkRequest
    CHUNK = 6  # ReadChunkResponse, the chunk
    CANCEL = 7  # request id of a read or call whose answer nobody waits for any more
    CALL = 8  # BatchedCall without its request, the request
    ANSWER = 9  # BatchedAnswer without its response, the response


class BadFrame(Exception):
    """What came is not a frame, or not one that is expected; the connection cannot go on."""


class Frame(NamedTuple):
    """One frame; `data` is a buffer of its own."""

    kind: FrameKind
    header: bytes
    data: memoryview


def head_of(
    kind: FrameKind, header: bytes, data_bytes: int = 0, *, max_data_bytes: int = MAX_DATA_BYTES
) -> bytes:
    """What stands before the data.

    Raises:
        BadFrame: The frame would be too large for the other side.
    """
    if len(header) > MAX_HEADER_BYTES or data_bytes > max_data_bytes:
        raise BadFrame(f"a frame of {len(header)} and {data_bytes} bytes is too large")
    return PREFIX.pack(MAGIC, kind, 0, len(header), data_bytes) + header


_EMPTY: Final = memoryview(b"")


class FrameReader:
    """Cuts what is received into frames; see the laws above."""

    __slots__ = (
        "_allocate", "_at", "_data", "_end", "_header", "_kind", "_scratch", "_start",
        "max_data_bytes", "max_header_bytes",
    )  # fmt: skip

    def __init__(
        self,
        *,
        max_header_bytes: int = MAX_HEADER_BYTES,
        max_data_bytes: int = MAX_DATA_BYTES,
        allocate: Callable[[int], memoryview] = chunk_buffers.take,
    ) -> None:
        self.max_header_bytes = max_header_bytes
        self.max_data_bytes = max_data_bytes
        self._allocate = allocate
        self._scratch = memoryview(bytearray(SCRATCH_BYTES))
        #: Received and not yet cut: scratch[start:end].
        self._start = 0
        self._end = 0
        #: Of the frame whose data are being received; None between frames.
        self._data: memoryview | None = None
        #: Bytes of it that are there.
        self._at = 0
        self._kind = FrameKind.HELLO
        self._header = b""

    @property
    def is_within_frame(self) -> bool:
        """Whether a part of a frame is there."""
        return self._data is not None or self._end > self._start

    def space(self) -> memoryview:
        """Where to receive next; at least one byte. Valid until `received` is called."""
        if self._data is not None:
            return self._data[self._at :]
        return self._scratch[self._end :]

    def received(self, count: int) -> list[Frame]:
        """So many bytes are in `space()`: the frames that are complete now.

        Raises:
            BadFrame: They are not frames; the reader must not be used again.
        """
        frames: list[Frame] = []
        if self._data is None:
            self._end += count
            while (frame := self._cut()) is not None:
                frames.append(frame)
            return frames
        self._at += count
        if self._at == len(self._data):
            frames.append(Frame(self._kind, self._header, self._data))
            self._data = None
        return frames

    def _cut(self) -> Frame | None:
        """The next frame of the scratch; None when more has to be received."""
        start, there = self._start, self._end - self._start
        if there < PREFIX.size:
            self._make_room(PREFIX.size)
            return None
        magic, kind, zero, header_bytes, data_bytes = PREFIX.unpack_from(self._scratch, start)
        if magic != MAGIC or zero:
            raise BadFrame("no frame begins here")
        if header_bytes > self.max_header_bytes or data_bytes > self.max_data_bytes:
            raise BadFrame(f"a frame of {header_bytes} and {data_bytes} bytes is too large")
        try:
            self._kind = FrameKind(kind)
        except ValueError:
            raise BadFrame(f"frames of kind {kind} are unknown") from None
        head_bytes = PREFIX.size + header_bytes
        if there < head_bytes:
            self._make_room(head_bytes)
            return None
        self._header = bytes(self._scratch[start + PREFIX.size : start + head_bytes])
        start += head_bytes
        data = self._allocate(data_bytes) if data_bytes else _EMPTY
        count = min(data_bytes, self._end - start)
        if count:
            data[:count] = self._scratch[start : start + count]
        self._start = start + count
        if self._start == self._end:
            self._start = self._end = 0
            if len(self._scratch) > SCRATCH_BYTES:
                self._scratch = memoryview(bytearray(SCRATCH_BYTES))
        if count == data_bytes:
            return Frame(self._kind, self._header, data)
        self._data, self._at = data, count
        return None

    def _make_room(self, size_bytes: int) -> None:
        """Let the frame that begins at `start` have so many bytes of the scratch."""
        if self._start + size_bytes <= len(self._scratch):
            return
        there = bytes(self._scratch[self._start : self._end])
        self._scratch = memoryview(bytearray(max(SCRATCH_BYTES, size_bytes)))
        self._scratch[: len(there)] = there
        self._start, self._end = 0, len(there)
