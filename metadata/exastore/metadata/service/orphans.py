"""Finds chunks that metadata does not know, and deletes them.

Chunks become orphans when a write is cut off together with its gateway, when they arrive after
their stripe was abandoned, when a packer dies, or when the end of a commit is unknown.

Laws:
1. Only stripes older than the grace time are judged, by the clock of who wrote them: ids begin with
   the time. Before that, commits of such old stripes are refused in every engine, so one that
   nothing refers to will never be referred to. This covers what is being written and packed.
2. A stripe is an orphan if two whole walks of the namespace and the trash, one after the other, do
   not find it, and nothing happened meanwhile that a walk could miss.
3. A PG with a slot that is being rebuilt, moves, or cannot be reached is left for later: a rebuild
   could bring a chunk back that was deleted elsewhere.
4. Only the holder of the lease deletes, and only as long as it holds it.
"""

import asyncio
import logging
from collections import defaultdict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from exastore.metadata.core.clock import Clock
from exastore.metadata.kv.contract import Transaction
from exastore.metadata.namespace import orphans, rows
from exastore.metadata.namespace.orphans import KnownStripes
from exastore.metadata.service import membership
from exastore.metadata.service.config import MetadataConfig
from exastore.metadata.service.errors import NotReady
from exastore.metadata.service.map_store import MapStore
from exastore.metadata.service.metrics import MetadataMetrics
from exastore.metadata.service.partitions import Partition, Partitions
from exastore.metadata.service.storage_client import StorageClient, StorageError
from exastore.proto.v1 import common_pb2, storage_pb2, upkeep_pb2

log = logging.getLogger(__name__)

#: Stripes judged together: their ids are in memory during a walk of the namespace.
_STRIPES_PER_WALK = 500_000
_CHUNKS_PER_CALL = 4096
_EXAMPLE_COUNT = 10
#: Beyond the time of every stripe.
_ANY_MS = 1 << 48
#: No stripe is judged that is younger, whatever an operator says.
_GRACE_MIN_S = 1.0

Collect = Callable[[upkeep_pb2.CollectOrphansRequest], Awaitable[upkeep_pb2.OrphanReport]]


@dataclass(slots=True)
class _Found:
    """The chunks of one stripe, as devices list them."""

    pg: int
    chunk_bytes: int = 0
    #: (device, slot) of each.
    places: list[tuple[int, int]] = field(default_factory=list[tuple[int, int]])


class OrphanCollector:
    """Collects now and then, and when an operator asks."""

    def __init__(
        self,
        config: MetadataConfig,
        partitions: Partitions,
        maps: MapStore,
        storage: StorageClient,
        clock: Clock,
        metrics: MetadataMetrics,
    ) -> None:
        self._grace_s = config.orphan_grace_s
        self._interval_s = config.orphan_interval_s
        self._partitions = partitions
        self._maps = maps
        self._storage = storage
        self._clock = clock
        self._metrics = metrics
        #: When the last collection by itself began; the first one waits, too.
        self._began_s = clock.monotonic_s()
        #: One collection at a time.
        self._turn = asyncio.Lock()

    async def run_round(self) -> None:
        """Collect if it is time to."""
        now_s = self._clock.monotonic_s()
        due = self._interval_s and now_s - self._began_s >= self._interval_s
        if due and self._maps.message is not None and self._is_mine:
            self._began_s = now_s
            await self.collect(upkeep_pb2.CollectOrphansRequest(apply=True))

    async def collect(self, request: upkeep_pb2.CollectOrphansRequest) -> upkeep_pb2.OrphanReport:
        """Look for orphans, and delete them if told to. Raises NotReady on another server."""
        message = self._maps.message
        if message is None or not self._is_mine:
            raise NotReady("another server does the background work, or there is no map yet")
        async with self._turn:
            older_than_s = max(_GRACE_MIN_S, request.older_than_s or self._grace_s)
            report = upkeep_pb2.OrphanReport(applied=request.apply, older_than_s=older_than_s)
            limit_ms = rows.ms_of(self._clock.now_s() - older_than_s)
            if request.apply:
                await self._raise_fences(limit_ms)
            found: dict[bytes, _Found] = {}
            for pg in range(len(message.pgs)):
                if not await self._list(message, pg, limit_ms, found):
                    report.skipped_pg_count += 1
                if len(found) >= _STRIPES_PER_WALK:
                    await self._judge(found, report)
                    found.clear()
            await self._judge(found, report)
            backlog = report.orphan_chunk_count - report.deleted_chunk_count
            self._metrics.orphans(backlog, report.orphan_bytes if backlog else 0)
            return report

    @property
    def _is_mine(self) -> bool:
        return all(partition.lease.is_held for partition in self._partitions.all)

    async def _raise_fences(self, limit_ms: int) -> None:
        for partition in self._partitions.all:
            guard = partition.lease.guard()

            def write(txn: Transaction, guard: Callable[[Transaction], None] = guard) -> None:
                guard(txn)
                orphans.raise_fence(txn, limit_ms)

            await partition.engine.transact(write)

    async def _list(
        self, message: common_pb2.ClusterMap, pg: int, limit_ms: int, found: dict[bytes, _Found]
    ) -> bool:
        """Add the old stripes of a PG; false when it is not the time to look at it."""
        if not membership.is_quiet(message, pg):
            return False
        devices = message.pgs[pg].device_indexes
        answers = await asyncio.gather(
            *(self._chunks(message, device, pg) for device in devices), return_exceptions=True
        )
        for answer in answers:
            if isinstance(answer, StorageError):
                log.warning("orphans: %s", answer)
                return False
            if isinstance(answer, BaseException):
                raise answer
        for device, answer in zip(devices, answers, strict=True):
            assert not isinstance(answer, BaseException)
            for info in answer:
                stripe_id = info.chunk.stripe_id
                if rows.stripe_ms(stripe_id) < limit_ms:
                    stripe = found.setdefault(stripe_id, _Found(pg))
                    stripe.places.append((device, info.chunk.index))
                    stripe.chunk_bytes += info.chunk_bytes
        return True

    async def _chunks(
        self, message: common_pb2.ClusterMap, device: int, pg: int
    ) -> list[storage_pb2.ChunkInfo]:
        address = message.nodes[message.devices[device].node_index].address
        return await self._storage.list_chunks(
            address, storage_pb2.ListChunksRequest(device_index=device, pg=pg)
        )

    # ---- judging ----

    async def _judge(self, found: dict[bytes, _Found], report: upkeep_pb2.OrphanReport) -> None:
        """Take what is known off `found`, twice; delete what is left."""
        report.checked_stripe_count += len(found)
        before = await self._stability()
        for _ in range(2):
            await self._drop_known(found)
        if not found:
            return
        if before is None or _differ(before, await self._stability()):
            report.message = "buckets or versions moved meanwhile: nothing was judged, try again"
            return
        await self._drop_gone(found)
        for stripe_id, stripe in found.items():
            report.orphan_stripe_count += 1
            report.orphan_chunk_count += len(stripe.places)
            report.orphan_bytes += stripe.chunk_bytes
            if len(report.examples) < _EXAMPLE_COUNT:
                report.examples.append(stripe_id)
        if report.applied:
            report.deleted_chunk_count += await self._delete(found)

    async def _stability(self) -> list[dict[bytes, bytes]] | None:
        """What a walk relies on; None: a bucket is moving."""
        if await self._partitions.first.read(orphans.is_moving):
            return None
        return [await p.engine.read(orphans.stability) for p in self._partitions.all]

    async def _drop_known(self, found: dict[bytes, _Found]) -> None:
        for partition in self._partitions.all:
            begin: bytes | None = b""
            while begin is not None and found:
                batch = await _known_from(partition, begin)
                for stripe_id in batch.stripe_ids:
                    found.pop(stripe_id, None)
                begin = batch.next_begin

    async def _drop_gone(self, found: dict[bytes, _Found]) -> None:
        """Take off what the trash collection has deleted and forgotten meanwhile."""
        message = self._maps.message
        assert message is not None, "there was a map"
        listed: dict[bytes, _Found] = {}
        for pg in {stripe.pg for stripe in found.values()}:
            await self._list(message, pg, _ANY_MS, listed)
        for stripe_id in [stripe_id for stripe_id in found if stripe_id not in listed]:
            del found[stripe_id]
        found.update({stripe_id: listed[stripe_id] for stripe_id in found})

    async def _delete(self, found: dict[bytes, _Found]) -> int:
        """Delete the chunks of orphans; how many there were."""
        chunks: dict[int, list[common_pb2.ChunkId]] = defaultdict(list)
        message = self._maps.message
        assert message is not None, "there was a map"
        for stripe_id, stripe in found.items():
            if membership.is_quiet(message, stripe.pg):
                for device, slot in stripe.places:
                    chunk = common_pb2.ChunkId(pg=stripe.pg, stripe_id=stripe_id, index=slot)
                    chunks[device].append(chunk)
        count = 0
        for device, ids in chunks.items():
            address = message.nodes[message.devices[device].node_index].address
            for first in range(0, len(ids), _CHUNKS_PER_CALL):
                if not self._is_mine:
                    return count
                delete = storage_pb2.DeleteChunksRequest(
                    device_index=device, chunks=ids[first : first + _CHUNKS_PER_CALL]
                )
                try:
                    response = await self._storage.delete_chunks(address, delete)
                except StorageError as error:
                    log.warning("orphans: %s", error)
                    self._metrics.background_error("orphans")
                    break
                count += response.deleted_count
        self._metrics.orphans_deleted(count)
        log.info("deleted %d chunks that nothing referred to", count)
        return count


def _differ(before: list[dict[bytes, bytes]], after: list[dict[bytes, bytes]] | None) -> bool:
    """Whether a bucket that was there all the time has changed what a walk relies on."""
    return after is None or any(
        then.get(key, value) != value
        for then, now in zip(before, after, strict=True)
        for key, value in now.items()
    )


async def _known_from(partition: Partition, begin: bytes) -> KnownStripes:
    return await partition.engine.read(lambda txn: orphans.known_stripes(txn, begin=begin))
