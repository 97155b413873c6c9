"""The benchmarks run small, so that they cannot rot between two `make bench`."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def run_small(*options: str) -> str:
    suites = [*map(str, sorted((ROOT / "bench").glob("bench_*.py")))]
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", *suites, "-o", "python_files=bench_*.py", "-m", ""),
            *("--benchmark-disable", "-q", "-p", "no:cacheprovider", *options),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=280,
    )
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    return done.stdout


def test_every_benchmark_runs_small() -> None:
    output = run_small()
    assert "passed" in output


def test_benchmarks_of_erasure_are_named_by_geometry() -> None:
    names = run_small("--collect-only", "-k", "bench_erasure")
    for name in ("encode-rs-10-4-64KiB-", "decode-rs-4-2-4KiB-", "lrc-12-2-2", "clay-10-4-13"):
        assert name in names
