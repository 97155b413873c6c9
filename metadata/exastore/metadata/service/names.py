"""The namespace half of the service: requests in, transactions, answers out."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import TypeVar
from zlib import crc32

from exastore.metadata.core.clock import Clock
from exastore.metadata.core.pools import DEFAULT_POOL
from exastore.metadata.kv.contract import Engine, Transaction
from exastore.metadata.namespace import (
    acl,
    buckets,
    check,
    extents,
    listing,
    lock,
    objects,
    sealing,
    space,
    uploads,
    usage,
)
from exastore.metadata.namespace.buckets import FIRST
from exastore.metadata.namespace.errors import (
    BucketExists,
    InvalidArgument,
    NoSuchBucket,
    PlanOutdated,
)
from exastore.metadata.namespace.objects import Fence
from exastore.metadata.service.config import MetadataConfig
from exastore.metadata.service.errors import MapOutdated, NotReady
from exastore.metadata.service.lease import Lease
from exastore.metadata.service.map_store import MapStore
from exastore.metadata.service.partitions import Partition, Partitions, is_map_current
from exastore.metadata.service.tenants import Tenants
from exastore.proto.v1 import acl_pb2, common_pb2, lock_pb2, metadata_pb2, sealing_pb2

T = TypeVar("T")

_DELETED_KEY_COUNT_MAX = 1000
#: Transactions of a batch deletion at the same time, so that the engine can commit them at once.
_DELETE_CONCURRENCY = 16
#: A completion races with parts still arriving; nobody needs more rounds than this.
_PLAN_ATTEMPT_COUNT = 10
#: A map that is fenced before it is stored is stored soon, or never.
_MAP_ATTEMPT_COUNT = 8
_MAP_PAUSE_S = 0.02


class NamespaceService:
    """Buckets, objects and uploads of MetadataService. Errors are those of the namespace, the
    engine and the service.

    Attributes:
        partitions: The engines that hold the buckets.
        terms: Durations of the namespace.
        tenants: Quotas over all partitions.
    """

    def __init__(
        self,
        config: MetadataConfig,
        engine: Engine,
        maps: MapStore,
        clock: Clock,
        lease: Lease,
    ) -> None:
        self._min_part_bytes = config.min_part_bytes
        self._maps = maps
        self._clock = clock
        self.partitions = Partitions(engine, config.partitions, lease)
        self.terms = space.Terms(day_s=config.lifecycle_day_s, request_ttl_s=config.request_ttl_s)
        self.tenants = Tenants(self.partitions)
        maps.before_change = self.partitions.raise_map_fence

    async def start(self) -> None:
        """Bring the fences of the partitions up to the map that is stored."""
        await self.partitions.raise_map_fence(self._maps.epoch)

    async def hold_partitions(self) -> None:
        """As holder of the lease: make it hold in all engines, and see that no fence is too high.

        A fence that a server raised before it died would refuse every commit until the map changes.
        """
        if len(self.partitions.all) == 1:
            return
        await self.partitions.adopt_lease()
        if await self.partitions.highest_map_fence() > self._maps.epoch:
            await self._maps.change(_next_epoch)

    async def close(self) -> None:
        """Close the engines that this opened."""
        await self.partitions.close()

    # ---- buckets ----

    async def create_bucket(self, request: metadata_pb2.CreateBucketRequest) -> metadata_pb2.Bucket:
        now_s = self._clock.now_s()
        first = self.partitions.first
        request.pool = self._pool_for(request)
        name = self._partition_for(request)
        if name == FIRST:
            return await first.transact(lambda txn: buckets.create_bucket(txn, request, now_s))
        try:
            place = await first.transact(lambda txn: buckets.reserve(txn, request, now_s, name))
        except BucketExists:
            place = await self._take_over(request, name)
        target = self.partitions.named(name).engine
        await target.transact(lambda txn: buckets.establish(txn, place))
        if not await first.read(lambda txn: _is_place(txn, place)):
            # Another creation took the name over while this one stood still.
            await target.transact(lambda txn: buckets.drop_settings(txn, place))
            raise BucketExists(request.name, place.owner)
        self.partitions.forget(request.name)
        return place

    async def _take_over(
        self, request: metadata_pb2.CreateBucketRequest, name: str
    ) -> metadata_pb2.Bucket:
        """Take a name whose creation or deletion was cut short. Raises BucketExists."""
        first, now_s = self.partitions.first, self._clock.now_s()
        known = await first.read(lambda txn: buckets.find_place(txn, request.name))
        if known is not None:
            holder = self.partitions.named(known.partition).engine
            settled = await holder.read(lambda txn: buckets.has_settings(txn, request.name))
            if settled or known.state != metadata_pb2.BUCKET_STATE_ACTIVE:
                raise BucketExists(request.name, known.owner)
        old_id = 0 if known is None else known.id
        return await first.transact(
            lambda txn: buckets.replace_place(txn, request, now_s, name, old_id)
        )

    def _partition_for(self, request: metadata_pb2.CreateBucketRequest) -> str:
        """The partition asked for, or one by the bucket's name, the same for every server."""
        if request.partition:
            return self.partitions.named(request.partition).name
        names = self.partitions.names
        return names[crc32(request.name.encode()) % len(names)]

    def _pool_for(self, request: metadata_pb2.CreateBucketRequest) -> str:
        """The pool asked for, or that of the region's name; empty: the default one."""
        known = self._maps.pool_names
        if request.pool and request.pool not in known:
            raise InvalidArgument(f"no pool has the name {request.pool!r}: known are {known}")
        pool = request.pool or (request.region if request.region in known else "")
        return "" if pool == DEFAULT_POOL else pool

    async def get_bucket(self, request: metadata_pb2.GetBucketRequest) -> metadata_pb2.Bucket:
        return await self.partitions.read(
            request.name, lambda txn: buckets.get_bucket(txn, request.name), brief=True
        )

    async def configure_bucket(
        self, request: metadata_pb2.ConfigureBucketRequest
    ) -> metadata_pb2.Bucket:
        return await self.partitions.transact(
            request.name, lambda txn: buckets.configure_bucket(txn, request)
        )

    async def delete_bucket(
        self, request: metadata_pb2.DeleteBucketRequest
    ) -> metadata_pb2.DeleteBucketResponse:
        name, first = request.name, self.partitions.first

        async def delete(partition: Partition) -> None:
            if partition.name == FIRST:
                await first.transact(lambda txn: _delete_bucket(txn, name))
                return
            try:
                bucket_id = await partition.engine.transact(
                    lambda txn: buckets.delete_bucket(txn, name)
                )
            except NoSuchBucket:
                await self._drop_unsettled(name, partition)
                raise
            await first.transact(lambda txn: buckets.drop_place(txn, name, bucket_id))

        await self.partitions.call(name, delete)
        self.partitions.forget(name)
        return metadata_pb2.DeleteBucketResponse()

    async def _drop_unsettled(self, name: str, partition: Partition) -> None:
        """Finish a deletion that was cut short between the two engines."""
        first = self.partitions.first
        place = await first.read(lambda txn: buckets.find_place(txn, name))
        if (
            place is not None
            and place.partition == partition.name
            and place.state == metadata_pb2.BUCKET_STATE_ACTIVE
            and not await partition.engine.read(lambda txn: buckets.has_settings(txn, name))
        ):
            await first.transact(lambda txn: buckets.drop_place(txn, name, place.id))

    async def list_buckets(
        self, request: metadata_pb2.ListBucketsRequest
    ) -> metadata_pb2.ListBucketsResponse:
        del request
        found = await self.partitions.first.read(buckets.list_buckets)
        return metadata_pb2.ListBucketsResponse(buckets=found)

    # ---- usage ----

    async def get_usage(self, request: metadata_pb2.GetUsageRequest) -> metadata_pb2.Usage:
        if request.tenant:
            return await self.tenants.usage(request.tenant)
        return await self.partitions.read(
            request.bucket, lambda txn: buckets.bucket_usage(txn, request.bucket)
        )

    async def set_tenant_quota(
        self, request: metadata_pb2.SetTenantQuotaRequest
    ) -> metadata_pb2.Usage:
        if not request.tenant:
            raise InvalidArgument("a tenant is needed")
        await self.tenants.set_quota(request.tenant, request.quota)
        return await self.tenants.usage(request.tenant)

    async def check_usage(
        self, request: metadata_pb2.CheckUsageRequest
    ) -> metadata_pb2.CheckUsageResponse:
        found = await self.partitions.read(
            request.bucket, lambda txn: check.count_bucket(txn, request.bucket)
        )
        return metadata_pb2.CheckUsageResponse(
            counters=usage.message_of(found.counters, None),
            counted=usage.message_of(found.counted, None),
            equal=found.is_sound,
        )

    # ---- objects ----

    async def commit_object(self, request: metadata_pb2.CommitObjectRequest) -> metadata_pb2.Object:
        now_s = self._clock.now_s()
        return await self._fenced(
            request.object.bucket,
            lambda txn, fence: objects.commit_object(txn, request, now_s, fence, self.terms),
        )

    async def get_object(self, request: metadata_pb2.GetObjectRequest) -> metadata_pb2.Object:
        return await self.partitions.read(
            request.bucket,
            lambda txn: objects.get_object(
                txn,
                request.bucket,
                request.key,
                version_id=request.version_id,
                head_only=request.head_only,
                show_marker=request.show_marker,
                part_checksums=request.part_checksums,
                terms=self.terms,
            ),
            brief=True,
        )

    async def put_tags(self, request: metadata_pb2.PutTagsRequest) -> metadata_pb2.Object:
        return await self.partitions.transact(
            request.bucket, lambda txn: objects.put_tags(txn, request, self.terms)
        )

    async def replace_wrapped_key(
        self, request: sealing_pb2.ReplaceWrappedKeyRequest
    ) -> sealing_pb2.ReplaceWrappedKeyResponse:
        replaced = await self.partitions.transact(
            request.bucket, lambda txn: sealing.replace_wrapped_key(txn, request, self.terms)
        )
        return sealing_pb2.ReplaceWrappedKeyResponse(replaced=replaced)

    async def put_lock(self, request: lock_pb2.PutLockRequest) -> lock_pb2.PutLockResponse:
        now_s = self._clock.now_s()
        await self.partitions.transact(
            request.bucket, lambda txn: lock.put_lock(txn, request, now_s, self.terms)
        )
        return lock_pb2.PutLockResponse()

    async def put_acl(self, request: acl_pb2.PutAclRequest) -> acl_pb2.PutAclResponse:
        await self.partitions.transact(
            request.bucket, lambda txn: acl.put_acl(txn, request, self.terms)
        )
        return acl_pb2.PutAclResponse()

    async def delete_objects(
        self, request: metadata_pb2.DeleteObjectsRequest
    ) -> metadata_pb2.DeleteObjectsResponse:
        """Each key is deleted on its own: a failure may leave some deleted, and a retry is safe."""
        items = [metadata_pb2.DeleteItem(key=key) for key in request.keys]
        items.extend(request.items)
        if len(items) > _DELETED_KEY_COUNT_MAX:
            raise InvalidArgument(f"at most {_DELETED_KEY_COUNT_MAX} keys in one call")
        gate = asyncio.Semaphore(_DELETE_CONCURRENCY)

        async def delete(first: int) -> metadata_pb2.DeleteObjectsResponse:
            batch = items[first : first + objects.DELETED_COUNT_MAX]
            # The same request has the same batches.
            batch_id = f"{request.request_id}.{first}" if request.request_id else ""
            async with gate:
                return await self._delete_batch(
                    request.bucket, batch, batch_id, bypass=request.bypass_governance
                )

        batches = range(0, max(1, len(items)), objects.DELETED_COUNT_MAX)
        response = metadata_pb2.DeleteObjectsResponse()
        for deleted in await asyncio.gather(*map(delete, batches)):
            response.MergeFrom(deleted)
        return response

    async def _delete_batch(
        self,
        bucket: str,
        items: list[metadata_pb2.DeleteItem],
        request_id: str,
        *,
        bypass: bool,
    ) -> metadata_pb2.DeleteObjectsResponse:
        now_s = self._clock.now_s()
        return await self.partitions.transact(
            bucket,
            lambda txn: objects.delete_objects(
                txn,
                bucket,
                items,
                now_s,
                request_id=request_id,
                bypass_governance=bypass,
                terms=self.terms,
            ),
        )

    async def list_objects(
        self, request: metadata_pb2.ListObjectsRequest
    ) -> metadata_pb2.ListObjectsResponse:
        return await self.partitions.read(
            request.bucket, lambda txn: listing.list_objects(txn, request)
        )

    async def list_versions(
        self, request: metadata_pb2.ListVersionsRequest
    ) -> metadata_pb2.ListVersionsResponse:
        return await self.partitions.read(
            request.bucket, lambda txn: listing.list_versions(txn, request)
        )

    async def list_extents(
        self, request: metadata_pb2.ListExtentsRequest
    ) -> AsyncIterator[metadata_pb2.ListExtentsResponse]:
        """The extents of all partitions; those of a bucket on the move may come twice."""
        del request
        for partition in self.partitions.all:
            begin: bytes | None = b""
            while begin is not None:
                found, begin = await _extents_from(partition, begin)
                if found:
                    yield metadata_pb2.ListExtentsResponse(extents=found)

    # ---- uploads ----

    async def create_upload(self, request: metadata_pb2.CreateUploadRequest) -> metadata_pb2.Upload:
        now_s = self._clock.now_s()
        return await self.partitions.transact(
            request.bucket, lambda txn: uploads.create_upload(txn, request, now_s, self.terms)
        )

    async def commit_part(self, request: metadata_pb2.CommitPartRequest) -> metadata_pb2.Part:
        now_s = self._clock.now_s()
        return await self._fenced(
            request.bucket,
            lambda txn, fence: uploads.commit_part(txn, request, now_s, fence),
        )

    async def complete_upload(
        self, request: metadata_pb2.CompleteUploadRequest
    ) -> metadata_pb2.Object:
        for attempt in range(_PLAN_ATTEMPT_COUNT):
            try:
                return await self._complete(request)
            except PlanOutdated:
                if attempt == _PLAN_ATTEMPT_COUNT - 1:
                    raise
        raise AssertionError("unreachable")

    async def _complete(self, request: metadata_pb2.CompleteUploadRequest) -> metadata_pb2.Object:
        now_s = self._clock.now_s()
        plan = await self.partitions.read(
            request.bucket,
            lambda txn: uploads.plan_completion(
                txn, request, min_part_bytes=self._min_part_bytes, terms=self.terms
            ),
        )
        if isinstance(plan, metadata_pb2.Object):
            return plan
        return await self.partitions.transact(
            request.bucket,
            lambda txn: uploads.complete_upload(txn, request, plan, now_s, self.terms),
        )

    async def abort_upload(
        self, request: metadata_pb2.AbortUploadRequest
    ) -> metadata_pb2.AbortUploadResponse:
        now_s = self._clock.now_s()
        await self.partitions.transact(
            request.bucket,
            lambda txn: uploads.abort_upload(
                txn, request.bucket, request.key, request.upload_id, now_s
            ),
        )
        return metadata_pb2.AbortUploadResponse()

    async def list_parts(
        self, request: metadata_pb2.ListPartsRequest
    ) -> metadata_pb2.ListPartsResponse:
        return await self.partitions.read(
            request.bucket, lambda txn: uploads.list_parts(txn, request)
        )

    async def list_uploads(
        self, request: metadata_pb2.ListUploadsRequest
    ) -> metadata_pb2.ListUploadsResponse:
        return await self.partitions.read(
            request.bucket, lambda txn: uploads.list_uploads(txn, request)
        )

    # ---- the fence ----

    async def _fenced(self, bucket: str, fn: Callable[[Transaction, Fence], T]) -> T:
        """Run `fn` with the fence of the current map, reloading the map while it is outdated."""
        for attempt in range(_MAP_ATTEMPT_COUNT):
            try:
                return await self.partitions.call(bucket, lambda p: self.commit_on(p, fn))
            except MapOutdated:
                if attempt:
                    await self._clock.sleep(_MAP_PAUSE_S * attempt)
                await self._maps.load()
        raise NotReady("the cluster map is about to change: try again soon")

    async def commit_on(self, partition: Partition, fn: Callable[[Transaction, Fence], T]) -> T:
        """Run `fn` with the fence of the map that is loaded. Raises MapOutdated."""
        epoch = self._maps.epoch
        if partition.name == FIRST:
            fence = self._maps.fence()
        else:
            fence = self._maps.fence(is_current=lambda txn: is_map_current(txn, epoch))
        return await partition.engine.transact(lambda txn: fn(txn, fence))


async def _extents_from(
    partition: Partition, begin: bytes
) -> tuple[list[common_pb2.Extent], bytes | None]:
    return await partition.engine.read(lambda txn: extents.list_extents(txn, begin=begin))


def _next_epoch(message: common_pb2.ClusterMap | None) -> common_pb2.ClusterMap | None:
    """The same map under the next epoch."""
    if message is None:
        return None
    changed = common_pb2.ClusterMap()
    changed.CopyFrom(message)
    changed.epoch += 1
    return changed


def _delete_bucket(txn: Transaction, name: str) -> None:
    """Delete a bucket that the first engine holds."""
    buckets.drop_place(txn, name, buckets.delete_bucket(txn, name))


def _is_place(txn: Transaction, place: metadata_pb2.Bucket) -> bool:
    known = buckets.find_place(txn, place.name)
    return known is not None and known.id == place.id
