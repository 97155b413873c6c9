"""Empties the trash: deletes chunks on the devices, then forgets them.

Laws:
1. Chunks are deleted at the earliest `trash_grace_s` after their object was, so that readers who
   have just got its extents can finish.
2. A row is forgotten after every device of its stripes has said that the chunks are gone.
3. A PG with a slot that is being rebuilt or cannot be reached is left alone: else a rebuild could
   bring back a chunk that nobody refers to any more, or a sleeping device could keep one.
"""

import asyncio
import logging
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from exastore.metadata.core.clock import Clock
from exastore.metadata.kv.contract import Engine, Transaction
from exastore.metadata.namespace import trash
from exastore.metadata.namespace.trash import TrashBatch, TrashEntry, TrashStats
from exastore.metadata.service import membership
from exastore.metadata.service.config import MetadataConfig
from exastore.metadata.service.lease import Lease
from exastore.metadata.service.map_store import MapStore
from exastore.metadata.service.metrics import MetadataMetrics
from exastore.metadata.service.storage_client import StorageClient, StorageError
from exastore.proto.v1 import common_pb2, storage_pb2

log = logging.getLogger(__name__)

T = TypeVar("T")

#: Entries looked at together: their chunks of one device go in one call.
_ENTRY_COUNT = 64
#: `d` rows of an entry handled at once; two mutations each.
_ROW_COUNT = 32
_CHUNKS_PER_CALL = 4096


@dataclass(frozen=True, slots=True)
class _Work:
    """Some rows of an entry, ready to be deleted."""

    entry: TrashEntry
    batch: TrashBatch

    @property
    def is_last(self) -> bool:
        return self.batch.next_begin is None


class TrashCollector:
    """Collects in rounds."""

    def __init__(
        self,
        config: MetadataConfig,
        engine: Engine,
        maps: MapStore,
        lease: Lease,
        storage: StorageClient,
        clock: Clock,
        metrics: MetadataMetrics,
    ) -> None:
        self._grace_s = config.trash_grace_s
        self._engine = engine
        self._maps = maps
        self._lease = lease
        self._storage = storage
        self._clock = clock
        self._metrics = metrics
        #: As of the last round.
        self.stats = TrashStats(0, 0, None)

    async def run_round(self) -> None:
        """Go through all entries that are due once, oldest first."""
        after = b""
        while self._lease.is_held:
            entries = await self._due_after(after)
            if not entries:
                break
            after = entries[-1].key
            await self._collect(entries)
        await self.count()

    async def count(self) -> None:
        """Count what waits."""
        self.stats = await self._engine.read(trash.trash_stats)
        oldest_s = self.stats.oldest_s
        age_s = 0.0 if oldest_s is None else max(0.0, self._clock.now_s() - oldest_s)
        self._metrics.trash(self.stats.entry_count, self.stats.extent_count, age_s)

    async def _due_after(self, after: bytes) -> list[TrashEntry]:
        before_s = self._clock.now_s() - self._grace_s
        return await self._engine.read(
            lambda txn: trash.scan_trash(txn, before_s=before_s, after=after, limit=_ENTRY_COUNT)
        )

    async def _collect(self, entries: Sequence[TrashEntry]) -> None:
        """Take some rows off each entry, until all of them are done or held up."""
        waiting = list(entries)
        while waiting:
            message = self._maps.message
            if not self._lease.is_held:
                return
            works = await asyncio.gather(*(self._next_rows(entry) for entry in waiting))
            ready = [
                work
                for work in works
                if all(membership.is_quiet(message, extent.pg) for extent in work.batch.extents)
            ]
            failed = await self._delete(message, ready)
            done = [work for work in ready if not _touches(message, work, failed)]
            # Together, so that the engine can commit them at once.
            await asyncio.gather(*(self._fenced(_forgetting(work)) for work in done))
            waiting = [work.entry for work in done if not work.is_last]

    async def _next_rows(self, entry: TrashEntry) -> _Work:
        begin: bytes | None = None
        while True:
            batch = await self._rows_from(entry, begin)
            if batch.row_keys or batch.next_begin is None:
                return _Work(entry, batch)
            begin = batch.next_begin

    async def _rows_from(self, entry: TrashEntry, begin: bytes | None) -> TrashBatch:
        return await self._engine.read(
            lambda txn: trash.entry_extents(txn, entry, begin=begin, row_limit=_ROW_COUNT)
        )

    async def _delete(
        self, message: common_pb2.ClusterMap | None, works: Sequence[_Work]
    ) -> set[int]:
        """Delete the chunks of `works`; the devices that failed."""
        chunks: dict[int, list[common_pb2.ChunkId]] = defaultdict(list)
        for work in works:
            for extent in work.batch.extents:
                assert message is not None, "quiet PGs are those of a map"
                for index, device in enumerate(message.pgs[extent.pg].device_indexes):
                    chunks[device].append(
                        common_pb2.ChunkId(pg=extent.pg, stripe_id=extent.stripe_id, index=index)
                    )
        failed: set[int] = set()

        async def delete(device: int, ids: Sequence[common_pb2.ChunkId]) -> None:
            assert message is not None
            address = message.nodes[message.devices[device].node_index].address
            try:
                for first in range(0, len(ids), _CHUNKS_PER_CALL):
                    request = storage_pb2.DeleteChunksRequest(
                        device_index=device, chunks=ids[first : first + _CHUNKS_PER_CALL]
                    )
                    response = await self._storage.delete_chunks(address, request)
                    self._metrics.chunks_deleted(response.deleted_count)
            except StorageError as error:
                log.warning("trash: %s", error)
                self._metrics.background_error("trash")
                failed.add(device)

        await asyncio.gather(*(delete(device, ids) for device, ids in chunks.items()))
        return failed

    async def _fenced(self, fn: Callable[[Transaction], T]) -> T:
        guard = self._lease.guard()

        def guarded(txn: Transaction) -> T:
            guard(txn)
            return fn(txn)

        return await self._engine.transact(guarded)


def _forgetting(work: _Work) -> Callable[[Transaction], None]:
    def forget(txn: Transaction) -> None:
        trash.drop_rows(txn, work.batch.row_keys)
        if work.is_last:
            trash.finish_entry(txn, work.entry)

    return forget


def _touches(message: common_pb2.ClusterMap | None, work: _Work, devices: set[int]) -> bool:
    return message is not None and any(
        device in devices
        for extent in work.batch.extents
        for device in message.pgs[extent.pg].device_indexes
    )
