"""The background lease: who holds it, and that what a former holder writes is refused."""

from collections.abc import Callable
from typing import Any

import pytest
from tests.unit.metadata_cluster import Cluster, ManualClock, pb

from exastore.metadata.kv.contract import Engine, Transaction
from exastore.metadata.kv.keys import pack
from exastore.metadata.kv.memory import MemoryEngine
from exastore.metadata.service.errors import LeaseLost
from exastore.metadata.service.lease import Lease

LEASE_KEY = pack("L", "background")


class WatchedTransaction:
    """Notes whether a transaction reads the lease, and whether it writes."""

    def __init__(self, inner: Transaction) -> None:
        self._inner = inner
        self.reads_lease = False
        self.writes: list[bytes] = []

    def get(self, key: bytes) -> bytes | None:
        self.reads_lease |= key == LEASE_KEY
        return self._inner.get(key)

    def put(self, key: bytes, value: bytes) -> None:
        self.writes.append(key)
        self._inner.put(key, value)

    def delete(self, key: bytes) -> None:
        self.writes.append(key)
        self._inner.delete(key)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


class WatchedEngine:
    """An engine that remembers every transaction that wrote without reading the lease."""

    def __init__(self, inner: Engine) -> None:
        self._inner = inner
        self.unfenced: list[bytes] = []
        self.fenced_count = 0

    async def transact(self, fn: Callable[[Any], Any]) -> Any:
        def watched(txn: Transaction) -> Any:
            watch = WatchedTransaction(txn)
            result = fn(watch)
            if watch.writes and not watch.reads_lease:
                self.unfenced += watch.writes
            self.fenced_count += bool(watch.writes and watch.reads_lease)
            return result

        return await self._inner.transact(watched)

    async def read(self, fn: Callable[[Any], Any], *, brief: bool = False) -> Any:
        return await self._inner.read(fn)

    async def close(self) -> None:
        await self._inner.close()


async def with_objects(cluster: Cluster) -> Cluster:
    await cluster.form()
    await cluster.new_bucket()
    for pg in range(len(cluster.map.pgs)):
        await cluster.put(f"o{pg}", pg)
    return cluster


async def all_background_work(cluster: Cluster) -> None:
    """One round of everything that a server does by itself."""
    work = cluster.background
    await work.run_round()
    await work.degraded.run_round()
    await work.trash.run_round()
    await work.leftovers.run_round()
    await work.lifecycle.run_round()


async def test_every_background_write_is_fenced_by_the_lease() -> None:
    engine = WatchedEngine(MemoryEngine())
    cluster = await with_objects(Cluster(6, engine=engine))
    await cluster.put("short", 3, missing=(1,))
    await cluster.service.names.delete_objects(
        pb.DeleteObjectsRequest(bucket="bucket", keys=["o1", "o2"])
    )
    await cluster.service.cluster.operate(
        pb.OperateRequest(operation=pb.OPERATION_DRAIN, device_indexes=[2], apply=True)
    )
    await cluster.service.cluster.operate(
        pb.OperateRequest(operation=pb.OPERATION_BALANCE, apply=True)
    )
    engine.unfenced.clear()
    engine.fenced_count = 0
    for turn in range(40):
        if turn == 10:
            cluster.kill(4)
        cluster.clock.advance(1.0)
        await all_background_work(cluster)
        for number in sorted(cluster.alive):
            await cluster.service.cluster.heartbeat(cluster.heartbeat_of(number))
        await cluster.background.repair.work.wait_for_running()
        await cluster.background.slot_mover.work.wait_for_running()
    assert cluster.states()[4] == 3 and cluster.is_whole()
    assert not any(2 in pg.device_indexes for pg in cluster.map.pgs)
    # Lease renewals, states, targets, moves, CLEAN marks, degraded stripes, trash, leftovers.
    assert engine.fenced_count > 20
    assert engine.unfenced == []


async def two_servers() -> tuple[Cluster, Cluster]:
    """The first holds the lease and has lost slots and a drain to work on."""
    engine = MemoryEngine()
    first = await with_objects(Cluster(7, engine=engine))
    second = Cluster(7, engine=engine, clock=first.clock, nodes=first.nodes, holder="server-2")
    await second.service.start()
    first.nodes.gate.clear()
    first.kill(5)
    second.alive = first.alive
    await first.until(lambda: len(first.nodes.requests) > 0)
    return first, second


async def test_what_a_paused_holder_writes_after_its_lease_was_taken_is_refused() -> None:
    first, second = await two_servers()
    first.nodes.gate.set()
    await first.background.repair.work.wait_for_running()
    # The holder stands still here, its rebuilds verified and not marked. The other takes over.
    first.clock.advance(4.0)
    assert await second.service.lease.keep()
    assert first.service.lease.is_held  # so it believes
    before = first.map.epoch
    with pytest.raises(LeaseLost):
        await first.background.repair.work.mark_finished()
    # A device that it alone has heard of comes back: it may not say so either.
    first.revive(5)
    await first.service.cluster.heartbeat(first.heartbeat_of(5))
    with pytest.raises(LeaseLost):
        await first.service.cluster.settle()
    await second.service.maps.load()
    assert second.map.epoch == first.map.epoch == before
    # It finds out at its next round, and the other one ends the work.
    await first.background.run_round()
    assert not first.service.lease.is_held
    await second.until(second.is_whole, within_s=120.0)


async def test_a_token_is_never_used_again() -> None:
    engine, clock = MemoryEngine(), ManualClock()
    leases = [Lease(engine, f"server-{number}", 3.0, clock) for number in range(2)]
    tokens: list[int] = []
    for turn in range(6):
        lease = leases[turn % 2]
        assert await lease.keep()
        tokens.append(lease.token)
        if turn % 3 == 0:
            await lease.release()
        clock.advance(4.0)
    assert tokens == sorted(set(tokens))


async def test_a_clock_that_jumps_back_delays_nobody_for_longer_than_the_lease() -> None:
    engine = MemoryEngine()
    fast, slow = ManualClock(), ManualClock()
    fast.time_s += 100_000.0  # the holder's wall clock is a day ahead, and it dies
    assert await Lease(engine, "server-1", 3.0, fast).keep()
    other = Lease(engine, "server-2", 3.0, slow)
    assert not await other.keep()
    slow.advance(2.0)
    assert not await other.keep()
    slow.advance(1.5)
    assert await other.keep()


async def test_a_holder_that_renews_is_left_alone_whatever_its_clock_says() -> None:
    engine = MemoryEngine()
    fast, slow = ManualClock(), ManualClock()
    fast.time_s += 100_000.0
    holder, other = Lease(engine, "server-1", 3.0, fast), Lease(engine, "server-2", 3.0, slow)
    for _ in range(10):
        assert await holder.keep()
        assert not await other.keep()
        fast.advance(1.5)
        slow.advance(1.5)


@pytest.mark.parametrize("jump_s", [86_400.0 * 365, -86_400.0 * 365])
async def test_a_wall_clock_that_jumps_takes_nobody_out_and_stops_no_work(jump_s: float) -> None:
    cluster = await with_objects(Cluster(6, out_after_s=10.0))
    before = cluster.map.epoch
    cluster.clock.jump_s = jump_s
    for _ in range(5):
        await cluster.step()
    assert set(cluster.states()) == {1} and cluster.map.epoch == before
    assert cluster.service.lease.is_held
    # The rule of silence goes by the time that passes.
    cluster.kill(2)
    await cluster.step(2.0)
    cluster.clock.jump_s = 0.0
    assert cluster.states()[2] == 1
    await cluster.until(lambda: cluster.states()[2] == 2, within_s=3.0)
    await cluster.until(lambda: cluster.states()[2] == 3, within_s=10.0)
    await cluster.until(cluster.is_whole)
