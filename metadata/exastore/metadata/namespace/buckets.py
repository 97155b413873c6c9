"""Buckets: create, get, delete, list."""

import re

from exastore.metadata.kv.contract import Transaction
from exastore.metadata.kv.keys import pack, prefix_range
from exastore.metadata.namespace import rows, trash
from exastore.metadata.namespace.errors import (
    BucketExists,
    BucketNotEmpty,
    InvalidArgument,
    NoSuchBucket,
)
from exastore.proto.v1 import metadata_pb2

_NAME = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
_IPV4 = re.compile(r"\d{1,3}(\.\d{1,3}){3}")
_RESERVED_PREFIXES = ("xn--", "sthree-", "amzn-s3-demo-")
_RESERVED_SUFFIXES = ("-s3alias", "--ol-s3", ".mrap", "--x-s3", "--table-s3")
#: Uploads that deleting a bucket aborts; each is two reads' worth of mutations.
_ABORTED_UPLOAD_COUNT_MAX = 20


def check_bucket_name(name: str) -> None:
    """Raises InvalidArgument unless S3's naming rules allow `name`."""
    if not _NAME.fullmatch(name):
        raise InvalidArgument(
            f"bucket name {name!r}: 3 to 63 lower-case letters, digits, dots and hyphens, "
            "with a letter or digit at both ends"
        )
    if ".." in name:
        raise InvalidArgument(f"bucket name {name!r}: two dots side by side")
    if _IPV4.fullmatch(name):
        raise InvalidArgument(f"bucket name {name!r}: formatted as an IP address")
    if name.startswith(_RESERVED_PREFIXES) or name.endswith(_RESERVED_SUFFIXES):
        raise InvalidArgument(f"bucket name {name!r}: S3 reserves this prefix or suffix")


def create_bucket(
    txn: Transaction, request: metadata_pb2.CreateBucketRequest, now_s: float
) -> metadata_pb2.Bucket:
    """Create a bucket. Raises InvalidArgument, BucketExists."""
    check_bucket_name(request.name)
    key = rows.bucket_key(request.name)
    known = txn.get(key)
    if known is not None:
        raise BucketExists(request.name, metadata_pb2.Bucket.FromString(known).owner)
    bucket = metadata_pb2.Bucket(
        name=request.name, created_s=now_s, owner=request.owner, region=request.region
    )
    txn.put(key, bucket.SerializeToString())
    return bucket


def get_bucket(txn: Transaction, name: str) -> metadata_pb2.Bucket:
    """Raises NoSuchBucket."""
    value = txn.get(rows.bucket_key(name))
    if value is None:
        raise NoSuchBucket(name)
    return metadata_pb2.Bucket.FromString(value)


def require_bucket(txn: Transaction, name: str) -> None:
    """Raises NoSuchBucket."""
    if txn.get(rows.bucket_key(name)) is None:
        raise NoSuchBucket(name)


def delete_bucket(txn: Transaction, name: str, now_s: float) -> None:
    """Delete a bucket without objects, and abort its uploads, if they are few.

    Raises NoSuchBucket, BucketNotEmpty.
    """
    require_bucket(txn, name)
    if txn.scan(*prefix_range(rows.objects_prefix(name)), limit=1, keys_only=True):
        raise BucketNotEmpty(name)
    uploads = txn.scan(
        *prefix_range(rows.uploads_prefix(name)), limit=_ABORTED_UPLOAD_COUNT_MAX + 1
    )
    if len(uploads) > _ABORTED_UPLOAD_COUNT_MAX:
        raise BucketNotEmpty(name)
    for key, value in uploads:
        upload_id = metadata_pb2.Upload.FromString(value).upload_id
        txn.delete(key)
        txn.delete(rows.revision_key(upload_id))
        trash.put_owner(txn, upload_id, now_s)
    txn.delete(rows.bucket_key(name))


def list_buckets(txn: Transaction) -> list[metadata_pb2.Bucket]:
    """All buckets in the order of their names."""
    return [
        metadata_pb2.Bucket.FromString(value) for _, value in txn.scan(*prefix_range(pack("b")))
    ]
