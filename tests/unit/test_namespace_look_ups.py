"""Look-ups that arrive together are one read, and each gets its own answer or error."""

import asyncio
from collections.abc import Callable
from typing import TypeVar

import pytest

from exastore.metadata.kv.contract import Transaction
from exastore.metadata.kv.memory import MemoryEngine
from exastore.metadata.namespace.errors import NoSuchKey
from exastore.metadata.service.look_ups import LookUps

T = TypeVar("T")


class Counting(MemoryEngine):
    """Counts its reads."""

    def __init__(self) -> None:
        super().__init__()
        self.read_count = 0

    async def read(self, fn: Callable[[Transaction], T]) -> T:
        self.read_count += 1
        return await super().read(fn)


def absent(txn: Transaction) -> bytes:
    del txn
    raise NoSuchKey("bucket", "key")


def wrong(txn: Transaction) -> bytes:
    del txn
    raise ZeroDivisionError


async def stored(engine: MemoryEngine) -> LookUps:
    def put(txn: Transaction) -> None:
        for number in range(10):
            txn.put(bytes([number]), bytes([number]))

    await engine.transact(put)
    return LookUps(engine)


async def test_look_ups_of_one_turn_are_one_read() -> None:
    engine = Counting()
    look_ups = await stored(engine)
    reads = [look_ups.read(lambda txn, n=n: txn.get(bytes([n]))) for n in range(10)]  # type: ignore[misc]
    assert await asyncio.gather(*reads) == [bytes([n]) for n in range(10)]
    assert engine.read_count == 1
    assert await look_ups.read(lambda txn: txn.get(b"\x01")) == b"\x01"


async def test_an_error_reaches_the_one_who_asked_alone() -> None:
    engine = Counting()
    look_ups = await stored(engine)
    found = await asyncio.gather(
        look_ups.read(lambda txn: txn.get(b"\x01")),
        look_ups.read(absent),
        look_ups.read(wrong),
        look_ups.read(lambda txn: txn.get(b"\x02")),
        return_exceptions=True,
    )
    assert [found[0], found[3]] == [b"\x01", b"\x02"]
    assert isinstance(found[1], NoSuchKey)
    assert isinstance(found[2], ZeroDivisionError)


async def test_one_who_gave_up_disturbs_nobody() -> None:
    look_ups = await stored(Counting())
    gone = asyncio.ensure_future(look_ups.read(lambda txn: txn.get(b"\x01")))
    stays = asyncio.ensure_future(look_ups.read(lambda txn: txn.get(b"\x02")))
    await asyncio.sleep(0)
    gone.cancel()
    assert await stays == b"\x02"
    with pytest.raises(asyncio.CancelledError):
        await gone
