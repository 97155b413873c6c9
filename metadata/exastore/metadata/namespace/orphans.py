"""What the collection of orphans asks: which stripes are known, and whether a walk saw all of them.

Laws:
1. A walk in the order of the keys sees every stripe that is known from its beginning to its end.
   References only move forward in that order (a version that is replaced from `o` to `v`, what is
   given up from there to the trash), with two exceptions that `stability` tells of: an older
   version that becomes current again, and a bucket that moves to another engine.
2. A stripe begun before the fence cannot become known any more: `raise_fence` comes first.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from exastore.metadata.kv.contract import Transaction, counter_bytes, counter_value
from exastore.metadata.kv.keys import pack, prefix_range
from exastore.metadata.namespace import rows
from exastore.proto.v1 import metadata_pb2, upkeep_pb2


@dataclass(frozen=True, slots=True)
class KnownStripes:
    """A batch of a walk."""

    stripe_ids: Sequence[bytes]
    #: Where the next batch begins; None: this is the last.
    next_begin: bytes | None


def raise_fence(txn: Transaction, limit_ms: int) -> None:
    """Refuse commits of stripes that were begun before; the fence only rises."""
    if counter_value(txn.get(rows.ORPHAN_FENCE)) < limit_ms:
        txn.put(rows.ORPHAN_FENCE, counter_bytes(limit_ms))


def known_stripes(txn: Transaction, *, begin: bytes = b"", row_limit: int = 500) -> KnownStripes:
    """Stripes that anything refers to: objects, parts, packed stripes, the trash."""
    first, end = prefix_range(pack("n"))
    if begin < end:
        # Behind the counter of the last bucket id, which has the key of the prefix itself.
        found = txn.scan(max(first + b"\x00", begin), end, limit=row_limit)
        ids = [stripe_id for key, value in found for stripe_id in _named(key, value)]
        is_last = len(found) < row_limit
        return KnownStripes(ids, end if is_last else found[-1][0] + b"\x00")
    first, end = prefix_range(pack("t"))
    found = txn.scan(max(first, begin), end, limit=row_limit)
    ids = [
        extent.stripe_id
        for _, value in found
        for extent in metadata_pb2.Part.FromString(value).extents
    ]
    return KnownStripes(ids, found[-1][0] + b"\x00" if len(found) == row_limit else None)


def stability(txn: Transaction) -> dict[bytes, bytes]:
    """What is the same before and after a walk that missed nothing; of one engine."""
    found: dict[bytes, bytes] = {}
    for key, value in txn.scan(*prefix_range(pack("b"))):
        bucket = metadata_pb2.Bucket.FromString(value)
        found[key] = f"{bucket.id} {bucket.state} {bucket.move_token}".encode()
        count = txn.get(rows.base(bucket.id) + rows.PROMOTIONS)
        found[key + rows.PROMOTIONS] = count or b""
    for kind in ("V", "p"):
        for key, value in txn.scan(*prefix_range(pack(kind))):
            found[key] = value
    return found


def is_moving(txn: Transaction) -> bool:
    """Whether a bucket is on its way between engines; of the first engine."""
    return bool(txn.scan(*prefix_range(pack("V")), limit=1, keys_only=True))


def _named(key: bytes, value: bytes) -> list[bytes]:
    """The stripes that a row behind a bucket's base names; slices name theirs, too."""
    kind = rows.holder_of(key)[:1]
    if kind in (rows.CURRENT, rows.OTHER):
        return [extent.stripe_id for extent in metadata_pb2.Object.FromString(value).extents]
    if kind == rows.DATA:
        return [extent.stripe_id for extent in metadata_pb2.Part.FromString(value).extents]
    if kind == rows.STRIPE:
        return [upkeep_pb2.PackedStripe.FromString(value).extent.stripe_id]
    return []


assert pack("n") < pack("t"), "what is given up is seen behind where it was"
