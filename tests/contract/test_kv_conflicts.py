"""Two servers on one store: whatever one changes between the other's reads and its commit shows.

Each case stops a transaction between its last read and its commit, lets the other server commit,
and goes on. The fake store of the tests stands for a sound engine in the same suite.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import pytest
from tests.support.engine_stores import SHARED_KINDS, EngineStores
from tests.support.fake_store import FakeStore

from exastore.metadata.kv.contract import Engine, Transaction, counter_value
from exastore.metadata.kv.etcd import open_etcd
from exastore.metadata.kv.open import open_engine
from exastore.metadata.kv.postgres import open_postgres
from exastore.metadata.kv.remote import Backend, RemoteEngine, Snapshot
from exastore.metadata.kv.replay import Batch, Reads, SnapshotCache


def fill(txn: Transaction) -> None:
    for key in (b"a1", b"a3", b"a5", b"b1", b"c1"):
        txn.put(key, b"old")


Hook = Callable[[], Awaitable[Any]]


async def nothing() -> None:
    return None


class Stopping:
    """A backend that calls hooks before its second fetch of a snapshot and before its commits."""

    def __init__(self, inner: Backend) -> None:
        self.inner = inner
        self.name = inner.name
        self.new_batch = inner.new_batch
        self.close = inner.close
        self.before_commit: Hook = nothing
        self.before_second_fetch: Hook = nothing

    @asynccontextmanager
    async def snapshot(self, *, read_only: bool, conflict_count: int) -> AsyncGenerator[Snapshot]:
        async with self.inner.snapshot(
            read_only=read_only, conflict_count=conflict_count
        ) as snapshot:
            yield _StoppingSnapshot(self, snapshot)


class _StoppingSnapshot:
    def __init__(self, backend: Stopping, inner: Snapshot) -> None:
        self._backend = backend
        self._inner = inner
        self._fetch_count = 0
        self.finish = inner.finish

    async def fetch(self, reads: Reads, cache: SnapshotCache) -> None:
        self._fetch_count += 1
        if self._fetch_count == 2:
            hook, self._backend.before_second_fetch = self._backend.before_second_fetch, nothing
            await hook()
        await self._inner.fetch(reads, cache)

    async def commit(self, batch: Batch) -> None:
        hook, self._backend.before_commit = self._backend.before_commit, nothing
        await hook()
        await self._inner.commit(batch)


@dataclass
class Pair:
    """Two servers on a store; the hooks are those of the first one."""

    first: RemoteEngine
    second: Engine
    hooks: Stopping


@pytest.fixture(params=(*SHARED_KINDS, "fake"))
async def pair(request: pytest.FixtureRequest, engine_stores: EngineStores) -> AsyncIterator[Pair]:
    if request.param == "fake":
        store = FakeStore(1)
        hooks, second = Stopping(store), store.engine()
    else:
        open_ = open_postgres if request.param == "postgresql" else open_etcd
        url = engine_stores.url(request.param)
        hooks, second = Stopping(open_(url).backend), open_(url)
    first = RemoteEngine(hooks)
    await second.transact(fill)
    yield Pair(first, second, hooks)
    await asyncio.gather(first.close(), second.close())


def changed(write: Callable[[Transaction], None], engine: Engine) -> Hook:
    return lambda: engine.transact(write)


def rows(txn: Transaction, limit: int | None = None, reverse: bool = False) -> list[bytes]:
    return [key for key, _ in txn.scan(b"a", b"b", limit=limit, reverse=reverse)]


CASES: list[tuple[str, Callable[[Transaction], Any], Callable[[Transaction], None], Any]] = [
    ("key changed", lambda t: t.get(b"a1"), lambda t: t.put(b"a1", b"new"), b"new"),
    ("key deleted", lambda t: t.get(b"a1"), lambda t: t.delete(b"a1"), None),
    ("key created", lambda t: t.get(b"a2"), lambda t: t.put(b"a2", b"new"), b"new"),
    ("counter", lambda t: counter_value(t.get(b"n")), lambda t: t.add(b"n", 3), 3),
    (
        "row inserted",
        lambda t: rows(t),
        lambda t: t.put(b"a2", b"new"),
        [b"a1", b"a2", b"a3", b"a5"],
    ),
    ("row deleted", lambda t: rows(t), lambda t: t.delete(b"a3"), [b"a1", b"a5"]),
    (
        "row changed",
        lambda t: t.scan(b"a", b"a2"),
        lambda t: t.put(b"a1", b"new"),
        [(b"a1", b"new")],
    ),
    ("first row inserted", lambda t: rows(t, 1), lambda t: t.put(b"a0", b""), [b"a0"]),
    ("last row inserted", lambda t: rows(t, 1, True), lambda t: t.put(b"a9", b""), [b"a9"]),
    ("only row deleted", lambda t: rows(t, 1), lambda t: t.delete(b"a1"), [b"a3"]),
    (
        "empty range filled",
        lambda t: t.scan(b"x", b"y"),
        lambda t: t.put(b"x1", b"new"),
        [(b"x1", b"new")],
    ),
]


@pytest.mark.parametrize(("case", "look", "write", "expected"), CASES, ids=[c[0] for c in CASES])
async def test_a_change_between_reading_and_commit_makes_the_transaction_run_again(
    pair: Pair,
    case: str,
    look: Callable[[Transaction], Any],
    write: Callable[[Transaction], None],
    expected: Any,
) -> None:
    def look_and_write(txn: Transaction) -> None:
        # It did not see the other one either, so that no serial order has them both as they were:
        # without this, PostgreSQL rightly puts the first one before it.
        assert txn.get(b"seen") is None
        write(txn)

    pair.hooks.before_commit = changed(look_and_write, pair.second)

    def fn(txn: Transaction) -> Any:
        seen = look(txn)
        txn.put(b"seen", repr(seen).encode())
        return seen

    assert await pair.first.transact(fn) == expected
    assert await pair.second.read(lambda txn: txn.get(b"seen")) == repr(expected).encode()
    assert pair.first.stats.conflict_count == 1


async def test_of_two_transactions_that_skew_each_other_one_sees_the_other(pair: Pair) -> None:
    def take_leave(who: bytes, other: bytes) -> Callable[[Transaction], bool]:
        def fn(txn: Transaction) -> bool:
            if txn.multi_get([who, other]) != [b"old", b"old"]:
                return False
            txn.put(who, b"on leave")
            return True

        return fn

    pair.hooks.before_commit = lambda: pair.second.transact(take_leave(b"b1", b"c1"))
    assert await pair.first.transact(take_leave(b"c1", b"b1")) is False
    found = await pair.first.read(lambda txn: txn.multi_get([b"b1", b"c1"]))
    assert found == [b"on leave", b"old"]


async def test_of_two_counts_of_a_range_one_sees_the_other(pair: Pair) -> None:
    def enter(name: bytes) -> Callable[[Transaction], int]:
        def fn(txn: Transaction) -> int:
            count = len(txn.scan(b"a", b"b"))
            txn.put(b"a-" + name, b"%d" % count)
            return count

        return fn

    pair.hooks.before_commit = lambda: pair.second.transact(enter(b"second"))
    assert await pair.first.transact(enter(b"first")) == 4


async def test_a_reader_sees_one_version_however_long_it_takes(pair: Pair) -> None:
    def write(txn: Transaction) -> None:
        for key in (b"a1", b"b1", b"c1"):
            txn.put(key, b"new")
        txn.delete(b"a3")

    pair.hooks.before_second_fetch = changed(write, pair.second)

    def fn(txn: Transaction) -> Any:
        return txn.get(b"a1"), txn.get(b"b1"), txn.scan(b"a", b"b", keys_only=True), txn.get(b"c1")

    old = (b"old", b"old", [(b"a1", b""), (b"a3", b""), (b"a5", b"")], b"old")
    assert await pair.first.read(fn) == old
    assert await pair.first.read(fn) == (b"new", b"new", [(b"a1", b""), (b"a5", b"")], b"new")


async def test_a_long_chain_of_reads_sees_one_version(pair: Pair) -> None:
    """Chains of many rounds leave the batch for a thread."""

    def write(txn: Transaction) -> None:
        txn.put(b"b1", b"new")
        txn.put(b"c1", b"new")

    def fn(txn: Transaction) -> set[bytes | None]:
        for number in range(20):
            txn.get(b"%d" % number)
        return {txn.get(b"b1"), txn.get(b"c1")}

    writers = asyncio.gather(*(pair.second.transact(write) for _ in range(5)))
    found = await asyncio.gather(*(pair.first.read(fn) for _ in range(5)))
    await writers
    assert all(len(seen) == 1 for seen in found)
    assert await pair.first.read(fn) == {b"new"}


async def test_transactions_that_do_not_meet_need_no_second_run_on_etcd_and_the_fake(
    pair: Pair,
) -> None:
    """PostgreSQL locks whole pages of small tables, so there it may take a second run."""

    def fn(txn: Transaction) -> list[bytes]:
        first = rows(txn, 2)
        txn.put(b"mine", b"")
        return first

    pair.hooks.before_commit = changed(lambda txn: txn.put(b"a4", b""), pair.second)
    assert await pair.first.transact(fn) == [b"a1", b"a3"]
    assert pair.first.stats.conflict_count == 0 or "dbname" in pair.first.backend.name


async def test_writers_that_always_meet_all_get_through(pair: Pair) -> None:
    def fn(txn: Transaction) -> None:
        txn.put(b"n", b"%d" % (int(txn.get(b"n") or b"0") + 1))

    engines = (pair.first, pair.second)
    for _ in range(5):
        await asyncio.gather(*(engine.transact(fn) for engine in engines for _ in range(10)))
    assert await pair.first.read(lambda txn: txn.get(b"n")) == b"100"


@pytest.mark.parametrize("kind", SHARED_KINDS)
async def test_a_transaction_at_all_limits_at_once_is_committed(
    kind: str, engine_stores: EngineStores
) -> None:
    """72 keys read and 28 scans of one row each, 100 changes, 1 MiB: etcd's 128 comparisons."""
    engine = open_engine(engine_stores.url(kind))
    long = b"k" * 2040

    def fill(txn: Transaction) -> None:
        for number in range(28):
            txn.put(b"%03d" % number + long, b"")

    def fn(txn: Transaction) -> int:
        found = sum(
            len(txn.scan(b"%03d" % number, b"%03d~" % number, limit=2)) for number in range(28)
        )
        txn.multi_get([b"%03d" % (number + 50) + long for number in range(72)])
        value = bytes((1 << 20) // 100 - 2060)
        for number in range(100):
            txn.put(b"%03d" % (number + 100) + long, value)
        return found

    await engine.transact(fill)
    assert await engine.transact(fn) == 28
    assert len(await engine.read(lambda txn: txn.scan(b"", b"\xff", keys_only=True))) == 128
    await engine.close()
