"""What can go wrong here, and the exit code that says so.

DeployError                 1  the operation failed
├── BadInput                2  an option, a file or a name is wrong: nothing was started or changed
├── ClusterUnhealthy        3  the cluster is not running, or not fully redundant
├── EnvironmentUnfit        4  this machine cannot take it now: port taken, disk full, not writable
└── StartFailed             1  a process died or did not become ready

Every message says what is wrong; `hint` says what to do about it.
"""

from enum import IntEnum


class ExitCode(IntEnum):
    """Exit codes of the `exastore` command."""

    OK = 0
    FAILED = 1
    BAD_INPUT = 2
    UNHEALTHY = 3
    ENVIRONMENT = 4
    INTERRUPTED = 130


class DeployError(Exception):
    """An operating error that the command line reports in words, without a traceback."""

    exit_code: ExitCode = ExitCode.FAILED

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class BadInput(DeployError):
    """An option, a file or a name is wrong."""

    exit_code = ExitCode.BAD_INPUT


class ClusterUnhealthy(DeployError):
    """The cluster is not running, or not fully redundant."""

    exit_code = ExitCode.UNHEALTHY


class EnvironmentUnfit(DeployError):
    """This machine cannot take it now."""

    exit_code = ExitCode.ENVIRONMENT


class StartFailed(DeployError):
    """A process died while it started, or did not become ready in time.

    Attributes:
        process: Its name, for example "node-3".
        log_tail: The last lines it logged.
    """

    def __init__(self, message: str, *, process: str, log_tail: str = "", hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.process = process
        self.log_tail = log_tail
