"""Tells metadata how fast storage nodes answer, so that repair makes way where clients wait."""

import asyncio
import logging
from collections.abc import Sequence

import grpc

from exastore.metadata.core.clock import Clock
from exastore.metadata.core.latency import RecentLatency
from exastore.proto.channel import METADATA_MESSAGE_BYTES, channel_options
from exastore.proto.v1 import budget_pb2, budget_pb2_grpc

logger = logging.getLogger(__name__)

_PAUSE_S = 1.0
_TIMEOUT_S = 2.0


class NodeLatency:
    """Lives on the event loop; reports once a second while requests are made."""

    def __init__(self, addresses: Sequence[str], clock: Clock) -> None:
        #: Metadata servers; the first is the one that took the last report.
        self._addresses = list(addresses)
        self._clock = clock
        #: By address of the node.
        self._recent: dict[str, RecentLatency] = {}
        self._channel: grpc.aio.Channel | None = None
        self._task: asyncio.Task[None] | None = None

    def note(self, address: str, duration_s: float) -> None:
        """The node answered a chunk request after so long."""
        recent = self._recent.get(address)
        if recent is None:
            recent = self._recent[address] = RecentLatency()
        recent.note(duration_s, self._clock.monotonic_s())
        if self._task is None and self._addresses:
            self._task = asyncio.get_running_loop().create_task(self._report())

    async def close(self) -> None:
        """End reporting."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        await self._drop_channel()

    async def _report(self) -> None:
        try:
            while self._recent:
                await self._clock.sleep(_PAUSE_S)
                now = self._clock.monotonic_s()
                request = budget_pb2.ReportLatencyRequest()
                for address, recent in list(self._recent.items()):
                    p99_s, count = recent.p99(now)
                    if count:
                        request.nodes.add(address=address, p99_s=p99_s, count=count)
                    else:
                        del self._recent[address]
                if request.nodes:
                    await self._send(request)
        finally:
            self._task = None

    async def _send(self, request: budget_pb2.ReportLatencyRequest) -> None:
        """To the server that does the background work; a report that fails is dropped."""
        for _ in range(len(self._addresses)):
            if self._channel is None:
                options = channel_options(METADATA_MESSAGE_BYTES)
                self._channel = grpc.aio.insecure_channel(self._addresses[0], options=options)
            stub: budget_pb2_grpc.BudgetServiceAsyncStub
            stub = budget_pb2_grpc.BudgetServiceStub(self._channel)
            try:
                await stub.ReportLatency(request, timeout=_TIMEOUT_S)
            except grpc.aio.AioRpcError as error:
                logger.debug("latencies not told to %s: %s", self._addresses[0], error.details())
                await self._drop_channel()
                self._addresses.append(self._addresses.pop(0))
            else:
                return

    async def _drop_channel(self) -> None:
        channel, self._channel = self._channel, None
        if channel is not None:
            await channel.close()
