"""Sections on what changes over the years: fill, generations, moves, requests."""

import numpy as np

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
