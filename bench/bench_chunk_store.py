"""What one device takes and gives: the store alone, and a node over gRPC on loopback.

`python bench/bench_chunk_store.py [--dir DIR]` prints a table; under pytest it runs small.
"""

import argparse
import asyncio
import tempfile
import threading
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from prometheus_client import CollectorRegistry

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


@dataclass(frozen=True, slots=True)
class Figure:
    """One measurement."""

    name: str
    chunk_bytes: int
    chunk_count: int
    duration_s: float

    def __str__(self) -> str:
        per_s = self.chunk_count / self.duration_s
        rate = per_s * self.chunk_bytes / 1e6
        return f"{self.name:<12} {self.chunk_bytes:>8} B  {per_s:>9.0f} chunks/s {rate:>8.0f} MB/s"


def measure_store(path: Path, chunk_bytes: int, chunk_count: int) -> list[Figure]:
    """Append everything, wait until all of it is durable; then read it all, one by one."""
    data = np.random.default_rng(1).bytes(chunk_bytes)
    crc = crc32c(data)
    keys = [ChunkKey(0, number.to_bytes(16, "big"), 0) for number in range(chunk_count)]
    store = ChunkStore.open(PosixDisk(path))
    left = threading.Semaphore(0)
    started_s = time.perf_counter()
    for key in keys:
        store.append(key, 0, "rs-4-2", data, crc, lambda _: left.release())
    for _ in keys:
        left.acquire()
    written_s = time.perf_counter()
    for key in keys:
        store.read(key)
    read_s = time.perf_counter()
    store.close()
    return [
        Figure("store write", chunk_bytes, chunk_count, written_s - started_s),
        Figure("store read", chunk_bytes, chunk_count, read_s - written_s),
    ]


def _chunk(number: int) -> common_pb2.ChunkId:
    return common_pb2.ChunkId(pg=0, stripe_id=number.to_bytes(16, "big"), index=0)


async def measure_node(path: Path, chunk_bytes: int, chunk_count: int) -> list[Figure]:
    """The same through the streams of a node in this process."""
    config = StorageConfig(node_id="bench", devices=(path,), metadata=())
    node = StorageNode(config, clock=SystemClock(), registry=CollectorRegistry())
    address = await node.start()
    (uuid,) = node.devices.lanes
    node.devices.learn_map(
        common_pb2.ClusterMap(
            epoch=1,
            devices=[common_pb2.Device(index=0, uuid=uuid)],
            pgs=[common_pb2.PlacementGroup(index=0, device_indexes=[0], epoch=1)],
        )
    )
    data = np.random.default_rng(1).bytes(chunk_bytes)
    crc = crc32c(data)
    window = asyncio.Semaphore(min(512, IN_FLIGHT_BYTES // chunk_bytes))

    async def writes() -> AsyncIterator[storage_pb2.WriteChunkRequest]:
        for number in range(chunk_count):
            await window.acquire()
            yield storage_pb2.WriteChunkRequest(
                request_id=number,
                chunk=_chunk(number),
                code="rs-4-2",
                epoch=1,
                crc32c=crc,
                data=data,
            )

    async def reads() -> AsyncIterator[storage_pb2.ReadChunkRequest]:
        for number in range(chunk_count):
            await window.acquire()
            yield storage_pb2.ReadChunkRequest(request_id=number, chunk=_chunk(number))

    async def run(call: Any) -> float:
        started_s = time.perf_counter()
        async for answer in call:
            assert answer.status == storage_pb2.CHUNK_STATUS_OK, answer.message
            window.release()
        return time.perf_counter() - started_s

    async with open_channel(address) as channel:
        stub = cast(Any, StorageServiceStub(channel))
        write_s = await run(stub.WriteChunks(writes()))
        read_s = await run(stub.ReadChunks(reads()))
    await node.stop(0)
    return [
        Figure("grpc write", chunk_bytes, chunk_count, write_s),
        Figure("grpc read", chunk_bytes, chunk_count, read_s),
    ]


@pytest.mark.parametrize("chunk_bytes", [4096, 1 << 20], ids=["4KiB", "1MiB"])
def test_small_run(tmp_path: Path, chunk_bytes: int) -> None:
    figures = measure_store(tmp_path / "store", chunk_bytes, 8)
    figures += asyncio.run(measure_node(tmp_path / "node", chunk_bytes, 8))
    assert all(figure.duration_s > 0 for figure in figures)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dir", type=Path, help="where the devices are made; default: a new one")
    parser.add_argument("--mib", type=int, default=512, help="data per measurement, in MiB")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.dir) as folder:
        for chunk_bytes in (1 << 20, 65_536, 4096):
            chunk_count = min(options.mib * (1 << 20) // chunk_bytes, 20_000)
            path = Path(folder) / str(chunk_bytes)
            for figure in measure_store(path / "store", chunk_bytes, chunk_count):
                print(figure, flush=True)
            for figure in asyncio.run(measure_node(path / "node", chunk_bytes, chunk_count)):
                print(figure, flush=True)


if __name__ == "__main__":
    main()
