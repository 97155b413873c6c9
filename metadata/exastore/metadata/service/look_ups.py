"""Look-ups that arrive together are one read of the engine.

Handing work to a thread of the engine and its answer back costs more than a look-up. So those that
are asked for in one turn of the event loop go as one, and their answers leave as one: with 64
clients half as many again are served. A look-up alone waits for nobody.
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from exastore.metadata.kv.contract import Engine, Transaction
from exastore.metadata.namespace.errors import NamespaceError

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class _Wanted:
    fn: Callable[[Transaction], Any]
    future: "asyncio.Future[Any]"


class LookUps:
    """Short reads of one engine."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        #: Asked for in this turn of the event loop.
        self._wanted: list[_Wanted] = []
        #: The event loop itself holds tasks weakly.
        self._tasks: set[asyncio.Task[None]] = set()

    async def read(self, fn: Callable[[Transaction], T]) -> T:
        """`fn` in a snapshot, as the engine's `read`; it should read a few keys only."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()
        if not self._wanted:
            loop.call_soon(self._start)
        self._wanted.append(_Wanted(fn, future))
        return await future

    def _start(self) -> None:
        wanted, self._wanted = self._wanted, []
        task = asyncio.get_running_loop().create_task(self._read(wanted))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _read(self, wanted: Sequence[_Wanted]) -> None:
        try:
            results = await self._engine.read(
                lambda txn: [_result(item.fn, txn) for item in wanted]
            )
        except asyncio.CancelledError:
            for item in wanted:
                item.future.cancel()
            raise
        except Exception as error:
            if len(wanted) > 1:
                for item in wanted:  # whose error it is shows when each is read alone
                    await self._read([item])
                return
            results = [error]
        for item, result in zip(wanted, results, strict=True):
            if item.future.done():
                continue  # the caller has gone
            if isinstance(result, Exception):
                item.future.set_exception(result)
            else:
                item.future.set_result(result)


def _result(fn: Callable[[Transaction], Any], txn: Transaction) -> Any:
    """What `fn` returns, or its error if it is one of the namespace: others are the engine's."""
    try:
        return fn(txn)
    except NamespaceError as error:
        return error
