"""Latency of small reads while a node is rebuilt, beside what it is before and after.

    python -m bench.read_latency [--seconds 20] [--budget 8000000]

Starts a cluster of its own (8 nodes, rs-4-2), reads objects of 60 kB one after the other with
boto3, loses a node for good, reads on while its data is rebuilt, and again when that is over.
"""

import argparse
import hashlib
import os
import signal
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from tests.chaos.matrix import client_of
from tests.integration.conftest import running_cluster, wait_until

BUCKET = "latency"
OBJECT_COUNT = 200
OBJECT_BYTES = 60_000
#: What makes the rebuild last.
BULK_COUNT = 24
BULK_BYTES = 16 << 20


def read_until(s3: Any, is_over: Callable[[], bool]) -> "np.ndarray[Any, np.dtype[np.float64]]":
    """Read until it is over. Returns seconds of each read."""
    seconds: list[float] = []
    while not is_over():
        for _ in range(20):
            key = str(len(seconds) * 7 % OBJECT_COUNT)
            begun_s = time.perf_counter()
            s3.get_object(Bucket=BUCKET, Key=key)["Body"].read()
            seconds.append(time.perf_counter() - begun_s)
    return np.array(seconds)


def tell(when: str, seconds: "np.ndarray[Any, np.dtype[np.float64]]") -> None:
    p50, p99 = np.percentile(seconds, [50, 99]) * 1e3
    print(f"{when:8} {len(seconds):6} reads  p50 {p50:7.2f} ms  p99 {p99:7.2f} ms", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=20.0, help="of each quiet measurement")
    parser.add_argument("--budget", type=int, help="of the repair, bytes/s; default: the servers'")
    arguments = parser.parse_args()
    duration_s = arguments.seconds
    options = ["--nodes", "8", "--code", "rs-4-2", "--pg-count", "64"]
    options += ["--down-after-s", "1", "--out-after-s", "2"]
    if arguments.budget:
        options += ["--repair-bandwidth-bytes-per-s", str(arguments.budget)]
    with (
        tempfile.TemporaryDirectory() as folder,
        running_cluster(Path(folder) / "cluster", *options) as live,
    ):
        s3 = client_of(live, attempts=3)
        s3.create_bucket(Bucket=BUCKET)
        for number in range(OBJECT_COUNT):
            body = hashlib.shake_256(str(number).encode()).digest(OBJECT_BYTES)
            s3.put_object(Bucket=BUCKET, Key=str(number), Body=body)
        for number in range(BULK_COUNT):
            s3.put_object(Bucket=BUCKET, Key=f"bulk-{number}", Body=os.urandom(BULK_BYTES))

        def after(wait_s: float) -> Callable[[], bool]:
            end_s = time.monotonic() + wait_s
            return lambda: time.monotonic() > end_s

        tell("before", read_until(s3, after(duration_s)))
        os.kill(live.info["nodes"][0]["pid"], signal.SIGKILL)
        wait_until(lambda: live.status().repair.active, "the rebuild begins")
        tell("during", read_until(s3, lambda: not live.status().repair.active))
        repair = live.status().repair
        print(f"rebuilt {repair.rebuilt_chunk_bytes >> 20} MiB in {repair.elapsed_s:.1f} s")
        tell("after", read_until(s3, after(duration_s)))


if __name__ == "__main__":
    main()
