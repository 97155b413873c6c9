"""The HTTP server under the S3 front: uvicorn with httptools, inside the caller's event loop.

Replacing it means replacing this file (see docs/adr/0004-http-server.md).
"""

import asyncio
import contextlib
import errno
import math
import socket
from collections.abc import Generator
from typing import Any

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from exastore.gateway.s3.asgi import AsgiApp

#: Idle connections stay so long: longer than the pools of SDKs take to come back.
KEEP_ALIVE_S = 75
_BACKLOG = 2048

#: The most bytes of a request's line and headers; the parser itself has no limit.
MAX_HEAD_BYTES = 64 * 1024


class AddressInUse(OSError):
    """Another process listens there already."""

    def __init__(self, address: str) -> None:
        super().__init__(errno.EADDRINUSE, f"the address {address} is in use")
        self.address = address


class BadAddress(ValueError):
    """An address that is not host:port."""


class BadCertificate(ValueError):
    """A certificate or key that TLS cannot use."""


def parse_address(address: str) -> tuple[str, int]:
    """Split host:port; an IPv6 host is in brackets.

    Raises:
        BadAddress: When it is something else.
    """
    host, colon, port = address.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not colon or not host or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise BadAddress(f"{address!r} is not an address: expected host:port")
    return host, int(port)


def bind(address: str, *, share_port: bool = False) -> socket.socket:
    """A socket bound to host:port.

    Args:
        share_port: Let others who ask for this, too, bind the same port.

    Raises:
        AddressInUse: When another process listens there.
        OSError: When the host is unknown or not of this machine.
    """
    host, port = parse_address(address)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        bound = socket.create_server(
            (host, port), family=family, backlog=_BACKLOG, reuse_port=share_port
        )
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise AddressInUse(address) from None
        raise OSError(error.errno, f"cannot listen on {address}: {error.strerror}") from None
    bound.setblocking(False)
    return bound


class _Protocol(HttpToolsProtocol):
    """A connection that refuses heads without end."""

    #: Bytes received of a head that is not complete; whole reads, so it may count a body's start.
    _head_bytes = 0
    _in_head = True

    def data_received(self, data: bytes) -> None:
        if self._in_head:
            self._head_bytes += len(data)
            if self._head_bytes > MAX_HEAD_BYTES + len(data):
                self.send_400_response("The head of the request is too large.")
                return
        super().data_received(data)

    def on_headers_complete(self) -> None:
        self._in_head = False
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        self._in_head, self._head_bytes = True, 0
        super().on_message_complete()


class _Server(uvicorn.Server):
    """A uvicorn that leaves signals alone and says when it serves."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.serving = asyncio.Event()

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.serving.set()


class HttpServer:
    """Serves an ASGI application until stopped."""

    def __init__(
        self,
        app: AsgiApp,
        address: str,
        *,
        share_port: bool = False,
        tls_certificate: str = "",
        tls_key: str = "",
    ) -> None:
        """Args:
        share_port: Let other processes that ask for this, too, serve at the same address.
        tls_certificate: PEM file of the certificate chain; "" serves without TLS.
        tls_key: PEM file of its key.
        """
        self._app: Any = app  # Its own words for ASGI's types are not uvicorn's.
        self._address = address
        self._share_port = share_port
        self._tls_certificate = tls_certificate or None
        self._tls_key = tls_key or None
        self._server: _Server | None = None
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> str:
        """Bind and serve; returns host:port with the port that was taken.

        Raises:
            AddressInUse: When another process listens there.
            BadCertificate: When the files are not there, not PEM, or do not fit.
        """
        config = uvicorn.Config(
            self._app,
            http=_Protocol,
            ws="none",
            lifespan="off",
            interface="asgi3",
            log_config=None,
            log_level="warning",
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=KEEP_ALIVE_S,
            ssl_certfile=self._tls_certificate,
            ssl_keyfile=self._tls_key,
        )
        try:
            config.load()
        except OSError as error:  # ssl.SSLError among them
            raise BadCertificate(
                f"cannot use the certificate {self._tls_certificate} "
                f"with the key {self._tls_key}: {error}"
            ) from error
        bound = bind(self._address, share_port=self._share_port)
        host, port = bound.getsockname()[:2]
        self._server = _Server(config)
        self._task = asyncio.create_task(self._server.serve(sockets=[bound]))
        waiter = asyncio.create_task(self._server.serving.wait())
        await asyncio.wait((self._task, waiter), return_when=asyncio.FIRST_COMPLETED)
        if self._task.done():
            waiter.cancel()
            await self._task
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    async def stop(self, grace_s: float = 5.0) -> None:
        """Take no more connections, let requests end for `grace_s` seconds, then cut them off."""
        if self._server is None or self._task is None:
            return
        self._server.config.timeout_graceful_shutdown = math.ceil(grace_s)
        self._server.should_exit = True
        await self._task
        self._server = self._task = None
