"""The data path with codes of which more matters than how many chunks there are."""

import pytest
from tests.unit.gateway_fakes import BytesBody, FakeCluster, fake_cluster, some_bytes

from exastore.erasure import codec
from exastore.gateway.store import ByteRange, ObjectAttributes, Precondition
from exastore.gateway.stripe_reader import next_reads
from exastore.gateway.striping import chunk_bytes_for, chunk_step_bytes, largest_chunk_bytes
from exastore.metadata.core.topology import DeviceState


async def put(cluster: FakeCluster, data: bytes) -> None:
    await cluster.store.put_object(
        "bucket", "key", BytesBody(data), ObjectAttributes(), Precondition()
    )


async def get(cluster: FakeCluster, byte_range: ByteRange | None = None) -> bytes:
    reader = await cluster.store.open_object("bucket", "key")
    return b"".join([bytes(piece) async for piece in reader.read(byte_range)])


@pytest.mark.parametrize(
    ("code", "wanted", "counted", "candidates", "reads"),
    [
        # Groups {0, 1, 2, 6} and {3, 4, 5, 7}; 8 and 9 are global.
        ("lrc-6-2-2", [0], [], [1, 2, 3, 4, 5, 6, 7, 8, 9], [1, 2, 6]),
        ("lrc-6-2-2", [0], [1], [2, 3, 4, 5, 6, 7, 8, 9], [2, 6]),
        ("lrc-6-2-2", [0, 3], [], [1, 2, 4, 5, 6, 7, 8, 9], [1, 2, 4, 5, 6, 7]),
        ("lrc-6-2-2", [0, 3], [], [1, 2, 3, 6], [1, 2, 3, 6]),
        ("lrc-6-2-2", [0], [], [2, 3, 4, 5, 6, 7, 9], [2, 3, 4, 5, 6, 9]),
        ("lrc-6-2-2", [0], [], [2, 3, 4, 5, 6, 7], None),
        ("clay-4-2-5", [0], [], [1, 2, 3, 4, 5], [1, 2, 3, 4]),
        ("rep-3", [0], [], [2], [2]),
    ],
)
def test_the_cheapest_chunks_are_read(
    code: str, wanted: list[int], counted: list[int], candidates: list[int], reads: list[int] | None
) -> None:
    assert next_reads(codec(code), wanted, counted, candidates) == reads


@pytest.mark.parametrize(("alignment", "step"), [(1, 64), (8, 64), (9, 576), (256, 256)])
def test_chunk_sizes_suit_kernel_and_code(alignment: int, step: int) -> None:
    assert chunk_step_bytes(alignment) == step
    assert chunk_bytes_for(1, 4, alignment) == step
    assert chunk_bytes_for(4 * step + 1, 4, alignment) == 2 * step
    assert largest_chunk_bytes(1 << 20, alignment) == (1 << 20) // step * step
    assert largest_chunk_bytes(step - 1, alignment) == step


async def test_a_lost_chunk_of_an_lrc_is_read_from_its_group() -> None:
    async with fake_cluster(node_count=10, code="lrc-6-2-2") as cluster:
        data = some_bytes(6 * (64 << 10))
        await put(cluster, data)
        (extent,) = cluster.metadata.extents
        row = cluster.metadata.map.pgs[extent.pg].device_indexes
        cluster.metadata.set_state(row[1], DeviceState.DOWN)
        await cluster.eventually(lambda: cluster.store.maps.epoch == 2)
        assert await get(cluster, ByteRange(70_000, 100)) == data[70_000:70_100]
        group = [row[slot] for slot in (0, 2, 6)]
        assert [node.read_count for node in cluster.nodes] == [
            int(device in group) for device in range(10)
        ]
        assert await get(cluster) == data


async def test_any_decodable_four_of_an_lrc_may_be_lost() -> None:
    async with fake_cluster(node_count=10, code="lrc-6-2-2") as cluster:
        data = some_bytes(5 * 6 * (64 << 10) + 17)
        await put(cluster, data)
        for node in (0, 3, 5, 8):
            cluster.nodes[node].dead = True
        code = codec("lrc-6-2-2")
        for extent in cluster.metadata.extents:
            row = list(cluster.metadata.map.pgs[extent.pg].device_indexes)
            assert code.decodable([row.index(device) for device in (0, 3, 5, 8)])
        assert await get(cluster) == data


async def test_a_write_is_enough_when_it_survives_one_more_loss() -> None:
    async with fake_cluster(node_count=10, code="lrc-6-2-2") as cluster:
        writer = cluster.store._stripe_writer  # pyright: ignore[reportPrivateUsage]  # the rule
        code = codec("lrc-6-2-2")
        everything = set(range(10))
        # One chunk of each group and a global parity: seven durable chunks are enough,
        assert writer.is_enough(code, everything - {0, 3, 8})
        # but not if one group has lost three, as a fourth would be the end.
        assert not writer.is_enough(code, everything - {0, 1, 2})
        assert writer.is_enough(code, everything - {0, 1})
        assert not writer.is_enough(code, everything - {0, 1, 3, 4})
        for name in ("rs-4-2", "clay-4-2-5"):
            assert writer.is_enough(codec(name), set(range(5)))
            assert not writer.is_enough(codec(name), set(range(4)))
        assert writer.is_enough(codec("rs-3-0"), {0, 1, 2})
        assert not writer.is_enough(codec("rs-3-0"), {0, 1})


@pytest.mark.parametrize("size", [5_000, 3 * 64_512, 2 * 3 * 65_536 + 1])
async def test_clay_chunks_of_any_object_are_aligned_and_decoded(size: int) -> None:
    async with fake_cluster(node_count=7, code="clay-3-3-5") as cluster:
        data = some_bytes(size)
        await put(cluster, data)
        assert all(extent.chunk_bytes % (9 * 64) == 0 for extent in cluster.metadata.extents)
        for node in cluster.nodes[1:4]:
            node.dead = True
        assert await get(cluster) == data
