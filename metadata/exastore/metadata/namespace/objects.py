"""Objects: commit, get, delete. An object's bytes never change; a commit replaces it whole."""

from collections.abc import Callable, Iterable, Sequence
from typing import TypeAlias

from exastore.metadata.kv.contract import Transaction
from exastore.metadata.kv.keys import prefix_range
from exastore.metadata.namespace import rows, trash
from exastore.metadata.namespace.buckets import require_bucket
from exastore.metadata.namespace.errors import (
    InvalidArgument,
    NoSuchKey,
    PreconditionFailed,
)
from exastore.proto.v1 import common_pb2, metadata_pb2

#: Refuses extents that were written under a map too old; may read in the transaction.
Fence: TypeAlias = Callable[[Transaction, Iterable[common_pb2.Extent]], None]


def check_object_key(key: str) -> None:
    """Raises InvalidArgument unless S3 allows `key`."""
    if not 1 <= len(key.encode()) <= rows.OBJECT_KEY_BYTES_MAX:
        raise InvalidArgument(f"an object key has 1 to {rows.OBJECT_KEY_BYTES_MAX} bytes of UTF-8")


def check_size(
    what: str, size_bytes: int, inline: bytes, extents: Iterable[common_pb2.Extent]
) -> None:
    """Raises InvalidArgument unless the bytes described add up to the size."""
    described = len(inline) + sum(extent.data_bytes for extent in extents)
    if described != size_bytes:
        raise InvalidArgument(f"{what} of {size_bytes} bytes, but its data has {described}")


def check_condition(
    condition: metadata_pb2.WriteCondition, known: metadata_pb2.Object | None, bucket: str, key: str
) -> None:
    """Raises PreconditionFailed, or NoSuchKey for If-Match on a missing key."""
    if condition.must_not_exist and known is not None:
        raise PreconditionFailed("If-None-Match: *")
    if condition.if_match:
        if known is None:
            raise NoSuchKey(bucket, key)
        if condition.if_match != "*" and condition.if_match.strip('"') != known.etag:
            raise PreconditionFailed(f"If-Match: {condition.if_match}")


def find_object(txn: Transaction, bucket: str, key: str) -> metadata_pb2.Object | None:
    """The object's row, if there is one."""
    value = txn.get(rows.object_key(bucket, key))
    return None if value is None else metadata_pb2.Object.FromString(value)


def put_data(
    txn: Transaction,
    owner: str,
    part: metadata_pb2.Part,
    extents: Sequence[common_pb2.Extent],
) -> None:
    """Write the `d` rows of a part, and `g` rows for its extents with missing chunks."""
    for batch, run in enumerate(rows.extent_batches(extents)):
        row = metadata_pb2.Part(number=part.number, extents=run)
        if batch == 0:
            row.size_bytes = part.size_bytes
            row.etag = part.etag
            row.modified_s = part.modified_s
            row.inline_data = part.inline_data
            row.checksums.update(part.checksums)
        txn.put(rows.data_key(owner, part.number, batch), row.SerializeToString())
        missing = [extent for extent in run if extent.missing_indexes]
        if missing:
            txn.put(
                rows.degraded_key(owner, part.number, batch),
                metadata_pb2.ListExtentsResponse(extents=missing).SerializeToString(),
            )


def commit_object(
    txn: Transaction, request: metadata_pb2.CommitObjectRequest, now_s: float, fence: Fence
) -> metadata_pb2.Object:
    """Make `request.object` the current object of its key.

    Committing the same version id again is success and changes nothing, even when the object was
    replaced or deleted since.

    Raises InvalidArgument, NoSuchBucket, NoSuchKey, PreconditionFailed, and what `fence` raises.
    """
    new = request.object
    check_object_key(new.key)
    if not new.version_id:
        raise InvalidArgument("a commit needs a version id")
    check_size("an object", new.size_bytes, new.inline_data, new.extents)
    require_bucket(txn, new.bucket)
    known = find_object(txn, new.bucket, new.key)
    if known is not None and known.version_id == new.version_id:
        return known
    row = rows.bare_object(new)
    row.modified_s = now_s
    if txn.get(rows.data_key(new.version_id, rows.PLAIN, 0)) is not None:
        return row
    check_condition(request.condition, known, new.bucket, new.key)
    fence(txn, new.extents)
    part = metadata_pb2.Part(
        number=rows.PLAIN, size_bytes=new.size_bytes, inline_data=new.inline_data
    )
    put_data(txn, new.version_id, part, new.extents)
    if known is not None:
        trash.put_owner(txn, known.version_id, now_s)
    txn.put(rows.object_key(new.bucket, new.key), row.SerializeToString())
    return row


def manifest(txn: Transaction, owner: str) -> list[metadata_pb2.PartInfo]:
    """The parts of a completed upload; empty for a plain object."""
    parts: list[metadata_pb2.PartInfo] = []
    for _, value in txn.scan(*prefix_range(rows.manifest_prefix(owner))):
        parts.extend(metadata_pb2.Object.FromString(value).parts)
    return parts


def get_object(
    txn: Transaction, bucket: str, key: str, *, head_only: bool = False
) -> metadata_pb2.Object:
    """The current object with its parts, and unless `head_only` its bytes or extents in order.

    Raises NoSuchBucket, NoSuchKey.
    """
    found = find_object(txn, bucket, key)
    if found is None:
        require_bucket(txn, bucket)
        raise NoSuchKey(bucket, key)
    if "-" in found.etag:  # only these can be multipart objects
        found.parts.extend(manifest(txn, found.version_id))
    if head_only:
        return found
    listed = {part.number for part in found.parts}
    inline: list[bytes] = []
    for row_key, value in txn.scan(*prefix_range(rows.data_prefix(found.version_id))):
        if listed and rows.data_place(row_key)[1] not in listed:
            continue
        part = metadata_pb2.Part.FromString(value)
        found.extents.extend(part.extents)
        if part.inline_data:
            inline.append(part.inline_data)
    found.inline_data = b"".join(inline)
    return found


def delete_objects(txn: Transaction, bucket: str, keys: Sequence[str], now_s: float) -> list[bool]:
    """Delete `keys`, few enough for one transaction; true where there was an object.

    Raises NoSuchBucket.
    """
    require_bucket(txn, bucket)
    existed: list[bool] = []
    for key in keys:
        known = find_object(txn, bucket, key)
        existed.append(known is not None)
        if known is not None:
            trash.put_owner(txn, known.version_id, now_s)
            txn.delete(rows.object_key(bucket, key))
    return existed
