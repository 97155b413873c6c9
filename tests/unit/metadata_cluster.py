"""A metadata service in this process, with a clock of ours and nodes that are fakes."""

import asyncio
import heapq
from collections import defaultdict
from collections.abc import AsyncIterator, Callable

from prometheus_client import CollectorRegistry

from exastore.metadata.kv.contract import Engine
from exastore.metadata.kv.memory import MemoryEngine
from exastore.metadata.service.background import Background
from exastore.metadata.service.config import MetadataConfig
from exastore.metadata.service.core import MetadataService
from exastore.metadata.service.metrics import MetadataMetrics
from exastore.metadata.service.storage_client import StorageError
from exastore.proto.v1 import common_pb2, healing_pb2, metadata_pb2, storage_pb2, upkeep_pb2

pb = metadata_pb2
ChunkKey = tuple[int, bytes, int]


class ManualClock:
    """Time that passes when the test says so."""

    def __init__(self) -> None:
        self.time_s = 1000.0
        #: What somebody has set the wall clock to, beyond the time that has passed.
        self.jump_s = 0.0
        self._sleepers: list[tuple[float, int, asyncio.Event]] = []

    def now_s(self) -> float:
        return 1.7e9 + self.time_s + self.jump_s

    def monotonic_s(self) -> float:
        return self.time_s

    async def sleep(self, duration_s: float) -> None:
        event = asyncio.Event()
        heapq.heappush(self._sleepers, (self.time_s + duration_s, id(event), event))
        await event.wait()

    def advance(self, duration_s: float) -> None:
        self.time_s += duration_s
        while self._sleepers and self._sleepers[0][0] <= self.time_s:
            heapq.heappop(self._sleepers)[2].set()


class FakeNodes:
    """StorageClient over dictionaries: one device per node, chunks as keys."""

    def __init__(self, k: int) -> None:
        self._k = k
        #: Chunks by device.
        self.chunks: dict[int, set[ChunkKey]] = defaultdict(set)
        #: Devices whose node does not answer.
        self.dead: set[int] = set()
        #: Devices whose rebuilds end with a failure.
        self.failing: set[int] = set()
        self.requests: list[storage_pb2.RebuildRequest] = []
        self.deletions: list[storage_pb2.DeleteChunksRequest] = []
        self.running_count = 0
        self.most_running_count = 0
        #: Rebuilds wait for this.
        self.gate = asyncio.Event()
        #: The gate closes behind so many; it stays open if below 1.
        self._pass_count = 0
        self.gate.set()

    async def rebuild(
        self, address: str, request: storage_pb2.RebuildRequest
    ) -> AsyncIterator[storage_pb2.RebuildProgress]:
        self._check(request.device_index)
        self.requests.append(request)
        self.running_count += 1
        self.most_running_count = max(self.most_running_count, self.running_count)
        try:
            yield storage_pb2.RebuildProgress()
            await self._wait_for_gate()
            yield self._rebuilt(request)
        finally:
            self.running_count -= 1

    def pass_gate(self, count: int) -> None:
        """Let so many rebuilds through."""
        self._pass_count = count
        self.gate.set()

    async def _wait_for_gate(self) -> None:
        while not self.gate.is_set():
            await self.gate.wait()  # it may be closed again when our turn comes
        self._pass_count -= 1
        if self._pass_count == 0:
            self.gate.clear()

    def _rebuilt(self, request: storage_pb2.RebuildRequest) -> storage_pb2.RebuildProgress:
        held: dict[bytes, int] = defaultdict(int)
        for source in request.sources:
            if source.device_index not in self.dead:
                for pg, stripe_id, index in self.chunks[source.device_index]:
                    held[stripe_id] += pg == request.pg and index == source.index
        held = {stripe_id: count for stripe_id, count in held.items() if count}
        # Of a slot that moves, chunks are copied from the device that it leaves.
        own = {
            stripe_id
            for source in request.sources
            if source.index == request.index and source.device_index not in self.dead
            for pg, stripe_id, index in self.chunks[source.device_index]
            if pg == request.pg and index == request.index
        }
        progress = storage_pb2.RebuildProgress(done=True)
        for stripe_id in list(request.stripe_ids) or sorted(held):
            progress.total_chunk_count += 1
            if (request.pg, stripe_id, request.index) in self.chunks[request.device_index]:
                progress.chunk_count += 1
                continue
            if stripe_id in own and request.device_index not in self.failing:
                self.chunks[request.device_index].add((request.pg, stripe_id, request.index))
                progress.chunk_count += 1
                progress.chunk_bytes += 64
                progress.read_bytes += 64
                continue
            if held.get(stripe_id, 0) < self._k or request.device_index in self.failing:
                progress.failed_chunk_count += 1
                progress.message = f"stripe {stripe_id!r} cannot be rebuilt"
                continue
            self.chunks[request.device_index].add((request.pg, stripe_id, request.index))
            progress.chunk_count += 1
            progress.chunk_bytes += 64
            progress.read_bytes += 64 * self._k
        return progress

    async def delete_chunks(
        self, address: str, request: storage_pb2.DeleteChunksRequest
    ) -> storage_pb2.DeleteChunksResponse:
        self._check(request.device_index)
        self.deletions.append(request)
        held = self.chunks[request.device_index]
        keys = {(chunk.pg, chunk.stripe_id, chunk.index) for chunk in request.chunks}
        count = len(held & keys)
        held -= keys
        return storage_pb2.DeleteChunksResponse(deleted_count=count)

    async def list_chunks(
        self, address: str, request: storage_pb2.ListChunksRequest
    ) -> list[storage_pb2.ChunkInfo]:
        self._check(request.device_index)
        return [
            storage_pb2.ChunkInfo(
                chunk=common_pb2.ChunkId(pg=pg, stripe_id=stripe_id, index=index), chunk_bytes=64
            )
            for pg, stripe_id, index in sorted(self.chunks[request.device_index])
            if pg == request.pg
        ]

    async def get_pg_usage(
        self, address: str, request: storage_pb2.GetPgUsageRequest
    ) -> storage_pb2.GetPgUsageResponse:
        self._check(request.device_index)
        counts: dict[int, int] = defaultdict(int)
        for pg, _, _ in self.chunks[request.device_index]:
            counts[pg] += 1
        return storage_pb2.GetPgUsageResponse(
            usages=[
                storage_pb2.PgUsage(pg=pg, chunk_count=count, chunk_bytes=64 * count)
                for pg, count in counts.items()
            ]
        )

    async def scrub(
        self, address: str, request: storage_pb2.ScrubRequest
    ) -> AsyncIterator[storage_pb2.ScrubProgress]:
        del address, request
        yield storage_pb2.ScrubProgress(done=True)

    async def check_chunks(
        self, address: str, request: healing_pb2.CheckChunksRequest
    ) -> healing_pb2.CheckChunksResponse:
        del address, request
        return healing_pb2.CheckChunksResponse()

    async def pack_stripe(
        self, address: str, request: upkeep_pb2.PackStripeRequest
    ) -> upkeep_pb2.PackStripeResponse:
        raise StorageError(f"node {address} packs nothing")

    async def close(self) -> None:
        pass

    def _check(self, device: int) -> None:
        if device in self.dead:
            raise StorageError(f"device {device} does not answer")


class Cluster:
    """A metadata server's insides and `node_count` nodes with one device each."""

    def __init__(
        self,
        node_count: int = 6,
        *,
        engine: Engine | None = None,
        clock: ManualClock | None = None,
        nodes: FakeNodes | None = None,
        holder: str = "server-1",
        **options: object,
    ) -> None:
        values: dict[str, object] = {
            "code": "rs-2-1",
            "pg_count": 16,
            "bootstrap_device_count": node_count,
            "down_after_s": 3.0,
            "out_after_s": 10.0,
            "trash_grace_s": 5.0,
            **options,
        }
        self.config = MetadataConfig(**values)  # type: ignore[arg-type]  # keyword values of a test
        self.clock = clock or ManualClock()
        self.engine = engine or MemoryEngine()
        self.nodes = nodes or FakeNodes(k=2)
        self.registry = CollectorRegistry()
        metrics = MetadataMetrics(self.registry)
        self.service = MetadataService(
            self.config, self.engine, holder=holder, clock=self.clock, metrics=metrics
        )
        self.background = Background(
            self.config, self.engine, self.service, self.nodes, self.clock, metrics
        )
        self.alive = set(range(node_count))
        #: Uuids of devices that nodes have instead of their first ones.
        self.new_devices: dict[int, str] = {}
        #: What every device reports.
        self.used_bytes = 0

    @property
    def map(self) -> common_pb2.ClusterMap:
        message = self.service.maps.message
        assert message is not None
        return message

    def heartbeat_of(self, number: int) -> metadata_pb2.HeartbeatRequest:
        return pb.HeartbeatRequest(
            node=common_pb2.Node(
                id=f"n{number:02d}", address=f"10.0.0.{number}:7000", rack=f"r{number}"
            ),
            devices=[
                pb.DeviceReport(
                    uuid=self.new_devices.get(number, f"d{number:02d}"),
                    capacity_bytes=1 << 40,
                    used_bytes=self.used_bytes,
                )
            ],
        )

    async def beat(self) -> None:
        """Every living node sends a heartbeat."""
        for number in sorted(self.alive):
            await self.service.cluster.heartbeat(self.heartbeat_of(number))

    async def form(self) -> common_pb2.ClusterMap:
        """Start the server and let all nodes join."""
        await self.service.start()
        await self.beat()
        await self.background.run_round()
        return self.map

    async def step(self, duration_s: float = 1.0) -> None:
        """Time passes: heartbeats, then a round whose rebuilds end unless the gate is closed."""
        self.clock.advance(duration_s)
        await self.beat()
        await self.background.run_round()
        work = (self.background.repair.work, self.background.slot_mover.work)
        while self.nodes.gate.is_set() and any(one.running_count for one in work):
            await asyncio.sleep(0)
        for _ in range(10):  # what was started gets as far as the gate
            await asyncio.sleep(0)

    async def until(self, condition: Callable[[], bool], *, within_s: float = 60.0) -> None:
        """Step until `condition` holds."""
        begun_s = self.clock.time_s
        while not condition():
            assert self.clock.time_s - begun_s < within_s, "the condition never held"
            await self.step()

    def kill(self, *numbers: int) -> None:
        self.alive -= set(numbers)
        self.nodes.dead |= set(numbers)

    def revive(self, *numbers: int) -> None:
        self.alive |= set(numbers)
        self.nodes.dead -= set(numbers)

    def states(self) -> list[int]:
        return [device.state for device in self.map.devices]

    def is_whole(self) -> bool:
        """Every slot is clean and on a living device."""
        return all(
            state == common_pb2.SLOT_STATE_CLEAN and device in self.alive
            for pg in self.map.pgs
            for device, state in zip(pg.device_indexes, pg.slot_states, strict=True)
        )

    async def put(
        self, name: str, pg: int, *, missing: tuple[int, ...] = ()
    ) -> metadata_pb2.Object:
        """Write an object of one stripe, chunks and all."""
        stripe_id = name.encode().ljust(16, b"\x00")
        for index, device in enumerate(self.map.pgs[pg].device_indexes):
            if index not in missing:
                self.nodes.chunks[device].add((pg, stripe_id, index))
        item = common_pb2.Extent(
            pg=pg,
            stripe_id=stripe_id,
            code=self.map.code,
            epoch=self.map.epoch,
            data_bytes=100,
            chunk_bytes=64,
            chunk_crc32c=[0] * len(self.map.pgs[pg].device_indexes),
            missing_indexes=missing,
        )
        return await self.service.names.commit_object(
            pb.CommitObjectRequest(
                object=pb.Object(
                    bucket="bucket",
                    key=name,
                    version_id=f"v-{name}",
                    size_bytes=100,
                    etag="e",
                    extents=[item],
                )
            )
        )

    async def new_bucket(self) -> None:
        await self.service.names.create_bucket(pb.CreateBucketRequest(name="bucket"))

    async def status(self) -> metadata_pb2.ClusterStatus:
        return await self.service.cluster.get_status(pb.GetStatusRequest())

    def chunk_is_stored(self, pg: int, name: str, index: int) -> bool:
        stripe_id = name.encode().ljust(16, b"\x00")
        device = self.map.pgs[pg].device_indexes[index]
        return (pg, stripe_id, index) in self.nodes.chunks[device]
