"""Reading every chunk of a device and checking it, at a limited rate and within the budgets."""

import logging
from collections.abc import AsyncIterator

from exastore.metadata.core.clock import Clock
from exastore.proto.v1 import storage_pb2
from exastore.storage.budget import BackgroundBudget
from exastore.storage.errors import ChunkCorrupt, ChunkNotFound, DeviceReadFailed
from exastore.storage.lane import DeviceLane
from exastore.storage.metrics import StorageMetrics
from exastore.storage.pacing import Pacer
from exastore.storage.status import id_of

_log = logging.getLogger(__name__)
_REPORT_S = 0.25


async def scrub(
    lane: DeviceLane,
    request: storage_pb2.ScrubRequest,
    budget: BackgroundBudget,
    *,
    clock: Clock,
    metrics: StorageMetrics,
) -> AsyncIterator[storage_pb2.ScrubProgress]:
    """Check every chunk that is there when its PG's turn comes; an unreadable chunk is corrupt."""
    pacer = Pacer(request.bandwidth_bytes_per_s, clock)
    progress = storage_pb2.ScrubProgress()
    reported_s = clock.monotonic_s()
    for pg in lane.store.pgs():
        for key, entry in lane.store.of_pg(pg):
            await pacer.take(entry.data_bytes)
            await budget.scrub(request.device_index, entry.data_bytes)
            try:
                await lane.read(key)
            except ChunkNotFound:
                continue  # deleted meanwhile
            except (ChunkCorrupt, DeviceReadFailed) as error:
                progress.corrupt.append(id_of(key, entry.generation))
                metrics.corrupt_chunks.inc()
                _log.error("scrub of %s: %s", lane.store.path, error)
            progress.chunk_count += 1
            progress.chunk_bytes += entry.data_bytes
            metrics.scrubbed_chunks.inc()
            metrics.scrubbed_bytes.inc(entry.data_bytes)
            if progress.corrupt or clock.monotonic_s() - reported_s >= _REPORT_S:
                yield progress
                progress.ClearField("corrupt")
                reported_s = clock.monotonic_s()
    progress.done = True
    yield progress
