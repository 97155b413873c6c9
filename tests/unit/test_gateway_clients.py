"""The clients of nodes and metadata servers: streams that fail, servers that go away."""

import asyncio

import grpc
import pytest
from prometheus_client import CollectorRegistry
from tests.unit.gateway_fakes import FakeMetadata, FakeNode, LoopClock, some_bytes

from exastore.gateway.chunk_stream import ByteBudget
from exastore.gateway.cluster_view import ClusterView
from exastore.gateway.config import GatewayConfig
from exastore.gateway.crc import crc32c
from exastore.gateway.errors import MetadataUnavailable, NodeSlow, NodeUnavailable, RequestError
from exastore.gateway.ids import time_ordered_ids
from exastore.gateway.metadata_client import MetadataClient
from exastore.gateway.metadata_errors import REQUEST_CODES
from exastore.gateway.metrics import GatewayMetrics
from exastore.gateway.node_client import ChunkAddress, ChunkWrite, NodeClient, NodePool
from exastore.proto.v1 import metadata_pb2, storage_pb2


class SetClock(LoopClock):
    """A clock that a test sets; sleeping advances it."""

    def __init__(self) -> None:
        self.s = 1000.0

    def now_s(self) -> float:
        return self.s

    def monotonic_s(self) -> float:
        return self.s

    async def sleep(self, duration_s: float) -> None:
        self.s += duration_s
        await asyncio.sleep(0)


def write_of(data: bytes, index: int = 0, request: int = 0) -> ChunkWrite:
    address = ChunkAddress(0, 0, request.to_bytes(16, "big"), index)
    return ChunkWrite(address, "rs-4-2", 1, crc32c(data), memoryview(data))


def node_client(address: str, clock: LoopClock, **settings: float) -> NodeClient:
    config = GatewayConfig(**settings)  # type: ignore[arg-type]  # a mix of int and float
    return NodeClient(address, config, clock=clock, metrics=GatewayMetrics(CollectorRegistry()))


@pytest.mark.parametrize("size", [1, 127, 128, 16_384, 1 << 20])
def test_a_frame_is_the_message_it_says(size: int) -> None:
    data = some_bytes(size)
    message = storage_pb2.WriteChunkRequest.FromString(write_of(data, 3, 9).request(77).encode())
    assert message.data == data
    assert (message.request_id, message.chunk.index, message.epoch) == (77, 3, 1)
    assert message.chunk.stripe_id == (9).to_bytes(16, "big")
    assert message.crc32c == crc32c(data)


async def test_many_writes_share_a_stream() -> None:
    node = FakeNode()
    client = node_client(await node.start(), LoopClock())
    data = some_bytes(1000)
    results = await asyncio.gather(
        *(client.write_chunk(write_of(data, request=i)) for i in range(50))
    )
    assert all(result.status == storage_pb2.CHUNK_STATUS_OK for result in results)
    assert len(node.chunks) == 50
    await client.close()
    await node.stop()


async def test_a_failed_stream_fails_all_its_requests_at_once_and_reopens() -> None:
    node, clock = FakeNode(), SetClock()
    client = node_client(await node.start(), clock)
    node.writes_flow.clear()
    data = some_bytes(1000)
    writes = [asyncio.create_task(client.write_chunk(write_of(data, i))) for i in range(5)]
    await asyncio.sleep(0)
    node.die_after_writes = 0
    node.dead = True
    node.writes_flow.set()
    for result in await asyncio.gather(*writes, return_exceptions=True):
        assert isinstance(result, NodeUnavailable | storage_pb2.WriteChunkResponse)
    with pytest.raises(NodeUnavailable, match=r"dead|broke"):
        await client.write_chunk(write_of(data))
    node.dead, node.die_after_writes = False, None
    # Still within the back-off: refused without being sent.
    with pytest.raises(NodeUnavailable, match=r"dead|broke"):
        await client.write_chunk(write_of(data))
    clock.s += 10.0
    assert (await client.write_chunk(write_of(data))).status == storage_pb2.CHUNK_STATUS_OK
    await client.close()
    await node.stop()


async def test_a_silent_node_is_given_up_after_the_timeout() -> None:
    node = FakeNode()
    client = node_client(await node.start(), LoopClock(), chunk_timeout_s=0.05)
    node.reads_flow.clear()
    with pytest.raises(NodeUnavailable, match="no answer within"):
        await client.read_chunk(ChunkAddress(0, 0, b"x" * 16, 0), 100)
    await client.close()
    await node.stop()


async def test_a_slow_answer_among_others_does_not_make_a_node_suspect() -> None:
    node, clock = FakeNode(), SetClock()
    view = ClusterView.from_message(FakeMetadata([await node.start()], code="rs-1-0").map)
    config = GatewayConfig(chunk_timeout_s=0.2)
    pool = NodePool(config, clock=clock, metrics=GatewayMetrics(CollectorRegistry()))
    node.writes_flow.clear()
    quick = asyncio.create_task(pool.write(view, write_of(b"quick")))
    while not node.arrived_count:
        await asyncio.sleep(0)
    slow = asyncio.create_task(pool.write(view, write_of(b"slow", request=1)))
    node.writes_left = 1
    node.writes_flow.set()
    assert (await quick).status == storage_pb2.CHUNK_STATUS_OK
    with pytest.raises(NodeSlow):
        await slow
    assert not pool.avoided(view)
    await pool.close()
    await node.stop()


async def test_a_closed_client_refuses() -> None:
    node = FakeNode()
    client = node_client(await node.start(), LoopClock())
    await client.close()
    with pytest.raises(NodeUnavailable, match="closed"):
        await client.write_chunk(write_of(b"x"))
    await node.stop()


async def test_nobody_listening_is_an_unavailable_node() -> None:
    node = FakeNode()
    address = await node.start()
    await node.stop()
    client = node_client(address, LoopClock())
    with pytest.raises(NodeUnavailable):
        await client.write_chunk(write_of(b"x"))
    with pytest.raises(NodeUnavailable):
        await client.delete_chunks(0, [])
    await client.close()


async def test_a_failed_node_is_suspect_for_a_while() -> None:
    node, clock = FakeNode(), SetClock()
    view = ClusterView.from_message(FakeMetadata([await node.start()], code="rs-1-0").map)
    config = GatewayConfig(suspect_s=3.0)
    pool = NodePool(config, clock=clock, metrics=GatewayMetrics(CollectorRegistry()))
    assert not pool.avoided(view)
    node.dead = True
    with pytest.raises(NodeUnavailable):
        await pool.write(view, write_of(b"x"))
    assert pool.avoided(view) == {0}
    clock.s += 3.1
    assert not pool.avoided(view)
    node.dead, node.write_status = False, storage_pb2.CHUNK_STATUS_FENCED
    await pool.write(view, write_of(b"x"))
    assert pool.avoided(view) == {0}
    await pool.close()
    await node.stop()


async def test_a_budget_lets_in_what_fits_in_order() -> None:
    budget = ByteBudget(100)
    await budget.acquire(60)
    big = asyncio.create_task(budget.acquire(500))
    small = asyncio.create_task(budget.acquire(10))
    await asyncio.sleep(0)
    assert not big.done() and not small.done()
    budget.release(60)
    await big
    assert not small.done()
    budget.release(500)
    await small


async def test_a_cancelled_wait_gives_up_its_turn() -> None:
    budget = ByteBudget(100)
    await budget.acquire(60)
    waiting = asyncio.create_task(budget.acquire(100))
    behind = asyncio.create_task(budget.acquire(40))
    await asyncio.sleep(0)
    waiting.cancel()
    await behind
    budget.release(60)
    budget.release(40)
    await budget.acquire(100)


async def test_room_that_comes_free_while_a_wait_is_cancelled_goes_to_the_next() -> None:
    budget = ByteBudget(100)
    await budget.acquire(100)
    given_up = asyncio.create_task(budget.acquire(100))
    behind = asyncio.create_task(budget.acquire(100))
    await asyncio.sleep(0)
    given_up.cancel()
    budget.release(100)  # before the cancelled task has had its turn
    await behind
    with pytest.raises(asyncio.CancelledError):
        await given_up
    budget.release(100)
    await asyncio.wait_for(budget.acquire(100), 1)  # nothing got lost


async def test_another_process_at_the_port_of_a_metadata_server_is_no_answer() -> None:
    stranger, there = grpc.aio.server(), FakeMetadata(["n:1"], code="rs-1-0")
    port = stranger.add_insecure_port("127.0.0.1:0")
    await stranger.start()
    there.map.epoch = 9
    addresses = (f"127.0.0.1:{port}", await there.start())
    client = MetadataClient(GatewayConfig(metadata=addresses), clock=SetClock())
    assert (await client.get_map()).epoch == 9
    alone = MetadataClient(GatewayConfig(metadata=addresses[:1]), clock=SetClock())
    with pytest.raises(MetadataUnavailable):
        await alone.get_map()
    with pytest.raises(MetadataUnavailable):
        await alone.get_documents("b")
    await client.close()
    await alone.close()
    await there.stop()
    await stranger.stop(None)


async def test_another_metadata_server_is_asked_when_one_is_gone() -> None:
    gone, there = FakeMetadata(["n:1"], code="rs-1-0"), FakeMetadata(["n:1"], code="rs-1-0")
    addresses = (await gone.start(), await there.start())
    await gone.stop()
    there.map.epoch = 9
    client = MetadataClient(GatewayConfig(metadata=addresses), clock=SetClock())
    assert (await client.get_map()).epoch == 9
    await client.close()
    await there.stop()


async def test_no_metadata_server_at_all_is_said_after_the_deadline() -> None:
    gone = FakeMetadata(["n:1"], code="rs-1-0")
    address = await gone.start()
    await gone.stop()
    clock = SetClock()
    client = MetadataClient(
        GatewayConfig(metadata=(address,), metadata_deadline_s=15.0), clock=clock
    )
    with pytest.raises(MetadataUnavailable, match=address):
        await client.get_map()
    assert 1010.0 < clock.s <= 1015.0
    await client.close()


@pytest.mark.parametrize(("reason", "code"), REQUEST_CODES.items())
async def test_reasons_become_the_codes_of_s3(reason: str, code: str) -> None:
    server = FakeMetadata(["n:1"], code="rs-1-0")
    client = MetadataClient(GatewayConfig(metadata=(await server.start(),)), clock=SetClock())
    server.commit_failures = [(grpc.StatusCode.FAILED_PRECONDITION, reason)]
    with pytest.raises(RequestError) as caught:
        await client.commit_object(metadata_pb2.CommitObjectRequest())
    assert caught.value.code == code
    assert "refused" in caught.value.message
    await client.close()
    await server.stop()


def test_bad_settings_are_refused_with_a_reason() -> None:
    with pytest.raises(ValueError, match="multiple of 64"):
        GatewayConfig(chunk_bytes=1000)
    with pytest.raises(ValueError, match="host:port"):
        GatewayConfig(metadata=("nowhere",))
    with pytest.raises(ValueError, match="no metadata server"):
        MetadataClient(GatewayConfig(), clock=SetClock())


def test_ids_are_unique_and_grow_with_time() -> None:
    clock = SetClock()
    new_id = time_ordered_ids(clock)
    ids: list[bytes] = []
    for _ in range(20):
        ids.append(new_id())
        clock.s += 1.0
    assert ids == sorted(ids) and len(set(ids)) == 20
    assert {len(made) for made in ids} == {16}
    assert len({new_id() for _ in range(1000)}) == 1000
