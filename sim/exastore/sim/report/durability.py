"""The page of `exastore sim durability`: durability with its intervals, and when data was lost."""

import numpy as np

from exastore.sim.durability import chain_estimate, nines_text, probability_text
from exastore.sim.overlap_run import DurabilityResults, estimate_durability
from exastore.sim.overlap_summary import durability_summary, loss_rows, rare_rows
from exastore.sim.report.page import Card, ReportSection, bar_figure, render_report
from exastore.sim.units import YEAR_S

_HEAD = ("", "value", "meaning")


def durability_page_sections(results: DurabilityResults) -> list[ReportSection]:
    """Every section, in the order of reading."""
    sections = [_interval_section(results)]
    if len(results.losses):
        sections.append(_time_section(results))
    sections.append(
        ReportSection("All numbers", table=[_HEAD, *durability_summary(results)], wide=True)
    )
    return sections


def _interval_section(results: DurabilityResults) -> ReportSection:
    """P(any loss in a year) by each method, with its interval."""
    found = estimate_durability(results)
    rows = [
        ("method", "P(any loss) per year", "95 % interval", "nines"),
        (
            "trials",
            probability_text(found.loss_per_year),
            f"{probability_text(found.lower)} to {probability_text(found.upper)}",
            nines_text(found.loss_per_year) if found.periods_with_loss else "",
        ),
    ]
    rare = results.rare
    if rare is not None and rare.hits:
        rows.append(
            (
                "importance sampling",
                probability_text(rare.loss_per_year),
                f"{probability_text(rare.lower)} to {probability_text(rare.upper)}",
                nines_text(rare.loss_per_year),
            )
        )
    if results.options.layout == "placed":
        chain = chain_estimate(results.scenario, mean_missing_s=0.0)
        rows.append(
            (
                "birth-death chain",
                probability_text(chain.loss_per_year),
                "",
                nines_text(chain.loss_per_year),
            )
        )
    note = "Device failures alone, independent of each other."
    if results.left_out:
        note += f" Left out: {'; '.join(results.left_out)}."
    return ReportSection("Durability", note, table=rows, wide=True)


def _time_section(results: DurabilityResults) -> ReportSection:
    """When in a mission data was lost."""
    years = results.losses["time_s"].to_numpy() / YEAR_S
    edges = np.linspace(0.0, results.provenance.years, 25)
    counts, _ = np.histogram(years, edges)
    return ReportSection(
        "When data was lost",
        f"The first {len(years):,} losses of all trials by their time since the start.",
        figure=bar_figure(
            ((edges[1:] + edges[:-1]) / 2).tolist(),
            {"losses": counts.tolist()},
            x_title="time [years]",
            y_title="losses",
        ),
        wide=True,
    )


def durability_report(results: DurabilityResults) -> str:
    """The page of `exastore sim report` for a folder of `sim durability`."""
    cards = [
        Card("P(any loss) per year", loss_rows(results)[0][1], "seen in the trials"),
        *(Card("the same, rare", row[1], "importance sampling") for row in rare_rows(results)),
        Card("trials", f"{results.provenance.trials:,}", f"of {results.provenance.years:g} years"),
    ]
    return render_report(
        f"Durability of {results.scenario.name}",
        durability_page_sections(results),
        subtitle=results.scenario.description,
        cards=cards,
        footer="Made by exastore. The tables behind this page are the Parquet files beside it.",
    )
