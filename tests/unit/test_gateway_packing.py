"""Small objects in the gateway: written as copies, read as slices of a stripe that they share."""

import numpy as np
import pytest
from tests.unit.gateway_fakes import BytesBody, FakeCluster, FakeNode, fake_cluster, some_bytes

from exastore.erasure import codec
from exastore.gateway.crc import crc32c
from exastore.gateway.errors import TooFewChunks, TooFewDevices
from exastore.gateway.store import ByteRange, ObjectAttributes, Precondition
from exastore.proto.v1 import common_pb2

PG = 3
CHUNK_BYTES = 40 * 576  # of rs-4-2 and of clay-3-3-5


async def put(cluster: FakeCluster, data: bytes, key: str) -> common_pb2.Extent:
    await cluster.store.put_object(
        "bucket", key, BytesBody(data), ObjectAttributes(), Precondition()
    )
    (extent,) = cluster.metadata.objects["bucket", key].extents
    return extent


async def get(cluster: FakeCluster, key: str, byte_range: ByteRange | None = None) -> bytes:
    reader = await cluster.store.open_object("bucket", key)
    return b"".join([bytes(piece) async for piece in reader.read(byte_range)])


def pack(cluster: FakeCluster, objects: dict[str, bytes]) -> dict[str, FakeNode]:
    """Make objects, one in each data chunk, slices of a stripe; the node that has each."""
    code = codec(cluster.metadata.map.code)
    rows = np.zeros((code.k, CHUNK_BYTES), dtype=np.uint8)
    group = cluster.metadata.map.pgs[PG].device_indexes
    stripe_id = b"packed".ljust(16, b"\x00")
    homes: dict[str, FakeNode] = {}
    for chunk, (key, data) in enumerate(objects.items()):
        begin = 100 + chunk
        rows[chunk, begin : begin + len(data)] = np.frombuffer(data, dtype=np.uint8)
        extent = cluster.metadata.objects["bucket", key].extents[0]
        extent.CopyFrom(
            common_pb2.Extent(
                pg=PG,
                stripe_id=stripe_id,
                code=code.name,
                epoch=1,
                data_bytes=len(data),
                chunk_bytes=CHUNK_BYTES,
                is_slice=True,
                slice_offset=chunk * CHUNK_BYTES + begin,
                slice_crc32c=crc32c(data),
            )
        )
        homes[key] = cluster.nodes[group[chunk]]
    for index, row in enumerate((*rows, *code.encode(rows))):
        device = group[index]
        cluster.nodes[device].chunks[device, PG, stripe_id, index] = row.tobytes()
    return homes


async def packed(cluster: FakeCluster) -> tuple[dict[str, bytes], dict[str, FakeNode]]:
    """Objects that are packed, and the node of each."""
    objects = {f"key-{number}": some_bytes(9_000 + number) for number in range(3)}
    for key, data in objects.items():
        await put(cluster, data, key)
    return objects, pack(cluster, objects)


def reads(cluster: FakeCluster) -> int:
    return sum(node.read_count for node in cluster.nodes)


async def test_small_objects_are_as_many_copies_as_survive_what_the_code_does() -> None:
    async with fake_cluster(packed_bytes=64 << 10) as cluster:
        data = some_bytes(10_000)
        extent = await put(cluster, data, "small")
        assert extent.is_log and extent.code == "rep-3" and not extent.missing_indexes
        assert cluster.chunk_count == 3
        assert all(data in node.chunks.values() for node in cluster.nodes if node.chunks)
        assert await get(cluster, "small") == data
        assert reads(cluster) == 1
        assert not (await put(cluster, some_bytes((64 << 10) + 1), "larger")).is_log


async def test_copies_of_a_dead_node_are_read_elsewhere_and_missing_ones_are_named() -> None:
    async with fake_cluster(node_count=6, packed_bytes=64 << 10) as cluster:
        data = some_bytes(10_000)
        extent = await put(cluster, data, "small")
        group = cluster.metadata.map.pgs[extent.pg].device_indexes
        cluster.nodes[group[0]].dead = True
        assert await get(cluster, "small") == data
        for node in cluster.nodes[:4]:
            node.dead = True
        # Two copies survive one more loss: enough, and the third is named.
        assert len((await put(cluster, data, "two")).missing_indexes) == 1
        assert await get(cluster, "two") == data
        cluster.nodes[4].dead = True
        with pytest.raises(TooFewDevices):
            await put(cluster, data, "one")


async def test_a_packed_object_is_read_with_one_request_to_one_node() -> None:
    async with fake_cluster(packed_bytes=64 << 10) as cluster:
        objects, homes = await packed(cluster)
        for key, data in objects.items():
            before = homes[key].read_count
            assert await get(cluster, key) == data
            assert homes[key].read_count == before + 1
        assert reads(cluster) == len(objects)
        part = await get(cluster, "key-1", ByteRange(50, 100))
        assert part == objects["key-1"][50:150]


@pytest.mark.parametrize(("code", "nodes"), [("rs-4-2", 8), ("lrc-4-2-2", 9), ("clay-3-3-5", 7)])
async def test_a_packed_object_whose_node_is_dead_is_decoded(code: str, nodes: int) -> None:
    async with fake_cluster(packed_bytes=64 << 10, code=code, node_count=nodes) as cluster:
        objects, homes = await packed(cluster)
        homes["key-1"].dead = True
        for key, data in objects.items():
            assert await get(cluster, key) == data


async def test_wrong_bytes_are_found_out_and_never_returned() -> None:
    async with fake_cluster(packed_bytes=64 << 10) as cluster:
        objects, homes = await packed(cluster)
        flip(homes["key-1"], 200)
        assert await get(cluster, "key-1") == objects["key-1"]
        # A second chunk is wrong, too: it is found by leaving each of the others out.
        flip(homes["key-2"], 200)
        assert await get(cluster, "key-1") == objects["key-1"]
        flip(homes["key-0"], 200)
        with pytest.raises(TooFewChunks):
            await get(cluster, "key-1")


def flip(node: FakeNode, offset: int) -> None:
    """Change a byte of the packed chunk of a node, which does not notice."""
    for key, data in node.chunks.items():
        if key[2].startswith(b"packed"):
            changed = bytes([data[offset] ^ 1])
            node.chunks[key] = data[:offset] + changed + data[offset + 1 :]
