"""Every loss that a code promises to survive, decoded; and what a wide LRC leaves undecoded."""

from itertools import combinations, permutations, product
from math import comb, prod

import numpy as np
import pytest
from numpy.typing import NDArray

from exastore.erasure import Codec, codec, field
from exastore.erasure import code as code_module
from exastore.erasure.kernels import available_kernels
from exastore.erasure.lrc import lrc_generator
from exastore.erasure.matrix import rank

pytestmark = [pytest.mark.verify, pytest.mark.timeout(1200)]

Bytes = NDArray[np.uint8]


def stripe_of(code: Codec, chunk_bytes: int) -> Bytes:
    data = np.random.default_rng(1).integers(0, 256, (code.k, chunk_bytes), dtype=np.uint8)
    return np.concatenate([data, code.encode(data)])


def decode_all(code: Codec, stripe: Bytes) -> int:
    """Decode every loss of m chunks, twice; how many there were."""
    count = 0
    for lost in combinations(range(code.n), code.m):
        survivors = {index: stripe[index] for index in range(code.n) if index not in lost}
        for _ in range(2):
            rebuilt = code.decode(survivors, want=lost)
            assert all((rebuilt[index] == stripe[index]).all() for index in lost), lost
        count += 1
    return count


@pytest.fixture(autouse=True)
def decoders_are_specialised_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that the second decoding of a loss is by code of its own."""
    monkeypatch.setattr(code_module, "USES_TO_SPECIALISE", 2)


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


# lrc-48-4-3: which losses are decoded, of those that the shape allows. Lost local parities take one
# equation each, the first loss of a group takes its local parity, and what is left are differences
# of columns within groups, for as many global rows as are there: f_0 of 3 are lost. A loss is
# decoded if their determinant is not 0. A group with one loss leaves nothing, so all depends on the
# *core*: the groups with two losses or more, and f_0. Cores of 4 chunks or fewer are all decoded.
# Others that the shape allows: 3 + 2 chunks of two groups; 2 + 2 and one global parity; and
# 2 + 2 + 2 of three groups. Every group that is not in the core may lose one of its 13 chunks.
UNDECODED_THREE_AND_TWO = 955
UNDECODED_TWO_AND_TWO = 1_015
UNDECODED_THREE_TWOS = 9_545


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


def joined(*parts: Bytes) -> Bytes:
    """Square matrices of all combinations of columns. Shapes: [losses, g, c] to [..., g, g]."""
    shape = tuple(len(part) for part in parts)
    columns: list[Bytes] = []
    for axis, part in enumerate(parts):
        place = [None if other != axis else slice(None) for other in range(len(parts))]
        spread = part[(*place, slice(None), slice(None))]
        columns.append(np.broadcast_to(spread, (*shape, *part.shape[1:])))
    return np.concatenate(columns, axis=-1)


def zeros_of(*parts: Bytes) -> int:
    return int((determinants(joined(*parts)) == 0).sum())


@pytest.fixture(scope="module")
def undecoded() -> tuple[int, int, int]:
    """How many cores of three and two, of two and two, of three twos are not decoded."""
    rows = lrc_generator(48, 4, 3)[52:].reshape(3, 4, 12)
    columns = np.concatenate([rows, np.zeros_like(rows[:, :, :1])], axis=2)
    twos = [differences(columns[:, group], 2) for group in range(4)]
    threes = [differences(columns[:, group], 3) for group in range(4)]
    three_and_two = sum(zeros_of(threes[a], twos[b]) for a, b in permutations(range(4), 2))
    two_and_two = sum(
        zeros_of(twos[a][:, list(kept)], twos[b][:, list(kept)])
        for a, b in combinations(range(4), 2)
        for kept in combinations(range(3), 2)
    )
    three_twos = sum(
        zeros_of(*[twos[group] for group in groups]) for groups in combinations(range(4), 3)
    )
    return three_and_two, two_and_two, three_twos


def test_few_cores_of_lrc_48_4_3_are_not_decoded(
    undecoded: tuple[int, int, int],
) -> None:
    assert undecoded == (UNDECODED_THREE_AND_TWO, UNDECODED_TWO_AND_TWO, UNDECODED_THREE_TWOS)


def allowed_by_shape(lost_count: int) -> int:
    """Losses with sum of max(0, f_j - 1) + f_0 <= 3, by the losses in each of the four groups."""
    total = 0
    for losses in product(range(5), repeat=4):
        lost_globals = lost_count - sum(losses)
        excess = sum(max(0, losses_of_group - 1) for losses_of_group in losses)
        if 0 <= lost_globals <= 3 - excess:
            total += prod(comb(13, losses_of_group) for losses_of_group in losses) * comb(
                3, lost_globals
            )
    return total


@pytest.mark.parametrize(
    ("lost_count", "allowed", "not_decoded"),
    [
        (4, comb(55, 4), 0),
        (5, 3_461_289, 1_970),
        (6, 26_203_619, 60_765),
        (7, 104_333_333, 457_015),
    ],
)
def test_lrc_48_4_3_decodes_all_losses_but_these_that_the_shape_allows(
    undecoded: tuple[int, int, int], lost_count: int, allowed: int, not_decoded: int
) -> None:
    of_two_groups, of_three = sum(undecoded[:2]), undecoded[2]
    more = lost_count - 5
    # Of the groups outside of the core, `more` (or one less) have lost one chunk each.
    left = of_two_groups * comb(2, more) * 13**more if more >= 0 else 0
    left += of_three * 13 ** (more - 1) if more >= 1 else 0
    assert (allowed_by_shape(lost_count), left) == (allowed, not_decoded)


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


@pytest.mark.parametrize("lost_count", [5, 6, 7])
def test_a_sample_of_losses_of_lrc_48_4_3_agrees_with_the_rank(lost_count: int) -> None:
    code = codec("lrc-48-4-3")
    generator = lrc_generator(48, 4, 3)
    rng = np.random.default_rng(5)
    for _ in range(2000):
        lost = rng.choice(55, lost_count, replace=False).tolist()
        kept = [index for index in range(55) if index not in lost]
        assert code.decodable(lost) == (rank(generator[kept]) == 48)
