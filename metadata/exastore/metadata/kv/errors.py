"""Errors of the key-value engines.

EngineError
├── LimitExceeded       a transaction is larger than the contract allows
├── ReadOnly            a mutation in a read-only transaction: our mistake
├── EngineClosed        the engine was closed
├── EngineFull          the disk is full; nothing of the transaction was stored
├── Conflict            internal: another transaction came first; the engine tries again
├── CommitUnknown       the answer to a commit was lost: it may or may not have been stored
└── EngineUnavailable   the engine cannot be opened or reached, or is fenced after an I/O error
    ├── EngineCorrupt   what is on disk is not ours or is damaged
    └── Unreachable     internal: the server is gone, nothing was stored; the engine tries again
"""


class EngineError(Exception):
    """Base of all errors here."""


class LimitExceeded(EngineError):
    """A transaction asked for more than the contract allows. Nothing of it was stored."""

    def __init__(self, limit: str, allowed: int, actual: int) -> None:
        super().__init__(f"{limit}: {actual} asked for, at most {allowed} allowed")
        self.limit = limit
        self.allowed = allowed
        self.actual = actual


class ReadOnly(EngineError):
    """A read-only transaction tried to write."""


class EngineClosed(EngineError):
    """The engine was closed."""

    def __init__(self) -> None:
        super().__init__("the metadata engine is closed")


class EngineFull(EngineError):
    """No space left; nothing of the transaction was stored, all that was acknowledged is kept."""


class Conflict(EngineError):
    """Another transaction committed first. Nothing was stored."""


class CommitUnknown(EngineError):
    """The commit may or may not be durable; repeat it under the same request id."""


class EngineUnavailable(EngineError):
    """The engine cannot serve now."""


class EngineCorrupt(EngineUnavailable):
    """The stored data is damaged, or was not written by this engine."""


class Unreachable(EngineUnavailable):
    """The server was lost before the commit was sent. Nothing was stored."""
