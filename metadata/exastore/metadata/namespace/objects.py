"""Objects: commit, get, tag, delete. The bytes of a version never change."""

from collections.abc import Callable, Iterable, Sequence
from typing import TypeAlias

from exastore.metadata.kv.contract import Transaction, counter_value
from exastore.metadata.namespace import lifecycle, requests, rows, versions
from exastore.metadata.namespace.errors import (
    InvalidArgument,
    IsDeleteMarker,
    NoSuchKey,
    NoSuchVersion,
    PreconditionFailed,
    StripeTooOld,
)
from exastore.metadata.namespace.naming import check_id, check_object_key, check_tags
from exastore.metadata.namespace.space import (
    DEFAULT_TERMS,
    Space,
    Terms,
    open_to_read,
    open_to_write,
)
from exastore.proto.v1 import common_pb2, metadata_pb2

#: Refuses extents that were written under a map too old, or outside the pool that the bucket names;
#: may read in the transaction.
Fence: TypeAlias = Callable[[Transaction, Iterable[common_pb2.Extent], str], None]

#: Keys that one transaction deletes: in a bucket with versions and due times that is being copied
#: each takes up to 26 of the 100 mutations.
DELETED_COUNT_MAX = 3


def check_size(
    what: str, size_bytes: int, inline: bytes, extents: Iterable[common_pb2.Extent]
) -> None:
    """Raises InvalidArgument unless the bytes described add up to the size."""
    described = len(inline) + sum(extent.data_bytes for extent in extents)
    if described != size_bytes:
        raise InvalidArgument(f"{what} of {size_bytes} bytes, but its data has {described}")


def check_age(txn: Transaction, extents: Iterable[common_pb2.Extent]) -> None:
    """Raises StripeTooOld for stripes that the collection of orphans may have judged already."""
    oldest = min((extent.stripe_id for extent in extents), default=None)
    if oldest is not None and rows.stripe_ms(oldest) < counter_value(txn.get(rows.ORPHAN_FENCE)):
        raise StripeTooOld(f"stripe {oldest.hex()} was begun too long ago: write the bytes again")


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


def put_data(
    space: Space,
    owner: str,
    part: metadata_pb2.Part,
    extents: Sequence[common_pb2.Extent],
) -> None:
    """Write the `d` rows of a part, and `g` rows for its extents with missing chunks."""
    for batch, run in enumerate(rows.extent_batches(extents)):
        row = metadata_pb2.Part(number=part.number, extents=run)
        if batch == 0:
            row.size_bytes = part.size_bytes
            row.plain_bytes = part.plain_bytes
            row.etag = part.etag
            row.modified_s = part.modified_s
            row.inline_data = part.inline_data
            row.checksums.update(part.checksums)
        holder = rows.data(owner, part.number, batch)
        space.put(holder, row.SerializeToString())
        missing = [extent for extent in run if extent.missing_indexes]
        if missing:
            space.put_row(
                rows.degraded(space.bucket.id, holder),
                metadata_pb2.ListExtentsResponse(extents=missing).SerializeToString(),
            )


def find_done(
    space: Space,
    known: metadata_pb2.Object | None,
    result_value: bytes | None,
    key: str,
    commit_id: str,
    terms: Terms,
) -> metadata_pb2.Object | None:
    """The answer of the commit with this id, if it was done. Raises InvalidArgument.

    Args:
        known: The current version.
        result_value: The `q` row of the id.
    """
    if known is not None and known.version_id == commit_id:
        return answered(space, key, versions.answer(space.bucket.name, key, known), terms)
    if result_value is None:
        return None
    done = metadata_pb2.StoredResult.FromString(result_value).object
    if done.key != key:
        raise InvalidArgument(f"the id {commit_id} belongs to another request")
    return answered(space, key, versions.answer(space.bucket.name, key, done), terms)


def commit_object(
    txn: Transaction,
    request: metadata_pb2.CommitObjectRequest,
    now_s: float,
    fence: Fence,
    terms: Terms = DEFAULT_TERMS,
) -> metadata_pb2.Object:
    """Make `request.object` the newest version of its key.

    Committing the same version id again is success and changes nothing, even when the object was
    replaced or deleted since.

    Raises InvalidArgument, InvalidTag, NoSuchBucket, NoSuchKey, PreconditionFailed, QuotaExceeded,
    BucketMoving, and what `fence` raises.
    """
    new = request.object
    key = new.key
    check_object_key(key)
    check_id("version id", new.version_id)
    check_size("an object", new.size_bytes, new.inline_data, new.extents)
    check_tags(new.tags)
    versions.check_retention(new.lock, now_s)
    space = open_to_write(txn, new.bucket)
    held = (space.base + rows.current(key), space.base + rows.result(new.version_id))
    current_value, result_value = txn.multi_get(held)
    known = None if current_value is None else metadata_pb2.Object.FromString(current_value)
    done = find_done(space, known, result_value, key, new.version_id, terms)
    if done is not None:
        return done
    check_condition(request.condition, known, new.bucket, key)
    fence(txn, new.extents, space.bucket.pool)
    check_age(txn, new.extents)
    record = new_record(new, now_s)
    if len(new.inline_data) + sum(item.ByteSize() for item in new.extents) > rows.RECORD_DATA_BYTES:
        record.in_rows = True
        part = metadata_pb2.Part(
            number=rows.PLAIN, size_bytes=new.size_bytes, inline_data=new.inline_data
        )
        put_data(space, new.version_id, part, new.extents)
    else:
        record.inline_data = new.inline_data
        record.extents.extend(new.extents)
    versions.install(space, key, record, known, now_s, terms)
    space.settle()
    return answered(space, key, versions.shown(new.bucket, key, record), terms)


def new_record(source: metadata_pb2.Object, now_s: float) -> metadata_pb2.Object:
    """What a client said about an object, as the record of a new version."""
    record = rows.bare_object(source)
    record.modified_s = now_s
    for name in ("delete_marker", "is_latest", "versioned", "order", "due_ms", "noncurrent_s"):
        record.ClearField(name)
    for told in ("null_version", "kept_until_ms", "expiry_rule_id", "expires_s"):
        record.ClearField(told)
    record.in_rows = False
    return record


def answered(
    space: Space, key: str, shown: metadata_pb2.Object, terms: Terms
) -> metadata_pb2.Object:
    """Add to the answer about a version what follows from the bucket."""
    versions.mark_null(space, shown)
    if space.bucket.lifecycle:
        lifecycle.tell_expiry(space.bucket.lifecycle, key, shown, terms)
    return shown


def manifest(space: Space, owner: str) -> list[metadata_pb2.PartInfo]:
    """The parts of a completed upload; empty for a plain object."""
    parts: list[metadata_pb2.PartInfo] = []
    for _, value in space.scan(rows.manifest_of(owner)):
        parts.extend(metadata_pb2.Object.FromString(value).parts)
    return parts


def get_object(
    txn: Transaction,
    bucket: str,
    key: str,
    *,
    version_id: str = "",
    head_only: bool = False,
    show_marker: bool = False,
    part_checksums: bool = False,
    terms: Terms = DEFAULT_TERMS,
) -> metadata_pb2.Object:
    """A version with its parts, and unless `head_only` its bytes or extents in order.

    Args:
        version_id: Empty for the current version.
        show_marker: Answer with a delete marker where there would be NoSuchKey or IsDeleteMarker.
        part_checksums: Add the checksums of the parts; they lie with the extents.

    Raises NoSuchBucket, NoSuchKey, NoSuchVersion, IsDeleteMarker, BucketMoving.
    """
    space = open_to_read(txn, bucket)
    if show_marker:
        marker = _find_marker(space, key, version_id)
        if marker is not None:
            return versions.mark_null(space, versions.answer(bucket, key, marker))
    found = find_with_bytes(space, key, version_id)[1]
    found.bucket = bucket
    found.key = key
    owner, found.version_id = found.version_id, versions.public_id(found)
    if "-" in found.etag:  # only these can be multipart objects
        found.parts.extend(manifest(space, owner))
        if part_checksums:
            _add_part_checksums(space, owner, found)
    if head_only:
        del found.extents[:]
        found.inline_data = b""
    elif found.in_rows:
        _read_rows(space, owner, found)
    return answered(space, key, found, terms)


def put_tags(
    txn: Transaction, request: metadata_pb2.PutTagsRequest, terms: Terms = DEFAULT_TERMS
) -> metadata_pb2.Object:
    """Replace the tags of a version.

    Raises InvalidTag, NoSuchBucket, NoSuchKey, NoSuchVersion, IsDeleteMarker, BucketMoving.
    """
    check_tags(request.tags)
    space = open_to_write(txn, request.bucket)
    holder, record = find_with_bytes(space, request.key, request.version_id)
    if dict(record.tags) != dict(request.tags):
        versions.unindex(space, holder, record)
        record.tags.clear()
        record.tags.update(request.tags)
        versions.put_record(space, holder, request.key, record, terms)
    return versions.mark_null(space, versions.answer(request.bucket, request.key, record))


def delete_objects(
    txn: Transaction,
    bucket: str,
    items: Sequence[metadata_pb2.DeleteItem],
    now_s: float,
    *,
    request_id: str = "",
    bypass_governance: bool = False,
    terms: Terms = DEFAULT_TERMS,
) -> metadata_pb2.DeleteObjectsResponse:
    """Delete keys or versions, at most DELETED_COUNT_MAX; an item that is refused says why.

    Args:
        request_id: Unique for these items of a request; the same again gets the same answer. Empty:
            deleting again is a new deletion.
        bypass_governance: Delete versions under governance, too.

    Raises NoSuchBucket, BucketMoving.
    """
    assert len(items) <= DELETED_COUNT_MAX, "one transaction deletes few keys"
    space = open_to_write(txn, bucket)
    if request_id:
        done = requests.recall(space, request_id)
        if done is not None:
            return done.deleted
    response = metadata_pb2.DeleteObjectsResponse()
    for number, item in enumerate(items):
        marker_id = f"{request_id}{number or ''}"
        deleted = _delete_item(space, item, marker_id, now_s, terms, bypass=bypass_governance)
        response.deleted.append(deleted)
        response.existed.append(deleted.existed)
    if request_id:
        result = metadata_pb2.StoredResult(deleted=response)
        requests.remember(space, request_id, result, now_s, terms)
    space.settle()
    return response


def _delete_item(
    space: Space,
    item: metadata_pb2.DeleteItem,
    marker_id: str,
    now_s: float,
    terms: Terms,
    *,
    bypass: bool,
) -> metadata_pb2.DeletedItem:
    bucket, key = space.bucket.name, item.key
    condition = metadata_pb2.WriteCondition(if_match=item.if_match)
    try:
        if item.version_id:
            return _delete_version(space, item, condition, now_s, terms, bypass=bypass)
        known = versions.find_current(space, key)
        check_condition(condition, known, bucket, key)
    except PreconditionFailed:
        return metadata_pb2.DeletedItem(reason=metadata_pb2.ERROR_REASON_PRECONDITION_FAILED)
    except NoSuchKey:
        return metadata_pb2.DeletedItem(reason=metadata_pb2.ERROR_REASON_NO_SUCH_KEY)
    marker = versions.delete_current(space, key, known, marker_id, now_s, terms)
    deleted = metadata_pb2.DeletedItem(existed=known is not None)
    if marker is not None:
        deleted.delete_marker = True
        deleted.version_id = versions.public_id(marker) if marker.versioned else versions.NULL_ID
    return deleted


def _delete_version(
    space: Space,
    item: metadata_pb2.DeleteItem,
    condition: metadata_pb2.WriteCondition,
    now_s: float,
    terms: Terms,
    *,
    bypass: bool,
) -> metadata_pb2.DeletedItem:
    try:
        holder, record = versions.find_version(space, item.key, item.version_id)
    except NoSuchVersion:
        check_condition(condition, None, space.bucket.name, item.key)
        return metadata_pb2.DeletedItem(version_id=item.version_id)
    known = None if record.delete_marker else record
    check_condition(condition, known, space.bucket.name, item.key)
    if versions.is_locked(record, now_s, bypass=bypass):
        return metadata_pb2.DeletedItem(reason=metadata_pb2.ERROR_REASON_OBJECT_LOCKED)
    versions.delete_version(space, item.key, holder, record, now_s, terms)
    return metadata_pb2.DeletedItem(
        existed=True, delete_marker=record.delete_marker, version_id=item.version_id
    )


def find_with_bytes(space: Space, key: str, version_id: str) -> tuple[bytes, metadata_pb2.Object]:
    """The row of a version; empty: of the current one.

    Raises NoSuchKey, NoSuchVersion, IsDeleteMarker.
    """
    if not version_id:
        current = versions.find_current(space, key)
        if current is None:
            raise NoSuchKey(space.bucket.name, key)
        return rows.current(key), current
    holder, record = versions.find_version(space, key, version_id)
    if record.delete_marker:
        raise IsDeleteMarker(space.bucket.name, key, version_id)
    return holder, record


def _find_marker(space: Space, key: str, version_id: str) -> metadata_pb2.Object | None:
    """The delete marker that the id names, or that is the newest version."""
    if space.bucket.versioning == metadata_pb2.VERSIONING_UNSPECIFIED:
        return None
    if version_id:
        found = versions.find_version(space, key, version_id)[1]
    elif versions.find_current(space, key) is not None:
        return None
    else:
        newest = versions.find_newest_other(space, key)
        if newest is None:
            return None
        found = newest[1]
    return found if found.delete_marker else None


def _add_part_checksums(space: Space, owner: str, found: metadata_pb2.Object) -> None:
    """Add to the parts of a completed upload what is kept with their bytes."""
    parts = {part.number: part for part in found.parts}
    for holder, value in space.scan(rows.data_of(owner)):
        _, number, batch = rows.data_place(holder)
        if batch == 0 and number in parts:
            parts[number].checksums.update(metadata_pb2.Part.FromString(value).checksums)


def _read_rows(space: Space, owner: str, found: metadata_pb2.Object) -> None:
    """Add what is kept in `d` rows; of an upload, that of the parts it was completed with."""
    listed = {part.number for part in found.parts}
    inline: list[bytes] = []
    for holder, value in space.scan(rows.data_of(owner)):
        if listed and rows.data_place(holder)[1] not in listed:
            continue
        part = metadata_pb2.Part.FromString(value)
        found.extents.extend(part.extents)
        if part.inline_data:
            inline.append(part.inline_data)
    found.inline_data = b"".join(inline)
