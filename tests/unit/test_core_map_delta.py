"""Map deltas: what they carry, what they weigh, and what becomes of damaged ones."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from exastore.metadata.core.cluster_map import (
    new_map,
    with_device_state,
    with_device_weight,
    with_devices,
)
from exastore.metadata.core.errors import InvalidMapDelta
from exastore.metadata.core.map_delta import (
    MapTable,
    apply_delta,
    checksum,
    encode_delta,
    table_of,
    table_of_message,
)
from exastore.metadata.core.moves import begin_moves, next_batch, plan_moves
from exastore.metadata.core.repair import apply_plan, classify, mark_clean, plan_repair
from exastore.metadata.core.topology import (
    NO_DEVICE,
    ClusterMap,
    DeviceState,
    DomainLevel,
    PlacementRule,
    Topology,
    frozen,
)
from exastore.proto.v1 import common_pb2

CLEAN, REBUILDING, MOVING = (
    common_pb2.SLOT_STATE_CLEAN,
    common_pb2.SLOT_STATE_REBUILDING,
    common_pb2.SLOT_STATE_MOVING,
)
COLUMNS = [name for name in MapTable.__dataclass_fields__ if name != "epoch"]


def small_map() -> ClusterMap:
    topology = Topology.uniform(racks_per_zone=9, devices_per_node=2)
    return new_map(topology, PlacementRule(DomainLevel.NODE), "rs-4-2", 6, 60)


def check_equal(got: MapTable, want: MapTable) -> None:
    assert got.epoch == want.epoch
    for name in COLUMNS:
        found, wanted = getattr(got, name), getattr(want, name)
        assert found.dtype == wanted.dtype, name
        np.testing.assert_array_equal(found, wanted, err_msg=name)
        assert not found.flags.writeable
    assert checksum(got) == checksum(want)


def check_travels(old: ClusterMap, new: ClusterMap) -> int:
    delta = encode_delta(table_of(old), table_of(new))
    check_equal(apply_delta(table_of(old), delta), table_of(new))
    return len(delta)


def history() -> list[ClusterMap]:
    """Maps of consecutive changes: outage, repair, growth, new weights, draining."""
    maps = [small_map()]
    maps.append(with_device_state(maps[-1], {3: DeviceState.DOWN, 4: DeviceState.DOWN}))
    maps.append(with_device_state(maps[-1], {3: DeviceState.OUT}))
    plan = plan_repair(maps[-1])
    maps.append(apply_plan(maps[-1], plan))
    moved = plan.source_device != plan.target_device
    maps.append(mark_clean(maps[-1], plan.pg[moved][:5], plan.slot[moved][:5]))
    maps.append(with_device_state(maps[-1], {3: DeviceState.UP, 4: DeviceState.UP}))
    maps.append(apply_plan(maps[-1], plan_repair(maps[-1])))
    maps.append(with_devices(maps[-1], 4, [2.5, 1.0]))
    maps.append(with_device_weight(maps[-1], {0: 0.0, 7: 1.25}))
    maps.append(with_device_state(maps[-1], {12: DeviceState.DRAINING}))
    balance = plan_moves(maps[-1], is_balancing=True)
    batch = next_batch(maps[-1], balance, classify(maps[-1]).readable, 1.0)
    maps.append(begin_moves(maps[-1], batch))
    maps.append(mark_clean(maps[-1], batch.pg, batch.slot))
    return maps


def test_every_change_of_a_map_travels_as_a_delta() -> None:
    maps = history()
    assert [found.epoch for found in maps] == list(range(1, len(maps) + 1))
    for old, new in pairwise(maps):
        check_travels(old, new)


def test_a_delta_may_span_many_epochs() -> None:
    maps = history()
    for first in range(len(maps)):
        for last in range(first, len(maps)):
            check_travels(maps[first], maps[last])


def test_devices_of_a_failed_rack_cost_next_to_nothing() -> None:
    before = small_map()
    after = with_device_state(before, dict.fromkeys(range(4, 12), DeviceState.DOWN))
    assert check_travels(before, after) < 24


def test_a_slot_that_is_clean_again_costs_a_few_bits() -> None:
    maps = history()
    rebuilding, cleaned = maps[3], maps[4]
    assert check_travels(rebuilding, cleaned) < 24


def test_deltas_in_a_row_lead_where_one_would() -> None:
    maps = history()
    table = table_of(maps[0])
    for old, new in pairwise(maps):
        table = apply_delta(table, encode_delta(table_of(old), table_of(new)))
    check_equal(table, table_of(maps[-1]))


def test_a_delta_for_another_map_is_refused() -> None:
    maps = [table_of(found) for found in history()]
    with pytest.raises(InvalidMapDelta, match="from epoch 1 for a map of epoch 3"):
        apply_delta(maps[2], encode_delta(maps[0], maps[1]))
    with pytest.raises(InvalidMapDelta, match="not of one cluster"):
        encode_delta(maps[-1], maps[0])


def test_the_checksum_tells_any_two_maps_apart() -> None:
    table = table_of(small_map())
    seen = {checksum(table), checksum(replace(table, epoch=2))}
    for name in COLUMNS:
        column = getattr(table, name).copy()
        column.ravel()[-1] += 1
        seen.add(checksum(replace(table, **{name: column})))
    assert len(seen) == 2 + len(COLUMNS)


def test_a_delta_that_was_cut_off_is_refused() -> None:
    maps = [table_of(found) for found in history()]
    delta = encode_delta(maps[0], maps[-1])
    for length in range(len(delta)):
        with pytest.raises(InvalidMapDelta):
            apply_delta(maps[0], delta[:length])


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_a_damaged_delta_is_refused_or_found_by_the_checksum(data: st.DataObject) -> None:
    maps = [table_of(found) for found in (HISTORY[0], HISTORY[-1])]
    delta = bytearray(DELTA)
    place = data.draw(st.integers(0, len(delta) - 1))
    delta[place] ^= data.draw(st.integers(1, 255))
    try:
        table = apply_delta(maps[0], bytes(delta))
    except InvalidMapDelta:
        return
    assert checksum(table) != checksum(maps[1]) or all(
        np.array_equal(getattr(table, name), getattr(maps[1], name)) for name in COLUMNS
    )


HISTORY = history()
DELTA = encode_delta(table_of(HISTORY[0]), table_of(HISTORY[-1]))


def test_random_tables_travel_whole() -> None:
    rng = np.random.default_rng(7)

    def table(epoch: int, device_count: int) -> MapTable:
        shape = (17, 5)
        return MapTable(
            epoch=epoch,
            device_state=frozen(rng.integers(0, 255, device_count, dtype=np.uint8)),
            device_weight=frozen(
                rng.standard_normal(device_count) * 10.0 ** float(rng.integers(-300, 300))
            ),
            pg_devices=frozen(rng.integers(-1, 2**31 - 1, shape, dtype=np.int32)),
            pg_slot_state=frozen(rng.integers(0, 255, shape, dtype=np.uint8)),
            pg_epoch=frozen(rng.integers(-(2**63), 2**63 - 1, 17, dtype=np.int64)),
            pg_previous=frozen(rng.integers(-1, 2**31 - 1, shape, dtype=np.int32)),
        )

    for _ in range(50):
        old, new = table(int(rng.integers(1, 1000)), 3), table(int(rng.integers(1000, 2**60)), 9)
        check_equal(apply_delta(old, encode_delta(old, new)), new)


def test_a_message_gives_the_table() -> None:
    message = common_pb2.ClusterMap(
        devices=[
            common_pb2.Device(state=common_pb2.DEVICE_STATE_UP, weight=1.5),
            common_pb2.Device(state=common_pb2.DEVICE_STATE_OUT, weight=0.0),
        ],
        pgs=[
            common_pb2.PlacementGroup(
                device_indexes=[1, 0xFFFFFFFF], slot_states=[CLEAN, REBUILDING], epoch=4
            ),
            common_pb2.PlacementGroup(
                device_indexes=[0, 1],
                slot_states=[CLEAN, MOVING],
                epoch=3,
                previous_device_indexes=[0xFFFFFFFF, 0],
            ),
        ],
    )
    table = table_of_message(5, message.devices, message.pgs)
    assert table.epoch == 5
    assert table.device_state.tolist() == [1, 3]
    assert table.device_weight.tolist() == [1.5, 0.0]
    assert table.pg_devices.tolist() == [[1, NO_DEVICE], [0, 1]]
    assert table.pg_slot_state.tolist() == [[0, 1], [0, 2]]
    assert table.pg_epoch.tolist() == [4, 3]
    assert table.pg_previous.tolist() == [[NO_DEVICE, NO_DEVICE], [NO_DEVICE, 0]]
    message.pgs[0].slot_states.append(CLEAN)
    with pytest.raises(InvalidMapDelta, match="different size"):
        table_of_message(5, message.devices, message.pgs)
