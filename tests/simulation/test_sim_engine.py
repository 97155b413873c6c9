"""The engine against its plain twin, against itself, and against arithmetic."""

import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from exastore.sim import (
    Scenario,
    ScenarioError,
    durability,
    load_scenario,
    parse_scenario,
    place,
    run,
)
from exastore.sim._reference import ReferenceTrial
from exastore.sim.build import (
    build_model,
    build_state,
    load_state,
    save_state,
    validate_state,
    with_more_room,
)
from exastore.sim.codes import engine_code
from exastore.sim.engine import DONE, NEEDS_ROOM, NO_LIMIT, run_until
from exastore.sim.heap import ENTITY_BITS
from exastore.sim.physics import build_physics
from exastore.sim.run import Placement, simulate
from exastore.sim.state import (
    CHUNK_RUNS_RETURNED,
    LOG_COUNT,
    LOSS_COUNT,
    MISSING_SLOTS,
    TIMELINE_COLUMNS,
    UNAVAILABLE_PGS,
    State,
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
{links}
[run]
years = {years}
{more}
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
    "links": "",
    "more": "",
}


def rough(**changes: float | str) -> Scenario:
    """A small cluster in trouble."""
    return parse_scenario(ROUGH.format(**(DEFAULTS | changes)))


def end_state(
    scenario: Scenario, placement: Placement, *, seed: int, trial: int = 0, log_events: int = 0
) -> State:
    model = build_model(scenario, build_physics(scenario), seed=seed, trial=trial)
    state, _, _ = simulate(scenario, placement, seed=seed, trial=trial, log_events=log_events)
    validate_state(model, state, scenario.code)
    return state


def column(state: State, name: str) -> float:
    return float(state.timeline[:, TIMELINE_COLUMNS.index(name)].sum())


MODELS = """
[[model]]
share = 2
afr_per_year = 0.3
life_shape = 1.13
age_max_years = 4.0
[[model]]
hazard_from_years = [0.0, 0.25, 3.0]
hazard_afr_per_year = [0.6, 0.1, 0.5]
age_min_years = 0.1
age_max_years = 5.0
[[model]]
share = 0.5
afr_per_year = 0.9
"""
INCIDENTS = """
[[incident]]
name = "rack"
level = "rack"
per_year = 2.0
durations_s = [600.0, 4000.0, 90000.0]
duration_shares = [0.6, 0.3, 0.1]
duration_law = "fixed"
[[incident]]
name = "power"
level = "power"
racks_per_domain = 3
per_year = 0.5
duration_s = 20000.0
hit_share = 0.8
death_share = 0.05
gives_up = false
[[incident]]
name = "burst"
level = "cluster"
per_year = 4.0
duration_s = 9000.0
burst_min = 2
burst_max = 6
rack_affinity = 0.7
[[incident]]
name = "upgrades"
level = "rack"
every_years = 0.5
duration_s = 1200.0
duration_law = "fixed"
[[incident]]
name = "operators"
level = "node"
per_year = 0.1
duration_s = 100.0
death_share = 0.5
"""
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
    "late-returns": {"outage_mean": 60_000.0, "outages": 8.0, "write": 3e6, "afr": 0.2},
    "narrow-links": {
        "afr": 0.8,
        "links": "node_bandwidth_bytes_per_s = 6e6\nrack_bandwidth_bytes_per_s = 9e6\n"
        "zone_bandwidth_bytes_per_s = 20e6",
    },
    "models": {"more": MODELS, "years": 4.0, "outages": 5.0},
    "incidents": {"more": INCIDENTS, "afr": 0.2, "outages": 5.0, "write": 4e6, "racks": 10},
    "lrc-and-incidents": {
        "more": INCIDENTS,
        "code": "lrc-4-2-1",
        "racks": 10,
        "write": 2e6,
        "years": 2.0,
    },
}


def both(scenario: Scenario, *, seed: int, trial: int) -> tuple[State, ReferenceTrial]:
    """The ends of a trial by the engine and by its twin, which are equal event for event."""
    placement = place(scenario, seed=seed)
    state = end_state(scenario, placement, seed=seed, trial=trial, log_events=200_000)
    model = build_model(scenario, build_physics(scenario), seed=seed, trial=trial)
    twin = ReferenceTrial(
        scenario, model, placement.columns, placement.topology, placement.pg_devices
    )
    twin.run()
    logged = state.log[: int(state.counter[LOG_COUNT])]
    mask = (1 << ENTITY_BITS) - 1
    events = [
        (float(event["time_s"]), int(event["code"]) >> ENTITY_BITS, int(event["code"]) & mask)
        for event in logged
    ]
    assert events == twin.events
    assert (state.pg_devices == twin.rows).all()
    assert (state.device_state == twin.state).all()
    losses = state.losses[: int(state.counter[LOSS_COUNT])]
    found = zip(losses["time_s"].tolist(), losses["code"].tolist(), strict=True)
    assert sorted(found) == sorted(twin.losses)
    for name, total in twin.totals.items():
        assert column(state, name) == pytest.approx(total, rel=1e-9), name
    return state, twin


@pytest.mark.parametrize("case", CASES)
def test_engine_equals_its_plain_twin_event_for_event(case: str) -> None:
    state, twin = both(rough(**CASES[case]), seed=5, trial=2)
    assert len(twin.events) > 500
    if case in {"slow-repair-loses-data", "lrc-loses-data"}:
        assert twin.losses
    if case == "late-returns":
        assert state.counter[CHUNK_RUNS_RETURNED] > 100


@settings(max_examples=4, deadline=None, derandomize=True)
@given(
    afr=st.floats(0.0, 0.95),
    outages=st.floats(0.0, 40.0),
    outage_mean=st.floats(100.0, 1e5),
    write=st.floats(1e6, 5e7),
    detection=st.floats(0.0, 5e4),
    replacement=st.floats(0.0, 5e5),
    racks=st.integers(6, 12),
    more=st.sampled_from(["", INCIDENTS, MODELS, MODELS + INCIDENTS]),
    trial=st.integers(0, 2**30),
)
def test_engine_equals_its_twin_in_any_scenario(trial: int, **changes: float | str) -> None:
    both(rough(years=0.1, **changes), seed=trial % 97, trial=trial)


def test_a_trace_is_played_back_as_it_is(tmp_path: Path) -> None:
    rows = [("2020-01-01", f"S{i}", 0) for i in range(48)] + [
        ("2020-01-02", "S5", 1),
        ("2020-03-01", "S7", 1),
        ("2020-03-01", "S900", 1),
        ("2021-01-01", "S1", 0),
    ]
    text = "date,serial_number,model,capacity_bytes,failure\n" + "\n".join(
        f"{day},{serial},M,1,{failure}" for day, serial, failure in rows
    )
    (tmp_path / "trace.csv").write_text(text + "\n", "utf-8")
    scenario = rough(outages=0.0, years=1.0)
    device = replace(scenario.device, trace=str(tmp_path / "trace.csv"))
    _, twin = both(replace(scenario, device=device), seed=1, trial=0)
    failed = [(time / 86_400, device) for time, kind, device in twin.events if kind == 6]
    assert failed == [(2.0, 5), (61.0, 7)]


def test_a_trace_without_its_columns_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "trace.csv").write_text("day,failed\n1,1\n", "utf-8")
    scenario = rough()
    device = replace(scenario.device, trace=str(tmp_path / "trace.csv"))
    with pytest.raises(ScenarioError, match=r"device\.trace.*date, serial_number, failure"):
        run(replace(scenario, device=device), trials=1)


def test_a_run_that_does_not_fit_into_memory_is_refused_before_any_work() -> None:
    scenario = load_scenario("100eib")
    with pytest.raises(ScenarioError, match=r"placement\.pg_count: 72000000 PGs.*fewer PGs"):
        run(scenario, trials=1000, workers=1000)


def test_losses_need_data_that_is_gone_not_nodes_that_are_given_up() -> None:
    # All racks but two are away for a day: everything is unavailable, and nothing is lost.
    outage = """
[[incident]]
name = "site"
level = "zone"
every_years = 0.4
duration_s = 86400.0
duration_law = "fixed"
hit_share = 0.6
"""
    trial = run(rough(afr=0.0, outages=0.0, years=1.0, more=outage), trials=1, seed=1)
    (row,) = trial.trials.to_pylist()
    assert row["unavailable_pg_hours"] > 1000 and row["pgs_lost"] == 0


@pytest.mark.parametrize("case", ["lrc", "lrc-loses-data", "many-failures", "incidents"])
def test_the_patterns_of_losses_are_judged_right_at_every_step(case: str) -> None:
    changes: dict[str, float | str] = {"outages": 150.0, "outage_mean": 20_000.0, "years": 0.5}
    scenario = rough(**(CASES[case] | changes))
    placement = place(scenario, seed=5)
    physics = build_physics(scenario)
    model = build_model(scenario, physics, seed=5, trial=0)
    state = build_state(model, physics, placement.topology, placement.pg_devices)
    code = engine_code(scenario.code)
    horizon_s = float(model["horizon_s"])
    most, checks, done = 0, 0, -1
    while done != DONE:
        # After every event at first, then every so often.
        limit = 1 if checks < 150 else 20_000
        done = run_until(placement.columns, code, physics, model, state, horizon_s, limit)
        if done == NEEDS_ROOM:
            state = with_more_room(model, state)
        validate_state(model, state, scenario.code)
        most = max(most, int(state.counter[UNAVAILABLE_PGS]))
        checks += 1
    assert most > 0 and column(state, "unavailable_episodes") > 5


def test_a_run_goes_on_from_a_checkpoint_to_the_same_bits(tmp_path: Path) -> None:
    scenario = rough(more=INCIDENTS)
    placement = place(scenario, seed=5)
    physics = build_physics(scenario)
    model = build_model(scenario, physics, seed=5, trial=0)
    horizon_s = float(model["horizon_s"])
    whole = end_state(scenario, placement, seed=5)
    state = build_state(model, physics, placement.topology, placement.pg_devices)
    for until_s in (horizon_s / 3, horizon_s):
        while (
            run_until(placement.columns, None, physics, model, state, until_s, NO_LIMIT)
            == NEEDS_ROOM
        ):
            state = with_more_room(model, state)
        save_state(state, tmp_path / "state.npz")
        state = load_state(tmp_path / "state.npz")
    assert (state.pg_devices == whole.pg_devices).all()
    assert np.allclose(state.timeline, whole.timeline, rtol=1e-12)


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
