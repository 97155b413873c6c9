"""One, two and three metadata servers over one PostgreSQL: do more of them serve more?

Three servers run all the time; in turns, one, two or all of them are asked by 64 clients in two
processes, as two gateways would. `small-machines`: each server may use a fixed share of a core
(EXASTORE_BENCH_CORES, a control group), as if on a small machine of its own, and nothing else is
limited. `one-machine`: servers, clients and PostgreSQL share the cores as they like, so another
server is no more CPU, and what counts is whether it costs any.

    python -m pytest bench/bench_metadata_servers.py -o python_files='bench_*.py' \
        --benchmark-only --benchmark-json out/bench/servers.json
"""

import asyncio
import json
import os
import subprocess
import sys
from collections import defaultdict
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from bench.bench_namespace import close_channels, form, open_channels, served
from bench.cpu_quota import NoQuota, limited
from pytest_benchmark.fixture import BenchmarkFixture
from tests.support.postgres_server import PostgresServer

CORES = float(os.environ.get("EXASTORE_BENCH_CORES", "0.2"))
TURN_S = float(os.environ.get("EXASTORE_BENCH_TURN_S", "3"))
ROUNDS = int(os.environ.get("EXASTORE_BENCH_ROUNDS", "5"))
SERVER_COUNTS = (1, 2, 3)
PROCESS_COUNT = 2
CLIENT_COUNT = 64
ROOT = Path(__file__).parents[1]


@dataclass(slots=True)
class World:
    """All processes; what they used is asked between turns."""

    postgres: PostgresServer
    servers: list[psutil.Process]
    clients: "list[subprocess.Popen[str]]"

    def run(self, method: str, server_count: int, seconds: float) -> int:
        """One turn: calls answered."""
        order = json.dumps({"method": method, "servers": server_count, "seconds": seconds})
        for process in self.clients:
            assert process.stdin is not None
            process.stdin.write(order + "\n")
            process.stdin.flush()
        calls = 0
        for process in self.clients:
            assert process.stdout is not None
            calls += json.loads(process.stdout.readline())["calls"]
        return calls

    def used(self) -> dict[str, float]:
        """CPU seconds so far by kind of process, and transactions of PostgreSQL."""
        database = psutil.Process(self.postgres.pid)
        kinds = {
            "server": self.servers,
            "client": [psutil.Process(process.pid) for process in self.clients],
            "postgresql": [database, *database.children()],
        }
        used = {f"{kind}_cpu_s": sum(map(_cpu_s, found)) for kind, found in kinds.items()}
        # Of PostgreSQL's processes that have ended, its first process keeps the account.
        ended = database.cpu_times()
        used["postgresql_cpu_s"] += float(ended.children_user + ended.children_system)
        (counts,) = self.postgres.execute(
            "SELECT xact_commit, xact_rollback FROM pg_stat_database WHERE datname = 'postgres'"
        )
        return {**used, "transactions": counts[0], "rollbacks": counts[1]}


def _cpu_s(process: psutil.Process) -> float:
    """What it has used itself; 0 once it has ended, as workers of PostgreSQL do at any time."""
    try:
        times = process.cpu_times()
    except psutil.NoSuchProcess:
        return 0.0
    return float(times.user + times.system)


@contextmanager
def _world(folder: Path, cores: float | None) -> Generator[World]:
    """Servers, each within its share of a core, and their clients.

    Raises:
        NoQuota: The share cannot be set here.
    """
    with ExitStack() as stack:
        postgres = stack.enter_context(PostgresServer(fsync=True))
        addresses: list[str] = []
        servers: list[psutil.Process] = []
        for number in range(max(SERVER_COUNTS)):
            home = folder / f"server-{number}"
            home.mkdir()
            addresses.append(stack.enter_context(served(postgres.url(), home)))
            pid = int(json.loads((home / "ready.json").read_text())["pid"])
            servers.append(psutil.Process(pid))
            if cores is not None:
                stack.enter_context(limited(pid, cores, f"server-{number}"))
        with asyncio.Runner() as runner:
            channels = runner.run(open_channels(addresses[0]))
            runner.run(form(channels[0]))
            runner.run(close_channels(channels))
        each = CLIENT_COUNT // PROCESS_COUNT
        clients: list[subprocess.Popen[str]] = []
        for number in range(PROCESS_COUNT):
            command = [sys.executable, "-m", "bench.metadata_clients"]
            command += [str(number * each), str(each), *addresses]
            process = stack.enter_context(
                subprocess.Popen(
                    command,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                    cwd=ROOT,
                    env={**os.environ, "OMP_NUM_THREADS": "1"},
                )
            )
            clients.append(process)
        for process in clients:
            assert process.stdout is not None
            assert json.loads(process.stdout.readline()) == {"ready": True}
        yield World(postgres, servers, clients)
        for process in clients:
            assert process.stdin is not None
            process.stdin.close()


@pytest.mark.parametrize("where", ["small-machines", "one-machine"])
def test_more_servers_over_one_postgresql_serve_more(
    benchmark: BenchmarkFixture, tmp_path: Path, where: str
) -> None:
    """Target: two serve more than one, commits and look-ups, each on a machine of its own."""
    rounds, turn_s = (1, 0.2) if benchmark.disabled else (ROUNDS, TURN_S)
    cores = CORES if where == "small-machines" else None
    rates: dict[tuple[str, int], list[float]] = defaultdict(list)
    costs: dict[tuple[str, int], dict[str, float]] = defaultdict(lambda: defaultdict(float))

    def work(world: World) -> None:
        for number in range(rounds):
            for method in ("CommitObject", "GetObject"):
                for server_count in np.roll(SERVER_COUNTS, number).tolist():
                    before = world.used()
                    calls = world.run(method, server_count, turn_s)
                    rates[method, server_count].append(calls / turn_s)
                    cost = costs[method, server_count]
                    cost["calls"] += calls
                    for name, value in world.used().items():
                        cost[name] += value - before[name]

    try:
        with _world(tmp_path, cores) as world:
            pedantic: Any = benchmark.pedantic
            pedantic(work, args=(world,), rounds=1)
    except NoQuota as why:
        pytest.skip(str(why))
    benchmark.group = f"metadata-servers-{where}"
    for (method, server_count), found in rates.items():
        name = f"{method}_{server_count}"
        assert min(found) > 0.0
        ratios = np.array(found) / rates[method, 1]
        cost = costs[method, server_count]
        info: dict[str, Any] = {
            "calls_per_s": round(float(np.median(found))),
            "ratio": [round(float(q), 3) for q in np.quantile(ratios, [0.5, 0.0, 1.0])],
            "calls_per_transaction": round(cost["calls"] / max(1.0, cost["transactions"]), 1),
            "rollbacks": cost["rollbacks"],
        }
        for kind in ("server", "client", "postgresql"):
            info[f"{kind}_us_per_call"] = round(1e6 * cost[f"{kind}_cpu_s"] / cost["calls"], 1)
        benchmark.extra_info[name] = info
        print(name, info)
