"""What a client says about an object in headers, and how it is shown again."""

from collections.abc import Mapping
from email.utils import formatdate
from urllib.parse import unquote_to_bytes

from exastore.gateway.errors import RequestError
from exastore.gateway.s3.body import stored_content_encoding
from exastore.gateway.s3.errors import S3Error
from exastore.gateway.s3.message import is_header_text
from exastore.gateway.store import ObjectAttributes, ObjectInfo

MAX_KEY_BYTES = 1024
MAX_METADATA_BYTES = 2048
METADATA_PREFIX = "x-amz-meta-"

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
    "x-amz-object-lock-legal-hold",
    "x-amz-object-lock-mode",
    "x-amz-object-lock-retain-until-date",
    "x-amz-server-side-encryption-aws-kms-key-id",
    "x-amz-server-side-encryption-context",
    "x-amz-tagging",
    "x-amz-website-redirect-location",
    "x-amz-write-offset-bytes",
)


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
        RequestError: MetadataTooLarge, NotImplemented.
    """
    for name in _NOT_IMPLEMENTED:
        if name in headers:
            raise RequestError(
                "NotImplemented",
                f"A header you provided implies functionality that is not implemented: {name}",
            )
    kept = {shown: headers[name] for name, shown in _KEPT_HEADERS.items() if name in headers}
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
    return ObjectAttributes(headers.get("content-type") or "binary/octet-stream", kept, metadata)


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
    return headers


def checksum_headers(checksums: Mapping[str, str]) -> dict[str, str]:
    """The headers that show an object's checksums."""
    headers = {f"x-amz-checksum-{name}": digest for name, digest in checksums.items()}
    if headers:
        composite = any("-" in digest for digest in checksums.values())
        headers["x-amz-checksum-type"] = "COMPOSITE" if composite else "FULL_OBJECT"
    return headers


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


def parse_copy_source(header: str) -> tuple[str, str]:
    """The (bucket, key) that x-amz-copy-source names.

    Raises:
        RequestError: InvalidArgument, NoSuchVersion.
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
    if query:
        name, _, version_id = query.partition("=")
        if name != "versionId":
            raise RequestError("InvalidArgument", "Copy Source has an unknown parameter")
        check_version(version_id)
    return bucket, key


def check_version(version_id: str | None) -> None:
    """Versioning is off: the one version of an object is the null version.

    Raises:
        RequestError: NoSuchVersion for any other.
    """
    if version_id not in (None, "null"):
        raise RequestError("NoSuchVersion", "The specified version does not exist.")
