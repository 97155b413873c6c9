"""Stores the first map of a cluster whose rows do not fit one transaction.

Laws:
1. The head row is the commit: it is written last, in a transaction that finds none, after every
   block is durable. Readers that find no head see no map, whatever blocks there are.
2. One server at a time writes blocks. Each transaction checks and moves on the row of the one who
   does, (MF): his number, and how many transactions he has done. Who finds the row of another that
   has not moved since he looked last takes over; who finds one that has moved comes again later.
3. Who begins deletes the blocks that another has left which are not his own.
"""

from collections.abc import Callable

from exastore.metadata.kv.contract import LIMITS, Engine, Transaction
from exastore.metadata.kv.keys import pack, prefix_range, unpack
from exastore.metadata.service.errors import NotReady

_BLOCKS = prefix_range(pack("M"))
_FORMING_KEY = pack("MF")
#: Leave room for the row of the one who writes, and for what a guard notes.
_ROWS_MAX = LIMITS.mutation_count - 10
_BYTES_MAX = LIMITS.transaction_bytes - 2 * LIMITS.value_bytes


class _Overtaken(Exception):
    """Another server stores the first map, or has."""


class FirstMap:
    """The way of a first map into the engine.

    Args:
        head_key: Of the row that makes the map valid.
    """

    def __init__(self, engine: Engine, head_key: bytes) -> None:
        self._engine = engine
        self._head_key = head_key
        #: The row of another server, as it was when we looked last.
        self._seen: bytes | None = None

    async def is_needed(self, rows: dict[bytes, bytes]) -> bool:
        """Whether these rows are too many for a transaction, or somebody has left blocks."""
        if len(_batches(rows)) > 1:
            return True
        return await self._engine.read(lambda txn: txn.get(_FORMING_KEY)) is not None

    async def store(self, rows: dict[bytes, bytes], guard: Callable[[Transaction], None]) -> bool:
        """Store a map. False: there is one.

        Raises:
            NotReady: Another server is storing one.
        """
        blocks = {key: value for key, value in rows.items() if key != self._head_key}
        number = await self._engine.transact(self._begin)
        if number is None:
            return False
        try:
            step = 0
            for batch in await self._stale(blocks):
                step += 1
                await self._write(number, step, batch, {})
            for batch in _batches(blocks):
                step += 1
                await self._write(number, step, batch, blocks)
            await self._engine.transact(self._end(number, rows[self._head_key], guard))
        except _Overtaken:
            return False
        return True

    def _begin(self, txn: Transaction) -> int | None:
        """Become the one who writes; his number. None: there is a map."""
        if txn.get(self._head_key) is not None:
            return None
        known = txn.get(_FORMING_KEY)
        if known is not None and known != self._seen:
            self._seen = known
            raise NotReady("another server is storing the first map")
        number = 1 if known is None else _parsed(known)[0] + 1
        txn.put(_FORMING_KEY, pack(number, 0))
        return number

    async def _stale(self, blocks: dict[bytes, bytes]) -> list[list[bytes]]:
        """Keys of the blocks that are not ours, in batches."""
        found = await self._engine.read(lambda txn: txn.scan(*_BLOCKS, keys_only=True))
        stale = [key for key, _ in found if key not in blocks and key != self._head_key]
        return [stale[i : i + _ROWS_MAX] for i in range(0, len(stale), _ROWS_MAX)]

    async def _write(
        self, number: int, step: int, keys: list[bytes], blocks: dict[bytes, bytes]
    ) -> None:
        """One transaction: these keys get their blocks, or are deleted. Raises _Overtaken."""

        def write(txn: Transaction) -> None:
            self._check(txn, number)
            for key in keys:
                if key in blocks:
                    txn.put(key, blocks[key])
                else:
                    txn.delete(key)
            txn.put(_FORMING_KEY, pack(number, step))

        await self._engine.transact(write)

    def _end(
        self, number: int, head: bytes, guard: Callable[[Transaction], None]
    ) -> Callable[[Transaction], None]:
        def end(txn: Transaction) -> None:
            self._check(txn, number)
            guard(txn)
            txn.put(self._head_key, head)
            txn.delete(_FORMING_KEY)

        return end

    def _check(self, txn: Transaction, number: int) -> None:
        """Raises _Overtaken unless it is still for us to write."""
        known = txn.get(_FORMING_KEY)
        if known is None or _parsed(known)[0] != number or txn.get(self._head_key) is not None:
            raise _Overtaken


def _parsed(value: bytes) -> tuple[int, int]:
    """(number, transactions done) of the row of the one who writes."""
    number, step = unpack(value)
    assert isinstance(number, int) and isinstance(step, int)
    return number, step


def _batches(rows: dict[bytes, bytes]) -> list[list[bytes]]:
    """Keys of rows, as many together as one transaction may hold."""
    batches: list[list[bytes]] = []
    batch_bytes = 0
    for key, value in rows.items():
        size = len(key) + len(value)
        if not batches or len(batches[-1]) == _ROWS_MAX or batch_bytes + size > _BYTES_MAX:
            batches.append([])
            batch_bytes = 0
        batches[-1].append(key)
        batch_bytes += size
    return batches
