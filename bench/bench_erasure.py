"""Speed of encoding and of decoding after the worst loss, per kernel and geometry.

Side by side with other coders and the bound of the machine: `exastore bench run erasure`.

    pytest bench/bench_erasure.py --benchmark-only

Chunks sit in memory and are reused, as in ISA-L's `_perf` programs. The throughput in `extra_info`
counts data bytes (k chunks), once per stripe, on one core, by the fastest round and the median one.
"""

import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from exastore.erasure import Codec, codec
from exastore.erasure.kernels import available_kernels

KIB = 1024
GEOMETRIES = [
    pytest.param(k, m, chunk_bytes, id=f"k{k}-m{m}-{label}")
    for k, m in ((4, 2), (6, 3), (8, 3), (10, 4), (12, 4), (17, 3), (20, 4))
    for chunk_bytes, label in ((4 * KIB, "4KiB"), (128 * KIB, "128KiB"), (1024 * KIB, "1MiB"))
]
KERNELS = list(available_kernels())


def _codec_and_stripe(k: int, m: int, chunk_bytes: int, kernel: str) -> tuple[Codec, Any]:
    code = codec(f"rs-{k}-{m}", kernel=kernel)
    data = np.random.default_rng(0).integers(0, 256, (k, chunk_bytes), dtype=np.uint8)
    return code, np.concatenate([data, code.encode(data)])


def _run(benchmark: BenchmarkFixture, code: Codec, work: Callable[[], None], stripe: Any) -> None:
    pedantic: Any = benchmark.pedantic
    pedantic(work, rounds=15, iterations=5, warmup_rounds=2)
    data_bytes = stripe[: code.k].nbytes
    benchmark.extra_info["kernel"] = code.kernel
    benchmark.extra_info["chunk_bytes"] = stripe.shape[1]
    benchmark.extra_info["checksum"] = zlib.crc32(stripe)
    if benchmark.stats is not None:  # None when benchmarks are disabled
        stats: Any = benchmark.stats.stats
        for name in ("min", "median"):
            rate = data_bytes / getattr(stats, name) / 1e9
            benchmark.extra_info[f"data_gb_per_s_{name}"] = round(rate, 2)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize(("k", "m", "chunk_bytes"), GEOMETRIES)
def test_encode(benchmark: BenchmarkFixture, k: int, m: int, chunk_bytes: int, kernel: str) -> None:
    code, stripe = _codec_and_stripe(k, m, chunk_bytes, kernel)
    parity = np.empty((m, chunk_bytes), dtype=np.uint8)
    _run(benchmark, code, lambda: code.encode_into(stripe[:k], parity), stripe)
    assert (parity == stripe[k:]).all()


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize(("k", "m", "chunk_bytes"), GEOMETRIES)
def test_decode_of_m_lost_data_chunks(
    benchmark: BenchmarkFixture, k: int, m: int, chunk_bytes: int, kernel: str
) -> None:
    code, stripe = _codec_and_stripe(k, m, chunk_bytes, kernel)
    survivors = {index: stripe[index] for index in range(m, k + m)}
    rebuilt = np.empty((m, chunk_bytes), dtype=np.uint8)
    out = {index: rebuilt[index] for index in range(m)}
    _run(benchmark, code, lambda: code.decode_into(survivors, out), stripe)
    assert (rebuilt == stripe[:m]).all()
