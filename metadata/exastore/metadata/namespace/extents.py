"""All extents, and those with chunks that were not durable at commit."""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from exastore.metadata.kv.contract import Transaction
from exastore.metadata.kv.keys import pack, prefix_range
from exastore.metadata.namespace import packed, rows
from exastore.metadata.namespace.space import open_by_id
from exastore.proto.v1 import common_pb2, metadata_pb2, upkeep_pb2


@dataclass(frozen=True, slots=True)
class DegradedRow:
    """Extents of one row that have missing chunks."""

    key: bytes
    extents: list[common_pb2.Extent]


def list_extents(
    txn: Transaction, *, begin: bytes = b"", row_limit: int = 500
) -> tuple[list[common_pb2.Extent], bytes | None]:
    """A batch of the extents of every object and part, and where the next batch begins.

    What is in the trash is left out; slices are part of packed stripes. Every batch is a snapshot,
    not their union.
    """
    first, end = prefix_range(pack("n"))
    found = txn.scan(max(first + b"\x00", begin), end, limit=row_limit)
    extents: list[common_pb2.Extent] = []
    asked, is_dead = b"", False
    for key, value in found:
        holder = rows.holder_of(key)
        kind = holder[:1]
        if kind in (rows.CURRENT, rows.OTHER):
            found_extents = metadata_pb2.Object.FromString(value).extents
            extents.extend(extent for extent in found_extents if not extent.is_slice)
        elif kind == rows.STRIPE:
            extents.append(upkeep_pb2.PackedStripe.FromString(value).extent)
        elif kind == rows.DATA:
            dead_key = rows.base(rows.bucket_id_of(key)) + rows.dead(rows.data_place(holder)[0])
            if dead_key != asked:
                asked, is_dead = dead_key, txn.get(dead_key) is not None
            if not is_dead:
                extents.extend(metadata_pb2.Part.FromString(value).extents)
    return extents, found[-1][0] + b"\x00" if len(found) == row_limit else None


def list_degraded(
    txn: Transaction, *, begin: bytes = b"", row_limit: int = 200
) -> tuple[list[DegradedRow], bytes | None]:
    """A batch of degraded rows, and where the next batch begins."""
    first, end = prefix_range(pack("g"))
    found = txn.scan(max(first, begin), end, limit=row_limit)
    degraded = [
        DegradedRow(key, list(metadata_pb2.ListExtentsResponse.FromString(value).extents))
        for key, value in found
    ]
    return degraded, found[-1][0] + b"\x00" if len(found) == row_limit else None


def mark_rebuilt(txn: Transaction, row_key: bytes, rebuilt: Collection[tuple[bytes, int]]) -> int:
    """Take (stripe id, index) pairs off a degraded row and the row it speaks of.

    Returns:
        The number of stripes of the row that still miss chunks.

    Raises BucketMoving.
    """
    value = txn.get(row_key)
    if value is None:
        return 0
    bucket_id, holder = rows.degraded_place(row_key)
    space = open_by_id(txn, bucket_id)
    degraded = metadata_pb2.ListExtentsResponse.FromString(value)
    missing_by_stripe = {
        extent.stripe_id: [
            index for index in extent.missing_indexes if (extent.stripe_id, index) not in rebuilt
        ]
        for extent in degraded.extents
    }
    held = space.get(holder)
    remaining = metadata_pb2.ListExtentsResponse()
    if held is not None:
        is_part = holder.startswith(rows.DATA)
        row = metadata_pb2.Part() if is_part else metadata_pb2.Object()
        row.ParseFromString(held)
        _set_missing(row.extents, missing_by_stripe)
        space.put(holder, row.SerializeToString())
        if isinstance(row, metadata_pb2.Object):
            packed.index(space, holder, row)
        remaining.extents.extend(e for e in degraded.extents if missing_by_stripe[e.stripe_id])
        _set_missing(remaining.extents, missing_by_stripe)
    if remaining.extents:
        space.put_row(row_key, remaining.SerializeToString())
    else:
        space.delete_row(row_key)
    return len(remaining.extents)


def _set_missing(
    extents: Iterable[common_pb2.Extent], missing_by_stripe: Mapping[bytes, list[int]]
) -> None:
    for extent in extents:
        if extent.stripe_id in missing_by_stripe:
            del extent.missing_indexes[:]
            extent.missing_indexes.extend(missing_by_stripe[extent.stripe_id])
