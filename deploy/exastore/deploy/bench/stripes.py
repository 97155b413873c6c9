"""The cells of the tables, the bytes they work on, and our own work on them.

The chunks of a stripe and the outputs lie in one block of memory and are used again in every call,
as in ISA-L's `_perf` programs. Each begins a cache line further into its page than the one before:
chunks at the same place of their pages would share the same sets of the first-level cache, and
loads would wait for stores to another page that look like theirs. All contestants use the same.
"""

from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from exastore.deploy.bench.peers import CALL, KERNEL, Stripe, Work, written
from exastore.deploy.bench.timing import native_repeat, python_repeat
from exastore.erasure import codec
from exastore.erasure.chunks import check_chunks
from exastore.erasure.field import Bytes, invert, matmul
from exastore.erasure.kernels import select_kernel
from exastore.erasure.lrc import lrc_generator
from exastore.erasure.matrix import cauchy_generator

KIB: Final = 1024
PAGE_BYTES: Final = 4096
LINE_BYTES: Final = 64
#: Data chunks that a decode rebuilds, or as many as the parity allows.
DECODED_LOSSES: Final = 4
ENCODE: Final = "encode"
DECODE: Final = "decode"
OPERATIONS: Final = (ENCODE, DECODE)


@dataclass(frozen=True, slots=True)
class Case:
    """One cell of a table."""

    #: "rs-10-4", "lrc-12-2-2".
    code: str
    chunk_bytes: int
    #: "encode" all parity; or "decode" the first min(4, m) data chunks from k that are left.
    operation: str

    @property
    def geometry(self) -> str:
        """What is measured, without who does it: "encode-rs-10-4-64KiB"."""
        return f"{self.operation}-{self.code}-{size_label(self.chunk_bytes)}"

    @property
    def data_bytes(self) -> int:
        """Bytes of data of a stripe, which is what speeds count."""
        return codec(self.code).k * self.chunk_bytes


def size_label(size_bytes: int) -> str:
    """For example "64KiB"; plain bytes if it is no whole number of a unit."""
    for unit, label in ((KIB * KIB, "MiB"), (KIB, "KiB")):
        if size_bytes % unit == 0 and size_bytes:
            return f"{size_bytes // unit}{label}"
    return f"{size_bytes}B"


def _generator(code: str) -> Bytes:
    family, *numbers = code.split("-")
    if family == "rs":
        k, m = map(int, numbers)
        return cauchy_generator(k, m)
    assert family == "lrc", code
    k, group_count, global_count = map(int, numbers)
    return lrc_generator(k, group_count, global_count)


def make_stripe(case: Case) -> Stripe:
    """Random data, its parity, and room for the outputs."""
    code, size = codec(case.code), case.chunk_bytes
    k, n = code.k, code.n
    lost = tuple(range(k, n))
    if case.operation == DECODE:
        lost = tuple(range(min(DECODED_LOSSES, code.m, k)))
    arrays = _staggered(n + len(lost), size)
    chunks, outputs = arrays[:n], arrays[n:]
    rng = np.random.Generator(np.random.SFC64(0))
    for chunk in chunks[:k]:
        chunk[:] = np.frombuffer(rng.bytes(size), dtype=np.uint8)
    code.encode_into(chunks[:k], chunks[k:])
    generator = _generator(case.code)
    have = [index for index in range(n) if index not in lost][:k]
    matrix = matmul(generator[list(lost)], invert(generator[have]))
    inputs = [chunks[index] for index in have]
    return Stripe(k, len(lost), inputs, outputs, matrix, chunks, lost)


def _staggered(count: int, size: int) -> list[Bytes]:
    """Arrays of their own pages, each a cache line further into its first page than the last."""
    stride = -(-size // PAGE_BYTES) * PAGE_BYTES + LINE_BYTES
    memory = np.zeros(count * stride + PAGE_BYTES, dtype=np.uint8)
    start = -memory.ctypes.data % PAGE_BYTES
    return [memory[start + i * stride : start + i * stride + size] for i in range(count)]


def our_works(case: Case, stripe: Stripe, kernel: str) -> dict[str, Work]:
    """What we do: `encode_into` or `decode_into` with all their checks, and the kernel alone."""
    code = codec(case.code, kernel=kernel)
    inputs, outputs = stripe.inputs, stripe.outputs
    if stripe.is_encode:
        call = python_repeat(lambda: code.encode_into(inputs, outputs))
    else:
        given = dict(zip(stripe.left, inputs, strict=True))
        out = dict(zip(stripe.lost, outputs, strict=True))
        call = python_repeat(lambda: code.decode_into(given, out))
    linear_map = select_kernel(kernel).prepare(np.ascontiguousarray(stripe.matrix))
    checked = check_chunks(inputs, stripe.k, "given"), check_chunks(outputs, stripe.m, "made")
    bind: Any = getattr(linear_map, "bind", None)
    if bind is None:
        # The portable kernel is no single function of machine code.
        alone = python_repeat(lambda: linear_map(*checked))
    else:
        alone = native_repeat(*bind(*checked))
    return {CALL: written(call, stripe), KERNEL: written(alone, stripe)}
