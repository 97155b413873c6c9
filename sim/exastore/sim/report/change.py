"""Sections on what changes over the years: fill, generations, moves, requests."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from exastore.sim.history import FILL_STEP
from exastore.sim.report.page import ReportSection, heat_figure, line_figure
from exastore.sim.report.sections import hours_of_months, monthly_mean, years_of_months
from exastore.sim.results import Results


def change_sections(results: Results) -> list[ReportSection]:
    """Fill over time always, the others where there is something to show."""
    sections = [fill_section(results)]
    names = set(results.capacity["name"].to_pylist())
    if len(names) > 1 or results.scenario.data.growth_per_year:
        sections.append(generation_section(results))
    if results.scenario.balance.every_s > 0:
        sections.append(moves_section(results))
    if results.scenario.foreground.is_on:
        sections += [latency_section(results), degraded_reads_section(results)]
    return sections


def fill_section(results: Results) -> ReportSection:
    """How full the devices are, quarter by quarter, of trial 0."""
    table = results.fill
    mine = table["trial"].to_numpy() == 0
    years = table["years"].to_numpy()[mine]
    steps = np.rint(table["fill_from"].to_numpy()[mine] / FILL_STEP).astype(np.int64)
    devices = table["devices"].to_numpy()[mine]
    times = np.unique(years)
    low, high = int(steps.min()), int(steps.max())
    cells = np.zeros((high - low + 1, len(times)))
    np.add.at(cells, (steps - low, np.searchsorted(times, years)), devices)
    cells *= 100.0 / cells.sum(axis=0)
    return ReportSection(
        "Fill of the devices over time",
        "Share of the devices by how full they are, once a quarter, of the first trial: the"
        " columns of a histogram, seen from above.",
        figure=heat_figure(
            times.tolist(),
            [f"{step * FILL_STEP:.0%}" for step in range(high, low - 1, -1)],
            [[value if value else None for value in row] for row in cells[::-1].tolist()],
            x_title="time [years]",
            y_title="fill from",
            z_title="% of devices",
        ),
    )


def generation_section(results: Results) -> ReportSection:
    """Capacity and data, and the share of each generation."""
    rows = [row for row in results.capacity.to_pylist() if row["trial"] == 0]
    times = sorted({row["years"] for row in rows})
    stored: dict[str, list[float]] = {}
    for name in dict.fromkeys(row["name"] for row in rows):
        by_time = {row["years"]: row["stored_bytes"] for row in rows if row["name"] == name}
        stored[f"data on {name}"] = [by_time.get(time, 0.0) / 1e15 for time in times]
    total = [
        sum(row["capacity_bytes"] for row in rows if row["years"] == time) / 1e15 for time in times
    ]
    return ReportSection(
        "Generations",
        "Capacity of all devices that are there, and what those of each generation hold, of the"
        " first trial.",
        figure=line_figure(
            times,
            {"capacity": total, **stored},
            x_title="time [years]",
            y_title="bytes [PB]",
        ),
    )


def moves_section(results: Results) -> ReportSection:
    """Traffic of the balancer."""
    days = hours_of_months(results) / 24
    moved = monthly_mean(results, "moved_bytes") / days / 1e12
    rebuilt = monthly_mean(results, "rebuilt_bytes") / days / 1e12
    return ReportSection(
        "Moves",
        "What the balancer moved to even out the load, to fill new racks and to empty those that"
        " leave; beside it what repair wrote.",
        figure=line_figure(
            years_of_months(results).tolist(),
            {"moved": moved.tolist(), "rebuilt": rebuilt.tolist()},
            x_title="time [years]",
            y_title="traffic [TB per day]",
        ),
    )


def _requests_by_month(results: Results, column: str) -> NDArray[Any]:
    values = results.foreground[column].to_numpy()
    return np.asarray(values.reshape(results.provenance.trials, -1).mean(axis=0))


def latency_section(results: Results) -> ReportSection:
    """How long reads take."""
    names = {
        "all, mean": "read_mean_s",
        "all, 99 %": "read_p99_s",
        "degraded, mean": "degraded_mean_s",
        "degraded, 99 %": "degraded_p99_s",
    }
    lines = {label: 1e3 * _requests_by_month(results, name) for label, name in names.items()}
    busy = _requests_by_month(results, "utilisation")
    return ReportSection(
        "Reads of clients",
        f"How long a read takes by the estimate of queues, month by month; devices are busy"
        f" {busy.min():.1%} to {busy.max():.1%} of the time. Degraded reads meet a chunk that"
        " cannot be read.",
        figure=line_figure(
            years_of_months(results).tolist(),
            {
                label: [float(value) if np.isfinite(value) else None for value in values]
                for label, values in lines.items()
            },
            x_title="time [years]",
            y_title="time of a read [ms]",
        ),
    )


def degraded_reads_section(results: Results) -> ReportSection:
    """How many reads are degraded."""
    share = _requests_by_month(results, "degraded_read_share")
    more = _requests_by_month(results, "read_amplification")
    return ReportSection(
        "Degraded reads",
        "Reads that meet a chunk which is missing or whose node is away, of a million; devices read"
        f" {more.max():.6g} times what clients get in the worst month.",
        figure=line_figure(
            years_of_months(results).tolist(),
            {"degraded reads": (share * 1e6).tolist()},
            x_title="time [years]",
            y_title="degraded reads per million",
        ),
    )
