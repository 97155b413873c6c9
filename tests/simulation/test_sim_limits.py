"""Spares, room, lazy and pipelined repair: equal to the twin, and to arithmetic."""

import pytest
from tests.simulation.test_sim_engine import DEFAULTS, INCIDENTS, ROUGH, both, column, rough

from exastore.sim import ScenarioError, parse_scenario, run
from exastore.sim.scenario import Scenario

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
