"""The index on disk: a SQLite database beside the segments, brought up to date now and then.

It holds nothing that the segments do not hold. It names the place in the log up to which it
speaks; what lies behind is replayed from the segments. A commit moves all of it in one transaction,
so after a crash it is an earlier state, never a mixture. One that is damaged, of another device or
of another format is made anew from the segments.

SQLite and not a memory-mapped store: it reads with system calls, so a bad sector is an error that
can be handled and not the end of the process, and its memory is bounded by its page cache.
"""

import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, Protocol

from exastore.storage.errors import IndexDamaged, IndexFull
from exastore.storage.record import ChunkKey, Position

_FORMAT_VERSION = 1
_START = Position(0, 0)
_CACHE_KIB = 8_192
_TABLES = """
CREATE TABLE about (format INTEGER, device BLOB, segment INTEGER, offset INTEGER);
CREATE TABLE pgs (pg INTEGER PRIMARY KEY, chunk_count INTEGER, chunk_bytes INTEGER);
CREATE TABLE segments (segment INTEGER PRIMARY KEY, used_bytes INTEGER, live_bytes INTEGER);
CREATE TABLE chunks (
    pg INTEGER, stripe BLOB, slot INTEGER, segment INTEGER, offset INTEGER, header_bytes INTEGER,
    data_bytes INTEGER, generation INTEGER, crc32c INTEGER, code TEXT, oldest_segment INTEGER,
    PRIMARY KEY (pg, stripe, slot)
) WITHOUT ROWID;
"""
_COLUMNS = "segment, offset, header_bytes, data_bytes, generation, crc32c, code, oldest_segment"


class Entry(NamedTuple):
    """Where a chunk lies and what its header says.

    `oldest_segment`: no segment before it holds a record of this identity that counts if this one
    is lost (see `record.Kill`).
    """

    segment: int
    offset_bytes: int
    header_bytes: int
    data_bytes: int
    generation: int
    crc32c: int
    code: str
    oldest_segment: int

    @property
    def position(self) -> Position:
        return Position(self.segment, self.offset_bytes)

    @property
    def record_bytes(self) -> int:
        return self.header_bytes + self.data_bytes


class PgUsage(NamedTuple):
    """What a device holds of one placement group."""

    chunk_count: int
    chunk_bytes: int


class SegmentUsage(NamedTuple):
    """Bytes that a segment takes on disk, and those of them that are live records."""

    used_bytes: int
    live_bytes: int


@dataclass(frozen=True, slots=True)
class Summary:
    """What an index says about the device as a whole.

    Attributes:
        position: The index speaks of all records before this place.
        pgs: Every PG with chunks.
        segments: Every segment up to the position.
    """

    position: Position = _START
    pgs: Mapping[int, PgUsage] = field(default_factory=dict[int, PgUsage])
    segments: Mapping[int, SegmentUsage] = field(default_factory=dict[int, SegmentUsage])


#: By PG, then by stripe id and slot; None: the chunk is gone.
Changes = dict[int, dict[tuple[bytes, int], Entry | None]]


class IndexFile(Protocol):
    """The durable half of the index. Reads may come from any thread while one thread commits.

    Every method raises IndexDamaged when the file cannot be trusted.
    """

    def load(self, device_uuid: bytes) -> Summary:
        """What it says; an empty summary, and an empty index, if there is nothing to trust."""
        ...

    def clear(self) -> None:
        """Forget everything."""
        ...

    def get(self, key: ChunkKey) -> Entry | None: ...

    def of_pg(self, pg: int) -> Iterator[tuple[tuple[bytes, int], Entry]]:
        """In order of stripe id and slot."""
        ...

    def commit(self, changes: Changes, summary: Summary) -> None:
        """All or nothing, durably. Raises IndexFull if the disk is full: nothing changed."""
        ...

    def close(self) -> None: ...


class SqliteIndexFile:
    """See `IndexFile`. The caller guards reads with a lock of its own."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._device_uuid = bytes(16)
        self._reader: sqlite3.Connection | None = None
        self._writer: sqlite3.Connection | None = None

    def load(self, device_uuid: bytes) -> Summary:
        self._device_uuid = device_uuid
        if self._path.exists():
            try:
                self._open()
                return self._load(device_uuid)
            except (sqlite3.Error, IndexDamaged):
                self.close()
        self.clear()
        return Summary()

    def clear(self) -> None:
        self.close()
        for suffix in ("", "-wal", "-shm"):
            self._path.with_name(self._path.name + suffix).unlink(missing_ok=True)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        try:
            writer = self._open()
            writer.executescript(_TABLES)
            about = (_FORMAT_VERSION, self._device_uuid, 0, 0)
            with writer:
                writer.execute("INSERT INTO about VALUES (?, ?, ?, ?)", about)
        except sqlite3.Error as error:
            raise IndexDamaged(f"{self._path}: {error}") from error

    def _open(self) -> sqlite3.Connection:
        self._writer = self._connect()
        self._writer.execute("PRAGMA journal_mode = WAL")
        self._writer.execute("PRAGMA synchronous = FULL")
        self._reader = self._connect()
        self._reader.execute("PRAGMA query_only = 1")
        return self._writer

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self._path, check_same_thread=False, isolation_level=None)
        connection.execute(f"PRAGMA cache_size = -{_CACHE_KIB}")
        return connection

    def _load(self, device_uuid: bytes) -> Summary:
        assert self._reader is not None
        (about,) = self._reader.execute("SELECT format, device, segment, offset FROM about")
        if about[:2] != (_FORMAT_VERSION, device_uuid):
            raise IndexDamaged(f"{self._path} is of another device or format")
        pgs = self._reader.execute("SELECT pg, chunk_count, chunk_bytes FROM pgs")
        segments = self._reader.execute("SELECT segment, used_bytes, live_bytes FROM segments")
        return Summary(
            Position(*about[2:]),
            {row[0]: PgUsage(*row[1:]) for row in pgs},
            {row[0]: SegmentUsage(*row[1:]) for row in segments},
        )

    def get(self, key: ChunkKey) -> Entry | None:
        assert self._reader is not None
        query = f"SELECT {_COLUMNS} FROM chunks WHERE pg = ? AND stripe = ? AND slot = ?"
        try:
            row = self._reader.execute(query, key).fetchone()
        except sqlite3.Error as error:
            raise IndexDamaged(f"{self._path}: {error}") from error
        return None if row is None else Entry(*row)

    def of_pg(self, pg: int) -> Iterator[tuple[tuple[bytes, int], Entry]]:
        assert self._reader is not None
        query = f"SELECT stripe, slot, {_COLUMNS} FROM chunks WHERE pg = ? ORDER BY stripe, slot"
        try:
            with closing(self._reader.execute(query, (pg,))) as rows:
                for row in rows:
                    yield (row[0], row[1]), Entry(*row[2:])
        except sqlite3.Error as error:
            raise IndexDamaged(f"{self._path}: {error}") from error

    def commit(self, changes: Changes, summary: Summary) -> None:
        assert self._writer is not None
        writer = self._writer
        try:
            writer.execute("BEGIN IMMEDIATE")
            try:
                self._write(writer, changes, summary)
                writer.execute("COMMIT")
            except BaseException:
                if writer.in_transaction:
                    writer.execute("ROLLBACK")
                raise
        except sqlite3.Error as error:
            if getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL:
                raise IndexFull(f"{self._path}: {error}") from error
            raise IndexDamaged(f"{self._path}: {error}") from error

    @staticmethod
    def _write(writer: sqlite3.Connection, changes: Changes, summary: Summary) -> None:
        rows = [
            (pg, *place, entry)
            for pg, chunks in sorted(changes.items())
            for place, entry in sorted(chunks.items(), key=lambda item: item[0])
        ]
        writer.executemany(
            "DELETE FROM chunks WHERE pg = ? AND stripe = ? AND slot = ?",
            [row[:3] for row in rows if row[3] is None],
        )
        writer.executemany(
            "INSERT OR REPLACE INTO chunks VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            [(*row[:3], *row[3]) for row in rows if row[3] is not None],
        )
        writer.execute("DELETE FROM pgs")
        pgs = [(pg, *usage) for pg, usage in summary.pgs.items()]
        writer.executemany("INSERT INTO pgs VALUES (?, ?, ?)", pgs)
        writer.execute("DELETE FROM segments")
        segments = [(segment, *usage) for segment, usage in summary.segments.items()]
        writer.executemany("INSERT INTO segments VALUES (?, ?, ?)", segments)
        writer.execute("UPDATE about SET segment = ?, offset = ?", summary.position)

    def close(self) -> None:
        for connection in (self._reader, self._writer):
            if connection is not None:
                connection.close()
        self._reader = self._writer = None
