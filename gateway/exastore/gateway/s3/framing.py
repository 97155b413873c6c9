"""The aws-chunked framing of request bodies, without I/O.

    <hex size>[;chunk-signature=<hex>]\\r\\n <data> \\r\\n        any number of frames
    0[;chunk-signature=<hex>]\\r\\n                              the last frame
    <name>:<value>\\r\\n                                         trailers, if announced
    x-amz-trailer-signature:<hex>\\r\\n                          when frames are signed
    \\r\\n

Data is handed out before its frame's signature has been seen: a frame may be larger than memory.
So nothing may be committed before `close()` has returned.
"""

import hashlib
import hmac
from collections.abc import Iterator
from enum import Enum, auto

from exastore.gateway.errors import RequestError
from exastore.gateway.s3.auth import Identity, frame_signature, trailer_signature

MAX_LINE_BYTES = 4096
MAX_TRAILER_BYTES = 16 * 1024

_SIGNATURE = "x-amz-trailer-signature"


class _Expect(Enum):
    FRAME_HEADER = auto()
    DATA = auto()
    FRAME_END = auto()
    TRAILER = auto()
    NOTHING = auto()


class FrameSigner:
    """Verifies the chain of frame signatures, which starts with the request's own."""

    def __init__(self, identity: Identity) -> None:
        self._identity = identity
        self._previous = identity.signature

    def check_frame(self, signature: str, frame_sha256: str) -> None:
        """Verify a frame, whose data has this SHA-256."""
        it = self._identity
        self._check(
            signature,
            frame_signature(it.signing_key, it.timestamp, it.scope, self._previous, frame_sha256),
        )

    def check_trailer(self, signature: str, trailer: bytes) -> None:
        """Verify the trailers."""
        it = self._identity
        self._check(
            signature,
            trailer_signature(it.signing_key, it.timestamp, it.scope, self._previous, trailer),
        )

    def _check(self, signature: str, expected: str) -> None:
        if not hmac.compare_digest(signature.encode("latin-1"), expected.encode()):
            raise RequestError(
                "SignatureDoesNotMatch",
                "The signature we calculated for a chunk of the body does not match the one "
                "you provided.",
            )
        self._previous = signature


class FrameDecoder:
    """Takes the framing off, incrementally.

    Args:
        signer: Verifies the frames; None when they are not signed.
        has_trailer: Whether trailers were announced.
    """

    def __init__(self, signer: FrameSigner | None, *, has_trailer: bool) -> None:
        self._signer = signer
        self._has_trailer = has_trailer
        self._expect = _Expect.FRAME_HEADER
        #: Received and not yet consumed; shorter than a line, except within `feed`.
        self._buffer = bytearray()
        #: Data bytes of the current frame that are still to come.
        self._left_bytes = 0
        self._frame_signature = ""
        self._frame_sha256 = hashlib.sha256()
        self._trailer_bytes = 0
        self._trailer_signature: str | None = None
        #: Trailers by lower-case name, in the order received.
        self.trailers: dict[str, str] = {}

    def feed(self, piece: bytes) -> Iterator[bytes]:
        """Take a piece of the framed body; yield the data in it.

        Raises:
            RequestError: IncompleteBody for bad framing, MalformedTrailerError,
                SignatureDoesNotMatch.
        """
        position = 0
        if self._buffer:
            piece = bytes(self._buffer) + piece
            self._buffer.clear()
        while position < len(piece):
            if self._expect is _Expect.DATA:
                data = piece[position : position + self._left_bytes]
                position += len(data)
                self._left_bytes -= len(data)
                if self._signer is not None:
                    self._frame_sha256.update(data)
                if not self._left_bytes:
                    self._expect = _Expect.FRAME_END
                yield data
                continue
            newline = piece.find(b"\n", position)
            if newline < 0:
                self._buffer += piece[position:]
                if len(self._buffer) > MAX_LINE_BYTES:
                    raise _bad_framing("a line is too long")
                return
            line = piece[position:newline].removesuffix(b"\r").decode("latin-1")
            position = newline + 1
            self._take_line(line)

    def close(self) -> None:
        """The body has ended: check that it was whole."""
        if self._expect is _Expect.TRAILER and not self._buffer:
            # Some clients leave out the empty line that ends the trailers.
            self._end_trailers()
        if self._expect is not _Expect.NOTHING or self._buffer:
            raise RequestError(
                "IncompleteBody", "The aws-chunked body ended before its last chunk."
            )

    def _take_line(self, line: str) -> None:
        match self._expect:
            case _Expect.FRAME_HEADER:
                self._start_frame(line)
            case _Expect.FRAME_END:
                if line:
                    raise _bad_framing("a chunk is longer than its size")
                self._end_frame()
                self._expect = _Expect.FRAME_HEADER
            case _Expect.TRAILER:
                self._take_trailer(line)
            case _:
                raise _bad_framing("there are bytes after the last chunk")

    def _start_frame(self, line: str) -> None:
        size, _, extension = line.partition(";")
        size = size.strip()
        if not size or len(size) > 16 or size.strip("0123456789abcdefABCDEF"):
            raise _bad_framing("a chunk has no size")
        self._left_bytes = int(size, 16)
        name, _, signature = extension.strip().partition("=")
        if self._signer is not None and name != "chunk-signature":
            raise _bad_framing("a chunk has no signature")
        self._frame_signature = signature
        self._frame_sha256 = hashlib.sha256()
        if self._left_bytes:
            self._expect = _Expect.DATA
        else:
            self._end_frame()
            self._expect = _Expect.TRAILER

    def _end_frame(self) -> None:
        if self._signer is not None:
            self._signer.check_frame(self._frame_signature, self._frame_sha256.hexdigest())

    def _take_trailer(self, line: str) -> None:
        self._trailer_bytes += len(line)
        if self._trailer_bytes > MAX_TRAILER_BYTES:
            raise _bad_trailer("they are too long")
        if not line:
            waits = self._signer is not None and self._has_trailer
            if not waits or self._trailer_signature is not None:
                self._end_trailers()
            return
        name, colon, value = line.partition(":")
        name = name.strip().lower()
        if not colon or not self._has_trailer:
            raise _bad_trailer("one of them was not announced, or has no value")
        if name == _SIGNATURE:
            self._trailer_signature = value.strip()
        else:
            self.trailers[name] = value.strip()

    def _end_trailers(self) -> None:
        if self._signer is not None and self._has_trailer:
            if self._trailer_signature is None:
                raise _bad_framing("the trailers are not signed")
            signed = "".join(f"{name}:{value}\n" for name, value in self.trailers.items())
            self._signer.check_trailer(self._trailer_signature, signed.encode("latin-1"))
        self._expect = _Expect.NOTHING


def _bad_framing(what: str) -> RequestError:
    return RequestError("IncompleteBody", f"The aws-chunked encoding of the body is wrong: {what}.")


def _bad_trailer(what: str) -> RequestError:
    return RequestError("MalformedTrailerError", f"The trailers of the body are wrong: {what}.")
