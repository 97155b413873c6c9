"""The engines that hold the buckets, and the way from a bucket to its engine.

Laws:
1. A transaction of a bucket runs on one engine. Which one is remembered; an engine that does not
   hold the bucket says so, and then the table in the first engine is asked again.
2. The cluster map and the lease are rows of the first engine. In the others a copy of one number of
   each fences their transactions: the epoch that the map is about to have, written before the map
   changes, and the token of the lease, written before its holder acts there. Both only grow.

So a commit is refused in every engine from the moment a new map may be acted on, until this server
has loaded it.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from exastore.metadata.kv.contract import Engine, Transaction, counter_bytes, counter_value
from exastore.metadata.kv.keys import pack
from exastore.metadata.kv.open import open_engine
from exastore.metadata.namespace import buckets, rows
from exastore.metadata.namespace.buckets import FIRST
from exastore.metadata.namespace.errors import BucketMoving, InvalidArgument, NoSuchBucket
from exastore.metadata.service.config import parsed_partition
from exastore.metadata.service.errors import LeaseLost
from exastore.metadata.service.lease import Lease
from exastore.proto.v1 import metadata_pb2

T = TypeVar("T")

_LEASE_FENCE = pack("L", "token")
_ROUTE_COUNT_MAX = 100_000
#: A bucket may move while we look for it, but not for ever.
_ATTEMPT_COUNT = 4


class LeaseGuard(Protocol):
    """Whether this server does the background work on one engine."""

    @property
    def is_held(self) -> bool: ...

    def guard(self) -> Callable[[Transaction], None]: ...


class _FencedLease:
    """The lease as an engine other than the first knows it."""

    def __init__(self, lease: Lease, engine: Engine) -> None:
        self._lease = lease
        self._engine = engine
        #: The last token that we wrote into the engine.
        self._adopted = 0

    @property
    def is_held(self) -> bool:
        return self._lease.is_held and self._lease.token == self._adopted

    async def adopt(self) -> bool:
        """Write the token of the lease we hold into the engine; whether it is ours to act there."""
        token = self._lease.token
        if not token or token == self._adopted:
            return bool(token)

        def write(txn: Transaction) -> bool:
            if counter_value(txn.get(_LEASE_FENCE)) > token:
                return False
            txn.put(_LEASE_FENCE, counter_bytes(token))
            return True

        if await self._engine.transact(write):
            self._adopted = token
        return self._adopted == token

    def guard(self) -> Callable[[Transaction], None]:
        token = self._adopted if self.is_held else 0

        def check(txn: Transaction) -> None:
            if not token or counter_value(txn.get(_LEASE_FENCE)) != token:
                raise LeaseLost("another server does the background work now")

        return check


@dataclass(frozen=True, slots=True)
class Partition:
    """An engine and its name."""

    name: str
    engine: Engine
    lease: LeaseGuard


class Partitions:
    """All engines of a cluster.

    Args:
        first: The engine of the map and the table of buckets; opened and closed by the caller.
        others: "name=engine URL" of each further engine.
    """

    def __init__(self, first: Engine, others: Sequence[str], lease: Lease) -> None:
        self._fenced: list[_FencedLease] = []
        self.all: list[Partition] = [Partition(FIRST, first, lease)]
        for name, url in map(parsed_partition, others):
            self.add(name, open_engine(url), lease)
        #: Where a bucket was when we last looked.
        self._routes: dict[str, str] = {}

    def add(self, name: str, engine: Engine, lease: Lease) -> None:
        """Take an engine in. Raises InvalidArgument for a name that is there."""
        if name in self.names:
            raise InvalidArgument(f"two partitions have the name {name!r}")
        fenced = _FencedLease(lease, engine)
        self._fenced.append(fenced)
        self.all.append(Partition(name, engine, fenced))

    @property
    def first(self) -> Engine:
        return self.all[0].engine

    @property
    def names(self) -> list[str]:
        """Names of all partitions, the first among them."""
        return [partition.name for partition in self.all]

    def named(self, name: str) -> Partition:
        """Raises InvalidArgument."""
        for partition in self.all:
            if partition.name == name:
                return partition
        raise InvalidArgument(f"no partition has the name {name!r}: known are {self.names}")

    async def close(self) -> None:
        """Close all engines but the first."""
        for partition in self.all[1:]:
            await partition.engine.close()

    # ---- transactions of a bucket ----

    async def read(self, bucket: str, fn: Callable[[Transaction], T], *, brief: bool = False) -> T:
        """`fn` in a snapshot of the engine that holds the bucket; `brief` as the engine has it."""
        return await self._run(bucket, lambda partition: partition.engine.read(fn, brief=brief))

    async def transact(self, bucket: str, fn: Callable[[Transaction], T]) -> T:
        """`fn` in a transaction of the engine that holds the bucket."""
        return await self._run(bucket, lambda partition: partition.engine.transact(fn))

    async def call(self, bucket: str, call: Callable[[Partition], Awaitable[T]]) -> T:
        """`call` with the partition that holds the bucket; repeated when the bucket moved."""
        return await self._run(bucket, call)

    def forget(self, bucket: str) -> None:
        """Look a bucket up again."""
        self._routes.pop(bucket, None)

    async def _run(self, bucket: str, call: Callable[[Partition], Awaitable[T]]) -> T:
        if len(self.all) == 1:
            return await call(self.all[0])
        name = self._routes.get(bucket)
        if name is None:
            name = (await self._place(bucket)).partition
        for attempt in range(_ATTEMPT_COUNT):
            try:
                return await call(self.named(name))
            except (NoSuchBucket, BucketMoving):
                place = await self._place(bucket)
                if place.partition == name or attempt == _ATTEMPT_COUNT - 1:
                    if place.state != metadata_pb2.BUCKET_STATE_ACTIVE:
                        raise BucketMoving(bucket) from None
                    raise
                name = place.partition
        raise AssertionError("unreachable")

    async def _place(self, bucket: str) -> metadata_pb2.Bucket:
        """Where the bucket is by the table. Raises NoSuchBucket."""
        self._routes.pop(bucket, None)
        place = await self.first.read(lambda txn: buckets.find_place(txn, bucket))
        if place is None:
            raise NoSuchBucket(bucket)
        if len(self._routes) >= _ROUTE_COUNT_MAX:
            self._routes.clear()
        self._routes[bucket] = place.partition
        return place

    # ---- fences ----

    async def raise_map_fence(self, epoch: int) -> None:
        """Refuse commits by older maps in all engines but the first, which has the map itself."""

        def write(txn: Transaction) -> None:
            if counter_value(txn.get(rows.MAP_FENCE)) < epoch:
                txn.put(rows.MAP_FENCE, counter_bytes(epoch))

        await asyncio.gather(*(p.engine.transact(write) for p in self.all[1:]))

    async def highest_map_fence(self) -> int:
        """The highest epoch that an engine demands; 0: none does."""
        found = await asyncio.gather(*(p.engine.read(_map_fence) for p in self.all[1:]))
        return max(found, default=0)

    async def adopt_lease(self) -> None:
        """Make the lease hold in all engines."""
        await asyncio.gather(*(fenced.adopt() for fenced in self._fenced))


def is_map_current(txn: Transaction, epoch: int) -> bool:
    """Whether commits by the map of this epoch are allowed, in an engine other than the first."""
    return _map_fence(txn) <= epoch


def _map_fence(txn: Transaction) -> int:
    return counter_value(txn.get(rows.MAP_FENCE))
