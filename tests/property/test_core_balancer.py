"""The balancer over random clusters: its laws, and that it reaches what an exact flow can reach."""

from dataclasses import dataclass, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from exastore.metadata.core._reference import can_balance
from exastore.metadata.core.balance import row_violations, slots_per_device
from exastore.metadata.core.balancer import (
    BalancePlan,
    apply_balance_to_rows,
    ideal_slots,
    plan_balance_of_rows,
    report_balance,
)
from exastore.metadata.core.placement import PlacementColumns, place_pgs, placement_columns
from exastore.metadata.core.topology import (
    NO_DEVICE,
    DeviceState,
    DomainLevel,
    Float64Array,
    Int32Array,
    Int64Array,
    PlacementRule,
    SlotState,
    Topology,
    Uint8Array,
    frozen,
)

UP = DeviceState.UP
WEIGHTS = np.array([0.0, 1.0, 1.0, 2.0, 4.0, 7.3])


@dataclass(frozen=True, slots=True)
class Case:
    """A cluster whose weights changed after placement, in any states."""

    columns: PlacementColumns
    rows: Int32Array
    device_state: Uint8Array
    slot_state: Uint8Array

    def plan(self, max_moves: int | None = None) -> BalancePlan:
        return self.plan_of(self.rows, max_moves)

    def plan_of(self, rows: Int32Array, max_moves: int | None = None) -> BalancePlan:
        return plan_balance_of_rows(
            self.columns,
            rows,
            device_state=self.device_state,
            slot_state=self.slot_state,
            max_moves=max_moves,
            seed=3,
        )

    @property
    def ideal(self) -> Float64Array:
        return ideal_slots(self.columns, self.rows, self.device_state)

    def bounds(self) -> tuple[Int64Array, Int64Array]:
        takes = (self.device_state == UP) & (self.columns.device_weight > 0)
        lower = np.where(takes, np.maximum(np.ceil(self.ideal - 1 - 1e-6), 0), 0)
        upper = np.where(takes, np.minimum(np.floor(self.ideal + 1 + 1e-6), len(self.rows)), 0)
        return lower.astype(np.int64), upper.astype(np.int64)

    def outside(self, rows: Int32Array) -> int:
        lower, upper = self.bounds()
        held = slots_per_device(rows, len(lower))
        beyond = np.maximum(held - upper, 0) + np.maximum(lower - held, 0)
        return int(beyond[self.device_state == UP].sum())


def random_case(seed: int, *, all_clean: bool = False, is_nested: bool | None = None) -> Case:
    """The same seed gives the same case; `is_nested` asks for limits at several levels."""
    rng = np.random.Generator(np.random.PCG64(seed))
    if is_nested is None:
        is_nested = seed % 2 == 1
    topology = Topology.uniform(
        zones_per_region=int(rng.integers(1, 4)) if is_nested else 1,
        racks_per_zone=int(rng.integers(2, 5)),
        nodes_per_rack=int(rng.integers(1, 4)),
        devices_per_node=int(rng.integers(1, 4)),
    )
    count = topology.device_count
    level = DomainLevel(int(rng.integers(0, 3)))
    also: list[tuple[DomainLevel, int]] = []
    if is_nested:
        level = DomainLevel.NODE
        also.append((DomainLevel.RACK, int(rng.integers(1, 5))))
        if rng.random() < 0.5:
            also.append((DomainLevel.ZONE, int(rng.integers(2, 6))))
    rule = PlacementRule(level, int(rng.integers(1, 4)) if level else 1, tuple(also))
    pg_count, n = int(rng.integers(1, 25)), int(rng.integers(1, 7))

    def weights() -> Float64Array:
        return frozen(rng.choice(WEIGHTS, count) if rng.random() < 0.7 else np.ones(count))

    topology = replace(topology, device_weight=weights())
    rows = place_pgs(topology, rule, pg_count, n, seed=seed & 0xFFFF)
    if rng.random() < 0.5:
        topology = replace(topology, device_weight=weights())
    state = np.full(count, UP, dtype=np.uint8)
    if rng.random() < 0.4:
        state = rng.choice([1, 1, 1, 1, 2, 3, 4], count).astype(np.uint8)
    slot_state = (rng.random(rows.shape) < (0.0 if all_clean else 0.1)).astype(np.uint8)
    return Case(placement_columns(topology, rule), rows, state, slot_state)


cases = st.builds(random_case, st.integers(0, 2**32 - 1))


@settings(deadline=None, max_examples=200)
@given(case=cases)
def test_every_prefix_keeps_the_rule_and_is_no_worse(case: Case) -> None:
    columns, state = case.columns, case.device_state
    rows, outside = case.rows.copy(), case.outside(case.rows)
    for pg, slot, source, target in case.plan():
        assert rows[pg, slot] == source
        assert case.slot_state[pg, slot] == SlotState.CLEAN
        assert state[source] == state[target] == UP
        assert columns.device_weight[target] > 0
        rows[pg, slot] = target
        row = rows[pg : pg + 1]
        assert not row_violations(row, columns).any()
        now = case.outside(rows)
        assert now <= outside
        outside = now
    assert outside == case.plan().outside_count
    assert ((rows == NO_DEVICE) == (case.rows == NO_DEVICE)).all()


@settings(deadline=None, max_examples=200)
@given(case=cases)
def test_a_plan_evens_out_and_a_balanced_table_has_none(case: Case) -> None:
    plan = case.plan()
    rows = apply_balance_to_rows(case.rows, plan)
    report = report_balance(case.columns, case.rows, plan, device_state=case.device_state)
    assert report.violations_before == report.violations_after == 0
    assert report.deviation_after <= max(report.deviation_before, 1 + 1e-6)
    if len(plan):
        is_up = case.device_state == UP

        def squares(table: Int32Array) -> float:
            held = slots_per_device(table, len(is_up))
            return float((((held - case.ideal) ** 2)[is_up]).sum())

        assert squares(rows) <= squares(case.rows) + 1e-6
    if plan.outside_count == 0:
        assert len(case.plan_of(rows)) == 0
    assert list(case.plan()) == list(plan)


@settings(deadline=None, max_examples=100)
@given(case=cases, step=st.integers(1, 5))
def test_plans_of_a_few_moves_come_to_an_end_that_is_as_good(case: Case, step: int) -> None:
    whole = case.plan()
    rows, rounds = case.rows, 0
    while len(plan := case.plan_of(rows, step)):
        assert len(plan) <= step
        rows = apply_balance_to_rows(rows, plan)
        rounds += 1
        assert rounds <= 2 * case.rows.size + 10
    assert case.outside(rows) <= whole.outside_count


def limits_of(columns: PlacementColumns) -> list[tuple[list[int], int]]:
    """Domains and limits at all levels, the largest domains first."""
    found = list(zip(columns.limit_domain.tolist(), columns.limit_max.tolist(), strict=True))
    return [*reversed(found), (columns.domain_of_device.tolist(), columns.max_per_domain)]


@pytest.mark.parametrize("is_nested", [False, True], ids=["one-level", "nested"])
@pytest.mark.parametrize("block", range(2))
def test_what_an_exact_flow_reaches_the_plan_reaches(block: int, is_nested: bool) -> None:
    possible = 0
    for seed in range(60 * block, 60 * (block + 1)):
        case = random_case(seed, all_clean=True, is_nested=is_nested)
        lower, upper = case.bounds()
        up = np.flatnonzero(case.device_state == UP).tolist()
        if can_balance(
            case.rows.tolist(),
            limits_of(case.columns),
            {device: int(lower[device]) for device in up},
            {device: int(upper[device]) for device in up},
        ):
            possible += 1
            assert case.plan().outside_count == 0, seed
    assert possible > 40
