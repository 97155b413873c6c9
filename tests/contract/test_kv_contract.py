"""One suite over every key-value engine: the contract of `exastore.metadata.kv.contract`."""

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from tests.support.engine_stores import KINDS, EngineStores

from exastore.metadata.kv.contract import LIMITS, Engine, Transaction, counter_value
from exastore.metadata.kv.errors import (
    EngineClosed,
    EngineCorrupt,
    EngineFull,
    EngineUnavailable,
    LimitExceeded,
    ReadOnly,
)
from exastore.metadata.kv.open import open_engine
from exastore.metadata.kv.sqlite import SqliteEngine


@pytest.fixture(params=KINDS)
async def engine(
    request: pytest.FixtureRequest, engine_stores: EngineStores
) -> AsyncIterator[Engine]:
    opened = open_engine(engine_stores.url(request.param))
    yield opened
    await opened.close()


async def put(engine: Engine, **values: bytes) -> None:
    def fn(txn: Transaction) -> None:
        for key, value in values.items():
            txn.put(key.encode(), value)

    await engine.transact(fn)


async def everything(engine: Engine) -> list[tuple[bytes, bytes]]:
    return await engine.read(lambda txn: txn.scan(b"", b"\xff" * 8))


async def test_a_transaction_reads_its_own_writes(engine: Engine) -> None:
    def fn(txn: Transaction) -> list[bytes | None]:
        txn.put(b"a", b"1")
        txn.put(b"b", b"2")
        txn.delete(b"a")
        txn.add(b"n", 5)
        txn.add(b"n", -7)
        return txn.multi_get([b"a", b"b", b"n"])

    a, b, n = await engine.transact(fn)
    assert (a, b, counter_value(n)) == (None, b"2", -2)


async def test_scans_follow_bytewise_order_within_their_bounds(engine: Engine) -> None:
    keys = [b"\x00", b"a", b"a\x00", b"a\xff", b"b", b"\xff", b"\xff\x00"]

    def fn(txn: Transaction) -> None:
        for key in reversed(keys):
            txn.put(key, b"v")

    await engine.transact(fn)
    for reverse in (False, True):
        for limit in (None, 0, 1, 3):
            found = await engine.read(
                lambda txn, reverse=reverse, limit=limit: txn.scan(  # type: ignore[misc]
                    b"a", b"\xff\x00", limit=limit, reverse=reverse, keys_only=True
                )
            )
            expected = [key for key in keys if b"a" <= key < b"\xff\x00"]
            expected = expected[::-1] if reverse else expected
            assert found == [(key, b"") for key in expected[:limit]]
    assert await engine.read(lambda txn: txn.scan(b"b", b"a")) == []


async def test_an_exception_stores_nothing_and_reaches_the_caller(engine: Engine) -> None:
    await put(engine, a=b"1")

    def fn(txn: Transaction) -> None:
        txn.put(b"a", b"2")
        txn.put(b"b", b"2")
        txn.delete(b"a")
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        await engine.transact(fn)
    assert await everything(engine) == [(b"a", b"1")]


async def test_one_failing_transaction_of_many_harms_no_other(engine: Engine) -> None:
    def fn(number: int) -> Callable[[Transaction], int]:
        def run(txn: Transaction) -> int:
            txn.put(b"%03d" % number, b"v")
            txn.add(b"sum", number)
            if number % 7 == 3:
                raise ValueError(number)
            return number

        return run

    answers = await asyncio.gather(
        *(engine.transact(fn(number)) for number in range(100)), return_exceptions=True
    )
    good = [number for number in range(100) if number % 7 != 3]
    assert [a for a in answers if isinstance(a, int)] == good
    assert sum(isinstance(a, ValueError) for a in answers) == 100 - len(good)
    rows = dict(await everything(engine))
    assert counter_value(rows.pop(b"sum")) == sum(good)
    assert sorted(rows) == [b"%03d" % number for number in good]


async def test_concurrent_read_modify_writes_lose_no_update(engine: Engine) -> None:
    def fn(txn: Transaction) -> None:
        txn.put(b"n", b"%d" % (int(txn.get(b"n") or b"0") + 1))

    await asyncio.gather(*(engine.transact(fn) for _ in range(200)))
    assert await engine.read(lambda txn: txn.get(b"n")) == b"200"


async def test_a_read_sees_what_was_acknowledged_before_it(engine: Engine) -> None:
    for number in range(20):
        await put(engine, k=b"%d" % number)
        assert await engine.read(lambda txn: txn.get(b"k")) == b"%d" % number


async def test_reading_transactions_cannot_write(engine: Engine) -> None:
    writes: list[Callable[[Transaction], None]] = [
        lambda txn: txn.put(b"a", b""),
        lambda txn: txn.delete(b"a"),
        lambda txn: txn.add(b"a", 1),
    ]
    for write in writes:
        with pytest.raises(ReadOnly):
            await engine.read(write)
    assert await everything(engine) == []


def puts(count: int, value: bytes = b"") -> Callable[[Transaction], None]:
    def fn(txn: Transaction) -> None:
        for number in range(count):
            txn.put(b"%06d" % number, value)

    return fn


def reads(count: int) -> Callable[[Transaction], None]:
    def fn(txn: Transaction) -> None:
        for _ in range(count):
            txn.get(b"k")

    return fn


def scans(count: int) -> Callable[[Transaction], None]:
    def fn(txn: Transaction) -> None:
        for _ in range(count):
            txn.scan(b"", b"a", limit=1)

    return fn


def adds(count: int, reads_before: int) -> Callable[[Transaction], None]:
    def fn(txn: Transaction) -> None:
        txn.multi_get([b"%06d" % number for number in range(reads_before)])
        for number in range(count):
            txn.add(b"%06d" % number, 1)

    return fn


def put_one(key_bytes: int, value_bytes: int) -> Callable[[Transaction], None]:
    return lambda txn: txn.put(b"k" * key_bytes, b"v" * value_bytes)


SIXTEENTH_BYTES = LIMITS.transaction_bytes // 16 - 6  # with its key of 6 bytes


@pytest.mark.parametrize(
    ("limit", "within", "beyond"),
    [
        ("key_bytes", put_one(LIMITS.key_bytes, 0), put_one(LIMITS.key_bytes + 1, 0)),
        ("value_bytes", put_one(1, LIMITS.value_bytes), put_one(1, LIMITS.value_bytes + 1)),
        ("mutation_count", puts(LIMITS.mutation_count), puts(LIMITS.mutation_count + 1)),
        (
            "tracked_read_count",
            reads(LIMITS.tracked_read_count),
            reads(LIMITS.tracked_read_count + 1),
        ),
        (
            "tracked_read_count",
            scans(LIMITS.tracked_read_count),
            scans(LIMITS.tracked_read_count + 1),
        ),
        ("tracked_read_count", adds(60, 68), adds(60, 69)),
        ("transaction_bytes", puts(16, bytes(SIXTEENTH_BYTES)), puts(17, bytes(SIXTEENTH_BYTES))),
    ],
)
async def test_every_limit_holds_and_one_more_is_refused_whole(
    engine: Engine,
    limit: str,
    within: Callable[[Transaction], None],
    beyond: Callable[[Transaction], None],
) -> None:
    await engine.transact(within)
    before = await everything(engine)
    with pytest.raises(LimitExceeded) as refused:
        await engine.transact(beyond)
    assert refused.value.limit == limit
    assert refused.value.actual > refused.value.allowed
    assert await everything(engine) == before


async def test_keys_that_a_tracked_scan_returns_count_as_reads(engine: Engine) -> None:
    for first in (0, 1):
        await engine.transact(
            lambda txn, first=first: [  # type: ignore[misc]
                txn.put(b"%03d" % (first * 100 + n), b"") for n in range(100)
            ]
        )
    with pytest.raises(LimitExceeded, match="tracked_read_count"):
        await engine.transact(lambda txn: txn.scan(b"", b"\xff"))
    assert len(await engine.transact(lambda txn: txn.scan(b"", b"\xff", limit=127))) == 127
    assert len(await everything(engine)) == 200


async def test_a_transaction_is_dead_after_its_function(engine: Engine) -> None:
    leaked = await engine.transact(lambda txn: txn)
    with pytest.raises(AssertionError):
        leaked.get(b"k")


async def test_a_closed_engine_says_so(engine: Engine) -> None:
    await engine.close()
    await engine.close()
    with pytest.raises(EngineClosed):
        await engine.transact(lambda txn: None)
    with pytest.raises(EngineClosed):
        await engine.read(lambda txn: None)


# ---- what only SQLite has ----


async def test_many_waiting_transactions_share_commits(tmp_path: Path) -> None:
    engine = SqliteEngine(tmp_path / "kv.db")
    before = (tmp_path / "kv.db-wal").stat().st_size if (tmp_path / "kv.db-wal").exists() else 0
    await asyncio.gather(*(engine.transact(lambda txn: txn.add(b"n", 1)) for _ in range(100)))
    grown = (tmp_path / "kv.db-wal").stat().st_size - before
    # A commit of its own would log at least a page for each of them.
    assert grown < 100 * 8192
    assert counter_value(await engine.read(lambda txn: txn.get(b"n"))) == 100
    await engine.close()


async def test_a_full_database_refuses_writes_keeps_what_was_acknowledged_and_recovers(
    tmp_path: Path,
) -> None:
    engine = SqliteEngine(tmp_path / "kv.db", bytes_max=64 * 8192)
    stored = 0
    with pytest.raises(EngineFull, match="no space left"):
        while True:
            await engine.transact(
                lambda txn, stored=stored: txn.put(b"%04d" % stored, bytes(5000))  # type: ignore[misc]
            )
            stored += 1
    assert 0 < stored < 100
    assert [key for key, _ in await everything(engine)] == [b"%04d" % n for n in range(stored)]
    # What fits still works, also in one batch with what does not.
    small, big = await asyncio.gather(
        engine.transact(lambda txn: txn.delete(b"0000")),
        engine.transact(lambda txn: puts(12, bytes(60000))(txn)),
        return_exceptions=True,
    )
    assert small is None
    assert isinstance(big, EngineFull)
    assert len(await everything(engine)) == stored - 1
    await engine.transact(lambda txn: txn.put(b"0000", bytes(4000)))
    await engine.close()


async def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    (tmp_path / "kv.db").write_bytes(b"not a database, but long enough to be read as one" * 40)
    with pytest.raises(EngineCorrupt, match=r"kv\.db"):
        open_engine(f"sqlite://{tmp_path}/kv.db")


async def test_a_database_of_another_program_is_refused(tmp_path: Path) -> None:
    import sqlite3

    db = sqlite3.connect(tmp_path / "kv.db")
    db.execute("CREATE TABLE theirs (x)")
    db.commit()
    db.close()
    with pytest.raises(EngineCorrupt, match="another program"):
        open_engine(f"sqlite://{tmp_path}/kv.db")


@pytest.mark.parametrize("url", ["", "memory", "postgres://x", "sqlite:relative.db"])
def test_an_unknown_engine_url_lists_the_valid_ones(url: str) -> None:
    with pytest.raises(EngineUnavailable, match="sqlite:///absolute/path"):
        open_engine(url)


def test_an_unwritable_place_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(EngineUnavailable, match="cannot"):
        open_engine(f"sqlite://{tmp_path}/file/kv.db")
