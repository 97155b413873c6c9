"""Chunks over frames on sockets: the port of a node, and the links that use it."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass, field
from typing import Any

import grpc
import pytest
from prometheus_client import CollectorRegistry
from tests.unit.gateway_fakes import FakeNode, some_bytes

from exastore.proto import links
from exastore.proto.bulk_frames import FrameKind, FrameReader, head_of
from exastore.proto.bulk_port import BulkLimits
from exastore.proto.bulk_socket import BulkSocket, FileBytes, Sendable
from exastore.proto.chunk_frames import WriteFrame
from exastore.proto.links import (
    BulkLink,
    Call,
    ChunkTransport,
    GrpcLink,
    Link,
    NodeLinks,
    NodeUnreachable,
)
from exastore.proto.v1 import bulk_pb2, storage_pb2
from exastore.proto.v1.bulk_pb2_grpc import add_BulkServiceServicer_to_server
from exastore.storage.bulk import BulkServer
from exastore.storage.channel import make_server, open_channel
from exastore.storage.metrics import StorageMetrics

OK = storage_pb2.CHUNK_STATUS_OK
MIB = 1 << 20


class FakeChunks:
    """Keeps chunks by request id; reads wait until they may go on."""

    def __init__(self) -> None:
        self.written: dict[int, bytes] = {}
        self.flow = asyncio.Event()
        self.flow.set()
        self.begun_count = 0
        self.cancelled_count = 0
        self.running_count = 0
        self.most_running_count = 0
        self.fails = False

    def write_cost_bytes(self, request: WriteFrame, /) -> int:
        return len(request.data)

    def read_cost_bytes(self, request: storage_pb2.ReadChunkRequest, /) -> int:
        return request.runs[0].length if request.runs else 1

    def unread_chunk(
        self, request: storage_pb2.ReadChunkRequest, /
    ) -> tuple[storage_pb2.ReadChunkResponse, FileBytes] | None:
        return None

    async def write_chunk(self, request: WriteFrame, /) -> storage_pb2.WriteChunkResponse:
        async with self._running():
            self.written[request.header.request_id] = bytes(request.data)
        return storage_pb2.WriteChunkResponse(request_id=request.header.request_id, status=OK)

    async def load_chunk(
        self, request: storage_pb2.ReadChunkRequest, /
    ) -> tuple[storage_pb2.ReadChunkResponse, Sendable]:
        async with self._running():
            data = self.written.get(request.request_id)
            size = self.read_cost_bytes(request)
            response = storage_pb2.ReadChunkResponse(request_id=request.request_id, status=OK)
        return response, bytes(size) if data is None else data

    @contextlib.asynccontextmanager
    async def _running(self) -> AsyncGenerator[None]:
        self.begun_count += 1
        self.running_count += 1
        self.most_running_count = max(self.most_running_count, self.running_count)
        try:
            if self.fails:
                raise RuntimeError("a mistake")
            await self.flow.wait()
            yield
        except asyncio.CancelledError:
            self.cancelled_count += 1
            raise
        finally:
            self.running_count -= 1


@dataclass
class Served:
    """A bulk port with its gRPC server, and what a client hears."""

    chunks: FakeChunks
    bulk: BulkServer
    metrics: StorageMetrics
    registry: CollectorRegistry
    address: str
    channel: grpc.aio.Channel
    answers: asyncio.Queue[Any] = field(default_factory=asyncio.Queue[Any])
    losses: list[str] = field(default_factory=list[str])

    def links(
        self, transport: ChunkTransport = ChunkTransport.LOCAL, stall_s: float = 30.0
    ) -> NodeLinks:
        return NodeLinks(self.address, self.channel, transport, stall_s)

    async def open(
        self, transport: ChunkTransport = ChunkTransport.LOCAL, stall_s: float = 30.0
    ) -> Link:
        return await self.links(transport, stall_s).open(
            Call.READ, self.answers.put_nowait, self.losses.append
        )

    async def describe(self) -> bulk_pb2.DescribeBulkResponse:
        return await self.bulk.Describe(bulk_pb2.DescribeBulkRequest(), None)

    async def connect(self, *, hello: bool = True) -> socket.socket:
        """A socket of our own; with `hello` it has been welcomed."""
        loop = asyncio.get_running_loop()
        node = await self.describe()
        connected = socket.socket()
        connected.setblocking(False)
        await loop.sock_connect(connected, ("127.0.0.1", node.port))
        if hello:
            await loop.sock_sendall(connected, head_of(FrameKind.HELLO, node.client_secret))
            expected = head_of(FrameKind.WELCOME, node.node_secret)
            got = b""
            while len(got) < len(expected):
                got += await loop.sock_recv(connected, len(expected) - len(got))
            assert got == expected
        return connected

    def metric(self, name: str, **labels: str) -> float:
        return self.registry.get_sample_value(f"exastore_storage_{name}", labels) or 0.0


LIMITS = BulkLimits(4 * MIB)
#: For tests of patience alone: elsewhere a busy machine may take longer.
HASTY = BulkLimits(4 * MIB, hello_s=0.2, stall_s=0.2)


@contextlib.asynccontextmanager
async def serving(
    limits: BulkLimits = LIMITS, chunks: FakeChunks | None = None
) -> AsyncGenerator[Served]:
    chunks, registry = chunks or FakeChunks(), CollectorRegistry()
    metrics = StorageMetrics(registry)
    bulk = BulkServer(chunks, limits, metrics)
    bulk.start("127.0.0.1")
    server = make_server()
    add_BulkServiceServicer_to_server(bulk, server)
    address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    await server.start()
    channel = open_channel(address)
    served = Served(chunks, bulk, metrics, registry, address, channel)
    try:
        yield served
        await until(lambda: chunks.running_count == 0 or not chunks.flow.is_set())
    finally:
        await channel.close()
        await server.stop(0)
        await bulk.stop(0)
    assert chunks.running_count == 0
    assert served.metric("bulk_connections") == 0


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():  # the other side is in callbacks of the loop
            await asyncio.sleep(0.002)


async def ended(connected: socket.socket) -> bool:
    """Wait until the node closes the connection."""
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(20):
        try:
            while await loop.sock_recv(connected, 65536):
                pass
        except ConnectionError:
            pass
    connected.close()
    return True


def write_of(request_id: int, data: bytes | memoryview) -> WriteFrame:
    return WriteFrame(storage_pb2.WriteChunkRequest(request_id=request_id), data)


def read_of(request_id: int, size_bytes: int = 0) -> storage_pb2.ReadChunkRequest:
    runs = [storage_pb2.ByteRun(length=size_bytes)] if size_bytes else []
    return storage_pb2.ReadChunkRequest(request_id=request_id, runs=runs)


@pytest.mark.parametrize("transport", [ChunkTransport.LOCAL, ChunkTransport.TCP])
async def test_chunks_of_every_size_come_back_as_written(transport: ChunkTransport) -> None:
    async with serving() as served:
        link = await served.open(transport)
        assert isinstance(link, BulkLink)
        chunks = {n: some_bytes(size) for n, size in enumerate((0, 1, 4000, 65536, 4 * MIB), 1)}
        for request_id, data in chunks.items():
            link.send(request_id, write_of(request_id, data))
        written = [await served.answers.get() for _ in chunks]
        assert {answer.request_id for answer in written} == set(chunks)
        for request_id in chunks:
            link.send(request_id, read_of(request_id))
        read = [await served.answers.get() for _ in chunks]
        assert {answer.request_id: bytes(answer.data) for answer in read} == chunks
        link.close()
        assert served.losses == []


async def test_processes_of_one_machine_use_the_unix_socket() -> None:
    async with serving() as served:
        tcp = served.bulk._listeners.pop(0)  # pyright: ignore[reportPrivateUsage]
        tcp.close()
        link = await served.open(ChunkTransport.LOCAL)
        assert isinstance(link, BulkLink)
        link.close()


async def test_a_port_that_cannot_be_reached_is_done_without() -> None:
    async with serving() as served:
        await served.bulk.stop(0)
        link = await served.open()
        assert isinstance(link, GrpcLink)
        assert link.is_makeshift
        link.close()
        assert await served.links().open_socket(Call.READ, print, print) is None
        served.bulk.start("127.0.0.1")
        better = await served.links().open_socket(Call.READ, print, print)
        assert isinstance(better, BulkLink) and not better.is_makeshift
        better.close()


async def test_a_node_that_does_not_say_where_its_port_is_in_time_is_no_case_for_grpc(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It stands still: its stream would be as silent, and would be used when it goes on."""
    monkeypatch.setattr(links, "DIAL_TIMEOUT_S", 0.05)
    async with serving() as served:

        async def hang(request: Any, context: Any) -> bulk_pb2.DescribeBulkResponse:
            await asyncio.Event().wait()
            raise AssertionError

        server, silent = (
            make_server(),
            BulkServer(served.chunks, LIMITS, StorageMetrics(CollectorRegistry())),
        )
        silent.Describe = hang  # type: ignore[method-assign]
        add_BulkServiceServicer_to_server(silent, server)
        address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
        await server.start()
        channel = open_channel(address)
        with pytest.raises(NodeUnreachable, match="DEADLINE_EXCEEDED"):
            await NodeLinks(address, channel).open(Call.READ, print, print)
        await channel.close()
        await server.stop(0)


async def test_the_system_ends_a_connection_whose_other_side_is_gone_without_a_word() -> None:
    """Half open: no packet comes, as behind a firewall that drops, or after a power cut."""
    async with serving() as served:
        for stall_s in (3.0, 30.0):
            connected = await served.connect()
            reader = FrameReader()
            bulk = BulkSocket(connected, reader, on_frame=print, on_lost=print, stall_s=stall_s)
            level = socket.IPPROTO_TCP
            assert connected.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
            assert connected.getsockopt(level, socket.TCP_USER_TIMEOUT) == 1000 * stall_s
            idle_s = connected.getsockopt(level, socket.TCP_KEEPIDLE)
            tries = connected.getsockopt(level, socket.TCP_KEEPCNT)
            pause_s = connected.getsockopt(level, socket.TCP_KEEPINTVL)
            assert idle_s + tries * pause_s <= stall_s
            bulk.close()


async def test_a_node_without_the_port_is_used_over_grpc() -> None:
    node = FakeNode()
    channel = open_channel(await node.start())
    answers: asyncio.Queue[Any] = asyncio.Queue()
    link = await NodeLinks(node.address, channel).open(
        Call.WRITE, answers.put_nowait, lambda why: None
    )
    assert isinstance(link, GrpcLink) and not link.is_makeshift
    link.send(7, write_of(7, b"abc"))
    assert (await answers.get()).request_id == 7
    link.close()
    await channel.close()
    await node.stop()


@pytest.mark.parametrize("field", ["version", "node_secret"])
async def test_what_is_not_the_node_that_was_asked_is_not_used(field: str) -> None:
    async with serving() as served:
        honest = served.bulk.Describe

        async def describe(request: Any, context: Any) -> bulk_pb2.DescribeBulkResponse:
            node = await honest(request, context)
            setattr(node, field, 99 if field == "version" else bytes(32))
            return node

        server = make_server()
        # As after a restart, when another node got the port.
        stranger = BulkServer(served.chunks, LIMITS, StorageMetrics(CollectorRegistry()))
        stranger.Describe = describe  # type: ignore[method-assign]
        add_BulkServiceServicer_to_server(stranger, server)
        address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
        await server.start()
        channel = open_channel(address)
        link = await NodeLinks(address, channel).open(Call.READ, lambda a: None, lambda w: None)
        assert isinstance(link, GrpcLink)
        link.close()
        await channel.close()
        await server.stop(0)


async def test_a_wrong_secret_opens_nothing() -> None:
    async with serving() as served:
        connected = await served.connect(hello=False)
        loop = asyncio.get_running_loop()
        await loop.sock_sendall(connected, head_of(FrameKind.HELLO, bytes(32)))
        await loop.sock_sendall(connected, head_of(FrameKind.READ, read_of(1).SerializeToString()))
        assert await ended(connected)
        assert served.chunks.begun_count == 0
        assert served.metric("bulk_refusals_total", reason="misuse") == 1


async def test_a_silent_connection_is_closed() -> None:
    async with serving(HASTY) as served:
        assert await ended(await served.connect(hello=False))
        assert served.metric("bulk_refusals_total", reason="misuse") == 1


@pytest.mark.parametrize(
    "sent",
    [
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"xb\x03\x00" + b"\xff" * 8,
        head_of(FrameKind.WELCOME, b""),
        head_of(FrameKind.CANCEL, b"short"),
        head_of(FrameKind.WRITE, b"\xff\xff\xff not a message"),
        b"xb\x63\x00" + bytes(8),
    ],
    ids=["http", "oversize", "wrong-way", "short-cancel", "damaged-header", "unknown-kind"],
)
async def test_what_is_not_a_request_ends_the_connection_alone(sent: bytes) -> None:
    async with serving() as served:
        link = await served.open()
        connected = await served.connect()
        await asyncio.get_running_loop().sock_sendall(connected, sent)
        assert await ended(connected)
        link.send(1, write_of(1, b"abc"))
        assert (await served.answers.get()).status == OK
        link.close()


async def test_half_a_frame_is_given_up_after_a_while_and_a_cut_at_once() -> None:
    async with serving(HASTY) as served:
        loop = asyncio.get_running_loop()
        half = head_of(FrameKind.WRITE, b"", MIB) + bytes(MIB // 2)
        slow, cut = await served.connect(), await served.connect()
        await loop.sock_sendall(slow, half)
        await loop.sock_sendall(cut, half)
        cut.close()
        await until(lambda: served.metric("bulk_connections") == 1)
        assert await ended(slow)
        assert served.chunks.begun_count == 0


async def test_a_client_that_takes_no_answers_holds_up_nobody_and_is_let_go() -> None:
    async with serving(HASTY) as served:
        connected = await served.connect()
        loop = asyncio.get_running_loop()
        for request_id in range(1, 40):
            read = read_of(request_id, MIB).SerializeToString()
            await loop.sock_sendall(connected, head_of(FrameKind.READ, read))
        # What it costs at most: the limit, and what the system holds.
        await until(lambda: served.metric("bulk_connections") == 0)
        assert served.chunks.begun_count < 39
        connected.close()


async def test_requests_beyond_the_limit_wait_for_answers_to_leave() -> None:
    async with serving() as served:
        link = await served.open()
        served.chunks.flow.clear()
        for request_id in range(1, 31):
            link.send(request_id, read_of(request_id, MIB))
        await until(lambda: served.chunks.running_count >= 4)
        for _ in range(5):
            await asyncio.sleep(0)
        assert served.chunks.most_running_count == 4
        served.chunks.flow.set()
        answers = [await served.answers.get() for _ in range(30)]
        assert {answer.request_id for answer in answers} == set(range(1, 31))
        assert served.chunks.most_running_count <= 5
        link.close()


async def test_a_read_that_is_given_up_is_cancelled_at_the_node() -> None:
    async with serving() as served:
        link = await served.open()
        served.chunks.flow.clear()
        link.send(1, read_of(1, 10))
        await until(lambda: served.chunks.running_count == 1)
        link.forget(1)
        await until(lambda: served.chunks.cancelled_count == 1)
        served.chunks.flow.set()
        link.send(2, read_of(2, 10))
        assert (await served.answers.get()).request_id == 2
        link.close()


async def test_a_read_that_waits_its_turn_is_cancelled_before_it_begins() -> None:
    # Each answer is more than a socket holds.
    async with serving(BulkLimits(32 * MIB)) as served:
        link = await served.open()
        served.chunks.flow.clear()
        for request_id in range(1, 7):
            link.send(request_id, read_of(request_id, 8 * MIB))
        await until(lambda: served.chunks.running_count == 4)
        link.send(7, read_of(7, 1))
        link.forget(5)
        link.forget(6)
        await asyncio.sleep(0.05)
        served.chunks.flow.set()
        got = {(await served.answers.get()).request_id for _ in range(5)}
        assert got >= {1, 2, 3, 4, 7}
        link.close()


async def test_a_write_that_is_given_up_leaves_its_buffer_free_for_other_bytes() -> None:
    async with serving() as served:
        link = await served.open()
        served.chunks.flow.clear()
        # More than the node takes and the system holds: the last are in our queue.
        buffers = [bytearray(some_bytes(4 * MIB)) for _ in range(6)]
        sent = [bytes(buffer) for buffer in buffers]
        for request_id, buffer in enumerate(buffers, 1):
            link.send(request_id, write_of(request_id, memoryview(buffer)))
        await until(lambda: served.chunks.running_count == 1)
        for request_id, buffer in enumerate(buffers, 1):
            link.forget(request_id)
            buffer[:] = bytes(len(buffer))
        served.chunks.flow.set()
        link.send(99, write_of(99, b"the last"))
        while (await served.answers.get()).request_id != 99:
            pass
        for request_id, data in served.chunks.written.items():
            assert data == (b"the last" if request_id == 99 else sent[request_id - 1])
        assert len(served.chunks.written) < len(buffers)  # some never left
        link.close()


async def test_a_mistake_in_the_service_ends_the_connection_so_that_nobody_waits() -> None:
    async with serving() as served:
        link = await served.open()
        served.chunks.fails = True
        link.send(1, read_of(1))
        await until(lambda: len(served.losses) == 1)
        served.chunks.fails = False
        other = await served.open()
        other.send(2, read_of(2))
        assert (await served.answers.get()).request_id == 2
        link.close()
        other.close()


async def test_stopping_sends_the_answers_of_what_is_under_way() -> None:
    async with serving() as served:
        link = await served.open()
        served.chunks.flow.clear()
        link.send(1, read_of(1, 4 * MIB))
        await until(lambda: served.chunks.running_count == 1)
        stopping = asyncio.create_task(served.bulk.stop(10.0))
        await asyncio.sleep(0)
        served.chunks.flow.set()
        await stopping
        assert len((await served.answers.get()).data) == 4 * MIB
        await until(lambda: len(served.losses) == 1)
        link.close()


async def test_stopping_waits_no_longer_than_its_grace() -> None:
    async with serving() as served:
        link = await served.open()
        served.chunks.flow.clear()
        link.send(1, read_of(1))
        await until(lambda: served.chunks.running_count == 1)
        await served.bulk.stop(0.05)
        assert served.chunks.cancelled_count == 1
        link.close()


async def test_too_many_connections_are_refused() -> None:
    limits = BulkLimits(MIB, connection_count=1, hello_s=5.0, stall_s=5.0)
    async with serving(limits) as served:
        first = await served.connect()
        assert await ended(await served.connect(hello=False))
        assert served.metric("bulk_refusals_total", reason="too_many") == 1
        first.close()
        await until(lambda: served.metric("bulk_connections") == 0)
        again = await served.connect()
        again.close()
