"""Codes by name: the name is stored with the data, so it fixes the matrix for ever."""

import math
import re
from collections.abc import Callable
from functools import cache
from typing import Final

from exastore.erasure.code import LinearCode
from exastore.erasure.contract import Codec
from exastore.erasure.errors import UnknownCode
from exastore.erasure.kernels import Kernel, select_kernel
from exastore.erasure.lrc import LocalCode, lrc_generator
from exastore.erasure.matrix import cauchy_generator, replication_generator

#: Chunks in a stripe at most.
MAX_CHUNK_COUNT: Final = 255
#: Sub-chunks of a chunk at most, in a Clay code.
MAX_SUB_CHUNK_COUNT: Final = 4096

VALID_FORMS: Final = (
    f"rs-K-M (Reed-Solomon, K >= 1, M >= 0, K + M <= {MAX_CHUNK_COUNT})",
    f"lrc-K-L-G (K data chunks in L groups, L divides K, G global parities, "
    f"K + L + G <= {MAX_CHUNK_COUNT})",
    "clay-K-M-D (coupled layers, M >= 2, D = K + M - 1 helpers)",
    f"rep-N (replication, 1 <= N <= {MAX_CHUNK_COUNT})",
)

_POSITIVE = "([1-9][0-9]{0,2})"
_NATURAL = "(0|[1-9][0-9]{0,2})"


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
    kernel = select_kernel(kernel_name)
    for pattern, make in _FAMILIES:
        if match := pattern.fullmatch(name):
            return make(name, [int(number) for number in match.groups()], kernel)
    raise UnknownCode(name, VALID_FORMS)


def _check_chunk_count(name: str, n: int) -> None:
    if n > MAX_CHUNK_COUNT:
        raise UnknownCode(name, VALID_FORMS, f"{n} chunks are more than {MAX_CHUNK_COUNT}")


def _reed_solomon(name: str, numbers: list[int], kernel: Kernel) -> Codec:
    k, m = numbers
    _check_chunk_count(name, k + m)
    return LinearCode(name, cauchy_generator(k, m), kernel)


def _replication(name: str, numbers: list[int], kernel: Kernel) -> Codec:
    (copies,) = numbers
    _check_chunk_count(name, copies)
    return LinearCode(name, replication_generator(copies), kernel)


def _local(name: str, numbers: list[int], kernel: Kernel) -> Codec:
    k, group_count, global_count = numbers
    _check_chunk_count(name, k + group_count + global_count)
    if k % group_count:
        raise UnknownCode(name, VALID_FORMS, f"{group_count} groups do not divide {k} data chunks")
    return LocalCode(name, lrc_generator(k, group_count, global_count), group_count, kernel)


def _clay(name: str, numbers: list[int], kernel: Kernel) -> Codec:
    # Imported when needed, as few processes do.
    from exastore.erasure.clay import ClayCode
    from exastore.erasure.clay_program import Geometry

    k, m, helpers = numbers
    if m < 2:
        raise UnknownCode(name, VALID_FORMS, "a Clay code has 2 parity chunks or more")
    if helpers != k + m - 1:
        raise UnknownCode(name, VALID_FORMS, f"only with all {k + m - 1} other chunks as helpers")
    geometry = Geometry(k, m)
    _check_chunk_count(name, geometry.node_count)
    if geometry.digit_count * math.log(m) > math.log(MAX_SUB_CHUNK_COUNT) + 1e-9:
        reason = f"{m}^{geometry.digit_count} sub-chunks are more than {MAX_SUB_CHUNK_COUNT}"
        raise UnknownCode(name, VALID_FORMS, reason)
    return ClayCode(name, k, m, kernel)


_Maker = Callable[[str, list[int], Kernel], Codec]

_FAMILIES: Final[tuple[tuple[re.Pattern[str], _Maker], ...]] = (
    (re.compile(f"rs-{_POSITIVE}-{_NATURAL}", re.ASCII), _reed_solomon),
    (re.compile(f"lrc-{_POSITIVE}-{_POSITIVE}-{_NATURAL}", re.ASCII), _local),
    (re.compile(f"clay-{_POSITIVE}-{_POSITIVE}-{_POSITIVE}", re.ASCII), _clay),
    (re.compile(f"rep-{_POSITIVE}", re.ASCII), _replication),
)
