"""Every loss that a code promises to survive, decoded; and what a wide LRC leaves undecoded."""

from collections.abc import Iterator
from itertools import combinations, permutations
from math import comb

import numpy as np
import pytest
from numpy.typing import NDArray

from exastore.erasure import Codec, codec, field
from exastore.erasure.kernels import available_kernels
from exastore.erasure.lrc import LocalCode, lrc_generator
from exastore.erasure.matrix import rank

pytestmark = [pytest.mark.verify, pytest.mark.timeout(1200)]

Bytes = NDArray[np.uint8]


def stripe_of(code: Codec, chunk_bytes: int) -> Bytes:
    data = np.random.default_rng(1).integers(0, 256, (code.k, chunk_bytes), dtype=np.uint8)
    return np.concatenate([data, code.encode(data)])


def decode_all(code: Codec, stripe: Bytes) -> int:
    """Decode every loss of m chunks; how many there were."""
    count = 0
    for lost in combinations(range(code.n), code.m):
        survivors = {index: stripe[index] for index in range(code.n) if index not in lost}
        rebuilt = code.decode(survivors, want=lost)
        assert all((rebuilt[index] == stripe[index]).all() for index in lost), lost
        count += 1
    return count


@pytest.mark.parametrize("kernel", list(available_kernels()))
@pytest.mark.parametrize(("name", "losses"), [("rs-10-4", 1001), ("rs-9-6", 5005)])
def test_reed_solomon_decodes_every_loss_of_m_chunks(name: str, losses: int, kernel: str) -> None:
    code = codec(name, kernel=kernel)
    assert decode_all(code, stripe_of(code, 64)) == losses == comb(code.n, code.m)


@pytest.mark.parametrize(
    ("name", "losses"), [("clay-4-2-5", 15), ("clay-8-4-11", 495), ("clay-10-4-13", 1001)]
)
def test_clay_decodes_every_loss_of_m_chunks(name: str, losses: int) -> None:
    code = codec(name)
    assert decode_all(code, stripe_of(code, code.alignment_bytes)) == losses


@pytest.mark.parametrize("name", ["clay-10-4-13", "clay-8-4-11"])
def test_clay_repairs_every_three_losses_from_the_planned_bytes(name: str) -> None:
    code = codec(name)
    stripe = stripe_of(code, code.alignment_bytes)
    for lost in combinations(range(code.n), 3):
        plan = code.repair_plan(lost)
        rebuilt = code.repair(lost, {i: plan.take(i, stripe[i]) for i in plan.reads})
        assert all((rebuilt[index] == stripe[index]).all() for index in lost), lost
        assert plan.bytes_fraction <= code.k


# lrc-48-4-3: of the losses that the shape allows, those of 4 chunks or fewer are all decoded. With
# 5 lost, the ones that can fail hurt two groups: f_0 lost globals, f_a >= f_b >= 2 chunks of two
# groups, f_a + f_b + f_0 = 5. After the local parities, columns that are differences within a group
# are left for as many global rows; the loss is decoded if their determinant is not 0.


def determinants(matrices: Bytes) -> Bytes:
    """Determinants over GF(2^8) by expansion. Shape: [..., r, r] gives [...]."""
    size = matrices.shape[-1]
    if size == 1:
        return matrices[..., 0, 0]
    total = np.zeros(matrices.shape[:-2], dtype=np.uint8)
    for column in range(size):
        rest = [other for other in range(size) if other != column]
        minor = determinants(matrices[..., 1:, :][..., rest])
        total ^= field.MUL[matrices[..., 0, column], minor]
    return total


def differences(columns: Bytes, loss_count: int) -> Bytes:
    """For all losses in a group. Shape: [g, w + 1] to [losses, g, loss_count - 1]."""
    chosen = np.array(list(combinations(range(columns.shape[1]), loss_count)))
    lost = columns[:, chosen].transpose(1, 0, 2)
    return np.ascontiguousarray(lost[:, :, 1:] ^ lost[:, :, :1])


def tight_losses_of_five(code: LocalCode, globals_: Bytes) -> Iterator[Bytes]:
    """The determinants of all losses of 5 chunks that hurt two groups."""
    groups = globals_.reshape(3, code.group_count, code.group_width)
    columns = np.concatenate([groups, np.zeros_like(groups[:, :, :1])], axis=2)
    for a, b in permutations(range(code.group_count), 2):
        three, two = differences(columns[:, a], 3), differences(columns[:, b], 2)
        shape = (len(three), len(two), 3)
        left = np.broadcast_to(three[:, None], (*shape, 2))
        right = np.broadcast_to(two[None, :], (*shape, 1))
        yield determinants(np.concatenate([left, right], axis=3))
        if a < b:
            for rows in combinations(range(3), 2):
                left, right = (differences(columns[list(rows), x], 2) for x in (a, b))
                shape = (len(left), len(right), 2)
                yield determinants(
                    np.concatenate(
                        [
                            np.broadcast_to(left[:, None], (*shape, 1)),
                            np.broadcast_to(right[None, :], (*shape, 1)),
                        ],
                        axis=3,
                    )
                )


def test_lrc_48_4_3_leaves_1970_losses_of_five_undecoded_that_the_shape_allows() -> None:
    code = codec("lrc-48-4-3")
    assert isinstance(code, LocalCode)
    generator = lrc_generator(48, 4, 3)
    counts = [(dets == 0).sum() for dets in tight_losses_of_five(code, generator[52:])]
    assert sum(counts) == 1970


def test_lrc_48_4_3_decodes_all_four_losses() -> None:
    # Its row of ones (the sum of the local rows) and its global rows are an MDS code: every square
    # of a Cauchy matrix with scaled columns is invertible. Checked here on all sets of 4 columns,
    # of which every loss of 4 chunks is one, after the local parities: see `_cauchy_globals`.
    parity = lrc_generator(48, 4, 3)[48:]
    rows = np.concatenate([np.bitwise_xor.reduce(parity[:4], axis=0)[None], parity[4:]])
    assert (rows[0] == 1).all()
    for size in range(1, 5):
        columns = np.array(list(combinations(range(48), size)))
        for chosen in combinations(range(4), size):
            squares = rows[list(chosen)][:, columns].transpose(1, 0, 2)
            assert determinants(np.ascontiguousarray(squares)).all()


def test_a_sample_of_five_losses_of_lrc_48_4_3_agrees_with_the_rank() -> None:
    code = codec("lrc-48-4-3")
    generator = lrc_generator(48, 4, 3)
    rng = np.random.default_rng(5)
    for _ in range(2000):
        lost = rng.choice(55, 5, replace=False).tolist()
        kept = [index for index in range(55) if index not in lost]
        assert code.decodable(lost) == (rank(generator[kept]) == 48)
