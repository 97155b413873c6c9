"""What a `MemoryStore` holds, and how bytes get in and out of it."""

import hashlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from exastore.gateway.encryption.streams import SealedBody
from exastore.gateway.store import (
    Body,
    BucketInfo,
    ByteRange,
    ObjectInfo,
    ObjectLock,
    ObjectPart,
    UploadInfo,
)

#: Bytes of one piece of a read.
_PIECE_BYTES = 256 * 1024


@dataclass(slots=True)
class HeldUpload:
    """An upload in progress."""

    info: UploadInfo
    parts: dict[int, tuple[ObjectPart, bytes]] = field(
        default_factory=dict[int, tuple[ObjectPart, bytes]]
    )


@dataclass(slots=True)
class HeldBucket:
    """A bucket and all in it."""

    info: BucketInfo
    #: The current versions that are no delete markers.
    objects: dict[str, tuple[ObjectInfo, bytes]] = field(
        default_factory=dict[str, tuple[ObjectInfo, bytes]]
    )
    #: All others of a key, newest first.
    others: dict[str, list[tuple[ObjectInfo, bytes]]] = field(
        default_factory=dict[str, list[tuple[ObjectInfo, bytes]]]
    )
    uploads: dict[str, HeldUpload] = field(default_factory=dict[str, HeldUpload])
    documents: dict[str, bytes] = field(default_factory=dict[str, bytes])
    #: Completed uploads, so that completing them again gets the same answer.
    completed: dict[str, ObjectInfo] = field(default_factory=dict[str, ObjectInfo])


class MemoryReader:
    """An open object: a snapshot."""

    def __init__(self, info: ObjectInfo, data: bytes) -> None:
        self._info = info
        self._data = data

    @property
    def info(self) -> ObjectInfo:
        return self._info

    async def read(self, byte_range: ByteRange | None = None) -> AsyncIterator[bytes | memoryview]:
        part = byte_range or ByteRange(0, len(self._data))
        data = memoryview(self._data)[part.start : part.start + part.length]
        for position in range(0, len(data), _PIECE_BYTES):
            yield data[position : position + _PIECE_BYTES]


def size_of(data: bytes, body: Body) -> int:
    """Bytes in the clear of what a body gave."""
    return body.plain_bytes if isinstance(body, SealedBody) else len(data)


def etag_of(data: bytes, body: Body) -> str:
    """The ETag of what a body gave."""
    if isinstance(body, SealedBody) and body.plain_md5 is not None:
        return body.plain_md5.hex()
    return md5_of(data)


async def read_all(body: Body) -> bytes:
    """All bytes of a body."""
    return b"".join([bytes(piece) async for piece in body])


def md5_of(data: bytes) -> str:
    """The MD5 in hex."""
    return hashlib.md5(data, usedforsecurity=False).hexdigest()


def common_prefix(key: str, prefix: str, delimiter: str) -> str:
    """The common prefix that a listing rolls a key up into; "": none."""
    end = key.find(delimiter, len(prefix)) if delimiter else -1
    return key[: end + len(delimiter)] if end >= 0 else ""


def is_locked(lock: ObjectLock, now_s: float, *, bypass: bool) -> bool:
    """Whether a version may not be deleted."""
    if lock.legal_hold:
        return True
    if not lock.mode or lock.retain_until_s <= now_s:
        return False
    return not (bypass and lock.mode == "GOVERNANCE")
