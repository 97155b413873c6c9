"""The data path over a real metadata server and real storage nodes, in one process on loopback."""

import asyncio
import contextlib
import hashlib
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from tests.unit.gateway_fakes import BytesBody, some_bytes

from exastore.deploy.clock import SystemClock
from exastore.gateway.cluster_store import ClusterStore, open_cluster_store
from exastore.gateway.config import GatewayConfig
from exastore.gateway.errors import RequestError
from exastore.gateway.store import ByteRange, Deletion, ObjectAttributes, ObjectInfo, Precondition
from exastore.gateway.verifier import VerifyReport, verify_cluster
from exastore.metadata.service.config import MetadataConfig
from exastore.metadata.service.server import MetadataServer
from exastore.storage.config import StorageConfig
from exastore.storage.server import StorageNode

pytestmark = pytest.mark.integration

MIB = 1 << 20
SIZES = [0, 1, 4096, 4097, MIB, 9 * MIB + 3]


class Cluster:
    """Eight nodes, a metadata server and a store connected to them."""

    def __init__(self, store: ClusterStore, nodes: list[StorageNode]) -> None:
        self.store = store
        self.nodes = nodes

    async def put(self, key: str, data: bytes) -> ObjectInfo:
        info = await self.store.put_object(
            "bucket", key, BytesBody(data), ObjectAttributes(), Precondition()
        )
        assert (info.size_bytes, info.etag) == (len(data), hashlib.md5(data).hexdigest())
        return info

    async def get(self, key: str, byte_range: ByteRange | None = None) -> bytes:
        reader = await self.store.open_object("bucket", key)
        return b"".join([bytes(piece) async for piece in reader.read(byte_range)])

    async def verify(self) -> VerifyReport:
        return await verify_cluster(self.store.metadata, self.store.maps, self.store.nodes)

    async def kill(self, *indexes: int) -> None:
        """Stop nodes without any grace."""
        for index in indexes:
            await self.nodes[index].stop(0.0)


async def until(condition: Callable[[], bool], timeout_s: float = 30.0) -> None:
    """Wait until a condition holds."""
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline_s, "it did not happen in time"
        await asyncio.sleep(0.01)


@contextlib.asynccontextmanager
async def running_cluster(
    folder: Path,
    *,
    chunk_transport: str = "local",
    bulk_node_count: int = 8,
    **metadata_settings: float,
) -> AsyncGenerator[Cluster]:
    clock = SystemClock()
    engine = f"sqlite://{folder / 'meta.db'}"
    settings: dict[str, Any] = {"pg_count": 32, **metadata_settings}
    config = MetadataConfig(engine=engine, **settings)
    async with contextlib.AsyncExitStack() as stack:
        metadata = MetadataServer(config, clock=clock, registry=CollectorRegistry())
        address = await metadata.start()
        stack.push_async_callback(metadata.stop, 0.0)
        nodes: list[StorageNode] = []
        for index in range(8):
            node_config = StorageConfig(
                node_id=f"node-{index}",
                devices=(folder / f"device-{index}",),
                metadata=(address,),
                heartbeat_s=0.1,
                capacity_bytes=1 << 30,
                bulk_port=0 if index < bulk_node_count else -1,
            )
            node = StorageNode(node_config, clock=clock, registry=CollectorRegistry())
            await node.start()
            stack.push_async_callback(node.stop, 0.0)
            nodes.append(node)
        # The nodes, the server and the store share one loop and two cores with other tests: a slow
        # answer is no failure here.
        store = await open_cluster_store(
            GatewayConfig(
                metadata=(address,),
                chunk_transport=chunk_transport,
                chunk_timeout_s=30.0,
                straggler_wait_s=30.0,
                packed_bytes=0,  # every object has stripes: what these tests count
            ),
            clock=clock,
            registry=CollectorRegistry(),
        )
        stack.push_async_callback(store.close)
        await until(lambda: store.maps.epoch > 0)
        await store.create_bucket("bucket", owner="tester")
        yield Cluster(store, nodes)


async def test_what_is_put_comes_back_and_is_fully_redundant(tmp_path: Path) -> None:
    async with running_cluster(tmp_path) as cluster:
        for size in SIZES:
            data = some_bytes(size)
            await cluster.put(f"object-{size}", data)
            assert await cluster.get(f"object-{size}") == data
        data = some_bytes(9 * MIB + 3)
        middle = ByteRange(4 * MIB - 5, 4 * MIB + 11)
        got = await cluster.get(f"object-{9 * MIB + 3}", middle)
        assert got == data[middle.start : middle.start + middle.length]
        report = await cluster.verify()
        assert report.fully_redundant, report
        assert report.chunk_count == report.healthy_chunk_count == 6 * (1 + 1 + 3)


@pytest.mark.parametrize(
    ("transport", "bulk_node_count", "expected"),
    [("tcp", 8, 8), ("local", 4, 4)],
    ids=["tcp", "half-of-the-nodes-are-older"],
)
async def test_chunks_take_the_best_way_that_each_node_has(
    tmp_path: Path, transport: str, bulk_node_count: int, expected: int
) -> None:
    async with running_cluster(
        tmp_path, chunk_transport=transport, bulk_node_count=bulk_node_count
    ) as cluster:
        data = some_bytes(MIB)
        for key in "abcdefghij":  # enough stripes for every node to have chunks
            await cluster.put(key, data)
            assert await cluster.get(key) == data
        counts = [node.metrics.bulk_connections.collect() for node in cluster.nodes]
        open_counts = [next(iter(family)).samples[0].value for family in counts]
        assert sum(count > 0 for count in open_counts) == expected


async def test_two_nodes_die_and_everything_goes_on(tmp_path: Path) -> None:
    async with running_cluster(tmp_path, down_after_s=1.0, tick_s=0.1) as cluster:
        for size in SIZES:
            await cluster.put(f"before-{size}", some_bytes(size))
        epoch = cluster.store.maps.epoch
        await cluster.kill(1, 6)
        for size in SIZES:
            assert await cluster.get(f"before-{size}") == some_bytes(size)
            await cluster.put(f"during-{size}", some_bytes(size, 1))
            assert await cluster.get(f"during-{size}") == some_bytes(size, 1)
        await until(lambda: cluster.store.maps.epoch > epoch)
        for size in SIZES:
            await cluster.put(f"after-{size}", some_bytes(size, 2))
            for key, seed in (("before", 0), ("during", 1), ("after", 2)):
                assert await cluster.get(f"{key}-{size}") == some_bytes(size, seed)


class InterruptedBody(BytesBody):
    """Calls `interrupt` when half of the bytes were taken."""

    def __init__(self, data: bytes, interrupt: Callable[[], Awaitable[None]]) -> None:
        super().__init__(data)
        self._half = len(data) // 2
        self._interrupt = interrupt

    async def __aiter__(self) -> AsyncIterator[bytes | bytearray | memoryview]:
        taken, interrupted = 0, False
        async for piece in super().__aiter__():
            taken += len(piece)
            if taken > self._half and not interrupted:
                interrupted = True
                await self._interrupt()
            yield piece


async def test_a_node_killed_mid_write_loses_nothing(tmp_path: Path) -> None:
    async with running_cluster(tmp_path) as cluster:
        data = some_bytes(48 * MIB)
        body = InterruptedBody(data, lambda: cluster.kill(3))
        await cluster.store.put_object("bucket", "object", body, ObjectAttributes(), Precondition())
        assert await cluster.get("object") == data


async def test_the_cluster_repairs_itself_to_full_redundancy(tmp_path: Path) -> None:
    async with running_cluster(tmp_path, down_after_s=1.0, out_after_s=1.5, tick_s=0.1) as cluster:
        for size in SIZES:
            await cluster.put(f"object-{size}", some_bytes(size))
        await cluster.kill(2)
        deadline_s = time.monotonic() + 60.0
        while True:
            report = await cluster.verify()
            if report.fully_redundant:
                break
            assert time.monotonic() < deadline_s, report
            await asyncio.sleep(0.1)
        for size in SIZES:
            assert await cluster.get(f"object-{size}") == some_bytes(size)


async def test_a_multipart_upload_becomes_one_object(tmp_path: Path) -> None:
    async with running_cluster(tmp_path) as cluster:
        store = cluster.store
        upload = await store.create_upload("bucket", "big", ObjectAttributes("text/plain"))
        parts = [some_bytes(5 * MIB + 1, 1), some_bytes(6 * MIB, 2), some_bytes(10, 3)]
        etags: list[tuple[int, str]] = []
        for number, data in enumerate(parts, start=1):
            part = await store.put_part("bucket", "big", upload.upload_id, number, BytesBody(data))
            etags.append((number, part.etag))
        _, listed, truncated = await store.list_parts(
            "bucket", "big", upload.upload_id, after_number=0, max_parts=100
        )
        assert [part.size_bytes for part in listed] == [len(data) for data in parts]
        assert not truncated
        info = await store.complete_upload("bucket", "big", upload.upload_id, etags, Precondition())
        assert info.etag.endswith("-3")
        assert info.attributes.content_type == "text/plain"
        whole = b"".join(parts)
        assert await cluster.get("big") == whole
        middle = ByteRange(5 * MIB - 100, 300)
        assert await cluster.get("big", middle) == whole[middle.start : middle.start + 300]
        copied = await store.copy_object(
            ("bucket", "big"), ("bucket", "copy"), None, Precondition()
        )
        assert copied.etag == hashlib.md5(whole).hexdigest()
        assert await cluster.get("copy") == whole
        page = await store.list_objects(
            "bucket", prefix="", delimiter="", start_after="", max_keys=10
        )
        assert [found.key for found in page.objects] == ["big", "copy"]


async def test_requests_that_cannot_be_are_refused_by_name(tmp_path: Path) -> None:
    async with running_cluster(tmp_path) as cluster:
        store = cluster.store
        await cluster.put("key", some_bytes(5000))

        async def code_of(request: Awaitable[object]) -> str:
            with pytest.raises(RequestError) as caught:
                await request
            return caught.value.code

        def body() -> BytesBody:
            return BytesBody(some_bytes(5000))

        once, attributes = Precondition(must_not_exist=True), ObjectAttributes()
        cases = {
            "BucketAlreadyOwnedByYou": store.create_bucket("bucket", owner="tester"),
            "BucketAlreadyExists": store.create_bucket("bucket", owner="another"),
            "BucketNotEmpty": store.delete_bucket("bucket"),
            "NoSuchBucket": store.put_object("none", "key", body(), attributes, Precondition()),
            "NoSuchKey": store.head_object("bucket", "none"),
            "NoSuchUpload": store.put_part("bucket", "key", "none", 1, body()),
            "PreconditionFailed": store.put_object("bucket", "key", body(), attributes, once),
        }
        for expected, request in cases.items():
            assert await code_of(request) == expected
        deleted = await store.delete_objects("bucket", [Deletion("key"), Deletion("none")])
        assert [item.existed for item in deleted] == [True, False]
        await store.delete_bucket("bucket")
        assert await store.list_buckets() == []
