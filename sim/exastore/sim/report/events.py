"""Sections on where the load lies and on what happened: map, backlog, incidents, losses."""

import numpy as np

from exastore.sim.report.page import ReportSection, heat_figure, line_figure
from exastore.sim.report.sections import (
    HEAD,
    hours_of_months,
    monthly_mean,
    over_trials,
    years_of_months,
)
from exastore.sim.results import Results
from exastore.sim.summary import bytes_text, count_text

#: A map of more racks has a cell per rack instead of one per node.
_MAP_RACKS = 200
#: Racks side by side in such a map.
_MAP_WIDTH = 48
#: Moments of loss that are listed; the chart shows all.
_LISTED = 10


def map_section(results: Results) -> ReportSection:
    """How full every node or rack is at the end of the first trial."""
    table, cluster = results.placement, results.scenario.tree
    is_by_node = cluster.rack_count <= _MAP_RACKS
    domain = table["node" if is_by_node else "rack"].to_numpy()
    fill = 100 * table["fill_end"].to_numpy()
    cells = np.bincount(domain, fill) / np.bincount(domain)
    gone = ""
    if results.scenario.generation and not cells.all():
        cells[cells == 0] = np.nan
        gone = " Empty places have gone or have not come yet."
    if is_by_node:
        grid = cells.reshape(cluster.rack_count, cluster.nodes_per_rack).T
        what, x_title, y_title = "node", "rack", "node of the rack"
        labels = list(range(cluster.nodes_per_rack))
    else:
        width = min(_MAP_WIDTH, cluster.racks_per_zone)
        grid = np.pad(cells, (0, -len(cells) % width), constant_values=np.nan).reshape(-1, width)
        what, x_title, y_title = "rack", "rack, counted on from the first of the row", "first rack"
        labels = list(range(0, len(cells), width))
    return ReportSection(
        "Cluster map",
        f"How full each {what} is at the end of the first trial: from {np.nanmin(cells):.1f} % to"
        f" {np.nanmax(cells):.1f} %.{gone}",
        figure=heat_figure(
            list(range(grid.shape[1])),
            labels,
            [[None if np.isnan(value) else float(value) for value in row] for row in grid],
            x_title=x_title,
            y_title=y_title,
            z_title="fill [%]",
        ),
        wide=True,
    )


def backlog_section(results: Results) -> ReportSection:
    """Chunk runs that wait for their rebuild or are in work."""
    runs = monthly_mean(results, "missing_slot_hours") / hours_of_months(results)
    mean = float(np.average(runs, weights=hours_of_months(results)))
    return ReportSection(
        "Repair backlog",
        "Chunk runs that at a moment are missing: waiting for a rebuild or in work"
        f" ({over_trials(results)}); {count_text(mean)} at any time, which hold"
        f" {bytes_text(mean * results.scenario.slot_bytes)}.",
        figure=line_figure(
            years_of_months(results).tolist(),
            {"missing chunk runs": runs.tolist()},
            x_title="time [years]",
            y_title="backlog [chunk runs]",
            fill=True,
        ),
    )


def incident_section(results: Results) -> ReportSection:
    """How often nodes were taken away, and by what."""
    trials, years = results.provenance.trials, results.provenance.years
    table = results.incidents
    counts = table["occurrences"].to_numpy().reshape(trials, -1).mean(axis=0)
    first = table.slice(0, len(counts)).to_pylist()
    rows = [
        (
            f"{row['name']} ({row['level']})" if row["name"] != row["level"] else row["name"],
            f"{count_text(float(count))} in {years:g} years",
            f"{row['domains']:,} that it can befall, {count / years / row['domains']:.3g} times"
            " a year each",
        )
        for row, count in zip(first, counts, strict=True)
    ]
    return ReportSection(
        "Incidents",
        f"What took nodes away, and how often ({over_trials(results)}).",
        table=(HEAD, *rows),
        wide=True,
    )


def loss_sections(results: Results) -> list[ReportSection]:
    """When data was lost, and how much; nothing if none was."""
    table = results.losses
    if not len(table):
        return []
    keys = np.column_stack([table["trial"].to_numpy(), table["time_s"].to_numpy()])
    moments, at = np.unique(keys, axis=0, return_inverse=True)
    stripes = table["stripes"].to_numpy()
    groups = np.bincount(at, stripes == 0).astype(np.int64)
    single = np.bincount(at, stripes).astype(np.int64)
    years = moments[:, 1] / (365.25 * 86_400)
    scenario = results.scenario
    pg_bytes = scenario.data.user_bytes / scenario.placement.pg_count
    user_bytes = groups * pg_bytes + single * scenario.stripe_bytes
    rows = [
        (f"{int(trial)}", f"{year:.3f}", f"{count:,}", f"{few:,}", bytes_text(float(lost)))
        for (trial, _), year, count, few, lost in zip(
            moments, years, groups, single, user_bytes, strict=True
        )
    ]
    more = f" The first {_LISTED} are listed." if len(rows) > _LISTED else ""
    return [
        ReportSection(
            "Loss events",
            f"Moments at which placement groups lost data, all of it or single stripes to latent"
            f" errors: {len(rows):,} in all trials, of the first 10,000 groups of each.{more}",
            figure=line_figure(
                years.tolist(),
                {"placement groups": groups.tolist()}
                | ({"single stripes": single.tolist()} if single.any() else {}),
                x_title="time [years]",
                y_title="lost at once",
                is_points=True,
            ),
            table=(("trial", "year", "groups", "stripes", "user bytes of them"), *rows[:_LISTED]),
            wide=True,
        )
    ]
