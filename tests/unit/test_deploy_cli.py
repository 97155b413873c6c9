"""The command line in one process: simulator commands, and how errors end."""

import io
import json
import sys
from contextlib import redirect_stderr, redirect_stdout
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
