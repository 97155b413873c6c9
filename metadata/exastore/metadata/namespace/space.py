"""A bucket's rows inside one transaction.

Laws:
1. All changes of a bucket's rows go through `Space`, so that while the bucket is being copied to
   another engine each changed row leaves a mark in the same transaction, and none can change while
   the bucket is frozen.
2. Usage is charged to the space and written by `settle`, the last thing a transaction does.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from zlib import crc32

from exastore.metadata.kv.contract import Transaction
from exastore.metadata.kv.keys import after_prefix
from exastore.metadata.namespace import rows, usage
from exastore.metadata.namespace.errors import BucketMoving, NoSuchBucket
from exastore.proto.v1 import metadata_pb2

_ACTIVE = metadata_pb2.BUCKET_STATE_ACTIVE
_COPYING = metadata_pb2.BUCKET_STATE_COPYING
_FROZEN = metadata_pb2.BUCKET_STATE_FROZEN


@dataclass(frozen=True, slots=True)
class Terms:
    """Durations that the operator chose."""

    day_s: float = 86_400.0
    """Seconds of a day of lifecycle rules."""
    request_ttl_s: float = 600.0
    """Seconds for which a request's answer is kept after its object was replaced or deleted."""


DEFAULT_TERMS = Terms()


@lru_cache(maxsize=4096)
def parsed_bucket(value: bytes) -> metadata_pb2.Bucket:
    """A bucket's row as a message; shared, so it must not be changed."""
    return metadata_pb2.Bucket.FromString(value)


class Space:
    """The rows of one bucket.

    Attributes:
        txn: The transaction.
        bucket: The bucket as it is stored; shared, not to be changed. Without a name when the
            bucket is gone and only its trash is left.
        base: What the keys of its rows begin with.
    """

    __slots__ = ("_deltas", "_marks", "base", "bucket", "txn")

    def __init__(self, txn: Transaction, bucket: metadata_pb2.Bucket) -> None:
        self.txn = txn
        self.bucket = bucket
        self.base = rows.base(bucket.id)
        self._marks = rows.marks(bucket.id) if bucket.state == _COPYING else None
        self._deltas: dict[int, list[int]] = {}

    @property
    def is_gone(self) -> bool:
        """The bucket was deleted, or this engine does not serve it any more."""
        return not self.bucket.name

    def get(self, holder: bytes) -> bytes | None:
        return self.txn.get(self.base + holder)

    def scan(
        self, begin: bytes, end: bytes | None = None, *, limit: int | None = None
    ) -> list[tuple[bytes, bytes]]:
        """Pairs of holder and value; without `end`, all that begin with `begin`."""
        first = self.base + begin
        last = after_prefix(first) if end is None else self.base + end
        strip = len(self.base)
        return [(key[strip:], value) for key, value in self.txn.scan(first, last, limit=limit)]

    def put(self, holder: bytes, value: bytes) -> None:
        self.put_row(self.base + holder, value)

    def delete(self, holder: bytes) -> None:
        self.delete_row(self.base + holder)

    def put_row(self, key: bytes, value: bytes) -> None:
        """Change a row of the engine that speaks of this bucket."""
        self.txn.put(key, value)
        if self._marks is not None:
            self.txn.put(self._marks + key, b"")

    def delete_row(self, key: bytes) -> None:
        self.txn.delete(key)
        if self._marks is not None:
            self.txn.put(self._marks + key, b"")

    def charge(self, seed: bytes, *changes: tuple[int, int]) -> None:
        """Add to the usage: pairs of place (`usage.OBJECTS`, ...) and number.

        Args:
            seed: Chooses the slot; the same for what is added and taken off together.
        """
        delta = self._deltas.setdefault(crc32(seed) % usage.SLOT_COUNT, [0] * usage.COUNT)
        for place, number in changes:
            delta[place] += number

    def settle(self) -> None:
        """Write what was charged. Raises QuotaExceeded."""
        deltas = {slot: delta for slot, delta in self._deltas.items() if any(delta)}
        self._deltas = {}
        if not deltas:
            return
        bucket = self.bucket
        base, tenant = self.base, bucket.owner
        keys = [base + rows.usage(slot) for slot in deltas]
        if tenant:
            keys += [rows.tenant_usage(tenant, slot) for slot in deltas]
            keys.append(rows.tenant_quota(tenant))
        values = self.txn.multi_get(keys)
        count = len(deltas)
        usage.apply(
            self.txn,
            deltas,
            values[:count],
            lambda slot: base + rows.usage(slot),
            self.put_row,
            bucket.quota if bucket.HasField("quota") else None,
            f"bucket {bucket.name!r}",
        )
        if tenant:
            usage.apply(
                self.txn,
                deltas,
                values[count : 2 * count],
                usage.tenant_key_of(tenant),
                self.txn.put,
                usage.quota_of(values[-1]),
                f"tenant {tenant!r}",
            )

    def used(self) -> Sequence[int]:
        """The bucket's counters, usage.COUNT numbers."""
        return usage.read(self.txn, lambda slot: self.base + rows.usage(slot))


def open_to_read(txn: Transaction, name: str) -> Space:
    """Raises NoSuchBucket, BucketMoving."""
    return _opened(txn, name, (_ACTIVE, _COPYING, _FROZEN))


def open_to_write(txn: Transaction, name: str) -> Space:
    """Raises NoSuchBucket, BucketMoving."""
    return _opened(txn, name, (_ACTIVE, _COPYING))


def open_by_id(txn: Transaction, bucket_id: int) -> Space:
    """The space of a bucket, to change its rows in the background; `is_gone` when there is none.

    Raises BucketMoving.
    """
    name = txn.get(rows.base(bucket_id) + rows.NAME)
    if name is not None:
        value = txn.get(rows.bucket(name.decode()))
        if value is not None:
            bucket = parsed_bucket(value)
            if bucket.id == bucket_id:
                if bucket.state not in (_ACTIVE, _COPYING):
                    raise BucketMoving(bucket.name)
                return Space(txn, bucket)
    return Space(txn, metadata_pb2.Bucket(id=bucket_id))


def _opened(txn: Transaction, name: str, states: Sequence[int]) -> Space:
    value = txn.get(rows.bucket(name))
    if value is None:
        raise NoSuchBucket(name)
    bucket = parsed_bucket(value)
    if bucket.state not in states:
        raise BucketMoving(name)
    return Space(txn, bucket)
