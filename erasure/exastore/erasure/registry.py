"""Codes by name: the name is stored with the data, so it fixes the matrix for ever."""

import re
from functools import cache
from typing import Final

from exastore.erasure.code import Codec
from exastore.erasure.errors import UnknownCode
from exastore.erasure.field import Bytes
from exastore.erasure.kernels import select_kernel
from exastore.erasure.matrix import cauchy_generator, replication_generator

#: Chunks in a stripe at most.
MAX_CHUNK_COUNT: Final = 255

VALID_FORMS: Final = (
    f"rs-K-M (Reed-Solomon, K >= 1, M >= 0, K + M <= {MAX_CHUNK_COUNT})",
    f"rep-N (replication, 1 <= N <= {MAX_CHUNK_COUNT})",
)

_REED_SOLOMON = re.compile(r"rs-([1-9][0-9]{0,2})-(0|[1-9][0-9]{0,2})", re.ASCII)
_REPLICATION = re.compile(r"rep-([1-9][0-9]{0,2})", re.ASCII)


def codec(name: str, *, kernel: str | None = None) -> Codec:
    """The codec of this name, for example "rs-10-4" or "rep-3"; the same object every time.

    Args:
        name: see `VALID_FORMS`.
        kernel: force a kernel; by default `EXASTORE_KERNEL`, else the fastest one of this CPU.

    Raises:
        UnknownCode: the name has no valid form.
        UnknownKernel: the kernel does not exist or this CPU cannot run it.
    """
    return _codec(name, select_kernel(kernel).name)


@cache
def _codec(name: str, kernel_name: str) -> Codec:
    return Codec(name, _generator(name), select_kernel(kernel_name))


def _generator(name: str) -> Bytes:
    if match := _REED_SOLOMON.fullmatch(name):
        k, m = int(match[1]), int(match[2])
        if k + m <= MAX_CHUNK_COUNT:
            return cauchy_generator(k, m)
    elif match := _REPLICATION.fullmatch(name):
        copies = int(match[1])
        if copies <= MAX_CHUNK_COUNT:
            return replication_generator(copies)
    raise UnknownCode(name, VALID_FORMS)
