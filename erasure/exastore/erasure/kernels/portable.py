"""The portable kernel: tables, for any CPU.

Eight output rows share one table of 64-bit words per input: word x holds, in its byte r, the
product of x with the coefficient of row r. So one lookup and one XOR per input byte serve up to
eight rows. Chunks are copied in pieces to and from arrays of the kernel, which costs little beside
the lookups, so that one compiled loop serves all geometries; a block of accumulators stays in the
first-level cache, beside the tables, while all inputs are folded into it.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from exastore.erasure.chunks import Chunks
from exastore.erasure.field import MUL, Bytes

Words = NDArray[np.uint64]

ROWS_PER_WORD = 8
#: Accumulators of one block: 1,024 words are 8 KiB.
BLOCK_BYTES = 1024
#: Bytes of each chunk that are copied at once.
PIECE_BYTES = 16 * 1024


@dataclass(frozen=True, slots=True)
class PortableMap:
    """A matrix as tables."""

    #: tables[group, column, x], the products of x with eight rows, row r in bits 8r..8r+7.
    tables: Words

    def apply(self, inputs: Any, outputs: Any) -> bool:
        """See `LinearMap.apply`."""
        return False

    def __call__(self, inputs: Chunks, outputs: Chunks, threads: int = 1) -> None:
        """See `LinearMap.__call__`. One thread does it all."""
        # Imported at the first use: it takes half a second.
        from exastore.erasure.kernels._table_loops import apply_group

        k, m = len(inputs.arrays), len(outputs.arrays)
        size = min(PIECE_BYTES, inputs.chunk_bytes)
        memory = np.empty((k + m) * size, dtype=np.uint8)
        accumulator = np.empty(BLOCK_BYTES, dtype=np.uint64)
        for begin in range(0, inputs.chunk_bytes, PIECE_BYTES):
            piece = slice(begin, begin + PIECE_BYTES)
            count = min(PIECE_BYTES, inputs.chunk_bytes - begin)
            # One call copies all inputs: for short chunks, that is what counts.
            source = memory[: k * count]
            np.concatenate([array[piece] for array in inputs.arrays], out=source)
            targets = memory[k * count : (k + m) * count].reshape(m, count)
            for group, tables in enumerate(self.tables):
                first_row = group * ROWS_PER_WORD
                apply_group(tables, source.reshape(k, count), targets, first_row, accumulator)
            for target, array in zip(targets, outputs.arrays, strict=True):
                array[piece] = target


@dataclass(frozen=True, slots=True)
class PortableKernel:
    """Table lookups."""

    name: str = "portable"

    def prepare(self, matrix: Bytes, *, uniform: bool = False) -> PortableMap:
        """See `Kernel.prepare`. One code serves all matrices."""
        row_count, column_count = matrix.shape
        group_count = -(-row_count // ROWS_PER_WORD)
        tables = np.zeros((group_count, column_count, 256), dtype=np.uint64)
        for row in range(row_count):
            products = MUL[matrix[row]].astype(np.uint64)
            tables[row // ROWS_PER_WORD] |= products << np.uint64(8 * (row % ROWS_PER_WORD))
        return PortableMap(tables)
