"""What the connections of an HTTP server share, and how long it waits for clients."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Protocol

from exastore.gateway.s3.message import Request, Response

Handle = Callable[[Request], Awaitable[Response]]


class Connection(Protocol):
    """What a server does with a connection."""

    def check_deadline(self) -> None:
        """Called at every tick."""
        ...

    def shut(self) -> None:
        """Answer what was asked, then close."""
        ...

    def abort(self) -> None:
        """Close at once."""
        ...


@dataclass(frozen=True, slots=True)
class Patience:
    """How long clients may take, in ticks of the server's timer."""

    idle: int = 75
    """Between requests: longer than the pools of SDKs take to come back."""
    head: int = 30
    """From the first byte of a head to its last."""
    body: int = 60
    """Without a byte of a body that is waited for."""
    write: int = 60
    """Without taking a byte of the response."""
    linger: int = 2
    """After a response that ends the connection, for the client to stop sending."""


@dataclass(slots=True)
class Hub:
    """What the connections of a server share."""

    handle: Handle
    patience: Patience
    secure: bool
    #: Ticks since the server began.
    tick: int = 0
    #: The line of the Date header, renewed every tick.
    date_line: str = ""
    #: Once set, connections close as soon as they have nothing to answer.
    stopping: bool = False
    connections: set[Connection] = field(default_factory=lambda: set[Connection]())
    #: Requests that are being answered, those of connections that are gone among them.
    tasks: set[asyncio.Task[None]] = field(default_factory=lambda: set[asyncio.Task[None]]())
    #: Set once it is stopping and nothing is left.
    _emptied: asyncio.Event = field(default_factory=asyncio.Event)

    def run(self, task: asyncio.Task[None]) -> None:
        """Keep a task until it is done."""
        self.tasks.add(task)
        task.add_done_callback(self._end)

    def remove(self, connection: Connection) -> None:
        self.connections.discard(connection)
        if self.stopping:
            self._look()

    async def wait_until_empty(self) -> None:
        """Wait until no connection and no task is left, once it is stopping."""
        self._emptied.clear()
        self._look()
        await self._emptied.wait()

    def _end(self, task: asyncio.Task[None]) -> None:
        self.tasks.discard(task)
        if self.stopping:
            self._look()

    def _look(self) -> None:
        if not self.connections and not self.tasks:
            self._emptied.set()
