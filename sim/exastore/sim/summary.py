"""The summary of a run: labels, values, and what they mean; for terminals and reports alike."""

from typing import Any

import numpy as np

from exastore.sim.durability import durability, nines_text, probability_text
from exastore.sim.fleet import present_devices
from exastore.sim.foreground import repair_budgets
from exastore.sim.objects import object_count
from exastore.sim.results import Results

#: (label, value, unit or explanation)
Row = tuple[str, str, str]

_UNITS = ("B", "kB", "MB", "GB", "TB", "PB", "EB")


def bytes_text(count: float) -> str:
    """Bytes with a decimal prefix and three digits."""
    for unit in _UNITS[:-1]:
        if abs(count) < 999.5:
            return f"{count:.3g} {unit}"
        count /= 1000.0
    return f"{count:.3g} {_UNITS[-1]}"


def user_text(count: int) -> str:
    """Bytes of user data: in EiB where there are that many."""
    return f"{count / 2**60:.4g} EiB" if count >= 2**59 else bytes_text(count)


def duration_text(seconds: float) -> str:
    """A length of time in the unit that suits it."""
    for limit, size, unit in ((120, 1, "s"), (7200, 60, "min"), (172_800, 3600, "h")):
        if seconds < limit:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds / 86_400:.3g} d"


def count_text(value: float) -> str:
    """A mean count: whole if large."""
    return f"{value:,.0f}" if value >= 100 or value == int(value) else f"{value:.3g}"


def _mean(results: Results, column: str) -> float:
    return float(results.trials[column].to_numpy().mean())


def cluster_rows(results: Results) -> list[Row]:
    """What was simulated."""
    scenario, run = results.scenario, results.provenance
    cluster = scenario.cluster
    later = f", and {len(scenario.generation)} generations more" if scenario.generation else ""
    return [
        ("scenario", scenario.name, scenario.description),
        (
            "cluster",
            f"{present_devices(scenario, 0.0):,} devices",
            f"{cluster.rack_count:,} racks x {cluster.nodes_per_rack} nodes x"
            f" {cluster.devices_per_node} devices of"
            f" {bytes_text(scenario.device.capacity_bytes)}{later}",
        ),
        (
            "user data",
            user_text(scenario.data.user_bytes),
            f"{scenario.code}, {scenario.fill:.1%} of the raw capacity filled",
        ),
        (
            "placement groups",
            f"{scenario.placement.pg_count:,}",
            f"{scenario.slots_per_device:.1f} slots per device, at most"
            f" {scenario.placement.max_per_domain} per {scenario.placement.domain}",
        ),
        ("simulated", f"{run.trials} x {run.years:g} years", f"seed {run.seed}"),
    ]


def balance_rows(results: Results) -> list[Row]:
    """How evenly placement loads the devices, and whether it keeps its rule."""
    start = results.balance.filter(np.equal(results.balance["trial"].to_numpy(), -1))
    slots, devices = start["slots"].to_numpy(), start["devices"].to_numpy()
    mean = float(np.average(slots, weights=devices))
    stddev = float(np.sqrt(np.average((slots - mean) ** 2, weights=devices)))
    at = results.capacity["years"].to_numpy()
    fill_max = results.capacity["fill_max"].to_numpy()
    most = (
        f"the fullest device is {fill_max[at == 0].max():.0%} full, at the end"
        f" {fill_max[at == at.max()].max():.0%}"
    )
    if results.scenario.balance.every_s == 0:
        most += ": what failures and rebuilds shift in between is not rebalanced"
    is_balanced = results.scenario.placement.balanced
    origin = "as balanced at the start" if is_balanced else "as hashed at the start, not balanced"
    violations = int(results.trials["violations_at_start"].to_numpy().max())
    later = int(results.trials["violations"].to_numpy().max())
    return [
        (
            "balance",
            f"{mean:.1f} ± {stddev:.1f}",
            f"slots per device {origin}, from {slots.min()} to {slots.max()}; {most}",
        ),
        (
            "domain violations",
            f"{violations} at the start, {later} at the end",
            "placement groups that break the domain rule",
        ),
    ]


def traffic_rows(results: Results) -> list[Row]:
    """Failures and what repairing them takes."""
    days = results.provenance.years * 365.25
    years = results.provenance.years
    failures = _mean(results, "device_failures")
    rebuilt = _mean(results, "rebuilt_bytes") / days
    read = _mean(results, "read_bytes") / days
    abandoned = _mean(results, "abandoned_bytes") / days
    degraded = _mean(results, "degraded_pg_hours") / (days * 24)
    return [
        ("device failures", count_text(failures), f"{failures / days:.3g} per day"),
        (
            "node outages",
            count_text(_mean(results, "node_outages")),
            f"{count_text(_mean(results, 'node_outs'))} of them passed the out-timer",
        ),
        (
            "rebuilt",
            f"{bytes_text(rebuilt)} per day",
            f"written; {bytes_text(read)} per day read to do it",
        ),
        (
            "abandoned rebuilds",
            f"{bytes_text(abandoned)} per day",
            "written for nodes that came back before a rebuild could end",
        ),
        (
            "time to rebuild",
            duration_text(_mean(results, "mean_missing_s")),
            "mean, from the loss of a chunk until it is back",
        ),
        (
            "degraded PGs",
            count_text(degraded),
            f"at any time; at worst {results.trials['max_missing'].to_numpy().max()} missing"
            f" chunks in one, any {results.scenario.sure_losses} can be",
        ),
        (
            "unavailable PGs",
            f"{_mean(results, 'unavailable_pg_hours') / years:.3g} PG-hours per year",
            "too few chunks readable to decode for a while, nothing lost by that",
        ),
    ]


def change_rows(results: Results) -> list[Row]:
    """What was moved, joined and left; nothing if the scenario has no such thing."""
    scenario = results.scenario
    rows: list[Row] = []
    if scenario.balance.every_s > 0:
        days = results.provenance.years * 365.25
        moved = _mean(results, "moved_bytes")
        rows.append(
            (
                "moved by the balancer",
                f"{bytes_text(moved / days)} per day",
                f"{bytes_text(moved)} in {count_text(_mean(results, 'moved_runs'))} chunk runs",
            )
        )
    if scenario.generation or scenario.data.growth_per_year or scenario.cluster.leaves_years:
        for row in capacity_at_end(results):
            rows.append(
                (
                    f"generation {row['name']} at the end",
                    f"{row['devices']:,} devices",
                    f"{row['stored_bytes'] / row['capacity_bytes']:.1%} full, the fullest device"
                    f" {row['fill_max']:.1%}",
                )
            )
    return rows


def foreground_rows(results: Results) -> list[Row]:
    """How requests of clients fare; nothing without them."""
    scenario = results.scenario
    if not scenario.foreground.is_on:
        return []
    table = {name: results.foreground[name].to_numpy() for name in results.foreground.column_names}
    given = scenario.repair
    budgets = repair_budgets(scenario)
    worst = int(np.argmax(table["read_p99_s"]))
    return [
        (
            "devices busy",
            f"{table['utilisation'].mean():.1%}",
            f"with requests and repair, {table['utilisation'].max():.1%} in the busiest month;"
            f" repair may write {bytes_text(budgets.write_bytes_per_s)} per second of"
            f" {bytes_text(given.write_bandwidth_bytes_per_s)} asked for",
        ),
        (
            "reads",
            f"{table['read_mean_s'].mean() * 1e3:.3g} ms",
            f"mean; 99 % within {table['read_p99_s'].mean() * 1e3:.3g} ms, in the worst month"
            f" {table['read_p99_s'][worst] * 1e3:.3g} ms: an estimate of queues",
        ),
        (
            "degraded reads",
            f"{table['degraded_read_share'].mean():.3g}",
            f"of all reads, which take {table['degraded_mean_s'].mean() * 1e3:.3g} ms; devices read"
            f" {table['read_amplification'].mean():.6g} times what clients get",
        ),
    ]


def capacity_at_end(results: Results) -> list[dict[str, Any]]:
    """The last rows of the table of capacity of trial 0, one per generation that is there."""
    rows = [row for row in results.capacity.to_pylist() if row["trial"] == 0]
    end = max(row["years"] for row in rows)
    return [row for row in rows if row["years"] == end]


def limit_rows(results: Results) -> list[Row]:
    """What the scenario switches on beyond failures and repair."""
    scenario, latent = results.scenario, results.scenario.latent
    rows: list[Row] = []
    if latent.onset_per_year > 0 or latent.read_error_per_bit > 0:
        met = _mean(results, "latent_errors") / results.provenance.years
        stored = scenario.fill * scenario.raw_bytes
        scrub = f"scrubbing every {duration_text(latent.scrub_period_s)} reads"
        per_day = bytes_text(stored / max(latent.scrub_period_s, 1.0) * 86_400)
        scrubbed = f"{scrub} {per_day} per day" if latent.scrub_period_s else "nothing is scrubbed"
        rows.append(("latent errors", f"{count_text(met)} a year", f"met by rebuilds; {scrubbed}"))
    if scenario.spares.reorder_s > 0:
        waits, hours = _mean(results, "spare_waits"), _mean(results, "spare_wait_hours")
        each = duration_text(3600 * hours / waits) if waits else "no time"
        rows.append(("waits for a spare", count_text(waits), f"in the run, {each} each"))
    stuck = _mean(results, "stuck_slot_hours")
    if stuck > 0 or scenario.repair.fill_limit > 0:
        note = "missing chunk runs for which there is no device that keeps the rule and has room"
        mean = stuck / (results.provenance.years * 8766)
        rows.append(("stuck rebuilds", count_text(mean), f"at any time: {note}"))
    return rows


def _loss_rows(results: Results) -> list[Row]:
    """Losses in bytes and in objects, and apart from them what was unavailable for a while."""
    years = results.provenance.years
    lost = _mean(results, "user_bytes_lost") / years
    stored = results.scenario.data.user_bytes
    objects = _mean(results, "objects_lost") / years
    away = _mean(results, "unavailable_byte_hours") / years
    return [
        (
            "data lost",
            f"{bytes_text(lost)} per year",
            f"mean; {lost / stored:.3g} of what is stored",
        ),
        (
            "objects lost",
            f"{count_text(objects)} per year",
            f"expected, of {object_count(results.scenario):.4g} at the start; all they hold is"
            f" {bytes_text(_mean(results, 'object_bytes_lost') / years)}",
        ),
        (
            "data unavailable",
            f"{bytes_text(away / 8766)}",
            "at any time, mean; too few chunks readable to decode for a while, not lost",
        ),
    ]


def durability_rows(results: Results) -> list[Row]:
    """P(loss) from the trials and from the chain."""
    found = durability(results)
    chain = found.chain
    if found.periods_with_loss == 0:
        seen = f"below {probability_text(found.upper)}"
        note = f"no loss in {found.periods} trial-years; one-sided 95 % bound"
    else:
        seen = probability_text(found.loss_per_year)
        note = (
            f"{found.periods_with_loss} of {found.periods} trial-years lost data; 95 % interval"
            f" {probability_text(found.lower)} to {probability_text(found.upper)}"
        )
    if found.period_years != 1.0:
        note = note.replace("trial-years", f"runs of {found.period_years:g} years")
    source = "measured" if chain.is_measured else "undisturbed"
    return [
        ("P(any loss) per year", seen, f"seen in trials: {note}"),
        (
            "placement groups lost",
            f"{found.pgs_lost:,}",
            f"in all trials together; and {found.stripes_lost:,} single stripes of others, to"
            " latent errors",
        ),
        *_loss_rows(results),
        (
            "P(any loss) per year, analytic",
            f"{probability_text(chain.loss_per_year)} ({nines_text(chain.loss_per_year)} nines)",
            f"birth-death chain, device failures {chain.failure_rate_per_year:.4g} per year,"
            f" {source} repair time {duration_text(chain.repair_mean_s)}; independent failures"
            " alone",
        ),
    ]


def cost_rows(results: Results) -> list[Row]:
    """What the simulation itself took."""
    run = results.provenance
    if run.trials_s == 0.0:
        return []
    return [
        (
            "time taken",
            f"{duration_text(run.placement_s)} + {duration_text(run.trials_s)}",
            f"placement + trials; {bytes_text(run.peak_memory_bytes)} of memory at most",
        )
    ]


def summarize(results: Results) -> list[Row]:
    """All of it, as rows of (label, value, unit or explanation)."""
    return [
        *cluster_rows(results),
        *balance_rows(results),
        *traffic_rows(results),
        *change_rows(results),
        *limit_rows(results),
        *foreground_rows(results),
        *durability_rows(results),
        *cost_rows(results),
    ]
