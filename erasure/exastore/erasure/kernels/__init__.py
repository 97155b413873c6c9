"""Kernels: implementations of one operation, a constant matrix over GF(2^8) times chunks.

A kernel is compiled on first use and cached on disk; importing this package compiles nothing and
imports neither numba nor llvmlite. `EXASTORE_KERNEL` forces a kernel; otherwise it is the fastest
one that the CPU has. `NUMBA_DISABLE_JIT=1` leaves the portable one alone, as plain Python.
"""

import os
from collections.abc import Sequence
from functools import cache
from typing import Final, Protocol

from exastore.erasure.chunks import Chunks
from exastore.erasure.errors import UnknownKernel
from exastore.erasure.field import Bytes

ENVIRONMENT_VARIABLE: Final = "EXASTORE_KERNEL"

#: Chunks as the rows of one array, or one by one.
Arrays = Bytes | Sequence[Bytes]


class LinearMap(Protocol):
    """A prepared matrix: `outputs = matrix * inputs`, byte by byte."""

    def __call__(self, inputs: Chunks, outputs: Chunks, threads: int = 1) -> None:
        """Overwrite the outputs. The chunks were checked; GIL released. Thread-safe.

        Several threads share the bytes if there are enough of them.
        """
        ...

    def apply(self, inputs: Arrays, outputs: Arrays) -> bool:
        """Check the caller's arrays and overwrite the outputs, in one call of machine code.

        Returns False, with nothing written, if they are not plainly right: then the caller must
        look at them with `check_chunks`, which accepts them or says what is wrong.
        """
        ...


class Kernel(Protocol):
    """One way to multiply a matrix with chunks."""

    @property
    def name(self) -> str:
        """What `EXASTORE_KERNEL` calls it."""
        ...

    def prepare(self, matrix: Bytes, *, uniform: bool = False) -> LinearMap:
        """Make the tables of one matrix. Shape: [outputs, inputs]. Dtype: uint8.

        Args:
            matrix: coefficients.
            uniform: with code that serves many matrices, instead of code compiled for this one: for
                a map that will be used a few times. Somewhat slower.
        """
        ...


def _vector_kernels() -> dict[str, Kernel]:
    """Those whose instructions this CPU has; none where LLVM may not be used."""
    if os.environ.get("NUMBA_DISABLE_JIT", "0") not in ("", "0"):
        return {}
    from exastore.erasure.kernels.isa import INSTRUCTION_SETS
    from exastore.erasure.kernels.native import host_features
    from exastore.erasure.kernels.vector import VectorKernel

    features = host_features()
    return {
        isa.name: VectorKernel(isa) for isa in INSTRUCTION_SETS if features.issuperset(isa.features)
    }


@cache
def available_kernels() -> dict[str, Kernel]:
    """The kernels that this CPU can run, fastest first; the last one runs everywhere."""
    from exastore.erasure.kernels.portable import PortableKernel

    return {**_vector_kernels(), "portable": PortableKernel()}


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
