"""One connection of a client: HTTP/1.1 parsed by httptools, requests answered one after the other.

Laws:
1. Responses leave in the order of their requests, one at a time; a request is answered once.
2. Where one request ends and the next begins is never in doubt: what could be read in two ways
   (two lengths, a length and chunks, a coding that is not known, a bare line end) is refused with
   400 and the connection is closed. So it is after a body that the client did not send to its end.
3. A client is told to continue by the first read of the body, which is after its signature holds.
4. Memory is bounded: a head by MAX_HEAD_BYTES and one read of the socket, a body that nobody reads
   by BODY_BYTES and one read; while a request waits for the answer of the one before it, nothing
   is received.
5. No wait is without end: `check_deadline` is called every tick of the server's one timer, so that
   a connection needs no timer of its own.

Theory of operation: the parser calls `on_*` while it is fed. A complete head makes an `_Exchange`,
which is put into a queue; the first of the queue has a task that runs the front and sends the
response. A body goes from the parser into the exchange's stream, and from there to whoever reads.

Fault model: clients may send anything, stop at any byte, close in either direction, and never read.
"""

import asyncio
import logging
from collections import deque
from dataclasses import dataclass
from typing import Any, cast

from httptools import (
    HttpParserCallbackError,
    HttpParserError,
    HttpParserUpgrade,
    HttpRequestParser,
)

from exastore.gateway.errors import GatewayError, RequestError
from exastore.gateway.s3.http_body import BODY_BYTES, BodyStream
from exastore.gateway.s3.http_head import (
    MAX_HEAD_BYTES,
    absolute_target,
    head_of,
    objection,
    refusal,
)
from exastore.gateway.s3.http_hub import Hub
from exastore.gateway.s3.message import Request, Response

#: The most bytes read and forgotten of a client that was told that the connection ends.
_FORGOTTEN_BYTES = 16 << 20

_TIMED_OUT = (
    "Your socket connection to the server was not read from or written to within the timeout "
    "period."
)

_logger = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class _Exchange:
    """A request and its answer."""

    request: Request
    body: BodyStream
    keep_alive: bool
    is_http_10: bool
    refused: RequestError | None = None
    """Set: not to be handled but answered with this."""


class HttpConnection(asyncio.Protocol):
    """The protocol of one connection."""

    def __init__(self, hub: Hub, loop: asyncio.AbstractEventLoop) -> None:
        self._hub = hub
        self._loop = loop
        self._parser: Any = HttpRequestParser(self)
        self._transport: asyncio.Transport | None = None
        self._source_ip = ""
        #: Requests not yet answered, oldest first; the first is being handled.
        self._queue: deque[_Exchange] = deque()
        #: The request whose body is being received.
        self._receiving: _Exchange | None = None
        self._url = b""
        self._headers: dict[str, str] = {}
        self._refused: RequestError | None = None
        #: Bytes of the headers so far, and of what stands between them.
        self._field_bytes = 0
        #: Bytes received of a head that is not complete, in whole reads, or of trailers.
        self._head_bytes = 0
        self._in_head = True
        #: Whether it never asked for anything.
        self._is_new = True
        self._is_paused = False
        #: Nothing more is taken from the client; it is read and forgotten.
        self._is_deaf = False
        self._forgotten_bytes = 0
        #: The connection is closed once the queue is empty.
        self._is_last = False
        #: Pending while the client does not take what was written.
        self._drained: asyncio.Future[None] | None = None
        self._unwritten_bytes = 0
        #: The tick at which patience ends; 0: whoever is at work has a limit of its own.
        self._deadline = 0

    # ---- the transport ----

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's are no subclass
        peer = transport.get_extra_info("peername")
        self._source_ip = peer[0] if peer else ""
        self._hub.connections.add(self)
        self._deadline = self._hub.tick + self._hub.patience.idle

    def data_received(self, data: bytes) -> None:
        if self._is_deaf:
            self._forgotten_bytes += len(data)
            if self._forgotten_bytes > _FORGOTTEN_BYTES:
                self.abort()
            return
        if self._in_head:
            if self._head_bytes == 0:
                self._deadline = self._hub.tick + self._hub.patience.head
            self._head_bytes += len(data)
        try:
            self._parser.feed_data(data)
            if self._in_head and self._head_bytes > MAX_HEAD_BYTES:
                self._refuse("The head of the request is too large.")
        except HttpParserUpgrade as upgrade:
            # Nothing is upgraded: what follows is the next request, as if nobody had asked.
            self._parser = HttpRequestParser(self)
            rest = data[upgrade.args[0] :]
            if rest:
                self.data_received(rest)
        except HttpParserCallbackError:
            _logger.exception("a request could not be taken")
            self.abort()
        except HttpParserError as error:
            self._refuse(f"This is not HTTP/1.1: {error}.")

    def eof_received(self) -> bool:
        """The client sends no more: answer what it sent, if the transport can be half open."""
        self._is_last = self._is_deaf = True
        self._fail_body("The connection closed within the body.")
        if self._hub.secure or not self._queue:
            return False
        self._deadline = 0
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        self._hub.remove(self)
        self._transport = None
        self._is_last = self._is_deaf = True
        self._fail_body("The connection closed within the body.")
        self.resume_writing()

    def pause_writing(self) -> None:
        assert self._transport is not None
        if self._drained is None:
            self._drained = self._loop.create_future()
            self._unwritten_bytes = self._transport.get_write_buffer_size()
            self._deadline = self._hub.tick + self._hub.patience.write

    def resume_writing(self) -> None:
        drained, self._drained = self._drained, None
        if drained is not None and not drained.done():
            drained.set_result(None)
            self._deadline = 0

    def write(self, data: bytes | memoryview) -> None:
        if self._transport is not None:
            self._transport.write(data)

    # ---- the parser ----

    def on_message_begin(self) -> None:
        self._url, self._headers, self._refused = b"", {}, None
        self._field_bytes = 0

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._in_head:  # A trailer of the transfer: nothing of ours.
            self._head_bytes += len(name) + len(value)
            if self._head_bytes > MAX_HEAD_BYTES:
                self._refuse("The trailers of the request are too large.")
            return
        self._field_bytes += len(name) + len(value) + 4
        key, text = name.decode("latin-1").lower(), value.decode("latin-1")
        headers = self._headers
        if key in headers:
            if key in ("host", "transfer-encoding"):
                self._refused = RequestError("BadRequest", f"There are two {key} headers.")
            text = f"{headers[key]},{text}"
        headers[key] = text

    def on_headers_complete(self) -> None:
        if self._is_deaf:
            return
        parser, headers = self._parser, self._headers
        version = parser.get_http_version()
        is_http_10 = version == "1.0"
        method = parser.get_method()
        refused = self._refused or objection(version, method, self._url, headers)
        if self._field_bytes + len(self._url) > MAX_HEAD_BYTES:
            refused = RequestError("BadRequest", "The head of the request is too large.")
        path, _, query = self._url.partition(b"?")
        if not path.startswith(b"/") and refused is None:
            path, refused = absolute_target(path, headers.get("host", ""))
        expects = headers.get("expect", "").lower() == "100-continue" and not is_http_10
        body = BodyStream(self, expects=expects)
        request = Request(
            method.decode("latin-1"),
            path,
            query,
            headers,
            body,
            source_ip=self._source_ip,
            secure=self._hub.secure,
        )
        keep_alive = refused is None and parser.should_keep_alive()
        exchange = _Exchange(request, body, keep_alive, is_http_10, refused)
        self._in_head, self._head_bytes = False, 0
        self._receiving = exchange
        self._is_deaf = refused is not None
        self._enqueue(exchange)

    def on_body(self, data: bytes) -> None:
        receiving = self._receiving
        if receiving is None:
            self._deadline = self._hub.tick + self._hub.patience.body  # Read and forgotten.
            return
        body = receiving.body
        body.feed(data)
        if body.size > BODY_BYTES:
            self.update_reading()

    def on_message_complete(self) -> None:
        if self._receiving is not None:
            self._receiving.body.end()
            self._receiving = None
        if self._is_deaf:
            return
        self._in_head, self._head_bytes = True, 0
        if not self._queue:
            self._rest()

    def _refuse(self, why: str, code: str = "BadRequest") -> None:
        """Answer 400 to what cannot be read any further, behind the answers that are due."""
        if self._is_deaf:
            return
        self._is_deaf = True
        error = RequestError(code, why)
        if self._receiving is not None:
            receiving, self._receiving = self._receiving, None
            receiving.keep_alive = False
            receiving.body.fail(error)
            return
        if not self._in_head:  # Within a body whose request was answered.
            self._close(is_sending=True)
            return
        self._in_head = False
        body = BodyStream(self, expects=False)
        request = Request("", b"/", b"", {}, body)
        self._enqueue(_Exchange(request, body, False, False, error))

    def _fail_body(self, why: str) -> None:
        if self._receiving is not None:
            self._receiving.keep_alive = False
            self._receiving.body.fail(RequestError("IncompleteBody", why))

    # ---- flow ----

    def new_body_waiter(self) -> asyncio.Future[None]:
        self._deadline = self._hub.tick + self._hub.patience.body
        return self._loop.create_future()

    def tell_to_continue(self) -> None:
        """Send the interim response that the client waits for."""
        self.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def update_reading(self) -> None:
        """Receive or not, as there is room."""
        receiving = self._receiving
        is_full = len(self._queue) > 1 or (
            receiving is not None and receiving.body.size > BODY_BYTES
        )
        transport = self._transport
        if is_full is self._is_paused or transport is None or transport.is_closing():
            return
        self._is_paused = is_full
        if is_full:
            transport.pause_reading()
        else:
            transport.resume_reading()

    def check_deadline(self) -> None:
        """Called at every tick."""
        if not self._deadline or self._hub.tick < self._deadline or self._transport is None:
            return
        if self._drained is not None:
            unwritten_bytes = self._transport.get_write_buffer_size()
            if unwritten_bytes < self._unwritten_bytes:
                self._unwritten_bytes = unwritten_bytes
                self._deadline = self._hub.tick + self._hub.patience.write
            else:
                self._transport.abort()
        elif self._receiving is not None and self._receiving.body.is_waited_for:
            self._receiving.keep_alive = False
            self._receiving.body.fail(RequestError("RequestTimeout", _TIMED_OUT))
        elif self._queue:
            self._deadline = 0  # The handler is at work.
        elif self._is_deaf or not self._head_bytes or self._receiving is not None:
            self._transport.abort()
        else:
            self._refuse("The head of the request did not come in time.", "RequestTimeout")

    def shut(self) -> None:
        """Answer what was asked, then close. Who has just come may ask once."""
        if self._transport is None:
            return
        self._is_last = True
        if self._is_new:
            self._deadline = self._hub.tick + self._hub.patience.linger
        elif not self._queue:
            self._transport.close()

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    # ---- answers ----

    def _enqueue(self, exchange: _Exchange) -> None:
        self._queue.append(exchange)
        self._deadline = 0
        self._is_new = False
        if len(self._queue) == 1:
            self._begin(exchange)
        else:
            self.update_reading()

    def _begin(self, exchange: _Exchange) -> None:
        self._hub.run(self._loop.create_task(self._answer(exchange)))

    async def _answer(self, exchange: _Exchange) -> None:
        try:
            if exchange.refused is not None:
                response = refusal(exchange.refused, has_body=exchange.request.method != "HEAD")
            else:
                response = await self._hub.handle(exchange.request)
            await self._send(exchange, response)
        except asyncio.CancelledError:
            self.abort()
            raise
        except Exception:
            _logger.exception("a connection failed")
            self.abort()
        finally:
            self._end(exchange)

    async def _send(self, exchange: _Exchange, response: Response) -> None:
        sent_bytes = 0
        try:
            content = response.content
            is_last = (self._is_last or self._hub.stopping) and len(self._queue) == 1
            if is_last or response.close or exchange.body.expects:
                # Who was not told to continue may or may not send its body now: start afresh.
                exchange.keep_alive = False
            length = response.length
            if length is None:
                assert isinstance(content, bytes), "the length of a response is known"
                length = len(content)
            head = head_of(
                response,
                length,
                self._hub.date_line,
                keep_alive=exchange.keep_alive,
                is_http_10=exchange.is_http_10,
            )
            if exchange.request.method == "HEAD" or response.status in (204, 304):
                self.write(head)
            elif isinstance(content, bytes):
                assert len(content) == length
                if length <= BODY_BYTES:
                    self.write(head + content)
                else:
                    self.write(head)
                    self.write(content)
                if self._transport is not None:
                    sent_bytes = length
                if self._drained is not None:
                    await self._drained
            else:
                self.write(head)
                sent_bytes = await self._send_pieces(exchange, response, length)
        finally:
            if response.on_sent is not None:
                response.on_sent(sent_bytes)

    async def _send_pieces(self, exchange: _Exchange, response: Response, length: int) -> int:
        """Send until the end, or until the client is gone or the store cannot go on.

        In the latter case the response is left unfinished: the connection closes, and the client
        sees that bytes are missing.
        """
        pieces: Any = response.content
        sent_bytes = 0
        try:
            async for piece in pieces:
                if self._transport is None or self._transport.is_closing():
                    break
                self._transport.write(piece)
                sent_bytes += len(piece)
                if self._drained is not None:
                    await self._drained
        except GatewayError:
            pass
        finally:
            close = getattr(pieces, "aclose", None)
            if close is not None:
                await close()
        if sent_bytes != length:
            exchange.keep_alive = False
        return sent_bytes

    def _end(self, exchange: _Exchange) -> None:
        """What follows the answer to the first of the queue."""
        assert self._queue[0] is exchange, "answered in turn"
        self._queue.popleft()
        transport = self._transport
        if transport is None:
            self._queue.clear()
            return
        if not exchange.keep_alive:
            self._close(is_sending=not exchange.body.ended)
        elif self._queue:
            self._begin(self._queue[0])
            self.update_reading()
        else:
            if self._receiving is exchange:
                self._receiving = None  # The rest of the body is read and forgotten.
                exchange.body.pieces.clear()
                exchange.body.size = 0
            self._rest()
            self.update_reading()

    def _rest(self) -> None:
        """Wait for the next request."""
        hub = self._hub
        if self._is_last or hub.stopping:
            self._close(is_sending=False)
        elif not self._in_head:
            self._deadline = hub.tick + hub.patience.body
        elif self._head_bytes:
            self._deadline = hub.tick + hub.patience.head
        else:
            self._deadline = hub.tick + hub.patience.idle

    def _close(self, *, is_sending: bool) -> None:
        """Close; first let a client that still sends read the answer, which a reset would drop."""
        transport = self._transport
        if transport is None or transport.is_closing():
            return
        self._queue.clear()
        self._receiving = None
        self._is_deaf = self._is_last = True
        if is_sending and transport.can_write_eof():
            transport.write_eof()
            self._deadline = self._hub.tick + self._hub.patience.linger
            self.update_reading()
        else:
            transport.close()
