"""The field GF(2^8): bytes, with x^8 + x^4 + x^3 + x^2 + 1 (0x11D) as the modulus and g = 2.

Addition is XOR. Pure NumPy: used for the small matrices of a code, never for the chunks themselves.
The slow twin that the tests compare with is `_reference.py`.
"""

from typing import Final

import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]

POLYNOMIAL: Final = 0x11D
GENERATOR: Final = 2
#: Size of the field; the multiplicative group has one element less.
ORDER: Final = 256


def _exp_and_log() -> tuple[Bytes, NDArray[np.int64]]:
    exp = np.zeros(2 * (ORDER - 1), dtype=np.uint8)
    log = np.zeros(ORDER, dtype=np.int64)
    value = 1
    for power in range(ORDER - 1):
        exp[power] = exp[power + ORDER - 1] = value
        log[value] = power
        value <<= 1
        if value & ORDER:
            value ^= POLYNOMIAL
    return exp, log


def _products(exp: Bytes, log: NDArray[np.int64]) -> Bytes:
    table: Bytes = exp[log[:, None] + log[None, :]]
    table[0, :] = 0
    table[:, 0] = 0
    return table


#: EXP[i] = g^i, twice over, so that the sum of two logarithms needs no reduction.
#: LOG[0] is meaningless (0 has no logarithm) and is 0.
EXP, LOG = _exp_and_log()
#: MUL[a, b] = a * b.
MUL: Final[Bytes] = _products(EXP, LOG)
for _table in (EXP, LOG, MUL):
    _table.flags.writeable = False


def multiply(a: int, b: int) -> int:
    """The product of two elements."""
    return int(MUL[a, b])


def inverse(a: int) -> int:
    """The element whose product with `a` is 1.

    Raises:
        ZeroDivisionError: `a` is 0.
    """
    if a == 0:
        raise ZeroDivisionError("0 has no inverse in GF(2^8)")
    return int(EXP[ORDER - 1 - int(LOG[a])])


def matmul(a: Bytes, b: Bytes) -> Bytes:
    """The matrix product. Shape: [p, q] and [q, r] give [p, r], a new array. Dtype: uint8."""
    product = np.zeros((a.shape[0], b.shape[1]), dtype=np.uint8)
    for inner in range(a.shape[1]):
        product ^= MUL[a[:, inner, None], b[None, inner, :]]
    return product


def invert(matrix: Bytes) -> Bytes:
    """The inverse of a square matrix by Gauss-Jordan elimination. Shape: [k, k], a new array.

    Raises:
        ZeroDivisionError: the matrix is singular.
    """
    size = matrix.shape[0]
    assert matrix.shape == (size, size), matrix.shape
    work = np.concatenate([matrix, np.eye(size, dtype=np.uint8)], axis=1)
    for column in range(size):
        pivots = np.flatnonzero(work[column:, column])
        if pivots.size == 0:
            raise ZeroDivisionError("the matrix is singular")
        pivot = column + int(pivots[0])
        if pivot != column:
            work[[column, pivot]] = work[[pivot, column]]
        work[column] = MUL[inverse(int(work[column, column])), work[column]]
        factors = work[:, column].copy()
        factors[column] = 0
        work ^= MUL[factors[:, None], work[column][None, :]]
    return work[:, size:].copy()
