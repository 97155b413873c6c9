"""The namespace half of the service: requests in, transactions, answers out."""

from collections.abc import AsyncIterator, Callable
from typing import TypeVar

from exastore.metadata.core.clock import Clock
from exastore.metadata.kv.contract import Engine, Transaction
from exastore.metadata.namespace import buckets, extents, listing, objects, uploads
from exastore.metadata.namespace.errors import InvalidArgument, PlanOutdated
from exastore.metadata.namespace.objects import Fence
from exastore.metadata.service.config import MetadataConfig
from exastore.metadata.service.errors import MapOutdated
from exastore.metadata.service.map_store import MapStore
from exastore.proto.v1 import common_pb2, metadata_pb2

T = TypeVar("T")

_DELETED_KEY_COUNT_MAX = 1000
#: Keys deleted per transaction: each takes a read and three mutations of the 100 allowed.
_DELETE_BATCH_COUNT = 25
#: A completion races with parts still arriving; nobody needs more rounds than this.
_PLAN_ATTEMPT_COUNT = 10


class NamespaceService:
    """Buckets, objects and uploads of MetadataService. Errors are those of the namespace, the
    engine and the service."""

    def __init__(
        self, config: MetadataConfig, engine: Engine, maps: MapStore, clock: Clock
    ) -> None:
        self._min_part_bytes = config.min_part_bytes
        self._engine = engine
        self._maps = maps
        self._clock = clock

    # ---- buckets ----

    async def create_bucket(self, request: metadata_pb2.CreateBucketRequest) -> metadata_pb2.Bucket:
        now_s = self._clock.now_s()
        return await self._engine.transact(lambda txn: buckets.create_bucket(txn, request, now_s))

    async def get_bucket(self, request: metadata_pb2.GetBucketRequest) -> metadata_pb2.Bucket:
        return await self._engine.read(lambda txn: buckets.get_bucket(txn, request.name))

    async def delete_bucket(
        self, request: metadata_pb2.DeleteBucketRequest
    ) -> metadata_pb2.DeleteBucketResponse:
        now_s = self._clock.now_s()
        await self._engine.transact(lambda txn: buckets.delete_bucket(txn, request.name, now_s))
        return metadata_pb2.DeleteBucketResponse()

    async def list_buckets(
        self, request: metadata_pb2.ListBucketsRequest
    ) -> metadata_pb2.ListBucketsResponse:
        del request
        found = await self._engine.read(buckets.list_buckets)
        return metadata_pb2.ListBucketsResponse(buckets=found)

    # ---- objects ----

    async def commit_object(self, request: metadata_pb2.CommitObjectRequest) -> metadata_pb2.Object:
        now_s = self._clock.now_s()
        return await self._fenced(
            lambda txn, fence: objects.commit_object(txn, request, now_s, fence)
        )

    async def get_object(self, request: metadata_pb2.GetObjectRequest) -> metadata_pb2.Object:
        return await self._engine.read(
            lambda txn: objects.get_object(
                txn, request.bucket, request.key, head_only=request.head_only
            )
        )

    async def delete_objects(
        self, request: metadata_pb2.DeleteObjectsRequest
    ) -> metadata_pb2.DeleteObjectsResponse:
        """Each key is deleted on its own: a failure may leave some deleted, and a retry is safe."""
        if len(request.keys) > _DELETED_KEY_COUNT_MAX:
            raise InvalidArgument(f"at most {_DELETED_KEY_COUNT_MAX} keys in one call")
        response = metadata_pb2.DeleteObjectsResponse()
        for first in range(0, max(1, len(request.keys)), _DELETE_BATCH_COUNT):
            keys = request.keys[first : first + _DELETE_BATCH_COUNT]
            response.existed.extend(await self._delete_batch(request.bucket, keys))
        return response

    async def _delete_batch(self, bucket: str, keys: list[str]) -> list[bool]:
        now_s = self._clock.now_s()
        return await self._engine.transact(
            lambda txn: objects.delete_objects(txn, bucket, keys, now_s)
        )

    async def list_objects(
        self, request: metadata_pb2.ListObjectsRequest
    ) -> metadata_pb2.ListObjectsResponse:
        return await self._engine.read(lambda txn: listing.list_objects(txn, request))

    async def list_extents(
        self, request: metadata_pb2.ListExtentsRequest
    ) -> AsyncIterator[metadata_pb2.ListExtentsResponse]:
        del request
        begin: bytes | None = b""
        while begin is not None:
            found, begin = await self._extents_from(begin)
            if found:
                yield metadata_pb2.ListExtentsResponse(extents=found)

    async def _extents_from(self, begin: bytes) -> tuple[list[common_pb2.Extent], bytes | None]:
        return await self._engine.read(lambda txn: extents.list_extents(txn, begin=begin))

    # ---- uploads ----

    async def create_upload(self, request: metadata_pb2.CreateUploadRequest) -> metadata_pb2.Upload:
        now_s = self._clock.now_s()
        return await self._engine.transact(lambda txn: uploads.create_upload(txn, request, now_s))

    async def commit_part(self, request: metadata_pb2.CommitPartRequest) -> metadata_pb2.Part:
        now_s = self._clock.now_s()
        return await self._fenced(
            lambda txn, fence: uploads.commit_part(txn, request, now_s, fence)
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
        plan = await self._engine.read(
            lambda txn: uploads.plan_completion(txn, request, min_part_bytes=self._min_part_bytes)
        )
        if isinstance(plan, metadata_pb2.Object):
            return plan
        return await self._engine.transact(
            lambda txn: uploads.complete_upload(txn, request, plan, now_s)
        )

    async def abort_upload(
        self, request: metadata_pb2.AbortUploadRequest
    ) -> metadata_pb2.AbortUploadResponse:
        now_s = self._clock.now_s()
        await self._engine.transact(
            lambda txn: uploads.abort_upload(
                txn, request.bucket, request.key, request.upload_id, now_s
            )
        )
        return metadata_pb2.AbortUploadResponse()

    async def list_parts(
        self, request: metadata_pb2.ListPartsRequest
    ) -> metadata_pb2.ListPartsResponse:
        return await self._engine.read(lambda txn: uploads.list_parts(txn, request))

    async def list_uploads(
        self, request: metadata_pb2.ListUploadsRequest
    ) -> metadata_pb2.ListUploadsResponse:
        found = await self._engine.read(
            lambda txn: uploads.list_uploads(txn, request.bucket, request.prefix)
        )
        return metadata_pb2.ListUploadsResponse(uploads=found)

    async def _fenced(self, fn: Callable[[Transaction, Fence], T]) -> T:
        """Run `fn` with the fence of the current map, reloading the map while it is outdated."""
        while True:
            fence = self._maps.fence()
            try:
                return await self._commit(fn, fence)
            except MapOutdated:
                await self._maps.load()

    async def _commit(self, fn: Callable[[Transaction, Fence], T], fence: Fence) -> T:
        return await self._engine.transact(lambda txn: fn(txn, fence))
