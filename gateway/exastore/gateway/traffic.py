"""What tenants are billed for: requests and bytes, counted here and sent to the metadata servers.

Theory of operation: counts grow in memory; every `flush_s` they become batches with numbers, which
are sent, each again and again until it is acknowledged. The servers count a number once. So nothing
is counted twice; what a gateway has not sent when it is killed is lost, in the tenant's favour.
"""

import asyncio
import logging
import os
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field

from exastore.gateway.errors import GatewayError
from exastore.metadata.core.clock import Clock
from exastore.proto.v1 import access_pb2

logger = logging.getLogger(__name__)

TENANTS_PER_BATCH = 40

Send = Callable[[access_pb2.AddTrafficRequest], Awaitable[object]]


@dataclass(slots=True)
class _Counts:
    received_bytes: int = 0
    sent_bytes: int = 0
    requests: Counter[str] = field(default_factory=Counter[str])


class TrafficMeter:
    """Counts what tenants do. Start it once, stop it once."""

    def __init__(self, send: Send, *, clock: Clock, flush_s: float) -> None:
        self._send = send
        self._clock = clock
        self._flush_s = flush_s
        self._gateway_id = os.urandom(16).hex()
        #: By tenant, what is in no batch yet.
        self._counts: dict[str, _Counts] = {}
        #: Batches not acknowledged yet, in the order of their numbers.
        self._batches: list[access_pb2.AddTrafficRequest] = []
        self._last_sequence = 0
        self._task: asyncio.Task[None] | None = None

    def count(self, tenant: str, kind: str, received_bytes: int, sent_bytes: int) -> None:
        """Count a request that is over."""
        counts = self._counts.get(tenant)
        if counts is None:
            counts = self._counts[tenant] = _Counts()
        counts.received_bytes += received_bytes
        counts.sent_bytes += sent_bytes
        counts.requests[kind] += 1

    def start(self) -> None:
        """Send from now on."""
        self._task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        """Send what is left, once, and end."""
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task
            self._task = None
        await self.flush()

    async def flush(self) -> None:
        """Send what was counted; what is not acknowledged is kept for the next time."""
        self._close_batches()
        while self._batches:
            try:
                await self._send(self._batches[0])
            except GatewayError as error:
                logger.warning("traffic counts wait for a metadata server: %s", error)
                return
            del self._batches[0]

    async def _run(self) -> None:
        while True:
            await self._clock.sleep(self._flush_s)
            await self.flush()

    def _close_batches(self) -> None:
        counts, self._counts = list(self._counts.items()), {}
        for begin in range(0, len(counts), TENANTS_PER_BATCH):
            self._last_sequence += 1
            batch = access_pb2.AddTrafficRequest(
                gateway_id=self._gateway_id, sequence=self._last_sequence
            )
            for tenant, item in counts[begin : begin + TENANTS_PER_BATCH]:
                batch.traffic.add(
                    tenant=tenant,
                    requests=item.requests,
                    received_bytes=item.received_bytes,
                    sent_bytes=item.sent_bytes,
                )
            self._batches.append(batch)
