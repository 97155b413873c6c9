"""Where the chunks of a device are: a dictionary in memory, grouped by placement group.

It holds nothing that the segments do not hold, so it is rebuilt from them at start.
"""

from collections.abc import Iterator
from typing import NamedTuple

from exastore.storage.record import ChunkKey


class Entry(NamedTuple):
    """Where a chunk lies and what its header says."""

    segment: int
    offset_bytes: int
    header_bytes: int
    data_bytes: int
    generation: int
    crc32c: int
    code: str


class PgUsage(NamedTuple):
    """What a device holds of one placement group."""

    chunk_count: int
    chunk_bytes: int


class ChunkIndex:
    """Not thread-safe: the store guards it."""

    def __init__(self) -> None:
        #: PG -> (stripe id, index) -> entry; no PG is empty.
        self._pgs: dict[int, dict[tuple[bytes, int], Entry]] = {}
        #: Equal to the number of entries, and to the sum of their data.
        self.chunk_count = 0
        self.chunk_bytes = 0

    def get(self, key: ChunkKey) -> Entry | None:
        chunks = self._pgs.get(key.pg)
        return None if chunks is None else chunks.get((key.stripe_id, key.chunk_index))

    def put(self, key: ChunkKey, entry: Entry) -> Entry | None:
        """Returns what it replaces."""
        old = self.remove(key)
        self._pgs.setdefault(key.pg, {})[key.stripe_id, key.chunk_index] = entry
        self.chunk_count += 1
        self.chunk_bytes += entry.data_bytes
        return old

    def remove(self, key: ChunkKey) -> Entry | None:
        """Returns what was there."""
        chunks = self._pgs.get(key.pg)
        if chunks is None:
            return None
        entry = chunks.pop((key.stripe_id, key.chunk_index), None)
        if not chunks:
            del self._pgs[key.pg]
        if entry is not None:
            self.chunk_count -= 1
            self.chunk_bytes -= entry.data_bytes
        return entry

    def pgs(self) -> list[int]:
        return sorted(self._pgs)

    def of_pg(self, pg: int) -> list[tuple[ChunkKey, Entry]]:
        """A copy, in order of stripe id and index."""
        return [
            (ChunkKey(pg, stripe_id, index), entry)
            for (stripe_id, index), entry in sorted(self._pgs.get(pg, {}).items())
        ]

    def usage(self) -> dict[int, PgUsage]:
        return {
            pg: PgUsage(len(chunks), sum(entry.data_bytes for entry in chunks.values()))
            for pg, chunks in self._pgs.items()
        }

    def __iter__(self) -> Iterator[tuple[ChunkKey, Entry]]:
        for pg in self.pgs():
            yield from self.of_pg(pg)

    def validate(self) -> None:
        """Check the invariants of the attributes."""
        assert all(self._pgs.values())
        entries = [entry for chunks in self._pgs.values() for entry in chunks.values()]
        assert self.chunk_count == len(entries)
        assert self.chunk_bytes == sum(entry.data_bytes for entry in entries)
