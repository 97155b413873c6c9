"""The rules of names: buckets, keys, tags, ids."""

import re
from collections.abc import Mapping

from exastore.metadata.namespace import rows
from exastore.metadata.namespace.errors import InvalidArgument, InvalidTag

_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
_IPV4 = re.compile(r"\d{1,3}(\.\d{1,3}){3}")
_RESERVED_PREFIXES = ("xn--", "sthree-", "amzn-s3-demo-")
_RESERVED_SUFFIXES = ("-s3alias", "--ol-s3", ".mrap", "--x-s3", "--table-s3")
#: S3 counts Unicode characters here, and bytes for object keys.
TAG_COUNT_MAX = 10
TAG_KEY_CHARACTERS_MAX = 128
TAG_VALUE_CHARACTERS_MAX = 256
#: Letters, digits, spaces and + - = . _ : / @, in any script.
_TAG_TEXT = re.compile(r"[\w\s+\-=./:@]*")
_ID_BYTES_MAX = 256


def check_bucket_name(name: str) -> None:
    """Raises InvalidArgument unless S3's naming rules allow `name`."""
    if not _BUCKET.fullmatch(name):
        raise InvalidArgument(
            f"bucket name {name!r}: 3 to 63 lower-case letters, digits, dots and hyphens, "
            "with a letter or digit at both ends"
        )
    if ".." in name:
        raise InvalidArgument(f"bucket name {name!r}: two dots side by side")
    if _IPV4.fullmatch(name):
        raise InvalidArgument(f"bucket name {name!r}: formatted as an IP address")
    if name.startswith(_RESERVED_PREFIXES) or name.endswith(_RESERVED_SUFFIXES):
        raise InvalidArgument(f"bucket name {name!r}: S3 reserves this prefix or suffix")


def check_object_key(key: str) -> None:
    """Raises InvalidArgument unless S3 allows `key`."""
    if not 1 <= len(key.encode()) <= rows.OBJECT_KEY_BYTES_MAX:
        raise InvalidArgument(f"an object key has 1 to {rows.OBJECT_KEY_BYTES_MAX} bytes of UTF-8")


def check_id(what: str, value: str) -> None:
    """Raises InvalidArgument unless a caller may choose `value` as an id."""
    if not value:
        raise InvalidArgument(f"a {what} is needed")
    if len(value.encode()) > _ID_BYTES_MAX or "\x00" in value:
        raise InvalidArgument(f"a {what} has at most {_ID_BYTES_MAX} bytes, none of them zero")


def check_tags(tags: Mapping[str, str]) -> None:
    """Raises InvalidTag unless S3 allows these tags on an object."""
    if len(tags) > TAG_COUNT_MAX:
        raise InvalidTag(f"{len(tags)} tags; an object has at most {TAG_COUNT_MAX}")
    for name, value in tags.items():
        if not 1 <= len(name) <= TAG_KEY_CHARACTERS_MAX:
            raise InvalidTag(f"a tag's key has 1 to {TAG_KEY_CHARACTERS_MAX} characters: {name!r}")
        if len(value) > TAG_VALUE_CHARACTERS_MAX:
            raise InvalidTag(
                f"the value of tag {name!r} has {len(value)} characters; "
                f"{TAG_VALUE_CHARACTERS_MAX} are allowed"
            )
        if name.lower().startswith("aws:"):
            raise InvalidTag(f"tag {name!r}: keys that begin with aws: are reserved")
        if not _TAG_TEXT.fullmatch(name) or not _TAG_TEXT.fullmatch(value):
            raise InvalidTag(f"tag {name!r}: letters, digits, spaces and + - = . _ : / @ only")
