"""The engine against its plain twin, against itself, and against arithmetic."""

import hashlib

import numpy as np
import pytest

from exastore.sim import Scenario, durability, parse_scenario, place, run
from exastore.sim._reference import ReferenceTrial
from exastore.sim.codes import engine_code
from exastore.sim.engine import NEEDS_ROOM, run_until
from exastore.sim.heap import ENTITY_BITS
from exastore.sim.run import Placement, simulate
from exastore.sim.state import (
    LOG_COUNT,
    LOSS_COUNT,
    MISSING_SLOTS,
    TIMELINE_COLUMNS,
    UNAVAILABLE_PGS,
    State,
    build_model,
    build_state,
    device_lists,
    validate_state,
    with_more_room,
)

ROUGH = """
name = "rough"
code = "{code}"
[cluster]
racks_per_zone = {racks}
nodes_per_rack = 2
devices_per_node = 3
[device]
capacity_bytes = 4_000_000_000_000
afr_per_year = {afr}
life_shape = {shape}
replacement_delay_s = {replacement}
[node]
outages_per_year = {outages}
outage_mean_s = {outage_mean}
[placement]
pg_count = 160
domain = "rack"
[data]
user_bytes = 30_000_000_000_000
[repair]
detection_delay_s = {detection}
write_bandwidth_bytes_per_s = {write}
read_bandwidth_bytes_per_s = {read}
[run]
years = {years}
"""
DEFAULTS: dict[str, float | str] = {
    "code": "rs-4-2",
    "racks": 8,
    "afr": 0.5,
    "shape": 1.0,
    "replacement": 50_000.0,
    "outages": 30.0,
    "outage_mean": 1200.0,
    "detection": 300.0,
    "write": 20e6,
    "read": 20e6,
    "years": 3.0,
}


def rough(**changes: float | str) -> Scenario:
    """A small cluster in trouble."""
    return parse_scenario(ROUGH.format(**(DEFAULTS | changes)))


def end_state(
    scenario: Scenario, placement: Placement, *, seed: int, trial: int = 0, log_events: int = 0
) -> State:
    model = build_model(scenario, seed=seed, trial=trial)
    device_count = placement.topology.device_count
    slots, count = device_lists(placement.pg_devices, device_count, int(model["shift"]))
    state = simulate(
        scenario, placement, slots, count, seed=seed, trial=trial, log_events=log_events
    )
    validate_state(model, state, scenario.code)
    return state


def column(state: State, name: str) -> float:
    return float(state.timeline[:, TIMELINE_COLUMNS.index(name)].sum())


CASES: dict[str, dict[str, float | str]] = {
    "many-failures": {},
    "no-spare-rack": {"racks": 6, "afr": 0.9},
    "slow-repair-loses-data": {"racks": 6, "afr": 0.97, "write": 1e6, "read": 3e6, "years": 2.0},
    "long-outages-give-nodes-up": {"outage_mean": 40_000.0, "afr": 0.3, "outages": 20.0},
    "wear-out": {"shape": 2.5, "afr": 0.6},
    "contended-reads": {"read": 5e6, "afr": 0.8},
    "no-delays": {"detection": 0.0, "replacement": 0.0, "afr": 0.9, "racks": 6},
    "lrc": {"code": "lrc-6-2-2", "racks": 11, "afr": 0.9, "write": 2e6, "read": 4e6, "years": 2.0},
    "lrc-loses-data": {"code": "lrc-4-2-1", "racks": 7, "afr": 0.95, "write": 1e6, "years": 2.0},
    "clay": {"code": "clay-4-2-5", "afr": 0.8, "read": 5e6},
}


@pytest.mark.parametrize("case", CASES)
def test_engine_equals_its_plain_twin_event_for_event(case: str) -> None:
    scenario = rough(**CASES[case])
    placement = place(scenario, seed=5)
    state = end_state(scenario, placement, seed=5, trial=2, log_events=200_000)
    model = build_model(scenario, seed=5, trial=2)
    twin = ReferenceTrial(
        model, placement.columns, placement.topology, placement.pg_devices, scenario.code
    )
    twin.run()

    logged = state.log[: int(state.counter[LOG_COUNT])]
    mask = (1 << ENTITY_BITS) - 1
    events = [
        (float(event["time_s"]), int(event["code"]) >> ENTITY_BITS, int(event["code"]) & mask)
        for event in logged
    ]
    assert len(events) > 500
    assert events == twin.events
    assert (state.pg_devices == twin.rows).all()
    assert (state.device_state == twin.state).all()
    losses = state.losses[: int(state.counter[LOSS_COUNT])]
    assert list(zip(losses["time_s"].tolist(), losses["code"].tolist(), strict=True)) == twin.losses
    for name, total in twin.totals.items():
        assert column(state, name) == pytest.approx(total, rel=1e-9), name
    if case in {"slow-repair-loses-data", "lrc-loses-data"}:
        assert twin.losses


@pytest.mark.parametrize("case", ["lrc", "lrc-loses-data"])
def test_the_patterns_of_losses_are_judged_right_at_every_step(case: str) -> None:
    scenario = rough(**(CASES[case] | {"outages": 150.0, "outage_mean": 20_000.0}))
    placement = place(scenario, seed=5)
    model = build_model(scenario, seed=5, trial=0)
    shift, device_count = int(model["shift"]), placement.topology.device_count
    slots, count = device_lists(placement.pg_devices, device_count, shift)
    state = build_state(model, placement.topology, placement.pg_devices, slots, count)
    code = engine_code(scenario.code)
    most = 0
    for until_s in np.linspace(0.0, float(model["horizon_s"]), 400)[1:]:
        while run_until(placement.columns, code, model, state, until_s) == NEEDS_ROOM:
            state = with_more_room(state)
        validate_state(model, state, scenario.code)
        most = max(most, int(state.counter[UNAVAILABLE_PGS]))
    assert most > 3 and column(state, "unavailable_episodes") > 20


def log_hash(seed: int, trial: int) -> str:
    scenario = rough()
    state = end_state(
        scenario, place(scenario, seed=seed), seed=seed, trial=trial, log_events=10**5
    )
    return hashlib.sha256(state.log.tobytes() + state.timeline.tobytes()).hexdigest()


def test_replay_is_identical() -> None:
    assert log_hash(3, 1) == log_hash(3, 1)


def test_another_seed_or_trial_is_another_history() -> None:
    assert len({log_hash(3, 1), log_hash(3, 2), log_hash(4, 1)}) == 3


def test_tables_do_not_depend_on_the_number_of_workers() -> None:
    scenario = rough(afr=0.8)
    one = run(scenario, trials=5, seed=9, workers=1)
    two = run(scenario, trials=5, seed=9, workers=2)
    for name in ("trials", "timeline", "degraded_time", "redundancy", "balance", "losses"):
        assert getattr(one, name).equals(getattr(two, name)), name


def test_no_failures_mean_no_repair() -> None:
    results = run(rough(afr=0.0, outages=0.0), trials=1, seed=1)
    trial = results.trials.to_pylist()[0]
    assert trial["events"] == trial["rebuilds"] == trial["device_failures"] == 0
    assert trial["degraded_pg_hours"] == trial["unreadable_pg_hours"] == 0
    assert durability(results).chain.loss_per_year == 0


def test_outages_below_the_out_timer_repair_nothing() -> None:
    trial = run(rough(afr=0.0, outage_mean=20.0), trials=1, seed=1).trials.to_pylist()[0]
    assert trial["node_outages"] > 1000
    assert trial["node_outs"] == trial["rebuilds"] == trial["abandoned_bytes"] == 0
    assert trial["unreadable_pg_hours"] > 0


def test_nodes_that_stay_away_are_rebuilt_elsewhere_within_the_rule() -> None:
    results = run(rough(afr=0.0, outage_mean=2e5, outages=2.0), trials=2, seed=1)
    for trial in results.trials.to_pylist():
        assert trial["rebuilds"] > 100
        assert trial["violations"] == 0
        assert trial["rebuilds"] == trial["chunk_runs_rebuilt"] <= trial["chunk_runs_lost"]


def test_a_healthy_end_misses_nothing() -> None:
    scenario = rough(afr=0.2, years=1.0, outages=0.0)
    state = end_state(scenario, place(scenario, seed=2), seed=2)
    waiting = int(state.counter[MISSING_SLOTS])
    assert column(state, "chunk_runs_lost") - column(state, "rebuilds") == waiting


def test_repair_of_an_lrc_and_of_clay_reads_what_their_plans_say() -> None:
    # Few failures, so that nearly all rebuilds are of one loss: 3 chunks in 8 of 10 slots of the
    # LRC and 6 for its global parities; 5 halves of Clay.
    calm: dict[str, float | str] = {"afr": 0.02, "outages": 0.0, "racks": 11, "years": 8.0}
    for code, chunks in (("lrc-6-2-2", 3.6), ("clay-4-2-5", 2.5), ("rs-6-4", 6.0)):
        trial = run(rough(code=code, **calm), trials=1, seed=3).trials.to_pylist()[0]
        assert trial["rebuilds"] > 100
        assert trial["read_bytes"] / trial["rebuilt_bytes"] == pytest.approx(chunks, rel=0.06)


LONELY = """
name = "lonely"
code = "rep-2"
[cluster]
racks_per_zone = 400
nodes_per_rack = 1
devices_per_node = 1
[device]
capacity_bytes = 1_000_000_000_000
afr_per_year = 0.5
replacement_delay_s = 0
[node]
outages_per_year = 0
[placement]
pg_count = 200
[data]
user_bytes = 8_640_000_000_000
[repair]
detection_delay_s = 0
write_bandwidth_bytes_per_s = 50_000
read_bandwidth_bytes_per_s = 1_000_000_000
[run]
years = 4
"""


def test_losses_come_at_the_analytic_rate_when_devices_fail_all_the_time() -> None:
    # Two copies: loss of a PG at 2 * rate**2 * (mean time to rebuild), whatever the law of repair.
    scenario = parse_scenario(LONELY)
    results = run(scenario, trials=40, seed=11, workers=2)
    found = durability(results)
    observed = found.pgs_lost
    expected = found.chain.pgs_lost_per_year * 40 * 4
    assert expected > 300
    # PGs share devices, so counts spread wider than Poisson's: twice its deviation, thrice.
    assert abs(observed - expected) < 6 * np.sqrt(expected) + 0.05 * expected
