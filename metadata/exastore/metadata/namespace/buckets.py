"""Buckets: create, configure, delete, list, and which partition holds them.

A bucket is two rows: its place, `p`, in the first engine, and its settings, `b`, in the engine of
its partition. When that is the first engine, both change in one transaction. Otherwise the place
comes first and goes last, and a place without settings is a creation or a deletion that was cut
short: `replace_place` takes the name over under a new id.
"""

from exastore.metadata.kv.contract import Transaction, counter_bytes, counter_value
from exastore.metadata.kv.keys import pack, prefix_range
from exastore.metadata.namespace import documents, lifecycle, lock, rows, usage
from exastore.metadata.namespace.errors import (
    BucketExists,
    BucketMoving,
    BucketNotEmpty,
    InvalidArgument,
    InvalidBucketState,
)
from exastore.metadata.namespace.naming import check_bucket_name
from exastore.metadata.namespace.space import open_to_read, open_to_write
from exastore.proto.v1 import metadata_pb2

Bucket = metadata_pb2.Bucket

#: Name of the first engine, which holds the map, the lease and the table of buckets.
FIRST = "main"
_OWNER_BYTES_MAX = 256


def create_bucket(
    txn: Transaction, request: metadata_pb2.CreateBucketRequest, now_s: float
) -> Bucket:
    """Create a bucket in the first engine. Raises InvalidArgument, BucketExists."""
    bucket = reserve(txn, request, now_s, FIRST)
    establish(txn, bucket)
    return bucket


def reserve(
    txn: Transaction, request: metadata_pb2.CreateBucketRequest, now_s: float, partition: str
) -> Bucket:
    """Take a name, in the first engine. Raises InvalidArgument, BucketExists."""
    check_bucket_name(request.name)
    known = find_place(txn, request.name)
    if known is not None:
        raise BucketExists(request.name, known.owner)
    return _put_place(txn, request, now_s, partition)


def replace_place(
    txn: Transaction,
    request: metadata_pb2.CreateBucketRequest,
    now_s: float,
    partition: str,
    old_id: int,
) -> Bucket:
    """Take over a name whose partition has no settings for it. Raises BucketExists."""
    known = find_place(txn, request.name)
    if known is not None and known.id != old_id:
        raise BucketExists(request.name, known.owner)
    return _put_place(txn, request, now_s, partition)


def establish(txn: Transaction, bucket: Bucket) -> None:
    """Write the settings of a new bucket, in its partition; again is harmless.

    Raises BucketExists for one with another id.
    """
    key = rows.bucket(bucket.name)
    known = txn.get(key)
    if known is not None and Bucket.FromString(known).id != bucket.id:
        raise BucketExists(bucket.name, bucket.owner)
    if known is None:
        txn.put(key, bucket.SerializeToString())
        txn.put(rows.base(bucket.id) + rows.NAME, bucket.name.encode())


def has_settings(txn: Transaction, name: str) -> bool:
    """Whether this engine has a bucket of that name, served or not."""
    return txn.get(rows.bucket(name)) is not None


def drop_settings(txn: Transaction, bucket: Bucket) -> None:
    """Take back what `establish` wrote."""
    known = txn.get(rows.bucket(bucket.name))
    if known is not None and Bucket.FromString(known).id == bucket.id:
        txn.delete(rows.bucket(bucket.name))
        txn.delete(rows.base(bucket.id) + rows.NAME)


def bucket_usage(txn: Transaction, name: str) -> metadata_pb2.Usage:
    """What a bucket uses, and its quota. Raises NoSuchBucket, BucketMoving."""
    space = open_to_read(txn, name)
    quota = space.bucket.quota if space.bucket.HasField("quota") else None
    return usage.message_of(space.used(), quota)


def find_place(txn: Transaction, name: str) -> Bucket | None:
    """What the first engine knows of a bucket."""
    value = txn.get(rows.place(name))
    return None if value is None else Bucket.FromString(value)


def drop_place(txn: Transaction, name: str, bucket_id: int) -> None:
    """Give a name back, in the first engine, if it still belongs to this bucket."""
    known = find_place(txn, name)
    if known is not None and known.id == bucket_id:
        txn.delete(rows.place(name))


def get_bucket(txn: Transaction, name: str) -> Bucket:
    """Raises NoSuchBucket, BucketMoving."""
    bucket = Bucket()
    bucket.CopyFrom(open_to_read(txn, name).bucket)
    return bucket


def configure_bucket(txn: Transaction, request: metadata_pb2.ConfigureBucketRequest) -> Bucket:
    """Change versioning, object lock, quota or lifecycle rules.

    A quota below what is used refuses what would use more.

    Raises NoSuchBucket, BucketMoving, InvalidArgument, InvalidBucketState.
    """
    space = open_to_write(txn, request.name)
    bucket = Bucket()
    bucket.CopyFrom(space.bucket)
    if request.versioning:
        if bucket.lock.enabled and request.versioning != metadata_pb2.VERSIONING_ENABLED:
            raise InvalidBucketState("versioning cannot be suspended: the bucket has object lock")
        bucket.versioning = request.versioning
    if request.HasField("lock"):
        lock.check_bucket_lock(bucket, request.lock)
        bucket.lock.CopyFrom(request.lock)
    if request.HasField("quota"):
        revision = bucket.quota.revision + 1
        bucket.quota.CopyFrom(request.quota)
        bucket.quota.revision = revision
    if request.HasField("lifecycle"):
        lifecycle.check_rules(request.lifecycle.rules)
        del bucket.lifecycle[:]
        bucket.lifecycle.extend(request.lifecycle.rules)
        space.put_row(rows.reindex(bucket.id), b"")
    txn.put(rows.bucket(bucket.name), bucket.SerializeToString())
    return bucket


def delete_bucket(txn: Transaction, name: str) -> int:
    """Delete the settings of an empty bucket: without versions, delete markers and uploads.

    Its trash stays until it is collected.

    Returns:
        Its id.

    Raises NoSuchBucket, BucketNotEmpty, BucketMoving.
    """
    space = open_to_write(txn, name)
    if space.bucket.state != metadata_pb2.BUCKET_STATE_ACTIVE:
        raise BucketMoving(name)
    for kind in (rows.CURRENT, rows.OTHER, rows.UPLOAD):
        if txn.scan(*prefix_range(space.base + kind), limit=1, keys_only=True):
            raise BucketNotEmpty(name)
    txn.delete(rows.bucket(name))
    space.delete(rows.NAME)
    documents.drop_documents(space)
    space.delete_row(rows.reindex(space.bucket.id))
    for slot in range(usage.SLOT_COUNT):
        space.delete(rows.usage(slot))
    return space.bucket.id


def list_buckets(txn: Transaction) -> list[Bucket]:
    """All buckets in the order of their names, as the first engine knows them."""
    return [Bucket.FromString(value) for _, value in txn.scan(*prefix_range(pack("p")))]


def _put_place(
    txn: Transaction,
    request: metadata_pb2.CreateBucketRequest,
    now_s: float,
    partition: str,
) -> Bucket:
    if len(request.owner.encode()) > _OWNER_BYTES_MAX:
        raise InvalidArgument(f"the owner of a bucket has at most {_OWNER_BYTES_MAX} bytes")
    bucket_id = counter_value(txn.get(rows.LAST_BUCKET_ID)) + 1
    txn.put(rows.LAST_BUCKET_ID, counter_bytes(bucket_id))
    bucket = Bucket(
        name=request.name,
        created_s=now_s,
        owner=request.owner,
        region=request.region,
        id=bucket_id,
        partition=partition,
        pool=request.pool,
    )
    if request.object_lock:
        bucket.versioning = metadata_pb2.VERSIONING_ENABLED
        bucket.lock.enabled = True
    txn.put(rows.place(request.name), bucket.SerializeToString())
    return bucket
