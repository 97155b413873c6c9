"""The contract between the S3 front, `exastore.gateway.s3`, and the data path.

The S3 layer knows HTTP, XML and signatures; the store behind this contract knows metadata servers,
stripes and storage nodes. Values are plain, so a test can put a dictionary behind the S3 layer.
"""

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import NamedTuple, Protocol


@dataclass(frozen=True, slots=True)
class BucketLock:
    """Object lock of a bucket, and how new versions are locked that say nothing themselves."""

    mode: str = ""
    """GOVERNANCE or COMPLIANCE; "": such versions are not locked."""
    days: int = 0
    years: int = 0


@dataclass(frozen=True, slots=True)
class LifecycleRule:
    """A rule for keys with `prefix` that have all the tags and a size within the bounds."""

    id: str
    disabled: bool = False
    prefix: str = ""
    legacy_prefix: bool = False
    """Whether the prefix was given outside a filter: how it is shown again."""
    tags: Mapping[str, str] = field(default_factory=dict[str, str])
    larger_than_bytes: int | None = None
    """Exclusive; None: no bound."""
    smaller_than_bytes: int = 0
    """Exclusive; 0: no bound. The same for what follows: 0 is never."""
    expire_days: int = 0
    expire_at_s: float = 0.0
    noncurrent_days: int = 0
    newer_noncurrent_count: int = 0
    abort_upload_days: int = 0
    drop_lone_markers: bool = False


@dataclass(frozen=True, slots=True)
class BucketInfo:
    """A bucket."""

    name: str
    created_s: float
    owner: str
    versioning: str = ""
    """Enabled, Suspended; "": never enabled."""
    lock: BucketLock | None = None
    """None: without object lock."""
    lifecycle: Sequence[LifecycleRule] = ()
    region: str = ""
    """Where it was asked to be."""


@dataclass(frozen=True, slots=True)
class BucketChange:
    """Settings of a bucket; what is None stays as it is."""

    versioning: str | None = None
    lock: BucketLock | None = None
    lifecycle: Sequence[LifecycleRule] | None = None


@dataclass(frozen=True, slots=True)
class ObjectLock:
    """What keeps a version from being deleted."""

    mode: str = ""
    """GOVERNANCE or COMPLIANCE; "": no retention."""
    retain_until_s: float = 0.0
    legal_hold: bool = False


#: How clients name the version that was written without versioning.
NULL_VERSION = "null"

#: Of a version that may be deleted.
NO_LOCK = ObjectLock()


@dataclass(frozen=True, slots=True)
class AccessList:
    """The access control list of an object."""

    owner: str
    """The tenant whose object it is."""
    grants: tuple[tuple[str, str], ...] = ()
    """Beside the owner's full control: (tenant or group's URI, permission)."""


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
    tags: Mapping[str, str] = field(default_factory=dict[str, str])
    lock: ObjectLock = NO_LOCK
    acl: AccessList | None = None
    """None: it is its bucket's owner's alone."""
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
    is_versioned: bool = False
    """Whether the bucket has, or had, versioning; then `version_id` is what clients see."""
    delete_marker: bool = False
    is_latest: bool = False
    """In listings of versions."""
    expires_s: float = 0.0
    """When lifecycle deletes the current version; 0: it does not."""
    expiry_rule_id: str = ""


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
class UploadChecksum:
    """Which checksum the parts of an upload come with, and which the object gets."""

    algorithm: str = ""
    """In lower case; "": any."""
    type: str = ""
    """COMPOSITE or FULL_OBJECT; "": no algorithm was named."""


#: Of an upload that was begun without naming one.
NO_UPLOAD_CHECKSUM = UploadChecksum()


@dataclass(frozen=True, slots=True)
class UploadInfo:
    """A multipart upload in progress."""

    bucket: str
    key: str
    upload_id: str
    initiated_s: float
    attributes: ObjectAttributes = field(default_factory=ObjectAttributes)
    checksum: UploadChecksum = NO_UPLOAD_CHECKSUM


@dataclass(frozen=True, slots=True)
class Deletion:
    """What is to be deleted."""

    key: str
    version_id: str = ""
    """"": the current version, or with versioning, a delete marker hides it."""
    if_match: str = ""
    """An ETag; "": no condition."""


@dataclass(frozen=True, slots=True)
class Deleted:
    """What became of a `Deletion`."""

    existed: bool
    delete_marker: bool = False
    """A marker was made, or the version deleted was one."""
    version_id: str = ""
    """Of the marker made, or of the version deleted."""
    refused: str = ""
    """S3's code, when it was not deleted."""


@dataclass(frozen=True, slots=True)
class VersionListing:
    """A page of versions and delete markers: by key, newest first."""

    versions: Sequence[ObjectInfo]
    common_prefixes: Sequence[str]
    truncated: bool
    next_key_marker: str
    next_version_id_marker: str


@dataclass(frozen=True, slots=True)
class UploadListing:
    """A page of uploads in progress: by key and upload id."""

    uploads: Sequence[UploadInfo]
    common_prefixes: Sequence[str]
    truncated: bool
    next_key_marker: str
    next_upload_id_marker: str


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

    async def create_bucket(
        self, name: str, *, owner: str, location: str = "", object_lock: bool = False
    ) -> BucketInfo: ...
    async def configure_bucket(self, name: str, change: BucketChange) -> BucketInfo: ...
    async def get_bucket(self, name: str) -> BucketInfo: ...
    async def delete_bucket(self, name: str) -> None: ...
    async def list_buckets(self) -> Sequence[BucketInfo]: ...

    async def get_bucket_document(self, bucket: str, name: str) -> bytes | None:
        """A document of a bucket, "policy" for one; None: there is none. It may be a little old."""
        ...

    async def get_bucket_documents(self, bucket: str) -> Mapping[str, bytes]:
        """All documents of a bucket by name, as they are now."""
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
    async def open_object(
        self, bucket: str, key: str, version_id: str = "", *, part_checksums: bool = False
    ) -> ObjectReader:
        """Open a version; "": the current one. Raises MarkerFound at a delete marker.

        Args:
            part_checksums: Whether those of `ObjectInfo.parts` are wanted, which costs a look-up.
        """
        ...

    async def head_object(
        self, bucket: str, key: str, version_id: str = "", *, part_checksums: bool = False
    ) -> ObjectInfo:
        """Describe a version; as `open_object`."""
        ...

    async def delete_objects(
        self, bucket: str, deletions: Sequence[Deletion], *, bypass_governance: bool = False
    ) -> Sequence[Deleted]:
        """Delete up to 1,000 keys or versions, each on its own."""
        ...

    async def put_tags(
        self, bucket: str, key: str, version_id: str, tags: Mapping[str, str]
    ) -> ObjectInfo:
        """Replace the tags of a version."""
        ...

    async def put_lock(
        self,
        bucket: str,
        key: str,
        version_id: str,
        *,
        retention: ObjectLock | None = None,
        legal_hold: bool | None = None,
        bypass_governance: bool = False,
    ) -> None:
        """Change mode and time, or the legal hold, of a version."""
        ...

    async def put_acl(self, bucket: str, key: str, version_id: str, acl: AccessList | None) -> None:
        """Replace the list of a version."""
        ...

    async def copy_object(
        self,
        source: tuple[str, str],
        target: tuple[str, str],
        attributes: ObjectAttributes | None,
        precondition: Precondition,
        *,
        source_version_id: str = "",
    ) -> ObjectInfo:
        """Copy (bucket, key) `source` to `target`; `attributes` of None keeps the source's."""
        ...

    async def list_objects(
        self, bucket: str, *, prefix: str, delimiter: str, start_after: str, max_keys: int
    ) -> Listing: ...
    async def list_versions(
        self,
        bucket: str,
        *,
        prefix: str,
        delimiter: str,
        key_marker: str,
        version_id_marker: str,
        max_keys: int,
    ) -> VersionListing:
        """Markers are exclusive; without a version's, all of `key_marker` is passed over."""
        ...

    async def create_upload(
        self,
        bucket: str,
        key: str,
        attributes: ObjectAttributes,
        checksum: UploadChecksum = NO_UPLOAD_CHECKSUM,
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
    async def list_uploads(
        self,
        bucket: str,
        *,
        prefix: str,
        delimiter: str,
        key_marker: str,
        upload_id_marker: str,
        max_uploads: int,
    ) -> UploadListing:
        """Markers are exclusive; without an upload's, all of `key_marker` is passed over."""
        ...
