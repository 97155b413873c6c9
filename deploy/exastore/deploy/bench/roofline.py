"""The limit of this machine: a loop that reads k chunks, writes m, and does nothing else.

Whatever reads a register has to be used, so the inputs are XORed into the m sums that are written:
one instruction per vector read. The loop is written here, apart from the coding kernels, in several
variants (writing to the caches or past them, fetching ahead or not, longer and shorter steps); the
fastest one in the cell at hand is the limit.

In the first-level cache that limit is above what any coder can reach, since loading a vector takes
less than multiplying it by m coefficients. So the products alone are measured as well.
"""

import ctypes
from dataclasses import dataclass
from functools import cache
from itertools import product
from typing import Final

import numpy as np

from exastore.deploy.bench.peers import Stripe
from exastore.deploy.bench.timing import Repeat, native_repeat, take_turns
from exastore.erasure.kernels import native
from exastore.erasure.kernels.program import make_program

#: Chunks must be a multiple of this.
STEP_BYTES: Final = 256
#: Variants that are timed with the contestants; the fastest of them counts.
FINALISTS: Final = 2
#: Products that do not wait for each other, and products in a row.
_CHAINS: Final = 16
_LINKS: Final = 4


@dataclass(frozen=True, slots=True)
class Variant:
    """One way to write the loop."""

    #: Bytes of a vector, and bytes of each chunk in a step of the loop.
    vector_bytes: int
    step_bytes: int
    #: Whether the outputs are written past the caches.
    streams: bool
    #: How far ahead the inputs are fetched; 0: not.
    ahead_bytes: int


def variants() -> list[Variant]:
    """Those for the widest registers of this machine."""
    features = native.host_features()
    vector_bytes = 64 if "avx512f" in features else 32 if "avx2" in features else 16
    return [
        Variant(vector_bytes, step_bytes, streams, ahead_bytes)
        for step_bytes, streams, ahead_bytes in product((128, 256), (False, True), (0, 512, 1024))
    ]


def rooflines(stripe: Stripe) -> dict[Variant, Repeat]:
    """The loops over the chunks of this stripe that were fastest in a short trial.

    None are there if the chunks are no multiple of the step.
    """
    if stripe.chunk_bytes % STEP_BYTES:
        return {}
    starts = [array.ctypes.data for array in (*stripe.inputs, *stripe.outputs)]
    addresses = (ctypes.c_int64 * len(starts))(*starts)
    candidates: dict[Variant, Repeat] = {}
    for variant in variants():
        code = _code(variant, stripe.k, stripe.m)
        arguments = (ctypes.addressof(addresses), stripe.chunk_bytes)
        kept = (code, addresses, stripe)
        candidates[variant] = native_repeat(code.address("stream"), arguments, kept)
    times = take_turns(candidates, 3, turn_s=0.0002)
    ranked = sorted(candidates, key=lambda variant: min(times[variant].values()))
    return {variant: candidates[variant] for variant in ranked[:FINALISTS]}


def products(stripe: Stripe, kernel: str) -> Repeat | None:
    """The products alone that our program for this stripe needs, on registers.

    A product is one GFNI instruction, for which such cores have one unit; XORs run beside it on
    others, and are left out. None for kernels without GFNI.
    """
    vector_bytes = {"gfni512": 64, "gfni256": 32}.get(kernel)
    if vector_bytes is None:
        return None
    program = make_program(np.ascontiguousarray(stripe.matrix))
    steps = -(-program.product_count * stripe.chunk_bytes // (vector_bytes * _CHAINS * _LINKS))
    ir = _products_ir(vector_bytes)
    cpu = "icelake-server" if vector_bytes == 64 else "haswell"
    features = "+gfni,-prefer-256-bit" if vector_bytes == 64 else "+gfni"
    code = native.load(ir, cpu, features, lambda: ir)
    assert code is not None
    return native_repeat(code.address("products"), (steps,), code)


def _products_ir(vector_bytes: int) -> str:
    """A loop of independent chains of products."""
    vector, name = f"<{vector_bytes} x i8>", f"@llvm.x86.vgf2p8affineqb.{vector_bytes * 8}"
    lines = [f"declare {vector} {name}({vector}, {vector}, i8)"]
    lines += ["define void @products(i64 %steps) nounwind {", "entry:"]
    lines += [f"  %kept = alloca {vector}", f"  %table = load volatile {vector}, ptr %kept"]
    lines += ["  br label %loop", "loop:", "  %i = phi i64 [0, %entry], [%next, %loop]"]
    chains = range(_CHAINS)
    for chain in chains:
        last = f"%v{chain}.{_LINKS}"
        lines.append(f"  %v{chain}.0 = phi {vector} [%table, %entry], [{last}, %loop]")
    for link in range(_LINKS):
        for chain in chains:
            value = f"{vector} %v{chain}.{link}, {vector} %table, i8 {chain}"
            lines.append(f"  %v{chain}.{link + 1} = call {vector} {name}({value})")
    lines += ["  %next = add i64 %i, 1", "  %more = icmp ult i64 %next, %steps"]
    lines += ["  br i1 %more, label %loop, label %done", "done:"]
    lines += [f"  store volatile {vector} %v{chain}.{_LINKS}, ptr %kept" for chain in chains]
    return "\n".join([*lines, "  ret void", "}", ""])


@cache
def _code(variant: Variant, k: int, m: int) -> native.Code:
    ir = _ir(variant, k, m)
    cpu = {64: "skylake-avx512", 32: "haswell", 16: "x86-64"}[variant.vector_bytes]
    # Without this, LLVM keeps to vectors of 32 bytes.
    features = "-prefer-256-bit" if variant.vector_bytes == 64 else ""
    code = native.load(ir, cpu, features, lambda: ir)
    assert code is not None
    return code


def _ir(variant: Variant, k: int, m: int) -> str:
    vector = f"<{variant.vector_bytes} x i8>"
    lines = ["declare void @llvm.prefetch.p0(ptr, i32, i32, i32)"]
    lines += ["define void @stream(ptr %addresses, i64 %length) nounwind {", "entry:"]
    for chunk in range(k + m):
        lines.append(f"  %at{chunk} = getelementptr ptr, ptr %addresses, i64 {chunk}")
        lines.append(f"  %chunk{chunk} = load ptr, ptr %at{chunk}")
    lines += ["  br label %loop", "loop:", "  %i = phi i64 [0, %entry], [%next, %loop]"]
    for lane in range(0, variant.step_bytes, variant.vector_bytes):
        lines.append(f"  %i{lane} = add i64 %i, {lane}")
        sums = _sums(lines, variant, k, m, lane)
        flag = ", !nontemporal !0" if variant.streams else ""
        for row in range(m):
            lines.append(
                f"  %out{row}.{lane} = getelementptr i8, ptr %chunk{k + row}, i64 %i{lane}"
            )
            place = f"ptr %out{row}.{lane}, align {variant.vector_bytes}{flag}"
            lines.append(f"  store {vector} {sums[row]}, {place}")
    lines.append(f"  %next = add i64 %i, {variant.step_bytes}")
    lines.append("  %more = icmp ult i64 %next, %length")
    lines += [
        "  br i1 %more, label %loop, label %done",
        "done:",
        "  ret void",
        "}",
        "!0 = !{i32 1}",
    ]
    return "\n".join(lines) + "\n"


def _sums(lines: list[str], variant: Variant, k: int, m: int, lane: int) -> list[str]:
    """Reads one vector of each input; the values to write."""
    vector = f"<{variant.vector_bytes} x i8>"
    values: list[str] = []
    for column in range(k):
        name = f"{column}.{lane}"
        lines.append(f"  %in{name} = getelementptr i8, ptr %chunk{column}, i64 %i{lane}")
        if variant.ahead_bytes and lane % 64 == 0:
            offset = variant.ahead_bytes
            lines.append(f"  %ahead{name} = getelementptr i8, ptr %in{name}, i64 {offset}")
            lines.append(f"  call void @llvm.prefetch.p0(ptr %ahead{name}, i32 0, i32 3, i32 1)")
        lines.append(f"  %value{name} = load {vector}, ptr %in{name}, align 1")
        if column < m:
            values.append(f"%value{name}")
        else:
            lines.append(f"  %sum{name} = xor {vector} {values[column % m]}, %value{name}")
            values[column % m] = f"%sum{name}"
    return [values[row % k] for row in range(m)]
