"""The call of a kernel from Python: checks of the arrays and the walk over the tiles, in one call.

For small chunks the time goes to Python's side, so the arguments are checked by machine code too.
It reads the fields of `PyArrayObject` (public in `numpy/ndarraytypes.h`, fixed by NumPy's binary
interface) of the arrays whose `id` it gets, and refuses whatever is not plainly right: then the
checks of `chunks.py` accept it or say what is wrong. On another interpreter than CPython with its
usual object header, or if a trial gives wrong answers, all calls take that way.

A call is described by a plan, 64-bit words: `PLAN_WORDS` of the whole, then `TILE_WORDS` per tile.
"""

import ctypes
import sys
from collections.abc import Sequence
from functools import cache
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from exastore.erasure.kernels import native

#: k, m, bytes of a stripe from which it is streamed, tiles, bytes of a block when there are several
#: tiles, the type of arrays, the dtype of bytes, bytes of a vector; bytes of a stripe from which
#: inputs are fetched ahead; from which, and up to which, it is not streamed but written to the
#: caches after all; how far ahead inputs are fetched that the second-level cache does not hold.
PLAN_WORDS: Final = 12
#: Function, streaming function, tables, inputs (their places), their count, outputs, their count,
#: fetching function.
TILE_WORDS: Final = 8

#: In the flags of a call: all inputs, all outputs are the rows of one array.
INPUTS_ARE_ROWS: Final = 1
OUTPUTS_ARE_ROWS: Final = 2

Words = NDArray[np.int64]


class Driver:
    """The compiled driver."""

    def __init__(self) -> None:
        code = native.load(_IR, "x86-64", "", lambda: _IR)
        assert code is not None
        self._code: Final = code
        words, pointer = ctypes.c_int64, ctypes.c_void_p
        run = ctypes.CFUNCTYPE(words, pointer, words, pointer)
        execute = ctypes.CFUNCTYPE(None, pointer, pointer, words, words)
        #: run(ids, flags, plan): 1 if it was done; 0 if the arrays must be looked at.
        self.run: Final[Any] = run(self._code.address("run"))
        #: execute(addresses, plan, begin, end)
        self.execute: Final[Any] = execute(self._code.address("execute"))
        self._gather: Any = ctypes.CFUNCTYPE(words, pointer, words, words, words, pointer, pointer)(
            self._code.address("gather")
        )
        self.reads_arrays: Final = _has_usual_header() and self._reads_arrays()

    def _reads_arrays(self) -> bool:
        """Whether the fields are where they are expected: a trial on arrays of all kinds."""
        memory = np.zeros((4, 24), dtype=np.uint8)
        frozen = np.zeros(24, dtype=np.uint8)
        frozen.flags.writeable = False
        trials: list[tuple[list[Any], int, int, int]] = [
            ([memory[0], memory[1, 0:24]], 2, 0, 24),
            ([memory[0, :7], memory[1, 3:10]], 2, 0, 7),
            ([memory[0], memory[1, :23]], 2, 0, -1),
            ([memory[0, ::2]], 1, 0, -1),
            ([memory[0].view(np.int8)], 1, 0, -1),
            ([memory.reshape(2, 48)[:, 5:9]], 2, 1, 4),
            ([memory[:, ::2]], 4, 1, -1),
            ([memory[:3]], 4, 1, -1),
            ([memory], 1, 0, -1),
            ([frozen], 1, 0, -1),
            ([b"bytes of Python"], 1, 0, -1),
        ]
        return all(self._gathers(*trial) for trial in trials)

    def _gathers(self, arrays: Sequence[Any], count: int, rows: int, expected: int) -> bool:
        ids = (ctypes.c_int64 * len(arrays))(*map(id, arrays))
        found = (ctypes.c_int64 * count)()
        plan = new_plan(count, 0, 0)
        length = self._gather(ids, count, rows, WRITEABLE, plan.ctypes.data, found)
        if length < 0 or expected < 0:
            return bool(length == expected)
        starts = [row.ctypes.data for row in (arrays[0] if rows else arrays)]
        return length == expected and list(found) == starts


@cache
def driver() -> Driver:
    """The driver of this process."""
    return Driver()


def new_plan(input_count: int, output_count: int, tile_count: int) -> Words:
    """A plan with the words that do not depend on the kernel."""
    plan = np.zeros(PLAN_WORDS + TILE_WORDS * tile_count, dtype=np.int64)
    plan[:7] = input_count, output_count, 0, tile_count, 0, id(np.ndarray), id(np.dtype(np.uint8))
    return plan


def _has_usual_header() -> bool:
    return sys.implementation.name == "cpython" and object.__basicsize__ == 16


#: NPY_ARRAY_WRITEABLE.
WRITEABLE: Final = 0x400

# PyObject: count of references, type. PyArrayObject: data at 16, dimensions' count at 24, their
# sizes at 32, strides at 40, dtype at 56, flags at 64.
_IR: Final = """
define internal i1 @is_plain(ptr %array, i32 %dimensions, i64 %flags, ptr %plan) nounwind {
entry:
  %type_at = getelementptr i8, ptr %array, i64 8
  %type = load i64, ptr %type_at
  %want_type_at = getelementptr i64, ptr %plan, i64 5
  %want_type = load i64, ptr %want_type_at
  %is_array = icmp eq i64 %type, %want_type
  br i1 %is_array, label %fields, label %no
fields:
  %nd_at = getelementptr i8, ptr %array, i64 24
  %nd = load i32, ptr %nd_at
  %same_nd = icmp eq i32 %nd, %dimensions
  %dtype_at = getelementptr i8, ptr %array, i64 56
  %dtype = load i64, ptr %dtype_at
  %want_dtype_at = getelementptr i64, ptr %plan, i64 6
  %want_dtype = load i64, ptr %want_dtype_at
  %same_dtype = icmp eq i64 %dtype, %want_dtype
  %flags_at = getelementptr i8, ptr %array, i64 64
  %have = load i32, ptr %flags_at
  %need = trunc i64 %flags to i32
  %common = and i32 %have, %need
  %flagged = icmp eq i32 %common, %need
  %a = and i1 %same_nd, %same_dtype
  %b = and i1 %a, %flagged
  ret i1 %b
no:
  ret i1 0
}

; Contiguous bytes: this stride is 1, or there is nothing to stride over.
define internal i1 @is_dense(ptr %array, i64 %axis, i64 %size) nounwind {
  %strides_at = getelementptr i8, ptr %array, i64 40
  %strides = load ptr, ptr %strides_at
  %stride_at = getelementptr i64, ptr %strides, i64 %axis
  %stride = load i64, ptr %stride_at
  %one = icmp eq i64 %stride, 1
  %short = icmp ult i64 %size, 2
  %dense = or i1 %one, %short
  ret i1 %dense
}

define internal i64 @size_of(ptr %array, i64 %axis) nounwind {
  %sizes_at = getelementptr i8, ptr %array, i64 32
  %sizes = load ptr, ptr %sizes_at
  %size_at = getelementptr i64, ptr %sizes, i64 %axis
  %size = load i64, ptr %size_at
  ret i64 %size
}

; The addresses of `count` chunks, and their length; -1 if they are not plainly chunks.
define i64 @gather(ptr %ids, i64 %count, i64 %rows, i64 %flags, ptr %plan, ptr %found) nounwind {
entry:
  %first = load ptr, ptr %ids
  %is_rows = icmp ne i64 %rows, 0
  br i1 %is_rows, label %matrix, label %separate
matrix:
  %plain2 = call i1 @is_plain(ptr %first, i32 2, i64 %flags, ptr %plan)
  br i1 %plain2, label %shape, label %no
shape:
  %height = call i64 @size_of(ptr %first, i64 0)
  %width = call i64 @size_of(ptr %first, i64 1)
  %fits = icmp eq i64 %height, %count
  %dense2 = call i1 @is_dense(ptr %first, i64 1, i64 %width)
  %good2 = and i1 %fits, %dense2
  br i1 %good2, label %fill, label %no
fill:
  %base_at = getelementptr i8, ptr %first, i64 16
  %base = load i64, ptr %base_at
  %strides_at = getelementptr i8, ptr %first, i64 40
  %strides = load ptr, ptr %strides_at
  %stride = load i64, ptr %strides
  br label %row
row:
  %r = phi i64 [0, %fill], [%r1, %row]
  %start = phi i64 [%base, %fill], [%start1, %row]
  %row_at = getelementptr i64, ptr %found, i64 %r
  store i64 %start, ptr %row_at
  %start1 = add i64 %start, %stride
  %r1 = add i64 %r, 1
  %more_rows = icmp ult i64 %r1, %count
  br i1 %more_rows, label %row, label %rows_done
rows_done:
  ret i64 %width
separate:
  %plain1 = call i1 @is_plain(ptr %first, i32 1, i64 %flags, ptr %plan)
  br i1 %plain1, label %measure, label %no
measure:
  %length = call i64 @size_of(ptr %first, i64 0)
  br label %chunk
chunk:
  %i = phi i64 [0, %measure], [%i1, %next]
  %id_at = getelementptr ptr, ptr %ids, i64 %i
  %array = load ptr, ptr %id_at
  %plain = call i1 @is_plain(ptr %array, i32 1, i64 %flags, ptr %plan)
  br i1 %plain, label %sized, label %no
sized:
  %size = call i64 @size_of(ptr %array, i64 0)
  %same = icmp eq i64 %size, %length
  %dense = call i1 @is_dense(ptr %array, i64 0, i64 %size)
  %good = and i1 %same, %dense
  br i1 %good, label %next, label %no
next:
  %data_at = getelementptr i8, ptr %array, i64 16
  %data = load i64, ptr %data_at
  %found_at = getelementptr i64, ptr %found, i64 %i
  store i64 %data, ptr %found_at
  %i1 = add i64 %i, 1
  %more = icmp ult i64 %i1, %count
  br i1 %more, label %chunk, label %done
done:
  ret i64 %length
no:
  ret i64 -1
}

; Whether an output overlaps any other chunk.
define internal i1 @overlap(ptr %addresses, i64 %k, i64 %n, i64 %length) nounwind {
entry:
  %reach = sub i64 %length, 1
  %twice = add i64 %reach, %length
  %empty = icmp eq i64 %length, 0
  br i1 %empty, label %clear, label %output
output:
  %o = phi i64 [%k, %entry], [%o1, %output_done]
  %out_at = getelementptr i64, ptr %addresses, i64 %o
  %out = load i64, ptr %out_at
  %high = add i64 %out, %reach
  br label %other
other:
  %j = phi i64 [0, %output], [%j1, %apart]
  %other_at = getelementptr i64, ptr %addresses, i64 %j
  %start = load i64, ptr %other_at
  %distance = sub i64 %high, %start
  %hit = icmp ult i64 %distance, %twice
  br i1 %hit, label %found, label %apart
apart:
  %j1 = add i64 %j, 1
  %more = icmp ult i64 %j1, %o
  br i1 %more, label %other, label %output_done
output_done:
  %o1 = add i64 %o, 1
  %more_outputs = icmp ult i64 %o1, %n
  br i1 %more_outputs, label %output, label %clear
clear:
  ret i1 0
found:
  ret i1 1
}

; Whether the outputs are equally far from a vector's boundary.
define internal i1 @congruent(ptr %addresses, i64 %k, i64 %n, i64 %vector) nounwind {
entry:
  %first_at = getelementptr i64, ptr %addresses, i64 %k
  %first = load i64, ptr %first_at
  %mask = sub i64 %vector, 1
  br label %loop
loop:
  %i = phi i64 [%k, %entry], [%i1, %next]
  %at = getelementptr i64, ptr %addresses, i64 %i
  %start = load i64, ptr %at
  %mixed = xor i64 %start, %first
  %low = and i64 %mixed, %mask
  %same = icmp eq i64 %low, 0
  br i1 %same, label %next, label %no
next:
  %i1 = add i64 %i, 1
  %more = icmp ult i64 %i1, %n
  br i1 %more, label %loop, label %yes
yes:
  ret i1 1
no:
  ret i1 0
}

define internal void @pick(ptr %addresses, i64 %places, i64 %count, ptr %picked) nounwind {
entry:
  %list = inttoptr i64 %places to ptr
  br label %loop
loop:
  %i = phi i64 [0, %entry], [%i1, %loop]
  %place_at = getelementptr i64, ptr %list, i64 %i
  %place = load i64, ptr %place_at
  %from = getelementptr i64, ptr %addresses, i64 %place
  %address = load i64, ptr %from
  %to = getelementptr i64, ptr %picked, i64 %i
  store i64 %address, ptr %to
  %i1 = add i64 %i, 1
  %more = icmp ult i64 %i1, %count
  br i1 %more, label %loop, label %done
done:
  ret void
}

; All tiles on the bytes from `begin` to `end`, block by block if there are several.
define void @execute(ptr %addresses, ptr %plan, i64 %begin, i64 %end) nounwind {
entry:
  %sources = alloca [256 x i64]
  %targets = alloca [256 x i64]
  %k = load i64, ptr %plan
  %m_at = getelementptr i64, ptr %plan, i64 1
  %m = load i64, ptr %m_at
  %threshold_at = getelementptr i64, ptr %plan, i64 2
  %threshold = load i64, ptr %threshold_at
  %tiles_at = getelementptr i64, ptr %plan, i64 3
  %tiles = load i64, ptr %tiles_at
  %block_at = getelementptr i64, ptr %plan, i64 4
  %block = load i64, ptr %block_at
  %vector_at = getelementptr i64, ptr %plan, i64 7
  %vector = load i64, ptr %vector_at
  %n = add i64 %k, %m
  %size = sub i64 %end, %begin
  %total = mul i64 %n, %size
  %large_total = icmp uge i64 %total, %threshold
  %some = icmp uge i64 %size, 4096
  %large = and i1 %large_total, %some
  %one = icmp eq i64 %tiles, 1
  %even = call i1 @congruent(ptr %addresses, i64 %k, i64 %n, i64 %vector)
  %large_one = and i1 %large, %one
  %near_at = getelementptr i64, ptr %plan, i64 8
  %near = load i64, ptr %near_at
  %back_at = getelementptr i64, ptr %plan, i64 9
  %back = load i64, ptr %back_at
  %back_end_at = getelementptr i64, ptr %plan, i64 10
  %back_end = load i64, ptr %back_end_at
  %far_at = getelementptr i64, ptr %plan, i64 11
  %far = load i64, ptr %far_at
  %over_back = icmp uge i64 %total, %back
  %under_end = icmp ult i64 %total, %back_end
  %is_back = and i1 %over_back, %under_end
  %not_back = xor i1 %is_back, 1
  %large_even = and i1 %large_one, %even
  %streaming = and i1 %large_even, %not_back
  %medium_total = icmp uge i64 %total, %near
  %medium = and i1 %medium_total, %some
  %fetching = and i1 %medium, %one
  %special = or i1 %streaming, %fetching
  %ahead = select i1 %large, i64 %far, i64 256
  %variant = select i1 %streaming, i64 1, i64 7
  %step = select i1 %one, i64 %size, i64 %block
  %nothing = icmp eq i64 %size, 0
  br i1 %nothing, label %done, label %blocks
blocks:
  %from = phi i64 [%begin, %entry], [%to, %blocks_next]
  %left = sub i64 %end, %from
  %short = icmp ult i64 %left, %step
  %this = select i1 %short, i64 %left, i64 %step
  %to = add i64 %from, %this
  br label %tile
tile:
  %t = phi i64 [0, %blocks], [%t1, %tile_done]
  %offset = shl i64 %t, 3
  %word = add i64 %offset, 12
  %tile_at = getelementptr i64, ptr %plan, i64 %word
  %function = load ptr, ptr %tile_at
  %tables_at = getelementptr i64, ptr %tile_at, i64 2
  %tables = load ptr, ptr %tables_at
  %inputs_at = getelementptr i64, ptr %tile_at, i64 3
  %inputs = load i64, ptr %inputs_at
  %input_count_at = getelementptr i64, ptr %tile_at, i64 4
  %input_count = load i64, ptr %input_count_at
  %outputs_at = getelementptr i64, ptr %tile_at, i64 5
  %outputs = load i64, ptr %outputs_at
  %output_count_at = getelementptr i64, ptr %tile_at, i64 6
  %output_count = load i64, ptr %output_count_at
  call void @pick(ptr %addresses, i64 %inputs, i64 %input_count, ptr %sources)
  call void @pick(ptr %addresses, i64 %outputs, i64 %output_count, ptr %targets)
  br i1 %special, label %stream, label %plain
plain:
  call void %function(ptr %sources, ptr %targets, ptr %tables, i64 %from, i64 %to)
  br label %tile_done
stream:
  ; Up to the first aligned output; whole rounds of 128 bytes; the rest.
  %stream_at = getelementptr i64, ptr %tile_at, i64 %variant
  %loop = load ptr, ptr %stream_at
  %output = load i64, ptr %targets
  %output_from = add i64 %output, %from
  %minus = sub i64 0, %output_from
  %mask = sub i64 %vector, 1
  %away = and i64 %minus, %mask
  %middle = add i64 %from, %away
  %body = sub i64 %to, %middle
  %rounds = and i64 %body, -128
  %last = add i64 %middle, %rounds
  call void %function(ptr %sources, ptr %targets, ptr %tables, i64 %from, i64 %middle)
  call void %loop(ptr %sources, ptr %targets, ptr %tables, i64 %middle, i64 %last, i64 %ahead)
  call void %function(ptr %sources, ptr %targets, ptr %tables, i64 %last, i64 %to)
  br label %tile_done
tile_done:
  %t1 = add i64 %t, 1
  %more_tiles = icmp ult i64 %t1, %tiles
  br i1 %more_tiles, label %tile, label %blocks_next
blocks_next:
  %more = icmp ult i64 %to, %end
  br i1 %more, label %blocks, label %done
done:
  ret void
}

define i64 @run(ptr %ids, i64 %flags, ptr %plan) nounwind {
entry:
  %addresses = alloca [512 x i64]
  %k = load i64, ptr %plan
  %m_at = getelementptr i64, ptr %plan, i64 1
  %m = load i64, ptr %m_at
  %n = add i64 %k, %m
  %input_rows = and i64 %flags, 1
  %output_rows = and i64 %flags, 2
  %length = call i64 @gather(ptr %ids, i64 %k, i64 %input_rows, i64 0, ptr %plan, ptr %addresses)
  %plain = icmp sge i64 %length, 0
  br i1 %plain, label %outputs, label %no
outputs:
  %one = icmp ne i64 %input_rows, 0
  %used = select i1 %one, i64 1, i64 %k
  %rest = getelementptr i64, ptr %ids, i64 %used
  %places = getelementptr i64, ptr %addresses, i64 %k
  %length2 = call i64 @gather(ptr %rest, i64 %m, i64 %output_rows, i64 1024, ptr %plan, ptr %places)
  %same = icmp eq i64 %length, %length2
  br i1 %same, label %apart, label %no
apart:
  %hit = call i1 @overlap(ptr %addresses, i64 %k, i64 %n, i64 %length)
  br i1 %hit, label %no, label %go
go:
  call void @execute(ptr %addresses, ptr %plan, i64 0, i64 %length)
  ret i64 1
no:
  ret i64 0
}
"""
