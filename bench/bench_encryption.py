"""Sealing and opening: what encryption adds to a streamed object, per MiB."""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Mapping

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from exastore.gateway.encryption.streams import OpenedReader, SealedBody
from exastore.gateway.store import ByteRange, ObjectInfo

MIB = 1 << 20
SIZE = 8 * MIB
PIECE = 64 * 1024
KEY = bytes(range(32))
DATA = hashlib.shake_128(b"bench").digest(SIZE)


class _Body:
    async def __aiter__(self) -> AsyncIterator[bytes]:
        for start in range(0, SIZE, PIECE):
            yield DATA[start : start + PIECE]

    def finish(self) -> Mapping[str, str]:
        return {}


class _Stored:
    info = ObjectInfo("b", "k", "v", SIZE, "", 0.0)

    def __init__(self, frames: bytes) -> None:
        self._frames = frames

    async def read(self, byte_range: ByteRange | None = None) -> AsyncIterator[bytes | memoryview]:
        assert byte_range is not None
        yield memoryview(self._frames)[byte_range.start : byte_range.start + byte_range.length]


async def _sealed(frames: list[bytes], *, plain_etag: bool) -> None:
    # Not as a result: asyncio makes a text of what a task returns, all 8 MiB of it.
    body = SealedBody(_Body(), KEY, plain_etag=plain_etag)
    frames[:] = [frame async for frame in body]


async def _opened(frames: bytes) -> int:
    return sum([len(piece) async for piece in OpenedReader(_Stored(frames), KEY).read()])


@pytest.mark.parametrize("kind", ["sse-c", "sse-s3-with-md5"])
def test_seal(benchmark: BenchmarkFixture, kind: str) -> None:
    plain_etag = kind == "sse-s3-with-md5"
    frames: list[bytes] = []
    benchmark(lambda: asyncio.run(_sealed(frames, plain_etag=plain_etag)))
    benchmark.extra_info["bytes"] = SIZE
    assert asyncio.run(_opened(b"".join(frames))) == SIZE


def test_open(benchmark: BenchmarkFixture) -> None:
    frames: list[bytes] = []
    asyncio.run(_sealed(frames, plain_etag=False))
    stored = b"".join(frames)
    assert benchmark(lambda: asyncio.run(_opened(stored))) == SIZE
    benchmark.extra_info["bytes"] = SIZE
