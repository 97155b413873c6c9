"""Concurrent histories of every engine have a serial order; histories of weak stores have none."""

import asyncio
from collections.abc import AsyncIterator

import pytest
from tests.support.engine_stores import KINDS, SHARED_KINDS, EngineStores
from tests.support.fake_store import WEAKNESSES, FakeStore
from tests.support.kv_history import (
    NEVER,
    History,
    Record,
    Seen,
    assert_serialisable,
    run_clients,
    serial_order,
)

from exastore.metadata.kv.contract import Engine
from exastore.metadata.kv.memory import MemoryEngine
from exastore.metadata.kv.open import open_engine

SCAN = ("scan", b"a", b"b", None, False, False)


def history(*records: tuple[int, int, list[Seen]]) -> History:
    return History([Record(called, answered, seen) for called, answered, seen in records])


def put(value: bytes, key: bytes = b"a0") -> Seen:
    return (("put", key, value), None)


def got(value: bytes | None, key: bytes = b"a0") -> Seen:
    return (("get", key), value)


# ---- the checker itself ----


@pytest.mark.parametrize(
    ("why", "found", "is_serial"),
    [
        ("read after write", history((1, 2, [put(b"1")]), (3, 4, [got(b"1")])), True),
        ("stale read", history((1, 2, [put(b"1")]), (3, 4, [got(None)])), False),
        ("concurrent read of the old", history((1, 4, [put(b"1")]), (2, 3, [got(None)])), True),
        (
            "one reads the new, a later one the old",
            history((1, 9, [put(b"1")]), (2, 3, [got(b"1")]), (4, 5, [got(None)])),
            False,
        ),
        (
            "lost update",
            history((1, 3, [got(None), put(b"1")]), (2, 4, [got(None), put(b"2")])),
            False,
        ),
        (
            "write skew",
            history(
                (1, 3, [got(None), got(None, b"a1"), put(b"1")]),
                (2, 4, [got(None), got(None, b"a1"), put(b"2", b"a1")]),
            ),
            False,
        ),
        (
            "phantom",
            history(
                (1, 3, [(SCAN, []), put(b"1")]),
                (2, 4, [(SCAN, []), put(b"2", b"a1")]),
            ),
            False,
        ),
        (
            "half a commit",
            history((1, 9, [put(b"1"), put(b"1", b"a1")]), (2, 3, [got(b"1"), got(None, b"a1")])),
            False,
        ),
        ("lost answer, happened", history((1, NEVER, [put(b"1")]), (3, 4, [got(b"1")])), True),
        ("lost answer, did not", history((1, NEVER, [put(b"1")]), (3, 4, [got(None)])), True),
        (
            "lost answer, later",
            history((1, NEVER, [put(b"1")]), (2, 3, [got(None)]), (4, 5, [got(b"1")])),
            True,
        ),
        (
            "lost answer, undone",
            history((1, NEVER, [put(b"1")]), (2, 3, [got(b"1")]), (4, 5, [got(None)])),
            False,
        ),
    ],
)
def test_the_checker_tells_serial_histories_from_others(
    why: str, found: History, is_serial: bool
) -> None:
    assert (serial_order(found) is not None) == is_serial, why


async def clients_of_a_fake(seed: int, weakness: str, fault_probability: float = 0.0) -> History:
    store = FakeStore(seed, weakness=weakness, fault_probability=fault_probability)
    engines = [store.engine() for _ in range(3)]
    return await run_clients(engines, seed=seed, client_count=6, transaction_count=8)


@pytest.mark.parametrize("weakness", WEAKNESSES)
async def test_a_planted_weakness_is_caught(weakness: str) -> None:
    for seed in range(40):
        if serial_order(await clients_of_a_fake(seed, weakness)) is None:
            return
    pytest.fail(f"no history of a store with {weakness} was rejected")


# ---- the engines ----


async def test_engines_on_one_sound_store_are_serialisable() -> None:
    for seed in range(25):
        assert_serialisable(await clients_of_a_fake(seed, ""))


async def test_lost_answers_and_lost_servers_leave_histories_serialisable() -> None:
    lost_count = 0
    for seed in range(5):
        found = await clients_of_a_fake(seed, "", fault_probability=0.15)
        lost_count += sum(record.may_not_have_happened for record in found.records)
        assert found.refused_count == 0
        assert_serialisable(found)
    assert lost_count > 5


@pytest.fixture(params=KINDS)
async def engines(
    request: pytest.FixtureRequest, engine_stores: EngineStores
) -> AsyncIterator[list[Engine]]:
    """Two servers on one empty store, where the engine can be shared; otherwise one."""
    url = engine_stores.url(request.param)
    opened: list[Engine] = [open_engine(url)]
    if request.param in SHARED_KINDS:
        opened.append(open_engine(url))
    if request.param == "memory":
        flips = iter([True, False, False] * 10_000)
        opened = [MemoryEngine(conflicts=lambda: next(flips))]
    yield opened
    await asyncio.gather(*(engine.close() for engine in opened))


@pytest.mark.parametrize("seed", range(4))
async def test_concurrent_clients_see_a_serial_order(engines: list[Engine], seed: int) -> None:
    found = await run_clients(engines, seed=seed, client_count=8, transaction_count=12)
    # A closing look at everything must fit, too.
    called = found.tick()
    step = ("scan", b"", b"\xff", None, False, False)
    rows = await engines[-1].read(lambda txn: txn.scan(b"", b"\xff"))
    found.records.append(Record(called, found.tick(), [(step, rows)]))
    assert found.refused_count == 0
    assert_serialisable(found)
