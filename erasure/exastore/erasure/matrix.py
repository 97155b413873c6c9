"""Generator matrices of the codes, and the matrices that decode with them. Pure NumPy.

A generator is uint8[n, k]: chunk i of a stripe is row i times the k data chunks. It is systematic:
its first k rows are the identity.
"""

from collections.abc import Sequence
from typing import Final

import numpy as np

from exastore.erasure import field
from exastore.erasure.field import Bytes

#: With more chunks, combinations without a 0 would be rare.
MAX_FULL_CHECK: Final = 128


def cauchy_generator(k: int, m: int) -> Bytes:
    """The generator of Reed-Solomon k + m: the identity over a Cauchy matrix. Shape: [k + m, k].

    Parity row i, column j is 1 / ((k + i) + j). Every square submatrix of a Cauchy matrix is
    invertible, so any k rows of the generator are: the code is MDS [Blömer et al. 1995, section 3].
    These are the same numbers as `gf_gen_cauchy1_matrix` of ISA-L, so parity is compatible with it.
    They are part of the format on disk: a change needs a new code name.
    """
    assert k >= 1 and m >= 0 and k + m <= 255, (k, m)
    parity = [[field.inverse((k + row) ^ column) for column in range(k)] for row in range(m)]
    return systematic(k, np.array(parity, dtype=np.uint8).reshape(m, k))


def replication_generator(copies: int) -> Bytes:
    """The generator of replication: every chunk is the data. Shape: [copies, 1]."""
    return np.ones((copies, 1), dtype=np.uint8)


def parity_check(generator: Bytes) -> Bytes:
    """The matrix that is 0 on stripes and on nothing else. Shape: [n, k] gives [n - k, n].

    With a systematic generator [I; P] it is [P | I], as minus is plus.
    """
    n, k = generator.shape
    return np.concatenate([generator[k:], np.eye(n - k, dtype=np.uint8)], axis=1)


def solve(
    check: Bytes, unknown: Sequence[int], spares: Sequence[int], want: Sequence[int]
) -> tuple[tuple[int, ...], Bytes] | None:
    """Which chunks make the chunks `want`, and with which coefficients; None if they cannot.

    The equations `check` times chunks = 0 are brought to reduced form, eliminating the `unknown`
    chunks first and then, with the equations that are left, the `spares` in their order. A wanted
    chunk is determined if and only if its row then has no other unknown chunk. Chunks that have
    no influence are not among the result, so a local parity that suffices is used alone.

    Args:
        check: Shape: [m, n].
        unknown: indexes of the chunks that are not there; `want` is among them.
        spares: chunks that are there and better not read, the least wanted first.

    Returns:
        The chunks to read, ascending, and the coefficients. Shape: [len(want), len(reads)].
    """
    work = check.copy()
    row_of: dict[int, int] = {}
    for column in (*unknown, *spares):
        row = len(row_of)
        if row == work.shape[0]:
            break
        if _reduce_column(work, row, column):
            row_of[column] = row
    if any(index not in row_of for index in want):
        return None
    coefficients = work[[row_of[index] for index in want]]
    coefficients[np.arange(len(want)), list(want)] = 0
    if coefficients[:, list(unknown)].any():
        return None
    reads = np.flatnonzero(coefficients.any(axis=0))
    return tuple(int(index) for index in reads), np.ascontiguousarray(coefficients[:, reads])


def rank(matrix: Bytes) -> int:
    """The number of independent rows."""
    work = matrix.copy()
    row = 0
    for column in range(work.shape[1]):
        if row == work.shape[0]:
            break
        row += _reduce_column(work, row, column)
    return row


def random_checks(check: Bytes, count: int, rng: "np.random.Generator") -> Bytes:
    """Independent random combinations of the rows of a parity check. Shape: [count, n].

    With n <= 128 no coefficient is 0, so that damage to one chunk shows in every one of them.
    """
    rows, n = check.shape
    assert 0 < count <= rows, (count, rows)
    while True:
        mix = rng.integers(0, field.ORDER, (count, rows), dtype=np.uint8)
        combined = field.matmul(mix, check)
        if rank(mix) == count and (combined.all() or n > MAX_FULL_CHECK):
            return combined


def _reduce_column(work: Bytes, row: int, column: int) -> bool:
    """Make `column` the unit vector of `row` with the rows from `row` on; False if they are 0."""
    pivots = np.flatnonzero(work[row:, column])
    if pivots.size == 0:
        return False
    pivot = row + int(pivots[0])
    if pivot != row:
        work[[row, pivot]] = work[[pivot, row]]
    work[row] = field.MUL[field.inverse(int(work[row, column])), work[row]]
    others = np.flatnonzero(work[:, column])
    others = others[others != row]
    if others.size:
        work[others] ^= field.MUL[work[others, column, None], work[row]]
    return True


def systematic(k: int, parity: Bytes) -> Bytes:
    """The generator with these parity rows. Shape: [m, k] gives [k + m, k]."""
    return np.concatenate([np.eye(k, dtype=np.uint8), parity])
