"""Failpoints: a process that was started with EXASTORE_FAILPOINTS dies where it is told to.

The variable names a folder. A file in it whose name is a phase (`exastore.metadata.core.phases`)
holds an action; the first process that reaches the phase takes the file, by renaming it to
`PHASE.fired`, notes its pid in there, and does the action:

    kill     SIGKILL to itself: nothing is flushed, no handler runs
    pause    SIGSTOP to itself: all threads stand still until somebody sends SIGCONT
    error    raises OSError(EIO), as a failing disk would

Only for tests: never set the variable where data matters.
"""

import errno
import logging
import os
import signal
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path

from exastore.metadata.core.phases import Phase, listen

VARIABLE = "EXASTORE_FAILPOINTS"

log = logging.getLogger(__name__)


class Action(StrEnum):
    """What happens at a phase."""

    KILL = "kill"
    PAUSE = "pause"
    ERROR = "error"


def listen_if_asked(environment: Mapping[str, str]) -> None:
    """Obey the folder that the environment names; without one, nothing is installed."""
    folder = environment.get(VARIABLE)
    if not folder:
        return
    log.warning("failpoints are on: %s=%s", VARIABLE, folder)
    listen(lambda phase: _obey(Path(folder), phase))


def arm(folder: Path, phase: Phase, action: Action) -> None:
    """Let the first process that reaches `phase` do `action`."""
    (folder / f"{phase}.fired").unlink(missing_ok=True)
    draft = folder / f"{phase}.draft"
    draft.write_text(action)
    draft.rename(folder / phase)


def disarm(folder: Path, phase: Phase) -> None:
    """Take an action back that nobody has done yet."""
    (folder / phase).unlink(missing_ok=True)


def fired_by(folder: Path, phase: Phase) -> int | None:
    """The pid of the process that reached `phase` since it was armed; None: nobody yet."""
    try:
        words = (folder / f"{phase}.fired").read_text().split()
    except FileNotFoundError:
        return None
    return int(words[1]) if len(words) > 1 else None


def _obey(folder: Path, phase: Phase) -> None:
    fired = folder / f"{phase}.fired"
    try:
        (folder / phase).rename(fired)
    except FileNotFoundError:
        return
    action = Action(fired.read_text())
    fired.write_text(f"{action} {os.getpid()}\n")
    match action:
        case Action.KILL:
            os.kill(os.getpid(), signal.SIGKILL)
        case Action.PAUSE:
            os.kill(os.getpid(), signal.SIGSTOP)
        case Action.ERROR:
            raise OSError(errno.EIO, f"injected at {phase}")
