"""Evening out recovery: nobody reads for a dead device much more than others do."""

from dataclasses import replace

import numpy as np
import pytest

from exastore.metadata.core.balance import recovery_spread, rule_violations, slots_per_device
from exastore.metadata.core.balancer import apply_balance_to_rows, plan_balance_of_rows
from exastore.metadata.core.balancer_recovery import plan_even_recovery
from exastore.metadata.core.placement import place_pgs, placement_columns
from exastore.metadata.core.topology import (
    DeviceState,
    DomainLevel,
    Int32Array,
    PlacementRule,
    SlotState,
    Topology,
    frozen,
)

RULE = PlacementRule(DomainLevel.RACK, 2, ((DomainLevel.NODE, 1),))
RACKS = Topology.uniform(racks_per_zone=12, nodes_per_rack=3, devices_per_node=4)
COLUMNS = placement_columns(RACKS, RULE)


@pytest.fixture(scope="module")
def balanced() -> Int32Array:
    rows = place_pgs(RACKS, RULE, 2_400, 6)
    return apply_balance_to_rows(rows, plan_balance_of_rows(COLUMNS, rows))


def test_swaps_halve_the_busiest_pair_and_leave_balance_and_rule_alone(
    balanced: Int32Array,
) -> None:
    plan = plan_even_recovery(COLUMNS, balanced)
    even = apply_balance_to_rows(balanced, plan)
    before, after = (recovery_spread(table, 144) for table in (balanced, even))
    # Each device shares 100 groups x 5 other slots with the 141 devices of other nodes.
    assert before.shared_max >= 11
    assert after.shared_max <= 6
    assert after.busiest_mean < before.busiest_mean
    assert after.max_over_mean < 0.6 * before.max_over_mean
    assert (slots_per_device(even, 144) == slots_per_device(balanced, 144)).all()
    assert not rule_violations(RACKS, RULE, even).any()
    assert not plan.is_cut


def test_every_swap_of_the_plan_keeps_the_rule_at_once(balanced: Int32Array) -> None:
    rows = balanced.copy()
    for pg, slot, source, target in plan_even_recovery(COLUMNS, balanced):
        assert rows[pg, slot] == source
        rows[pg, slot] = target
        assert not rule_violations(RACKS, RULE, rows[pg : pg + 1]).any()


def test_a_budget_of_moves_holds_and_is_the_beginning_of_the_whole(balanced: Int32Array) -> None:
    whole = list(plan_even_recovery(COLUMNS, balanced, seed=4))
    part = plan_even_recovery(COLUMNS, balanced, seed=4, max_moves=21)
    assert list(part) == whole[:20]
    assert part.is_cut
    assert plan_even_recovery(COLUMNS, balanced, seed=5, max_moves=20).pg.tolist() != [
        pg for pg, *_ in whole[:20]
    ]
    with pytest.raises(ValueError, match="at least 0"):
        plan_even_recovery(COLUMNS, balanced, max_moves=-1)


def test_devices_that_are_not_up_and_slots_that_are_not_clean_take_no_part(
    balanced: Int32Array,
) -> None:
    state = np.full(144, DeviceState.UP, dtype=np.uint8)
    state[[3, 90]] = [DeviceState.DOWN, DeviceState.DRAINING]
    slots = np.zeros(balanced.shape, dtype=np.uint8)
    slots[::3] = SlotState.REBUILDING
    plan = plan_even_recovery(COLUMNS, balanced, device_state=state, slot_state=slots)
    assert len(plan) > 0
    touched = np.concatenate([plan.source_device, plan.target_device])
    assert not np.isin(touched, [3, 90]).any()
    assert (plan.pg % 3 != 0).all()


def test_a_table_where_nothing_can_be_swapped_has_an_empty_plan() -> None:
    topology = Topology.uniform(nodes_per_rack=4)
    columns = placement_columns(topology, PlacementRule())
    rows = np.tile(np.arange(4, dtype=np.int32), (10, 1))
    assert len(plan_even_recovery(columns, rows)) == 0
    nothing = placement_columns(
        replace(topology, device_weight=frozen(np.zeros(4))), PlacementRule()
    )
    assert len(plan_even_recovery(nothing, rows)) == 0


def test_what_balancing_moves_anyway_does_not_make_recovery_busier() -> None:
    rows = place_pgs(RACKS, RULE, 2_400, 6)
    moved = apply_balance_to_rows(rows, plan_balance_of_rows(COLUMNS, rows))
    assert recovery_spread(moved, 144).busiest_mean < recovery_spread(rows, 144).busiest_mean
