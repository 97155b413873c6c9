"""Durable commits and reads per second of every engine, with 64 clients.

`python -m bench.bench_kv [--servers N]` prints a table; under pytest it runs small. A transaction
is like the commit of a small object: two reads, one of them of a hot key, and two rows of 300 and
100 bytes. A read looks up two keys. PostgreSQL and etcd are started here, with fsync, on this
machine: so clients, servers and disk share it. With `--servers 2`, two processes share each store
that can be.
"""

import argparse
import asyncio
import multiprocessing
import tempfile
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
from tests.support.engine_stores import KINDS, SHARED_KINDS
from tests.support.etcd_cluster import EtcdCluster
from tests.support.postgres_server import PostgresServer

from exastore.metadata.kv.contract import Engine, Transaction
from exastore.metadata.kv.open import open_engine

CLIENT_COUNT = 64


@dataclass(frozen=True, slots=True)
class Figure:
    """Rates of one engine."""

    kind: str
    server_count: int
    commits_per_s: float
    reads_per_s: float

    def __str__(self) -> str:
        return (
            f"{self.kind:<11} {self.server_count} server(s), {CLIENT_COUNT} clients each: "
            f"{self.commits_per_s:>7.0f} commits/s {self.reads_per_s:>7.0f} reads/s"
        )


@contextmanager
def store(kind: str) -> Generator[str]:
    """The URL of an empty store whose commits are durable."""
    if kind == "memory":
        yield "memory:"
    elif kind == "sqlite":
        with tempfile.TemporaryDirectory() as folder:
            yield f"sqlite://{folder}/kv.db"
    elif kind == "postgresql":
        with PostgresServer(fsync=True) as server:
            yield server.url()
    else:
        with EtcdCluster() as cluster:
            yield cluster.url("bench")


async def clients(engine: Engine, each: Callable[[int], Any], duration_s: float) -> float:
    """Calls per second of clients that call one after the other."""
    count = 0
    started_s = time.perf_counter()

    async def client(lane: int) -> None:
        nonlocal count
        number = 0
        while time.perf_counter() - started_s < duration_s:
            await each(lane * 1_000_000 + number % 1000)
            number += 1
            count += 1

    await asyncio.gather(*(client(lane) for lane in range(CLIENT_COUNT)))
    return count / (time.perf_counter() - started_s)


async def measure(url: str, kind: str, server: int, duration_s: float) -> Figure:
    """One server's rates."""
    engine = open_engine(url)

    def key(number: int) -> bytes:
        return b"object-%d-%09d" % (server, number)

    async def commit(number: int) -> None:
        def fn(txn: Transaction) -> None:
            txn.multi_get([b"bucket", key(number)])
            txn.put(key(number), b"v" * 300)
            txn.put(b"extents-" + key(number), b"v" * 100)

        await engine.transact(fn)

    async def look_up(number: int) -> None:
        await engine.read(lambda txn: txn.multi_get([b"bucket", key(number)]))

    await engine.transact(lambda txn: txn.put(b"bucket", b"v" * 200))
    await clients(engine, commit, duration_s / 5)
    commits_per_s = await clients(engine, commit, duration_s)
    reads_per_s = await clients(engine, look_up, duration_s)
    await engine.close()
    return Figure(kind, 1, commits_per_s, reads_per_s)


def measure_here(url: str, kind: str, server: int, duration_s: float) -> Figure:
    """`measure`, in a process of its own."""
    return asyncio.run(measure(url, kind, server, duration_s))


def measure_servers(kind: str, server_count: int, duration_s: float) -> Figure:
    """The rates of several servers on one store, added up."""
    with store(kind) as url, multiprocessing.get_context("spawn").Pool(server_count) as pool:
        if server_count > 1:
            asyncio.run(measure(url, kind, 99, 0.1))  # the store is laid out
        figures = pool.starmap(
            measure_here, [(url, kind, server, duration_s) for server in range(server_count)]
        )
        pool.close()
        pool.join()
    return Figure(
        kind,
        server_count,
        sum(figure.commits_per_s for figure in figures),
        sum(figure.reads_per_s for figure in figures),
    )


@pytest.mark.parametrize("kind", KINDS)
def test_commits_and_reads(kind: str, benchmark: Any) -> None:
    with store(kind) as url:
        figure: Figure = benchmark.pedantic(
            measure_here, args=(url, kind, 0, 0.5), rounds=1, iterations=1
        )
    benchmark.extra_info.update(
        commits_per_s=figure.commits_per_s, reads_per_s=figure.reads_per_s, clients=CLIENT_COUNT
    )
    assert figure.commits_per_s > 100
    assert figure.reads_per_s > 100


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--engines", nargs="*", default=list(KINDS), choices=KINDS)
    parser.add_argument("--servers", type=int, default=1, help="processes per shared store")
    parser.add_argument("--seconds", type=float, default=5.0, help="of each measurement")
    parser.add_argument("--rounds", type=int, default=3, help="rounds, engines in turn")
    options = parser.parse_args()
    for _ in range(options.rounds):
        for kind in options.engines:
            count = options.servers if kind in SHARED_KINDS else 1
            print(measure_servers(kind, count, options.seconds), flush=True)


if __name__ == "__main__":
    main()
