"""Empties the trash: deletes chunks on the devices, then forgets them.

Laws:
1. Chunks are deleted at the earliest `trash_grace_s` after their object was, so that readers who
   have just got its extents can finish.
2. A row is forgotten after every device of its stripes has said that the chunks are gone.
3. A PG with a slot that is being rebuilt or cannot be reached is left alone: else a rebuild could
   bring back a chunk that nobody refers to any more, or a sleeping device could keep one.
"""

import asyncio
import contextlib
import logging
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from exastore.metadata.core.clock import Clock
from exastore.metadata.core.phases import Phase, reach
from exastore.metadata.kv.contract import Transaction
from exastore.metadata.namespace import trash
from exastore.metadata.namespace.errors import BucketMoving
from exastore.metadata.namespace.trash import TrashBatch, TrashEntry, TrashStats
from exastore.metadata.service import membership
from exastore.metadata.service.config import MetadataConfig
from exastore.metadata.service.map_store import MapStore
from exastore.metadata.service.metrics import MetadataMetrics
from exastore.metadata.service.partitions import Partition, Partitions
from exastore.metadata.service.storage_client import StorageClient, StorageError
from exastore.proto.v1 import common_pb2, storage_pb2

log = logging.getLogger(__name__)

#: Entries looked at together: their chunks of one device go in one call.
_ENTRY_COUNT = 64
#: `d` rows of an entry handled at once; two mutations each, four while the bucket moves.
_ROW_COUNT = 16
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
        partitions: Partitions,
        maps: MapStore,
        storage: StorageClient,
        clock: Clock,
        metrics: MetadataMetrics,
    ) -> None:
        self._grace_s = config.trash_grace_s
        self._partitions = partitions
        self._maps = maps
        self._storage = storage
        self._clock = clock
        self._metrics = metrics
        #: As of the last round.
        self.stats = TrashStats(0, 0, None)

    async def run_round(self) -> None:
        """Go through all entries that are due once, oldest first."""
        for partition in self._partitions.all:
            after = b""
            while partition.lease.is_held:
                entries = await self._due_after(partition, after)
                if not entries:
                    break
                after = entries[-1].key
                await self._collect(partition, entries)
        await self.count()

    async def count(self) -> None:
        """Count what waits."""
        found = [await p.engine.read(trash.trash_stats) for p in self._partitions.all]
        oldest_s = min((s.oldest_s for s in found if s.oldest_s is not None), default=None)
        self.stats = TrashStats(
            sum(stats.entry_count for stats in found),
            sum(stats.extent_count for stats in found),
            oldest_s,
        )
        age_s = 0.0 if oldest_s is None else max(0.0, self._clock.now_s() - oldest_s)
        self._metrics.trash(self.stats.entry_count, self.stats.extent_count, age_s)

    async def _due_after(self, partition: Partition, after: bytes) -> list[TrashEntry]:
        before_s = self._clock.now_s() - self._grace_s
        return await partition.engine.read(
            lambda txn: trash.scan_trash(txn, before_s=before_s, after=after, limit=_ENTRY_COUNT)
        )

    async def _collect(self, partition: Partition, entries: Sequence[TrashEntry]) -> None:
        """Take some rows off each entry, until all of them are done or held up."""
        waiting = list(entries)
        while waiting:
            message = self._maps.message
            if not partition.lease.is_held:
                return
            found = await asyncio.gather(*(self._next_rows(partition, e) for e in waiting))
            works = [work for work in found if work is not None]
            ready = [
                work
                for work in works
                if all(membership.is_quiet(message, extent.pg) for extent in work.batch.extents)
            ]
            failed = await self._delete(message, ready)
            if ready:
                reach(Phase.TRASH_CHUNKS_DELETED)
            done = [work for work in ready if not _touches(message, work, failed)]
            # Together, so that the engine can commit them at once.
            await asyncio.gather(*(self._forget(partition, work) for work in done))
            waiting = [work.entry for work in done if not work.is_last]

    async def _next_rows(self, partition: Partition, entry: TrashEntry) -> _Work | None:
        """The next rows of an entry; None: its bucket is moving, so it has to wait."""
        begin: bytes | None = None
        while True:
            try:
                batch = await self._rows_from(partition, entry, begin)
            except BucketMoving:
                return None
            if batch.row_keys or batch.next_begin is None:
                return _Work(entry, batch)
            begin = batch.next_begin

    async def _rows_from(
        self, partition: Partition, entry: TrashEntry, begin: bytes | None
    ) -> TrashBatch:
        return await partition.engine.read(
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
                # Copies of small objects lie in the first slots of their group alone.
                devices = message.pgs[extent.pg].device_indexes[: len(extent.chunk_crc32c)]
                for index, device in enumerate(devices):
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

    async def _forget(self, partition: Partition, work: _Work) -> None:
        """Forget rows whose chunks are gone; those of a bucket that moves go when it has moved."""
        guard = partition.lease.guard()

        def forget(txn: Transaction) -> None:
            guard(txn)
            trash.drop_rows(txn, work.entry, work.batch.row_keys)
            if work.is_last:
                trash.finish_entry(txn, work.entry)

        with contextlib.suppress(BucketMoving):
            await partition.engine.transact(forget)


def _touches(message: common_pb2.ClusterMap | None, work: _Work, devices: set[int]) -> bool:
    return message is not None and any(
        device in devices
        for extent in work.batch.extents
        for device in message.pgs[extent.pg].device_indexes
    )
