"""Results of benchmarks as OpenMetrics, for teams whose dashboards run on Prometheus.

Read are the JSON lines of `exastore bench run` and the JSON file of pytest-benchmark. Every sample
carries the time of its run, so that `promtool tsdb create-blocks-from openmetrics` makes history of
it; names and labels are stable, see `docs/benchmarks.md`.
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, cast

from prometheus_client import CollectorRegistry
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.openmetrics.exposition import generate_latest

from exastore.deploy.errors import BadInput

Labels = Mapping[str, str]

#: Labels of every sample but those of `INFO`; a label that does not apply is empty.
LABELS: Final = ("suite", "table", "geometry", "kernel", "peer", "way", "commit")
INFO: Final = "exastore_bench_run_info"
#: What a run was taken on.
_INFO_LABELS: Final = ("suite", "commit", "version", "processor", "system", "python", "packages")

#: Name without its unit, unit, what it says.
DATA_RATE: Final = ("exastore_bench_data_rate", "bytes_per_second", "Data bytes coded per second.")
CALL: Final = ("exastore_bench_call", "seconds", "Median time of one call.")
SPEEDUP: Final = ("exastore_bench_speedup", "ratio", "Our speed over the peer's, in one run.")
OVERHEAD: Final = ("exastore_bench_call_overhead", "seconds", "A call with next to nothing to do.")
REPAIR: Final = ("exastore_bench_repair", "seconds", "Reading by the model and computing a chunk.")
REPAIR_READ: Final = ("exastore_bench_repair_read", "bytes", "Bytes read to rebuild one chunk.")
FIRST_STRIPE: Final = (
    "exastore_bench_first_stripe",
    "seconds",
    "From the start of a process to its first encoded stripe.",
)
RATE: Final = ("exastore_bench_rate", "per_second", "Of what `table` names, done per second.")
#: Its label `figure` stands where others have `way`.
FIGURE: Final = ("exastore_bench_figure", "", "What `figure` names, its unit last.")
FAMILIES: Final = (
    DATA_RATE,
    CALL,
    SPEEDUP,
    OVERHEAD,
    REPAIR,
    REPAIR_READ,
    FIRST_STRIPE,
    RATE,
    FIGURE,
)

_Family = tuple[str, str, str]


@dataclass(frozen=True, slots=True)
class _Sample:
    family: _Family
    labels: tuple[str, ...]
    value: float
    time_s: float


def exposition(text: str, name: str, *, with_timestamps: bool = True) -> str:
    """Results in the OpenMetrics text format.

    Args:
        text: the content of a file of results.
        name: what errors call it.
        with_timestamps: without, of several runs in one file only the last one counts.

    Raises:
        BadInput: it holds no results.
    """
    runs = list(_runs(text, name))
    samples: list[_Sample] = []
    infos: dict[tuple[str, ...], float] = {}
    for suite, run, found in runs:
        made = list(found)
        samples += made
        if made:
            info = (suite, *(str(run.get(key, "")) for key in _INFO_LABELS[1:]))
            infos[info] = max(infos.get(info, 0.0), made[0].time_s)
    if not samples:
        raise BadInput(f"{name} holds no results")
    registry = CollectorRegistry(auto_describe=False)
    families = list(_families(samples, infos, with_timestamps))
    registry.register(_Collector(families))
    written: bytes = cast(Any, generate_latest)(registry)
    return written.decode()


class _Collector:
    def __init__(self, families: list[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterable[Metric]:
        return self._families


def _families(
    samples: list[_Sample], infos: Mapping[tuple[str, ...], float], with_timestamps: bool
) -> Iterator[Metric]:
    for family in FAMILIES:
        name, unit, text = family
        # One label set's samples together and in the order of time, as the format demands.
        points = {(s.labels, s.time_s): s.value for s in samples if s.family is family}
        names = ["figure" if n == "way" and family is FIGURE else n for n in LABELS]
        metric = GaugeMetricFamily(name, text, labels=names, unit=unit)
        last: dict[tuple[str, ...], float] = {}
        for (labels, time_s), value in sorted(points.items()):
            if with_timestamps:
                metric.add_metric(labels, value, timestamp=time_s)
            last[labels] = value
        if not with_timestamps:
            for labels, value in last.items():
                metric.add_metric(labels, value)
        if metric.samples:
            yield metric
    about = GaugeMetricFamily(INFO, "What a run was taken on.", labels=_INFO_LABELS)
    for labels, time_s in sorted(infos.items()):
        about.add_metric(labels, 1, timestamp=time_s if with_timestamps else None)
    yield about


def _runs(text: str, name: str) -> Iterator[tuple[str, Mapping[str, Any], Iterable[_Sample]]]:
    """Suite, provenance, and samples of each result."""
    try:
        whole = json.loads(text)
    except json.JSONDecodeError:
        whole = None
    if isinstance(whole, dict) and "benchmarks" in whole:
        yield from _of_pytest(cast("dict[str, Any]", whole), name)
        return
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
            yield record["suite"], record, list(_of_line(record))
        except (ValueError, KeyError, TypeError) as error:
            raise BadInput(
                f"{name}, line {number}: no result of `exastore bench run` or pytest-benchmark",
                hint=f"{type(error).__name__}: {error}",
            ) from error


def _of_line(record: Mapping[str, Any]) -> Iterator[_Sample]:
    time_s = float(record["measured_at_unix_s"])

    def sample(family: _Family, key: str, peer: str | None = None) -> _Sample:
        labels = {**record, "peer": peer or record["peer"], "way": record.get("way", "")}
        return _Sample(family, _values(labels), float(record[key]), time_s)

    if "values" in record:
        for name, value in record["values"].items():
            labels = {**record, "geometry": record["case"], "peer": "", "way": name}
            yield _Sample(FIGURE, _values(labels), float(value), time_s)
        return
    match record["table"]:
        case "speed" | "lrc":
            yield sample(DATA_RATE, "data_bytes_per_s")
            yield sample(CALL, "call_s")
            if record["peer"] != "exastore":
                yield sample(SPEEDUP, "ratio")
        case "overhead":
            yield sample(OVERHEAD, "call_s")
        case "repair":
            yield sample(REPAIR, "total_s", "exastore")
            yield sample(REPAIR, "peer_total_s")
            yield sample(REPAIR_READ, "read_bytes", "exastore")
            yield sample(REPAIR_READ, "peer_read_bytes")
            yield sample(SPEEDUP, "ratio")
        case "first-use":
            yield sample(FIRST_STRIPE, "first_stripe_s")
        case table:
            raise ValueError(f"table {table!r}")


def _values(labels: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(str(labels.get(name, "")) for name in LABELS)


def _of_pytest(
    whole: Mapping[str, Any], name: str
) -> Iterator[tuple[str, Mapping[str, Any], Iterable[_Sample]]]:
    try:
        time_s = datetime.fromisoformat(whole["datetime"]).timestamp()
        commit = whole.get("commit_info", {})
        machine = whole.get("machine_info", {})
        run: dict[str, Any] = {
            "commit": str(commit.get("id", ""))[:12] + ("-dirty" if commit.get("dirty") else ""),
            "processor": machine.get("cpu", {}).get("brand_raw", ""),
            "system": f"{machine.get('system', '')} {machine.get('release', '')}".strip(),
            "python": machine.get("python_version", ""),
        }
        for benchmark in whole["benchmarks"]:
            labels = {**_labels_of_test(benchmark), "commit": run["commit"]}
            yield labels["suite"], run, list(_of_test(benchmark, labels, time_s))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise BadInput(
            f"{name}: not as pytest-benchmark writes it",
            hint=f"{type(error).__name__}: {error}",
        ) from error


def _labels_of_test(benchmark: Mapping[str, Any]) -> dict[str, str]:
    """`bench/bench_erasure.py::test_codes[encode-...]` is of the suite "erasure"."""
    path, _, test = str(benchmark["fullname"]).partition("::")
    extra = benchmark.get("extra_info", {})
    plain = re.sub(r"^test_", "", test).replace("[", "-").rstrip("]")
    suite = re.sub(r"^bench_", "", path.rpartition("/")[2].removesuffix(".py"))
    labels = {"suite": suite, "table": "pytest-benchmark", "geometry": plain, "peer": "exastore"}
    return labels | {key: str(extra[key]) for key in LABELS if key in extra}


def _of_test(benchmark: Mapping[str, Any], labels: Labels, time_s: float) -> Iterator[_Sample]:
    extra: Mapping[str, Any] = benchmark.get("extra_info", {})
    median_s = float(benchmark["stats"]["median"])
    yield _Sample(CALL, _values(labels), median_s, time_s)
    if "data_bytes" in extra:
        yield _Sample(DATA_RATE, _values(labels), float(extra["data_bytes"]) / median_s, time_s)
    for key, value in extra.items():
        if key.endswith("_per_s") and key != "data_bytes_per_s":
            counted = {**labels, "table": key.removesuffix("_per_s")}
            yield _Sample(RATE, _values(counted), float(value), time_s)
