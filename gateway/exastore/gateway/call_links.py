"""How calls reach a metadata server: frames on a socket of our own, or one stream of gRPC.

Both carry the messages of `batch.proto`, side by side and answered in any order; both are a
`CallLink` under one `BatchedChannel`, which keeps deadlines and matches answers.
"""

import asyncio
import socket
from collections.abc import Callable
from typing import Protocol

import grpc

from exastore.proto.bulk_frames import REQUEST_ID, BadFrame, Frame, FrameKind, head_of
from exastore.proto.channel import METADATA_MESSAGE_BYTES
from exastore.proto.links import FrameLink
from exastore.proto.v1 import batch_pb2, batch_pb2_grpc, bulk_pb2

#: Calls on gRPC's stream are cut into messages of about this size.
_BATCH_BYTES = 1 << 20

Answer = batch_pb2.BatchedAnswer
#: Told each answer, and its response where the answer itself does not hold it.
Deliver = Callable[[Answer, bytes | memoryview], None]
#: Told once why the link ended, unless it was closed.
Lost = Callable[[grpc.StatusCode, str], None]


class TooLarge(Exception):
    """No message may have so many bytes."""


class CallLink(Protocol):
    """An open way to a metadata server."""

    def send(self, call_id: int, method: str, request: bytes) -> None:
        """Send a call; does not wait. Raises TooLarge."""
        ...

    def forget(self, call_id: int) -> None:
        """Nobody waits for this answer any more."""
        ...

    def close(self) -> None: ...


class SocketCalls(FrameLink):
    """Each call a frame; those of one turn of the loop leave together."""

    def __init__(
        self,
        deliver: Deliver,
        lost: Lost,
        connected: socket.socket,
        server: bulk_pb2.DescribeBulkResponse,
        stall_s: float,
        on_half_sent: Callable[[], None],
        cut_bytes: int,
    ) -> None:
        self._deliver = deliver
        self._lost = lost
        super().__init__(
            connected,
            server,
            stall_s,
            on_half_sent,
            cut_bytes,
            max_data_bytes=METADATA_MESSAGE_BYTES,
        )

    def send(self, call_id: int, method: str, request: bytes) -> None:
        header = batch_pb2.BatchedCall(call_id=call_id, method=method).SerializeToString()
        try:
            head = head_of(
                FrameKind.CALL, header, len(request), max_data_bytes=METADATA_MESSAGE_BYTES
            )
        except BadFrame as error:
            raise TooLarge(str(error)) from None
        self._socket.send([head, request], key=call_id)

    def forget(self, call_id: int) -> None:
        if not self._socket.drop(call_id):
            self._socket.send([head_of(FrameKind.CANCEL, REQUEST_ID.pack(call_id))])

    def taken(self, frame: Frame) -> None:
        if frame.kind is not FrameKind.ANSWER:
            raise BadFrame(f"a metadata server does not send {frame.kind.name}")
        self._deliver(Answer.FromString(frame.header), frame.data)

    def ended(self, why: str) -> None:
        self._lost(grpc.StatusCode.UNAVAILABLE, why)


class StreamCalls:
    """Calls in batches on a stream: one waits while the message before it is sent, if at all.

    Messages cost gRPC in Python some 0.2 ms each, however few calls they hold.
    """

    def __init__(self, channel: grpc.aio.Channel, deliver: Deliver, lost: Lost) -> None:
        stub: batch_pb2_grpc.BatchServiceAsyncStub = batch_pb2_grpc.BatchServiceStub(channel)
        self._stream = stub.Exchange()
        self._deliver = deliver
        self._lost = lost
        #: Calls that wait to be sent, by id, in order.
        self._queue: dict[int, batch_pb2.BatchedCall] = {}
        self._news = asyncio.Event()
        self._tasks = [asyncio.create_task(self._send()), asyncio.create_task(self._receive())]

    def send(self, call_id: int, method: str, request: bytes) -> None:
        self._queue[call_id] = batch_pb2.BatchedCall(
            call_id=call_id, method=method, request=request
        )
        self._news.set()

    def forget(self, call_id: int) -> None:
        self._queue.pop(call_id, None)

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
                await self._news.wait()
                self._news.clear()
                while self._queue:
                    await self._stream.write(batch_pb2.CallBatch(calls=self._taken()))
        except grpc.aio.AioRpcError as error:
            self._end(error.code(), error.details() or "")
        except asyncio.InvalidStateError as error:
            self._end(grpc.StatusCode.UNAVAILABLE, str(error))

    def _taken(self) -> list[batch_pb2.BatchedCall]:
        """What waits, up to the size of a message."""
        taken: list[batch_pb2.BatchedCall] = []
        size_bytes = 0
        while self._queue and size_bytes < _BATCH_BYTES:
            taken.append(self._queue.pop(next(iter(self._queue))))
            size_bytes += len(taken[-1].request)
        return taken

    async def _receive(self) -> None:
        try:
            async for batch in self._stream:
                for answer in batch.answers:
                    self._deliver(answer, answer.response)
            self._end(grpc.StatusCode.UNAVAILABLE, "the server closed the stream")
        except grpc.aio.AioRpcError as error:
            self._end(error.code(), error.details() or "")

    def _end(self, status: grpc.StatusCode, why: str) -> None:
        if self._tasks:
            self.close()
            self._lost(status, why)
