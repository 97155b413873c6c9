"""The columns of an inventory: their names, their types, and what of an object they show. Pure.

Names and order are S3's; what is not here (replication, tiers, KMS) is shown empty.
"""

import base64
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import Enum
from urllib.parse import quote

from exastore.gateway.s3.acl import ALL_USERS
from exastore.gateway.s3.xml import iso_time
from exastore.gateway.store import NULL_VERSION, AccessList, ObjectInfo

Value = str | int | bool | float | None


class Kind(Enum):
    """The type of a column: its names in Parquet's and in ORC's notation."""

    TEXT = ("binary {} (UTF8)", "string")
    FLAG = ("boolean {}", "boolean")
    COUNT = ("int64 {}", "bigint")
    #: Seconds of Unix time.
    TIME = ("int64 {} (TIMESTAMP(MILLIS,true))", "timestamp")


@dataclass(frozen=True, slots=True)
class Source:
    """The bucket whose inventory it is."""

    bucket: str
    owner: str
    has_lists: bool
    """Whether lists and owners of objects count."""


@dataclass(frozen=True, slots=True)
class Column:
    """A column: S3's name of it, that within files, and its value for an object."""

    title: str
    name: str
    kind: Kind
    value: Callable[[ObjectInfo, Source], Value]


def _column(title: str, kind: Kind, value: Callable[[ObjectInfo, Source], Value]) -> Column:
    name = "".join(
        "_" + letter.lower() if letter.isupper() and at else letter.lower()
        for at, letter in enumerate(title)
    )
    return Column(title, name, kind, value)


def _object_only(
    value: Callable[[ObjectInfo, Source], Value],
) -> Callable[[ObjectInfo, Source], Value]:
    """Nothing of a delete marker."""
    return lambda info, source: None if info.delete_marker else value(info, source)


def _encryption_status(info: ObjectInfo, source: Source) -> str:
    sealed = info.attributes.encryption
    if sealed is None:
        return "NOT-SSE"
    return "SSE-C" if sealed.customer_key_md5 else "SSE-S3"


def _access_list(info: ObjectInfo, source: Source) -> str:
    acl = info.attributes.acl if source.has_lists else None
    held = acl or AccessList(source.owner)
    grants = [
        {"uri": grantee, "type": "Group", "permission": permission}
        if grantee.startswith(ALL_USERS[:4])
        else {"canonicalId": grantee, "type": "CanonicalUser", "permission": permission}
        for grantee, permission in ((held.owner, "FULL_CONTROL"), *held.grants)
    ]
    document = {"version": "2022-11-10", "status": "AVAILABLE", "grants": grants}
    return base64.b64encode(json.dumps(document).encode()).decode()


def _owner(info: ObjectInfo, source: Source) -> str:
    acl = info.attributes.acl if source.has_lists else None
    return source.owner if acl is None else acl.owner


def _nothing(info: ObjectInfo, source: Source) -> None:
    return None


_FIRST = (
    _column("Bucket", Kind.TEXT, lambda info, source: source.bucket),
    _column("Key", Kind.TEXT, lambda info, source: info.key),
)
_OF_VERSIONS = (
    _column(
        "VersionId",
        Kind.TEXT,
        lambda info, source: info.version_id if info.is_versioned else NULL_VERSION,
    ),
    _column("IsLatest", Kind.FLAG, lambda info, source: info.is_latest),
    _column("IsDeleteMarker", Kind.FLAG, lambda info, source: info.delete_marker),
)
#: What a configuration may ask for besides, by S3's names.
OPTIONAL = {
    column.title: column
    for column in (
        _column("Size", Kind.COUNT, _object_only(lambda info, source: info.size_bytes)),
        _column("LastModifiedDate", Kind.TIME, lambda info, source: info.modified_s),
        _column("StorageClass", Kind.TEXT, _object_only(lambda info, source: "STANDARD")),
        _column("ETag", Kind.TEXT, _object_only(lambda info, source: info.etag)),
        _column(
            "IsMultipartUploaded", Kind.FLAG, _object_only(lambda info, source: "-" in info.etag)
        ),
        _column("ReplicationStatus", Kind.TEXT, _nothing),
        _column("EncryptionStatus", Kind.TEXT, _object_only(_encryption_status)),
        _column(
            "ObjectLockRetainUntilDate",
            Kind.TIME,
            lambda info, source: info.attributes.lock.retain_until_s or None,
        ),
        _column(
            "ObjectLockMode", Kind.TEXT, lambda info, source: info.attributes.lock.mode or None
        ),
        _column(
            "ObjectLockLegalHoldStatus",
            Kind.TEXT,
            lambda info, source: "ON" if info.attributes.lock.legal_hold else "OFF",
        ),
        _column("ObjectLockEventHoldStatus", Kind.TEXT, _nothing),
        _column("ObjectLockEventHoldDuration", Kind.TEXT, _nothing),
        _column("IntelligentTieringAccessTier", Kind.TEXT, _nothing),
        _column("IntelligentTieringReferenceDate", Kind.TIME, _nothing),
        _column("BucketKeyStatus", Kind.TEXT, _object_only(lambda info, source: "DISABLED")),
        _column(
            "ChecksumAlgorithm",
            Kind.TEXT,
            lambda info, source: ",".join(sorted(name.upper() for name in info.checksums)) or None,
        ),
        _column("ObjectAccessControlList", Kind.TEXT, _object_only(_access_list)),
        _column("ObjectOwner", Kind.TEXT, _owner),
        _column("LifecycleExpirationDate", Kind.TIME, lambda info, source: info.expires_s or None),
    )
}


def columns_of(fields: Sequence[str], *, all_versions: bool) -> tuple[Column, ...]:
    """The columns of an inventory with these optional fields, in S3's order."""
    return (
        *_FIRST,
        *(_OF_VERSIONS if all_versions else ()),
        *(column for title, column in OPTIONAL.items() if title in fields),
    )


def csv_text(column: Column, value: Value) -> str:
    """A value as it stands in CSV: keys as in URLs."""
    if value is None:
        return ""
    if column.title == "Key":
        return quote(str(value), safe="/")
    if isinstance(value, bool):
        return "true" if value else "false"
    return iso_time(float(value)) if column.kind is Kind.TIME else str(value)


def file_schema(columns: Sequence[Column], file_format: str) -> str:
    """What the manifest says of the files' columns."""
    if file_format == "CSV":
        return ", ".join(column.title for column in columns)
    if file_format == "ORC":
        return f"struct<{','.join(f'{it.name}:{it.kind.value[1]}' for it in columns)}>"
    fields = " ".join(
        f"{'required' if column in _FIRST else 'optional'} {column.kind.value[0]};".format(
            column.name
        )
        for column in columns
    )
    return f"message s3.inventory {{ {fields} }}"


def time_of(seconds: float) -> datetime:
    """A time as Arrow takes it."""
    return datetime.fromtimestamp(seconds, UTC)
