"""Repair over random clusters and long histories: the laws of maps and plans hold throughout."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from exastore.metadata.core.balance import rule_violations
from exastore.metadata.core.cluster_map import (
    new_map,
    validate_cluster_map,
    with_device_state,
)
from exastore.metadata.core.health import HealthOptions, Heartbeat, NodeHealth
from exastore.metadata.core.repair import (
    apply_plan,
    classify,
    mark_clean,
    plan_repair,
    repair_priority,
)
from exastore.metadata.core.rules import placeable_slots
from exastore.metadata.core.topology import (
    ClusterMap,
    DeviceState,
    DomainLevel,
    PlacementRule,
    SlotState,
    Topology,
)

K, M = 2, 2
UP, DOWN, OUT = DeviceState.UP, DeviceState.DOWN, DeviceState.OUT
DRAINING = DeviceState.DRAINING


@st.composite
def cluster_maps(draw: st.DrawFn) -> ClusterMap:
    topology = Topology.uniform(
        racks_per_zone=draw(st.integers(1, 4)),
        nodes_per_rack=draw(st.integers(1, 4)),
        devices_per_node=draw(st.integers(1, 3)),
    )
    level = draw(st.sampled_from([DomainLevel.DEVICE, DomainLevel.NODE, DomainLevel.RACK]))
    limit = draw(st.integers(1, 4))
    while placeable_slots(topology, PlacementRule(level, limit)) < K + M:
        if limit < K + M:
            limit += 1
        elif level > DomainLevel.DEVICE:
            level = DomainLevel(level - 1)
        else:
            topology = Topology.uniform(nodes_per_rack=4, devices_per_node=2)
    return new_map(topology, PlacementRule(level, limit), "rs-2-2", K + M, 12)


def check_plan(cluster_map: ClusterMap) -> ClusterMap:
    """Plans, checks the plan against the laws, applies it."""
    plan = plan_repair(cluster_map)
    health = classify(cluster_map)
    keys = [
        repair_priority(int(r), int(p), int(s))
        for r, p, s in zip(plan.remaining_redundancy, plan.pg, plan.slot, strict=True)
    ]
    assert keys == sorted(set(keys))
    tasks = set(zip(plan.pg.tolist(), plan.slot.tolist(), strict=True))
    lost = {(int(p), int(s)) for p, s in np.argwhere(health.lost)}
    blocked, unplaced = set(plan.blocked.tolist()), {(int(p), int(s)) for p, s in plan.unplaced}
    assert tasks <= lost
    assert not tasks & unplaced
    state = cluster_map.device_state
    waits = {
        (p, s)
        for p, s in lost
        if health.unfinished[p, s] and state[cluster_map.pg_devices[p, s]] == DOWN
    }
    assert lost == tasks | unplaced | waits | {(p, s) for p, s in lost if p in blocked}
    moved = plan.source_device != plan.target_device
    # New places are UP; a previous device takes its slot back while it drains, too.
    home = plan.target_device == cluster_map.pg_previous[plan.pg, plan.slot]
    assert (state[plan.target_device[moved & ~home]] == UP).all()
    assert np.isin(state[plan.target_device[home]], [UP, DRAINING]).all()
    assert home[plan.remaining_redundancy < 0].all()
    after = apply_plan(cluster_map, plan)
    validate_cluster_map(after)
    changed = after.pg_devices != cluster_map.pg_devices
    assert int(changed.sum()) == int(moved.sum())
    assert (after.pg_slot_state[changed] == SlotState.REBUILDING).all()
    assert (after.pg_epoch[changed.any(axis=1)] == after.epoch).all()
    check_previous_devices(cluster_map, after)
    # A group is short of places only if the rule leaves no more, old homes aside.
    if unplaced:
        room = placeable_slots(cluster_map.topology, cluster_map.rule, state)
        assert room < K + M or (state != UP).any()
    return after


def check_previous_devices(before: ClusterMap, after: ClusterMap) -> None:
    """A slot names the device that held it CLEAN, and gets it back as soon as the rule allows."""
    was_clean = before.pg_slot_state == SlotState.CLEAN
    changed = after.pg_devices != before.pg_devices
    previous = np.where(changed & was_clean, before.pg_devices, before.pg_previous)
    assert np.array_equal(after.pg_previous, previous)
    health = classify(before)
    assert not (health.returning & ~health.lost).any()
    assert not (health.returned & (health.readable | ~health.unfinished)).any()
    rules = rule_violations(before.topology, before.rule, before.pg_devices)
    assert not rules.any()
    for pg, slot in np.argwhere(health.returning).tolist():
        row = before.pg_devices[pg].copy()
        row[slot] = before.pg_previous[pg, slot]
        if (health.returning[pg]).sum() == 1:
            allowed = not rule_violations(before.topology, before.rule, row[None, :])[0]
            assert allowed == (after.pg_devices[pg, slot] == row[slot])


@settings(deadline=None, max_examples=80)
@given(cluster_maps(), st.data())
def test_histories_of_failures_and_repairs_keep_every_law(
    cluster_map: ClusterMap, data: st.DataObject
) -> None:
    devices = st.integers(0, cluster_map.topology.device_count - 1)
    for _ in range(data.draw(st.integers(1, 8))):
        epoch = cluster_map.epoch
        changes = data.draw(st.dictionaries(devices, st.sampled_from(DeviceState), max_size=4))
        cluster_map = check_plan(with_device_state(cluster_map, changes))
        if data.draw(st.booleans()):
            plan = plan_repair(cluster_map)
            cluster_map = mark_clean(cluster_map, plan.pg, plan.slot)
            validate_cluster_map(cluster_map)
        assert cluster_map.epoch >= epoch


@settings(deadline=None, max_examples=40)
@given(cluster_maps(), st.data())
def test_repair_heals_everything_that_has_a_place(
    cluster_map: ClusterMap, data: st.DataObject
) -> None:
    device = data.draw(st.integers(0, cluster_map.topology.device_count - 1))
    cluster_map = check_plan(with_device_state(cluster_map, {device: OUT}))
    plan = plan_repair(cluster_map)
    cluster_map = mark_clean(cluster_map, plan.pg, plan.slot)
    health = classify(cluster_map)
    unplaced = set(plan.unplaced[:, 0].tolist())
    assert set(np.flatnonzero(~health.is_clean).tolist()) == unplaced


@settings(deadline=None, max_examples=60)
@given(cluster_maps(), st.data())
def test_devices_that_flap_get_back_what_was_not_rebuilt_and_nothing_else(
    cluster_map: ClusterMap, data: st.DataObject
) -> None:
    device_count = cluster_map.topology.device_count
    flapping = data.draw(st.lists(st.integers(0, device_count - 1), min_size=1, max_size=3))
    first_rows = cluster_map.pg_devices
    rebuilt = np.zeros(first_rows.shape, dtype=np.bool_)
    for _ in range(data.draw(st.integers(1, 6))):
        device = data.draw(st.sampled_from(flapping))
        state = data.draw(st.sampled_from([UP, DOWN, OUT]))
        cluster_map = check_plan(with_device_state(cluster_map, {device: state}))
        # Some of the rebuilds that can run end.
        plan = plan_repair(cluster_map)
        stays = plan.source_device == plan.target_device
        ended = stays & (data.draw(st.integers(0, 3)) == plan.pg % 4)
        rebuilt[plan.pg[ended], plan.slot[ended]] = True
        cluster_map = mark_clean(cluster_map, plan.pg[ended], plan.slot[ended])
        validate_cluster_map(cluster_map)
    back = dict.fromkeys(range(device_count), UP)
    clean_before = cluster_map.pg_slot_state == SlotState.CLEAN
    settled = with_device_state(cluster_map, back)
    for _ in range(K + M):  # a slot may have to wait for another to leave its domain
        settled = check_plan(settled)
    # What was CLEAN stays where it is, and what never was rebuilt elsewhere is at home again.
    assert np.array_equal(settled.pg_devices[clean_before], cluster_map.pg_devices[clean_before])
    never = ~rebuilt.any(axis=1)
    assert np.array_equal(settled.pg_devices[never], first_rows[never])
    unfinished = settled.pg_slot_state == SlotState.REBUILDING
    assert not (classify(settled).readable & unfinished).any()
    plan = plan_repair(settled)
    assert set(zip(plan.pg.tolist(), plan.slot.tolist(), strict=True)) <= {
        (pg, slot) for pg, slot in np.argwhere(unfinished).tolist()
    }


@settings(max_examples=100)
@given(st.lists(st.tuples(st.integers(0, 40), st.integers(0, 3), st.booleans()), max_size=40))
def test_node_health_equals_a_plain_look_at_the_silence(
    steps: list[tuple[int, int, bool]],
) -> None:
    options = HealthOptions(down_after_s=10.0, out_after_s=30.0, max_out_fraction=1.0)
    health = NodeHealth(options)
    last_seen: dict[int, float] = {}
    recorded: dict[int, DeviceState] = {}
    now = 0.0
    for wait_s, device, is_heartbeat in steps:
        target = now + wait_s
        while (due := health.next_deadline()) is not None and due <= target:
            now = max(now, due)
            for command in health.on_deadline(now):
                recorded[command.device] = command.state
        now = target
        if is_heartbeat:
            last_seen[device] = now
            for command in health.handle(Heartbeat(0, (device,)), now):
                recorded[command.device] = command.state
        health.validate()
        for known, seen in last_seen.items():
            silence = now - seen
            assert recorded[known] == (UP if silence < 10 else DOWN if silence < 30 else OUT)
