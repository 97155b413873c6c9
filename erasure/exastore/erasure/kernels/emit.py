"""From a program to LLVM IR, for one instruction set.

Three functions are made, `void apply(sources, targets, tables, begin, end)`, `apply_fetching` and
`apply_streaming`: arrays of pointers, the tables of the coefficients, and the range of bytes. Their
loop runs the program on `unroll` vectors of each input at once; what is left, at the end or before
the first aligned output, is done by one partial step: by masks where the instruction set has them,
else through copies on the stack. Fetching asks for inputs `ahead` bytes ahead, a sixth argument,
which pays where they come from the second-level cache or beyond. Streaming does, too, and writes
past the caches, which saves reading the old contents of the outputs. Both do whole rounds only,
streaming on aligned outputs.

IR is written as text: `llvmlite.binding` parses it, and neither numba nor `llvmlite.ir` is needed.
"""

from dataclasses import dataclass, field
from typing import Final

from exastore.erasure.kernels.doublings import DOUBLING_CONSTANT
from exastore.erasure.kernels.isa import (
    FETCHING_FUNCTION,
    FUNCTION,
    STREAMING_FUNCTION,
    InstructionSet,
)
from exastore.erasure.kernels.program import Op, Program

CACHE_LINE_BYTES: Final = 64


def emit(program: Program, isa: InstructionSet) -> str:
    """The IR of a program, made of the instructions of `isa`."""
    pieces = [_HEADER.format(vector=f"<{isa.vector_bytes} x i8>", bits=8 * isa.vector_bytes)]
    if not isa.has_masks:
        pieces.append(_COPY)
    names = [FUNCTION, FETCHING_FUNCTION, STREAMING_FUNCTION]
    pieces += [_Emitter(program, isa, name).function() for name in names]
    return "\n".join([*pieces, "!0 = !{}", "!1 = !{i32 1}", ""])


@dataclass(slots=True)
class _Emitter:
    program: Program
    isa: InstructionSet
    name: str
    lines: list[str] = field(default_factory=list[str])
    counter: int = 0

    @property
    def streaming(self) -> bool:
        """Whether the outputs are written past the caches."""
        return self.name == STREAMING_FUNCTION

    @property
    def unroll(self) -> int:
        """Vectors of each input in one round."""
        return self.isa.unroll if self.name == FUNCTION else self.isa.large_unroll

    @property
    def vector(self) -> str:
        return f"<{self.isa.vector_bytes} x i8>"

    @property
    def words(self) -> str:
        return f"<{self.isa.vector_bytes // 8} x i64>"

    def line(self, text: str) -> None:
        self.lines.append("  " + text)

    def value(self, text: str) -> str:
        self.counter += 1
        self.line(f"%t{self.counter} = {text}")
        return f"%t{self.counter}"

    def label(self, name: str) -> None:
        self.lines.append(f"{name}:")

    def function(self) -> str:
        """The whole definition."""
        inputs, outputs = len(self.program.columns), len(self.program.rows)
        step = self.isa.vector_bytes * self.unroll
        ahead = "" if self.name == FUNCTION else ", i64 %ahead"
        self.lines.append(
            f"define void @{self.name}(ptr noalias readonly %sources, ptr noalias readonly"
            f" %targets, ptr noalias readonly %tables, i64 %begin, i64 %end{ahead}) nounwind {{"
        )
        self.label("entry")
        for kind, array, count in (("s", "sources", inputs), ("d", "targets", outputs)):
            for i in range(count):
                place = self.value(f"getelementptr ptr, ptr %{array}, i64 {i}")
                self.line(f"%{kind}{i} = load ptr, ptr {place}")
        if not self.isa.has_masks and self.name == FUNCTION:
            size = (inputs + outputs) * self.isa.vector_bytes
            self.line(f"%stack = alloca [{size} x i8], align {self.isa.vector_bytes}")
        if self.name == FUNCTION:
            self._loop(step)
        else:
            self._whole_rounds(step)
        return "\n".join([*self.lines, "}"])

    def _whole_rounds(self, step: int) -> None:
        self.line("br label %whole")
        self.label("whole")
        self.line("%o = phi i64 [%begin, %entry], [%next, %whole]")
        self.line("%later = add i64 %o, %ahead")
        self._step("%o", self.unroll, None)
        self.line(f"%next = add i64 %o, {step}")
        self.line("%more = icmp ult i64 %next, %end")
        self.line("br i1 %more, label %whole, label %done")
        self.label("done")
        if self.streaming:
            self.line("call void @llvm.x86.sse.sfence()")
        self.line("ret void")

    def _loop(self, step: int) -> None:
        self.line("%all = sub i64 %end, %begin")
        self._peel()
        self.label("check")
        self.line("%o = phi i64 [%begin, %entry], [%next, %whole], [%after, %part]")
        self.line("%left = sub i64 %end, %o")
        self.line(f"%full = icmp uge i64 %left, {step}")
        self.line("br i1 %full, label %whole, label %rest")
        self.label("whole")
        self._step("%o", self.unroll, None)
        self.line(f"%next = add i64 %o, {step}")
        self.line("br label %check")
        self.label("rest")
        self.line(f"%some = call i64 @llvm.umin.i64(i64 %left, i64 {self.isa.vector_bytes})")
        self.line("%none = icmp eq i64 %left, 0")
        self.line("br i1 %none, label %done, label %part")
        self.label("part")
        self.line("%po = phi i64 [%begin, %entry], [%o, %rest]")
        self.line("%count = phi i64 [%peel, %entry], [%some, %rest]")
        self.line("%after = add i64 %po, %count")
        self._step("%po", 1, "%count")
        self.line("br label %check")
        self.label("done")
        self.line("ret void")

    def _peel(self) -> None:
        """Bytes before the first output is aligned, worth a partial step of their own."""
        size = self.isa.vector_bytes
        if self.isa.has_masks:
            address = self.value("ptrtoint ptr %d0 to i64")
            first = self.value(f"add i64 {address}, %begin")
            negative = self.value(f"sub i64 0, {first}")
            away = self.value(f"and i64 {negative}, {size - 1}")
            self.line(f"%peel = call i64 @llvm.umin.i64(i64 {away}, i64 %all)")
        else:
            self.line("%peel = and i64 0, %all")
        self.line("%aligned = icmp eq i64 %peel, 0")
        self.line("br i1 %aligned, label %check, label %part")

    def _step(self, offset: str, lanes: int, count: str | None) -> None:
        """The program on some vectors, or on the `count` first bytes of one."""
        step = _Step(self, offset, lanes, count)
        if count is not None:
            step.begin_part()
        for op in self.program.ops:
            step.emit(op)
        if count is not None:
            step.end_part()


class _Step:
    def __init__(self, emitter: _Emitter, offset: str, lanes: int, count: str | None) -> None:
        self.out = emitter
        self.isa = emitter.isa
        self.offset = offset
        self.lanes = lanes
        self.count = count
        self.mask = ""
        #: The SSA values of each variable, one per lane.
        self.values: dict[int | str, list[str]] = {}
        self.halves: dict[tuple[int | str, int], tuple[str, str]] = {}

    def begin_part(self) -> None:
        """Make the mask, or copy the inputs (and the outputs, which may be read) to the stack."""
        if self.isa.has_masks:
            away = self.out.value(f"sub i64 64, {self.count}")
            bits = self.out.value(f"lshr i64 -1, {away}")
            self.mask = self.out.value(f"bitcast i64 {bits} to <64 x i1>")
            return
        for i in range(len(self.out.program.columns)):
            self._copy(self._stack("s", i), self._at(f"%s{i}"))
        for i in range(len(self.out.program.rows)):
            self._copy(self._stack("d", i), self._at(f"%d{i}"))

    def end_part(self) -> None:
        """Copy the outputs back from the stack."""
        if not self.isa.has_masks:
            for i in range(len(self.out.program.rows)):
                self._copy(self._at(f"%d{i}"), self._stack("d", i))

    def _copy(self, target: str, source: str) -> None:
        self.out.line(f"call void @copy(ptr {target}, ptr {source}, i64 {self.count})")

    def _at(self, base: str, lane: int = 0) -> str:
        place = self.out.value(f"getelementptr i8, ptr {base}, i64 {self.offset}")
        if lane:
            shift = lane * self.isa.vector_bytes
            place = self.out.value(f"getelementptr i8, ptr {place}, i64 {shift}")
        return place

    def _stack(self, kind: str, index: int) -> str:
        position = index + (len(self.out.program.columns) if kind == "d" else 0)
        shift = position * self.isa.vector_bytes
        return self.out.value(f"getelementptr i8, ptr %stack, i64 {shift}")

    def emit(self, op: Op) -> None:
        """One op on all lanes."""
        match op:
            case ("load", variable, index):
                self._set(variable, [self._load("s", index, u) for u in range(self.lanes)])
            case ("read", variable, index):
                self._set(variable, [self._load("d", index, u) for u in range(self.lanes)])
            case ("xor", variable, a, b):
                pairs = zip(self.values[a], self.values[b], strict=True)
                self._set(variable, [self._xor(x, y) for x, y in pairs])
            case ("mul", variable, source, slot):
                self._set(variable, self._products(source, int(slot), None))
            case ("mac", variable, total, source, slot):
                self._set(variable, self._products(source, int(slot), self.values[total]))
            case ("double", variable, source):
                self._set(variable, [self._double(x) for x in self.values[source]])
            case ("add", variable, source, constant):
                self._set(
                    variable, [self._xor(x, self._splat(constant)) for x in self.values[source]]
                )
            case ("store", row, variable):
                for lane, value in enumerate(self.values[variable]):
                    self._store(value, row, lane)
            case _:
                raise AssertionError(op)

    def _set(self, variable: int | str, values: list[str]) -> None:
        self.values[variable] = values

    def _xor(self, a: str, b: str) -> str:
        return self.out.value(f"xor {self.out.vector} {a}, {b}")

    def _load(self, kind: str, index: int | str, lane: int) -> str:
        vector = self.out.vector
        if self.count is None:
            place = self._at(f"%{kind}{index}", lane)
            if self.out.name != FUNCTION and kind == "s":
                self._prefetch(index, lane)
            return self.out.value(f"load {vector}, ptr {place}, align 1")
        if self.isa.has_masks:
            place = self._at(f"%{kind}{index}")
            return self.out.value(
                f"call {vector} @llvm.masked.load.v64i8.p0"
                f"(ptr {place}, i32 1, <64 x i1> {self.mask}, {vector} zeroinitializer)"
            )
        place = self._stack(kind, int(index))
        return self.out.value(f"load {vector}, ptr {place}, align 1")

    def _prefetch(self, index: int | str, lane: int) -> None:
        shift = lane * self.isa.vector_bytes
        if shift % CACHE_LINE_BYTES == 0:
            ahead = self.out.value(f"getelementptr i8, ptr %s{index}, i64 %later")
            place = self.out.value(f"getelementptr i8, ptr {ahead}, i64 {shift}")
            self.out.line(f"call void @llvm.prefetch.p0(ptr {place}, i32 0, i32 3, i32 1)")

    def _store(self, value: str, row: int | str, lane: int) -> None:
        vector = self.out.vector
        if self.count is None:
            place = self._at(f"%d{row}", lane)
            how = f"{self.isa.vector_bytes}, !nontemporal !1" if self.out.streaming else "1"
            self.out.line(f"store {vector} {value}, ptr {place}, align {how}")
        elif self.isa.has_masks:
            place = self._at(f"%d{row}")
            self.out.line(
                f"call void @llvm.masked.store.v64i8.p0"
                f"({vector} {value}, ptr {place}, i32 1, <64 x i1> {self.mask})"
            )
        else:
            place = self._stack("d", int(row))
            self.out.line(f"store {vector} {value}, ptr {place}, align 1")

    def _products(self, source: int | str, slot: int, totals: list[str] | None) -> list[str]:
        """Products of all lanes, added to the totals if there are any."""
        made: list[str] = []
        tables = self._tables(slot)
        for lane, value in enumerate(self.values[source]):
            total = None if totals is None else totals[lane]
            if self.isa.has_gfni:
                parts = [self._affine(value, tables[0])]
            else:
                halves = self._split(source, lane, value)
                parts = [self._lookup(t, h) for t, h in zip(tables, halves, strict=True)]
            for part in parts:
                total = part if total is None else self._xor(total, part)
            assert total is not None
            made.append(total)
        return made

    def _tables(self, slot: int) -> list[str]:
        """The tables of a slot in every part of a vector."""
        start = slot * self.isa.slot_bytes
        width, count = (1, 1) if self.isa.has_gfni else (2, 2)
        return [self._broadcast(start + 16 * i, width) for i in range(count)]

    def _broadcast(self, start: int, width: int) -> str:
        out, lanes = self.out, self.isa.vector_bytes // 8
        place = out.value(f"getelementptr i8, ptr %tables, i64 {start}")
        part = out.value(f"load <{width} x i64>, ptr {place}, align 8, !invariant.load !0")
        order = ", ".join(f"i32 {i % width}" for i in range(lanes))
        kind = f"<{width} x i64>"
        wide = out.value(f"shufflevector {kind} {part}, {kind} poison, <{lanes} x i32> <{order}>")
        return out.value(f"bitcast {out.words} {wide} to {out.vector}")

    def _affine(self, value: str, table: str) -> str:
        vector = self.out.vector
        return self.out.value(
            f"call {vector} @llvm.x86.vgf2p8affineqb.{8 * self.isa.vector_bytes}"
            f"({vector} {value}, {vector} {table}, i8 0)"
        )

    def _lookup(self, table: str, half: str) -> str:
        name = "avx512.pshuf.b.512" if self.isa.has_masks else "avx2.pshuf.b"
        vector = self.out.vector
        return self.out.value(f"call {vector} @llvm.x86.{name}({vector} {table}, {vector} {half})")

    def _splat(self, constant: int | str) -> str:
        return f"<{', '.join([f'i8 {constant}'] * self.isa.vector_bytes)}>"

    def _double(self, value: str) -> str:
        """2 * value + the constant: a lookup gives it for bytes below 128, and 0 for others."""
        shifted = self.out.value(f"add {self.out.vector} {value}, {value}")
        return self._xor(shifted, self._lookup(self._splat(DOUBLING_CONSTANT), value))

    def _split(self, variable: int | str, lane: int, value: str) -> tuple[str, str]:
        """The lower and upper four bits of each byte."""
        known = self.halves.get((variable, lane))
        if known is None:
            out, vector, words = self.out, self.out.vector, self.out.words
            mask = self._splat(15)
            low = out.value(f"and {vector} {value}, {mask}")
            word = out.value(f"bitcast {vector} {value} to {words}")
            four = ", ".join(["i64 4"] * (self.isa.vector_bytes // 8))
            shifted = out.value(f"lshr {words} {word}, <{four}>")
            back = out.value(f"bitcast {words} {shifted} to {vector}")
            known = low, out.value(f"and {vector} {back}, {mask}")
            self.halves[variable, lane] = known
        return known


_HEADER: Final = """
declare {vector} @llvm.x86.vgf2p8affineqb.{bits}({vector}, {vector}, i8)
declare <64 x i8> @llvm.x86.avx512.pshuf.b.512(<64 x i8>, <64 x i8>)
declare <32 x i8> @llvm.x86.avx2.pshuf.b(<32 x i8>, <32 x i8>)
declare void @llvm.prefetch.p0(ptr, i32, i32, i32)
declare void @llvm.x86.sse.sfence()
declare i64 @llvm.umin.i64(i64, i64)
declare <64 x i8> @llvm.masked.load.v64i8.p0(ptr, i32, <64 x i1>, <64 x i8>)
declare void @llvm.masked.store.v64i8.p0(<64 x i8>, ptr, i32, <64 x i1>)
"""

_COPY: Final = """
define private void @copy(ptr %target, ptr %source, i64 %count) noinline nounwind {
entry:
  br label %loop
loop:
  %i = phi i64 [0, %entry], [%next, %loop]
  %from = getelementptr i8, ptr %source, i64 %i
  %to = getelementptr i8, ptr %target, i64 %i
  %byte = load i8, ptr %from
  store i8 %byte, ptr %to
  %next = add i64 %i, 1
  %more = icmp ult i64 %next, %count
  br i1 %more, label %loop, label %done
done:
  ret void
}
"""
