"""An object store in a dictionary: what `ObjectStore` promises, without a cluster."""

import hashlib
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import count

from exastore.gateway.encryption.streams import SealedBody
from exastore.gateway.errors import RequestError
from exastore.gateway.store import (
    NO_CHECKSUMS,
    Body,
    BucketInfo,
    ByteRange,
    Listing,
    ObjectAttributes,
    ObjectInfo,
    ObjectPart,
    Precondition,
    UploadInfo,
)

#: Bytes of one piece of a read.
_PIECE_BYTES = 256 * 1024


@dataclass(slots=True)
class _Upload:
    info: UploadInfo
    parts: dict[int, tuple[ObjectPart, bytes]] = field(
        default_factory=dict[int, tuple[ObjectPart, bytes]]
    )


@dataclass(slots=True)
class _Bucket:
    info: BucketInfo
    objects: dict[str, tuple[ObjectInfo, bytes]] = field(
        default_factory=dict[str, tuple[ObjectInfo, bytes]]
    )
    uploads: dict[str, _Upload] = field(default_factory=dict[str, _Upload])
    documents: dict[str, bytes] = field(default_factory=dict[str, bytes])


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


class MemoryStore:
    """Implements `ObjectStore`."""

    def __init__(self, now_s: Callable[[], float], *, min_part_bytes: int = 5 << 20) -> None:
        self._now_s = now_s
        self._min_part_bytes = min_part_bytes
        self._ids = count(1)
        self._buckets: dict[str, _Bucket] = {}

    async def create_bucket(self, name: str, *, owner: str, location: str = "") -> BucketInfo:
        if name in self._buckets and self._buckets[name].info.owner != owner:
            raise RequestError("BucketAlreadyExists", "The bucket belongs to another.")
        if name in self._buckets:
            raise RequestError("BucketAlreadyOwnedByYou", "You own this bucket already.")
        info = BucketInfo(name, self._now_s(), owner, location)
        self._buckets[name] = _Bucket(info)
        return info

    async def get_bucket(self, name: str) -> BucketInfo:
        return self._bucket(name).info

    async def delete_bucket(self, name: str) -> None:
        if self._bucket(name).objects:
            raise RequestError("BucketNotEmpty", "The bucket is not empty.")
        del self._buckets[name]

    async def list_buckets(self) -> Sequence[BucketInfo]:
        return [bucket.info for _, bucket in sorted(self._buckets.items())]

    async def get_bucket_document(self, bucket: str, name: str) -> bytes | None:
        return self._bucket(bucket).documents.get(name)

    async def put_bucket_document(self, bucket: str, name: str, content: bytes) -> None:
        self._bucket(bucket).documents[name] = content

    async def delete_bucket_document(self, bucket: str, name: str) -> None:
        self._bucket(bucket).documents.pop(name, None)

    async def put_object(
        self,
        bucket: str,
        key: str,
        body: Body,
        attributes: ObjectAttributes,
        precondition: Precondition,
    ) -> ObjectInfo:
        self._bucket(bucket)
        data = await _read_all(body)
        checksums = body.finish()
        info = ObjectInfo(
            bucket,
            key,
            f"v{next(self._ids)}",
            _size(data, body),
            _etag(data, body),
            self._now_s(),
            attributes,
            checksums,
        )
        return self._commit(info, data, precondition)

    async def open_object(self, bucket: str, key: str) -> MemoryReader:
        return MemoryReader(*self._object(bucket, key))

    async def head_object(self, bucket: str, key: str) -> ObjectInfo:
        return self._object(bucket, key)[0]

    async def delete_objects(self, bucket: str, keys: Sequence[str]) -> Sequence[bool]:
        objects = self._bucket(bucket).objects
        return [objects.pop(key, None) is not None for key in keys]

    async def copy_object(
        self,
        source: tuple[str, str],
        target: tuple[str, str],
        attributes: ObjectAttributes | None,
        precondition: Precondition,
    ) -> ObjectInfo:
        info, data = self._object(*source)
        copy = replace(
            info,
            bucket=target[0],
            key=target[1],
            version_id=f"v{next(self._ids)}",
            modified_s=self._now_s(),
            attributes=info.attributes if attributes is None else attributes,
        )
        return self._commit(copy, data, precondition)

    async def list_objects(
        self, bucket: str, *, prefix: str, delimiter: str, start_after: str, max_keys: int
    ) -> Listing:
        objects = self._bucket(bucket).objects
        found: list[ObjectInfo] = []
        prefixes: dict[str, None] = {}
        last = ""
        for key in sorted(objects, key=str.encode):
            if not key.startswith(prefix) or key.encode() <= start_after.encode():
                continue
            end = key.find(delimiter, len(prefix)) if delimiter else -1
            common = key[: end + len(delimiter)] if end >= 0 else ""
            if common and (common in prefixes or common == start_after):
                continue
            if len(found) + len(prefixes) == max_keys:
                return Listing(found, list(prefixes), True, last)
            last = common or key
            if common:
                prefixes[common] = None
            else:
                found.append(objects[key][0])
        return Listing(found, list(prefixes), False, "")

    async def create_upload(
        self, bucket: str, key: str, attributes: ObjectAttributes
    ) -> UploadInfo:
        info = UploadInfo(bucket, key, f"u{next(self._ids)}", self._now_s(), attributes)
        self._bucket(bucket).uploads[info.upload_id] = _Upload(info)
        return info

    async def put_part(
        self, bucket: str, key: str, upload_id: str, number: int, body: Body
    ) -> ObjectPart:
        upload = self._upload(bucket, key, upload_id)
        data = await _read_all(body)
        checksums = body.finish()
        part = ObjectPart(number, _size(data, body), _etag(data, body), self._now_s(), checksums)
        upload.parts[number] = (part, data)
        return part

    async def complete_upload(
        self,
        bucket: str,
        key: str,
        upload_id: str,
        parts: Sequence[tuple[int, str]],
        precondition: Precondition,
        checksums: Mapping[str, str] = NO_CHECKSUMS,
    ) -> ObjectInfo:
        upload = self._upload(bucket, key, upload_id)
        chosen: list[tuple[ObjectPart, bytes]] = []
        for number, etag in parts:
            stored = upload.parts.get(number)
            if stored is None or stored[0].etag != etag:
                raise RequestError("InvalidPart", f"There is no part {number} with that ETag.")
            chosen.append(stored)
        if any(part.size_bytes < self._min_part_bytes for part, _ in chosen[:-1]):
            raise RequestError("EntityTooSmall", "A part but the last is too small.")
        digests = b"".join(bytes.fromhex(part.etag) for part, _ in chosen)
        data = b"".join(data for _, data in chosen)
        info = ObjectInfo(
            bucket,
            key,
            f"v{next(self._ids)}",
            sum(part.size_bytes for part, _ in chosen),
            f"{_md5(digests)}-{len(chosen)}",
            self._now_s(),
            upload.info.attributes,
            checksums,
            parts=[part for part, _ in chosen],
        )
        self._commit(info, data, precondition)
        del self._bucket(bucket).uploads[upload_id]
        return info

    async def abort_upload(self, bucket: str, key: str, upload_id: str) -> None:
        self._upload(bucket, key, upload_id)
        del self._bucket(bucket).uploads[upload_id]

    async def list_parts(
        self, bucket: str, key: str, upload_id: str, *, after_number: int, max_parts: int
    ) -> tuple[UploadInfo, Sequence[ObjectPart], bool]:
        upload = self._upload(bucket, key, upload_id)
        numbers = sorted(number for number in upload.parts if number > after_number)
        parts = [upload.parts[number][0] for number in numbers[:max_parts]]
        return upload.info, parts, len(numbers) > max_parts

    async def list_uploads(self, bucket: str, *, prefix: str) -> Sequence[UploadInfo]:
        uploads = self._bucket(bucket).uploads.values()
        return [upload.info for upload in uploads if upload.info.key.startswith(prefix)]

    def stored_bytes(self, bucket: str, key: str) -> bytes:
        """What lies in the store: of a sealed object, its frames."""
        return self._object(bucket, key)[1]

    def damage(self, bucket: str, key: str, position: int) -> None:
        """Change one stored byte."""
        info, data = self._object(bucket, key)
        changed = data[:position] + bytes([data[position] ^ 1]) + data[position + 1 :]
        self._bucket(bucket).objects[key] = (info, changed)

    def _bucket(self, name: str) -> _Bucket:
        try:
            return self._buckets[name]
        except KeyError:
            raise RequestError("NoSuchBucket", "The specified bucket does not exist") from None

    def _object(self, bucket: str, key: str) -> tuple[ObjectInfo, bytes]:
        try:
            return self._bucket(bucket).objects[key]
        except KeyError:
            raise RequestError("NoSuchKey", "The specified key does not exist.") from None

    def _upload(self, bucket: str, key: str, upload_id: str) -> _Upload:
        upload = self._bucket(bucket).uploads.get(upload_id)
        if upload is None or upload.info.key != key:
            raise RequestError("NoSuchUpload", "The specified upload does not exist.")
        return upload

    def _commit(self, info: ObjectInfo, data: bytes, precondition: Precondition) -> ObjectInfo:
        objects = self._bucket(info.bucket).objects
        present = objects.get(info.key)
        if precondition.must_not_exist and present is not None:
            raise RequestError("PreconditionFailed", "The object exists.")
        if precondition.if_match is not None:
            if present is None:
                raise RequestError("NoSuchKey", "The specified key does not exist.")
            if present[0].etag != precondition.if_match:
                raise RequestError("PreconditionFailed", "The object has another ETag.")
        objects[info.key] = (info, data)
        return info


def _size(data: bytes, body: Body) -> int:
    return body.plain_bytes if isinstance(body, SealedBody) else len(data)


def _etag(data: bytes, body: Body) -> str:
    if isinstance(body, SealedBody) and body.plain_md5 is not None:
        return body.plain_md5.hex()
    return _md5(data)


async def _read_all(body: Body) -> bytes:
    return b"".join([bytes(piece) async for piece in body])


def _md5(data: bytes) -> str:
    return hashlib.md5(data, usedforsecurity=False).hexdigest()
