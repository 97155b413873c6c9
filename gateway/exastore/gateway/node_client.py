"""Storage nodes as the data path uses them: write, read and delete chunks.

A node or device that failed just now is avoided for a short while (local suspicion): the metadata
servers need seconds to see a failure, and a request should not run into it twice.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

import grpc

from exastore.gateway.chunk_stream import ChunkStream, StreamOptions
from exastore.gateway.cluster_view import ClusterView
from exastore.gateway.config import GatewayConfig
from exastore.gateway.errors import NodeSlow, NodeUnavailable
from exastore.gateway.metrics import GatewayMetrics
from exastore.gateway.node_latency import NodeLatency
from exastore.gateway.node_speed import NodeSpeed
from exastore.metadata.core.clock import Clock
from exastore.metadata.core.phases import Phase, is_listened_to, reach
from exastore.proto.channel import CHUNK_MESSAGE_BYTES, channel_options
from exastore.proto.chunk_frames import ReadFrame, WriteFrame
from exastore.proto.links import Call, ChunkTransport, NodeLinks
from exastore.proto.v1 import common_pb2, storage_pb2, storage_pb2_grpc

#: Where frames are cut while somebody listens to phases: the system might take them whole.
_CUT_BYTES = 64 << 10
#: Statuses that speak of the device, not of the chunk: it is avoided for a while.
_DEVICE_FAILURES = frozenset(
    {
        storage_pb2.CHUNK_STATUS_WRONG_DEVICE,
        storage_pb2.CHUNK_STATUS_NO_SPACE,
        storage_pb2.CHUNK_STATUS_FENCED,
        storage_pb2.CHUNK_STATUS_IO_ERROR,
    }
)


@dataclass(frozen=True, slots=True)
class ChunkAddress:
    """Which chunk on which device."""

    device_index: int
    pg: int
    stripe_id: bytes
    index: int

    def chunk_id(self) -> common_pb2.ChunkId:
        return common_pb2.ChunkId(pg=self.pg, stripe_id=self.stripe_id, index=self.index)


@dataclass(frozen=True, slots=True)
class ChunkWrite:
    """One chunk to be written."""

    address: ChunkAddress
    code: str
    epoch: int
    crc32c: int
    data: memoryview

    def request(self, request_id: int) -> WriteFrame:
        """The request with this id."""
        header = storage_pb2.WriteChunkRequest(
            request_id=request_id,
            device_index=self.address.device_index,
            chunk=self.address.chunk_id(),
            code=self.code,
            epoch=self.epoch,
            crc32c=self.crc32c,
        )
        return WriteFrame(header, self.data)


class NodeClient:
    """One storage node: a channel, a link for writes and a link for reads."""

    def __init__(
        self, address: str, config: GatewayConfig, *, clock: Clock, metrics: GatewayMetrics
    ) -> None:
        self.address = address
        self._timeout_s = config.chunk_timeout_s
        self._metrics = metrics
        # Channels of one process share connections; data wants its own per node client.
        options = (
            *channel_options(CHUNK_MESSAGE_BYTES),
            ("grpc.use_local_subchannel_pool", 1),
        )
        self._channel = grpc.aio.insecure_channel(address, options=options)
        self._stub: storage_pb2_grpc.StorageServiceAsyncStub = storage_pb2_grpc.StorageServiceStub(
            self._channel
        )
        limits = StreamOptions(
            max_in_flight_bytes=config.max_node_in_flight_bytes,
            backoff_min_s=config.backoff_min_s,
            backoff_max_s=config.backoff_max_s,
            mute_s=config.chunk_timeout_s / 2,
        )
        links = NodeLinks(
            address,
            self._channel,
            ChunkTransport(config.chunk_transport),
            on_half_sent=lambda: reach(Phase.FRAME_HALF_SENT),
            cut_bytes=_CUT_BYTES if is_listened_to() else 0,
        )
        self._writes: ChunkStream[storage_pb2.WriteChunkResponse] = ChunkStream(
            links, Call.WRITE, clock=clock, options=limits
        )
        self._reads: ChunkStream[ReadFrame] = ChunkStream(
            links, Call.READ, clock=clock, options=limits
        )

    async def write_chunk(self, chunk: ChunkWrite) -> storage_pb2.WriteChunkResponse:
        """Durable on return when the status is OK.

        Raises:
            NodeUnavailable: not known to be durable.
        """
        response = await self._writes.request(chunk.request, len(chunk.data), self._timeout_s)
        self._metrics.chunk_bytes.labels("write").inc(len(chunk.data))
        return response

    async def read_chunk(
        self,
        address: ChunkAddress,
        size_bytes: int,
        offset: int | None = None,
        *,
        unchecked: bool = False,
    ) -> ReadFrame:
        """The chunk as the node has it; `size_bytes` is what the answer is expected to weigh.

        Args:
            address: Which chunk.
            size_bytes: How much is expected.
            offset: Read only so many bytes from here; None: the whole chunk, whatever its size.
            unchecked: The node need not compare the chunk with its checksum: the caller does.

        Raises:
            NodeUnavailable: no answer.
        """

        def request(request_id: int) -> storage_pb2.ReadChunkRequest:
            return storage_pb2.ReadChunkRequest(
                request_id=request_id,
                device_index=address.device_index,
                chunk=address.chunk_id(),
                runs=runs,
                unchecked=unchecked,
            )

        runs: list[storage_pb2.ByteRun] = []
        if offset is not None:
            runs.append(storage_pb2.ByteRun(offset=offset, length=size_bytes))

        response = await self._reads.request(request, size_bytes, self._timeout_s)
        self._metrics.chunk_bytes.labels("read").inc(len(response.data))
        return response

    async def delete_chunks(self, device_index: int, chunks: Sequence[common_pb2.ChunkId]) -> int:
        """How many there were."""
        request = storage_pb2.DeleteChunksRequest(device_index=device_index, chunks=chunks)
        try:
            response = await self._stub.DeleteChunks(request, timeout=self._timeout_s)
        except grpc.aio.AioRpcError as error:
            raise NodeUnavailable(self.address, f"{error.code().name}: {error.details()}") from None
        return response.deleted_count

    async def close(self) -> None:
        await self._writes.close()
        await self._reads.close()
        await self._channel.close()


class NodePool:
    """The clients of all nodes of the map, made on first use, and who is under suspicion."""

    def __init__(self, config: GatewayConfig, *, clock: Clock, metrics: GatewayMetrics) -> None:
        self._config = config
        self._clock = clock
        self._metrics = metrics
        self._latency = NodeLatency(config.metadata, clock)
        #: How fast nodes answer reads.
        self.speed = NodeSpeed(
            clock,
            least_s=config.hedge_least_s,
            most_s=config.hedge_after_s,
            avoided_s=config.suspect_s,
        )
        self._clients: dict[str, NodeClient] = {}
        #: Until when an address (str) or a device (int) is avoided.
        self._suspect_until_s: dict[str | int, float] = {}
        self._closing: set[asyncio.Task[None]] = set()

    async def write(self, view: ClusterView, chunk: ChunkWrite) -> storage_pb2.WriteChunkResponse:
        """Write to the device's node; failures make the node or device suspect."""
        client = self._client(view, chunk.address.device_index)
        begun_s = self._clock.monotonic_s()
        try:
            response = await client.write_chunk(chunk)
        except NodeUnavailable as error:
            self._blame("write", error)
            raise
        self._latency.note(client.address, self._clock.monotonic_s() - begun_s)
        self._judge("write", chunk.address.device_index, response.status)
        return response

    async def read(
        self,
        view: ClusterView,
        address: ChunkAddress,
        size_bytes: int,
        offset: int | None = None,
        *,
        unchecked: bool = False,
    ) -> ReadFrame:
        """Read from the device's node; failures make the node or device suspect."""
        client = self._client(view, address.device_index)
        begun_s = self._clock.monotonic_s()
        try:
            response = await client.read_chunk(address, size_bytes, offset, unchecked=unchecked)
        except NodeUnavailable as error:
            self._blame("read", error)
            raise
        duration_s = self._clock.monotonic_s() - begun_s
        self._latency.note(client.address, duration_s)
        self.speed.note_answer(client.address, duration_s)
        self._judge("read", address.device_index, response.status)
        return response

    async def delete(
        self, view: ClusterView, device_index: int, chunks: Sequence[common_pb2.ChunkId]
    ) -> int:
        return await self._client(view, device_index).delete_chunks(device_index, chunks)

    def gone_around(self, view: ClusterView) -> frozenset[int]:
        """Devices that reads go around: those that failed just now, and those of slow nodes."""
        slow, failed = self.speed.slow_addresses(), self.avoided(view)
        if not slow:
            return failed
        addresses = enumerate(view.device_address)
        return failed.union(device for device, address in addresses if address in slow)

    def avoided(self, view: ClusterView) -> frozenset[int]:
        """Devices that failed just now."""
        if not self._suspect_until_s:
            return frozenset()
        now_s = self._clock.monotonic_s()
        self._suspect_until_s = {
            key: until_s for key, until_s in self._suspect_until_s.items() if until_s > now_s
        }
        suspects = self._suspect_until_s
        return frozenset(
            device
            for device, address in enumerate(view.device_address)
            if device in suspects or address in suspects
        )

    def retain(self, view: ClusterView) -> None:
        """Close the clients of addresses that no node has any more."""
        for address in self._clients.keys() - set(view.device_address):
            self.speed.forget(address)
            task = asyncio.create_task(self._clients.pop(address).close())
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)

    async def close(self) -> None:
        clients, self._clients = list(self._clients.values()), {}
        await asyncio.gather(*self._closing, *(client.close() for client in clients))
        await self._latency.close()

    def _client(self, view: ClusterView, device_index: int) -> NodeClient:
        address = view.device_address[device_index]
        client = self._clients.get(address)
        if client is None:
            client = NodeClient(address, self._config, clock=self._clock, metrics=self._metrics)
            self._clients[address] = client
        return client

    def _blame(self, operation: str, error: NodeUnavailable) -> None:
        if isinstance(error, NodeSlow):
            # All nodes may be slow at once; to avoid them would make that worse.
            self._metrics.chunks.labels(operation, "slow").inc()
            return
        self._metrics.chunks.labels(operation, "unavailable").inc()
        self._suspect(error.address)

    def _judge(
        self, operation: str, device: int, status: storage_pb2.ChunkStatus.ValueType
    ) -> None:
        name = storage_pb2.ChunkStatus.Name(status).removeprefix("CHUNK_STATUS_").lower()
        self._metrics.chunks.labels(operation, name).inc()
        if status in _DEVICE_FAILURES:
            self._suspect(device)
        elif self._suspect_until_s and status == storage_pb2.CHUNK_STATUS_OK:
            self._suspect_until_s.pop(device, None)

    def _suspect(self, key: str | int) -> None:
        self._suspect_until_s[key] = self._clock.monotonic_s() + self._config.suspect_s
