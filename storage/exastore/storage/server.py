"""A storage node: devices, heartbeats and the gRPC server, started and stopped together."""

import asyncio
import logging
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc.aio
from prometheus_client import CollectorRegistry

from exastore.erasure import Codec, codec
from exastore.metadata.core.clock import Clock
from exastore.proto.bulk_port import BulkLimits
from exastore.proto.v1 import common_pb2
from exastore.proto.v1.bulk_pb2_grpc import add_BulkServiceServicer_to_server
from exastore.proto.v1.upkeep_pb2_grpc import add_PackServiceServicer_to_server
from exastore.storage.budget import BackgroundBudget, rack_name
from exastore.storage.bulk import BulkServer
from exastore.storage.channel import make_server
from exastore.storage.check import add_to_server as add_check_to_server
from exastore.storage.chunk_store import ChunkStore
from exastore.storage.compaction import Compacted
from exastore.storage.config import StorageConfig
from exastore.storage.devices import Devices
from exastore.storage.disk import Disk, PosixDisk
from exastore.storage.errors import AddressInUse
from exastore.storage.heartbeat import Heartbeats
from exastore.storage.lane import DeviceLane
from exastore.storage.log import StoreOptions
from exastore.storage.metrics import DeviceSample, StorageMetrics
from exastore.storage.packing import PackServicer
from exastore.storage.peers import Peers
from exastore.storage.rebuild import Rebuilder
from exastore.storage.servicer import StorageServicer, add_to_server
from exastore.storage.transfers import Transfers

_log = logging.getLogger(__name__)


class _Observer:
    """Metrics, and a heartbeat at once when a device is fenced."""

    def __init__(self, metrics: StorageMetrics, on_fence: Callable[[], None]) -> None:
        self._metrics = metrics
        self._on_fence = on_fence

    def compacted(self, compacted: Compacted) -> None:
        self._metrics.compacted_segments.inc(compacted.removed)
        self._metrics.compaction_moved_bytes.inc(compacted.moved_bytes)
        self._metrics.compaction_freed_bytes.inc(max(0, compacted.freed_bytes))

    def synced(self, chunk_count: int, duration_s: float) -> None:
        self._metrics.synced(chunk_count, duration_s)

    def fenced(self, reason: str) -> None:
        _log.error("device fenced: %s", reason)
        self._metrics.fenced(reason)
        self._on_fence()


class StorageNode:
    """Serves the devices of `config` until it is stopped."""

    def __init__(
        self,
        config: StorageConfig,
        *,
        clock: Clock,
        registry: CollectorRegistry,
        make_disk: Callable[[Path], Disk] = PosixDisk,
        codec_of: Callable[[str], Codec] = codec,
    ) -> None:
        self._config = config
        self._clock = clock
        self._make_disk = make_disk
        self._codec_of = codec_of
        self.metrics = StorageMetrics(registry)
        self._executor: ThreadPoolExecutor | None = None
        self._server: grpc.aio.Server | None = None
        self._bulk: BulkServer | None = None
        self._heartbeats: Heartbeats | None = None
        self._peers = Peers()
        self.devices = Devices({})
        self.address = ""

    async def start(self) -> str:
        """Open the devices, listen, begin to heartbeat; returns "host:port".

        Raises:
            DeviceLocked, DeviceUnusable: a device cannot be opened.
            AddressInUse: the address is taken.
        """
        try:
            await self._open_devices()
            await self._serve()
        except BaseException:
            await self.stop(0.0)
            raise
        _log.info(
            "node %s serves %d devices on %s",
            self._config.node_id, len(self.devices.lanes), self.address,
        )  # fmt: skip
        return self.address

    async def stop(self, grace_s: float = 5.0) -> None:
        """Finish what is in flight, make it durable, release the devices."""
        if self._heartbeats is not None:
            await self._heartbeats.stop()
            self._heartbeats = None
        # Together: while gRPC takes calls, it must not lead clients to a port that is closed.
        bulk, server, self._bulk, self._server = self._bulk, self._server, None, None
        await asyncio.gather(
            *([] if server is None else [server.stop(grace_s)]),
            *([] if bulk is None else [bulk.stop(grace_s)]),
        )
        await self._peers.close()
        self.metrics.forget_devices()
        await asyncio.gather(*(lane.close() for lane in self.devices.lanes.values()))
        self.devices = Devices({})
        if self._executor is not None:
            self._executor.shutdown(wait=False)
            self._executor = None

    async def _open_devices(self) -> None:
        loop = asyncio.get_running_loop()
        config = self._config
        self._executor = ThreadPoolExecutor(config.read_threads, f"read-{config.node_id}")

        def tell_fence() -> None:
            loop.call_soon_threadsafe(self._beat_now)

        observer = _Observer(self.metrics, tell_fence)
        options = StoreOptions(
            segment_bytes=config.segment_bytes,
            allocate_bytes=config.allocate_bytes,
            capacity_bytes=config.capacity_bytes,
            reserve_bytes=config.reserve_bytes,
        )

        def open_store(path: Path) -> ChunkStore:
            return ChunkStore.open(
                self._make_disk(path), options,
                monotonic_s=self._clock.monotonic_s, observer=observer,
            )  # fmt: skip

        opened = await asyncio.gather(
            *(asyncio.to_thread(open_store, Path(path)) for path in config.devices),
            return_exceptions=True,
        )
        stores = [store for store in opened if isinstance(store, ChunkStore)]
        executor = self._executor
        self.devices = Devices(
            {
                store.device_uuid.hex(): DeviceLane(
                    store, executor, reads_on_loop=len(config.devices) == 1
                )
                for store in stores
            }
        )
        for result in opened:
            if isinstance(result, BaseException):
                raise result
        for store in stores:
            self._tell_recovery(store)
        self.metrics.watch_devices(self._sample_devices)

    def _tell_recovery(self, store: ChunkStore) -> None:
        recovery = store.recovery
        self.metrics.damaged_stretches.inc(len(recovery.damage))
        self.metrics.torn_stretches.inc(len(recovery.torn))
        _log.info(
            "device %s: %d chunks in %d segments",
            store.path, store.chunk_count, recovery.segment_count,
        )  # fmt: skip
        if store.fence_reason is not None:
            _log.error(
                "device %s had an error before and takes no writes: %s; check it with "
                "`exastore node fsck %s`, which also lifts the fence (--lift-fence)",
                store.path, store.fence_reason, store.path,
            )  # fmt: skip
        for segment, item in recovery.damage:
            _log.error("device %s, segment %d is damaged: %s", store.path, segment, item)
        for segment, item in recovery.torn:
            _log.warning(
                "device %s, segment %d: a crash cut off a write: %s", store.path, segment, item
            )

    async def _serve(self) -> None:
        config = self._config
        server = make_server()
        try:
            port = server.add_insecure_port(config.address)
        except RuntimeError as error:
            raise AddressInUse(config.address) from error
        if port == 0:
            raise AddressInUse(config.address)
        self.address = f"{config.address.rpartition(':')[0]}:{port}"
        node = common_pb2.Node(
            id=config.node_id,
            address=config.advertise or self.address,
            rack=config.rack,
            zone=config.zone,
            region=config.region,
        )
        rack = rack_name(config.region, config.zone, config.rack)
        budget = BackgroundBudget(rack, self._clock, self.metrics)
        heartbeats = Heartbeats(
            config.metadata, node, self.devices, budget,
            interval_s=config.heartbeat_s, clock=self._clock, metrics=self.metrics,
            device_class=config.device_class,
        )  # fmt: skip
        transfers = Transfers(self._peers, budget, self._clock)
        rebuilder = Rebuilder(
            transfers, self._codec_of, budget,
            parallelism=config.rebuild_parallelism, clock=self._clock, metrics=self.metrics,
        )  # fmt: skip
        servicer = StorageServicer(
            self.devices, heartbeats.refresh_map, rebuilder, budget,
            stream_bytes=config.stream_bytes, clock=self._clock, metrics=self.metrics,
        )  # fmt: skip
        add_to_server(servicer, server)
        add_check_to_server(self.devices, server)
        packer = PackServicer(transfers, self._codec_of, self.metrics)
        add_PackServiceServicer_to_server(packer, server)
        if config.bulk_port >= 0:
            bulk = BulkServer(servicer, BulkLimits(config.stream_bytes), self.metrics)
            self._bulk = bulk
            bulk.start(config.address.rpartition(":")[0], config.bulk_port)
            add_BulkServiceServicer_to_server(bulk, server)
        await server.start()
        self._server = server
        self._heartbeats = heartbeats
        heartbeats.start()

    def _beat_now(self) -> None:
        if self._heartbeats is not None:
            self._heartbeats.beat_now()

    def _sample_devices(self) -> Iterable[DeviceSample]:
        for lane in self.devices.lanes.values():
            store = lane.store
            yield DeviceSample(
                store.path,
                capacity_bytes=store.capacity_bytes,
                used_bytes=store.used_bytes,
                chunk_bytes=store.chunk_bytes,
                chunk_count=store.chunk_count,
                fenced=store.fence_reason is not None,
            )
