"""The body of a PUT: framing off, every promise of the client checked before the commit."""

import hmac
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from exastore.gateway.errors import RequestError
from exastore.gateway.md5_lanes import new_md5
from exastore.gateway.s3.auth import UNSIGNED_PAYLOAD, Identity
from exastore.gateway.s3.checksums import (
    DEFAULT_ALGORITHM,
    DIGEST_BYTES,
    Checksum,
    decode_digest,
    encode_digest,
    new_checksum,
)
from exastore.gateway.s3.framing import FrameDecoder, FrameSigner
from exastore.gateway.s3.message import Request, RequestStream
from exastore.gateway.store import BodyDigests

#: The most bytes of one PUT or one part.
MAX_PUT_BYTES = 5 << 30

_CHECKSUM_PREFIX = "x-amz-checksum-"
#: Headers that begin so and have no digest.
_ABOUT_CHECKSUMS = frozenset(_CHECKSUM_PREFIX + it for it in ("algorithm", "mode", "type"))
_STREAMING = {
    "STREAMING-AWS4-HMAC-SHA256-PAYLOAD",
    "STREAMING-AWS4-HMAC-SHA256-PAYLOAD-TRAILER",
    "STREAMING-UNSIGNED-PAYLOAD-TRAILER",
}
_DECODED_LENGTH = "x-amz-decoded-content-length"


@dataclass(frozen=True, slots=True)
class Promise:
    """What the headers say about the body."""

    length_bytes: int
    """Of the data, without framing."""
    md5: bytes | None = None
    sha256: bytes | None = None
    """From x-amz-content-sha256: part of the signature."""
    checksums: Mapping[str, bytes] = field(default_factory=dict[str, bytes])
    """Digests given as headers, by algorithm."""
    trailing: tuple[str, ...] = ()
    """Algorithms whose digest comes as a trailer."""
    framed: bool = False
    frames_signed: bool = False


def read_promise(headers: Mapping[str, str], payload_hash: str) -> Promise:
    """Read what the headers promise.

    Raises:
        RequestError: MissingContentLength, EntityTooLarge, InvalidDigest, InvalidArgument, ...
    """
    framed = payload_hash in _STREAMING
    has_frames = "aws-chunked" in _encodings(headers) and _DECODED_LENGTH in headers
    if has_frames and not framed:
        # Only the signed hash says how to read the frames. The encoding alone means nothing.
        raise RequestError("InvalidRequest", "aws-chunked needs a STREAMING-* x-amz-content-sha256")
    trailing = _trailing(headers) if payload_hash.endswith("-TRAILER") else ()
    checksums = _checksums(headers)
    _check_algorithms(headers, (*checksums, *trailing))
    return Promise(
        length_bytes=_length(headers, framed=framed),
        md5=_content_md5(headers),
        sha256=None if framed or payload_hash == UNSIGNED_PAYLOAD else _sha256(payload_hash),
        checksums=checksums,
        trailing=trailing,
        framed=framed,
        frames_signed=payload_hash.startswith("STREAMING-AWS4-"),
    )


def _encodings(headers: Mapping[str, str]) -> list[str]:
    return [name.strip() for name in headers.get("content-encoding", "").split(",")]


def stored_content_encoding(headers: Mapping[str, str]) -> str:
    """Content-Encoding without the aws-chunked that only describes the transfer."""
    return ",".join(name for name in _encodings(headers) if name and name != "aws-chunked")


def _length(headers: Mapping[str, str], *, framed: bool) -> int:
    name = _DECODED_LENGTH if framed else "content-length"
    text = headers.get(name)
    if text is None:
        raise RequestError(
            "MissingContentLength", f"You must provide the {name.title()} HTTP header."
        )
    if not (text.isascii() and text.isdigit()) or len(text) > 19:
        raise RequestError("InvalidArgument", f"{name} is not a number of bytes.")
    length_bytes = int(text)
    if length_bytes > MAX_PUT_BYTES:
        raise RequestError(
            "EntityTooLarge",
            f"Your proposed upload exceeds the maximum allowed object size of "
            f"{MAX_PUT_BYTES} bytes; use a multipart upload.",
        )
    return length_bytes


def _content_md5(headers: Mapping[str, str]) -> bytes | None:
    text = headers.get("content-md5")
    if text is None:
        return None
    digest = decode_digest(text, 16)
    if digest is None:
        raise RequestError("InvalidDigest", "The Content-MD5 you specified was invalid.")
    return digest


def _sha256(payload_hash: str) -> bytes:
    try:
        digest = bytes.fromhex(payload_hash)
    except ValueError:
        digest = b""
    if len(digest) != 32:
        raise RequestError(
            "InvalidArgument",
            "x-amz-content-sha256 must be UNSIGNED-PAYLOAD, a STREAMING-* value of Signature "
            "Version 4 or a valid sha256 value.",
        )
    return digest


def _checksums(headers: Mapping[str, str]) -> dict[str, bytes]:
    digests: dict[str, bytes] = {}
    for name, text in headers.items():
        if not name.startswith(_CHECKSUM_PREFIX) or name in _ABOUT_CHECKSUMS:
            continue
        digest_bytes = DIGEST_BYTES.get(name.removeprefix(_CHECKSUM_PREFIX))
        if digest_bytes is None:
            raise RequestError(
                "InvalidRequest",
                "The algorithm type you specified in x-amz-checksum- header is invalid.",
            )
        digest = decode_digest(text, digest_bytes)
        if digest is None:
            raise RequestError("InvalidRequest", f"Value for {name} header is invalid.")
        digests[name.removeprefix(_CHECKSUM_PREFIX)] = digest
    return digests


def _check_algorithms(headers: Mapping[str, str], named: tuple[str, ...]) -> None:
    """Hold what the headers say of checksums against those that come: one, of the SDK's kind."""
    if len(named) > 1:
        raise RequestError(
            "InvalidRequest", "Expecting a single x-amz-checksum- header. Multiple found."
        )
    announced = headers.get("x-amz-sdk-checksum-algorithm")
    if not announced:
        return
    if not named:
        raise RequestError(
            "InvalidRequest",
            "x-amz-sdk-checksum-algorithm specified, but no corresponding x-amz-checksum-* or "
            "x-amz-trailer headers were found.",
        )
    if announced.lower() != named[0]:
        raise RequestError(
            "InvalidRequest", "Value for x-amz-sdk-checksum-algorithm header is invalid."
        )


def _trailing(headers: Mapping[str, str]) -> tuple[str, ...]:
    algorithms: list[str] = []
    for name in headers.get("x-amz-trailer", "").split(","):
        name = name.strip().lower()
        if not name:
            continue
        algorithm = name.removeprefix(_CHECKSUM_PREFIX)
        if algorithm == name or algorithm not in DIGEST_BYTES:
            raise RequestError(
                "InvalidRequest",
                "The value specified in the x-amz-trailer header is not supported",
            )
        algorithms.append(algorithm)
    return tuple(algorithms)


class RequestBody:
    """The `Body` of a request: iterate once, then `finish()`."""

    def __init__(
        self,
        stream: RequestStream,
        promise: Promise,
        identity: Identity,
        *,
        count: Callable[[int], None],
        default_checksum: str | None = DEFAULT_ALGORITHM,
    ) -> None:
        """Args:
        count: Told the bytes of each piece received, framing included.
        default_checksum: Computed when the client names no algorithm.
        """
        self._stream = stream
        self._promise = promise
        self._count = count
        self._decoder: FrameDecoder | None = None
        if promise.framed:
            signer = FrameSigner(identity) if promise.frames_signed else None
            self._decoder = FrameDecoder(signer, has_trailer=bool(promise.trailing))
        #: Running digests, one per algorithm to be checked or stored.
        self._checksums = {
            name: new_checksum(name) for name in (*promise.checksums, *promise.trailing)
        }
        if default_checksum is not None and not self._checksums:
            self._checksums[default_checksum] = new_checksum(default_checksum)
        self._md5 = new_md5() if promise.md5 is not None else None
        self._sha256 = new_checksum("sha256") if promise.sha256 is not None else None
        self._running: tuple[Checksum, ...] = tuple(
            running
            for running in (*self._checksums.values(), self._md5, self._sha256)
            if running is not None
        )
        self._digests_taken = False
        #: Data bytes handed out; never more than promised.
        self._received_bytes = 0
        self._ended = False

    @property
    def length_bytes(self) -> int:
        """The length promised."""
        return self._promise.length_bytes

    @property
    def algorithms(self) -> tuple[str, ...]:
        """The checksum algorithms that the client named."""
        return (*self._promise.checksums, *self._promise.trailing)

    def take_digests(self) -> BodyDigests:
        """Leave the digests to the consumer. See `DigestedBody`."""
        assert not self._received_bytes, "before iteration"
        self._digests_taken = True
        others = tuple(each for each in self._running if each is not self._md5)
        md5 = new_md5(self._promise.length_bytes)
        if self._md5 is not None:
            self._md5 = md5
        return BodyDigests(md5, others)

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while (piece := await self._stream.read()) is not None:
            self._count(len(piece))
            if self._decoder is None:
                if piece:
                    self._take(piece)
                    yield piece
            else:
                for data in self._decoder.feed(piece):
                    self._take(data)
                    yield data
        if self._decoder is not None:
            self._decoder.close()
        self._ended = True

    def _take(self, data: bytes) -> None:
        self._received_bytes += len(data)
        if self._received_bytes > self._promise.length_bytes:
            raise self._incomplete()
        if not self._digests_taken:
            for running in self._running:
                running.update(data)

    def _incomplete(self) -> RequestError:
        return RequestError(
            "IncompleteBody",
            "You did not provide the number of bytes specified by the Content-Length HTTP header.",
        )

    def finish(self) -> Mapping[str, str]:
        """Check every promise; return the checksums to store.

        Raises:
            RequestError: IncompleteBody, BadDigest, XAmzContentSHA256Mismatch, InvalidRequest,
            MalformedTrailerError.
        """
        promise = self._promise
        if not self._ended or self._received_bytes != promise.length_bytes:
            raise self._incomplete()
        if self._sha256 is not None and not _equal(self._sha256, promise.sha256):
            raise RequestError(
                "XAmzContentSHA256Mismatch",
                "The provided 'x-amz-content-sha256' header does not match what was computed.",
            )
        if self._md5 is not None and not _equal(self._md5, promise.md5):
            raise RequestError(
                "BadDigest",
                "The Content-MD5 you specified did not match what we received.",
            )
        for algorithm, expected in {**promise.checksums, **self._trailing_digests()}.items():
            if not _equal(self._checksums[algorithm], expected):
                raise RequestError(
                    "BadDigest",
                    f"The {algorithm.upper()} you specified did not match the calculated checksum.",
                )
        return {name: encode_digest(it.digest()) for name, it in self._checksums.items()}

    def _trailing_digests(self) -> dict[str, bytes]:
        digests: dict[str, bytes] = {}
        for algorithm in self._promise.trailing:
            assert self._decoder is not None
            text = self._decoder.trailers.get(_CHECKSUM_PREFIX + algorithm)
            if text is None:
                raise RequestError(
                    "MalformedTrailerError", f"There is no trailing x-amz-checksum-{algorithm}."
                )
            digest = decode_digest(text, DIGEST_BYTES[algorithm])
            if digest is None:
                raise RequestError(
                    "InvalidRequest",
                    f"Value for x-amz-checksum-{algorithm} trailing header is invalid.",
                )
            digests[algorithm] = digest
        return digests


def _equal(running: Checksum, expected: bytes | None) -> bool:
    return expected is not None and hmac.compare_digest(running.digest(), expected)


class StoredBody:
    """The `Body` of a copy: bytes that the store itself has, and verified on reading."""

    def __init__(
        self,
        pieces: AsyncIterator[bytes | memoryview],
        checksums: Mapping[str, str] = MappingProxyType({}),
        algorithm: str = DEFAULT_ALGORITHM,
    ) -> None:
        """Args:
        checksums: Those of the bytes, where they are known; else that of `algorithm` is computed.
        """
        self._pieces = pieces
        self._checksums = checksums
        self._algorithm = algorithm
        self._running = new_checksum(algorithm)

    async def __aiter__(self) -> AsyncIterator[bytes | memoryview]:
        async for piece in self._pieces:
            if not self._checksums:
                self._running.update(piece)
            yield piece

    def finish(self) -> Mapping[str, str]:
        return self._checksums or {self._algorithm: encode_digest(self._running.digest())}


async def read_document(
    request: Request, identity: Identity, *, max_bytes: int, own_checksum: bool = True
) -> bytes:
    """The whole body of a request that carries XML, with its promises checked.

    Args:
        own_checksum: Whether x-amz-checksum-* is of the document, not of an object.

    Raises:
        RequestError: MaxMessageLengthExceeded, and what `RequestBody` raises.
    """
    headers = request.headers
    if not own_checksum:
        headers = {
            name: value
            for name, value in headers.items()
            if not name.startswith((_CHECKSUM_PREFIX, "x-amz-sdk-checksum-"))
        }
    if "content-length" not in headers and _DECODED_LENGTH not in headers:
        headers = {**headers, "content-length": "0"}
    promise = read_promise(headers, identity.payload_hash)
    if promise.length_bytes > max_bytes:
        raise RequestError(
            "MaxMessageLengthExceeded",
            f"Your request was too large: the document has more than {max_bytes} bytes.",
        )
    body = RequestBody(
        request.stream, promise, identity, count=lambda _: None, default_checksum=None
    )
    document = b"".join([piece async for piece in body])
    body.finish()
    return document
