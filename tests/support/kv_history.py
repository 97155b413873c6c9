"""Histories of concurrent transactions, and whether a serial order explains them.

Theory of operation: every transaction records what it read and wrote, and when it was called and
answered. The search (Wing and Gong, with Lowe's memory of visited states) looks for an order in
which each transaction, run alone on a dictionary, reads what it did read; an order that respects
real time: a transaction answered before another one was called comes first. A transaction whose
answer was lost may come at any time after its call, or never. Scans are replayed in full, so a
phantom shows as any other wrong read.
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from exastore.metadata.kv.contract import Engine, Transaction, counter_bytes, counter_value
from exastore.metadata.kv.errors import CommitUnknown, EngineUnavailable

#: The end of a transaction whose answer was lost.
NEVER = 1 << 62

Step = tuple[Any, ...]
#: A step and what it saw.
Seen = tuple[Step, Any]


@dataclass(slots=True)
class Record:
    """A transaction that may have happened."""

    called: int
    answered: int
    #: In order; those of the run that counted.
    seen: list[Seen]
    lane: int = 0

    @property
    def may_not_have_happened(self) -> bool:
        """Its answer was lost."""
        return self.answered == NEVER


@dataclass(slots=True)
class History:
    """What the clients of a store saw."""

    records: list[Record] = field(default_factory=list[Record])
    #: Transactions that the engine surely did not store.
    refused_count: int = 0
    _now: int = 0

    def tick(self) -> int:
        """The next moment."""
        self._now += 1
        return self._now


def perform(txn: Transaction, steps: Sequence[Step]) -> list[Seen]:
    """Run steps on a transaction."""
    seen: list[Seen] = []
    for step in steps:
        what, *rest = step
        result: Any = None
        if what == "get":
            result = txn.get(rest[0])
        elif what == "scan":
            begin, end, limit, reverse, keys_only = rest
            result = txn.scan(begin, end, limit=limit, reverse=reverse, keys_only=keys_only)
        elif what == "put":
            txn.put(rest[0], rest[1])
        elif what == "delete":
            txn.delete(rest[0])
        elif what == "copy":  # a write that depends on a read
            value = txn.get(rest[0])
            result = value
            txn.put(rest[1], (b"copy of " + (value or b"nothing"))[:1000])
        elif what == "count":  # a write that depends on a range
            rows = txn.scan(rest[0], rest[1], limit=20)
            result = rows
            txn.put(rest[2], b"%d rows" % len(rows))
        elif what == "add":
            txn.add(rest[0], rest[1])
        else:
            raise AssertionError(what)
        seen.append((step, result))
    return seen


class Dictionary:
    """The model: a transaction on a plain dictionary, which remembers how to undo itself."""

    def __init__(self) -> None:
        self.values: dict[bytes, bytes] = {}
        self._undo: list[tuple[bytes, bytes | None]] = []

    def take_undo(self) -> list[tuple[bytes, bytes | None]]:
        """What was changed since the last call."""
        undo, self._undo = self._undo, []
        return undo

    def revert(self, undo: Sequence[tuple[bytes, bytes | None]]) -> None:
        """Take changes back."""
        for key, value in reversed(undo):
            self._set(key, value)
        self._undo = []

    def get(self, key: bytes) -> bytes | None:
        return self.values.get(key)

    def multi_get(self, keys: Sequence[bytes]) -> list[bytes | None]:
        return [self.values.get(key) for key in keys]

    def scan(
        self,
        begin: bytes,
        end: bytes,
        *,
        limit: int | None = None,
        reverse: bool = False,
        keys_only: bool = False,
    ) -> list[tuple[bytes, bytes]]:
        keys = sorted((k for k in self.values if begin <= k < end), reverse=reverse)[:limit]
        return [(key, b"" if keys_only else self.values[key]) for key in keys]

    def put(self, key: bytes, value: bytes) -> None:
        self._set(key, value)

    def delete(self, key: bytes) -> None:
        self._set(key, None)

    def add(self, key: bytes, delta: int) -> None:
        self._set(key, counter_bytes(counter_value(self.values.get(key)) + delta))

    def _set(self, key: bytes, value: bytes | None) -> None:
        self._undo.append((key, self.values.get(key)))
        if value is None:
            self.values.pop(key, None)
        else:
            self.values[key] = value


def serial_order(history: History, *, visit_count_max: int = 200_000) -> list[Record] | None:
    """An order that explains a history that began with an empty store; None: there is none.

    Raises:
        RuntimeError: The search was given up, so nothing is known.
    """
    records = sorted(history.records, key=lambda record: record.called)
    model = Dictionary()
    order: list[int] = []
    #: Sets of transactions (as bits) with states from which the rest was tried in vain.
    tried: set[tuple[int, frozenset[tuple[bytes, bytes]]]] = set()
    visit_count = 0

    def fits(record: Record) -> bool:
        seen = perform(model, [step for step, _ in record.seen])
        return all(was == now for (_, was), (_, now) in zip(record.seen, seen, strict=True))

    def candidates(placed: int) -> list[int]:
        open_ = [n for n in range(len(records)) if not placed >> n & 1]
        first_answer = min((records[n].answered for n in open_), default=NEVER)
        possible = [n for n in open_ if records[n].called < first_answer]
        # What was answered first was probably first; lost answers are tried last.
        return sorted(possible, key=lambda n: records[n].answered)

    def is_explained(placed: int) -> bool:
        return all(
            placed >> n & 1 or record.may_not_have_happened for n, record in enumerate(records)
        )

    # Depth first, by hand: histories are longer than Python's stack is deep.
    stack: list[tuple[int, list[int], list[tuple[bytes, bytes | None]]]] = [(0, candidates(0), [])]
    while stack:
        placed, left, undo = stack[-1]
        if is_explained(placed):
            return [records[n] for n in order]
        visit_count += 1
        if visit_count > visit_count_max:
            raise RuntimeError(f"no answer after {visit_count_max} states")
        advanced = False
        while left and not advanced:
            number = left.pop(0)
            if fits(records[number]):
                changes = model.take_undo()
                after = placed | 1 << number
                state = (after, frozenset(model.values.items()))
                if state not in tried:
                    tried.add(state)
                    order.append(number)
                    stack.append((after, candidates(after), changes))
                    advanced = True
                else:
                    model.revert(changes)
            else:
                model.revert(model.take_undo())
        if not advanced:
            stack.pop()
            model.revert(undo)
            if order:
                order.pop()
    return None


#: Few keys, so that transactions meet; two ranges of them.
_KEYS = [b"a%d" % number for number in range(4)] + [b"b%d" % number for number in range(4)]
_RANGES = [(b"a", b"b"), (b"b", b"c"), (b"a", b"c"), (b"a2", b"b2")]


def random_steps(rng: np.random.Generator, name: str) -> list[Step]:
    """A transaction of one to four steps; all values that are put are different."""
    steps: list[Step] = []
    for number in range(int(rng.integers(1, 5))):
        key, other = (_KEYS[n] for n in rng.integers(0, len(_KEYS), 2))
        begin, end = _RANGES[int(rng.integers(0, len(_RANGES)))]
        limit = [None, 1, 2, 3][int(rng.integers(0, 4))]
        reverse, keys_only = (bool(bit) for bit in rng.integers(0, 2, 2))
        kinds: list[Step] = [
            ("get", key),
            ("scan", begin, end, limit, reverse, keys_only),
            ("put", key, f"{name}.{number}".encode()),
            ("delete", key),
            ("copy", key, other),
            ("count", begin, end, key),
            ("add", b"n%d" % (number % 2), number + 1),
        ]
        steps.append(kinds[int(rng.integers(0, len(kinds)))])
    return steps


async def run_clients(
    engines: Sequence[Engine],
    *,
    seed: int,
    client_count: int,
    transaction_count: int,
    history: History | None = None,
    on_progress: Callable[[int], None] = lambda count: None,
) -> History:
    """Run random transactions from concurrent clients, each on one of the engines of a store.

    Args:
        engines: Of one empty store.
        seed: Of the clients' choices.
        client_count: Clients; client c uses engine c modulo their number.
        transaction_count: Transactions of each.
        history: Where to record.
        on_progress: Told how many transactions have ended so far.
    """
    history = history or History()
    streams = np.random.SeedSequence(seed).spawn(client_count)
    ended_count = 0

    async def client(lane: int) -> None:
        nonlocal ended_count
        rng = np.random.default_rng(streams[lane])
        engine = engines[lane % len(engines)]
        for number in range(transaction_count):
            steps = random_steps(rng, f"{lane}.{number}")
            runs: list[list[Seen]] = []

            def fn(
                txn: Transaction, steps: list[Step] = steps, runs: list[list[Seen]] = runs
            ) -> list[Seen]:
                seen = perform(txn, steps)
                runs.append(seen)
                return seen

            is_reading = all(step[0] in ("get", "scan") for step in steps)
            called = history.tick()
            try:
                seen = await (engine.read(fn) if is_reading else engine.transact(fn))
                history.records.append(Record(called, history.tick(), seen, lane))
            except CommitUnknown:
                history.records.append(Record(called, NEVER, runs[-1], lane))
            except EngineUnavailable:
                history.refused_count += 1
            ended_count += 1
            on_progress(ended_count)

    await asyncio.gather(*(client(lane) for lane in range(client_count)))
    return history


def story(history: History) -> str:
    """The history, one line per transaction in the order of calls."""
    return "\n".join(
        f"{record.called:>5} {'lost' if record.may_not_have_happened else record.answered:>5} "
        f"client {record.lane}: {record.seen}"
        for record in sorted(history.records, key=lambda record: record.called)
    )


def assert_serialisable(history: History) -> None:
    """Fail, with the whole history, unless a serial order explains it."""
    assert serial_order(history) is not None, "no serial order explains\n" + story(history)
