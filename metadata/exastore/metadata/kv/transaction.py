"""What the transactions of all engines share: limits, counters, the end of their life."""

from abc import ABC, abstractmethod
from collections.abc import Sequence

from exastore.metadata.kv.contract import LIMITS, Limits, counter_bytes, counter_value
from exastore.metadata.kv.errors import LimitExceeded, ReadOnly


class LimitedTransaction(ABC):
    """Checks every operation against the contract before the engine performs it."""

    __slots__ = (
        "_limits",
        "_mutation_count",
        "_open",
        "_read_only",
        "_tracked_read_count",
        "_written_bytes",
    )

    def __init__(self, *, read_only: bool, limits: Limits = LIMITS) -> None:
        self._read_only = read_only
        self._limits = limits
        #: Operations so far; never above the limits.
        self._mutation_count = 0
        self._tracked_read_count = 0
        self._written_bytes = 0
        #: False once `fn` has returned.
        self._open = True

    @property
    def mutation_count(self) -> int:
        """Mutations so far."""
        return self._mutation_count

    def end(self) -> None:
        """Forbid further use: a transaction that outlives its function reads a later state."""
        self._open = False

    def get(self, key: bytes) -> bytes | None:
        self._track_read(key, 1)
        return self._get(key)

    def multi_get(self, keys: Sequence[bytes]) -> list[bytes | None]:
        for key in keys:
            self._track_read(key, 1)
        return self._multi_get(keys)

    def scan(
        self,
        begin: bytes,
        end: bytes,
        *,
        limit: int | None = None,
        reverse: bool = False,
        keys_only: bool = False,
    ) -> list[tuple[bytes, bytes]]:
        assert self._open, "transaction used after its function returned"
        if not self._read_only:
            self._track_read(begin, 1)
            # One row more than allowed is enough to know that the limit is exceeded.
            room = self._limits.tracked_read_count - self._tracked_read_count + 1
            fetched = room if limit is None else min(limit, room)
            rows = self._scan(begin, end, fetched, reverse, keys_only)
            self._track_read(b"", len(rows))
            return rows
        return self._scan(begin, end, limit, reverse, keys_only)

    def put(self, key: bytes, value: bytes) -> None:
        if len(value) > self._limits.value_bytes:
            raise LimitExceeded("value_bytes", self._limits.value_bytes, len(value))
        self._track_mutation(key, len(value))
        self._put(key, value)

    def delete(self, key: bytes) -> None:
        self._track_mutation(key, 0)
        self._delete(key)

    def add(self, key: bytes, delta: int) -> None:
        value = counter_bytes(delta)
        self._track_mutation(key, len(value))
        self._track_read(key, 1)
        self._put(key, counter_bytes(counter_value(self._get(key)) + delta))

    def _track_read(self, key: bytes, count: int) -> None:
        assert self._open, "transaction used after its function returned"
        if len(key) > self._limits.key_bytes:
            raise LimitExceeded("key_bytes", self._limits.key_bytes, len(key))
        if self._read_only:
            return
        self._tracked_read_count += count
        if self._tracked_read_count > self._limits.tracked_read_count:
            raise LimitExceeded(
                "tracked_read_count", self._limits.tracked_read_count, self._tracked_read_count
            )

    def _track_mutation(self, key: bytes, value_bytes: int) -> None:
        assert self._open, "transaction used after its function returned"
        if self._read_only:
            raise ReadOnly("a read-only transaction cannot write")
        if len(key) > self._limits.key_bytes:
            raise LimitExceeded("key_bytes", self._limits.key_bytes, len(key))
        self._mutation_count += 1
        if self._mutation_count > self._limits.mutation_count:
            raise LimitExceeded("mutation_count", self._limits.mutation_count, self._mutation_count)
        self._written_bytes += len(key) + value_bytes
        if self._written_bytes > self._limits.transaction_bytes:
            raise LimitExceeded(
                "transaction_bytes", self._limits.transaction_bytes, self._written_bytes
            )

    def _multi_get(self, keys: Sequence[bytes]) -> list[bytes | None]:
        return [self._get(key) for key in keys]

    @abstractmethod
    def _get(self, key: bytes) -> bytes | None: ...

    @abstractmethod
    def _scan(
        self, begin: bytes, end: bytes, limit: int | None, reverse: bool, keys_only: bool
    ) -> list[tuple[bytes, bytes]]: ...

    @abstractmethod
    def _put(self, key: bytes, value: bytes) -> None: ...

    @abstractmethod
    def _delete(self, key: bytes) -> None: ...
