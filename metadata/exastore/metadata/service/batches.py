"""Many calls in one message: what a call costs gRPC in Python is paid once for all that wait.

A unary call takes some 0.3 ms of this process before it does anything. A gateway sends the calls
that gather while a message is on its way in the next one; each is a task here, and the answers
that are ready go back together. Calls of one batch reach the engine together, too.

Law: no further batch is taken from a stream while too many of its calls are under way, so gRPC's
flow control makes the gateway wait.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any, NamedTuple, cast

import grpc
from google.protobuf.message import DecodeError, Message
from google.protobuf.message_factory import GetMessageClass

from exastore.metadata.core.clock import Clock
from exastore.metadata.service.error_map import status_and_reason
from exastore.metadata.service.metrics import MetadataMetrics
from exastore.proto.v1 import batch_pb2, batch_pb2_grpc, metadata_pb2

log = logging.getLogger(__name__)

#: Calls of one stream under way at once.
_CALL_COUNT_MAX = 1024
#: Answers are cut into messages of about this size.
_ANSWER_BYTES = 1 << 20

Call = Callable[[Any], Awaitable[Message]]
Parse = Callable[[bytes | memoryview], Message]


class Outcome(NamedTuple):
    """Of a call: its response, or status code, reason and words of its failure."""

    response: bytes
    code: int = 0
    reason: str = ""
    detail: str = ""


class BatchServicer(batch_pb2_grpc.BatchServiceServicer):
    """Serves the unary calls of MetadataService in batches.

    Args:
        calls: By the name of the method.
    """

    def __init__(self, calls: Mapping[str, Call], metrics: MetadataMetrics, clock: Clock) -> None:
        service = metadata_pb2.DESCRIPTOR.services_by_name["MetadataService"]
        self._calls = {
            # FromString takes views, which its stubs do not know.
            name: (
                cast(Parse, GetMessageClass(service.methods_by_name[name].input_type).FromString),
                call,
            )
            for name, call in calls.items()
        }
        self._metrics = metrics
        self._clock = clock

    async def Exchange(
        self, request_iterator: AsyncIterator[batch_pb2.CallBatch], context: Any
    ) -> AsyncIterator[batch_pb2.AnswerBatch]:
        stream = _Stream(self._answer)
        puller = asyncio.create_task(stream.pull(request_iterator))
        try:
            async for batch in stream.answers():
                yield batch
        finally:
            puller.cancel()
            await stream.cancel()

    async def _answer(self, call: batch_pb2.BatchedCall) -> batch_pb2.BatchedAnswer:
        response, code, reason, detail = await self.outcome(call.method, call.request)
        return batch_pb2.BatchedAnswer(
            call_id=call.call_id, response=response, code=code, reason=reason, detail=detail
        )

    async def outcome(self, method: str, request: bytes | memoryview) -> Outcome:
        """Serve one call, whichever way it came."""
        begun_s = self._clock.monotonic_s()
        found = self._calls.get(method)
        if found is None:
            detail = f"no unary method is called {method!r}"
            return Outcome(b"", _code(grpc.StatusCode.UNIMPLEMENTED), "", detail)
        parse, run = found
        try:
            outcome, result = Outcome((await run(parse(request))).SerializeToString()), "ok"
        except DecodeError as error:
            outcome = Outcome(b"", _code(grpc.StatusCode.INVALID_ARGUMENT), "", str(error))
            result = "invalid_argument"
        except Exception as error:
            known = status_and_reason(error)
            if known is None:
                log.error("%s failed", method, exc_info=error)
                known = grpc.StatusCode.INTERNAL, "UNSPECIFIED"
            status, reason = known
            outcome, result = Outcome(b"", _code(status), reason, str(error)), reason.lower()
        self._metrics.request(method, result, self._clock.monotonic_s() - begun_s)
        return outcome


class _Stream:
    """The calls of one gateway."""

    def __init__(
        self, answer: Callable[[batch_pb2.BatchedCall], Awaitable[batch_pb2.BatchedAnswer]]
    ) -> None:
        self._answer = answer
        self._tasks: set[asyncio.Task[None]] = set()
        self._room = asyncio.Semaphore(_CALL_COUNT_MAX)
        #: Ready to be sent; None: the gateway has ended the stream.
        self._ready: list[batch_pb2.BatchedAnswer] = []
        self._ended = False
        self._news = asyncio.Event()

    async def pull(self, batches: AsyncIterator[batch_pb2.CallBatch]) -> None:
        """Start the calls as they come."""
        try:
            async for batch in batches:
                for call in batch.calls:
                    await self._room.acquire()
                    task = asyncio.create_task(self._run(call))
                    self._tasks.add(task)
                    task.add_done_callback(self._tasks.discard)
            await asyncio.gather(*self._tasks)
        finally:
            self._ended = True
            self._news.set()

    async def answers(self) -> AsyncIterator[batch_pb2.AnswerBatch]:
        """What is ready, together; ends when the gateway has ended and everything is answered."""
        while True:
            await self._news.wait()
            self._news.clear()
            while self._ready:
                yield self._taken()
            if self._ended:
                return

    async def cancel(self) -> None:
        """Give up what is still under way."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _run(self, call: batch_pb2.BatchedCall) -> None:
        try:
            self._ready.append(await self._answer(call))
            self._news.set()
        finally:
            self._room.release()

    def _taken(self) -> batch_pb2.AnswerBatch:
        size_bytes = count = 0
        for answer in self._ready:
            size_bytes += len(answer.response)
            count += 1
            if size_bytes >= _ANSWER_BYTES:
                break
        batch = batch_pb2.AnswerBatch(answers=self._ready[:count])
        del self._ready[:count]
        return batch


def _code(status: grpc.StatusCode) -> int:
    number: int = status.value[0]
    return number
