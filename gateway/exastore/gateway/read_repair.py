"""Tells metadata which chunks reads had to do without, so that they are looked at and rebuilt."""

import asyncio
import logging
from collections.abc import Iterable, Sequence

import grpc

from exastore.metadata.core.clock import Clock
from exastore.proto.channel import METADATA_MESSAGE_BYTES, channel_options
from exastore.proto.v1 import common_pb2, healing_pb2, healing_pb2_grpc

logger = logging.getLogger(__name__)

#: Between two reports: reads of one bad chunk come in crowds.
_PAUSE_S = 1.0
_TIMEOUT_S = 5.0
#: Chunks that wait to be reported, or were just now; more are forgotten, the scrub finds them.
_COUNT_MAX = 4096

Key = tuple[int, bytes, int]


class ReadRepair:
    """Lives on the event loop. A report that fails is dropped: the next read makes it again."""

    def __init__(self, addresses: Sequence[str], clock: Clock) -> None:
        self._addresses = addresses
        self._clock = clock
        self._waiting: set[Key] = set()
        self._task: asyncio.Task[None] | None = None

    def suspect(self, chunks: Iterable[Key]) -> None:
        """A read did without these chunks: (PG, stripe id, index) each."""
        self._waiting.update(chunks)
        if len(self._waiting) > _COUNT_MAX:
            self._waiting = set(list(self._waiting)[:_COUNT_MAX])
        if self._waiting and self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._report())

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _report(self) -> None:
        try:
            while self._waiting:
                await self._clock.sleep(_PAUSE_S)
                keys, self._waiting = self._waiting, set()
                request = healing_pb2.ReportSuspectsRequest(
                    chunks=[
                        common_pb2.ChunkId(pg=pg, stripe_id=stripe_id, index=index)
                        for pg, stripe_id, index in keys
                    ]
                )
                await self._send(request)
        finally:
            self._task = None

    async def _send(self, request: healing_pb2.ReportSuspectsRequest) -> None:
        """To the server that does the background work; a channel a report, for they are rare."""
        for address in self._addresses:
            options = channel_options(METADATA_MESSAGE_BYTES)
            async with grpc.aio.insecure_channel(address, options=options) as channel:
                stub: healing_pb2_grpc.HealingServiceAsyncStub
                stub = healing_pb2_grpc.HealingServiceStub(channel)
                try:
                    await stub.ReportSuspects(request, timeout=_TIMEOUT_S)
                except grpc.aio.AioRpcError as error:
                    logger.debug("suspect chunks not reported to %s: %s", address, error.details())
                else:
                    return
        logger.info("%d suspect chunks could not be reported", len(request.chunks))
