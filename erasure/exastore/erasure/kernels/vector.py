"""The vector kernels: programs of a matrix, compiled for one instruction set.

GFNI: multiplication by a constant is linear over GF(2), so it is an 8x8 bit matrix, and
`vgf2p8affineqb` applies such a matrix to every byte. (Its sibling `vgf2p8mulb` is of no use: its
polynomial is fixed to 0x11B.) Without it, `vpshufb` looks up the products of the lower and the
upper half of each byte in two tables of 16.

A matrix with more rows than fit the registers, or very many columns, is done tile by tile, block by
block, so that the inputs of a block stay in the second-level cache.
"""

import ctypes
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from exastore.erasure.chunks import Chunks
from exastore.erasure.field import MUL, Bytes
from exastore.erasure.kernels import driver, native
from exastore.erasure.kernels.isa import (
    FETCHING_FUNCTION,
    FUNCTION,
    STREAMING_FUNCTION,
    InstructionSet,
)
from exastore.erasure.kernels.program import Program, make_program

#: Columns of a tile at most: bounds the unrolled code.
TILE_COLUMNS: Final = 32
#: Columns of a uniform tile at most; three or more are filled up with zeros to a multiple of 4.
UNIFORM_COLUMNS: Final = 16
UNIFORM_STEP: Final = 4
#: More tiles than this are done by plain programs, which are alike.
MAX_STRUCTURED_TILES: Final = 4
#: A process compiles structured programs with this many products at most, which takes a few
#: seconds: a wide code has thousands of patterns of losses, with a program each. After that, new
#: patterns are decoded by plain programs, of which there is one per number of rows and columns.
MAX_COMPILED_PRODUCTS: Final = 4000
#: With several tiles, inputs are read again and again: all of a block stay in the L2 cache.
BLOCK_BYTES: Final = 16 * 1024
#: Where Linux says how large the second- and the third-level cache are, as `2048K`.
_L2_FILE: Final = Path("/sys/devices/system/cpu/cpu0/cache/index2/size")
_L3_FILE: Final = Path("/sys/devices/system/cpu/cpu0/cache/index3/size")
#: A stripe between so many second-level caches and this part of the third-level one, which other
#: cores want too, is written to the caches: the outputs stay in the third, up to 6 % faster.
WRITE_BACK_L2_CACHES: Final = 3
WRITE_BACK_L3_PART: Final = 8
#: How far ahead inputs are fetched that the second-level cache does not hold: each at most, and all
#: together.
FAR_BYTES: Final = 1024
ALL_FAR_BYTES: Final = 10 * 1024
CACHE_LINE_BYTES: Final = 64
#: Threads share a call in parts of whole pages.
PART_ALIGNMENT: Final = 4096


@cache
def streaming_bytes() -> int:
    """From this size a stripe does not fit the second-level cache, so it is streamed.

    From three quarters of it on, inputs are fetched ahead of the loop.
    """
    return _cache_bytes(_L2_FILE) or 1 << 20


@cache
def write_back_bytes() -> tuple[int, int]:
    """Stripes from the first size to below the second are not streamed after all."""
    largest = (_cache_bytes(_L3_FILE) or 0) // WRITE_BACK_L3_PART
    return WRITE_BACK_L2_CACHES * streaming_bytes(), largest


def _far_bytes(input_count: int) -> int:
    share = ALL_FAR_BYTES // input_count // CACHE_LINE_BYTES * CACHE_LINE_BYTES
    return min(FAR_BYTES, share)


def _cache_bytes(path: Path) -> int | None:
    try:
        found = re.fullmatch(r"([0-9]+)K\s*", path.read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None
    return int(found[1]) * 1024 if found else None


def _bit_matrices() -> Bytes:
    """For each constant c, the 8x8 bit matrix of x -> c * x as `vgf2p8affineqb` wants it.

    Byte 7 - i of the word is the row of output bit i; its bit j says whether input bit j counts.
    """
    columns = MUL[:, 1 << np.arange(8)].astype(np.uint64)
    words = np.zeros(256, dtype=np.uint64)
    for output_bit in range(8):
        for input_bit in range(8):
            bit = (columns[:, input_bit] >> np.uint64(output_bit)) & np.uint64(1)
            words |= bit << np.uint64(8 * (7 - output_bit) + input_bit)
    return words.view(np.uint8).reshape(256, 8)


def _half_tables() -> Bytes:
    """For each constant, its products with 0..15 and with 0, 16, .. 240. Shape: [256, 32]."""
    return np.concatenate([MUL[:, :16], MUL[:, ::16]], axis=1)


@cache
def _tables(has_gfni: bool) -> Bytes:
    return _bit_matrices() if has_gfni else _half_tables()


@cache
def _source_key() -> str:
    """What the IR depends on beside the program: the source that makes it."""
    return (Path(__file__).parent / "emit.py").read_text()


class Shapes:
    """Compiled programs of one instruction set, by their ops: coefficients are data."""

    def __init__(self, isa: InstructionSet) -> None:
        self._isa = isa
        self._loaded: dict[object, native.Code] = {}
        #: Products of all structured programs that were compiled: what that cost.
        self._compiled_products = 0

    def code(self, program: Program, *, is_plain: bool) -> native.Code | None:
        """The code of a program. Two threads may both make it; both work.

        None for one that is not plain and not on the disk, when enough of them were compiled.
        """
        known = self._loaded.get(program.ops)
        if known is None:
            isa = self._isa
            features = ",".join(f"+{name}" for name in isa.features)
            key = f"{_source_key()}\0{isa}\0{program.ops}"

            def make_ir() -> str:
                # Imported here because a warm cache does without.
                from exastore.erasure.kernels.emit import emit

                self._compiled_products += 0 if is_plain else program.product_count
                return emit(program, isa)

            compiles = is_plain or self._compiled_products < MAX_COMPILED_PRODUCTS
            known = native.load(key, isa.cpu, features, make_ir, compiles=compiles)
            if known is not None:
                self._loaded[program.ops] = known
        return known


@dataclass(frozen=True, slots=True)
class _Tile:
    """A part of the matrix: which rows and columns, and its program."""

    program: Program
    code: native.Code
    rows: NDArray[np.int64]
    columns: NDArray[np.int64]


def _tiles(matrix: Bytes, isa: InstructionSet, shapes: Shapes) -> list[_Tile]:
    """The matrix in parts; those of the first columns set the outputs, the others add to them."""
    row_count, column_count = matrix.shape
    corners = [
        (row, column)
        for row in range(0, row_count, isa.tile_rows)
        for column in range(0, column_count, TILE_COLUMNS)
    ]
    # The programs of many tiles would differ, and each would be compiled.
    plain = len(corners) > MAX_STRUCTURED_TILES
    made: list[_Tile] = []
    for row, column in corners:
        part = matrix[row : row + isa.tile_rows, column : column + TILE_COLUMNS]
        program = make_program(part, accumulate=column > 0, plain=plain, by_lookup=not isa.has_gfni)
        code = shapes.code(program, is_plain=plain)
        if code is None:
            program = make_program(part, accumulate=column > 0, plain=True)
            code = shapes.code(program, is_plain=True)
        made.append(_tile(program, code, row, column))
    return made


def _uniform_tiles(matrix: Bytes, isa: InstructionSet, shapes: Shapes) -> list[_Tile]:
    """The matrix in parts of which there are few shapes for all matrices: see `Kernel.prepare`."""
    row_count, column_count = matrix.shape
    made: list[_Tile] = []
    for row in range(0, row_count, isa.tile_rows):
        for column in range(0, column_count, UNIFORM_COLUMNS):
            part = matrix[row : row + isa.tile_rows, column : column + UNIFORM_COLUMNS]
            fill = -part.shape[1] % UNIFORM_STEP if part.shape[1] > 2 else 0
            filled = np.pad(part, ((0, 0), (0, fill)))
            program = make_program(filled, accumulate=column > 0, uniform=True)
            tile = _tile(program, shapes.code(program, is_plain=True), row, column)
            # What is multiplied by zero is any column, so the last one.
            np.minimum(tile.columns, column_count - 1, out=tile.columns)
            made.append(tile)
    return made


def _tile(program: Program, code: native.Code | None, row: int, column: int) -> _Tile:
    assert code is not None
    return _Tile(program, code, _shifted(program.rows, row), _shifted(program.columns, column))


def _shifted(places: Sequence[int], first: int) -> NDArray[np.int64]:
    """Places within a tile as places in the matrix."""
    return np.array(places, dtype=np.int64) + first


class VectorMap:
    """A matrix, compiled when it is first applied."""

    def __init__(
        self,
        matrix: Bytes,
        isa: InstructionSet,
        shapes: Shapes,
        *,
        program: Program | None = None,
        uniform: bool = False,
    ) -> None:
        """A map of this matrix; with `program`, of one tile that does that instead."""
        self._matrix = matrix
        self._program = program
        self._uniform = uniform
        self._isa = isa
        self._shapes = shapes
        self._output_count, self._input_count = matrix.shape
        #: Where the plan is; 0 until it is made.
        self._plan_address = 0
        #: What the plan points to, and the functions.
        self._kept: list[Any] = []
        self._run: Any = None
        self._execute: Any = None
        chunk_count = self._input_count + self._output_count
        self._addresses = self._ids = ctypes.c_int64 * chunk_count

    def __call__(self, inputs: Chunks, outputs: Chunks, threads: int = 1) -> None:
        """See `LinearMap.__call__`."""
        if not self._plan_address:
            self._compile()
        addresses = self._addresses(*inputs.addresses, *outputs.addresses)
        end = inputs.chunk_bytes
        part = -(-end // threads)
        part += -part % PART_ALIGNMENT
        if part >= end:
            self._execute(addresses, self._plan_address, 0, end)
            return

        def work(begin: int) -> None:
            self._execute(addresses, self._plan_address, begin, min(begin + part, end))

        # Imported here because most calls use one thread.
        from concurrent.futures import ThreadPoolExecutor

        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(work, range(0, end, part)))

    def bind(self, inputs: Chunks, outputs: Chunks) -> tuple[int, tuple[int, ...], object]:
        """The one foreign call on these chunks, for benchmarks.

        Returns:
            The function's address, its integer arguments, and what must live until it was called.
        """
        if not self._plan_address:
            self._compile()
        addresses = self._addresses(*inputs.addresses, *outputs.addresses)
        function = ctypes.cast(self._execute, ctypes.c_void_p).value
        assert function is not None
        arguments = (ctypes.addressof(addresses), self._plan_address, 0, inputs.chunk_bytes)
        return function, arguments, (self, inputs, outputs, addresses)

    def apply(self, inputs: Any, outputs: Any) -> bool:
        """See `LinearMap.apply`."""
        if not self._plan_address:
            self._compile()
        if self._run is None:
            return False
        if type(inputs) is np.ndarray:
            if type(outputs) is np.ndarray:
                flags, kept = driver.INPUTS_ARE_ROWS | driver.OUTPUTS_ARE_ROWS, (inputs, outputs)
            else:
                flags, kept = driver.INPUTS_ARE_ROWS, (inputs, *outputs)
                if len(kept) != 1 + self._output_count:
                    return False
        elif type(outputs) is np.ndarray:
            flags, kept = driver.OUTPUTS_ARE_ROWS, (*inputs, outputs)
            if len(kept) != self._input_count + 1:
                return False
        else:
            flags, kept = 0, (*inputs, *outputs)
            if len(inputs) != self._input_count or len(outputs) != self._output_count:
                return False
        # `kept` holds the arrays until the call is over.
        ids = self._ids(*map(id, kept))
        return bool(self._run(ids, flags, self._plan_address))

    def _compile(self) -> None:
        run = driver.driver()
        if self._program is None:
            make = _uniform_tiles if self._uniform else _tiles
            tiles = make(self._matrix, self._isa, self._shapes)
        else:
            code = self._shapes.code(self._program, is_plain=True)
            tiles = [_tile(self._program, code, 0, 0)]
        plan = driver.new_plan(self._input_count, self._output_count, len(tiles))
        plan[2], plan[4], plan[7] = streaming_bytes(), BLOCK_BYTES, self._isa.vector_bytes
        near_bytes = streaming_bytes() // 4 * 3 if self._isa.fetches_near else streaming_bytes()
        plan[8:12] = (near_bytes, *write_back_bytes(), _far_bytes(self._input_count))
        table = _tables(self._isa.has_gfni)
        for position, tile in enumerate(tiles):
            tables = np.ascontiguousarray(table[np.frombuffer(tile.program.coefficients, np.uint8)])
            outputs = tile.rows + self._input_count
            start = driver.PLAN_WORDS + driver.TILE_WORDS * position
            plan[start : start + driver.TILE_WORDS] = (
                tile.code.address(FUNCTION),
                tile.code.address(STREAMING_FUNCTION),
                tables.ctypes.data,
                tile.columns.ctypes.data,
                tile.columns.size,
                outputs.ctypes.data,
                outputs.size,
                tile.code.address(FETCHING_FUNCTION),
            )
            self._kept += [tile, tables, outputs]
        self._kept += [plan, run]
        self._execute = run.execute
        self._run = run.run if run.reads_arrays else None
        # Last: other threads look at this word to see whether all is ready.
        self._plan_address = plan.ctypes.data


class VectorKernel:
    """One instruction set."""

    def __init__(self, isa: InstructionSet) -> None:
        self._isa = isa
        self._shapes = Shapes(isa)

    @property
    def name(self) -> str:
        """See `Kernel.name`."""
        return self._isa.name

    def prepare(self, matrix: Bytes, *, uniform: bool = False) -> VectorMap:
        """See `Kernel.prepare`."""
        return VectorMap(matrix, self._isa, self._shapes, uniform=uniform)

    def compiled(self, program: Program) -> tuple[native.Code, int, Bytes]:
        """A program's code, its function `FUNCTION` in there, and the tables that it wants.

        For callers with addresses of their own: see `emit` for the arguments. The program is one
        that many matrices share, so it is always compiled.
        """
        code = self._shapes.code(program, is_plain=True)
        assert code is not None
        coefficients = np.frombuffer(program.coefficients, np.uint8)
        tables = np.ascontiguousarray(_tables(self._isa.has_gfni)[coefficients])
        return code, code.address(FUNCTION), tables
