"""What the engines over a network share: group commit, retries, and reads that travel together.

Theory of operation: callers queue their functions. One task takes all that wait, runs them as one
`Batch` against one snapshot (`replay.py`), and commits them together; what arrives meanwhile is the
next batch. So the transactions of one server never conflict with each other, and a round trip and
an fsync are shared by all that wait. Those of other servers may conflict: then the whole batch runs
again on a new snapshot. Reads form batches of their own; a function with a long chain of dependent
reads (a listing that seeks over thousands of prefixes) leaves the batch for a thread and a snapshot
of its own.

Fault model: the server, or the connection, dies at any point. Before a commit is sent nothing was
stored, and the batch is tried again until `patience_s` after a function arrived; then it gets
`EngineUnavailable`. Afterwards it is `CommitUnknown` unless the answer came.
"""

import asyncio
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any, Final, Protocol, TypeVar

from exastore.metadata.kv.contract import Transaction
from exastore.metadata.kv.errors import (
    CommitUnknown,
    Conflict,
    EngineClosed,
    EngineError,
    EngineFull,
    EngineUnavailable,
    Unreachable,
)
from exastore.metadata.kv.replay import Batch, Job, Reads, SnapshotCache, SuspendedTransaction

T = TypeVar("T")

#: Seconds for which a function is tried before the engine is called unavailable.
PATIENCE_S = 10.0
_BATCH_COUNT_MAX = 256
#: Read batches under way at the same time: one travels while the other one computes.
_READ_LANE_COUNT = 2
#: Functions with longer chains of dependent reads get a thread.
_READ_ROUND_COUNT_MAX = 4
_LONG_READ_COUNT_MAX = 4
_BACKOFF_FIRST_S = 0.02
_BACKOFF_LAST_S = 0.5
#: A batch that meets more conflicts is committed in halves: one of them gets through.
_WHOLE_CONFLICT_COUNT = 2


class Snapshot(Protocol):
    """One consistent version of the store, which includes every commit acknowledged before."""

    async def fetch(self, reads: Reads, cache: SnapshotCache) -> None:
        """Read into `cache`. Raises Conflict, Unreachable, EngineError."""
        ...

    async def finish(self) -> None:
        """End a snapshot that writes nothing; after it, what was read is valid. Raises Conflict."""
        ...

    async def commit(self, batch: Batch) -> None:
        """Store what the batch writes if nothing that it read has changed.

        Raises Conflict, Unreachable (nothing was stored), CommitUnknown, EngineFull.
        """
        ...


class Backend(Protocol):
    """A store that gives snapshots."""

    #: How the store is called in messages, without secrets.
    name: str

    def snapshot(
        self, *, read_only: bool, conflict_count: int
    ) -> AbstractAsyncContextManager[Snapshot]:
        """A snapshot taken not before its first fetch. `conflict_count`: this batch's so far."""
        ...

    def new_batch(self) -> Batch:
        """An empty read-write batch within the limits of one commit."""
        ...

    async def close(self) -> None:
        """Let go of all connections."""
        ...


@dataclass(slots=True)
class EngineStats:
    """What an engine did so far."""

    transaction_count: int = 0
    commit_count: int = 0
    conflict_count: int = 0
    unreachable_count: int = 0
    unknown_count: int = 0
    read_count: int = 0
    read_batch_count: int = 0


@dataclass(slots=True)
class _Waiting(Job):
    future: "asyncio.Future[Any] | None" = None
    #: Loop time after which it is given up.
    deadline_s: float = 0.0

    def resolve(self) -> None:
        assert self.future is not None
        if self.future.done():
            return
        if self.error is not None:
            self.future.set_exception(self.error)
        else:
            self.future.set_result(self.result)

    def fail(self, error: BaseException) -> None:
        self.error = error
        self.resolve()


class RemoteEngine:
    """`Engine` over a backend. Belongs to the event loop of its first call.

    Args:
        backend: The store.
        patience_s: Seconds for which a function is tried while the store is away.
    """

    def __init__(self, backend: Backend, *, patience_s: float = PATIENCE_S) -> None:
        self.backend: Final = backend
        self._patience_s = patience_s
        self.stats = EngineStats()
        self._writes: list[_Waiting] = []
        self._reads: list[_Waiting] = []
        #: The task that commits, if there is something to commit.
        self._writer: asyncio.Task[None] | None = None
        self._readers: set[asyncio.Task[None]] = set()
        self._long_reads: set[asyncio.Task[None]] = set()
        self._long_read_room = asyncio.Semaphore(_LONG_READ_COUNT_MAX)
        self._closed = False

    async def transact(self, fn: Callable[[Transaction], T]) -> T:
        job = self._job(fn)
        self._writes.append(job)
        if self._writer is None:
            self._writer = asyncio.create_task(self._write_loop())
        result: T = await _result(job)
        return result

    async def read(self, fn: Callable[[Transaction], T], *, brief: bool = False) -> T:
        job = self._job(fn)
        self._reads.append(job)
        if len(self._readers) < _READ_LANE_COUNT:
            reader = asyncio.create_task(self._read_loop())
            self._readers.add(reader)
            reader.add_done_callback(self._readers.discard)
        result: T = await _result(job)
        return result

    async def close(self) -> None:
        self._closed = True
        while tasks := [
            *self._readers,
            *self._long_reads,
            *([] if self._writer is None else [self._writer]),
        ]:
            await asyncio.wait(tasks)
        await self.backend.close()

    def _job(self, fn: Callable[[Transaction], Any]) -> _Waiting:
        if self._closed:
            raise EngineClosed
        loop = asyncio.get_running_loop()
        return _Waiting(fn, future=loop.create_future(), deadline_s=loop.time() + self._patience_s)

    # ---- writing ----

    async def _write_loop(self) -> None:
        try:
            while self._writes:
                jobs, self._writes = (
                    self._writes[:_BATCH_COUNT_MAX],
                    self._writes[_BATCH_COUNT_MAX:],
                )
                await self._guarded(jobs, self._commit)
        finally:
            self._writer = None

    async def _commit(self, jobs: list[_Waiting]) -> None:
        """Commit functions, in one batch if they fit and it gets through."""
        trials = _Trials(self, jobs)
        while jobs := trials.left():
            try:
                left = await self._commit_once(jobs, trials.conflict_count)
            except EngineFull as error:
                if len(jobs) == 1:
                    jobs[0].fail(error)
                    return
                for job in jobs:  # what still fits, a deletion for example, must succeed
                    await self._commit([job])
                return
            except Conflict:
                await trials.conflict()
                if trials.conflict_count > _WHOLE_CONFLICT_COUNT and len(jobs) > 1:
                    half = len(jobs) // 2
                    await self._commit(jobs[:half])
                    await self._commit(jobs[half:])
                    return
            except Unreachable as error:
                await trials.unreachable(error)
            else:
                self._writes[:0] = left
                return

    async def _commit_once(self, jobs: Sequence[_Waiting], conflict_count: int) -> list[_Waiting]:
        """One attempt on a new snapshot; the functions that did not fit into the commit."""
        batch = self.backend.new_batch()
        snapshots = self.backend.snapshot(read_only=False, conflict_count=conflict_count)
        async with snapshots as snapshot:
            waiting, reads = batch.run(jobs)
            while waiting:
                await snapshot.fetch(reads, batch.cache)
                waiting, reads = batch.run(waiting)
            try:
                if batch.writes:
                    await snapshot.commit(batch)
                    self.stats.commit_count += 1
                else:
                    await snapshot.finish()
            except CommitUnknown as error:
                self.stats.unknown_count += 1
                for job in batch.done:
                    job.error = error
        for job in batch.done:
            assert isinstance(job, _Waiting)
            job.resolve()
        self.stats.transaction_count += len(batch.done)
        return [job for job in batch.left if isinstance(job, _Waiting)]

    # ---- reading ----

    async def _read_loop(self) -> None:
        while self._reads:
            jobs, self._reads = self._reads[:_BATCH_COUNT_MAX], self._reads[_BATCH_COUNT_MAX:]
            await self._guarded(jobs, self._read)

    async def _read(self, jobs: list[_Waiting]) -> None:
        trials = _Trials(self, jobs)
        while jobs := trials.left():
            try:
                await self._read_once(jobs, trials.conflict_count)
                return
            except Conflict:
                await trials.conflict()
            except Unreachable as error:
                await trials.unreachable(error)

    async def _read_once(self, jobs: Sequence[_Waiting], conflict_count: int) -> None:
        batch = Batch(read_only=True)
        snapshots = self.backend.snapshot(read_only=True, conflict_count=conflict_count)
        async with snapshots as snapshot:
            waiting, reads = batch.run(jobs)
            round_count = 0
            while waiting and round_count < _READ_ROUND_COUNT_MAX:
                await snapshot.fetch(reads, batch.cache)
                waiting, reads = batch.run(waiting)
                round_count += 1
            await snapshot.finish()
        self.stats.read_batch_count += 1
        self.stats.read_count += len(batch.done)
        for job in batch.done:
            assert isinstance(job, _Waiting)
            job.resolve()
        for job in waiting:
            assert isinstance(job, _Waiting)
            task = asyncio.create_task(self._guarded([job], self._read_long))
            self._long_reads.add(task)
            task.add_done_callback(self._long_reads.discard)

    async def _read_long(self, jobs: list[_Waiting]) -> None:
        async with self._long_read_room:
            trials = _Trials(self, jobs)
            while left := trials.left():
                try:
                    await self._read_long_once(left[0], trials.conflict_count)
                    return
                except Conflict:
                    await trials.conflict()
                except Unreachable as error:
                    await trials.unreachable(error)

    async def _read_long_once(self, job: _Waiting, conflict_count: int) -> None:
        loop = asyncio.get_running_loop()
        cache = SnapshotCache()
        snapshots = self.backend.snapshot(read_only=True, conflict_count=conflict_count)
        async with snapshots as snapshot:

            def fetch(reads: Reads) -> None:
                asyncio.run_coroutine_threadsafe(snapshot.fetch(reads, cache), loop).result()

            txn = SuspendedTransaction(cache, fetch)
            try:
                job.result = await asyncio.to_thread(job.fn, txn)
            except (Conflict, Unreachable):
                raise
            except Exception as error:  # it belongs to the caller
                job.error = error
            finally:
                txn.end()
            await snapshot.finish()
        self.stats.read_count += 1
        job.resolve()

    async def _guarded(self, jobs: list[_Waiting], work: Callable[[list[_Waiting]], Any]) -> None:
        """Whatever `work` raises reaches the callers that have no answer yet."""
        try:
            await work(jobs)
        except Exception as error:
            for job in jobs:
                job.fail(error)
        except BaseException:
            for job in jobs:
                job.fail(EngineClosed())
            raise


class _Trials:
    """The retries of a list of functions: counts, back-off, and the end of patience."""

    def __init__(self, engine: RemoteEngine, jobs: list[_Waiting]) -> None:
        self._stats = engine.stats
        self._jobs = jobs
        self._loop = asyncio.get_running_loop()
        self._pause_s = _BACKOFF_FIRST_S
        self.conflict_count = 0

    def left(self) -> list[_Waiting]:
        """The functions that somebody still waits for."""
        self._jobs = [job for job in self._jobs if job.future and not job.future.done()]
        return self._jobs

    async def conflict(self) -> None:
        """Count a conflict. The first retry is immediate, as the other one is done."""
        self._stats.conflict_count += 1
        self.conflict_count += 1
        self._give_up(EngineUnavailable("other transactions came first again and again"))
        await asyncio.sleep(min(0.001 * (self.conflict_count - 1), _BACKOFF_LAST_S))

    async def unreachable(self, error: Unreachable) -> None:
        """Wait for the server to come back."""
        self._stats.unreachable_count += 1
        self._give_up(EngineUnavailable(str(error)))
        if self.left():
            await asyncio.sleep(self._pause_s)
            self._pause_s = min(self._pause_s * 2, _BACKOFF_LAST_S)

    def _give_up(self, error: EngineError) -> None:
        now_s = self._loop.time()
        for job in self._jobs:
            if now_s >= job.deadline_s:
                job.fail(error)


async def _result(job: _Waiting) -> Any:
    assert job.future is not None
    return await job.future
