"""The shell of a process: ready file, metrics, signals, errors."""

import asyncio
import errno
import json
import logging
import os
import signal
import urllib.request
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, Counter

from exastore.deploy.config import ProcessConfig
from exastore.deploy.errors import BadInput, EnvironmentUnfit, ExitCode
from exastore.deploy.logs import LineFormatter
from exastore.deploy.process import run_process, serve_metrics, split_address


class FakeService:
    """Counts its life, and asks for its own end once it serves and the ready file is there."""

    def __init__(self, registry: CollectorRegistry, ready_file: Path) -> None:
        self.requests = Counter("exastore_fake_requests", "Requests.", registry=registry)
        self.ready_file = ready_file
        self.scraped = ""
        self.ready: object = None
        self.stopped_with_s = 0.0
        self.task: asyncio.Task[None] | None = None

    async def start(self) -> str:
        self.requests.inc()
        self.task = asyncio.create_task(self.end())
        return "127.0.0.1:4321"

    async def end(self) -> None:
        while not self.ready_file.exists():
            await asyncio.sleep(0.001)
        self.ready = json.loads(self.ready_file.read_text())
        assert isinstance(self.ready, dict)
        url = f"http://{self.ready['metrics']}/metrics"
        self.scraped = await asyncio.to_thread(scrape, url)
        os.kill(os.getpid(), signal.SIGTERM)

    async def stop(self, grace_s: float = 5.0) -> None:
        self.stopped_with_s = grace_s
        assert self.task is not None
        await self.task


def scrape(url: str) -> str:
    with urllib.request.urlopen(url, timeout=10) as response:
        text: bytes = response.read()
    return text.decode()


@pytest.fixture(autouse=True)
def _logging_is_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    def keep_logging(level: str) -> None:
        pass

    monkeypatch.setattr("exastore.deploy.process.set_up_logging", keep_logging)
    monkeypatch.setattr("faulthandler.enable", lambda: None)


@pytest.mark.parametrize("use_uvloop", [False, True])
def test_a_process_serves_until_sigterm(tmp_path: Path, use_uvloop: bool) -> None:
    ready_file = tmp_path / "ready.json"
    process = ProcessConfig(ready_file=str(ready_file), stop_grace_s=2.5, use_uvloop=use_uvloop)
    services: list[FakeService] = []

    def build(registry: CollectorRegistry) -> FakeService:
        services.append(FakeService(registry, ready_file))
        return services[0]

    assert run_process("node", "127.0.0.1:0", process, build) == ExitCode.OK
    service = services[0]
    assert isinstance(service.ready, dict)
    assert service.ready["pid"] == os.getpid()
    assert service.ready["address"] == "127.0.0.1:4321"
    assert service.stopped_with_s == 2.5
    assert not ready_file.exists(), "a stopped process is not ready"
    for name in ("exastore_fake_requests_total 1.0", "process_cpu_seconds", "python_info"):
        assert name in service.scraped
    assert 'exastore_deploy_build_info{python="' in service.scraped


class FailingService:
    """Cannot bind."""

    async def start(self) -> str:
        raise OSError(errno.EADDRINUSE, "Address already in use")

    async def stop(self, grace_s: float = 5.0) -> None:
        raise AssertionError("it never started")


def test_a_taken_address_is_an_error_of_the_machine() -> None:
    with pytest.raises(EnvironmentUnfit, match=r"127\.0\.0\.1:80 is in use") as caught:
        run_process("node", "127.0.0.1:80", ProcessConfig(), lambda _registry: FailingService())
    assert "port 0" in caught.value.hint


def test_a_taken_metrics_port_is_named() -> None:
    first = serve_metrics("127.0.0.1:0", CollectorRegistry())
    try:
        with pytest.raises(EnvironmentUnfit, match=f"{first.address} is in use") as caught:
            serve_metrics(first.address, CollectorRegistry())
        assert "metrics_address" in caught.value.hint
    finally:
        first.stop()


@pytest.mark.parametrize("text", ["localhost", ":80", "host:port", "host:99999", ""])
def test_what_is_not_an_address_is_refused(text: str) -> None:
    with pytest.raises(BadInput, match="is not an address"):
        split_address(text)


def test_an_event_is_one_line_even_with_a_traceback() -> None:
    try:
        raise ValueError("two\nlines")
    except ValueError as error:
        info = (ValueError, error, error.__traceback__)
    record = logging.LogRecord("exastore.x", logging.ERROR, "f", 1, "it %s", ("broke",), info)
    line = LineFormatter().format(record)
    assert "\n" not in line
    assert " ERROR exastore.x it broke exception=" in line
    assert "ValueError: two" in line
