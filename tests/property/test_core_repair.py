"""Repair over random clusters and long histories: the laws of maps and plans hold throughout."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from exastore.metadata.core.cluster_map import (
    new_map,
    placeable_slots,
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
    plan = plan_repair(cluster_map, K)
    health = classify(cluster_map, M)
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
    assert (state[plan.target_device[moved]] == UP).all()
    after = apply_plan(cluster_map, plan)
    validate_cluster_map(after)
    changed = after.pg_devices != cluster_map.pg_devices
    assert int(changed.sum()) == int(moved.sum())
    assert (after.pg_slot_state[changed] == SlotState.REBUILDING).all()
    # A group is short of places only if the rule leaves no more, old homes aside.
    if unplaced:
        room = placeable_slots(cluster_map.topology, cluster_map.rule, state)
        assert room < K + M or (state != UP).any()
    return after


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
            plan = plan_repair(cluster_map, K)
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
    plan = plan_repair(cluster_map, K)
    cluster_map = mark_clean(cluster_map, plan.pg, plan.slot)
    health = classify(cluster_map, M)
    unplaced = set(plan.unplaced[:, 0].tolist())
    assert set(np.flatnonzero(~health.is_clean).tolist()) == unplaced


@settings(max_examples=100)
@given(st.lists(st.tuples(st.integers(0, 40), st.integers(0, 3), st.booleans()), max_size=40))
def test_node_health_equals_a_plain_look_at_the_silence(
    steps: list[tuple[int, int, bool]],
) -> None:
    options = HealthOptions(down_after_s=10.0, out_after_s=30.0)
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
