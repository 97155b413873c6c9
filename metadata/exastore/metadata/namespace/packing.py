"""Packing: which small objects wait, and how they come to be slices of a stripe.

Laws:
1. A version becomes a slice only in a transaction that finds it as it was read: its log extent, or
   the slice that it was, goes to the trash in the same one. So a packer may die at any point.
2. The first transaction that makes slices of a stripe makes its `p` row; all others demand it.
   Otherwise a stripe all of whose objects were deleted meanwhile, and which is in the trash, would
   be referred to again.

The `r` rows of a stripe name the versions that were packed into it, so that a sparse stripe can be
packed anew without reading the bucket. They may name some that are gone; they go with the trash.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from exastore.metadata.kv.contract import Transaction
from exastore.metadata.kv.keys import pack, prefix_range
from exastore.metadata.namespace import packed, rows, trash, versions
from exastore.metadata.namespace.objects import Fence, check_age
from exastore.metadata.namespace.space import Space, open_by_id
from exastore.proto.v1 import common_pb2, metadata_pb2, upkeep_pb2

#: Objects that one transaction turns into slices: four mutations each while the bucket is copied.
SWAP_COUNT_MAX = 20
#: A row of members takes no more than this, far below the engine's limit.
_MEMBER_ROW_BYTES = 48 * 1024


@dataclass(frozen=True, slots=True)
class Candidate:
    """A version that could be packed."""

    #: Its row behind the bucket's base.
    holder: bytes
    #: Its bytes as they are now: a log extent or a slice.
    extent: common_pb2.Extent
    written_s: float


@dataclass(frozen=True, slots=True)
class Swap:
    """A version and the slice that it shall be."""

    candidate: Candidate
    piece: common_pb2.Extent


@dataclass(frozen=True, slots=True)
class Swapped:
    """What a transaction did."""

    count: int
    #: The stripe is there: later transactions may add to it.
    exists: bool


def buckets_to_pack(txn: Transaction) -> list[int]:
    """Ids of the buckets with objects that wait, or with sparse stripes."""
    found: set[int] = set()
    for kind in ("j", "J"):
        begin, end = prefix_range(pack(kind))
        while True:
            first = txn.scan(begin, end, limit=1, keys_only=True)
            if not first:
                break
            bucket_id = rows.bucket_id_of(first[0][0])
            found.add(bucket_id)
            begin = pack(kind, bucket_id + 1)
    return sorted(found)


def unpacked(
    txn: Transaction, bucket_id: int, *, begin: bytes = b"", limit: int = 500
) -> tuple[list[Candidate], bytes | None]:
    """Objects that wait, in the order of their rows, and where to go on; None: there are no more.

    Objects with missing chunks wait for these first.
    """
    first, end = prefix_range(pack("j", bucket_id))
    found = txn.scan(max(first, begin), end, limit=limit)
    candidates: list[Candidate] = []
    for key, value in found:
        row = upkeep_pb2.UnpackedObject.FromString(value)
        if not row.extent.missing_indexes:
            candidates.append(Candidate(rows.holder_of(key), row.extent, row.written_s))
    return candidates, found[-1][0] + b"\x00" if len(found) == limit else None


def sparse_stripes(
    txn: Transaction, bucket_id: int, *, limit: int = 8
) -> list[tuple[upkeep_pb2.PackedStripe, list[Candidate]]]:
    """Some stripes that are worth to be packed anew, with the versions that are slices of them."""
    space = open_by_id(txn, bucket_id)
    found: list[tuple[upkeep_pb2.PackedStripe, list[Candidate]]] = []
    for key, _ in txn.scan(*prefix_range(pack("J", bucket_id)), limit=limit, keys_only=True):
        stripe = packed.find(space, rows.holder_of(key))
        if stripe is not None:
            found.append((stripe, _members(space, stripe)))
    return found


def swap(
    txn: Transaction,
    bucket_id: int,
    stripe: common_pb2.Extent,
    swaps: Sequence[Swap],
    now_s: float,
    fence: Fence,
    *,
    may_create: bool,
) -> Swapped:
    """Make versions that are still the same slices of `stripe`; at most SWAP_COUNT_MAX.

    Raises BucketMoving, and what `fence` raises.
    """
    assert len(swaps) <= SWAP_COUNT_MAX, "one transaction packs few objects"
    space = open_by_id(txn, bucket_id)
    fence(txn, [stripe], space.bucket.pool)
    check_age(txn, [stripe])
    row = packed.find(space, stripe.stripe_id)
    if space.is_gone or (row is None and not may_create):
        return Swapped(0, exists=False)
    values = txn.multi_get([space.base + item.candidate.holder for item in swaps])
    old: list[common_pb2.Extent] = []
    new: list[common_pb2.Extent] = []
    members: list[upkeep_pb2.PackedMember] = []
    for item, value in zip(swaps, values, strict=True):
        record = _same(item.candidate, value)
        if record is None:
            continue
        holder = item.candidate.holder
        packed.unindex(space, holder, record)
        record.extents[0].CopyFrom(item.piece)
        space.put(holder, record.SerializeToString())
        old.append(item.candidate.extent)
        new.append(item.piece)
        members.append(_member(holder, record))
    if new:
        row = row or upkeep_pb2.PackedStripe(extent=stripe)
        _add_members(space, row, members)
        packed.add(space, row, new)
        # Each place of a stripe is taken once, so no other entry of the trash has this name.
        owner = f"{stripe.stripe_id.hex()}-{new[0].slice_offset}"
        trash.put_extents(space, owner, old, now_s)
    return Swapped(len(new), exists=row is not None)


def _same(candidate: Candidate, value: bytes | None) -> metadata_pb2.Object | None:
    """The record, if its bytes are where they were."""
    if value is None:
        return None
    record = metadata_pb2.Object.FromString(value)
    if len(record.extents) != 1:
        return None
    now, then = record.extents[0], candidate.extent
    is_same = (now.stripe_id, now.slice_offset) == (then.stripe_id, then.slice_offset)
    return record if is_same and not now.missing_indexes else None


def _member(holder: bytes, record: metadata_pb2.Object) -> upkeep_pb2.PackedMember:
    if holder.startswith(rows.CURRENT):
        return upkeep_pb2.PackedMember(key=holder[1:].decode(), order=versions.order_of(record))
    key, order = rows.version_place(holder)
    return upkeep_pb2.PackedMember(key=key, order=order)


def _add_members(
    space: Space,
    stripe: upkeep_pb2.PackedStripe,
    members: Sequence[upkeep_pb2.PackedMember],
) -> None:
    """Note more members: in the last row, unless it is full."""
    more = upkeep_pb2.PackedMembers(members=members)
    number = max(0, stripe.member_row_count - 1)
    holder = rows.packed_members(stripe.extent.stripe_id, number)
    value = space.get(holder) if stripe.member_row_count else None
    if value is not None and len(value) + more.ByteSize() > _MEMBER_ROW_BYTES:
        number, value = number + 1, None
        holder = rows.packed_members(stripe.extent.stripe_id, number)
    # Messages of repeated fields are joined by joining their bytes.
    space.put(holder, (value or b"") + more.SerializeToString())
    stripe.member_row_count = number + 1


def _members(space: Space, stripe: upkeep_pb2.PackedStripe) -> list[Candidate]:
    """The versions that are slices of a stripe."""
    stripe_id = stripe.extent.stripe_id
    found: list[Candidate] = []
    for _, value in space.scan(rows.packed_members_of(stripe_id)):
        for member in upkeep_pb2.PackedMembers.FromString(value).members:
            for holder in (rows.current(member.key), rows.version(member.key, member.order)):
                record_value = space.get(holder)
                if record_value is None:
                    continue
                record = metadata_pb2.Object.FromString(record_value)
                if (
                    versions.order_of(record) == member.order
                    and len(record.extents) == 1
                    and record.extents[0].is_slice
                    and record.extents[0].stripe_id == stripe_id
                ):
                    found.append(Candidate(holder, record.extents[0], record.modified_s))
                    break
    return found
