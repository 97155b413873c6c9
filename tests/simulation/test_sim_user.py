"""Users' own functions: in the engine and its twin, and what is said of wrong ones."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from tests.simulation.test_sim_change import GROWTH
from tests.simulation.test_sim_engine import both, column, rough

from exastore.sim import Decision, DecisionError, ScenarioError, place, register, run
from exastore.sim.user import uniform


def exponential_life(params: Any, stream: int, age_s: float) -> Any:
    return -params[0] * math.log(uniform(stream, 0))


def worn(params: Any, stream: int, age_s: float) -> Any:
    return params[0] * uniform(stream, 1) / (1.0 + age_s / params[1])


def by_group(remaining_redundancy: int, pg: int, slot: int) -> int:
    return -(pg // 8)


def throttle(devices: Any, facts: Any) -> Decision:
    slots = devices["slots"].to_numpy()
    fullest = int(slots.argmax())
    assert devices.num_rows == len(slots) and facts.slot_bytes > 0
    emptiest = int(np.where(devices["weight"].to_numpy() > 0, slots, 10**6).argmin())
    moves = {"pg": [facts.missing_runs % 160], "slot": [fullest % 6], "target_device": [emptiest]}
    return Decision(
        write_bandwidth_bytes_per_s=4e6 if facts.missing_runs > 10 else 2e7,
        moves=pa.table(moves),
        wants_plan=facts.degraded_pgs > 40,
    )


def model_of(function: Any, *params: float) -> str:
    return f'[[model]]\nlife = "{register(function)}"\nlife_params = {list(params)}\n'


CASES: dict[str, dict[str, float | str]] = {
    "life": {"more": model_of(worn, 2e8, 1e7) + "age_max_years = 4.0"},
    "two-models": {"more": model_of(exponential_life, 3e7) + "[[model]]\nafr_per_year = 0.4"},
    "priority": {"links": f'priority = "{register(by_group)}"', "write": 2e6, "afr": 0.8},
    "decisions": {
        "more": GROWTH + f'[decisions]\nfunction = "{register(throttle)}"\nevery_s = 300000.0',
        "years": 1.0,
    },
}


@pytest.mark.parametrize("case", CASES)
def test_own_functions_do_the_same_in_the_engine_and_its_plain_twin(case: str) -> None:
    state, twin = both(rough(**CASES[case]), seed=3, trial=1)
    assert len(twin.events) > 500
    assert column(state, "device_failures") > 10


def test_a_law_of_life_of_ones_own_fails_as_often_as_it_says() -> None:
    # 48 devices of mean life 3e7 s, replaced after half a day: 48 * 4 years / 3e7 s.
    scenario = rough(more=model_of(exponential_life, 3e7), outages=0.0, years=4.0)
    failures = run(scenario, trials=8, seed=1).trials["device_failures"].to_numpy()
    expected = 8 * 48 * 4 * 365.25 * 86400 / (3e7 + 50300)
    assert abs(failures.sum() - expected) < 4 * math.sqrt(expected)


def test_a_policy_of_ones_own_places_and_is_checked() -> None:
    def good(columns: Any, device_state: Any, seed: int, rows: Any) -> None:
        first = columns.domain_device_start
        for pg in range(len(rows)):
            for slot in range(rows.shape[1]):
                rows[pg, slot] = columns.domain_device[first[(pg + slot) % 8] + pg % 6]

    def bad(columns: Any, device_state: Any, seed: int, rows: Any) -> None:
        rows[:] = 0

    def with_policy(function: Any) -> Any:
        scenario = rough(afr=0.0, outages=0.0, years=0.1)
        policy = replace(
            scenario.placement, policy="custom", policy_function=register(function), balanced=False
        )
        return replace(scenario, placement=policy)

    table = place(with_policy(good)).pg_devices
    assert (table // 6 == (np.arange(160)[:, None] + np.arange(6)) % 8).all()
    with pytest.raises(ScenarioError, match=r"policy_function.*break the rule"):
        place(with_policy(bad))


def two(a: int, b: int) -> int:
    return a + b


def text_life(params: Any, stream: int, age_s: float) -> float:
    return "long"  # type: ignore[return-value]


def negative_life(params: Any, stream: int, age_s: float) -> float:
    return -1.0


@pytest.mark.parametrize(
    ("more", "text"),
    [
        (model_of(two, 1.0), r"model\.0\.life: .*cannot be called with \(params, stream, age_s\)"),
        (model_of(text_life, 1.0), r"model\.0\.life: .*cannot be compiled by numba"),
        (model_of(negative_life, 1.0), r"gives -1\.0 s to a device 0 s old; .* at least 0"),
        ('[[model]]\nlife = "no.such:thing"', r"cannot be loaded: ModuleNotFoundError"),
        ('[[model]]\nlife = "math:nothing"', r"math has no function nothing"),
        ('[[model]]\nlife = "short"', r"names no function; write \"module:function\""),
        ('[decisions]\nfunction = "math:sqrt"', r"decisions\.function: .*with \(devices, facts\)"),
    ],
)
def test_a_wrong_function_is_refused_before_any_work(more: str, text: str) -> None:
    with pytest.raises(ScenarioError, match=text):
        run(rough(more=more), trials=1)


@pytest.mark.parametrize(
    ("decision", "text"),
    [
        (3, "it gave int; give a Decision or None"),
        (Decision(write_bandwidth_bytes_per_s=0.0), "is 0.0; give more than 0"),
        (Decision(wants_plan=True), "balance.every_s is 0"),
    ],
)
def test_a_decision_that_cannot_be_is_refused(decision: Any, text: str) -> None:
    def given(devices: Any, facts: Any) -> Any:
        return decision

    name = register(given)
    with pytest.raises(DecisionError, match=text):
        run(rough(more=f'[decisions]\nfunction = "{name}"'), trials=1)
