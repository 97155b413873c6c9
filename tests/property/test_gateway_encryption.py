"""Frames of sealed objects: sizes, ranges and part boundaries are exact; nothing else opens."""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Mapping

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from exastore.gateway.encryption.frames import (
    FRAME_BYTES,
    OVERHEAD_BYTES,
    SEALED_FRAME_BYTES,
    plain_size,
    sealed_size,
)
from exastore.gateway.encryption.streams import OpenedReader, SealedBody
from exastore.gateway.errors import SealBroken
from exastore.gateway.store import ByteRange, ObjectInfo, ObjectPart

KEY = bytes(range(32))
EDGES = (0, 1, FRAME_BYTES - 1, FRAME_BYTES, FRAME_BYTES + 1, 2 * FRAME_BYTES)
sizes = st.one_of(st.sampled_from(EDGES), st.integers(0, 3 * FRAME_BYTES))


def some_bytes(size: int, seed: int = 0) -> bytes:
    return hashlib.shake_128(bytes([seed])).digest(size)


class Pieces:
    """A body that arrives in pieces."""

    def __init__(self, data: bytes, piece_bytes: int) -> None:
        self._data = data
        self._piece_bytes = piece_bytes

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for start in range(0, len(self._data), self._piece_bytes):
            yield self._data[start : start + self._piece_bytes]

    def finish(self) -> Mapping[str, str]:
        return {"crc32": "of the plain bytes"}


class Stored:
    """A reader of what was stored; counts what is read."""

    def __init__(self, data: bytes, info: ObjectInfo, piece_bytes: int) -> None:
        self._data = data
        self._info = info
        self._piece_bytes = piece_bytes
        self.read_bytes = 0

    @property
    def info(self) -> ObjectInfo:
        return self._info

    async def read(self, byte_range: ByteRange | None = None) -> AsyncIterator[bytes | memoryview]:
        assert byte_range is not None
        data = self._data[byte_range.start : byte_range.start + byte_range.length]
        assert len(data) == byte_range.length, "within what is stored"
        self.read_bytes += len(data)
        for start in range(0, len(data), self._piece_bytes):
            yield data[start : start + self._piece_bytes]


async def sealed(data: bytes, number: int, piece_bytes: int) -> bytes:
    body = SealedBody(Pieces(data, piece_bytes), KEY, part_number=number)
    frames = b"".join([frame async for frame in body])
    assert body.finish() == {"crc32": "of the plain bytes"}
    assert body.plain_bytes == len(data)
    assert body.take_digests().md5.digest() == hashlib.md5(data).digest()
    return frames


async def read(stored: Stored, wanted: ByteRange | None) -> bytes:
    return b"".join([bytes(piece) async for piece in OpenedReader(stored, KEY).read(wanted)])


def info_of(size: int, parts: list[tuple[int, int]]) -> ObjectInfo:
    shown = [ObjectPart(number, part_bytes, "") for number, part_bytes in parts]
    return ObjectInfo("b", "k", "v", size, "", 0.0, parts=shown)


@given(st.integers(0, 1 << 43))
def test_a_size_comes_back_from_its_sealed_size(size: int) -> None:
    stored = sealed_size(size)
    assert plain_size(stored) == size
    assert stored - size == -(-size // FRAME_BYTES) * OVERHEAD_BYTES


@given(st.integers(0, 1 << 20))
def test_sizes_that_no_part_has_are_told(sealed_bytes: int) -> None:
    tail = sealed_bytes % SEALED_FRAME_BYTES
    if 0 < tail <= OVERHEAD_BYTES:
        with pytest.raises(SealBroken):
            plain_size(sealed_bytes)
    else:
        assert sealed_size(plain_size(sealed_bytes)) == sealed_bytes


@settings(deadline=None, max_examples=60)
@given(
    parts=st.lists(sizes, min_size=1, max_size=4),
    is_multipart=st.booleans(),
    piece_bytes=st.sampled_from([977, 65_536, 1 << 20]),
    cut=st.tuples(st.integers(0, 1 << 20), st.integers(1, 1 << 18)),
)
def test_every_range_of_every_object_comes_back(
    parts: list[int], is_multipart: bool, piece_bytes: int, cut: tuple[int, int]
) -> None:
    if not is_multipart:
        parts = parts[:1]
    numbers = [3 * place + 1 for place in range(len(parts))] if is_multipart else [0]
    data = [some_bytes(size, place) for place, size in enumerate(parts)]

    async def run() -> None:
        frames = [
            await sealed(plain, number, piece_bytes)
            for plain, number in zip(data, numbers, strict=True)
        ]
        assert [len(it) for it in frames] == [sealed_size(size) for size in parts]
        named = list(zip(numbers, parts, strict=True)) if is_multipart else []
        whole = b"".join(data)
        stored = Stored(b"".join(frames), info_of(len(whole), named), piece_bytes)
        assert await read(stored, None) == whole
        if not whole:
            return
        start = cut[0] % len(whole)
        wanted = ByteRange(start, min(cut[1], len(whole) - start))
        stored.read_bytes = 0
        assert await read(stored, wanted) == whole[start : start + wanted.length]
        # A frame at each end of each part that is touched, and what lies between.
        assert stored.read_bytes <= wanted.length * 1.001 + 2 * len(parts) * SEALED_FRAME_BYTES

    asyncio.run(run())


@settings(deadline=None, max_examples=40)
@given(
    size=st.integers(1, 2 * FRAME_BYTES),
    place=st.integers(0, 1 << 20),
    bit=st.integers(0, 7),
)
def test_a_flipped_bit_never_comes_back_as_data(size: int, place: int, bit: int) -> None:
    async def run() -> None:
        frames = bytearray(await sealed(some_bytes(size), 0, 65_536))
        frames[place % len(frames)] ^= 1 << bit
        with pytest.raises(SealBroken):
            await read(Stored(bytes(frames), info_of(size, []), 65_536), None)

    asyncio.run(run())


async def test_frames_cannot_change_places_or_objects_or_be_cut_off() -> None:
    data = some_bytes(3 * FRAME_BYTES)
    frames = await sealed(data, 0, 65_536)
    one, two, three = (
        frames[start : start + SEALED_FRAME_BYTES]
        for start in range(0, len(frames), SEALED_FRAME_BYTES)
    )
    other_part = await sealed(data, 1, 65_536)
    for wrong, size in (
        (two + one + three, len(data)),
        (one + two, 2 * FRAME_BYTES),
        (other_part, len(data)),
    ):
        with pytest.raises(SealBroken):
            await read(Stored(wrong, info_of(size, []), 65_536), None)
