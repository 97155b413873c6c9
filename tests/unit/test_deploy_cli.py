"""The command line in one process: simulator commands, and how errors end."""

import io
import json
import sys
from contextlib import redirect_stderr, redirect_stdout
from importlib import resources
from pathlib import Path
from typing import Any

import pytest

from exastore.deploy.cli import main
from exastore.deploy.cli.output import binary_size, duration


def run(*arguments: str | Path) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a command."""
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.setenv("COLUMNS", "200")
        patch.setattr(sys, "argv", ["exastore", *(str(argument) for argument in arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
    code = ended.value.code
    return code if isinstance(code, int) else 0, out.getvalue(), err.getvalue()


def test_the_version_is_printed() -> None:
    code, out, _ = run("--version")
    assert code == 0
    assert out.startswith("exastore ")


def test_an_unknown_command_is_a_usage_error() -> None:
    code, _, err = run("cluster", "fly")
    assert code == 2
    assert "No such command" in err


def test_presets_are_listed_and_the_exabyte_is_among_them() -> None:
    code, out, _ = run("sim", "presets", "--json")
    assert code == 0
    assert {"1eib", "tiny"} <= set(json.loads(out))


def test_a_malformed_scenario_is_told_with_every_problem(tmp_path: Path) -> None:
    scenario = tmp_path / "bad.toml"
    scenario.write_text('name = "bad"\ncode = "rs-4"\n[device]\ncapacity_bytes = "large"\n')
    code, out, err = run("sim", "run", scenario, "--out", tmp_path / "out")
    assert code == 2
    assert out == ""
    assert "capacity_bytes" in err
    assert "line 4" in err
    assert "cluster: is required" in err
    assert not (tmp_path / "out").exists()


def test_an_unknown_scenario_lists_the_presets(tmp_path: Path) -> None:
    code, _, err = run("sim", "place", tmp_path / "none.toml")
    assert code == 2
    assert "1eib" in err


def test_placing_tells_the_balance_before_and_after_and_the_moves() -> None:
    code, out, err = run("sim", "place", "tiny", "--seed", "5", "--json")
    assert code == 0, err
    told = json.loads(out)
    assert told["balanced"]
    assert told["violations"] == told["violations_before"] == 0
    assert told["slots_per_device_stddev_before"] > 8
    assert told["slots_per_device_stddev"] <= 1
    assert told["largest_deviation"] <= 1.000001
    assert told["moved_slot_count"] == told["minimum_moves"] > 0
    code, out, _ = run("sim", "place", "tiny", "--seed", "5")
    assert code == 0
    assert f"moved {told['moved_slot_count']:,} slots" in out


def test_a_placement_that_is_not_balanced_says_so(tmp_path: Path) -> None:
    preset = resources.files("exastore.sim").joinpath("presets", "tiny.toml").read_text("utf-8")
    (tmp_path / "hashed.toml").write_text(preset.replace("balanced = true", "balanced = false"))
    code, out, _ = run("sim", "place", tmp_path / "hashed.toml")
    assert code == 0
    assert "not balanced" in out
    assert "min 7" in out or "max 12" in out


def test_a_run_writes_tables_and_a_page_and_the_seed_decides_all(tmp_path: Path) -> None:
    tables: list[Any] = []
    for name, workers in (("a", "1"), ("b", "2")):
        code, out, err = run(
            *("sim", "run", "tiny", "--out", tmp_path / name, "--trials", "2"),
            *("--seed", "5", "--workers", workers, "--json"),
        )
        assert code == 0, err
        told = json.loads(out)
        assert told["seed"] == 5
        tables.append([row for row in told["summary"] if row["label"] != "time taken"])
        assert (tmp_path / name / "trials.parquet").exists()
        assert (tmp_path / name / "report.html").stat().st_size > 1_000_000
    assert tables[0] == tables[1]
    (tmp_path / "a" / "report.html").unlink()
    code, out, _ = run("sim", "report", tmp_path / "a")
    assert code == 0
    assert (tmp_path / "a" / "report.html").exists()


def test_a_folder_without_results_is_told(tmp_path: Path) -> None:
    code, _, err = run("sim", "report", tmp_path)
    assert code == 2
    assert "holds no results of a simulation" in err


def test_a_bad_config_of_a_process_ends_in_words(tmp_path: Path) -> None:
    config = tmp_path / "metadata.toml"
    config.write_text('[metadata]\ncode = "rs-4-2"\nbootstrap_device_count = 3\n')
    code, _, err = run("metadata", "run", "--config", config)
    assert code == 2
    assert "rs-4-2 needs 6 devices" in err


def test_sizes_and_durations_are_for_people() -> None:
    assert binary_size(0) == "0 B"
    assert binary_size(1536) == "1.5 KiB"
    assert binary_size(3 * 2**60) == "3.0 EiB"
    assert duration(None) == "not known yet"
    assert duration(1.25) == "1.2 s"
    assert duration(65) == "1 min 05 s"
    assert duration(7_260) == "2 h 01 min"
