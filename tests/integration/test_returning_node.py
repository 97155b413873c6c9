"""A node that returns after it was given up, with a real metadata server and real storage nodes."""

import asyncio
import time
from pathlib import Path

import pytest
from tests.integration.test_data_path import Cluster, running_cluster, until
from tests.unit.gateway_fakes import some_bytes

from exastore.proto.v1 import common_pb2

pytestmark = pytest.mark.integration

KIB = 1 << 10
OBJECT_BYTES = 128 * KIB
CHUNK_BYTES = OBJECT_BYTES // 4
BEFORE_COUNT, MEANWHILE_COUNT = 96, 8
PG_COUNT = 2
BANDWIDTH = 128 * KIB


def used(cluster: Cluster, node: int) -> int:
    """Chunks on the node's devices."""
    return sum(
        usage.chunk_count
        for lane in cluster.nodes[node].devices.lanes.values()
        for usage in lane.store.usage().values()
    )


def rebuilt_bytes(cluster: Cluster) -> float:
    return sum(
        next(
            sample.value
            for metric in node.metrics.rebuilt_bytes.collect()
            for sample in metric.samples
            if sample.name.endswith("_total")
        )
        for node in cluster.nodes
    )


async def current_map(cluster: Cluster) -> common_pb2.ClusterMap:
    return await cluster.store.metadata.get_map()


async def until_map(cluster: Cluster, is_wanted: str, timeout_s: float = 60.0) -> None:
    """Wait until some slot is REBUILDING, or none is."""
    deadline_s = time.monotonic() + timeout_s
    while True:
        found = await current_map(cluster)
        states = {state for pg in found.pgs for state in pg.slot_states}
        if (common_pb2.SLOT_STATE_REBUILDING in states) == (is_wanted == "rebuilding"):
            return
        assert time.monotonic() < deadline_s, f"slots were never {is_wanted}"
        await asyncio.sleep(0.02)


def device_of(found: common_pb2.ClusterMap, node: int) -> int:
    """The one device of a node, by the node's id."""
    index = next(item.index for item in found.nodes if item.id == f"node-{node}")
    return next(device.index for device in found.devices if device.node_index == index)


async def test_a_node_that_returns_mid_repair_catches_up_instead_of_being_rebuilt(
    tmp_path: Path,
) -> None:
    async with running_cluster(
        tmp_path,
        pg_count=PG_COUNT,
        down_after_s=1.0,
        out_after_s=1.5,
        tick_s=0.1,
        repair_bandwidth_bytes_per_s=BANDWIDTH,
    ) as cluster:
        for number in range(BEFORE_COUNT):
            await cluster.put(f"before-{number}", some_bytes(OBJECT_BYTES, number))
        formed = await current_map(cluster)
        rows = [list(pg.device_indexes) for pg in formed.pgs]
        # Two rows of six of eight devices share some: every write of the test meets that node.
        away = next(i for i in range(8) if all(device_of(formed, i) in row for row in rows))
        assert used(cluster, away) == BEFORE_COUNT
        await cluster.kill(away)
        await until_map(cluster, "rebuilding")
        await until(lambda: rebuilt_bytes(cluster) > 0)
        for number in range(MEANWHILE_COUNT):
            await cluster.put(f"meanwhile-{number}", some_bytes(OBJECT_BYTES, 1000 + number))
        in_vain = rebuilt_bytes(cluster)
        await cluster.nodes[away].start()
        await until_map(cluster, "clean")

        after = await current_map(cluster)
        assert [list(pg.device_indexes) for pg in after.pgs] == rows
        report = await cluster.verify()
        assert report.fully_redundant, report
        assert report.stripe_count == BEFORE_COUNT + MEANWHILE_COUNT
        for number in (0, BEFORE_COUNT - 1):
            assert await cluster.get(f"before-{number}") == some_bytes(OBJECT_BYTES, number)
        for number in range(MEANWHILE_COUNT):
            got = await cluster.get(f"meanwhile-{number}")
            assert got == some_bytes(OBJECT_BYTES, 1000 + number)
        # Catching up cost what was written meanwhile, beside what was rebuilt in vain.
        caught_up = rebuilt_bytes(cluster) - in_vain
        assert MEANWHILE_COUNT * CHUNK_BYTES <= caught_up < BEFORE_COUNT * CHUNK_BYTES / 2
        assert rebuilt_bytes(cluster) < BEFORE_COUNT * CHUNK_BYTES
        # What the rebuilds in vain have written is deleted.
        chunk_count = 6 * report.stripe_count
        await until(lambda: sum(used(cluster, node) for node in range(8)) == chunk_count)
        assert (await cluster.verify()).fully_redundant
