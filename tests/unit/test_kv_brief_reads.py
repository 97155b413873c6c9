"""Brief reads of the embedded engine: at once, on the caller's thread, and never long ones."""

import threading
from pathlib import Path

import pytest

from exastore.metadata.kv import sqlite
from exastore.metadata.kv.contract import Transaction
from exastore.metadata.kv.errors import EngineClosed
from exastore.metadata.kv.sqlite import SqliteEngine


async def filled(path: Path, count: int) -> SqliteEngine:
    engine = SqliteEngine(path / "kv.db")

    def fill(txn: Transaction) -> None:
        for number in range(count):
            txn.put(b"k%03d" % number, b"v")

    await engine.transact(fill)
    return engine


def thread_of(txn: Transaction) -> int:
    assert txn.get(b"k000") == b"v"
    return threading.get_ident()


async def test_a_brief_read_runs_at_once_and_sees_what_was_committed(tmp_path: Path) -> None:
    engine = await filled(tmp_path, 1)
    assert await engine.read(thread_of, brief=True) == threading.get_ident()
    assert await engine.read(thread_of) != threading.get_ident()
    await engine.transact(lambda txn: txn.put(b"k000", b"w"))
    assert await engine.read(lambda txn: txn.get(b"k000"), brief=True) == b"w"

    def fail(txn: Transaction) -> None:
        raise KeyError("absent")

    with pytest.raises(KeyError):
        await engine.read(fail, brief=True)
    assert await engine.read(lambda txn: txn.get(b"k000"), brief=True) == b"w"
    await engine.close()
    with pytest.raises(EngineClosed):
        await engine.read(thread_of, brief=True)


@pytest.mark.parametrize(("count", "limit", "at_once"), [(16, None, True), (17, None, False)])
@pytest.mark.parametrize("reverse", [False, True])
async def test_a_scan_of_many_rows_goes_to_a_reader_and_is_whole(
    tmp_path: Path, count: int, limit: int | None, at_once: bool, reverse: bool
) -> None:
    engine = await filled(tmp_path, count)
    threads: list[int] = []

    def scan(txn: Transaction) -> list[tuple[bytes, bytes]]:
        threads.append(threading.get_ident())
        return txn.scan(b"k", b"l", limit=limit, reverse=reverse)

    assert len(await engine.read(scan, brief=True)) == count
    assert (threads[-1] == threading.get_ident()) is at_once
    few = await engine.read(lambda txn: txn.scan(b"k", b"l", limit=3), brief=True)
    assert [key for key, _ in few] == [b"k000", b"k001", b"k002"]
    await engine.close()


async def test_after_a_slow_read_the_next_ones_go_to_the_readers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = await filled(tmp_path, 1)
    moments = iter([0.0, 1.0])
    monkeypatch.setattr(sqlite, "perf_counter", lambda: next(moments, 1.0))
    monkeypatch.setattr(sqlite, "_BRIEF_PAUSE_COUNT", 2)
    here = threading.get_ident()
    threads = [await engine.read(thread_of, brief=True) for _ in range(4)]
    assert [thread == here for thread in threads] == [True, False, False, True]
    await engine.close()
