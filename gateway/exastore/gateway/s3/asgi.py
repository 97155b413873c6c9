"""The S3 front as an ASGI 3 application: all that knows of ASGI is here."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from contextlib import suppress
from typing import Any

from exastore.gateway.errors import GatewayError, RequestError
from exastore.gateway.s3.front import S3Front
from exastore.gateway.s3.message import Request, Response

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

#: Shorter responses are sent without watching whether the client is still there.
WATCHED_BYTES = 1 << 20


class AsgiStream:
    """A request's body out of ASGI events. The first read tells the client to continue."""

    def __init__(self, receive: Receive, idle_timeout_s: float) -> None:
        self._receive = receive
        self._idle_timeout_s = idle_timeout_s
        self._started = False
        self._ended = False

    @property
    def started(self) -> bool:
        return self._started

    async def read(self) -> bytes | None:
        """The next piece, None after the last."""
        self._started = True
        while not self._ended:
            try:
                async with asyncio.timeout(self._idle_timeout_s):
                    message = await self._receive()
            except TimeoutError:
                raise RequestError(
                    "RequestTimeout",
                    "Your socket connection to the server was not read from or written to "
                    "within the timeout period.",
                ) from None
            if message["type"] == "http.disconnect":
                raise RequestError("IncompleteBody", "The connection closed within the body.")
            self._ended = not message.get("more_body", False)
            body: bytes = message.get("body", b"")
            if body:
                return body
        return None


class AsgiApp:
    """The application that an ASGI server runs."""

    def __init__(self, front: S3Front, *, idle_timeout_s: float = 60.0) -> None:
        """Args:
        idle_timeout_s: How long a client may pause within a request's body.
        """
        self._front = front
        self._idle_timeout_s = idle_timeout_s

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        assert scope["type"] == "http", "websockets and lifespan are off"
        headers: dict[str, str] = {}
        for raw_name, raw_value in scope["headers"]:
            name, value = raw_name.decode("latin-1").lower(), raw_value.decode("latin-1")
            headers[name] = f"{headers[name]},{value}" if name in headers else value
        request = Request(
            scope["method"],
            scope["raw_path"],
            scope["query_string"],
            headers,
            AsgiStream(receive, self._idle_timeout_s),
            source_ip=(scope.get("client") or ("",))[0],
            secure=scope.get("scheme") == "https",
        )
        response = await self._front.handle(request)
        sender = _Sender(response, send)
        try:
            await sender.send_head(head_only=request.method == "HEAD")
            if isinstance(response.content, bytes):
                await sender.send_last(response.content)
            else:
                await sender.send_pieces(response.content, receive)
        finally:
            if response.on_sent is not None:
                response.on_sent(sender.sent_bytes)


class _Sender:
    def __init__(self, response: Response, send: Send) -> None:
        self._response = response
        self._send = send
        self.sent_bytes = 0

    async def send_head(self, *, head_only: bool) -> None:
        response = self._response
        headers = [(_encode(name), _encode(value)) for name, value in response.headers.items()]
        length = response.length
        if length is None and isinstance(response.content, bytes):
            length = len(response.content)
        if length is not None and response.status not in (204, 304):
            headers.append((b"content-length", b"%d" % length))
        headers.append((b"server", b"exastore"))
        if response.close:
            headers.append((b"connection", b"close"))
        await self._send(
            {"type": "http.response.start", "status": response.status, "headers": headers}
        )
        if head_only:
            response.content = b""

    async def send_last(self, body: bytes) -> None:
        await self._send({"type": "http.response.body", "body": body, "more_body": False})
        self.sent_bytes += len(body)

    async def send_pieces(
        self, pieces: AsyncIterator[bytes | memoryview], receive: Receive
    ) -> None:
        """Send until the end, or until the client is gone or the store cannot go on.

        In the latter case the response is left unfinished: the server then closes the connection,
        and the client sees that bytes are missing.
        """
        watch = None
        if (self._response.length or 0) > WATCHED_BYTES:
            watch = asyncio.create_task(_wait_for_disconnect(receive))
        try:
            async for piece in pieces:
                if watch is not None and watch.done():
                    return
                await self._send({"type": "http.response.body", "body": piece, "more_body": True})
                self.sent_bytes += len(piece)
            await self.send_last(b"")
        except GatewayError:
            return
        finally:
            close = getattr(pieces, "aclose", None)
            if close is not None:
                await close()
            if watch is not None:
                watch.cancel()
                with suppress(asyncio.CancelledError):
                    await watch


async def _wait_for_disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _encode(text: str) -> bytes:
    try:
        return text.encode("latin-1")
    except UnicodeEncodeError:
        return text.encode()
