"""Every kernel against the scalar twin, and the MDS property: any k chunks give back all n."""

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from exastore.erasure import _reference, codec, field
from exastore.erasure.kernels import available_kernels
from exastore.erasure.matrix import cauchy_generator

Bytes = NDArray[np.uint8]
KERNELS = list(available_kernels())
#: The first use of a geometry compiles it, so a deadline per example says nothing.
UNTIMED = settings(deadline=None, max_examples=40)
#: Each geometry costs a compilation, so they are few: narrow, usual, wide, high, several tiles.
GEOMETRIES = st.sampled_from([(1, 1), (2, 1), (3, 3), (4, 2), (10, 4), (5, 9), (33, 2)])


def _unaligned(rows: list[bytes], offsets: list[int]) -> list[Bytes]:
    """Each row in memory of its own, starting at any address."""
    made: list[Bytes] = []
    for row, offset in zip(rows, offsets, strict=True):
        memory = np.zeros(offset + len(row) + 64, dtype=np.uint8)
        memory[offset : offset + len(row)] = list(row)
        made.append(memory[offset : offset + len(row)])
    return made


@pytest.mark.parametrize("kernel", KERNELS)
@UNTIMED
@given(draw=st.data(), geometry=GEOMETRIES, chunk_bytes=st.integers(0, 200))
def test_encoding_agrees_with_the_scalar_twin(
    kernel: str, draw: st.DataObject, geometry: tuple[int, int], chunk_bytes: int
) -> None:
    k, m = geometry
    seed = draw.draw(st.integers(0, 2**32 - 1), label="seed")
    offsets = draw.draw(st.lists(st.integers(0, 63), min_size=k + m, max_size=k + m))
    data = [row.tobytes() for row in _random(seed, k, chunk_bytes)]
    sources = _unaligned(data, offsets[:k])
    targets = _unaligned([bytes(chunk_bytes)] * m, offsets[k:])
    codec(f"rs-{k}-{m}", kernel=kernel).encode_into(sources, targets)
    assert [target.tobytes() for target in targets] == _reference.encode(k, m, data)
    assert [source.tobytes() for source in sources] == data


@pytest.mark.parametrize("kernel", KERNELS)
@UNTIMED
@given(draw=st.data(), geometry=GEOMETRIES, chunk_bytes=st.integers(1, 200))
def test_decoding_agrees_with_the_scalar_twin(
    kernel: str, draw: st.DataObject, geometry: tuple[int, int], chunk_bytes: int
) -> None:
    k, m = geometry
    n = k + m
    seed = draw.draw(st.integers(0, 2**32 - 1), label="seed")
    have = draw.draw(st.lists(st.integers(0, n - 1), min_size=k, max_size=n, unique=True))
    want = draw.draw(st.lists(st.integers(0, n - 1), max_size=n, unique=True))
    data = [row.tobytes() for row in _random(seed, k, chunk_bytes)]
    stripe = data + _reference.encode(k, m, data)
    chunks = {index: np.frombuffer(stripe[index], dtype=np.uint8) for index in have}
    rebuilt = codec(f"rs-{k}-{m}", kernel=kernel).decode(chunks, want=want)
    assert {index: chunk.tobytes() for index, chunk in rebuilt.items()} == {
        index: stripe[index] for index in want
    }
    if k + m <= 14:
        assert _reference.decode(k, m, {index: stripe[index] for index in have}) == stripe


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize(("k", "m"), [(4, 2), (2, 3), (1, 2)])
def test_every_loss_within_m_is_rebuilt(kernel: str, k: int, m: int) -> None:
    code = codec(f"rs-{k}-{m}", kernel=kernel)
    data = _random(7, k, 97)
    stripe = dict(enumerate(np.concatenate([data, code.encode(data)])))
    for count in range(m + 1):
        for lost in combinations(range(code.n), count):
            survivors = {index: chunk for index, chunk in stripe.items() if index not in lost}
            rebuilt = code.decode(survivors, want=range(code.n))
            assert all((rebuilt[index] == stripe[index]).all() for index in range(code.n)), lost


@UNTIMED
@given(draw=st.data())
def test_any_k_rows_of_a_generator_are_independent(draw: st.DataObject) -> None:
    k = draw.draw(st.integers(1, 60), label="k")
    m = draw.draw(st.integers(0, 60), label="m")
    rows = draw.draw(st.permutations(range(k + m)), label="rows")[:k]
    square = cauchy_generator(k, m)[rows]
    assert (field.matmul(field.invert(square), square) == np.eye(k, dtype=np.uint8)).all()


@pytest.mark.parametrize("kernel", KERNELS)
@UNTIMED
@given(seed=st.integers(0, 2**32 - 1), chunk_bytes=st.integers(0, 10_000))
def test_encoding_is_linear(kernel: str, seed: int, chunk_bytes: int) -> None:
    code = codec("rs-4-2", kernel=kernel)
    one, other = _random(seed, 4, chunk_bytes), _random(seed + 1, 4, chunk_bytes)
    assert (code.encode(one ^ other) == code.encode(one) ^ code.encode(other)).all()


@UNTIMED
@given(seed=st.integers(0, 2**32 - 1), chunk_bytes=st.integers(0, 70_000))
def test_all_kernels_agree_on_long_chunks(seed: int, chunk_bytes: int) -> None:
    data = _random(seed, 33, chunk_bytes)
    parities = [codec("rs-33-9", kernel=kernel).encode(data) for kernel in KERNELS]
    assert all((parity == parities[0]).all() for parity in parities)


@pytest.mark.parametrize("kernel", KERNELS)
@settings(deadline=None, max_examples=6)
@given(draw=st.data(), chunk_bytes=st.integers(20_000, 300_000))
def test_long_chunks_at_any_address_are_encoded_as_by_tables(
    kernel: str, draw: st.DataObject, chunk_bytes: int
) -> None:
    # Long enough for the loops that fetch ahead and that write past the caches.
    offset = st.integers(0, 63)
    # Outputs that are equally far from an aligned address, and that are not.
    common = draw.draw(st.none() | offset)
    inputs = draw.draw(st.lists(offset, min_size=10, max_size=10))
    outputs = [draw.draw(offset) if common is None else common for _ in range(4)]
    data = _random(draw.draw(st.integers(0, 2**32 - 1)), 10, chunk_bytes)
    memory = np.full((14, chunk_bytes + 128), 0xA5, dtype=np.uint8)
    places = [slice(at, at + chunk_bytes) for at in [*inputs, *outputs]]
    chunks = [row[place] for row, place in zip(memory, places, strict=True)]
    for chunk, row in zip(chunks, data, strict=False):
        chunk[:] = row
    codec("rs-10-4", kernel=kernel).encode_into(chunks[:10], chunks[10:])
    expected = field.matmul(cauchy_generator(10, 4)[10:], data)
    assert all((made == row).all() for made, row in zip(chunks[10:], expected, strict=True))
    for row, place in zip(memory, places, strict=True):
        row[place] = 0xA5
    assert (memory == 0xA5).all()


@given(a=st.integers(0, 255), b=st.integers(0, 255), c=st.integers(0, 255))
def test_the_field_laws_hold(a: int, b: int, c: int) -> None:
    multiply = field.multiply
    assert multiply(a, b) == multiply(b, a) == _reference.multiply(a, b)
    assert multiply(a, multiply(b, c)) == multiply(multiply(a, b), c)
    assert multiply(a, b ^ c) == multiply(a, b) ^ multiply(a, c)
    assert multiply(a, 1) == a
    if a:
        assert multiply(a, field.inverse(a)) == 1


def _random(seed: int, count: int, chunk_bytes: int) -> Bytes:
    return np.random.default_rng(seed).integers(0, 256, (count, chunk_bytes), dtype=np.uint8)
