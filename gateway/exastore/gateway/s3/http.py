"""The HTTP server under the S3 front: its socket, its one timer, its end.

The connections are in `http_connection`; why it is ours: docs/adr/0004-http-server.md.
"""

import asyncio
import errno
import socket
import ssl
from collections.abc import Awaitable
from contextlib import suppress
from email.utils import formatdate

from exastore.gateway.s3.http_connection import HttpConnection
from exastore.gateway.s3.http_hub import Handle, Hub, Patience
from exastore.metadata.core.clock import Clock

_BACKLOG = 2048
_TLS_HANDSHAKE_S = 20.0
#: What requests that are cut off may take to end.
_CUT_OFF_S = 5.0


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


class HttpServer:
    """Serves requests until stopped."""

    def __init__(
        self,
        handle: Handle,
        address: str,
        *,
        clock: Clock,
        share_port: bool = False,
        tls_certificate: str = "",
        tls_key: str = "",
        patience: Patience | None = None,
        tick_s: float = 1.0,
    ) -> None:
        """Args:
        handle: Answers a request.
        share_port: Let other processes that ask for this, too, serve at the same address.
        tls_certificate: PEM file of the certificate chain; "" serves without TLS.
        tls_key: PEM file of its key.
        patience: How long clients may take, in ticks.
        tick_s: Seconds between ticks; a Date header is at most so old.
        """
        self._address = address
        self._clock = clock
        self._share_port = share_port
        self._tls_certificate = tls_certificate
        self._tls_key = tls_key
        self._tick_s = tick_s
        self._hub = Hub(handle, patience or Patience(), secure=bool(tls_certificate))
        #: All are None until started and again once stopped.
        self._socket: socket.socket | None = None
        self._server: asyncio.Server | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._tls: ssl.SSLContext | None = None

    async def start(self) -> str:
        """Bind and serve; returns host:port with the port that was taken.

        Raises:
            AddressInUse: When another process listens there.
            BadCertificate: When the files are not there, not PEM, or do not fit.
        """
        if self._tls_certificate:
            self._tls = _tls_context(self._tls_certificate, self._tls_key)
        self._socket = bind(self._address, share_port=self._share_port)
        host, port = self._socket.getsockname()[:2]
        loop = asyncio.get_running_loop()
        self._hub.stopping = False
        self._tick(loop)
        self._server = await loop.create_server(
            lambda: HttpConnection(self._hub, loop),
            sock=self._socket,
            backlog=_BACKLOG,
            ssl=self._tls,
            ssl_handshake_timeout=_TLS_HANDSHAKE_S if self._tls else None,
        )
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    def _tick(self, loop: asyncio.AbstractEventLoop) -> None:
        hub = self._hub
        hub.tick += 1
        hub.date_line = f"Date: {formatdate(self._clock.now_s(), usegmt=True)}\r\n"
        for connection in list(hub.connections):
            connection.check_deadline()
        self._timer = loop.call_later(self._tick_s, self._tick, loop)

    async def stop(self, grace_s: float = 5.0) -> None:
        """Take no more connections, let requests end for `grace_s` seconds, then cut them off."""
        if self._server is None or self._socket is None or self._timer is None:
            return
        hub = self._hub
        hub.stopping = True
        waiting = self._accept_waiting(self._socket)
        self._server.close()
        await asyncio.gather(*waiting, return_exceptions=True)
        for connection in list(hub.connections):
            connection.shut()
        try:
            async with asyncio.timeout(grace_s):
                await hub.wait_until_empty()
        except TimeoutError:
            for connection in list(hub.connections):
                connection.abort()
            for task in list(hub.tasks):
                task.cancel()
            with suppress(TimeoutError):
                async with asyncio.timeout(_CUT_OFF_S):
                    await hub.wait_until_empty()
        self._timer.cancel()
        self._server = self._socket = self._timer = None

    def _accept_waiting(self, bound: socket.socket) -> list[Awaitable[object]]:
        """Take the connections in the kernel's queue, which it resets when the socket closes."""
        loop = asyncio.get_running_loop()
        taken: list[Awaitable[object]] = []
        while True:
            try:
                peer, _ = bound.accept()
            except OSError:
                return taken
            peer.setblocking(False)
            taken.append(
                loop.connect_accepted_socket(
                    lambda: HttpConnection(self._hub, loop),
                    peer,
                    ssl=self._tls,
                    ssl_handshake_timeout=_TLS_HANDSHAKE_S if self._tls else None,
                )
            )


def _tls_context(certificate: str, key: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.set_alpn_protocols(["http/1.1"])
    try:
        context.load_cert_chain(certificate, key or None)
    except OSError as error:  # ssl.SSLError among them
        raise BadCertificate(
            f"cannot use the certificate {certificate} with the key {key}: {error}"
        ) from error
    return context
