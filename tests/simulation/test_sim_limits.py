"""Spares, room, lazy and pipelined repair: equal to the twin, and to arithmetic."""

from importlib import import_module

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tests.simulation.test_sim_change import GROWTH
from tests.simulation.test_sim_engine import (
    DEFAULTS,
    INCIDENTS,
    MODELS,
    ROUGH,
    both,
    column,
    rough,
)
from tests.simulation.test_sim_latent import BAD

from exastore.sim import ScenarioError, parse_scenario, run
from exastore.sim.scenario import Scenario
from exastore.sim.state import EVENTS, Records, State

NARROW = (
    "node_bandwidth_bytes_per_s = 6e6\nrack_bandwidth_bytes_per_s = 9e6\n"
    "zone_bandwidth_bytes_per_s = 20e6\n"
)
SPARES = "[spares]\nper_zone = 2\nreorder_s = 5e6\n"
CASES: dict[str, dict[str, float | str]] = {
    "spares": {"more": SPARES, "afr": 0.8},
    "no-stock": {"more": SPARES.replace("2", "0"), "afr": 0.5},
    "full": {"links": "fill_limit = 0.32", "more": SPARES, "afr": 0.6, "racks": 8},
    "lazy": {"links": "lazy_redundancy = 1", "afr": 0.8, "outages": 8.0, "outage_mean": 60_000.0},
    "lazy-lrc": {
        "code": "lrc-4-2-1",
        "racks": 10,
        "links": "lazy_redundancy = 0",
        "more": INCIDENTS,
        "write": 6e6,
        "afr": 0.3,
        "outages": 3.0,
        "outage_mean": 20_000.0,
        "years": 0.5,
    },
    "pipelined": {"links": NARROW + 'transfer = "pipelined"', "afr": 0.8},
    "all": {
        "links": NARROW + 'transfer = "pipelined"\nlazy_redundancy = 0\nfill_limit = 0.35',
        "more": SPARES + INCIDENTS,
        "afr": 0.5,
        "outages": 5.0,
    },
}


@pytest.mark.parametrize("case", CASES)
def test_limits_of_repair_equal_those_of_the_twin_event_for_event(case: str) -> None:
    state, twin = both(rough(**CASES[case]), seed=6, trial=1)
    assert len(twin.events) > 200
    assert column(state, "stuck_slot_s") == pytest.approx(twin.totals["stuck_slot_s"])
    if case == "full":
        assert column(state, "stuck_slot_s") > 0


FOREGROUND = "[foreground]\nreads_per_s = 5.0\nwrites_per_s = 1.0\n"
OBJECTS = "[objects]\nsizes_bytes = [1e5, 1e9]\nshares = [5.0, 1.0]\n"


@st.composite
def any_scenario(draw: st.DrawFn) -> Scenario:
    """A cluster in trouble with any of the features at once."""
    grows = draw(st.booleans())
    repair = draw(st.sampled_from(["", NARROW, NARROW + 'transfer = "pipelined"\n']))
    repair += draw(st.sampled_from(["", "lazy_redundancy = 0\n", "lazy_redundancy = 1\n"]))
    if not grows:
        repair += draw(st.sampled_from(["", "fill_limit = 0.34\n"]))
    more = GROWTH if grows else ""
    for section in (SPARES, BAD, INCIDENTS, MODELS, FOREGROUND, OBJECTS):
        more += section if draw(st.booleans()) else ""
    try:
        return rough(
            code=draw(st.sampled_from(["rs-4-2", "rs-4-2", "lrc-4-2-1"])),
            racks=draw(st.integers(8, 11)),
            afr=draw(st.floats(0.0, 0.9)),
            outages=draw(st.floats(0.0, 30.0)),
            outage_mean=draw(st.sampled_from([600.0, 60_000.0])),
            write=draw(st.floats(1e6, 3e7)),
            years=0.4 if grows else 0.15,
            links=repair,
            more=more,
        )
    except ScenarioError:
        assume(False)
        raise


@settings(max_examples=8, deadline=None, derandomize=True)
@given(scenario=any_scenario(), trial=st.integers(0, 2**30))
def test_engine_equals_its_twin_with_any_features_at_once(scenario: Scenario, trial: int) -> None:
    both(scenario, seed=trial % 89, trial=trial)


@pytest.mark.parametrize("case", ["all", "full", "lazy"])
def test_a_checked_run_finds_nothing_and_gives_the_same_tables(case: str) -> None:
    scenario = rough(**(CASES[case] | {"years": 0.12}))
    checked, plain = (run(scenario, trials=1, seed=5, checked=is_it) for is_it in (True, False))
    (row,) = checked.trials.to_pylist()
    assert row == plain.trials.to_pylist()[0]
    assert row["events"] > 100


def test_a_checked_run_names_the_event_after_which_something_is_wrong(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def never(model: Records, state: State, code: str) -> None:
        assert int(state.counter[EVENTS]) < 7, "a count is off"

    monkeypatch.setattr(import_module("exastore.sim.run"), "validate_state", never)
    with pytest.raises(AssertionError, match="a count is off") as caught:
        run(rough(years=0.1), trials=1, seed=5, checked=True)
    assert caught.value.__notes__[0].startswith("after event 7 of trial 0, seed 5")


def first_row(**changes: float | str) -> dict[str, float]:
    results = run(rough(**({"outages": 0.0, "afr": 0.5} | changes)), trials=1, seed=3)
    (row,) = results.trials.to_pylist()
    return dict(row)


def test_without_spares_every_replacement_waits_for_its_delivery() -> None:
    row = first_row(more="[spares]\nreorder_s = 7200.0\n")
    assert row["spare_waits"] > 20
    assert row["spare_wait_hours"] == pytest.approx(2.0 * row["spare_waits"])


def test_a_stock_that_is_large_enough_changes_nothing() -> None:
    plain, stocked = first_row(), first_row(more="[spares]\nper_zone = 500\nreorder_s = 5e6\n")
    assert stocked["spare_waits"] == 0
    assert stocked == plain


def test_lazy_repair_waits_for_further_losses() -> None:
    eager, lazy = first_row(afr=0.3), first_row(afr=0.3, links="lazy_redundancy = 0")
    assert lazy["degraded_pg_hours"] > 10 * eager["degraded_pg_hours"]
    assert lazy["chunk_runs_rebuilt"] < eager["chunk_runs_rebuilt"]
    assert lazy["max_missing"] >= 2


def test_a_chain_of_partial_sums_is_k_times_as_fast_into_a_narrow_target() -> None:
    # One link per node of 1 MB/s, devices at 20 MB/s: whole chunks share the target's link.
    narrow, days = "node_bandwidth_bytes_per_s = 1e6\n", {"afr": 0.02, "years": 4.0, "racks": 12}
    whole = first_row(links=narrow, **days)
    chain = first_row(links=narrow + 'transfer = "pipelined"', **days)
    assert whole["rebuilds"] > 10
    assert chain["mean_missing_s"] < whole["mean_missing_s"]


def bad(links: str = "", more: str = "", code: str = "rs-4-2") -> str:
    text = ROUGH.format(**(DEFAULTS | {"links": links, "more": more, "code": code}))
    with pytest.raises(ScenarioError) as caught:
        _: Scenario = parse_scenario(text)
    return str(caught.value)


@pytest.mark.parametrize(
    ("links", "more", "code", "message"),
    [
        ('transfer = "pipelined"', "", "rs-4-2", "repair.transfer"),
        (NARROW + 'transfer = "pipelined"', "", "clay-4-2-5", "no partial sums"),
        ("lazy_redundancy = 2", "", "rs-4-2", "never has more than 2; use 0 to 1"),
        ("fill_limit = 0.1", "", "rs-4-2", "give a larger limit"),
        ("", "[spares]\nper_zone = 3", "rs-4-2", "spares.reorder_s"),
        ("", "[latent]\nread_error_per_bit = 1e-6", "rs-4-2", "latent.read_error_per_bit"),
    ],
)
def test_limits_that_cannot_be_are_named(links: str, more: str, code: str, message: str) -> None:
    assert message in bad(links, more, code)
