"""Traces in Backblaze's layout: what is played back, and what is refused with which words."""

from dataclasses import replace
from pathlib import Path

import pyarrow.csv as csv
import pyarrow.parquet as pq
import pytest

from exastore.sim import Scenario, ScenarioError, load_scenario
from exastore.sim.trace import trace_events

HEAD = "date,serial_number,model,capacity_bytes,failure\n"


def scenario_of(path: Path, *, racks: int = 6, years: float = 0.005) -> Scenario:
    """12 devices, about two days."""
    tiny = load_scenario("tiny")
    cluster = replace(tiny.cluster, racks_per_zone=racks, nodes_per_rack=1, devices_per_node=2)
    device = replace(tiny.device, trace=str(path))
    return replace(tiny, cluster=cluster, device=device, run=replace(tiny.run, years=years))


def rows(*changes: str, drives: int = 12) -> str:
    """Two days of all drives, and more rows."""
    days = ("2026-01-01", "2026-01-02")
    usual = [f"{day},S{i:02},ST4000DM000,4000787030016,0" for day in days for i in range(drives)]
    return HEAD + "\n".join([*usual, *changes]) + "\n"


def written(folder: Path, text: str, name: str = "trace.csv") -> Path:
    (folder / name).write_text(text, "utf-8")
    return folder / name


def test_rows_in_any_order_with_gaps_give_the_same_failures(tmp_path: Path) -> None:
    late = ("2026-01-05,S03,ST4000DM000,1,1", "2026-01-04,S07,no such model,1,1")
    text = rows(*late)
    head, *body = text.splitlines()
    # Only rows of one day keep their order, which numbers the drives.
    shuffled = "\n".join([head, *sorted(body, key=lambda row: (-int(row[9]), body.index(row)))])
    found = trace_events(scenario_of(written(tmp_path, text)))
    assert found == [(4 * 86_400.0, 7), (5 * 86_400.0, 3)]
    assert trace_events(scenario_of(written(tmp_path, shuffled + "\n", "other.csv"))) == found


def test_parquet_and_a_folder_of_daily_files_are_as_one_file(tmp_path: Path) -> None:
    text = rows("2026-01-03,S05,ST4000DM000,1,1")
    whole = written(tmp_path, text)
    found = trace_events(scenario_of(whole))
    pq.write_table(csv.read_csv(whole), tmp_path / "trace.parquet")
    assert trace_events(scenario_of(tmp_path / "trace.parquet")) == found
    folder = tmp_path / "daily"
    folder.mkdir()
    for day in ("2026-01-01", "2026-01-02", "2026-01-03"):
        daily = [row for row in text.splitlines()[1:] if row.startswith(day)]
        written(folder, HEAD + "\n".join(daily) + "\n", f"{day}.csv")
    assert trace_events(scenario_of(folder)) == found


def test_serial_numbers_that_look_like_numbers_are_text(tmp_path: Path) -> None:
    text = rows("2026-01-02,007,M,1,1", drives=11)
    assert trace_events(scenario_of(written(tmp_path, text))) == [(2 * 86_400.0, 11)]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "needs the columns date, serial_number, failure"),
        (HEAD, "has no rows; give one row per drive and day"),
        (rows().replace("serial_number", "serial"), "needs the columns date, serial_number"),
        (rows().replace("failure", "failed"), "needs the columns date, serial_number, failure"),
        (rows().replace("2026-01-0", "13/01/2026-"), "dates such as '13/01/2026-1'; write them as"),
        (rows(",S05,M,1,1"), "has no date in row 25; fill it in or leave the row out"),
        (rows("2026-01-03,,M,1,1"), "has no serial_number in row 25"),
        (rows("2026-01-03,S05,M,1,"), "has no failure in row 25"),
        (rows("2026-01-03,S05,M,1,2"), "has 2 in column failure, row 25; it must be 0 or 1"),
        (rows("2026-01-03,S05,M,1,yes"), "in column failure, row 1; it must be 0 or 1"),
        (rows("2026-01-02,S05,M,1,1"), "1 rows twice, the first of drive S05 on 2026-01-02"),
        (rows("2026-01-03,S05,M,1,1", "2026-01-04,S05,M,1,1"), "drive S05 fail 2 times"),
        (rows(drives=5), "has 5 drives for 12 devices"),
        (HEAD + "2026-01-01,S1\n", "cannot be played back"),
    ],
)
def test_what_cannot_be_played_back_is_named_with_the_remedy(
    tmp_path: Path, text: str, words: str
) -> None:
    with pytest.raises(ScenarioError) as told:
        trace_events(scenario_of(written(tmp_path, text)))
    (problem,) = told.value.problems
    assert problem.key == "device.trace" and words in problem.text, problem.text
    assert "trace.csv" in problem.text


def test_a_trace_shorter_than_the_run_says_how_long_the_run_may_be(tmp_path: Path) -> None:
    scenario = scenario_of(written(tmp_path, rows()), years=2.0)
    with pytest.raises(ScenarioError, match=r"covers 2 days.*set run\.years to at most 0\.0054"):
        trace_events(scenario)


def test_a_file_that_is_not_there_and_an_empty_folder_say_so(tmp_path: Path) -> None:
    with pytest.raises(ScenarioError, match="is not there; give the path"):
        trace_events(scenario_of(tmp_path / "none.csv"))
    with pytest.raises(ScenarioError, match=r"has no \.csv and no \.parquet"):
        trace_events(scenario_of(tmp_path))
    with pytest.raises(ScenarioError, match="cannot be played back"):
        trace_events(scenario_of(written(tmp_path, "no parquet", "x.parquet")))
