"""An open object: its description, and its bytes on demand with read-ahead.

What is read is the version that was opened. When it is replaced meanwhile its chunks stay for the
grace time of the trash; a reader slower than that gets ObjectChanged, never other bytes.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

from exastore.gateway.config import GatewayConfig
from exastore.gateway.messages import info_of
from exastore.gateway.metrics import GatewayMetrics
from exastore.gateway.store import ByteRange, ObjectInfo
from exastore.gateway.stripe_reader import StripeReader
from exastore.gateway.striping import ExtentIndex, ExtentSlice
from exastore.proto.v1 import common_pb2, metadata_pb2

#: The most extents read ahead of the one being delivered.
MAX_READ_AHEAD = 4


@dataclass(slots=True, eq=False)
class _Read:
    """An extent that is being read, and what it takes of the budget."""

    task: asyncio.Task[list[memoryview]]
    ahead_bytes: int


class ClusterObjectReader:
    """`ObjectReader` of `store.py` over the stripes of a cluster."""

    def __init__(
        self,
        message: metadata_pb2.Object,
        config: GatewayConfig,
        *,
        stripes: StripeReader,
        metrics: GatewayMetrics,
    ) -> None:
        self._info = info_of(message)
        self._inline = message.inline_data
        self._extents: Sequence[common_pb2.Extent] = message.extents
        self._config = config
        self._stripes = stripes
        self._metrics = metrics
        self._read_ahead = stripes.read_ahead

    @property
    def info(self) -> ObjectInfo:
        return self._info

    async def read(self, byte_range: ByteRange | None = None) -> AsyncIterator[bytes | memoryview]:
        """The bytes asked for, in order."""
        wanted = byte_range or ByteRange(0, self._info.size_bytes)
        if not self._extents:
            piece = self._inline[wanted.start : wanted.start + wanted.length]
            self._metrics.bytes.labels("read").inc(len(piece))
            if piece:
                yield piece
            return
        index = ExtentIndex([extent.data_bytes for extent in self._extents])
        todo = deque(index.slices(wanted.start, wanted.length))
        ahead: deque[_Read] = deque()
        try:
            while todo or ahead:
                self._begin(todo, ahead)
                read = ahead.popleft()
                self._read_ahead.release(read.ahead_bytes)
                read.ahead_bytes = 0
                try:
                    pieces = await read.task
                except BaseException:
                    ahead.append(read)
                    raise
                del read  # and with it the pieces that are sent
                pieces.reverse()
                while pieces:
                    self._metrics.bytes.labels("read").inc(len(pieces[-1]))
                    yield pieces.pop()
        finally:
            for read in ahead:
                read.task.cancel()
                self._read_ahead.release(read.ahead_bytes)
            await asyncio.gather(*(read.task for read in ahead), return_exceptions=True)

    def _begin(self, todo: "deque[ExtentSlice]", ahead: "deque[_Read]") -> None:
        """Read the next extent, and more as far as this request and all together may."""
        limit_bytes = self._config.max_in_flight_bytes
        while todo and len(ahead) <= MAX_READ_AHEAD:
            part = todo[0]
            extent = self._extents[part.extent_index]
            ahead_bytes = extent.data_bytes if ahead else 0
            if len(ahead) > 1 and (len(ahead) + 1) * extent.data_bytes > limit_bytes:
                break
            if not self._read_ahead.acquire_now(ahead_bytes):
                break
            del todo[0]
            task = asyncio.create_task(self._stripes.read(extent, part.start, part.stop))
            ahead.append(_Read(task, ahead_bytes))
