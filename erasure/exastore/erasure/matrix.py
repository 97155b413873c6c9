"""Generator matrices of the codes, and the matrices that decode with them. Pure NumPy.

A generator is uint8[n, k]: chunk i of a stripe is row i times the k data chunks. It is systematic:
its first k rows are the identity.
"""

from collections.abc import Sequence

import numpy as np

from exastore.erasure import field
from exastore.erasure.field import Bytes


def cauchy_generator(k: int, m: int) -> Bytes:
    """The generator of Reed-Solomon k + m: the identity over a Cauchy matrix. Shape: [k + m, k].

    Parity row i, column j is 1 / ((k + i) + j). Every square submatrix of a Cauchy matrix is
    invertible, so any k rows of the generator are: the code is MDS [Blömer et al. 1995, section 3].
    These are the same numbers as `gf_gen_cauchy1_matrix` of ISA-L, so parity is compatible with it.
    They are part of the format on disk: a change needs a new code name.
    """
    assert k >= 1 and m >= 0 and k + m <= 255, (k, m)
    parity = [[field.inverse((k + row) ^ column) for column in range(k)] for row in range(m)]
    return _systematic(k, np.array(parity, dtype=np.uint8).reshape(m, k))


def replication_generator(copies: int) -> Bytes:
    """The generator of replication: every chunk is the data. Shape: [copies, 1]."""
    return np.ones((copies, 1), dtype=np.uint8)


def decoding_matrix(generator: Bytes, have: Sequence[int], want: Sequence[int]) -> Bytes:
    """Coefficients that make the chunks `want` from exactly k chunks `have`.

    Shape: [len(want), k]; columns are in the order of `have`.

    Raises:
        ZeroDivisionError: the rows `have` are not independent (cannot happen with an MDS code).
    """
    assert len(have) == generator.shape[1], (have, generator.shape)
    to_data = field.invert(generator[list(have)])
    return field.matmul(generator[list(want)], to_data)


def _systematic(k: int, parity: Bytes) -> Bytes:
    return np.concatenate([np.eye(k, dtype=np.uint8), parity])
