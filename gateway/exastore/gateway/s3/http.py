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

from exastore.gateway.s3.asgi import AsgiApp

#: Idle connections stay so long: longer than the pools of SDKs take to come back.
KEEP_ALIVE_S = 75
_BACKLOG = 2048


class AddressInUse(OSError):
    """Another process listens there already."""

    def __init__(self, address: str) -> None:
        super().__init__(errno.EADDRINUSE, f"the address {address} is in use")
        self.address = address


class BadAddress(ValueError):
    """An address that is not host:port."""


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


def bind(address: str) -> socket.socket:
    """A socket bound to host:port.

    Raises:
        AddressInUse: When another process listens there.
        OSError: When the host is unknown or not of this machine.
    """
    host, port = parse_address(address)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        bound = socket.create_server((host, port), family=family, backlog=_BACKLOG)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise AddressInUse(address) from None
        raise OSError(error.errno, f"cannot listen on {address}: {error.strerror}") from None
    bound.setblocking(False)
    return bound


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

    def __init__(self, app: AsgiApp, address: str) -> None:
        self._app: Any = app  # Its own words for ASGI's types are not uvicorn's.
        self._address = address
        self._server: _Server | None = None
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> str:
        """Bind and serve; returns host:port with the port that was taken.

        Raises:
            AddressInUse: When another process listens there.
        """
        bound = bind(self._address)
        host, port = bound.getsockname()[:2]
        config = uvicorn.Config(
            self._app,
            http="httptools",
            ws="none",
            lifespan="off",
            interface="asgi3",
            log_config=None,
            log_level="warning",
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=KEEP_ALIVE_S,
        )
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
