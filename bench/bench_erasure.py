"""Speed of encoding and of decoding, one group of contestants per geometry, side by side.

    pytest bench/bench_erasure.py -o python_files='bench_*.py' --benchmark-only

All are called from Python on the same NumPy arrays. The careful comparison, with everybody taking
turns, other coders and the limits of the machine, is `exastore bench run erasure`. Speeds in
`extra_info` count data bytes (k chunks), on one core, by the median round.
"""

import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from exastore.deploy.bench.erasure import CODES, LRC_PAIRS
from exastore.deploy.bench.peers import CALL, Peer, Work, find_peers
from exastore.deploy.bench.stripes import (
    DECODE,
    ENCODE,
    KIB,
    Case,
    make_stripe,
    our_works,
)
from exastore.deploy.bench.timing import pinned
from exastore.erasure import codec
from exastore.erasure.kernels import available_kernels

KERNELS = list(available_kernels())
CHUNK_SIZES = (4 * KIB, 64 * KIB, KIB * KIB, 16 * KIB * KIB)
#: With every kernel and every ISA-L there is; other codes with the fastest and the newest.
EVERY_KERNEL_CODE = "rs-10-4"
LOCAL_SIZE = 64 * KIB
CLAY_CODES = ("clay-4-2-5", "clay-8-4-11", "clay-10-4-13")
#: A round takes about this long, or one call.
ROUND_S = 0.002
ROUNDS = 9

PEERS: dict[str, Peer] = {peer.name: peer for peer in find_peers(["isal"], KERNELS[0])[0]}
NEWEST_PEERS = list(PEERS)[:1]


def _parameter(case: Case, contestant: str) -> Any:
    large = case.chunk_bytes > 64 * KIB or case.code not in ("rs-4-2", EVERY_KERNEL_CODE)
    marks = [pytest.mark.large] if large else []
    return pytest.param(case, contestant, id=f"{case.geometry}-{contestant}", marks=marks)


def _parameters() -> Iterator[Any]:
    for operation in (ENCODE, DECODE):
        for code in CODES:
            for size in CHUNK_SIZES:
                contestants = [*KERNELS[:1], *NEWEST_PEERS]
                if code == EVERY_KERNEL_CODE and size <= KIB * KIB:
                    contestants = [*KERNELS, *PEERS]
                for contestant in contestants:
                    yield _parameter(Case(code, size, operation), contestant)


@pytest.fixture(autouse=True, scope="module")
def one_core() -> Iterator[None]:
    with pinned():
        yield


def _run(benchmark: BenchmarkFixture, case: Case, contestant: str, work: Work, group: str) -> None:
    benchmark.group = group
    assert work.is_right(), (case, contestant)
    calls = max(1, int(ROUND_S * 1e10 / case.data_bytes))
    pedantic: Any = benchmark.pedantic
    pedantic(lambda: work.repeat(1), rounds=ROUNDS, iterations=calls, warmup_rounds=1)
    is_kernel = contestant in KERNELS
    benchmark.extra_info.update(
        geometry=case.geometry,
        kernel=contestant if is_kernel else KERNELS[0],
        peer="exastore" if is_kernel else contestant,
        way=CALL,
        data_bytes=case.data_bytes,
    )
    if benchmark.stats is not None:  # None when benchmarks are disabled
        stats: Any = benchmark.stats.stats
        benchmark.extra_info["data_bytes_per_s"] = round(case.data_bytes / stats.median)


@pytest.mark.parametrize(("case", "contestant"), list(_parameters()))
def test_reed_solomon(benchmark: BenchmarkFixture, case: Case, contestant: str) -> None:
    stripe = make_stripe(case)
    if contestant in KERNELS:
        work = our_works(case, stripe, contestant)[CALL]
    else:
        work = PEERS[contestant].works(stripe)[CALL]
    _run(benchmark, case, contestant, work, case.geometry)
    checksum = 0
    for index in stripe.lost:
        checksum = zlib.crc32(stripe.chunks[index].tobytes(), checksum)
    benchmark.extra_info["checksum_crc32"] = checksum


@pytest.mark.parametrize("code", [name for pair in LRC_PAIRS for name in pair])
def test_local_codes(benchmark: BenchmarkFixture, code: str) -> None:
    """A local code, and in its group Reed-Solomon of as many parity chunks."""
    case = Case(code, LOCAL_SIZE, ENCODE)
    pair = next(pair for pair in LRC_PAIRS if code in pair)
    work = our_works(case, make_stripe(case), KERNELS[0])[CALL]
    _run(benchmark, case, KERNELS[0], work, f"{pair[0]} and {pair[1]}")


@pytest.mark.parametrize("operation", ["encode", "repair"])
@pytest.mark.parametrize("code", CLAY_CODES)
def test_clay(benchmark: BenchmarkFixture, code: str, operation: str) -> None:
    """A whole stripe encoded; one chunk rebuilt from what the plan reads."""
    made = codec(code)
    size = 256 * KIB
    data = np.random.default_rng(0).integers(0, 256, (made.k, size), dtype=np.uint8)
    parity = made.encode(data)
    stripe = np.concatenate([data, parity])
    plan = made.repair_plan([0])
    reads = {index: plan.take(index, stripe[index]) for index in plan.reads}
    benchmark.group = "clay"
    pedantic: Any = benchmark.pedantic
    if operation == "encode":
        pedantic(made.encode_into, (data, parity), rounds=ROUNDS, warmup_rounds=1)
    else:
        rebuilt = pedantic(made.repair, ([0], reads), rounds=ROUNDS, warmup_rounds=1)
        assert (rebuilt[0] == data[0]).all()
    benchmark.extra_info.update(
        geometry=f"{operation}-{code}-256KiB",
        kernel=made.kernel,
        data_bytes=data.nbytes if operation == "encode" else size,
        checksum_crc32=zlib.crc32(parity.tobytes()),
    )
