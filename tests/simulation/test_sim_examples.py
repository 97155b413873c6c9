"""The examples run and say what they promise."""

import runpy
from pathlib import Path

import pytest

from exastore.sim import load_scenario, run

EXAMPLES = Path(__file__).parents[2] / "examples"


def test_the_example_scenario_runs() -> None:
    results = run(load_scenario(EXAMPLES / "scenario.toml"), trials=1)
    assert results.trials["violations"].to_pylist() == [0]


def test_the_example_of_growth_replaces_its_first_racks_and_fills_the_new_ones() -> None:
    results = run(load_scenario(EXAMPLES / "growth.toml"))
    rows = results.capacity.to_pylist()
    assert {row["name"] for row in rows if row["years"] == 0} == {"cluster"}
    last = [row for row in rows if row["years"] == 8]
    assert {row["name"] for row in last} == {"24 TB", "32 TB"}
    assert all(0.55 < row["stored_bytes"] / row["capacity_bytes"] < 0.65 for row in last)


def test_the_example_of_own_functions_runs_all_four(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(EXAMPLES.parent)
    results = run(load_scenario("examples/own_functions.toml"))
    (row,) = results.trials.to_pylist()
    assert row["device_failures"] > 3 and row["moved_runs"] > 0
    assert row["violations"] == row["violations_at_start"] == 0


def test_the_example_of_requests_says_how_they_fare_month_by_month() -> None:
    results = run(load_scenario(EXAMPLES / "foreground.toml"))
    rows = results.foreground.to_pylist()
    assert len(rows) == 36
    assert all(0.2 < row["utilisation"] < 0.8 for row in rows)
    assert all(0 < row["read_mean_s"] < row["read_p99_s"] < 1 for row in rows)
    assert all(row["degraded_mean_s"] >= row["read_mean_s"] for row in rows)
    assert max(row["degraded_read_share"] for row in rows) > 1e-5


def test_more_bandwidth_gives_more_nines(capsys: pytest.CaptureFixture[str]) -> None:
    runpy.run_path(str(EXAMPLES / "custom_run.py"), run_name="__main__")
    lines = capsys.readouterr().out.splitlines()[1:]
    found = [float(line.split()[-1]) for line in lines]
    assert len(found) == 3
    assert found == sorted(found)


def lines_of(name: str, capsys: pytest.CaptureFixture[str]) -> list[list[str]]:
    """What an example prints, without its head, in words."""
    runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
    return [line.split() for line in capsys.readouterr().out.splitlines()[1:]]


def test_lazy_repair_writes_less_and_leaves_groups_degraded_for_longer(
    capsys: pytest.CaptureFixture[str],
) -> None:
    eager, lazy = lines_of("lazy_repair", capsys)
    assert float(lazy[-3]) < 0.5 * float(eager[-3])
    assert float(lazy[-2]) > float(eager[-2])


def test_codes_of_equal_overhead_differ_in_what_repair_reads(
    capsys: pytest.CaptureFixture[str],
) -> None:
    lines = lines_of("compare_codes", capsys)
    assert [line[0] for line in lines] == ["rs-8-4", "lrc-8-2-2", "clay-8-4-11"]
    reads = [float(line[1]) for line in lines]
    assert reads == pytest.approx([8.0, 4.67, 2.75], abs=0.05)  # 8; (10 x 4 + 2 x 8) / 12; 11 / 4


def test_a_chain_agrees_with_lives_that_have_no_memory_only(
    capsys: pytest.CaptureFixture[str],
) -> None:
    exponential, ageing = lines_of("mttdl", capsys)
    chain, low, high = (float(exponential[i]) for i in (1, 3, 5))
    assert low <= chain <= high
    chain, high = float(ageing[2]), float(ageing[6])  # "wearing out" are two words
    assert high < chain
