"""Repair of one chunk: a Clay code against Reed-Solomon, when reading takes time.

The model: the bytes that the plan reads arrive at one rate, then the chunk is computed, which is
measured. Bytes are read one after the other, so it is the sum that is compared, not the slowest of
several disks.
"""

from collections.abc import Sequence
from statistics import median
from typing import Final

import numpy as np

from exastore.deploy.bench.peers import WrongResult
from exastore.deploy.bench.results import Repair
from exastore.deploy.bench.stripes import KIB
from exastore.deploy.bench.timing import Repeat, python_repeat, take_turns
from exastore.erasure import Codec, codec
from exastore.erasure.field import Bytes

CODES: Final = ("clay-10-4-13", "clay-8-4-11", "clay-4-2-5")
CHUNK_SIZES: Final = (64 * KIB, KIB * KIB, 16 * KIB * KIB)
READ_RATE_BYTES_PER_S: Final = 200e6


def measure_repair(name: str, chunk_bytes: int, kernel: str, rounds: int) -> list[Repair]:
    """The first chunk and the last one, whose bytes are the most scattered, lost in turn.

    Raises:
        WrongResult: a repair gave wrong bytes.
    """
    code = codec(name, kernel=kernel)
    other = codec(f"rs-{code.k}-{code.m}", kernel=kernel)
    rng = np.random.Generator(np.random.SFC64(0))
    data = np.frombuffer(rng.bytes(code.k * chunk_bytes), np.uint8).reshape(code.k, chunk_bytes)
    stripes = [np.concatenate([data, each.encode(data)]) for each in (code, other)]
    return [_compare((code, other), stripes, lost_index, rounds) for lost_index in (0, code.n - 1)]


def _compare(
    codes: tuple[Codec, Codec], stripes: Sequence[Bytes], lost_index: int, rounds: int
) -> Repair:
    works = {
        code.name: _work(code, stripe, lost_index)
        for code, stripe in zip(codes, stripes, strict=True)
    }
    times = take_turns(works, rounds)
    compute_s, peer_compute_s = (median(times[code.name].values()) for code in codes)
    chunk_bytes = stripes[0].shape[1]
    read, peer_read = (code.repair_plan([lost_index]).read_bytes(chunk_bytes) for code in codes)
    total_s = read / READ_RATE_BYTES_PER_S + compute_s
    peer_total_s = peer_read / READ_RATE_BYTES_PER_S + peer_compute_s
    slower_s = compute_s - peer_compute_s
    return Repair(
        code=codes[0].name,
        peer=codes[1].name,
        chunk_bytes=chunk_bytes,
        lost_index=lost_index,
        kernel=codes[0].kernel,
        read_bytes=read,
        peer_read_bytes=peer_read,
        compute_s=compute_s,
        peer_compute_s=peer_compute_s,
        read_rate_bytes_per_s=READ_RATE_BYTES_PER_S,
        total_s=total_s,
        peer_total_s=peer_total_s,
        ratio=peer_total_s / total_s,
        break_even_bytes_per_s=(peer_read - read) / slower_s if slower_s > 0 else None,
    )


def _work(code: Codec, stripe: Bytes, lost_index: int) -> Repeat:
    plan = code.repair_plan([lost_index])
    reads = {index: plan.take(index, stripe[index]) for index in plan.reads}
    if not np.array_equal(code.repair([lost_index], reads)[lost_index], stripe[lost_index]):
        raise WrongResult(code.name, "repair", f"chunk {lost_index}")
    return python_repeat(lambda: code.repair([lost_index], reads))
