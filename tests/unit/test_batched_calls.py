"""Calls of a metadata server that travel together: the same answers as one by one, for less."""

import asyncio
import socket
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, cast

import grpc
import pytest
from prometheus_client import CollectorRegistry

from exastore.deploy.clock import SystemClock
from exastore.gateway.batched_channel import BatchedChannel
from exastore.gateway.call_links import SocketCalls, StreamCalls
from exastore.gateway.metadata_errors import is_retried, reason_of
from exastore.metadata.namespace.errors import NoSuchBucket
from exastore.metadata.service.batches import BatchServicer, Outcome
from exastore.metadata.service.call_port import LIMITS, call_port
from exastore.metadata.service.metrics import MetadataMetrics
from exastore.proto.bulk_frames import MAGIC, PREFIX, Frame, FrameKind, FrameReader, head_of
from exastore.proto.bulk_port import BulkLimits, BulkPort
from exastore.proto.channel import METADATA_MESSAGE_BYTES
from exastore.proto.links import BulkDialer, ChunkTransport
from exastore.proto.v1 import batch_pb2, batch_pb2_grpc, bulk_pb2, metadata_pb2, metadata_pb2_grpc
from exastore.proto.v1.bulk_pb2_grpc import add_BulkServiceServicer_to_server

GetBucket = Callable[[metadata_pb2.GetBucketRequest], Awaitable[metadata_pb2.Bucket]]


async def bucket_of(request: metadata_pb2.GetBucketRequest) -> metadata_pb2.Bucket:
    if request.name == "none":
        raise NoSuchBucket("none")
    return metadata_pb2.Bucket(name=request.name)


class CountingServicer(BatchServicer):
    """Counts the messages, and the calls, that arrive."""

    message_count = 0
    call_count = 0

    async def outcome(self, method: str, request: bytes | memoryview) -> Outcome:
        self.call_count += 1
        return await super().outcome(method, request)

    port = 0

    async def Exchange(
        self, request_iterator: AsyncIterator[batch_pb2.CallBatch], context: Any
    ) -> AsyncIterator[batch_pb2.AnswerBatch]:
        async def counted() -> AsyncIterator[batch_pb2.CallBatch]:
            async for batch in request_iterator:
                self.message_count += 1
                yield batch

        async for answers in super().Exchange(counted(), context):
            yield answers


@dataclass
class Served:
    """A server that knows GetBucket, and a stub of MetadataService over a batched channel to it."""

    stub: Any
    channel: BatchedChannel
    servicer: CountingServicer
    server: grpc.aio.Server
    port: BulkPort
    registry: CollectorRegistry

    async def stop(self) -> None:
        """As a process that is killed: whatever is under way gets no answer."""
        await asyncio.gather(self.port.stop(0), self.server.stop(None))

    def link(self) -> object:
        """The link in use."""
        return self.channel._link  # pyright: ignore[reportPrivateUsage]

    async def connected(self) -> socket.socket:
        """A connection that has said the secret."""
        told = await self.port.Describe(bulk_pb2.DescribeBulkRequest(), None)
        connected = socket.create_connection(("127.0.0.1", self.port.port))
        connected.setblocking(False)
        loop = asyncio.get_running_loop()
        await loop.sock_sendall(connected, head_of(FrameKind.HELLO, told.client_secret))
        expected = head_of(FrameKind.WELCOME, told.node_secret)
        got = b""
        while len(got) < len(expected):
            got += await loop.sock_recv(connected, len(expected) - len(got))
        assert got == expected
        return connected


@asynccontextmanager
async def serving(
    get_bucket: GetBucket,
    transport: ChunkTransport = ChunkTransport.LOCAL,
    *,
    has_port: bool = True,
    batches: bool = True,
    limits: BulkLimits = LIMITS,
) -> AsyncGenerator[Served]:
    server = grpc.aio.server()
    registry = CollectorRegistry()
    metrics = MetadataMetrics(registry)
    servicer = CountingServicer({"GetBucket": get_bucket}, metrics, SystemClock())
    bulk = call_port(servicer.outcome, metrics, limits)
    if has_port:
        bulk.start("127.0.0.1")
        add_BulkServiceServicer_to_server(bulk, server)
    if batches:
        batch_pb2_grpc.add_BatchServiceServicer_to_server(servicer, server)
    else:

        async def serve(request: metadata_pb2.GetBucketRequest, context: Any) -> Any:
            return await get_bucket(request)

        handler = grpc.unary_unary_rpc_method_handler(
            cast(Any, serve),
            request_deserializer=metadata_pb2.GetBucketRequest.FromString,
            response_serializer=metadata_pb2.Bucket.SerializeToString,
        )
        service = "exastore.proto.v1.MetadataService"
        methods = {"GetBucket": handler}
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, methods),))
    servicer.port = port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    address = f"127.0.0.1:{port}"
    channel = grpc.aio.insecure_channel(address)
    batched = BatchedChannel(BulkDialer(address, channel, transport))
    try:
        stub: Any = metadata_pb2_grpc.MetadataServiceStub(cast(grpc.aio.Channel, batched))
        yield Served(stub, batched, servicer, server, bulk, registry)
    finally:
        await batched.close()
        await channel.close()
        await server.stop(None)
        await bulk.stop(0)


def get(stub: Any, name: str, timeout: float = 10.0) -> Awaitable[metadata_pb2.Bucket]:
    answer: Awaitable[metadata_pb2.Bucket] = stub.GetBucket(
        metadata_pb2.GetBucketRequest(name=name), timeout=timeout
    )
    return answer


WAYS = pytest.mark.parametrize("transport", list(ChunkTransport))


async def hanging(request: metadata_pb2.GetBucketRequest) -> metadata_pb2.Bucket:
    if request.name.startswith("hang"):
        await asyncio.Event().wait()
    return await bucket_of(request)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():  # the other side is in callbacks of the loop
            await asyncio.sleep(0.002)


@WAYS
async def test_calls_that_are_made_together_are_answered_each(transport: ChunkTransport) -> None:
    async with serving(bucket_of, transport) as served:
        names = [f"bucket-{number}" for number in range(200)]
        found = await asyncio.gather(*(get(served.stub, name) for name in names))
        assert [bucket.name for bucket in found] == names
        is_grpc = transport is ChunkTransport.GRPC
        assert isinstance(served.link(), StreamCalls if is_grpc else SocketCalls)
        assert served.servicer.message_count < 20 if is_grpc else not served.servicer.message_count


@WAYS
async def test_a_failure_has_the_status_and_the_reason_of_the_plain_call(
    transport: ChunkTransport,
) -> None:
    async with serving(bucket_of, transport) as served:
        answers = await asyncio.gather(
            *(get(served.stub, name) for name in ("a", "none", "b")), return_exceptions=True
        )
        assert isinstance(answers[1], grpc.aio.AioRpcError)
        assert answers[1].code() is grpc.StatusCode.NOT_FOUND
        assert reason_of(answers[1]) == "NO_SUCH_BUCKET"
        assert answers[1].details() == str(NoSuchBucket("none"))
        assert [isinstance(answer, metadata_pb2.Bucket) for answer in answers] == [1, 0, 1]


@WAYS
async def test_a_slow_call_does_not_hold_up_the_others(transport: ChunkTransport) -> None:
    gate = asyncio.Event()

    async def slow(request: metadata_pb2.GetBucketRequest) -> metadata_pb2.Bucket:
        if request.name == "slow":
            await gate.wait()
        return await bucket_of(request)

    async with serving(slow, transport) as served:
        waiting = asyncio.ensure_future(get(served.stub, "slow"))
        assert (await get(served.stub, "quick")).name == "quick"
        assert not waiting.done()
        gate.set()
        assert (await waiting).name == "slow"


@WAYS
async def test_a_call_without_an_answer_in_time_fails_and_the_next_one_is_served(
    transport: ChunkTransport,
) -> None:
    async with serving(hanging, transport) as served:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await get(served.stub, "hang", timeout=0.05)
        assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        assert (await get(served.stub, "after")).name == "after"


@WAYS
async def test_when_the_server_goes_all_its_calls_can_be_sent_again(
    transport: ChunkTransport,
) -> None:
    async with serving(hanging, transport) as served:
        calls = [asyncio.ensure_future(get(served.stub, f"hang-{n}")) for n in range(3)]
        await until(lambda: served.servicer.call_count == 3)
        await served.stop()
        calls.append(asyncio.ensure_future(get(served.stub, "to nobody")))
        for failure in await asyncio.gather(*calls, return_exceptions=True):
            assert isinstance(failure, grpc.aio.AioRpcError)
            assert failure.code() is grpc.StatusCode.UNAVAILABLE
            assert is_retried(failure)


async def test_a_call_that_is_given_up_ends_at_the_server() -> None:
    ended: list[str] = []

    async def watched(request: metadata_pb2.GetBucketRequest) -> metadata_pb2.Bucket:
        try:
            return await hanging(request)
        except asyncio.CancelledError:
            ended.append(request.name)
            raise

    async with serving(watched) as served:
        call = asyncio.ensure_future(get(served.stub, "hang"))
        await until(lambda: served.servicer.call_count == 1)
        call.cancel()
        await until(lambda: ended == ["hang"])
        assert (await get(served.stub, "after")).name == "after"
        assert isinstance(served.link(), SocketCalls)


async def test_a_server_without_the_port_is_asked_over_the_stream() -> None:
    async with serving(bucket_of, has_port=False) as served:
        assert (await get(served.stub, "first")).name == "first"
        assert isinstance(served.link(), StreamCalls)


async def test_a_server_without_batches_is_called_one_by_one() -> None:
    async with serving(bucket_of, has_port=False, batches=False) as served:
        assert (await get(served.stub, "first")).name == "first"
        assert (await get(served.stub, "second")).name == "second"


async def test_a_message_beyond_the_limit_fails_alone() -> None:
    async def large(request: metadata_pb2.GetBucketRequest) -> metadata_pb2.Bucket:
        if request.name == "large":
            return metadata_pb2.Bucket(name="x" * (METADATA_MESSAGE_BYTES + 1))
        return await bucket_of(request)

    async with serving(large) as served:
        for name in ("x" * (METADATA_MESSAGE_BYTES + 1), "large"):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await get(served.stub, name)
            assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        link = served.link()
        assert (await get(served.stub, "after")).name == "after"
        assert served.link() is link


@pytest.mark.parametrize(
    ("sent", "is_ended"),
    [
        pytest.param(b"GET / HTTP/1.1\r\n\r\n", True, id="http"),
        pytest.param(head_of(FrameKind.READ, b""), True, id="another kind"),
        pytest.param(head_of(FrameKind.CALL, b"\xff\xff\xff"), True, id="no header"),
        pytest.param(PREFIX.pack(MAGIC, FrameKind.CALL, 0, 8, 1 << 31), True, id="data too long"),
        pytest.param(PREFIX.pack(MAGIC, FrameKind.CALL, 0, 1 << 30, 0), True, id="header too long"),
        pytest.param(
            head_of(FrameKind.CALL, batch_pb2.BatchedCall(method="No").SerializeToString()),
            False,
            id="unknown method",
        ),
        pytest.param(
            head_of(
                FrameKind.CALL, batch_pb2.BatchedCall(method="GetBucket").SerializeToString(), 3
            )
            + b"\xff\xff\xff",
            False,
            id="no request",
        ),
    ],
)
async def test_what_is_not_a_call_ends_its_connection_alone(sent: bytes, is_ended: bool) -> None:
    async with serving(bucket_of) as served:
        connected = await served.connected()
        loop = asyncio.get_running_loop()
        await loop.sock_sendall(connected, sent)
        async with asyncio.timeout(20):
            answer = await loop.sock_recv(connected, 4096)
        connected.close()
        assert (answer == b"") == is_ended
        if answer:
            (frame,) = _frames(answer)
            assert frame.kind is FrameKind.ANSWER
            assert batch_pb2.BatchedAnswer.FromString(frame.header).code
        refused = served.registry.get_sample_value(
            "exastore_metadata_bulk_refusals_total", {"reason": "misuse"}
        )
        assert (refused == 1.0) == is_ended
        assert (await get(served.stub, "after")).name == "after"


def _frames(received: bytes) -> list[Frame]:
    reader = FrameReader()
    reader.space()[: len(received)] = received
    return reader.received(len(received))


async def test_calls_beyond_the_limit_wait_for_answers() -> None:
    limits = BulkLimits(limit_bytes=3 * (64 << 10), data_bytes=METADATA_MESSAGE_BYTES)
    gate = asyncio.Event()

    async def slow(request: metadata_pb2.GetBucketRequest) -> metadata_pb2.Bucket:
        await gate.wait()
        return await bucket_of(request)

    async with serving(slow, limits=limits) as served:
        calls = [asyncio.ensure_future(get(served.stub, f"b-{n}")) for n in range(20)]
        await until(lambda: served.servicer.call_count == 3)
        gate.set()
        assert [bucket.name for bucket in await asyncio.gather(*calls)] == [
            f"b-{n}" for n in range(20)
        ]


async def test_another_process_at_the_port_is_not_told_anything() -> None:
    async with serving(bucket_of) as served, serving(bucket_of) as stranger:
        stolen = await stranger.port.Describe(bulk_pb2.DescribeBulkRequest(), None)
        served.port.port = stolen.port
        served.port._local_name = ""  # pyright: ignore[reportPrivateUsage]
        assert (await get(served.stub, "first")).name == "first"
        assert isinstance(served.link(), StreamCalls)
        assert stranger.servicer.call_count == 0
