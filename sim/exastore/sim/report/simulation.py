"""The report of one simulation, made of its sections."""

from exastore.sim.durability import durability, nines_text, probability_text
from exastore.sim.report.change import change_sections
from exastore.sim.report.events import (
    backlog_section,
    incident_section,
    loss_sections,
    map_section,
)
from exastore.sim.report.page import Card, ReportSection, render_report
from exastore.sim.report.sections import (
    balance_section,
    degraded_section,
    degraded_time_section,
    durability_section,
    failure_section,
    numbers_section,
    provenance_section,
    redundancy_section,
    traffic_section,
)
from exastore.sim.results import Results
from exastore.sim.summary import bytes_text, count_text, durability_rows


def report_sections(results: Results) -> list[ReportSection]:
    """Every section of a simulation's report, in the order of reading."""
    return [
        durability_section(results),
        *loss_sections(results),
        map_section(results),
        failure_section(results),
        traffic_section(results),
        backlog_section(results),
        degraded_section(results),
        redundancy_section(results),
        degraded_time_section(results),
        balance_section(results),
        *change_sections(results),
        incident_section(results),
        numbers_section(results),
        provenance_section(results),
    ]


def report_cards(results: Results) -> list[Card]:
    """The key numbers of a run."""
    found = durability(results)
    days = results.provenance.years * 365.25
    rebuilt = float(results.trials["rebuilt_bytes"].to_numpy().mean()) / days
    failures = float(results.trials["device_failures"].to_numpy().mean())
    violations = int(results.trials["violations"].to_numpy().max())
    durable = durability_rows(results)
    return [
        Card("P(any loss) per year", durable[0][1], "seen in the trials"),
        Card(
            "the same, analytic",
            probability_text(found.chain.loss_per_year),
            f"{nines_text(found.chain.loss_per_year)} nines, independent failures",
        ),
        Card("device failures", count_text(failures), f"in {results.provenance.years:g} years"),
        Card("rebuilt per day", bytes_text(rebuilt), "mean"),
        Card("domain violations", f"{violations}", "placement rule broken"),
    ]


def simulation_report(results: Results) -> str:
    """The page of `exastore sim report`."""
    scenario = results.scenario
    return render_report(
        f"Simulation of {scenario.name}",
        report_sections(results),
        subtitle=scenario.description,
        cards=report_cards(results),
        footer="Made by exastore. The tables behind this page are the Parquet files beside it.",
    )
