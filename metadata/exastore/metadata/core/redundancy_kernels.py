"""`redundancy` for compiled callers: columns of a code, and kernels over them.

The kernels are twins of `Redundancy.of` and `repair_plan_for`; a test holds them equal.
"""

from functools import cache
from itertools import combinations
from math import comb
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from exastore.erasure import Codec, codec
from exastore.erasure.jit import njit
from exastore.metadata.core.redundancy import Int8Array, redundancy_of
from exastore.metadata.core.topology import Float64Array, Int32Array, Uint8Array, frozen

#: The most losses whose plans `CodeColumns` keeps; each takes about 100 microseconds to make.
PLAN_PATTERNS: Final = 5_000

BoolArray = NDArray[np.bool_]


class CodeColumns(NamedTuple):
    """What kernels need to know of a code with k + m = n chunks. Few arrays: each costs compiling.

    Attributes:
        k, m: Of the code.
        sure: How many losses are survived, whichever they are; m if and only if only their number
            matters.
        plan_losses: Losses of up to so many chunks have a row in `reads` and `share`; 0: any k
            whole chunks serve as well as any other, for every loss.
        table: Of `Redundancy`.
        check: The parity-check matrix of a code without table, for the test of decodability that
            the code itself makes. Shape: (m, n), or empty.
        reads: Shape (patterns, n). The fraction of each chunk that the code's plan reads, row by
            `pattern_row`; all 0 where there is no plan.
    """

    k: int
    m: int
    sure: int
    plan_losses: int
    table: Int8Array
    check: Uint8Array
    reads: Float64Array


@cache
def code_columns(name: str) -> CodeColumns:
    """The columns of the code of this name; the first call may take seconds.

    Raises:
        UnknownCode: there is no such code.
    """
    code, redundancy = codec(name), redundancy_of(name)
    is_counted = code.is_mds or len(redundancy.table) > 0
    plan_losses = _plan_losses(code)
    return CodeColumns(
        k=code.k,
        m=code.m,
        sure=redundancy.sure,
        plan_losses=plan_losses,
        table=redundancy.table,
        check=frozen(np.empty((0, 0), np.uint8) if is_counted else _check_of(code)),
        reads=frozen(_plans(code, plan_losses)),
    )


def _check_of(code: Codec) -> Uint8Array:
    """[P | I], if the parity is P times the data: what is 0 on stripes. Shape: (m, n)."""
    parity = code.encode(np.eye(code.k, dtype=np.uint8))
    return np.concatenate([parity, np.eye(code.m, dtype=np.uint8)], axis=1)


def _plan_losses(code: Codec) -> int:
    """The losses whose plans are worth a row, as far as there is room."""
    if code.is_mds and code.sub_chunk_count == 1:
        return 0
    count, losses = 0, 0
    while losses < code.m:
        count += comb(code.n, losses + 1)
        if count > PLAN_PATTERNS and losses > 0:
            break
        losses += 1
    return losses


def _plans(code: Codec, plan_losses: int) -> Float64Array:
    """What the plans read, in the order of `pattern_row`."""
    count = sum(comb(code.n, size) for size in range(1, plan_losses + 1))
    reads = np.zeros((count, code.n))
    first = 0
    for size in range(1, plan_losses + 1):
        for lost in combinations(range(code.n), size):
            if code.decodable(lost):
                plan = code.repair_plan(lost)
                row = first + sum(comb(index, i + 1) for i, index in enumerate(lost))
                reads[row, list(plan.reads)] = list(plan.reads.values())
        first += comb(code.n, size)
    return reads


@njit
def _choose(n: int, count: int) -> int:
    result = 1
    for i in range(count):
        result = result * (n - i) // (i + 1)
    return result


@njit
def pattern_row(lost: BoolArray) -> int:
    """The row of a loss among all, smaller losses first: the combinatorial number system."""
    row, size = 0, 0
    n = len(lost)
    for index in range(n):
        if lost[index]:
            size += 1
            row += _choose(index, size)
    for smaller in range(1, size):
        row += _choose(n, smaller)
    return row


@njit
def _product(a: np.uint8, b: np.uint8) -> np.uint8:
    """a times b in GF(2^8)."""
    left, right, result = np.int64(a), np.int64(b), np.int64(0)
    while right:
        if right & 1:
            result ^= left
        left <<= 1
        if left & 256:
            left ^= 0x11D
        right >>= 1
    return np.uint8(result)


@njit
def _is_decodable(check: Uint8Array, lost: BoolArray, count: int) -> bool:
    """Whether the columns of the lost chunks are independent: elimination over GF(2^8)."""
    rows = check.shape[0]
    work = np.zeros((rows, count), np.uint8)
    column = 0
    for index in range(len(lost)):
        if lost[index]:
            for row in range(rows):
                work[row, column] = check[row, index]
            column += 1
    for column in range(count):
        pivot = column
        while pivot < rows and work[pivot, column] == 0:
            pivot += 1
        if pivot == rows:
            return False
        if pivot != column:
            for j in range(column, count):
                work[pivot, j], work[column, j] = work[column, j], work[pivot, j]
        scale = work[column, column]
        for row in range(column + 1, rows):
            factor = work[row, column]
            if factor != 0:
                for j in range(column, count):
                    work[row, j] = _product(scale, work[row, j]) ^ _product(factor, work[column, j])
    return True


@njit
def remaining_redundancy(columns: CodeColumns, lost: BoolArray) -> int:
    """`Redundancy.of` of the chunks that are True in `lost`, of Shape (n,)."""
    count, mask = 0, 0
    for index in range(len(lost)):
        if lost[index]:
            count += 1
            mask |= 1 << (index & 63)
    if columns.sure == columns.m:
        return columns.m - count
    if len(columns.table) > 0:
        return int(columns.table[mask])
    if count > columns.m:
        return columns.m - count
    if count <= columns.sure:
        return columns.sure - count
    return 0 if _is_decodable(columns.check, lost, count) else -1


@njit
def count_decodable(columns: CodeColumns, losses: Int32Array) -> int:
    """How many of these losses the data survives. Shape: (losses, chunks lost)."""
    lost = np.zeros(columns.k + columns.m, np.bool_)
    found = 0
    for i in range(len(losses)):
        lost[:] = False
        for j in range(losses.shape[1]):
            lost[losses[i, j]] = True
        found += remaining_redundancy(columns, lost) >= 0
    return found


@njit
def plan_slot_repair(
    columns: CodeColumns, slot: int, unreadable: BoolArray, reads: BoolArray
) -> float:
    """`repair_plan_for` one slot: the fraction that is read of each chunk of `reads`, or 0.

    0 means that the slot cannot be rebuilt. More losses than `plan_losses` are taken to read the
    first k readable chunks in whole, as are all of a code without plans.

    Args:
        columns: Of the code.
        slot: The chunk to rebuild.
        unreadable: Shape (n,). The chunks that are not there; `slot` may be among them.
        reads: Shape (n,). Overwritten: the chunks to read.
    """
    n = len(unreadable)
    is_possible = True
    if columns.plan_losses > 0:
        lost = np.zeros(n, np.bool_)
        lost[slot] = True
        lost_count = 1
        while lost_count <= columns.plan_losses:
            row = pattern_row(lost)
            share, grows = 0.0, False
            for index in range(n):
                reads[index] = columns.reads[row, index] > 0.0
                if reads[index]:
                    share = float(columns.reads[row, index])
                    if unreadable[index]:
                        lost[index] = True
                        lost_count += 1
                        grows = True
            if not grows:
                return share
        for index in range(n):
            lost[index] = unreadable[index] or index == slot
        is_possible = remaining_redundancy(columns, lost) >= 0
    found = 0
    for index in range(n):
        is_read = is_possible and found < columns.k and index != slot and not unreadable[index]
        reads[index] = is_read
        found += is_read
    if found == columns.k:
        return 1.0
    for index in range(n):
        reads[index] = False
    return 0.0
