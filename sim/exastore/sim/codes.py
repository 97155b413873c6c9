"""The shape of a code by its name, as the codecs of `exastore.erasure` have it."""

from dataclasses import dataclass
from functools import cache

from exastore.erasure import codec


@dataclass(frozen=True, slots=True)
class CodeShape:
    """k data chunks, m parity chunks."""

    k: int
    m: int


@cache
def code_shape(name: str) -> CodeShape:
    """k and m of the code `name`.

    Raises:
        ValueError: `exastore.erasure` knows no such code, or it is not MDS: the engine counts
            missing chunks, which says nothing about an LRC.
    """
    shape = codec(name)
    if not shape.is_mds:
        raise ValueError(
            f"{name}: which chunks are lost decides for this code, and the simulator only counts "
            "them yet; use rs-K-M or rep-N"
        )
    return CodeShape(shape.k, shape.m)
