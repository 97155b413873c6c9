"""What a client says about an object in headers, and how it is shown again."""

import re
from collections.abc import Mapping
from datetime import datetime
from email.utils import formatdate
from typing import NamedTuple
from urllib.parse import parse_qsl, quote, unquote_to_bytes
from xml.etree.ElementTree import Element

from exastore.gateway.errors import RequestError
from exastore.gateway.s3.body import stored_content_encoding
from exastore.gateway.s3.errors import S3Error
from exastore.gateway.s3.message import is_header_text
from exastore.gateway.s3.xml import add, iso_time
from exastore.gateway.store import NO_LOCK, ObjectAttributes, ObjectInfo, ObjectLock

MAX_KEY_BYTES = 1024
MAX_METADATA_BYTES = 2048
METADATA_PREFIX = "x-amz-meta-"
_LOCK = "x-amz-object-lock-"
#: A version's id begins with 16 bytes in hex; what orders versions may stand before it, and that of
#: a delete marker goes on with its place in the request that made it.
_VERSION_ID = re.compile(r"null|[0-9a-f]{32}[0-9A-Za-z.:_-]{0,64}", re.ASCII)

_KEPT_HEADERS = {
    "cache-control": "Cache-Control",
    "content-disposition": "Content-Disposition",
    "content-language": "Content-Language",
    "expires": "Expires",
}

#: Query parameters that replace headers of a GET or HEAD.
_OVERRIDES = {
    "response-cache-control": "Cache-Control",
    "response-content-disposition": "Content-Disposition",
    "response-content-encoding": "Content-Encoding",
    "response-content-language": "Content-Language",
    "response-content-type": "Content-Type",
    "response-expires": "Expires",
}

#: Headers that ask for something that would silently not be done.
_NOT_IMPLEMENTED = (
    "x-amz-object-lock-event-hold",
    "x-amz-object-lock-event-hold-duration-days",
    "x-amz-object-lock-event-hold-duration-years",
    "x-amz-server-side-encryption-aws-kms-key-id",
    "x-amz-server-side-encryption-context",
    "x-amz-write-offset-bytes",
)

#: What S3 takes as the class of a new object. Here everything is kept as STANDARD is.
_STORAGE_CLASSES = frozenset(
    {
        "STANDARD",
        "REDUCED_REDUNDANCY",
        "STANDARD_IA",
        "ONEZONE_IA",
        "INTELLIGENT_TIERING",
        "GLACIER",
        "GLACIER_IR",
        "DEEP_ARCHIVE",
    }
)

#: Kept among an object's headers, and shown again.
REDIRECT_LOCATION = "x-amz-website-redirect-location"

#: Letters, digits, spaces and + - = . _ : / @, in any script.
_TAG_TEXT = re.compile(r"[\w\s+\-=./:@]*")
MAX_OBJECT_TAGS = 10


def check_key(key: str) -> None:
    """Raise KeyTooLongError for a key that cannot be stored."""
    size_bytes = len(key.encode())
    if size_bytes > MAX_KEY_BYTES:
        raise S3Error(
            "KeyTooLongError",
            "Your key is too long",
            fields={"Size": str(size_bytes), "MaxSizeAllowed": str(MAX_KEY_BYTES)},
        )


def read_attributes(headers: Mapping[str, str]) -> ObjectAttributes:
    """The attributes of an object to be.

    Raises:
        RequestError: MetadataTooLarge, NotImplemented, InvalidStorageClass, InvalidTag, ...
    """
    for name in _NOT_IMPLEMENTED:
        if name in headers:
            raise RequestError(
                "NotImplemented",
                f"A header you provided implies functionality that is not implemented: {name}",
            )
    if headers.get("x-amz-storage-class", "STANDARD") not in _STORAGE_CLASSES:
        raise RequestError("InvalidStorageClass", "The storage class you specified is not valid")
    kept = {shown: headers[name] for name, shown in _KEPT_HEADERS.items() if name in headers}
    location = headers.get(REDIRECT_LOCATION)
    if location is not None:
        if not location.startswith(("/", "http://", "https://")):
            raise RequestError(
                "InvalidRedirectLocation",
                "The website redirect location must have a prefix of 'http://' or 'https://' "
                "or '/'.",
            )
        kept[REDIRECT_LOCATION] = location
    encoding = stored_content_encoding(headers)
    if encoding:
        kept["Content-Encoding"] = encoding
    metadata = {
        name.removeprefix(METADATA_PREFIX): value
        for name, value in headers.items()
        if name.startswith(METADATA_PREFIX)
    }
    size_bytes = sum(len(name) + len(value) for name, value in metadata.items())
    if size_bytes > MAX_METADATA_BYTES:
        raise S3Error(
            "MetadataTooLarge",
            "Your metadata headers exceed the maximum allowed metadata size",
            fields={"Size": str(size_bytes), "MaxSizeAllowed": str(MAX_METADATA_BYTES)},
        )
    return ObjectAttributes(
        headers.get("content-type") or "binary/octet-stream",
        kept,
        metadata,
        tags=_read_tags(headers.get("x-amz-tagging", "")),
        lock=_read_lock(headers),
    )


def _read_tags(header: str) -> dict[str, str]:
    """The tags of x-amz-tagging, which is written as a query."""
    try:
        pairs = parse_qsl(header, keep_blank_values=True, errors="strict")
    except ValueError:
        pairs = [("", "")] * 2
    tags = dict(pairs)
    if len(tags) != len(pairs):
        raise RequestError(
            "InvalidArgument",
            "The header 'x-amz-tagging' shall be encoded as UTF-8 then URLEncoded URL query "
            "parameters without tag name duplicates.",
        )
    check_tags(tags, MAX_OBJECT_TAGS)
    return tags


def check_tags(tags: Mapping[str, str], max_count: int) -> None:
    """Raise BadRequest for too many tags, InvalidTag for one that S3 does not take."""
    if len(tags) > max_count:
        what = "Object tags" if max_count == MAX_OBJECT_TAGS else "Bucket tag count"
        raise RequestError("BadRequest", f"{what} cannot be greater than {max_count}")
    for name, value in tags.items():
        if not 1 <= len(name) <= 128 or not _TAG_TEXT.fullmatch(name):
            raise RequestError("InvalidTag", "The TagKey you have provided is invalid")
        if len(value) > 256 or not _TAG_TEXT.fullmatch(value):
            raise RequestError("InvalidTag", "The TagValue you have provided is invalid")
        if name.lower().startswith("aws:"):
            raise RequestError("InvalidTag", "System tags cannot be added/updated by requester")


def _read_lock(headers: Mapping[str, str]) -> ObjectLock:
    mode, until = headers.get(_LOCK + "mode"), headers.get(_LOCK + "retain-until-date")
    hold = headers.get(_LOCK + "legal-hold", "OFF")
    if (mode is None) != (until is None):
        raise RequestError(
            "InvalidArgument",
            "x-amz-object-lock-retain-until-date and x-amz-object-lock-mode must both be supplied",
        )
    if hold not in ("ON", "OFF"):
        raise RequestError("InvalidArgument", "Legal Hold must be either of 'ON' or 'OFF'")
    if mode is None or until is None:
        return ObjectLock(legal_hold=True) if hold == "ON" else NO_LOCK
    until_s = parse_lock_time(until, "InvalidArgument")
    return ObjectLock(parse_lock_mode(mode, "InvalidArgument"), until_s, hold == "ON")


def parse_lock_mode(text: str, code: str) -> str:
    """GOVERNANCE or COMPLIANCE. Raises RequestError: `code`."""
    if text not in ("GOVERNANCE", "COMPLIANCE"):
        raise RequestError(code, "Unknown wormMode directive.")
    return text


def parse_lock_time(text: str, code: str) -> float:
    """An ISO 8601 time with its zone, as Unix time. Raises RequestError: `code`."""
    try:
        when = datetime.fromisoformat(text)
        if when.tzinfo is not None:
            return when.timestamp()
    except (ValueError, OverflowError):
        pass
    raise RequestError(code, "The retain until date must be provided in ISO 8601 format")


def object_headers(info: ObjectInfo) -> dict[str, str]:
    """The headers that describe an object in answers to GET and HEAD."""
    attributes = info.attributes
    headers = {
        "Last-Modified": formatdate(info.modified_s, usegmt=True),
        "ETag": f'"{info.etag}"',
        "Accept-Ranges": "bytes",
        "Content-Type": attributes.content_type,
        **attributes.headers,
    }
    for name, value in attributes.user_metadata.items():
        headers[METADATA_PREFIX + name] = value
    if attributes.tags:
        headers["x-amz-tagging-count"] = str(len(attributes.tags))
    lock = attributes.lock
    if lock.mode:
        headers[_LOCK + "mode"] = lock.mode
        headers[_LOCK + "retain-until-date"] = iso_time(lock.retain_until_s)
    if lock.legal_hold:
        headers[_LOCK + "legal-hold"] = "ON"
    return headers | version_headers(info)


def version_headers(info: ObjectInfo) -> dict[str, str]:
    """The headers that name a version, and say when it will expire."""
    headers: dict[str, str] = {}
    if info.is_versioned:
        headers["x-amz-version-id"] = info.version_id
    if info.expires_s:
        when = formatdate(info.expires_s, usegmt=True)
        rule_id = quote(info.expiry_rule_id, safe="")
        headers["x-amz-expiration"] = f'expiry-date="{when}", rule-id="{rule_id}"'
    return headers


def checksum_headers(checksums: Mapping[str, str]) -> dict[str, str]:
    """The headers that show an object's checksums."""
    headers = {f"x-amz-checksum-{name}": digest for name, digest in checksums.items()}
    if headers:
        headers["x-amz-checksum-type"] = _type_of(checksums)
    return headers


def add_checksums(parent: Element, checksums: Mapping[str, str]) -> None:
    """Append an object's checksums and their type to a document."""
    for algorithm, digest in checksums.items():
        add(parent, f"Checksum{algorithm.upper()}", digest)
    if checksums:
        add(parent, "ChecksumType", _type_of(checksums))


def _type_of(checksums: Mapping[str, str]) -> str:
    return "COMPOSITE" if any("-" in digest for digest in checksums.values()) else "FULL_OBJECT"


def overridden_headers(query: Mapping[str, str]) -> dict[str, str]:
    """Headers that the query of a GET sets.

    Raises:
        RequestError: InvalidArgument for a value that is no header value.
    """
    headers: dict[str, str] = {}
    for parameter, name in _OVERRIDES.items():
        value = query.get(parameter)
        if value is not None:
            if not is_header_text(value):
                raise RequestError("InvalidArgument", f"{parameter} is not a header value.")
            # As UTF-8 on the wire: header text is ISO-8859-1 here.
            headers[name] = value.encode().decode("latin-1")
    return headers


class CopySource(NamedTuple):
    """The source of a copy."""

    bucket: str
    key: str
    version_id: str = ""
    """"": the current one."""

    @property
    def place(self) -> tuple[str, str]:
        return self.bucket, self.key


def parse_copy_source(header: str) -> CopySource:
    """What x-amz-copy-source names.

    Raises:
        RequestError: InvalidArgument.
    """
    path, _, query = header.partition("?")
    try:
        # A plus is a space here, as in a form: some clients write it so, none writes a bare plus.
        source = unquote_to_bytes(path.replace("+", " ").encode("latin-1")).decode()
    except UnicodeDecodeError:
        source = ""
    bucket, _, key = source.removeprefix("/").partition("/")
    if not bucket or not key:
        raise RequestError(
            "InvalidArgument", "Copy Source must mention the source bucket and key: bucket/key"
        )
    version_id = ""
    if query:
        name, _, version_id = query.partition("=")
        if name != "versionId":
            raise RequestError("InvalidArgument", "Copy Source has an unknown parameter")
        check_version_id(version_id)
    return CopySource(bucket, key, version_id)


def check_version_id(version_id: str) -> None:
    """Raise InvalidArgument for what no version can have as its id."""
    if not version_id:
        raise RequestError("InvalidArgument", "Version id cannot be the empty string")
    if not _VERSION_ID.fullmatch(version_id):
        raise S3Error(
            "InvalidArgument",
            "Invalid version id specified",
            fields={"ArgumentName": "versionId", "ArgumentValue": version_id[:1024]},
        )
