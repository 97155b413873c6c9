"""Storage nodes in one process, and a metadata server that knows heartbeats alone."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import grpc.aio
import numpy as np
from prometheus_client import CollectorRegistry

from exastore.deploy.clock import SystemClock
from exastore.erasure import codec
from exastore.proto.v1 import budget_pb2, common_pb2, metadata_pb2, storage_pb2
from exastore.proto.v1.metadata_pb2_grpc import (
    MetadataServiceServicer,
    add_MetadataServiceServicer_to_server,
)
from exastore.proto.v1.storage_pb2_grpc import StorageServiceStub
from exastore.storage.channel import make_server, open_channel
from exastore.storage.config import StorageConfig
from exastore.storage.crc import crc32c
from exastore.storage.disk import Disk, PosixDisk
from exastore.storage.server import StorageNode

if TYPE_CHECKING:
    from exastore.proto.v1.storage_pb2_grpc import (
        StorageServiceAsyncStub,
    )  # exists in the stub file alone

S = storage_pb2.ChunkStatus
CODE = "rs-4-2"
NODES = 6


class FakeMetadata(MetadataServiceServicer):
    """Gives every device an index; places PG p so that slot s is on device (s + p) % D."""

    def __init__(self, device_count: int, pg_count: int = 4) -> None:
        self.device_count = device_count
        self.pg_count = pg_count
        self.devices: dict[str, int] = {}
        self.nodes: dict[str, common_pb2.Node] = {}
        self.reports: dict[str, metadata_pb2.DeviceReport] = {}
        self.map: common_pb2.ClusterMap | None = None
        self.heartbeat_count = 0
        #: Heartbeats carry the map; GetMap always does.
        self.share_map = True
        #: What every node may use; None: nothing is said about it.
        self.grant: budget_pb2.BackgroundGrant | None = None

    async def Heartbeat(
        self, request: metadata_pb2.HeartbeatRequest, context: Any
    ) -> metadata_pb2.HeartbeatResponse:
        self.heartbeat_count += 1
        self.nodes[request.node.id] = request.node
        for report in request.devices:
            self.devices.setdefault(report.uuid, len(self.devices))
            self.reports[report.uuid] = report
        if self.map is None and len(self.devices) == self.device_count:
            self.place(epoch=1)
        response = metadata_pb2.HeartbeatResponse(
            epoch=self.map.epoch if self.map else 0,
            device_indexes=[self.devices[report.uuid] for report in request.devices],
        )
        if self.grant is not None:
            response.grant.CopyFrom(self.grant)
        if self.map and self.share_map and self.map.epoch > request.known_epoch:
            response.map.CopyFrom(self.map)
        return response

    async def GetMap(
        self, request: metadata_pb2.GetMapRequest, context: Any
    ) -> common_pb2.ClusterMap:
        return self.map or common_pb2.ClusterMap()

    def place(self, epoch: int, pg_epoch: int | None = None) -> None:
        self.map = common_pb2.ClusterMap(
            epoch=epoch,
            code=CODE,
            devices=[
                common_pb2.Device(index=index, uuid=uuid) for uuid, index in self.devices.items()
            ],
            pgs=[
                common_pb2.PlacementGroup(
                    index=pg,
                    device_indexes=[(slot + pg) % self.device_count for slot in range(6)],
                    slot_states=[common_pb2.SLOT_STATE_CLEAN] * 6,
                    epoch=epoch if pg_epoch is None else pg_epoch,
                )
                for pg in range(self.pg_count)
            ],
        )


@dataclass
class Cluster:
    """Nodes, their fake metadata server, and clients of the nodes."""

    metadata: FakeMetadata
    metadata_address: str
    folder: Path
    nodes: list[StorageNode] = field(default_factory=list[StorageNode])
    channels: dict[str, grpc.aio.Channel] = field(default_factory=dict[str, grpc.aio.Channel])

    async def start_node(
        self, number: int, make_disk: Callable[[Path], Disk] = PosixDisk, **options: Any
    ) -> StorageNode:
        config = StorageConfig(
            node_id=f"node-{number}",
            devices=(self.folder / f"device-{number}",),
            metadata=(self.metadata_address,),
            heartbeat_s=0.05,
            allocate_bytes=1 << 20,
            **options,
        )
        node = StorageNode(
            config, clock=SystemClock(), registry=CollectorRegistry(), make_disk=make_disk
        )
        await node.start()
        return node

    async def until(self, condition: Any) -> None:
        async with asyncio.timeout(20):
            while not condition():  # the other side is in other tasks and threads
                await asyncio.sleep(0.005)

    def index_of(self, node: StorageNode) -> int | None:
        """Of a node that runs."""
        return next((self.metadata.devices[uuid] for uuid in node.devices.lanes), None)

    def node_of(self, device_index: int) -> StorageNode:
        return next(node for node in self.nodes if self.index_of(node) == device_index)

    def stub(self, node: StorageNode) -> "StorageServiceAsyncStub":
        if node.address not in self.channels:
            self.channels[node.address] = open_channel(node.address)
        return StorageServiceStub(self.channels[node.address])

    async def write_all(
        self, node: StorageNode, requests: Sequence[storage_pb2.WriteChunkRequest]
    ) -> list[storage_pb2.WriteChunkResponse]:
        """Answers in the order of the requests."""
        answers = {
            answer.request_id: answer
            async for answer in self.stub(node).WriteChunks(iter(requests))
        }
        assert len(answers) == len(requests)
        return [answers[request.request_id] for request in requests]

    async def read_all(
        self, node: StorageNode, requests: Sequence[storage_pb2.ReadChunkRequest]
    ) -> list[storage_pb2.ReadChunkResponse]:
        answers = {
            answer.request_id: answer async for answer in self.stub(node).ReadChunks(iter(requests))
        }
        return [answers[request.request_id] for request in requests]

    async def store_stripes(
        self, pg: int, count: int, chunk_bytes: int, code_name: str = CODE
    ) -> dict[bytes, list[bytes]]:
        """Random stripes, all n chunks written; stripe id -> chunks."""
        generator = np.random.default_rng(pg * 1000 + count)
        code = codec(code_name)
        stripes: dict[bytes, list[bytes]] = {}
        for number in range(count):
            data = generator.integers(0, 256, (code.k, chunk_bytes), dtype=np.uint8)
            chunks = [row.tobytes() for row in (*data, *code.encode(data))]
            stripes[bytes([pg]) * 8 + number.to_bytes(8, "little")] = chunks
        for slot in range(code.n):
            device = self.pg_devices(pg)[slot]
            answers = await self.write_all(
                self.node_of(device),
                [
                    write_request(n, device, pg, stripe_id, slot, chunks[slot], code=code_name)
                    for n, (stripe_id, chunks) in enumerate(stripes.items())
                ],
            )
            assert {answer.status for answer in answers} == {S.CHUNK_STATUS_OK}
        return stripes

    def pg_devices(self, pg: int) -> Sequence[int]:
        assert self.metadata.map is not None
        return self.metadata.map.pgs[pg].device_indexes

    def rebuild_request(
        self, pg: int, slot: int, *, gone: Sequence[int] = (), code: str = CODE, **fields: Any
    ) -> storage_pb2.RebuildRequest:
        """Of one slot, from all others but those in `gone`."""
        assert self.metadata.map is not None
        devices = self.pg_devices(pg)
        return storage_pb2.RebuildRequest(
            pg=pg,
            index=slot,
            device_index=devices[slot],
            code=code,
            epoch=self.metadata.map.epoch,
            sources=[
                storage_pb2.RebuildSource(
                    index=index, device_index=device, address=self.node_of(device).address
                )
                for index, device in enumerate(devices)
                if index != slot and index not in gone
            ],
            **fields,
        )

    async def rebuild(self, request: storage_pb2.RebuildRequest) -> storage_pb2.RebuildProgress:
        node = self.node_of(request.device_index)
        messages = [message async for message in self.stub(node).Rebuild(request)]
        assert [message.done for message in messages[:-1]] == [False] * (len(messages) - 1)
        assert messages[-1].done
        return messages[-1]

    async def wipe(self, device_index: int, pg: int) -> None:
        """Delete all chunks of a PG from a device."""
        stub = self.stub(self.node_of(device_index))
        listing = stub.ListChunks(storage_pb2.ListChunksRequest(device_index=device_index, pg=pg))
        chunks = [info.chunk async for batch in listing for info in batch.chunks]
        answer = await stub.DeleteChunks(
            storage_pb2.DeleteChunksRequest(device_index=device_index, chunks=chunks)
        )
        assert answer.deleted_count == len(chunks)


def chunk_id(pg: int, stripe_id: bytes, index: int) -> common_pb2.ChunkId:
    return common_pb2.ChunkId(pg=pg, stripe_id=stripe_id, index=index)


def write_request(
    request_id: int,
    device: int,
    pg: int,
    stripe_id: bytes,
    slot: int,
    data: bytes,
    *,
    epoch: int = 1,
    crc: int | None = None,
    code: str = CODE,
) -> storage_pb2.WriteChunkRequest:
    return storage_pb2.WriteChunkRequest(
        request_id=request_id,
        device_index=device,
        chunk=chunk_id(pg, stripe_id, slot),
        code=code,
        epoch=epoch,
        crc32c=crc32c(data) if crc is None else crc,
        data=data,
    )


def read_request(
    request_id: int, device: int, pg: int, stripe_id: bytes, slot: int
) -> storage_pb2.ReadChunkRequest:
    return storage_pb2.ReadChunkRequest(
        request_id=request_id, device_index=device, chunk=chunk_id(pg, stripe_id, slot)
    )


@contextlib.asynccontextmanager
async def running_nodes(folder: Path, **options: Any) -> AsyncGenerator[Cluster]:
    """As many nodes as a stripe has chunks; options are those of their configuration."""
    # The stub file makes every method abstract; this metadata server has two.
    metadata: FakeMetadata = cast(Any, FakeMetadata)(NODES)
    server = make_server()
    add_MetadataServiceServicer_to_server(metadata, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    cluster = Cluster(metadata, f"127.0.0.1:{port}", folder)
    try:
        for number in range(NODES):
            cluster.nodes.append(await cluster.start_node(number, **options))
        await cluster.until(lambda: all(node.devices.epoch == 1 for node in cluster.nodes))
        yield cluster
    finally:
        for channel in cluster.channels.values():
            await channel.close()
        for node in cluster.nodes:
            for lane in node.devices.lanes.values():
                lane.store.validate()
            await node.stop(0)
        await server.stop(0)


def flip_byte_of_chunk(node: StorageNode, pg: int, stripe_id: bytes) -> None:
    """Rot on disk, in the middle of the data of one chunk."""
    (lane,) = node.devices.lanes.values()
    entry = next(e for key, e in lane.store.of_pg(pg) if key.stripe_id == stripe_id)
    path = Path(lane.store.path) / "segments" / f"{entry.segment:08d}.seg"
    at = entry.offset_bytes + entry.header_bytes + entry.data_bytes // 2
    with path.open("r+b") as file:
        file.seek(at)
        byte = file.read(1)
        file.seek(at)
        file.write(bytes([byte[0] ^ 0x40]))
