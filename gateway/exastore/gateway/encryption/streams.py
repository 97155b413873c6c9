"""Sealing a body on its way in, opening an object on its way out: the data path sees neither."""

import hashlib
import os
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from exastore.gateway.encryption.frames import (
    FRAME_BYTES,
    NONCE_BYTES,
    SEALED_FRAME_BYTES,
    frame_count,
    frames_of,
    open_frame,
    seal_frame,
    sealed_size,
)
from exastore.gateway.errors import SealBroken
from exastore.gateway.store import (
    Body,
    BodyDigests,
    ByteRange,
    Hash,
    ObjectInfo,
    ObjectReader,
)


class _PlainMd5:
    """The MD5 of what was sealed, in place of that of the ciphertext."""

    def __init__(self) -> None:
        self.plain = hashlib.md5(usedforsecurity=False)

    def update(self, data: bytes | memoryview, /) -> None:
        """Ignore ciphertext."""

    def digest(self) -> bytes:
        return self.plain.digest()


class SealedBody:
    """A body as its frames. The promises of the body within hold for what was sealed."""

    def __init__(
        self,
        body: Body,
        data_key: bytes,
        *,
        part_number: int = 0,
        plain_etag: bool = True,
        new_nonce: Callable[[int], bytes] = os.urandom,
    ) -> None:
        """Args:
        part_number: Of a multipart upload; 0 for a plain object.
        plain_etag: Whether the ETag is the MD5 of what was sealed; else it is that of the frames.
        new_nonce: Gives so many random bytes.
        """
        self._body = body
        self._cipher = AESGCM(data_key)
        self._part_number = part_number
        self._md5 = _PlainMd5() if plain_etag else None
        self._new_nonce = new_nonce
        #: Bytes that were sealed so far.
        self.plain_bytes = 0

    @property
    def plain_md5(self) -> bytes | None:
        """Of what was sealed so far; None when the ETag is another."""
        return None if self._md5 is None else self._md5.digest()

    def take_digests(self) -> BodyDigests:
        """See `DigestedBody`."""
        md5: Hash = self._md5 or hashlib.md5(usedforsecurity=False)
        return BodyDigests(md5, ())

    async def __aiter__(self) -> AsyncIterator[bytes]:
        # A full frame waits for the next byte: only then it is known not to be the last.
        held, index = bytearray(), 0
        async for piece in self._body:
            if self._md5 is not None:
                self._md5.plain.update(piece)
            self.plain_bytes += len(piece)
            held += piece
            while len(held) > FRAME_BYTES:
                yield self._seal(held[:FRAME_BYTES], index, is_last=False)
                del held[:FRAME_BYTES]
                index += 1
        if held:
            yield self._seal(held, index, is_last=True)

    def _seal(self, plain: bytearray, index: int, *, is_last: bool) -> bytes:
        nonce = self._new_nonce(NONCE_BYTES)
        return seal_frame(self._cipher, plain, nonce, self._part_number, index, is_last=is_last)

    def finish(self) -> Mapping[str, str]:
        """Check the promises; returns checksums of what was sealed."""
        return self._body.finish()


class OpenedReader:
    """An open object, read in the clear."""

    def __init__(self, reader: ObjectReader, data_key: bytes) -> None:
        self._reader = reader
        self._cipher = AESGCM(data_key)

    @property
    def info(self) -> ObjectInfo:
        return self._reader.info

    async def read(self, byte_range: ByteRange | None = None) -> AsyncIterator[bytes | memoryview]:
        """The bytes asked for, in order; reads the frames that hold them and no more."""
        wanted = byte_range or ByteRange(0, self.info.size_bytes)
        end = wanted.start + wanted.length
        plain_start, sealed_start = 0, 0
        for number, plain_bytes in _parts(self.info):
            first = max(wanted.start, plain_start)
            last = min(end, plain_start + plain_bytes)
            if first < last:
                inner = ByteRange(first - plain_start, last - first)
                async for piece in self._read_part(number, plain_bytes, sealed_start, inner):
                    yield piece
            plain_start += plain_bytes
            sealed_start += sealed_size(plain_bytes)

    async def _read_part(
        self, number: int, plain_bytes: int, sealed_start: int, wanted: ByteRange
    ) -> AsyncIterator[memoryview]:
        index, sealed = frames_of(wanted, plain_bytes)
        last_index = frame_count(plain_bytes) - 1
        skip, left = wanted.start - index * FRAME_BYTES, wanted.length
        held = bytearray()
        pieces = self._reader.read(ByteRange(sealed_start + sealed.start, sealed.length))
        try:
            async for piece in pieces:
                held += piece
                while held and (len(held) >= SEALED_FRAME_BYTES or index == last_index):
                    size = min(SEALED_FRAME_BYTES, sealed_size(plain_bytes - index * FRAME_BYTES))
                    if len(held) < size:
                        break
                    frame = bytes(held[:size])
                    del held[:size]
                    plain = open_frame(
                        self._cipher, frame, number, index, is_last=index == last_index
                    )
                    shown = memoryview(plain)[skip : skip + left]
                    skip, index, left = 0, index + 1, left - len(shown)
                    yield shown
        finally:
            if isinstance(pieces, AsyncGenerator):
                await pieces.aclose()
        if left or held:
            raise SealBroken("the stored bytes end within a frame")


def _parts(info: ObjectInfo) -> Sequence[tuple[int, int]]:
    """Number and size of each sealed part."""
    if not info.parts:
        return [(0, info.size_bytes)]
    return [(part.number, part.size_bytes) for part in info.parts]
