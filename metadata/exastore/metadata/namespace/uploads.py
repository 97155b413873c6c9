"""Multipart uploads.

A part is rows under its upload's id, so adding part 9,999 rewrites no other. Completing moves no
part: the object takes the upload's id as its version id, and a manifest names the parts it
consists of. Completion happens in two steps: `plan_completion` reads and checks all parts in a
snapshot, `complete_upload` commits few rows if no part changed since (the upload's revision).
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from exastore.metadata.kv.contract import Transaction, counter_value
from exastore.metadata.kv.keys import pack, prefix_range
from exastore.metadata.namespace import rows, trash
from exastore.metadata.namespace.buckets import require_bucket
from exastore.metadata.namespace.errors import (
    EntityTooSmall,
    InvalidArgument,
    InvalidPart,
    InvalidPartOrder,
    NoSuchUpload,
    PlanOutdated,
)
from exastore.metadata.namespace.objects import (
    Fence,
    check_condition,
    check_object_key,
    check_size,
    find_object,
    put_data,
)
from exastore.proto.v1 import common_pb2, metadata_pb2

#: S3's minimum for all parts but the last.
MIN_PART_BYTES = 5 << 20
_MANIFEST_ROW_PART_COUNT = 800
_LIST_MAX = 1000


@dataclass(frozen=True, slots=True)
class CompletionPlan:
    """What completing an upload will write, if its revision is still the same."""

    revision: int
    parts: Sequence[metadata_pb2.PartInfo]
    etag: str
    size_bytes: int
    #: Parts were uploaded that the completion does not list.
    has_unlisted: bool


def create_upload(
    txn: Transaction, request: metadata_pb2.CreateUploadRequest, now_s: float
) -> metadata_pb2.Upload:
    """Begin an upload under the id the caller chose; again is harmless.

    Raises InvalidArgument, NoSuchBucket.
    """
    check_object_key(request.key)
    if not request.upload_id:
        raise InvalidArgument("an upload needs an id")
    require_bucket(txn, request.bucket)
    key = rows.upload_key(request.bucket, request.key, request.upload_id)
    known = txn.get(key)
    if known is not None:
        return metadata_pb2.Upload.FromString(known)
    upload = metadata_pb2.Upload(
        bucket=request.bucket,
        key=request.key,
        upload_id=request.upload_id,
        initiated_s=now_s,
        attributes=rows.bare_object(request.attributes),
    )
    txn.put(key, upload.SerializeToString())
    return upload


def require_upload(txn: Transaction, bucket: str, key: str, upload_id: str) -> metadata_pb2.Upload:
    """Raises NoSuchUpload."""
    value = txn.get(rows.upload_key(bucket, key, upload_id))
    if value is None:
        raise NoSuchUpload(upload_id)
    return metadata_pb2.Upload.FromString(value)


def commit_part(
    txn: Transaction, request: metadata_pb2.CommitPartRequest, now_s: float, fence: Fence
) -> metadata_pb2.Part:
    """Add a part, or replace it: the last upload of a part wins. The same part again is success.

    Raises InvalidArgument, NoSuchUpload, and what `fence` raises.
    """
    part = request.part
    if not 1 <= part.number <= rows.PART_COUNT_MAX:
        raise InvalidArgument(f"part number {part.number}: 1 to {rows.PART_COUNT_MAX} are allowed")
    if part.inline_data:
        raise InvalidArgument("the bytes of a part are stored in extents, not inline")
    check_size(f"part {part.number}", part.size_bytes, b"", part.extents)
    require_upload(txn, request.bucket, request.key, request.upload_id)
    known_rows = txn.scan(*prefix_range(rows.part_prefix(request.upload_id, part.number)))
    if known_rows:
        known = metadata_pb2.Part.FromString(known_rows[0][1])
        if _is_same(known, part):
            return _bare_part(known)
    fence(txn, part.extents)
    trash.move_part(txn, request.upload_id, known_rows, now_s)
    committed = metadata_pb2.Part(
        number=part.number, size_bytes=part.size_bytes, etag=part.etag, modified_s=now_s
    )
    committed.checksums.update(part.checksums)
    put_data(txn, request.upload_id, committed, part.extents)
    txn.add(rows.revision_key(request.upload_id), 1)
    return committed


def plan_completion(
    txn: Transaction, request: metadata_pb2.CompleteUploadRequest, *, min_part_bytes: int
) -> CompletionPlan | metadata_pb2.Object:
    """Check a completion in a snapshot; the object when the upload is complete already.

    Raises NoSuchUpload, InvalidArgument, InvalidPart, InvalidPartOrder, EntityTooSmall.
    """
    if txn.get(rows.upload_key(request.bucket, request.key, request.upload_id)) is None:
        done = _completed(txn, request)
        if done is None:
            raise NoSuchUpload(request.upload_id)
        return done
    uploaded = {
        part.number: part
        for key, value in txn.scan(*prefix_range(rows.data_prefix(request.upload_id)))
        if rows.data_place(key)[2] == 0
        for part in (metadata_pb2.Part.FromString(value),)
    }
    chosen = _choose_parts(request.parts, uploaded, min_part_bytes)
    digest = hashlib.md5(b"".join(_md5_of(part) for part in chosen), usedforsecurity=False)
    return CompletionPlan(
        revision=counter_value(txn.get(rows.revision_key(request.upload_id))),
        parts=[
            metadata_pb2.PartInfo(number=part.number, size_bytes=part.size_bytes, etag=part.etag)
            for part in chosen
        ],
        etag=f"{digest.hexdigest()}-{len(chosen)}",
        size_bytes=sum(part.size_bytes for part in chosen),
        has_unlisted=len(chosen) < len(uploaded),
    )


def complete_upload(
    txn: Transaction,
    request: metadata_pb2.CompleteUploadRequest,
    plan: CompletionPlan,
    now_s: float,
) -> metadata_pb2.Object:
    """Make the upload the current object of its key; again is success.

    Raises NoSuchUpload, NoSuchKey, PreconditionFailed, PlanOutdated (plan again).
    """
    upload_row = rows.upload_key(request.bucket, request.key, request.upload_id)
    value = txn.get(upload_row)
    if value is None:
        done = _completed(txn, request)
        if done is None:
            raise NoSuchUpload(request.upload_id)
        return done
    require_bucket(txn, request.bucket)
    if counter_value(txn.get(rows.revision_key(request.upload_id))) != plan.revision:
        raise PlanOutdated(request.upload_id)
    known = find_object(txn, request.bucket, request.key)
    check_condition(request.condition, known, request.bucket, request.key)
    row = rows.bare_object(metadata_pb2.Upload.FromString(value).attributes)
    row.bucket = request.bucket
    row.key = request.key
    row.version_id = request.upload_id
    row.size_bytes = plan.size_bytes
    row.etag = plan.etag
    row.modified_s = now_s
    for batch, first in enumerate(range(0, len(plan.parts), _MANIFEST_ROW_PART_COUNT)):
        run = metadata_pb2.Object(parts=plan.parts[first : first + _MANIFEST_ROW_PART_COUNT])
        txn.put(rows.manifest_key(request.upload_id, batch), run.SerializeToString())
    if plan.has_unlisted:
        trash.put_unlisted(txn, request.upload_id, now_s)
    if known is not None:
        trash.put_owner(txn, known.version_id, now_s)
    txn.put(rows.object_key(request.bucket, request.key), row.SerializeToString())
    txn.put(rows.result_key(request.upload_id), row.SerializeToString())
    txn.delete(upload_row)
    txn.delete(rows.revision_key(request.upload_id))
    return row


def abort_upload(txn: Transaction, bucket: str, key: str, upload_id: str, now_s: float) -> None:
    """Give up an upload and its parts. Raises NoSuchUpload."""
    require_upload(txn, bucket, key, upload_id)
    txn.delete(rows.upload_key(bucket, key, upload_id))
    txn.delete(rows.revision_key(upload_id))
    trash.put_owner(txn, upload_id, now_s)


def list_parts(
    txn: Transaction, request: metadata_pb2.ListPartsRequest
) -> metadata_pb2.ListPartsResponse:
    """Parts behind `after_number`, without extents. Raises NoSuchUpload."""
    upload = require_upload(txn, request.bucket, request.key, request.upload_id)
    response = metadata_pb2.ListPartsResponse(upload=upload)
    room = min(request.max_parts, _LIST_MAX)
    begin = rows.part_prefix(request.upload_id, request.after_number + 1)
    _, end = prefix_range(rows.data_prefix(request.upload_id))
    while True:
        found = txn.scan(begin, end, limit=room + 1)
        for key, value in found:
            if rows.data_place(key)[2] != 0:
                continue
            if len(response.parts) == room:
                response.truncated = True
                return response
            response.parts.append(_bare_part(metadata_pb2.Part.FromString(value)))
        if len(found) <= room:
            return response
        begin = found[-1][0] + b"\x00"


def list_uploads(txn: Transaction, bucket: str, prefix: str) -> list[metadata_pb2.Upload]:
    """The first 1,000 uploads in progress whose key begins with `prefix`. Raises NoSuchBucket."""
    require_bucket(txn, bucket)
    # The text's terminator is cut off, so that the key only has to begin with `prefix`.
    begin, end = prefix_range(rows.uploads_prefix(bucket) + pack(prefix)[:-1])
    return [
        metadata_pb2.Upload.FromString(value) for _, value in txn.scan(begin, end, limit=_LIST_MAX)
    ]


def _choose_parts(
    asked: Sequence[metadata_pb2.CompletedPart],
    uploaded: dict[int, metadata_pb2.Part],
    min_part_bytes: int,
) -> list[metadata_pb2.Part]:
    if not asked:
        raise InvalidArgument("a completion lists at least one part")
    chosen: list[metadata_pb2.Part] = []
    for item in asked:
        if chosen and item.number <= chosen[-1].number:
            raise InvalidPartOrder(item.number, chosen[-1].number)
        part = uploaded.get(item.number)
        if part is None:
            raise InvalidPart(item.number, "was not uploaded")
        if item.etag.strip('"') != part.etag:
            raise InvalidPart(item.number, f"has ETag {part.etag}, not {item.etag}")
        chosen.append(part)
    for part in chosen[:-1]:
        if part.size_bytes < min_part_bytes:
            raise EntityTooSmall(part.number, part.size_bytes, min_part_bytes)
    return chosen


def _md5_of(part: metadata_pb2.Part) -> bytes:
    try:
        return bytes.fromhex(part.etag)
    except ValueError:
        raise InvalidPart(part.number, f"its ETag {part.etag} is no MD5") from None


def _completed(
    txn: Transaction, request: metadata_pb2.CompleteUploadRequest
) -> metadata_pb2.Object | None:
    value = txn.get(rows.result_key(request.upload_id))
    if value is None:
        return None
    done = metadata_pb2.Object.FromString(value)
    return done if (done.bucket, done.key) == (request.bucket, request.key) else None


def _is_same(known: metadata_pb2.Part, part: metadata_pb2.Part) -> bool:
    """Stripe ids are unique for ever, so the same first stripe is the same upload of the part."""
    return (
        known.etag == part.etag
        and known.size_bytes == part.size_bytes
        and _first_stripe(known.extents) == _first_stripe(part.extents)
    )


def _first_stripe(extents: Sequence[common_pb2.Extent]) -> bytes:
    return extents[0].stripe_id if extents else b""


def _bare_part(part: metadata_pb2.Part) -> metadata_pb2.Part:
    del part.extents[:]
    return part
