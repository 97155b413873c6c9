"""Random stripes, lengths, addresses and losses: every code against its scalar definition."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from exastore.erasure import _reference, codec
from exastore.erasure.kernels import available_kernels

Bytes = NDArray[np.uint8]
KERNELS = list(available_kernels())
UNTIMED = settings(deadline=None, max_examples=25)
CODES = st.sampled_from(["lrc-6-2-2", "lrc-12-2-2", "lrc-9-3-1", "clay-4-2-5", "clay-5-3-7"])


def _unaligned(rows: Bytes, offsets: list[int]) -> list[Bytes]:
    """Each row in memory of its own, starting at any address."""
    made: list[Bytes] = []
    for row, offset in zip(rows, offsets, strict=True):
        memory = np.zeros(offset + row.size + 64, dtype=np.uint8)
        memory[offset : offset + row.size] = row
        made.append(memory[offset : offset + row.size])
    return made


@pytest.mark.parametrize("kernel", KERNELS)
@UNTIMED
@given(draw=st.data(), name=CODES, length=st.integers(0, 40))
def test_any_decodable_loss_is_decoded_from_any_superset_that_suffices(
    kernel: str, draw: st.DataObject, name: str, length: int
) -> None:
    code = codec(name, kernel=kernel)
    seed = draw.draw(st.integers(0, 2**32 - 1), label="seed")
    size = (code.k, length * code.alignment_bytes)
    data = np.random.default_rng(seed).integers(0, 256, size, dtype=np.uint8)
    offsets = draw.draw(st.lists(st.integers(0, 63), min_size=code.n, max_size=code.n))
    stripe = _unaligned(np.concatenate([data, np.zeros((code.m, size[1]), np.uint8)]), offsets)
    code.encode_into(stripe[: code.k], stripe[code.k :])
    assert code.verify(stripe, seed)
    lost = draw.draw(st.sets(st.integers(0, code.n - 1), max_size=code.m), label="lost")
    want = draw.draw(st.sets(st.integers(0, code.n - 1)), label="want")
    if code.decodable(lost):
        survivors = {i: stripe[i] for i in range(code.n) if i not in lost}
        rebuilt = code.decode(survivors, want=want)
        assert all((rebuilt[i] == stripe[i]).all() for i in want)
        plan = code.repair_plan(lost)
        repaired = code.repair(lost, {i: plan.take(i, stripe[i]) for i in plan.reads})
        assert all((repaired[i] == stripe[i]).all() for i in lost)
        assert plan.bytes_fraction <= code.k


@UNTIMED
@given(
    shape=st.sampled_from([(6, 2, 2), (12, 4, 2), (8, 2, 1), (10, 2, 3), (40, 2, 2), (16, 1, 3)]),
    seed=st.integers(0, 2**32 - 1),
)
def test_an_lrc_encodes_as_its_scalar_twin(shape: tuple[int, int, int], seed: int) -> None:
    code = codec("lrc-{}-{}-{}".format(*shape))
    data = np.random.default_rng(seed).integers(0, 256, (code.k, 9), dtype=np.uint8)
    rows = [row.tobytes() for row in data]
    expected = [_reference.combine(row, rows) for row in _reference.lrc_rows(*shape)[code.k :]]
    assert [chunk.tobytes() for chunk in code.encode(data)] == expected


@settings(deadline=None, max_examples=8)
@given(k=st.integers(1, 7), m=st.integers(2, 4), seed=st.integers(0, 2**32 - 1))
def test_any_clay_code_is_one_by_definition_and_repairs_one_chunk_from_its_share(
    k: int, m: int, seed: int
) -> None:
    code = codec(f"clay-{k}-{m}-{k + m - 1}")
    rng = np.random.default_rng(seed)
    data = rng.integers(0, 256, (k, code.alignment_bytes), dtype=np.uint8)
    stripe = np.concatenate([data, code.encode(data)])
    assert _reference.is_clay_stripe(k, m, [chunk.tobytes() for chunk in stripe])
    lost = int(rng.integers(code.n))
    plan = code.repair_plan([lost])
    assert plan.bytes_fraction == pytest.approx(min((code.n - 1) / m, k))
    repaired = code.repair([lost], {i: plan.take(i, stripe[i]) for i in plan.reads})
    assert (repaired[lost] == stripe[lost]).all()
