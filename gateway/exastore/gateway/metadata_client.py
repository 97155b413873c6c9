"""The metadata servers as one service: fail over, retry, map errors.

Every request may be sent again: commits carry an identity chosen here (version id, upload id), and
the rest either reads or sets. A request fails with MetadataUnavailable only after every server was
tried until the deadline; then it may or may not have been done.
"""

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias, TypeVar, cast

import grpc

from exastore.gateway.batched_channel import BatchedChannel
from exastore.gateway.config import GatewayConfig
from exastore.gateway.errors import MetadataUnavailable, RequestError
from exastore.gateway.metadata_errors import error_of, is_retried
from exastore.metadata.core.clock import Clock
from exastore.proto.channel import METADATA_MESSAGE_BYTES, channel_options
from exastore.proto.links import BulkDialer, ChunkTransport
from exastore.proto.v1 import (
    access_pb2_grpc,
    acl_pb2,
    acl_pb2_grpc,
    common_pb2,
    documents_pb2,
    documents_pb2_grpc,
    lock_pb2,
    lock_pb2_grpc,
    metadata_pb2,
    metadata_pb2_grpc,
    sealing_pb2,
    sealing_pb2_grpc,
)

Request = TypeVar("Request")
Response = TypeVar("Response")
Stub: TypeAlias = "metadata_pb2_grpc.MetadataServiceAsyncStub"
AccessStub: TypeAlias = "access_pb2_grpc.AccessServiceAsyncStub"
DocumentStub: TypeAlias = "documents_pb2_grpc.DocumentServiceAsyncStub"
AclStub: TypeAlias = "acl_pb2_grpc.AclServiceAsyncStub"
LockStub: TypeAlias = "lock_pb2_grpc.LockServiceAsyncStub"
SealingStub: TypeAlias = "sealing_pb2_grpc.SealingServiceAsyncStub"


class MetadataClient:
    """One long-lived channel per metadata server; requests go to the one that answered last."""

    def __init__(self, config: GatewayConfig, *, clock: Clock) -> None:
        if not config.metadata:
            raise ValueError("no metadata server is configured")
        self._config = config
        self._clock = clock
        self._channels = [
            grpc.aio.insecure_channel(address, options=channel_options(METADATA_MESSAGE_BYTES))
            for address in config.metadata
        ]
        transport = ChunkTransport(config.chunk_transport)
        self._batched = [
            BatchedChannel(BulkDialer(address, channel, transport))
            for address, channel in zip(config.metadata, self._channels, strict=True)
        ]
        self._stubs: list[Stub] = [
            metadata_pb2_grpc.MetadataServiceStub(cast(grpc.aio.Channel, channel))
            for channel in self._batched
        ]
        self._access_stubs: list[AccessStub] = [
            access_pb2_grpc.AccessServiceStub(channel) for channel in self._channels
        ]
        self._document_stubs: list[DocumentStub] = [
            documents_pb2_grpc.DocumentServiceStub(channel) for channel in self._channels
        ]
        self._lock_stubs: list[LockStub] = [
            lock_pb2_grpc.LockServiceStub(channel) for channel in self._channels
        ]
        self._acl_stubs: list[AclStub] = [
            acl_pb2_grpc.AclServiceStub(channel) for channel in self._channels
        ]
        self._sealing_stubs: list[SealingStub] = [
            sealing_pb2_grpc.SealingServiceStub(channel) for channel in self._channels
        ]
        #: Index of the server asked first.
        self._current = 0

    async def close(self) -> None:
        for batched in self._batched:
            await batched.close()
        for channel in self._channels:
            await channel.close()

    # ---- cluster ----

    async def get_map(self, known_epoch: int = 0) -> common_pb2.ClusterMap:
        """The map: all of it, or deltas from `known_epoch` on if that is above 0."""
        request = metadata_pb2.GetMapRequest(known_epoch=known_epoch, takes_deltas=known_epoch > 0)
        return await self._call(lambda stub: stub.GetMap, request)

    async def watch_map(self, known_epoch: int) -> AsyncIterator[common_pb2.ClusterMap]:
        """Maps, or deltas, as they change, from the current server; ends when that server goes."""
        index = self._current
        request = metadata_pb2.GetMapRequest(known_epoch=known_epoch, takes_deltas=True)
        call = self._stubs[index].WatchMap(request)
        try:
            async for message in call:
                yield message
        except grpc.aio.AioRpcError as error:
            self._move_on(index)
            raise error_of(error) from None
        finally:
            call.cancel()

    async def get_status(self) -> metadata_pb2.ClusterStatus:
        request = metadata_pb2.GetStatusRequest()
        return await self._call(lambda stub: stub.GetStatus, request)

    async def list_extents(self) -> AsyncIterator[Sequence[common_pb2.Extent]]:
        """Batches of all extents of all objects and parts."""
        call = self._stubs[self._current].ListExtents(metadata_pb2.ListExtentsRequest())
        try:
            async for message in call:
                yield message.extents
        except grpc.aio.AioRpcError as error:
            raise error_of(error) from None
        finally:
            call.cancel()

    # ---- buckets ----

    async def create_bucket(self, request: metadata_pb2.CreateBucketRequest) -> metadata_pb2.Bucket:
        return await self._call(lambda stub: stub.CreateBucket, request)

    async def get_bucket(self, name: str) -> metadata_pb2.Bucket:
        request = metadata_pb2.GetBucketRequest(name=name)
        return await self._call(lambda stub: stub.GetBucket, request)

    async def configure_bucket(
        self, request: metadata_pb2.ConfigureBucketRequest
    ) -> metadata_pb2.Bucket:
        return await self._call(lambda stub: stub.ConfigureBucket, request)

    async def delete_bucket(self, name: str) -> None:
        request = metadata_pb2.DeleteBucketRequest(name=name)
        await self._call_or_done(lambda stub: stub.DeleteBucket, request, "NoSuchBucket")

    async def list_buckets(self) -> Sequence[metadata_pb2.Bucket]:
        request = metadata_pb2.ListBucketsRequest()
        return (await self._call(lambda stub: stub.ListBuckets, request)).buckets

    async def get_documents(self, bucket: str) -> Mapping[str, bytes]:
        request = documents_pb2.GetDocumentsRequest(bucket=bucket)
        stubs = self._document_stubs
        found = await self._call_at(lambda index: stubs[index].GetDocuments, request)
        return dict(found.documents)

    async def put_document(self, bucket: str, name: str, content: bytes) -> None:
        request = documents_pb2.PutDocumentRequest(bucket=bucket, name=name, content=content)
        await self._call_at(lambda index: self._document_stubs[index].PutDocument, request)

    async def delete_document(self, bucket: str, name: str) -> None:
        request = documents_pb2.DeleteDocumentRequest(bucket=bucket, name=name)
        await self._call_at(lambda index: self._document_stubs[index].DeleteDocument, request)

    # ---- objects ----

    async def commit_object(self, request: metadata_pb2.CommitObjectRequest) -> metadata_pb2.Object:
        return await self._call(lambda stub: stub.CommitObject, request)

    async def get_object(self, request: metadata_pb2.GetObjectRequest) -> metadata_pb2.Object:
        return await self._call(lambda stub: stub.GetObject, request)

    async def delete_objects(
        self, request: metadata_pb2.DeleteObjectsRequest
    ) -> Sequence[metadata_pb2.DeletedItem]:
        return (await self._call(lambda stub: stub.DeleteObjects, request)).deleted

    async def put_tags(self, request: metadata_pb2.PutTagsRequest) -> metadata_pb2.Object:
        return await self._call(lambda stub: stub.PutTags, request)

    async def put_lock(self, request: lock_pb2.PutLockRequest) -> None:
        await self._call_at(lambda index: self._lock_stubs[index].PutLock, request)

    async def put_acl(self, request: acl_pb2.PutAclRequest) -> None:
        await self._call_at(lambda index: self._acl_stubs[index].PutAcl, request)

    async def replace_wrapped_key(self, request: sealing_pb2.ReplaceWrappedKeyRequest) -> bool:
        stubs = self._sealing_stubs
        answer = await self._call_at(lambda index: stubs[index].ReplaceWrappedKey, request)
        return answer.replaced

    async def list_versions(
        self, request: metadata_pb2.ListVersionsRequest
    ) -> metadata_pb2.ListVersionsResponse:
        return await self._call(lambda stub: stub.ListVersions, request)

    async def list_objects(
        self, request: metadata_pb2.ListObjectsRequest
    ) -> metadata_pb2.ListObjectsResponse:
        return await self._call(lambda stub: stub.ListObjects, request)

    # ---- multipart uploads ----

    async def create_upload(self, request: metadata_pb2.CreateUploadRequest) -> metadata_pb2.Upload:
        return await self._call(lambda stub: stub.CreateUpload, request)

    async def commit_part(self, request: metadata_pb2.CommitPartRequest) -> metadata_pb2.Part:
        return await self._call(lambda stub: stub.CommitPart, request)

    async def complete_upload(
        self, request: metadata_pb2.CompleteUploadRequest
    ) -> metadata_pb2.Object:
        return await self._call(lambda stub: stub.CompleteUpload, request)

    async def abort_upload(self, request: metadata_pb2.AbortUploadRequest) -> None:
        await self._call_or_done(lambda stub: stub.AbortUpload, request, "NoSuchUpload")

    async def list_parts(
        self, request: metadata_pb2.ListPartsRequest
    ) -> metadata_pb2.ListPartsResponse:
        return await self._call(lambda stub: stub.ListParts, request)

    async def list_uploads(
        self, request: metadata_pb2.ListUploadsRequest
    ) -> metadata_pb2.ListUploadsResponse:
        return await self._call(lambda stub: stub.ListUploads, request)

    # ---- users ----

    async def call_access(
        self,
        method: Callable[[AccessStub], grpc.aio.UnaryUnaryMultiCallable[Request, Response]],
        request: Request,
    ) -> Response:
        """A call of AccessService; all of them may be sent again."""
        return await self._call_at(lambda index: method(self._access_stubs[index]), request)

    # ---- fail over ----

    async def _call_or_done(
        self,
        method: Callable[[Stub], grpc.aio.UnaryUnaryMultiCallable[Request, Response]],
        request: Request,
        done_code: str,
    ) -> None:
        """A call for its effect: a repeated request may find that its first try was done."""
        tries = _Tries()
        try:
            await self._call(method, request, tries)
        except RequestError as error:
            if tries.count < 2 or error.code != done_code:
                raise

    async def _call(
        self,
        method: Callable[[Stub], grpc.aio.UnaryUnaryMultiCallable[Request, Response]],
        request: Request,
        tries: "_Tries | None" = None,
    ) -> Response:
        return await self._call_at(lambda index: method(self._stubs[index]), request, tries)

    async def _call_at(
        self,
        method_at: Callable[[int], grpc.aio.UnaryUnaryMultiCallable[Request, Response]],
        request: Request,
        tries: "_Tries | None" = None,
    ) -> Response:
        """A call of the server that answers; `method_at` gives the method of one by its index."""
        config = self._config
        tries = tries or _Tries()
        deadline_s = self._clock.monotonic_s() + config.metadata_deadline_s
        backoff_s = config.backoff_min_s
        while True:
            index = self._current
            left_s = deadline_s - self._clock.monotonic_s()
            timeout_s = max(0.01, min(config.metadata_call_timeout_s, left_s))
            tries.count += 1
            try:
                return await method_at(index)(request, timeout=timeout_s)
            except grpc.aio.AioRpcError as failure:
                error = error_of(failure)
                if not is_retried(failure):
                    raise error from None
            self._move_on(index)
            if tries.count % len(self._stubs) == 0:
                if self._clock.monotonic_s() + backoff_s >= deadline_s:
                    servers = ", ".join(config.metadata)
                    raise MetadataUnavailable(f"no metadata server answers ({servers}): {error}")
                await self._clock.sleep(backoff_s)
                backoff_s = min(2 * backoff_s, config.backoff_max_s)

    def _move_on(self, index: int) -> None:
        """Ask another server first, unless another request has seen to that."""
        if index == self._current:
            self._current = (index + 1) % len(self._stubs)


@dataclass(slots=True)
class _Tries:
    """How often a request was sent."""

    count: int = 0
