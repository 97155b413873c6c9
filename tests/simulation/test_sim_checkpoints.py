"""A run that is killed goes on from its checkpoints to the tables of one that was not."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from exastore.sim import Results, ResultsError, load_scenario, run
from exastore.sim.results import TABLES


def same_tables(one: Results, other: Results) -> bool:
    return all(getattr(one, name).equals(getattr(other, name)) for name in TABLES)


class Stopped(Exception):
    """What stops a run from within."""


@pytest.mark.parametrize("workers", [1, 2])
def test_a_run_that_is_stopped_goes_on_to_the_same_tables(tmp_path: Path, workers: int) -> None:
    scenario = load_scenario("tiny")
    whole = run(scenario, trials=5, seed=3)
    stops_after = 1.6 * scenario.run.years  # in the second trial

    def stop(what: str, done: float, total: float) -> None:
        del total
        if what == "simulating" and done > stops_after:
            raise Stopped

    folder = tmp_path / "kept"
    with pytest.raises(Stopped):
        run(
            scenario, trials=5, seed=3, workers=workers, progress=stop,
            checkpoint=folder, checkpoint_every_years=0.5,
        )  # fmt: skip
    assert (folder / "trial-0.tables").exists()
    resumed = run(scenario, trials=5, seed=3, workers=workers, checkpoint=folder, resume=True)
    assert same_tables(resumed, whole)
    assert list(folder.iterdir()) == []


def test_checkpoints_of_another_run_are_not_resumed(tmp_path: Path) -> None:
    def stop(what: str, done: float, total: float) -> None:
        del total
        if what == "simulating" and done > 1.0:
            raise Stopped

    with pytest.raises(Stopped):
        run(load_scenario("tiny"), trials=1, seed=3, progress=stop, checkpoint=tmp_path)
    with pytest.raises(ResultsError, match="another scenario, seed or version"):
        run(load_scenario("tiny"), trials=1, seed=4, checkpoint=tmp_path, resume=True)
    run(load_scenario("tiny"), trials=1, seed=4, checkpoint=tmp_path)  # anew


def test_a_killed_command_resumes_to_the_same_parquet(tmp_path: Path) -> None:
    def command(*more: str) -> list[str]:
        args = ["sim", "run", "tiny", "--trials", "40", "--seed", "3", "--workers", "1"]
        return [sys.executable, "-m", "exastore.deploy", *args, *more]

    kept, out = tmp_path / "kept", tmp_path / "out"
    options = ["--out", str(out), "--checkpoint", str(kept), "--checkpoint-every", "0.5"]
    with subprocess.Popen(command(*options), stderr=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 120
        while not (kept / "trial-1.tables").exists():
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.002)
        os.kill(process.pid, signal.SIGKILL)
    assert (kept / "run.json").exists() and not (out / "trials.parquet").exists()
    subprocess.run(command(*options, "--resume"), check=True, stdout=subprocess.DEVNULL)
    resumed = Results.read(out)
    assert same_tables(resumed, run(load_scenario("tiny"), trials=40, seed=3))
