"""The figures of `exastore bench run store`, out of runs that are made up."""

import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from exastore.deploy.bench import store
from exastore.deploy.bench.store import Figure
from exastore.deploy.bench.stores import (
    OURS,
    SEAWEEDFS,
    Run,
    find_program,
    peak_rss_bytes,
    reset_peak,
    rss_bytes,
)
from exastore.deploy.errors import EnvironmentUnfit


def runs_of(*seconds: float) -> list[Run]:
    return [Run(each, {"gateway": each / 2, "s5cmd": each / 4}) for each in seconds]


def large(ours: list[Run], theirs: list[Run], target: float) -> list[Figure]:
    runs = {OURS: ours, SEAWEEDFS: theirs}
    return list(store._speeds(runs, "PUT", 10**9, target))  # pyright: ignore[reportPrivateUsage]


def test_a_ratio_is_the_median_of_the_ratios_within_rounds() -> None:
    figures = large(runs_of(1.0, 2.0, 10.0), runs_of(2.0, 3.0, 15.0), target=1.5)
    values = figures[0].values
    assert values["exastore_mb_per_s"] == 500
    assert values["ratio"] == 1.5
    assert (values["ratio_low"], values["ratio_high"]) == (1.5, 2.0)
    assert figures[0].is_reached
    assert not large(runs_of(1.0), runs_of(1.4), target=1.5)[0].is_reached


def test_cpu_time_is_told_of_each_process_and_of_all() -> None:
    of_ours = large(runs_of(4.0), runs_of(1.0), target=1.0)[1]
    scale = (1 << 30) / 10**9
    assert of_ours.values["gateway_cpu_s_per_gib"] == pytest.approx(2.0 * scale)
    assert of_ours.values["all_cpu_s_per_gib"] == pytest.approx(3.0 * scale)


def test_without_a_peer_there_is_no_target() -> None:
    runs = {OURS: runs_of(1.0)}
    figures = list(store._rates(runs, "GET", 100, 1.0))  # pyright: ignore[reportPrivateUsage]
    assert figures[0].values == {"exastore_per_s": 100}
    assert figures[0].target == ""
    assert store.as_json(figures[0])["id"] == "small-GET"


def test_a_program_that_is_not_installed_is_named_with_its_package() -> None:
    with pytest.raises(EnvironmentUnfit, match="no-such-program"):
        find_program("no-such-program", "some-package")


def test_the_peak_of_a_process_begins_anew() -> None:
    before = rss_bytes(os.getpid())
    block = bytearray(200 << 20)
    block[:: 1 << 12] = b"x" * (len(block) >> 12)  # touched
    assert peak_rss_bytes(os.getpid()) >= before + (150 << 20)
    del block
    reset_peak(os.getpid())
    assert peak_rss_bytes(os.getpid()) < before + (150 << 20)


@pytest.mark.verify
def test_the_bench_runs_and_leaves_no_process_behind(tmp_path: Path) -> None:
    results = tmp_path / "results.jsonl"
    command = [sys.executable, "-m", "exastore.deploy", "bench", "run", "store", "--parts", "small"]
    command += ["--rounds", "1", "--dir", str(tmp_path), "--json", str(results)]
    subprocess.run(command, check=True, timeout=300)
    assert '"table": "small"' in results.read_text()
    left = [p for p in psutil.process_iter(["cmdline"]) if str(tmp_path) in str(p.info["cmdline"])]
    assert not left
