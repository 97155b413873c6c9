"""The shape of a code by its name, as the codecs of `exastore.erasure` have it."""

from dataclasses import dataclass
from functools import cache
from itertools import combinations
from math import comb
from typing import Final

import numpy as np

from exastore.erasure import codec
from exastore.metadata.core.redundancy import redundancy_of, sure_losses
from exastore.metadata.core.redundancy_kernels import CodeColumns, code_columns, count_decodable

#: Losses of one size that are judged one by one; of more, so many are drawn.
SAMPLE_COUNT: Final = 100_000


@dataclass(frozen=True, slots=True)
class CodeShape:
    """What scenarios know of a code.

    Attributes:
        k: Data chunks.
        m: Parity chunks.
        sure: Losses that are survived whichever they are: m, or fewer for an LRC.
        any_k: Whether any k whole chunks rebuild a chunk, so that there is no better plan.
    """

    k: int
    m: int
    sure: int
    any_k: bool

    @property
    def n(self) -> int:
        return self.k + self.m

    @property
    def is_counted(self) -> bool:
        """Whether the number of losses decides alone."""
        return self.sure == self.m


@cache
def code_shape(name: str) -> CodeShape:
    """The shape of the code `name`.

    Raises:
        ValueError: `exastore.erasure` knows no such code.
    """
    code = codec(name)
    any_k = code.is_mds and code.sub_chunk_count == 1
    return CodeShape(code.k, code.m, sure_losses(code), any_k)


def engine_code(name: str) -> CodeColumns | None:
    """What the engine needs of a code; None if counting its losses and any k chunks are all."""
    return None if code_shape(name).any_k else code_columns(name)


@cache
def survival_shares(name: str) -> tuple[float, ...]:
    """Of all ways to lose i = 0..m chunks, the share that the code decodes.

    Exact for codes of a table (see `Redundancy`) and wherever all losses or none are decoded;
    else of `SAMPLE_COUNT` drawn losses, always the same ones.
    """
    code, table = code_shape(name), redundancy_of(name).table
    shares = [1.0] * (code.sure + 1)
    if len(table):
        lost_count = np.bitwise_count(np.arange(len(table), dtype=np.uint32))
        decoded = np.bincount(lost_count[table >= 0], minlength=code.m + 1)
        return tuple(float(decoded[i] / comb(code.n, i)) for i in range(code.m + 1))
    rng = np.random.Generator(np.random.Philox(0))
    for size in range(code.sure + 1, code.m + 1):
        count = comb(code.n, size)
        if count <= SAMPLE_COUNT:
            lost = np.array(list(combinations(range(code.n), size)), dtype=np.int32)
        else:
            order = rng.permuted(
                np.tile(np.arange(code.n, dtype=np.int32), (SAMPLE_COUNT, 1)), axis=1
            )
            lost = np.ascontiguousarray(order[:, :size])
        shares.append(count_decodable(code_columns(name), lost) / len(lost))
    return tuple(shares)
