"""All extents, and those with chunks that were not durable at commit."""

from collections.abc import Collection
from dataclasses import dataclass

from exastore.metadata.kv.contract import Transaction
from exastore.metadata.kv.keys import pack, prefix_range
from exastore.metadata.namespace import rows
from exastore.proto.v1 import common_pb2, metadata_pb2


@dataclass(frozen=True, slots=True)
class DegradedRow:
    """Extents of one `d` row that have missing chunks."""

    key: bytes
    extents: list[common_pb2.Extent]


def list_extents(
    txn: Transaction, *, begin: bytes = b"", row_limit: int = 500
) -> tuple[list[common_pb2.Extent], bytes | None]:
    """A batch of the extents of every object and part, and where the next batch begins.

    What is in the trash as a whole is left out. Every batch is a snapshot, not their union.
    """
    first, end = prefix_range(pack("d"))
    found = txn.scan(max(first, begin), end, limit=row_limit)
    extents: list[common_pb2.Extent] = []
    owner, dead = "", False
    for key, value in found:
        row_owner = rows.data_place(key)[0]
        if row_owner != owner:
            owner, dead = row_owner, txn.get(rows.dead_key(row_owner)) is not None
        if not dead:
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
    """Take (stripe id, index) pairs off a degraded row and its `d` row.

    Returns:
        The number of stripes of the row that still miss chunks.
    """
    value = txn.get(row_key)
    if value is None:
        return 0
    degraded = metadata_pb2.ListExtentsResponse.FromString(value)
    missing_by_stripe: dict[bytes, list[int]] = {}
    for extent in degraded.extents:
        missing_by_stripe[extent.stripe_id] = [
            index for index in extent.missing_indexes if (extent.stripe_id, index) not in rebuilt
        ]
    data_key = rows.data_key(*rows.data_place(row_key))
    data = txn.get(data_key)
    if data is not None:
        part = metadata_pb2.Part.FromString(data)
        for extent in part.extents:
            if extent.stripe_id in missing_by_stripe:
                del extent.missing_indexes[:]
                extent.missing_indexes.extend(missing_by_stripe[extent.stripe_id])
        txn.put(data_key, part.SerializeToString())
    remaining = metadata_pb2.ListExtentsResponse()
    for extent in degraded.extents:
        missing = missing_by_stripe[extent.stripe_id]
        if missing and data is not None:
            del extent.missing_indexes[:]
            extent.missing_indexes.extend(missing)
            remaining.extents.append(extent)
    if remaining.extents:
        txn.put(row_key, remaining.SerializeToString())
    else:
        txn.delete(row_key)
    return len(remaining.extents)
