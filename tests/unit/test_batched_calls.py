"""Calls of a metadata server in batches: the same answers as one by one, fewer messages."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, cast

import grpc
import pytest
from prometheus_client import CollectorRegistry

from exastore.deploy.clock import SystemClock
from exastore.gateway.batched_channel import BatchedChannel
from exastore.gateway.metadata_errors import reason_of
from exastore.metadata.namespace.errors import NoSuchBucket
from exastore.metadata.service.batches import BatchServicer
from exastore.metadata.service.metrics import MetadataMetrics
from exastore.proto.v1 import batch_pb2, batch_pb2_grpc, metadata_pb2, metadata_pb2_grpc

GetBucket = Callable[[metadata_pb2.GetBucketRequest], Awaitable[metadata_pb2.Bucket]]


async def bucket_of(request: metadata_pb2.GetBucketRequest) -> metadata_pb2.Bucket:
    if request.name == "none":
        raise NoSuchBucket("none")
    return metadata_pb2.Bucket(name=request.name)


class CountingServicer(BatchServicer):
    """Counts the messages that arrive."""

    message_count = 0
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


@asynccontextmanager
async def serving(
    get_bucket: GetBucket, *, batches: bool = True
) -> AsyncGenerator[tuple[Any, CountingServicer, grpc.aio.Server]]:
    """A stub of MetadataService over a batched channel to a server that knows GetBucket."""
    server = grpc.aio.server()
    metrics = MetadataMetrics(CollectorRegistry())
    servicer = CountingServicer({"GetBucket": get_bucket}, metrics, SystemClock())
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
    channel = grpc.aio.insecure_channel(f"127.0.0.1:{port}")
    batched = BatchedChannel(channel)
    try:
        stub: Any = metadata_pb2_grpc.MetadataServiceStub(cast(grpc.aio.Channel, batched))
        yield stub, servicer, server
    finally:
        await batched.close()
        await channel.close()
        await server.stop(None)


def get(stub: Any, name: str, timeout: float = 10.0) -> Awaitable[metadata_pb2.Bucket]:
    answer: Awaitable[metadata_pb2.Bucket] = stub.GetBucket(
        metadata_pb2.GetBucketRequest(name=name), timeout=timeout
    )
    return answer


async def test_calls_that_are_made_together_travel_together() -> None:
    async with serving(bucket_of) as (stub, servicer, _):
        found = await asyncio.gather(*(get(stub, f"bucket-{number}") for number in range(200)))
        assert [bucket.name for bucket in found] == [f"bucket-{number}" for number in range(200)]
        assert servicer.message_count < 20


async def test_a_failure_has_the_status_and_the_reason_of_the_plain_call() -> None:
    async with serving(bucket_of) as (stub, _, _):
        answers = await asyncio.gather(
            get(stub, "a"), get(stub, "none"), get(stub, "b"), return_exceptions=True
        )
        assert isinstance(answers[1], grpc.aio.AioRpcError)
        assert answers[1].code() is grpc.StatusCode.NOT_FOUND
        assert reason_of(answers[1]) == "NO_SUCH_BUCKET"
        assert [isinstance(answer, metadata_pb2.Bucket) for answer in answers] == [1, 0, 1]


async def test_a_slow_call_does_not_hold_up_the_others() -> None:
    gate = asyncio.Event()

    async def slow(request: metadata_pb2.GetBucketRequest) -> metadata_pb2.Bucket:
        if request.name == "slow":
            await gate.wait()
        return await bucket_of(request)

    async with serving(slow) as (stub, _, _):
        waiting = asyncio.ensure_future(get(stub, "slow"))
        assert (await get(stub, "quick")).name == "quick"
        assert not waiting.done()
        gate.set()
        assert (await waiting).name == "slow"


async def test_a_call_without_an_answer_in_time_fails_and_the_next_one_is_served() -> None:
    async def hanging(request: metadata_pb2.GetBucketRequest) -> metadata_pb2.Bucket:
        if request.name == "hang":
            await asyncio.Event().wait()
        return await bucket_of(request)

    async with serving(hanging) as (stub, _, _):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await get(stub, "hang", timeout=0.05)
        assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        assert (await get(stub, "after")).name == "after"


async def test_when_the_server_goes_all_its_calls_can_be_sent_again() -> None:
    async def hanging(request: metadata_pb2.GetBucketRequest) -> metadata_pb2.Bucket:
        await asyncio.Event().wait()
        return await bucket_of(request)

    async with serving(hanging) as (stub, servicer, server):
        calls = [asyncio.ensure_future(get(stub, str(number))) for number in range(3)]
        while not servicer.message_count:
            await asyncio.sleep(0)
        await server.stop(None)
        for failure in await asyncio.gather(*calls, return_exceptions=True):
            assert isinstance(failure, grpc.aio.AioRpcError)
            assert failure.code() is grpc.StatusCode.UNAVAILABLE


async def test_a_process_that_had_the_port_meanwhile_does_not_end_batches() -> None:
    async with serving(bucket_of) as (stub, servicer, server):
        assert (await get(stub, "before")).name == "before"
        port = servicer.port
        await server.stop(None)
        stranger = grpc.aio.server()
        assert stranger.add_insecure_port(f"127.0.0.1:{port}") == port
        await stranger.start()
        for code in await asyncio.gather(*(failure_of(stub) for _ in range(3))):
            assert code in (grpc.StatusCode.UNIMPLEMENTED, grpc.StatusCode.UNAVAILABLE)
        while await failure_of(stub) is not grpc.StatusCode.UNIMPLEMENTED:
            pass  # the channel waits a moment before it connects again
        await stranger.stop(None)
        again = grpc.aio.server()
        batch_pb2_grpc.add_BatchServiceServicer_to_server(servicer, again)
        assert again.add_insecure_port(f"127.0.0.1:{port}") == port
        await again.start()
        while await failure_of(stub) is not None:
            pass
        count = servicer.message_count
        assert (await get(stub, "after")).name == "after"
        assert servicer.message_count > count
        await again.stop(None)


async def failure_of(stub: Any) -> grpc.StatusCode | None:
    """The status that a call fails with; None: it does not."""
    try:
        await get(stub, "any")
    except grpc.aio.AioRpcError as error:
        return error.code()
    return None


async def test_a_server_without_batches_is_called_one_by_one() -> None:
    async with serving(bucket_of, batches=False) as (stub, _, _):
        assert (await get(stub, "first")).name == "first"
        assert (await get(stub, "second")).name == "second"
