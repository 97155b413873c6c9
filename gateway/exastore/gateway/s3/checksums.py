"""The checksums S3 knows, computed as bytes pass."""

import base64
import binascii
import hashlib
from collections.abc import Callable, Sequence
from typing import Protocol, cast

from awscrt import checksums as crt

#: Bytes of each algorithm's digest; the names are S3's, in lower case.
DIGEST_BYTES = {
    "crc32": 4,
    "crc32c": 4,
    "crc64nvme": 8,
    "sha1": 20,
    "sha256": 32,
    "sha512": 64,
    "md5": 16,
    "xxhash64": 8,
    "xxhash3": 8,
    "xxhash128": 16,
}

#: Computed and stored when the client names no algorithm, as AWS does.
DEFAULT_ALGORITHM = "crc64nvme"


class Checksum(Protocol):
    """A running checksum."""

    def update(self, data: bytes | memoryview, /) -> None: ...
    def digest(self) -> bytes: ...


class _Crc:
    """A CRC; `function(data, previous)` continues one."""

    def __init__(self, function: Callable[[bytes, int], int], digest_bytes: int) -> None:
        self._function = function
        self._digest_bytes = digest_bytes
        self._value = 0

    def update(self, data: bytes | memoryview, /) -> None:
        # The library says bytes and takes any buffer.
        self._value = self._function(cast(bytes, data), self._value)

    def digest(self) -> bytes:
        return self._value.to_bytes(self._digest_bytes, "big")


class _XxHash:
    """One of the XXHash family."""

    def __init__(self, running: crt.XXHash) -> None:
        self._running = running

    def update(self, data: bytes | memoryview, /) -> None:
        # The library takes nothing else.
        self._running.update(data if isinstance(data, bytes) else bytes(data))

    def digest(self) -> bytes:
        digest: bytes = self._running.finalize()
        return digest


def new_checksum(algorithm: str) -> Checksum:
    """A fresh checksum of one of the algorithms in `DIGEST_BYTES`."""
    match algorithm:
        case "crc32":
            return _Crc(crt.crc32, 4)
        case "crc32c":
            return _Crc(crt.crc32c, 4)
        case "crc64nvme":
            return _Crc(crt.crc64nvme, 8)
        case "sha1":
            return hashlib.sha1(usedforsecurity=False)
        case "sha256":
            return hashlib.sha256()
        case "sha512":
            return hashlib.sha512()
        case "md5":
            return hashlib.md5(usedforsecurity=False)
        case "xxhash64":
            return _XxHash(crt.XXHash.new_xxhash64())
        case "xxhash3":
            return _XxHash(crt.XXHash.new_xxhash3_64())
        case "xxhash128":
            return _XxHash(crt.XXHash.new_xxhash3_128())
        case _:
            raise KeyError(algorithm)


#: Combine the CRCs of two runs of bytes; the third argument is the length of the second run.
_COMBINE: dict[str, Callable[[int, int, int], int]] = {
    "crc32": crt.combine_crc32,
    "crc32c": crt.combine_crc32c,
    "crc64nvme": crt.combine_crc64nvme,
}


def is_combinable(algorithm: str) -> bool:
    """Whether the digest of a whole object comes out of those of its parts."""
    return algorithm in _COMBINE


def full_digest(algorithm: str, parts: Sequence[tuple[bytes, int]]) -> bytes | None:
    """The digest of a whole object from the (digest, bytes) of its parts, without its data.

    None for an algorithm whose digests cannot be combined: the hashes.
    """
    combine = _COMBINE.get(algorithm)
    if combine is None:
        return None
    value = 0
    for digest, size_bytes in parts:
        value = combine(value, int.from_bytes(digest, "big"), size_bytes)
    return value.to_bytes(DIGEST_BYTES[algorithm], "big")


def composite_digest(algorithm: str, parts: Sequence[tuple[bytes, int]]) -> bytes:
    """The digest of the parts' digests, which S3 shows followed by "-" and their number."""
    running = new_checksum(algorithm)
    for digest, _ in parts:
        running.update(digest)
    return running.digest()


def decode_digest(text: str, digest_bytes: int) -> bytes | None:
    """The digest within base64 text; None when it is not one of `digest_bytes` bytes."""
    try:
        digest = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return None
    return digest if len(digest) == digest_bytes else None


def encode_digest(digest: bytes) -> str:
    """A digest as S3 shows it."""
    return base64.b64encode(digest).decode()
