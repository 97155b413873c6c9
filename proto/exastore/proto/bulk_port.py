"""A port that answers requests in frames on sockets; what the requests are, a handler says.

Theory of operation: the server listens on a port of its own and, for processes of the same machine,
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
from typing import Any, Final, NamedTuple, Protocol

from google.protobuf.message import DecodeError

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
from exastore.proto.bulk_socket import KEPT, BulkSocket, Sendable
from exastore.proto.links import STALL_S
from exastore.proto.v1 import bulk_pb2
from exastore.proto.v1.bulk_pb2_grpc import BulkServiceServicer

_log = logging.getLogger(__name__)

_BACKLOG: Final = 128

Buffers = Sequence[Sendable]
Work = Callable[[], Awaitable[Buffers]]


def _nothing() -> None:
    pass


class Asked(NamedTuple):
    """A request.

    Attributes:
        cost_bytes: What it takes until its answer is sent.
        request_id: By which it can be cancelled; KEPT: it cannot.
        work: Gives the frame that answers it; does not raise. None: the answer is there.
        answer: Then it is this.
    """

    cost_bytes: int
    request_id: int
    work: Work | None
    answer: Buffers = ()


class Handler(Protocol):
    """What a port is for."""

    def asked(self, frame: Frame, /) -> Asked:
        """The request in a frame. Raises BadFrame or DecodeError: it is none."""
        ...

    def asks(self, frame: Frame, request_id: int, /) -> bool:
        """Whether it is the request of this id, and can be cancelled. Raises as `asked`."""
        ...


class Counts(Protocol):
    """Told what happens to connections."""

    def connections(self, count: int, /) -> None: ...
    def refused(self, reason: str, /) -> None: ...


@dataclass(frozen=True, slots=True)
class BulkLimits:
    """What connections may take.

    Attributes:
        limit_bytes: Of requests and answers in flight on one connection.
        data_bytes: Of one frame's data; more is refused before memory is taken for it.
        connection_count: Open at once; further ones are closed at once.
        hello_s: How long a connection may take to say its secret.
        stall_s: How long nothing may move on it where something should.
    """

    limit_bytes: int
    data_bytes: int = MAX_DATA_BYTES
    connection_count: int = 1024
    hello_s: float = 5.0
    stall_s: float = STALL_S


class BulkPort(BulkServiceServicer):
    """Serves the bulk port, and tells where it is."""

    def __init__(
        self,
        handler: Handler,
        limits: BulkLimits,
        counts: Counts,
        *,
        new_secret: Callable[[int], bytes] = os.urandom,
        on_half_sent: Callable[[], None] = _nothing,
        on_half_received: Callable[[], None] = _nothing,
    ) -> None:
        self.handler: Final = handler
        self.limits: Final = limits
        self._counts = counts
        #: For tests, see `BulkSocket`.
        self.on_half_sent: Final = on_half_sent
        self.on_half_received: Final = on_half_received
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
            OSError: The address is taken or not ours.
        """
        host = host.strip("[]")
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listener = socket.create_server((host, port), family=family, backlog=_BACKLOG)
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
            if len(self._connections) >= self.limits.connection_count:
                self._counts.refused("too_many")
                connected.close()
                continue
            self._connections.add(_Connection(connected, self))
            self._counts.connections(len(self._connections))

    # ---- for connections ----

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
        self._counts.connections(len(self._connections))
        if isinstance(why, BadFrame):
            self._counts.refused("misuse")
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

    def __init__(self, connected: socket.socket, server: BulkPort) -> None:
        self._server = server
        self._welcomed = False
        self._running: set[_Running] = set()
        #: By request id: what may be cancelled.
        self._cancellable: dict[int, _Running] = {}
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
            on_half_sent=server.on_half_sent,
            on_half_received=server.on_half_received,
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
        self._reader.max_data_bytes = self._server.limits.data_bytes

    def _begin(self, frame: Frame) -> None:
        try:
            asked = self._server.handler.asked(frame)
        except DecodeError as error:
            raise BadFrame(f"the header of a frame is damaged: {error}") from None
        running = self._admit(asked.cost_bytes, asked.request_id)
        if asked.work is None:
            self._send(running, asked.answer)
            return
        running.task = asyncio.create_task(self._answer(running, asked.work))
        running.task.add_done_callback(lambda task: self._judge(running, task))

    @property
    def _is_full(self) -> bool:
        return self._taken_bytes >= self._server.limits.limit_bytes

    # ---- answering ----

    def _admit(self, cost_bytes: int, request_id: int) -> _Running:
        running = _Running(cost_bytes, request_id)
        self._running.add(running)
        if request_id != KEPT:
            self._cancellable[request_id] = running
        self._taken_bytes += cost_bytes
        if self._is_full:
            self._socket.pause_reading()
        return running

    async def _answer(self, running: _Running, work: Work) -> None:
        self._send(running, await work())

    def _send(self, running: _Running, buffers: Buffers) -> None:
        self._socket.send(buffers, key=running.request_id, on_sent=lambda: self._finished(running))

    def _judge(self, running: _Running, task: "asyncio.Task[None]") -> None:
        """Without an answer nothing else ends the request."""
        if task.cancelled():
            self._finished(running)
        elif (error := task.exception()) is not None:  # a mistake of ours
            _log.error("bulk port: a request failed", exc_info=error)
            self._socket.close()
            self._end(ConnectionError(repr(error)))

    def _cancel(self, request_id: int) -> None:
        running = self._cancellable.get(request_id)
        if running is None:
            # Not begun, or answered already.
            asks = self._server.handler.asks
            for frame in [frame for frame in self._waiting if asks(frame, request_id)]:
                self._waiting.remove(frame)
        elif not self._socket.drop(request_id) and running.task is not None:
            running.task.cancel()

    def _finished(self, running: _Running) -> None:
        if running not in self._running:
            return
        self._running.discard(running)
        if self._cancellable.get(running.request_id) is running:
            del self._cancellable[running.request_id]
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
