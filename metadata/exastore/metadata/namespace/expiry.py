"""What lifecycle does with a row that is due, and how a bucket is indexed by new rules."""

from exastore.metadata.kv.contract import Transaction
from exastore.metadata.kv.keys import after_prefix, pack, prefix_range
from exastore.metadata.namespace import lifecycle, rows, uploads, versions
from exastore.metadata.namespace.space import Space, Terms, open_by_id
from exastore.proto.v1 import metadata_pb2

EXPIRED = "expired"
NONCURRENT = "noncurrent"
UPLOAD = "upload"
MARKER = "marker"
#: A lock, or a number of versions to keep, stands in the way: it is looked at again later.
KEPT = "kept"
#: The rules have changed, or do not reach the row any more.
INDEXED = "indexed"

#: Rows indexed in one transaction, with up to four mutations each, eight while the bucket moves.
_INDEXED_COUNT = 10
_KINDS = (rows.CURRENT, rows.OTHER, rows.UPLOAD)


def act(txn: Transaction, due_key: bytes, now_s: float, terms: Terms) -> str:
    """Do what the rules say about a row of the index; what was done, or "" when it is gone.

    Raises BucketMoving.
    """
    due_ms, bucket_id, holder = rows.timed_place(due_key)
    if txn.get(due_key) is None:
        return ""
    space = open_by_id(txn, bucket_id)
    value = space.get(holder)
    if space.is_gone or value is None:
        space.delete_row(due_key)
        return ""
    done = INDEXED
    if _index_again(space, holder, value, terms) == due_ms and due_ms <= now_s * 1000:
        done = _delete(space, holder, value, now_s, terms)
    space.settle()
    return done


def index_some(txn: Transaction, bucket_id: int, terms: Terms) -> bool:
    """Index some more rows of a bucket whose rules changed; false when that is done.

    Raises BucketMoving.
    """
    key = rows.reindex(bucket_id)
    cursor = txn.get(key)
    if cursor is None:
        return False
    space = open_by_id(txn, bucket_id)
    if space.is_gone:
        space.delete_row(key)
        return False
    found = _next_rows(space, cursor)
    for holder, value in found:
        _index_again(space, holder, value, terms)
    if not found:
        space.delete_row(key)
        return False
    space.put_row(key, found[-1][0] + b"\x00")
    return True


def buckets_to_index(txn: Transaction) -> list[int]:
    """Ids of the buckets whose rules changed."""
    return [rows.bucket_id_of(key) for key, _ in txn.scan(*prefix_range(pack("y")), keys_only=True)]


def _next_rows(space: Space, cursor: bytes) -> list[tuple[bytes, bytes]]:
    """Some rows behind the cursor, of the kinds that have a due time."""
    for kind in sorted(_KINDS):
        begin, end = max(kind, cursor), after_prefix(kind)
        if begin < end:
            found = space.scan(begin, end, limit=_INDEXED_COUNT)
            if found:
                return found
    return []


def _index_again(space: Space, holder: bytes, value: bytes, terms: Terms) -> int:
    """Write a row and its index anew if the rules say another time than before; the time."""
    rules = space.bucket.lifecycle
    if holder.startswith(rows.UPLOAD):
        upload = metadata_pb2.Upload.FromString(value)
        key, _ = rows.upload_place(holder)
        due_ms = lifecycle.upload_due_ms(rules, key, upload, terms)
        if due_ms != upload.due_ms:
            lifecycle.unindex(space, holder, upload.due_ms)
            uploads.put_upload(space, holder, key, upload, terms)
        return due_ms
    record = metadata_pb2.Object.FromString(value)
    key = _key_of(holder)
    due_ms = lifecycle.object_due_ms(rules, key, record, terms)
    if due_ms != record.due_ms:
        versions.unindex(space, holder, record)
        versions.put_record(space, holder, key, record, terms)
    return due_ms


def _delete(space: Space, holder: bytes, value: bytes, now_s: float, terms: Terms) -> str:
    if holder.startswith(rows.UPLOAD):
        uploads.drop_upload(space, holder, metadata_pb2.Upload.FromString(value), now_s)
        return UPLOAD
    record = metadata_pb2.Object.FromString(value)
    key = _key_of(holder)
    if holder.startswith(rows.CURRENT):
        versions.delete_current(space, key, record, "", now_s, terms)
        return EXPIRED
    if record.delete_marker and not record.noncurrent_s:
        if versions.drop_lone_marker(space, key):
            return MARKER
        return _keep(space, holder, key, record, now_s + terms.day_s, terms)
    until_s = _kept_until(space, holder, key, record, now_s, terms)
    if until_s is not None:
        return _keep(space, holder, key, record, until_s, terms)
    versions.delete_version(space, key, holder, record, now_s, terms)
    if lifecycle.drops_lone_marker(space.bucket.lifecycle, key):
        versions.drop_lone_marker(space, key)
    return NONCURRENT


def _kept_until(
    space: Space, holder: bytes, key: str, record: metadata_pb2.Object, now_s: float, terms: Terms
) -> float | None:
    """When to look again at a replaced version that may not go yet; None: it may."""
    if versions.is_locked(record, now_s):
        held = record.lock
        return now_s + terms.day_s if held.legal_hold else held.retain_until_s
    wanted = lifecycle.newer_count_to_keep(space.bucket.lifecycle, key, record, now_s, terms)
    if not wanted:
        return None
    newer = space.scan(rows.versions_of(key), holder, limit=wanted + 1)
    # A delete marker that is the newest version is among the rows, and was not replaced.
    count = sum(bool(metadata_pb2.Object.FromString(value).noncurrent_s) for _, value in newer)
    return None if count >= wanted else now_s + terms.day_s


def _keep(
    space: Space,
    holder: bytes,
    key: str,
    record: metadata_pb2.Object,
    until_s: float,
    terms: Terms,
) -> str:
    versions.unindex(space, holder, record)
    record.kept_until_ms = rows.ms_of(until_s)
    versions.put_record(space, holder, key, record, terms)
    return KEPT


def _key_of(holder: bytes) -> str:
    if holder.startswith(rows.CURRENT):
        return holder[1:].decode()
    return rows.version_place(holder)[0]
