"""The sections of a simulation's report; each is a value that other pages can take too."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from exastore.sim.report.page import ReportSection, bar_figure, line_figure
from exastore.sim.results import Results
from exastore.sim.summary import (
    balance_rows,
    change_rows,
    cluster_rows,
    cost_rows,
    durability_rows,
    duration_text,
    foreground_rows,
    limit_rows,
    traffic_rows,
)

_HOURS_PER_MONTH = 365.25 * 24 / 12
HEAD = ("", "value", "meaning")


def monthly_mean(results: Results, column: str) -> NDArray[Any]:
    """Mean over the trials of one column, per month."""
    values = results.timeline[column].to_numpy().astype(float)
    return np.asarray(values.reshape(results.provenance.trials, -1).mean(axis=0))


def hours_of_months(results: Results) -> NDArray[Any]:
    """Length of each month of the timeline; the last may be short."""
    start = np.arange(len(monthly_mean(results, "rebuilds"))) * _HOURS_PER_MONTH
    end = np.minimum(start + _HOURS_PER_MONTH, results.provenance.years * 365.25 * 24)
    return np.asarray(end - start)


def years_of_months(results: Results) -> NDArray[Any]:
    """The middle of each month, in years."""
    return np.asarray((np.arange(len(hours_of_months(results))) + 0.5) / 12)


def over_trials(results: Results) -> str:
    """What a figure of all trials is."""
    trials = results.provenance.trials
    return "one trial" if trials == 1 else f"the mean of {trials:,} trials"


def failure_section(results: Results) -> ReportSection:
    """Device failures per month."""
    failures = monthly_mean(results, "device_failures")
    return ReportSection(
        "Device failures",
        f"Devices that failed for good in each month ({over_trials(results)});"
        f" {failures.sum():,.0f} in {results.provenance.years:g} years.",
        figure=bar_figure(
            years_of_months(results).tolist(),
            {"device failures": failures.tolist()},
            x_title="time [years]",
            y_title="failures [devices per month]",
        ),
    )


def traffic_section(results: Results) -> ReportSection:
    """Repair traffic per day."""
    days = hours_of_months(results) / 24
    scale = 1e12
    lines = {
        "read": monthly_mean(results, "read_bytes") / days / scale,
        "written": monthly_mean(results, "rebuilt_bytes") / days / scale,
        "written in vain": monthly_mean(results, "abandoned_bytes") / days / scale,
    }
    return ReportSection(
        "Repair traffic",
        "What rebuilding lost chunks read from and wrote to all devices, and what was written for"
        " nodes that came back before a rebuild could end.",
        figure=line_figure(
            years_of_months(results).tolist(),
            {name: values.tolist() for name, values in lines.items()},
            x_title="time [years]",
            y_title="traffic [TB per day]",
        ),
    )


def degraded_section(results: Results) -> ReportSection:
    """How many PGs were not whole."""
    hours = hours_of_months(results)
    count = results.scenario.placement.pg_count
    lines = {
        "misses chunks": monthly_mean(results, "degraded_pg_hours") / hours,
        "misses chunks or has a node away": monthly_mean(results, "unreadable_pg_hours") / hours,
    }
    return ReportSection(
        "Degraded placement groups",
        f"Mean number, of {count:,}, that at a moment missed a chunk for good, and that could not"
        " read every chunk because one is missing or its node is away.",
        figure=line_figure(
            years_of_months(results).tolist(),
            {name: values.tolist() for name, values in lines.items()},
            x_title="time [years]",
            y_title="placement groups",
        ),
    )


def redundancy_section(results: Results) -> ReportSection:
    """PG-hours by missing chunks."""
    table = results.redundancy
    hours = table["pg_hours"].to_numpy().reshape(results.provenance.trials, -1).mean(axis=0)
    missing = np.arange(1, len(hours) + 1)
    shown = missing <= max(results.scenario.m + 1, int(np.max(missing * (hours > 0))))
    total = hours.sum()
    first = f"{hours[0] / total:.2%}" if total else "nothing"
    m, sure = results.scenario.m, results.scenario.sure_losses
    limit = f"More than {m} would be data loss"
    if sure < m:
        limit += f", and of more than {sure} some patterns"
    return ReportSection(
        "How much was missing",
        f"Time that placement groups spent with so many chunks missing; {first} of it with one."
        f" {limit}.",
        figure=bar_figure(
            [str(value) for value in missing[shown]],
            {"PG-hours": hours[shown].tolist()},
            x_title="missing chunks",
            y_title="time [PG-hours], logarithmic",
            log_y=bool(total),
        ),
    )


def degraded_time_section(results: Results) -> ReportSection:
    """Distribution of degraded time."""
    table = results.degraded_time
    trials = results.provenance.trials
    counts = table["pg_episodes"].to_numpy().reshape(trials, -1).sum(axis=0)
    edges = table["from_s"].to_numpy()[: len(counts)]
    used = np.flatnonzero(counts)
    shown = slice(used[0], used[-1] + 1) if len(used) else slice(0, 1)
    mean = float(results.trials["mean_missing_s"].to_numpy().mean())
    return ReportSection(
        "Time to full redundancy",
        "How long placement groups stayed degraded, from the first chunk lost until the last was"
        f" rebuilt; a lost chunk is back after {duration_text(mean)} on average.",
        figure=bar_figure(
            [f"≥ {duration_text(edge)}" for edge in edges[shown]],
            {"episodes": counts[shown].tolist()},
            x_title="time degraded, in steps of √2",
            y_title="episodes, logarithmic",
            log_y=True,
        ),
    )


def balance_section(results: Results) -> ReportSection:
    """Slots per device at the start and at the end."""
    trial = results.balance["trial"].to_numpy()
    slots, devices = results.balance["slots"].to_numpy(), results.balance["devices"].to_numpy()
    low, high = int(slots.min()), int(slots.max())
    axis = np.arange(low, high + 1)
    start = np.bincount(slots[trial == -1] - low, devices[trial == -1], len(axis))
    ends = trial >= 0
    end = np.bincount(slots[ends] - low, devices[ends], len(axis)) / results.provenance.trials
    step = max(1, -(-len(axis) // 80))
    pad = (-len(axis)) % step
    folded = [np.pad(counts, (0, pad)).reshape(-1, step).sum(axis=1) for counts in (start, end)]
    is_balanced = results.scenario.placement.balanced
    origin = "as placed and balanced" if is_balanced else "as placed, without balancing,"
    unit = "slots" if step == 1 else f"slots, in steps of {step}"
    return ReportSection(
        "Balance over the devices",
        "How many devices hold how many chunk runs (all that one placement"
        f" group keeps on one device), {origin} and at the end. Replaced devices start empty and"
        " fill by taking part in repairs, and by the balancer if it runs.",
        figure=bar_figure(
            [float(value) for value in axis[::step]],
            {"at the start": folded[0].tolist(), "at the end": folded[1].tolist()},
            x_title=f"load of a device [{unit}]",
            y_title="devices",
            overlay=True,
        ),
    )


def durability_section(results: Results) -> ReportSection:
    """P(loss), seen and computed."""
    return ReportSection(
        "Durability",
        "The probability that the cluster loses any data in one year: what the trials can say, and"
        " the estimate of a Markov chain that assumes independent failures and knows nothing of"
        " bursts, latent errors and mistakes.",
        table=(HEAD, *durability_rows(results)),
        wide=True,
    )


def numbers_section(results: Results) -> ReportSection:
    """The rest of the summary."""
    rows = [
        *cluster_rows(results),
        *balance_rows(results),
        *traffic_rows(results),
        *change_rows(results),
        *limit_rows(results),
        *foreground_rows(results),
    ]
    return ReportSection(
        "In numbers",
        "The cluster and what happened to it; counts are means over the trials.",
        table=(HEAD, *rows, *cost_rows(results)),
        wide=True,
    )


def provenance_section(results: Results) -> ReportSection:
    """What it takes to get the same numbers again."""
    run = results.provenance
    rows = (
        ("property", "value"),
        ("scenario hash (SHA-256)", run.scenario_sha256),
        ("seed, trials, years", f"{run.seed}, {run.trials:,}, {run.years:g}"),
        ("code", run.code_version),
        ("Python, NumPy, numba", f"{run.python}, {run.numpy}, {run.numba}"),
        ("machine", run.machine),
    )
    return ReportSection(
        "Provenance",
        "The same scenario, seed and code give the same numbers, whatever the number of workers."
        f" The events of all trials: {int(results.trials['events'].to_numpy().sum()):,}.",
        table=rows,
        wide=True,
    )
