"""Clients beside a rebuild: how long they wait when repair heeds them, and when it does not.

Two nodes die one after the other, of equally much data. Beside the first rebuild clients are not
heeded, beside the second they are. Run with -s to see the figures.
"""

import os
import signal
import statistics
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import pytest
from tests.chaos.matrix import client_of
from tests.integration.conftest import LiveCluster, NewCluster, new_cluster, wait_until

__all__ = ["new_cluster"]

pytestmark = [pytest.mark.verify, pytest.mark.timeout(900)]

BUCKET = "pace"
OBJECT_BYTES = 4 << 20
OBJECT_COUNT = int(os.environ.get("EXASTORE_VERIFY_PACE_OBJECTS", "500"))
TARGET_S = 0.05
CLIENTS = 4


@dataclass
class Load:
    """Clients that put and get 256 KiB each, twenty times a second, until they are stopped."""

    live: LiveCluster
    seconds: list[float] = field(default_factory=list[float])
    failures: list[str] = field(default_factory=list[str])
    _ended: threading.Event = field(default_factory=threading.Event)
    _threads: list[threading.Thread] = field(default_factory=list[threading.Thread])

    def start(self) -> None:
        for number in range(CLIENTS):
            client = client_of(self.live, attempts=1)
            thread = threading.Thread(target=self._run, args=(client, number))
            thread.start()
            self._threads.append(thread)

    def stop(self) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join()

    def _run(self, s3: Any, number: int) -> None:
        body = os.urandom(256 << 10)
        while not self._ended.is_set():
            begun_s = time.monotonic()
            try:
                s3.put_object(Bucket=BUCKET, Key=f"load-{number}", Body=body)
                assert s3.get_object(Bucket=BUCKET, Key=f"load-{number}")["Body"].read() == body
            except Exception as error:
                self.failures.append(repr(error))
            self.seconds.append((time.monotonic() - begun_s) / 2)
            self._ended.wait(0.1)


def p99(values: list[float]) -> float:
    return statistics.quantiles(values, n=100)[98]


def kill(live: LiveCluster, node: str) -> None:
    os.kill(next(item["pid"] for item in live.info["nodes"] if item["id"] == node), signal.SIGKILL)


def watched_rebuild(live: LiveCluster, node: str) -> tuple[list[float], float, float]:
    """Kill a node: (latencies while it is rebuilt, seconds that takes, bytes a second)."""
    kill(live, node)
    wait_until(lambda: live.status().repair.active, "the rebuild begins")
    load = Load(live)
    load.start()
    try:
        wait_until(lambda: live.status().fully_redundant, "it is rebuilt", 600)
    finally:
        load.stop()
    assert not load.failures
    repair = live.status().repair
    return load.seconds, repair.elapsed_s, repair.rebuilt_chunk_bytes / repair.elapsed_s


def test_repair_makes_way_for_clients_and_still_ends(new_cluster: NewCluster) -> None:
    live = new_cluster("--down-after-s", "1", "--out-after-s", "2", "--trash-grace-s", "600")
    s3 = client_of(live, attempts=3)
    s3.create_bucket(Bucket=BUCKET)
    body = os.urandom(OBJECT_BYTES)

    def put(number: int) -> None:
        s3.put_object(Bucket=BUCKET, Key=f"{number}", Body=body)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(put, range(OBJECT_COUNT)))
    quiet = Load(live)
    quiet.start()
    time.sleep(15)
    quiet.stop()
    assert live.run("cluster", "budget", "--p99-ms", "0", "--apply").code == 0
    unheeded, fast_s, fast = watched_rebuild(live, "node-8")
    target = str(1000 * TARGET_S)
    assert live.run("cluster", "budget", "--p99-ms", target, "--apply").code == 0
    heeded, slow_s, slow = watched_rebuild(live, "node-7")
    for what, values in (("no rebuild", quiet.seconds), ("unheeded", unheeded), ("heeded", heeded)):
        print(
            f"{what}: p50 {1000 * statistics.median(values):.0f} ms, p99 {1000 * p99(values):.0f} "
            f"ms of {len(values)} requests of clients"
        )
    print(f"rebuilt {fast / 1e6:.1f} MB/s in {fast_s:.0f} s, and {slow / 1e6:.1f} in {slow_s:.0f}")
    assert p99(heeded) < p99(unheeded)
    assert statistics.median(heeded) < statistics.median(unheeded)
