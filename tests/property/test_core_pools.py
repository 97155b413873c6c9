"""Pools with rules at many levels, in random worlds: data stays where its pool lets it be."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from exastore.metadata.core.cluster_map import new_map, validate_cluster_map, with_device_state
from exastore.metadata.core.moves import (
    begin_moves,
    begin_replacement,
    next_batch,
    plan_moves,
    plan_replacement,
)
from exastore.metadata.core.pools import broken_rows, crosses_region, pools_of
from exastore.metadata.core.repair import apply_plan, classify, mark_clean, plan_repair
from exastore.metadata.core.rules import placeable_slots
from exastore.metadata.core.topology import (
    NO_DEVICE,
    ClusterMap,
    DeviceState,
    DomainLevel,
    PlacementRule,
    Pool,
    SlotState,
    Topology,
)

K, M = 2, 2
UP, OUT, DRAINING = DeviceState.UP, DeviceState.OUT, DeviceState.DRAINING
NODE, RACK, ZONE, REGION = list(DomainLevel)[1:]


@st.composite
def rules(draw: st.DrawFn, topology: Topology) -> PlacementRule:
    """A rule of limits at several levels that leaves room for a group."""
    regions = draw(st.sampled_from([None, (0,), (1,), (0, 1)]))
    level = draw(st.sampled_from([NODE, RACK]))
    also = tuple(
        (above, draw(st.integers(1, 3))) for above in (RACK, ZONE, REGION) if draw(st.booleans())
    )
    rule = PlacementRule(level, draw(st.integers(1, 2)), also, regions=regions)
    while placeable_slots(topology, rule) < K + M:
        also = tuple((above, most + 1) for above, most in rule.also)
        rule = PlacementRule(level, rule.max_per_domain + 1, also, regions=regions)
    return rule


@st.composite
def pooled_maps(draw: st.DrawFn) -> ClusterMap:
    topology = Topology.uniform(
        region_count=2,
        zones_per_region=draw(st.integers(1, 2)),
        racks_per_zone=draw(st.integers(1, 3)),
        nodes_per_rack=draw(st.integers(1, 3)),
        devices_per_node=draw(st.integers(1, 2)),
    )
    if topology.device_count < 2 * (K + M):
        topology = Topology.uniform(region_count=2, racks_per_zone=2, nodes_per_rack=2)
    pools = [Pool(name, draw(rules(topology)), 6 * i, 6) for i, name in enumerate(("a", "b"))]
    return new_map(topology, PlacementRule(), "rs-2-2", K + M, 12, pools=pools)


def check(cluster_map: ClusterMap) -> None:
    """The map's laws, and that no pool has a device outside its regions."""
    validate_cluster_map(cluster_map)
    assert not broken_rows(cluster_map).any()
    region = np.append(cluster_map.topology.domain_of_device(REGION), -1)
    for pool in pools_of(cluster_map):
        if pool.rule.regions is not None:
            found = set(region[cluster_map.pg_devices[pool.pgs]].ravel().tolist())
            assert found <= {*pool.rule.regions, -1}


def repaired(cluster_map: ClusterMap) -> ClusterMap:
    """After all repairs that can be made."""
    plan = plan_repair(cluster_map)
    before = cluster_map.pg_devices
    moved = apply_plan(cluster_map, plan)
    check(moved)
    # What is not rebuilt keeps the device it had; only slots in the plan change.
    same = np.ones(before.shape, dtype=np.bool_)
    same[plan.pg, plan.slot] = False
    assert (moved.pg_devices == before)[same].all()
    pgs, slots = np.nonzero(moved.pg_slot_state == SlotState.REBUILDING)
    served = np.isin(moved.device_state[moved.pg_devices[pgs, slots]], (UP, DRAINING))
    return mark_clean(moved, pgs[served], slots[served])


def moved(cluster_map: ClusterMap, *, is_balancing: bool) -> ClusterMap:
    """After all moves that drain and balance."""
    for _ in range(60):
        plan = plan_moves(cluster_map, is_balancing=is_balancing)
        batch = next_batch(cluster_map, plan, classify(cluster_map).readable, 1.0)
        if not len(batch):
            break
        cluster_map = begin_moves(cluster_map, batch)
        check(cluster_map)
        cluster_map = mark_clean(cluster_map, batch.pg.tolist(), batch.slot.tolist())
    return cluster_map


@settings(max_examples=60, deadline=None)
@given(pooled_maps(), st.data())
def test_no_failure_drain_or_balance_takes_data_out_of_its_pool(
    cluster_map: ClusterMap, data: st.DataObject
) -> None:
    check(cluster_map)
    count = cluster_map.topology.device_count
    devices = st.integers(0, count - 1)
    for _ in range(data.draw(st.integers(1, 5))):
        step = data.draw(st.sampled_from(["fail", "return", "drain", "balance", "replace"]))
        device = data.draw(devices)
        if step == "fail":
            cluster_map = with_device_state(cluster_map, {device: OUT})
            cluster_map = repaired(cluster_map)
        elif step == "return":
            cluster_map = repaired(with_device_state(cluster_map, {device: UP}))
        elif step == "drain":
            cluster_map = with_device_state(cluster_map, {device: DRAINING})
            cluster_map = moved(cluster_map, is_balancing=False)
        elif step == "balance":
            cluster_map = moved(cluster_map, is_balancing=True)
        else:
            new = data.draw(devices)
            if new != device and cluster_map.device_state[new] == UP:
                moves, _ = plan_replacement(cluster_map, device, new)
                cluster_map = begin_replacement(cluster_map, moves)
        check(cluster_map)


@settings(max_examples=40, deadline=None)
@given(pooled_maps(), st.data())
def test_repair_of_many_devices_gives_up_no_slot_that_had_a_place(
    cluster_map: ClusterMap, data: st.DataObject
) -> None:
    count = cluster_map.topology.device_count
    lost = data.draw(st.sets(st.integers(0, count - 1), min_size=1, max_size=count // 2))
    hurt = with_device_state(cluster_map, dict.fromkeys(lost, OUT))
    after = apply_plan(hurt, plan_repair(hurt))
    check(after)
    assert (after.pg_devices != NO_DEVICE).all()


def test_a_balanced_pool_holds_its_share_of_each_region_it_may_use() -> None:
    topology = Topology.uniform(region_count=2, racks_per_zone=2, nodes_per_rack=4)
    pools = [
        Pool("default", PlacementRule(NODE), 0, 64),
        Pool("eu", PlacementRule(NODE, regions=(1,)), 64, 64),
    ]
    first = new_map(topology, PlacementRule(), "rs-2-2", 4, 128, pools=pools)
    balanced = moved(first, is_balancing=True)
    for pool, devices in zip(pools, (range(16), range(8, 16)), strict=True):
        held = np.bincount(balanced.pg_devices[pool.pgs].ravel(), minlength=16)
        share = 64 * 4 / len(devices)
        assert (np.abs(held[list(devices)] - share) <= 1).all()
        assert held.sum() == held[list(devices)].sum()
    assert not crosses_region(topology, np.array([0, -1, 9]), np.array([7, 9, 15])).any()
    assert crosses_region(topology, np.array([0]), np.array([8])).all()
