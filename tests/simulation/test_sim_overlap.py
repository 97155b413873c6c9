"""The overlap engine against its plain twin, against the event engine, and against itself."""

from dataclasses import replace
from math import sqrt
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from exastore.sim import (
    DurabilityResults,
    OverlapOptions,
    ResultsError,
    Scenario,
    ScenarioError,
    estimate_durability,
    estimate_rare_loss,
    load_scenario,
    parse_scenario,
    place,
    simulate_durability,
)
from exastore.sim._overlap_reference import OverlapReference
from exastore.sim.durability import chain_estimate
from exastore.sim.overlap import FAILURES, GROUPS_LOST, LOSS, LOSSES, NEEDS_ROOM, OVERLAPS
from exastore.sim.overlap_model import build_missing
from exastore.sim.overlap_run import OverlapRun
from exastore.sim.overlap_trials import run_block
from exastore.sim.run import simulate
from exastore.sim.state import TIMELINE_COLUMNS
from exastore.sim.superposed import build_arrivals

ROUGH = """
name = "rough"
code = "{code}"
[cluster]
racks_per_zone = {racks}
nodes_per_rack = 1
devices_per_node = {per_node}
[device]
capacity_bytes = 4_000_000_000_000
afr_per_year = {afr}
life_shape = {shape}
[node]
outages_per_year = 0
[placement]
pg_count = {groups}
balanced = false
[data]
user_bytes = 30_000_000_000_000
[repair]
detection_delay_s = {detection}
write_bandwidth_bytes_per_s = {write}
read_bandwidth_bytes_per_s = {read}
[run]
years = {years}
{more}
"""
DEFAULTS: dict[str, float | str] = {
    "code": "rs-4-2",
    "racks": 12,
    "per_node": 3,
    "afr": 0.9,
    "shape": 1.0,
    "groups": 60,
    "detection": 40_000.0,
    "write": 1e6,
    "read": 1e6,
    "years": 1.0,
    "more": "",
}
MODELS = """
[[model]]
share = 2
afr_per_year = 0.7
life_shape = 2.0
age_max_years = 4.0
[[model]]
hazard_from_years = [0.0, 0.25, 3.0]
hazard_afr_per_year = [0.95, 0.6, 0.9]
[[model]]
afr_per_year = 0.8
"""


def rough(**changes: float | str) -> Scenario:
    """A small cluster in trouble."""
    return parse_scenario(ROUGH.format(**(DEFAULTS | changes)))


def both(
    scenario: Scenario, options: OverlapOptions, *, seed: int, trials: int
) -> tuple[list[list[tuple[float, ...]]], np.ndarray]:
    """What happened in the engine and in the twin: failures and losses of each; the counters."""
    made = OverlapRun(scenario, options, seed=seed)
    log, events = np.zeros(10_000, LOSS), np.zeros(10_000, LOSS)
    missing = build_missing(made.model.rules, 4_096)
    arrivals = build_arrivals(made.population)
    run_block(
        made.population, made.model.rules, made.model.layout, arrivals, missing,
        seed, 0, trials, log, events,
    )  # fmt: skip
    counter = missing.counter
    kept = counter[LOSSES if options.layout == "unlimited" else GROUPS_LOST]
    twin = OverlapReference(scenario, made)
    for trial in range(trials):
        twin.run(trial)
    ours = [tuple(row) for row in log[:kept].tolist()]
    failures = [tuple(row)[:3] for row in events[: counter[FAILURES]].tolist()]
    return [failures, sorted(ours), list(twin.failures), sorted(twin.losses)], counter


@pytest.mark.parametrize(
    ("options", "changes"),
    [
        (OverlapOptions(), {}),
        (OverlapOptions(), {"write": 3e6, "read": 8e5}),
        (OverlapOptions(), {"shape": 0.7, "years": 2.0}),
        (OverlapOptions(), {"more": MODELS}),
        (OverlapOptions(), {"code": "lrc-4-2-1", "afr": 0.95}),
        (OverlapOptions("placed", "device"), {}),
        (OverlapOptions("placed", "group"), {}),
        (OverlapOptions("clustered", "priority"), {"write": 1.5e5}),
        (OverlapOptions("clustered", "device"), {"write": 1.5e5}),
        (OverlapOptions("clustered", "group"), {"write": 1.5e5}),
        (OverlapOptions("unlimited"), {}),
        (OverlapOptions("unlimited"), {"more": MODELS, "write": 5e5}),
    ],
    ids=str,
)
def test_the_engine_equals_its_plain_twin_failure_for_failure(
    options: OverlapOptions, changes: dict[str, float | str]
) -> None:
    (failures, losses, twin_failures, twin_losses), counter = both(
        rough(**changes), options, seed=3, trials=12
    )
    assert failures == twin_failures
    assert losses == twin_losses
    # The cases are rough enough to mean something.
    assert counter[OVERLAPS] > 100
    assert len(losses) > 3


@settings(deadline=None, max_examples=15)
@given(
    seed=st.integers(0, 2**40),
    groups=st.integers(3, 90),
    write=st.floats(2e5, 5e6),
    read=st.floats(2e5, 5e6),
    detection=st.floats(0, 2e5),
    layout=st.sampled_from(["placed", "unlimited"]),
)
def test_engine_and_twin_agree_in_any_rough_cluster(
    seed: int, groups: int, write: float, read: float, detection: float, layout: str
) -> None:
    scenario = rough(groups=groups, write=write, read=read, detection=detection, years=0.5)
    options = OverlapOptions("unlimited" if layout == "unlimited" else "placed")
    (failures, losses, twin_failures, twin_losses), _ = both(scenario, options, seed=seed, trials=2)
    assert failures == twin_failures
    assert losses == twin_losses


def test_as_many_trials_lose_data_as_in_the_event_engine() -> None:
    # One target per run and idle sources, so that both rebuild a run in detection + 30 h.
    scenario = rough(
        code="rs-2-1", afr=0.2, groups=40, racks=30, per_node=2, years=2.0,
        detection=3_600.0, write=30e12 / 80 / 108_000.0, read=1e12,
    )  # fmt: skip
    scenario = replace(scenario, device=replace(scenario.device, replacement_delay_s=0.0))
    trials = 1_000
    placement = place(scenario, seed=5)
    lost_at = TIMELINE_COLUMNS.index("pgs_lost")
    lost = np.array(
        [
            simulate(scenario, placement, seed=5, trial=trial)[0].timeline[:, lost_at].sum()
            for trial in range(trials)
        ]
    )
    seen = float((lost > 0).mean())
    found = simulate_durability(scenario, trials=400_000, seed=5)
    expected, _, _ = estimate_durability(found).loss_per_trial
    assert seen * trials > 50
    assert abs(seen - expected) < 3 * sqrt(expected * (1 - expected) / trials)
    groups = found.total("groups_lost") / 400_000
    assert abs(lost.mean() - groups) < 3 * sqrt(lost.var() / trials)


def test_the_tables_are_the_same_bits_for_any_number_of_workers(tmp_path: Path) -> None:
    scenario = rough(afr=0.5, write=1e7, read=1e7, detection=600.0)
    one = simulate_durability(scenario, trials=90_000, seed=9)
    two = simulate_durability(scenario, trials=90_000, seed=9, workers=2)
    assert len(one.blocks) > 1
    assert one.blocks.equals(two.blocks)
    assert one.losses.equals(two.losses)
    assert one.total("trials_with_loss") > 0
    assert one.total("trials") == 90_000
    one.write(tmp_path)
    again = DurabilityResults.read(tmp_path)
    assert again.blocks.equals(one.blocks)
    assert estimate_durability(again) == estimate_durability(one)
    assert (again.scenario, again.options) == (one.scenario, one.options)
    other = simulate_durability(scenario, trials=90_000, seed=10)
    assert not other.blocks.equals(one.blocks)


def test_a_run_with_too_little_room_gets_more() -> None:
    scenario = rough(per_node=8, groups=250, afr=0.99, detection=3e6, write=1e5, years=0.3)
    made = OverlapRun(scenario, OverlapOptions(), seed=1)
    short = build_missing(made.model.rules, 64)
    arrivals, log = build_arrivals(made.population), np.zeros(10_000, LOSS)
    status = run_block(
        made.population, made.model.rules, made.model.layout, arrivals, short,
        1, 0, 1, log, np.zeros(0, LOSS),
    )  # fmt: skip
    assert status == NEEDS_ROOM
    counter, log = made.block(0, 1)
    assert counter[GROUPS_LOST] == len(log) > 100


def test_trials_of_several_years_count_years() -> None:
    scenario = rough(years=3.5, afr=0.8, write=2e6)
    results = simulate_durability(scenario, trials=2_000, seed=2)
    found = estimate_durability(results)
    assert found.periods == 3 * 2_000
    assert results.total("trials_with_loss") < found.periods_with_loss
    assert 0 < found.lower < found.loss_per_year < found.upper < 1


def test_what_loses_nothing_is_left_out_by_name() -> None:
    results = simulate_durability(load_scenario("tiny"), trials=10)
    assert results.left_out == ("outages of nodes (2.79 per node and year), which lose nothing",)
    assert results.scenario.node.outages_per_year == 0


@pytest.mark.parametrize(
    ("options", "changes", "names"),
    [
        (
            OverlapOptions(),
            {"more": '[[incident]]\nname="p"\nlevel="rack"\nper_year=1.0\ndeath_share=0.25'},
            ["incident.0.death_share", "0.25", "set 0"],
        ),
        *[
            (OverlapOptions(), {"more": more}, [field, value, "exastore sim run"])
            for more, field, value in [
                ("[spares]\nreorder_s = 5e6", "spares.reorder_s", "5000000.0"),
                ("[spares]\nreorder_s = 1.0\nper_zone = 3", "spares.per_zone", "3"),
                ("[latent]\nonset_per_year = 0.03", "latent.onset_per_year", "0.03"),
                ("[foreground]\nreads_per_s = 2.0", "foreground.reads_per_s", "2.0"),
                ("[balance]\nevery_s = 86400", "balance.every_s", "86400"),
            ]
        ],
        *[
            (OverlapOptions(), {"detection": f"60.0\n{links}"}, [field, value, "exastore sim run"])
            for links, field, value in [
                ("lazy_redundancy = 1", "repair.lazy_redundancy", "1"),
                ("fill_limit = 0.9", "repair.fill_limit", "0.9"),
                (
                    'node_bandwidth_bytes_per_s = 1e6\ntransfer = "pipelined"',
                    "repair.transfer",
                    "pipelined",
                ),
            ]
        ],
        (OverlapOptions("clustered"), {"racks": 7, "per_node": 5}, ["devices_per_node", "35"]),
        (OverlapOptions("unlimited", "group"), {}, ["clock", "group", "priority"]),
        (OverlapOptions("unlimited"), {"code": "lrc-4-2-1"}, ["code", "lrc-4-2-1", "placed"]),
    ],
)  # fmt: skip
def test_what_is_not_covered_is_refused_with_field_value_and_remedy(
    options: OverlapOptions, changes: dict[str, float | str], names: list[str]
) -> None:
    with pytest.raises(ScenarioError) as caught:
        simulate_durability(rough(**changes), trials=1, options=options)
    for name in names:
        assert name in str(caught.value)


def test_a_folder_without_such_results_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ResultsError, match="holds no results of `sim durability`"):
        DurabilityResults.read(tmp_path)


@pytest.mark.parametrize(
    ("options", "changes"),
    [
        (OverlapOptions(), {"afr": 0.4}),
        (OverlapOptions(), {"code": "rs-2-1", "afr": 0.1}),
        (OverlapOptions(), {"code": "lrc-4-2-1", "afr": 0.5}),
        (OverlapOptions("placed", "device"), {"afr": 0.4, "write": 2e7}),
        (OverlapOptions("clustered", "group"), {"afr": 0.5}),
    ],
    ids=str,
)
def test_importance_sampling_finds_what_plain_trials_find(
    options: OverlapOptions, changes: dict[str, float | str]
) -> None:
    scenario = rough(**({"write": 1e7, "read": 1e7, "detection": 3_600.0} | changes))
    trials = 400_000
    plain = simulate_durability(scenario, trials=trials, options=options, seed=1)
    found = estimate_rare_loss(scenario, excursions=40_000, options=options, seed=1)
    lost = plain.total("trials_with_loss")
    assert lost > 25
    assert found.relative_error < 0.03
    error = sqrt(lost) / trials + found.relative_error * found.loss_per_year
    assert abs(lost / trials - found.loss_per_year) < 3 * error
    assert found.lower < found.loss_per_year < found.upper
    assert found.loss_per_year <= found.groups_lost_per_year * 1.05
    assert found == estimate_rare_loss(scenario, excursions=40_000, options=options, seed=1)


def test_importance_sampling_finds_fifteen_nines_where_the_chain_does() -> None:
    # Rebuilds that nothing but their targets limits, so that the chain's assumptions hold.
    scenario = rough(
        code="rs-4-2", racks=40, per_node=5, groups=600, afr=0.002, read=1e9, write=1e7,
        detection=60.0,
    )  # fmt: skip
    found = estimate_rare_loss(scenario, excursions=60_000, seed=3)
    # Each chunk comes back after a fixed time: the window of the chain, to first order.
    expected = chain_estimate(scenario, mean_missing_s=0.0).pgs_lost_per_year
    assert expected < 1e-12
    assert found.groups_lost_per_year == pytest.approx(
        expected, rel=0.02, abs=3 * found.groups_lost_error
    )


@pytest.mark.parametrize(
    ("options", "changes", "name"),
    [
        (OverlapOptions("unlimited"), {}, "placed or clustered"),
        (OverlapOptions(), {"shape": 0.7}, "life_shape = 1"),
        (OverlapOptions(), {"afr": 0.0}, "rate above 0"),
        (OverlapOptions(), {"detection": 1e7}, "leave --rare out"),
    ],
)
def test_what_importance_sampling_does_not_cover_is_refused(
    options: OverlapOptions, changes: dict[str, float | str], name: str
) -> None:
    with pytest.raises(ScenarioError, match=name):
        estimate_rare_loss(rough(**changes), excursions=1, options=options)
