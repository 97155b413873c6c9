"""Requests that share links to one server: each gets an id, and its answer finds it by that.

Gateways and storage nodes keep the rest, such as when a link is opened and whom a failure concerns.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Generic, Protocol, TypeVar

from exastore.proto.links import Link, Lost, NodeUnreachable, Request


class Numbered(Protocol):
    """An answer that names its request."""

    @property
    def request_id(self) -> int: ...


Answer = TypeVar("Answer", bound=Numbered)
AnyLink = TypeVar("AnyLink", bound=Link | None)


class OpenRequests(Generic[Answer]):
    """Those that have no answer yet."""

    def __init__(self) -> None:
        self._waiting: dict[int, asyncio.Future[Answer]] = {}
        self._last_id = 0
        #: Answers so far, on any link; tells a slow request from a dead link.
        self.answer_count = 0

    async def ask(self, link: Link, make: Callable[[int], Request]) -> Answer:
        """The answer to the request that `make` makes of its id; raises what `fail` is given."""
        self._last_id += 1
        request_id = self._last_id
        answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._waiting[request_id] = answer
        link.send(request_id, make(request_id))
        try:
            return await answer
        finally:
            self._waiting.pop(request_id, None)
            if answer.cancelled():
                link.forget(request_id)

    def deliver(self, answer: Answer) -> None:
        """To whoever waits for it, if anybody still does."""
        self.answer_count += 1
        waiting = self._waiting.get(answer.request_id)
        if waiting is not None and not waiting.done():
            waiting.set_result(answer)

    def fail(self, make_error: Callable[[], Exception]) -> None:
        """Fail all of them, each with an error of its own."""
        for waiting in self._waiting.values():
            if not waiting.done():
                waiting.set_exception(make_error())


async def opened(
    dial: Callable[[Lost], Awaitable[AnyLink]], lost: Callable[[AnyLink, str], None]
) -> AnyLink:
    """The link that `dial` opens; `lost` is told which one was lost, and why.

    Raises:
        NodeUnreachable: There is none, or it was lost before anybody could know of it.
    """
    link: AnyLink | None = None
    reasons: list[str] = []

    def told(why: str) -> None:
        reasons.append(why)
        if link is not None:
            lost(link, why)

    link = await dial(told)
    if reasons:
        raise NodeUnreachable(reasons[0])
    return link
