"""The frames of a sealed object or part, and the arithmetic of their sizes. Pure.

A frame is

    nonce (12) | ciphertext (1 to 65,536) | tag (16)

and every frame but the last of a part is full. The tag covers the number of the part, the index of
the frame within it and whether it is the last, so frames cannot be exchanged, left out or cut off.
A part without bytes has no frames. Nonces are random; an object of 5 TiB draws fewer than 2^27 with
its data key, so that two are equal with a probability below 2^-42 (birthday bound, NIST SP 800-38D
section 8.3).
"""

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from exastore.gateway.errors import SealBroken
from exastore.gateway.store import ByteRange

FRAME_BYTES = 64 * 1024
NONCE_BYTES = 12
TAG_BYTES = 16
OVERHEAD_BYTES = NONCE_BYTES + TAG_BYTES
SEALED_FRAME_BYTES = FRAME_BYTES + OVERHEAD_BYTES


def frame_count(plain_bytes: int) -> int:
    """How many frames hold so many bytes."""
    return -(-plain_bytes // FRAME_BYTES)


def sealed_size(plain_bytes: int) -> int:
    """Bytes that a part of so many bytes takes when sealed."""
    return plain_bytes + frame_count(plain_bytes) * OVERHEAD_BYTES


def plain_size(sealed_bytes: int) -> int:
    """The inverse of `sealed_size`.

    Raises:
        SealBroken: No part has that size when sealed.
    """
    count = -(-sealed_bytes // SEALED_FRAME_BYTES)
    plain_bytes = sealed_bytes - count * OVERHEAD_BYTES
    if plain_bytes < 0 or sealed_size(plain_bytes) != sealed_bytes:
        raise SealBroken(f"{sealed_bytes} bytes are no whole frames")
    return plain_bytes


def frames_of(wanted: ByteRange, plain_bytes: int) -> tuple[int, ByteRange]:
    """The index of the first frame that holds `wanted`, and the range of all those frames, sealed.

    Args:
        wanted: At least one byte, within the part.
        plain_bytes: Size of the part.
    """
    first = wanted.start // FRAME_BYTES
    last = (wanted.start + wanted.length - 1) // FRAME_BYTES
    start = first * SEALED_FRAME_BYTES
    end = min((last + 1) * SEALED_FRAME_BYTES, sealed_size(plain_bytes))
    return first, ByteRange(start, end - start)


def _position(part_number: int, index: int, *, is_last: bool) -> bytes:
    return part_number.to_bytes(4, "big") + index.to_bytes(8, "big") + bytes([is_last])


def seal_frame(
    cipher: AESGCM,
    plain: bytes | bytearray | memoryview,
    nonce: bytes,
    part_number: int,
    index: int,
    *,
    is_last: bool,
) -> bytes:
    """Seal one frame.

    Args:
        plain: 1 to FRAME_BYTES bytes; fewer than that only in the last frame.
        nonce: NONCE_BYTES that were never used with this key.
    """
    assert 0 < len(plain) <= FRAME_BYTES
    return nonce + cipher.encrypt(nonce, plain, _position(part_number, index, is_last=is_last))


def open_frame(
    cipher: AESGCM, frame: bytes | memoryview, part_number: int, index: int, *, is_last: bool
) -> bytes:
    """The bytes of a frame.

    Raises:
        SealBroken: It is damaged, or another frame.
    """
    nonce, sealed = bytes(frame[:NONCE_BYTES]), frame[NONCE_BYTES:]
    try:
        return cipher.decrypt(nonce, sealed, _position(part_number, index, is_last=is_last))
    except (InvalidTag, ValueError):
        raise SealBroken(f"frame {index} of part {part_number} does not open") from None
