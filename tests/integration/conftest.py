"""Clusters of real processes for the integration tests.

`cluster` is shared by a whole run: tests may store in it, each in a bucket of its own, but must not
harm it. `new_cluster` makes clusters that a test may treat as it likes. All are always stopped.
"""

import io
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import boto3
import psutil
import pytest
from botocore.config import Config
from tests.support.s3_front import Front, new_bucket, serving_front

from exastore.deploy.cli import main
from exastore.deploy.layout import ClusterFile
from exastore.deploy.status import StatusView, fetch_status

EXASTORE = (sys.executable, "-m", "exastore.deploy")
COMMAND_TIMEOUT_S = 150
WAIT_TIMEOUT_S = 90

#: No configuration, credential or metadata service of the machine is consulted.
ISOLATED = {
    "AWS_EC2_METADATA_DISABLED": "true",
    "AWS_CONFIG_FILE": os.devnull,
    "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
}


@dataclass(frozen=True)
class CommandResult:
    """What a command did."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    @property
    def text(self) -> str:
        """Everything printed, in one line."""
        return " ".join((self.out + self.err).split())


def run_command(*arguments: str | Path, env: dict[str, str] | None = None) -> CommandResult:
    """Run a program to its end."""
    done = subprocess.run(
        [str(argument) for argument in arguments],
        env={**os.environ, **ISOLATED, "COLUMNS": "200", **(env or {})},
        capture_output=True,
        text=True,
        timeout=COMMAND_TIMEOUT_S,
        check=False,
    )
    return CommandResult(done.returncode, done.stdout, done.stderr)


def exastore(*arguments: str | Path) -> CommandResult:
    """Run the `exastore` command as a process of its own."""
    return run_command(*EXASTORE, *arguments)


def exastore_here(*arguments: str | Path) -> CommandResult:
    """Run the `exastore` command in this process: the same, without waiting for imports."""
    out, err = io.StringIO(), io.StringIO()
    argv = ["exastore", *(str(argument) for argument in arguments)]
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.setenv("COLUMNS", "200")
        patch.setattr(sys, "argv", argv)
        with pytest.raises(SystemExit) as ended:
            main()
    code = ended.value.code
    return CommandResult(code if isinstance(code, int) else 0, out.getvalue(), err.getvalue())


def wait_until(condition: Callable[[], bool], what: str, timeout_s: float = WAIT_TIMEOUT_S) -> None:
    """Poll until a condition holds."""
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline_s, f"not within {timeout_s} s: {what}"
        time.sleep(0.1)


@dataclass
class LiveCluster:
    """A cluster that serves."""

    directory: Path
    info: ClusterFile
    #: Clients made here; closed at the end.
    clients: list[Any] = field(default_factory=list[Any])

    def client(self, **overrides: str) -> Any:
        """A boto3 client; `overrides` replace its keys."""
        s3 = self.info["s3"]
        client = boto3.client(
            "s3",
            endpoint_url=s3["endpoint"],
            aws_access_key_id=overrides.get("access_key", s3["access_key"]),
            aws_secret_access_key=overrides.get("secret_key", s3["secret_key"]),
            region_name="us-east-1",
            config=Config(
                retries={"max_attempts": 4, "mode": "standard"},
                s3={"addressing_style": "path"},
                max_pool_connections=20,
                proxies={},
                # Presigned URLs are of the old signature version unless asked for.
                signature_version="s3v4",
            ),
        )
        self.clients.append(client)
        return client

    def close(self) -> None:
        """Close the clients."""
        for client in self.clients:
            client.close()

    def aws_env(self) -> dict[str, str]:
        """For programs that take their keys from the environment."""
        s3 = self.info["s3"]
        return {
            "AWS_ACCESS_KEY_ID": s3["access_key"],
            "AWS_SECRET_ACCESS_KEY": s3["secret_key"],
            "AWS_REGION": "us-east-1",
            "AWS_DEFAULT_REGION": "us-east-1",
        }

    def run(self, *arguments: str | Path) -> CommandResult:
        """Run an `exastore` command on this cluster."""
        return exastore_here(*arguments, "--dir", self.directory)

    def status(self) -> StatusView:
        return fetch_status([server["address"] for server in self.info["metadata"]])

    def up_again(self) -> None:
        """Start what does not run."""
        self.info = started(exastore("cluster", "up", "--dir", self.directory, "--json"))


def started(result: CommandResult) -> ClusterFile:
    """What `cluster up --json` printed."""
    assert result.code == 0, result.out + result.err
    info: ClusterFile = result.json
    return info


def processes_of(directory: Path) -> list[list[str]]:
    """Command lines of processes that run with a config in a folder."""
    return [
        process.info["cmdline"]
        for process in psutil.process_iter(["cmdline", "status"])
        if process.info["status"] != psutil.STATUS_ZOMBIE
        and any(f"{directory}/" in argument for argument in process.info["cmdline"] or [])
    ]


@contextmanager
def running_cluster(directory: Path, *options: str) -> Generator[LiveCluster]:
    """A cluster in `directory`, stopped at the end."""
    try:
        info = started(exastore("cluster", "up", "--dir", directory, "--json", *options))
        live = LiveCluster(directory, info)
        try:
            yield live
        finally:
            live.close()
    finally:
        if (directory / "spec.toml").exists():
            stopped = exastore("cluster", "down", "--dir", directory, "--json")
            assert stopped.code == 0, stopped.err
            assert processes_of(directory) == []


@pytest.fixture(scope="module")
def front() -> Iterator[Front]:
    """The front over a dictionary."""
    with serving_front() as made:
        yield made


@pytest.fixture
def bucket(front: Front, request: pytest.FixtureRequest) -> str:
    """A bucket of that front for the test alone, with one object."""
    return new_bucket(front, request.node.nodeid)


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveCluster]:
    """One cluster for the whole run, of 8 nodes and rs-4-2. Do not harm it."""
    directory = tmp_path_factory.mktemp("shared") / "cluster"
    with running_cluster(directory) as live:
        yield live


class NewCluster(Protocol):
    """Starts a cluster of the test's own."""

    def __call__(self, *options: str) -> LiveCluster: ...


@pytest.fixture
def new_cluster(tmp_path: Path) -> Iterator[NewCluster]:
    """Makes clusters that the test may treat as it likes."""
    with ExitStack() as stack:
        count = iter(range(100))

        def make(*options: str) -> LiveCluster:
            directory = tmp_path / f"cluster-{next(count)}"
            return stack.enter_context(running_cluster(directory, *options))

        yield make
