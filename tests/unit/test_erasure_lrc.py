"""Local reconstruction codes: what they decode, exhaustively, and what their repairs read."""

from collections import Counter
from itertools import combinations
from math import comb

import numpy as np
import pytest
from numpy.typing import NDArray

from exastore.erasure import TooFewChunks, _reference, codec
from exastore.erasure.errors import Undecodable
from exastore.erasure.kernels import available_kernels
from exastore.erasure.lrc import LocalCode, lrc_generator

Bytes = NDArray[np.uint8]
KERNELS = list(available_kernels())
NAMES = ["lrc-6-2-2", "lrc-12-2-2", "lrc-12-4-2", "lrc-48-4-3"]
MAXIMALLY_RECOVERABLE = NAMES[:3]


def lrc(name: str, kernel: str | None = None) -> LocalCode:
    code = codec(name, kernel=kernel)
    assert isinstance(code, LocalCode)
    return code


def stripe_of(code: LocalCode, chunk_bytes: int = 64, seed: int = 1) -> Bytes:
    data = np.random.default_rng(seed).integers(0, 256, (code.k, chunk_bytes), dtype=np.uint8)
    return np.concatenate([data, code.encode(data)])


def shape_allows(code: LocalCode, lost: tuple[int, ...]) -> bool:
    """Information theory: sum of max(0, f_j - 1) over the groups, plus lost globals, at most g."""
    global_count = code.m - code.group_count
    per_group: Counter[int] = Counter()
    excess = 0
    for index in lost:
        if index < code.k:
            per_group[index // code.group_width] += 1
        elif index < code.k + code.group_count:
            per_group[index - code.k] += 1
        else:
            excess += 1
    return excess + sum(count - 1 for count in per_group.values()) <= global_count


@pytest.mark.parametrize("name", [*NAMES, "lrc-8-2-1", "lrc-9-3-0", "lrc-20-1-2", "lrc-32-2-2"])
def test_the_generator_is_that_of_the_scalar_twin(name: str) -> None:
    k, groups, globals_ = map(int, name.split("-")[1:])
    assert lrc_generator(k, groups, globals_).tolist() == _reference.lrc_rows(k, groups, globals_)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("name", NAMES)
def test_parity_is_that_of_the_scalar_twin(name: str, kernel: str) -> None:
    k, groups, globals_ = map(int, name.split("-")[1:])
    stripe = stripe_of(lrc(name, kernel), 10)
    data = [row.tobytes() for row in stripe[:k]]
    expected = [_reference.combine(r, data) for r in _reference.lrc_rows(k, groups, globals_)[k:]]
    assert [row.tobytes() for row in stripe[k:]] == expected


@pytest.mark.parametrize("name", NAMES)
def test_a_local_parity_is_the_sum_of_its_group(name: str) -> None:
    code = lrc(name)
    stripe = stripe_of(code)
    groups = stripe[: code.k].reshape(code.group_count, code.group_width, -1)
    sums = np.bitwise_xor.reduce(groups, axis=1)
    assert (stripe[code.k : code.k + code.group_count] == sums).all()


@pytest.mark.parametrize(
    ("name", "loss_count", "decodable"),
    [
        # Huang et al. 2012, table 1 and its formula: all that information theory allows.
        ("lrc-6-2-2", 3, 120),
        ("lrc-6-2-2", 4, 180),
        ("lrc-12-2-2", 3, 560),
        ("lrc-12-2-2", 4, 1568),
        ("lrc-12-4-2", 3, 816),
        ("lrc-12-4-2", 4, 3000),
    ],
)
def test_every_loss_that_the_shape_allows_is_decoded_and_the_others_are_refused(
    name: str, loss_count: int, decodable: int
) -> None:
    code = lrc(name)
    stripe = stripe_of(code)
    decoded = 0
    for lost in combinations(range(code.n), loss_count):
        survivors = {index: stripe[index] for index in range(code.n) if index not in lost}
        assert code.decodable(lost) == shape_allows(code, lost)
        if code.decodable(lost):
            rebuilt = code.decode(survivors, want=lost)
            assert all((rebuilt[index] == stripe[index]).all() for index in lost), lost
            decoded += 1
        else:
            with pytest.raises(Undecodable):
                code.decode(survivors, want=lost)
    assert decoded == decodable


@pytest.mark.parametrize("name", MAXIMALLY_RECOVERABLE)
def test_no_loss_beyond_four_contradicts_the_shape(name: str) -> None:
    code = lrc(name)
    for loss_count in range(5, code.m + 1):
        for lost in combinations(range(code.n), loss_count):
            assert code.decodable(lost) == shape_allows(code, lost), lost


def test_the_wide_code_decodes_every_three_losses() -> None:
    code = lrc("lrc-48-4-3")
    assert all(code.decodable(lost) for lost in combinations(range(code.n), 3))


def test_the_wide_code_decodes_a_sample_of_four_losses() -> None:
    code = lrc("lrc-48-4-3")
    stripe = stripe_of(code, 33)
    rng = np.random.default_rng(2)
    for _ in range(200):
        lost = [int(index) for index in rng.choice(code.n, 4, replace=False)]
        survivors = {index: stripe[index] for index in range(code.n) if index not in lost}
        rebuilt = code.decode(survivors, want=lost)
        assert all((rebuilt[index] == stripe[index]).all() for index in lost), lost


@pytest.mark.parametrize("name", NAMES)
def test_one_lost_chunk_is_repaired_in_its_group(name: str) -> None:
    code = lrc(name)
    for lost in range(code.k + code.group_count):
        group = lost // code.group_width if lost < code.k else lost - code.k
        first = group * code.group_width
        members = {*range(first, first + code.group_width), code.k + group}
        assert set(code.repair_plan([lost]).reads) == members - {lost}
    for lost in range(code.k + code.group_count, code.n):
        assert list(code.repair_plan([lost]).reads) == list(range(code.k))


def test_the_mean_repair_of_lrc_12_2_2_reads_6_75_chunks() -> None:
    code = lrc("lrc-12-2-2")
    reads = [code.repair_plan([lost]).bytes_fraction for lost in range(code.n)]
    assert (reads[0], reads[12], reads[14], sum(reads) / code.n) == (6.0, 6.0, 12.0, 6.75)


def test_losses_in_different_groups_are_all_repaired_locally() -> None:
    plan = lrc("lrc-12-4-2").repair_plan([0, 5, 14])
    assert list(plan.reads) == [1, 2, 3, 4, 6, 7, 8, 12, 13]


def test_local_and_global_repairs_combine() -> None:
    # Group 0 lost one chunk, group 1 two: with one global parity they are the 12 reads of any k.
    plan = lrc("lrc-12-2-2").repair_plan([0, 6, 7])
    assert list(plan.reads) == [1, 2, 3, 4, 5, 8, 9, 10, 11, 12, 13, 14]
    # Both globals lost as well as a data chunk: its group gives it back, the rest is encoding.
    assert list(lrc("lrc-12-2-2").repair_plan([0, 14, 15]).reads) == list(range(1, 13))


@pytest.mark.parametrize("name", MAXIMALLY_RECOVERABLE)
def test_the_planned_bytes_are_enough_and_at_most_k_chunks(name: str) -> None:
    code = lrc(name)
    stripe = stripe_of(code, 65)
    for loss_count in range(1, 4):
        for lost in combinations(range(code.n), loss_count):
            plan = code.repair_plan(lost)
            assert plan.bytes_fraction <= code.k and plan.lost == lost
            reads = {index: plan.take(index, stripe[index]) for index in plan.reads}
            rebuilt = code.repair(lost, reads)
            assert all((rebuilt[index] == stripe[index]).all() for index in lost), lost


def test_a_group_alone_gives_back_its_chunk() -> None:
    code = lrc("lrc-12-2-2")
    stripe = stripe_of(code)
    group = {index: stripe[index] for index in (1, 2, 3, 4, 5, 12)}
    assert (code.decode(group, want=[0])[0] == stripe[0]).all()
    with pytest.raises(TooFewChunks):
        code.decode(group, want=[0, 6])


def test_an_undecodable_loss_has_no_plan() -> None:
    with pytest.raises(Undecodable, match=r"do not determine \[0, 1, 2, 3\]") as error:
        lrc("lrc-12-2-2").repair_plan([0, 1, 2, 3])
    assert error.value.want_indexes == (0, 1, 2, 3) and error.value.have == 12


def test_twelve_chunks_need_not_be_enough() -> None:
    code = lrc("lrc-12-2-2")
    subsets = sum(
        code.decodable(set(range(code.n)).difference(have))
        for have in combinations(range(code.n), code.k)
    )
    assert subsets == 1568 < comb(16, 12)
