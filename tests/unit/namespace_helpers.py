"""Objects, extents and transactions for the tests of the namespace."""

from collections.abc import Iterable, Sequence

from exastore.metadata.kv.contract import Engine, Transaction
from exastore.metadata.namespace import buckets, objects, uploads
from exastore.proto.v1 import common_pb2, metadata_pb2

BUCKET = "bucket"
pb = metadata_pb2


def no_fence(txn: Transaction, extents: Iterable[common_pb2.Extent], pool: str) -> None:
    """Every extent is fresh."""
    del txn, extents


def stripe(name: str) -> bytes:
    return name.encode().ljust(16, b"\x00")


def extent(
    name: str, *, pg: int = 0, data_bytes: int = 100, epoch: int = 1, missing: Sequence[int] = ()
) -> common_pb2.Extent:
    return common_pb2.Extent(
        pg=pg,
        stripe_id=stripe(name),
        code="rs-2-1",
        epoch=epoch,
        data_bytes=data_bytes,
        chunk_bytes=64,
        chunk_crc32c=[1, 2, 3],
        missing_indexes=missing,
    )


def an_object(
    key: str,
    version_id: str = "",
    extents: Sequence[common_pb2.Extent] = (),
    inline: bytes = b"",
    etag: str = "",
) -> metadata_pb2.Object:
    return pb.Object(
        bucket=BUCKET,
        key=key,
        version_id=version_id or f"v-{key}",
        size_bytes=len(inline) + sum(item.data_bytes for item in extents),
        etag=etag or f"etag-{version_id or key}",
        inline_data=inline,
        extents=extents,
    )


async def new_bucket(engine: Engine) -> None:
    request = pb.CreateBucketRequest(name=BUCKET, owner="me", region="here")
    await engine.transact(lambda txn: buckets.create_bucket(txn, request, 1.0))


async def commit(
    engine: Engine,
    item: metadata_pb2.Object,
    *,
    must_not_exist: bool = False,
    if_match: str = "",
    fence: objects.Fence = no_fence,
    now_s: float = 10.0,
) -> metadata_pb2.Object:
    request = pb.CommitObjectRequest(
        object=item,
        condition=pb.WriteCondition(must_not_exist=must_not_exist, if_match=if_match),
    )
    return await engine.transact(lambda txn: objects.commit_object(txn, request, now_s, fence))


async def get(engine: Engine, key: str, *, head_only: bool = False) -> metadata_pb2.Object:
    return await engine.read(lambda txn: objects.get_object(txn, BUCKET, key, head_only=head_only))


async def delete(engine: Engine, *keys: str, now_s: float = 20.0) -> list[bool]:
    items = [pb.DeleteItem(key=key) for key in keys]
    return list((await delete_items(engine, *items, now_s=now_s)).existed)


async def delete_items(
    engine: Engine, *items: metadata_pb2.DeleteItem, now_s: float = 20.0, request_id: str = ""
) -> metadata_pb2.DeleteObjectsResponse:
    return await engine.transact(
        lambda txn: objects.delete_objects(txn, BUCKET, items, now_s, request_id=request_id)
    )


async def create_upload(engine: Engine, key: str, upload_id: str) -> metadata_pb2.Upload:
    request = pb.CreateUploadRequest(
        bucket=BUCKET,
        key=key,
        upload_id=upload_id,
        attributes=pb.Object(content_type="text/plain"),
    )
    return await engine.transact(lambda txn: uploads.create_upload(txn, request, 5.0))


async def commit_part(
    engine: Engine, key: str, upload_id: str, part: metadata_pb2.Part, now_s: float = 6.0
) -> metadata_pb2.Part:
    request = pb.CommitPartRequest(bucket=BUCKET, key=key, upload_id=upload_id, part=part)
    return await engine.transact(lambda txn: uploads.commit_part(txn, request, now_s, no_fence))


async def complete(
    engine: Engine,
    key: str,
    upload_id: str,
    parts: Sequence[tuple[int, str]],
    *,
    min_part_bytes: int = 1,
    condition: metadata_pb2.WriteCondition | None = None,
) -> metadata_pb2.Object:
    request = pb.CompleteUploadRequest(
        bucket=BUCKET,
        key=key,
        upload_id=upload_id,
        parts=[pb.CompletedPart(number=number, etag=etag) for number, etag in parts],
        condition=condition,
    )
    plan = await engine.read(
        lambda txn: uploads.plan_completion(txn, request, min_part_bytes=min_part_bytes)
    )
    if isinstance(plan, metadata_pb2.Object):
        return plan
    return await engine.transact(lambda txn: uploads.complete_upload(txn, request, plan, 30.0))
