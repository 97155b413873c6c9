"""The S3 front behind a connection, in process: errors of the store, broken clients and reads."""

import asyncio
import hashlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, cast

import pytest
from prometheus_client import CollectorRegistry

from exastore.gateway.errors import (
    GatewayError,
    MetadataUnavailable,
    NoSpace,
    RequestError,
    ServiceError,
    TooFewChunks,
    TooFewDevices,
)
from exastore.gateway.s3.auth import (
    Scope,
    canonical_query,
    canonical_request,
    sign,
    signing_key,
    string_to_sign,
)
from exastore.gateway.s3.front import S3Front
from exastore.gateway.s3.http_connection import HttpConnection
from exastore.gateway.s3.http_hub import Handle, Hub, Patience
from exastore.gateway.s3.identity import RootKey
from exastore.gateway.s3.metrics import S3Metrics
from exastore.gateway.store import ByteRange, ObjectInfo, ObjectStore
from exastore.gateway.testing.memory_store import MemoryStore

CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
NOW_S = 1369353600.0
TIMESTAMP = "20130524T000000Z"
SCOPE = Scope("20130524", "us-east-1", "s3")
EMPTY = hashlib.sha256(b"").hexdigest()


class StillClock:
    def now_s(self) -> float:
        return NOW_S

    def monotonic_s(self) -> float:
        return 0.0

    async def sleep(self, duration_s: float) -> None:
        raise AssertionError("nothing sleeps here")


class FakeTransport:
    """What a connection writes to."""

    def __init__(self) -> None:
        self.written = bytearray()
        self.on_write: Callable[[], None] = lambda: None
        self.is_closed = False
        self.is_paused = False
        self.was_aborted = False
        self.sent_eof = False
        #: Bytes that the client did not take.
        self.unwritten_bytes = 0

    def get_extra_info(self, name: str) -> object:
        return ("192.0.2.1", 1) if name == "peername" else None

    def write(self, data: bytes | memoryview) -> None:
        if not self.is_closed:
            self.written += data
            self.on_write()

    def close(self) -> None:
        self.is_closed = True

    def abort(self) -> None:
        self.is_closed = self.was_aborted = True

    def is_closing(self) -> bool:
        return self.is_closed

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        self.sent_eof = True

    def pause_reading(self) -> None:
        assert not self.is_paused
        self.is_paused = True

    def resume_reading(self) -> None:
        assert self.is_paused
        self.is_paused = False

    def get_write_buffer_size(self) -> int:
        return self.unwritten_bytes


class Client:
    """A connection with a client that a test plays."""

    def __init__(self, handle: Handle, *, secure: bool = False) -> None:
        self.hub = Hub(handle, Patience(), secure, date_line="Date: today\r\n")
        self.transport = FakeTransport()
        self.connection = HttpConnection(self.hub, asyncio.get_running_loop())
        self.connection.connection_made(cast("asyncio.Transport", self.transport))

    def send(self, *pieces: bytes) -> None:
        for piece in pieces:
            self.connection.data_received(piece)

    def leave(self) -> None:
        self.connection.connection_lost(None)

    async def answers(self) -> bytes:
        """All that was written, once nothing is being answered."""
        while self.hub.tasks:
            await asyncio.wait(set(self.hub.tasks))
        return bytes(self.transport.written)

    async def settle(self) -> bytes:
        """What was written so far, once whoever could go on has."""
        for _ in range(20):
            await asyncio.sleep(0)
        return bytes(self.transport.written)

    def pass_ticks(self, count: int) -> None:
        for _ in range(count):
            self.hub.tick += 1
            self.connection.check_deadline()


class Harness:
    """A front over a store, driven byte by byte."""

    def __init__(self, store: ObjectStore) -> None:
        self.registry = CollectorRegistry()
        self.front = S3Front(
            store,
            keys=RootKey("ak", "sk"),
            clock=StillClock(),
            metrics=S3Metrics(self.registry),
            new_request_id=lambda: bytes(8),
        )
        self.head = b""
        self.client: Client | None = None

    async def request(
        self,
        method: str,
        path: str,
        query: str = "",
        headers: dict[str, str] | None = None,
        play: Callable[[Client], Awaitable[None]] | None = None,
    ) -> tuple[int, bytes]:
        """The status and body of a request; `play` sends its body."""
        self.client = client = Client(self.front.handle)
        client.send(signed_head(method, path, query, headers or {}))
        if play is not None:
            await play(client)
        return self.parsed(await client.answers())

    def parsed(self, answer: bytes) -> tuple[int, bytes]:
        self.head, _, body = answer.removeprefix(CONTINUE).partition(b"\r\n\r\n")
        return int(self.head.split(b" ", 2)[1]), body

    def count(self, operation: str, status: int) -> float | None:
        return self.registry.get_sample_value(
            "exastore_gateway_s3_requests_total",
            {"operation": operation, "status": str(status)},
        )

    def in_flight(self) -> float | None:
        return self.registry.get_sample_value("exastore_gateway_s3_requests_in_flight")


def signed_head(method: str, path: str, query: str, headers: dict[str, str]) -> bytes:
    signed = {
        "host": "h",
        "x-amz-date": TIMESTAMP,
        "x-amz-content-sha256": "UNSIGNED-PAYLOAD",
        **headers,
    }
    names = sorted(signed)
    canonical = canonical_request(
        method, path, canonical_query(query.encode()), signed, names, "UNSIGNED-PAYLOAD"
    )
    signature = sign(signing_key("sk", SCOPE), string_to_sign(TIMESTAMP, SCOPE, canonical))
    signed["authorization"] = (
        f"AWS4-HMAC-SHA256 Credential=ak/{SCOPE}, "
        f"SignedHeaders={';'.join(names)}, Signature={signature}"
    )
    fields = "".join(f"{name}: {text}\r\n" for name, text in signed.items())
    target = f"{path}?{query}" if query else path
    return f"{method} {target} HTTP/1.1\r\n{fields}\r\n".encode()


class FailingStore:
    """Every call fails in one way."""

    def __init__(self, error: BaseException) -> None:
        self._error = error
        self.call_count = 0

    def __getattr__(self, name: str) -> Any:
        async def fail(*_: Any, **__: Any) -> None:
            self.call_count += 1
            raise self._error

        return fail


class NoKeyStore(FailingStore):
    """Has no object."""

    async def open_object(
        self, bucket: str, key: str, version_id: str = "", *, part_checksums: bool = False
    ) -> None:
        raise RequestError("NoSuchKey", "There is none.")


class SlowReader:
    """Reads pieces for ever; says how many were taken and whether it was closed."""

    def __init__(self, info: ObjectInfo, error_after: int | None = None) -> None:
        self.info = info
        self.taken = 0
        self.closed = False
        self._error_after = error_after

    async def read(self, byte_range: ByteRange | None = None) -> AsyncIterator[bytes]:
        try:
            while True:
                if self.taken == self._error_after:
                    raise TooFewChunks(4, 3, bytes(16))
                self.taken += 1
                yield bytes(1024)
        finally:
            self.closed = True


class ReaderStore(FailingStore):
    def __init__(self, reader: SlowReader) -> None:
        super().__init__(AssertionError("only opened"))
        self._reader = reader

    async def open_object(
        self, bucket: str, key: str, version_id: str = "", *, part_checksums: bool = False
    ) -> SlowReader:
        return self._reader


def failing(error: BaseException) -> Harness:
    return Harness(cast("ObjectStore", FailingStore(error)))


def info_of(size_bytes: int) -> ObjectInfo:
    return ObjectInfo("b", "k", "v", size_bytes, "etag", NOW_S)


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (TooFewChunks(4, 3, bytes(16)), 503, b"ServiceUnavailable"),
        (TooFewDevices(5, 4), 503, b"SlowDown"),
        (MetadataUnavailable("down"), 503, b"ServiceUnavailable"),
        (ServiceError("other"), 503, b"ServiceUnavailable"),
        (NoSpace("full"), 507, b"InsufficientStorage"),
        (GatewayError("odd"), 500, b"InternalError"),
    ],
)
async def test_errors_of_the_store_become_s3s(
    error: GatewayError, status: int, code: bytes
) -> None:
    harness = failing(error)
    got, body = await harness.request("GET", "/b/k")
    assert (got, b"<Code>" + code + b"</Code>" in body) == (status, True)
    assert b"<Resource>/b/k</Resource><RequestId>0000000000000000</RequestId>" in body
    assert b"x-amz-request-id: 0000000000000000" in harness.head
    assert (await harness.request("HEAD", "/b/k"))[1] == b""
    assert harness.count("GetObject", status) == 1
    assert harness.in_flight() == 0


async def test_what_may_be_tried_again_says_when() -> None:
    harness = failing(MetadataUnavailable("down"))
    await harness.request("GET", "/b/k")
    assert b"\r\nretry-after: 1\r\n" in harness.head.lower()
    harness = failing(NoSpace("full"))
    await harness.request("GET", "/b/k")
    assert b"retry-after" not in harness.head.lower()


@pytest.mark.parametrize("error", [MetadataUnavailable("down"), KeyError("odd")])
async def test_a_page_of_another_origin_is_answered_when_its_rules_cannot_be_had(
    error: Exception,
) -> None:
    harness = Harness(cast("ObjectStore", NoKeyStore(error)))
    status, body = await harness.request("GET", "/b/k", headers={"origin": "https://a.example"})
    assert (status, b"NoSuchKey" in body) == (404, True)
    assert b"access-control" not in harness.head.lower()
    assert harness.in_flight() == 0


async def test_nobody_waits_twice_for_a_cluster_that_does_not_answer() -> None:
    store = FailingStore(MetadataUnavailable("down"))
    harness = Harness(cast("ObjectStore", store))
    status, _ = await harness.request("GET", "/b/k", headers={"origin": "https://a.example"})
    assert (status, store.call_count) == (503, 1)


async def test_our_mistakes_are_logged_and_not_shown(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.ERROR):
        status, body = await failing(KeyError("secret detail")).request("GET", "/b/k")
    assert (status, b"InternalError" in body, b"secret" in body) == (500, True, False)
    assert "secret detail" in caplog.text


async def test_a_cancelled_request_is_no_longer_in_flight() -> None:
    harness = failing(asyncio.CancelledError())
    client = Client(harness.front.handle)
    client.send(signed_head("GET", "/b/k", "", {}))
    assert await client.answers() == b""
    assert client.transport.was_aborted
    assert harness.in_flight() == 0
    assert harness.count("GetObject", 0) == 1


async def test_an_unreadable_object_is_an_error_and_no_half_object() -> None:
    reader = SlowReader(info_of(4096), error_after=0)
    status, body = await Harness(cast("ObjectStore", ReaderStore(reader))).request("GET", "/b/k")
    assert (status, b"ServiceUnavailable" in body) == (503, True)


async def test_a_read_that_breaks_off_leaves_the_response_unfinished() -> None:
    reader = SlowReader(info_of(4096), error_after=2)
    harness = Harness(cast("ObjectStore", ReaderStore(reader)))
    status, body = await harness.request("GET", "/b/k")
    assert (status, len(body)) == (200, 2048)
    assert b"Content-Length: 4096" in harness.head
    assert harness.client is not None and harness.client.transport.is_closed
    assert harness.in_flight() == 0


async def test_nothing_more_is_read_for_a_client_that_is_gone() -> None:
    reader = SlowReader(info_of(1 << 30))
    harness = Harness(cast("ObjectStore", ReaderStore(reader)))
    writes: list[int] = []

    async def leave_after_three(client: Client) -> None:
        def look() -> None:
            writes.append(1)
            if len(writes) == 4:
                client.leave()

        client.transport.on_write = look

    await harness.request("GET", "/b/k", play=leave_after_three)
    assert reader.taken < 10
    assert reader.closed


async def test_a_client_that_takes_nothing_stops_the_reading_and_is_cut_off() -> None:
    reader = SlowReader(info_of(1 << 30))
    client = Client(Harness(cast("ObjectStore", ReaderStore(reader))).front.handle)
    client.transport.on_write = client.connection.pause_writing
    client.send(signed_head("GET", "/b/k", "", {}))
    await client.settle()
    taken = reader.taken
    assert taken < 5
    client.transport.unwritten_bytes = 1000
    client.transport.on_write = lambda: None
    client.connection.resume_writing()
    client.transport.on_write = client.connection.pause_writing
    await client.settle()
    assert reader.taken > taken
    client.transport.unwritten_bytes = 500  # It takes a little: it is slow, not dead.
    client.pass_ticks(60)
    assert not client.transport.was_aborted
    client.pass_ticks(60)
    assert client.transport.was_aborted
    client.leave()
    await client.answers()
    assert reader.closed


async def stored(
    harness: Harness, play: Callable[[Client], Awaitable[None]] | None, **headers: str
) -> tuple[int, bytes]:
    sent = {"content-length": "4"} | {name.replace("_", "-"): it for name, it in headers.items()}
    return await harness.request("PUT", "/b/k", headers=sent, play=play)


async def memory_harness() -> tuple[Harness, MemoryStore]:
    store = MemoryStore(lambda: NOW_S)
    await store.create_bucket("b", owner="o")
    return Harness(store), store


async def send_all(client: Client) -> None:
    client.send(b"ab")
    await client.settle()
    client.send(b"cd")


async def test_a_client_that_leaves_within_a_body_stores_nothing() -> None:
    harness, store = await memory_harness()

    async def leave(client: Client) -> None:
        client.send(b"ab")
        await client.settle()
        client.connection.eof_received()

    status, body = await stored(harness, leave)
    assert (status, b"IncompleteBody" in body) == (400, True)
    listing = await store.list_objects("b", prefix="", delimiter="", start_after="", max_keys=9)
    assert listing.objects == []


async def test_a_client_that_pauses_too_long_is_dropped() -> None:
    harness, _ = await memory_harness()

    async def pause(client: Client) -> None:
        client.send(b"ab")
        await client.settle()
        client.pass_ticks(59)
        assert await client.settle() == b""
        client.pass_ticks(1)

    status, body = await stored(harness, pause)
    assert (status, b"RequestTimeout" in body) == (400, True)
    assert b"Connection: close" in harness.head


async def test_a_refused_client_that_waits_for_continue_is_disconnected() -> None:
    harness, _ = await memory_harness()
    status, _ = await stored(harness, None, expect="100-continue", content_md5="no digest")
    assert status == 400
    assert b"Connection: close" in harness.head

    async def wait(client: Client) -> None:
        assert await client.settle() == CONTINUE
        client.send(b"abcd")

    status, _ = await stored(harness, wait, expect="100-continue")
    assert status == 200
    assert b"Connection" not in harness.head


async def test_bytes_are_counted_both_ways() -> None:
    harness, _ = await memory_harness()
    await stored(harness, send_all)
    await harness.request("GET", "/b/k")
    value = harness.registry.get_sample_value
    assert value("exastore_gateway_s3_received_bytes_total") == 4
    assert value("exastore_gateway_s3_sent_bytes_total") == 4


async def test_documents_have_a_size_limit() -> None:
    harness, _ = await memory_harness()
    headers = {"content-length": str(5 << 20)}
    status, body = await harness.request("POST", "/b", "delete=", headers)
    assert (status, b"InvalidRequest" in body) == (400, True)
    headers["content-md5"] = "AAAAAAAAAAAAAAAAAAAAAA=="
    status, body = await harness.request("POST", "/b", "delete=", headers)
    assert (status, b"MaxMessageLengthExceeded" in body) == (400, True)


async def test_health_needs_no_signature() -> None:
    client = Client(failing(MetadataUnavailable("down")).front.handle)
    client.send(b"GET /-/healthy HTTP/1.1\r\nHost: h\r\n\r\n")
    answer = await client.answers()
    assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
    assert answer.endswith(b"\r\n\r\nok\n")
