"""The contract between the S3 front, `exastore.gateway.s3`, and the data path.

The S3 layer knows HTTP, XML and signatures; the store behind this contract knows metadata servers,
stripes and storage nodes. Values are plain, so a test can put a dictionary behind the S3 layer.
"""

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import NamedTuple, Protocol


@dataclass(frozen=True, slots=True)
class BucketInfo:
    """A bucket."""

    name: str
    created_s: float
    owner: str


@dataclass(frozen=True, slots=True)
class Encryption:
    """How the bytes of an object are sealed: see `exastore.gateway.encryption`."""

    algorithm: str
    wrapped_key: bytes
    """The data key, wrapped."""
    customer_key_md5: str = ""
    """Of the client's key that wrapped it, in base64; empty: the master key did."""


@dataclass(frozen=True, slots=True)
class ObjectAttributes:
    """What a client says about an object besides its bytes."""

    content_type: str = "binary/octet-stream"
    headers: Mapping[str, str] = field(default_factory=dict[str, str])
    """Cache-Control, Content-Disposition, Content-Encoding, Content-Language, Expires, as given."""
    user_metadata: Mapping[str, str] = field(default_factory=dict[str, str])
    """x-amz-meta-*: lower-case names without the prefix."""
    encryption: Encryption | None = None
    """Of sealed bytes. All sizes are in the clear, but `ObjectReader.read` gives what is stored."""


@dataclass(frozen=True, slots=True)
class ObjectPart:
    """A part of a multipart upload or object."""

    number: int
    size_bytes: int
    etag: str
    modified_s: float = 0.0
    checksums: Mapping[str, str] = field(default_factory=dict[str, str])
    """As in `ObjectInfo`, of this part alone."""


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """A committed object, without its bytes."""

    bucket: str
    key: str
    version_id: str
    size_bytes: int
    etag: str
    """Bare: without quotes."""
    modified_s: float
    attributes: ObjectAttributes = field(default_factory=ObjectAttributes)
    checksums: Mapping[str, str] = field(default_factory=dict[str, str])
    """Algorithm in lower case ("crc32") -> base64, as S3 shows it."""
    parts: Sequence[ObjectPart] = ()


@dataclass(frozen=True, slots=True)
class Precondition:
    """When a write may replace what is there."""

    must_not_exist: bool = False
    if_match: str | None = None


@dataclass(frozen=True, slots=True)
class ByteRange:
    """`length` bytes from `start`, already clipped to the object's size."""

    start: int
    length: int


@dataclass(frozen=True, slots=True)
class UploadInfo:
    """A multipart upload in progress."""

    bucket: str
    key: str
    upload_id: str
    initiated_s: float
    attributes: ObjectAttributes = field(default_factory=ObjectAttributes)


@dataclass(frozen=True, slots=True)
class Listing:
    """A page of a bucket listing, in the byte order of UTF-8 keys."""

    objects: Sequence[ObjectInfo]
    common_prefixes: Sequence[str]
    truncated: bool
    next_start_after: str


class Body(Protocol):
    """The bytes of a PUT as they arrive, free of transfer framing.

    `finish()` is called by the store after the last byte and before the commit: it raises when the
    bytes received are not those the client promised (length, signatures, MD5, SHA-256, checksums),
    and returns the checksums to be stored.
    """

    def __aiter__(self) -> AsyncIterator[bytes | bytearray | memoryview]: ...

    def finish(self) -> Mapping[str, str]: ...


class Hash(Protocol):
    """A running digest or checksum."""

    def update(self, data: bytes | memoryview, /) -> None: ...
    def digest(self) -> bytes: ...


class BodyDigests(NamedTuple):
    """What is to be computed of a body: `md5` is its ETag, too."""

    md5: Hash
    others: tuple[Hash, ...]


class DigestedBody(Body, Protocol):
    """A body that may leave its digests to the store: once, in threads, over large pieces."""

    def take_digests(self) -> BodyDigests:
        """To be called before iteration; then all bytes go in, in order, before `finish()`."""
        ...


class ObjectReader(Protocol):
    """An open object: its description, and its bytes on demand."""

    @property
    def info(self) -> ObjectInfo: ...

    def read(self, byte_range: ByteRange | None = None) -> AsyncIterator[bytes | memoryview]:
        """The bytes asked for, in order. Never wrong data: an unreadable stripe raises."""
        ...


#: Of an object whose parts have none in common.
NO_CHECKSUMS: Mapping[str, str] = MappingProxyType({})


class ObjectStore(Protocol):
    """Errors are those of `exastore.gateway.errors`."""

    async def create_bucket(self, name: str, *, owner: str, location: str = "") -> BucketInfo: ...
    async def get_bucket(self, name: str) -> BucketInfo: ...
    async def delete_bucket(self, name: str) -> None: ...
    async def list_buckets(self) -> Sequence[BucketInfo]: ...

    async def get_bucket_document(self, bucket: str, name: str) -> bytes | None:
        """A document of a bucket, "policy" for one; None: there is none. It may be a little old."""
        ...

    async def put_bucket_document(self, bucket: str, name: str, content: bytes) -> None:
        """Write or replace a document of at most 64 KiB."""
        ...

    async def delete_bucket_document(self, bucket: str, name: str) -> None: ...

    async def put_object(
        self,
        bucket: str,
        key: str,
        body: Body,
        attributes: ObjectAttributes,
        precondition: Precondition,
    ) -> ObjectInfo: ...
    async def open_object(self, bucket: str, key: str) -> ObjectReader: ...
    async def head_object(self, bucket: str, key: str) -> ObjectInfo: ...
    async def delete_objects(self, bucket: str, keys: Sequence[str]) -> Sequence[bool]:
        """Delete up to 1,000 keys; true where there was one."""
        ...

    async def copy_object(
        self,
        source: tuple[str, str],
        target: tuple[str, str],
        attributes: ObjectAttributes | None,
        precondition: Precondition,
    ) -> ObjectInfo:
        """Copy (bucket, key) `source` to `target`; `attributes` of None keeps the source's."""
        ...

    async def list_objects(
        self, bucket: str, *, prefix: str, delimiter: str, start_after: str, max_keys: int
    ) -> Listing: ...

    async def create_upload(
        self, bucket: str, key: str, attributes: ObjectAttributes
    ) -> UploadInfo: ...
    async def put_part(
        self, bucket: str, key: str, upload_id: str, number: int, body: Body
    ) -> ObjectPart: ...
    async def complete_upload(
        self,
        bucket: str,
        key: str,
        upload_id: str,
        parts: Sequence[tuple[int, str]],
        precondition: Precondition,
        checksums: Mapping[str, str] = NO_CHECKSUMS,
    ) -> ObjectInfo:
        """`parts` are (number, ETag) in the order the client gave; `checksums` of all together."""
        ...

    async def abort_upload(self, bucket: str, key: str, upload_id: str) -> None: ...
    async def list_parts(
        self, bucket: str, key: str, upload_id: str, *, after_number: int, max_parts: int
    ) -> tuple[UploadInfo, Sequence[ObjectPart], bool]: ...
    async def list_uploads(self, bucket: str, *, prefix: str) -> Sequence[UploadInfo]: ...
