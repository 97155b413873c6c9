"""Packs small objects into shared stripes, and sparse stripes anew.

Laws:
1. A node reports a stripe when all its chunks are durable; only then do objects come to refer to
   it, each in a transaction that finds it unchanged (`namespace.packing`). A packer that dies
   leaves chunks that nothing refers to, which the collection of orphans finds.
2. Only the holder of the lease packs; its token is checked in each of these transactions.
3. The bytes are checked against what the metadata of each object says before it is swapped.

A stripe has objects of one bucket, so that it moves with its bucket from engine to engine.
"""

import asyncio
import itertools
import logging
import os
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from exastore.erasure import Codec, codec
from exastore.metadata.core.clock import Clock
from exastore.metadata.core.phases import Phase, reach
from exastore.metadata.core.pools import DEFAULT_POOL
from exastore.metadata.kv.contract import Transaction
from exastore.metadata.kv.errors import EngineError
from exastore.metadata.namespace import packed, packing
from exastore.metadata.namespace.errors import BucketMoving, StripeTooOld
from exastore.metadata.namespace.objects import Fence
from exastore.metadata.namespace.packed import PackingTotals
from exastore.metadata.namespace.packing import Candidate, Swap, Swapped
from exastore.metadata.namespace.space import open_by_id
from exastore.metadata.service import membership, packing_plan
from exastore.metadata.service.config import MetadataConfig
from exastore.metadata.service.errors import MapOutdated, NotReady, ServiceError
from exastore.metadata.service.map_store import MapStore, pg_ranges
from exastore.metadata.service.metrics import MetadataMetrics
from exastore.metadata.service.packing_plan import StripePlan, Waiting
from exastore.metadata.service.partitions import Partition, Partitions
from exastore.metadata.service.storage_client import StorageClient, StorageError
from exastore.proto.v1 import common_pb2, storage_pb2, upkeep_pb2

log = logging.getLogger(__name__)

T = TypeVar("T")
#: Runs a function with the fence of the present map on the engine of a partition.
Commit = Callable[[Partition, Callable[[Transaction, Fence], T]], Awaitable[T]]

#: Seconds between two counts of everything.
_COUNT_S = 15.0
#: Objects read from the index at once.
_PAGE_COUNT = 500


@dataclass(frozen=True, slots=True)
class _Target:
    """Where a stripe shall go, by one map."""

    message: common_pb2.ClusterMap
    code: Codec
    pg: int


class Packer:
    """Packs in rounds."""

    def __init__(
        self,
        config: MetadataConfig,
        partitions: Partitions,
        maps: MapStore,
        commit: Commit[Swapped],
        storage: StorageClient,
        clock: Clock,
        metrics: MetadataMetrics,
        new_id: Callable[[], bytes],
    ) -> None:
        self._config = config
        self._partitions = partitions
        self._maps = maps
        self._commit = commit
        self._storage = storage
        self._clock = clock
        self._metrics = metrics
        self._new_id = new_id
        #: Placement groups and nodes are taken in turn.
        self._turns = itertools.count()
        self._counted_s = float("-inf")
        #: One round at a time.
        self._turn = asyncio.Lock()

    async def run_round(self) -> None:
        """Pack what makes full stripes, and what has waited long enough."""
        if self._maps.message is None:
            return
        async with self._turn:
            await self._pack_all(self._config.pack_wait_s)
        now_s = self._clock.monotonic_s()
        if self._partitions.all[0].lease.is_held and now_s - self._counted_s >= _COUNT_S:
            self._counted_s = now_s
            await self.count()

    async def pack_now(self) -> None:
        """Pack all that saves room. Raises NotReady on another server."""
        if self._maps.message is None or not self._partitions.all[0].lease.is_held:
            raise NotReady("another server does the background work, or there is no map yet")
        async with self._turn:
            await self._pack_all(0.0)

    async def _pack_all(self, wait_s: float) -> None:
        for partition in self._partitions.all:
            if not partition.lease.is_held:
                continue
            for bucket_id in await partition.engine.read(packing.buckets_to_pack):
                try:
                    await self._pack_bucket(partition, bucket_id, wait_s)
                except BucketMoving:
                    continue  # the next round finds it where it is then

    async def count(self) -> None:
        """Tell what waits and what is packed."""
        found = [await p.engine.read(packed.totals) for p in self._partitions.all]
        self._metrics.packing(status_of(found, self._clock.now_s()))

    async def _pack_bucket(self, partition: Partition, bucket_id: int, wait_s: float) -> None:
        code = self._code()
        found = await partition.engine.read(lambda txn: packing.sparse_stripes(txn, bucket_id))
        waiting = packing_plan.of_sparse(code, found)
        pool = await partition.engine.read(lambda txn: open_by_id(txn, bucket_id).bucket.pool)
        room = self._config.packed_chunk_bytes * code.k
        begin: bytes | None = b""
        while partition.lease.is_held:
            plans: list[StripePlan] = []
            while len(plans) < self._config.pack_concurrency:
                while begin is not None and _bytes_of(waiting) < 2 * room:
                    more, begin = await self._page(partition, bucket_id, begin)
                    waiting += packing_plan.of_logs(code, more)
                plan, waiting = packing_plan.plan_stripe(
                    code, self._config.packed_chunk_bytes, waiting
                )
                if plan is None or not self._is_due(plan, wait_s):
                    break
                plans.append(plan)
            if not plans:
                return
            done = await asyncio.gather(
                *(self._pack(partition, bucket_id, pool, plan) for plan in plans)
            )
            if not any(done):
                return  # the next round tries again

    def _is_due(self, plan: StripePlan, wait_s: float) -> bool:
        has_waited = plan.oldest_s <= self._clock.now_s() - wait_s
        return plan.pays and (plan.is_full or has_waited)

    async def _page(
        self, partition: Partition, bucket_id: int, begin: bytes
    ) -> tuple[list[Candidate], bytes | None]:
        return await partition.engine.read(
            lambda txn: packing.unpacked(txn, bucket_id, begin=begin, limit=_PAGE_COUNT)
        )

    def _code(self) -> Codec:
        message = self._maps.message
        assert message is not None, "there is a map by now"
        return codec(message.code)

    # ---- one stripe ----

    async def _pack(
        self, partition: Partition, bucket_id: int, pool: str, plan: StripePlan
    ) -> bool:
        """Write a stripe and make its objects refer to it; whether any of them does."""
        target = self._target(pool)
        if target is None:
            return False
        request = self._request(target, plan)
        reach(Phase.PACK_BEGUN)
        try:
            response = await self._storage.pack_stripe(self._packing_node(request), request)
        except StorageError as error:
            log.warning("packing: %s", error)
            self._metrics.background_error("packing")
            await self._discard(request)
            return False
        stripe = common_pb2.Extent(
            pg=request.pg,
            stripe_id=request.stripe_id,
            code=request.code,
            epoch=request.epoch,
            data_bytes=target.code.k * plan.chunk_bytes,
            chunk_bytes=plan.chunk_bytes,
            chunk_crc32c=response.chunk_crc32c,
        )
        swaps = _swaps(stripe, plan, response.slices)
        reach(Phase.PACK_WRITTEN)
        try:
            count = await self._swap(partition, bucket_id, stripe, swaps)
        except (StripeTooOld, BucketMoving, ServiceError, EngineError) as error:
            # What was swapped stays so, and of an unknown commit nothing can be said: the chunks
            # stay until the collection of orphans knows.
            log.warning("packing: %s", error)
            self._metrics.background_error("packing")
            return False
        reach(Phase.PACK_SWAPPED)
        if not count:
            await self._discard(request)
        self._metrics.packed(count, sum(item.piece.data_bytes for item in swaps))
        return count > 0

    async def _swap(
        self,
        partition: Partition,
        bucket_id: int,
        stripe: common_pb2.Extent,
        swaps: Sequence[Swap],
    ) -> int:
        """Swap in batches: one after the other until the stripe is there, then all the others."""
        size = packing.SWAP_COUNT_MAX
        batches = [swaps[first : first + size] for first in range(0, len(swaps), size)]
        count = 0
        while batches:
            first = await self._swap_batch(
                partition, bucket_id, stripe, batches.pop(0), may_create=True
            )
            count += first.count
            if first.exists:
                break
        rest = await asyncio.gather(
            *(
                self._swap_batch(partition, bucket_id, stripe, batch, may_create=False)
                for batch in batches
            )
        )
        return count + sum(item.count for item in rest)

    async def _swap_batch(
        self,
        partition: Partition,
        bucket_id: int,
        stripe: common_pb2.Extent,
        swaps: Sequence[Swap],
        *,
        may_create: bool,
    ) -> Swapped:
        guard = partition.lease.guard()
        now_s = self._clock.now_s()

        def swap(txn: Transaction, fence: Fence) -> Swapped:
            guard(txn)
            return packing.swap(txn, bucket_id, stripe, swaps, now_s, fence, may_create=may_create)

        try:
            return await self._commit(partition, swap)
        except MapOutdated:
            await self._maps.load()
            return await self._commit(partition, swap)

    def _target(self, pool: str) -> _Target | None:
        """A placement group of the pool with all its devices."""
        message = self._maps.message
        if message is None:
            return None
        everything = {DEFAULT_POOL: range(len(message.pgs))}
        pgs = (pg_ranges(message) or everything).get(pool or DEFAULT_POOL, range(0))
        first = next(self._turns)
        for turn in range(len(pgs)):
            pg = pgs[(first + turn) % len(pgs)]
            if membership.is_quiet(message, pg) and _all_up(message, pg):
                return _Target(message, codec(message.code), pg)
        return None

    def _request(self, target: _Target, plan: StripePlan) -> upkeep_pb2.PackStripeRequest:
        message = target.message
        targets = [
            _source(message, slot, device)
            for slot, device in enumerate(message.pgs[target.pg].device_indexes)
        ]
        return upkeep_pb2.PackStripeRequest(
            pg=target.pg,
            stripe_id=self._new_id(),
            code=message.code,
            epoch=message.epoch,
            chunk_bytes=plan.chunk_bytes,
            targets=targets,
            sources=[
                upkeep_pb2.PackSource(
                    extent=candidate.extent,
                    offset=offset,
                    holders=_holders(message, candidate.extent, turn),
                )
                for turn, (candidate, offset) in enumerate(plan.placed)
            ],
        )

    def _packing_node(self, request: upkeep_pb2.PackStripeRequest) -> str:
        """One of the nodes that the stripe goes to."""
        return request.targets[next(self._turns) % len(request.targets)].address

    async def _discard(self, request: upkeep_pb2.PackStripeRequest) -> None:
        """Delete chunks that nothing refers to; what stays is found as orphans."""
        for target in request.targets:
            chunk = common_pb2.ChunkId(
                pg=request.pg, stripe_id=request.stripe_id, index=target.index
            )
            delete = storage_pb2.DeleteChunksRequest(
                device_index=target.device_index, chunks=[chunk]
            )
            try:
                await self._storage.delete_chunks(target.address, delete)
            except StorageError as error:
                log.info("packing: %s", error)


def stripe_ids(clock: Clock) -> Callable[[], bytes]:
    """Makes ids as gateways do: six bytes of milliseconds since 1970, ten random ones."""

    def new_id() -> bytes:
        return int(clock.now_s() * 1000).to_bytes(6, "big") + os.urandom(10)

    return new_id


def status_of(found: Sequence[PackingTotals], now_s: float) -> upkeep_pb2.PackingStatus:
    """The totals of all engines together."""
    oldest_s = min((item.oldest_s for item in found if item.oldest_s is not None), default=now_s)
    return upkeep_pb2.PackingStatus(
        unpacked_object_count=sum(item.unpacked_count for item in found),
        unpacked_bytes=sum(item.unpacked_bytes for item in found),
        oldest_wait_s=max(0.0, now_s - oldest_s),
        stripe_count=sum(item.stripe_count for item in found),
        object_count=sum(item.object_count for item in found),
        live_bytes=sum(item.live_bytes for item in found),
        packed_bytes=sum(item.packed_bytes for item in found),
        stored_bytes=sum(item.stored_bytes for item in found),
        sparse_stripe_count=sum(item.sparse_count for item in found),
    )


def _swaps(
    stripe: common_pb2.Extent, plan: StripePlan, slices: Sequence[upkeep_pb2.PackedSlice]
) -> list[Swap]:
    """The objects whose bytes are in the stripe as their metadata has them."""
    found: list[Swap] = []
    for (candidate, offset), answer in zip(plan.placed, slices, strict=True):
        extent = candidate.extent
        known = extent.slice_crc32c if extent.is_slice else extent.chunk_crc32c[0]
        if answer.error or answer.crc32c != known:
            log.info("not packed: %s", answer.error or "other bytes than were written")
            continue
        piece = common_pb2.Extent(
            pg=stripe.pg,
            stripe_id=stripe.stripe_id,
            code=stripe.code,
            epoch=stripe.epoch,
            data_bytes=extent.data_bytes,
            chunk_bytes=stripe.chunk_bytes,
            is_slice=True,
            slice_offset=offset,
            slice_crc32c=known,
        )
        found.append(Swap(candidate, piece))
    return found


def _holders(
    message: common_pb2.ClusterMap, extent: common_pb2.Extent, turn: int
) -> list[storage_pb2.RebuildSource]:
    """Who holds an object's bytes whole, in the order to ask."""
    if extent.is_slice:
        slots = [extent.slice_offset // extent.chunk_bytes]
    else:
        count = len(extent.chunk_crc32c)
        slots = [(turn + slot) % count for slot in range(count)]
    group = message.pgs[extent.pg]
    return [
        _source(message, slot, device)
        for slot in slots
        for device in membership.holders(group, slot)
        if membership.serves(message, device)
    ]


def _source(message: common_pb2.ClusterMap, slot: int, device: int) -> storage_pb2.RebuildSource:
    address = message.nodes[message.devices[device].node_index].address
    rack = membership.rack_of(message, device)
    return storage_pb2.RebuildSource(index=slot, device_index=device, address=address, rack=rack)


def _all_up(message: common_pb2.ClusterMap, pg: int) -> bool:
    """No device is being drained: a stripe written there would have to move soon."""
    return all(
        message.devices[device].state == common_pb2.DEVICE_STATE_UP
        for device in message.pgs[pg].device_indexes
    )


def _bytes_of(waiting: Sequence[Waiting]) -> int:
    return sum(item.candidate.extent.data_bytes for item in waiting)
