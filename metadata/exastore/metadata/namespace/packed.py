"""Packed stripes: what refers to them, and when they have had their day.

A small object is committed as a log extent: copies of its bytes. Later it becomes a slice of a
stripe that it shares with others of its bucket.

Laws:
1. A version whose extent is a log extent has a `j` row, and no other version has: so finding what
   waits to be packed scans nothing else. The row is written and deleted with the record.
2. The `p` row of a stripe counts the bytes and versions that are slices of it. It is changed in
   the transactions that change them, and goes to the trash when the last of them goes.
3. A stripe of which less than half is live has a `J` row, and no other stripe has.

Slices and log extents are always the only extent of a record: parts of uploads are never packed.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from exastore.metadata.kv.contract import Transaction
from exastore.metadata.kv.keys import after_prefix, pack, prefix_range
from exastore.metadata.namespace import rows
from exastore.metadata.namespace.space import Space
from exastore.proto.v1 import common_pb2, metadata_pb2, upkeep_pb2

Stripe = upkeep_pb2.PackedStripe
_COUNTED_LIMIT = 100_000
_BATCH_COUNT = 500


@dataclass(slots=True)
class PackingTotals:
    """What waits and what is packed, in one engine."""

    unpacked_count: int = 0
    unpacked_bytes: int = 0
    #: When the oldest object that waits was written; None: none waits.
    oldest_s: float | None = None
    stripe_count: int = 0
    object_count: int = 0
    live_bytes: int = 0
    packed_bytes: int = 0
    stored_bytes: int = 0
    sparse_count: int = 0


# ---- rows with their records ----


def index(space: Space, holder: bytes, record: metadata_pb2.Object) -> None:
    """Write the `j` row of a record, if it asks for one."""
    for extent in record.extents:
        if extent.is_log:
            row = upkeep_pb2.UnpackedObject(extent=extent, written_s=record.modified_s)
            space.put_row(rows.unpacked(space.bucket.id, holder), row.SerializeToString())


def unindex(space: Space, holder: bytes, record: metadata_pb2.Object) -> None:
    """Delete the `j` row of a record."""
    if any(extent.is_log for extent in record.extents):
        space.delete_row(rows.unpacked(space.bucket.id, holder))


# ---- stripes ----


def find(space: Space, stripe_id: bytes) -> Stripe | None:
    value = space.get(rows.packed_stripe(stripe_id))
    return None if value is None else Stripe.FromString(value)


def is_sparse(stripe: Stripe) -> bool:
    return 2 * stripe.live_bytes < stripe.packed_bytes


def add(space: Space, stripe: Stripe, slices: Sequence[common_pb2.Extent]) -> None:
    """Count slices in; the stripe may be new."""
    was_sparse = is_sparse(stripe)
    added_bytes = sum(piece.data_bytes for piece in slices)
    stripe.packed_bytes += added_bytes
    stripe.live_bytes += added_bytes
    stripe.live_count += len(slices)
    _put(space, stripe, was_sparse)


def release(space: Space, slices: Iterable[common_pb2.Extent]) -> list[common_pb2.Extent]:
    """Count slices out; the whole stripes that nothing refers to any more, for the trash."""
    by_stripe: dict[bytes, list[common_pb2.Extent]] = {}
    for piece in slices:
        by_stripe.setdefault(piece.stripe_id, []).append(piece)
    dead: list[common_pb2.Extent] = []
    for stripe_id, pieces in by_stripe.items():
        stripe = find(space, stripe_id)
        assert stripe is not None, "a slice keeps its stripe"
        was_sparse = is_sparse(stripe)
        stripe.live_bytes -= sum(piece.data_bytes for piece in pieces)
        stripe.live_count -= len(pieces)
        if stripe.live_count:
            _put(space, stripe, was_sparse)
            continue
        assert stripe.live_bytes == 0, "bytes belong to versions"
        space.delete(rows.packed_stripe(stripe_id))
        if was_sparse:
            space.delete_row(rows.sparse(space.bucket.id, stripe_id))
        dead.append(stripe.extent)
    return dead


def _put(space: Space, stripe: Stripe, was_sparse: bool) -> None:
    stripe_id = stripe.extent.stripe_id
    space.put(rows.packed_stripe(stripe_id), stripe.SerializeToString())
    if is_sparse(stripe) != was_sparse:
        key = rows.sparse(space.bucket.id, stripe_id)
        if was_sparse:
            space.delete_row(key)
        else:
            space.put_row(key, b"")


# ---- walks ----


def totals(txn: Transaction) -> PackingTotals:
    """Count everything; of objects that wait at most 100,000, and as many stripes."""
    found = PackingTotals()
    for _, value in _all(txn, pack("j")):
        row = upkeep_pb2.UnpackedObject.FromString(value)
        found.unpacked_count += 1
        found.unpacked_bytes += row.extent.data_bytes
        if found.oldest_s is None or row.written_s < found.oldest_s:
            found.oldest_s = row.written_s
        if found.unpacked_count == _COUNTED_LIMIT:
            break
    for _, value in txn.scan(*prefix_range(pack("b"))):
        bucket = metadata_pb2.Bucket.FromString(value)
        for _, stripe_value in _all(txn, rows.base(bucket.id) + rows.STRIPE):
            stripe = Stripe.FromString(stripe_value)
            found.stripe_count += 1
            found.object_count += stripe.live_count
            found.live_bytes += stripe.live_bytes
            found.packed_bytes += stripe.packed_bytes
            found.stored_bytes += stripe.extent.chunk_bytes * len(stripe.extent.chunk_crc32c)
            found.sparse_count += is_sparse(stripe)
            if found.stripe_count == _COUNTED_LIMIT:
                return found
    return found


def _all(txn: Transaction, begin: bytes) -> Iterator[tuple[bytes, bytes]]:
    end = after_prefix(begin)
    while True:
        batch = txn.scan(begin, end, limit=_BATCH_COUNT)
        yield from batch
        if len(batch) < _BATCH_COUNT:
            return
        begin = batch[-1][0] + b"\x00"
