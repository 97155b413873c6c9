"""How a write that ends later tells its caller."""

from collections.abc import Callable
from concurrent.futures import Future

from exastore.storage.errors import StorageError

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
