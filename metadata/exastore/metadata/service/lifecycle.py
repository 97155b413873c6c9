"""Carries out lifecycle rules, and forgets what has expired.

Laws:
1. Only the holder of the lease acts; its token is checked in each transaction.
2. Rows are acted on in the order of their due times, and by the rules of that moment
   (`namespace.expiry`).
3. A clock that jumps ahead deletes nothing for `_DOUBT_S` seconds of monotonic time: so long it can
   be set right.
"""

import asyncio
import logging
from collections import Counter
from collections.abc import Callable
from typing import TypeVar

from exastore.metadata.core.clock import Clock
from exastore.metadata.kv.contract import Transaction
from exastore.metadata.namespace import expiry, lifecycle, requests
from exastore.metadata.namespace.errors import BucketMoving
from exastore.metadata.namespace.space import Terms
from exastore.metadata.service.metrics import MetadataMetrics
from exastore.metadata.service.partitions import Partition, Partitions
from exastore.metadata.service.tenants import Tenants

log = logging.getLogger(__name__)

T = TypeVar("T")

#: Rows acted on at the same time, so that the engine can commit them at once.
_ROW_COUNT = 64
#: Transactions of indexing per round and bucket, so that due rows do not wait for it.
_INDEX_STEP_COUNT = 200
_JUMP_S = 60.0
_DOUBT_S = 600.0


class Lifecycle:
    """Acts in rounds."""

    def __init__(
        self,
        partitions: Partitions,
        tenants: Tenants,
        terms: Terms,
        clock: Clock,
        metrics: MetadataMetrics,
    ) -> None:
        self._partitions = partitions
        self._tenants = tenants
        self._terms = terms
        self._clock = clock
        self._metrics = metrics
        #: What the clock was ahead of the monotonic one when we last believed it.
        self._offset_s = clock.now_s() - clock.monotonic_s()
        #: Monotonic time at which the clock was first found ahead of that; None: it is not.
        self._doubted_s: float | None = None

    async def run_round(self) -> None:
        """Index what new rules reach, act on what is due, forget what has expired."""
        now_s = self._believed_now_s()
        oldest_s: float | None = None
        for partition in self._partitions.all:
            if partition.lease.is_held:
                await self._index(partition)
                await self._act(partition, now_s)
                await self._forget(partition, now_s)
            due_s = await partition.engine.read(lifecycle.oldest_due_s)
            if due_s is not None:
                oldest_s = due_s if oldest_s is None else min(oldest_s, due_s)
        self._metrics.lifecycle_oldest(
            0.0 if oldest_s is None else max(0.0, self._clock.now_s() - oldest_s)
        )
        if self._partitions.all[0].lease.is_held:
            await self._tenants.level()

    def _believed_now_s(self) -> float:
        """The time, without a jump ahead that may be a mistake."""
        now_s, monotonic_s = self._clock.now_s(), self._clock.monotonic_s()
        ahead_s = now_s - monotonic_s - self._offset_s
        if ahead_s > _JUMP_S:
            if self._doubted_s is None:
                self._doubted_s = monotonic_s
                log.warning("the clock jumped %.0f s ahead: lifecycle waits", ahead_s)
            if monotonic_s - self._doubted_s < _DOUBT_S:
                return monotonic_s + self._offset_s
        self._doubted_s = None
        self._offset_s = now_s - monotonic_s
        return now_s

    async def _index(self, partition: Partition) -> None:
        for bucket_id in await partition.engine.read(expiry.buckets_to_index):
            for _ in range(_INDEX_STEP_COUNT):
                if not await self._index_some(partition, bucket_id):
                    break

    async def _index_some(self, partition: Partition, bucket_id: int) -> bool:
        try:
            return await self._guarded(
                partition, lambda txn: expiry.index_some(txn, bucket_id, self._terms)
            )
        except BucketMoving:
            return False

    async def _act(self, partition: Partition, now_s: float) -> None:
        after = b""
        while True:
            keys = await self._due_after(partition, now_s, after)
            if not keys:
                return
            after = keys[-1]
            done = await asyncio.gather(*(self._act_on(partition, key, now_s) for key in keys))
            for what, count in Counter(filter(None, done)).items():
                self._metrics.lifecycle_done(what, count)

    async def _due_after(self, partition: Partition, now_s: float, after: bytes) -> list[bytes]:
        return await partition.engine.read(
            lambda txn: lifecycle.scan_due(txn, before_s=now_s, after=after, limit=_ROW_COUNT)
        )

    async def _act_on(self, partition: Partition, key: bytes, now_s: float) -> str:
        try:
            return await self._guarded(
                partition, lambda txn: expiry.act(txn, key, now_s, self._terms)
            )
        except BucketMoving:
            return ""  # the next round finds it where it is then

    async def _forget(self, partition: Partition, now_s: float) -> None:
        after: bytes | None = b""
        while after is not None:
            after = await self._forget_some(partition, now_s, after)

    async def _forget_some(self, partition: Partition, now_s: float, after: bytes) -> bytes | None:
        return await self._guarded(
            partition,
            lambda txn: requests.forget_expired(txn, before_s=now_s, after=after),
        )

    async def _guarded(self, partition: Partition, fn: Callable[[Transaction], T]) -> T:
        guard = partition.lease.guard()

        def guarded(txn: Transaction) -> T:
            guard(txn)
            return fn(txn)

        return await partition.engine.transact(guarded)
