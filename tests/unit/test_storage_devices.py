"""Which device a node lets write and delete, by the newest map it has seen."""

from typing import cast

import pytest

from exastore.metadata.core.errors import InvalidMapDelta
from exastore.metadata.core.map_delta import checksum, encode_delta, table_of_message
from exastore.proto.v1 import common_pb2
from exastore.storage.devices import Devices
from exastore.storage.errors import StaleEpoch, WrongDevice
from exastore.storage.lane import DeviceLane

LANE = cast(DeviceLane, object())
CLEAN = common_pb2.SLOT_STATE_CLEAN


def map_of(epoch: int, *rows: list[int]) -> common_pb2.ClusterMap:
    """Device 0 is ours."""
    return common_pb2.ClusterMap(
        epoch=epoch,
        devices=[common_pb2.Device(index=index, uuid=f"d{index}") for index in range(4)],
        pgs=[
            common_pb2.PlacementGroup(
                index=pg, device_indexes=row, slot_states=[CLEAN] * len(row), epoch=epoch
            )
            for pg, row in enumerate(rows)
        ],
    )


class Refresh:
    """Brings the map that the test has prepared."""

    def __init__(self, devices: Devices, newer: common_pb2.ClusterMap | None = None) -> None:
        self._devices = devices
        self._newer = newer
        self.count = 0

    async def __call__(self, epoch: int) -> None:
        self.count += 1
        if self._newer is not None:
            self._devices.learn_map(self._newer)


def devices_with(known: common_pb2.ClusterMap) -> Devices:
    devices = Devices({"d0": LANE})
    devices.learn_map(known)
    return devices


async def test_chunks_of_a_slot_that_is_elsewhere_may_be_deleted() -> None:
    devices = devices_with(map_of(5, [1, 2, 3], [0, 1, 2]))
    refresh = Refresh(devices)
    assert await devices.lane_of_given_up(0, [(0, 0), (1, 1), (7, 0)], 5, refresh) is LANE
    assert refresh.count == 0


async def test_chunks_of_a_slot_that_the_device_holds_are_kept() -> None:
    devices = devices_with(map_of(5, [1, 2, 3], [0, 1, 2]))
    with pytest.raises(StaleEpoch, match="slot 0 of PG 1 is on this device"):
        await devices.lane_of_given_up(0, [(0, 0), (1, 0)], 4, Refresh(devices))


async def test_a_newer_map_is_fetched_before_chunks_are_deleted() -> None:
    devices = devices_with(map_of(5, [1, 2, 3]))
    refresh = Refresh(devices, map_of(7, [0, 2, 3]))
    with pytest.raises(StaleEpoch, match="slot 0 of PG 0 is on this device"):
        await devices.lane_of_given_up(0, [(0, 0)], 6, refresh)
    assert refresh.count == 1


async def test_without_a_map_as_new_as_the_request_nothing_is_deleted() -> None:
    devices = devices_with(map_of(5, [1, 2, 3]))
    with pytest.raises(StaleEpoch, match="learned 5 only"):
        await devices.lane_of_given_up(0, [(0, 0)], 6, Refresh(devices))


async def test_a_device_of_another_node_is_refused() -> None:
    devices = devices_with(map_of(5, [1, 2, 3]))
    with pytest.raises(WrongDevice, match="device 3"):
        await devices.lane_of_given_up(3, [(0, 0)], 5, Refresh(devices))


def delta_of(old: common_pb2.ClusterMap, new: common_pb2.ClusterMap) -> common_pb2.ClusterMap:
    """What a server sends to a node that has the old map."""
    before = table_of_message(old.epoch, old.devices, old.pgs)
    after = table_of_message(new.epoch, new.devices, new.pgs)
    delta = common_pb2.MapDelta(
        from_epoch=old.epoch,
        epoch=new.epoch,
        columns=encode_delta(before, after),
        checksum=checksum(after),
        devices=new.devices[len(old.devices) :],
    )
    return common_pb2.ClusterMap(epoch=new.epoch, deltas=[delta])


async def test_a_delta_is_as_good_as_the_map() -> None:
    old, new = map_of(5, [1, 2, 3]), map_of(6, [1, 0, 3])
    new.devices.add(index=4, uuid="d4")
    other = cast(DeviceLane, object())
    devices = Devices({"d0": LANE, "d4": other})
    devices.learn_map(old)
    assert devices.learn_map(delta_of(old, new))
    assert devices.epoch == 6
    assert await devices.lane_for_write(0, 0, 1, 6, Refresh(devices)) is LANE
    assert devices.lane(4) is other
    with pytest.raises(StaleEpoch, match="PG 0 changed in epoch 6"):
        await devices.lane_for_write(0, 0, 1, 5, Refresh(devices))


def test_a_delta_that_does_not_fit_leaves_the_map_as_it_is() -> None:
    devices = devices_with(map_of(5, [1, 2, 3]))
    for bad in (
        delta_of(map_of(4, [1, 2, 3]), map_of(6, [1, 0, 3])),
        delta_of(map_of(5, [1, 3, 2]), map_of(6, [0, 3, 2])),
    ):
        with pytest.raises(InvalidMapDelta):
            devices.learn_map(bad)
    assert devices.epoch == 5


async def test_a_device_keeps_the_chunks_of_a_slot_that_still_moves_away() -> None:
    moving = map_of(5, [1, 2, 3])
    moving.pgs[0].slot_states[1] = common_pb2.SLOT_STATE_MOVING
    moving.pgs[0].previous_device_indexes.extend([0xFFFFFFFF, 0, 0xFFFFFFFF])
    devices = devices_with(moving)
    with pytest.raises(StaleEpoch, match="slot 1 of PG 0 is on this device"):
        await devices.lane_of_given_up(0, [(0, 1)], 5, Refresh(devices))
    devices.learn_map(map_of(6, [1, 2, 3]))
    assert await devices.lane_of_given_up(0, [(0, 1)], 6, Refresh(devices)) is LANE
