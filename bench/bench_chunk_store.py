"""What one device takes and gives: the store alone, and a node over gRPC on loopback.

A write counts when it is durable. `--basetemp DIR` says on which disk the devices are made.
"""

import asyncio
import threading
import zlib
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from prometheus_client import CollectorRegistry
from pytest_benchmark.fixture import BenchmarkFixture

from exastore.deploy.clock import SystemClock
from exastore.proto.v1 import common_pb2, storage_pb2
from exastore.proto.v1.storage_pb2_grpc import StorageServiceStub
from exastore.storage.channel import open_channel
from exastore.storage.chunk_store import ChunkStore
from exastore.storage.config import StorageConfig
from exastore.storage.crc import crc32c
from exastore.storage.disk import PosixDisk
from exastore.storage.record import ChunkKey
from exastore.storage.server import StorageNode

IN_FLIGHT_BYTES = 12 << 20
ROUNDS = 3
KIB = 1024
#: Sizes of a chunk, and how many are written in a round: as large as a device gets, and as small.
CHUNKS = [
    pytest.param(1024 * KIB, 128, id="1MiB"),
    pytest.param(64 * KIB, 1024, id="64KiB"),
    pytest.param(4 * KIB, 4096, id="4KiB"),
]
#: With benchmarks disabled: a few, to see that it works.
FEW = 8


class _Chunks:
    """The same bytes under new names in every round."""

    def __init__(self, chunk_bytes: int, chunk_count: int) -> None:
        self.data = np.random.default_rng(1).bytes(chunk_bytes)
        self.crc = crc32c(self.data)
        self.count = chunk_count
        self.round = 0

    def names(self) -> list[bytes]:
        """The names of the current round."""
        first = self.round * self.count
        return [(first + number).to_bytes(16, "big") for number in range(self.count)]


def _run(benchmark: BenchmarkFixture, chunks: _Chunks, what: str, work: Callable[[], None]) -> None:
    benchmark.group = f"{what}-{len(chunks.data) // KIB}KiB"
    pedantic: Any = benchmark.pedantic
    pedantic(work, rounds=ROUNDS)
    if benchmark.stats is not None:  # None when benchmarks are disabled
        stats: Any = benchmark.stats.stats
        benchmark.extra_info["chunks_per_s"] = round(chunks.count / stats.median)
    benchmark.extra_info["data_bytes"] = chunks.count * len(chunks.data)
    benchmark.extra_info["checksum_crc32"] = zlib.crc32(chunks.data)


def _chunks(benchmark: BenchmarkFixture, chunk_bytes: int, chunk_count: int) -> _Chunks:
    return _Chunks(chunk_bytes, FEW if benchmark.disabled else chunk_count)


@contextmanager
def _store(path: Path) -> Generator[ChunkStore]:
    store = ChunkStore.open(PosixDisk(path))
    try:
        yield store
    finally:
        store.close()


def _append_all(store: ChunkStore, chunks: _Chunks) -> None:
    """Append a round of chunks and wait until all are durable."""
    left = threading.Semaphore(0)
    for name in chunks.names():
        key = ChunkKey(0, name, 0)
        store.append(key, 0, "rs-4-2", chunks.data, chunks.crc, lambda _: left.release())
    for _ in range(chunks.count):
        left.acquire()


@pytest.mark.parametrize(("chunk_bytes", "chunk_count"), CHUNKS)
def test_store_write(
    benchmark: BenchmarkFixture, tmp_path: Path, chunk_bytes: int, chunk_count: int
) -> None:
    chunks = _chunks(benchmark, chunk_bytes, chunk_count)
    with _store(tmp_path) as store:

        def work() -> None:
            _append_all(store, chunks)
            chunks.round += 1

        _run(benchmark, chunks, "write", work)


@pytest.mark.parametrize(("chunk_bytes", "chunk_count"), CHUNKS)
def test_store_read(
    benchmark: BenchmarkFixture, tmp_path: Path, chunk_bytes: int, chunk_count: int
) -> None:
    chunks = _chunks(benchmark, chunk_bytes, chunk_count)
    with _store(tmp_path) as store:
        _append_all(store, chunks)
        keys = [ChunkKey(0, name, 0) for name in chunks.names()]

        def work() -> None:
            for key in keys:
                store.read(key)

        _run(benchmark, chunks, "read", work)


@asynccontextmanager
async def _node(path: Path) -> AsyncGenerator[Any]:
    """The client's side of a node in this process."""
    config = StorageConfig(node_id="bench", devices=(path,), metadata=())
    node = StorageNode(config, clock=SystemClock(), registry=CollectorRegistry())
    address = await node.start()
    (uuid,) = node.devices.lanes
    node.devices.learn_map(
        common_pb2.ClusterMap(
            epoch=1,
            devices=[common_pb2.Device(index=0, uuid=uuid)],
            pgs=[
                common_pb2.PlacementGroup(
                    index=0,
                    device_indexes=[0],
                    slot_states=[common_pb2.SLOT_STATE_CLEAN],
                    epoch=1,
                )
            ],
        )
    )
    async with open_channel(address) as channel:
        yield cast(Any, StorageServiceStub(channel))
    await node.stop(0)


async def _write_all(stub: Any, chunks: _Chunks) -> None:
    window = asyncio.Semaphore(min(512, IN_FLIGHT_BYTES // len(chunks.data)))

    async def requests() -> AsyncIterator[storage_pb2.WriteChunkRequest]:
        for number, name in enumerate(chunks.names()):
            await window.acquire()
            yield storage_pb2.WriteChunkRequest(
                request_id=number,
                chunk=common_pb2.ChunkId(pg=0, stripe_id=name, index=0),
                code="rs-4-2",
                epoch=1,
                crc32c=chunks.crc,
                data=chunks.data,
            )

    await _take_all(stub.WriteChunks(requests()), window)


async def _read_all(stub: Any, chunks: _Chunks) -> None:
    window = asyncio.Semaphore(min(512, IN_FLIGHT_BYTES // len(chunks.data)))

    async def requests() -> AsyncIterator[storage_pb2.ReadChunkRequest]:
        for number, name in enumerate(chunks.names()):
            await window.acquire()
            chunk = common_pb2.ChunkId(pg=0, stripe_id=name, index=0)
            yield storage_pb2.ReadChunkRequest(request_id=number, chunk=chunk)

    await _take_all(stub.ReadChunks(requests()), window)


async def _take_all(call: Any, window: asyncio.Semaphore) -> None:
    async for answer in call:
        assert answer.status == storage_pb2.CHUNK_STATUS_OK, answer.message
        window.release()


@pytest.mark.parametrize("what", ["write", "read"])
@pytest.mark.parametrize(("chunk_bytes", "chunk_count"), CHUNKS)
def test_node(
    benchmark: BenchmarkFixture, tmp_path: Path, chunk_bytes: int, chunk_count: int, what: str
) -> None:
    chunks = _chunks(benchmark, chunk_bytes, chunk_count)
    with asyncio.Runner() as runner:
        node = _node(tmp_path)
        stub = runner.run(node.__aenter__())

        def work() -> None:
            runner.run(_write_all(stub, chunks) if what == "write" else _read_all(stub, chunks))
            chunks.round += what == "write"

        if what == "read":
            runner.run(_write_all(stub, chunks))
        try:
            _run(benchmark, chunks, what, work)
        finally:
            runner.run(node.__aexit__(None, None, None))
