"""Multipart uploads.

A part is rows under its upload's id, so adding part 9,999 rewrites no other. Completing moves no
part: the object takes the upload's id as its version id, and a manifest names the parts it
consists of. Completion happens in two steps: `plan_completion` reads and checks all parts in a
snapshot, `complete_upload` commits few rows if no part changed since (the upload's revision).
The revision, count and bytes of an upload's parts are spread over a few rows, so that parts that
arrive together do not meet.
"""

import hashlib
import struct
from collections.abc import Sequence
from dataclasses import dataclass

from exastore.metadata.kv.contract import Transaction
from exastore.metadata.kv.keys import after_prefix, prefix_range
from exastore.metadata.namespace import lifecycle, rows, trash, usage, versions
from exastore.metadata.namespace.errors import (
    EntityTooSmall,
    InvalidArgument,
    InvalidPart,
    InvalidPartOrder,
    NoSuchUpload,
    PlanOutdated,
)
from exastore.metadata.namespace.listing import Cursor, Roll
from exastore.metadata.namespace.naming import check_id, check_object_key, check_tags
from exastore.metadata.namespace.objects import (
    Fence,
    answered,
    check_age,
    check_condition,
    check_size,
    find_done,
    new_record,
    put_data,
)
from exastore.metadata.namespace.space import (
    DEFAULT_TERMS,
    Space,
    Terms,
    open_to_read,
    open_to_write,
)
from exastore.proto.v1 import common_pb2, metadata_pb2

#: S3's minimum for all parts but the last.
MIN_PART_BYTES = 5 << 20
_MANIFEST_ROW_PART_COUNT = 800
_LIST_MAX = 1000
_TOTALS_SLOT_COUNT = 4
#: Revision, count and bytes.
_TOTALS = struct.Struct("<3q")
_NO_TOTALS = bytes(_TOTALS.size)


@dataclass(frozen=True, slots=True)
class PartTotals:
    """The parts of an upload together; the revision changes with each of them."""

    revision: int
    part_count: int
    part_bytes: int


@dataclass(frozen=True, slots=True)
class CompletionPlan:
    """What completing an upload will write, if its parts are still the same."""

    totals: PartTotals
    parts: Sequence[metadata_pb2.PartInfo]
    etag: str
    size_bytes: int
    #: Of sealed parts once opened; else 0.
    plain_bytes: int
    #: Parts were uploaded that the completion does not list.
    has_unlisted: bool


def create_upload(
    txn: Transaction,
    request: metadata_pb2.CreateUploadRequest,
    now_s: float,
    terms: Terms = DEFAULT_TERMS,
) -> metadata_pb2.Upload:
    """Begin an upload under the id the caller chose; again is harmless.

    Raises InvalidArgument, InvalidTag, NoSuchBucket, BucketMoving.
    """
    check_object_key(request.key)
    check_id("upload id", request.upload_id)
    check_tags(request.attributes.tags)
    versions.check_retention(request.attributes.lock, now_s)
    space = open_to_write(txn, request.bucket)
    holder = rows.upload(request.key, request.upload_id)
    known = space.get(holder)
    if known is not None:
        return _shown(request.bucket, holder, known)
    upload = metadata_pb2.Upload(
        upload_id=request.upload_id,
        initiated_s=now_s,
        attributes=new_record(request.attributes, 0.0),
        checksum_algorithm=request.checksum_algorithm,
        checksum_type=request.checksum_type,
    )
    put_upload(space, holder, request.key, upload, terms)
    space.charge(request.upload_id.encode(), (usage.UPLOADS, 1))
    space.settle()
    return _shown(request.bucket, holder, upload.SerializeToString())


def put_upload(
    space: Space, holder: bytes, key: str, upload: metadata_pb2.Upload, terms: Terms
) -> None:
    """Write an upload's row and its row in the index by due time."""
    upload.due_ms = lifecycle.upload_due_ms(space.bucket.lifecycle, key, upload, terms)
    space.put(holder, upload.SerializeToString())
    lifecycle.index(space, holder, upload.due_ms)


def commit_part(
    txn: Transaction, request: metadata_pb2.CommitPartRequest, now_s: float, fence: Fence
) -> metadata_pb2.Part:
    """Add a part, or replace it: the last upload of a part wins. The same part again is success.

    Raises InvalidArgument, NoSuchUpload, QuotaExceeded, BucketMoving, and what `fence` raises.
    """
    part, upload_id = request.part, request.upload_id
    if not 1 <= part.number <= rows.PART_COUNT_MAX:
        raise InvalidArgument(f"part number {part.number}: 1 to {rows.PART_COUNT_MAX} are allowed")
    if part.inline_data:
        raise InvalidArgument("the bytes of a part are stored in extents, not inline")
    check_size(f"part {part.number}", part.size_bytes, b"", part.extents)
    space = open_to_write(txn, request.bucket)
    _require_upload(space, request.key, upload_id)
    known_rows = space.scan(
        rows.part_data(upload_id, part.number), rows.part_data(upload_id, part.number + 1)
    )
    known = metadata_pb2.Part.FromString(known_rows[0][1]) if known_rows else None
    if known is not None and _is_same(known, part):
        return _bare_part(known)
    fence(txn, part.extents, space.bucket.pool)
    check_age(txn, part.extents)
    _discard_rows(space, upload_id, known_rows, now_s)
    committed = metadata_pb2.Part(
        number=part.number,
        size_bytes=part.size_bytes,
        etag=part.etag,
        modified_s=now_s,
        plain_bytes=part.plain_bytes,
    )
    committed.checksums.update(part.checksums)
    put_data(space, upload_id, committed, part.extents)
    more_count = 0 if known is not None else 1
    more_bytes = part.size_bytes - (0 if known is None else known.size_bytes)
    _add_totals(space, upload_id, part.number, more_count, more_bytes)
    seed = f"{upload_id}{part.number}".encode()
    space.charge(seed, (usage.PARTS, more_count), (usage.PART_BYTES, more_bytes))
    space.settle()
    return committed


def plan_completion(
    txn: Transaction,
    request: metadata_pb2.CompleteUploadRequest,
    *,
    min_part_bytes: int,
    terms: Terms = DEFAULT_TERMS,
) -> CompletionPlan | metadata_pb2.Object:
    """Check a completion in a snapshot; the object when the upload is complete already.

    Raises NoSuchBucket, NoSuchUpload, InvalidArgument, InvalidPart, InvalidPartOrder,
    EntityTooSmall, BucketMoving.
    """
    space = open_to_read(txn, request.bucket)
    if space.get(rows.upload(request.key, request.upload_id)) is None:
        return _completed(space, request.key, request.upload_id, terms)
    uploaded = {
        part.number: part
        for holder, value in space.scan(rows.data_of(request.upload_id))
        if rows.data_place(holder)[2] == 0
        for part in (metadata_pb2.Part.FromString(value),)
    }
    chosen = _choose_parts(request.parts, uploaded, min_part_bytes)
    digest = hashlib.md5(b"".join(_md5_of(part) for part in chosen), usedforsecurity=False)
    return CompletionPlan(
        totals=part_totals(space, request.upload_id),
        parts=[
            metadata_pb2.PartInfo(
                number=part.number,
                size_bytes=part.size_bytes,
                etag=part.etag,
                plain_bytes=part.plain_bytes,
            )
            for part in chosen
        ],
        etag=f"{digest.hexdigest()}-{len(chosen)}",
        size_bytes=sum(part.size_bytes for part in chosen),
        plain_bytes=sum(part.plain_bytes for part in chosen),
        has_unlisted=len(chosen) < len(uploaded),
    )


def complete_upload(
    txn: Transaction,
    request: metadata_pb2.CompleteUploadRequest,
    plan: CompletionPlan,
    now_s: float,
    terms: Terms = DEFAULT_TERMS,
) -> metadata_pb2.Object:
    """Make the upload the newest version of its key; again is success.

    Raises NoSuchBucket, NoSuchUpload, NoSuchKey, PreconditionFailed, BucketMoving, PlanOutdated
    (plan again).
    """
    key, upload_id = request.key, request.upload_id
    space = open_to_write(txn, request.bucket)
    holder = rows.upload(key, upload_id)
    value = space.get(holder)
    if value is None:
        return _completed(space, key, upload_id, terms)
    if part_totals(space, upload_id) != plan.totals:
        raise PlanOutdated(upload_id)
    known = versions.find_current(space, key)
    check_condition(request.condition, known, request.bucket, key)
    upload = metadata_pb2.Upload.FromString(value)
    record = new_record(upload.attributes, now_s)
    record.version_id = upload_id
    record.size_bytes = plan.size_bytes
    record.plain_bytes = plan.plain_bytes
    record.checksums.update(request.checksums)
    record.etag = plan.etag
    record.in_rows = True
    for batch, first in enumerate(range(0, len(plan.parts), _MANIFEST_ROW_PART_COUNT)):
        run = metadata_pb2.Object(parts=plan.parts[first : first + _MANIFEST_ROW_PART_COUNT])
        space.put(rows.manifest(upload_id, batch), run.SerializeToString())
    if plan.has_unlisted:
        trash.put_unlisted(space, upload_id, now_s)
    _drop_upload(space, holder, upload, plan.totals, key.encode())
    versions.install(space, key, record, known, now_s, terms)
    space.settle()
    return answered(space, key, versions.answer(request.bucket, key, record), terms)


def abort_upload(txn: Transaction, bucket: str, key: str, upload_id: str, now_s: float) -> None:
    """Give up an upload and its parts. Raises NoSuchBucket, NoSuchUpload, BucketMoving."""
    space = open_to_write(txn, bucket)
    drop_upload(space, rows.upload(key, upload_id), _require_upload(space, key, upload_id), now_s)
    space.settle()


def drop_upload(space: Space, holder: bytes, upload: metadata_pb2.Upload, now_s: float) -> None:
    """Delete an upload's rows; its parts go to the trash as one."""
    totals = part_totals(space, upload.upload_id)
    _drop_upload(space, holder, upload, totals, upload.upload_id.encode())
    if totals.revision:
        trash.put_owner(space, upload.upload_id, now_s)


def part_totals(space: Space, upload_id: str) -> PartTotals:
    """The parts of an upload in progress together."""
    keys = [space.base + rows.totals(upload_id, slot) for slot in range(_TOTALS_SLOT_COUNT)]
    found = [_TOTALS.unpack(value or _NO_TOTALS) for value in space.txn.multi_get(keys)]
    return PartTotals(*(sum(numbers) for numbers in zip(*found, strict=True)))


def list_parts(
    txn: Transaction, request: metadata_pb2.ListPartsRequest
) -> metadata_pb2.ListPartsResponse:
    """Parts behind `after_number`, without extents. Raises NoSuchBucket, NoSuchUpload."""
    space = open_to_read(txn, request.bucket)
    upload_id = request.upload_id
    holder = rows.upload(request.key, upload_id)
    value = space.get(holder)
    if value is None:
        raise NoSuchUpload(upload_id)
    response = metadata_pb2.ListPartsResponse(upload=_shown(request.bucket, holder, value))
    room = min(request.max_parts, _LIST_MAX)
    begin = rows.part_data(upload_id, min(request.after_number, rows.PART_COUNT_MAX) + 1)
    end = after_prefix(rows.data_of(upload_id))
    while True:
        found = space.scan(begin, end, limit=room + 1)
        for row, part_value in found:
            if rows.data_place(row)[2] != 0:
                continue
            if len(response.parts) == room:
                response.truncated = True
                return response
            response.parts.append(_bare_part(metadata_pb2.Part.FromString(part_value)))
        if len(found) <= room:
            return response
        begin = found[-1][0] + b"\x00"


def list_uploads(
    txn: Transaction, request: metadata_pb2.ListUploadsRequest
) -> metadata_pb2.ListUploadsResponse:
    """A page of uploads in progress and common prefixes, by key and id.

    Raises NoSuchBucket, BucketMoving.
    """
    space = open_to_read(txn, request.bucket)
    response = metadata_pb2.ListUploadsResponse()
    room = min(request.max_uploads or _LIST_MAX, _LIST_MAX)
    roll = Roll(request.prefix, request.delimiter)
    begin, end = prefix_range(space.base + rows.UPLOAD + rows.raised(roll.prefix))
    if request.key_marker:
        common = roll.common_prefix(request.key_marker.encode())
        if common is not None:
            behind = after_prefix(space.base + rows.UPLOAD + rows.raised(common))
        elif request.upload_id_marker:
            marker = rows.upload(request.key_marker, request.upload_id_marker)
            behind = space.base + marker + b"\x00"
        else:
            behind = after_prefix(space.base + rows.uploads_of(request.key_marker))
        begin = max(begin, behind)
    cursor = Cursor(txn, begin, end, room + 1 if roll.is_flat else 32)
    entry_count = 0
    while cursor.head is not None:
        if entry_count == room:
            response.truncated = True
            return response
        entry_count += 1
        holder, value = cursor.head[0][len(space.base) :], cursor.head[1]
        key, upload_id = rows.upload_place(holder)
        common = roll.common_prefix(key.encode())
        if common is None:
            response.uploads.append(_shown(request.bucket, holder, value))
            response.next_key_marker, response.next_upload_id_marker = key, upload_id
            cursor.advance()
        else:
            response.common_prefixes.append(common.decode())
            response.next_key_marker, response.next_upload_id_marker = common.decode(), ""
            cursor.seek(after_prefix(space.base + rows.UPLOAD + rows.raised(common)))
    response.next_key_marker = response.next_upload_id_marker = ""
    return response


def _require_upload(space: Space, key: str, upload_id: str) -> metadata_pb2.Upload:
    value = space.get(rows.upload(key, upload_id))
    if value is None:
        raise NoSuchUpload(upload_id)
    return metadata_pb2.Upload.FromString(value)


def _shown(bucket: str, holder: bytes, value: bytes) -> metadata_pb2.Upload:
    """An upload as clients get it."""
    upload = metadata_pb2.Upload.FromString(value)
    upload.bucket = bucket
    upload.key, _ = rows.upload_place(holder)
    return upload


def _add_totals(
    space: Space, upload_id: str, number: int, more_count: int, more_bytes: int
) -> None:
    holder = rows.totals(upload_id, number % _TOTALS_SLOT_COUNT)
    revision, count, size_bytes = _TOTALS.unpack(space.get(holder) or _NO_TOTALS)
    space.put(holder, _TOTALS.pack(revision + 1, count + more_count, size_bytes + more_bytes))


def _drop_upload(
    space: Space, holder: bytes, upload: metadata_pb2.Upload, totals: PartTotals, seed: bytes
) -> None:
    """Delete the upload's rows but for its parts, which are no parts of an upload any more."""
    space.delete(holder)
    lifecycle.unindex(space, holder, upload.due_ms)
    for slot in range(_TOTALS_SLOT_COUNT):
        space.delete(rows.totals(upload.upload_id, slot))
    space.charge(
        seed,
        (usage.UPLOADS, -1),
        (usage.PARTS, -totals.part_count),
        (usage.PART_BYTES, -totals.part_bytes),
    )


def _discard_rows(
    space: Space, upload_id: str, part_rows: Sequence[tuple[bytes, bytes]], now_s: float
) -> None:
    """Move the `d` rows of a part to the trash."""
    for holder, value in part_rows:
        part = metadata_pb2.Part.FromString(value)
        trash.put_extents(space, upload_id, part.extents, now_s)
        space.delete(holder)
        if any(extent.missing_indexes for extent in part.extents):
            space.delete_row(rows.degraded(space.bucket.id, holder))


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


def _completed(space: Space, key: str, upload_id: str, terms: Terms) -> metadata_pb2.Object:
    """The answer of the completion that was done. Raises NoSuchUpload."""
    known = versions.find_current(space, key)
    done = find_done(space, known, space.get(rows.result(upload_id)), key, upload_id, terms)
    if done is None:
        raise NoSuchUpload(upload_id)
    return done


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
