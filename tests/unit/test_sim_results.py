"""Results on disk, the summary, and the report."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from exastore.metadata.core.balance import balance_of
from exastore.sim import (
    Results,
    ResultsError,
    load_scenario,
    place,
    run,
    scenario_toml,
    summarize,
)
from exastore.sim.report import (
    Card,
    ReportSection,
    bar_figure,
    comparison_report,
    comparison_rows,
    line_figure,
    render_report,
    report_sections,
    simulation_report,
)
from exastore.sim.report.events import loss_sections, map_section
from exastore.sim.results import FORMAT_VERSION, TABLES, ResultsWriter
from exastore.sim.sections import IncidentSection
from exastore.sim.summary import bytes_text, duration_text

DOCUMENT = Path(__file__).parents[2] / "docs" / "results.md"


@pytest.fixture(scope="module")
def results() -> Results:
    ticks = iter(range(100))
    return run(load_scenario("tiny"), trials=2, seed=3, monotonic_s=lambda: float(next(ticks)))


def test_results_come_back_as_they_were_written(results: Results, tmp_path: Path) -> None:
    results.write(tmp_path / "out")
    back = Results.read(tmp_path / "out")
    assert back.scenario == results.scenario
    assert back.provenance == results.provenance
    for name in TABLES:
        assert getattr(back, name).equals(getattr(results, name))
    assert (tmp_path / "out" / "scenario.toml").read_text() == scenario_toml(results.scenario)


def test_every_file_carries_its_provenance(results: Results, tmp_path: Path) -> None:
    results.write(tmp_path)
    for name in TABLES:
        stored = json.loads(pq.read_schema(tmp_path / f"{name}.parquet").metadata[b"exastore"])
        assert stored["seed"] == 3
        assert stored["scenario_sha256"] == results.provenance.scenario_sha256
        assert "rs-4-2" in stored["scenario_toml"]
        assert stored["code_version"] and stored["numba"] and stored["machine"]


def test_every_column_is_documented(results: Results) -> None:
    text = DOCUMENT.read_text("utf-8")
    for name in TABLES:
        assert f"## `{name}`" in text
        for column in getattr(results, name).column_names:
            assert f"`{column}`" in text, f"{name}.{column}"


def test_tables_streamed_by_any_number_of_workers_are_those_kept_in_memory(
    results: Results, tmp_path: Path
) -> None:
    tiny = load_scenario("tiny")
    kept = run(tiny, trials=7, seed=3)
    for workers in (1, 3):
        streamed = run(tiny, trials=7, seed=3, workers=workers, out=tmp_path / str(workers))
        for name in TABLES:
            assert getattr(streamed, name).equals(getattr(kept, name)), (name, workers)
    assert not list(tmp_path.glob("*/*.partial"))
    assert kept.placement.equals(results.placement)


def test_rows_go_to_disk_before_the_last_trial_ends(
    results: Results, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("exastore.sim.results._GROUP_ROWS", 48)
    with ResultsWriter(tmp_path) as writer:
        for _ in range(8):
            writer.add({name: getattr(results, name) for name in TABLES})
        assert (tmp_path / "timeline.parquet.partial").stat().st_size > 4
        assert not (tmp_path / "timeline.parquet").exists()
        writer.finish(results.provenance)
    groups = pq.read_metadata(tmp_path / "timeline.parquet").num_row_groups
    assert groups == 8
    assert Results.read(tmp_path).timeline.equals(pa.concat_tables([results.timeline] * 8))


def test_a_run_that_breaks_leaves_the_files_of_the_one_before(
    results: Results, tmp_path: Path
) -> None:
    results.write(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(KeyError), ResultsWriter(tmp_path) as writer:
        writer.add({"trials": results.trials})
        writer.add({"nonsense": results.trials})
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_folder_that_cannot_be_written_is_told_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    told: list[str] = []

    def tell(what: str, done: float, total: float) -> None:
        told.append(f"{what} {done} {total}")

    with pytest.raises(OSError, match="file"):
        run(load_scenario("tiny"), out=tmp_path / "file", progress=tell)
    assert not told


def test_placement_says_where_every_slot_lies(
    results: Results, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = results.placement.to_pylist()
    assert [row["device"] for row in rows] == list(range(144))
    assert [(row["node"], row["rack"]) for row in rows[11:13]] == [(2, 0), (3, 1)]
    assert sum(row["slots_start"] for row in rows) == 2400 * 6
    end = [row["slots"] for row in results.balance.to_pylist() if row["trial"] == 0]
    assert max(row["slots_end"] for row in rows) == max(end)
    fill = sum(row["fill_start"] for row in rows) / len(rows)
    assert fill == pytest.approx(results.scenario.fill)
    monkeypatch.setattr("exastore.sim.tables.DEVICE_ROWS_MAX", 100)
    by_node = run(results.scenario, trials=1, seed=3).placement.to_pylist()
    assert [row["node"] for row in by_node] == list(range(36))
    assert {row["device"] for row in by_node} == {-1}
    for name in ("slots_start", "slots_end"):
        assert by_node[5][name] == sum(row[name] for row in rows if row["node"] == 5)
    assert sum(row["fill_start"] for row in by_node) / 36 == pytest.approx(fill)


def test_incidents_are_counted_by_name(results: Results) -> None:
    upgrade = IncidentSection(name="upgrade", level="rack", every_years=0.5, duration_s=600.0)
    scenario = replace(results.scenario, incident=(upgrade,))
    ran = run(scenario, trials=1, seed=3)
    node, rack = ran.incidents.to_pylist()
    assert (rack["name"], rack["level"], rack["domains"]) == ("upgrade", "rack", 12)
    # Two years of two rounds over 12 racks, of which only the first rack is due at the very end.
    assert 48 <= rack["occurrences"] <= 49
    assert node["domains"] == 36
    plain = [row["occurrences"] for row in results.incidents.to_pylist()]
    assert plain == results.trials["node_outages"].to_pylist()


def test_a_run_is_lost_and_then_rebuilt_or_returned_or_still_missing(results: Results) -> None:
    for trial in results.trials.to_pylist():
        back = trial["chunk_runs_rebuilt"] + trial["chunk_runs_returned"]
        assert 0 <= trial["chunk_runs_lost"] - back < 1000
        assert trial["chunk_runs_returned"] > 0


def test_a_folder_without_results_says_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(ResultsError, match=r"holds no results.*trials\.parquet is not there"):
        Results.read(tmp_path)


def test_a_damaged_file_is_named(results: Results, tmp_path: Path) -> None:
    results.write(tmp_path)
    (tmp_path / "losses.parquet").write_bytes(b"PAR1 no more")
    with pytest.raises(ResultsError, match=r"losses\.parquet cannot be read"):
        Results.read(tmp_path)


def test_a_stranger_s_file_and_another_format_are_refused(results: Results, tmp_path: Path) -> None:
    results.write(tmp_path)
    pq.write_table(pa.table({"trial": [0]}), tmp_path / "trials.parquet")
    with pytest.raises(ResultsError, match="not written by exastore"):
        Results.read(tmp_path)
    strange = results.trials.replace_schema_metadata({b"exastore": b'{"format_version": 99}'})
    pq.write_table(strange, tmp_path / "trials.parquet")
    with pytest.raises(ResultsError, match=f"format 99, this program reads {FORMAT_VERSION}"):
        Results.read(tmp_path)


def test_months_add_up_to_the_totals(results: Results) -> None:
    for trial in results.trials.to_pylist():
        rows = [row for row in results.timeline.to_pylist() if row["trial"] == trial["trial"]]
        assert len(rows) == 24
        for name in ("device_failures", "rebuilds", "rebuilt_bytes", "degraded_pg_hours"):
            assert sum(row[name] for row in rows) == pytest.approx(trial[name])
        assert trial["read_bytes"] == pytest.approx(4 * trial["rebuilt_bytes"])
        assert trial["violations"] == trial["violations_at_start"] == 0
        redundancy = [r for r in results.redundancy.to_pylist() if r["trial"] == trial["trial"]]
        hours = sum(row["pg_hours"] for row in redundancy)
        assert hours == pytest.approx(trial["degraded_pg_hours"])
    start = [row for row in results.balance.to_pylist() if row["trial"] == -1]
    assert sum(row["slots"] * row["devices"] for row in start) == 2400 * 6
    assert sum(row["devices"] for row in start) == 144


def test_a_balanced_start_is_even_and_the_summary_says_that_drift_stays(results: Results) -> None:
    start = [row["slots"] for row in results.balance.to_pylist() if row["trial"] == -1]
    assert min(start) >= 99
    assert max(start) <= 101
    (text,) = [" ".join(row) for row in summarize(results) if row[0] == "balance"]
    assert "as balanced at the start, from 99 to 101" in text
    assert "is not rebalanced" in text


def test_a_start_without_balancing_is_that_of_hashing() -> None:
    tiny = load_scenario("tiny")
    hashed = replace(tiny, placement=replace(tiny.placement, balanced=False))
    plain, even = place(hashed, seed=3), place(tiny, seed=3)
    assert plain.balancing is None
    assert even.balancing is not None
    assert even.balancing.before == balance_of(plain.pg_devices, plain.topology.device_weight)
    assert even.balancing.before.stddev > 8
    assert even.balancing.after.stddev <= 1
    moved = int((plain.pg_devices != even.pg_devices).sum())
    assert moved == even.balancing.moved_slot_count == even.balancing.minimum_moves
    rows = summarize(run(hashed, trials=1, seed=3))
    assert any("as hashed at the start, not balanced" in row[2] for row in rows)


def test_progress_is_told_from_placing_to_the_end() -> None:
    told: list[tuple[str, float, float]] = []

    def tell(what: str, done: float, total: float) -> None:
        told.append((what, done, total))

    run(load_scenario("tiny"), trials=2, progress=tell)
    assert told[0] == ("placing", 0, 2400)
    assert told[-1] == ("simulating", 4, 4)
    assert [step[1] for step in told if step[0] == "simulating"] == sorted(
        step[1] for step in told if step[0] == "simulating"
    )


def test_no_trials_and_no_workers_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        run(load_scenario("tiny"), trials=0)
    with pytest.raises(ValueError, match="at least 1"):
        run(load_scenario("tiny"), workers=0)


def test_the_summary_names_the_seed_the_interval_and_the_assumptions(results: Results) -> None:
    rows = summarize(results)
    text = "\n".join(" ".join(row) for row in rows)
    assert "seed 3" in text
    assert "no loss in 4 trial-years; one-sided 95 % bound" in text
    assert "independent failures alone" in text
    assert ("domain violations", "0 at the start, 0 at the end") in [row[:2] for row in rows]


def test_quantities_are_written_for_people() -> None:
    assert bytes_text(0) == "0 B"
    assert bytes_text(1.5e12) == "1.5 TB"
    assert bytes_text(2e21) == "2e+03 EB"
    assert duration_text(30) == "30 s"
    assert duration_text(5400) == "90 min"
    assert duration_text(86400 * 3) == "3 d"


def test_the_report_is_one_file_that_asks_the_network_for_nothing(results: Results) -> None:
    page = simulation_report(results)
    own = page.replace(_plotly(page), "")
    assert len(own) < 200_000
    assert not re.findall(r"""(?:src|href)\s*=\s*["'](?!data:)""", own)
    assert "http" not in own
    assert "Simulation of tiny" in own


def _plotly(page: str) -> str:
    scripts: list[str] = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    return max(scripts, key=len)


def test_every_chart_has_a_title_axes_with_units_and_a_sentence(results: Results) -> None:
    charts = [section for section in report_sections(results) if section.figure]
    assert len(charts) == 9
    for section in charts:
        assert section.title
        assert section.text.endswith(".")
        assert section.figure is not None
        layout = section.figure["layout"]
        assert layout["xaxis"]["title"]["text"]
        assert layout["yaxis"]["title"]["text"]
        json.dumps(section.figure, allow_nan=False)


def test_the_map_has_a_cell_for_each_node_and_of_many_racks_one_for_each_rack(
    results: Results, monkeypatch: pytest.MonkeyPatch
) -> None:
    by_node = map_section(results).figure
    assert by_node is not None
    cells = by_node["data"][0]["z"]
    assert [len(row) for row in cells] == [12] * 3
    fifth = [row["fill_end"] for row in results.placement.to_pylist() if row["node"] == 5]
    assert cells[2][1] == pytest.approx(100 * sum(fifth) / 4)
    monkeypatch.setattr("exastore.sim.report.events._MAP_RACKS", 10)
    monkeypatch.setattr("exastore.sim.report.events._MAP_WIDTH", 5)
    by_rack = map_section(results).figure
    assert by_rack is not None
    assert by_rack["data"][0]["y"] == ["0", "5", "10"]
    assert by_rack["data"][0]["z"][2][2:] == [None] * 3
    json.dumps(by_rack, allow_nan=False)


def test_losses_are_shown_by_the_moment_when_there_are_any(results: Results) -> None:
    assert loss_sections(results) == []
    year = 365.25 * 86_400
    losses = pa.table({"trial": [0, 0, 1], "time_s": [year, year, year / 2], "pg": [1, 2, 3]})
    losses = losses.append_column("stripes", pa.array([0, 0, 0]))
    (section,) = loss_sections(replace(results, losses=losses))
    assert section.figure is not None
    assert section.figure["data"][0]["y"] == [2.0, 1.0]
    assert section.table[1][:3] == ("0", "1.000", "2")
    assert section.table[2][:3] == ("1", "0.500", "1")


def test_text_is_escaped_and_figures_cannot_close_their_script() -> None:
    figure = bar_figure(["</script><b>"], {"a": [1.0]}, x_title="x", y_title="y")
    page = render_report("<T>", [ReportSection("<S>", "<p>", figure=figure)], subtitle="<U>")
    for raw in ("<T>", "<S>", "<U>", "</script><b>"):
        assert raw not in page
    assert "&lt;T&gt;" in page


def test_a_page_without_charts_carries_no_script() -> None:
    section = ReportSection("Table", table=(("a", "b"), ("1", "2")), html="<em>kept</em>")
    page = render_report("Plain", [section], cards=[Card("c", "1", "n")], footer="end")
    assert "<script" not in page
    assert "<td>1</td>" in page
    assert "<em>kept</em>" in page


def test_lines_may_be_shaded_and_logarithmic() -> None:
    figure = line_figure([0, 1], {"a": [1, 2]}, x_title="x", y_title="y", fill=True, log_y=True)
    assert figure["data"][0]["fill"] == "tozeroy"
    assert figure["layout"]["yaxis"]["type"] == "log"


def test_runs_stand_side_by_side(results: Results) -> None:
    scenario = load_scenario("tiny")
    other = run(replace(scenario, run=replace(scenario.run, years=2.0)), trials=1, seed=4)
    head, *rows = comparison_rows([("base", results), ("short", other)])
    assert head == ("", "base", "short")
    shown = {row[0]: row[1:] for row in rows}
    assert [row[0] for row in rows] == list(dict.fromkeys(row[0] for row in summarize(results)))
    for (label, value, _), column in zip(
        [*summarize(results), *summarize(other)],
        [0] * len(summarize(results)) + [1] * len(summarize(other)),
        strict=True,
    ):
        assert shown[label][column] == value
    page = comparison_report([("base", results), ("short", other)])
    figures = re.findall(r'class="figure-data"[^>]*>(.*?)</script>', page)
    assert len(figures) == 4
    for figure in map(json.loads, figures):
        assert [line["name"] for line in figure["data"]] == ["base", "short"]
    assert "http://" not in page.split("<script>")[0]


def test_a_comparison_wants_two_runs_with_names_of_their_own(results: Results) -> None:
    with pytest.raises(ValueError, match="needs two runs"):
        comparison_rows([("a", results)])
    with pytest.raises(ValueError, match="different names, not a, a"):
        comparison_rows([("a", results), ("a", results)])


def test_the_document_has_every_column_with_its_unit_in_the_order_of_the_files(
    results: Results,
) -> None:
    units = {"count", "number", "text", "share", "ratio", "s", "a", "B", "chunks", "chunk runs"}
    units |= {"PG-h", "run-h", "device-h", "B-h"}
    suffixes = {"_bytes": {"B"}, "_s": {"s"}, "_hours": {"PG-h", "run-h", "device-h", "B-h"}}
    for name in TABLES:
        section = DOCUMENT.read_text("utf-8").split(f"## `{name}`\n", 1)[1].split("\n#", 1)[0]
        rows = re.findall(r"^\| `(\w+)` \| (.+?) \| (.+?) \|$", section, re.MULTILINE)
        assert sorted(row[0] for row in rows) == sorted(getattr(results, name).column_names), name
        for column, unit, meaning in rows:
            assert unit in units and len(meaning) > 3, column
            for suffix, allowed in suffixes.items():
                assert not column.endswith(suffix) or unit in allowed, column
