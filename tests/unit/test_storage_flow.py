"""Bounded memory of streams, and rate limits."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from exastore.storage.flow import ByteBudget
from exastore.storage.pacing import Pacer
from exastore.storage.streams import answer_stream


class FakeClock:
    """Time passes only by sleeping."""

    def __init__(self) -> None:
        self.time_s = 100.0

    def now_s(self) -> float:
        return self.time_s

    def monotonic_s(self) -> float:
        return self.time_s

    async def sleep(self, duration_s: float) -> None:
        self.time_s += duration_s


async def settle() -> None:
    """Let every task run until it waits."""
    for _ in range(20):
        await asyncio.sleep(0)


async def test_a_budget_lets_waiters_in_by_their_turn() -> None:
    budget = ByteBudget(10)
    await budget.take(8)
    order: list[str] = []

    async def taker(name: str, byte_count: int) -> None:
        await budget.take(byte_count)
        order.append(name)

    tasks = [asyncio.create_task(taker("big", 9)), asyncio.create_task(taker("small", 1))]
    await settle()
    assert order == []  # the small one would fit, but the big one came first
    budget.give(8)
    await settle()
    assert order == ["big", "small"]
    assert budget.taken_bytes == 10
    await asyncio.gather(*tasks)


async def test_an_item_larger_than_the_budget_passes_alone() -> None:
    budget = ByteBudget(10)
    await budget.take(100)
    waiter = asyncio.create_task(budget.take(1))
    await settle()
    assert not waiter.done()
    budget.give(100)
    await waiter
    assert budget.taken_bytes == 1


async def test_a_cancelled_waiter_gives_its_turn_on() -> None:
    budget = ByteBudget(10)
    await budget.take(10)
    first, second = (asyncio.create_task(budget.take(5)) for _ in range(2))
    await settle()
    first.cancel()
    await settle()
    budget.give(10)
    await second
    assert budget.taken_bytes == 5


async def test_a_stream_takes_no_more_requests_than_its_memory_allows() -> None:
    taken: list[int] = []
    proceed = asyncio.Event()

    async def requests() -> AsyncIterator[int]:
        for number in range(10):
            taken.append(number)
            yield number

    async def handle(number: int) -> int:
        await proceed.wait()
        return -number

    answers = answer_stream(requests(), handle, lambda _: 4, 8)
    first = asyncio.ensure_future(anext(answers))
    await settle()
    assert taken == [0, 1, 2]  # two in flight, one waiting for memory
    proceed.set()
    rest = [await first] + [answer async for answer in answers]
    assert sorted(rest) == sorted(-number for number in range(10))


async def test_a_stream_that_is_left_cancels_what_it_began() -> None:
    cancelled = asyncio.Event()

    async def requests() -> AsyncIterator[int]:
        yield 1
        await asyncio.Event().wait()

    async def handle(number: int) -> int:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.set()
            raise
        return number

    answers = answer_stream(requests(), handle, lambda _: 1, 8)
    first = asyncio.ensure_future(anext(answers))
    await settle()
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    await answers.aclose()  # type: ignore[attr-defined]  # an async generator
    assert cancelled.is_set()


async def test_a_pacer_keeps_its_rate_after_a_burst() -> None:
    clock = FakeClock()
    pacer = Pacer(1000, clock)
    for _ in range(100):
        await pacer.take(100)
    assert clock.time_s - 100.0 == pytest.approx(10.0 - 0.25)
    clock.time_s += 50.0  # idle time is not saved up
    started_s = clock.time_s
    for _ in range(10):
        await pacer.take(100)
    assert clock.time_s - started_s == pytest.approx(1.0 - 0.25)


async def test_a_rate_of_nothing_is_no_limit() -> None:
    clock = FakeClock()
    await Pacer(0, clock).take(1 << 40)
    assert clock.time_s == 100.0
