"""The data path against a fake cluster: what is stored comes back, whatever fails within reason."""

import asyncio
import hashlib
from collections.abc import AsyncIterator

import grpc
import pytest
from tests.unit.gateway_fakes import BytesBody, FakeCluster, fake_cluster, some_bytes

from exastore.gateway.errors import (
    MetadataUnavailable,
    NoSpace,
    NotReady,
    ObjectChanged,
    RequestError,
    TooFewChunks,
    TooFewDevices,
)
from exastore.gateway.store import ByteRange, ObjectAttributes, Precondition
from exastore.gateway.verifier import VerifyReport, verify_cluster
from exastore.metadata.core.topology import DeviceState
from exastore.proto.v1 import storage_pb2

#: Data bytes of an extent: four chunks of 64 KiB.
EXTENT = 4 * (64 << 10)


@pytest.fixture
async def cluster() -> AsyncIterator[FakeCluster]:
    async with fake_cluster() as running:
        yield running


async def put(cluster: FakeCluster, data: bytes, key: str = "key") -> str:
    info = await cluster.store.put_object(
        "bucket", key, BytesBody(data), ObjectAttributes(), Precondition()
    )
    assert info.size_bytes == len(data)
    return info.etag


async def get(cluster: FakeCluster, key: str = "key", byte_range: ByteRange | None = None) -> bytes:
    reader = await cluster.store.open_object("bucket", key)
    return b"".join([bytes(piece) async for piece in reader.read(byte_range)])


def metric(cluster: FakeCluster, name: str, **labels: str) -> float:
    return cluster.registry.get_sample_value(f"exastore_gateway_{name}", labels) or 0.0


@pytest.mark.parametrize("size", [0, 1, 4096, 4097, EXTENT - 1, EXTENT, EXTENT + 1, 7 * EXTENT + 3])
async def test_what_is_put_comes_back(cluster: FakeCluster, size: int) -> None:
    data = some_bytes(size)
    etag = await put(cluster, data)
    assert etag == hashlib.md5(data).hexdigest()
    assert await get(cluster) == data
    assert metric(cluster, "object_bytes_total", direction="read") == size


async def test_tiny_objects_live_in_their_metadata(cluster: FakeCluster) -> None:
    await put(cluster, some_bytes(4096))
    assert cluster.chunk_count == 0
    await put(cluster, some_bytes(4097), "more")
    assert cluster.chunk_count == 6


@pytest.mark.parametrize("start", [0, 1, 65_535, 65_536, EXTENT - 1, EXTENT, 3 * EXTENT + 12_345])
@pytest.mark.parametrize("length", [0, 1, 65_536, EXTENT + 1])
async def test_a_range_reads_its_bytes(cluster: FakeCluster, start: int, length: int) -> None:
    data = some_bytes(5 * EXTENT)
    await put(cluster, data)
    assert await get(cluster, byte_range=ByteRange(start, length)) == data[start : start + length]


async def test_a_short_range_reads_one_chunk(cluster: FakeCluster) -> None:
    await put(cluster, some_bytes(3 * EXTENT))
    await get(cluster, byte_range=ByteRange(EXTENT + 10, 20))
    assert sum(node.read_count for node in cluster.nodes) == 1


async def test_slow_clients_together_pin_no_more_than_an_extent_each_and_the_read_ahead() -> None:
    async with fake_cluster(max_read_ahead_bytes=2 * EXTENT) as cluster:
        data = some_bytes(9 * EXTENT)
        await put(cluster, data)
        readers = [await cluster.store.open_object("bucket", "key") for _ in range(3)]
        streams = [reader.read() for reader in readers]
        firsts = [bytes(await anext(stream)) for stream in streams]
        # Four chunks each of three extents that are sent, and two that all read ahead.
        await cluster.eventually(lambda: sum(node.read_count for node in cluster.nodes) == 20)
        await asyncio.sleep(0.02)
        assert sum(node.read_count for node in cluster.nodes) == 20
        for first, stream in zip(firsts, streams, strict=True):
            rest = b"".join([bytes(piece) async for piece in stream])
            assert first + rest == data


async def test_two_lost_nodes_are_read_around(cluster: FakeCluster) -> None:
    data = some_bytes(9 * EXTENT)
    await put(cluster, data)
    for node in (cluster.nodes[2], cluster.nodes[5]):
        node.dead = True
    assert await get(cluster) == data
    assert await get(cluster, byte_range=ByteRange(100_000, 777_777)) == data[100_000:877_777]
    assert metric(cluster, "degraded_reads_total") > 0


async def test_two_down_devices_are_not_asked(cluster: FakeCluster) -> None:
    data = some_bytes(9 * EXTENT)
    await put(cluster, data)
    for device in (0, 1):
        cluster.metadata.set_state(device, DeviceState.DOWN)
    await cluster.eventually(lambda: cluster.store.maps.epoch == 3)
    assert await get(cluster) == data
    assert cluster.nodes[0].read_count == cluster.nodes[1].read_count == 0


async def test_corrupt_chunks_are_never_returned(cluster: FakeCluster) -> None:
    data = some_bytes(9 * EXTENT)
    await put(cluster, data)
    cluster.nodes[1].corrupt()
    cluster.nodes[4].corrupt()
    assert await get(cluster) == data
    assert metric(cluster, "chunk_requests_total", operation="read", result="wrong_bytes") > 0


async def test_three_corrupt_chunks_are_an_error_not_wrong_bytes(cluster: FakeCluster) -> None:
    await put(cluster, some_bytes(EXTENT))
    holders = [node for node in cluster.nodes if node.chunks]
    for node in holders[:3]:
        node.corrupt()
    with pytest.raises(TooFewChunks) as caught:
        await get(cluster)
    assert (caught.value.need, caught.value.have) == (4, 3)


async def test_a_slow_node_is_read_around() -> None:
    async with fake_cluster(hedge_after_s=0.02) as cluster:
        data = some_bytes(3 * EXTENT)
        await put(cluster, data)
        slow = next(node for node in cluster.nodes if any(key[3] == 0 for key in node.chunks))
        slow.reads_flow.clear()
        assert await get(cluster) == data
        hedged_count = metric(cluster, "hedged_reads_total")
        assert hedged_count > 0
        # From now on it is not waited for, and it is not accused of having failed.
        assert await get(cluster) == data
        assert metric(cluster, "hedged_reads_total") == hedged_count
        assert await put(cluster, data)
        assert metric(cluster, "partial_writes_total") == 0
        slow.reads_flow.set()


async def test_when_all_are_late_and_then_some_answer_the_others_are_asked() -> None:
    async with fake_cluster(hedge_after_s=0.02, chunk_timeout_s=30.0) as cluster:
        data = some_bytes(EXTENT)
        await put(cluster, data)
        holders = [node for node in cluster.nodes if node.chunks]
        for node in holders:
            node.reads_flow.clear()
        reading = asyncio.create_task(get(cluster))
        while not metric(cluster, "hedged_reads_total"):
            await asyncio.sleep(0.005)
        slow = next(node for node in holders if any(key[3] == 0 for key in node.chunks))
        for node in holders:
            if node is not slow:
                node.reads_flow.set()
        async with asyncio.timeout(10):
            assert await reading == data
        slow.reads_flow.set()


async def test_an_object_collected_while_read_is_an_error(cluster: FakeCluster) -> None:
    await put(cluster, some_bytes(2 * EXTENT))
    reader = await cluster.store.open_object("bucket", "key")
    for node in cluster.nodes:
        node.chunks.clear()
    with pytest.raises(ObjectChanged):
        _ = [piece async for piece in reader.read()]


async def test_chunks_found_where_a_newer_map_says(cluster: FakeCluster) -> None:
    data = some_bytes(EXTENT)
    await put(cluster, data)
    extent = cluster.metadata.extents[0]
    row = cluster.metadata.map.pgs[extent.pg].device_indexes
    # Three slots move to new devices: more than the code bears, if the old map were all there is.
    for slot in (0, 1, 2):
        key = (row[slot], extent.pg, extent.stripe_id, slot)
        target = (row[slot] + 1) % 8
        chunk = cluster.nodes[row[slot]].chunks.pop(key)
        cluster.nodes[target].chunks[target, *key[1:]] = chunk
    cluster.metadata.map.pgs[extent.pg].device_indexes[:3] = [(d + 1) % 8 for d in row[:3]]
    cluster.metadata.map.epoch += 1
    assert await get(cluster) == data


async def test_a_node_dying_mid_write_costs_nothing(cluster: FakeCluster) -> None:
    data = some_bytes(20 * EXTENT)
    cluster.nodes[3].die_after_writes = 4
    await put(cluster, data)
    assert cluster.nodes[3].dead
    assert await get(cluster) == data
    # Two of the eight groups do without node 3, so nothing had to be left incomplete.
    assert not any(extent.missing_indexes for extent in cluster.metadata.extents)


async def test_writes_go_on_with_chunks_missing_when_no_group_is_whole(
    cluster: FakeCluster,
) -> None:
    data = some_bytes(3 * EXTENT)
    for node in (cluster.nodes[0], cluster.nodes[4]):
        node.dead = True
    await put(cluster, data)
    assert await get(cluster) == data
    assert all(len(extent.missing_indexes) == 1 for extent in cluster.metadata.extents)
    assert metric(cluster, "partial_writes_total") == 3


async def test_a_write_below_its_quorum_fails_and_commits_nothing(cluster: FakeCluster) -> None:
    for node in cluster.nodes[:4]:
        node.dead = True
    with pytest.raises(TooFewDevices) as caught:
        await put(cluster, some_bytes(EXTENT))
    assert caught.value.need == 5
    assert "dead" in str(caught.value)
    assert cluster.metadata.commit_count == 0
    await cluster.eventually(lambda: cluster.chunk_count == 0)


async def test_full_devices_are_named_as_such(cluster: FakeCluster) -> None:
    for node in cluster.nodes:
        node.write_status = storage_pb2.CHUNK_STATUS_NO_SPACE
    with pytest.raises(NoSpace):
        await put(cluster, some_bytes(EXTENT))


async def test_a_straggler_is_not_waited_for() -> None:
    async with fake_cluster(straggler_wait_s=0.02) as cluster:
        slow = cluster.nodes[0]
        slow.writes_flow.clear()
        data = some_bytes(12 * EXTENT)
        await put(cluster, data)
        assert await get(cluster) == data
        missing = [extent for extent in cluster.metadata.extents if extent.missing_indexes]
        assert missing and all(len(extent.missing_indexes) == 1 for extent in missing)
        # Nothing was sent twice: slow is not failed.
        assert metric(cluster, "extent_write_retries_total", cause="chunk_failure") == 0
        slow.writes_flow.set()


async def test_a_stale_epoch_at_a_node_is_refetched(cluster: FakeCluster) -> None:
    await cluster.eventually(lambda: cluster.store.maps.epoch == 1)
    cluster.metadata.map.epoch = 5
    for node in cluster.nodes:
        node.epoch = 5
    data = some_bytes(2 * EXTENT)
    await put(cluster, data)
    assert {extent.epoch for extent in cluster.metadata.extents} == {5}
    assert await get(cluster) == data


async def test_a_stale_epoch_at_commit_moves_the_stripes(cluster: FakeCluster) -> None:
    data = some_bytes(4 * EXTENT)
    moved: list[int] = []

    def move_all() -> None:
        if not moved:
            moved.extend(range(8))
            for pg in moved:
                cluster.metadata.move_pg(pg)

    cluster.metadata.on_commit = move_all
    await put(cluster, data)
    assert cluster.metadata.commit_count == 2
    assert await get(cluster) == data
    # The overtaken stripes are deleted.
    await cluster.eventually(lambda: cluster.chunk_count == 4 * 6)


async def test_an_upload_cut_off_commits_nothing(cluster: FakeCluster) -> None:
    body = BytesBody(some_bytes(8 * EXTENT), cut_at=6 * EXTENT)
    with pytest.raises(ConnectionError):
        await cluster.store.put_object("bucket", "key", body, ObjectAttributes(), Precondition())
    assert cluster.metadata.commit_count == 0
    assert not body.finished
    await cluster.eventually(lambda: cluster.chunk_count == 0)


async def test_a_body_with_a_wrong_digest_commits_nothing(cluster: FakeCluster) -> None:
    body = BytesBody(some_bytes(2 * EXTENT), wrong=RequestError("BadDigest", "no"))
    with pytest.raises(RequestError, match="BadDigest"):
        await cluster.store.put_object("bucket", "key", body, ObjectAttributes(), Precondition())
    assert cluster.metadata.commit_count == 0
    await cluster.eventually(lambda: cluster.chunk_count == 0)


async def test_checksums_and_attributes_are_stored(cluster: FakeCluster) -> None:
    attributes = ObjectAttributes("text/plain", {"Cache-Control": "no-store"}, {"colour": "red"})
    body = BytesBody(b"hello", checksums={"crc32": "AAAA"})
    await cluster.store.put_object("bucket", "key", body, attributes, Precondition())
    info = await cluster.store.head_object("bucket", "key")
    assert info.attributes == attributes
    assert info.checksums == {"crc32": "AAAA"}


async def test_a_refused_commit_deletes_its_chunks(cluster: FakeCluster) -> None:
    cluster.metadata.commit_failures = [
        (grpc.StatusCode.FAILED_PRECONDITION, "PRECONDITION_FAILED")
    ]
    with pytest.raises(RequestError, match="PreconditionFailed"):
        await put(cluster, some_bytes(2 * EXTENT))
    await cluster.eventually(lambda: cluster.chunk_count == 0)


async def test_a_commit_whose_answer_is_lost_is_repeated(cluster: FakeCluster) -> None:
    cluster.metadata.commit_failures = [
        (grpc.StatusCode.UNAVAILABLE, ""),
        (grpc.StatusCode.UNKNOWN, "COMMIT_UNKNOWN"),
    ]
    cluster.metadata.lose_answers = True
    data = some_bytes(2 * EXTENT)
    await put(cluster, data)
    assert cluster.metadata.commit_count == 3
    assert await get(cluster) == data


async def test_a_commit_that_stays_unknown_keeps_its_chunks() -> None:
    async with fake_cluster(metadata_deadline_s=0.05) as cluster:
        cluster.metadata.lose_answers = True
        cluster.metadata.commit_failures = [(grpc.StatusCode.UNAVAILABLE, "")] * 1000
        data = some_bytes(2 * EXTENT)
        with pytest.raises(MetadataUnavailable):
            await put(cluster, data)
        assert await get(cluster) == data


async def test_a_map_is_followed_across_a_restart_of_its_server(cluster: FakeCluster) -> None:
    await cluster.eventually(lambda: cluster.store.maps.epoch == 1)
    await cluster.metadata.stop()
    cluster.metadata.set_state(0, DeviceState.DOWN)
    await cluster.metadata.start()
    await cluster.eventually(lambda: cluster.store.maps.epoch == 2)
    cluster.metadata.set_state(1, DeviceState.DOWN)
    await cluster.eventually(lambda: cluster.store.maps.epoch == 3)


async def test_no_map_yet_is_said_clearly() -> None:
    async with fake_cluster(ready=False) as cluster:
        with pytest.raises(NotReady):
            await put(cluster, some_bytes(EXTENT))


async def test_a_missing_key_is_the_client_s_error(cluster: FakeCluster) -> None:
    with pytest.raises(RequestError) as caught:
        await cluster.store.open_object("bucket", "nothing")
    assert caught.value.code == "NoSuchKey"


async def test_a_copy_has_the_bytes_and_new_attributes(cluster: FakeCluster) -> None:
    data = some_bytes(3 * EXTENT + 5)
    await put(cluster, data)
    attributes = ObjectAttributes("image/png")
    info = await cluster.store.copy_object(
        ("bucket", "key"), ("bucket", "copy"), attributes, Precondition()
    )
    assert info.attributes.content_type == "image/png"
    assert info.etag == hashlib.md5(data).hexdigest()
    assert await get(cluster, "copy") == data


async def test_a_part_is_stored_in_extents_however_small(cluster: FakeCluster) -> None:
    upload = await cluster.store.create_upload("bucket", "key", ObjectAttributes())
    part = await cluster.store.put_part("bucket", "key", upload.upload_id, 1, BytesBody(b"x"))
    assert part.etag == hashlib.md5(b"x").hexdigest()
    stored = cluster.metadata.parts[upload.upload_id, 1]
    assert not stored.inline_data and len(stored.extents) == 1


async def test_a_part_of_no_upload_is_refused_before_its_bytes(cluster: FakeCluster) -> None:
    with pytest.raises(RequestError, match="NoSuchUpload"):
        await cluster.store.put_part("bucket", "key", "none", 1, BytesBody(some_bytes(EXTENT)))
    assert sum(node.write_count for node in cluster.nodes) == 0


async def test_a_long_body_for_no_bucket_is_refused_at_its_second_extent(
    cluster: FakeCluster,
) -> None:
    body = BytesBody(some_bytes(40 * EXTENT))
    with pytest.raises(RequestError, match="NoSuchBucket"):
        await cluster.store.put_object("none", "key", body, ObjectAttributes(), Precondition())
    assert not body.finished
    assert cluster.metadata.commit_count == 0
    await cluster.eventually(lambda: cluster.chunk_count == 0)


async def verify(cluster: FakeCluster) -> VerifyReport:
    store = cluster.store
    return await verify_cluster(store.metadata, store.maps, store.nodes)


async def test_a_whole_cluster_verifies(cluster: FakeCluster) -> None:
    await put(cluster, some_bytes(5 * EXTENT + 1))
    report = await verify(cluster)
    assert report.fully_redundant
    assert (report.stripe_count, report.chunk_count, report.healthy_chunk_count) == (6, 36, 36)
    assert report.total_stripe_count == 6
    assert report.data_bytes == 5 * EXTENT + 1


async def test_the_verifier_finds_what_is_wrong(cluster: FakeCluster) -> None:
    await put(cluster, some_bytes(8 * EXTENT))
    cluster.nodes[0].corrupt()
    cluster.nodes[1].dead = True
    cluster.nodes[2].chunks.clear()
    report = await verify(cluster)
    assert not report.fully_redundant
    assert report.corrupt_chunk_count == 6
    assert report.unreachable_chunk_count == 6
    assert report.missing_chunk_count == 6
    assert report.healthy_chunk_count == 48 - 18
    assert report.lost_stripe_count > 0
    assert report.examples
