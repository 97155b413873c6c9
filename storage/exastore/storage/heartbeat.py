"""Heartbeats to every metadata server; they bring back device indexes and the cluster map."""

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import grpc.aio

from exastore.metadata.core.clock import Clock
from exastore.metadata.core.errors import InvalidMapDelta
from exastore.proto.v1 import common_pb2, metadata_pb2
from exastore.proto.v1.metadata_pb2_grpc import MetadataServiceStub
from exastore.storage.budget import BackgroundBudget
from exastore.storage.channel import open_channel
from exastore.storage.devices import Devices
from exastore.storage.metrics import StorageMetrics

if TYPE_CHECKING:
    from exastore.proto.v1.metadata_pb2_grpc import (
        MetadataServiceAsyncStub,
    )  # exists in the stub file alone

_log = logging.getLogger(__name__)
_TIB = 2.0**40
_MAX_BACKOFF_S = 1.0
_TIMEOUT_S = 2.0


class Heartbeats:
    """One loop per metadata server, so that one that is away delays no other."""

    def __init__(
        self,
        addresses: Sequence[str],
        node: common_pb2.Node,
        devices: Devices,
        budget: BackgroundBudget,
        *,
        interval_s: float,
        clock: Clock,
        metrics: StorageMetrics,
        device_class: str = "",
    ) -> None:
        self._node = node
        self._device_class = device_class
        self._devices = devices
        self._budget = budget
        self._interval_s = interval_s
        self._clock = clock
        self._metrics = metrics
        self._channels = {address: open_channel(address) for address in addresses}
        self._tasks: list[asyncio.Task[None]] = []
        self._hurry = {address: asyncio.Event() for address in addresses}
        self._refreshing: asyncio.Task[None] | None = None
        #: Deltas did not fit the map that we have.
        self._needs_full_map = False
        #: Called after a newer map was taken.
        self.on_map: Callable[[], None] = lambda: None

    def start(self) -> None:
        self._tasks = [asyncio.create_task(self._beat(address)) for address in self._channels]

    async def stop(self) -> None:
        tasks = [*self._tasks, *([self._refreshing] if self._refreshing else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for channel in self._channels.values():
            await channel.close()

    def beat_now(self) -> None:
        """Something happened that the metadata servers should know at once."""
        for event in self._hurry.values():
            event.set()

    async def refresh_map(self, epoch: int) -> None:
        """Ask for the newest map, wherever it is to be had, unless we have `epoch` meanwhile."""
        if self._devices.epoch >= epoch:
            return
        if self._refreshing is None or self._refreshing.done():
            self._refreshing = asyncio.create_task(self._fetch_map(epoch))
        await asyncio.shield(self._refreshing)

    async def _fetch_map(self, epoch: int) -> None:
        for address, channel in self._channels.items():
            try:
                found = await _stub(channel).GetMap(
                    metadata_pb2.GetMapRequest(known_epoch=self._known_epoch, takes_deltas=True),
                    timeout=_TIMEOUT_S,
                )
            except grpc.aio.AioRpcError as error:
                _log.warning("no cluster map from %s: %s", address, error.details())
                continue
            self._learn_map(found)
            if self._devices.epoch >= epoch:
                return

    @property
    def _known_epoch(self) -> int:
        """From which epoch on we take deltas; 0 asks for the full map."""
        return 0 if self._needs_full_map else self._devices.epoch

    def _learn_map(self, cluster_map: common_pb2.ClusterMap) -> None:
        try:
            is_newer = self._devices.learn_map(cluster_map)
        except InvalidMapDelta as error:
            _log.warning("cluster map: %s; asking for all of it", error)
            self._needs_full_map = True
            return
        if is_newer:
            self._needs_full_map = False
            self._metrics.map_epoch.set(self._devices.epoch)
            self.on_map()

    async def _beat(self, address: str) -> None:
        stub = _stub(self._channels[address])
        failure_count = 0
        while True:
            self._hurry[address].clear()
            try:
                await self._beat_once(stub)
                if failure_count:
                    _log.info("metadata server %s answers again", address)
                failure_count = 0
            except grpc.aio.AioRpcError as error:
                self._metrics.heartbeat_failures.labels(address).inc()
                if not failure_count:
                    _log.warning("metadata server %s is away: %s", address, error.details())
                failure_count += 1
            backoff_s = self._interval_s * 2.0 ** min(failure_count, 8)
            await self._pause(
                address, max(self._interval_s, min(backoff_s, _MAX_BACKOFF_S))
                if failure_count
                else self._interval_s,
            )  # fmt: skip

    async def _beat_once(self, stub: "MetadataServiceAsyncStub") -> None:
        uuids = list(self._devices.lanes)
        response = await stub.Heartbeat(
            metadata_pb2.HeartbeatRequest(
                node=self._node,
                devices=[self._report(uuid) for uuid in uuids],
                known_epoch=self._known_epoch,
                takes_deltas=True,
                load=self._budget.load(),
            ),
            timeout=_TIMEOUT_S,
        )
        if response.HasField("grant"):
            self._budget.take_grant(response.grant)
        if len(response.device_indexes) == len(uuids):
            self._devices.learn_indexes(uuids, response.device_indexes)
        if response.HasField("map"):
            self._learn_map(response.map)

    def _report(self, uuid: str) -> metadata_pb2.DeviceReport:
        store = self._devices.lanes[uuid].store
        return metadata_pb2.DeviceReport(
            uuid=uuid,
            capacity_bytes=store.capacity_bytes,
            used_bytes=store.used_bytes,
            chunk_count=store.chunk_count,
            fenced=store.fence_reason is not None,
            weight=store.capacity_bytes / _TIB,
            device_class=self._device_class,
        )

    async def _pause(self, address: str, duration_s: float) -> None:
        waits: set[asyncio.Future[Any]] = {
            asyncio.ensure_future(self._clock.sleep(duration_s)),
            asyncio.ensure_future(self._hurry[address].wait()),
        }
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
            await asyncio.gather(*waits, return_exceptions=True)


def _stub(channel: grpc.aio.Channel) -> "MetadataServiceAsyncStub":
    return MetadataServiceStub(channel)
