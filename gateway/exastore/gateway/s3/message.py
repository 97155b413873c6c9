"""HTTP requests and responses as the operations see them, whatever server carries them."""

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Protocol
from urllib.parse import unquote

from exastore.gateway.errors import RequestError


class RequestStream(Protocol):
    """The body of a request as it arrives, with transfer framing such as aws-chunked."""

    @property
    def started(self) -> bool:
        """Whether `read` was called: a client that expects 100-continue was then told to send."""
        ...

    async def read(self) -> bytes | None:
        """The next piece, None after the last. Raises IncompleteBody when the client goes away."""
        ...


@dataclass(slots=True)
class Request:
    """A request, as sent: nothing is normalised, because that is what was signed."""

    method: str
    raw_path: bytes
    """Percent-encoded, with the leading slash, without the query."""
    raw_query: bytes
    """Without the question mark."""
    headers: dict[str, str]
    """Lower-case names; ISO-8859-1 values; repeated headers joined by commas."""
    stream: RequestStream
    bucket: str = ""
    key: str = ""
    query: dict[str, str] = field(default_factory=dict[str, str])
    """Decoded parameters; the first of equal names wins."""
    source_ip: str = ""
    """Address of the peer; "" when unknown."""
    secure: bool = False
    """Whether it came over TLS."""


@dataclass(slots=True)
class Response:
    """A response. `content` is the whole body, or an iterator of `length` bytes."""

    status: int = 200
    headers: dict[str, str] = field(default_factory=dict[str, str])
    content: bytes | AsyncIterator[bytes | memoryview] = b""
    length: int | None = None
    """Bytes of an iterator's body, or what a HEAD claims; None: those of `content`."""
    close: bool = False
    """Whether the connection cannot be used again."""
    on_sent: Callable[[int], None] | None = None
    """Called once, when the response is over, with the bytes of body that were sent."""


def parse_query(raw_query: bytes) -> dict[str, str]:
    """Decode a query string; a parameter without "=" has the value "".

    Raises:
        RequestError: InvalidURI when it is not UTF-8.
    """
    query: dict[str, str] = {}
    if raw_query:
        for pair in raw_query.decode("latin-1").split("&"):
            name, _, value = pair.partition("=")
            query.setdefault(decode_component(name, plus=True), decode_component(value, plus=True))
    return query


def decode_component(text: str, *, plus: bool) -> str:
    """Percent-decode `text` as UTF-8; with `plus`, "+" is a space, as in a query."""
    if plus:
        text = text.replace("+", " ")
    if "%" not in text and text.isascii():
        return text
    try:
        return unquote(text.encode("latin-1").decode("utf-8"), errors="strict")
    except UnicodeError:
        raise RequestError("InvalidURI", "Couldn't parse the specified URI.") from None


def is_header_text(text: str) -> bool:
    """Whether a text may be the value of a header: what has line ends could be more than one."""
    return not any(ord(character) < 32 or ord(character) == 127 for character in text)


def split_target(raw_path: bytes, host: str, domain: str) -> tuple[str, str]:
    """The (bucket, key) that a request names, each "" when absent.

    With a `domain`, a host that is one name below it is the bucket (virtual-host style).
    """
    path = raw_path.decode("latin-1").removeprefix("/")
    if domain:
        name = host.rsplit(":", 1)[0].lower()
        if name.endswith("." + domain):
            return name[: -len(domain) - 1], decode_component(path, plus=False)
    bucket, _, key = path.partition("/")
    return decode_component(bucket, plus=False), decode_component(key, plus=False)
