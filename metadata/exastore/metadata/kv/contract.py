"""The contract of an engine: ordered bytes, strictly serialisable transactions.

Laws:
1. Keys are compared bytewise.
2. `transact(fn)` runs the plain function `fn` against one consistent state that it alone may
   change, and runs it again on conflict: `fn` must be free of side effects.
3. Keys read and ranges scanned are both tracked: an insert into a scanned range conflicts.
4. `read(fn)` sees one consistent version, includes every commit acknowledged before, never
   conflicts and has no limit on reads.
5. An exception from `fn` stores nothing and reaches the caller.
6. What `transact` returned from is durable, and so is what it read.
7. A transaction over a limit raises `LimitExceeded`; no engine ever splits one.
8. While an engine cannot be reached, calls are tried again for some seconds and then raise
   `EngineUnavailable`: nothing of them was stored. Only `CommitUnknown` leaves that open.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

T = TypeVar("T")

#: Bytes of a counter that `add` changes: a signed little-endian integer.
COUNTER_BYTES = 8


@dataclass(frozen=True, slots=True)
class Limits:
    """What one transaction may hold; chosen so that every engine, etcd too, can keep it."""

    key_bytes: int = 2048
    value_bytes: int = 65536
    mutation_count: int = 100
    #: Reads of a read-write transaction: every `get` and `add`, every scan, and every key that a
    #: scan returns. etcd compares at most 128 things, keys read and ranges.
    tracked_read_count: int = 128
    #: Keys and values written.
    transaction_bytes: int = 1 << 20


LIMITS = Limits()


class Transaction(Protocol):
    """What `fn` is given. It is dead once `fn` returns."""

    def get(self, key: bytes) -> bytes | None:
        """The value, or None."""
        ...

    def multi_get(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """The values in the order of `keys`."""
        ...

    def scan(
        self,
        begin: bytes,
        end: bytes,
        *,
        limit: int | None = None,
        reverse: bool = False,
        keys_only: bool = False,
    ) -> list[tuple[bytes, bytes]]:
        """Pairs with begin <= key < end, at most `limit`, in key order or its reverse.

        With `keys_only` the values are empty.
        """
        ...

    def put(self, key: bytes, value: bytes) -> None:
        """Store `value` under `key`, replacing what is there."""
        ...

    def delete(self, key: bytes) -> None:
        """Remove `key` if it is there."""
        ...

    def add(self, key: bytes, delta: int) -> None:
        """Add to the counter under `key`, which starts at 0. Read it with `counter_value`."""
        ...


class Engine(Protocol):
    """A store of ordered keys."""

    async def transact(self, fn: Callable[[Transaction], T]) -> T:
        """Run `fn` read-write; its result once it is durable."""
        ...

    async def read(self, fn: Callable[[Transaction], T], *, brief: bool = False) -> T:
        """Run `fn` read-only against a snapshot.

        Args:
            brief: Whether `fn` looks up a few rows, so that an engine that has them near may run it
                at once instead of handing it to a thread; it may then run twice.
        """
        ...

    async def close(self) -> None:
        """Finish what was queued and let go of the store. Closing twice is harmless."""
        ...


def counter_value(value: bytes | None) -> int:
    """The number in a counter's value."""
    return 0 if value is None else int.from_bytes(value, "little", signed=True)


def counter_bytes(number: int) -> bytes:
    """The value of a counter."""
    return number.to_bytes(COUNTER_BYTES, "little", signed=True)
