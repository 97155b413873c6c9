"""Latent errors: the law against published counts, the engine against its twin and formula."""

import numpy as np
import pytest
from tests.simulation.test_sim_engine import INCIDENTS, LONELY, both, column, rough

from exastore.sim import durability, parse_scenario, place, run
from exastore.sim.build import build_model
from exastore.sim.latent import errors_per_byte_s, onset_s
from exastore.sim.physics import build_physics
from exastore.sim.run import simulate
from exastore.sim.scenario import Scenario
from exastore.sim.streams import trial_key
from exastore.sim.units import YEAR_S

BAD = """
[latent]
onset_per_year = 2.0
errors_per_year = 4000.0
read_error_per_bit = 1e-14
scrub_period_s = 4e6
"""
CASES: dict[str, dict[str, float | str]] = {
    "counted": {"afr": 0.9, "racks": 6, "write": 1e6, "read": 3e6, "years": 2.0},
    "lrc": {"code": "lrc-4-2-1", "racks": 7, "afr": 0.9, "write": 1e6, "years": 2.0},
    "clay": {"code": "clay-4-2-5", "afr": 0.9, "read": 2e6, "racks": 7, "years": 2.0},
    "never-scrubbed": {"afr": 0.8, "racks": 6, "write": 1e6, "outages": 2.0},
    "incidents": {"afr": 0.5, "racks": 7, "write": 1e6, "outages": 5.0, "years": 2.0},
}


@pytest.mark.parametrize("case", CASES)
def test_latent_errors_equal_those_of_the_twin_one_by_one(case: str) -> None:
    more = BAD.replace("4e6", "0.0") if case == "never-scrubbed" else BAD
    more += INCIDENTS if case == "incidents" else ""
    state, twin = both(rough(**CASES[case], more=more), seed=4, trial=1)
    assert twin.totals["latent_errors"] == column(state, "latent_errors") > 100
    assert twin.totals["stripes_lost"] == column(state, "stripes_lost") > 0
    assert twin.totals["stripes_lost"] < twin.totals["latent_errors"]


def _lives(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Onsets and yearly errors of the first lives of so many devices, with published rates."""
    scenario = rough(more="[latent]\nonset_per_year = 0.0325")
    model = build_model(scenario, build_physics(scenario), seed=1, trial=0)
    key = np.uint64(trial_key(1, 0))
    onset = np.array([onset_s(model, key, device, 0, 0.0) for device in range(count)]) / YEAR_S
    rate = np.array([errors_per_byte_s(model, key, device, 0) for device in range(count)])
    return onset, rate * YEAR_S * scenario.device.capacity_bytes


def test_the_law_of_latent_errors_gives_the_published_shares_and_counts() -> None:
    # Bairavasundaram, thesis 3.3.1 and 3.3.3, nearline disks.
    onset, per_year = _lives(200_000)
    assert (onset < 1.0).mean() == pytest.approx(0.0315, rel=0.05)
    assert (onset < 32 / 12).mean() == pytest.approx(0.085, rel=0.05)
    assert (1 - np.exp(-0.5 * per_year)).mean() == pytest.approx(0.671, rel=0.06)
    affected = onset < 32 / 12
    rng = np.random.Generator(np.random.Philox(3))
    errors = 1 + rng.poisson(per_year[affected] * (32 / 12 - onset[affected]))
    assert errors[errors <= 1000].mean() == pytest.approx(19.7, rel=0.05)
    assert 3 <= np.median(errors) <= 4
    assert (errors > 1000).mean() < 0.002


def test_stripes_are_lost_at_the_analytic_rate_if_every_rebuild_is_critical() -> None:
    # Two copies, all devices affected from the start: a rebuild meets the errors of one run since
    # it was scrubbed, half a period on average, and each costs a stripe.
    latent = "[latent]\nonset_per_year = 1000.0\nerrors_per_year = 300.0\nscrub_period_s = 2e6\n"
    scenario = parse_scenario(LONELY.replace("[run]", latent + "[run]"))
    rebuilds, met, lost = 0.0, 0.0, 0.0
    for trial in range(6):
        state, _, _ = simulate(scenario, place(scenario, seed=11), seed=11, trial=trial)
        rebuilds += column(state, "rebuilds")
        met += column(state, "latent_errors")
        lost += column(state, "stripes_lost")
    share = scenario.slot_bytes / scenario.device.capacity_bytes
    expected = rebuilds * 300.0 * share * 1e6 / YEAR_S
    assert expected > 200
    # Rates of devices differ: the square of E/2 has a variance of 5, so errors clump.
    assert abs(met - expected) < 5 * np.sqrt(6 * expected) + 0.03 * expected
    assert lost == pytest.approx(met, rel=0.1)  # but for those of groups that lost both copies


def _data_sheet(racks: int, code: str, per_bit: float) -> Scenario:
    return rough(
        code=code,
        racks=racks,
        afr=0.3,
        outages=0.0,
        years=4.0,
        more=f"[latent]\nread_error_per_bit = {per_bit}",
    )


def test_bits_that_cannot_be_read_are_met_in_proportion_to_what_is_read() -> None:
    results = run(_data_sheet(8, "rs-4-2", 1e-14), trials=4, seed=2)
    rows = results.trials.to_pylist()
    read = sum(row["read_bytes"] for row in rows)
    met = sum(row["latent_errors"] for row in rows)
    assert met == pytest.approx(8e-14 * read, abs=4 * np.sqrt(8e-14 * read))
    assert met > 50


def test_a_lost_stripe_counts_as_loss_of_its_bytes_but_not_of_its_group() -> None:
    results = run(_data_sheet(6, "rs-5-1", 3e-14), trials=2, seed=2)
    found = durability(results)
    rows = results.trials.to_pylist()
    stripes = sum(row["stripes_lost"] for row in rows)
    assert stripes == found.stripes_lost > 0
    assert found.periods_with_loss > 0
    bytes_lost = sum(row["user_bytes_lost"] for row in rows)
    pg_bytes = results.scenario.data.user_bytes / 160
    assert bytes_lost == pytest.approx(found.pgs_lost * pg_bytes + stripes * 5 * 2**22)
    kinds = [row["stripes"] for row in results.losses.to_pylist()]
    assert sum(kinds) == stripes and kinds.count(0) == found.pgs_lost


def test_scrubbing_more_often_loses_less() -> None:
    lost = []
    for period in (2e5, 3e6):
        more = BAD.replace("4e6", f"{period}").replace("1e-14", "0.0")
        scenario = rough(**(CASES["counted"] | {"more": more}))
        state, _, _ = simulate(scenario, place(scenario, seed=1), seed=1, trial=0)
        lost.append(column(state, "stripes_lost"))
    assert lost[0] < lost[1] / 4
