"""`exastore bench export`: results as OpenMetrics, read back by Prometheus's own parser."""

import json
from pathlib import Path
from typing import Any, cast

import pytest
from prometheus_client.openmetrics import parser
from typer.testing import CliRunner

from exastore.deploy.bench import openmetrics
from exastore.deploy.cli.app import app
from exastore.deploy.errors import BadInput

ORIGIN = {"commit": "abc", "version": "0.1.0", "processor": 'A "fast" one', "packages": "numpy 2"}


def line(**values: object) -> str:
    record = {
        "suite": "erasure",
        "table": "speed",
        "geometry": "encode-rs-10-4-64KiB",
        "kernel": "gfni512",
        "peer": "exastore",
        "way": "kernel",
        "call_s": 2e-6,
        "data_bytes_per_s": 3e9,
        "ratio": 1.0,
        "measured_at_unix_s": 1000.5,
        **ORIGIN,
        **values,
    }
    return json.dumps(record) + "\n"


def samples(text: str) -> dict[tuple[str, str, float | None], float]:
    """By name, peer and time."""
    families: Any = cast(Any, parser).text_string_to_metric_families(text)
    return {
        (s.name, s.labels.get("peer", ""), s.timestamp and float(s.timestamp)): s.value
        for family in families
        for s in family.samples
    }


def export(path: Path, *options: str) -> str:
    result = CliRunner().invoke(app, ["bench", "export", str(path), *options])
    if result.exception is not None:
        raise result.exception
    return result.stdout


def test_json_lines_become_samples_with_the_time_of_their_run(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    path.write_text(
        line()
        + line(peer="isal-2.32.0", call_s=4e-6, data_bytes_per_s=1.5e9, ratio=2.0)
        + line(table="overhead", geometry="call", call_s=1e-7)
        + line(table="first-use", first_stripe_s=0.1)
        + line(
            table="repair",
            peer="rs-10-4",
            total_s=1.0,
            peer_total_s=3.0,
            read_bytes=10,
            peer_read_bytes=30,
            ratio=3.0,
        )
    )
    assert samples(export(path)) == {
        ("exastore_bench_data_rate_bytes_per_second", "exastore", 1000.5): 3e9,
        ("exastore_bench_data_rate_bytes_per_second", "isal-2.32.0", 1000.5): 1.5e9,
        ("exastore_bench_call_seconds", "exastore", 1000.5): 2e-6,
        ("exastore_bench_call_seconds", "isal-2.32.0", 1000.5): 4e-6,
        ("exastore_bench_speedup_ratio", "isal-2.32.0", 1000.5): 2.0,
        ("exastore_bench_speedup_ratio", "rs-10-4", 1000.5): 3.0,
        ("exastore_bench_call_overhead_seconds", "exastore", 1000.5): 1e-7,
        ("exastore_bench_first_stripe_seconds", "exastore", 1000.5): 0.1,
        ("exastore_bench_repair_seconds", "exastore", 1000.5): 1.0,
        ("exastore_bench_repair_seconds", "rs-10-4", 1000.5): 3.0,
        ("exastore_bench_repair_read_bytes", "exastore", 1000.5): 10,
        ("exastore_bench_repair_read_bytes", "rs-10-4", 1000.5): 30,
        ("exastore_bench_run_info", "", 1000.5): 1,
    }


def test_labels_and_units_are_those_that_dashboards_rely_on(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    path.write_text(line())
    families: Any = cast(Any, parser).text_string_to_metric_families(export(path))
    rate, call, info = families
    assert (rate.name, rate.unit) == (
        "exastore_bench_data_rate_bytes_per_second",
        "bytes_per_second",
    )
    assert (call.name, call.unit) == ("exastore_bench_call_seconds", "seconds")
    assert rate.samples[0].labels == {
        "suite": "erasure",
        "table": "speed",
        "geometry": "encode-rs-10-4-64KiB",
        "kernel": "gfni512",
        "peer": "exastore",
        "way": "kernel",
        "commit": "abc",
    }
    assert info.samples[0].labels["processor"] == 'A "fast" one'


def test_figures_of_other_suites_keep_their_names(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    figures = {"case": "14 wide", "values": {"ours_mappings_per_s": 5.0}}
    path.write_text(line(suite="placement", table="mapping", **figures))
    families: Any = cast(Any, parser).text_string_to_metric_families(export(path))
    (sample,) = next(
        family for family in families if family.name == "exastore_bench_figure"
    ).samples
    labels = {name: sample.labels[name] for name in ("suite", "table", "geometry", "figure")}
    assert (sample.value, labels) == (
        5.0,
        {
            "suite": "placement",
            "table": "mapping",
            "geometry": "14 wide",
            "figure": "ours_mappings_per_s",
        },
    )


def test_several_runs_in_one_file_are_points_in_the_order_of_time(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    path.write_text(
        line(measured_at_unix_s=2000.0, call_s=7.0) + line(measured_at_unix_s=1000.0, call_s=8.0)
    )
    name = "exastore_bench_call_seconds"
    calls = [(k[2], v) for k, v in samples(export(path)).items() if k[0] == name]
    assert calls == [(1000.0, 8.0), (2000.0, 7.0)]
    without = samples(export(path, "--no-timestamps"))
    assert without[name, "exastore", None] == 7.0


def test_what_pytest_benchmark_wrote_is_read_too(tmp_path: Path) -> None:
    path, output = tmp_path / "benchmark.json", tmp_path / "metrics.txt"
    benchmarks = [
        {
            "fullname": "bench/bench_erasure.py::test_reed_solomon[encode-rs-10-4-64KiB-avx2]",
            "extra_info": {
                "geometry": "encode-rs-10-4-64KiB",
                "kernel": "avx2",
                "peer": "exastore",
                "data_bytes": 100,
                "data_bytes_per_s": 50,
            },
            "stats": {"median": 2.0},
        },
        {
            "fullname": "bench/bench_placement.py::test_place_pgs[racks-3]",
            "extra_info": {"pgs_per_s": 9},
            "stats": {"median": 4.0},
        },
    ]
    path.write_text(
        json.dumps(
            {
                "datetime": "2026-01-01T00:00:00+00:00",
                "commit_info": {"id": "0123456789abcdef", "dirty": True},
                "machine_info": {"cpu": {"brand_raw": "A fast one"}, "python_version": "3.11"},
                "benchmarks": benchmarks,
            }
        )
    )
    assert export(path, "--output", str(output)) == ""
    families: Any = cast(Any, parser).text_string_to_metric_families(output.read_text())
    found = {
        (s.name, s.labels["suite"], s.labels.get("geometry"), s.labels.get("table")): s
        for family in families
        for s in family.samples
    }
    table = "pytest-benchmark"
    rate = found[
        "exastore_bench_data_rate_bytes_per_second", "erasure", "encode-rs-10-4-64KiB", table
    ]
    assert (rate.value, rate.labels["kernel"], rate.labels["commit"]) == (
        50.0,
        "avx2",
        "0123456789ab-dirty",
    )
    geometry = "place_pgs-racks-3"
    assert found["exastore_bench_call_seconds", "placement", geometry, table].value == 4.0
    assert found["exastore_bench_rate_per_second", "placement", geometry, "pgs"].value == 9.0


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "holds no results"),
        ("not JSON\n", "line 1"),
        (line() + '{"suite": "erasure"}\n', "line 2"),
        (line(table="chairs"), "line 1"),
        ('{"benchmarks": [{}], "datetime": "2026-01-01"}', "pytest-benchmark"),
        ('{"benchmarks": []}', "pytest-benchmark"),
    ],
)
def test_a_file_of_something_else_is_refused(tmp_path: Path, text: str, told: str) -> None:
    path = tmp_path / "results"
    path.write_text(text)
    with pytest.raises(BadInput) as caught:
        export(path)
    assert told in caught.value.message


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="cannot read"):
        export(tmp_path / "nothing")


def test_every_family_is_named_with_its_unit_last() -> None:
    for name, unit, text in openmetrics.FAMILIES:
        assert name.startswith("exastore_bench_") and not (unit and name.endswith(unit))
        assert text.endswith(".")
