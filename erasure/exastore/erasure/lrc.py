"""Local reconstruction codes: a lost chunk is rebuilt from its small group, not from k chunks.

`lrc-k-l-g` has k data chunks in l groups of k/l, one local parity per group (the XOR of the group)
and g global parities. Order of the chunks: data, local parities, global parities
[Huang et al., "Erasure Coding in Windows Azure Storage", USENIX ATC 2012].

The most that such a shape can decode: with f_j chunks lost of group j (its local parity included)
and f_0 global parities lost, any loss with sum(max(0, f_j - 1)) + f_0 <= g. A code that decodes all
of these is *maximally recoverable*. Ours is for g <= 1, for l = 1, and for g = 2 with groups of 15
at most (see `_two_globals`), which covers lrc-6-2-2, lrc-12-2-2 and lrc-12-4-2. With more global
parities GF(2^8) is too small for wide codes: there, any g + 1 losses are decoded (the best possible
distance), and of the larger losses nearly all that the shape allows (`_cauchy_globals`).
"""

from collections.abc import Iterable
from functools import lru_cache
from typing import Final

import numpy as np

from exastore.erasure import field
from exastore.erasure.code import DECODERS_KEPT, LinearCode
from exastore.erasure.field import Bytes
from exastore.erasure.kernels import Kernel
from exastore.erasure.matrix import rank, systematic


class LocalCode(LinearCode):
    """An LRC. Not MDS: which chunks are lost matters, not only how many.

    Repairs and decoding read as few chunks as they can: a group where one chunk is missing gives it
    back alone, and global parities are read only for what the groups leave open.
    """

    def __init__(
        self, name: str, generator: Bytes, group_count: int, kernel: Kernel | None = None
    ) -> None:
        """See `lrc_generator` for the generator."""
        super().__init__(name, generator, kernel)
        #: Local groups; chunk k + j is the local parity of group j.
        self.group_count: Final = group_count
        #: Data chunks in a group.
        self.group_width: Final = self.k // group_count
        self._survives = lru_cache(maxsize=DECODERS_KEPT)(self._is_determined)

    @property
    def is_mds(self) -> bool:
        """False: see `Codec.is_mds`."""
        return False

    def decodable(self, lost: Iterable[int]) -> bool:
        """See `Codec.decodable`."""
        return self._survives(tuple(self._checked(lost)))

    def _is_determined(self, lost: tuple[int, ...]) -> bool:
        return len(lost) <= self.m and rank(self._parity_check[:, list(lost)]) == len(lost)

    def _usable(self, have: list[int]) -> tuple[int, ...]:
        return tuple(have)

    def _decoder_widths(self) -> Iterable[int]:
        return range(1, self.k + 1)

    def _spares(self, unknown: tuple[int, ...]) -> tuple[int, ...]:
        """Local parities of whole groups, global ones, other local ones, data; highest first."""
        damaged = {index // self.group_width for index in unknown if index < self.k}
        first_global = self.k + self.group_count

        def reluctance(index: int) -> tuple[int, int]:
            if index < self.k:
                return 3, -index
            if index >= first_global:
                return 1, -index
            return (2 if index - self.k in damaged else 0), -index

        missing = set(unknown)
        return tuple(
            sorted((index for index in range(self.n) if index not in missing), key=reluctance)
        )


def lrc_generator(k: int, group_count: int, global_count: int) -> Bytes:
    """The generator of lrc-k-l-g, part of the format on disk. Shape: [k + l + g, k].

    `group_count` divides k, and k + l + g <= 255.
    """
    width = k // group_count
    local = np.zeros((group_count, k), dtype=np.uint8)
    for group in range(group_count):
        local[group, group * width : (group + 1) * width] = 1
    return systematic(k, np.concatenate([local, _globals(k, group_count, global_count)]))


def _globals(k: int, group_count: int, global_count: int) -> Bytes:
    if global_count == 2:
        rows = _two_globals(k, group_count)
        if rows is not None:
            return rows
    return _cauchy_globals(k, global_count)


def _two_globals(k: int, group_count: int) -> Bytes | None:
    """Two rows a and a^2 with which the code is maximally recoverable, or None. Shape: [2, k].

    Let the 0 stand for a local parity, so that a group is a set S_j of different elements and its
    columns are (1, a, a^2). Three losses in a group leave a Vandermonde matrix, which is
    invertible. Two losses {a, b} in one group and {c, d} in another leave, after the local
    parities, the matrix [[a + b, c + d], [(a + b)^2, (c + d)^2]], invertible if a + b != c + d.
    So it is enough that each S_j lies in a subspace over GF(2) and that these meet in 0 only
    (after Huang et al., section 2.2). Such are the multiples g^j F of the subfield F of 2^s
    elements, s = 1, 2, 4, 8, for j < 255 / (2^s - 1): a_j,i = g^(j + i 255 / (2^s - 1)).
    """
    width = k // group_count
    for subfield_order in (2, 4, 16, 256):
        step = (field.ORDER - 1) // (subfield_order - 1)
        if width < subfield_order and group_count <= step:
            logs = np.arange(group_count)[:, None] + step * np.arange(width)[None, :]
            row = field.EXP[logs.reshape(k)]
            return np.stack([row, field.MUL[row, row]])
    return None


def _cauchy_globals(k: int, global_count: int) -> Bytes:
    """Rows that make, together with a row of ones, an MDS code. Shape: [g, k].

    Row i >= 1 of a Cauchy matrix 1 / (x_i + y_j), i = 0..g, divided column by column by row 0:
    (x_0 + y_j) / (x_i + y_j). Row 0 becomes ones, the sum of all local parities. So g + 1 losses
    are always decoded: p lost local parities and f global ones leave g + 1 - p - f lost data
    chunks at most, for which g - f global rows are left, and the row of ones if p = 0.

    x_i = i and y_j = g + 1 + j. For lrc-48-4-3 this leaves 1,970 of the 3,461,289 losses of 5
    chunks that the shape allows undecodable; random choices of y leave about as many.
    """
    xs = np.arange(global_count + 1, dtype=np.uint8)
    ys = np.arange(global_count + 1, global_count + 1 + k, dtype=np.uint8)
    differences = xs[:, None] ^ ys[None, :]
    inverses = field.EXP[(field.ORDER - 1) - field.LOG[differences[1:]]]
    rows: Bytes = field.MUL[differences[0][None, :], inverses]
    return rows
