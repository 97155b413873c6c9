"""Processes that we start and stop, and no others.

Law: a signal goes only to a process that is proven to be ours: its pid, its start time and the
config file in its command line are those recorded when it was started. Pids are reused; the triple
is not.
"""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import psutil

from exastore.deploy.files import read_json_object, write_json
from exastore.deploy.layout import ClusterPaths

#: Start times come from a coarse clock; a reused pid within it would need the same config too.
START_TIME_TOLERANCE_S = 2.0

#: Signals that end a command.
_ENDING = (signal.SIGINT, signal.SIGTERM)

#: Pids of our own children whose end was not seen yet: they stay zombies until we ask.
_unreaped: set[int] = set()


@dataclass(frozen=True, slots=True)
class Child:
    """A process started by us, in this run or an earlier one."""

    name: str
    pid: int
    start_time_s: float
    config: str

    def process(self) -> psutil.Process | None:
        """The live process, or None when it is gone or the pid is someone else's."""
        if self.pid in _unreaped and _reap(self.pid):
            return None
        try:
            process = psutil.Process(self.pid)
            if process.status() == psutil.STATUS_ZOMBIE:
                return None
            same_start = abs(process.create_time() - self.start_time_s) < START_TIME_TOLERANCE_S
            return process if same_start and self.config in process.cmdline() else None
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            return None

    @property
    def alive(self) -> bool:
        return self.process() is not None

    def send(self, number: signal.Signals) -> bool:
        """Send a signal; false when the process is gone."""
        process = self.process()
        if process is None:
            return False
        with suppress(psutil.NoSuchProcess):
            process.send_signal(number)
            return True
        return False


def service_command(name: str, config: Path) -> list[str]:
    """How the process `name` of a cluster is started."""
    noun = name.partition("-")[0]
    return [sys.executable, "-m", "exastore.deploy", noun, "run", "--config", str(config)]


def service_environment() -> dict[str, str]:
    """Ours, without proxies: gRPC would send even loopback calls through one."""
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    return {
        name: value for name, value in environment.items() if not name.lower().endswith("_proxy")
    }


def spawn(paths: ClusterPaths, name: str) -> Child:
    """Start a process in a session of its own, so that it outlives this command, and record it."""
    with _uninterrupted():
        return _spawn(paths, name)


@contextmanager
def _uninterrupted() -> Generator[None]:
    """Hold SIGINT and SIGTERM back: a process that was started and not recorded would be lost.

    Handlers of Python are held back, not the signals: a blocked signal would stay blocked in the
    process that is started.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    arrived: list[int] = []

    def note(number: int, _frame: FrameType | None) -> None:
        arrived.append(number)

    with _blocked():
        before = {number: signal.signal(number, note) for number in _ENDING}
    try:
        yield
    finally:
        with _blocked():
            for number, handler in before.items():
                signal.signal(number, handler)
        if arrived:
            signal.raise_signal(arrived[0])


@contextmanager
def _blocked() -> Generator[None]:
    """While handlers change: a handler that raises in between would leave the other one behind."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    try:
        signal.pthread_sigmask(signal.SIG_BLOCK, _ENDING)
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _spawn(paths: ClusterPaths, name: str) -> Child:
    paths.ready(name).unlink(missing_ok=True)
    config = paths.config(name)
    with paths.log(name).open("ab") as output:
        handle = subprocess.Popen(
            service_command(name, config),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            cwd=paths.root,
            env=service_environment(),
            start_new_session=True,
        )
    # The process outlives this command, and `_reap` asks for its end: the handle has no say in it,
    # and would otherwise complain, when it is collected, that the process still runs.
    handle.returncode = 0
    _unreaped.add(handle.pid)
    try:
        start_time_s = psutil.Process(handle.pid).create_time()
    except psutil.NoSuchProcess:
        start_time_s = 0.0
    child = Child(name, handle.pid, start_time_s, str(config))
    record = {"pid": child.pid, "start_time_s": start_time_s, "config": child.config}
    write_json(paths.pid(name), record)
    return child


def _reap(pid: int) -> bool:
    """Whether a child of ours has ended; takes its zombie away."""
    try:
        has_ended = os.waitpid(pid, os.WNOHANG)[0] == pid
    except ChildProcessError:  # somebody else has taken it away
        has_ended = True
    if has_ended:
        _unreaped.discard(pid)
    return has_ended


def recorded(paths: ClusterPaths, name: str) -> Child | None:
    """The process that was started last under this name, alive or not."""
    record = read_json_object(paths.pid(name))
    match record:
        case {"pid": int(pid), "start_time_s": float(start), "config": str(config)}:
            return Child(name, pid, start, config)
        case _:
            return None


def stop(
    children: Sequence[Child],
    *,
    grace_s: float,
    now_s: Callable[[], float],
    sleep: Callable[[float], None],
) -> list[str]:
    """Ask these to end, wait, and kill those that do not.

    Returns:
        Names of those that had to be killed.
    """
    waiting = [child for child in children if child.send(signal.SIGTERM)]
    deadline_s = now_s() + grace_s
    while (waiting := [child for child in waiting if child.alive]) and now_s() < deadline_s:
        sleep(0.05)
    killed = [child for child in waiting if child.send(signal.SIGKILL)]
    deadline_s = now_s() + 5.0
    while any(child.alive for child in killed) and now_s() < deadline_s:
        sleep(0.02)
    return [child.name for child in killed]
