"""Many small products of matrices with rows of bytes: how a Clay code does its work.

A *step* makes a few rows of a few others: a *family* says with which matrix, codes of rows say
which. All sub-chunks of all chunks are rows, so a step takes them where they are, and what it makes
goes where it belongs: nothing is copied. Steps are done block by block of the rows, in an order in
which what was read lately is read again while it is in the cache.

On a vector kernel, steps are walked over by machine code (`walker.py`), which calls the family's
program on each. On the portable kernel, the rows of many steps are gathered into long ones, so that
one call of its map does them all.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray

from exastore.erasure.chunks import check_chunks
from exastore.erasure.field import MUL, Bytes
from exastore.erasure.kernels import Kernel
from exastore.erasure.kernels.program import Op, Program, make_program

#: Codes of rows: the buffer, shifted by `POSITION_BITS`, and the position of the row in it.
Codes = NDArray[np.int32]

POSITION_BITS: Final = 16
#: Bytes of each row that all steps are done on before the next ones: a page, so that addresses are
#: translated once.
BLOCK_BYTES: Final = 4096
#: Bytes of each row that the portable kernel gathers at once.
GATHERED_BYTES: Final = 512


@dataclass(frozen=True, slots=True)
class Input:
    """What a row is to the matrix that a family was made of."""

    #: "own": the column itself; "partner": what is added to it, multiplied; "late": what is added
    #: to a row that was made, multiplied.
    role: str
    #: The column, or the row that was made.
    place: int


@dataclass(frozen=True, slots=True)
class Family:
    """Steps that do the same to different rows."""

    inputs: tuple[Input, ...]
    #: The rows of the matrix it was made of, in the order in which they are made.
    outputs: tuple[int, ...]
    program: Program
    #: What it does: outputs = matrix * inputs, or outputs += that.
    matrix: Bytes
    accumulates: bool = False


def coupled_family(
    matrix: Bytes,
    *,
    factor: int,
    without_own: Sequence[int] = (),
    late: Mapping[int, int] | None = None,
    structured: bool = False,
) -> Family:
    """The family of `matrix * (own + factor * partner) + late factor * late`.

    Args:
        matrix: Shape: [outputs, columns].
        factor: of the partner of every column.
        without_own: columns that are their partner alone: the own row is zero.
        late: row of the matrix -> factor of what is added to it.
        structured: find the cheapest program for this matrix, instead of the one that serves all
            matrices of its size: it is compiled for it.
    """
    base = make_program(matrix, uniform=not structured)
    late = late or {}
    ops: list[Op] = []
    inputs: list[Input] = []
    coefficients = bytearray(base.coefficients)
    coefficients.append(factor)
    factor_slot = len(coefficients) - 1
    variable_count = 1 + max(int(op[1]) for op in base.ops if op[0] != "store")

    def load(role: str, place: int) -> int:
        nonlocal variable_count
        inputs.append(Input(role, place))
        ops.append(("load", variable_count, len(inputs) - 1))
        variable_count += 1
        return variable_count - 1

    for op in base.ops:
        match op:
            case ("load", made, column):
                place = base.columns[int(column)]
                if place in without_own:
                    ops.append(("mul", made, load("partner", place), factor_slot))
                else:
                    own, partner = load("own", place), load("partner", place)
                    ops.append(("mac", made, own, partner, factor_slot))
            case ("store", row, value) if base.rows[int(row)] in late:
                coefficients.append(late[base.rows[int(row)]])
                added = load("late", base.rows[int(row)])
                ops.append(("mac", variable_count, value, added, len(coefficients) - 1))
                ops.append(("store", row, variable_count))
                variable_count += 1
            case _:
                ops.append(op)
    order = tuple(range(len(inputs)))
    program = Program(tuple(ops), bytes(coefficients), order, tuple(range(len(base.rows))))
    flat = np.zeros((len(base.rows), len(inputs)), dtype=np.uint8)
    for i, used in enumerate(inputs):
        for o, row in enumerate(base.rows):
            if used.role == "late":
                flat[o, i] = late[row] if row == used.place else 0
            else:
                flat[o, i] = MUL[factor if used.role == "partner" else 1, matrix[row, used.place]]
    return Family(tuple(inputs), base.rows, program, flat)


def pair_family(a: int, b: int, *, accumulates: bool = False) -> Family:
    """The family that makes (a x + b y, a y + b x) of (x, y)."""
    matrix = np.array([[a, b], [b, a]], dtype=np.uint8)
    program = make_program(matrix, uniform=True, accumulate=accumulates)
    return Family((Input("own", 0), Input("own", 1)), (0, 1), program, matrix, accumulates)


def sum_family() -> Family:
    """The family that adds a row to another."""
    matrix = np.ones((1, 1), dtype=np.uint8)
    program = make_program(matrix, uniform=True, accumulate=True)
    return Family((Input("own", 0),), (0,), program, matrix, accumulates=True)


@dataclass(frozen=True, slots=True)
class Stage:
    """Steps of one family, none of which makes what another one reads."""

    #: Which family, as a position in a list of them.
    family: int
    #: The inputs, then the outputs of every step. Shape: [steps, inputs + outputs].
    codes: Codes
    #: Steps may be done in ascending order of these instead, through all stages. Shape: [steps].
    keys: NDArray[np.int64]


class Steps:
    """Stages, to be done one after the other."""

    def __init__(self, stages: Sequence[Stage]) -> None:
        self.stages: Final = tuple(stage for stage in stages if len(stage.codes))

    @cached_property
    def stream(self) -> NDArray[np.int32]:
        """All steps in the order of their keys: the family, then the codes of the rows."""
        keys = np.concatenate([stage.keys for stage in self.stages])
        order = np.argsort(keys, kind="stable")
        widths = np.concatenate(
            [np.full(len(stage.codes), stage.codes.shape[1] + 1) for stage in self.stages]
        )
        ends = np.cumsum(widths[order])
        starts = np.empty_like(ends)
        starts[order] = ends - widths[order]
        made = np.empty(int(ends[-1]) if ends.size else 0, dtype=np.int32)
        first = 0
        for stage in self.stages:
            at = starts[first : first + len(stage.codes)]
            made[at] = stage.family
            made[at[:, None] + 1 + np.arange(stage.codes.shape[1])] = stage.codes
            first += len(stage.codes)
        return made


@dataclass(frozen=True, slots=True)
class Buffer:
    """Rows of one length."""

    #: Shape: [positions, bytes].
    rows: Bytes
    #: Whether the rows are as long as a sub-chunk; else they hold one block of it at a time.
    is_whole: bool = True
    #: Where in the sub-chunk whole rows begin, so that they may be a part of it.
    first: int = 0


def block_bytes(buffers: Sequence[Buffer]) -> int:
    """What steps do of each row before they go on: what all buffers have room for."""
    return min([BLOCK_BYTES, *[int(b.rows.shape[1]) for b in buffers if not b.is_whole]])


class Runner(Protocol):
    """Steps made ready for a kernel. Shared by threads."""

    def __call__(self, buffers: Sequence[Buffer], begin: int, end: int) -> None:
        """Do the steps on the bytes from `begin` to `end` of all rows.

        Block by block: rows of buffers that are not whole hold the `block_bytes` of each in turn.
        """
        ...


def runner(kernel: Kernel, families: Sequence[Family], steps: Steps) -> Runner:
    """Make steps ready for a kernel."""
    from exastore.erasure.kernels.vector import VectorKernel
    from exastore.erasure.walker import Walk

    if isinstance(kernel, VectorKernel):
        return Walk(kernel, families, steps.stream)
    return _Gathering(kernel, families, steps)


class _Gathering:
    """Steps for a kernel that knows maps alone."""

    def __init__(self, kernel: Kernel, families: Sequence[Family], steps: Steps) -> None:
        self._families = families
        self._maps = [kernel.prepare(family.matrix) for family in families]
        self._steps = steps

    def __call__(self, buffers: Sequence[Buffer], begin: int, end: int) -> None:
        """See `Runner`."""
        block = block_bytes(buffers)
        for start in range(begin, end, block):
            stop = min(start + block, end)
            for first in range(start, stop, GATHERED_BYTES):
                last = min(first + GATHERED_BYTES, stop)
                views = [
                    b.rows[:, first - origin : last - origin]
                    for b in buffers
                    for origin in [b.first if b.is_whole else start]
                ]
                for stage in self._steps.stages:
                    self._do(stage, views)

    def _do(self, stage: Stage, views: Sequence[Bytes]) -> None:
        family = self._families[stage.family]
        buffers, positions = stage.codes >> POSITION_BITS, stage.codes & (1 << POSITION_BITS) - 1
        size = (len(stage.codes), views[0].shape[1])
        input_count, output_count = len(family.inputs), len(family.outputs)
        inputs = np.empty((input_count, *size), dtype=np.uint8)
        outputs = np.empty((output_count, *size), dtype=np.uint8)
        for i in range(input_count):
            for buffer in np.unique(buffers[:, i]):
                chosen = buffers[:, i] == buffer
                inputs[i, chosen] = views[buffer][positions[chosen, i]]
        self._maps[stage.family](
            check_chunks(inputs.reshape(input_count, -1), input_count, "gathered"),
            check_chunks(outputs.reshape(output_count, -1), output_count, "made"),
        )
        for i in range(output_count):
            at = input_count + i
            for buffer in np.unique(buffers[:, at]):
                chosen = buffers[:, at] == buffer
                if family.accumulates:
                    views[buffer][positions[chosen, at]] ^= outputs[i, chosen]
                else:
                    views[buffer][positions[chosen, at]] = outputs[i, chosen]
