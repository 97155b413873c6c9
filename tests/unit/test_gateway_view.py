"""The cluster map as columns, the choice of a placement group, what to read of a stripe."""

import numpy as np
import pytest
from tests.unit.gateway_fakes import FakeMetadata

from exastore.erasure import codec
from exastore.gateway.cluster_view import ClusterView, PgChooser, writable_slots
from exastore.gateway.stripe_reader import next_reads, ranked_slots
from exastore.metadata.core.errors import InvalidMapDelta
from exastore.metadata.core.map_delta import checksum, encode_delta
from exastore.metadata.core.topology import NO_DEVICE, DeviceState
from exastore.proto.v1 import common_pb2

NONE: frozenset[int] = frozenset()


def make_map() -> common_pb2.ClusterMap:
    """Eight devices; PG p is on devices p .. p+5, modulo 8."""
    return FakeMetadata([f"node-{index}:1" for index in range(8)]).map


def test_a_view_has_the_columns_of_the_map() -> None:
    message = make_map()
    message.pgs[2].device_indexes[1] = 0xFFFFFFFF
    message.pgs[2].epoch = 1
    view = ClusterView.from_message(message)
    assert view.epoch == 1 and view.code == "rs-4-2"
    assert (view.pg_count, view.slot_count) == (8, 6)
    assert view.devices_of(2) == [2, NO_DEVICE, 4, 5, 6, 7]
    assert view.device_address[7] == "node-7:1"
    with pytest.raises(ValueError):
        view.pg_devices[0, 0] = 1


def test_only_serving_and_trusted_devices_are_writable() -> None:
    message = make_map()
    message.devices[0].state = common_pb2.DEVICE_STATE_DOWN
    message.devices[1].state = common_pb2.DEVICE_STATE_OUT
    message.devices[2].state = common_pb2.DEVICE_STATE_DRAINING
    message.pgs[0].device_indexes[5] = 0xFFFFFFFF
    view = ClusterView.from_message(message)
    assert writable_slots(view, {3})[0].tolist() == [False, False, True, False, True, False]


def test_the_turn_goes_over_all_equal_groups() -> None:
    view = ClusterView.from_message(make_map())
    chooser = PgChooser()
    assert sorted(chooser.choose(view, NONE) or 0 for _ in range(8)) == list(range(8))


def test_groups_without_the_failed_devices_come_first() -> None:
    message = make_map()
    message.devices[0].state = common_pb2.DEVICE_STATE_DOWN
    view = ClusterView.from_message(message)
    # Only the groups 1 and 2 do without device 0, and only group 1 without device 7 as well.
    chooser = PgChooser()
    assert {chooser.choose(view, NONE) for _ in range(4)} == {1, 2}
    assert {chooser.choose(view, frozenset({7})) for _ in range(4)} == {1}
    assert chooser.writable(view, frozenset({7}), 1) == [0, 1, 2, 3, 4, 5]
    assert len(chooser.writable(view, frozenset({7}), 3)) == 4


def test_groups_under_repair_come_after_clean_ones() -> None:
    message = make_map()
    for pg in range(7):
        message.pgs[pg].slot_states[0] = common_pb2.SLOT_STATE_REBUILDING
    chooser = PgChooser()
    assert {chooser.choose(ClusterView.from_message(message), NONE) for _ in range(4)} == {7}


def test_every_group_is_tried_once() -> None:
    view = ClusterView.from_message(make_map())
    chooser = PgChooser()
    tried: list[int] = []
    while (pg := chooser.choose(view, NONE, tried)) is not None:
        tried.append(pg)
    assert sorted(tried) == list(range(8))


def test_doubtful_slots_are_told_from_trusted_ones() -> None:
    message = make_map()
    message.devices[0].state = common_pb2.DeviceState.Value(f"DEVICE_STATE_{DeviceState.DOWN.name}")
    message.pgs[0].slot_states[1] = common_pb2.SLOT_STATE_REBUILDING
    message.pgs[0].device_indexes[5] = 0xFFFFFFFF
    view = ClusterView.from_message(message)
    extent = common_pb2.Extent(pg=0, missing_indexes=[2])
    assert ranked_slots(view, extent, {3}) == ([4], [0, 1, 2, 3])


@pytest.mark.parametrize(
    ("wanted", "counted", "candidates", "reads"),
    [
        ([1], [], [0, 1, 2, 3, 4, 5], [1]),
        ([0, 1, 2, 3], [], [0, 1, 2, 3, 4, 5], [0, 1, 2, 3]),
        ([0, 1, 2, 3], [0, 1, 2, 3], [0, 1, 2, 3, 4, 5], []),
        ([0, 1, 2, 3], [0, 2, 3], [0, 2, 3, 4, 5], [4]),
        ([1], [], [0, 2, 3, 4, 5], [0, 2, 3, 4]),
        ([0, 1], [2, 3, 4, 5], [2, 3, 4, 5], []),
        ([0, 1], [2, 3], [2, 3, 4], None),
        ([1], [], [0, 2, 3], None),
    ],
)
def test_the_fewest_chunks_are_read(
    wanted: list[int], counted: list[int], candidates: list[int], reads: list[int] | None
) -> None:
    assert next_reads(codec("rs-4-2"), wanted, counted, candidates) == reads


def test_a_view_of_no_groups_has_no_choice() -> None:
    view = ClusterView.from_message(common_pb2.ClusterMap(epoch=1, code="rs-4-2"))
    assert view.pg_count == 0
    assert PgChooser().choose(view, NONE) is None
    assert not np.any(view.pg_epoch)


def test_a_slot_that_moves_is_read_where_the_chunk_was_written() -> None:
    message = make_map()
    group = message.pgs[0]
    group.slot_states[2] = common_pb2.SLOT_STATE_MOVING
    group.previous_device_indexes.extend([0xFFFFFFFF] * 6)
    group.previous_device_indexes[2] = 7
    group.epoch = 9
    message.epoch = 9
    view = ClusterView.from_message(message)
    assert view.holders(0, 2, 8) == (7, 2)
    assert view.holders(0, 2, 9) == (2, 7)
    assert view.holders(0, 3, 8) == (3,)
    extent = common_pb2.Extent(pg=0, epoch=8)
    assert ranked_slots(view, extent, ()) == ([0, 1, 2, 3, 4, 5], [])
    # With either of the two away, some of its chunks cannot be read.
    for device in (2, 7):
        assert ranked_slots(view, extent, {device})[1] == [2]


def test_a_delta_gives_the_view_of_the_new_map() -> None:
    old, new = make_map(), make_map()
    new.epoch = old.epoch + 1
    new.devices[3].state = common_pb2.DEVICE_STATE_DOWN
    new.pgs[1].device_indexes[0] = 0
    new.pgs[1].epoch = new.epoch
    new.nodes[5].address = "elsewhere:1"
    before = ClusterView.from_message(old)
    after = ClusterView.from_message(new)
    delta = common_pb2.MapDelta(
        from_epoch=old.epoch,
        epoch=new.epoch,
        columns=encode_delta(before.table, after.table),
        checksum=checksum(after.table),
        nodes=[new.nodes[5]],
    )
    update = common_pb2.ClusterMap(epoch=new.epoch, code=new.code, deltas=[delta])
    got = before.after(update)
    assert got.device_address == after.device_address
    assert checksum(got.table) == checksum(after.table)
    delta.checksum ^= 1
    with pytest.raises(InvalidMapDelta, match="another checksum"):
        before.after(common_pb2.ClusterMap(epoch=new.epoch, deltas=[delta]))


def test_groups_are_chosen_from_the_pool_alone() -> None:
    message = make_map()
    message.pools.add(name="default", first_pg=0, pg_count=5)
    message.pools.add(name="eu", first_pg=5, pg_count=3)
    view = ClusterView.from_message(message)
    chooser = PgChooser()
    assert {chooser.choose(view, NONE, pool="eu") for _ in range(9)} == {5, 6, 7}
    assert {chooser.choose(view, NONE) for _ in range(9)} == set(range(5))
    assert chooser.choose(view, NONE, {5, 6}, "eu") == 7
    assert chooser.choose(view, NONE, {5, 6, 7}, "eu") is None
    assert chooser.choose(view, NONE, pool="moon") is None
    assert view.is_in_pool(5, "eu") and not view.is_in_pool(5, "")
    assert ClusterView.from_message(make_map()).is_in_pool(5, "anything")
