"""Heads of requests, judged beyond what the parser does; heads of responses, as bytes. Pure."""

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from httptools import HttpParserError, parse_url

from exastore.gateway.errors import RequestError
from exastore.gateway.s3 import xml
from exastore.gateway.s3.errors import status_of
from exastore.gateway.s3.message import Response

#: The most bytes of a request's line and headers, and of the trailers of a body.
MAX_HEAD_BYTES = 64 * 1024

_STATUS_LINES = {
    status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\nServer: exastore\r\n"
    for status in HTTPStatus
}


class BadHead(ValueError):
    """A header whose text would end its line: a mistake of ours."""


def head_of(
    response: Response, length: int, date_line: str, *, keep_alive: bool, is_http_10: bool
) -> bytes:
    """The status line and the headers, with the empty line behind.

    Args:
        length: For Content-Length, in bytes.
        date_line: The Date header, with its line end.

    Raises:
        BadHead: When a header holds a line end.
    """
    fields = [f"{name}: {text}\r\n" for name, text in response.headers.items()]
    text = "".join(fields)
    if text.count("\r") != len(fields) or text.count("\n") != len(fields) or "\0" in text:
        raise BadHead("a header of the response holds a line end")
    length_line = "" if response.status in (204, 304) else f"Content-Length: {length}\r\n"
    connection_line = ""
    if not keep_alive:
        connection_line = "Connection: close\r\n"
    elif is_http_10:
        connection_line = "Connection: keep-alive\r\n"
    text = f"{_STATUS_LINES[response.status]}{date_line}{text}{length_line}{connection_line}\r\n"
    try:
        return text.encode("latin-1")
    except UnicodeEncodeError:
        return text.encode()


def refusal(error: RequestError, *, has_body: bool) -> Response:
    """The response to what could not be read as a request; the connection ends with it."""
    status = status_of(error.code)
    content = xml.error_document(error.code, error.message, "/", "", {}) if has_body else b""
    return Response(status, {"Content-Type": "application/xml"}, content, close=True)


def objection(
    version: str, method: bytes, url: bytes, headers: Mapping[str, str]
) -> RequestError | None:
    """What is wrong with the head of a request that the parser takes."""
    if version not in ("1.1", "1.0"):
        return RequestError("HttpVersionNotSupported", f"HTTP/{version} is not spoken here.")
    if "host" not in headers and version == "1.1":
        return RequestError("BadRequest", "A request needs a Host header.")
    coding = headers.get("transfer-encoding")
    if coding is not None:
        if version == "1.0":
            return RequestError("BadRequest", "HTTP/1.0 has no Transfer-Encoding.")
        if coding.lower() != "chunked":
            return RequestError("NotImplemented", "Only the transfer coding chunked is known.")
    if b"#" in url:
        return RequestError("InvalidURI", "Couldn't parse the specified URI.")
    if method == b"CONNECT":
        return RequestError("MethodNotAllowed", "The specified method is not allowed.")
    return None


def absolute_target(target: bytes, host: str) -> tuple[bytes, RequestError | None]:
    """The path of a target such as http://host/path, which clients send to proxies.

    Args:
        host: The Host header; a target that names another could be read as two buckets.
    """
    wrong = RequestError("InvalidURI", "Couldn't parse the specified URI.")
    try:
        parsed: Any = parse_url(target)
    except HttpParserError:
        return b"/", wrong
    if parsed.schema not in (b"http", b"https") or not parsed.host or parsed.userinfo:
        return b"/", wrong
    named: bytes = parsed.host if parsed.port is None else b"%s:%d" % (parsed.host, parsed.port)
    if named.decode("latin-1").lower() != host.lower():
        return b"/", wrong
    return parsed.path or b"/", None
