"""Growth, leaving generations, devices of several sizes and balancing during the run."""

import pytest
from tests.simulation.test_sim_engine import DEFAULTS, INCIDENTS, MODELS, ROUGH, both, column

from exastore.sim import Scenario, ScenarioError, parse_scenario, place, run, scenario_toml
from exastore.sim.run import simulate

GROWTH = """
[[generation]]
name = "large"
racks_per_zone = 3
capacity_bytes = 8_000_000_000_000
[[generation]]
name = "next"
racks_per_zone = 4
capacity_bytes = 12_000_000_000_000
joins_years = 0.3
[balance]
every_s = 86400
bandwidth_bytes_per_s = 4e6
"""


def changing(**changes: float | str) -> Scenario:
    usual: dict[str, float | str] = {"years": 1.0, "afr": 0.3, "more": GROWTH}
    text = ROUGH.format(**(DEFAULTS | usual | changes))
    leaves = changes.get("leaves", 0.0)
    text = text.replace("nodes_per_rack = 2", f"nodes_per_rack = 2\nleaves_years = {leaves}")
    grows = changes.get("grows", 0.0)
    return parse_scenario(text.replace("[repair]", f"growth_per_year = {grows}\n[repair]"))


CASES: dict[str, dict[str, float | str]] = {
    "racks-join": {},
    "racks-leave": {"leaves": 0.5, "years": 1.5},
    "data-grows": {"grows": 0.5, "write": 4e6},
    "models": {
        "more": MODELS + GROWTH.replace('name = "next"', 'name = "next"\nmodel = 2'),
    },
    "in-trouble": {"more": INCIDENTS + GROWTH, "leaves": 0.5, "grows": 0.2, "outages": 60.0},
    "two-zones": {
        "racks": "4\nzones_per_region = 2",
        "more": GROWTH.replace("86400", "250000"),
        "leaves": 0.4,
    },
}


@pytest.mark.parametrize("case", CASES)
def test_change_is_the_same_in_the_engine_and_its_plain_twin(case: str) -> None:
    state, twin = both(changing(**CASES[case]), seed=5, trial=1)
    assert column(state, "moved_runs") > 100
    assert len(twin.events) > 200


def test_new_racks_fill_up_and_the_rule_is_kept() -> None:
    results = run(changing(afr=0.05), trials=2, seed=3)
    assert results.trials["violations"].to_pylist() == [0, 0]
    capacity = results.capacity.to_pylist()
    assert {row["name"] for row in capacity if row["years"] == 0} == {"cluster", "large"}
    last = [row for row in capacity if row["years"] == 1.0 and row["trial"] == 1]
    fills = [row["stored_bytes"] / row["capacity_bytes"] for row in last]
    assert len(fills) == 3 and max(fills) - min(fills) < 0.04
    assert results.trials["moved_bytes"].to_numpy().min() > 0


def test_what_moves_stays_below_the_budget_of_bytes() -> None:
    # 18 devices of "next" take 12 TB at 1 MB/s each: 1.6 TB a day in all.
    slow = changing(afr=0.0, outages=0.0, more=GROWTH.replace("4e6", "1e6"), years=0.5)
    timeline = run(slow, trials=1, seed=3).timeline.to_pylist()
    moved = [row["moved_bytes"] for row in timeline]
    assert moved[:3] == [0, 0, 0] and moved[4] > 0
    assert max(moved) <= 72 * 1e6 * 86400 * 31


def test_a_generation_that_leaves_is_emptied_before_it_goes() -> None:
    scenario = changing(afr=0.05, leaves=0.5, years=2.0)
    placement = place(scenario, seed=1)
    state, change, _ = simulate(scenario, placement, seed=1, trial=0)
    old = change.generation_of_node == 0
    assert state.nodes["absent"][old].all() and not state.nodes["absent"][~old].any()
    held = state.devices["slot_count"].reshape(-1, 3)
    assert held[old].sum() == 0 and held[~old].min() > 0
    assert column(state, "pgs_lost") == 0


def test_large_devices_hold_as_much_more_as_they_are_larger() -> None:
    more = GROWTH.split('[[generation]]\nname = "next"')[0]
    results = run(changing(afr=0.0, outages=0.0, more=more, years=0.25), trials=1, seed=1)
    small, large = (
        row["stored_bytes"] / row["devices"] for row in results.capacity.to_pylist()[:2]
    )
    assert large / small == pytest.approx(2.0, rel=0.05)  # whole runs


def test_without_change_nothing_moves() -> None:
    results = run(changing(more="", years=0.5), trials=1, seed=1)
    assert results.trials["moved_bytes"].to_pylist() == [0.0]
    assert {row["generation"] for row in results.capacity.to_pylist()} == {0}


@pytest.mark.parametrize(
    ("changes", "key", "text"),
    [
        ({"leaves": 0.5, "more": ""}, "cluster.leaves_years", "never be empty; give balance.every"),
        (
            {"leaves": 0.5, "more": "[balance]\nevery_s = 86400"},
            "cluster.leaves_years",
            "room for 0 chunks of a stripe",
        ),
        ({"grows": 9.0, "more": ""}, "data.growth_per_year", "more than data.max_fill = 80%"),
        (
            {"more": GROWTH.replace("joins_years", "leaves_years = 0.2\njoins_years")},
            "generation.1.leaves_years",
            "not after joins_years = 0.3",
        ),
        (
            {"more": GROWTH.replace('"next"', '"next"\nmodel = 3')},
            "generation.1.model",
            "there are 1 models",
        ),
    ],
)
def test_change_that_cannot_be_is_refused(
    changes: dict[str, float | str], key: str, text: str
) -> None:
    with pytest.raises(ScenarioError, match=text) as caught:
        changing(**changes)
    assert [problem.key for problem in caught.value.problems] == [key]


def test_a_scenario_with_change_can_be_written_back() -> None:
    scenario = changing(leaves=0.5, grows=0.1)
    assert parse_scenario(scenario_toml(scenario)) == scenario
