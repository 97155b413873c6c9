"""Range arithmetic: any range of striped bytes equals a slice of the bytes."""

from hypothesis import given
from hypothesis import strategies as st

from exastore.gateway.striping import ExtentIndex, chunk_bytes_for, chunk_slices


def stripe(data: bytes, k: int) -> tuple[int, list[bytes]]:
    """Chunk size and the k padded data chunks."""
    size = chunk_bytes_for(len(data), k)
    padded = data.ljust(size * k, b"\0")
    return size, [padded[index * size : (index + 1) * size] for index in range(k)]


@st.composite
def objects_with_ranges(draw: st.DrawFn) -> tuple[list[bytes], int, int]:
    sizes = draw(st.lists(st.integers(1, 700), max_size=6))
    position = 0
    extents: list[bytes] = []
    for size in sizes:
        extents.append(bytes((position + i) * 31 % 251 for i in range(size)))
        position += size
    start = draw(st.integers(0, position))
    return extents, start, draw(st.integers(0, position - start))


@given(objects_with_ranges(), st.integers(1, 12))
def test_any_range_is_a_slice(case: tuple[list[bytes], int, int], k: int) -> None:
    extents, start, length = case
    index = ExtentIndex([len(extent) for extent in extents])
    found = b""
    for part in index.slices(start, length):
        assert part.start < part.stop <= len(extents[part.extent_index])
        chunk_bytes, chunks = stripe(extents[part.extent_index], k)
        for piece in chunk_slices(part.start, part.stop, chunk_bytes):
            found += chunks[piece.chunk_index][piece.start : piece.stop]
    assert found == b"".join(extents)[start : start + length]


@given(st.integers(1, 1 << 40), st.integers(1, 255))
def test_chunks_hold_the_data_and_little_more(data_bytes: int, k: int) -> None:
    size = chunk_bytes_for(data_bytes, k)
    assert size % 64 == 0 and size >= 64
    assert size * k >= data_bytes
    assert size == 64 or (size - 64) * k < data_bytes


@given(st.integers(1, 1 << 20), st.integers(0, 1 << 24), st.integers(0, 1 << 16))
def test_chunk_slices_are_contiguous(chunk_bytes: int, start: int, length: int) -> None:
    if length // chunk_bytes > 1000:
        length = 1000 * chunk_bytes
    position = start
    for piece in chunk_slices(start, start + length, chunk_bytes):
        assert piece.chunk_index * chunk_bytes + piece.start == position
        assert 0 <= piece.start < piece.stop <= chunk_bytes
        position += piece.stop - piece.start
    assert position == start + length
