"""What publications state of their clusters against what the simulator makes of the presets.

`pytest -m verify -s` prints the rows of the table in docs/simulator.md. A tolerance of a row is how
far the two are allowed to differ; where the publication leaves out what decides, it is wide.
"""

from dataclasses import replace
from functools import cache

import pytest

from exastore.sim import Results, Scenario, load_scenario, run
from exastore.sim.overlap_model import OverlapOptions
from exastore.sim.overlap_rare import estimate_rare_loss

pytestmark = [pytest.mark.verify, pytest.mark.timeout(3600)]


@cache
def results_of(name: str) -> Results:
    return run(load_scenario(name), workers=2)


def mean(name: str, column: str) -> float:
    return float(results_of(name).trials[column].to_numpy().mean())


def per_day(name: str, column: str) -> float:
    return mean(name, column) / (results_of(name).provenance.years * 365.25)


def compare(preset: str, what: str, published: float, ours: float, factor: float) -> None:
    """Prints a row; the two differ by at most the factor."""
    print(
        f"| `{preset}` | {what} | {published:.4g} | {ours:.4g} | {ours / published:.2f} | {factor}"
    )
    assert published / factor <= ours <= published * factor


def test_the_warehouse_rebuilds_as_much_as_facebook_published() -> None:
    name = "facebook-warehouse"
    outs, days = mean(name, "node_outs"), results_of(name).provenance.years * 365.25
    compare(name, "machines away for over 15 minutes, per day", 50, outs / days, 1.1)
    rebuilt = per_day(name, "rebuilt_bytes")
    compare(name, "blocks of 256 MB rebuilt per day", 95_500, rebuilt / 256e6, 1.5)
    compare(name, "TB read over racks per day", 180, per_day(name, "read_bytes") / 1e12, 2.0)


def test_a_stamp_rebuilds_as_fast_as_azures_model_says() -> None:
    name, wait_s = "azure-stamp", 1_800
    reads = mean(name, "read_bytes") / mean(name, "rebuilt_bytes")
    compare(name, "chunks read per chunk rebuilt", 6.75, reads, 1.05)
    # 16 TB x 6.75 over a tenth of 399 links of 1 Gb/s; a chunk waits half of it on average. The
    # formula keeps every link busy to the end; here targets are drawn, and some have more to do.
    whole_s = 16e12 * 6.75 / (0.1 * 399 * 125e6)
    ours_s = mean(name, "mean_missing_s") - wait_s
    compare(name, "hours until a lost chunk is back", whole_s / 7200, ours_s / 3600, 4.0)


def test_a_vault_is_as_durable_as_backblaze_computed() -> None:
    # Windows that begin at fixed times see a quarter of the overlaps that any four failures have.
    found = estimate_rare_loss(
        load_scenario("backblaze-vault"),
        excursions=200_000,
        options=OverlapOptions("clustered", "device"),
    )
    compare(
        "backblaze-vault",
        "P(loss) a year of 20 drives",
        7.354e-12 * 4,
        found.loss_per_year / 60,
        1.1,
    )


def test_the_fleet_loses_as_many_drives_as_backblaze_reported() -> None:
    compare(
        "backblaze-fleet", "failed drives", 976, mean("backblaze-fleet", "device_failures"), 1.05
    )


def test_the_first_year_at_google_is_as_dean_listed_it() -> None:
    name = "google-first-year"
    rows = results_of(name).incidents.to_pylist()
    trials = results_of(name).provenance.trials
    count = {row["name"]: 0.0 for row in rows}
    for row in rows:
        count[row["name"]] += row["occurrences"] / trials
    compare(name, "machine failures", 1_000, count["node"], 1.1)
    compare(name, "rack failures", 20, count["rack"], 1.25)
    compare(name, "failures of power distribution", 1, count["power distribution unit"], 2.0)
    # "Thousands" of drives: no published rate reaches that with four drives to a machine.
    print(f"| `{name}` | drive failures | thousands | {mean(name, 'device_failures'):.0f} | | |")


def test_nearline_disks_fail_as_the_fit_says() -> None:
    name = "raid6-nearline"
    failures = results_of(name).timeline["device_failures"].to_numpy()
    for years, share in ((1, 0.018), (2, 0.039), (3, 0.061)):
        ours = float(failures[: 12 * years].sum()) / 16_000
        compare(name, f"share failed within {years} years", share, ours, 1.1)


def _days_to_unavailable(scenario: Scenario) -> float:
    """Mean days until a group of the cell is unavailable."""
    results = run(scenario, workers=2)
    seen = results.trials["unavailable_episodes"].to_numpy().sum()
    pg_days = scenario.placement.pg_count * scenario.run.years * 365.25 * scenario.run.trials
    return float(pg_days / max(1, seen))


def test_bursts_take_stripes_away_about_as_often_as_ford_measured() -> None:
    # Table 3, days until a stripe is unavailable for 15 minutes; here for any time. Bursts between
    # those of 7 and of 20 nodes, and how they lie in racks, are assumptions, and placement knows
    # racks: rs-9-4, which the paper has below rep-3, is not reproduced and not compared.
    published = {"rep-3": 6.82e6, "rs-6-3": 1.03e7}
    cell = load_scenario("google-cell")
    ours: dict[str, float] = {}
    for code, data_share in (("rep-3", 1 / 3), ("rs-6-3", 6 / 9), ("rs-8-4", 8 / 12)):
        data = replace(cell.data, user_bytes=int(2.9e15 * data_share))
        ours[code] = _days_to_unavailable(replace(cell, code=code, data=data))
        if code in published:
            compare("google-cell", f"days to unavailable, {code}", published[code], ours[code], 5.0)
    assert ours["rs-8-4"] > 5 * ours["rs-6-3"]
