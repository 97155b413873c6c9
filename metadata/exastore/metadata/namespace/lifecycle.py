"""Lifecycle: when rules act on versions and uploads, and the index of it by due time.

Laws:
1. A record's `due_ms` is what the rules said when it was written or indexed, and there is an `x`
   row with that time if and only if it is not 0. Both change in the same transaction.
2. Whoever acts on an `x` row asks the rules again: what they do not reach now is indexed anew.
3. A row is due by the server's clock and by the times in the record. A clock that went back makes
   lifecycle late, never early.

After the rules changed, background work goes through the bucket once (`y` row) and indexes what the
new rules reach.
"""

from collections.abc import Iterable, Mapping

from exastore.metadata.kv.contract import Transaction
from exastore.metadata.kv.keys import pack, prefix_range
from exastore.metadata.namespace import rows
from exastore.metadata.namespace.errors import InvalidArgument
from exastore.metadata.namespace.naming import check_tags
from exastore.metadata.namespace.space import Space, Terms
from exastore.proto.v1 import metadata_pb2

#: As in S3.
RULE_COUNT_MAX = 1000
#: As in S3; so many rows are read in the transaction that deletes the version behind them.
NEWER_COUNT_MAX = 100
_RULES_BYTES_MAX = 48 * 1024

Rule = metadata_pb2.LifecycleRule


def check_rules(rules: Iterable[Rule]) -> None:
    """Raises InvalidArgument unless the rules can be kept."""
    count = size_bytes = 0
    for rule in rules:
        count += 1
        size_bytes += rule.ByteSize()
        check_tags(rule.tags)
        acts = (rule.expire_days, rule.expire_at_s, rule.noncurrent_days, rule.abort_upload_days)
        if not any(acts) and not rule.drop_lone_markers:
            raise InvalidArgument(f"lifecycle rule {rule.id!r} does nothing")
        if rule.expire_days and rule.expire_at_s:
            raise InvalidArgument(f"lifecycle rule {rule.id!r} has both days and a date")
        if rule.expire_at_s < 0:
            raise InvalidArgument(f"lifecycle rule {rule.id!r} has a date before 1970")
        if rule.abort_upload_days and _has_object_filter(rule):
            raise InvalidArgument(
                f"lifecycle rule {rule.id!r}: uploads have neither tags nor a size to filter by"
            )
        if rule.newer_noncurrent_count > NEWER_COUNT_MAX or (
            rule.newer_noncurrent_count and not rule.noncurrent_days
        ):
            raise InvalidArgument(
                f"lifecycle rule {rule.id!r}: at most {NEWER_COUNT_MAX} newer versions to keep, "
                "and only with days after which the others go"
            )
        least_bytes = rule.larger_than_bytes + 1 if rule.HasField("larger_than_bytes") else 0
        if rule.smaller_than_bytes and rule.smaller_than_bytes <= least_bytes:
            raise InvalidArgument(f"lifecycle rule {rule.id!r}: no size is within its bounds")
    if count > RULE_COUNT_MAX or size_bytes > _RULES_BYTES_MAX:
        raise InvalidArgument(
            f"at most {RULE_COUNT_MAX} lifecycle rules of {_RULES_BYTES_MAX} bytes together"
        )


def object_due_ms(
    rules: Iterable[Rule], key: str, record: metadata_pb2.Object, terms: Terms
) -> int:
    """When the rules act on a version, in ms of Unix time; 0: never."""
    due_s = 0.0
    for rule in rules:
        if rule.disabled or not _matches(rule, key, record):
            continue
        if record.noncurrent_s:
            if rule.noncurrent_days:
                due_s = _earlier(due_s, record.noncurrent_s + rule.noncurrent_days * terms.day_s)
        elif not record.delete_marker:
            if rule.expire_days:
                due_s = _earlier(due_s, record.modified_s + rule.expire_days * terms.day_s)
            if rule.expire_at_s:
                due_s = _earlier(due_s, rule.expire_at_s)
        elif rule.drop_lone_markers and not _has_object_filter(rule):
            due_s = _earlier(due_s, record.modified_s + terms.day_s)
    return max(_due_ms(due_s), record.kept_until_ms) if due_s else 0


def newer_count_to_keep(
    rules: Iterable[Rule], key: str, record: metadata_pb2.Object, now_s: float, terms: Terms
) -> int:
    """How many newer ones a replaced version must have, to be deleted now; 0: none."""
    return min(
        (
            rule.newer_noncurrent_count
            for rule in rules
            if rule.noncurrent_days
            and not rule.disabled
            and _matches(rule, key, record)
            and record.noncurrent_s + rule.noncurrent_days * terms.day_s <= now_s
        ),
        default=0,
    )


def tell_expiry(rules: Iterable[Rule], key: str, record: metadata_pb2.Object, terms: Terms) -> None:
    """Write into an answer which rule will delete the current version, and when."""
    if record.noncurrent_s or record.delete_marker:
        return
    for rule in rules:
        if rule.disabled or not _matches(rule, key, record):
            continue
        due_s = rule.expire_at_s
        if rule.expire_days:
            due_s = record.modified_s + rule.expire_days * terms.day_s
        if due_s and (not record.expires_s or due_s < record.expires_s):
            record.expires_s, record.expiry_rule_id = due_s, rule.id


def upload_due_ms(
    rules: Iterable[Rule], key: str, upload: metadata_pb2.Upload, terms: Terms
) -> int:
    """When the rules abort an upload, in ms of Unix time; 0: never."""
    due_s = 0.0
    for rule in rules:
        if not rule.disabled and rule.abort_upload_days and key.startswith(rule.prefix):
            due_s = _earlier(due_s, upload.initiated_s + rule.abort_upload_days * terms.day_s)
    return _due_ms(due_s)


def drops_lone_marker(rules: Iterable[Rule], key: str) -> bool:
    """Whether a delete marker goes with the last version under it."""
    return any(
        rule.drop_lone_markers and not rule.disabled and key.startswith(rule.prefix)
        for rule in rules
        if not _has_object_filter(rule)
    )


def index(space: Space, holder: bytes, due_ms: int) -> None:
    """Note when the row `holder` is due."""
    if due_ms:
        space.put_row(rows.due(due_ms, space.bucket.id, holder), b"")


def unindex(space: Space, holder: bytes, due_ms: int) -> None:
    """Take the row `holder` off the index."""
    if due_ms:
        space.delete_row(rows.due(due_ms, space.bucket.id, holder))


def scan_due(
    txn: Transaction, *, before_s: float, after: bytes = b"", limit: int = 100
) -> list[bytes]:
    """Keys of `x` rows due before `before_s`, oldest first, behind `after`."""
    begin, end = max(pack("x"), after + b"\x00"), pack("x", rows.ms_of(before_s))
    if begin >= end:
        return []
    return [key for key, _ in txn.scan(begin, end, limit=limit, keys_only=True)]


def oldest_due_s(txn: Transaction) -> float | None:
    """When the first row of the index is due; None: the index is empty."""
    found = txn.scan(*prefix_range(pack("x")), limit=1, keys_only=True)
    return rows.timed_place(found[0][0])[0] / 1000 if found else None


def _matches(rule: Rule, key: str, record: metadata_pb2.Object) -> bool:
    return (
        key.startswith(rule.prefix)
        and _has_size(record, rule)
        and _has_tags(record.tags, rule.tags)
    )


def _has_size(record: metadata_pb2.Object, rule: Rule) -> bool:
    # Of a sealed object, the size that its owner knows.
    size_bytes = record.plain_bytes if record.HasField("encryption") else record.size_bytes
    if rule.HasField("larger_than_bytes") and size_bytes <= rule.larger_than_bytes:
        return False
    return not rule.smaller_than_bytes or size_bytes < rule.smaller_than_bytes


def _has_tags(tags: Mapping[str, str], wanted: Mapping[str, str]) -> bool:
    return all(tags.get(name) == value for name, value in wanted.items())


def _has_object_filter(rule: Rule) -> bool:
    has_size = rule.HasField("larger_than_bytes") or bool(rule.smaller_than_bytes)
    return bool(rule.tags) or has_size


def _earlier(due_s: float, other_s: float) -> float:
    return other_s if due_s == 0.0 else min(due_s, other_s)


def _due_ms(due_s: float) -> int:
    return max(1, rows.ms_of(due_s)) if due_s else 0
