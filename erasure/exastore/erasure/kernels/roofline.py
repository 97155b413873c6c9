"""The bound of every kernel: the same loop with nothing to compute.

It reads k streams and writes m, with the kernels' own loads, stores, prefetches and choice of
streaming, so that what separates a kernel from it is the arithmetic alone. Only for benchmarks.
"""

import numpy as np

from exastore.erasure.errors import UnknownKernel
from exastore.erasure.kernels.isa import INSTRUCTION_SETS
from exastore.erasure.kernels.program import Op, Program
from exastore.erasure.kernels.vector import Shapes, VectorMap


def roofline_map(kernel: str, k: int, m: int) -> VectorMap:
    """A map that reads all of k chunks and writes m chunks: XORs of some of them.

    Raises:
        UnknownKernel: not one of the vector kernels.
    """
    for isa in INSTRUCTION_SETS:
        if isa.name == kernel:
            matrix = np.ones((m, k), dtype=np.uint8)
            return VectorMap(matrix, isa, Shapes(isa), program=_program(k, m))
    raise UnknownKernel(kernel, [isa.name for isa in INSTRUCTION_SETS])


def _program(k: int, m: int) -> Program:
    ops: list[Op] = [("load", column, column) for column in range(k)]
    totals = list(range(m)) if m <= k else [column % k for column in range(m)]
    variable = k
    for column in range(m, k):
        # As few XORs as it takes to use every input.
        ops.append(("xor", variable, totals[column % m], column))
        totals[column % m] = variable
        variable += 1
    ops.sort(key=lambda op: (op[1] if op[0] == "load" else op[3], op[0]))
    ops += [("store", row, total) for row, total in enumerate(totals)]
    return Program(tuple(ops), b"", tuple(range(k)), tuple(range(m)))
