"""The engine in memory: deterministic, for tests and simulated clusters. Nothing survives it.

Theory of operation: a dictionary and the sorted list of its keys. A transaction changes them in
place and keeps an undo log; it runs to its end without yielding, so it is alone.
"""

from bisect import bisect_left, insort
from collections.abc import Callable
from typing import TypeVar

from exastore.metadata.kv.contract import Transaction
from exastore.metadata.kv.errors import EngineClosed
from exastore.metadata.kv.transaction import LimitedTransaction

T = TypeVar("T")


class MemoryEngine:
    """`Engine` over a dictionary.

    Args:
        conflicts: Asked before each commit; true makes the engine roll back and run the function
            again, as an engine with real conflicts does.
    """

    def __init__(self, *, conflicts: Callable[[], bool] = lambda: False) -> None:
        self._conflicts = conflicts
        #: `_keys` is the sorted list of the keys of `_values`.
        self._values: dict[bytes, bytes] = {}
        self._keys: list[bytes] = []
        self._closed = False

    async def transact(self, fn: Callable[[Transaction], T]) -> T:
        while True:
            if self._closed:
                raise EngineClosed
            txn = _MemoryTransaction(self._values, self._keys, read_only=False)
            try:
                result = fn(txn)
            except BaseException:
                txn.undo()
                raise
            finally:
                txn.end()
            if self._conflicts():
                txn.undo()
                continue
            return result

    async def read(self, fn: Callable[[Transaction], T], *, brief: bool = False) -> T:
        if self._closed:
            raise EngineClosed
        txn = _MemoryTransaction(self._values, self._keys, read_only=True)
        try:
            return fn(txn)
        finally:
            txn.end()

    async def close(self) -> None:
        self._closed = True


class _MemoryTransaction(LimitedTransaction):
    __slots__ = ("_keys", "_undo_log", "_values")

    def __init__(self, values: dict[bytes, bytes], keys: list[bytes], *, read_only: bool) -> None:
        super().__init__(read_only=read_only)
        self._values = values
        self._keys = keys
        #: What each mutation replaced, oldest first; None: there was nothing.
        self._undo_log: list[tuple[bytes, bytes | None]] = []

    def undo(self) -> None:
        """Take back every mutation."""
        for key, value in reversed(self._undo_log):
            self._set(key, value)
        self._undo_log.clear()

    def _get(self, key: bytes) -> bytes | None:
        return self._values.get(key)

    def _scan(
        self, begin: bytes, end: bytes, limit: int | None, reverse: bool, keys_only: bool
    ) -> list[tuple[bytes, bytes]]:
        first = bisect_left(self._keys, begin)
        last = bisect_left(self._keys, end, lo=first) if begin < end else first
        if limit is not None and last - first > limit:
            first, last = (last - limit, last) if reverse else (first, first + limit)
        keys = self._keys[first:last]
        if reverse:
            keys.reverse()
        if keys_only:
            return [(key, b"") for key in keys]
        return [(key, self._values[key]) for key in keys]

    def _put(self, key: bytes, value: bytes) -> None:
        self._undo_log.append((key, self._values.get(key)))
        self._set(key, value)

    def _delete(self, key: bytes) -> None:
        self._undo_log.append((key, self._values.get(key)))
        self._set(key, None)

    def _set(self, key: bytes, value: bytes | None) -> None:
        known = key in self._values
        if value is not None:
            if not known:
                insort(self._keys, key)
            self._values[key] = value
        elif known:
            del self._values[key]
            del self._keys[bisect_left(self._keys, key)]
