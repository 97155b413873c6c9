"""Moves of slots that hold data: plans, batches, and what becomes of them when devices fail."""

import numpy as np
import pytest

from exastore.metadata.core.balance import rule_violations, slots_per_device
from exastore.metadata.core.cluster_map import (
    new_map,
    validate_cluster_map,
    with_device_state,
    with_devices,
    with_node,
)
from exastore.metadata.core.errors import InvalidClusterMap, StalePlan
from exastore.metadata.core.moves import (
    SlotMoves,
    begin_moves,
    begin_replacement,
    holding_of,
    misplaced_count,
    next_batch,
    plan_moves,
    plan_replacement,
)
from exastore.metadata.core.repair import apply_plan, classify, mark_clean, plan_repair
from exastore.metadata.core.topology import (
    ClusterMap,
    DeviceState,
    DomainLevel,
    PlacementRule,
    SlotState,
    Topology,
)

N = 6


def small_map(nodes: int = 9, pg_count: int = 60) -> ClusterMap:
    topology = Topology.uniform(racks_per_zone=nodes, devices_per_node=2)
    return new_map(topology, PlacementRule(DomainLevel.NODE), "rs-4-2", N, pg_count)


def begun(cluster_map: ClusterMap, *, is_balancing: bool, fraction: float = 1.0) -> ClusterMap:
    """One batch further."""
    plan = plan_moves(cluster_map, is_balancing=is_balancing)
    batch = next_batch(cluster_map, plan, classify(cluster_map).readable, fraction)
    changed = begin_moves(cluster_map, batch)
    validate_cluster_map(changed)
    return changed


def finished(cluster_map: ClusterMap) -> ClusterMap:
    pg, slot = np.nonzero(cluster_map.pg_slot_state == SlotState.MOVING)
    return mark_clean(cluster_map, pg, slot)


def worked_off(cluster_map: ClusterMap, *, is_balancing: bool, fraction: float) -> ClusterMap:
    """All batches, one after another; every map on the way is whole and keeps its laws."""
    while True:
        changed = begun(cluster_map, is_balancing=is_balancing, fraction=fraction)
        if changed is cluster_map:
            return cluster_map
        assert classify(changed).readable.all()
        cluster_map = finished(changed)


@pytest.mark.parametrize("fraction", [0.0, 0.05, 1.0])
def test_draining_empties_the_device_and_moves_nothing_else(fraction: float) -> None:
    before = with_device_state(small_map(), {3: DeviceState.DRAINING})
    held = before.pg_devices == 3
    plan = plan_moves(before, is_balancing=False)
    assert len(plan) == held.sum() == plan.minimum_moves
    after = worked_off(before, is_balancing=False, fraction=fraction)
    assert not (after.pg_devices == 3).any()
    np.testing.assert_array_equal(after.pg_devices[~held], before.pg_devices[~held])
    assert not rule_violations(after.topology, after.rule, after.pg_devices).any()


def test_a_plan_to_be_shown_is_the_plan_that_is_carried_out() -> None:
    before = small_map()
    shown = plan_moves(before, is_balancing=False, also_draining=(3,))
    drained = with_device_state(before, {3: DeviceState.DRAINING})
    done = plan_moves(drained, is_balancing=False)
    for name in ("pg", "slot", "source_device", "target_device"):
        np.testing.assert_array_equal(getattr(shown, name), getattr(done, name))


def test_what_draining_moves_goes_to_the_devices_that_hold_least() -> None:
    before = worked_off(small_map(), is_balancing=True, fraction=1.0)
    after = worked_off(
        with_device_state(before, {3: DeviceState.DRAINING}), is_balancing=False, fraction=0.1
    )
    counts = slots_per_device(after.pg_devices, after.topology.device_count)
    others = np.delete(counts, 3)
    assert others.max() - others.min() <= 3


def test_at_most_the_fraction_of_all_slots_moves_at_once_and_one_of_each_pg() -> None:
    drained = with_device_state(small_map(), {3: DeviceState.DRAINING, 8: DeviceState.DRAINING})
    for fraction, most in ((0.0, 1), (0.02, 7), (1.0, 60)):
        moving = begun(drained, is_balancing=False, fraction=fraction)
        assert 1 <= misplaced_count(moving) <= most
        assert ((moving.pg_slot_state == SlotState.MOVING).sum(axis=1) <= 1).all()
    # The room is shared with what moves already.
    again = begun(begun(drained, is_balancing=False, fraction=0.02), is_balancing=False)
    assert again.epoch == drained.epoch + 2
    full = begun(drained, is_balancing=False, fraction=0.02)
    assert begun(full, is_balancing=False, fraction=0.02) is full


def test_a_new_node_is_filled_to_its_share_within_one_slot() -> None:
    before = worked_off(small_map(), is_balancing=True, fraction=1.0)
    grown = with_node(before, rack=9, device_weights=(1.0, 1.0))
    assert not len(plan_moves(grown, is_balancing=False))
    after = worked_off(grown, is_balancing=True, fraction=0.1)
    counts = slots_per_device(after.pg_devices, after.topology.device_count)
    ideal = after.pg_devices.size / after.topology.device_count
    assert np.abs(counts - ideal).max() <= 1
    moved = int((after.pg_devices != grown.pg_devices).sum())
    assert moved <= 1.05 * int(np.ceil(2 * ideal))


def test_a_pg_with_a_slot_that_cannot_be_read_waits() -> None:
    drained = with_device_state(small_map(), {3: DeviceState.DRAINING, 5: DeviceState.DOWN})
    moving = begun(drained, is_balancing=False)
    touched = (moving.pg_slot_state == SlotState.MOVING).any(axis=1)
    assert touched.any()
    assert not (touched & (moving.pg_devices == 5).any(axis=1)).any()


def test_a_plan_for_another_map_is_refused() -> None:
    drained = with_device_state(small_map(), {3: DeviceState.DRAINING})
    plan = plan_moves(drained, is_balancing=False)
    batch = next_batch(drained, plan, classify(drained).readable, 1.0)
    with pytest.raises(StalePlan):
        begin_moves(begin_moves(drained, batch), batch)


def one_moving(source: int = 3) -> tuple[ClusterMap, int, int, int]:
    """A map with one slot that moves away from `source`: map, PG, slot, target."""
    drained = with_device_state(small_map(), {source: DeviceState.DRAINING})
    moving = begun(drained, is_balancing=False, fraction=0.0)
    pg, slot = (int(found[0]) for found in np.nonzero(moving.pg_slot_state == SlotState.MOVING))
    return moving, pg, slot, int(moving.pg_devices[pg, slot])


def test_a_moving_slot_is_readable_and_nothing_to_repair() -> None:
    moving, pg, slot, _ = one_moving()
    health = classify(moving)
    assert health.readable[pg, slot]
    assert not len(plan_repair(moving))


@pytest.mark.parametrize("who", ["source", "target"])
def test_a_short_outage_of_either_device_is_waited_out(who: str) -> None:
    moving, pg, slot, target = one_moving()
    device = 3 if who == "source" else target
    hurt = with_device_state(moving, {device: DeviceState.DOWN})
    health = classify(hurt)
    assert health.waiting[pg, slot] and not health.readable[pg, slot]
    assert not len(plan_repair(hurt))


def test_a_move_whose_source_is_lost_becomes_a_repair_on_its_target() -> None:
    moving, pg, slot, target = one_moving()
    hurt = with_device_state(moving, {3: DeviceState.OUT})
    plan = plan_repair(hurt)
    tasks = list(
        zip(plan.pg.tolist(), plan.slot.tolist(), plan.target_device.tolist(), strict=True)
    )
    assert (pg, slot, target) in tasks
    after = apply_plan(hurt, plan)
    validate_cluster_map(after)
    assert after.pg_devices[pg, slot] == target
    # The source returns with all older chunks: the move goes on.
    back = with_device_state(after, {3: DeviceState.UP})
    assert classify(back).readable[pg, slot]


def test_a_move_whose_target_is_lost_returns_to_its_source() -> None:
    moving, pg, slot, target = one_moving()
    hurt = with_device_state(moving, {target: DeviceState.OUT})
    after = apply_plan(hurt, plan_repair(hurt))
    validate_cluster_map(after)
    assert after.pg_devices[pg, slot] == 3
    # It is verified there before it counts as clean: it misses what went to the target.
    assert after.pg_slot_state[pg, slot] == SlotState.REBUILDING


def test_a_move_that_loses_both_devices_is_rebuilt_elsewhere() -> None:
    moving, pg, slot, target = one_moving()
    hurt = with_device_state(moving, {target: DeviceState.OUT, 3: DeviceState.OUT})
    after = apply_plan(hurt, plan_repair(hurt))
    validate_cluster_map(after)
    assert after.pg_devices[pg, slot] not in (3, target)
    assert after.pg_slot_state[pg, slot] == SlotState.REBUILDING


def test_a_moving_slot_must_name_where_it_comes_from() -> None:
    moving, _, _, _ = one_moving()
    previous = np.full_like(moving.pg_previous, -1)
    previous.setflags(write=False)
    broken = ClusterMap(
        **{
            name: getattr(moving, name)
            for name in ClusterMap.__dataclass_fields__
            if name != "pg_previous"
        },
        pg_previous=previous,
    )
    with pytest.raises(InvalidClusterMap, match="MOVING slot names no previous"):
        validate_cluster_map(broken)


def test_a_replacement_takes_the_same_slots_and_nothing_else_moves() -> None:
    before = with_device_state(small_map(), {4: DeviceState.OUT})
    # A new device in the same node.
    grown = with_devices(before, int(before.topology.device_node[4]), [1.0])
    new = grown.topology.device_count - 1
    moves, refused = plan_replacement(grown, 4, new)
    assert refused == 0
    after = begin_replacement(grown, moves)
    validate_cluster_map(after)
    np.testing.assert_array_equal(after.pg_devices == new, before.pg_devices == 4)
    changed = after.pg_devices != before.pg_devices
    np.testing.assert_array_equal(changed, before.pg_devices == 4)
    assert (after.pg_slot_state[changed] == SlotState.REBUILDING).all()
    assert (after.pg_previous[changed] == 4).all()


def test_a_replacement_takes_over_what_is_being_rebuilt_elsewhere() -> None:
    before = with_device_state(small_map(), {4: DeviceState.OUT})
    repaired = apply_plan(before, plan_repair(before))
    grown = with_devices(repaired, int(before.topology.device_node[4]), [1.0])
    new = grown.topology.device_count - 1
    done_pg = int(np.flatnonzero((before.pg_devices == 4).any(axis=1))[0])
    done_slot = int(np.flatnonzero(before.pg_devices[done_pg] == 4)[0])
    grown = mark_clean(grown, [done_pg], [done_slot])
    moves, refused = plan_replacement(grown, 4, new)
    after = begin_replacement(grown, moves)
    validate_cluster_map(after)
    assert refused == 0
    assert (after.pg_devices == new).sum() == (before.pg_devices == 4).sum() - 1
    assert after.pg_devices[done_pg, done_slot] == repaired.pg_devices[done_pg, done_slot]


def test_a_replacement_elsewhere_takes_what_the_rule_allows() -> None:
    before = with_device_state(small_map(), {4: DeviceState.OUT})
    moves, refused = plan_replacement(before, 4, 17)
    node = before.topology.device_node
    rows = before.pg_devices[(before.pg_devices == 4).any(axis=1)]
    taken = (node[rows] == node[17]).any(axis=1)
    assert refused == taken.sum() > 0
    validate_cluster_map(begin_replacement(before, moves))


def test_what_a_device_holds_says_whether_it_may_be_removed() -> None:
    before = small_map()
    health = classify(before)
    holding = holding_of(before, 3, health.remaining_redundancy, health.readable)
    assert holding.slot_count == (before.pg_devices == 3).sum() > 0
    assert (holding.sole_pg_count, holding.endangered_pg_count) == (0, 0)
    # With one device less, the PGs that both share have their last redundancy on 3.
    hurt = with_device_state(before, {5: DeviceState.DOWN, 8: DeviceState.DOWN})
    health = classify(hurt)
    holding = holding_of(hurt, 3, health.remaining_redundancy, health.readable)
    shared = [(before.pg_devices == device).any(axis=1) for device in (3, 5, 8)]
    assert holding.sole_pg_count == np.logical_and.reduce(shared).sum()
    moving, _, _, _ = one_moving()
    health = classify(moving)
    holding = holding_of(moving, 3, health.remaining_redundancy, health.readable)
    assert holding.leaving_count == 1 and not holding.is_empty
    drained = worked_off(moving, is_balancing=False, fraction=0.1)
    drained = worked_off(finished(drained), is_balancing=False, fraction=0.1)
    health = classify(drained)
    assert holding_of(drained, 3, health.remaining_redundancy, health.readable).is_empty


def test_a_batch_has_whole_pgs_of_a_repair_plan() -> None:
    hurt = with_device_state(small_map(), {3: DeviceState.OUT, 10: DeviceState.OUT})
    plan = plan_repair(hurt)
    for count in range(1, len(plan) + 1):
        first = plan.first_moves(count)
        assert count <= len(first) or len(first) == len(plan)
        rest = set(plan.pg[len(first) :].tolist())
        assert not rest & set(first.pg.tolist())
        validate_cluster_map(apply_plan(hurt, first))
    assert plan.first_moves(len(plan)) is plan


def test_no_moves_leave_the_map_as_it_is() -> None:
    before = small_map()
    none = np.zeros(0, dtype=np.int32)
    assert begin_moves(before, SlotMoves(1, none, none, none, none)) is before
