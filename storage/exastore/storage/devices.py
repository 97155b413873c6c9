"""The devices of this node, and the newest cluster map it has seen.

The map decides which writes are accepted: a write must name the device that the map gives to its
slot, under an epoch not older than the last change of its PG.
"""

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence

from exastore.metadata.core.map_delta import MapTable, apply_deltas, table_of_message
from exastore.metadata.core.topology import SlotState
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
        #: The newest map seen; its epoch only grows.
        self._table = MapTable.empty()

    @property
    def epoch(self) -> int:
        """Of the newest map seen; 0 while there is none."""
        return self._table.epoch

    def learn_indexes(self, uuids: Sequence[str], indexes: Sequence[int]) -> None:
        for uuid, index in zip(uuids, indexes, strict=True):
            if index != NO_INDEX and uuid in self.lanes:
                self._lane_of_index[index] = self.lanes[uuid]

    def learn_map(self, cluster_map: common_pb2.ClusterMap) -> bool:
        """Take the map, or the deltas that lead to it, if it is newer; returns whether it was.

        Raises:
            InvalidMapDelta: The deltas do not fit what we have: the full map is needed.
        """
        if cluster_map.epoch <= self.epoch:
            return False
        if cluster_map.deltas:
            self._table = apply_deltas(self._table, cluster_map.deltas)
            devices = [device for delta in cluster_map.deltas for device in delta.devices]
        else:
            self._table = table_of_message(cluster_map.epoch, cluster_map.devices, cluster_map.pgs)
            devices = list(cluster_map.devices)
        self.learn_indexes(
            [device.uuid for device in devices], [device.index for device in devices]
        )
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
        rows, states = self._table.pg_devices, self._table.pg_slot_state
        for pg, slot in slots:
            if pg >= len(rows) or slot >= rows.shape[1]:
                continue
            # Until a slot that moves is clean, its older chunks are on the device that it leaves.
            leaves = states[pg, slot] == SlotState.MOVING
            leaves &= self._table.pg_previous[pg, slot] == device_index
            if leaves or rows[pg, slot] == device_index:
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
        rows = self._table.pg_devices
        if pg >= len(rows):
            raise InvalidChunk(f"there is no PG {pg}")
        if chunk_index >= rows.shape[1]:
            raise InvalidChunk(f"PG {pg} has no slot {chunk_index}")
        pg_epoch = self._table.pg_epoch[pg]
        if epoch < pg_epoch:
            raise StaleEpoch(f"PG {pg} changed in epoch {pg_epoch}, the request has {epoch}")
        if rows[pg, chunk_index] != device_index:
            raise StaleEpoch(f"slot {chunk_index} of PG {pg} is on device {rows[pg, chunk_index]}")
        return lane
