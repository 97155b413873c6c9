"""Repair: classification, order, targets, and what happens to the map."""

from dataclasses import replace

import numpy as np
import pytest

from exastore.metadata.core.cluster_map import (
    new_map,
    validate_cluster_map,
    with_device_state,
    with_node,
)
from exastore.metadata.core.errors import InvalidClusterMap, StalePlan, UnknownIndex
from exastore.metadata.core.repair import (
    apply_plan,
    classify,
    mark_clean,
    plan_repair,
    repair_priority,
)
from exastore.metadata.core.topology import (
    NO_DEVICE,
    ClusterMap,
    DeviceState,
    PlacementRule,
    SlotState,
    Topology,
    frozen,
)

DOWN, OUT, UP, DRAINING = DeviceState.DOWN, DeviceState.OUT, DeviceState.UP, DeviceState.DRAINING


def cluster(node_count: int = 10, pg_count: int = 80) -> ClusterMap:
    """rs-4-2 over single-device nodes."""
    topology = Topology.uniform(nodes_per_rack=node_count)
    return new_map(topology, PlacementRule(), "rs-4-2", 6, pg_count)


def test_healthy_map_needs_no_repair() -> None:
    cluster_map = cluster()
    health = classify(cluster_map)
    assert health.is_clean.all()
    assert (health.remaining_redundancy == 2).all()
    assert len(plan_repair(cluster_map)) == 0


def test_every_slot_is_readable_waiting_or_lost() -> None:
    cluster_map = with_device_state(cluster(), {0: DOWN, 1: OUT, 2: DRAINING})
    health = classify(cluster_map)
    sets = [health.readable, health.waiting, health.homeless, health.unfinished]
    assert (np.sum(sets, axis=0) == 1).all()
    rows = cluster_map.pg_devices
    assert np.array_equal(health.waiting, rows == 0)
    assert np.array_equal(health.homeless, rows == 1)
    assert health.readable[rows == 2].all()


def test_short_outages_are_waited_out() -> None:
    cluster_map = with_device_state(cluster(), {0: DOWN, 1: DOWN})
    assert len(plan_repair(cluster_map)) == 0


def test_draining_devices_are_not_repaired() -> None:
    assert len(plan_repair(with_device_state(cluster(), {0: DRAINING}))) == 0


def test_most_endangered_groups_come_first() -> None:
    cluster_map = with_device_state(cluster(), {0: OUT, 1: OUT})
    plan = plan_repair(cluster_map)
    assert set(plan.remaining_redundancy) == {0, 1}
    keys = [
        repair_priority(int(r), int(pg), int(slot))
        for r, pg, slot in zip(plan.remaining_redundancy, plan.pg, plan.slot, strict=True)
    ]
    assert keys == sorted(keys)
    assert len(set(keys)) == len(keys)


def test_priority_is_remaining_redundancy_then_group_then_slot() -> None:
    order = [(-3, 9, 0), (-1, 0, 5), (0, 2**32 - 1, 3), (1, 0, 0), (1, 0, 1), (1, 1, 0), (2, 0, 0)]
    keys = [repair_priority(*task) for task in order]
    assert keys == sorted(keys)
    assert min(keys) > 0


def test_down_devices_raise_the_urgency_of_their_groups() -> None:
    cluster_map = with_device_state(cluster(), {0: OUT, 1: DOWN, 2: DOWN})
    plan = plan_repair(cluster_map)
    health = classify(cluster_map)
    assert (plan.remaining_redundancy >= 0).all()
    both_down = np.isin(cluster_map.pg_devices, [0, 1, 2]).sum(axis=1) == 3
    assert set(plan.blocked) == set(np.flatnonzero(both_down))
    assert (health.remaining_redundancy[plan.blocked] == -1).all()


def test_unreadable_groups_keep_their_devices_in_case_they_return() -> None:
    cluster_map = cluster()
    lost = cluster_map.pg_devices[0, :3].tolist()
    broken = with_device_state(cluster_map, dict.fromkeys(lost, OUT))
    plan = plan_repair(broken)
    assert 0 in plan.blocked
    assert 0 not in plan.pg
    after = apply_plan(broken, plan)
    back = with_device_state(after, dict.fromkeys(lost, UP))
    assert classify(back).is_clean[0]


def test_applied_plan_gives_new_homes_that_rebuild_under_a_new_epoch() -> None:
    cluster_map = with_device_state(cluster(), {0: OUT, 1: OUT})
    plan = plan_repair(cluster_map)
    after = apply_plan(cluster_map, plan)
    validate_cluster_map(after)
    assert after.epoch == cluster_map.epoch + 1
    assert not np.isin(after.pg_devices, [0, 1]).any()
    changed = (after.pg_devices != cluster_map.pg_devices).any(axis=1)
    assert (after.pg_epoch[changed] == after.epoch).all()
    assert (after.pg_epoch[~changed] == 1).all()
    moved = after.pg_devices != cluster_map.pg_devices
    assert np.array_equal(after.pg_slot_state == SlotState.REBUILDING, moved)
    assert set(cluster_map.pg_devices[plan.pg, plan.slot]) == {0, 1}


def test_rebuilding_slots_stay_where_they_are_until_clean() -> None:
    cluster_map = with_device_state(cluster(), {0: OUT})
    after = apply_plan(cluster_map, plan_repair(cluster_map))
    again = plan_repair(after)
    assert np.array_equal(again.source_device, again.target_device)
    assert apply_plan(after, again) is after
    clean = mark_clean(after, again.pg, again.slot)
    validate_cluster_map(clean)
    assert clean.epoch == after.epoch + 1
    assert np.array_equal(clean.pg_epoch, after.pg_epoch)
    assert len(plan_repair(clean)) == 0
    assert mark_clean(clean, again.pg, again.slot) is clean


def test_new_home_that_goes_down_is_waited_for_and_out_is_replaced() -> None:
    cluster_map = with_device_state(cluster(), {0: OUT})
    after = apply_plan(cluster_map, plan_repair(cluster_map))
    pg, slot = (int(index) for index in np.argwhere(after.pg_slot_state)[0])
    target = int(after.pg_devices[pg, slot])
    down = with_device_state(after, {target: DOWN})
    assert (pg, slot) not in {(int(p), int(s)) for p, s in zip(*_tasks(down), strict=True)}
    out = with_device_state(after, {target: OUT})
    plan = plan_repair(out)
    task = np.flatnonzero((plan.pg == pg) & (plan.slot == slot))
    assert len(task) == 1
    assert plan.target_device[task[0]] not in {0, target}


def _tasks(cluster_map: ClusterMap) -> tuple[list[int], list[int]]:
    plan = plan_repair(cluster_map)
    return plan.pg.tolist(), plan.slot.tolist()


def test_eight_nodes_less_two_hold_every_group() -> None:
    cluster_map = with_device_state(cluster(node_count=8), {0: OUT, 5: OUT})
    plan = plan_repair(cluster_map)
    assert len(plan.unplaced) == 0
    rows = apply_plan(cluster_map, plan).pg_devices
    assert (np.sort(rows, axis=1) == [1, 2, 3, 4, 6, 7]).all()


def test_slots_without_a_place_are_reported_and_taken_up_when_there_is_one() -> None:
    cluster_map = with_device_state(cluster(node_count=6, pg_count=5), {2: OUT})
    plan = plan_repair(cluster_map)
    assert len(plan) == 0
    assert plan.unplaced[:, 0].tolist() == [0, 1, 2, 3, 4]
    assert apply_plan(cluster_map, plan) is cluster_map
    grown = with_node(cluster_map, rack=0, device_weights=[1.0])
    plan = plan_repair(grown)
    assert (plan.target_device == 6).all()
    assert len(plan.unplaced) == 0


def test_a_scarce_place_goes_to_the_slot_whose_old_home_it_would_crowd() -> None:
    # Slot 0 lost node 1 altogether; slot 1 lost one of the two devices of node 0. The only place
    # left is node 0's other device: given to slot 0, it would share node 0 with slot 1's old home.
    topology = Topology.uniform(nodes_per_rack=4, devices_per_node=2)
    cluster_map = replace(
        new_map(topology, PlacementRule(), "rs-2-2", 4, 1),
        pg_devices=frozen(np.array([[2, 0, 4, 6]], dtype=np.int32)),
    )
    cluster_map = with_device_state(cluster_map, {0: OUT, 2: OUT, 3: OUT})
    plan = plan_repair(cluster_map)
    assert plan.unplaced.tolist() == [[0, 0]]
    after = apply_plan(cluster_map, plan)
    assert after.pg_devices.tolist() == [[2, 1, 4, 6]]
    validate_cluster_map(after)


def test_stale_plans_are_refused() -> None:
    cluster_map = with_device_state(cluster(), {0: OUT})
    plan = plan_repair(cluster_map)
    later = with_device_state(cluster_map, {1: DOWN})
    with pytest.raises(StalePlan, match="for epoch 2, the cluster map is at 3"):
        apply_plan(later, plan)


def test_unknown_slots_cannot_be_clean() -> None:
    with pytest.raises(UnknownIndex, match="no PG 80"):
        mark_clean(cluster(), [80], [0])
    with pytest.raises(UnknownIndex, match="no slot 6"):
        mark_clean(cluster(), [0], [6])


def test_replay_is_identical() -> None:
    def run() -> bytes:
        cluster_map = with_device_state(cluster(), {0: OUT, 3: OUT})
        plan = plan_repair(cluster_map)
        return plan.target_device.tobytes() + apply_plan(cluster_map, plan).pg_devices.tobytes()

    assert run() == run()


# ---- devices that return ----


def given_up(device: int = 0) -> ClusterMap:
    """A map whose device is OUT and whose slots on it rebuild elsewhere."""
    cluster_map = with_device_state(cluster(), {device: OUT})
    return apply_plan(cluster_map, plan_repair(cluster_map))


def test_slots_remember_who_held_them_until_they_are_clean() -> None:
    after = given_up()
    rebuilding = after.pg_slot_state == SlotState.REBUILDING
    assert (after.pg_previous[rebuilding] == 0).all()
    assert (after.pg_previous[~rebuilding] == NO_DEVICE).all()
    plan = plan_repair(after)
    assert (mark_clean(after, plan.pg, plan.slot).pg_previous == NO_DEVICE).all()


@pytest.mark.parametrize("state", [UP, DRAINING])
def test_a_device_that_returns_gets_back_what_was_not_rebuilt(state: DeviceState) -> None:
    after = given_up()
    first = plan_repair(after)
    half = len(first) // 2
    after = mark_clean(after, first.pg[:half], first.slot[:half])
    back = with_device_state(after, {0: state})
    health = classify(back)
    assert int(health.returning.sum()) == len(first) - half
    plan = plan_repair(back)
    assert set(plan.target_device) == {0}
    settled = apply_plan(back, plan)
    validate_cluster_map(settled)
    moved = settled.pg_devices != back.pg_devices
    assert int(moved.sum()) == len(first) - half
    assert (settled.pg_epoch[moved.any(axis=1)] == settled.epoch).all()
    # What was rebuilt stays where it is.
    pg, slot = first.pg[:half], first.slot[:half]
    assert np.array_equal(settled.pg_devices[pg, slot], after.pg_devices[pg, slot])


def test_a_returned_slot_is_not_readable_before_it_was_verified() -> None:
    back = with_device_state(given_up(), {0: UP})
    settled = apply_plan(back, plan_repair(back))
    health = classify(settled)
    assert health.returned.any()
    assert not health.readable[health.returned].any()
    plan = plan_repair(settled)
    assert np.array_equal(plan.source_device, plan.target_device)
    assert set(zip(plan.pg.tolist(), plan.slot.tolist(), strict=True)) == {
        (pg, slot) for pg, slot in np.argwhere(health.returned).tolist()
    }
    clean = mark_clean(settled, plan.pg, plan.slot)
    validate_cluster_map(clean)
    assert classify(clean).is_clean.all()
    assert np.array_equal(clean.pg_devices, cluster().pg_devices)


def test_the_oldest_holder_is_remembered_when_the_target_is_lost_too() -> None:
    after = given_up()
    pg, slot = (int(index) for index in np.argwhere(after.pg_slot_state)[0])
    interim = int(after.pg_devices[pg, slot])
    out = with_device_state(after, {interim: OUT})
    again = apply_plan(out, plan_repair(out))
    assert again.pg_devices[pg, slot] not in {0, interim}
    assert again.pg_previous[pg, slot] == 0
    both_back = with_device_state(again, {0: UP, interim: UP})
    assert apply_plan(both_back, plan_repair(both_back)).pg_devices[pg, slot] == 0


def test_a_device_that_flaps_while_it_catches_up_is_still_the_one_that_held_the_slot() -> None:
    cluster_map = given_up()
    for _ in range(3):
        cluster_map = with_device_state(cluster_map, {0: UP})
        cluster_map = apply_plan(cluster_map, plan_repair(cluster_map))
        assert np.array_equal(cluster_map.pg_devices, cluster().pg_devices)
        cluster_map = with_device_state(cluster_map, {0: OUT})
        cluster_map = apply_plan(cluster_map, plan_repair(cluster_map))
        assert not (cluster_map.pg_devices == 0).any()
        rebuilding = cluster_map.pg_slot_state == SlotState.REBUILDING
        assert (cluster_map.pg_previous[rebuilding] == 0).all()


def test_a_device_does_not_return_into_a_domain_that_was_filled_meanwhile() -> None:
    topology = Topology.uniform(nodes_per_rack=5, devices_per_node=2)
    cluster_map = replace(
        new_map(topology, PlacementRule(), "rs-2-2", 4, 1),
        pg_devices=frozen(np.array([[8, 1, 4, 6]], dtype=np.int32)),
        pg_slot_state=frozen(np.array([[1, 0, 0, 0]], dtype=np.uint8)),
        pg_previous=frozen(np.array([[0, -1, -1, -1]], dtype=np.int32)),
    )
    validate_cluster_map(cluster_map)
    plan = plan_repair(cluster_map)
    assert plan.target_device.tolist() == plan.source_device.tolist() == [8]
    # Nor while the slot that fills it has no other place yet.
    out = with_device_state(cluster_map, {1: OUT})
    settled = apply_plan(out, plan_repair(out))
    validate_cluster_map(settled)
    again = apply_plan(settled, plan_repair(settled))
    validate_cluster_map(again)
    assert again.pg_devices[0, 0] == 0


def test_a_group_that_cannot_be_read_gets_its_returning_devices_back() -> None:
    after = given_up()
    pg = int(np.argwhere(after.pg_slot_state)[0][0])
    slot = int(np.flatnonzero(after.pg_slot_state[pg])[0])
    others = [int(device) for s, device in enumerate(after.pg_devices[pg]) if s != slot][:2]
    broken = with_device_state(after, dict.fromkeys(others, OUT))
    assert pg in plan_repair(broken).blocked
    assert pg not in plan_repair(broken).pg
    back = with_device_state(broken, {0: UP})
    settled = apply_plan(back, plan_repair(back))
    validate_cluster_map(settled)
    assert settled.pg_devices[pg, slot] == 0
    assert set(others) <= set(settled.pg_devices[pg].tolist())
    plan = plan_repair(settled)
    # It is verified first of all, and only it.
    assert plan.remaining_redundancy[0] == -1
    assert plan.slot[plan.pg == pg].tolist() == [slot]
    assert pg in plan.blocked
    clean = mark_clean(settled, [pg], [slot])
    assert pg not in plan_repair(clean).blocked


def test_validation_sees_wrong_previous_devices() -> None:
    cluster_map = given_up()
    for value, facts in ((0, "CLEAN slot names"), (99, "does not exist")):
        previous = cluster_map.pg_previous.copy()
        pg, slot = np.argwhere((cluster_map.pg_slot_state == SlotState.CLEAN) == (value == 0))[0]
        previous[pg, slot] = value
        with pytest.raises(InvalidClusterMap, match=facts):
            validate_cluster_map(replace(cluster_map, pg_previous=frozen(previous)))
    with pytest.raises(InvalidClusterMap, match="every slot needs one previous"):
        validate_cluster_map(replace(cluster_map, pg_previous=frozen(previous[:1].copy())))
