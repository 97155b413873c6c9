"""Chunk requests over frames on sockets: a thin adapter on the service that gRPC's streams use.

Theory of operation: the node listens on a port of its own and, for processes of the same machine,
on an abstract Unix socket. `BulkService.Describe` tells both over gRPC, with a secret that the
first frame of a connection must carry. Requests of a connection run at once, each in a task; no
further bytes are received while `limit_bytes` of them are in flight, so the sender has to wait. A
request counts until the system has taken its answer.

Fault model: anything may come. A connection that sends no secret in time, a wrong one, or what is
not a frame, is closed; before the secret, nothing larger than it is received.
"""

import asyncio
import errno
import hmac
import logging
import os
import socket
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

from google.protobuf.message import DecodeError

from exastore.metadata.core.phases import Phase, reach
from exastore.proto.bulk_frames import (
    MAX_DATA_BYTES,
    MAX_HEADER_BYTES,
    REQUEST_ID,
    SECRET_BYTES,
    VERSION,
    BadFrame,
    Frame,
    FrameKind,
    FrameReader,
    head_of,
)
from exastore.proto.bulk_socket import KEPT, BulkSocket, FileBytes, Sendable
from exastore.proto.chunk_frames import WriteFrame
from exastore.proto.links import STALL_S
from exastore.proto.v1 import bulk_pb2, storage_pb2
from exastore.proto.v1.bulk_pb2_grpc import BulkServiceServicer
from exastore.storage.errors import AddressInUse
from exastore.storage.metrics import StorageMetrics

_log = logging.getLogger(__name__)

_BACKLOG: Final = 128

_Buffers = Sequence[Sendable]
_Work = Callable[[], Awaitable[_Buffers]]


class Chunks(Protocol):
    """What answers chunk requests; its methods do not raise."""

    def write_cost_bytes(self, request: WriteFrame, /) -> int: ...
    def read_cost_bytes(self, request: storage_pb2.ReadChunkRequest, /) -> int: ...
    def unread_chunk(
        self, request: storage_pb2.ReadChunkRequest, /
    ) -> tuple[storage_pb2.ReadChunkResponse, FileBytes] | None: ...
    async def write_chunk(self, request: WriteFrame, /) -> storage_pb2.WriteChunkResponse: ...
    async def load_chunk(
        self, request: storage_pb2.ReadChunkRequest, /
    ) -> tuple[storage_pb2.ReadChunkResponse, Sendable]: ...


@dataclass(frozen=True, slots=True)
class BulkLimits:
    """What connections may take.

    Attributes:
        limit_bytes: Of requests and answers in flight on one connection.
        connection_count: Open at once; further ones are closed at once.
        hello_s: How long a connection may take to say its secret.
        stall_s: How long nothing may move on it where something should.
    """

    limit_bytes: int
    connection_count: int = 1024
    hello_s: float = 5.0
    stall_s: float = STALL_S


class BulkServer(BulkServiceServicer):
    """Serves the bulk port, and tells where it is."""

    def __init__(
        self,
        chunks: Chunks,
        limits: BulkLimits,
        metrics: StorageMetrics,
        *,
        new_secret: Callable[[int], bytes] = os.urandom,
    ) -> None:
        self._chunks = chunks
        self._limits = limits
        self._metrics = metrics
        self._client_secret = new_secret(SECRET_BYTES)
        self._node_secret = new_secret(SECRET_BYTES)
        self._local_name = f"exastore-{new_secret(16).hex()}"
        self._listeners: list[socket.socket] = []
        self._accepting: list[asyncio.Task[None]] = []
        self._connections: set[_Connection] = set()
        self.port = 0

    async def Describe(
        self, request: bulk_pb2.DescribeBulkRequest, context: Any
    ) -> bulk_pb2.DescribeBulkResponse:
        return bulk_pb2.DescribeBulkResponse(
            version=VERSION,
            port=self.port,
            local_name=self._local_name,
            client_secret=self._client_secret,
            node_secret=self._node_secret,
        )

    def start(self, host: str, port: int = 0) -> None:
        """Listen; port 0 takes a free one.

        Raises:
            AddressInUse: the address is taken.
        """
        host = host.strip("[]")
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            listener = socket.create_server((host, port), family=family, backlog=_BACKLOG)
        except OSError as error:
            raise AddressInUse(f"{host}:{port}") from error
        self._listeners.append(listener)
        self.port = listener.getsockname()[1]
        local = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listeners.append(local)
        local.bind(f"\0{self._local_name}")
        local.listen(_BACKLOG)
        for each in self._listeners:
            each.setblocking(False)
            self._accepting.append(asyncio.create_task(self._accept(each)))

    async def stop(self, grace_s: float) -> None:
        """Take no more connections, let requests under way end for `grace_s` seconds."""
        for task in self._accepting:
            task.cancel()
        await asyncio.gather(*self._accepting, return_exceptions=True)
        self._accepting = []
        for listener in self._listeners:
            listener.close()
        self._listeners = []
        connections = list(self._connections)
        finishing = [asyncio.create_task(each.finish()) for each in connections]
        if finishing:
            await asyncio.wait(finishing, timeout=grace_s)
        for connection in connections:
            await connection.close()
        await asyncio.gather(*finishing)

    async def _accept(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                connected, _ = await loop.sock_accept(listener)
            except OSError as error:
                # The client is gone already, or there are too many files open.
                _log.warning("bulk port: a connection was not accepted: %s", error)
                if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS):
                    await asyncio.sleep(0.1)
                continue
            if len(self._connections) >= self._limits.connection_count:
                self._metrics.bulk_refusals.labels("too_many").inc()
                connected.close()
                continue
            self._connections.add(_Connection(connected, self))
            self._metrics.bulk_connections.set(len(self._connections))

    # ---- for connections ----

    @property
    def chunks(self) -> Chunks:
        return self._chunks

    @property
    def limits(self) -> BulkLimits:
        return self._limits

    def welcome(self, secret: bytes) -> bytes:
        """Our secret, for the right one.

        Raises:
            BadFrame: It is another.
        """
        if not hmac.compare_digest(secret, self._client_secret):
            raise BadFrame("the secret is wrong")
        return self._node_secret

    def lost(
        self, connection: "_Connection", why: BadFrame | ConnectionError | None = None
    ) -> None:
        """The connection has ended."""
        self._connections.discard(connection)
        self._metrics.bulk_connections.set(len(self._connections))
        if isinstance(why, BadFrame):
            self._metrics.bulk_refusals.labels("misuse").inc()
            _log.warning("bulk port: connection closed: %s", why)


@dataclass(slots=True, eq=False)
class _Running:
    """A request whose answer the system has not taken yet."""

    cost_bytes: int
    #: KEPT: it cannot be cancelled.
    request_id: int
    task: "asyncio.Task[None] | None" = None


class _Connection:
    """One client."""

    def __init__(self, connected: socket.socket, server: BulkServer) -> None:
        self._server = server
        self._welcomed = False
        self._running: set[_Running] = set()
        #: By request id: reads that may be cancelled.
        self._reads: dict[int, _Running] = {}
        #: What requests in flight cost; receiving stops at the limit.
        self._taken_bytes = 0
        #: Small requests that came together with the one that reached the limit.
        self._waiting: deque[Frame] = deque()
        self._is_catching_up = False
        self._stopping = False
        #: Nothing runs; changes only while stopping.
        self._idle = asyncio.Event()
        self._reader = FrameReader(max_header_bytes=SECRET_BYTES, max_data_bytes=0)
        self._socket = BulkSocket(
            connected,
            self._reader,
            on_frame=self._take,
            on_lost=self._end,
            stall_s=server.limits.stall_s,
            on_half_sent=lambda: reach(Phase.ANSWER_HALF_SENT),
            on_half_received=lambda: reach(Phase.FRAME_HALF_RECEIVED),
        )
        loop = asyncio.get_running_loop()
        self._deadline = loop.call_later(server.limits.hello_s, self._too_late)

    async def finish(self) -> None:
        """Receive no more; returns when all answers are sent."""
        self._stopping = True
        self._socket.pause_reading()
        self._waiting.clear()
        if self._running:
            await self._idle.wait()

    async def close(self) -> None:
        tasks = self._let_go()
        self._socket.close()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._server.lost(self)

    # ---- receiving ----

    def _take(self, frame: Frame) -> None:
        if not self._welcomed:
            self._greet(frame)
        elif frame.kind is FrameKind.CANCEL and len(frame.header) == REQUEST_ID.size:
            self._cancel(*REQUEST_ID.unpack(frame.header))
        elif self._is_full or self._waiting:
            self._waiting.append(frame)
        else:
            self._begin(frame)

    def _greet(self, frame: Frame) -> None:
        if frame.kind is not FrameKind.HELLO:
            raise BadFrame("the first frame is not a secret")
        self._socket.send([head_of(FrameKind.WELCOME, self._server.welcome(frame.header))])
        self._welcomed = True
        self._deadline.cancel()
        self._reader.max_header_bytes = MAX_HEADER_BYTES
        self._reader.max_data_bytes = MAX_DATA_BYTES

    def _begin(self, frame: Frame) -> None:
        chunks = self._server.chunks
        try:
            if frame.kind is FrameKind.WRITE:
                header = storage_pb2.WriteChunkRequest.FromString(frame.header)
                write = WriteFrame(header, frame.data)
                self._run(chunks.write_cost_bytes(write), KEPT, lambda: self._write(write))
            elif frame.kind is FrameKind.READ:
                read = storage_pb2.ReadChunkRequest.FromString(frame.header)
                unread = chunks.unread_chunk(read)
                if unread is not None:
                    self._pass_on(*unread)
                else:
                    cost_bytes = chunks.read_cost_bytes(read)
                    self._run(cost_bytes, read.request_id, lambda: self._read(read))
            else:
                raise BadFrame(f"a client does not send {frame.kind.name}")
        except DecodeError as error:
            raise BadFrame(f"the header of a frame is damaged: {error}") from None

    @property
    def _is_full(self) -> bool:
        return self._taken_bytes >= self._server.limits.limit_bytes

    # ---- answering ----

    def _run(self, cost_bytes: int, request_id: int, work: _Work) -> None:
        running = self._admit(cost_bytes, request_id)
        running.task = asyncio.create_task(self._answer(running, work))
        running.task.add_done_callback(lambda task: self._judge(running, task))

    def _pass_on(self, header: storage_pb2.ReadChunkResponse, data: FileBytes) -> None:
        """Answer at once, from the file into the socket."""
        running = self._admit(len(data), header.request_id)
        self._send(running, _chunk_frame(header, data))

    def _admit(self, cost_bytes: int, request_id: int) -> _Running:
        running = _Running(cost_bytes, request_id)
        self._running.add(running)
        if request_id != KEPT:
            self._reads[request_id] = running
        self._taken_bytes += cost_bytes
        if self._is_full:
            self._socket.pause_reading()
        return running

    async def _answer(self, running: _Running, work: _Work) -> None:
        self._send(running, await work())

    def _send(self, running: _Running, buffers: _Buffers) -> None:
        self._socket.send(buffers, key=running.request_id, on_sent=lambda: self._finished(running))

    def _judge(self, running: _Running, task: "asyncio.Task[None]") -> None:
        """Without an answer nothing else ends the request."""
        if task.cancelled():
            self._finished(running)
        elif (error := task.exception()) is not None:  # a mistake of ours
            _log.error("bulk port: a request failed", exc_info=error)
            self._socket.close()
            self._end(ConnectionError(repr(error)))

    async def _write(self, request: WriteFrame) -> _Buffers:
        response = await self._server.chunks.write_chunk(request)
        return [head_of(FrameKind.WRITTEN, response.SerializeToString())]

    async def _read(self, request: storage_pb2.ReadChunkRequest) -> _Buffers:
        return _chunk_frame(*await self._server.chunks.load_chunk(request))

    def _cancel(self, request_id: int) -> None:
        running = self._reads.get(request_id)
        if running is None:
            # Not begun, or answered already.
            for frame in [frame for frame in self._waiting if _asks(frame, request_id)]:
                self._waiting.remove(frame)
        elif not self._socket.drop(request_id) and running.task is not None:
            running.task.cancel()

    def _finished(self, running: _Running) -> None:
        if running not in self._running:
            return
        self._running.discard(running)
        if self._reads.get(running.request_id) is running:
            del self._reads[running.request_id]
        self._taken_bytes -= running.cost_bytes
        if self._stopping:
            if not self._running:
                self._idle.set()
            return
        if self._is_catching_up:
            return  # called from below: what was begun there is answered already
        self._is_catching_up = True
        try:
            while self._waiting and not self._is_full:
                self._begin(self._waiting.popleft())
        except BadFrame as error:
            self._socket.close()
            self._end(error)
            return
        finally:
            self._is_catching_up = False
        if not self._is_full:
            self._socket.resume_reading()

    # ---- the end ----

    def _let_go(self) -> "list[asyncio.Task[None]]":
        self._stopping = True
        self._idle.set()
        self._deadline.cancel()
        self._waiting.clear()
        tasks = [running.task for running in self._running if running.task is not None]
        for task in tasks:
            task.cancel()
        return tasks

    def _too_late(self) -> None:
        self._socket.close()
        self._end(BadFrame("no secret came in time"))

    def _end(self, why: BadFrame | ConnectionError) -> None:
        self._let_go()
        self._server.lost(self, why)


def _chunk_frame(header: storage_pb2.ReadChunkResponse, data: Sendable) -> _Buffers:
    return [head_of(FrameKind.CHUNK, header.SerializeToString(), len(data)), data]


def _asks(frame: Frame, request_id: int) -> bool:
    return (
        frame.kind is FrameKind.READ
        and storage_pb2.ReadChunkRequest.FromString(frame.header).request_id == request_id
    )
