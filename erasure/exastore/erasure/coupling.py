"""Combinations of two rows of bytes, many at a time: what couples the symbols of a Clay code.

Every symbol of a pair follows from any two of the four values C, C* (as stored) and U, U* (as the
inner code sees them), with U = C + 2 C* and U* = C* + 2 C. Multiplication by 2, and division by 2,
are a shift and an XOR, eight bytes in a word; the compiler makes vectors of the words. So this is
fast on any CPU, and only one of the five cases, both U known, needs more (times 1 / (1 + 2^2)).
"""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from exastore.erasure.jit import njit

Words = NDArray[np.uint64]
Rows = NDArray[np.int64]


class Kind(IntEnum):
    """How a job makes its row of two others, a and b."""

    #: a. Of a symbol that is not paired.
    COPY = 0
    #: a + 2 b. U of C and C*; also C of U and C*.
    COUPLE = 1
    #: 5 a + 2 b. U of C and U*.
    REACH = 2
    #: (a + 2 b) / 5. C of U and U*.
    SOLVE = 3
    #: (a + b) / 2. C* of U and C.
    HALVE = 4


@dataclass(frozen=True, slots=True)
class Jobs:
    """Rows to make, of rows that none of these jobs makes."""

    #: One line per job: kind, row to make, row a, row b. Shape: [jobs, 4]. Dtype: int64.
    lines: Rows

    @classmethod
    def of(cls, parts: Iterable[tuple[Kind, Rows, Rows, Rows]]) -> "Jobs":
        """Join parts of one kind each: the rows to make, rows a, rows b."""
        blocks = [
            np.stack([np.full_like(made, kind), made, a, b], axis=1)
            for kind, made, a, b in parts
            if made.size
        ]
        lines = np.concatenate(blocks) if blocks else np.empty((0, 4), dtype=np.int64)
        return cls(np.ascontiguousarray(lines))

    def run(self, rows: Words) -> None:
        """Make the rows. Shape: [rows, words of a row]."""
        if self.lines.size:
            _run(self.lines, rows)


@njit
def _run(lines: Rows, rows: Words) -> None:
    # Constants repeat a byte eight times. Doubling: what is shifted out of a byte comes back as
    # 0x1D; halving: as 0x8E.
    high, low = np.uint64(0x8080808080808080), np.uint64(0x0101010101010101)
    back, half_back = np.uint64(0x1D1D1D1D1D1D1D1D), np.uint64(0x8E8E8E8E8E8E8E8E)
    one, seven = np.uint64(1), np.uint64(7)
    for job in range(lines.shape[0]):
        kind = lines[job, 0]
        made, a, b = rows[lines[job, 1]], rows[lines[job, 2]], rows[lines[job, 3]]
        if kind == 0:
            for i in range(made.size):
                made[i] = a[i]
        elif kind == 1:
            for i in range(made.size):
                h = b[i] & high
                made[i] = a[i] ^ ((b[i] ^ h) << one) ^ ((h - (h >> seven)) & back)
        elif kind == 2:
            for i in range(made.size):
                # 5 a + 2 b = a + 2 (2 a + b)
                h = a[i] & high
                s = b[i] ^ ((a[i] ^ h) << one) ^ ((h - (h >> seven)) & back)
                h = s & high
                made[i] = a[i] ^ ((s ^ h) << one) ^ ((h - (h >> seven)) & back)
        elif kind == 3:
            for i in range(made.size):
                h = b[i] & high
                s = a[i] ^ ((b[i] ^ h) << one) ^ ((h - (h >> seven)) & back)
                # 1 / 5 is 0xA7, the bits 7, 5, 2, 1, 0: Horner, from the highest.
                p = s
                h = p & high
                p = ((p ^ h) << one) ^ ((h - (h >> seven)) & back)
                h = p & high
                p = ((p ^ h) << one) ^ ((h - (h >> seven)) & back) ^ s
                h = p & high
                p = ((p ^ h) << one) ^ ((h - (h >> seven)) & back)
                h = p & high
                p = ((p ^ h) << one) ^ ((h - (h >> seven)) & back)
                h = p & high
                p = ((p ^ h) << one) ^ ((h - (h >> seven)) & back) ^ s
                h = p & high
                p = ((p ^ h) << one) ^ ((h - (h >> seven)) & back) ^ s
                h = p & high
                made[i] = ((p ^ h) << one) ^ ((h - (h >> seven)) & back) ^ s
        else:
            for i in range(made.size):
                s = a[i] ^ b[i]
                odd = s & low
                h = odd << seven
                made[i] = ((s ^ odd) >> one) ^ (((h - (h >> seven)) | h) & half_back)
