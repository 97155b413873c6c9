"""The inner loop of the portable kernel, apart because importing numba takes half a second."""

import numpy as np
from numpy.typing import NDArray

from exastore.erasure.field import Bytes
from exastore.erasure.jit import njit

Words = NDArray[np.uint64]


@njit
def apply_group(
    tables: Words, inputs: Bytes, outputs: Bytes, first_row: int, accumulator: Words
) -> None:
    """Up to eight rows of the outputs, from `first_row` on.

    Shape: tables [inputs, 256], inputs [inputs, B], outputs [outputs, B], accumulator [block].
    """
    column_count, size = inputs.shape
    row_count = min(outputs.shape[0] - first_row, 8)
    for begin in range(0, size, accumulator.size):
        count = min(accumulator.size, size - begin)
        accumulator[:count] = 0
        column = 0
        # Four inputs for each time the accumulators are read and written.
        while column + 4 <= column_count:
            t0, t1 = tables[column], tables[column + 1]
            t2, t3 = tables[column + 2], tables[column + 3]
            x0 = inputs[column, begin : begin + count]
            x1 = inputs[column + 1, begin : begin + count]
            x2 = inputs[column + 2, begin : begin + count]
            x3 = inputs[column + 3, begin : begin + count]
            for i in range(count):
                accumulator[i] ^= (t0[x0[i]] ^ t1[x1[i]]) ^ (t2[x2[i]] ^ t3[x3[i]])
            column += 4
        while column < column_count:
            t0 = tables[column]
            x0 = inputs[column, begin : begin + count]
            for i in range(count):
                accumulator[i] ^= t0[x0[i]]
            column += 1
        for row in range(row_count):
            shift = np.uint64(8 * row)
            output = outputs[first_row + row, begin : begin + count]
            for i in range(count):
                output[i] = np.uint8((accumulator[i] >> shift) & np.uint64(255))
