"""How far apart the straws of two devices are, to explain where CRUSH chooses the other one."""

import numpy as np

from exastore.metadata.core._reference import hash3
from exastore.metadata.core.straw2 import log_draw_table
from exastore.metadata.core.topology import Int64Array

#: What one logarithm of CRUSH may be off, in its units of 2**-44. It looks up two tables of 8 bits
#: each, so it sees 16 bits of the mantissa of u + 1: the rest, below 2**-15 of it, is cut off.
LOGARITHM_ERROR = 2.0**44 * np.log2(1 + 2.0**-15)


def straws(weight: Int64Array, x: int, items: list[int]) -> list[float]:
    """The exact draws of devices in one flat bucket: log2(u) / weight, in CRUSH's units.

    Args:
        weight: Shape (D,). Weights in units of 1/65536, as CRUSH holds them.
        x: The input.
        items: Devices.
    """
    log_draw = log_draw_table()
    return [float(log_draw[hash3(x, item, 0) & 0xFFFF]) / int(weight[item]) for item in items]
