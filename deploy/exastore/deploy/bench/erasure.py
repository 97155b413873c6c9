"""Erasure coding side by side: ours, other coders, and the bound of this machine.

One core, one process. Contestants take turns, round by round, so that a busy machine slows all
alike; a ratio is the median over the rounds of the ratio within a round. Bytes counted are data
bytes (k chunks). Chunks sit in memory and are used again, as in ISA-L's `_perf` programs.

Two ways of calling are compared, each like with like:

- "call": from NumPy arrays. Ours is `encode_into` or `decode_into` with all its checks; ISA-L's is
  a bare ctypes call that makes its two arrays of pointers and checks nothing.
- "kernel": pointers made ahead on both sides, one foreign call each.
"""

import ctypes
import platform
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from statistics import geometric_mean, median
from typing import Any, Final

import numpy as np

from exastore.deploy.bench.peers import Peer, Stripe, Work
from exastore.erasure import codec
from exastore.erasure.chunks import check_chunks
from exastore.erasure.field import invert, matmul
from exastore.erasure.kernels import LinearMap, select_kernel
from exastore.erasure.matrix import cauchy_generator

KIB: Final = 1024
GEOMETRIES: Final = ((4, 2), (6, 3), (8, 3), (10, 4), (12, 4), (17, 3), (20, 4))
CHUNK_SIZES: Final = tuple(KIB << shift for shift in (2, 4, 6, 7, 8, 10, 12, 14))
OPERATIONS: Final = ("encode", "decode")
#: A round of a contestant lasts at least this long, or one call.
ROUND_S: Final = 0.001
OURS: Final = "exastore"
ROOFLINE: Final = "roofline"


@dataclass(frozen=True, slots=True)
class Case:
    """One cell of the table."""

    k: int
    m: int
    chunk_bytes: int
    #: "encode", or "decode" of m lost data chunks (all, if there are fewer).
    operation: str

    @property
    def code(self) -> str:
        """The name of the code."""
        return f"rs-{self.k}-{self.m}"


@dataclass(frozen=True, slots=True)
class Result:
    """What one contestant did in one case."""

    code: str
    operation: str
    chunk_bytes: int
    contestant: str
    #: "call" or "kernel", see the module.
    way: str
    kernel: str
    #: Median over the rounds.
    call_s: float
    data_gb_per_s: float
    #: Our speed over its speed, by the same way of calling; 1 for ourselves.
    ratio: float
    rounds: int
    #: CRC-32 of the outputs.
    checksum: int


def cases(
    geometries: Iterable[tuple[int, int]] = GEOMETRIES,
    chunk_sizes: Iterable[int] = CHUNK_SIZES,
    operations: Iterable[str] = OPERATIONS,
) -> list[Case]:
    """All combinations."""
    sizes, kinds = list(chunk_sizes), list(operations)
    return [
        Case(k, m, size, operation) for operation in kinds for k, m in geometries for size in sizes
    ]


def make_stripe(case: Case) -> Stripe:
    """Random data and its parity, each chunk on a page of its own but not on the same offset."""
    k, m, size = case.k, case.m, case.chunk_bytes
    n = k + m
    # Chunks of a power of two would all share the same sets of the first-level cache.
    stride = -(-size // 64) * 64 + 64
    memory = np.zeros(n * stride + 64, dtype=np.uint8)
    start = -memory.ctypes.data % 64
    chunks = [memory[start + i * stride : start + i * stride + size] for i in range(n)]
    rng = np.random.Generator(np.random.Philox(0))
    for chunk in chunks[:k]:
        chunk[:] = rng.integers(0, 256, size, dtype=np.uint8)
    codec(case.code).encode_into(chunks[:k], chunks[k:])
    generator = cauchy_generator(k, m)
    lost = tuple(range(k, n)) if case.operation == "encode" else tuple(range(min(k, m)))
    have = [index for index in range(n) if index not in lost][:k]
    matrix = matmul(generator[list(lost)], invert(generator[have]))
    inputs = [chunks[index] for index in have]
    outputs = [np.zeros(size, dtype=np.uint8) for _ in lost]
    outputs = _aligned_like(outputs, size)
    return Stripe(k, len(lost), inputs, outputs, matrix, chunks, lost)


def _aligned_like(outputs: Sequence[Any], size: int) -> list[Any]:
    stride = -(-size // 64) * 64 + 64
    memory = np.zeros(len(outputs) * stride + 64, dtype=np.uint8)
    start = -memory.ctypes.data % 64
    return [memory[start + i * stride : start + i * stride + size] for i in range(len(outputs))]


def _our_works(case: Case, stripe: Stripe, kernel: str) -> dict[str, Work]:
    code = codec(case.code, kernel=kernel)
    inputs, outputs = stripe.inputs, stripe.outputs
    works: dict[str, Work] = {}
    if stripe.is_encode:
        works["call"] = lambda: code.encode_into(inputs, outputs)
    else:
        have = [index for index in range(code.n) if index not in stripe.lost][: code.k]
        given = dict(zip(have, inputs, strict=True))
        out = dict(zip(stripe.lost, outputs, strict=True))
        works["call"] = lambda: code.decode_into(given, out)
    prepared = select_kernel(kernel).prepare(np.ascontiguousarray(stripe.matrix))
    works["kernel"] = _bound(prepared, stripe)
    return works


def _bound(linear_map: LinearMap, stripe: Stripe) -> Work:
    """The foreign call alone where there is one, everything about it made ahead."""
    inputs = check_chunks(stripe.inputs, stripe.k, "given")
    outputs = check_chunks(stripe.outputs, stripe.m, "made")
    bind: Any = getattr(linear_map, "bind", None)
    if bind is None:
        return lambda: linear_map(inputs, outputs)
    address, arguments, kept = bind(inputs, outputs)
    function: Any = ctypes.CFUNCTYPE(None, *[ctypes.c_int64] * len(arguments))(address)

    def work(_kept: object = kept) -> None:
        function(*arguments)

    return work


def _roofline(stripe: Stripe, kernel: str) -> dict[str, Work]:
    from exastore.erasure.kernels.roofline import roofline_map

    if kernel == "portable":
        return {}
    return {"kernel": _bound(roofline_map(kernel, stripe.k, stripe.m), stripe)}


def measure(case: Case, peers: Sequence[Peer], kernel: str, rounds: int) -> list[Result]:
    """All contestants in one case, taking turns.

    Raises:
        AssertionError: a contestant that should write the same bytes as we do wrote others.
    """
    stripe = make_stripe(case)
    contestants: dict[tuple[str, str], Work] = {}
    for way, work in _our_works(case, stripe, kernel).items():
        contestants[OURS, way] = work
    for way, work in _roofline(stripe, kernel).items():
        contestants[ROOFLINE, way] = work
    writers = {OURS}
    for peer in peers:
        for way, work in peer.works(stripe).items():
            contestants[peer.name, way] = work
        if peer.writes_outputs:
            writers.add(peer.name)
    expected = [stripe.chunks[index] for index in stripe.lost]
    for (name, _), work in contestants.items():
        for output in stripe.outputs:
            output[:] = 0
        work()
        if name in writers:
            pairs = zip(stripe.outputs, expected, strict=True)
            assert all(np.array_equal(made, right) for made, right in pairs), (case, name)
    checksum = 0
    for chunk in expected:
        checksum = zlib.crc32(chunk.data, checksum)
    times = _take_turns(contestants, rounds)
    data_bytes = case.k * case.chunk_bytes
    results: list[Result] = []
    for (name, way), seconds in times.items():
        ours = times[OURS, way]
        ratio = median(theirs / own for theirs, own in zip(seconds, ours, strict=True))
        results.append(
            Result(
                case.code,
                case.operation,
                case.chunk_bytes,
                name,
                way,
                kernel,
                median(seconds),
                data_bytes / median(seconds) / 1e9,
                ratio,
                rounds,
                checksum,
            )
        )
    return results


def _take_turns(
    contestants: dict[tuple[str, str], Work], rounds: int
) -> dict[tuple[str, str], list[float]]:
    """Seconds per call, round by round; what is slow is called less often."""
    counts = {key: _calls_per_round(work) for key, work in contestants.items()}
    times: dict[tuple[str, str], list[float]] = {key: [] for key in contestants}
    order = list(contestants)
    for _ in range(rounds):
        # Another one is first each time, so that nobody always follows the same one.
        order.append(order.pop(0))
        for key in order:
            work, count = contestants[key], counts[key]
            # The first call brings back to the caches what the one before pushed out.
            work()
            begin = time.perf_counter()
            for _ in range(count):
                work()
            times[key].append((time.perf_counter() - begin) / count)
    return times


def _calls_per_round(work: Work) -> int:
    begin = time.perf_counter()
    work()
    once = time.perf_counter() - begin
    return max(1, min(2000, int(ROUND_S / max(once, 1e-7))))


@dataclass(frozen=True, slots=True)
class Overhead:
    """What one call costs when there is next to nothing to do: chunks of 64 bytes."""

    contestant: str
    way: str
    call_s: float


def overheads(peers: Sequence[Peer], kernel: str, rounds: int) -> list[Overhead]:
    """The cost of a call, with rs-4-2 and chunks of 64 bytes."""
    results = measure(Case(4, 2, 64, "encode"), peers, kernel, rounds)
    return [Overhead(r.contestant, r.way, r.call_s) for r in results]


def run(
    chosen: Iterable[Case],
    peers: Sequence[Peer],
    kernel: str,
    rounds: int,
    progress: Callable[[Case], None] = lambda _case: None,
) -> Iterator[list[Result]]:
    """The results of each case, as they come."""
    for case in chosen:
        progress(case)
        yield measure(case, peers, kernel, rounds)


def summary(results: Iterable[Result]) -> dict[tuple[str, str], tuple[float, float, int, int]]:
    """By contestant and way: geometric mean and minimum of the ratios, cells below 1, cells."""
    ratios: dict[tuple[str, str], list[float]] = {}
    for result in results:
        if result.contestant != OURS:
            ratios.setdefault((result.contestant, result.way), []).append(result.ratio)
    return {
        key: (geometric_mean(found), min(found), sum(r < 1 for r in found), len(found))
        for key, found in ratios.items()
    }


def machine() -> dict[str, str]:
    """What the figures were taken on."""
    return {
        "processor": _processor(),
        "system": platform.platform(),
        "python": platform.python_version(),
    }


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            for line in lines:
                if line.startswith("model name"):
                    return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def as_json(result: Result) -> dict[str, object]:
    """One line of the JSON lines: the result and the machine."""
    return {**asdict(result), **machine()}
