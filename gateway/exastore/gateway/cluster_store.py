"""`ObjectStore` over a cluster: metadata servers for names, storage nodes for bytes.

Laws:
1. An object or part is acknowledged after its bytes are durable and its metadata is committed.
2. A write that is known not to be committed leaves no chunks for long; one whose commit is not
   known keeps them, because the object may be there.
"""

import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

from prometheus_client import CollectorRegistry

from exastore.erasure import UnknownCode, codec
from exastore.gateway.bucket_documents import DocumentCache
from exastore.gateway.bucket_pools import BucketPools
from exastore.gateway.cluster_view import ClusterView
from exastore.gateway.committer import Committer
from exastore.gateway.config import GatewayConfig
from exastore.gateway.encryption.streams import SealedBody
from exastore.gateway.errors import MarkerFound, RequestError
from exastore.gateway.ids import time_ordered_ids
from exastore.gateway.map_cache import MapCache
from exastore.gateway.messages import (
    acl_message,
    attributes_message,
    bucket_of,
    change_message,
    condition_message,
    deleted_of,
    deletion_message,
    info_of,
    lock_message,
    object_message,
    part_message,
    part_of,
    upload_of,
    uploads_of,
    versions_of,
)
from exastore.gateway.metadata_client import MetadataClient
from exastore.gateway.metrics import GatewayMetrics
from exastore.gateway.node_client import NodePool
from exastore.gateway.read_repair import ReadRepair
from exastore.gateway.reader import ClusterObjectReader
from exastore.gateway.store import (
    NO_CHECKSUMS,
    NO_UPLOAD_CHECKSUM,
    AccessList,
    Body,
    BucketChange,
    BucketInfo,
    Deleted,
    Deletion,
    Listing,
    ObjectAttributes,
    ObjectInfo,
    ObjectLock,
    ObjectPart,
    ObjectReader,
    Precondition,
    UploadChecksum,
    UploadInfo,
    UploadListing,
    VersionListing,
)
from exastore.gateway.stripe_reader import StripeReader
from exastore.gateway.stripe_writer import StripeWriter
from exastore.gateway.writer import BodyWriter, StoredBody
from exastore.metadata.core.clock import Clock
from exastore.metadata.core.phases import Phase, reach
from exastore.proto.v1 import acl_pb2, lock_pb2, metadata_pb2

logger = logging.getLogger(__name__)


def warm_up(code_name: str) -> None:
    """Compile the kernels of a code, so that no request has to wait for the compiler."""
    try:
        code = codec(code_name)
    except UnknownCode as error:
        logger.error("the cluster map names a code that this gateway does not know: %s", error)
        return
    code.warm_up()


async def open_cluster_store(
    config: GatewayConfig,
    *,
    clock: Clock,
    registry: CollectorRegistry,
    new_id: Callable[[], bytes] | None = None,
) -> "ClusterStore":
    """Connect to a cluster, without waiting for it: until it serves, requests fail."""
    store = ClusterStore(
        config,
        clock=clock,
        metrics=GatewayMetrics(registry),
        new_id=new_id or time_ordered_ids(clock),
    )
    await store.maps.start()
    return store


class ClusterStore:
    """Close it when done; made by `open_cluster_store`."""

    def __init__(
        self,
        config: GatewayConfig,
        *,
        clock: Clock,
        metrics: GatewayMetrics,
        new_id: Callable[[], bytes],
    ) -> None:
        self._config = config
        self._clock = clock
        self._metrics = metrics
        self._new_id = new_id
        #: The code whose kernels are compiled, or being compiled.
        self._warm_code = ""
        self._hashers = ThreadPoolExecutor(max_workers=16, thread_name_prefix="md5")
        self.metadata = MetadataClient(config, clock=clock)
        self._documents = DocumentCache(
            self.metadata.get_documents,
            ttl_s=config.bucket_ttl_s,
            monotonic_s=clock.monotonic_s,
        )
        self.nodes = NodePool(config, clock=clock, metrics=metrics)
        self.maps = MapCache(self.metadata, config, clock=clock, on_change=self._take_view)
        self._pools = BucketPools(self.metadata, self.maps, config.region)
        self._stripe_writer = StripeWriter(
            config,
            maps=self.maps,
            nodes=self.nodes,
            clock=clock,
            metrics=metrics,
            new_id=new_id,
        )
        self._read_repair = ReadRepair(config.metadata, clock)
        self._stripe_reader = StripeReader(
            config,
            maps=self.maps,
            nodes=self.nodes,
            clock=clock,
            metrics=metrics,
            suspect=self._read_repair.suspect,
        )
        self._writer = BodyWriter(
            config, stripes=self._stripe_writer, hashers=self._hashers, metrics=metrics
        )
        self._committer = Committer(
            config,
            maps=self.maps,
            pools=self._pools,
            writer=self._stripe_writer,
            reader=self._stripe_reader,
            clock=clock,
        )

    async def close(self) -> None:
        """Let go of all connections; requests under way fail."""
        await self.maps.close()
        await self._read_repair.close()
        await self._stripe_writer.close()
        await self.nodes.close()
        await self.metadata.close()
        self._hashers.shutdown(wait=False)

    # ---- buckets ----

    async def create_bucket(
        self, name: str, *, owner: str, location: str = "", object_lock: bool = False
    ) -> BucketInfo:
        """Create a bucket in the pool that the location names, if the cluster has pools."""
        pool = await self._pools.at_location(location)
        request = metadata_pb2.CreateBucketRequest(
            name=name,
            owner=owner,
            region=location or self._config.region,
            pool=pool,
            object_lock=object_lock,
        )
        try:
            return bucket_of(await self.metadata.create_bucket(request))
        except RequestError as error:
            if error.code != "BucketAlreadyOwnedByYou":
                raise
        if (await self.metadata.get_bucket(name)).owner != owner:
            raise RequestError("BucketAlreadyExists", f"The bucket {name} belongs to another.")
        raise RequestError("BucketAlreadyOwnedByYou", f"You own the bucket {name} already.")

    async def get_bucket(self, name: str) -> BucketInfo:
        return bucket_of(await self.metadata.get_bucket(name))

    async def configure_bucket(self, name: str, change: BucketChange) -> BucketInfo:
        return bucket_of(await self.metadata.configure_bucket(change_message(name, change)))

    async def delete_bucket(self, name: str) -> None:
        await self.metadata.delete_bucket(name)
        self._documents.forget(name)

    async def list_buckets(self) -> Sequence[BucketInfo]:
        return [bucket_of(bucket) for bucket in await self.metadata.list_buckets()]

    async def get_bucket_document(self, bucket: str, name: str) -> bytes | None:
        return (await self._documents.get(bucket)).get(name)

    async def get_bucket_documents(self, bucket: str) -> Mapping[str, bytes]:
        return await self.metadata.get_documents(bucket)

    async def put_bucket_document(self, bucket: str, name: str, content: bytes) -> None:
        try:
            await self.metadata.put_document(bucket, name, content)
        finally:  # It may have been done although it failed.
            self._documents.forget(bucket)

    async def delete_bucket_document(self, bucket: str, name: str) -> None:
        try:
            await self.metadata.delete_document(bucket, name)
        finally:
            self._documents.forget(bucket)

    # ---- objects ----

    async def put_object(
        self,
        bucket: str,
        key: str,
        body: Body,
        attributes: ObjectAttributes,
        precondition: Precondition,
    ) -> ObjectInfo:
        stored = await self._writer.store(
            body,
            inline_bytes=self._config.inline_bytes,
            packed_bytes=self._config.packed_bytes,
            pool=await self._pools.of_bucket(bucket),
            admit=lambda: self.metadata.get_bucket(bucket),
        )
        version_id = self._new_id().hex()

        def commit(current: StoredBody) -> Awaitable[metadata_pb2.Object]:
            request = metadata_pb2.CommitObjectRequest(
                object=object_message(bucket, key, version_id, attributes, current),
                condition=condition_message(precondition),
            )
            return self.metadata.commit_object(request)

        return info_of(await self._committer.commit(bucket, stored, commit))

    async def open_object(
        self, bucket: str, key: str, version_id: str = "", *, part_checksums: bool = False
    ) -> ObjectReader:
        message = await self._get_object(
            metadata_pb2.GetObjectRequest(
                bucket=bucket, key=key, version_id=version_id, part_checksums=part_checksums
            )
        )
        return ClusterObjectReader(
            message, self._config, stripes=self._stripe_reader, metrics=self._metrics
        )

    async def head_object(
        self, bucket: str, key: str, version_id: str = "", *, part_checksums: bool = False
    ) -> ObjectInfo:
        return info_of(
            await self._get_object(
                metadata_pb2.GetObjectRequest(
                    bucket=bucket,
                    key=key,
                    version_id=version_id,
                    head_only=True,
                    part_checksums=part_checksums,
                )
            )
        )

    async def _get_object(self, request: metadata_pb2.GetObjectRequest) -> metadata_pb2.Object:
        request.show_marker = True
        found = await self.metadata.get_object(request)
        if found.delete_marker:
            marker = info_of(found)
            raise MarkerFound(
                marker.version_id, marker.modified_s, is_named=bool(request.version_id)
            )
        return found

    async def delete_objects(
        self, bucket: str, deletions: Sequence[Deletion], *, bypass_governance: bool = False
    ) -> Sequence[Deleted]:
        request = metadata_pb2.DeleteObjectsRequest(
            bucket=bucket,
            items=[deletion_message(deletion) for deletion in deletions],
            request_id=self._new_id().hex(),
            bypass_governance=bypass_governance,
        )
        reach(Phase.DELETE_SENDING)
        deleted = await self.metadata.delete_objects(request)
        reach(Phase.DELETED)
        return [deleted_of(item) for item in deleted]

    async def put_tags(
        self, bucket: str, key: str, version_id: str, tags: Mapping[str, str]
    ) -> ObjectInfo:
        request = metadata_pb2.PutTagsRequest(
            bucket=bucket, key=key, version_id=version_id, tags=tags
        )
        return info_of(await self.metadata.put_tags(request))

    async def put_lock(
        self,
        bucket: str,
        key: str,
        version_id: str,
        *,
        retention: ObjectLock | None = None,
        legal_hold: bool | None = None,
        bypass_governance: bool = False,
    ) -> None:
        request = lock_pb2.PutLockRequest(
            bucket=bucket,
            key=key,
            version_id=version_id,
            retention=None if retention is None else lock_message(retention),
            legal_hold=legal_hold,
            bypass_governance=bypass_governance,
        )
        await self.metadata.put_lock(request)

    async def put_acl(self, bucket: str, key: str, version_id: str, acl: AccessList | None) -> None:
        request = acl_pb2.PutAclRequest(
            bucket=bucket,
            key=key,
            version_id=version_id,
            acl=None if acl is None else acl_message(acl),
        )
        await self.metadata.put_acl(request)

    async def copy_object(
        self,
        source: tuple[str, str],
        target: tuple[str, str],
        attributes: ObjectAttributes | None,
        precondition: Precondition,
        *,
        source_version_id: str = "",
    ) -> ObjectInfo:
        reader = await self.open_object(*source, source_version_id)
        info = reader.info
        # A multipart object's checksums speak of its parts, which the copy does not have.
        body = _CopiedBody(reader, {} if info.parts else info.checksums)
        return await self.put_object(*target, body, attributes or info.attributes, precondition)

    async def list_objects(
        self, bucket: str, *, prefix: str, delimiter: str, start_after: str, max_keys: int
    ) -> Listing:
        request = metadata_pb2.ListObjectsRequest(
            bucket=bucket,
            prefix=prefix,
            delimiter=delimiter,
            start_after=start_after,
            max_keys=max_keys,
        )
        page = await self.metadata.list_objects(request)
        return Listing(
            objects=[info_of(message) for message in page.objects],
            common_prefixes=list(page.common_prefixes),
            truncated=page.truncated,
            next_start_after=page.next_start_after,
        )

    async def list_versions(
        self,
        bucket: str,
        *,
        prefix: str,
        delimiter: str,
        key_marker: str,
        version_id_marker: str,
        max_keys: int,
    ) -> VersionListing:
        request = metadata_pb2.ListVersionsRequest(
            bucket=bucket,
            prefix=prefix,
            delimiter=delimiter,
            key_marker=key_marker,
            version_id_marker=version_id_marker,
            max_keys=max_keys,
        )
        return versions_of(await self.metadata.list_versions(request))

    # ---- multipart uploads ----

    async def create_upload(
        self,
        bucket: str,
        key: str,
        attributes: ObjectAttributes,
        checksum: UploadChecksum = NO_UPLOAD_CHECKSUM,
    ) -> UploadInfo:
        request = metadata_pb2.CreateUploadRequest(
            bucket=bucket,
            key=key,
            upload_id=self._new_id().hex(),
            attributes=attributes_message(attributes),
            checksum_algorithm=checksum.algorithm,
            checksum_type=checksum.type,
        )
        return upload_of(await self.metadata.create_upload(request))

    async def put_part(
        self, bucket: str, key: str, upload_id: str, number: int, body: Body
    ) -> ObjectPart:
        # Refuse before the bytes are sent, not after.
        await self.list_parts(bucket, key, upload_id, after_number=0, max_parts=1)
        pool = await self._pools.of_bucket(bucket)
        stored = await self._writer.store(body, inline_bytes=0, pool=pool)

        is_sealed = isinstance(body, SealedBody)

        def commit(current: StoredBody) -> Awaitable[metadata_pb2.Part]:
            request = metadata_pb2.CommitPartRequest(
                bucket=bucket,
                key=key,
                upload_id=upload_id,
                part=part_message(number, current, is_sealed=is_sealed),
            )
            return self.metadata.commit_part(request)

        return part_of(await self._committer.commit(bucket, stored, commit))

    async def complete_upload(
        self,
        bucket: str,
        key: str,
        upload_id: str,
        parts: Sequence[tuple[int, str]],
        precondition: Precondition,
        checksums: Mapping[str, str] = NO_CHECKSUMS,
    ) -> ObjectInfo:
        request = metadata_pb2.CompleteUploadRequest(
            bucket=bucket,
            key=key,
            upload_id=upload_id,
            parts=[metadata_pb2.CompletedPart(number=number, etag=etag) for number, etag in parts],
            checksums=checksums,
            condition=condition_message(precondition),
        )
        reach(Phase.COMPLETE_SENDING)
        completed = await self.metadata.complete_upload(request)
        reach(Phase.COMPLETED)
        return info_of(completed)

    async def abort_upload(self, bucket: str, key: str, upload_id: str) -> None:
        request = metadata_pb2.AbortUploadRequest(bucket=bucket, key=key, upload_id=upload_id)
        await self.metadata.abort_upload(request)

    async def list_parts(
        self, bucket: str, key: str, upload_id: str, *, after_number: int, max_parts: int
    ) -> tuple[UploadInfo, Sequence[ObjectPart], bool]:
        request = metadata_pb2.ListPartsRequest(
            bucket=bucket,
            key=key,
            upload_id=upload_id,
            after_number=after_number,
            max_parts=max_parts,
        )
        page = await self.metadata.list_parts(request)
        return upload_of(page.upload), [part_of(part) for part in page.parts], page.truncated

    async def list_uploads(
        self,
        bucket: str,
        *,
        prefix: str,
        delimiter: str,
        key_marker: str,
        upload_id_marker: str,
        max_uploads: int,
    ) -> UploadListing:
        request = metadata_pb2.ListUploadsRequest(
            bucket=bucket,
            prefix=prefix,
            delimiter=delimiter,
            key_marker=key_marker,
            upload_id_marker=upload_id_marker,
            max_uploads=max_uploads,
        )
        return uploads_of(await self.metadata.list_uploads(request))

    def _take_view(self, view: ClusterView) -> None:
        self._metrics.map_epoch.set(view.epoch)
        self.nodes.retain(view)
        if view.code != self._warm_code:
            self._warm_code = view.code
            self._hashers.submit(warm_up, view.code)


class _CopiedBody:
    """An object's bytes as the body of another."""

    def __init__(self, reader: ObjectReader, checksums: Mapping[str, str]) -> None:
        self._reader = reader
        self._checksums = checksums

    def __aiter__(self) -> AsyncIterator[bytes | bytearray | memoryview]:
        return self._reader.read()

    def finish(self) -> Mapping[str, str]:
        return self._checksums
