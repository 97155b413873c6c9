"""Several runs side by side: a table of their key numbers, and their curves in the same charts."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from exastore.sim.report.page import Card, ReportSection, bar_figure, line_figure, render_report
from exastore.sim.report.sections import hours_of_months, monthly_mean, years_of_months
from exastore.sim.results import Results
from exastore.sim.summary import duration_text, summarize

#: A run and what it is called on the page.
NamedRun = tuple[str, Results]


def comparison_rows(runs: Sequence[NamedRun]) -> list[tuple[str, ...]]:
    """The summary of every run, one column each; the first row is the head.

    Raises:
        ValueError: There are fewer than two runs, or two with the same name.
    """
    names = [name for name, _ in runs]
    if len(runs) < 2:
        raise ValueError("a comparison needs two runs at least")
    if len(set(names)) < len(names):
        raise ValueError(f"runs to compare need different names, not {', '.join(names)}")
    columns = [{label: value for label, value, _ in summarize(results)} for _, results in runs]
    labels = dict.fromkeys(label for column in columns for label in column)
    rows = [(label, *(column.get(label, "") for column in columns)) for label in labels]
    return [("", *names), *rows]


def _curves(
    runs: Sequence[NamedRun], values: Callable[[Results], NDArray[Any]]
) -> tuple[list[float], dict[str, list[float]]]:
    """A curve of each run over the months of the longest one."""
    x = max((years_of_months(results).tolist() for _, results in runs), key=len)
    return x, {name: [float(value) for value in values(results)] for name, results in runs}


def _traffic(results: Results) -> NDArray[Any]:
    """TB rebuilt per day, per month."""
    days = hours_of_months(results) / 24
    return np.asarray(monthly_mean(results, "rebuilt_bytes") / days / 1e12)


def _degraded(results: Results) -> NDArray[Any]:
    """Percent of the placement groups that missed a chunk, per month."""
    share = monthly_mean(results, "degraded_pg_hours") / hours_of_months(results)
    return np.asarray(100 * share / results.scenario.placement.pg_count)


def _traffic_section(runs: Sequence[NamedRun]) -> ReportSection:
    x, lines = _curves(runs, _traffic)
    return ReportSection(
        "Rebuilt",
        "What rebuilding lost chunks wrote.",
        figure=line_figure(x, lines, x_title="time [years]", y_title="written [TB per day]"),
    )


def _degraded_section(runs: Sequence[NamedRun]) -> ReportSection:
    x, lines = _curves(runs, _degraded)
    return ReportSection(
        "Degraded placement groups",
        "Share of the placement groups that at a moment missed a chunk for good.",
        figure=line_figure(x, lines, x_title="time [years]", y_title="placement groups [%]"),
    )


def _redundancy_section(runs: Sequence[NamedRun]) -> ReportSection:
    shares: dict[str, list[float]] = {}
    width = max(results.scenario.n for _, results in runs)
    for name, results in runs:
        hours = results.redundancy["pg_hours"].to_numpy()
        mean = hours.reshape(results.provenance.trials, -1).mean(axis=0)
        whole = results.scenario.placement.pg_count * results.provenance.years * 365.25 * 24
        shares[name] = [*(mean / whole).tolist(), *[0.0] * (width - len(mean))]
    used = [i for i in range(width) if any(line[i] for line in shares.values())] or [0]
    last = max(used) + 1
    return ReportSection(
        "How much was missing",
        "Share of all the time of all placement groups that was spent with so many chunks missing.",
        figure=bar_figure(
            [str(value) for value in range(1, last + 1)],
            {name: line[:last] for name, line in shares.items()},
            x_title="missing chunks",
            y_title="share of the time, logarithmic",
            log_y=any(any(line) for line in shares.values()),
        ),
    )


def _degraded_time_section(runs: Sequence[NamedRun]) -> ReportSection:
    shares: dict[str, list[float]] = {}
    edges: list[float] = []
    for name, results in runs:
        table, trials = results.degraded_time, results.provenance.trials
        counts = table["pg_episodes"].to_numpy().reshape(trials, -1).sum(axis=0)
        edges = table["from_s"].to_numpy()[: len(counts)].tolist()
        shares[name] = (counts / max(1, counts.sum())).tolist()
    used = [i for i in range(len(edges)) if any(line[i] for line in shares.values())] or [0]
    shown = slice(min(used), max(used) + 1)
    return ReportSection(
        "Time to full redundancy",
        "How long placement groups stayed degraded, from the first chunk lost until the last was"
        " rebuilt.",
        figure=bar_figure(
            [f"≥ {duration_text(edge)}" for edge in edges[shown]],
            {name: line[shown] for name, line in shares.items()},
            x_title="time degraded, in steps of √2",
            y_title="share of the episodes",
        ),
    )


def comparison_report(runs: Sequence[NamedRun]) -> str:
    """The page of `exastore sim compare`.

    Raises:
        ValueError: As `comparison_rows`.
    """
    rows = comparison_rows(runs)
    durable = next(row for row in rows if row[0] == "P(any loss) per year")
    cards = [Card(name, durable[1 + i], "P(any loss) per year") for i, (name, _) in enumerate(runs)]
    provenance = [
        ("", *(name for name, _ in runs)),
        ("scenario", *(results.scenario.name for _, results in runs)),
        ("scenario hash", *(results.provenance.scenario_sha256[:16] for _, results in runs)),
        ("seed", *(str(results.provenance.seed) for _, results in runs)),
        ("code", *(results.provenance.code_version for _, results in runs)),
    ]
    return render_report(
        "Simulations side by side",
        [
            ReportSection(
                "In numbers", "Means over the trials of each run.", table=rows, wide=True
            ),
            _traffic_section(runs),
            _degraded_section(runs),
            _redundancy_section(runs),
            _degraded_time_section(runs),
            ReportSection("Provenance", table=provenance, wide=True),
        ],
        subtitle=", ".join(name for name, _ in runs),
        cards=cards,
        footer="Made by exastore from the Parquet files of the runs.",
    )
