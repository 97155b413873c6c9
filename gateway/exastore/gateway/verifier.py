"""Proves the redundancy of a cluster: reads every chunk of every stripe and checks it.

A chunk is healthy when its bytes have the CRC-32C that the metadata recorded at commit; a stripe is
healthy when all n chunks are, and its parity is what encoding its data gives.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from prometheus_client import CollectorRegistry

from exastore.erasure import codec
from exastore.gateway.config import GatewayConfig
from exastore.gateway.crc import crc32c
from exastore.gateway.errors import NodeUnavailable
from exastore.gateway.map_cache import MapCache
from exastore.gateway.metadata_client import MetadataClient
from exastore.gateway.metrics import GatewayMetrics
from exastore.gateway.node_client import ChunkAddress, NodePool
from exastore.metadata.core.clock import Clock
from exastore.metadata.core.topology import NO_DEVICE
from exastore.proto.v1 import common_pb2, storage_pb2

#: Examples of trouble that a report carries.
MAX_EXAMPLES = 20


@dataclass(slots=True)
class VerifyReport:
    """What was found. While `verify_cluster` runs, its progress."""

    #: Stripes there are; those after the walk began may be missed.
    total_stripe_count: int = 0
    stripe_count: int = 0
    """Stripes checked."""
    chunk_count: int = 0
    """Chunks checked: n of each stripe."""
    chunk_bytes: int = 0
    """Bytes of healthy chunks."""
    data_bytes: int = 0
    """Object bytes in the stripes checked; objects stored inline have none."""
    healthy_chunk_count: int = 0
    missing_chunk_count: int = 0
    """Not found on the device that the map names, or the map names none."""
    corrupt_chunk_count: int = 0
    """Other bytes than were written."""
    unreachable_chunk_count: int = 0
    """No answer, or an error of the device."""
    wrong_parity_stripe_count: int = 0
    """All chunks are as written, but parity and data do not belong together."""
    full_stripe_count: int = 0
    """Stripes with all n chunks healthy."""
    lost_stripe_count: int = 0
    """Stripes with fewer healthy chunks than decoding needs."""
    deleted_stripe_count: int = 0
    """Stripes deleted while the walk went on: not one chunk found, not listed any more."""
    examples: list[str] = field(default_factory=list[str])

    @property
    def fully_redundant(self) -> bool:
        """Whether every stripe has all its chunks."""
        return (
            self.stripe_count - self.deleted_stripe_count == self.full_stripe_count
            and self.wrong_parity_stripe_count == 0
        )

    def note(self, text: str) -> None:
        if len(self.examples) < MAX_EXAMPLES:
            self.examples.append(text)


ProgressCallback = Callable[[VerifyReport], None]


async def verify_cluster(
    metadata: MetadataClient,
    maps: MapCache,
    nodes: NodePool,
    *,
    progress: ProgressCallback = lambda report: None,
    concurrency: int = 8,
) -> VerifyReport:
    """Read all chunks of all stripes, `concurrency` stripes at a time.

    Raises:
        MetadataUnavailable, NotReady: the walk could not be made; nothing is reported.
    """
    report = VerifyReport()
    async for batch in metadata.list_extents():
        report.total_stripe_count += len(batch)
    running: set[asyncio.Task[None]] = set()
    gone: list[common_pb2.Extent] = []
    try:
        async for batch in metadata.list_extents():
            for extent in batch:
                while len(running) >= concurrency:
                    running = await _finish_some(running)
                    progress(report)
                running.add(asyncio.create_task(_verify_stripe(extent, maps, nodes, report, gone)))
        while running:
            running = await _finish_some(running)
            progress(report)
    finally:
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
    if gone:
        await _judge_gone(metadata, gone, report)
    report.total_stripe_count = max(report.total_stripe_count, report.stripe_count)
    progress(report)
    return report


async def verify(
    config: GatewayConfig,
    *,
    clock: Clock,
    progress: ProgressCallback = lambda report: None,
    concurrency: int = 8,
) -> VerifyReport:
    """`verify_cluster` with connections of its own: `config` names the metadata servers."""
    metrics = GatewayMetrics(CollectorRegistry())
    metadata = MetadataClient(config, clock=clock)
    nodes = NodePool(config, clock=clock, metrics=metrics)
    maps = MapCache(metadata, config, clock=clock)
    try:
        return await verify_cluster(
            metadata, maps, nodes, progress=progress, concurrency=concurrency
        )
    finally:
        await maps.close()
        await nodes.close()
        await metadata.close()


async def _finish_some(running: set[asyncio.Task[None]]) -> set[asyncio.Task[None]]:
    done, pending = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
    for task in done:
        task.result()
    return pending


async def _verify_stripe(
    extent: common_pb2.Extent,
    maps: MapCache,
    nodes: NodePool,
    report: VerifyReport,
    gone: list[common_pb2.Extent],
) -> None:
    code = codec(extent.code)
    results = await asyncio.gather(
        *(_read_chunk(extent, index, maps, nodes) for index in range(code.n))
    )
    report.stripe_count += 1
    report.data_bytes += extent.data_bytes
    if all(kind == "missing" for kind, _, _ in results):
        gone.append(extent)
        return
    good: dict[int, memoryview] = {}
    for index, (kind, text, data) in enumerate(results):
        _count(report, kind)
        if kind == "healthy":
            good[index] = memoryview(data)
            report.chunk_bytes += len(data)
        else:
            report.note(f"stripe {extent.stripe_id.hex()} chunk {index}: {kind}: {text}")
    if not code.decodable([index for index in range(code.n) if index not in good]):
        report.lost_stripe_count += 1
    if len(good) == code.n:
        rows = [np.frombuffer(good[index], dtype=np.uint8) for index in range(code.n)]
        report.full_stripe_count += 1
        if not np.array_equal(
            code.encode(rows[: code.k]), np.reshape(rows[code.k :], (code.m, -1))
        ):
            report.wrong_parity_stripe_count += 1
            report.note(f"stripe {extent.stripe_id.hex()}: parity does not belong to the data")


async def _read_chunk(
    extent: common_pb2.Extent, index: int, maps: MapCache, nodes: NodePool
) -> tuple[str, str, bytes | memoryview]:
    """Kind of result, explanation, bytes."""
    view = await maps.view()
    device = view.devices_of(extent.pg)[index]
    if device == NO_DEVICE:
        return "missing", "its slot has no device", b""
    address = ChunkAddress(device, extent.pg, extent.stripe_id, index)
    where = f"device {device} of {view.device_address[device]}"
    try:
        response = await nodes.read(view, address, extent.chunk_bytes)
    except NodeUnavailable as error:
        return "unreachable", str(error), b""
    if response.status == storage_pb2.CHUNK_STATUS_NOT_FOUND:
        return "missing", where, b""
    if response.status == storage_pb2.CHUNK_STATUS_CORRUPT:
        return "corrupt", f"{where}: {response.message}", b""
    if response.status != storage_pb2.CHUNK_STATUS_OK:
        name = storage_pb2.ChunkStatus.Name(response.status).removeprefix("CHUNK_STATUS_")
        return "unreachable", f"{where}: {name}: {response.message}", b""
    data = response.data
    if len(data) != extent.chunk_bytes or crc32c(data) != extent.chunk_crc32c[index]:
        return "corrupt", f"{where} sent other bytes than were written", b""
    return "healthy", "", data


async def _judge_gone(
    metadata: MetadataClient, gone: list[common_pb2.Extent], report: VerifyReport
) -> None:
    """Tell stripes that were deleted during the walk from stripes that lost every chunk."""
    missing = {extent.stripe_id: extent for extent in gone}
    listed: set[bytes] = set()
    async for batch in metadata.list_extents():
        listed.update(extent.stripe_id for extent in batch if extent.stripe_id in missing)
    for stripe_id, extent in missing.items():
        if stripe_id not in listed:
            report.deleted_stripe_count += 1
            continue
        for _ in range(codec(extent.code).n):
            _count(report, "missing")
        report.lost_stripe_count += 1
        report.note(f"stripe {stripe_id.hex()}: none of its chunks is there")


def _count(report: VerifyReport, kind: str) -> None:
    report.chunk_count += 1
    report.healthy_chunk_count += kind == "healthy"
    report.missing_chunk_count += kind == "missing"
    report.corrupt_chunk_count += kind == "corrupt"
    report.unreachable_chunk_count += kind == "unreachable"
