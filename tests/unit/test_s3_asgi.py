"""The S3 front behind ASGI, in process: errors of the store, broken clients, broken reads."""

import asyncio
import hashlib
import logging
from collections.abc import AsyncIterator, Callable, MutableMapping
from typing import Any, cast

import pytest
from prometheus_client import CollectorRegistry

from exastore.gateway.errors import (
    GatewayError,
    MetadataUnavailable,
    NoSpace,
    ServiceError,
    TooFewChunks,
    TooFewDevices,
)
from exastore.gateway.s3.asgi import AsgiApp
from exastore.gateway.s3.auth import (
    Scope,
    canonical_query,
    canonical_request,
    sign,
    signing_key,
    string_to_sign,
)
from exastore.gateway.s3.front import S3Front
from exastore.gateway.s3.identity import RootKey
from exastore.gateway.s3.metrics import S3Metrics
from exastore.gateway.store import ByteRange, ObjectInfo, ObjectStore
from exastore.gateway.testing.memory_store import MemoryStore

Message = MutableMapping[str, Any]

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


class Harness:
    """A front over a store, driven message by message."""

    def __init__(self, store: ObjectStore, *, idle_timeout_s: float = 60.0) -> None:
        self.registry = CollectorRegistry()
        front = S3Front(
            store,
            keys=RootKey("ak", "sk"),
            clock=StillClock(),
            metrics=S3Metrics(self.registry),
            new_request_id=lambda: bytes(8),
        )
        self.app = AsgiApp(front, idle_timeout_s=idle_timeout_s)
        self.sent: list[Message] = []
        #: Messages of the client; once used up, it says nothing until it is gone.
        self.messages: list[Message] = []
        self.gone = asyncio.Event()
        self.on_send: Callable[[], None] = lambda: None

    async def receive(self) -> Message:
        if self.messages:
            return self.messages.pop(0)
        await self.gone.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        self.sent.append(message)
        self.on_send()
        await asyncio.sleep(0)

    async def request(
        self, method: str, path: str, query: str = "", headers: dict[str, str] | None = None
    ) -> tuple[int, bytes]:
        signed = {
            "host": "h",
            "x-amz-date": TIMESTAMP,
            "x-amz-content-sha256": "UNSIGNED-PAYLOAD",
            **(headers or {}),
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
        self.sent.clear()
        scope = {
            "type": "http",
            "method": method,
            "raw_path": path.encode(),
            "query_string": query.encode(),
            "headers": [(name.encode(), value.encode()) for name, value in signed.items()],
        }
        await self.app(scope, self.receive, self.send)
        return self.sent[0]["status"], self.body()

    def body(self) -> bytes:
        return b"".join(bytes(message["body"]) for message in self.sent[1:])

    def headers(self) -> dict[bytes, bytes]:
        return dict(self.sent[0]["headers"])

    def count(self, operation: str, status: int) -> float | None:
        return self.registry.get_sample_value(
            "exastore_gateway_s3_requests_total",
            {"operation": operation, "status": str(status)},
        )

    def in_flight(self) -> float | None:
        return self.registry.get_sample_value("exastore_gateway_s3_requests_in_flight")


class FailingStore:
    """Every call fails in one way."""

    def __init__(self, error: BaseException) -> None:
        self._error = error

    def __getattr__(self, name: str) -> Any:
        async def fail(*_: Any, **__: Any) -> None:
            raise self._error

        return fail


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
    assert harness.headers()[b"x-amz-request-id"] == b"0000000000000000"
    assert (await harness.request("HEAD", "/b/k"))[1] == b""
    assert harness.count("GetObject", status) == 1
    assert harness.in_flight() == 0


async def test_our_mistakes_are_logged_and_not_shown(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.ERROR):
        status, body = await failing(KeyError("secret detail")).request("GET", "/b/k")
    assert (status, b"InternalError" in body, b"secret" in body) == (500, True, False)
    assert "secret detail" in caplog.text


async def test_a_cancelled_request_is_no_longer_in_flight() -> None:
    harness = failing(asyncio.CancelledError())
    with pytest.raises(asyncio.CancelledError):
        await harness.request("GET", "/b/k")
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
    assert harness.sent[-1]["more_body"] is True
    assert harness.in_flight() == 0


async def test_nothing_more_is_read_for_a_client_that_is_gone() -> None:
    reader = SlowReader(info_of(1 << 30))
    harness = Harness(cast("ObjectStore", ReaderStore(reader)))

    def leave_after_three() -> None:
        if len(harness.sent) == 4:
            harness.gone.set()

    harness.on_send = leave_after_three
    await harness.request("GET", "/b/k")
    assert reader.taken < 10
    assert reader.closed


async def stored(harness: Harness, messages: list[Message], **headers: str) -> tuple[int, bytes]:
    harness.messages = messages
    sent = {"content-length": "4"} | {name.replace("_", "-"): it for name, it in headers.items()}
    return await harness.request("PUT", "/b/k", headers=sent)


async def memory_harness(**options: Any) -> tuple[Harness, MemoryStore]:
    store = MemoryStore(lambda: NOW_S)
    await store.create_bucket("b", owner="o")
    return Harness(store, **options), store


def piece(body: bytes, *, more: bool) -> Message:
    return {"type": "http.request", "body": body, "more_body": more}


async def test_a_client_that_leaves_within_a_body_stores_nothing() -> None:
    harness, store = await memory_harness()
    messages = [piece(b"ab", more=True), {"type": "http.disconnect"}]
    status, body = await stored(harness, messages)
    assert (status, b"IncompleteBody" in body) == (400, True)
    listing = await store.list_objects("b", prefix="", delimiter="", start_after="", max_keys=9)
    assert listing.objects == []


async def test_a_client_that_pauses_too_long_is_dropped() -> None:
    harness, _ = await memory_harness(idle_timeout_s=0.01)
    status, body = await stored(harness, [piece(b"ab", more=True)])
    assert (status, b"RequestTimeout" in body) == (400, True)


async def test_a_refused_client_that_waits_for_continue_is_disconnected() -> None:
    harness, _ = await memory_harness()
    await stored(harness, [], expect="100-continue", x_amz_object_lock_event_hold="ON")
    assert harness.sent[0]["status"] == 501
    assert harness.headers()[b"connection"] == b"close"
    status, _ = await stored(harness, [piece(b"abcd", more=False)], expect="100-continue")
    assert status == 200
    assert b"connection" not in harness.headers()


async def test_bytes_are_counted_both_ways() -> None:
    harness, _ = await memory_harness()
    await stored(harness, [piece(b"ab", more=True), piece(b"cd", more=False)])
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
    harness = failing(MetadataUnavailable("down"))
    scope = {
        "type": "http",
        "method": "GET",
        "raw_path": b"/-/healthy",
        "query_string": b"",
        "headers": [],
    }
    await harness.app(scope, harness.receive, harness.send)
    assert (harness.sent[0]["status"], harness.body()) == (200, b"ok\n")
