"""A metadata server over real gRPC, in this process, on a port of the kernel's choice."""

import hashlib
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TypeAlias

import grpc
import pytest
from prometheus_client import CollectorRegistry, generate_latest

from exastore.deploy.clock import SystemClock
from exastore.metadata.service.config import MetadataConfig
from exastore.metadata.service.errors import AddressInUse, WrongCluster
from exastore.metadata.service.server import MetadataServer
from exastore.proto.v1 import common_pb2, metadata_pb2, metadata_pb2_grpc

pb = metadata_pb2
Stub: TypeAlias = "metadata_pb2_grpc.MetadataServiceAsyncStub"


def new_server(path: Path, **options: object) -> MetadataServer:
    values: dict[str, object] = {
        "engine": f"sqlite://{path}/meta.db",
        "code": "rs-2-1",
        "pg_count": 8,
        "bootstrap_device_count": 4,
        "min_part_bytes": 1,
        **options,
    }
    config = MetadataConfig(**values)  # type: ignore[arg-type]  # keyword values of a test
    return MetadataServer(config, clock=SystemClock(), registry=CollectorRegistry())


def heartbeat(number: int, known_epoch: int = 0) -> metadata_pb2.HeartbeatRequest:
    return pb.HeartbeatRequest(
        node=common_pb2.Node(
            id=f"n{number}", address=f"127.0.0.1:{7000 + number}", rack=f"r{number}"
        ),
        devices=[pb.DeviceReport(uuid=f"d{number}", capacity_bytes=1 << 40)],
        known_epoch=known_epoch,
    )


async def form(stub: Stub) -> common_pb2.ClusterMap:
    for number in range(4):
        await stub.Heartbeat(heartbeat(number))
    return await stub.GetMap(pb.GetMapRequest())


def extent(cluster: common_pb2.ClusterMap, name: bytes) -> common_pb2.Extent:
    return common_pb2.Extent(
        pg=1,
        stripe_id=name.ljust(16, b"\x00"),
        code=cluster.code,
        epoch=cluster.epoch,
        data_bytes=100,
        chunk_bytes=64,
        chunk_crc32c=[1, 2, 3],
    )


def reason(error: grpc.aio.AioRpcError) -> str:
    return next(
        str(value) for key, value in error.trailing_metadata() or () if key == "exastore-reason"
    )


@pytest.fixture
async def stub(tmp_path: Path) -> AsyncIterator[Stub]:
    server = new_server(tmp_path)
    channel = grpc.aio.insecure_channel(await server.start())
    yield metadata_pb2_grpc.MetadataServiceStub(channel)
    await channel.close()
    await server.stop(0.0)


async def test_a_cluster_forms_and_objects_are_committed_read_and_listed(stub: Stub) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as not_ready:
        await stub.GetMap(pb.GetMapRequest())
    assert reason(not_ready.value) == "NOT_READY"
    cluster = await form(stub)
    assert cluster.epoch >= 1
    assert len(cluster.pgs) == 8
    assert all(len(set(pg.device_indexes)) == 3 for pg in cluster.pgs)
    await stub.CreateBucket(pb.CreateBucketRequest(name="bucket", owner="me"))
    data = pb.Object(
        bucket="bucket",
        key="a/b",
        version_id="v1",
        size_bytes=100,
        etag="e1",
        extents=[extent(cluster, b"s1")],
        user_metadata={"mtime": "1"},
    )
    committed = await stub.CommitObject(pb.CommitObjectRequest(object=data))
    assert committed.modified_s > 0
    got = await stub.GetObject(pb.GetObjectRequest(bucket="bucket", key="a/b"))
    assert list(got.extents) == list(data.extents)
    assert dict(got.user_metadata) == {"mtime": "1"}
    listed = await stub.ListObjects(
        pb.ListObjectsRequest(bucket="bucket", delimiter="/", max_keys=10)
    )
    assert list(listed.common_prefixes) == ["a/"]
    extents = [
        e async for batch in stub.ListExtents(pb.ListExtentsRequest()) for e in batch.extents
    ]
    assert [e.stripe_id for e in extents] == [b"s1".ljust(16, b"\x00")]
    deleted = await stub.DeleteObjects(pb.DeleteObjectsRequest(bucket="bucket", keys=["a/b", "x"]))
    assert list(deleted.existed) == [True, False]


async def test_errors_carry_a_reason_in_the_trailing_metadata(stub: Stub) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as no_bucket:
        await stub.GetObject(pb.GetObjectRequest(bucket="absent", key="k"))
    assert no_bucket.value.code() == grpc.StatusCode.NOT_FOUND
    assert reason(no_bucket.value) == "NO_SUCH_BUCKET"
    assert "absent" in (no_bucket.value.details() or "")


async def test_a_multipart_upload_is_completed_in_place(stub: Stub) -> None:
    cluster = await form(stub)
    await stub.CreateBucket(pb.CreateBucketRequest(name="bucket"))
    at = ("bucket", "big", "u1")
    create = pb.CreateUploadRequest(bucket=at[0], key=at[1], upload_id=at[2])
    await stub.CreateUpload(create)
    etags = [hashlib.md5(str(n).encode()).hexdigest() for n in (1, 2)]
    for number, etag in enumerate(etags, 1):
        part = pb.Part(
            number=number,
            size_bytes=100,
            etag=etag,
            extents=[extent(cluster, b"p%d" % number)],
        )
        await stub.CommitPart(
            pb.CommitPartRequest(bucket=at[0], key=at[1], upload_id=at[2], part=part)
        )
    request = pb.CompleteUploadRequest(
        bucket=at[0],
        key=at[1],
        upload_id=at[2],
        parts=[pb.CompletedPart(number=n, etag=etag) for n, etag in enumerate(etags, 1)],
    )
    done = await stub.CompleteUpload(request)
    assert done.etag.endswith("-2")
    assert await stub.CompleteUpload(request) == done
    got = await stub.GetObject(pb.GetObjectRequest(bucket="bucket", key="big"))
    assert got.size_bytes == 200
    assert [e.stripe_id[:2] for e in got.extents] == [b"p1", b"p2"]
    assert [part.number for part in got.parts] == [1, 2]


async def test_watchers_see_a_new_address_as_a_new_epoch(stub: Stub) -> None:
    cluster = await form(stub)
    watch = stub.WatchMap(pb.GetMapRequest(known_epoch=cluster.epoch))
    moved = heartbeat(2)
    moved.node.address = "127.0.0.1:9"
    response = await stub.Heartbeat(moved)
    assert response.map.nodes[2].address == "127.0.0.1:9"
    seen = await anext(aiter(watch))
    assert seen.epoch == cluster.epoch + 1
    watch.cancel()


async def test_a_restarted_server_knows_map_and_objects(tmp_path: Path) -> None:
    server = new_server(tmp_path)
    async with grpc.aio.insecure_channel(await server.start()) as channel:
        stub = metadata_pb2_grpc.MetadataServiceStub(channel)
        before = await form(stub)
        await stub.CreateBucket(pb.CreateBucketRequest(name="bucket"))
    await server.stop(0.0)
    again = new_server(tmp_path)
    async with grpc.aio.insecure_channel(await again.start()) as channel:
        stub = metadata_pb2_grpc.MetadataServiceStub(channel)
        assert await stub.GetMap(pb.GetMapRequest()) == before
        assert [b.name for b in (await stub.ListBuckets(pb.ListBucketsRequest())).buckets] == [
            "bucket"
        ]
    await again.stop(0.0)


async def test_an_engine_of_another_cluster_is_refused(tmp_path: Path) -> None:
    server = new_server(tmp_path)
    async with grpc.aio.insecure_channel(await server.start()) as channel:
        await form(metadata_pb2_grpc.MetadataServiceStub(channel))
    await server.stop(0.0)
    with pytest.raises(WrongCluster, match="rs-2-1"):
        await new_server(tmp_path, code="rs-3-1").start()


async def test_a_taken_port_is_a_clear_error(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(AddressInUse, match=address):
            await new_server(tmp_path, address=address).start()


async def test_metrics_count_requests_by_method_and_result(tmp_path: Path) -> None:
    registry = CollectorRegistry()
    config = MetadataConfig(engine=f"sqlite://{tmp_path}/meta.db")
    server = MetadataServer(config, clock=SystemClock(), registry=registry)
    async with grpc.aio.insecure_channel(await server.start()) as channel:
        stub = metadata_pb2_grpc.MetadataServiceStub(channel)
        await stub.ListBuckets(pb.ListBucketsRequest())
        with pytest.raises(grpc.aio.AioRpcError):
            await stub.GetBucket(pb.GetBucketRequest(name="x"))
    await server.stop(0.0)
    text = generate_latest(registry).decode()
    assert 'exastore_metadata_requests_total{method="ListBuckets",result="ok"} 1.0' in text
    assert 'method="GetBucket",result="no_such_bucket"} 1.0' in text
