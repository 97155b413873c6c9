"""PostgreSQL as an engine: one table of bytes, every transaction SERIALIZABLE.

Laws:
1. All transactions, reading ones too, are SERIALIZABLE: a snapshot that is not would let a reader
   see a state that no serial order has. In PostgreSQL that is strict: a cycle that contains a
   real-time edge needs the same two consecutive conflicts as any other, and those are what it
   aborts.
2. Rows are found over the primary key alone. A sequential scan would lock the whole table against
   insertions, so plans with one are disabled.
3. What was read counts once COMMIT has succeeded, never before.
4. A conflict cannot repeat: a batch takes the turn table in a mode that lets others work beside it,
   and after a conflict in a mode that does not. The lock comes before the snapshot.

Fault model: the server dies at any point and comes back, or another one takes over behind the same
addresses; a connection is cut; a server stops answering (after `_STEP_S` we hang up); a metadata
server that stalls inside a transaction is cut off by PostgreSQL, so that it blocks no other.
"""

import asyncio
import socket
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from typing import Any, LiteralString

import psycopg
from psycopg import errors as sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.pq import TransactionStatus
from psycopg.types.numeric import Int8

from exastore.metadata.core.phases import Phase, reach
from exastore.metadata.kv.errors import (
    CommitUnknown,
    Conflict,
    EngineCorrupt,
    EngineError,
    EngineFull,
    EngineUnavailable,
    Unreachable,
)
from exastore.metadata.kv.remote import PATIENCE_S, RemoteEngine, Snapshot
from exastore.metadata.kv.replay import Batch, RangeRead, Reads, SnapshotCache

_Connection = psycopg.AsyncConnection[tuple[Any, ...]]

#: Of the tables that `_LAY_OUT` makes.
_LAYOUT_VERSION = 1
#: Seconds for one round trip, and for a transaction that waits for us.
_STEP_S = 5.0
_CONNECT_S = 3
#: Batches after a conflict that exclude other writers. Trying side by side again costs one batch in
#: vain if they still meet; two servers on one small table were 18 % faster than always trying.
_ALONE_COUNT = 64
_WRITTEN_BYTES_MAX = 8 << 20
#: A reader so often in conflict asks for a snapshot that cannot be.
_SAFE_SNAPSHOT_CONFLICT_COUNT = 3

_DEFAULTS = {
    "connect_timeout": str(_CONNECT_S),
    "application_name": "exastore-metadata",
    # A machine that is gone must not hold a connection for hours.
    "tcp_user_timeout": str(int(_STEP_S * 1000)),
}

_SETTINGS = (
    "SELECT set_config(name, value, false) FROM (VALUES"
    " ('default_transaction_isolation', 'serializable'), ('synchronous_commit', 'on'),"
    " ('enable_seqscan', 'off'), ('enable_bitmapscan', 'off'), ('jit', 'off'),"
    " ('lock_timeout', '4s'), ('statement_timeout', '5s'),"
    " ('idle_in_transaction_session_timeout', '5s')) AS settings (name, value)"
    # A cluster that is told not to wait for its standbys, or not for itself, keeps its own choice.
    " WHERE name <> 'synchronous_commit' OR current_setting(name) IN ('off', 'local')"
)
_LAY_OUT: tuple[LiteralString, ...] = (
    "SELECT pg_advisory_xact_lock(7306357456645985622)",
    "CREATE TABLE IF NOT EXISTS exastore_kv (k bytea PRIMARY KEY, v bytea NOT NULL)",
    "CREATE TABLE IF NOT EXISTS exastore_kv_turn (layout_version int NOT NULL)",
    "INSERT INTO exastore_kv_turn SELECT 1 WHERE NOT EXISTS (SELECT FROM exastore_kv_turn)",
)
_TURN_BESIDE_OTHERS = "LOCK TABLE exastore_kv_turn IN ROW SHARE MODE"
_TURN_ALONE = "LOCK TABLE exastore_kv_turn IN EXCLUSIVE MODE"
_GET = "SELECT k, v FROM exastore_kv WHERE k = ANY(%b)"
_PUT = (
    "INSERT INTO exastore_kv SELECT * FROM unnest(%b::bytea[], %b::bytea[]) AS pairs (k, v)"
    " WHERE length(k) <= 2048"
    " ON CONFLICT (k) DO UPDATE SET v = excluded.v"
)
_DELETE = "DELETE FROM exastore_kv WHERE k = ANY(%b)"

#: What psycopg prepares by itself within a round trip that fails is not there afterwards, and
#: psycopg does not know. So we say which statements are prepared, and when.
_NEVER_BY_ITSELF = 1 << 30

#: Rows, for a scan without a limit: parameters of one type make one prepared statement.
_ALL = 1 << 62

#: Longer than a key can be: a put of it is left out, and there is none to delete.
_NO_KEY = bytes(2049)

_CONFLICTS = (sql.SerializationFailure, sql.DeadlockDetected, sql.UniqueViolation)
#: The server is going, is coming, follows another one, or did not get to it in time.
_AWAY = (
    sql.OperationalError,
    sql.InterfaceError,
    sql.ReadOnlySqlTransaction,
    sql.QueryCanceled,
    sql.LockNotAvailable,
    sql.IdleInTransactionSessionTimeout,
)


def open_postgres(url: str, *, patience_s: float = PATIENCE_S) -> RemoteEngine:
    """An engine on the database of a libpq URL; it connects when it is used.

    Several hosts and `target_session_attrs=read-write` follow a failover. Raises EngineUnavailable.
    """
    try:
        given = conninfo_to_dict(url)
    except psycopg.Error as error:
        raise EngineUnavailable(f"the engine's URL is not one of PostgreSQL: {error}") from error
    conninfo = make_conninfo(
        url, **{key: value for key, value in _DEFAULTS.items() if key not in given}
    )
    return RemoteEngine(PostgresBackend(conninfo), patience_s=patience_s)


class PostgresBackend:
    """`Backend` over one database.

    Args:
        conninfo: What libpq understands.
    """

    def __init__(self, conninfo: str) -> None:
        self._conninfo = conninfo
        given = conninfo_to_dict(conninfo)
        #: Without the password.
        self.name = " ".join(f"{key}={given.get(key)}" for key in ("host", "port", "dbname"))
        #: Connections that nobody uses, each outside of a transaction.
        self._idle: list[_Connection] = []
        self._is_laid_out = False
        #: Batches that will still exclude other writers, because one met a conflict lately.
        self._alone_count = 0

    @asynccontextmanager
    async def snapshot(self, *, read_only: bool, conflict_count: int) -> AsyncGenerator[Snapshot]:
        snapshot = _PostgresSnapshot(self, read_only, conflict_count)
        try:
            yield snapshot
        finally:
            await snapshot.release()

    def next_turn(self, conflict_count: int) -> LiteralString:
        """How the next batch takes its turn: beside others, or alone when they would meet."""
        if conflict_count:
            self._alone_count = _ALONE_COUNT
        if self._alone_count == 0:
            return _TURN_BESIDE_OTHERS
        self._alone_count -= 1
        return _TURN_ALONE

    def new_batch(self) -> Batch:
        return Batch(read_only=False, written_bytes_max=_WRITTEN_BYTES_MAX)

    async def close(self) -> None:
        for connection in self._idle:
            await connection.close()
        self._idle.clear()

    async def take(self) -> _Connection:
        """A connection. Raises Unreachable, EngineError."""
        while self._idle:
            connection = self._idle.pop()
            if not connection.closed:
                return connection
        try:
            return await self._connect()
        except EngineError:
            raise
        except psycopg.Error as error:
            raise self.translated(error) from error

    async def give_back(self, connection: _Connection) -> None:
        """Keep a connection for the next one; what is left of its transaction ends."""
        try:
            if connection.pgconn.transaction_status != TransactionStatus.IDLE:
                with _HangUpAfter(connection, _STEP_S):
                    await connection.rollback()  # which also forgets the prepared statements
                    await _prepare(connection)
            if connection.pgconn.transaction_status == TransactionStatus.IDLE:
                self._idle.append(connection)
                return
        except psycopg.Error:
            pass  # whatever it was, its connection is not used again
        await connection.close()

    def forget_idle(self) -> None:
        """The server went away: other connections are likely to be as dead."""
        for connection in self._idle:
            connection.pgconn.finish()
        self._idle.clear()

    async def _connect(self) -> _Connection:
        connection: _Connection = await psycopg.AsyncConnection.connect(
            self._conninfo, autocommit=True, prepare_threshold=_NEVER_BY_ITSELF
        )
        try:
            with _HangUpAfter(connection, _STEP_S):
                await connection.execute(_SETTINGS)
                if not self._is_laid_out:
                    await self._lay_out(connection)
                await _prepare(connection)
        except BaseException:
            await connection.close()
            raise
        return connection

    async def _lay_out(self, connection: _Connection) -> None:
        found = await (
            await connection.execute("SELECT to_regclass('exastore_kv_turn') IS NOT NULL")
        ).fetchone()
        if found is None or not found[0]:
            async with connection.transaction():
                # Not serialisable: the second of two servers must see what the first one made.
                await connection.execute("SET TRANSACTION ISOLATION LEVEL READ COMMITTED")
                for statement in _LAY_OUT:
                    await connection.execute(statement)
        versions = await (
            await connection.execute("SELECT layout_version FROM exastore_kv_turn")
        ).fetchall()
        if versions != [(_LAYOUT_VERSION,)]:
            raise EngineCorrupt(
                f"{self.name} has layout versions {[row[0] for row in versions]}; "
                f"this release reads version {_LAYOUT_VERSION}"
            )
        self._is_laid_out = True

    def translated(self, error: psycopg.Error) -> EngineError:
        """PostgreSQL's error as one of ours, for a transaction that was surely not committed."""
        text = str(error).strip().replace("\n", "; ")
        if isinstance(error, _CONFLICTS):
            return Conflict(text)
        if isinstance(error, sql.DiskFull):
            return EngineFull(
                f"no space left for the metadata engine {self.name}: free or add space"
            )
        if isinstance(error, sql.DataCorrupted | sql.IndexCorrupted):
            return EngineCorrupt(f"the metadata engine {self.name} is damaged: {text}")
        if isinstance(error, _AWAY) and not isinstance(
            error, sql.InvalidPassword | sql.InvalidAuthorizationSpecification
        ):
            return Unreachable(f"the metadata engine {self.name} cannot be reached: {text}")
        return EngineUnavailable(f"the metadata engine {self.name} cannot serve: {text}")


class _PostgresSnapshot:
    """One transaction, begun by the first statement that it needs."""

    def __init__(self, backend: PostgresBackend, read_only: bool, conflict_count: int) -> None:
        self._backend = backend
        self._read_only = read_only
        self._conflict_count = conflict_count
        self._connection: _Connection | None = None
        self._is_open = False

    async def fetch(self, reads: Reads, cache: SnapshotCache) -> None:
        connection = await self._connected()
        ranges = list(reads.ranges)
        keys = list(reads.keys)
        try:
            with _HangUpAfter(connection, _STEP_S):
                async with _one_round_trip(connection):
                    await self._begin(connection)
                    got = connection.cursor(binary=True)
                    if keys:
                        await got.execute(_GET, (keys,))
                    scanned = [await _scan(connection, read) for read in ranges]
                values: dict[bytes, bytes] = dict(await got.fetchall()) if keys else {}
                rows = [await cursor.fetchall() for cursor in scanned]
        except psycopg.Error as error:
            raise self._failed(error) from error
        cache.values.update((key, values.get(key)) for key in keys)
        cache.rows.update(zip(ranges, rows, strict=True))

    async def finish(self) -> None:
        if not self._is_open or self._connection is None:
            return
        try:
            with _HangUpAfter(self._connection, _STEP_S):
                await self._connection.execute("COMMIT", prepare=False)
        except psycopg.Error as error:
            raise self._failed(error) from error
        self._is_open = False

    async def commit(self, batch: Batch) -> None:
        connection = await self._connected()
        if not self._is_open:
            # A round trip of its own: a connection that died while idle is no lost commit.
            await self.fetch(Reads(), batch.cache)
        puts = [(key, value) for key, value in batch.writes.items() if value is not None]
        deletions = [key for key, value in batch.writes.items() if value is None]
        reach(Phase.ENGINE_COMMITTING)
        try:
            with _HangUpAfter(connection, _STEP_S):
                async with _one_round_trip(connection):
                    if puts:
                        keys, values = zip(*puts, strict=True)
                        await connection.execute(_PUT, (list(keys), list(values)))
                    if deletions:
                        await connection.execute(_DELETE, (deletions,))
                    ended = await connection.execute("COMMIT", prepare=False)
        except psycopg.Error as error:
            if connection.closed or not says_aborted(error):
                self._backend.forget_idle()
                raise CommitUnknown(
                    f"the answer of {self._backend.name} to a commit was lost: {error}"
                ) from error
            raise self._failed(error) from error
        reach(Phase.ENGINE_COMMITTED)
        self._is_open = False
        # A transaction that failed before answers COMMIT with ROLLBACK, without an error.
        assert ended.statusmessage == "COMMIT", ended.statusmessage

    async def release(self) -> None:
        """Give the connection back."""
        if self._connection is not None:
            connection, self._connection = self._connection, None
            await self._backend.give_back(connection)

    async def _connected(self) -> _Connection:
        if self._connection is None:
            self._connection = await self._backend.take()
        return self._connection

    async def _begin(self, connection: _Connection) -> None:
        if self._is_open:
            return
        self._is_open = True
        if not self._read_only:
            await connection.execute("BEGIN", prepare=False)
            await connection.execute(self._backend.next_turn(self._conflict_count), prepare=False)
        elif self._conflict_count < _SAFE_SNAPSHOT_CONFLICT_COUNT:
            await connection.execute("BEGIN READ ONLY")
        else:
            await connection.execute("BEGIN READ ONLY DEFERRABLE")

    def _failed(self, error: psycopg.Error) -> EngineError:
        translated = self._backend.translated(error)
        if isinstance(translated, Unreachable):
            self._backend.forget_idle()
        return translated


def says_aborted(error: psycopg.Error) -> bool:
    """Whether it is the server's word that a transaction was not committed.

    An error without a code is the client's: it lost count of the answers, of which the one to the
    COMMIT may have been good. Codes 57P are of a server that ends, maybe after it committed; codes
    08 are of the line.
    """
    code = error.sqlstate
    return code is not None and not code.startswith(("57P", "08"))


@asynccontextmanager
async def _one_round_trip(connection: _Connection) -> AsyncGenerator[None]:
    """Send the statements of the block together.

    The first error is raised after the block's end: leaving it with one, psycopg logs what the
    server skipped because of it.
    """
    first: psycopg.Error | None = None
    try:
        async with connection.pipeline():
            try:
                yield
            except psycopg.Error as error:
                first = error
    except psycopg.Error as error:
        first = first or error
    if first is not None:
        raise first


async def _prepare(connection: _Connection) -> None:
    """Prepare what is executed often, outside of any transaction; nothing is changed."""
    async with connection.pipeline():
        await connection.cursor(binary=True).execute(_GET, ([b""],), prepare=True)
        await connection.execute(_PUT, ([_NO_KEY], [b""]), prepare=True)
        await connection.execute(_DELETE, ([_NO_KEY],), prepare=True)
        for reverse in (False, True):
            for keys_only in (False, True):
                await _scan(connection, RangeRead(b"", b"", 1, reverse, keys_only), prepare=True)


async def _scan(
    connection: _Connection, read: RangeRead, *, prepare: bool | None = None
) -> psycopg.AsyncCursor[tuple[Any, ...]]:
    columns: LiteralString = "k, ''::bytea" if read.keys_only else "k, v"
    order: LiteralString = "DESC" if read.reverse else "ASC"
    cursor = connection.cursor(binary=True)
    await cursor.execute(
        f"SELECT {columns} FROM exastore_kv WHERE k >= %b AND k < %b ORDER BY k {order} LIMIT %b",
        (read.begin, read.end, Int8(_ALL if read.limit is None else read.limit)),
        prepare=prepare,
    )
    return cursor


class _HangUpAfter:
    """Cut the connection if the block takes longer: a server that is stopped never answers.

    Shutting the socket down wakes the waiting call with an error, where cancelling it would first
    ask that same server to cancel.
    """

    def __init__(self, connection: _Connection, timeout_s: float) -> None:
        self._connection = connection
        self._timer = asyncio.get_running_loop().call_later(timeout_s, self._hang_up)

    def __enter__(self) -> None:
        return None

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()

    def _hang_up(self) -> None:
        with suppress(OSError, psycopg.Error):
            duplicate = socket.fromfd(
                self._connection.pgconn.socket, socket.AF_UNSPEC, socket.SOCK_STREAM
            )
            with duplicate:
                duplicate.shutdown(socket.SHUT_RDWR)
