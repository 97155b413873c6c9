"""CPU that the S3 front takes by itself: a store in memory behind the real server, in a process.

    python bench/front_cpu.py [--against OTHER_TREE] [--rounds 5]

Prints user and system time of the serving process: microseconds for a PUT and a GET of 4 KiB on a
connection that stays, milliseconds for each MiB of bodies of 64 MiB. Requests are signed before the
clock runs; bodies are unsigned (their signature costs what SHA-256 costs). With `--against`, two
servers take turns in each round, and the ratio is the median of the rounds': it holds on a machine
that others use, where the times themselves do not.
"""

import argparse
import http.client
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import psutil
from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

ROOMS = ("proto", "erasure", "metadata", "storage", "gateway", "sim", "deploy")
KEY, SECRET = "front", "front-secret"
SMALL_COUNT = 2000
#: CPU time is counted in steps of 10 ms.
LARGE_COUNT = 4
SMALL, LARGE = os.urandom(4096), bytes(64 << 20)

SERVE = """
import sys, time
from exastore.deploy.clock import SystemClock
from exastore.gateway.config import GatewayConfig
from exastore.gateway.testing.memory_store import MemoryStore
from exastore.gateway.testing.served import ServedStore
config = GatewayConfig(access_key="front", secret_key="front-secret")
with ServedStore(lambda: MemoryStore(time.time), config, clock=SystemClock()) as served:
    print(served.address, flush=True)
    sys.stdin.read()
"""


class _Unsigned(S3SigV4Auth):  # type: ignore[misc]
    """Signs headers alone."""

    def payload(self, request: AWSRequest) -> str:
        return "UNSIGNED-PAYLOAD"


class Server:
    """A front of one source tree."""

    def __init__(self, tree: Path) -> None:
        paths = os.pathsep.join(str(tree / room) for room in ROOMS)
        self._process = subprocess.Popen(
            [sys.executable, "-c", SERVE],
            env={**os.environ, "PYTHONPATH": paths},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout is not None
        self.address = self._process.stdout.readline().strip()
        self._usage = psutil.Process(self._process.pid)
        self._connection = http.client.HTTPConnection(self.address, timeout=120)
        self.send("PUT", "/bucket", b"")

    def close(self) -> None:
        self._connection.close()
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def headers(self, method: str, path: str) -> Mapping[str, str]:
        """Those of a signed request."""
        request = AWSRequest(method, f"http://{self.address}{path}")
        _Unsigned(Credentials(KEY, SECRET), "s3", "us-east-1").add_auth(request)
        return dict(request.headers.items())

    def send(
        self, method: str, path: str, body: bytes | None, headers: Mapping[str, str] | None = None
    ) -> int:
        """Send a request that succeeds; the bytes of its answer."""
        signed = self.headers(method, path) if headers is None else headers
        self._connection.request(method, path, body, dict(signed))
        answer = self._connection.getresponse()
        size_bytes = 0
        while piece := answer.read(1 << 20):
            size_bytes += len(piece)
        assert answer.status == 200, (method, path, answer.status)
        return size_bytes

    def cpu_s(self, work: Callable[[], None]) -> float:
        """What the process takes while the work runs."""
        before = self._usage.cpu_times()
        work()
        after = self._usage.cpu_times()
        return (after.user - before.user) + (after.system - before.system)


def measured(server: Server) -> dict[str, float]:
    """One round: the figures by name."""
    puts = [(f"/bucket/{n}", server.headers("PUT", f"/bucket/{n}")) for n in range(SMALL_COUNT)]
    gets = [(path, server.headers("GET", path)) for path, _ in puts]

    def put_small() -> None:
        for path, headers in puts:
            server.send("PUT", path, SMALL, headers)

    def get_small() -> None:
        for path, headers in gets:
            assert server.send("GET", path, None, headers) == len(SMALL)

    large = "/bucket/large"
    mib = LARGE_COUNT * len(LARGE) >> 20

    def put_large() -> None:
        for _ in range(LARGE_COUNT):
            server.send("PUT", large, LARGE)

    def get_large() -> None:
        for _ in range(LARGE_COUNT):
            assert server.send("GET", large, None) == len(LARGE)

    return {
        "PUT 4 KiB, us": server.cpu_s(put_small) / SMALL_COUNT * 1e6,
        "GET 4 KiB, us": server.cpu_s(get_small) / SMALL_COUNT * 1e6,
        "PUT, ms/MiB": server.cpu_s(put_large) / mib * 1e3,
        "GET, ms/MiB": server.cpu_s(get_large) / mib * 1e3,
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--against", type=Path, help="another source tree")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    trees = [Path(__file__).parents[1], *([options.against] if options.against else [])]
    servers = [Server(tree.resolve()) for tree in trees]
    try:
        for server in servers:
            measured(server)  # warm
        rounds = [[measured(server) for server in servers] for _ in range(options.rounds)]
    finally:
        for server in servers:
            server.close()
    print(time.strftime("%Y-%m-%d %H:%M"), f"{options.rounds} rounds")
    for name in rounds[0][0]:
        ours = statistics.median(it[0][name] for it in rounds)
        line = f"{name:16} {ours:8.1f}"
        if options.against:
            other = statistics.median(it[1][name] for it in rounds)
            ratio = statistics.median(it[0][name] / it[1][name] for it in rounds)
            line += f"   other {other:8.1f}   ratio {ratio:.2f}"
        print(line)


if __name__ == "__main__":
    main()
