"""Machine code that walks over steps: one foreign call for thousands of small products.

It goes block by block of the rows and, in each, over a stream of 32-bit words: the family of a
step, then a code of each row. It finds the rows' addresses and calls the program of the family on
them. Written as LLVM IR and compiled like the kernels, so no process needs numba for it.

A family is four words of 64 bits: function, tables, rows of a step, inputs among them. A buffer is
three: address, distance of its rows, and 1 if its rows are whole sub-chunks, else 0.
"""

import ctypes
from collections.abc import Sequence
from functools import cache
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from exastore.erasure.chunks import address_of
from exastore.erasure.kernels import native
from exastore.erasure.kernels.vector import VectorKernel
from exastore.erasure.steps import Buffer, Family, block_bytes

#: Buffers, and rows of a step, at most: the arrays on the stack.
MAX_ROWS: Final = 1024


class Walk:
    """See `steps.Runner`."""

    def __init__(
        self, kernel: VectorKernel, families: Sequence[Family], stream: NDArray[np.int32]
    ) -> None:
        self._stream = stream
        self._run: Any = _run()
        compiled = [kernel.compiled(family.program) for family in families]
        #: What the words point to.
        self._kept = compiled
        words = [
            (function, address_of(tables), len(f.inputs) + len(f.outputs), len(f.inputs))
            for f, (_, function, tables) in zip(families, compiled, strict=True)
        ]
        assert all(rows <= MAX_ROWS for _, _, rows, _ in words)
        self._families = np.array(words, dtype=np.int64)

    def __call__(self, buffers: Sequence[Buffer], begin: int, end: int) -> None:
        """See `steps.Runner`."""
        if begin >= end or not self._stream.size:
            return
        assert len(buffers) <= MAX_ROWS
        words = np.array(
            [(address_of(b.rows) - b.first, b.rows.strides[0], b.is_whole) for b in buffers],
            dtype=np.int64,
        )
        stream = address_of(self._stream)
        self._run(
            address_of(self._families),
            stream,
            stream + self._stream.nbytes,
            address_of(words),
            len(buffers),
            begin,
            end,
            block_bytes(buffers),
        )


@cache
def _run() -> Any:
    code = native.load(_IR, "x86-64", "", lambda: _IR)
    assert code is not None
    pointer, word = ctypes.c_void_p, ctypes.c_int64
    kind = ctypes.CFUNCTYPE(None, *[pointer] * 4, *[word] * 4)
    # The code must live as long as the function.
    function: Any = kind(code.address("run"))
    function.code = code
    return function


_IR: Final = f"""
; All steps on `size` bytes of the rows, whose buffers start at `bases`.
define internal void @walk(ptr %families, ptr %steps, ptr %stop, ptr %bases, ptr %distances,
                           i64 %size) nounwind {{
entry:
  %rows = alloca [{MAX_ROWS} x i64]
  br label %step
step:
  %at = phi ptr [%steps, %entry], [%after, %call]
  %kind32 = load i32, ptr %at
  %kind = zext i32 %kind32 to i64
  %word = shl i64 %kind, 2
  %family = getelementptr i64, ptr %families, i64 %word
  %function = load ptr, ptr %family
  %tables_at = getelementptr i64, ptr %family, i64 1
  %tables = load ptr, ptr %tables_at
  %count_at = getelementptr i64, ptr %family, i64 2
  %count = load i64, ptr %count_at
  %inputs_at = getelementptr i64, ptr %family, i64 3
  %inputs = load i64, ptr %inputs_at
  %codes = getelementptr i32, ptr %at, i64 1
  br label %row
row:
  %i = phi i64 [0, %step], [%i1, %row]
  %code_at = getelementptr i32, ptr %codes, i64 %i
  %code32 = load i32, ptr %code_at
  %code = zext i32 %code32 to i64
  %buffer = lshr i64 %code, 16
  %position = and i64 %code, 65535
  %base_at = getelementptr i64, ptr %bases, i64 %buffer
  %base = load i64, ptr %base_at
  %distance_at = getelementptr i64, ptr %distances, i64 %buffer
  %distance = load i64, ptr %distance_at
  %offset = mul i64 %position, %distance
  %address = add i64 %base, %offset
  %to = getelementptr i64, ptr %rows, i64 %i
  store i64 %address, ptr %to
  %i1 = add i64 %i, 1
  %more_rows = icmp ult i64 %i1, %count
  br i1 %more_rows, label %row, label %call
call:
  %targets = getelementptr i64, ptr %rows, i64 %inputs
  call void %function(ptr %rows, ptr %targets, ptr %tables, i64 0, i64 %size)
  %after = getelementptr i32, ptr %codes, i64 %count
  %more = icmp ult ptr %after, %stop
  br i1 %more, label %step, label %done
done:
  ret void
}}

define void @run(ptr %families, ptr %steps, ptr %stop, ptr %buffers, i64 %buffer_count, i64 %begin,
                 i64 %end, i64 %block) nounwind {{
entry:
  %bases = alloca [{MAX_ROWS} x i64]
  %distances = alloca [{MAX_ROWS} x i64]
  br label %blocks
blocks:
  %from = phi i64 [%begin, %entry], [%to, %ready]
  %left = sub i64 %end, %from
  %short = icmp ult i64 %left, %block
  %size = select i1 %short, i64 %left, i64 %block
  %to = add i64 %from, %size
  br label %buffer
buffer:
  %b = phi i64 [0, %blocks], [%b1, %buffer]
  %word = mul i64 %b, 3
  %at = getelementptr i64, ptr %buffers, i64 %word
  %start = load i64, ptr %at
  %distance_at = getelementptr i64, ptr %at, i64 1
  %distance = load i64, ptr %distance_at
  %whole_at = getelementptr i64, ptr %at, i64 2
  %whole = load i64, ptr %whole_at
  %shift = mul i64 %from, %whole
  %base = add i64 %start, %shift
  %base_to = getelementptr i64, ptr %bases, i64 %b
  store i64 %base, ptr %base_to
  %distance_to = getelementptr i64, ptr %distances, i64 %b
  store i64 %distance, ptr %distance_to
  %b1 = add i64 %b, 1
  %more_buffers = icmp ult i64 %b1, %buffer_count
  br i1 %more_buffers, label %buffer, label %ready
ready:
  call void @walk(ptr %families, ptr %steps, ptr %stop, ptr %bases, ptr %distances, i64 %size)
  %more = icmp ult i64 %to, %end
  br i1 %more, label %blocks, label %done
done:
  ret void
}}
"""
