"""What a repair must read: which bytes of which chunks."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from exastore.erasure.field import Bytes

#: A run of consecutive sub-chunks: the first one, and how many.
Run = tuple[int, int]


@dataclass(frozen=True, slots=True)
class RepairPlan:
    """What must be read to rebuild lost chunks.

    A chunk is `sub_chunk_count` sub-chunks of equal size, one after the other. Of every chunk in
    `reads` the same `runs` of them are read. Most codes have one sub-chunk and read it whole.
    """

    #: The chunk indexes to rebuild, ascending.
    lost: tuple[int, ...]
    #: For each chunk index to read, ascending: the fraction of its bytes that is read, in (0, 1].
    reads: Mapping[int, float]
    #: Sub-chunks of a chunk; the length of a chunk must be a multiple of it.
    sub_chunk_count: int = 1
    #: The sub-chunks to read of each chunk: ascending, neither empty nor touching.
    runs: tuple[Run, ...] = ((0, 1),)

    @property
    def read_chunk_count(self) -> int:
        """How many chunks are read from, in whole or in part."""
        return len(self.reads)

    @property
    def bytes_fraction(self) -> float:
        """Bytes read, in chunk sizes: 10.0 when ten whole chunks are read."""
        return sum(self.reads.values())

    @property
    def reads_whole_chunks(self) -> bool:
        """Whether every chunk in `reads` is read from its first byte to its last."""
        return self.runs == ((0, self.sub_chunk_count),)

    def read_bytes(self, chunk_bytes: int) -> int:
        """Bytes read when each chunk has `chunk_bytes`."""
        return sum(round(fraction * chunk_bytes) for fraction in self.reads.values())

    def fraction_runs(self, index: int) -> list[tuple[float, float]]:
        """What is read of chunk `index`, as (offset, length) in fractions of the chunk."""
        return [
            (first / self.sub_chunk_count, count / self.sub_chunk_count)
            for first, count in self._runs_of(index)
        ]

    def byte_runs(self, index: int, chunk_bytes: int) -> list[tuple[int, int]]:
        """What is read of chunk `index`, as (offset, length) in bytes."""
        sub_chunk_bytes = chunk_bytes // self.sub_chunk_count
        return [
            (first * sub_chunk_bytes, count * sub_chunk_bytes)
            for first, count in self._runs_of(index)
        ]

    def take(self, index: int, chunk: Bytes) -> Bytes:
        """The bytes of a whole chunk that `Codec.repair` wants: its runs, one after the other.

        Aliasing: the chunk itself when it is read whole, else a new array.
        """
        if self.reads_whole_chunks:
            return chunk
        runs = self.byte_runs(index, chunk.size)
        return np.concatenate([chunk[offset : offset + length] for offset, length in runs])

    def _runs_of(self, index: int) -> tuple[Run, ...]:
        return self.runs if index in self.reads else ()
