"""The balancer: what it reaches, what it leaves alone, and how it ends where it can do nothing."""

from dataclasses import replace

import numpy as np
import pytest

from exastore.metadata.core.balance import (
    balance_of,
    recovery_spread,
    rule_violations,
    slots_per_device,
)
from exastore.metadata.core.balancer import (
    apply_balance_to_rows,
    ideal_slots,
    plan_balance,
    plan_balance_of_rows,
    report_balance,
)
from exastore.metadata.core.cluster_map import new_map, with_device_state
from exastore.metadata.core.errors import StaleBalancePlan
from exastore.metadata.core.placement import all_up, place_pgs, placement_columns
from exastore.metadata.core.topology import (
    NO_DEVICE,
    ClusterMap,
    DeviceState,
    DomainLevel,
    Float64Array,
    Int32Array,
    PlacementRule,
    SlotState,
    Topology,
    frozen,
)

RACK = PlacementRule(DomainLevel.RACK)
RACKS = Topology.uniform(racks_per_zone=12, nodes_per_rack=3, devices_per_node=4)


def weighted(topology: Topology, weight: Float64Array) -> Topology:
    return replace(topology, device_weight=frozen(weight.astype(np.float64)))


def deviation(topology: Topology, rule: PlacementRule, rows: Int32Array) -> float:
    """Largest distance from the ideal, all devices UP."""
    count = topology.device_count
    ideal = ideal_slots(placement_columns(topology, rule), rows, all_up(count))
    return float(np.abs(slots_per_device(rows, count) - ideal).max())


def balanced_map(cluster_map: ClusterMap) -> ClusterMap:
    rows = apply_balance_to_rows(cluster_map.pg_devices, plan_balance(cluster_map))
    return replace(cluster_map, pg_devices=frozen(rows))


@pytest.mark.parametrize(
    ("topology", "rule", "pg_count", "n"),
    [
        pytest.param(Topology.uniform(racks_per_zone=8), PlacementRule(), 64, 6, id="8-devices"),
        pytest.param(RACKS, RACK, 2_400, 6, id="144-devices"),
        pytest.param(RACKS, RACK, 1_001, 12, id="every-rack-in-every-group"),
        pytest.param(RACKS, PlacementRule(DomainLevel.RACK, 2), 999, 14, id="two-per-rack"),
        pytest.param(RACKS, PlacementRule(DomainLevel.NODE), 777, 9, id="over-nodes"),
        pytest.param(RACKS, PlacementRule(DomainLevel.DEVICE), 777, 9, id="over-devices"),
    ],
)
def test_a_uniform_cluster_comes_within_one_slot_of_the_ideal(
    topology: Topology, rule: PlacementRule, pg_count: int, n: int
) -> None:
    cluster_map = new_map(topology, rule, "", n, pg_count)
    plan = plan_balance(cluster_map)
    rows = apply_balance_to_rows(cluster_map.pg_devices, plan)
    assert deviation(topology, rule, cluster_map.pg_devices) > 2
    assert deviation(topology, rule, rows) <= 1 + 1e-6
    assert plan.outside_count == 0
    assert not plan.is_cut
    assert not rule_violations(topology, rule, rows).any()
    assert plan.minimum_moves <= len(plan) <= 1.05 * plan.minimum_moves


def test_heterogeneous_weights_get_slots_in_proportion() -> None:
    weight = np.array([4.0, 8.0, 16.0, 24.0])[np.arange(144) % 4]
    topology = weighted(RACKS, weight)
    rows = place_pgs(topology, RACK, 2_400, 6)
    columns = placement_columns(topology, RACK)
    plan = plan_balance_of_rows(columns, rows)
    counts = slots_per_device(apply_balance_to_rows(rows, plan), 144)
    assert np.abs(counts - weight * (2_400 * 6 / weight.sum())).max() <= 1 + 1e-6
    assert len(plan) == plan.minimum_moves


def test_what_the_rule_caps_is_shared_by_the_rest_in_proportion() -> None:
    # One rack holds half of the weight but can hold one slot of each group only.
    topology = Topology.uniform(racks_per_zone=6, devices_per_node=4)
    weight = np.where(np.arange(24) < 4, 40.0, 8.0)
    topology = weighted(topology, weight)
    rows = place_pgs(topology, RACK, 600, 3)
    columns = placement_columns(topology, RACK)
    ideal = ideal_slots(columns, rows, all_up(24))
    assert ideal[:4] == pytest.approx([150.0] * 4)
    assert ideal[4:] == pytest.approx([60.0] * 20)
    plan = plan_balance_of_rows(columns, rows)
    assert plan.outside_count == 0
    assert deviation(topology, RACK, apply_balance_to_rows(rows, plan)) <= 1 + 1e-6


def test_a_device_holds_at_most_one_slot_of_each_group() -> None:
    topology = weighted(Topology.uniform(devices_per_node=3), np.array([100.0, 1.0, 1.0]))
    rule = PlacementRule(DomainLevel.DEVICE)
    columns = placement_columns(topology, rule)
    rows = np.array([[0, 1], [0, 1], [1, 0], [1, 0]], dtype=np.int32)
    assert ideal_slots(columns, rows, all_up(3)).tolist() == pytest.approx([4.0, 2.0, 2.0])
    plan = plan_balance_of_rows(columns, rows)
    assert slots_per_device(apply_balance_to_rows(rows, plan), 3).tolist() == [4, 3, 1]
    assert len(plan) == plan.minimum_moves == 1


def test_a_new_rack_takes_its_share_and_nothing_else_moves() -> None:
    old = new_map(RACKS, RACK, "", 6, 2_400)
    rows = apply_balance_to_rows(old.pg_devices, plan_balance(old))
    grown = Topology.uniform(racks_per_zone=13, nodes_per_rack=3, devices_per_node=4)
    plan = plan_balance_of_rows(placement_columns(grown, RACK), rows)
    assert plan.outside_count == 0
    assert (plan.target_device >= 144).mean() > 0.99
    assert len(plan) <= 1.05 * plan.minimum_moves


@pytest.mark.parametrize("max_moves", [0, 1, 7, 100, 10_000])
def test_a_bounded_plan_is_the_beginning_of_the_whole_plan(max_moves: int) -> None:
    cluster_map = new_map(RACKS, RACK, "", 6, 2_400)
    whole = plan_balance(cluster_map, seed=5)
    part = plan_balance(cluster_map, seed=5, max_moves=max_moves)
    assert list(part) == list(whole)[:max_moves]
    assert part.is_cut == (max_moves < len(whole))
    assert part.minimum_moves == whole.minimum_moves
    assert list(whole.first(max_moves)) == list(part)
    assert whole.first(max_moves).is_cut == part.is_cut


def test_planning_again_after_a_part_goes_on_to_the_same_end() -> None:
    cluster_map = new_map(RACKS, RACK, "", 6, 2_400)
    minimum = plan_balance(cluster_map).minimum_moves
    moved, stddev = 0, balance_of(cluster_map.pg_devices, RACKS.device_weight).stddev
    while len(plan := plan_balance(cluster_map, max_moves=100)):
        cluster_map = replace(
            cluster_map, pg_devices=frozen(apply_balance_to_rows(cluster_map.pg_devices, plan))
        )
        moved += len(plan)
        now = balance_of(cluster_map.pg_devices, RACKS.device_weight).stddev
        assert now < stddev
        stddev = now
    assert plan.outside_count == 0
    assert moved == minimum


def test_the_fullest_device_gives_and_the_emptiest_takes_first() -> None:
    cluster_map = new_map(RACKS, RACK, "", 6, 2_400)
    counts = slots_per_device(cluster_map.pg_devices, 144)
    plan = plan_balance(cluster_map, max_moves=1)
    assert counts[plan.source_device[0]] == counts.max()
    assert counts[plan.target_device[0]] == counts.min()


def test_the_same_seed_gives_the_same_plan_and_another_seed_another() -> None:
    cluster_map = new_map(RACKS, RACK, "", 6, 2_400)
    plans = [list(plan_balance(cluster_map, seed=seed)) for seed in (1, 1, 2)]
    assert plans[0] == plans[1]
    assert plans[0] != plans[2]
    columns = placement_columns(RACKS, RACK)
    assert list(plan_balance(cluster_map, seed=1, columns=columns)) == plans[0]


@pytest.mark.parametrize("state", [DeviceState.DOWN, DeviceState.OUT, DeviceState.DRAINING])
def test_devices_that_are_not_up_neither_give_nor_take(state: DeviceState) -> None:
    cluster_map = with_device_state(
        new_map(RACKS, RACK, "", 6, 2_400), dict.fromkeys((0, 50, 51, 143), state)
    )
    plan = plan_balance(cluster_map)
    touched = np.concatenate([plan.source_device, plan.target_device])
    assert not np.isin(touched, [0, 50, 51, 143]).any()
    assert plan.outside_count == 0
    rows = apply_balance_to_rows(cluster_map.pg_devices, plan)
    assert not rule_violations(RACKS, RACK, rows).any()


def test_slots_that_are_rebuilding_or_empty_stay() -> None:
    cluster_map = new_map(RACKS, RACK, "", 6, 2_400)
    slot_state = np.zeros((2_400, 6), dtype=np.uint8)
    slot_state[::2] = SlotState.REBUILDING
    rows = cluster_map.pg_devices.copy()
    rows[1::10, 3] = NO_DEVICE
    changed = replace(cluster_map, pg_slot_state=frozen(slot_state), pg_devices=frozen(rows))
    plan = plan_balance(changed)
    assert plan.outside_count == 0
    assert (plan.pg % 2 == 1).all()
    assert ((apply_balance_to_rows(rows, plan) == NO_DEVICE) == (rows == NO_DEVICE)).all()


def test_a_device_without_weight_is_emptied() -> None:
    cluster_map = new_map(RACKS, RACK, "", 6, 2_400)
    weight = np.ones(144)
    weight[[3, 77]] = 0.0
    plan = plan_balance(replace(cluster_map, topology=weighted(RACKS, weight)))
    counts = slots_per_device(apply_balance_to_rows(cluster_map.pg_devices, plan), 144)
    assert counts[3] == counts[77] == 0


def test_where_no_single_move_keeps_the_rule_a_chain_goes_over_another_device() -> None:
    # Device 0 has too much and 3 too little, but all groups of 0 are in the rack of 3 already.
    topology = replace(
        Topology.uniform(racks_per_zone=4, devices_per_node=1),
        device_node=frozen(np.array([0, 1, 2, 2, 3], dtype=np.int32)),
        device_weight=frozen(np.array([5.0, 5.5, 8.5, 3.5, 5.5])),
    )
    rows = np.array([[0, 2]] * 8 + [[1, 4]] * 6, dtype=np.int32)
    plan = plan_balance_of_rows(placement_columns(topology, RACK), rows)
    assert plan.outside_count == 0
    assert plan.chained_moves >= 2
    assert len(plan) == 5
    table = apply_balance_to_rows(rows, plan)
    assert not rule_violations(topology, RACK, table).any()
    assert deviation(topology, RACK, table) <= 1


def test_impossible_tables_end_with_what_is_outside() -> None:
    # Every group lies on the only three racks there are, and most slots may not move.
    topology = Topology.uniform(racks_per_zone=3, devices_per_node=2)
    rows = np.tile(np.array([[0, 2, 4]], dtype=np.int32), (10, 1))
    slot_state = np.full(rows.shape, SlotState.REBUILDING, dtype=np.uint8)
    columns = placement_columns(topology, RACK)
    plan = plan_balance_of_rows(columns, rows, slot_state=slot_state)
    assert len(plan) == 0
    assert plan.outside_count == 3 * 4 * 2
    slot_state[0, 0] = SlotState.CLEAN
    plan = plan_balance_of_rows(columns, rows, slot_state=slot_state)
    assert list(plan) == [(0, 0, 0, 1)]


@pytest.mark.parametrize("pg_count", [0, 5])
def test_a_cluster_without_slots_or_devices_has_nothing_to_plan(pg_count: int) -> None:
    columns = placement_columns(RACKS, RACK)
    rows = np.full((pg_count, 6), NO_DEVICE, dtype=np.int32)
    assert len(plan_balance_of_rows(columns, rows)) == 0
    nothing_up = np.full(144, DeviceState.DOWN, dtype=np.uint8)
    table = place_pgs(RACKS, RACK, pg_count, 6)
    assert len(plan_balance_of_rows(columns, table, device_state=nothing_up)) == 0


def test_a_larger_tolerance_moves_less() -> None:
    cluster_map = new_map(RACKS, RACK, "", 6, 2_400)
    lengths = [len(plan_balance(cluster_map, tolerance=slots)) for slots in (1.0, 5.0, 100.0)]
    assert lengths[0] > lengths[1] > lengths[2] == 0
    rows = apply_balance_to_rows(cluster_map.pg_devices, plan_balance(cluster_map, tolerance=5.0))
    assert deviation(RACKS, RACK, rows) <= 5 + 1e-6


def test_unusable_arguments_are_refused() -> None:
    cluster_map = new_map(RACKS, RACK, "", 6, 24)
    for tolerance in (0.5, float("nan")):
        with pytest.raises(ValueError, match="at least 1 slot"):
            plan_balance(cluster_map, tolerance=tolerance)
    with pytest.raises(ValueError, match="at least 0"):
        plan_balance(cluster_map, max_moves=-1)


def test_a_plan_of_another_table_is_refused_and_the_table_stays() -> None:
    cluster_map = new_map(RACKS, RACK, "", 6, 2_400)
    plan = plan_balance(cluster_map)
    rows = cluster_map.pg_devices.copy()
    rows[plan.pg[3], plan.slot[3]] = NO_DEVICE
    kept = rows.copy()
    with pytest.raises(StaleBalancePlan) as caught:
        apply_balance_to_rows(rows, plan)
    assert (caught.value.move, caught.value.pg) == (3, plan.pg[3])
    assert (rows == kept).all()
    with pytest.raises(StaleBalancePlan):
        apply_balance_to_rows(rows[:3], plan)


def test_the_report_tells_before_after_and_the_minimum() -> None:
    rows = place_pgs(RACKS, RACK, 2_400, 6)
    columns = placement_columns(RACKS, RACK)
    report = report_balance(columns, rows, plan_balance_of_rows(columns, rows))
    assert report.before.stddev > 8
    assert report.after.stddev <= 1
    assert report.after.maximum <= 101
    assert report.moves_ratio == 1.0
    assert report.violations_before == report.violations_after == 0
    assert report.deviation_before > 10
    assert report.deviation_after <= 1 + 1e-6


def test_a_table_that_breaks_the_rule_is_not_made_worse() -> None:
    topology = Topology.uniform(racks_per_zone=6, devices_per_node=2)
    rows = np.tile(np.array([[0, 1, 2]], dtype=np.int32), (12, 1))
    columns = placement_columns(topology, RACK)
    report = report_balance(columns, rows, plan_balance_of_rows(columns, rows))
    assert report.violations_before == 12
    assert report.violations_after < 12
    assert report.deviation_after < report.deviation_before


def test_balancing_keeps_recovery_spread_over_the_same_number_of_peers() -> None:
    cluster_map = new_map(RACKS, RACK, "", 6, 2_400)
    before = recovery_spread(cluster_map.pg_devices, 144)
    after = recovery_spread(balanced_map(cluster_map).pg_devices, 144)
    assert before.sampled_count == after.sampled_count == 144
    # Each device shares 100 groups x 5 other slots with the 132 devices of other racks.
    assert after.peer_count_mean == pytest.approx(132, abs=5)
    assert after.shared_mean == pytest.approx(500 / 132, rel=0.05)
    assert after.shared_max <= before.shared_max + 3
    assert recovery_spread(np.zeros((0, 6), dtype=np.int32), 0).shared_max == 0
