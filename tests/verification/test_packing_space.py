"""What small objects cost: on the devices, in requests, and in processor time by their size.

Run with: python -m pytest -m verify -s tests/verification/test_packing_space.py
A million objects (EXASTORE_VERIFY_SMALL_OBJECTS=1000000 -k take_what) take some 35 GiB of disk at
most and, on two free cores, an hour and a half: they are written and packed in waves.
"""

import asyncio
import contextlib
import os
import statistics
import time
from collections.abc import AsyncGenerator, Callable
from functools import partial
from pathlib import Path

import grpc.aio
import pytest
from prometheus_client import CollectorRegistry
from tests.unit.gateway_fakes import BytesBody, some_bytes

from exastore.deploy.clock import SystemClock
from exastore.gateway.cluster_store import ClusterStore, open_cluster_store
from exastore.gateway.config import GatewayConfig
from exastore.gateway.store import ObjectAttributes, Precondition
from exastore.metadata.service.config import MetadataConfig
from exastore.metadata.service.server import MetadataServer
from exastore.proto.v1 import upkeep_pb2, upkeep_pb2_grpc
from exastore.storage.config import StorageConfig
from exastore.storage.server import StorageNode

pytestmark = [pytest.mark.verify, pytest.mark.slow]

KIB = 1024
OBJECT_COUNT = int(os.environ.get("EXASTORE_VERIFY_SMALL_OBJECTS", "6000"))
#: n/k of rs-4-2, times what the issue of the store allows.
LIMIT = 1.15 * 6 / 4
WRITERS = 16
#: Objects written before they are packed and their copies go; the copies of so many are on devices.
WAVE_COUNT = 50_000


class Rig:
    """A cluster of eight nodes in this process, and a store for each way to write."""

    def __init__(self, address: str, nodes: list[StorageNode]) -> None:
        self.address = address
        self.nodes = nodes
        self.stores: dict[int, ClusterStore] = {}
        self.registries: dict[int, CollectorRegistry] = {}

    async def put_all(
        self, store: ClusterStore, prefix: str, count: int, size: int, first: int = 0
    ) -> None:
        names = iter(range(first, first + count))

        async def work() -> None:
            for number in names:
                body = BytesBody(some_bytes(size, number))
                await store.put_object(
                    "bucket", f"{prefix}/{number:06d}", body, ObjectAttributes(), Precondition()
                )

        await asyncio.gather(*(work() for _ in range(WRITERS)))

    async def packing(self, *, now: bool) -> upkeep_pb2.PackingStatus:
        async with grpc.aio.insecure_channel(self.address) as channel:
            stub = upkeep_pb2_grpc.UpkeepServiceStub(channel)
            return await stub.GetPacking(upkeep_pb2.GetPackingRequest(pack_now=now))

    def used_bytes(self) -> int:
        return sum(
            lane.store.used_bytes for node in self.nodes for lane in node.devices.lanes.values()
        )

    def holds_only(self, stripe_count: int) -> bool:
        """Whether nothing is on the devices but the chunks of so many stripes of rs-4-2."""
        lanes = [lane for node in self.nodes for lane in node.devices.lanes.values()]
        return sum(lane.store.chunk_count for lane in lanes) == 6 * stripe_count


@contextlib.asynccontextmanager
async def rig(folder: Path, *, packed_bytes: tuple[int, ...]) -> AsyncGenerator[Rig]:
    clock = SystemClock()
    async with contextlib.AsyncExitStack() as stack:
        config = MetadataConfig(engine=f"sqlite://{folder / 'meta.db'}", trash_grace_s=1.0)
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
                capacity_bytes=6 << 30,
                segment_bytes=4 << 20,
            )
            node = StorageNode(node_config, clock=clock, registry=CollectorRegistry())
            await node.start()
            stack.push_async_callback(node.stop, 0.0)
            nodes.append(node)
        made = Rig(address, nodes)
        for most in packed_bytes:
            registry = CollectorRegistry()
            settings = GatewayConfig(
                metadata=(address,), packed_bytes=most, chunk_timeout_s=60.0,
                straggler_wait_s=60.0, hedge_after_s=60.0,
            )  # fmt: skip
            store = await open_cluster_store(settings, clock=clock, registry=registry)
            stack.push_async_callback(store.close)
            made.stores[most], made.registries[most] = store, registry
            await until(partial(has_map, store))
        await next(iter(made.stores.values())).create_bucket("bucket", owner="tester")
        yield made


async def until(condition: Callable[[], bool], timeout_s: float = 120.0) -> None:
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline_s, "it did not happen in time"
        await asyncio.sleep(0.05)


def has_map(store: ClusterStore) -> bool:
    return store.maps.epoch > 0


def cpu_s() -> float:
    times = os.times()
    return times.user + times.system


@pytest.mark.timeout(20_000)
async def test_packed_objects_take_what_the_code_says_and_one_request_each(
    tmp_path: Path,
) -> None:
    size = 16 * KIB
    most = 128 * KIB
    async with rig(tmp_path, packed_bytes=(most,)) as made:
        store, registry = made.stores[most], made.registries[most]
        began_s, began_cpu_s = time.monotonic(), cpu_s()
        wait_s = max(120.0, OBJECT_COUNT / 100)
        put_s, status = 0.0, await made.packing(now=False)
        for first in range(0, OBJECT_COUNT, WAVE_COUNT):
            wave = min(WAVE_COUNT, OBJECT_COUNT - first)
            wave_began_s = time.monotonic()
            await made.put_all(store, "o", wave, size, first)
            put_s += time.monotonic() - wave_began_s
            status = await made.packing(now=True)
            assert status.unpacked_object_count == 0
            # The copies go through the trash, and their room with compaction.
            await until(partial(made.holds_only, status.stripe_count), wait_s)
        spent_s, spent_cpu_s = time.monotonic() - began_s, cpu_s() - began_cpu_s
        data_bytes = OBJECT_COUNT * size
        await until(lambda: made.used_bytes() <= LIMIT * data_bytes, wait_s)
        sample = range(0, OBJECT_COUNT, 7)
        before = sum_of(registry, "exastore_gateway_chunk_bytes_total", operation="read")
        for number in sample:
            reader = await store.open_object("bucket", f"o/{number:06d}")
            data = b"".join([bytes(piece) async for piece in reader.read()])
            assert data == some_bytes(size, number)
        after = sum_of(registry, "exastore_gateway_chunk_bytes_total", operation="read")
        assert after - before == size * len(sample), "only the slices are read"
        print(
            f"\n{OBJECT_COUNT} objects of {size} bytes: {made.used_bytes() / data_bytes:.3f} bytes "
            f"on devices for each (limit {LIMIT:.3f}), of chunks alone "
            f"{status.stored_bytes / status.live_bytes:.4f}; put at "
            f"{OBJECT_COUNT / put_s:.0f} a second, with packing and the end of the copies at "
            f"{OBJECT_COUNT / spent_s:.0f}, {spent_cpu_s / OBJECT_COUNT * 1e6:.0f} us of "
            "CPU each"
        )


def sum_of(registry: CollectorRegistry, name: str, **labels: str) -> float:
    """The sum of the samples of a metric with these labels."""
    return sum(
        sample.value
        for metric in registry.collect()
        for sample in metric.samples
        if sample.name == name and all(sample.labels.get(k) == v for k, v in labels.items())
    )


@pytest.mark.parametrize("size_kib", [8, 16, 32, 64, 128, 256])
async def test_processor_time_of_a_write_by_size(tmp_path: Path, size_kib: int) -> None:
    count, size = 160, size_kib * KIB
    async with rig(tmp_path, packed_bytes=(0, 1024 * KIB)) as made:
        spent: dict[int, list[float]] = {most: [] for most in made.stores}
        put: dict[int, list[float]] = {most: [] for most in made.stores}
        for turn in range(5):
            for most, store in made.stores.items():
                began_s = cpu_s()
                await made.put_all(store, f"{most}-{turn}", count, size)
                put[most].append((cpu_s() - began_s) / count * 1e6)
                await made.packing(now=True)
                spent[most].append((cpu_s() - began_s) / count * 1e6)
        # The first turn compiles.
        stripes, copies = (statistics.median(spent[most][1:]) for most in (0, 1024 * KIB))
        put_stripes, put_copies = (statistics.median(put[most][1:]) for most in (0, 1024 * KIB))
        print(
            f"\n{size_kib} KiB: {put_stripes:.0f} us of CPU as a stripe; as copies "
            f"{put_copies:.0f} us until it is acknowledged, {copies:.0f} us with packing: "
            f"{put_stripes / put_copies:.2f} and {stripes / copies:.2f} times as many"
        )
        assert put_copies < 1.5 * put_stripes
