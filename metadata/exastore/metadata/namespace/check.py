"""The checker: reads all rows of a bucket and says what does not fit together.

It counts what the counters count, and it holds the laws of `versions.py` and `lifecycle.py` to the
rows: index rows if and only if records ask for them, orders that fall, null versions by name.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

from exastore.metadata.kv.contract import Transaction
from exastore.metadata.kv.keys import after_prefix, pack, prefix_range
from exastore.metadata.namespace import packed, rows, uploads, usage, versions
from exastore.metadata.namespace.space import Space, open_to_read
from exastore.proto.v1 import metadata_pb2, upkeep_pb2

_BATCH_COUNT = 1000


@dataclass(slots=True)
class Findings:
    """What a check found.

    Attributes:
        counters: What the counters of the bucket say, usage.COUNT numbers.
        counted: What its rows say.
        wrong: What breaks a law, in words; empty: nothing.
    """

    counters: list[int]
    counted: list[int] = field(default_factory=lambda: [0] * usage.COUNT)
    wrong: list[str] = field(default_factory=list[str])

    @property
    def is_sound(self) -> bool:
        """Nothing is wrong and the counters are right."""
        return not self.wrong and self.counters == self.counted


def count_bucket(txn: Transaction, name: str) -> Findings:
    """Compare the counters with the rows. Raises NoSuchBucket, BucketMoving."""
    space = open_to_read(txn, name)
    findings = Findings(list(space.used()))
    for kind in (rows.CURRENT, rows.OTHER):
        for _, value in _all(space, kind):
            record = metadata_pb2.Object.FromString(value)
            if record.delete_marker:
                findings.counted[usage.MARKERS] += 1
            else:
                findings.counted[usage.OBJECTS] += 1
                findings.counted[usage.OBJECT_BYTES] += record.size_bytes
    for holder, _ in _all(space, rows.UPLOAD):
        findings.counted[usage.UPLOADS] += 1
        _count_parts(space, rows.upload_place(holder)[1], findings)
    return findings


def check_bucket(txn: Transaction, name: str) -> Findings:
    """Check everything; reads the index rows of all buckets, so it is for tests and small stores.

    Raises NoSuchBucket, BucketMoving.
    """
    findings = count_bucket(txn, name)
    space = open_to_read(txn, name)
    _check_versions(space, findings)
    _check_index(space, findings)
    _check_packed(space, findings)
    return findings


def check_tenant(txn: Transaction, tenant: str) -> tuple[list[int], list[int]]:
    """The tenant's counters, and the sums of those of its buckets, both of this engine."""
    sums = [0] * usage.COUNT
    for _, value in txn.scan(*prefix_range(pack("b"))):
        bucket = metadata_pb2.Bucket.FromString(value)
        if bucket.owner == tenant:
            for place, number in enumerate(Space(txn, bucket).used()):
                sums[place] += number
    return usage.read(txn, usage.tenant_key_of(tenant)), sums


def _count_parts(space: Space, upload_id: str, findings: Findings) -> None:
    count = size_bytes = 0
    for holder, value in _all(space, rows.data_of(upload_id)):
        if rows.data_place(holder)[2] == 0:
            count += 1
            size_bytes += metadata_pb2.Part.FromString(value).size_bytes
    findings.counted[usage.PARTS] += count
    findings.counted[usage.PART_BYTES] += size_bytes
    totals = uploads.part_totals(space, upload_id)
    if (totals.part_count, totals.part_bytes) != (count, size_bytes):
        findings.wrong.append(
            f"upload {upload_id}: {totals}, but {count} parts, {size_bytes} bytes"
        )


def _check_versions(space: Space, findings: Findings) -> None:
    newest: dict[str, metadata_pb2.Object] = {
        holder[1:].decode(): metadata_pb2.Object.FromString(value)
        for holder, value in _all(space, rows.CURRENT)
    }
    wrong = findings.wrong
    wrong += [
        f"{key!r}: an `o` row that is no current object"
        for key, record in newest.items()
        if record.delete_marker or record.noncurrent_s
    ]
    nulls: set[bytes] = set()
    for holder, value in _all(space, rows.OTHER):
        key, order = rows.version_place(holder)
        record = metadata_pb2.Object.FromString(value)
        if order != record.order:
            wrong.append(f"{key!r}: order {record.order} in the row of {order}")
        newer = newest.get(key)
        if newer is None and (not record.delete_marker or record.noncurrent_s):
            wrong.append(f"{key!r}: no current version, and the newest is no delete marker")
        elif newer is not None and not record.noncurrent_s:
            wrong.append(f"{key!r}: an older version does not say since when")
        elif newer is not None and versions.order_of(newer) <= order:
            wrong.append(f"{key!r}: orders do not fall: {versions.order_of(newer)}, {order}")
        newest[key] = record
        if not record.versioned:
            nulls.add(rows.null_version(key) + holder[-8:])
    named = {holder + value for holder, value in _all(space, rows.NULL)}
    if named != nulls:
        wrong.append(f"null versions: named {named}, found {nulls}")


def _check_index(space: Space, findings: Findings) -> None:
    bucket_id = space.bucket.id
    due: set[bytes] = set()
    degraded: set[bytes] = set()
    for kind in (rows.CURRENT, rows.OTHER):
        for holder, value in _all(space, kind):
            record = metadata_pb2.Object.FromString(value)
            if record.due_ms:
                due.add(rows.due(record.due_ms, bucket_id, holder))
            if any(extent.missing_indexes for extent in record.extents):
                degraded.add(rows.degraded(bucket_id, holder))
    for holder, value in _all(space, rows.UPLOAD):
        upload = metadata_pb2.Upload.FromString(value)
        if upload.due_ms:
            due.add(rows.due(upload.due_ms, bucket_id, holder))
    for holder, value in _all(space, rows.DATA):
        if any(e.missing_indexes for e in metadata_pb2.Part.FromString(value).extents):
            degraded.add(rows.degraded(bucket_id, holder))
    found = {
        key
        for key, _ in space.txn.scan(*prefix_range(pack("x")), keys_only=True)
        if rows.timed_place(key)[1] == bucket_id
    }
    if found != due:
        findings.wrong.append(f"due times: {len(found - due)} too many, {len(due - found)} missing")
    marked = {key for key, _ in space.txn.scan(*prefix_range(pack("g", bucket_id)))}
    if marked != degraded:
        findings.wrong.append(
            f"degraded: {len(marked - degraded)} too many, {len(degraded - marked)} missing"
        )


def _check_packed(space: Space, findings: Findings) -> None:
    """Packed stripes count what refers to them, and index rows tell what is to be packed."""
    bucket_id = space.bucket.id
    counted: dict[bytes, list[int]] = {}
    waiting: dict[bytes, bytes] = {}
    for kind in (rows.CURRENT, rows.OTHER):
        for holder, value in _all(space, kind):
            for extent in metadata_pb2.Object.FromString(value).extents:
                if extent.is_slice:
                    count = counted.setdefault(extent.stripe_id, [0, 0])
                    count[0] += 1
                    count[1] += extent.data_bytes
                elif extent.is_log:
                    waiting[rows.unpacked(bucket_id, holder)] = extent.SerializeToString()
    sparse: set[bytes] = set()
    told: dict[bytes, list[int]] = {}
    for holder, value in _all(space, rows.STRIPE):
        stripe = upkeep_pb2.PackedStripe.FromString(value)
        told[holder[1:]] = [stripe.live_count, stripe.live_bytes]
        if packed.is_sparse(stripe):
            sparse.add(rows.sparse(bucket_id, holder[1:]))
    if told != counted:
        findings.wrong.append(f"packed stripes: counters {told}, but rows say {counted}")
    if {key for key, _ in space.txn.scan(*prefix_range(pack("J", bucket_id)))} != sparse:
        findings.wrong.append("the index of sparse stripes is wrong")
    found = {
        key: upkeep_pb2.UnpackedObject.FromString(value).extent.SerializeToString()
        for key, value in space.txn.scan(*prefix_range(pack("j", bucket_id)))
    }
    if found != waiting:
        findings.wrong.append("the index of objects that wait to be packed is wrong")


def _all(space: Space, begin: bytes) -> Iterator[tuple[bytes, bytes]]:
    """All rows that begin so, in batches of one snapshot."""
    end = after_prefix(begin)
    while True:
        found = space.scan(begin, end, limit=_BATCH_COUNT)
        yield from found
        if len(found) < _BATCH_COUNT:
            return
        begin = found[-1][0] + b"\x00"
