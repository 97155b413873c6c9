"""What many trials of device failures say, as rows for terminals and reports."""

from dataclasses import asdict
from typing import Any

from exastore.sim.durability import chain_estimate, nines, nines_text, probability_text
from exastore.sim.overlap_run import DurabilityResults, estimate_durability, group_count
from exastore.sim.summary import Row, bytes_text, count_text, duration_text, user_text

LAYOUTS = {
    "placed": "the groups of the scenario, as placed",
    "clustered": "disjoint groups of devices",
    "unlimited": "no groups: unlimited chunks on each device",
}
CLOCKS = {
    "priority": "what is most endangered is rebuilt first, at the bandwidth of all",
    "device": "each device is whole a fixed time after its own failure",
    "group": "each failure in a group starts its rebuilds anew",
}


def model_rows(results: DurabilityResults) -> list[Row]:
    """What was simulated."""
    scenario, run, options = results.scenario, results.provenance, results.options
    cluster = scenario.cluster
    return [
        ("scenario", scenario.name, scenario.description),
        (
            "cluster",
            f"{cluster.device_count:,} devices",
            f"{user_text(scenario.data.user_bytes)} of user data as {scenario.code}",
        ),
        ("layout", options.layout, LAYOUTS[options.layout]),
        ("clock of repair", options.clock, CLOCKS[options.clock]),
        ("left out", f"{len(results.left_out)}", "; ".join(results.left_out) or "nothing"),
        ("simulated", f"{run.trials:,} x {run.years:g} years", f"seed {run.seed}"),
    ]


def loss_rows(results: DurabilityResults) -> list[Row]:
    """What was lost, with intervals."""
    found, run = estimate_durability(results), results.provenance
    mission, low, high = found.loss_per_trial
    if found.periods_with_loss == 0:
        seen = f"below {probability_text(found.upper)}"
        note = f"no loss in {found.periods:,} trial-years; one-sided 95 % bound"
    else:
        seen = f"{probability_text(found.loss_per_year)} ({nines(found.loss_per_year):.2f} nines)"
        note = (
            f"{found.periods_with_loss:,} of {found.periods:,} trial-years; 95 % interval"
            f" {probability_text(found.lower)} to {probability_text(found.upper)}"
        )
    years = run.trials * run.years
    failures = results.total("device_failures")
    overlaps = results.total("overlapping_failures")
    rows = [
        ("P(any loss) per year", seen, note),
        (
            "P(any loss) per mission",
            probability_text(mission),
            f"of {run.years:g} years; 95 % interval {probability_text(low)} to"
            f" {probability_text(high)}",
        ),
        (
            "loss events",
            f"{results.total('loss_events') / years:.3g} per year",
            f"{results.total('loss_events'):,} failures that lost data",
        ),
        (
            "device failures",
            f"{count_text(failures / years)} per year",
            f"{overlaps / max(failures, 1):.2%} of them while something was missing already",
        ),
    ]
    if results.options.layout != "unlimited":
        share = found.share_lost_per_year
        lost = share * results.scenario.data.user_bytes
        rows.insert(
            3,
            (
                "data lost",
                f"{share:.3g} per year",
                f"expected share; {bytes_text(lost)} per year,"
                f" {results.total('groups_lost'):,} groups in all trials",
            ),
        )
    return rows


def rare_rows(results: DurabilityResults) -> list[Row]:
    """The estimate by importance sampling, if there is one."""
    found = results.rare
    if found is None:
        return []
    if found.hits == 0:
        return [("P(any loss) per year, rare", "not known", "no excursion lost data; take more")]
    return [
        (
            "P(any loss) per year, rare",
            f"{probability_text(found.loss_per_year)} ({nines(found.loss_per_year):.2f} nines)",
            f"importance sampling: {found.hits:,} of {found.excursions:,} excursions lost data;"
            f" 95 % interval {probability_text(found.lower)} to {probability_text(found.upper)}",
        )
    ]


def chain_row(results: DurabilityResults) -> Row:
    """The birth-death chain beside it."""
    chain = chain_estimate(results.scenario, mean_missing_s=0.0)
    return (
        "P(any loss) per year, analytic",
        f"{probability_text(chain.loss_per_year)} ({nines_text(chain.loss_per_year)} nines)",
        f"birth-death chain of each group, undisturbed rebuild of"
        f" {duration_text(chain.repair_mean_s)}",
    )


def durability_summary(results: DurabilityResults) -> list[Row]:
    """All of it."""
    rows = [*model_rows(results), *loss_rows(results), *rare_rows(results)]
    if results.options.layout == "placed":
        rows.append(chain_row(results))
    run = results.provenance
    if run.trials_s > 0:
        per_s = run.trials * run.years / run.trials_s
        rows.append(
            (
                "time taken",
                f"{duration_text(run.placement_s)} + {duration_text(run.trials_s)}",
                f"placement + trials; {per_s:,.0f} years per second",
            )
        )
    return rows


def durability_figures(results: DurabilityResults) -> dict[str, Any]:
    """The figures for programs, units last."""
    found = estimate_durability(results)
    figures = asdict(found)
    mission, low, high = figures.pop("loss_per_trial")
    return {
        "scenario": results.scenario.name,
        "seed": results.provenance.seed,
        "trials": results.provenance.trials,
        "years": results.provenance.years,
        "layout": results.options.layout,
        "clock": results.options.clock,
        "left_out": list(results.left_out),
        **figures,
        "nines": nines(found.loss_per_year) if found.periods_with_loss else None,
        "loss_per_trial": mission,
        "loss_per_trial_lower": low,
        "loss_per_trial_upper": high,
        "device_failures": results.total("device_failures"),
        "loss_events": results.total("loss_events"),
        "groups_lost": results.total("groups_lost"),
        "groups": group_count(results.scenario, results.options),
        "rare": None if results.rare is None else asdict(results.rare),
        "trials_s": results.provenance.trials_s,
    }
