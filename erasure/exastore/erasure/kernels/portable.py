"""The portable kernel: tables, for any CPU.

Eight output rows share one table of 64-bit words per input: word x holds, in its byte r, the
product of x with the coefficient of row r. So one lookup and one XOR per input byte serve up to
eight rows. A block of accumulators stays in the first-level cache while all inputs are folded into
it, two at a time.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from exastore.erasure.chunks import Chunks
from exastore.erasure.field import MUL, Bytes

Words = NDArray[np.uint64]

ROWS_PER_WORD = 8
#: Accumulators of one block: 4,096 words are 32 KiB.
BLOCK_BYTES = 4096


@dataclass(frozen=True, slots=True)
class PortableMap:
    """A matrix as tables."""

    #: tables[group, column, x], the products of x with eight rows, row r in bits 8r..8r+7.
    tables: Words

    def apply(self, inputs: Any, outputs: Any) -> bool:
        """See `LinearMap.apply`."""
        return False

    def __call__(self, inputs: Chunks, outputs: Chunks, threads: int = 1) -> None:
        """See `LinearMap.__call__`."""
        accumulator = np.empty(BLOCK_BYTES, dtype=np.uint64)
        for start in range(0, inputs.chunk_bytes, BLOCK_BYTES):
            sources = [array[start : start + BLOCK_BYTES] for array in inputs.arrays]
            targets = [array[start : start + BLOCK_BYTES] for array in outputs.arrays]
            for group, tables in enumerate(self.tables):
                rows = targets[group * ROWS_PER_WORD : (group + 1) * ROWS_PER_WORD]
                _apply_group(tables, sources, rows, accumulator)


def _apply_group(
    tables: Words, sources: list[Bytes], targets: list[Bytes], accumulator: Words
) -> None:
    # Imported at the first use: it takes half a second.
    from exastore.erasure.kernels._table_loops import extract, fold_one, fold_two

    accumulator.fill(0)
    for column in range(0, len(sources) - 1, 2):
        fold_two(
            tables[column], tables[column + 1], sources[column], sources[column + 1], accumulator
        )
    if len(sources) % 2:
        fold_one(tables[len(sources) - 1], sources[-1], accumulator)
    for row, target in enumerate(targets):
        extract(accumulator, np.uint64(8 * row), target)


@dataclass(frozen=True, slots=True)
class PortableKernel:
    """Table lookups."""

    name: str = "portable"

    def prepare(self, matrix: Bytes) -> PortableMap:
        """See `Kernel.prepare`."""
        row_count, column_count = matrix.shape
        group_count = -(-row_count // ROWS_PER_WORD)
        tables = np.zeros((group_count, column_count, 256), dtype=np.uint64)
        for row in range(row_count):
            products = MUL[matrix[row]].astype(np.uint64)
            tables[row // ROWS_PER_WORD] |= products << np.uint64(8 * (row % ROWS_PER_WORD))
        return PortableMap(tables)
