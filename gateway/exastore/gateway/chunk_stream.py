"""One long-lived bidirectional stream to a storage node, shared by many requests.

Theory of operation: a request gets an id, waits in the queue of the one sender task and is
answered by the one receiver task, in any order. The stream opens with the first request. When it
fails, every request on it fails at once; requests within the back-off that follows fail without
being sent, so that their callers turn to other nodes. The first answer ends the back-off.

Laws:
1. The bytes of all requests under way stay within the budget.
2. A request that has been given up is never sent later: its buffer may be in use for other bytes.
"""

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import grpc

from exastore.gateway.errors import NodeSlow, NodeUnavailable
from exastore.metadata.core.clock import Clock


class Numbered(Protocol):
    """A response that names its request."""

    @property
    def request_id(self) -> int: ...


Response = TypeVar("Response", bound=Numbered)
#: The serialised request with a given id, made just before it is sent.
Frame = Callable[[int], bytes]


class ByteBudget:
    """Lets so many bytes in at a time, first come, first served; one request is always let in."""

    __slots__ = ("_free", "_limit", "_waiting")

    def __init__(self, limit_bytes: int) -> None:
        assert limit_bytes > 0
        self._limit = limit_bytes
        #: Bytes not taken; 0 <= free <= limit.
        self._free = limit_bytes
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    def clip(self, size_bytes: int) -> int:
        """What a request of this size takes."""
        return min(size_bytes, self._limit)

    async def acquire(self, size_bytes: int) -> None:
        size_bytes = self.clip(size_bytes)
        if not self._waiting and self._free >= size_bytes:
            self._free -= size_bytes
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((size_bytes, turn))
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self.release(size_bytes)
            else:
                self._waiting.remove((size_bytes, turn))
                self._admit()
            raise

    def release(self, size_bytes: int) -> None:
        self._free += self.clip(size_bytes)
        assert self._free <= self._limit
        self._admit()

    def _admit(self) -> None:
        while self._waiting and self._waiting[0][0] <= self._free:
            size_bytes, turn = self._waiting.popleft()
            self._free -= size_bytes
            turn.set_result(None)


@dataclass(frozen=True, slots=True)
class StreamOptions:
    """Limits of one stream."""

    max_in_flight_bytes: int
    backoff_min_s: float
    backoff_max_s: float


class ChunkStream(Generic[Response]):
    """`open_call` opens a gRPC stream that takes serialised requests."""

    def __init__(
        self,
        address: str,
        open_call: Callable[[], grpc.aio.StreamStreamCall[bytes, Response]],
        *,
        clock: Clock,
        options: StreamOptions,
    ) -> None:
        self._address = address
        self._open_call = open_call
        self._clock = clock
        self._options = options
        self._budget = ByteBudget(options.max_in_flight_bytes)
        #: The open stream; None before the first request and after a failure.
        self._call: grpc.aio.StreamStreamCall[bytes, Response] | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._queue: asyncio.Queue[tuple[int, Frame]] = asyncio.Queue()
        #: Requests sent or queued and not answered.
        self._pending: dict[int, asyncio.Future[Response]] = {}
        self._next_id = 0
        self._backoff_s = 0.0
        self._retry_at_s = 0.0
        self._last_failure = ""
        #: Answers received on any stream so far; tells a slow request from a dead stream.
        self._answer_count = 0
        self._closed = False

    async def request(self, frame: Frame, size_bytes: int, timeout_s: float) -> Response:
        """Send one request and wait for its answer.

        Raises:
            NodeUnavailable: the stream failed or no answer came in time.
            NodeSlow: other answers came meanwhile.
        """
        # Waiting for the budget is not the node's fault; when the node hangs, the requests that
        # have the budget time out, and those that wait fail with them.
        await self._budget.acquire(size_bytes)
        answer_count = self._answer_count
        try:
            async with asyncio.timeout(timeout_s):
                return await self._exchange(frame)
        except TimeoutError:
            why = f"no answer within {timeout_s:g} s"
            if self._answer_count != answer_count:
                raise NodeSlow(self._address, why) from None
            # Not one answer all the while: the node hangs or is cut off.
            self._fail(self._call, why)
            raise NodeUnavailable(self._address, why) from None
        finally:
            self._budget.release(size_bytes)

    async def close(self) -> None:
        self._closed = True
        tasks = list(self._tasks)
        self._fail(self._call, "closed")
        for task in tasks:
            with contextlib.suppress(asyncio.CancelledError):
                await task

    async def _exchange(self, frame: Frame) -> Response:
        self._ensure_open()
        self._next_id += 1
        request_id = self._next_id
        answer: asyncio.Future[Response] = asyncio.get_running_loop().create_future()
        self._pending[request_id] = answer
        self._queue.put_nowait((request_id, frame))
        try:
            return await answer
        finally:
            self._pending.pop(request_id, None)

    def _ensure_open(self) -> None:
        if self._closed:
            raise NodeUnavailable(self._address, "closed")
        if self._call is not None:
            return
        if self._clock.monotonic_s() < self._retry_at_s:
            raise NodeUnavailable(self._address, self._last_failure)
        call = self._open_call()
        self._call = call
        self._queue = asyncio.Queue()
        self._tasks = [
            asyncio.create_task(self._send(call, self._queue)),
            asyncio.create_task(self._receive(call)),
        ]

    async def _send(
        self,
        call: grpc.aio.StreamStreamCall[bytes, Response],
        queue: asyncio.Queue[tuple[int, Frame]],
    ) -> None:
        try:
            while True:
                request_id, frame = await queue.get()
                if request_id in self._pending:
                    await call.write(frame(request_id))
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError) as error:
            self._fail(call, _why(error))

    async def _receive(self, call: grpc.aio.StreamStreamCall[bytes, Response]) -> None:
        try:
            async for response in call:
                self._answer_count += 1
                self._backoff_s = 0.0
                answer = self._pending.get(response.request_id)
                if answer is not None and not answer.done():
                    answer.set_result(response)
            self._fail(call, "the node closed the stream")
        except grpc.aio.AioRpcError as error:
            self._fail(call, _why(error))

    def _fail(self, call: grpc.aio.StreamStreamCall[bytes, Response] | None, why: str) -> None:
        """Fail what is pending and wait before the next stream is opened."""
        if call is None or call is not self._call:
            return
        self._call = None
        call.cancel()
        current = asyncio.current_task()
        for task in self._tasks:
            if task is not current:
                task.cancel()
        self._tasks = []
        self._last_failure = why
        options = self._options
        self._backoff_s = min(
            max(2 * self._backoff_s, options.backoff_min_s), options.backoff_max_s
        )
        self._retry_at_s = self._clock.monotonic_s() + self._backoff_s
        for answer in self._pending.values():
            if not answer.done():
                answer.set_exception(NodeUnavailable(self._address, why))


def _why(error: Exception) -> str:
    if isinstance(error, grpc.aio.AioRpcError):
        if error.code() is grpc.StatusCode.INTERNAL:
            # What gRPC says when a stream ends under a message that is being sent.
            return f"the stream broke ({error.details()})"
        return f"{error.code().name}: {error.details()}"
    return str(error) or type(error).__name__
