"""Trash: extents that no object refers to, kept for a while, then deleted from the devices.

Laws:
1. What leaves the namespace enters the trash in the same transaction.
2. A row leaves the trash after its chunks were deleted; repeating a collection is harmless.

An entry is one of four kinds, so that no transaction grows with the size of an object:
- owner: all `d` rows under a version id (object replaced or deleted, upload aborted);
- extents: some extents, moved here with the entry (a small object, a part uploaded again);
- unlisted: the parts of a completed upload that its completion did not list;
- packed: a packed stripe whose last slice went.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from exastore.metadata.kv.contract import Transaction
from exastore.metadata.kv.keys import pack, prefix_range, unpack
from exastore.metadata.namespace import packed, rows
from exastore.metadata.namespace.space import Space, open_by_id
from exastore.proto.v1 import common_pb2, metadata_pb2

OWNER = "owner"
EXTENTS = "extents"
UNLISTED = "unlisted"
PACKED = "packed"


@dataclass(frozen=True, slots=True)
class TrashEntry:
    """A row of the trash."""

    key: bytes
    bucket_id: int
    kind: str
    owner: str
    trashed_s: float
    value: bytes


@dataclass(frozen=True, slots=True)
class TrashBatch:
    """Extents of an entry, and the keys of the `d` rows that hold them."""

    extents: Sequence[common_pb2.Extent]
    row_keys: Sequence[bytes]
    #: Where the next batch begins; None: this is the last.
    next_begin: bytes | None


@dataclass(frozen=True, slots=True)
class TrashStats:
    """How much waits; the extents are an estimate when there are many entries."""

    entry_count: int
    extent_count: int
    #: When the oldest entry was put there; None: empty.
    oldest_s: float | None


def put_owner(space: Space, owner: str, now_s: float) -> None:
    """Give up everything under a version id: two mutations, whatever its size."""
    space.put_row(rows.trash(now_s, space.bucket.id, OWNER, owner, 0), b"")
    space.put(rows.dead(owner), b"")


def put_unlisted(space: Space, upload_id: str, now_s: float) -> None:
    """Give up the parts that a completed upload did not list."""
    space.put_row(rows.trash(now_s, space.bucket.id, UNLISTED, upload_id, 0), b"")


def put_extents(
    space: Space, owner: str, extents: Sequence[common_pb2.Extent], now_s: float
) -> None:
    """Give up extents, few enough for a row; those of nothing leave no entry.

    Of slices the stripe is given up, when it was the last one.
    """
    whole = [extent for extent in extents if not extent.is_slice]
    if whole:
        _put(space, EXTENTS, owner, whole, now_s)
    if len(whole) == len(extents):
        return
    for stripe in packed.release(space, [extent for extent in extents if extent.is_slice]):
        _put(space, PACKED, stripe.stripe_id.hex(), [stripe], now_s)


def _put(
    space: Space, kind: str, owner: str, extents: Sequence[common_pb2.Extent], now_s: float
) -> None:
    # A stripe id makes the key unique when a part is replaced twice in a millisecond.
    unique = int.from_bytes(extents[0].stripe_id[:8].ljust(8, b"\x00"), "big")
    value = metadata_pb2.Part(extents=extents).SerializeToString()
    space.put_row(rows.trash(now_s, space.bucket.id, kind, owner, unique), value)


def scan_trash(
    txn: Transaction, *, before_s: float, after: bytes = b"", limit: int = 100
) -> list[TrashEntry]:
    """Entries put here before `before_s`, oldest first, behind the row key `after`."""
    begin = max(pack("t"), after + b"\x00")
    end = pack("t", rows.ms_of(before_s))
    if begin >= end:
        return []
    return [_entry(key, value) for key, value in txn.scan(begin, end, limit=limit)]


def entry_extents(
    txn: Transaction, entry: TrashEntry, *, begin: bytes | None = None, row_limit: int = 32
) -> TrashBatch:
    """Some extents of an entry; the rest is behind `next_begin`.

    None of an entry that is gone: the rows that it needs may be gone, too. Raises BucketMoving.
    """
    open_by_id(txn, entry.bucket_id)
    if txn.get(entry.key) is None:
        return TrashBatch([], [], None)
    if entry.kind in (EXTENTS, PACKED):
        return TrashBatch(metadata_pb2.Part.FromString(entry.value).extents, [], None)
    base = rows.base(entry.bucket_id)
    first, end = prefix_range(base + rows.data_of(entry.owner))
    found = txn.scan(begin or first, end, limit=row_limit)
    listed: set[int] = set()
    if entry.kind == UNLISTED:
        for _, value in txn.scan(*prefix_range(base + rows.manifest_of(entry.owner))):
            listed.update(part.number for part in metadata_pb2.Object.FromString(value).parts)
    extents: list[common_pb2.Extent] = []
    row_keys: list[bytes] = []
    for key, value in found:
        if rows.data_place(rows.holder_of(key))[1] not in listed:
            extents.extend(metadata_pb2.Part.FromString(value).extents)
            row_keys.append(key)
    return TrashBatch(
        extents, row_keys, found[-1][0] + b"\x00" if len(found) == row_limit else None
    )


def drop_rows(txn: Transaction, entry: TrashEntry, row_keys: Sequence[bytes]) -> None:
    """Forget `d` rows of an entry whose chunks are deleted."""
    if not row_keys:
        return
    space = open_by_id(txn, entry.bucket_id)
    for key in row_keys:
        space.delete_row(key)
        space.delete_row(rows.degraded(entry.bucket_id, rows.holder_of(key)))


def finish_entry(txn: Transaction, entry: TrashEntry) -> None:
    """Forget an entry all of whose chunks and `d` rows are gone."""
    space = open_by_id(txn, entry.bucket_id)
    if entry.kind == OWNER:
        manifest = space.base + rows.manifest_of(entry.owner)
        for key, _ in txn.scan(*prefix_range(manifest), keys_only=True):
            space.delete_row(key)
        space.delete(rows.dead(entry.owner))
    elif entry.kind == PACKED:
        members = space.base + rows.packed_members_of(bytes.fromhex(entry.owner))
        for key, _ in txn.scan(*prefix_range(members), keys_only=True):
            space.delete_row(key)
    space.delete_row(entry.key)


def trash_stats(
    txn: Transaction, *, entry_limit: int = 100_000, counted_limit: int = 500
) -> TrashStats:
    """Count what waits: at most `entry_limit` entries.

    The extents of the oldest `counted_limit` entries are counted, the rest is taken to be alike.
    """
    begin_key, end_key = prefix_range(pack("t"))
    entry_count = len(txn.scan(begin_key, end_key, limit=entry_limit, keys_only=True))
    found = txn.scan(begin_key, end_key, limit=counted_limit)
    extent_count = 0
    for key, value in found:
        entry = _entry(key, value)
        begin: bytes | None = None
        while True:
            batch = entry_extents(txn, entry, begin=begin)
            extent_count += len(batch.extents)
            begin = batch.next_begin
            if begin is None:
                break
    oldest_s = _entry(*found[0]).trashed_s if found else None
    if entry_count > len(found):
        extent_count = extent_count * entry_count // len(found)
    return TrashStats(entry_count, extent_count, oldest_s)


def _entry(key: bytes, value: bytes) -> TrashEntry:
    _, trashed_ms, bucket_id, kind, owner, _ = unpack(key)
    assert isinstance(trashed_ms, int) and isinstance(bucket_id, int)
    assert isinstance(kind, str) and isinstance(owner, str)
    return TrashEntry(key, bucket_id, kind, owner, trashed_ms / 1000, value)
