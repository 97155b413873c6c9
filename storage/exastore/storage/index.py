"""Where the chunks of a device are: the changes of late in memory, the rest in an index file.

Theory of operation: every change goes to `_fresh`. Once there are many, `freeze` sets them aside as
a checkpoint, which a thread commits to the file while new changes gather; `thaw` drops them. A look
goes through fresh, frozen and file, in this order. Memory holds the changes of two checkpoints at
most, and two numbers for each PG and segment.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from exastore.storage.index_file import (
    Changes,
    Entry,
    IndexFile,
    PgUsage,
    SegmentUsage,
    Summary,
)
from exastore.storage.record import ChunkKey, Position

_MISSING = object()


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Changes that are being written to the file."""

    changes: Changes
    summary: Summary


class ChunkIndex:
    """Not thread-safe, but for `commit`: the store guards it. Raises IndexDamaged."""

    def __init__(self, file: IndexFile, summary: Summary) -> None:
        self._file = file
        #: Newer than what is frozen, which is newer than the file.
        self._fresh: Changes = {}
        self._frozen: Changes = {}
        #: Number of chunks in `_fresh`, dead ones included.
        self.fresh_count = 0
        #: PG -> its chunks; no PG is empty.
        self._pgs = dict(summary.pgs)
        #: Segment -> bytes of its live records; absent: none.
        self.live_bytes = {
            segment: usage.live_bytes
            for segment, usage in summary.segments.items()
            if usage.live_bytes
        }
        #: Equal to the sums over `_pgs`.
        self.chunk_count = sum(usage.chunk_count for usage in self._pgs.values())
        self.chunk_bytes = sum(usage.chunk_bytes for usage in self._pgs.values())

    # ---- looking ----

    def get(self, key: ChunkKey) -> Entry | None:
        place = (key.stripe_id, key.chunk_index)
        for changes in (self._fresh, self._frozen):
            chunks = changes.get(key.pg)
            if chunks is not None:
                entry = chunks.get(place, _MISSING)
                if entry is not _MISSING:
                    return entry  # type: ignore[return-value]
        return self._file.get(key) if key.pg in self._pgs else None

    def pgs(self) -> list[int]:
        return sorted(self._pgs)

    def of_pg(self, pg: int) -> list[tuple[ChunkKey, Entry]]:
        """In order of stripe id and index."""
        if pg not in self._pgs:
            return []
        chunks: dict[tuple[bytes, int], Entry | None] = dict(self._file.of_pg(pg))
        chunks |= self._frozen.get(pg, {})
        chunks |= self._fresh.get(pg, {})
        return [
            (ChunkKey(pg, *place), entry)
            for place, entry in sorted(chunks.items(), key=lambda item: item[0])
            if entry is not None
        ]

    def usage(self) -> dict[int, PgUsage]:
        return dict(self._pgs)

    def __iter__(self) -> Iterator[tuple[ChunkKey, Entry]]:
        for pg in self.pgs():
            yield from self.of_pg(pg)

    # ---- changing ----

    def apply(self, key: ChunkKey, entry: Entry | None) -> Entry | None:
        """Take note of a durable record, None: of a delete; returns the chunk that died by it."""
        return self.remove(key) if entry is None else self.put(key, entry)

    def put(self, key: ChunkKey, entry: Entry) -> Entry | None:
        """Returns what it replaces."""
        old = self.get(key)
        if old is not None:
            self._count(key.pg, old, -1)
        self._count(key.pg, entry, 1)
        self._change(key, entry)
        return old

    def remove(self, key: ChunkKey) -> Entry | None:
        """Returns what was there."""
        old = self.get(key)
        if old is not None:
            self._count(key.pg, old, -1)
            self._change(key, None)
        return old

    def _change(self, key: ChunkKey, entry: Entry | None) -> None:
        chunks = self._fresh.setdefault(key.pg, {})
        before = len(chunks)
        chunks[key.stripe_id, key.chunk_index] = entry
        self.fresh_count += len(chunks) - before

    def _count(self, pg: int, entry: Entry, sign: int) -> None:
        usage = self._pgs.get(pg, PgUsage(0, 0))
        usage = PgUsage(usage.chunk_count + sign, usage.chunk_bytes + sign * entry.data_bytes)
        if usage.chunk_count:
            self._pgs[pg] = usage
        else:
            del self._pgs[pg]
        live = self.live_bytes.get(entry.segment, 0) + sign * entry.record_bytes
        if live:
            self.live_bytes[entry.segment] = live
        else:
            del self.live_bytes[entry.segment]
        self.chunk_count += sign
        self.chunk_bytes += sign * entry.data_bytes

    # ---- checkpoints ----

    def freeze(self, position: Position, used_bytes: dict[int, int]) -> Checkpoint:
        """Set the changes aside; the index speaks of all records before `position`."""
        assert not self._frozen, "one checkpoint at a time"
        self._frozen, self._fresh, self.fresh_count = self._fresh, {}, 0
        segments = {
            segment: SegmentUsage(used, self.live_bytes.get(segment, 0))
            for segment, used in used_bytes.items()
        }
        return Checkpoint(self._frozen, Summary(position, dict(self._pgs), segments))

    def commit(self, checkpoint: Checkpoint) -> None:
        """Write it to the file; any thread, beside readers. Raises IndexDamaged, IndexFull."""
        self._file.commit(checkpoint.changes, checkpoint.summary)

    def thaw(self, *, committed: bool) -> None:
        """The checkpoint is in the file, or it is not and its changes go back."""
        if not committed:
            for pg, chunks in self._fresh.items():
                self._frozen.setdefault(pg, {}).update(chunks)
            self._fresh = self._frozen
            self.fresh_count = sum(len(chunks) for chunks in self._fresh.values())
        self._frozen = {}

    def save(self, position: Position, used_bytes: dict[int, int]) -> None:
        """A whole checkpoint at once, when nobody else uses the index. Raises as `commit` does."""
        self.commit(self.freeze(position, used_bytes))
        self.thaw(committed=True)

    def close(self) -> None:
        self._file.close()

    def validate(self) -> None:
        """Check the invariants of the attributes."""
        chunks = list(self)
        assert self.chunk_count == len(chunks)
        assert self.chunk_bytes == sum(entry.data_bytes for _, entry in chunks)
        live: dict[int, int] = {}
        pgs: dict[int, PgUsage] = {}
        for key, entry in chunks:
            live[entry.segment] = live.get(entry.segment, 0) + entry.record_bytes
            usage = pgs.get(key.pg, PgUsage(0, 0))
            pgs[key.pg] = PgUsage(usage.chunk_count + 1, usage.chunk_bytes + entry.data_bytes)
        assert self.live_bytes == live
        assert self._pgs == pgs
        assert self.fresh_count == sum(len(chunks) for chunks in self._fresh.values())
