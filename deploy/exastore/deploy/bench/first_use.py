"""How long a fresh process takes until its first stripe is encoded."""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any, Final

from exastore.deploy.bench.results import FirstUse
from exastore.deploy.errors import DeployError

CODES: Final = (
    "rs-10-4",
    "lrc-12-2-2",
    "lrc-48-4-3",
    "clay-10-4-13",
    "clay-8-4-11",
    "clay-4-2-5",
    "rep-3",
)
CHUNK_BYTES: Final = 65536

#: `perf_counter` counts from the same moment in all processes of a Linux system.
_FIRST_STRIPE: Final = f"""
import json, time
import numpy
numpy_at = time.perf_counter()
from exastore.erasure import codec
code = codec({{name!r}}, kernel={{kernel!r}})
data = numpy.ones((code.k, {CHUNK_BYTES}), dtype=numpy.uint8)
parity = code.encode(data)
print(json.dumps([numpy_at, time.perf_counter(), parity.shape[0]]))
"""


def measure_first_use(codes: Sequence[str], kernel: str, rounds: int) -> list[FirstUse]:
    """New processes by turns: every code, with its compiled code on the disk and without.

    Raises:
        DeployError: a process failed.
    """
    found: list[FirstUse] = []
    with tempfile.TemporaryDirectory(prefix="exastore-bench-") as folder:
        warm = Path(folder) / "warm"
        for name in codes:
            _first_stripe(name, kernel, warm)
        times: dict[tuple[str, str], list[tuple[float, float, float]]] = {}
        for number in range(rounds):
            for name in codes:
                empty = Path(folder) / f"empty-{name}-{number}"
                for cache, where in (("warm", warm), ("empty", empty)):
                    measured = _first_stripe(name, kernel, where)
                    times.setdefault((name, cache), []).append(measured)
    for (name, cache), taken in times.items():
        firsts, own, numpys = (median(column) for column in zip(*taken, strict=True))
        found.append(FirstUse(name, kernel, cache, firsts, own, numpys, rounds))
    return found


def _first_stripe(name: str, kernel: str, cache: Path) -> tuple[float, float, float]:
    """Seconds until the first stripe, those since NumPy is there, and those until then."""
    environment = {key: value for key, value in os.environ.items() if key != "NUMBA_CACHE_DIR"}
    environment["EXASTORE_CACHE_DIR"] = str(cache)
    program = _FIRST_STRIPE.format(name=name, kernel=kernel)
    begin = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    if done.returncode:
        raise DeployError(f"a new process could not encode {name}: {done.stderr.strip()[-500:]}")
    answer: Any = json.loads(done.stdout)
    numpy_at, end, _ = answer
    return end - begin, end - numpy_at, numpy_at - begin
