"""Ranges and conditional headers (RFC 9110, as S3 reads them). Pure."""

import re
from collections.abc import Mapping
from email.utils import parsedate_to_datetime

from exastore.gateway.errors import RequestError
from exastore.gateway.s3.errors import S3Error
from exastore.gateway.store import ByteRange, ObjectInfo, Precondition

_RANGE = re.compile(r"bytes=(\d*)-(\d*)", re.ASCII)


def parse_range(header: str | None, size_bytes: int) -> ByteRange | None:
    """The range a Range header asks for, clipped to the object; None for the whole object.

    What is not one well-formed byte range is ignored, as HTTP demands.

    Raises:
        RequestError: InvalidRange when no byte of the object is within it.
    """
    match = _RANGE.fullmatch(header.replace(" ", "")) if header else None
    if match is None:
        return None
    first, last = match.groups()
    if first:
        start = int(first)
        if last and int(last) < start:
            return None
        end = min(int(last), size_bytes - 1) if last else size_bytes - 1
        satisfiable = start < size_bytes
    elif last:
        start, end = max(0, size_bytes - int(last)), size_bytes - 1
        satisfiable = int(last) > 0 and size_bytes > 0
    else:
        return None
    if not satisfiable:
        raise S3Error(
            "InvalidRange",
            "The requested range is not satisfiable",
            fields={"RangeRequested": header or "", "ActualObjectSize": str(size_bytes)},
            headers={"Content-Range": f"bytes */{size_bytes}"},
        )
    return ByteRange(start, end - start + 1)


def etag_matches(header: str, etag: str) -> bool:
    """Whether an If-Match or If-None-Match value names this ETag."""
    candidates = [item.strip().removeprefix("W/").strip('"') for item in header.split(",")]
    return "*" in candidates or etag in candidates


def _http_time(header: str | None) -> float | None:
    if header is None:
        return None
    try:
        return parsedate_to_datetime(header).timestamp()
    except (ValueError, OverflowError):  # Years of many digits overflow.
        return None


def check_read(headers: Mapping[str, str], info: ObjectInfo, *, prefix: str = "if-") -> None:
    """Check the four conditional headers of a read, or of a copy's source.

    Args:
        prefix: "x-amz-copy-source-if-" for a copy, where a false condition is always 412.

    Raises:
        RequestError: PreconditionFailed, NotModified.
    """
    if_match = headers.get(prefix + "match")
    if if_match is not None:
        if not etag_matches(if_match, info.etag):
            raise _failed("If-Match")
    else:
        unmodified_since_s = _http_time(headers.get(prefix + "unmodified-since"))
        if unmodified_since_s is not None and int(info.modified_s) > unmodified_since_s:
            raise _failed("If-Unmodified-Since")
    if_none_match = headers.get(prefix + "none-match")
    if if_none_match is not None:
        unchanged = etag_matches(if_none_match, info.etag)
    else:
        modified_since_s = _http_time(headers.get(prefix + "modified-since"))
        unchanged = modified_since_s is not None and int(info.modified_s) <= modified_since_s
    if unchanged and prefix == "if-":
        raise RequestError("NotModified", "Not Modified")
    if unchanged:
        raise _failed("If-None-Match")


def _failed(condition: str) -> S3Error:
    return S3Error(
        "PreconditionFailed",
        "At least one of the pre-conditions you specified did not hold",
        fields={"Condition": condition},
    )


def read_precondition(headers: Mapping[str, str]) -> Precondition:
    """The condition of a write; the store evaluates it within the committing transaction.

    Raises:
        RequestError: NotImplemented for conditions that S3 does not define on writes.
    """
    if_none_match, if_match = headers.get("if-none-match"), headers.get("if-match")
    unsupported = (
        (if_none_match is not None and if_none_match.strip().strip('"') != "*")
        or (if_none_match is not None and if_match is not None)
        or "if-modified-since" in headers
        or "if-unmodified-since" in headers
    )
    if unsupported:
        raise RequestError(
            "NotImplemented",
            "A header you provided implies functionality that is not implemented: writes take "
            "If-None-Match: * or If-Match.",
        )
    return Precondition(
        must_not_exist=if_none_match is not None,
        if_match=None if if_match is None else if_match.strip().strip('"'),
    )
