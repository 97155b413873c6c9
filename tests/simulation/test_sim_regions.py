"""Codes across regions, copies per region, residency, the loss of a region, upgrade domains."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.simulation.test_sim_engine import both, rough

from exastore.sim import Scenario, ScenarioError, load_scenario, parse_scenario, place, run
from exastore.sim import scenario_toml as toml_of
from exastore.sim.results import Results

EXAMPLES = Path(__file__).parents[2] / "examples"

REGION_LOSS = """
[[incident]]
name = "region"
level = "region"
every_years = 10.0
duration_s = 864000.0
duration_law = "fixed"
death_share = {dies}
gives_up = false
"""
UPGRADES = """
[[incident]]
name = "upgrade"
level = "upgrade"
upgrade_domains = 5
every_years = 0.1
duration_s = 3000.0
duration_law = "fixed"
"""


def regional(
    code: str = "rs-4-2",
    regions: int = 3,
    most: int = 2,
    *,
    dies: float = 0.0,
    placement: str = "",
    more: str = "",
    **changes: float | str,
) -> Scenario:
    """Some regions of four racks each, quiet but for what the test adds."""
    text = toml_of(
        rough(
            afr=0.0,
            outages=0.0,
            years=1.0,
            racks=12,
            code=code,
            more=REGION_LOSS.format(dies=dies) + more,
        )
    )
    text = text.replace("racks_per_zone = 12", "racks_per_zone = 4")
    text = text.replace("region_count = 1", f"region_count = {regions}")
    text = text.replace('domain = "rack"', 'domain = "region"')
    text = text.replace("max_per_domain = 1", f"max_per_domain = {most}")
    text = text.replace("also = []", 'also = [["rack", 1]]')
    return parse_scenario(text.replace("regions = []", placement or "regions = []"))


def only_trial(scenario: Scenario) -> dict[str, Any]:
    (row,) = run(scenario, trials=1, seed=1).trials.to_pylist()
    return dict(row)


def test_a_code_across_regions_keeps_its_rule_in_regions_and_racks() -> None:
    scenario = regional()
    table = place(scenario, seed=1).pg_devices
    region, rack = table // 24, table // 6
    assert max(np.bincount(row).max() for row in region) == 2
    assert all(len(set(row)) == 6 for row in rack.tolist())


def test_losing_one_of_three_regions_for_good_loses_nothing_and_stops_no_reads() -> None:
    row = only_trial(regional(dies=1.0))
    assert row["device_failures"] == 24
    assert row["pgs_lost"] == 0 and row["unavailable_episodes"] == 0
    assert row["max_missing"] == 2 and row["chunk_runs_rebuilt"] == row["chunk_runs_lost"]


def test_losing_one_of_two_regions_makes_data_unavailable_but_loses_it_only_for_good() -> None:
    away = only_trial(regional(regions=2, most=3))
    assert away["unavailable_episodes"] == 160 and away["pgs_lost"] == 0
    assert away["unavailable_pg_hours"] == pytest.approx(160 * 240)
    assert only_trial(regional(regions=2, most=3, dies=1.0))["pgs_lost"] == 160


def test_copies_in_each_region_outlive_the_loss_of_one() -> None:
    # Two copies in each of two regions.
    row = only_trial(regional("rep-4", regions=2, most=2, dies=1.0))
    assert row["pgs_lost"] == row["unavailable_episodes"] == 0
    assert row["rebuilds"] == 2 * 160


def test_resident_data_stays_in_its_regions_and_goes_with_them() -> None:
    scenario = regional("rep-4", regions=3, most=2, placement="regions = [0, 2]", dies=0.0)
    table = place(scenario, seed=1).pg_devices
    assert set((table // 24).ravel().tolist()) == {0, 2}
    assert scenario.fill == pytest.approx(30e12 * 4 / (48 * 4e12))
    alone = regional("rep-2", regions=3, most=2, placement="regions = [0]")
    assert only_trial(alone)["unavailable_episodes"] == 160


@pytest.mark.parametrize("dies", [0.0, 0.6])
def test_regions_and_upgrades_are_the_same_in_the_engine_and_its_plain_twin(dies: float) -> None:
    scenario = regional(dies=dies, more=UPGRADES)
    _, twin = both(scenario, seed=2, trial=1)
    assert len(twin.events) > 200


def test_an_upgrade_takes_one_domain_at_a_time_spread_over_the_racks() -> None:
    scenario = regional(more=UPGRADES)
    results = run(scenario, trials=1, seed=1)
    upgrade = next(row for row in results.incidents.to_pylist() if row["name"] == "upgrade")
    assert upgrade["domains"] == 5 and upgrade["occurrences"] in (50, 51)
    # 24 nodes, each ten times, and eight by the loss of region 0, of which some coincide.
    (row,) = results.trials.to_pylist()
    assert 240 <= row["node_outages"] <= 253


def last_unavailable(results: Results) -> float:
    return float(results.timeline["unavailable_pg_hours"].to_numpy().sum())


def test_the_example_of_regions_loses_one_and_no_data() -> None:
    results = run(load_scenario(EXAMPLES / "regions.toml"))
    (row,) = results.trials.to_pylist()
    assert row["device_failures"] >= 96 and row["pgs_lost"] == 0
    assert last_unavailable(results) < 1000


@pytest.mark.parametrize(
    ("placement", "key", "text"),
    [
        ("regions = [3]", "placement.regions", "names region 3, but there are 3, from 0"),
        ("regions = [1]", "placement.also", "which hold only 4 of the 6 of rs-4-2"),
    ],
)
def test_rules_of_regions_that_cannot_be_are_refused(placement: str, key: str, text: str) -> None:
    with pytest.raises(ScenarioError, match=text) as caught:
        regional(placement=placement)
    assert key in [problem.key for problem in caught.value.problems]


def test_a_limit_beside_the_rule_that_cannot_be_kept_is_refused() -> None:
    text = toml_of(regional("rep-2", regions=1, most=2))
    with pytest.raises(
        ScenarioError,
        match=r"placement\.also: allows 1 chunks per zone, which",
    ):
        parse_scenario(text.replace('[["rack", 1]]', '[["zone", 1]]'))
