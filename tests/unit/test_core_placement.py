"""Placement: the vector of crushtool, proportionality, stability, exhaustion, determinism."""

from dataclasses import replace

import numpy as np
import pytest

from exastore.metadata.core import _reference
from exastore.metadata.core.balance import balance_of, slots_per_device
from exastore.metadata.core.cluster_map import topology_with_node
from exastore.metadata.core.placement import (
    INDEX_BITS,
    PlacementColumns,
    all_up,
    choose_replacement,
    place_pgs,
    place_with_columns,
    placement_columns,
)
from exastore.metadata.core.straw2 import log_draw_table, with_child_ids
from exastore.metadata.core.topology import (
    NO_DEVICE,
    DeviceState,
    DomainLevel,
    PlacementRule,
    Topology,
)

RACK, NODE, DEVICE = DomainLevel.RACK, DomainLevel.NODE, DomainLevel.DEVICE


def with_weights(topology: Topology, weights: list[float]) -> Topology:
    return replace(topology, device_weight=np.array(weights, dtype=np.float64))


def with_ceph_ids(columns: PlacementColumns, node_count: int) -> PlacementColumns:
    """Names buckets as `crushtool --build` does: nodes -1, -2, ..., then racks."""
    ids = columns.tree.child_id.astype(np.int64)
    level, index = ids >> INDEX_BITS, ids & ((1 << INDEX_BITS) - 1)
    ceph = np.select(
        [level == 0, level == 1, level == 2], [index, -1 - index, -1 - node_count - index]
    )
    ids32 = (ceph & 0xFFFFFFFF).astype(np.uint32)
    return columns._replace(tree=with_child_ids(columns.tree, ids32))


def test_choices_are_those_of_crushtool() -> None:
    # crushtool 16.2.15: 40 racks x 12 hosts x 20 OSDs, `chooseleaf indep 0 type rack`, 14 wide.
    topology = Topology.uniform(racks_per_zone=40, nodes_per_rack=12, devices_per_node=20)
    columns = with_ceph_ids(placement_columns(topology, PlacementRule(RACK)), 480)
    expected = [6413, 5916, 3672, 9010, 5190, 1256, 7602, 5451, 8338, 3452, 912, 8598, 9436, 2730]
    assert place_with_columns(columns, 1, 14)[0].tolist() == expected


def test_logarithms_are_exact_floors() -> None:
    table = log_draw_table()
    assert table[0] == -(2.0**48)
    assert table[65535] == 0
    assert (np.diff(table) > 0).all()
    samples = [*range(2, 300), *range(300, 65536, 997)]
    assert table[samples].tolist() == [_reference.log_draw(u) for u in samples]


def test_devices_get_slots_in_proportion_to_weight() -> None:
    topology = Topology.uniform(nodes_per_rack=12, devices_per_node=2)
    weights = [1.0, 2.0, 4.0] * 8
    rows = place_pgs(with_weights(topology, weights), PlacementRule(DEVICE), 20_000, 1)
    counts = slots_per_device(rows, 24)
    expected = 20_000 * np.array(weights) / sum(weights)
    chi_square = float(((counts - expected) ** 2 / expected).sum())
    assert chi_square < 60  # 23 degrees of freedom: 49.7 is the 0.1 % point


def test_spread_is_that_of_independent_choices() -> None:
    topology = Topology.uniform(racks_per_zone=40, nodes_per_rack=12, devices_per_node=20)
    rows = place_pgs(topology, PlacementRule(RACK), 20_000, 14)
    stats = balance_of(rows, topology.device_weight)
    assert stats.mean == pytest.approx(20_000 * 14 / 9_600)
    assert stats.stddev == pytest.approx(stats.mean**0.5, rel=0.05)


def test_device_without_weight_takes_nothing() -> None:
    topology = with_weights(Topology.uniform(nodes_per_rack=4), [1.0, 0.0, 1.0, 1.0])
    rows = place_pgs(topology, PlacementRule(), 200, 4)
    assert 1 not in rows
    assert ((rows == NO_DEVICE).sum(axis=1) == 1).all()


def test_larger_weight_moves_slots_only_towards_it() -> None:
    topology = Topology.uniform(nodes_per_rack=20)
    heavier = with_weights(topology, [1.0] * 7 + [2.0] + [1.0] * 12)
    before = place_pgs(topology, PlacementRule(), 20_000, 1)
    after = place_pgs(heavier, PlacementRule(), 20_000, 1)
    moved = before != after
    assert (after[moved] == 7).all()
    assert moved.mean() == pytest.approx(2 / 21 - 1 / 20, rel=0.1)


def test_new_node_takes_its_share_from_all_and_moves_little_else() -> None:
    topology = Topology.uniform(racks_per_zone=4, nodes_per_rack=5, devices_per_node=3)
    grown = topology_with_node(topology, rack=2, device_weights=[1.0, 1.0, 1.0])
    before = place_pgs(topology, PlacementRule(), 20_000, 1)
    after = place_pgs(grown, PlacementRule(), 20_000, 1)
    moved = before != after
    share = 3 / 63
    assert (after >= 60).mean() == pytest.approx(share, rel=0.1)
    # Only slots that the grown rack attracts move: to the new node, or within CRUSH's known
    # excess to another node of that rack.
    rack_of = grown.domain_of_device(RACK)
    assert (rack_of[after[moved]] == 2).all()
    assert moved.mean() < 2 * share


def test_growth_of_one_level_renames_no_bucket() -> None:
    topology = Topology.uniform(racks_per_zone=3, nodes_per_rack=4)
    grown = topology_with_node(topology, rack=1, device_weights=[0.0])
    assert np.array_equal(
        place_pgs(topology, PlacementRule(RACK), 300, 3),
        place_pgs(grown, PlacementRule(RACK), 300, 3),
    )


@pytest.mark.parametrize(("node_count", "out"), [(6, []), (8, [0, 1]), (7, [3]), (8, [2, 7])])
def test_six_slots_fill_exactly_six_nodes(node_count: int, out: list[int]) -> None:
    topology = Topology.uniform(nodes_per_rack=node_count)
    state = all_up(node_count)
    state[out] = DeviceState.OUT
    rows = place_pgs(topology, PlacementRule(), 500, 6, device_state=state)
    alive = sorted(set(range(node_count)) - set(out))
    assert (np.sort(rows, axis=1) == alive).all()


@pytest.mark.parametrize("state", [DeviceState.DOWN, DeviceState.OUT, DeviceState.DRAINING])
def test_only_up_devices_are_chosen(state: DeviceState) -> None:
    topology = Topology.uniform(nodes_per_rack=5, devices_per_node=2)
    states = all_up(10)
    states[4] = state
    rows = place_pgs(topology, PlacementRule(), 500, 5, device_state=states)
    assert 4 not in rows
    assert (rows != NO_DEVICE).all()


def test_impossible_slots_stay_empty_and_keep_their_position() -> None:
    rows = place_pgs(Topology.uniform(nodes_per_rack=3), PlacementRule(), 100, 5)
    assert ((rows == NO_DEVICE).sum(axis=1) == 2).all()


def test_no_device_at_all_gives_empty_rows() -> None:
    state = np.full(4, DeviceState.OUT, dtype=np.uint8)
    topology = Topology.uniform(nodes_per_rack=4)
    assert (place_pgs(topology, PlacementRule(), 3, 2, device_state=state) == NO_DEVICE).all()


def test_wrong_number_of_states_is_refused() -> None:
    topology = Topology.uniform(nodes_per_rack=4)
    with pytest.raises(ValueError, match="3 entries for 4 devices"):
        place_pgs(topology, PlacementRule(), 1, 1, device_state=all_up(3))


def test_several_slots_per_domain_are_allowed_when_the_rule_says_so() -> None:
    topology = Topology.uniform(racks_per_zone=3, nodes_per_rack=2, devices_per_node=2)
    rows = place_pgs(topology, PlacementRule(RACK, max_per_domain=2), 200, 6)
    racks = topology.domain_of_device(RACK)[rows]
    assert all(np.bincount(row, minlength=3).tolist() == [2, 2, 2] for row in racks)


def test_replay_is_identical_and_blocks_equal_the_whole() -> None:
    topology = Topology.uniform(racks_per_zone=5, nodes_per_rack=4, devices_per_node=3)
    columns = placement_columns(topology, PlacementRule())
    whole = place_with_columns(columns, 500, 6, seed=9)
    again = place_pgs(topology, PlacementRule(), 500, 6, seed=9)
    blocks = [place_with_columns(columns, 100, 6, seed=9, first_pg=p) for p in range(0, 500, 100)]
    assert np.array_equal(whole, again)
    assert np.array_equal(whole, np.concatenate(blocks))


def test_another_seed_places_otherwise() -> None:
    topology = Topology.uniform(nodes_per_rack=50)
    rows = [place_pgs(topology, PlacementRule(), 2_000, 1, seed=seed) for seed in (0, 1, 2)]
    assert (rows[0] == rows[1]).mean() < 0.05
    assert (rows[1] == rows[2]).mean() < 0.05


def test_replacement_never_returns_the_old_device_and_spreads() -> None:
    topology = Topology.uniform(nodes_per_rack=10, devices_per_node=2)
    columns = placement_columns(topology, PlacementRule())
    state, row = all_up(20), np.array([0, 2, 4, 6], dtype=np.int32)
    chosen = [choose_replacement(columns, state, row, 1, 5, seed) for seed in range(2_000)]
    # Node 1's other device is free to take the slot of device 2; nodes 0, 2 and 3 are not.
    assert set(chosen) == {3, *range(8, 20)}
    counts = np.bincount(chosen, minlength=20)
    assert counts[8:].min() > 0.5 * 2_000 / 14
    assert counts[8:].max() < 2.0 * 2_000 / 14


def test_replacement_is_no_device_when_every_domain_is_taken() -> None:
    topology = Topology.uniform(nodes_per_rack=3, devices_per_node=4)
    columns = placement_columns(topology, PlacementRule())
    state, row = all_up(12), np.array([0, 4, 8], dtype=np.int32)
    state[5:8] = DeviceState.OUT
    assert choose_replacement(columns, state, row, 1, 0, 0) == NO_DEVICE


def test_replacement_finds_the_only_device_left_among_many() -> None:
    topology = Topology.uniform(racks_per_zone=50, nodes_per_rack=20, devices_per_node=10)
    columns = placement_columns(topology, PlacementRule(RACK))
    state = np.full(10_000, DeviceState.OUT, dtype=np.uint8)
    state[[3, 7_777]] = DeviceState.UP
    row = np.array([3, NO_DEVICE], dtype=np.int32)
    assert choose_replacement(columns, state, row, 1, 0, 0) == 7_777


def test_buckets_without_devices_are_passed_over() -> None:
    topology = topology_with_node(Topology.uniform(racks_per_zone=2), rack=2)
    rows = place_pgs(topology, PlacementRule(RACK), 100, 3)
    assert (np.sort(rows, axis=1) == [NO_DEVICE, 0, 1]).all()
