"""One long-lived link to a storage node, shared by many requests.

Theory of operation: a request gets an id, is sent over the link and answered in any order. The link
opens with the first request: frames on a socket, or a stream of gRPC (`exastore.proto.links`). When
it fails, every request on it fails at once; requests within the back-off that follows fail without
being sent, so that their callers turn to other nodes. The first answer ends the back-off. A link
that gives no answers fails even when no request waits long enough to notice: others overtake it.
gRPC's stream in place of a socket that could not be had is left for one as soon as it can.

Laws:
1. The bytes of all requests under way stay within the budget.
2. A request that has been given up is never sent later: its buffer may be in use for other bytes.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic

from exastore.gateway.errors import NodeSlow, NodeUnavailable
from exastore.metadata.core.clock import Clock
from exastore.proto.links import (
    Call,
    Deliver,
    Link,
    Lost,
    NodeLinks,
    NodeUnreachable,
    Request,
)
from exastore.proto.requests import Answer, AnyLink, OpenRequests, opened

#: How long gRPC's stream is used before a socket is tried again.
IMPROVE_AFTER_S = 30.0
#: How long a link that was left stays open for its answers.
LEFT_LINK_S = 60.0


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

    def acquire_now(self, size_bytes: int) -> bool:
        """Let it in if it need not wait; returns whether."""
        is_room = not self._waiting and self.clip(size_bytes) <= self._free
        if is_room:
            self._free -= self.clip(size_bytes)
        return is_room

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
    #: For so long requests that are given up may wait, one after the other, without one answer.
    mute_s: float


class ChunkStream(Generic[Answer]):
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
        self._requests: OpenRequests[Answer] = OpenRequests()
        self._backoff_s = 0.0
        self._retry_at_s = 0.0
        self._last_failure = ""
        #: For how long requests that were given up since the last answer have waited, and until
        #: when that is counted: they may have waited at the same time.
        self._mute_s = self._mute_to_s = 0.0
        #: Looks for something better than gRPC's stream; and when that is next worth while.
        self._improving: asyncio.Task[None] | None = None
        self._improve_at_s = 0.0
        #: Left for another, but with requests under way.
        self._left: Link | None = None
        self._closed = False

    async def request(
        self, make: Callable[[int], Request], size_bytes: int, timeout_s: float
    ) -> Answer:
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
        answer_count = self._requests.answer_count
        begun_s = self._clock.monotonic_s()
        try:
            async with asyncio.timeout(timeout_s):
                return await self._exchange(make)
        except asyncio.CancelledError:
            if self._requests.answer_count == answer_count:
                self._note_mute(begun_s)
            raise
        except TimeoutError:
            why = f"no answer within {timeout_s:g} s"
            if self._requests.answer_count != answer_count:
                raise NodeSlow(self._links.address, why) from None
            # Not one answer all the while: the node hangs or is cut off.
            self._fail(why)
            raise NodeUnavailable(self._links.address, why) from None
        finally:
            self._budget.release(size_bytes)

    async def close(self) -> None:
        self._closed = True
        tasks: list[asyncio.Task[Any]] = []
        for task in (self._opening, self._improving):
            if task is not None:
                tasks.append(task)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._close_left()
        self._fail("closed")

    async def _exchange(self, make: Callable[[int], Request]) -> Answer:
        link = self._ready_link() or await self._open()
        if link is not self._link:  # lost before its opener had its turn
            raise NodeUnavailable(self._links.address, self._last_failure)
        if link.is_makeshift:
            self._improve(link)
        return await self._requests.ask(link, make)

    def _ready_link(self) -> Link | None:
        if self._closed:
            raise NodeUnavailable(self._links.address, "closed")
        if self._link is None and self._clock.monotonic_s() < self._retry_at_s:
            raise NodeUnavailable(self._links.address, self._last_failure)
        return self._link

    async def _open(self) -> Link:
        """All requests that wait for a link wait for the same one."""
        opening = self._opening
        if opening is None:
            opening = self._opening = asyncio.create_task(self._open_link())
        try:
            return await asyncio.shield(opening)
        except NodeUnreachable as error:
            raise NodeUnavailable(self._links.address, str(error)) from None
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if self._closed and task is not None and not task.cancelling():
                raise NodeUnavailable(self._links.address, "closed") from None
            raise

    async def _open_link(self) -> Link:
        try:
            link = self._link = await self._dialled(self._links.open)
        except NodeUnreachable as error:
            self._note_failure(str(error))
            raise
        finally:
            self._opening = None
        self._mute_s = 0.0
        self._improve_at_s = self._clock.monotonic_s() + IMPROVE_AFTER_S
        return link

    async def _dialled(self, dial: Callable[[Call, Deliver, Lost], Awaitable[AnyLink]]) -> AnyLink:
        """A link that fails what is pending when it is lost. Raises NodeUnreachable."""
        return await opened(partial(dial, self._call, self._deliver), self._lost)

    def _lost(self, link: Link | None, why: str) -> None:
        if link is self._link:
            self._fail(why)

    def _improve(self, link: Link) -> None:
        """Now and then, look for something better."""
        now_s = self._clock.monotonic_s()
        if self._improving is None and self._left is None and now_s >= self._improve_at_s:
            self._improve_at_s = now_s + IMPROVE_AFTER_S
            self._improving = asyncio.create_task(self._improved(link))

    async def _improved(self, link: Link) -> None:
        try:
            better = await self._dialled(self._links.open_socket)
        except NodeUnreachable:
            return
        finally:
            self._improving = None
        if better is None or self._link is not link:
            if better is not None:
                better.close()
            return
        self._link, self._left = better, link
        # By then its requests are answered, or have failed.
        asyncio.get_running_loop().call_later(LEFT_LINK_S, self._close_left)

    def _close_left(self) -> None:
        left, self._left = self._left, None
        if left is not None:
            left.close()

    def _note_mute(self, since_s: float) -> None:
        """A request was given up before anything was answered."""
        now_s = self._clock.monotonic_s()
        self._mute_s += max(0.0, now_s - max(since_s, self._mute_to_s))
        self._mute_to_s = now_s
        if self._mute_s >= self._options.mute_s:
            self._fail(f"not one answer for {self._mute_s:.1f} s")

    def _deliver(self, answer: Answer) -> None:
        self._backoff_s = self._mute_s = 0.0
        self._requests.deliver(answer)

    def _fail(self, why: str) -> None:
        """Fail what is pending and wait before the next link is opened."""
        link, self._link = self._link, None
        if link is None:
            return
        link.close()
        self._note_failure(why)
        self._requests.fail(lambda: NodeUnavailable(self._links.address, why))

    def _note_failure(self, why: str) -> None:
        self._last_failure = why
        options = self._options
        self._backoff_s = min(
            max(2 * self._backoff_s, options.backoff_min_s), options.backoff_max_s
        )
        self._retry_at_s = self._clock.monotonic_s() + self._backoff_s
