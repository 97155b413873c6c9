"""Servers of engines die under load: what was acknowledged stays, the rest is whole or absent."""

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable, Iterator

import psycopg
import pytest
from tests.support.etcd_cluster import EtcdCluster
from tests.support.kv_history import assert_serialisable, run_clients
from tests.support.postgres_server import PostgresServer

from exastore.metadata.kv.contract import Engine, Transaction, counter_value
from exastore.metadata.kv.errors import CommitUnknown, EngineFull, EngineUnavailable
from exastore.metadata.kv.etcd import open_etcd
from exastore.metadata.kv.postgres import open_postgres

pytestmark = [pytest.mark.integration, pytest.mark.chaos]


@pytest.fixture(scope="module")
def postgres() -> Iterator[PostgresServer]:
    """A server whose commits reach the disk; tests leave it running."""
    with PostgresServer(fsync=True) as server:
        yield server


@pytest.fixture(scope="module")
def etcd() -> Iterator[EtcdCluster]:
    """Three members; tests leave them running."""
    with EtcdCluster() as cluster:
        yield cluster


class Load:
    """Clients that store pairs of rows and count them, until told to stop."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._stopped = False
        self.acknowledged: list[bytes] = []
        self.unknown: list[bytes] = []
        self.refused: list[bytes] = []

    async def run(self, client_count: int = 16) -> None:
        await asyncio.gather(*(self._client(lane) for lane in range(client_count)))

    def stop(self) -> None:
        self._stopped = True

    async def reached(self, count: int) -> None:
        """Wait for so many acknowledged transactions."""
        async with asyncio.timeout(60):
            while len(self.acknowledged) < count:
                await asyncio.sleep(0.002)

    async def _client(self, lane: int) -> None:
        number = 0
        while not self._stopped:
            name = b"%02d-%06d" % (lane, number)

            def fn(txn: Transaction, name: bytes = name) -> None:
                txn.get(b"gate")
                txn.put(b"one-" + name, b"v" * 300)
                txn.put(b"two-" + name, b"v" * 300)
                txn.add(b"count-%02d" % lane, 1)

            try:
                await self._engine.transact(fn)
                self.acknowledged.append(name)
            except CommitUnknown:
                self.unknown.append(name)
            except EngineUnavailable:
                self.refused.append(name)
            number += 1

    async def check(self, engine: Engine) -> None:
        """Everything acknowledged is there, and nothing by half."""
        ones = {key[4:] for key, _ in await engine.read(lambda t: t.scan(b"one-", b"one."))}
        twos = {key[4:] for key, _ in await engine.read(lambda t: t.scan(b"two-", b"two."))}
        counts = await engine.read(lambda t: t.scan(b"count-", b"count."))
        assert ones == twos
        assert sum(counter_value(value) for _, value in counts) == len(ones)
        assert set(self.acknowledged) <= ones <= set(self.acknowledged) | set(self.unknown)
        assert not set(self.refused) & ones


async def load_with_a_fault(engine: Engine, fault: Callable[[], Awaitable[None]]) -> Load:
    """Load, a fault in the middle of it, and as much load again."""
    load = Load(engine)
    running = asyncio.create_task(load.run())
    await load.reached(200)
    await fault()
    await load.reached(len(load.acknowledged) + 200)
    load.stop()
    await running
    return load


async def test_postgresql_killed_and_started_again_keeps_what_it_acknowledged(
    postgres: PostgresServer,
) -> None:
    engine = open_postgres(postgres.new_url("killed"), patience_s=30.0)
    for _ in range(2):

        async def kill_and_start() -> None:
            await asyncio.to_thread(postgres.kill)
            await asyncio.to_thread(postgres.start)

        load = await load_with_a_fault(engine, kill_and_start)
        assert load.refused == []
        again = open_postgres(postgres.url("killed"))
        await load.check(again)
        await again.close()
        await wipe(engine)
    await engine.close()


async def wipe(engine: Engine) -> None:
    """Delete everything."""

    def some(txn: Transaction) -> int:
        rows = txn.scan(b"", b"\xff", limit=90, keys_only=True)
        for key, _ in rows:
            txn.delete(key)
        return len(rows)

    while await engine.transact(some):
        pass


async def test_cut_connections_are_made_again(postgres: PostgresServer) -> None:
    engine = open_postgres(postgres.new_url("cut"))

    async def cut() -> None:
        await asyncio.to_thread(
            postgres.execute,
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE application_name = 'exastore-metadata'",
        )

    load = await load_with_a_fault(engine, cut)
    assert load.refused == []
    await load.check(engine)
    # Idle connections that died meanwhile are noticed before anything is sent on them.
    await cut()
    await engine.transact(lambda txn: txn.put(b"blind", b"write"))
    await cut()
    assert await engine.read(lambda txn: txn.get(b"blind")) == b"write"
    await engine.close()


async def test_a_postgresql_that_stays_away_is_unavailable_and_named(
    postgres: PostgresServer,
) -> None:
    engine = open_postgres(postgres.new_url("away"), patience_s=0.5)
    await engine.transact(lambda txn: txn.put(b"a", b"1"))
    await asyncio.to_thread(postgres.kill)
    try:
        with pytest.raises(EngineUnavailable, match=f"port={postgres.port}.*cannot be reached"):
            await engine.transact(lambda txn: txn.put(b"a", b"2"))
        with pytest.raises(EngineUnavailable, match="cannot be reached"):
            await engine.read(lambda txn: txn.get(b"a"))
    finally:
        await asyncio.to_thread(postgres.start)
    assert await engine.read(lambda txn: txn.get(b"a")) == b"1"
    await engine.close()


async def test_a_server_stalled_inside_a_transaction_blocks_no_other(
    postgres: PostgresServer,
) -> None:
    """PostgreSQL cuts it off, so that it gives up its turn."""
    url = postgres.new_url("stalled")
    engine = open_postgres(url, patience_s=30.0)
    await engine.transact(lambda txn: txn.put(b"a", b"1"))

    def stall() -> psycopg.Connection:
        connection = psycopg.connect(url, autocommit=True)
        connection.execute("SET idle_in_transaction_session_timeout = '1s'")
        connection.execute("BEGIN ISOLATION LEVEL SERIALIZABLE")
        connection.execute("LOCK TABLE exastore_kv_turn IN EXCLUSIVE MODE")
        return connection

    stalled = await asyncio.to_thread(stall)
    await engine.transact(lambda txn: txn.put(b"a", b"2"))
    assert await engine.read(lambda txn: txn.get(b"a")) == b"2"
    await engine.close()
    stalled.close()


@pytest.mark.parametrize("who", ["follower", "leader"])
async def test_etcd_serves_on_when_a_member_is_killed(etcd: EtcdCluster, who: str) -> None:
    engine = open_etcd(etcd.url(f"killed-{who}"), patience_s=20.0)
    other = open_etcd(etcd.url(f"killed-{who}"), patience_s=20.0)
    leader = await asyncio.to_thread(etcd.leader)
    index = leader if who == "leader" else (leader + 1) % 3

    async def kill() -> None:
        await asyncio.to_thread(etcd.kill, index)

    try:
        load = await load_with_a_fault(engine, kill)
        assert load.refused == []
        await load.check(other)
    finally:
        etcd.start(index)
        await asyncio.to_thread(etcd.wait_for, index)
    await load.check(other)
    await asyncio.gather(engine.close(), other.close())


async def test_etcd_histories_with_a_killed_leader_have_a_serial_order(etcd: EtcdCluster) -> None:
    engines = [open_etcd(etcd.url("history"), patience_s=20.0) for _ in range(2)]
    leader = await asyncio.to_thread(etcd.leader)

    def kill_in_the_middle(ended_count: int) -> None:
        if ended_count == 40:
            etcd.signal(leader, signal.SIGKILL)

    found = await run_clients(
        engines, seed=7, client_count=6, transaction_count=14, on_progress=kill_in_the_middle
    )
    assert found.refused_count == 0
    assert_serialisable(found)
    etcd.kill(leader)
    etcd.start(leader)
    await asyncio.to_thread(etcd.wait_for, leader)
    await asyncio.gather(*(engine.close() for engine in engines))


async def test_etcd_without_a_majority_is_unavailable_and_comes_back(etcd: EtcdCluster) -> None:
    engine = open_etcd(etcd.url("majority"), patience_s=1.0)
    await engine.transact(lambda txn: txn.put(b"a", b"1"))
    for index in (0, 1):
        etcd.kill(index)
    try:
        with pytest.raises((EngineUnavailable, CommitUnknown), match=etcd.endpoints[2]):
            await engine.transact(lambda txn: txn.add(b"n", 1))
        with pytest.raises(EngineUnavailable, match="cannot be reached"):
            await engine.read(lambda txn: txn.get(b"a"))
    finally:
        for index in (0, 1):
            etcd.start(index)
        for index in (0, 1, 2):
            await asyncio.to_thread(etcd.wait_for, index)
    assert await engine.read(lambda txn: txn.get(b"a")) == b"1"
    await engine.close()


async def test_a_stopped_etcd_member_is_left_for_another(etcd: EtcdCluster) -> None:
    engine = open_etcd(etcd.url("stopped"), patience_s=20.0)
    await engine.transact(lambda txn: txn.put(b"a", b"1"))
    # The first member is the one that this engine asks first.
    os.kill(etcd.pid(0), signal.SIGSTOP)
    try:
        assert await engine.read(lambda txn: txn.get(b"a")) == b"1"
        await engine.transact(lambda txn: txn.put(b"a", b"2"))
    finally:
        os.kill(etcd.pid(0), signal.SIGCONT)
    await engine.close()


async def test_old_versions_are_forgotten(etcd: EtcdCluster) -> None:
    engine = open_etcd(etcd.url("compacted"), compact_every_s=0.05)
    await engine.transact(lambda txn: txn.put(b"a", b"v"))
    first = await asyncio.to_thread(etcd.revision)
    async with asyncio.timeout(30):
        while not await asyncio.to_thread(etcd.is_compacted, first - 1):
            await engine.transact(lambda txn: txn.put(b"a", b"v"))
    await engine.close()
    again = open_etcd(etcd.url("compacted"))
    assert await again.read(lambda txn: txn.get(b"a")) == b"v"
    await again.close()


async def test_an_etcd_at_its_quota_says_so_and_still_deletes() -> None:
    with EtcdCluster(1, "--quota-backend-bytes", str(8 << 20)) as small:
        engine = open_etcd(small.url("full"))
        stored = 0
        with pytest.raises(EngineFull, match="quota"):
            while stored < 1000:
                await engine.transact(
                    lambda txn, stored=stored: txn.put(b"%04d" % stored, bytes(60_000))  # type: ignore[misc]
                )
                stored += 1
        keys = await engine.read(lambda txn: txn.scan(b"", b"\xff", keys_only=True))
        assert [key for key, _ in keys] == [b"%04d" % number for number in range(stored)]
        put, deleted = await asyncio.gather(
            engine.transact(lambda txn: txn.put(b"more", b"v")),
            engine.transact(lambda txn: txn.delete(b"0000")),
            return_exceptions=True,
        )
        assert isinstance(put, EngineFull)
        assert deleted is None
        await engine.close()
