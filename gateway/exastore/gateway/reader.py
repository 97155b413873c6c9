"""An open object: its description, and its bytes on demand with read-ahead.

What is read is the version that was opened. When it is replaced meanwhile its chunks stay for the
grace time of the trash; a reader slower than that gets ObjectChanged, never other bytes.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Sequence

from exastore.gateway.config import GatewayConfig
from exastore.gateway.messages import info_of
from exastore.gateway.metrics import GatewayMetrics
from exastore.gateway.store import ByteRange, ObjectInfo
from exastore.gateway.stripe_reader import StripeReader
from exastore.gateway.striping import ExtentIndex
from exastore.proto.v1 import common_pb2, metadata_pb2

#: The most extents read ahead of the one being delivered.
MAX_READ_AHEAD = 4


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
        ahead: deque[asyncio.Task[list[memoryview]]] = deque()
        limit_bytes = self._config.max_in_flight_bytes
        try:
            while todo or ahead:
                while todo and len(ahead) <= MAX_READ_AHEAD:
                    extent = self._extents[todo[0].extent_index]
                    if len(ahead) > 1 and (len(ahead) + 1) * extent.data_bytes > limit_bytes:
                        break
                    part = todo.popleft()
                    read = self._stripes.read(extent, part.start, part.stop)
                    ahead.append(asyncio.create_task(read))
                for data in await ahead[0]:
                    self._metrics.bytes.labels("read").inc(len(data))
                    yield data
                ahead.popleft()
        finally:
            for task in ahead:
                task.cancel()
            await asyncio.gather(*ahead, return_exceptions=True)
