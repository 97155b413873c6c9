"""The embedded engine: SQLite in WAL mode, one writer thread with group commit.

Laws:
1. A transaction is acknowledged only after the COMMIT that holds it, and that COMMIT is an fsync
   of the write-ahead log (`synchronous=FULL`).
2. One thread writes, so transactions run one after the other and never conflict.
3. After an I/O error during COMMIT nobody knows what is on disk: the callers get `CommitUnknown`
   and the engine is fenced. A restart reads what the log really holds.

Theory of operation: callers queue their functions. The writer takes all that wait, opens one
transaction, runs each function inside its own SAVEPOINT (an exception rolls back to it), commits
once, and then resolves all the futures with one call into the event loop. Under load many
transactions share one fsync; alone, a transaction waits for nobody. If the disk fills up, SQLite
may roll the whole batch back; its functions then run again one by one, so that what still fits,
for example a delete, succeeds and the others get `EngineFull`.

Readers are threads with connections of their own; WAL gives each read a snapshot. They, too, take
all that waits at once: handing the interpreter from thread to thread costs more than a short read.
So brief reads run at once, on the thread of the event loop. What keeps that thread from waiting: a
scan that finds more than a few rows is given up there and run by a reader, and after a read that
was slow (rows that had to come from the disk) the next ones go to the readers, too.

Fault model: process death at any point, power loss (the device must honour fsync), full disk.
"""

import asyncio
import os
import queue
import sqlite3
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any, TypeVar

from exastore.metadata.core.phases import Phase, reach
from exastore.metadata.kv.contract import Transaction
from exastore.metadata.kv.errors import (
    CommitUnknown,
    EngineClosed,
    EngineCorrupt,
    EngineError,
    EngineFull,
    EngineUnavailable,
)
from exastore.metadata.kv.transaction import LimitedTransaction

T = TypeVar("T")

#: In the database header: "exkv", and the version of the layout.
_APPLICATION_ID = 0x65786B76
_LAYOUT_VERSION = 1
_PAGE_BYTES = 8192
_BATCH_COUNT_MAX = 256
_READER_COUNT = 2
_READ_BATCH_COUNT_MAX = 16
_BUSY_TIMEOUT_S = 10.0
#: A scan of a brief read that finds more rows is given up and run by a reader.
_BRIEF_ROW_COUNT_MAX = 16
#: A brief read that took longer sends the next ones to the readers, so many of them.
_BRIEF_S_MAX = 0.005
_BRIEF_PAUSE_COUNT = 64

_GET = "SELECT v FROM kv WHERE k = ?"
_PUT = "INSERT INTO kv (k, v) VALUES (?, ?) ON CONFLICT (k) DO UPDATE SET v = excluded.v"
_DELETE = "DELETE FROM kv WHERE k = ?"


@dataclass(slots=True)
class _Job:
    fn: Callable[[Transaction], Any]
    loop: asyncio.AbstractEventLoop
    future: "asyncio.Future[Any]"
    result: Any = None
    error: BaseException | None = None


class SqliteEngine:
    """`Engine` over one SQLite file.

    Args:
        path: The database; created, with its folder, if it is not there.
        bytes_max: The database never grows above this; 0: as large as the disk.
    """

    def __init__(self, path: Path, *, bytes_max: int = 0) -> None:
        self._path = path
        self._writer_db = _open(path, bytes_max)
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        #: Set when a COMMIT failed in a way that leaves the disk unknown; then nothing is served.
        self._fenced: str | None = None
        self._closed = False
        #: Of the thread of the event loop, once it has read.
        self._brief_db: sqlite3.Connection | None = None
        #: Brief reads that still go to the readers.
        self._brief_pause_count = 0
        self._read_jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._threads = [
            threading.Thread(target=self._write_loop, name="kv-write", daemon=True),
            *(
                threading.Thread(target=self._read_loop, name=f"kv-read-{number}", daemon=True)
                for number in range(_READER_COUNT)
            ),
        ]
        for thread in self._threads:
            thread.start()

    async def transact(self, fn: Callable[[Transaction], T]) -> T:
        self._check()
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()
        self._jobs.put(_Job(fn, loop, future))
        return await future

    async def read(self, fn: Callable[[Transaction], T], *, brief: bool = False) -> T:
        self._check()
        if brief:
            if self._brief_pause_count:
                self._brief_pause_count -= 1
            else:
                try:
                    return self._read_here(fn)
                except _NotBrief:
                    pass
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()
        self._read_jobs.put(_Job(fn, loop, future))
        return await future

    async def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._jobs.put(None)
        for _ in range(_READER_COUNT):
            self._read_jobs.put(None)
        for thread in self._threads:
            await asyncio.to_thread(thread.join)
        if self._brief_db is not None:
            self._brief_db.close()
        self._writer_db.close()

    def _check(self) -> None:
        if self._closed:
            raise EngineClosed
        if self._fenced is not None:
            raise EngineUnavailable(self._fenced)

    # ---- readers ----

    def _read_here(self, fn: Callable[[Transaction], T]) -> T:
        """Read on this thread. Raises _NotBrief when a reader has to do it."""
        begun_s = perf_counter()
        try:
            if self._brief_db is None:
                self._brief_db = _connect_reader(self._path)
            return _read_snapshot(self._brief_db, fn, scan_count_max=_BRIEF_ROW_COUNT_MAX)
        except sqlite3.Error as error:
            raise _translated(error, self._path) from error
        finally:
            if perf_counter() - begun_s > _BRIEF_S_MAX:
                self._brief_pause_count = _BRIEF_PAUSE_COUNT

    def _read_loop(self) -> None:
        db: sqlite3.Connection | None = None
        is_open = True
        while is_open:
            jobs, is_open = _taken(self._read_jobs, _READ_BATCH_COUNT_MAX)
            for job in jobs:
                try:
                    if db is None:
                        db = _connect_reader(self._path)
                    job.result = _read_snapshot(db, job.fn)
                except sqlite3.Error as error:
                    job.error = _translated(error, self._path)
                except BaseException as error:  # the caller's, or ours: both belong to the caller
                    job.error = error
            _resolve_soon(jobs)
        if db is not None:
            db.close()

    # ---- the writer ----

    def _write_loop(self) -> None:
        is_open = True
        while is_open:
            jobs, is_open = _taken(self._jobs, _BATCH_COUNT_MAX)
            if jobs:
                self._commit_batch(jobs)
                _resolve_soon(jobs)

    def _commit_batch(self, jobs: list[_Job]) -> None:
        """Run and commit `jobs` together; leaves a result or an error in each."""
        if self._fenced is not None:
            for job in jobs:
                job.error = EngineUnavailable(self._fenced)
            return
        try:
            self._run_in_one_commit(jobs)
        except EngineError as error:
            if len(jobs) > 1 and not isinstance(error, CommitUnknown):
                for job in jobs:
                    self._commit_batch([job])
            else:
                for job in jobs:
                    job.error = error
        except Exception as error:  # nothing may kill the writer: its callers would wait for ever
            self._rollback()
            for job in jobs:
                job.error = error

    def _run_in_one_commit(self, jobs: list[_Job]) -> None:
        db = self._writer_db
        mutation_count = 0
        try:
            db.execute("BEGIN IMMEDIATE")
            for job in jobs:
                mutation_count += self._run(job)
        except sqlite3.Error as error:
            self._rollback()
            raise _translated(error, self._path) from error
        try:
            if mutation_count:
                reach(Phase.ENGINE_COMMITTING)
            db.execute("COMMIT" if mutation_count else "ROLLBACK")
            if mutation_count:
                reach(Phase.ENGINE_COMMITTED)
        except sqlite3.Error as error:
            translated = _translated(error, self._path)
            self._rollback()
            if isinstance(translated, EngineFull) or not mutation_count:
                raise translated from error
            self._fenced = (
                f"the metadata engine {self._path} failed to commit ({error}) and is fenced: "
                "check the disk, then restart the server"
            )
            raise CommitUnknown(self._fenced) from error

    def _run(self, job: _Job) -> int:
        """Run one function in its savepoint; the number of its mutations.

        Its own exceptions are its result; those of SQLite concern the whole batch and pass through.
        """
        db = self._writer_db
        job.result = job.error = None
        db.execute("SAVEPOINT job")
        txn = _SqliteTransaction(db, read_only=False)
        try:
            job.result = job.fn(txn)
        except sqlite3.Error:
            raise
        except BaseException as error:
            job.error = error
            if txn.mutation_count:
                db.execute("ROLLBACK TO job")
        finally:
            txn.end()
        db.execute("RELEASE job")
        return txn.mutation_count if job.error is None else 0

    def _rollback(self) -> None:
        try:
            if self._writer_db.in_transaction:
                self._writer_db.execute("ROLLBACK")
        except sqlite3.Error as error:
            self._fenced = f"the metadata engine {self._path} cannot roll back: {error}"


class _NotBrief(Exception):
    """A brief read asked for more than it may."""


class _SqliteTransaction(LimitedTransaction):
    __slots__ = ("_execute", "_scan_count_max")

    def __init__(
        self, db: sqlite3.Connection, *, read_only: bool, scan_count_max: int | None = None
    ) -> None:
        super().__init__(read_only=read_only)
        self._execute = db.execute
        self._scan_count_max = scan_count_max

    def _get(self, key: bytes) -> bytes | None:
        row = self._execute(_GET, (key,)).fetchone()
        return None if row is None else row[0]

    def _scan(
        self, begin: bytes, end: bytes, limit: int | None, reverse: bool, keys_only: bool
    ) -> list[tuple[bytes, bytes]]:
        columns = "k, x''" if keys_only else "k, v"
        order = "DESC" if reverse else "ASC"
        count_max = self._scan_count_max
        fetched = -1 if limit is None else limit
        if count_max is not None and not 0 <= fetched <= count_max:
            fetched = count_max + 1
        found = self._execute(
            f"SELECT {columns} FROM kv WHERE k >= ? AND k < ? ORDER BY k {order} LIMIT ?",
            (begin, end, fetched),
        ).fetchall()
        if count_max is not None and len(found) > count_max:
            raise _NotBrief
        return found

    def _put(self, key: bytes, value: bytes) -> None:
        self._execute(_PUT, (key, value))

    def _delete(self, key: bytes) -> None:
        self._execute(_DELETE, (key,))


def _taken(jobs: "queue.SimpleQueue[_Job | None]", count_max: int) -> tuple[list[_Job], bool]:
    """Wait for a job and take all that wait with it; false: the queue was closed."""
    taken: list[_Job] = []
    job = jobs.get()
    while job is not None:
        taken.append(job)
        if len(taken) == count_max:
            return taken, True
        try:
            job = jobs.get_nowait()
        except queue.Empty:
            return taken, True
    return taken, False


def _read_snapshot(
    db: sqlite3.Connection, fn: Callable[[Transaction], T], scan_count_max: int | None = None
) -> T:
    db.execute("BEGIN")
    txn = _SqliteTransaction(db, read_only=True, scan_count_max=scan_count_max)
    try:
        return fn(txn)
    finally:
        txn.end()
        db.execute("COMMIT")


def _resolve_soon(jobs: list[_Job]) -> None:
    by_loop: dict[asyncio.AbstractEventLoop, list[_Job]] = {}
    for job in jobs:
        by_loop.setdefault(job.loop, []).append(job)
    for loop, group in by_loop.items():
        try:
            loop.call_soon_threadsafe(_resolve, group)
        except RuntimeError:
            continue  # the loop is closed: nobody waits any more


def _resolve(jobs: list[_Job]) -> None:
    for job in jobs:
        if job.future.done():
            continue
        if job.error is not None:
            job.future.set_exception(job.error)
        else:
            job.future.set_result(job.result)


def _connect(path: Path) -> sqlite3.Connection:
    return sqlite3.connect(
        path, timeout=_BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False
    )


def _connect_reader(path: Path) -> sqlite3.Connection:
    db = _connect(path)
    db.execute("PRAGMA query_only = 1")
    return db


def _open(path: Path, bytes_max: int) -> sqlite3.Connection:
    db: sqlite3.Connection | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        db = _connect(path)
        db.execute(f"PRAGMA page_size = {_PAGE_BYTES}")
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = FULL")
        db.execute("PRAGMA cache_size = -65536")
        db.execute("PRAGMA wal_autocheckpoint = 2000")
        if bytes_max:
            db.execute(f"PRAGMA max_page_count = {max(2, bytes_max // _PAGE_BYTES)}")
        _lay_out(db, path)
        _sync_folder(path.parent)
    except (sqlite3.Error, EngineError) as error:
        if db is not None:
            db.close()
        if isinstance(error, EngineError):
            raise
        raise _translated(error, path) from error
    except OSError as error:
        raise EngineUnavailable(f"cannot open the metadata engine {path}: {error}") from error
    return db


def _lay_out(db: sqlite3.Connection, path: Path) -> None:
    """Create the table, or check that what is there is ours."""
    (application_id,) = db.execute("PRAGMA application_id").fetchone()
    (version,) = db.execute("PRAGMA user_version").fetchone()
    (table_count,) = db.execute("SELECT count(*) FROM sqlite_master").fetchone()
    if table_count == 0:
        db.execute("BEGIN IMMEDIATE")
        db.execute(
            "CREATE TABLE IF NOT EXISTS kv (k BLOB PRIMARY KEY, v BLOB NOT NULL) WITHOUT ROWID"
        )
        db.execute(f"PRAGMA application_id = {_APPLICATION_ID}")
        db.execute(f"PRAGMA user_version = {_LAYOUT_VERSION}")
        db.execute("COMMIT")
    elif application_id != _APPLICATION_ID:
        raise EngineCorrupt(f"{path} is a database of another program")
    elif version != _LAYOUT_VERSION:
        raise EngineCorrupt(
            f"{path} has layout version {version}; this release reads version {_LAYOUT_VERSION}"
        )


def _sync_folder(folder: Path) -> None:
    """Make the new file's name durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _translated(error: sqlite3.Error, path: Path) -> EngineError:
    """SQLite's error as one of ours, with the file's name and what to do."""
    code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF
    if code == sqlite3.SQLITE_FULL:
        return EngineFull(f"no space left for the metadata engine {path}: free or add space")
    if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
        return EngineCorrupt(f"the metadata engine {path} is damaged: {error}")
    return EngineUnavailable(f"the metadata engine {path} cannot serve: {error}")
