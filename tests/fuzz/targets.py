"""What is fuzzed: each target takes any bytes, and may refuse them, but not in another way.

A refusal is a `GatewayError`, or from the front an answer that is not 500. Anything else, an
assertion of ours among them, ends the run with the bytes that did it.
"""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from functools import cache
from itertools import count
from typing import ParamSpec, TypeVar

from prometheus_client import CollectorRegistry
from tests.support.clocks import FrozenClock

from exastore.gateway.errors import GatewayError, RequestError
from exastore.gateway.s3 import auth, xml
from exastore.gateway.s3.attributes import overridden_headers, parse_copy_source, read_attributes
from exastore.gateway.s3.body import read_promise
from exastore.gateway.s3.conditions import check_read, parse_range, read_precondition
from exastore.gateway.s3.cors import parse_cors
from exastore.gateway.s3.forms import FormReader, boundary_of
from exastore.gateway.s3.framing import FrameDecoder, FrameSigner
from exastore.gateway.s3.front import S3Front
from exastore.gateway.s3.identity import RootKey
from exastore.gateway.s3.message import Request, Response, parse_query, split_target
from exastore.gateway.s3.metrics import S3Metrics
from exastore.gateway.s3.policy import parse_bucket_policy
from exastore.gateway.s3.sse import customer_key_of
from exastore.gateway.s3.website import parse_website
from exastore.gateway.store import ObjectInfo
from exastore.gateway.testing.memory_store import MemoryStore

Target = Callable[[bytes], None]
P = ParamSpec("P")
T = TypeVar("T")

NOW_S = 1_700_000_000.0
_AMZ_DATE = "20231114T221320Z"
_SCOPE = auth.Scope("20231114", "us-east-1", "s3")
_IDENTITY_HASH = "STREAMING-AWS4-HMAC-SHA256-PAYLOAD-TRAILER"
#: Bounded, so that a target does not read for ever.
_MAX_STREAM_PIECES = 1_000


class PieceStream:
    """A request's body in pieces of an odd size."""

    def __init__(self, data: bytes, piece_bytes: int = 37) -> None:
        self._pieces = [
            data[start : start + piece_bytes] for start in range(0, len(data), piece_bytes)
        ]
        self._started = False

    @property
    def started(self) -> bool:
        return self._started

    async def read(self) -> bytes | None:
        self._started = True
        return self._pieces.pop(0) if self._pieces else None


def headers_of(text: bytes) -> dict[str, str]:
    """Lines `name: value` as headers."""
    found: dict[str, str] = {}
    for line in text.decode("latin-1").split("\n"):
        name, _, value = line.partition(":")
        if name.strip():
            found[name.strip().lower()] = value.strip("\r ")
    return found


def request_of(data: bytes) -> Request:
    """Bytes as `METHOD target`, header lines, an empty line and a body."""
    head, _, body = data.partition(b"\n\n")
    first, _, rest = head.partition(b"\n")
    method, _, target = first.partition(b" ")
    path, _, query = target.partition(b"?")
    return Request(
        method.decode("latin-1"),
        b"/" + path.lstrip(b"/"),
        query,
        headers_of(rest),
        PieceStream(body),
    )


_PARSERS: Sequence[Callable[[bytes], object]] = (
    xml.parse_delete,
    xml.parse_complete,
    xml.parse_location,
    parse_cors,
    parse_website,
    lambda it: parse_bucket_policy(it, "bucket"),
)


def documents(data: bytes) -> None:
    """Every document that a client sends."""
    for parse in _PARSERS:
        _refusable(parse, data)


def addresses(data: bytes) -> None:
    """Path, query and host."""
    path, _, query = data.partition(b"?")
    _refusable(parse_query, query)
    for domain in ("", "s3.example.org"):
        _refusable(split_target, path, "bucket.s3.example.org", domain)


def signatures(data: bytes) -> None:
    """The Authorization header, and its form in a query."""
    request = request_of(b"GET /?" + data.partition(b"\n")[0] + b"\n" + data.partition(b"\n")[2])
    try:
        request.query = parse_query(request.raw_query)
    except RequestError:
        request.query = {}
    authorization = _refusable(auth.parse_authorization, request)
    if isinstance(authorization, auth.Authorization):
        _refusable(auth.verify, request, authorization, "secret", NOW_S)


def frames(data: bytes) -> None:
    """aws-chunked, signed and unsigned, whole and in pieces."""
    whole: list[bytes] = []
    for signer in (None, FrameSigner(_identity())):
        for piece_bytes in (len(data) or 1, 7):
            decoder = FrameDecoder(signer, has_trailer=True)
            got = _refusable(_decode, decoder, data, piece_bytes)
            if signer is None:
                whole.append(got if isinstance(got, bytes) else b"refused")
    assert whole[0] == whole[1], "the same bytes, however they are cut"


def _decode(decoder: FrameDecoder, data: bytes, piece_bytes: int) -> bytes:
    out = b""
    for start in range(0, len(data), piece_bytes):
        out += b"".join(decoder.feed(data[start : start + piece_bytes]))
    decoder.close()
    return out


def _identity() -> auth.Identity:
    request = _signed(Request("PUT", b"/b/k", b"", {}, PieceStream(b"")), _IDENTITY_HASH)
    return auth.verify(request, auth.parse_authorization(request), "secret", NOW_S)


def headers(data: bytes) -> None:
    """Ranges, conditions, attributes, promises of bodies, keys."""
    given = headers_of(data)
    info = ObjectInfo("b", "k", "v", 1000, "0" * 32, NOW_S)
    text = data.decode("latin-1")
    for size in (0, 1, 1000):
        found = _refusable(parse_range, text, size)
        assert found is None or 0 <= found.start < found.start + found.length <= size
    _refusable(check_read, given, info)
    _refusable(read_precondition, given)
    _refusable(read_attributes, given)
    _refusable(customer_key_of, given)
    _refusable(parse_copy_source, text)
    for payload_hash in ("UNSIGNED-PAYLOAD", text, "STREAMING-UNSIGNED-PAYLOAD-TRAILER"):
        _refusable(read_promise, given, payload_hash)
    try:
        _refusable(overridden_headers, parse_query(data))
    except RequestError:
        return


def forms(data: bytes) -> None:
    """multipart/form-data."""
    first, _, body = data.partition(b"\n")
    _refusable(boundary_of, first.decode("latin-1"))

    async def read() -> None:
        reader = FormReader(PieceStream(body), b"limit")
        await reader.fields()
        for _ in range(_MAX_STREAM_PIECES):
            if await reader.read() is None:
                return
        raise AssertionError("a form without end")

    try:
        asyncio.run(read())
    except GatewayError:
        return


def requests(data: bytes) -> None:
    """Whole requests, correctly signed, to a front with a store behind it."""
    status = asyncio.run(_answer(data))
    assert status != 500, "an internal error"


async def _answer(data: bytes) -> int:
    store = MemoryStore(lambda: NOW_S, min_part_bytes=1)
    await store.create_bucket("bucket", owner="exastore")
    front = S3Front(
        store,
        keys=RootKey("ak", "secret"),
        clock=FrozenClock(NOW_S),
        metrics=_metrics(),
        new_request_id=_request_ids().__next__,
    )
    request = request_of(data)
    payload_hash = request.headers.get("x-amz-content-sha256", "UNSIGNED-PAYLOAD")
    response = await front.handle(_signed(request, payload_hash))
    sent_bytes = await _send(response)
    if response.status >= 400 and request.method in ("PUT", "POST") and request.key:
        assert not (
            await store.list_objects("bucket", prefix="", delimiter="", start_after="", max_keys=10)
        ).objects, "a refused write left an object"
    if response.on_sent is not None:
        response.on_sent(sent_bytes)
    return response.status


async def _send(response: Response) -> int:
    if isinstance(response.content, bytes):
        return len(response.content)
    pieces: AsyncIterator[bytes | memoryview] = response.content
    return sum([len(piece) async for piece in pieces])


def _signed(request: Request, payload_hash: str) -> Request:
    """The request as a client with the right key would send it."""
    request.headers = {
        **request.headers,
        "host": "127.0.0.1",
        "x-amz-date": _AMZ_DATE,
        "x-amz-content-sha256": payload_hash,
    }
    request.headers.pop("authorization", None)
    names = sorted(request.headers)
    canonical = auth.canonical_request(
        request.method,
        request.raw_path.decode("latin-1"),
        auth.canonical_query(request.raw_query),
        request.headers,
        names,
        payload_hash,
    )
    text = auth.string_to_sign(_AMZ_DATE, _SCOPE, canonical)
    signature = auth.sign(auth.signing_key("secret", _SCOPE), text)
    request.headers["authorization"] = (
        f"AWS4-HMAC-SHA256 Credential=ak/20231114/us-east-1/s3/aws4_request, "
        f"SignedHeaders={';'.join(names)}, Signature={signature}"
    )
    return request


@cache
def _metrics() -> S3Metrics:
    return S3Metrics(CollectorRegistry())


@cache
def _request_ids() -> "AsyncIds":
    return AsyncIds()


class AsyncIds:
    """Request ids that count up."""

    def __init__(self) -> None:
        self._numbers = count()

    def __next__(self) -> bytes:
        return next(self._numbers).to_bytes(8, "big")


def _refusable(call: Callable[P, T], *arguments: P.args, **named: P.kwargs) -> T | None:
    """What a call gives; None when it refuses."""
    try:
        return call(*arguments, **named)
    except GatewayError:
        return None


TARGETS: Mapping[str, Target] = {
    "documents": documents,
    "addresses": addresses,
    "signatures": signatures,
    "frames": frames,
    "headers": headers,
    "forms": forms,
    "requests": requests,
}

_DELETE = b"<Delete><Quiet>true</Quiet><Object><Key>k</Key></Object></Delete>"

#: Bytes that each target accepts, to start from.
SEEDS: Mapping[str, tuple[bytes, ...]] = {
    "documents": (
        _DELETE,
        b"<CompleteMultipartUpload><Part><PartNumber>1</PartNumber><ETag>e</ETag></Part>"
        b"</CompleteMultipartUpload>",
        b"<CORSConfiguration><CORSRule><AllowedOrigin>*</AllowedOrigin><AllowedMethod>GET"
        b"</AllowedMethod></CORSRule></CORSConfiguration>",
        b"<WebsiteConfiguration><IndexDocument><Suffix>i</Suffix></IndexDocument>"
        b"</WebsiteConfiguration>",
        b'{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Principal":"*",'
        b'"Action":"s3:GetObject","Resource":"arn:aws:s3:::bucket/*"}]}',
    ),
    "addresses": (b"/bucket/a%20key?versionId=null&prefix=%C3%A4+b",),
    "signatures": (
        b"X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential=ak%2F20231114%2Fus-east-1%2Fs3%2F"
        b"aws4_request&X-Amz-Date=20231114T221320Z&X-Amz-Expires=60&X-Amz-SignedHeaders=host&"
        b"X-Amz-Signature=00",
        b"\nauthorization: AWS4-HMAC-SHA256 Credential=ak/20231114/us-east-1/s3/aws4_request, "
        b"SignedHeaders=host, Signature=00\nx-amz-date: 20231114T221320Z\n"
        b"x-amz-content-sha256: UNSIGNED-PAYLOAD",
    ),
    "frames": (
        b"5\r\nhello\r\n0\r\nx-amz-checksum-crc32:AAAAAA==\r\n\r\n",
        b"5;chunk-signature="
        + b"0" * 64
        + b"\r\nhello\r\n0;chunk-signature="
        + b"0" * 64
        + b"\r\n\r\n",
    ),
    "headers": (
        b"bytes=0-99",
        b"bytes=-5",
        b"content-length: 5\ncontent-md5: AAAAAAAAAAAAAAAAAAAAAA==\nx-amz-meta-a: b",
        b"if-modified-since: Tue, 14 Nov 20234444444444444444444444 22:13:20 GMT",
        b"if-match: *\nif-modified-since: Tue, 14 Nov 2023 22:13:20 GMT\nexpires: 0",
        b"x-amz-server-side-encryption-customer-algorithm: AES256\n"
        b"x-amz-server-side-encryption-customer-key: AAAA\n"
        b"x-amz-server-side-encryption-customer-key-md5: AAAA",
    ),
    "forms": (
        b"multipart/form-data; boundary=limit\n--limit\r\nContent-Disposition: form-data; "
        b'name="key"\r\n\r\nk\r\n--limit\r\nContent-Disposition: form-data; name="file"; '
        b'filename="f"\r\n\r\nhello\r\n--limit--\r\n',
    ),
    "requests": (
        b"PUT bucket/key\ncontent-length: 5\nx-amz-meta-a: b\n\nhello",
        b"PUT bucket/key\nx-amz-content-sha256: STREAMING-UNSIGNED-PAYLOAD-TRAILER\n"
        b"x-amz-decoded-content-length: 5\ncontent-encoding: aws-chunked\n"
        b"x-amz-trailer: x-amz-checksum-crc32\n\n5\r\nhello\r\n0\r\n"
        b"x-amz-checksum-crc32:NhCmhg==\r\n\r\n",
        b"GET bucket?list-type=2&max-keys=3&delimiter=/&encoding-type=url\n\n",
        b"GET bucket/key?partNumber=1\nrange: bytes=0-1\n\n",
        b"GET bucket?versions&key-marker=a&version-id-marker=b\n\n",
        b"POST bucket?delete\ncontent-length: 65\nx-amz-content-sha256: "
        + hashlib.sha256(_DELETE).hexdigest().encode()
        + b"\n\n"
        + _DELETE,
        b"POST bucket/key?uploads\n\n",
        b"PUT bucket/key?uploadId=u1&partNumber=1\ncontent-length: 5\n\nhello",
        b"PUT bucket/key\nx-amz-copy-source: /bucket/other\n\n",
        b"PUT bucket?encryption\ncontent-length: 3\n\n<a>",
        b"GET bucket?acl\n\n",
        b"HEAD bucket/key\nif-none-match: *\n\n",
        b"DELETE bucket/key?versionId=null\n\n",
        b"OPTIONS bucket/key\norigin: a\naccess-control-request-method: GET\n\n",
    ),
}
