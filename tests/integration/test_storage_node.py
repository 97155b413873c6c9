"""Storage nodes in one process over real gRPC; the metadata server knows heartbeats alone."""

import errno
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc.aio
import pytest
from prometheus_client import CollectorRegistry
from tests.support.fake_disk import FakeDisk
from tests.support.storage_nodes import (
    CODE,
    Cluster,
    chunk_id,
    flip_byte_of_chunk,
    read_request,
    running_nodes,
    write_request,
)

from exastore.deploy.clock import SystemClock
from exastore.erasure import codec
from exastore.proto.v1 import common_pb2, storage_pb2
from exastore.storage.config import StorageConfig
from exastore.storage.crc import crc32c
from exastore.storage.errors import AddressInUse, DeviceLocked
from exastore.storage.server import StorageNode

if TYPE_CHECKING:
    pass  # exists in the stub file alone

S = storage_pb2.ChunkStatus


@pytest.fixture
async def cluster(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Cluster]:
    """A parameter has options of the nodes' configuration."""
    options: dict[str, Any] = getattr(request, "param", {})
    async with running_nodes(tmp_path, **options) as nodes:
        yield nodes


async def test_chunks_come_back_as_written(cluster: Cluster) -> None:
    device = cluster.pg_devices(0)[0]
    node = cluster.node_of(device)
    chunks = {os.urandom(16): os.urandom(size) for size in (1, 64, 65_536, 65_537, 1 << 20)}
    writes = [
        write_request(n, device, 0, stripe_id, 0, data)
        for n, (stripe_id, data) in enumerate(chunks.items())
    ]
    answers = await cluster.write_all(node, writes)
    assert [a.status for a in answers] == [S.CHUNK_STATUS_OK] * 5
    assert {a.epoch for a in answers} == {1}
    reads = await cluster.read_all(
        node,
        [read_request(n, device, 0, stripe_id, 0) for n, stripe_id in enumerate(chunks)],
    )
    assert [(r.status, r.data) for r in reads] == [
        (S.CHUNK_STATUS_OK, data) for data in chunks.values()
    ]
    assert [r.crc32c for r in reads] == [crc32c(data) for data in chunks.values()]


async def test_more_bytes_than_the_stream_may_hold_pass_through_it(cluster: Cluster) -> None:
    await cluster.nodes[0].stop(0)
    cluster.nodes[0] = node = await cluster.start_node(0, stream_bytes=1 << 20)
    device = cluster.index_of(node)
    assert device is not None
    await cluster.until(lambda: node.devices.epoch == 1)
    slot = list(cluster.pg_devices(0)).index(device)
    data = os.urandom(400_000)
    writes = [write_request(n, device, 0, n.to_bytes(16, "big"), slot, data) for n in range(20)]
    assert {a.status for a in await cluster.write_all(node, writes)} == {S.CHUNK_STATUS_OK}
    reads = [read_request(n, device, 0, n.to_bytes(16, "big"), slot) for n in range(20)]
    assert all(r.data == data for r in await cluster.read_all(node, reads))


async def test_a_chunk_that_was_never_written_is_not_found(cluster: Cluster) -> None:
    device = cluster.pg_devices(0)[0]
    (answer,) = await cluster.read_all(
        cluster.node_of(device), [read_request(7, device, 0, bytes(16), 0)]
    )
    assert (answer.request_id, answer.status) == (7, S.CHUNK_STATUS_NOT_FOUND)


async def test_refusals_say_why(cluster: Cluster) -> None:
    device = cluster.pg_devices(0)[0]
    other = cluster.pg_devices(0)[1]
    node = cluster.node_of(device)
    data, stripe_id = b"x" * 100, b"s" * 16
    answers = await cluster.write_all(
        node,
        [
            write_request(1, device, 0, stripe_id, 0, data, crc=1),
            write_request(2, other, 0, stripe_id, 1, data),
            write_request(3, device, 0, stripe_id, 1, data),
            write_request(4, device, 99, stripe_id, 0, data),
            write_request(5, device, 0, stripe_id, 77, data),
            write_request(6, device, 0, b"short", 0, data),
            write_request(7, device, 0, stripe_id, 0, data, epoch=50),
            write_request(8, device, 0, stripe_id, 0, data, epoch=0),
        ],
    )
    assert [S.Name(a.status).removeprefix("CHUNK_STATUS_") for a in answers] == [
        "CORRUPT",
        "WRONG_DEVICE",
        "STALE_EPOCH",
        "INVALID",
        "INVALID",
        "INVALID",
        "STALE_EPOCH",
        "STALE_EPOCH",
    ]
    assert all(a.message for a in answers)


async def test_other_bytes_under_the_same_identity_are_refused(cluster: Cluster) -> None:
    device = cluster.pg_devices(0)[0]
    node = cluster.node_of(device)
    first = write_request(1, device, 0, b"s" * 16, 0, b"first")
    again = write_request(2, device, 0, b"s" * 16, 0, b"first")
    (one,) = await cluster.write_all(node, [first])
    two, three = await cluster.write_all(
        node, [again, write_request(3, device, 0, b"s" * 16, 0, b"other")]
    )
    assert (one.status, two.status) == (S.CHUNK_STATUS_OK, S.CHUNK_STATUS_OK)
    assert three.status == S.CHUNK_STATUS_INVALID
    assert "other bytes" in three.message


async def test_a_writer_that_is_ahead_makes_the_node_fetch_the_map(cluster: Cluster) -> None:
    cluster.metadata.share_map = False
    cluster.metadata.place(epoch=9, pg_epoch=9)
    device = cluster.pg_devices(0)[0]
    node = cluster.node_of(device)
    (ahead,) = await cluster.write_all(
        node, [write_request(1, device, 0, b"a" * 16, 0, b"new", epoch=9)]
    )
    (behind,) = await cluster.write_all(
        node, [write_request(2, device, 0, b"b" * 16, 0, b"old", epoch=8)]
    )
    assert (ahead.status, ahead.epoch) == (S.CHUNK_STATUS_OK, 9)
    assert behind.status == S.CHUNK_STATUS_STALE_EPOCH


async def test_listing_usage_and_deleting_agree(cluster: Cluster) -> None:
    stripes = await cluster.store_stripes(pg=1, count=5, chunk_bytes=4096)
    device = cluster.pg_devices(1)[2]
    stub = cluster.stub(cluster.node_of(device))
    listing = stub.ListChunks(storage_pb2.ListChunksRequest(device_index=device, pg=1))
    infos = [info async for batch in listing for info in batch.chunks]
    assert [i.chunk.stripe_id for i in infos] == sorted(stripes)
    assert all(i.crc32c == crc32c(stripes[i.chunk.stripe_id][2]) for i in infos)
    assert {(i.code, i.chunk_bytes) for i in infos} == {(CODE, 4096)}
    usage_request = storage_pb2.GetPgUsageRequest(device_index=device)
    (usage,) = (await stub.GetPgUsage(usage_request)).usages
    assert (usage.pg, usage.chunk_count, usage.chunk_bytes) == (1, 5, 5 * 4096)
    await cluster.wipe(device, pg=1)
    assert not (await stub.GetPgUsage(usage_request)).usages
    (gone,) = await cluster.read_all(
        cluster.node_of(device), [read_request(1, device, 1, next(iter(stripes)), 2)]
    )
    assert gone.status == S.CHUNK_STATUS_NOT_FOUND


async def test_chunks_of_a_slot_that_the_device_holds_are_not_deleted_as_given_up(
    cluster: Cluster,
) -> None:
    stripes = await cluster.store_stripes(pg=1, count=2, chunk_bytes=1000)
    device, other = cluster.pg_devices(1)[2], cluster.pg_devices(1)[3]
    stub = cluster.stub(cluster.node_of(device))
    chunks = [common_pb2.ChunkId(pg=1, stripe_id=s, index=2) for s in stripes]
    request = storage_pb2.DeleteChunksRequest(device_index=device, chunks=chunks, given_up_epoch=1)
    with pytest.raises(grpc.aio.AioRpcError, match="STALE_EPOCH"):
        await stub.DeleteChunks(request)
    request.device_index = other
    assert (await cluster.stub(cluster.node_of(other)).DeleteChunks(request)).deleted_count == 0
    (read, _) = await cluster.read_all(
        cluster.node_of(device), [read_request(n, device, 1, s, 2) for n, s in enumerate(stripes)]
    )
    assert read.status == S.CHUNK_STATUS_OK


async def test_unary_calls_name_a_device_that_is_not_here(cluster: Cluster) -> None:
    node = cluster.nodes[0]
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await cluster.stub(node).GetPgUsage(storage_pb2.GetPgUsageRequest(device_index=4242))
    assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert "WRONG_DEVICE" in (caught.value.details() or "")


async def test_a_lost_slot_is_rebuilt_bit_for_bit(cluster: Cluster) -> None:
    stripes = await cluster.store_stripes(pg=0, count=20, chunk_bytes=70_000)
    device = cluster.pg_devices(0)[3]
    await cluster.wipe(device, pg=0)
    progress = await cluster.rebuild(cluster.rebuild_request(0, 3))
    assert (progress.chunk_count, progress.total_chunk_count) == (20, 20)
    assert (progress.failed_chunk_count, progress.message) == (0, "")
    assert progress.chunk_bytes == 20 * 70_000
    assert progress.read_bytes == 4 * 20 * 70_000
    reads = await cluster.read_all(
        cluster.node_of(device),
        [read_request(n, device, 0, stripe_id, 3) for n, stripe_id in enumerate(stripes)],
    )
    assert [r.data for r in reads] == [chunks[3] for chunks in stripes.values()]


@pytest.mark.parametrize(
    ("cluster", "has_sockets"), [({}, True), ({"bulk_port": -1}, False)], indirect=["cluster"]
)
async def test_rebuilds_read_over_sockets_or_else_over_grpc_and_anew_after_a_restart(
    cluster: Cluster, has_sockets: bool
) -> None:
    await cluster.store_stripes(pg=0, count=6, chunk_bytes=70_000)
    target, source = cluster.pg_devices(0)[:2]
    for _ in range(2):
        await cluster.wipe(target, pg=0)
        progress = await cluster.rebuild(cluster.rebuild_request(0, 0))
        assert (progress.chunk_count, progress.message) == (6, "")
        node = cluster.node_of(source)
        (sample,) = next(iter(node.metrics.bulk_connections.collect())).samples
        assert sample.value == (1 if has_sockets else 0)
        # The others find out when they ask it the next time.
        number, address = cluster.nodes.index(node), node.address
        await node.stop(0)
        again = await cluster.start_node(
            number, address=address, bulk_port=0 if has_sockets else -1
        )
        cluster.nodes[number] = again
        await cluster.until(lambda again=again: again.devices.epoch == 1)


@pytest.mark.parametrize(
    ("code", "slot", "gone", "chunks_read"),
    [
        # A part 1 / (d - k + 1) of each of the d = 5 others; k whole chunks with another loss.
        ("clay-4-2-5", 0, [], 2.5),
        ("clay-4-2-5", 3, [], 2.5),
        ("clay-4-2-5", 5, [], 2.5),
        ("clay-4-2-5", 0, [4], 4),
        # Groups of two data chunks and one local parity: chunk 4 is that of 0 and 1.
        ("lrc-4-2-0", 0, [], 2),
        ("lrc-4-2-0", 4, [3], 2),
        # Groups of one data chunk: chunk 2 is the local parity of 0; 4 and 5 are global.
        ("lrc-2-2-2", 0, [1, 3], 1),
        ("lrc-2-2-2", 0, [2], 2),
        ("lrc-2-2-2", 5, [], 2),
        ("rep-6", 2, [0, 1], 1),
    ],
)
async def test_a_rebuild_pulls_the_bytes_that_the_code_needs(
    cluster: Cluster, code: str, slot: int, gone: list[int], chunks_read: float
) -> None:
    stripes = await cluster.store_stripes(pg=1, count=3, chunk_bytes=8 * 17_000, code_name=code)
    device = cluster.pg_devices(1)[slot]
    await cluster.wipe(device, pg=1)
    progress = await cluster.rebuild(cluster.rebuild_request(1, slot, gone=gone, code=code))
    assert (progress.chunk_count, progress.failed_chunk_count) == (3, 0), progress.message
    assert progress.read_bytes == 3 * chunks_read * 8 * 17_000
    node = cluster.node_of(device)
    reads = [read_request(n, device, 1, stripe_id, slot) for n, stripe_id in enumerate(stripes)]
    answers = await cluster.read_all(node, reads)
    assert [a.data for a in answers] == [chunks[slot] for chunks in stripes.values()]


async def test_a_clay_rebuild_reads_whole_chunks_when_a_source_is_rotten(cluster: Cluster) -> None:
    size = 8 * 70_000
    plan_of = codec("clay-4-2-5").repair_plan
    # A slot whose rebuild reads the middle of the chunk of slot 5, which is where the rot is.
    lost = next(
        slot
        for slot in range(5)
        if any(at <= size // 2 < at + count for at, count in plan_of([slot]).byte_runs(5, size))
    )
    stripes = await cluster.store_stripes(pg=0, count=2, chunk_bytes=size, code_name="clay-4-2-5")
    devices = cluster.pg_devices(0)
    await cluster.wipe(devices[lost], pg=0)
    flip_byte_of_chunk(cluster.node_of(devices[5]), 0, next(iter(stripes)))
    progress = await cluster.rebuild(cluster.rebuild_request(0, lost, code="clay-4-2-5"))
    assert (progress.chunk_count, progress.failed_chunk_count) == (2, 0)
    # The sound stripe as planned; of the other, parts of four chunks in vain, then k whole ones.
    assert progress.read_bytes == (2.5 + 4 * 0.5 + 4) * size
    reads = [
        read_request(n, devices[lost], 0, stripe_id, lost) for n, stripe_id in enumerate(stripes)
    ]
    answers = await cluster.read_all(cluster.node_of(devices[lost]), reads)
    assert [a.data for a in answers] == [chunks[lost] for chunks in stripes.values()]


async def test_runs_of_a_chunk_are_read_and_verified_by_themselves(cluster: Cluster) -> None:
    device = cluster.pg_devices(0)[0]
    node = cluster.node_of(device)
    (stripe_id, chunks), *_ = (await cluster.store_stripes(0, 1, 300_000)).items()
    data = chunks[0]

    async def read(*runs: tuple[int, int]) -> storage_pb2.ReadChunkResponse:
        request = read_request(1, device, 0, stripe_id, 0)
        request.runs.extend(storage_pb2.ByteRun(offset=at, length=size) for at, size in runs)
        (answer,) = await cluster.read_all(node, [request])
        return answer

    for runs in ([(0, 1)], [(70_000, 60_000), (290_000, 10_000)], [(0, 9), (9, 1), (65_535, 2)]):
        answer = await read(*runs)
        expected = b"".join(data[at : at + size] for at, size in runs)
        assert (answer.status, answer.data) == (S.CHUNK_STATUS_OK, expected)
        assert answer.crc32c == crc32c(expected)
    for bad in ([(0, 0)], [(299_999, 2)], [(10, 5), (12, 1)], [(400_000, 1)]):
        assert (await read(*bad)).status == S.CHUNK_STATUS_INVALID
    flip_byte_of_chunk(node, 0, stripe_id)  # in the third block of five
    assert (await read((0, 131_072), (196_608, 100))).status == S.CHUNK_STATUS_OK
    assert (await read((0, 10), (131_072, 1))).status == S.CHUNK_STATUS_CORRUPT


async def test_a_slot_that_moves_is_copied_and_computed_where_the_copy_fails(
    cluster: Cluster,
) -> None:
    stripes = await cluster.store_stripes(pg=0, count=5, chunk_bytes=10_000)
    target, source = cluster.pg_devices(0)[2], cluster.pg_devices(0)[3]
    flip_byte_of_chunk(cluster.node_of(source), 0, next(iter(stripes)))
    cluster.metadata.place(epoch=2)
    assert cluster.metadata.map is not None
    group = cluster.metadata.map.pgs[0]
    group.device_indexes[2], group.device_indexes[3] = source, target
    await cluster.until(lambda: all(node.devices.epoch == 2 for node in cluster.nodes))
    request = cluster.rebuild_request(0, 3, gone=[2])
    request.sources.add(index=3, device_index=source, address=cluster.node_of(source).address)
    progress = await cluster.rebuild(request)
    assert (progress.chunk_count, progress.failed_chunk_count) == (5, 0), progress.message
    # Four chunks are copied; for the rotten one, four others are read.
    assert progress.read_bytes == (4 + 4) * 10_000
    reads = [read_request(n, target, 0, stripe_id, 3) for n, stripe_id in enumerate(stripes)]
    answers = await cluster.read_all(cluster.node_of(target), reads)
    assert [answer.data for answer in answers] == [chunks[3] for chunks in stripes.values()]


async def test_what_is_there_is_not_rebuilt_again(cluster: Cluster) -> None:
    await cluster.store_stripes(pg=0, count=4, chunk_bytes=1000)
    progress = await cluster.rebuild(cluster.rebuild_request(0, 1))
    assert (progress.chunk_count, progress.read_bytes) == (4, 0)


async def test_a_rotten_chunk_is_found_and_rebuilt_from_a_source_that_is_sound(
    cluster: Cluster,
) -> None:
    stripes = await cluster.store_stripes(pg=0, count=3, chunk_bytes=10_000)
    stripe_id = next(iter(stripes))
    target, source = cluster.pg_devices(0)[0], cluster.pg_devices(0)[1]
    flip_byte_of_chunk(cluster.node_of(target), 0, stripe_id)
    flip_byte_of_chunk(cluster.node_of(source), 0, stripe_id)
    (rotten,) = await cluster.read_all(
        cluster.node_of(target), [read_request(1, target, 0, stripe_id, 0)]
    )
    assert (rotten.status, rotten.data) == (S.CHUNK_STATUS_CORRUPT, b"")
    found = [
        message
        async for message in cluster.stub(cluster.node_of(target)).Scrub(
            storage_pb2.ScrubRequest(device_index=target)
        )
    ]
    assert [c.stripe_id for message in found for c in message.corrupt] == [stripe_id]
    assert (found[-1].chunk_count, found[-1].done) == (3, True)
    progress = await cluster.rebuild(cluster.rebuild_request(0, 0, stripe_ids=[stripe_id]))
    assert (progress.chunk_count, progress.failed_chunk_count) == (1, 0)
    (healed,) = await cluster.read_all(
        cluster.node_of(target), [read_request(1, target, 0, stripe_id, 0)]
    )
    assert healed.data == stripes[stripe_id][0]


async def test_a_stripe_with_too_few_chunks_fails_alone(cluster: Cluster) -> None:
    stripes = await cluster.store_stripes(pg=0, count=6, chunk_bytes=2000)
    doomed = list(stripes)[2]
    devices = cluster.pg_devices(0)
    await cluster.wipe(devices[5], pg=0)
    for slot in (1, 2):
        flip_byte_of_chunk(cluster.node_of(devices[slot]), 0, doomed)
    progress = await cluster.rebuild(cluster.rebuild_request(0, 5))
    assert (progress.chunk_count, progress.failed_chunk_count) == (5, 1)
    assert doomed.hex() in progress.message
    assert "need 4 chunks, have 3; slot 1: corrupt" in progress.message


async def test_rebuild_goes_on_without_one_source_and_fails_without_two(cluster: Cluster) -> None:
    await cluster.store_stripes(pg=0, count=4, chunk_bytes=2000)
    devices = cluster.pg_devices(0)
    await cluster.wipe(devices[0], pg=0)
    request = cluster.rebuild_request(0, 0)
    await cluster.node_of(devices[4]).stop(0)
    progress = await cluster.rebuild(request)
    assert (progress.chunk_count, progress.failed_chunk_count) == (4, 0)
    await cluster.wipe(devices[0], pg=0)
    await cluster.node_of(devices[5]).stop(0)
    progress = await cluster.rebuild(request)
    assert (progress.chunk_count, progress.failed_chunk_count) == (0, 4)
    for source in request.sources:
        source.address = "127.0.0.1:1"
    progress = await cluster.rebuild(request)
    assert progress.failed_chunk_count == 1
    assert "cannot list" in progress.message


async def test_a_silent_source_that_may_hide_a_copy_is_told_of(cluster: Cluster) -> None:
    await cluster.store_stripes(pg=0, count=4, chunk_bytes=2000)
    devices = cluster.pg_devices(0)
    await cluster.wipe(devices[0], pg=0)
    request = cluster.rebuild_request(0, 0)
    await cluster.node_of(devices[1]).stop(0)
    progress = await cluster.rebuild(request)
    assert (progress.chunk_count, progress.failed_chunk_count) == (4, 1)
    assert "cannot list" in progress.message


async def test_rebuild_for_an_old_map_or_an_unknown_code_is_refused(cluster: Cluster) -> None:
    request = cluster.rebuild_request(0, 0)
    request.epoch = 0
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await cluster.rebuild(request)
    assert "STALE_EPOCH" in (caught.value.details() or "")
    request = cluster.rebuild_request(0, 0)
    request.code = "magic-1-1"
    progress = await cluster.rebuild(request)
    assert progress.failed_chunk_count == 1
    assert "magic-1-1" in progress.message


async def test_rebuild_keeps_to_its_bandwidth(cluster: Cluster) -> None:
    await cluster.store_stripes(pg=0, count=10, chunk_bytes=50_000)
    await cluster.wipe(cluster.pg_devices(0)[0], pg=0)
    clock = SystemClock()
    started_s = clock.monotonic_s()
    progress = await cluster.rebuild(cluster.rebuild_request(0, 0, bandwidth_bytes_per_s=1_000_000))
    assert progress.chunk_count == 10
    # 500 kB at 1 MB/s, less the burst of a quarter of a second.
    assert clock.monotonic_s() - started_s >= 0.24


async def test_a_node_comes_back_with_everything(cluster: Cluster) -> None:
    stripes = await cluster.store_stripes(pg=2, count=5, chunk_bytes=3000)
    device = cluster.pg_devices(2)[0]
    node = cluster.node_of(device)
    number = cluster.nodes.index(node)
    await node.stop(0)
    cluster.nodes[number] = node = await cluster.start_node(number)
    await cluster.until(lambda: node.devices.epoch == 1)
    reads = await cluster.read_all(
        node, [read_request(n, device, 2, s, 0) for n, s in enumerate(stripes)]
    )
    assert [r.data for r in reads] == [chunks[0] for chunks in stripes.values()]


async def test_heartbeats_report_the_devices(cluster: Cluster) -> None:
    await cluster.store_stripes(pg=0, count=3, chunk_bytes=1000)
    await cluster.until(lambda: all(r.chunk_count == 3 for r in cluster.metadata.reports.values()))
    report = next(iter(cluster.metadata.reports.values()))
    assert report.used_bytes > 3000
    assert report.capacity_bytes > 0
    assert report.weight == report.capacity_bytes / 2**40
    assert {n.address for n in cluster.metadata.nodes.values()} == {
        node.address for node in cluster.nodes
    }


async def test_a_metadata_server_that_is_away_stops_no_heartbeat_to_another(
    cluster: Cluster,
) -> None:
    config = StorageConfig(
        node_id="other",
        devices=(cluster.folder / "other",),
        metadata=("127.0.0.1:1", cluster.metadata_address),
        heartbeat_s=0.05,
    )
    registry = CollectorRegistry()
    node = StorageNode(config, clock=SystemClock(), registry=registry)
    await node.start()
    try:
        failures = {"metadata": "127.0.0.1:1"}
        await cluster.until(
            lambda: (
                (
                    registry.get_sample_value("exastore_storage_heartbeat_failures_total", failures)
                    or 0
                )
                >= 2
            )
        )
        await cluster.until(lambda: node.devices.epoch == 1)
        assert (
            registry.get_sample_value(
                "exastore_storage_device_fenced", {"device": str(cluster.folder / "other")}
            )
            == 0
        )
    finally:
        await node.stop(0)


async def test_a_fenced_device_refuses_writes_serves_reads_and_is_reported(
    cluster: Cluster,
) -> None:
    await cluster.nodes[0].stop(0)
    disk = FakeDisk()
    disk.write_small("device.json", (cluster.folder / "device-0" / "device.json").read_bytes())
    cluster.nodes[0] = node = await cluster.start_node(0, make_disk=lambda path: disk)
    await cluster.until(lambda: node.devices.epoch == 1)
    device = cluster.index_of(node)
    assert device is not None
    slot = list(cluster.pg_devices(0)).index(device)

    async def write(number: int) -> storage_pb2.WriteChunkResponse:
        request = write_request(number, device, 0, number.to_bytes(16, "big"), slot, b"data")
        (answer,) = await cluster.write_all(node, [request])
        return answer

    assert (await write(1)).status == S.CHUNK_STATUS_OK
    disk.next_write_error = OSError(errno.ENOSPC, "full")
    assert (await write(2)).status == S.CHUNK_STATUS_NO_SPACE
    disk.next_sync_error = OSError(errno.EIO, "broken")
    assert (await write(3)).status == S.CHUNK_STATUS_FENCED
    assert (await write(4)).status == S.CHUNK_STATUS_FENCED
    (read,) = await cluster.read_all(
        node, [read_request(1, device, 0, (1).to_bytes(16, "big"), slot)]
    )
    assert read.data == b"data"
    await cluster.until(lambda: sum(r.fenced for r in cluster.metadata.reports.values()) == 1)
    with pytest.raises(grpc.aio.AioRpcError, match="FENCED"):
        await cluster.stub(node).DeleteChunks(
            storage_pb2.DeleteChunksRequest(
                device_index=device, chunks=[chunk_id(0, (1).to_bytes(16, "big"), slot)]
            )
        )


async def test_a_taken_port_and_a_taken_device_are_told_clearly(cluster: Cluster) -> None:
    port_taken = StorageConfig(
        node_id="x",
        devices=(cluster.folder / "x",),
        metadata=(),
        address=cluster.nodes[0].address,
    )
    node = StorageNode(port_taken, clock=SystemClock(), registry=CollectorRegistry())
    with pytest.raises(AddressInUse, match=cluster.nodes[0].address):
        await node.start()
    device_taken = StorageConfig(node_id="y", devices=(cluster.folder / "device-0",), metadata=())
    node = StorageNode(device_taken, clock=SystemClock(), registry=CollectorRegistry())
    with pytest.raises(DeviceLocked, match="in use"):
        await node.start()
