"""Placement over random topologies: the laws, and equality with the plain twin."""

from dataclasses import replace

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from exastore.metadata.core import straw2
from exastore.metadata.core._reference import ReferencePlacement
from exastore.metadata.core._reference import hash2 as reference_hash2
from exastore.metadata.core._reference import hash3 as reference_hash3
from exastore.metadata.core.balance import rule_violations
from exastore.metadata.core.placement import choose_replacement, place_pgs, placement_columns
from exastore.metadata.core.rules import placeable_slots
from exastore.metadata.core.topology import (
    NO_DEVICE,
    DeviceState,
    DomainLevel,
    PlacementRule,
    Topology,
    Uint8Array,
)

words = st.integers(0, 2**32 - 1)
weights = st.sampled_from([0.0, 0.1, 0.5, 1.0, 1.0, 1.0, 1.0, 3.64, 16.37])
states = st.sampled_from([DeviceState.UP] * 4 + list(DeviceState))


@st.composite
def topologies(draw: st.DrawFn, device_count_max: int = 40) -> Topology:
    def parents(count: int, parent_count: int) -> list[int]:
        return draw(st.lists(st.integers(0, parent_count - 1), min_size=count, max_size=count))

    region_count = draw(st.integers(1, 2))
    zone_count = draw(st.integers(1, 3))
    rack_count = draw(st.integers(1, 5))
    node_count = draw(st.integers(1, 12))
    device_count = draw(st.integers(1, device_count_max))
    # Every index below the largest must exist as a parent, which dense columns give for free.
    zone_region = [*range(min(region_count, zone_count)), *parents(zone_count, region_count)]
    return Topology(
        device_node=np.array(parents(device_count, node_count), dtype=np.int32),
        node_rack=np.array(parents(node_count, rack_count), dtype=np.int32),
        rack_zone=np.array(parents(rack_count, zone_count), dtype=np.int32),
        zone_region=np.array(zone_region[:zone_count], dtype=np.int32),
        device_weight=np.array(
            draw(st.lists(weights, min_size=device_count, max_size=device_count)), dtype=np.float64
        ),
    )


@st.composite
def clusters(draw: st.DrawFn) -> tuple[Topology, PlacementRule, Uint8Array]:
    topology = draw(topologies())
    count = topology.device_count
    if draw(st.booleans()):
        classes = draw(st.lists(st.integers(0, 2), max_size=count))
        topology = replace(topology, device_class=np.array(classes, dtype=np.int32))
    rule = PlacementRule(
        draw(st.sampled_from(DomainLevel)),
        draw(st.integers(1, 3)),
        tuple(draw(st.dictionaries(st.sampled_from(DomainLevel), st.integers(1, 4))).items()),
        draw(st.sampled_from([None, None, (0,), (1,), (0, 1)])),
        draw(st.sampled_from([None, None, (0,), (1, 2)])),
    )
    state = draw(st.lists(states, min_size=count, max_size=count))
    return topology, rule, np.array(state, dtype=np.uint8)


@settings(deadline=None)
@given(words, words, words)
def test_hashes_equal_their_plain_twins(a: int, b: int, c: int) -> None:
    a32, b32, c32 = np.uint32(a), np.uint32(b), np.uint32(c)
    assert int(straw2.hash2(a32, b32)) == reference_hash2(a, b)
    assert int(straw2.hash3(a32, b32, c32)) == reference_hash3(a, b, c)


@settings(deadline=None)
@given(st.lists(words, min_size=1, max_size=70), words, words)
def test_vector_loops_equal_the_scalar_hash(ids: list[int], x: int, r: int) -> None:
    halves = [reference_hash3(x, i, r) & 0xFFFF for i in ids]
    array = np.array(ids, dtype=np.uint32)
    out = np.empty(len(ids), dtype=np.uint32)
    straw2.hash_all(array, np.uint32(x), np.uint32(r), out)
    assert out.tolist() == halves
    assert straw2.first_largest(array, np.uint32(x), np.uint32(r)) == halves.index(max(halves))


@settings(deadline=None, max_examples=60)
@given(topologies(), st.integers(1, 90), words, st.sampled_from([0, 1, 3, 7]))
def test_many_trials_at_once_go_where_one_by_one_goes(
    topology: Topology, count: int, seed: int, step: int
) -> None:
    tree = placement_columns(topology, PlacementRule()).tree
    # Identifiers as they are, all the same, evenly spaced downwards, and without any order.
    spaced = tree.child_item.astype(np.uint32) * np.uint32((-step) & 0xFFFFFFFF)
    ids = {0: tree.child_id, 7: spaced**2 + np.uint32(seed)}.get(step, spaced)
    tree = straw2.with_child_ids(tree, ids)
    rng = np.random.Generator(np.random.PCG64(seed))
    item = rng.integers(-1, len(tree.bucket), count).astype(np.int32)
    node_count = len(topology.node_rack)
    item[(item >= 0) & (item < node_count)] = len(tree.bucket) - 1
    x, r = rng.integers(0, 2**32, (2, count + straw2.LANES), dtype=np.uint32)
    scratch = np.empty(64, dtype=np.uint32)
    expected = [
        straw2.descend(tree, int(item[i]), 2, x[i], r[i], scratch) if item[i] >= 0 else -1
        for i in range(count)
    ]
    lanes = np.zeros((straw2.SCRATCH_ROWS, straw2.BLOCK), dtype=np.uint32)
    straw2.descend_many(tree, item, count, 2, x, r, lanes, scratch)
    assert item.tolist() == expected


@settings(deadline=None)
@given(clusters(), st.integers(1, 8), words)
def test_rows_keep_the_rule_and_leave_no_feasible_slot_empty(
    cluster: tuple[Topology, PlacementRule, Uint8Array], n: int, seed: int
) -> None:
    topology, rule, state = cluster
    rows = place_pgs(topology, rule, 20, n, seed=seed, device_state=state)
    assert not rule_violations(topology, rule, rows).any()
    used = rows[rows != NO_DEVICE]
    assert (state[used] == DeviceState.UP).all()
    assert (topology.device_weight[used] > 0).all()
    assert rule.allowed(topology)[used].all()
    filled = (rows != NO_DEVICE).sum(axis=1)
    assert (filled == min(n, placeable_slots(topology, rule, state))).all()


@settings(deadline=None, max_examples=60)
@given(clusters(), st.integers(1, 6), st.sampled_from([0, 1, 77]))
def test_placement_equals_its_plain_twin(
    cluster: tuple[Topology, PlacementRule, Uint8Array], n: int, seed: int
) -> None:
    topology, rule, state = cluster
    rows = place_pgs(topology, rule, 4, n, seed=seed, device_state=state)
    twin = ReferencePlacement(topology, rule, state.tolist())
    assert rows.tolist() == [twin.place(pg, n, seed) for pg in range(4)]


@settings(deadline=None, max_examples=60)
@given(clusters(), st.integers(1, 6), st.data())
def test_replacement_equals_its_plain_twin_and_keeps_the_rule(
    cluster: tuple[Topology, PlacementRule, Uint8Array], n: int, data: st.DataObject
) -> None:
    topology, rule, state = cluster
    row = place_pgs(topology, rule, 1, n, device_state=state)[0]
    slot, attempt_seed = data.draw(st.integers(0, n - 1)), data.draw(words)
    columns = placement_columns(topology, rule)
    device = choose_replacement(columns, state, row, slot, 7, attempt_seed)
    twin = ReferencePlacement(topology, rule, state.tolist())
    assert device == twin.replacement(row.tolist(), slot, 7, attempt_seed)
    if device != NO_DEVICE:
        assert device not in row
        assert state[device] == DeviceState.UP
        row[slot] = device
        assert not rule_violations(topology, rule, row[None, :]).any()
