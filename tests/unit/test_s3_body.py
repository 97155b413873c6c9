"""Bodies: the aws-chunked framing under any split, and every promise that is checked."""

import base64
import hashlib
import io
import zlib
from collections.abc import Callable, Iterable
from itertools import pairwise
from typing import Any

import pytest
from botocore.httpchecksum import AwsChunkedWrapper, Crc32Checksum
from hypothesis import given
from hypothesis import strategies as st

from exastore.gateway.errors import RequestError
from exastore.gateway.s3.auth import (
    Identity,
    Scope,
    frame_signature,
    signing_key,
    trailer_signature,
)
from exastore.gateway.s3.body import (
    MAX_PUT_BYTES,
    RequestBody,
    read_promise,
    stored_content_encoding,
)
from exastore.gateway.s3.checksums import DIGEST_BYTES, full_digest, new_checksum

SCOPE = Scope("20130524", "us-east-1", "s3")
TIMESTAMP = "20130524T000000Z"
KEY = signing_key("secret", SCOPE)
SEED = "0" * 64

PLAIN = "UNSIGNED-PAYLOAD"
SIGNED = "STREAMING-AWS4-HMAC-SHA256-PAYLOAD"
SIGNED_TRAILER = "STREAMING-AWS4-HMAC-SHA256-PAYLOAD-TRAILER"
UNSIGNED_TRAILER = "STREAMING-UNSIGNED-PAYLOAD-TRAILER"


class Pieces:
    """A request's stream that arrives in given pieces."""

    def __init__(self, pieces: Iterable[bytes]) -> None:
        self._pieces = iter(pieces)
        self.started = False

    async def read(self) -> bytes | None:
        self.started = True
        return next(self._pieces, None)


def base64_of(digest: bytes) -> str:
    return base64.b64encode(digest).decode()


def crc32_of(data: bytes) -> str:
    return base64_of(zlib.crc32(data).to_bytes(4, "big"))


def split(data: bytes, cuts: Iterable[int]) -> list[bytes]:
    edges = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    return [data[a:b] for a, b in pairwise(edges)]


def framed(frames: Iterable[bytes], *, signed: bool, trailers: dict[str, str]) -> bytes:
    """An aws-chunked body, written as the specification has it."""
    previous, out = SEED, bytearray()
    for data in (*frames, b""):
        out += b"%x" % len(data)
        if signed:
            sha256 = hashlib.sha256(data).hexdigest()
            previous = frame_signature(KEY, TIMESTAMP, SCOPE, previous, sha256)
            out += b";chunk-signature=" + previous.encode()
        out += b"\r\n" + data + (b"\r\n" if data else b"")
    text = "".join(f"{name}:{value}\n" for name, value in trailers.items()).encode()
    out += text.replace(b"\n", b"\r\n")
    if signed and trailers:
        signature = trailer_signature(KEY, TIMESTAMP, SCOPE, previous, text)
        out += b"x-amz-trailer-signature:" + signature.encode() + b"\r\n"
    return bytes(out + b"\r\n")


def body_of(pieces: Iterable[bytes], payload_hash: str, headers: dict[str, str]) -> RequestBody:
    identity = Identity("ak", payload_hash, KEY, SCOPE, TIMESTAMP, SEED)
    promise = read_promise(headers, payload_hash)
    return RequestBody(Pieces(pieces), promise, identity, count=lambda _: None)


async def received(body: RequestBody) -> tuple[bytes, dict[str, str]]:
    data = b"".join([piece async for piece in body])
    return data, dict(body.finish())


async def refusal(body: Callable[[], RequestBody]) -> str:
    with pytest.raises(RequestError) as caught:
        await received(body())
    return caught.value.code


def headers_of(data: bytes, payload_hash: str) -> dict[str, str]:
    headers = {"x-amz-decoded-content-length": str(len(data)), "content-encoding": "aws-chunked"}
    if payload_hash.endswith("TRAILER"):
        headers["x-amz-trailer"] = "x-amz-checksum-crc32"
    return headers


def wire_of(frames: Iterable[bytes], payload_hash: str) -> bytes:
    frames = [frame for frame in frames if frame]
    trailers = {}
    if payload_hash.endswith("TRAILER"):
        trailers = {"x-amz-checksum-crc32": crc32_of(b"".join(frames))}
    return framed(frames, signed=payload_hash.startswith("STREAMING-AWS4"), trailers=trailers)


@pytest.mark.parametrize("payload_hash", [SIGNED, SIGNED_TRAILER, UNSIGNED_TRAILER])
@given(frames=st.lists(st.binary(max_size=300), max_size=5), cuts=st.lists(st.integers(0, 4000)))
async def test_frames_come_off_whatever_the_split(
    payload_hash: str, frames: list[bytes], cuts: list[int]
) -> None:
    data, wire = b"".join(frames), wire_of(frames, payload_hash)
    body = body_of(split(wire, cuts), payload_hash, headers_of(data, payload_hash))
    got, checksums = await received(body)
    assert got == data
    if payload_hash.endswith("TRAILER"):
        assert checksums == {"crc32": crc32_of(data)}
    else:
        assert set(checksums) == {"crc64nvme"}


@pytest.mark.parametrize("payload_hash", [SIGNED, SIGNED_TRAILER, UNSIGNED_TRAILER])
@given(position=st.integers(0, 10_000), bit=st.integers(0, 7))
async def test_a_flipped_bit_is_never_accepted_as_other_data(
    payload_hash: str, position: int, bit: int
) -> None:
    data = b"0123456789" * 20
    wire = bytearray(wire_of([data[:128], data[128:]], payload_hash))
    wire[position % len(wire)] ^= 1 << bit
    body = body_of([bytes(wire)], payload_hash, headers_of(data, payload_hash))
    try:
        got, _ = await received(body)
    except RequestError:
        return
    assert got == data  # Only what carries no meaning was changed, such as the case of a digit.


@pytest.mark.parametrize("payload_hash", [SIGNED, SIGNED_TRAILER, UNSIGNED_TRAILER])
async def test_every_truncation_is_noticed(payload_hash: str) -> None:
    data = b"0123456789" * 3
    wire = wire_of([data[:16], data[16:]], payload_hash)
    # Some clients leave out the last, empty line.
    for length in range(len(wire) - 2):
        body = body_of([wire[:length]], payload_hash, headers_of(data, payload_hash))
        with pytest.raises(RequestError):
            await received(body)


@given(data=st.binary(max_size=2000), frame_bytes=st.integers(1, 500))
async def test_what_botocore_frames_is_understood(data: bytes, frame_bytes: int) -> None:
    wrapper: Any = AwsChunkedWrapper(
        io.BytesIO(data),
        checksum_cls=Crc32Checksum,
        checksum_name="x-amz-checksum-crc32",
        chunk_size=frame_bytes,
    )
    wire: bytes = wrapper.read()
    body = body_of([wire], UNSIGNED_TRAILER, headers_of(data, UNSIGNED_TRAILER))
    assert await received(body) == (data, {"crc32": crc32_of(data)})


@pytest.mark.parametrize(
    ("wire", "code"),
    [
        (b"zz\r\n", "IncompleteBody"),
        (b"\r\n", "IncompleteBody"),
        (b"-1\r\n", "IncompleteBody"),
        (b"11111111111111111\r\n", "IncompleteBody"),
        (b"5\r\nhelloXX0\r\n\r\n", "IncompleteBody"),
        (b"5" * 5000, "IncompleteBody"),
        (b"5\r\nhello\r\n0\r\nnonsense\r\n\r\n", "MalformedTrailerError"),
        (b"5\r\nhello\r\n0\r\n" + b"a:b\r\n" * 10_000, "MalformedTrailerError"),
        (b"5\r\nhello\r\n0\r\n\r\nmore\r\n", "IncompleteBody"),
        (b"5\r\nhello\r\n0\r\n\r\n", "MalformedTrailerError"),
        (b"5\r\nhello\r\n0\r\nx-amz-checksum-crc32:AAAAAA==\r\n\r\n", "BadDigest"),
        (b"5\r\nhello\r\n0\r\nx-amz-checksum-crc32:AAAA\r\n\r\n", "InvalidRequest"),
        (b"6\r\nhello!\r\n0\r\n\r\n", "IncompleteBody"),
        (b"4\r\nhell\r\n0\r\nx-amz-checksum-crc32:AAAAAA==\r\n\r\n", "IncompleteBody"),
    ],
)
async def test_wrong_framing_is_refused(wire: bytes, code: str) -> None:
    headers = headers_of(b"hello", UNSIGNED_TRAILER)
    assert await refusal(lambda: body_of([wire], UNSIGNED_TRAILER, headers)) == code


async def test_signed_frames_must_be_signed_in_their_order() -> None:
    data = b"a" * 10 + b"b" * 10
    unsigned = framed([data], signed=False, trailers={})
    headers = headers_of(data, SIGNED)
    assert await refusal(lambda: body_of([unsigned], SIGNED, headers)) == "IncompleteBody"
    swapped = framed([data[10:], data[:10]], signed=True, trailers={}).replace(b"b", b"c")
    assert await refusal(lambda: body_of([swapped], SIGNED, headers)) == "SignatureDoesNotMatch"
    no_trailer_signature = framed([data], signed=True, trailers={})
    trailing = headers_of(data, SIGNED_TRAILER)
    assert await refusal(lambda: body_of([no_trailer_signature], SIGNED_TRAILER, trailing)) == (
        "IncompleteBody"
    )


async def test_a_plain_body_gets_the_default_checksum() -> None:
    got = await received(body_of([b"he", b"", b"llo"], PLAIN, {"content-length": "5"}))
    digest = new_checksum("crc64nvme")
    digest.update(b"hello")
    assert got == (b"hello", {"crc64nvme": base64_of(digest.digest())})


@pytest.mark.parametrize("algorithm", sorted(DIGEST_BYTES))
async def test_a_checksum_in_a_header_is_verified(algorithm: str) -> None:
    digest = new_checksum(algorithm)
    digest.update(b"he")
    digest.update(memoryview(bytearray(b"llo")))  # The pieces of a body are of any kind.
    name, value = f"x-amz-checksum-{algorithm}", base64_of(digest.digest())
    headers = {"content-length": "5", name: value}
    assert await received(body_of([b"hello"], PLAIN, headers)) == (b"hello", {algorithm: value})
    assert await refusal(lambda: body_of([b"hella"], PLAIN, headers)) == "BadDigest"
    for bad in ("", "!", value[4:]):
        with pytest.raises(RequestError, match="InvalidRequest"):
            read_promise({"content-length": "5", name: bad}, PLAIN)


def test_the_crcs_have_their_published_check_values() -> None:
    for algorithm, expected in (
        ("crc32", 0xCBF43926),
        ("crc32c", 0xE3069283),
        ("crc64nvme", 0xAE8B14860A799888),
    ):
        digest = new_checksum(algorithm)
        digest.update(b"123456789")
        assert int.from_bytes(digest.digest(), "big") == expected
    with pytest.raises(KeyError):
        new_checksum("crc16")


@given(st.lists(st.binary(max_size=100), max_size=6))
def test_the_crc_of_a_whole_comes_out_of_its_parts(parts: list[bytes]) -> None:
    for algorithm in ("crc32", "crc32c", "crc64nvme"):
        whole = new_checksum(algorithm)
        whole.update(b"".join(parts))
        digests: list[tuple[bytes, int]] = []
        for part in parts:
            running = new_checksum(algorithm)
            running.update(part)
            digests.append((running.digest(), len(part)))
        assert full_digest(algorithm, digests) == whole.digest()
    assert full_digest("sha256", []) is None


@pytest.mark.parametrize(
    ("headers", "payload_hash", "code"),
    [
        ({}, PLAIN, "MissingContentLength"),
        ({"content-length": "5"}, UNSIGNED_TRAILER, "MissingContentLength"),
        ({"content-length": "-5"}, PLAIN, "InvalidArgument"),
        ({"content-length": "²"}, PLAIN, "InvalidArgument"),
        ({"content-length": str(MAX_PUT_BYTES + 1)}, PLAIN, "EntityTooLarge"),
        ({"content-length": "5"}, "nonsense", "InvalidArgument"),
        ({"content-length": "5"}, "STREAMING-AWS4-ECDSA-P256-SHA256-PAYLOAD", "InvalidArgument"),
        ({"content-length": "5", "content-md5": "AAAA"}, PLAIN, "InvalidDigest"),
        (
            {
                "content-length": "5",
                "content-encoding": "aws-chunked",
                "x-amz-decoded-content-length": "5",
            },
            PLAIN,
            "InvalidRequest",
        ),
        (
            {
                "content-length": "5",
                "x-amz-checksum-crc32": "AAAAAA==",
                "x-amz-checksum-crc32c": "AAAAAA==",
            },
            PLAIN,
            "InvalidRequest",
        ),
        (
            {"x-amz-decoded-content-length": "5", "x-amz-trailer": "x-amz-checksum-md4"},
            UNSIGNED_TRAILER,
            "InvalidRequest",
        ),
    ],
)
def test_impossible_promises_are_refused(
    headers: dict[str, str], payload_hash: str, code: str
) -> None:
    with pytest.raises(RequestError) as caught:
        read_promise(headers, payload_hash)
    assert caught.value.code == code


@pytest.mark.parametrize("pieces", [[b"hell"], [b"hello!"], []])
async def test_a_body_of_another_length_is_incomplete(pieces: list[bytes]) -> None:
    headers = {"content-length": "5"}
    assert await refusal(lambda: body_of(pieces, PLAIN, headers)) == "IncompleteBody"


def test_a_body_that_was_not_read_is_incomplete() -> None:
    with pytest.raises(RequestError, match="IncompleteBody"):
        body_of([b""], PLAIN, {"content-length": "0"}).finish()


async def test_the_signed_hash_must_be_that_of_the_body() -> None:
    sha256, headers = hashlib.sha256(b"hello").hexdigest(), {"content-length": "5"}
    await received(body_of([b"hello"], sha256, headers))
    assert await refusal(lambda: body_of([b"hella"], sha256, headers)) == (
        "XAmzContentSHA256Mismatch"
    )


async def test_the_md5_must_be_that_of_the_body() -> None:
    headers = {"content-length": "5", "content-md5": base64_of(hashlib.md5(b"hello").digest())}
    await received(body_of([b"hello"], PLAIN, headers))
    assert await refusal(lambda: body_of([b"hella"], PLAIN, headers)) == "BadDigest"


@pytest.mark.parametrize(
    ("sent", "stored"),
    [
        ("aws-chunked", ""),
        ("gzip", "gzip"),
        ("aws-chunked,gzip", "gzip"),
        ("gzip, aws-chunked", "gzip"),
        ("aws-chunked,", ""),
        ("br, gzip", "br,gzip"),
    ],
)
def test_the_framing_is_no_encoding_of_the_object(sent: str, stored: str) -> None:
    assert stored_content_encoding({"content-encoding": sent}) == stored
