"""How chunk requests reach a storage node: over gRPC's streams, or frames on a socket of their own.

Both are a `Link`: requests go out, answers come back in any order, matched by the request's id. A
link is opened by asking the node over gRPC (`BulkService.Describe`) for its port and secrets. Who
may call gRPC gets the secrets, so the port trusts whom gRPC trusts. A node that does not serve
BulkService, knows other frames or whose port cannot be reached is used over gRPC.
"""

import asyncio
import contextlib
import hmac
import socket
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeVar

import grpc
import grpc.aio
from google.protobuf.message import DecodeError

from exastore.proto.bulk_frames import (
    MAX_DATA_BYTES,
    REQUEST_ID,
    VERSION,
    BadFrame,
    Frame,
    FrameKind,
    FrameReader,
    head_of,
)
from exastore.proto.bulk_socket import BulkSocket
from exastore.proto.chunk_frames import ReadFrame, WriteFrame
from exastore.proto.v1 import bulk_pb2, storage_pb2
from exastore.proto.v1.bulk_pb2_grpc import BulkServiceStub

if TYPE_CHECKING:
    from exastore.proto.v1.bulk_pb2_grpc import BulkServiceAsyncStub  # in the stub file alone

Request = WriteFrame | storage_pb2.ReadChunkRequest
Answer = storage_pb2.WriteChunkResponse | ReadFrame
#: Told each answer.
Deliver = Callable[[Any], None]
#: Told once why the link ended, unless it was closed.
Lost = Callable[[str], None]

#: How long describing and connecting may take before gRPC's stream is used, in seconds.
DIAL_TIMEOUT_S: Final = 3.0
_SILENT: Final = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)
#: How long nothing may move on a connection where something should.
STALL_S: Final = 30.0


class ChunkTransport(StrEnum):
    """Which ways to a node are tried; each one falls back to those behind it."""

    LOCAL = "local"
    TCP = "tcp"
    GRPC = "grpc"


class Call(StrEnum):
    """What a link is for."""

    WRITE = "WriteChunks"
    READ = "ReadChunks"


class Link(Protocol):
    """An open way to a node."""

    @property
    def is_makeshift(self) -> bool:
        """Whether there should be a better one, which could not be had."""
        ...

    def send(self, request_id: int, request: Request) -> None:
        """Send the request that has this id; does not wait."""
        ...

    def forget(self, request_id: int) -> None:
        """Nobody waits for this answer; the request's buffer may hold other bytes from now on."""
        ...

    def close(self) -> None: ...


class NodeUnreachable(Exception):
    """The node does not answer gRPC either."""


def _nothing() -> None:
    pass


@dataclass(frozen=True, slots=True)
class BulkDialer:
    """Finds the bulk port of one server and connects to it."""

    address: str
    channel: grpc.aio.Channel
    transport: ChunkTransport = ChunkTransport.LOCAL
    stall_s: float = STALL_S
    #: For tests, see `BulkSocket`.
    on_half_sent: Callable[[], None] = _nothing
    cut_bytes: int = 0

    async def described(self) -> bulk_pb2.DescribeBulkResponse | None:
        """Where the node's port is; None: it has none that we may use. Raises NodeUnreachable."""
        if self.transport is ChunkTransport.GRPC:
            return None
        stub: BulkServiceAsyncStub = BulkServiceStub(self.channel)
        try:
            node = await stub.Describe(bulk_pb2.DescribeBulkRequest(), timeout=DIAL_TIMEOUT_S)
        except grpc.aio.AioRpcError as error:
            if error.code() in _SILENT:  # nor would a stream be answered
                raise NodeUnreachable(f"{error.code().name}: {error.details()}") from None
            return None
        if node.version != VERSION or not node.client_secret or not node.node_secret:
            return None
        return node

    async def dialled(
        self, node: bulk_pb2.DescribeBulkResponse, make: "Make[AnyFrameLink]"
    ) -> "AnyFrameLink | None":
        """A link to the port that was described; None: it cannot be reached, or is another's."""
        try:
            async with asyncio.timeout(DIAL_TIMEOUT_S):
                connected = await self._connect(node)
                link = make(connected, node, self.stall_s, self.on_half_sent, self.cut_bytes)
                try:
                    await link.welcomed
                except BaseException:
                    link.close()
                    raise
                return link
        except (OSError, BadFrame, TimeoutError):
            return None

    async def _connect(self, node: bulk_pb2.DescribeBulkResponse) -> socket.socket:
        if self.transport is ChunkTransport.LOCAL and node.local_name:
            with contextlib.suppress(OSError):
                return await _connected(socket.AF_UNIX, f"\0{node.local_name}")
        host = self.address.rpartition(":")[0].strip("[]")
        loop = asyncio.get_running_loop()
        failure: OSError | None = None
        found = await loop.getaddrinfo(host, node.port, type=socket.SOCK_STREAM)
        for family, _, _, _, address in found:
            try:
                return await _connected(family, address)
            except OSError as error:
                failure = error
        raise failure or OSError(f"{host} has no address")


@dataclass(frozen=True, slots=True)
class NodeLinks(BulkDialer):
    """Opens links to one node."""

    async def open(self, call: Call, deliver: Deliver, lost: Lost) -> Link:
        """The best link there is.

        Raises:
            NodeUnreachable: There is none.
        """
        node = await self.described()
        if node is not None:
            link = await self.dialled(node, partial(BulkLink, deliver, lost))
            if link is not None:
                return link
        return GrpcLink(self.channel, call, deliver, lost, is_makeshift=node is not None)

    async def open_socket(self, call: Call, deliver: Deliver, lost: Lost) -> Link | None:
        """A link over a socket; None: gRPC has to do.

        Raises:
            NodeUnreachable: The node does not answer.
        """
        node = await self.described()
        return None if node is None else await self.dialled(node, partial(BulkLink, deliver, lost))


async def _connected(family: int, address: Any) -> socket.socket:
    connected = socket.socket(family, socket.SOCK_STREAM)
    connected.setblocking(False)
    try:
        await asyncio.get_running_loop().sock_connect(connected, address)
    except BaseException:
        connected.close()
        raise
    return connected


class FrameLink(ABC):
    """Frames on a socket (`bulk_frames.py`), whose other end has to prove that it was asked.

    Args:
        max_data_bytes: Of one frame that comes.
    """

    is_makeshift = False

    def __init__(
        self,
        connected: socket.socket,
        node: bulk_pb2.DescribeBulkResponse,
        stall_s: float,
        on_half_sent: Callable[[], None] = _nothing,
        cut_bytes: int = 0,
        *,
        max_data_bytes: int = MAX_DATA_BYTES,
    ) -> None:
        self._node_secret = node.node_secret
        #: Done once the node has proven that it is the one that was asked.
        self.welcomed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        reader = FrameReader(max_data_bytes=max_data_bytes)
        self._socket = BulkSocket(
            connected,
            reader,
            on_frame=self._take,
            on_lost=self._end,
            stall_s=stall_s,
            on_half_sent=on_half_sent,
            cut_bytes=cut_bytes,
        )
        self._socket.send([head_of(FrameKind.HELLO, node.client_secret)])

    @abstractmethod
    def taken(self, frame: Frame) -> None:
        """A frame came. Raises BadFrame or DecodeError, which end the link."""

    @abstractmethod
    def ended(self, why: str) -> None:
        """The link ended, and was not closed by us."""

    def close(self) -> None:
        self._socket.close()
        if not self.welcomed.done():
            self.welcomed.cancel()

    def _take(self, frame: Frame) -> None:
        if not self.welcomed.done():
            if frame.kind is not FrameKind.WELCOME or not hmac.compare_digest(
                frame.header, self._node_secret
            ):
                raise BadFrame("another process listens at the node's port")
            self.welcomed.set_result(None)
            return
        try:
            self.taken(frame)
        except DecodeError as error:
            raise BadFrame(f"the header of a frame is damaged: {error}") from None

    def _end(self, why: BadFrame | ConnectionError) -> None:
        if not self.welcomed.done():
            self.welcomed.set_exception(why)
        else:
            self.ended(str(why))


AnyFrameLink = TypeVar("AnyFrameLink", bound=FrameLink)
#: Makes a link of a connected socket, what the server said of its port, and what the dialer has.
Make = Callable[
    [socket.socket, bulk_pb2.DescribeBulkResponse, float, Callable[[], None], int], AnyFrameLink
]


class BulkLink(FrameLink):
    """Chunks in frames."""

    def __init__(
        self,
        deliver: Deliver,
        lost: Lost,
        connected: socket.socket,
        node: bulk_pb2.DescribeBulkResponse,
        stall_s: float,
        on_half_sent: Callable[[], None] = _nothing,
        cut_bytes: int = 0,
    ) -> None:
        self._deliver = deliver
        self._lost = lost
        #: Reads sent and not answered.
        self._reads: set[int] = set()
        super().__init__(connected, node, stall_s, on_half_sent, cut_bytes)

    def send(self, request_id: int, request: Request) -> None:
        if isinstance(request, WriteFrame):
            data = memoryview(request.data)
            head = head_of(FrameKind.WRITE, request.header.SerializeToString(), len(data))
            self._socket.send([head, data], key=request_id)
        else:
            self._reads.add(request_id)
            head = head_of(FrameKind.READ, request.SerializeToString())
            self._socket.send([head], key=request_id)

    def forget(self, request_id: int) -> None:
        was_here = self._socket.drop(request_id)
        if request_id in self._reads:
            self._reads.discard(request_id)
            if not was_here:
                self._socket.send([head_of(FrameKind.CANCEL, REQUEST_ID.pack(request_id))])

    def taken(self, frame: Frame) -> None:
        if frame.kind is FrameKind.CHUNK:
            header = storage_pb2.ReadChunkResponse.FromString(frame.header)
            self._reads.discard(header.request_id)
            self._deliver(ReadFrame(header, frame.data))
        elif frame.kind is FrameKind.WRITTEN:
            self._deliver(storage_pb2.WriteChunkResponse.FromString(frame.header))
        else:
            raise BadFrame(f"a node does not send {frame.kind.name}")

    def ended(self, why: str) -> None:
        self._lost(why)


@dataclass(slots=True)
class GrpcLink:
    """A stream of StorageService."""

    channel: grpc.aio.Channel
    call: Call
    deliver: Deliver
    lost: Lost
    is_makeshift: bool = False
    #: Requests not yet sent, by id, in order.
    _queue: dict[int, Request] = field(default_factory=dict[int, Request])
    _wake: asyncio.Event = field(default_factory=asyncio.Event)
    _stream: Any = None
    _tasks: list[asyncio.Task[None]] = field(default_factory=list[asyncio.Task[None]])

    def __post_init__(self) -> None:
        self._stream = self.channel.stream_stream(
            f"/exastore.proto.v1.StorageService/{self.call}",
            request_serializer=_serialized,
            response_deserializer=_DESERIALIZERS[self.call],
        )()
        self._tasks = [asyncio.create_task(self._send()), asyncio.create_task(self._receive())]

    def send(self, request_id: int, request: Request) -> None:
        self._queue[request_id] = request
        self._wake.set()

    def forget(self, request_id: int) -> None:
        self._queue.pop(request_id, None)

    def close(self) -> None:
        self._stream.cancel()
        current = asyncio.current_task()
        for task in self._tasks:
            if task is not current:
                task.cancel()
        self._tasks = []

    async def _send(self) -> None:
        try:
            while True:
                while self._queue:
                    await self._stream.write(self._queue.pop(next(iter(self._queue))))
                self._wake.clear()
                await self._wake.wait()
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError) as error:
            self._end(_why(error))

    async def _receive(self) -> None:
        try:
            async for response in self._stream:
                self.deliver(response)
            self._end("the node closed the stream")
        except grpc.aio.AioRpcError as error:
            self._end(_why(error))

    def _end(self, why: str) -> None:
        if self._tasks:
            self.close()
            self.lost(why)


def _serialized(request: Request) -> bytes:
    return request.encode() if isinstance(request, WriteFrame) else request.SerializeToString()


_DESERIALIZERS: Final[dict[Call, Callable[[bytes], Any]]] = {
    Call.WRITE: storage_pb2.WriteChunkResponse.FromString,
    Call.READ: ReadFrame.decode,
}


def _why(error: Exception) -> str:
    if isinstance(error, grpc.aio.AioRpcError):
        if error.code() is grpc.StatusCode.INTERNAL:
            # What gRPC says when a stream ends under a message that is being sent.
            return f"the stream broke ({error.details()})"
        return f"{error.code().name}: {error.details()}"
    return str(error) or type(error).__name__
