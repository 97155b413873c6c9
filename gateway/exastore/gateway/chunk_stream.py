"""One long-lived link to a storage node, shared by many requests.

Theory of operation: a request gets an id, is sent over the link and answered in any order. The link
opens with the first request: frames on a socket, or a stream of gRPC (`exastore.proto.links`). When
it fails, every request on it fails at once; requests within the back-off that follows fail without
being sent, so that their callers turn to other nodes. The first answer ends the back-off.

Laws:
1. The bytes of all requests under way stay within the budget.
2. A request that has been given up is never sent later: its buffer may be in use for other bytes.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from exastore.gateway.errors import NodeSlow, NodeUnavailable
from exastore.metadata.core.clock import Clock
from exastore.proto.links import Call, Link, NodeLinks, NodeUnreachable, Request


class Numbered(Protocol):
    """A response that names its request."""

    @property
    def request_id(self) -> int: ...


Response = TypeVar("Response", bound=Numbered)


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
                self._admit()  # those behind may fit
            raise

    def release(self, size_bytes: int) -> None:
        self._free += self.clip(size_bytes)
        assert self._free <= self._limit
        self._admit()

    def _admit(self) -> None:
        while self._waiting:
            size_bytes, turn = self._waiting[0]
            if not turn.cancelled():
                if size_bytes > self._free:
                    return
                self._free -= size_bytes
                turn.set_result(None)
            self._waiting.popleft()


@dataclass(frozen=True, slots=True)
class StreamOptions:
    """Limits of one stream."""

    max_in_flight_bytes: int
    backoff_min_s: float
    backoff_max_s: float


class ChunkStream(Generic[Response]):
    """Requests of one kind to one node."""

    def __init__(
        self, links: NodeLinks, call: Call, *, clock: Clock, options: StreamOptions
    ) -> None:
        self._links = links
        self._call = call
        self._clock = clock
        self._options = options
        self._budget = ByteBudget(options.max_in_flight_bytes)
        #: The open link; None before the first request and after a failure.
        self._link: Link | None = None
        self._opening: asyncio.Task[Link] | None = None
        #: Requests sent or queued and not answered.
        self._pending: dict[int, asyncio.Future[Response]] = {}
        self._next_id = 0
        self._backoff_s = 0.0
        self._retry_at_s = 0.0
        self._last_failure = ""
        #: Answers received on any link so far; tells a slow request from a dead link.
        self._answer_count = 0
        self._closed = False

    async def request(
        self, make: Callable[[int], Request], size_bytes: int, timeout_s: float
    ) -> Response:
        """Send one request and wait for its answer.

        Args:
            make: Makes the request, given its id.
            size_bytes: What request or answer weigh.
            timeout_s: How long the node may take.

        Raises:
            NodeUnavailable: the link failed or no answer came in time.
            NodeSlow: other answers came meanwhile.
        """
        # Waiting for the budget is not the node's fault; when the node hangs, the requests that
        # have the budget time out, and those that wait fail with them.
        await self._budget.acquire(size_bytes)
        answer_count = self._answer_count
        try:
            async with asyncio.timeout(timeout_s):
                return await self._exchange(make)
        except TimeoutError:
            why = f"no answer within {timeout_s:g} s"
            if self._answer_count != answer_count:
                raise NodeSlow(self._links.address, why) from None
            # Not one answer all the while: the node hangs or is cut off.
            self._fail(why)
            raise NodeUnavailable(self._links.address, why) from None
        finally:
            self._budget.release(size_bytes)

    async def close(self) -> None:
        self._closed = True
        opening = self._opening
        if opening is not None:
            opening.cancel()
            await asyncio.gather(opening, return_exceptions=True)
        self._fail("closed")

    async def _exchange(self, make: Callable[[int], Request]) -> Response:
        link = self._ready_link() or await self._open()
        self._next_id += 1
        request_id = self._next_id
        answer: asyncio.Future[Response] = asyncio.get_running_loop().create_future()
        self._pending[request_id] = answer
        link.send(request_id, make(request_id))
        try:
            return await answer
        finally:
            self._pending.pop(request_id, None)
            if answer.cancelled():
                link.forget(request_id)

    def _ready_link(self) -> Link | None:
        if self._closed:
            raise NodeUnavailable(self._links.address, "closed")
        if self._link is None and self._clock.monotonic_s() < self._retry_at_s:
            raise NodeUnavailable(self._links.address, self._last_failure)
        return self._link

    async def _open(self) -> Link:
        """All requests that wait for a link wait for the same one."""
        if self._opening is None:
            self._opening = asyncio.create_task(self._open_link())
        try:
            return await asyncio.shield(self._opening)
        except NodeUnreachable as error:
            raise NodeUnavailable(self._links.address, str(error)) from None

    async def _open_link(self) -> Link:
        link: Link | None = None

        def lost(why: str) -> None:
            if link is not None and link is self._link:
                self._fail(why)

        try:
            link = await self._links.open(self._call, self._deliver, lost)
        except NodeUnreachable as error:
            self._note_failure(str(error))
            raise
        finally:
            self._opening = None
        self._link = link
        return link

    def _deliver(self, response: Response) -> None:
        self._answer_count += 1
        self._backoff_s = 0.0
        answer = self._pending.get(response.request_id)
        if answer is not None and not answer.done():
            answer.set_result(response)

    def _fail(self, why: str) -> None:
        """Fail what is pending and wait before the next link is opened."""
        link, self._link = self._link, None
        if link is None:
            return
        link.close()
        self._note_failure(why)
        for answer in self._pending.values():
            if not answer.done():
                answer.set_exception(NodeUnavailable(self._links.address, why))

    def _note_failure(self, why: str) -> None:
        self._last_failure = why
        options = self._options
        self._backoff_s = min(
            max(2 * self._backoff_s, options.backoff_min_s), options.backoff_max_s
        )
        self._retry_at_s = self._clock.monotonic_s() + self._backoff_s
