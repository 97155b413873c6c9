"""Kernels: implementations of one operation, a constant matrix over GF(2^8) times chunks.

A kernel is compiled on first use and cached on disk; importing this package compiles nothing and
does not import numba. `EXASTORE_KERNEL` forces a kernel; otherwise it is the fastest one that the
CPU has.
"""

import os
from collections.abc import Callable
from functools import cache
from typing import Final, Protocol

from exastore.erasure.chunks import Chunks
from exastore.erasure.errors import UnknownKernel
from exastore.erasure.field import Bytes

ENVIRONMENT_VARIABLE: Final = "EXASTORE_KERNEL"


class LinearMap(Protocol):
    """A prepared matrix: `outputs = matrix * inputs`, byte by byte."""

    def __call__(self, inputs: Chunks, outputs: Chunks) -> None:
        """Overwrite the outputs. The chunks were checked; GIL released. Thread-safe."""
        ...


class Kernel(Protocol):
    """One way to multiply a matrix with chunks."""

    @property
    def name(self) -> str:
        """What `EXASTORE_KERNEL` calls it."""
        ...

    def prepare(self, matrix: Bytes) -> LinearMap:
        """Make the tables of one matrix. Shape: [outputs, inputs]. Dtype: uint8."""
        ...


def _gfni512() -> Kernel | None:
    from exastore.erasure.kernels import gfni512

    return gfni512.Gfni512Kernel() if gfni512.is_supported() else None


def _portable() -> Kernel | None:
    from exastore.erasure.kernels.portable import PortableKernel

    return PortableKernel()


#: Fastest first. The last one runs everywhere.
_MAKERS: Final[dict[str, Callable[[], Kernel | None]]] = {
    "gfni512": _gfni512,
    "portable": _portable,
}


@cache
def available_kernels() -> dict[str, Kernel]:
    """The kernels that this CPU can run, fastest first."""
    made = {name: make() for name, make in _MAKERS.items()}
    return {name: kernel for name, kernel in made.items() if kernel is not None}


def select_kernel(name: str | None = None) -> Kernel:
    """The kernel of this name, else the one of `EXASTORE_KERNEL`, else the fastest.

    Raises:
        UnknownKernel: it does not exist or this CPU cannot run it.
    """
    available = available_kernels()
    chosen = name or os.environ.get(ENVIRONMENT_VARIABLE) or next(iter(available))
    if chosen not in available:
        raise UnknownKernel(chosen, available)
    return available[chosen]
