"""Clay codes: what they decode, and repairs from exactly the bytes that theory says."""

from concurrent.futures import ThreadPoolExecutor
from itertools import combinations, pairwise

import numpy as np
import pytest
from numpy.typing import NDArray

from exastore.erasure import Codec, TooFewChunks, UnknownCode, _reference, clay, codec, contract
from exastore.erasure.errors import WrongAlignment, WrongReads, WrongShape
from exastore.erasure.kernels import available_kernels
from exastore.erasure.matrix import rank

Bytes = NDArray[np.uint8]
KERNELS = list(available_kernels())
NAMES = ["clay-4-2-5", "clay-8-4-11", "clay-10-4-13"]
#: Others: no virtual node, many of them, three places, and parity that outnumbers the data.
ODD_NAMES = ["clay-2-2-3", "clay-7-3-9", "clay-5-4-8", "clay-1-2-2", "clay-2-4-5"]


def stripe_of(code: Codec, sub_chunk_bytes: int = 1, seed: int = 1) -> Bytes:
    size = (code.k, code.alignment_bytes * sub_chunk_bytes)
    data = np.random.default_rng(seed).integers(0, 256, size, dtype=np.uint8)
    return np.concatenate([data, code.encode(data)])


def column_of(code: Codec, index: int) -> int:
    """Nodes are numbered column by column; the parity is the last one."""
    return index // code.m if index < code.k else code.n


def theory(code: Codec, lost: tuple[int, ...]) -> float:
    """Chunks to read: e (n - e) / m for e losses in a column, otherwise k."""
    if len({column_of(code, index) for index in lost}) == 1 and len(lost) < min(code.m, code.k):
        return len(lost) * (code.n - len(lost)) / code.m
    return code.k


@pytest.mark.parametrize(
    ("name", "sub_chunk_count", "reads"),
    [("clay-4-2-5", 8, 2.5), ("clay-8-4-11", 64, 2.75), ("clay-10-4-13", 256, 3.25)],
)
def test_geometry_and_repair_reads_are_those_of_the_formula(
    name: str, sub_chunk_count: int, reads: float
) -> None:
    code = codec(name)
    assert code.sub_chunk_count == code.alignment_bytes == sub_chunk_count
    for lost in range(code.n):
        plan = code.repair_plan([lost])
        assert plan.bytes_fraction == reads and plan.read_chunk_count == code.n - 1
        assert plan.read_bytes(sub_chunk_count * 64) == reads * sub_chunk_count * 64


@pytest.mark.parametrize("name", NAMES + ODD_NAMES)
def test_a_stripe_is_one_by_the_definition_of_the_code(name: str) -> None:
    code = codec(name)
    stripe = stripe_of(code)
    chunks = [chunk.tobytes() for chunk in stripe]
    assert _reference.is_clay_stripe(code.k, code.m, chunks)
    chunks[-1] = bytes([chunks[-1][0] ^ 1]) + chunks[-1][1:]
    assert not _reference.is_clay_stripe(code.k, code.m, chunks)


@pytest.mark.parametrize("name", ["clay-4-2-5", "clay-2-2-3", "clay-3-2-4"])
def test_any_k_chunks_of_the_whole_generator_have_full_rank(name: str) -> None:
    code = codec(name)
    size = code.k * code.sub_chunk_count
    # One byte per sub-chunk: encode all unit vectors, and the chunks are rows of the generator.
    units = np.eye(size, dtype=np.uint8).reshape(size, code.k, code.sub_chunk_count)
    generator = np.stack([np.concatenate([unit, code.encode(unit)]) for unit in units], axis=2)
    for have in combinations(range(code.n), code.k):
        assert rank(generator[list(have)].reshape(size, size)) == size, have


def test_encoding_is_linear_over_the_field() -> None:
    code = codec("clay-10-4-13")
    one, other = stripe_of(code, 2, seed=1), stripe_of(code, 2, seed=2)
    assert (code.encode((one ^ other)[: code.k]) == (one ^ other)[code.k :]).all()


@pytest.mark.parametrize("name", NAMES)
def test_all_single_and_double_repairs_use_the_bytes_of_theory_alone(name: str) -> None:
    code = codec(name)
    stripe = stripe_of(code, 3)
    chunk_bytes = stripe.shape[1]
    for loss_count in (1, 2):
        for lost in combinations(range(code.n), loss_count):
            plan = code.repair_plan(lost)
            assert plan.bytes_fraction == theory(code, lost) <= code.k
            assert plan.read_bytes(chunk_bytes) == round(theory(code, lost) * chunk_bytes)
            reads = {index: plan.take(index, stripe[index]) for index in plan.reads}
            assert sum(part.size for part in reads.values()) == plan.read_bytes(chunk_bytes)
            rebuilt = code.repair(lost, reads)
            assert list(rebuilt) == list(lost)
            assert all((rebuilt[index] == stripe[index]).all() for index in lost), lost


def test_the_runs_of_a_plan_are_those_of_the_repair_planes() -> None:
    plan = codec("clay-4-2-5").repair_plan([0])  # node (0, 0): planes with the first digit 0
    assert plan.runs == ((0, 4),)
    assert plan.byte_runs(1, 80) == [(0, 40)] and plan.fraction_runs(1) == [(0.0, 0.5)]
    plan = codec("clay-4-2-5").repair_plan([5])  # node (1, 2): planes with the last digit 1
    assert plan.runs == ((1, 1), (3, 1), (5, 1), (7, 1))
    assert plan.byte_runs(0, 80) == [(10, 10), (30, 10), (50, 10), (70, 10)]
    assert plan.byte_runs(5, 80) == []  # what is lost is not read


def test_runs_are_ascending_and_do_not_touch() -> None:
    code = codec("clay-10-4-13")
    for lost in combinations(range(code.n), 2):
        plan = code.repair_plan(lost)
        assert all(end + count < start for (end, count), (start, _) in pairwise(plan.runs))
        counted = sum(count for _, count in plan.runs) / code.sub_chunk_count
        assert all(share == counted for share in plan.reads.values())


def test_three_losses_of_a_column_are_repaired_from_a_part() -> None:
    code = codec("clay-10-4-13")
    stripe = stripe_of(code, 2)
    for lost in [(0, 1, 3), (4, 6, 7), (10, 11, 13)]:
        plan = code.repair_plan(lost)
        assert plan.bytes_fraction == 3 * 11 / 4 == theory(code, lost)
        rebuilt = code.repair(lost, {i: plan.take(i, stripe[i]) for i in plan.reads})
        assert all((rebuilt[index] == stripe[index]).all() for index in lost)


@pytest.mark.parametrize(
    ("name", "kernel"),
    [("clay-4-2-5", kernel) for kernel in KERNELS] + [(name, None) for name in ODD_NAMES],
)
def test_every_loss_within_m_is_decoded(name: str, kernel: str | None) -> None:
    code = codec(name, kernel=kernel)
    stripe = stripe_of(code, 2)
    for loss_count in range(code.m + 1):
        for lost in combinations(range(code.n), loss_count):
            assert code.decodable(lost)
            survivors = {i: stripe[i] for i in range(code.n) if i not in lost}
            rebuilt = code.decode(survivors, want=range(code.n))
            assert all((rebuilt[i] == stripe[i]).all() for i in range(code.n)), lost


@pytest.mark.parametrize("name", NAMES)
def test_any_of_the_lost_can_be_wanted_alone(name: str) -> None:
    code = codec(name)
    stripe = stripe_of(code, 2)
    rng = np.random.default_rng(3)
    for _ in range(25):
        lost = sorted(rng.choice(code.n, rng.integers(1, code.m + 1), replace=False).tolist())
        survivors = {i: stripe[i] for i in range(code.n) if i not in lost}
        want = lost[rng.integers(len(lost))]
        out = np.empty_like(stripe[0])
        code.decode_into(survivors, {want: out})
        assert (out == stripe[want]).all(), (lost, want)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("sub_chunk_bytes", [0, 1, 7, 8, 65, 700, 9001])
def test_sub_chunks_of_any_length_and_alignment(kernel: str, sub_chunk_bytes: int) -> None:
    code = codec("clay-4-2-5", kernel=kernel)
    stripe = stripe_of(code, sub_chunk_bytes)
    # The bytes of a position within the sub-chunks depend on those of that position alone.
    for position in range(0, sub_chunk_bytes, 397):
        thin = stripe.reshape(code.n, code.sub_chunk_count, -1)[:, :, position]
        assert (code.encode(np.ascontiguousarray(thin[: code.k])) == thin[code.k :]).all()
    canvas = np.zeros((code.n, stripe.shape[1] + 64), dtype=np.uint8)
    moved = [row[i : i + stripe.shape[1]] for i, row in enumerate(canvas)]
    for source, target in zip(stripe[: code.k], moved, strict=False):
        target[:] = source
    code.encode_into(moved[: code.k], moved[code.k :])
    assert all((made == chunk).all() for made, chunk in zip(moved, stripe, strict=True))
    assert canvas.any() == stripe.any() and not canvas[:, -50:].any()
    rebuilt = code.decode({i: moved[i] for i in (1, 3, 4, 5)}, want=[0, 2])
    assert (rebuilt[0] == stripe[0]).all() and (rebuilt[2] == stripe[2]).all()


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_small_workspace_is_used_part_by_part(
    kernel: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clay, "WORKSPACE_BYTES", 8 * 1024)
    monkeypatch.setattr(contract, "EXACT_CHUNK_BYTES", 0)
    code = codec("clay-4-2-5", kernel=kernel)
    stripe = stripe_of(code, 3001)
    rebuilt = code.decode({i: stripe[i] for i in (1, 3, 4, 5)}, want=[2])
    assert (rebuilt[2] == stripe[2]).all()
    assert code.verify(stripe, seed=1) and code.verify(stripe, seed=1, rounds=2)
    for place in (0, 1023, 1024, 3000, 3001, 8 * 3001 - 1):
        damaged = stripe.copy()
        damaged[2, place] ^= 1
        assert not code.verify(damaged, seed=1, rounds=2), place
    changed = stripe.copy()
    changed[3] ^= 7
    code.update_parity(3, stripe[3], changed[3], changed[4:])
    assert (code.encode(changed[:4]) == changed[4:]).all()


@pytest.mark.parametrize("kernel", KERNELS)
def test_more_parity_than_one_step_makes(kernel: str) -> None:
    code = codec("clay-3-9-11", kernel=kernel)
    stripe = stripe_of(code, 2)
    assert _reference.is_clay_stripe(3, 9, [chunk.tobytes() for chunk in stripe])
    assert code.verify(stripe, seed=1)
    rng = np.random.default_rng(4)
    for loss_count in range(1, 10):
        lost = tuple(sorted(rng.choice(12, loss_count, replace=False).tolist()))
        survivors = {i: stripe[i] for i in range(12) if i not in lost}
        rebuilt = code.decode(survivors, want=lost)
        assert all((rebuilt[i] == stripe[i]).all() for i in lost), lost
    parity = stripe[3:].copy()
    code.update_parity(2, stripe[2], stripe[0], parity)
    assert (parity == code.encode(stripe[[0, 1, 0]])).all()


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("sub_chunk_bytes", [0, 1, 130, 700])
def test_threads_share_a_clay_stripe(kernel: str, sub_chunk_bytes: int) -> None:
    code = codec("clay-4-2-5", kernel=kernel)
    stripe = stripe_of(code, sub_chunk_bytes)
    made = np.empty_like(stripe[4:])
    code.encode_into(stripe[:4], made, threads=3)
    assert (made == stripe[4:]).all()
    out = {0: np.empty_like(stripe[0])}
    code.decode_into({i: stripe[i] for i in (1, 2, 4, 5)}, out, threads=2)
    assert (out[0] == stripe[0]).all()


def test_kernels_agree_on_long_chunks() -> None:
    stripes = [stripe_of(codec("clay-8-4-11", kernel=kernel), 3000) for kernel in KERNELS]
    assert all((stripe == stripes[0]).all() for stripe in stripes)


def test_a_clay_codec_is_shared_by_threads() -> None:
    code = codec("clay-4-2-5")
    stripe = stripe_of(code, 5000)

    def rebuild(lost: tuple[int, ...]) -> bool:
        survivors = {index: stripe[index] for index in range(code.n) if index not in lost}
        rebuilt = code.decode(survivors, want=lost)
        verified = code.verify(stripe, seed=lost[0])
        return verified and all((rebuilt[index] == stripe[index]).all() for index in lost)

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(rebuild, [*combinations(range(6), 2), *combinations(range(6), 1)]))


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("clay-10-4-12", "only with all 13 other chunks"),
        ("clay-10-4-14", "only with all 13 other chunks"),
        ("clay-4-1-4", "2 parity chunks or more"),
        ("clay-40-2-41", r"2\^21 sub-chunks are more than 4096"),
        ("clay-100-50-149", r"50\^3 sub-chunks"),
        ("clay-200-100-299", "300 chunks are more than 255"),
    ],
)
def test_a_clay_code_that_is_not_built_says_why(name: str, reason: str) -> None:
    with pytest.raises(UnknownCode, match=reason):
        codec(name)


def test_misuse_says_what_was_needed() -> None:
    code = codec("clay-4-2-5")
    stripe = stripe_of(code, 2)
    with pytest.raises(WrongAlignment, match="12 bytes: need a multiple of 8"):
        code.encode(np.zeros((4, 12), dtype=np.uint8))
    with pytest.raises(WrongAlignment):
        code.decode({i: stripe[i, :12] for i in range(4)}, want=[5])
    with pytest.raises(TooFewChunks, match="need 4 chunks, have 3"):
        code.decode({i: stripe[i] for i in range(3)}, want=[5])
    with pytest.raises(TooFewChunks):
        code.repair_plan([0, 1, 2])
    with pytest.raises(WrongShape, match="also given"):
        code.decode_into({i: stripe[i] for i in range(5)}, {0: stripe[0].copy()})
    plan = code.repair_plan([0])
    reads = {i: plan.take(i, stripe[i]) for i in plan.reads}
    with pytest.raises(WrongReads, match=r"reads chunks \[1, 2, 3, 4, 5\], given were \[1, 2"):
        code.repair([0], {i: reads[i] for i in (1, 2, 3, 4)})
    with pytest.raises(WrongReads, match="4 of 8 sub-chunks"):
        code.repair([0], {i: part[:-1] for i, part in reads.items()})
    assert code.repair([], {}) == {} and code.repair_plan([]).bytes_fraction == 0
