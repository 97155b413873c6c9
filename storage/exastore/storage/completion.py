"""How a write that ends later tells its caller."""

import logging
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field

from exastore.storage.errors import StorageError
from exastore.storage.index_file import Entry
from exastore.storage.record import ChunkKey

_log = logging.getLogger(__name__)

#: Called once when a write is durable (None) or will never be.
Done = Callable[[StorageError | None], None]


def resolving(waiter: "Future[None]") -> Done:
    """Ends the wait of a thread for `waiter.result()`."""

    def done(error: StorageError | None) -> None:
        if error is None:
            waiter.set_result(None)
        else:
            waiter.set_exception(error)

    return done


@dataclass(slots=True)
class PendingRecord:
    """A record that is written and not yet known to be durable; `entry` None is a delete.

    A tombstone that compaction moved is not `news`: what it kills is dead already.
    """

    key: ChunkKey
    entry: Entry | None
    done: list[Done] = field(default_factory=list[Done])
    news: bool = True

    def tell(self, error: StorageError | None) -> None:
        """Tell all who wait; the mistake of one must not stop the acknowledgements of others."""
        for done in self.done:
            try:
                done(error)
            except Exception:
                _log.exception("the callback of a write failed")
