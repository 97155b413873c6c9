"""Budgets of background traffic on one node."""

import asyncio
from collections.abc import Awaitable, Callable

from prometheus_client import CollectorRegistry
from tests.unit.metadata_cluster import ManualClock

from exastore.proto.v1 import budget_pb2
from exastore.storage.budget import PATIENCE_S, UNGRANTED_BYTES_PER_S, BackgroundBudget
from exastore.storage.metrics import StorageMetrics

OWN, OTHER = "eu/z/a", "eu/z/b"


class Rig:
    """A budget and the time."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.budget = BackgroundBudget(OWN, self.clock, StorageMetrics(CollectorRegistry()))

    async def pass_time(self, duration_s: float) -> None:
        """In small steps, so that sleepers wake up when they are due."""
        for _ in range(round(duration_s * 20)):
            self.clock.advance(0.05)
            for _ in range(5):
                await asyncio.sleep(0)


async def served_bytes(rig: Rig, seconds: float, rack: str, device: int = 1) -> int:
    """What four readers that always want more get of this node."""
    got = 0

    async def read() -> None:
        nonlocal got
        while True:
            wait_s = await rig.budget.send(device, 100, rack)
            if wait_s:
                await rig.clock.sleep(wait_s)
            else:
                got += 100
            await asyncio.sleep(0)

    readers = [asyncio.create_task(read()) for _ in range(4)]
    await rig.pass_time(seconds)
    for reader in readers:
        reader.cancel()
    await asyncio.gather(*readers, return_exceptions=True)
    return got


async def test_before_the_first_grant_a_node_keeps_to_a_rate_that_hurts_nobody() -> None:
    rig = Rig()
    passed = 0

    async def move(step: Callable[[], Awaitable[float | None]]) -> None:
        nonlocal passed
        while True:
            passed += (await step() or 0.0) == 0.0
            await rig.clock.sleep(0.01)

    chunk = UNGRANTED_BYTES_PER_S // 16
    for step in (
        lambda: rig.budget.send(1, chunk, OTHER),
        lambda: rig.budget.receive(chunk, OTHER),
        lambda: rig.budget.write(2, chunk),
        lambda: rig.budget.scrub(3, chunk),
    ):
        passed = 0
        mover = asyncio.create_task(move(step))
        await rig.pass_time(4.0)
        mover.cancel()
        await asyncio.gather(mover, return_exceptions=True)
        assert 0.7 <= passed / 16 / 4.0 <= 1.1


async def test_a_scrub_keeps_to_the_device_and_to_the_pace_of_the_node_and_is_told() -> None:
    rig = Rig()
    rig.budget.take_grant(budget_pb2.BackgroundGrant(node_bytes_per_s=1000))
    await rig.budget.scrub(1, 5000)
    waiting = asyncio.create_task(rig.budget.scrub(2, 10))
    await rig.pass_time(4.0)
    assert not waiting.done()
    assert await rig.budget.send(1, 10, OWN) == 0.0, "the network is not what it uses"
    await rig.pass_time(2.0)
    assert waiting.done()
    assert rig.budget.load().scrubbed_bytes == 5010
    rig.budget.take_grant(budget_pb2.BackgroundGrant(device_bytes_per_s=1000))
    await rig.budget.write(1, 5000)
    waiting = asyncio.create_task(rig.budget.scrub(1, 10))
    await rig.pass_time(4.0)
    assert not waiting.done()
    await rig.pass_time(2.0)
    assert waiting.done()


async def test_what_need_not_wait_passes_at_once_and_is_counted() -> None:
    rig = Rig()
    rig.budget.take_grant(budget_pb2.BackgroundGrant(node_bytes_per_s=1000))
    assert rig.budget.send_now(1, 5000, OTHER)
    assert not rig.budget.send_now(1, 10, OWN), "what was taken is to be paid for"
    assert (rig.budget.load().sent_bytes, rig.budget.load().rack_sent_bytes) == (5000, 5000)
    rig.clock.advance(10)
    assert rig.budget.send_now(1, 10, OWN)


async def test_what_others_write_here_passes_the_device_and_the_way_in() -> None:
    rig = Rig()
    rig.budget.take_grant(budget_pb2.BackgroundGrant(node_bytes_per_s=1000))
    assert await rig.budget.accept(1, 5000, OWN) == 0.0
    assert await rig.budget.accept(1, 10, OWN) == PATIENCE_S, "come again"
    await rig.budget.push(10, OWN)
    load = rig.budget.load()
    assert (load.received_bytes, load.sent_bytes) == (5000, 10)
    lease = budget_pb2.BackgroundGrant(has_rack_limit=True, rack_share_bytes_per_s=0, lease_s=5)
    rig.budget.take_grant(lease)
    refused = asyncio.create_task(rig.budget.accept(1, 10, OTHER))
    await rig.pass_time(2.0)
    assert await refused > 0.0
    assert await rig.budget.accept(1, 10, OWN) == 0.0


async def test_each_device_and_the_network_have_rates_of_their_own() -> None:
    rig = Rig()
    rig.budget.take_grant(budget_pb2.BackgroundGrant(device_bytes_per_s=1000))
    assert 9_500 <= await served_bytes(rig, 10.0, OWN, device=1) <= 11_000
    assert 9_500 <= await served_bytes(rig, 10.0, OWN, device=2) <= 11_000
    rig.budget.take_grant(budget_pb2.BackgroundGrant(node_bytes_per_s=500))
    assert 4_500 <= await served_bytes(rig, 10.0, OWN, device=3) <= 5_600


async def test_a_read_that_had_to_wait_too_long_is_told_when_to_come_again() -> None:
    rig = Rig()
    rig.budget.take_grant(budget_pb2.BackgroundGrant(node_bytes_per_s=100))
    assert await rig.budget.send(1, 1000, OWN) == 0.0
    wait_s = await rig.budget.send(1, 10, OWN)
    assert wait_s == PATIENCE_S
    assert rig.budget.load().sent_bytes == 1000, "nothing is counted that was not sent"
    rig.clock.advance(10)
    assert await rig.budget.send(1, 10, OWN) == 0.0


async def test_nothing_passes_the_uplink_without_a_lease_and_all_of_it_within_the_rack() -> None:
    rig = Rig()
    grant = budget_pb2.BackgroundGrant(has_rack_limit=True, rack_share_bytes_per_s=400, lease_s=5)
    rig.budget.take_grant(grant)
    assert 1_500 <= await served_bytes(rig, 4.0, OTHER) <= 1_900
    assert rig.budget.load().rack_share_bytes_per_s == 400
    assert rig.budget.load().rack_wait_count > 0
    assert 400 >= await served_bytes(rig, 4.0, OTHER), "the lease ends a second later"
    assert rig.budget.load().rack_share_bytes_per_s == 0
    assert await rig.budget.send(1, 10**9, OWN) == 0.0
    rig.budget.take_grant(grant)
    assert await served_bytes(rig, 4.0, OTHER) > 1_000


async def test_a_new_grant_holds_for_those_that_wait_already() -> None:
    rig = Rig()
    rig.budget.take_grant(budget_pb2.BackgroundGrant(node_bytes_per_s=1))
    await rig.budget.receive(1000, OWN)
    waiting = asyncio.create_task(rig.budget.receive(1, OWN))
    await rig.pass_time(1.0)
    assert not waiting.done()
    rig.budget.take_grant(budget_pb2.BackgroundGrant())
    await rig.pass_time(1.0)
    assert waiting.done()


async def test_the_latency_of_clients_is_told_and_they_never_wait() -> None:
    rig = Rig()
    for _ in range(99):
        rig.budget.note_foreground(0.001)
    rig.budget.note_foreground(0.5)
    rig.budget.note_foreground(0.5)
    load = rig.budget.load()
    assert load.foreground_count == 101 and 0.4 < load.foreground_p99_s < 0.6
