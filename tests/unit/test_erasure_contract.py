"""What every code promises: repair by plan, incremental parity, verification without decoding."""

from itertools import combinations

import numpy as np
import pytest
from numpy.typing import NDArray

from exastore.erasure import Codec, RepairPlan, TooFewChunks, codec, contract
from exastore.erasure import code as code_module
from exastore.erasure.errors import WrongIndex, WrongLayout, WrongReads, WrongShape
from exastore.erasure.kernels import available_kernels

Bytes = NDArray[np.uint8]
KERNELS = list(available_kernels())
NAMES = ["rs-4-2", "rs-10-4", "rs-5-9", "lrc-6-2-2", "lrc-12-4-2", "clay-4-2-5", "rep-3", "rs-4-1"]

#: Of chunks that take several blocks, the last one not whole, if a block is this short.
LENGTH, BLOCK_BYTES = 1400, 512


@pytest.fixture(autouse=True)
def short_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(code_module, "BLOCK_BYTES", BLOCK_BYTES)
    monkeypatch.setattr(code_module, "VERIFY_BLOCK_BYTES", BLOCK_BYTES)


@pytest.fixture(params=[*[(name, KERNELS[0]) for name in NAMES], *[("rs-5-9", k) for k in KERNELS]])
def code(request: pytest.FixtureRequest) -> Codec:
    name, kernel = request.param
    return codec(name, kernel=kernel)


def stripe_of(code: Codec, chunk_bytes: int = 200, seed: int = 1) -> Bytes:
    data = np.random.default_rng(seed).integers(0, 256, (code.k, chunk_bytes), dtype=np.uint8)
    return np.concatenate([data, code.encode(data)])


def test_a_codec_states_what_lengths_it_takes(code: Codec) -> None:
    assert code.alignment_bytes == code.sub_chunk_count == (8 if "clay" in code.name else 1)


def test_repair_needs_exactly_the_planned_bytes(code: Codec) -> None:
    stripe = stripe_of(code)
    for loss_count in range(1, min(code.m, 2) + 1):
        for lost in combinations(range(code.n), loss_count):
            plan = code.repair_plan(lost)
            assert not set(plan.reads) & set(lost)
            reads = {index: plan.take(index, stripe[index]) for index in plan.reads}
            assert sum(part.size for part in reads.values()) == plan.read_bytes(200)
            rebuilt = code.repair(lost, reads)
            assert list(rebuilt) == list(lost)
            assert all((rebuilt[index] == stripe[index]).all() for index in lost)
    assert code.repair([], {}) == {}


def test_repair_refuses_other_reads_than_planned() -> None:
    code = codec("rs-4-2")
    stripe = stripe_of(code)
    with pytest.raises(WrongReads, match=r"reads chunks \[1, 2, 3, 4\], given were \[2, 3, 4, 5\]"):
        code.repair([0], {index: stripe[index] for index in (2, 3, 4, 5)})
    with pytest.raises(TooFewChunks):
        code.repair([0, 1, 2], {index: stripe[index] for index in (3, 4, 5)})


def test_a_plan_names_whole_chunks_as_one_run() -> None:
    plan = codec("rs-4-2").repair_plan([1])
    assert plan == RepairPlan((1,), {0: 1.0, 2: 1.0, 3: 1.0, 4: 1.0})
    assert plan.reads_whole_chunks and plan.byte_runs(0, 100) == [(0, 100)]
    assert plan.fraction_runs(4) == [(0.0, 1.0)] and plan.fraction_runs(1) == []


def test_a_changed_data_chunk_changes_the_parity_as_encoding_does(code: Codec) -> None:
    # 70,000 bytes: more than one block of the update.
    stripe = stripe_of(code, LENGTH)
    for index in range(code.k):
        changed = stripe.copy()
        changed[index] = np.random.default_rng(index).integers(0, 256, LENGTH, dtype=np.uint8)
        parity = stripe[code.k :].copy()
        code.update_parity(index, stripe[index], changed[index], parity)
        assert (parity == code.encode(changed[: code.k])).all()
        code.update_parity(index, changed[index], stripe[index], list(parity))
        assert (parity == stripe[code.k :]).all()


def test_an_update_leaves_the_parity_of_other_groups_alone() -> None:
    code = codec("lrc-12-4-2")
    stripe = stripe_of(code)
    parity = stripe[code.k :].copy()
    code.update_parity(0, stripe[0], stripe[0] ^ 1, parity)
    assert (parity != stripe[code.k :]).any(axis=1).tolist() == [True, *[False] * 3, True, True]


def test_a_wrong_update_is_refused_and_writes_nothing() -> None:
    code = codec("rs-4-2")
    stripe = stripe_of(code)
    parity = stripe[4:].copy()
    with pytest.raises(WrongIndex):
        code.update_parity(4, stripe[0], stripe[1], parity)
    with pytest.raises(WrongShape):
        code.update_parity(0, stripe[0, :100], stripe[1], parity)
    with pytest.raises(WrongShape):
        code.update_parity(0, stripe[0], stripe[1], parity[:1])
    with pytest.raises(WrongLayout, match="overlaps"):
        code.update_parity(0, parity[0], stripe[1], parity)
    parity.flags.writeable = False
    with pytest.raises(WrongLayout, match="read-only"):
        code.update_parity(0, stripe[0], stripe[1], parity)
    assert (parity == stripe[4:]).all()


@pytest.fixture
def random_checks_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Short chunks are otherwise checked exactly."""
    monkeypatch.setattr(contract, "EXACT_CHUNK_BYTES", 0)


@pytest.mark.usefixtures("random_checks_only")
def test_a_stripe_passes_verification_with_every_seed(code: Codec) -> None:
    for chunk_bytes in (0, 8, 200, LENGTH):
        stripe = stripe_of(code, chunk_bytes)
        for seed in range(5):
            assert code.verify(stripe, seed) and code.verify(list(stripe), seed, rounds=1)


@pytest.mark.usefixtures("random_checks_only")
def test_enough_rounds_find_every_damage(code: Codec) -> None:
    stripe = stripe_of(code, LENGTH)
    rng = np.random.default_rng(1)
    for index in range(code.n):
        damaged = stripe.copy()
        damaged[index, rng.integers(LENGTH)] ^= rng.integers(1, 256, dtype=np.uint8)
        assert not code.verify(damaged, seed=index, rounds=code.m)


@pytest.mark.usefixtures("random_checks_only")
@pytest.mark.parametrize("name", [name for name in NAMES if "clay" not in name])
def test_one_round_finds_all_damage_to_one_chunk_with_any_seed(name: str) -> None:
    code = codec(name)
    stripe = stripe_of(code, 8)
    for seed in range(300):
        damaged = stripe.copy()
        damaged[seed % code.n, seed % 8] ^= seed % 255 + 1
        assert not code.verify(damaged, seed)


@pytest.mark.usefixtures("random_checks_only")
@pytest.mark.parametrize("name", ["rs-4-2", "lrc-6-2-2", "clay-4-2-5"])
def test_one_round_misses_other_damage_for_few_seeds(name: str) -> None:
    code = codec(name)
    stripe = stripe_of(code, 8)
    stripe[1, 3] ^= 77
    stripe[2, 3] ^= 5
    trials = 3000 if "clay" not in name else 800
    missed = sum(code.verify(stripe, seed) for seed in range(trials))
    # Binomial with p = 1 / (256 - n) at most: five sigma above.
    most = trials / (256 - code.n)
    assert missed <= most + 5 * most**0.5
    # Damage to a Clay chunk shows in two planes of the inner code, so it is all but never missed.
    assert missed > 0 or "clay" in name
    assert not code.verify(stripe, 0, rounds=2)


@pytest.mark.parametrize("name", ["rs-4-2", "clay-4-2-5"])
def test_short_chunks_are_verified_exactly(name: str) -> None:
    code = codec(name)
    stripe = stripe_of(code, 8)
    assert code.verify(stripe, 0)
    stripe[1, 3] ^= 77
    stripe[2, 3] ^= 5
    assert not any(code.verify(stripe, seed) for seed in range(1000))


def test_verification_wants_all_chunks() -> None:
    stripe = stripe_of(codec("rs-4-2"))
    with pytest.raises(WrongShape, match="given"):
        codec("rs-4-2").verify(stripe[:5], 0)


def test_a_code_without_parity_is_always_verified() -> None:
    code = codec("rs-3-0")
    data = stripe_of(code, 10)
    assert code.verify(data, 0)
    code.update_parity(1, data[1], data[2], [])


@pytest.mark.parametrize(
    ("name", "kernel", "losses"),
    # Every kernel is in tests/verification; the portable one prepares matrices fastest.
    [("rs-10-4", None, 1001), ("rs-9-6", "portable", 5005)],
)
def test_reed_solomon_decodes_every_loss_of_m_chunks(
    name: str, kernel: str | None, losses: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The second decoding of a loss is by code of its own.
    monkeypatch.setattr(code_module, "USES_TO_SPECIALISE", 2)
    code = codec(name, kernel=kernel)
    stripe = stripe_of(code, 64)
    count = 0
    for lost in combinations(range(code.n), code.m):
        survivors = {index: stripe[index] for index in range(code.n) if index not in lost}
        for _ in range(1 if kernel == "portable" else 2):
            rebuilt = code.decode(survivors, want=lost)
            assert all((rebuilt[index] == stripe[index]).all() for index in lost), lost
        count += 1
    assert count == losses
