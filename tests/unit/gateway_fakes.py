"""A cluster in one process for the tests of the gateway: thin servicers over dictionaries.

Faults are switches on the fakes. What a real server would do beyond that is not imitated.
"""

import asyncio
import contextlib
import hashlib
import itertools
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from typing import Any, TypeAlias

import grpc
from google.protobuf.message import Message
from prometheus_client import CollectorRegistry

from exastore.erasure import codec
from exastore.gateway.cluster_store import ClusterStore, open_cluster_store
from exastore.gateway.config import GatewayConfig
from exastore.gateway.crc import crc32c
from exastore.metadata.core.topology import DeviceState
from exastore.proto.v1 import common_pb2, metadata_pb2, storage_pb2

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
OPTIONS = [("grpc.max_receive_message_length", 8 << 20), ("grpc.so_reuseport", 0)]


def serialized(message: Message) -> bytes:
    return message.SerializeToString()


def unary(handler: Any, deserializer: Callable[[bytes], Any]) -> Any:
    """A handler of one request and one response."""
    return grpc.unary_unary_rpc_method_handler(
        handler,
        request_deserializer=deserializer,
        response_serializer=serialized,
    )


def streamed(handler: Any, deserializer: Callable[[bytes], Any]) -> Any:
    """A handler of one request and many responses."""
    return grpc.unary_stream_rpc_method_handler(
        handler,
        request_deserializer=deserializer,
        response_serializer=serialized,
    )


async def serve(
    service: str, handlers: Mapping[str, Any], address: str = ""
) -> tuple[grpc.aio.Server, str]:
    """A started server and its address; a new one unless one is given."""
    server = grpc.aio.server(options=OPTIONS)
    generic = grpc.method_handlers_generic_handler(service, dict(handlers))
    server.add_generic_rpc_handlers((generic,))
    address = f"127.0.0.1:{server.add_insecure_port(address or '127.0.0.1:0')}"
    await server.start()
    return server, address


class LoopClock:
    """The real clocks."""

    def now_s(self) -> float:
        return time.time()

    def monotonic_s(self) -> float:
        return time.monotonic()

    async def sleep(self, duration_s: float) -> None:
        await asyncio.sleep(duration_s)


class BytesBody:
    """A body in pieces; may be cut off, or turn out wrong at the end."""

    def __init__(
        self,
        data: bytes,
        *,
        piece_bytes: int = 100_000,
        cut_at: int | None = None,
        wrong: Exception | None = None,
        checksums: Mapping[str, str] | None = None,
    ) -> None:
        self._data = data
        self._piece_bytes = piece_bytes
        self._cut_at = cut_at
        self._wrong = wrong
        self._checksums = checksums or {}
        self.finished = False

    async def __aiter__(self) -> AsyncIterator[bytes | bytearray | memoryview]:
        for start in range(0, len(self._data), self._piece_bytes):
            if self._cut_at is not None and start >= self._cut_at:
                raise ConnectionError("the client went away")
            yield self._data[start : start + self._piece_bytes]

    def finish(self) -> Mapping[str, str]:
        self.finished = True
        if self._wrong is not None:
            raise self._wrong
        return self._checksums


class FakeNode:
    """A storage node over a dictionary."""

    def __init__(self) -> None:
        self.chunks: dict[tuple[int, int, bytes, int], bytes] = {}
        self.dead = False
        #: Dies upon so many more writes, without answering.
        self.die_after_writes: int | None = None
        #: Answers every write with this.
        self.write_status: storage_pb2.ChunkStatus.ValueType = storage_pb2.CHUNK_STATUS_OK
        #: Writes of an older epoch are refused.
        self.epoch = 0
        #: What is read without a check by the node is other than what was written.
        self.wrong_unless_checked = False
        #: The checks of the node find that all has rotted.
        self.finds_rot = False
        #: Cleared: reads, or writes, wait.
        self.reads_flow = asyncio.Event()
        self.reads_flow.set()
        self.writes_flow = asyncio.Event()
        self.writes_flow.set()
        #: Writes that are still answered; None: all.
        self.writes_left: int | None = None
        self.arrived_count = 0
        self.write_count = 0
        self.read_count = 0
        self.address = ""
        self._server: grpc.aio.Server | None = None

    async def start(self) -> str:
        pb = storage_pb2
        self._server, self.address = await serve(
            "exastore.proto.v1.StorageService",
            {
                "WriteChunks": grpc.stream_stream_rpc_method_handler(
                    self.write_chunks,
                    request_deserializer=pb.WriteChunkRequest.FromString,
                    response_serializer=pb.WriteChunkResponse.SerializeToString,
                ),
                "ReadChunks": grpc.stream_stream_rpc_method_handler(
                    self.read_chunks,
                    request_deserializer=pb.ReadChunkRequest.FromString,
                    response_serializer=pb.ReadChunkResponse.SerializeToString,
                ),
                "DeleteChunks": unary(self.delete_chunks, pb.DeleteChunksRequest.FromString),
            },
        )
        return self.address

    async def stop(self) -> None:
        self.reads_flow.set()
        self.writes_flow.set()
        if self._server is not None:
            await self._server.stop(0)
            self._server = None

    def corrupt(self) -> None:
        """Flip a bit of every chunk; the node does not notice."""
        for key, data in self.chunks.items():
            self.chunks[key] = bytes([data[0] ^ 1]) + data[1:]

    async def write_chunks(
        self, request_iterator: AsyncIterator[storage_pb2.WriteChunkRequest], context: Context
    ) -> AsyncIterator[storage_pb2.WriteChunkResponse]:
        async for request in request_iterator:
            if self.die_after_writes is not None:
                self.die_after_writes -= 1
                self.dead = self.dead or self.die_after_writes < 0
            if self.dead:
                await context.abort(grpc.StatusCode.UNAVAILABLE, "dead")
            self.arrived_count += 1
            await self.writes_flow.wait()
            if self.writes_left is not None:
                self.writes_left -= 1
                if self.writes_left < 0:
                    continue
            self.write_count += 1
            response = storage_pb2.WriteChunkResponse(
                request_id=request.request_id, status=self.write_status, epoch=self.epoch
            )
            if request.epoch < self.epoch:
                response.status = storage_pb2.CHUNK_STATUS_STALE_EPOCH
            elif crc32c(request.data) != request.crc32c:
                response.status = storage_pb2.CHUNK_STATUS_CORRUPT
            if response.status == storage_pb2.CHUNK_STATUS_OK:
                chunk = request.chunk
                key = (request.device_index, chunk.pg, chunk.stripe_id, chunk.index)
                self.chunks[key] = request.data
            yield response

    async def read_chunks(
        self, request_iterator: AsyncIterator[storage_pb2.ReadChunkRequest], context: Context
    ) -> AsyncIterator[storage_pb2.ReadChunkResponse]:
        async for request in request_iterator:
            if self.dead:
                await context.abort(grpc.StatusCode.UNAVAILABLE, "dead")
            await self.reads_flow.wait()
            self.read_count += 1
            chunk = request.chunk
            data = self.chunks.get(
                (request.device_index, chunk.pg, chunk.stripe_id, chunk.index), None
            )
            if data is None:
                yield storage_pb2.ReadChunkResponse(
                    request_id=request.request_id, status=storage_pb2.CHUNK_STATUS_NOT_FOUND
                )
            elif self.finds_rot and not request.unchecked:
                yield storage_pb2.ReadChunkResponse(
                    request_id=request.request_id, status=storage_pb2.CHUNK_STATUS_CORRUPT
                )
            else:
                if self.wrong_unless_checked and request.unchecked:
                    data = bytes(len(data))
                if request.runs:
                    runs = [data[run.offset : run.offset + run.length] for run in request.runs]
                    data = b"".join(runs)
                yield storage_pb2.ReadChunkResponse(
                    request_id=request.request_id,
                    status=storage_pb2.CHUNK_STATUS_OK,
                    crc32c=crc32c(data),
                    data=data,
                )

    async def delete_chunks(
        self, request: storage_pb2.DeleteChunksRequest, context: Context
    ) -> storage_pb2.DeleteChunksResponse:
        if self.dead:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "dead")
        keys = [(request.device_index, c.pg, c.stripe_id, c.index) for c in request.chunks]
        found = [key for key in keys if self.chunks.pop(key, None) is not None]
        return storage_pb2.DeleteChunksResponse(deleted_count=len(found))


class FakeMetadata:
    """A metadata server over dictionaries: the map, objects, the fence of commits."""

    def __init__(self, addresses: list[str], *, code: str = "rs-4-2", pg_count: int = 8) -> None:
        n = codec(code).n
        self.map = common_pb2.ClusterMap(epoch=1, cluster_id="test", code=code)
        for index, address in enumerate(addresses):
            self.map.nodes.add(index=index, id=f"node-{index}", address=address)
            self.map.devices.add(
                index=index, node_index=index, weight=1.0, state=common_pb2.DEVICE_STATE_UP
            )
        for pg in range(pg_count):
            devices = [(pg + slot) % len(addresses) for slot in range(n)]
            self.map.pgs.add(index=pg, device_indexes=devices, slot_states=[0] * n, epoch=1)
        self.ready = True
        self.buckets = {"bucket"}
        self.objects: dict[tuple[str, str], metadata_pb2.Object] = {}
        self.parts: dict[tuple[str, int], metadata_pb2.Part] = {}
        self.uploads: dict[str, metadata_pb2.Upload] = {}
        self.commit_count = 0
        #: (status, reason) of the next calls of CommitObject; each fails one call.
        self.commit_failures: list[tuple[grpc.StatusCode, str]] = []
        #: Commits that fail are done nevertheless.
        self.lose_answers = False
        #: Called at the start of every commit.
        self.on_commit: Callable[[], None] = lambda: None
        self.address = ""
        self._changed = asyncio.Event()
        self._server: grpc.aio.Server | None = None

    async def start(self) -> str:
        pb = metadata_pb2
        self._server, self.address = await serve(
            "exastore.proto.v1.MetadataService",
            {
                "GetMap": unary(self.get_map, pb.GetMapRequest.FromString),
                "WatchMap": streamed(self.watch_map, pb.GetMapRequest.FromString),
                "ListExtents": streamed(self.list_extents, pb.ListExtentsRequest.FromString),
                "GetBucket": unary(self.get_bucket, pb.GetBucketRequest.FromString),
                "CommitObject": unary(self.commit_object, pb.CommitObjectRequest.FromString),
                "GetObject": unary(self.get_object, pb.GetObjectRequest.FromString),
                "CreateUpload": unary(self.create_upload, pb.CreateUploadRequest.FromString),
                "ListParts": unary(self.list_parts, pb.ListPartsRequest.FromString),
                "CommitPart": unary(self.commit_part, pb.CommitPartRequest.FromString),
            },
            self.address,
        )
        return self.address

    async def stop(self) -> None:
        if self._server is not None:
            await self._server.stop(0)
            self._server = None

    # ---- what a test changes ----

    def announce(self) -> None:
        """Make the map's next epoch and tell the watchers."""
        self.map.epoch += 1
        self._changed.set()
        self._changed = asyncio.Event()

    def set_state(self, device: int, state: DeviceState) -> None:
        self.map.devices[device].state = common_pb2.DeviceState.Value(f"DEVICE_STATE_{state.name}")
        self.announce()

    def move_pg(self, pg: int) -> None:
        """Change a placement group, so that stripes written before are stale; no one is told."""
        self.map.epoch += 1
        self.map.pgs[pg].epoch = self.map.epoch

    @property
    def extents(self) -> list[common_pb2.Extent]:
        of_objects = [extent for found in self.objects.values() for extent in found.extents]
        return of_objects + [extent for part in self.parts.values() for extent in part.extents]

    # ---- what the gateway calls ----

    async def get_map(
        self, request: metadata_pb2.GetMapRequest, context: Context
    ) -> common_pb2.ClusterMap:
        if not self.ready:
            await refuse(context, grpc.StatusCode.FAILED_PRECONDITION, "NOT_READY")
        return self.map

    async def watch_map(
        self, request: metadata_pb2.GetMapRequest, context: Context
    ) -> AsyncIterator[common_pb2.ClusterMap]:
        known = request.known_epoch
        while True:
            changed = self._changed
            if self.ready and self.map.epoch > known:
                known = self.map.epoch
                yield self.map
            await changed.wait()

    async def list_extents(
        self, request: metadata_pb2.ListExtentsRequest, context: Context
    ) -> AsyncIterator[metadata_pb2.ListExtentsResponse]:
        for extent in self.extents:
            yield metadata_pb2.ListExtentsResponse(extents=[extent])

    async def get_bucket(
        self, request: metadata_pb2.GetBucketRequest, context: Context
    ) -> metadata_pb2.Bucket:
        if request.name not in self.buckets:
            await refuse(context, grpc.StatusCode.NOT_FOUND, "NO_SUCH_BUCKET")
        return metadata_pb2.Bucket(name=request.name)

    async def commit_object(
        self, request: metadata_pb2.CommitObjectRequest, context: Context
    ) -> metadata_pb2.Object:
        self.commit_count += 1
        self.on_commit()
        new = request.object
        if self.commit_failures:
            status, reason = self.commit_failures.pop(0)
            if self.lose_answers:
                self.objects[new.bucket, new.key] = new
            await refuse(context, status, reason)
        if any(self.map.pgs[extent.pg].epoch > extent.epoch for extent in new.extents):
            await refuse(context, grpc.StatusCode.FAILED_PRECONDITION, "STALE_EPOCH")
        self.objects[new.bucket, new.key] = new
        return new

    async def get_object(
        self, request: metadata_pb2.GetObjectRequest, context: Context
    ) -> metadata_pb2.Object:
        found = self.objects.get((request.bucket, request.key))
        if found is None:
            await refuse(context, grpc.StatusCode.NOT_FOUND, "NO_SUCH_KEY")
        assert found is not None
        return found

    async def create_upload(
        self, request: metadata_pb2.CreateUploadRequest, context: Context
    ) -> metadata_pb2.Upload:
        upload = metadata_pb2.Upload(
            bucket=request.bucket, key=request.key, upload_id=request.upload_id
        )
        self.uploads[request.upload_id] = upload
        return upload

    async def list_parts(
        self, request: metadata_pb2.ListPartsRequest, context: Context
    ) -> metadata_pb2.ListPartsResponse:
        if request.upload_id not in self.uploads:
            await refuse(context, grpc.StatusCode.NOT_FOUND, "NO_SUCH_UPLOAD")
        return metadata_pb2.ListPartsResponse(upload=self.uploads[request.upload_id])

    async def commit_part(
        self, request: metadata_pb2.CommitPartRequest, context: Context
    ) -> metadata_pb2.Part:
        self.parts[request.upload_id, request.part.number] = request.part
        return request.part


async def refuse(context: Context, status: grpc.StatusCode, reason: str) -> None:
    """Fail a call as a metadata server does."""
    metadata = (("exastore-reason", reason),) if reason else ()
    await context.abort(status, f"refused: {reason}", metadata)


class FakeCluster:
    """Eight nodes of one device each, a metadata server, and a store connected to them."""

    def __init__(self, nodes: list[FakeNode], metadata: FakeMetadata, store: ClusterStore) -> None:
        self.nodes = nodes
        self.metadata = metadata
        self.store = store
        self.registry = CollectorRegistry()

    @property
    def chunk_count(self) -> int:
        return sum(len(node.chunks) for node in self.nodes)

    async def eventually(self, condition: Callable[[], bool]) -> None:
        """Wait until a condition holds."""
        async with asyncio.timeout(10.0):
            while not condition():
                await asyncio.sleep(0.002)


@contextlib.asynccontextmanager
async def fake_cluster(
    *, node_count: int = 8, code: str = "rs-4-2", ready: bool = True, **settings: Any
) -> AsyncGenerator[FakeCluster]:
    """A running FakeCluster; `settings` are those of GatewayConfig."""
    nodes = [FakeNode() for _ in range(node_count)]
    metadata = FakeMetadata([await node.start() for node in nodes], code=code)
    metadata.ready = ready
    address = await metadata.start()
    defaults: dict[str, Any] = {
        "metadata": (address,),
        "chunk_bytes": 64 << 10,
        "max_in_flight_bytes": 1 << 20,
        "chunk_timeout_s": 5.0,
        "metadata_deadline_s": 5.0,
        "backoff_min_s": 0.005,
        "packed_bytes": 0,
    }
    config = GatewayConfig(**{**defaults, **settings})
    registry = CollectorRegistry()
    ids = itertools.count(1)
    store = await open_cluster_store(
        config,
        clock=LoopClock(),
        registry=registry,
        new_id=lambda: next(ids).to_bytes(16, "big"),
    )
    cluster = FakeCluster(nodes, metadata, store)
    cluster.registry = registry
    try:
        yield cluster
    finally:
        await store.close()
        for node in nodes:
            await node.stop()
        await metadata.stop()


def some_bytes(count: int, seed: int = 0) -> bytes:
    """Bytes without pattern, the same every time."""
    return hashlib.shake_128(str(seed).encode()).digest(count)
