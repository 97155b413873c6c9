"""What a bucket and a tenant use, and what they may use.

Laws:
1. A counter changes in the transaction that changes what it counts, so it never drifts.
2. Counters are spread over `SLOT_COUNT` rows, so that writers of different keys do not meet.
3. A quota is shared out: each row holds an allotment, the allotments add up to at most the quota,
   and a row that keeps to its allotment need not read the others. A row that would not makes the
   transaction read all of them, decide by their sum, and share out again what is left.

So a quota is exact, and only writers near its end meet.
"""

import struct
from collections.abc import Callable, Mapping, Sequence
from operator import add

from exastore.metadata.kv.contract import Transaction
from exastore.metadata.namespace import rows
from exastore.metadata.namespace.errors import QuotaExceeded
from exastore.proto.v1 import metadata_pb2

SLOT_COUNT = 8
#: Places of the numbers in a row, in the order of the fields of Usage.
OBJECTS, OBJECT_BYTES, MARKERS, UPLOADS, PARTS, PART_BYTES = range(6)
COUNT = 6
_ALLOTTED_BYTES, _ALLOTTED_OBJECTS, _REVISION = 6, 7, 8
_ROW = struct.Struct("<9q")
_EMPTY = bytes(_ROW.size)
#: Of a share's revision: the bits below that of the whole quota.
SHARE_BITS = 20

#: Changes by slot; each has COUNT numbers.
Deltas = Mapping[int, Sequence[int]]
KeyOf = Callable[[int], bytes]
Put = Callable[[bytes, bytes], None]


def apply(
    txn: Transaction,
    deltas: Deltas,
    values: Sequence[bytes | None],
    key_of: KeyOf,
    put: Put,
    quota: metadata_pb2.Quota | None,
    whose: str,
) -> None:
    """Change the counters. Raises QuotaExceeded if they grow beyond the quota.

    Args:
        values: What the rows of the slots in `deltas` hold.
    """
    changed: dict[int, list[int]] = {}
    limit = quota if quota is not None and (quota.max_bytes or quota.max_objects) else None
    must_share_out = False
    for (slot, delta), value in zip(deltas.items(), values, strict=True):
        row = _read(value)
        row[:COUNT] = map(add, row, delta)
        changed[slot] = row
        if limit is not None:
            must_share_out |= not _is_within(row, delta, limit)
    if must_share_out and quota is not None:
        _share_out(txn, changed, deltas, key_of, quota, whose)
    for slot, row in changed.items():
        put(key_of(slot), _ROW.pack(*row))


def _is_within(row: Sequence[int], delta: Sequence[int], quota: metadata_pb2.Quota) -> bool:
    """Whether a changed row, if it grew, keeps to an allotment of this quota."""
    more_bytes = delta[OBJECT_BYTES] + delta[PART_BYTES]
    if more_bytes <= 0 and delta[OBJECTS] <= 0:
        return True
    if row[_REVISION] != quota.revision:
        return False
    if quota.max_bytes and more_bytes > 0 and _bytes_of(row) > row[_ALLOTTED_BYTES]:
        return False
    return not (quota.max_objects and delta[OBJECTS] > 0 and row[OBJECTS] > row[_ALLOTTED_OBJECTS])


def _share_out(
    txn: Transaction,
    changed: dict[int, list[int]],
    deltas: Deltas,
    key_of: KeyOf,
    quota: metadata_pb2.Quota,
    whose: str,
) -> None:
    """Read the other rows, decide, and share what is left among all."""
    others = [slot for slot in range(SLOT_COUNT) if slot not in changed]
    values = txn.multi_get([key_of(slot) for slot in others])
    changed.update((slot, _read(value)) for slot, value in zip(others, values, strict=True))
    used_bytes = sum(_bytes_of(row) for row in changed.values())
    used_objects = sum(row[OBJECTS] for row in changed.values())
    more_bytes = sum(delta[OBJECT_BYTES] + delta[PART_BYTES] for delta in deltas.values())
    more_objects = sum(delta[OBJECTS] for delta in deltas.values())
    if quota.max_bytes and more_bytes > 0 and used_bytes > quota.max_bytes:
        raise QuotaExceeded(whose, "bytes", used_bytes, quota.max_bytes)
    if quota.max_objects and more_objects > 0 and used_objects > quota.max_objects:
        raise QuotaExceeded(whose, "objects", used_objects, quota.max_objects)
    spare_bytes = max(0, quota.max_bytes - used_bytes) // SLOT_COUNT
    spare_objects = max(0, quota.max_objects - used_objects) // SLOT_COUNT
    for row in changed.values():
        row[_ALLOTTED_BYTES] = _bytes_of(row) + spare_bytes
        row[_ALLOTTED_OBJECTS] = row[OBJECTS] + spare_objects
        row[_REVISION] = quota.revision


def add_all(txn: Transaction, bucket_key_of: KeyOf, tenant: str, sign: int) -> None:
    """Add all that a bucket uses to its tenant (1), or take it off (-1), and as much of its quota.

    The tenant's allotments end with it, so the next writer shares them out.
    """
    key_of = tenant_key_of(tenant)
    move_share(txn, tenant, read(txn, bucket_key_of), sign)
    for slot in range(SLOT_COUNT):
        used = _read(txn.get(bucket_key_of(slot)))
        row = _read(txn.get(key_of(slot)))
        for place in range(COUNT):
            row[place] += sign * used[place]
        row[_REVISION] = 0
        txn.put(key_of(slot), _ROW.pack(*row))


def read(txn: Transaction, key_of: KeyOf) -> list[int]:
    """The sums of all rows, COUNT numbers."""
    sums = [0] * COUNT
    for value in txn.multi_get([key_of(slot) for slot in range(SLOT_COUNT)]):
        row = _read(value)
        for place in range(COUNT):
            sums[place] += row[place]
    return sums


def message_of(numbers: Sequence[int], quota: metadata_pb2.Quota | None) -> metadata_pb2.Usage:
    return metadata_pb2.Usage(
        object_count=numbers[OBJECTS],
        object_bytes=numbers[OBJECT_BYTES],
        marker_count=numbers[MARKERS],
        upload_count=numbers[UPLOADS],
        part_count=numbers[PARTS],
        part_bytes=numbers[PART_BYTES],
        quota=quota,
    )


def find_tenant_quota(txn: Transaction, tenant: str) -> metadata_pb2.Quota | None:
    return quota_of(txn.get(rows.tenant_quota(tenant)))


def quota_of(value: bytes | None) -> metadata_pb2.Quota | None:
    """The quota in a tenant's row."""
    return None if value is None else metadata_pb2.Quota.FromString(value)


def shrink_share(
    txn: Transaction, tenant: str, share: metadata_pb2.Quota, total_revision: int, *, is_over: bool
) -> None:
    """Lower what the tenant's buckets in this engine may use, never raise it.

    Args:
        share: What it should be; zeros: no limit.
        total_revision: Of the tenant's quota that the share is part of.
        is_over: The tenant uses more than its quota. Otherwise a share is not taken below what is
            used by now, which others must not be given.
    """
    known = find_tenant_quota(txn, tenant)
    used = read(txn, tenant_key_of(tenant))
    used_bytes = 0 if is_over else _bytes_of(used)
    used_objects = 0 if is_over else used[OBJECTS]
    stored = metadata_pb2.Quota(
        max_bytes=_shrunk(known.max_bytes if known else 0, share.max_bytes, used_bytes),
        max_objects=_shrunk(known.max_objects if known else 0, share.max_objects, used_objects),
    )
    _put_share(txn, tenant, known, stored, total_revision)


def grow_share(
    txn: Transaction, tenant: str, more: metadata_pb2.Quota, total_revision: int
) -> None:
    """Raise what the tenant's buckets in this engine may use, if the quota is still the same."""
    known = find_tenant_quota(txn, tenant)
    if known is None or known.revision >> SHARE_BITS != total_revision:
        return
    stored = metadata_pb2.Quota(
        max_bytes=known.max_bytes + (more.max_bytes if known.max_bytes else 0),
        max_objects=known.max_objects + (more.max_objects if known.max_objects else 0),
    )
    _put_share(txn, tenant, known, stored, total_revision)


def move_share(txn: Transaction, tenant: str, bucket_used: Sequence[int], sign: int) -> None:
    """Give a bucket that comes (1) or goes (-1) its part of the tenant's quota along."""
    known = find_tenant_quota(txn, tenant)
    if known is None:
        return
    stored = metadata_pb2.Quota()
    if known.max_bytes:
        stored.max_bytes = max(1, known.max_bytes + sign * _bytes_of(bucket_used))
    if known.max_objects:
        stored.max_objects = max(1, known.max_objects + sign * bucket_used[OBJECTS])
    _put_share(txn, tenant, known, stored, known.revision >> SHARE_BITS)


def _shrunk(current: int, wanted: int, used: int) -> int:
    if not wanted:
        return 0
    least = max(wanted, used, 1)
    return min(current, least) if current else least


def _put_share(
    txn: Transaction,
    tenant: str,
    known: metadata_pb2.Quota | None,
    share: metadata_pb2.Quota,
    total_revision: int,
) -> None:
    """Store a share; its revision grows, and begins with that of the whole quota."""
    before = 0 if known is None else known.revision
    share.revision = max(before + 1, total_revision << SHARE_BITS)
    txn.put(rows.tenant_quota(tenant), share.SerializeToString())


def tenant_usage(txn: Transaction, tenant: str) -> metadata_pb2.Usage:
    """What the tenant's buckets in this engine use."""
    numbers = read(txn, tenant_key_of(tenant))
    return message_of(numbers, find_tenant_quota(txn, tenant))


def tenant_key_of(tenant: str) -> KeyOf:
    return lambda slot: rows.tenant_usage(tenant, slot)


def _read(value: bytes | None) -> list[int]:
    return list(_ROW.unpack(_EMPTY if value is None else value))


def _bytes_of(row: Sequence[int]) -> int:
    return row[OBJECT_BYTES] + row[PART_BYTES]
