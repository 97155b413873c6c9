"""The body of a request, between the parser and who reads it."""

import asyncio
from typing import Protocol

from exastore.gateway.errors import RequestError

#: Above so many bytes of a body that wait to be read, nothing more is received.
BODY_BYTES = 256 * 1024


class BodyOwner(Protocol):
    """What a body asks of its connection."""

    def tell_to_continue(self) -> None:
        """Send the interim response that the client waits for."""
        ...

    def new_body_waiter(self) -> asyncio.Future[None]:
        """A future for the next piece; it has a deadline."""
        ...

    def update_reading(self) -> None:
        """Receive or not, as there is room."""
        ...


class BodyStream:
    """See `RequestStream`."""

    __slots__ = (
        "_connection",
        "_error",
        "_waiter",
        "ended",
        "expects",
        "pieces",
        "size",
        "started",
    )

    def __init__(self, connection: BodyOwner, *, expects: bool) -> None:
        self._connection = connection
        #: Received and not yet read.
        self.pieces: list[bytes] = []
        #: Bytes of the pieces.
        self.size = 0
        #: Whether the last piece was received.
        self.ended = False
        self.started = False
        #: Whether the client waits to be told to continue.
        self.expects = expects
        self._error: RequestError | None = None
        self._waiter: asyncio.Future[None] | None = None

    @property
    def is_waited_for(self) -> bool:
        return self._waiter is not None

    async def read(self) -> bytes | None:
        """All that was received since; None after the end. Raises what `fail` was given."""
        self.started = True
        connection = self._connection
        while True:
            pieces = self.pieces
            if pieces:
                data = pieces[0] if len(pieces) == 1 else b"".join(pieces)
                self.pieces, self.size = [], 0
                connection.update_reading()
                return data
            if self.ended:
                return None
            if self._error is not None:
                raise self._error
            if self.expects:
                self.expects = False
                connection.tell_to_continue()
            self._waiter = connection.new_body_waiter()
            try:
                await self._waiter
            finally:
                self._waiter = None

    def feed(self, data: bytes) -> None:
        self.expects = False  # It did not wait.
        self.pieces.append(data)
        self.size += len(data)
        self._wake()

    def end(self) -> None:
        self.ended = True
        self.expects = False
        self._wake()

    def fail(self, error: RequestError) -> None:
        """Nothing more will come."""
        if not self.ended and self._error is None:
            self._error = error
            self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
