"""The devices of this node, and the newest cluster map it has seen.

The map decides which writes are accepted: a write must name the device that the map gives to its
slot, under an epoch not older than the last change of its PG.
"""

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence

from exastore.proto.v1 import common_pb2
from exastore.storage.errors import InvalidChunk, StaleEpoch, WrongDevice
from exastore.storage.lane import DeviceLane

#: What a metadata server answers while it has no index for a device.
NO_INDEX = 0xFFFFFFFF

#: Tries to bring the map to at least this epoch; says nothing when it cannot.
RefreshMap = Callable[[int], Awaitable[None]]


class Devices:
    """Lives on the event loop."""

    def __init__(self, lanes: Mapping[str, DeviceLane]) -> None:
        #: By uuid, as the device's own folder says it; fixed for the life of the node.
        self.lanes = dict(lanes)
        #: Indexes that the cluster map gave to our devices.
        self._lane_of_index: dict[int, DeviceLane] = {}
        #: Slot devices and epoch of each PG, from the newest map.
        self._pgs: dict[int, tuple[Sequence[int], int]] = {}
        #: Of the newest map seen; only grows.
        self.epoch = 0

    def learn_indexes(self, uuids: Sequence[str], indexes: Sequence[int]) -> None:
        for uuid, index in zip(uuids, indexes, strict=True):
            if index != NO_INDEX and uuid in self.lanes:
                self._lane_of_index[index] = self.lanes[uuid]

    def learn_map(self, cluster_map: common_pb2.ClusterMap) -> bool:
        """Take the map if it is newer; returns whether it was."""
        if cluster_map.epoch <= self.epoch:
            return False
        self.epoch = cluster_map.epoch
        self.learn_indexes(
            [device.uuid for device in cluster_map.devices],
            [device.index for device in cluster_map.devices],
        )
        self._pgs = {pg.index: (tuple(pg.device_indexes), pg.epoch) for pg in cluster_map.pgs}
        return True

    def lane(self, device_index: int) -> DeviceLane:
        lane = self._lane_of_index.get(device_index)
        if lane is None:
            raise WrongDevice(f"device {device_index} is not on this node")
        return lane

    async def lane_of_given_up(
        self,
        device_index: int,
        slots: Iterable[tuple[int, int]],
        epoch: int,
        refresh: RefreshMap,
    ) -> DeviceLane:
        """The device, if by a map of at least this epoch it holds none of these (PG, slot).

        Raises:
            StaleEpoch, WrongDevice.
        """
        if epoch > self.epoch:
            await refresh(epoch)
        if epoch > self.epoch:
            raise StaleEpoch(f"the request has epoch {epoch}, this node learned {self.epoch} only")
        lane = self.lane(device_index)
        for pg, slot in slots:
            device_indexes, _ = self._pgs.get(pg, ((), 0))
            if slot < len(device_indexes) and device_indexes[slot] == device_index:
                raise StaleEpoch(f"slot {slot} of PG {pg} is on this device")
        return lane

    async def lane_for_write(
        self, device_index: int, pg: int, chunk_index: int, epoch: int, refresh: RefreshMap
    ) -> DeviceLane:
        """The device, if the newest map lets this slot be written there under this epoch.

        Raises:
            StaleEpoch, WrongDevice, InvalidChunk.
        """
        if epoch > self.epoch:
            await refresh(epoch)
        if epoch > self.epoch:
            raise StaleEpoch(f"the request has epoch {epoch}, this node learned {self.epoch} only")
        lane = self.lane(device_index)
        if pg not in self._pgs:
            raise InvalidChunk(f"there is no PG {pg}")
        device_indexes, pg_epoch = self._pgs[pg]
        if chunk_index >= len(device_indexes):
            raise InvalidChunk(f"PG {pg} has no slot {chunk_index}")
        if epoch < pg_epoch:
            raise StaleEpoch(f"PG {pg} changed in epoch {pg_epoch}, the request has {epoch}")
        if device_indexes[chunk_index] != device_index:
            raise StaleEpoch(
                f"slot {chunk_index} of PG {pg} is on device {device_indexes[chunk_index]}"
            )
        return lane
