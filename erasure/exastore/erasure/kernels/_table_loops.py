"""The inner loops of the portable kernel, apart because importing numba takes half a second."""

import numpy as np
from numpy.typing import NDArray

from exastore.erasure.field import Bytes
from exastore.erasure.jit import njit

Words = NDArray[np.uint64]


@njit
def fold_one(table: Words, chunk: Bytes, accumulator: Words) -> None:
    for i in range(chunk.size):
        accumulator[i] ^= table[chunk[i]]


@njit
def fold_two(
    table: Words, other_table: Words, chunk: Bytes, other: Bytes, accumulator: Words
) -> None:
    for i in range(chunk.size):
        accumulator[i] ^= table[chunk[i]] ^ other_table[other[i]]


@njit
def extract(accumulator: Words, shift: np.uint64, chunk: Bytes) -> None:
    for i in range(chunk.size):
        chunk[i] = np.uint8((accumulator[i] >> shift) & np.uint64(255))
