"""Cluster maps as values, their laws, and the balance of their PG tables."""

from dataclasses import replace

import numpy as np
import pytest

from exastore.metadata.core.balance import balance, balance_of, unplaced_slots
from exastore.metadata.core.cluster_map import (
    empty_topology,
    new_map,
    topology_with_node,
    validate_cluster_map,
    with_device_state,
    with_device_weight,
    with_devices,
    with_node,
)
from exastore.metadata.core.errors import InvalidClusterMap, TooFewDomains, UnknownIndex
from exastore.metadata.core.pools import violations
from exastore.metadata.core.rules import check_placeable, placeable_slots
from exastore.metadata.core.topology import (
    NO_DEVICE,
    ClusterMap,
    DeviceState,
    DomainLevel,
    PlacementRule,
    Topology,
    frozen,
)


def small_map() -> ClusterMap:
    topology = Topology.uniform(racks_per_zone=2, nodes_per_rack=4)
    return new_map(topology, PlacementRule(), "rs-4-2", 6, 64)


def test_new_map_keeps_all_laws() -> None:
    cluster_map = small_map()
    validate_cluster_map(cluster_map)
    assert cluster_map.epoch == 1
    assert violations(cluster_map) == 0
    assert unplaced_slots(cluster_map) == 0


def test_new_map_refuses_too_few_domains_and_says_what_helps() -> None:
    with pytest.raises(TooFewDomains, match="at most 1 per node leaves room for 4: add nodes") as e:
        new_map(Topology.uniform(nodes_per_rack=4), PlacementRule(), "rs-4-2", 6, 8)
    assert (e.value.need, e.value.have) == (6, 4)


def test_placeable_slots_are_bounded_by_rule_and_by_devices() -> None:
    topology = Topology.uniform(racks_per_zone=2, nodes_per_rack=3)
    assert placeable_slots(topology, PlacementRule(DomainLevel.RACK, 2)) == 4
    assert placeable_slots(topology, PlacementRule(DomainLevel.RACK, 9)) == 6
    assert placeable_slots(topology, PlacementRule(DomainLevel.DEVICE)) == 6
    check_placeable(topology, PlacementRule(), 6)


def test_changes_make_new_epochs_and_leave_the_old_map_alone() -> None:
    old = small_map()
    new = with_device_state(old, {3: DeviceState.DOWN})
    assert (old.device_state[3], new.device_state[3]) == (DeviceState.UP, DeviceState.DOWN)
    assert (old.epoch, new.epoch) == (1, 2)
    assert new.pg_devices is old.pg_devices
    validate_cluster_map(new)


def test_a_state_that_holds_already_makes_no_epoch() -> None:
    cluster_map = small_map()
    assert with_device_state(cluster_map, {3: DeviceState.UP}) is cluster_map


def test_weights_change_without_moving_a_slot() -> None:
    old = small_map()
    new = with_device_weight(old, {0: 8.0})
    assert new.topology.device_weight[0] == 8.0
    assert new.epoch == 2
    assert new.pg_devices is old.pg_devices
    validate_cluster_map(new)


@pytest.mark.parametrize("device", [-1, 8])
def test_unknown_devices_are_refused(device: int) -> None:
    with pytest.raises(UnknownIndex, match=f"no device {device}: the cluster map has 8"):
        with_device_state(small_map(), {device: DeviceState.OUT})
    with pytest.raises(UnknownIndex):
        with_device_weight(small_map(), {device: 1.0})


def test_nodes_and_devices_are_appended() -> None:
    grown = with_devices(with_node(small_map(), rack=2, device_weights=[1.0, 2.0]), 0, [4.0])
    assert grown.epoch == 3
    assert grown.topology.device_node[-3:].tolist() == [8, 8, 0]
    assert grown.topology.node_rack[-1] == 2
    assert (grown.device_state[-3:] == DeviceState.UP).all()
    validate_cluster_map(grown)


def test_topology_grows_from_nothing() -> None:
    topology = empty_topology()
    for rack in range(3):
        topology = topology_with_node(topology, rack=rack, zone=rack // 2, device_weights=[1.0])
    assert topology.rack_zone.tolist() == [0, 0, 1]
    assert topology.zone_region.tolist() == [0, 0]
    validate_cluster_map(new_map(topology, PlacementRule(DomainLevel.RACK), "rep-3", 3, 4))


@pytest.mark.parametrize(("rack", "zone"), [(4, 0), (2, 2), (-1, 0)])
def test_gaps_in_the_numbering_are_refused(rack: int, zone: int) -> None:
    with pytest.raises(UnknownIndex):
        with_node(small_map(), rack=rack, zone=zone)


def test_unknown_parents_are_refused() -> None:
    with pytest.raises(UnknownIndex, match="no region 7"):
        with_node(small_map(), rack=2, zone=1, region=7)
    with pytest.raises(UnknownIndex, match="no node 8"):
        with_devices(small_map(), 8, [1.0])


def broken_maps() -> dict[str, ClusterMap]:
    good = small_map()
    topology = good.topology
    twice = good.pg_devices.copy()
    twice[5, 1] = twice[5, 0]
    stray = good.pg_devices.copy()
    stray[5, 1] = 8
    orphan = topology.device_node.copy()
    orphan[2] = 99
    weight = topology.device_weight.copy()
    weight[2] = np.nan
    return {
        "1 PGs break the rule, first 5": replace(good, pg_devices=frozen(twice)),
        "device that does not exist": replace(good, pg_devices=frozen(stray)),
        "device 2 is in no node": replace(
            good, topology=replace(topology, device_node=frozen(orphan))
        ),
        "weights must be finite": replace(
            good, topology=replace(topology, device_weight=frozen(weight))
        ),
        "epochs start at 1": replace(good, epoch=0),
        "newer than its map": replace(good, pg_epoch=frozen(good.pg_epoch + 5)),
        "every device needs one state": replace(good, device_state=good.device_state[:-1]),
        "unknown device state": replace(good, device_state=frozen(good.device_state * 0)),
        "unknown slot state": replace(good, pg_slot_state=frozen(good.pg_slot_state + 9)),
        "every slot needs one state": replace(good, pg_slot_state=good.pg_slot_state[:-1]),
        "every PG needs one epoch": replace(good, pg_epoch=good.pg_epoch[:-1]),
        "1 chunk per domain": replace(good, rule=PlacementRule(DomainLevel.NODE, 0)),
        "arrays are read-only": replace(good, pg_devices=good.pg_devices.copy()),
    }


@pytest.mark.parametrize("facts", broken_maps())
def test_each_broken_law_is_named(facts: str) -> None:
    with pytest.raises(InvalidClusterMap, match=facts):
        validate_cluster_map(broken_maps()[facts])


def test_balance_is_in_slots_of_a_mean_device() -> None:
    rows = np.array([[0, 1], [0, 1], [0, NO_DEVICE]], dtype=np.int32)
    stats = balance_of(rows, np.array([3.0, 1.0, 0.0]))
    assert (stats.device_count, stats.slot_count) == (2, 5)
    assert (stats.minimum, stats.maximum) == (2.0, 4.0)  # 3 * 2/3 and 2 * 2/1
    assert stats.mean == 3.0
    assert stats.stddev == 1.0
    assert stats.relative_stddev == pytest.approx(1 / 3)
    assert stats.fill_limit == 0.75


def test_balance_of_nothing_is_zero() -> None:
    stats = balance_of(np.zeros((0, 3), dtype=np.int32), np.zeros(4))
    assert (stats.mean, stats.relative_stddev, stats.fill_limit) == (0.0, 0.0, 1.0)


def test_balance_of_a_map_is_that_of_its_table() -> None:
    cluster_map = small_map()
    assert balance(cluster_map).mean == 64 * 6 / 8


def test_violations_count_rows_not_slots() -> None:
    good = small_map()
    rows = good.pg_devices.copy()
    rows[[2, 9]] = [0, 0, 0, 1, 2, 3]
    rows[11] = NO_DEVICE
    broken = replace(good, pg_devices=frozen(rows))
    assert violations(broken) == 2
    assert unplaced_slots(broken) == 6
