"""The GFNI kernel: 64 bytes at a time on x86 CPUs with AVX-512 and Galois field instructions.

Multiplication by a constant is linear over GF(2), so it is an 8x8 bit matrix, and the instruction
`vgf2p8affineqb` applies such a matrix to each of 64 bytes. (Its sibling `vgf2p8mulb` is of no use:
its polynomial is fixed to 0x11B.) For each 64 bytes, every input is loaded once and all outputs are
accumulated in registers. numba has no such vectors, so the loop is built as LLVM IR.

The loop is unrolled for (inputs, outputs): their addresses come as tuples, so that numba
specialises on the tuple types, compiles each geometry once (about 0.1 s) and caches it on disk by
that signature; nothing but types and constants reaches the cache key. Coefficients are data, so all
matrices of one geometry share the code. Matrices wider or higher than a tile are done tile by tile.
"""

from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import config as numba_config
from numba.core.registry import cpu_target
from numba.extending import intrinsic
from numpy.typing import NDArray

from exastore.erasure.chunks import Chunks, address_of
from exastore.erasure.field import MUL, Bytes
from exastore.erasure.jit import njit

Words = NDArray[np.uint64]

REQUIRED_FEATURES = frozenset({"avx512f", "avx512bw", "gfni"})
VECTOR_BYTES = 64
#: A tile bounds the unrolled code: 8 accumulators and 256 products at most.
TILE_ROWS = 8
TILE_COLUMNS = 32
#: With several tiles, inputs are read again and again: 32 of these stay in a 2 MiB L2 cache.
BLOCK_BYTES = 32 * 1024

_I8, _I32, _I64 = ir.IntType(8), ir.IntType(32), ir.IntType(64)
_BYTES = ir.VectorType(_I8, VECTOR_BYTES)
_QWORDS = ir.VectorType(_I64, VECTOR_BYTES // 8)
_MASK = ir.VectorType(ir.IntType(1), VECTOR_BYTES)


def is_supported() -> bool:
    """Whether numba compiles for a CPU that has the instructions."""
    if cast(Any, numba_config).DISABLE_JIT:
        return False
    features: str = cast(Any, cpu_target).target_context.codegen().magic_tuple()[2]
    return REQUIRED_FEATURES <= {
        feature.removeprefix("+") for feature in features.split(",") if feature.startswith("+")
    }


class _Step:
    """Builds the IR of one step: 64 bytes of every input to 64 bytes of every output."""

    def __init__(self, builder: Any, args: Any, counts: tuple[int, int], accumulate: bool) -> None:
        sources, targets, matrices, _begin, _end = args
        self.builder = builder
        self.matrices = matrices
        self.accumulate = accumulate
        self.sources = [builder.extract_value(sources, i) for i in range(counts[0])]
        self.targets = [builder.extract_value(targets, i) for i in range(counts[1])]
        self.affine = self._declare("llvm.x86.vgf2p8affineqb.512", _BYTES, [_BYTES, _BYTES, _I8])
        pointer = _BYTES.as_pointer()
        self.masked_load = self._declare(
            "llvm.masked.load.v64i8.p0", _BYTES, [pointer, _I32, _MASK, _BYTES]
        )
        self.masked_store = self._declare(
            "llvm.masked.store.v64i8.p0", ir.VoidType(), [_BYTES, pointer, _I32, _MASK]
        )

    def _declare(self, name: str, result: Any, arguments: list[Any]) -> Any:
        known = self.builder.module.globals.get(name)
        return known or ir.Function(
            self.builder.module, ir.FunctionType(result, arguments), name=name
        )

    def _pointer(self, base: Any, offset: Any) -> Any:
        return self.builder.inttoptr(self.builder.add(base, offset), _BYTES.as_pointer())

    def _load(self, base: Any, offset: Any, mask: Any) -> Any:
        pointer = self._pointer(base, offset)
        if mask is None:
            return self.builder.load(pointer, align=1)
        return self.builder.call(
            self.masked_load, [pointer, _I32(1), mask, ir.Constant(_BYTES, None)]
        )

    def _store(self, value: Any, base: Any, offset: Any, mask: Any) -> None:
        pointer = self._pointer(base, offset)
        if mask is None:
            self.builder.store(value, pointer, align=1)
        else:
            self.builder.call(self.masked_store, [value, pointer, _I32(1), mask])

    def _bit_matrix(self, position: int) -> Any:
        """The bit matrix at this position of the table, in every lane; folded into the product."""
        builder = self.builder
        address = builder.add(self.matrices, _I64(8 * position))
        word = builder.load(builder.inttoptr(address, _I64.as_pointer()), align=8)
        undefined = ir.Constant(_QWORDS, ir.Undefined)
        lane = builder.insert_element(undefined, word, _I32(0))
        zeros = ir.Constant(ir.VectorType(_I32, VECTOR_BYTES // 8), None)
        return builder.bitcast(builder.shuffle_vector(lane, undefined, zeros), _BYTES)

    def emit(self, offset: Any, mask: Any = None) -> None:
        """The step at this offset; with a mask, only its bytes are touched."""
        sums = [
            self._load(target, offset, mask) if self.accumulate else None for target in self.targets
        ]
        for column, source in enumerate(self.sources):
            chunk = self._load(source, offset, mask)
            for row, partial in enumerate(sums):
                bit_matrix = self._bit_matrix(row * len(self.sources) + column)
                product = self.builder.call(self.affine, [chunk, bit_matrix, _I8(0)])
                sums[row] = product if partial is None else self.builder.xor(partial, product)
        for value, target in zip(sums, self.targets, strict=True):
            self._store(value, target, offset, mask)


def _emit_loop(builder: Any, step: _Step, begin: Any, end: Any) -> None:
    """Whole steps from `begin` to `end`, then one masked step for what is left."""
    entry = builder.basic_block
    head = builder.append_basic_block("head")
    whole = builder.append_basic_block("whole")
    rest = builder.append_basic_block("rest")
    tail = builder.append_basic_block("tail")
    done = builder.append_basic_block("done")
    builder.branch(head)

    builder.position_at_end(head)
    offset = builder.phi(_I64, "offset")
    offset.add_incoming(begin, entry)
    remaining = builder.sub(end, offset)
    builder.cbranch(builder.icmp_signed(">=", remaining, _I64(VECTOR_BYTES)), whole, rest)

    builder.position_at_end(whole)
    step.emit(offset)
    offset.add_incoming(builder.add(offset, _I64(VECTOR_BYTES)), builder.basic_block)
    builder.branch(head)

    builder.position_at_end(rest)
    builder.cbranch(builder.icmp_signed(">", remaining, _I64(0)), tail, done)

    builder.position_at_end(tail)
    bits = builder.sub(builder.shl(_I64(1), remaining), _I64(1))
    step.emit(offset, builder.bitcast(bits, _MASK))
    builder.branch(done)

    builder.position_at_end(done)


def _signature_and_codegen(accumulate: bool, arguments: tuple[Any, ...]) -> Any:
    counts = (arguments[0].count, arguments[1].count)

    def codegen(context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        step = _Step(builder, args, counts, accumulate)
        _emit_loop(builder, step, args[3], args[4])
        return context.get_dummy_value()

    return types.void(*arguments), codegen


def _type_multiply(
    typingctx: Any, sources: Any, targets: Any, matrices: Any, begin: Any, end: Any
) -> Any:
    return _signature_and_codegen(False, (sources, targets, matrices, begin, end))


def _type_multiply_add(
    typingctx: Any, sources: Any, targets: Any, matrices: Any, begin: Any, end: Any
) -> Any:
    return _signature_and_codegen(True, (sources, targets, matrices, begin, end))


# A decorated intrinsic keeps the signature of its typing function, which is not how it is called.
_multiply: Any = intrinsic(_type_multiply)
_multiply_add: Any = intrinsic(_type_multiply_add)

Addresses = tuple[int, ...]


@njit
def _set_tile(sources: Addresses, targets: Addresses, matrices: int, begin: int, end: int) -> None:
    _multiply(sources, targets, matrices, begin, end)


@njit
def _add_tile(sources: Addresses, targets: Addresses, matrices: int, begin: int, end: int) -> None:
    _multiply_add(sources, targets, matrices, begin, end)


def _bit_matrices() -> Words:
    """For each constant c, the 8x8 bit matrix of x -> c * x as `vgf2p8affineqb` wants it.

    Byte 7 - i of the word is the row of output bit i; its bit j says whether input bit j counts.
    """
    columns = MUL[:, 1 << np.arange(8)].astype(np.uint64)
    words = np.zeros(256, dtype=np.uint64)
    for output_bit in range(8):
        for input_bit in range(8):
            bit = (columns[:, input_bit] >> np.uint64(output_bit)) & np.uint64(1)
            words |= bit << np.uint64(8 * (7 - output_bit) + input_bit)
    return words


BIT_MATRICES = _bit_matrices()


@dataclass(frozen=True, slots=True)
class _Tile:
    """A part of the matrix. The leftmost tiles set the outputs, the others add to them."""

    rows: slice
    columns: slice
    matrices: Words
    matrices_address: int


@dataclass(frozen=True, slots=True)
class Gfni512Map:
    """A matrix as tiles of bit matrices."""

    tiles: tuple[_Tile, ...]

    def __call__(self, inputs: Chunks, outputs: Chunks) -> None:
        end = inputs.chunk_bytes
        if len(self.tiles) == 1:
            _set_tile(inputs.addresses, outputs.addresses, self.tiles[0].matrices_address, 0, end)
            return
        for begin in range(0, end, BLOCK_BYTES):
            for tile in self.tiles:
                apply = _add_tile if tile.columns.start else _set_tile
                apply(
                    inputs.addresses[tile.columns],
                    outputs.addresses[tile.rows],
                    tile.matrices_address,
                    begin,
                    min(begin + BLOCK_BYTES, end),
                )


@dataclass(frozen=True, slots=True)
class Gfni512Kernel:
    """`vgf2p8affineqb` on 512-bit registers."""

    name: str = "gfni512"

    def prepare(self, matrix: Bytes) -> Gfni512Map:
        """See `Kernel.prepare`."""
        tiles: list[_Tile] = []
        for row in range(0, matrix.shape[0], TILE_ROWS):
            for column in range(0, matrix.shape[1], TILE_COLUMNS):
                rows = slice(row, min(row + TILE_ROWS, matrix.shape[0]))
                columns = slice(column, min(column + TILE_COLUMNS, matrix.shape[1]))
                matrices = np.ascontiguousarray(BIT_MATRICES[matrix[rows, columns]])
                tiles.append(_Tile(rows, columns, matrices, address_of(matrices)))
        return Gfni512Map(tuple(tiles))
