"""The shell around one service: event loop, metrics, ready file, signals, exit code.

Theory of operation: build the service from its config, start it, serve metrics, write the ready
file, wait for SIGTERM or SIGINT, remove the ready file, stop the service within its grace. A second
signal ends the process at once.
"""

import asyncio
import ctypes
import errno
import faulthandler
import logging
import os
import platform
import signal
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from socket import gaierror
from threading import Thread
from typing import Protocol
from wsgiref.simple_server import WSGIServer

import prometheus_client
from prometheus_client import CollectorRegistry

from exastore.deploy.config import ProcessConfig
from exastore.deploy.errors import BadInput, DeployError, EnvironmentUnfit, ExitCode
from exastore.deploy.failpoints import listen_if_asked
from exastore.deploy.files import write_json
from exastore.deploy.logs import set_up_logging
from exastore.deploy.version import version
from exastore.proto.channel import keep_grpc_running

log = logging.getLogger(__name__)

#: glibc's M_MMAP_THRESHOLD, M_TRIM_THRESHOLD and M_ARENA_MAX (malloc.h).
_MALLOC_OPTIONS = {-3: 32 << 20, -1: 64 << 20, -8: 4}


class Service(Protocol):
    """What every room's server offers."""

    async def start(self) -> str:
        """Bind and serve; the address as host:port."""
        ...

    async def stop(self, grace_s: float = 5.0) -> None:
        """Finish what is in flight, for at most `grace_s` seconds."""
        ...


@dataclass(frozen=True, slots=True)
class MetricsEndpoint:
    """A running /metrics server."""

    address: str
    server: WSGIServer | None
    thread: Thread | None

    def stop(self) -> None:
        """Close the port and join the thread."""
        if self.server is not None and self.thread is not None:
            self.server.shutdown()
            self.server.server_close()
            self.thread.join()


def new_registry(service: str) -> CollectorRegistry:
    """A registry with the process's own metrics and the build's."""
    registry = CollectorRegistry()
    prometheus_client.ProcessCollector(registry=registry)
    prometheus_client.PlatformCollector(registry=registry)
    prometheus_client.GCCollector(registry=registry)
    build = prometheus_client.Gauge(
        "exastore_deploy_build_info",
        "Always 1; the labels say what runs here.",
        ("service", "version", "python"),
        registry=registry,
    )
    build.labels(service, version(), platform.python_version()).set(1)
    return registry


def serve_metrics(address: str, registry: CollectorRegistry) -> MetricsEndpoint:
    """Serve `registry` at `address`; empty serves nothing."""
    if not address:
        return MetricsEndpoint("", None, None)
    host, port = split_address(address)
    try:
        server, thread = prometheus_client.start_http_server(port, host, registry)
    except OSError as error:
        raise address_error(address, error, "metrics_address") from error
    return MetricsEndpoint(f"{host}:{server.server_port}", server, thread)


def split_address(address: str) -> tuple[str, int]:
    """Host and port of "host:port"."""
    host, colon, port = address.rpartition(":")
    if not colon or not host or not port.isdecimal() or int(port) > 65535:
        raise BadInput(f'"{address}" is not an address: write host:port, for example 127.0.0.1:0')
    return host.strip("[]"), int(port)


def address_error(address: str, error: OSError, option: str) -> DeployError:
    """An error of bind() in words."""
    if error.errno == errno.EADDRINUSE or "in use" in str(error):
        return EnvironmentUnfit(
            f"{address} is in use by another process",
            hint=f"choose another {option}, or port 0 for any free one",
        )
    if error.errno in (errno.EADDRNOTAVAIL, errno.EACCES) or isinstance(error, gaierror):
        return EnvironmentUnfit(f"cannot listen on {address}: {error}", hint=f"check {option}")
    return EnvironmentUnfit(f"cannot start: {error}")


def keep_freed_memory() -> None:
    """Let the C library reuse freed buffers instead of giving them back to the system.

    By default each buffer of a chunk is mapped anew, which costs a page fault per 4 KiB, more than
    to copy it: 155 faults and 0.3 ms per MiB received. What is kept is at most what was in use.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        for parameter, value in _MALLOC_OPTIONS.items():
            mallopt(parameter, value)


def run_process(
    name: str,
    address: str,
    process: ProcessConfig,
    build: Callable[[CollectorRegistry], Service],
    start_errors: tuple[type[Exception], ...] = (ValueError,),
) -> ExitCode:
    """Run one service until a signal ends it.

    Args:
        name: "metadata", "node" or "gateway".
        address: Where the service was told to listen, for error messages.
        process: How to run.
        build: Makes the service, given the registry for its metrics.
        start_errors: With what, beside OSError, the service says that it cannot start.

    Raises:
        DeployError: It could not start.
    """
    faulthandler.enable()
    keep_freed_memory()
    set_up_logging(process.log_level)
    listen_if_asked(os.environ)
    factory = asyncio.new_event_loop
    if process.use_uvloop:
        import uvloop

        factory = uvloop.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        return runner.run(_serve(name, address, process, build, start_errors))


async def _serve(
    name: str,
    address: str,
    process: ProcessConfig,
    build: Callable[[CollectorRegistry], Service],
    start_errors: tuple[type[Exception], ...] = (ValueError,),
) -> ExitCode:
    keep_grpc_running()
    registry = new_registry(name)
    try:
        service = build(registry)
        bound = await service.start()
    except OSError as error:
        raise address_error(address, error, "address") from error
    except start_errors as error:
        raise DeployError(f"the {name} process cannot start: {error}") from error
    metrics = None
    try:
        metrics = serve_metrics(process.metrics_address, registry)
        _write_ready_file(process.ready_file, name, bound, metrics.address)
        log.info("%s %s serves at %s, metrics at %s", name, version(), bound, metrics.address)
        await _wait_for_signal()
        log.info("stopping: requests in flight have %.1f s", process.stop_grace_s)
    finally:
        if process.ready_file:
            Path(process.ready_file).unlink(missing_ok=True)
        await service.stop(process.stop_grace_s)
        if metrics is not None:
            metrics.stop()
    log.info("stopped")
    return ExitCode.OK


def _write_ready_file(path: str, name: str, address: str, metrics: str) -> None:
    if path:
        value = {"service": name, "pid": os.getpid(), "address": address, "metrics": metrics}
        write_json(Path(path), value)


async def _wait_for_signal() -> None:
    """Return at the first SIGTERM or SIGINT; a second one ends the process at once."""
    loop = asyncio.get_running_loop()
    asked = asyncio.Event()

    def handle(number: signal.Signals) -> None:
        log.info("received %s", number.name)
        asked.set()
        loop.remove_signal_handler(number)
        with suppress(ValueError):
            signal.signal(number, signal.SIG_DFL)

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, handle, number)
    await asked.wait()
