"""Plain functions over a store that is reached over a network: they are replayed, never suspended.

Laws:
1. A function that asks for something not yet read is stopped there; what it asked for is fetched,
   and it runs again from its start. It may: functions are free of side effects.
2. All that is fetched for a batch is of one snapshot. The functions of a batch are ordered by when
   they ran to their end, and each sees what those before it wrote.
3. `Batch.read_keys` and `Batch.read_ranges` hold everything of the snapshot that any result depends
   on, an absent key and the gaps of a scanned range included.

So a batch of functions costs as many round trips as the longest chain of dependent reads in it,
whatever their number, and one commit. No I/O here: the engine fetches (`remote.py`).
"""

from bisect import bisect_left, insort
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from exastore.metadata.kv.contract import Transaction
from exastore.metadata.kv.transaction import LimitedTransaction


@dataclass(frozen=True, slots=True)
class RangeRead:
    """A scan of the snapshot: the arguments of `Transaction.scan`."""

    begin: bytes
    end: bytes
    limit: int | None
    reverse: bool
    keys_only: bool

    def covered(self, rows: Sequence[tuple[bytes, bytes]]) -> tuple[bytes, bytes]:
        """The range whose whole content is known when the scan returned `rows`."""
        if self.limit is None or len(rows) < self.limit or not rows:
            return self.begin, self.end
        last = rows[-1][0]
        return (last, self.end) if self.reverse else (self.begin, last + b"\x00")


@dataclass(slots=True)
class Reads:
    """What is to be fetched from a snapshot."""

    keys: set[bytes] = field(default_factory=set[bytes])
    ranges: set[RangeRead] = field(default_factory=set[RangeRead])

    def __bool__(self) -> bool:
        return bool(self.keys or self.ranges)


@dataclass(slots=True)
class SnapshotCache:
    """What was fetched from one snapshot so far."""

    values: dict[bytes, bytes | None] = field(default_factory=dict[bytes, bytes | None])
    rows: dict[RangeRead, list[tuple[bytes, bytes]]] = field(
        default_factory=dict[RangeRead, list[tuple[bytes, bytes]]]
    )


@dataclass(slots=True)
class Job:
    """A function on its way through an engine."""

    fn: Callable[[Transaction], Any]
    result: Any = None
    error: BaseException | None = None


class _NotRead(BaseException):
    """Stops a function that needs what is not there yet; no `except Exception` may catch it."""


class _Overlay:
    """Writes that the snapshot does not have: a dictionary with sorted keys."""

    __slots__ = ("_keys", "values")

    def __init__(self) -> None:
        #: None: deleted. `_keys` is the sorted list of its keys.
        self.values: dict[bytes, bytes | None] = {}
        self._keys: list[bytes] = []

    def set(self, key: bytes, value: bytes | None) -> None:
        if key not in self.values:
            insort(self._keys, key)
        self.values[key] = value

    def within(self, begin: bytes, end: bytes) -> list[bytes]:
        """Its keys with begin <= key < end."""
        first = bisect_left(self._keys, begin)
        return self._keys[first : bisect_left(self._keys, end, lo=first)]


class Batch:
    """Functions that run against one snapshot and are committed together.

    Args:
        read_only: They cannot write and have no limit on reads.
        read_count_max: Keys and ranges that the batch may depend on.
        mutation_count_max: Keys that it may write.
        written_bytes_max: Bytes of keys and values that it may write.

    A first function is always taken; others that do not fit with it are left over.
    """

    def __init__(
        self,
        *,
        read_only: bool,
        read_count_max: int = 1 << 30,
        mutation_count_max: int = 1 << 30,
        written_bytes_max: int = 1 << 30,
    ) -> None:
        self._read_only = read_only
        self._read_count_max = read_count_max
        self._mutation_count_max = mutation_count_max
        self._written_bytes_max = written_bytes_max
        self._written_bytes = 0
        self._overlay = _Overlay()
        self.cache = SnapshotCache()
        #: Keys of the snapshot that results depend on; also those that scans returned.
        self.read_keys: set[bytes] = set()
        self.read_ranges: set[RangeRead] = set()
        #: Functions that ran to their end, in their serial order.
        self.done: list[Job] = []
        #: Functions that did not fit.
        self.left: list[Job] = []

    @property
    def writes(self) -> dict[bytes, bytes | None]:
        """What the batch writes; None: deleted."""
        return self._overlay.values

    def run(self, jobs: Sequence[Job]) -> tuple[list[Job], Reads]:
        """Run functions as far as the cache goes; those that must run again, and what they need."""
        waiting: list[Job] = []
        needed = Reads()
        for job in jobs:
            txn = ReplayedTransaction(self.cache, self._overlay, read_only=self._read_only)
            job.result = job.error = None
            try:
                job.result = job.fn(txn)
            except _NotRead:
                needed.keys |= txn.needed.keys
                needed.ranges |= txn.needed.ranges
                waiting.append(job)
                continue
            except Exception as error:  # it belongs to the caller
                job.error = error
            finally:
                txn.end()
            self._take(job, txn)
        return waiting, needed

    def _take(self, job: Job, txn: "ReplayedTransaction") -> None:
        writes = txn.writes if job.error is None else {}
        if self._read_only:
            self.done.append(job)
            return
        new_keys = txn.read_keys - self.read_keys
        new_ranges = txn.read_ranges - self.read_ranges
        read_count = len(self.read_keys) + len(self.read_ranges) + len(new_keys) + len(new_ranges)
        mutation_count = len(self.writes) + sum(key not in self.writes for key in writes)
        written_bytes = self._written_bytes + sum(
            len(key) + len(value or b"") for key, value in writes.items()
        )
        if self.done and (
            read_count > self._read_count_max
            or mutation_count > self._mutation_count_max
            or written_bytes > self._written_bytes_max
        ):
            self.left.append(job)
            return
        self.read_keys |= new_keys
        self.read_ranges |= new_ranges
        self._written_bytes = written_bytes
        for key, value in writes.items():
            self._overlay.set(key, value)
        self.done.append(job)


class ReplayedTransaction(LimitedTransaction):
    """A transaction over what was fetched, the writes of the batch so far, and its own."""

    __slots__ = ("_batch", "_cache", "_own", "needed", "read_keys", "read_ranges")

    def __init__(self, cache: SnapshotCache, batch: _Overlay, *, read_only: bool) -> None:
        super().__init__(read_only=read_only)
        self._cache = cache
        self._batch = batch
        self._own = _Overlay()
        self.needed = Reads()
        self.read_keys: set[bytes] = set()
        self.read_ranges: set[RangeRead] = set()

    @property
    def writes(self) -> dict[bytes, bytes | None]:
        """What it wrote."""
        return self._own.values

    def _get(self, key: bytes) -> bytes | None:
        return self._multi_get((key,))[0]

    def _multi_get(self, keys: Sequence[bytes]) -> list[bytes | None]:
        found: list[bytes | None] = []
        for key in keys:
            if key in self._own.values:
                found.append(self._own.values[key])
            elif key in self._batch.values:
                found.append(self._batch.values[key])
            else:
                self.read_keys.add(key)
                if key in self._cache.values:
                    found.append(self._cache.values[key])
                else:
                    self.needed.keys.add(key)
        if self.needed:
            self._fetch()
            return self._multi_get(keys)
        return found

    def _scan(
        self, begin: bytes, end: bytes, limit: int | None, reverse: bool, keys_only: bool
    ) -> list[tuple[bytes, bytes]]:
        if begin >= end or limit == 0:
            return []
        changed = {key: self._batch.values[key] for key in self._batch.within(begin, end)}
        changed |= {key: self._own.values[key] for key in self._own.within(begin, end)}
        # Each deletion may hide one row of the snapshot, so that many more are asked for.
        hidden_count = sum(value is None for value in changed.values())
        read = RangeRead(
            begin, end, None if limit is None else limit + hidden_count, reverse, keys_only
        )
        rows = self._cache.rows.get(read)
        if rows is None:
            self.needed.ranges.add(read)
            self._fetch()
            rows = self._cache.rows[read]
        self.read_ranges.add(read)
        merged = dict(rows)
        for key, value in changed.items():
            if value is None:
                merged.pop(key, None)
            else:
                merged[key] = b"" if keys_only else value
        found = sorted(merged.items(), reverse=reverse) if changed else list(rows)
        found = found[:limit]
        self.read_keys.update(key for key, _ in found if key not in changed)
        return found

    def _fetch(self) -> None:
        """Get `needed` into the cache; here by running again, elsewhere by waiting."""
        raise _NotRead

    def _put(self, key: bytes, value: bytes) -> None:
        self._own.set(key, value)

    def _delete(self, key: bytes) -> None:
        self._own.set(key, None)


class SuspendedTransaction(ReplayedTransaction):
    """A read-only transaction in a thread of its own, which waits for what it needs.

    For long chains of reads, which would run again too often.

    Args:
        cache: Filled by `fetch`.
        fetch: Fetches into the cache; blocks the calling thread.
    """

    __slots__ = ("_fetch_into",)

    def __init__(self, cache: SnapshotCache, fetch: Callable[[Reads], None]) -> None:
        super().__init__(cache, _Overlay(), read_only=True)
        self._fetch_into = fetch

    def _fetch(self) -> None:
        needed, self.needed = self.needed, Reads()
        self._fetch_into(needed)
