"""Compaction: the live records of a segment are written again, then the segment is deleted.

Laws:
1. A segment goes only after everything in it that still says something is durable elsewhere.
2. A live chunk is moved only if it passes its CRCs; a segment with a rotten live chunk stays until
   repair has written the chunk again.
3. A tombstone is moved as long as a segment is left that may hold a record it kills.
4. Extra room is one segment's live bytes at most: one segment is compacted at a time.
"""

import dataclasses
from collections.abc import Callable, Container, Mapping
from concurrent.futures import Future
from typing import TYPE_CHECKING, NamedTuple

from exastore.metadata.core.phases import Phase, reach
from exastore.storage.completion import resolving
from exastore.storage.errors import ChunkCorrupt
from exastore.storage.index_file import SegmentUsage
from exastore.storage.record import (
    FIXED_BYTES,
    Kill,
    Position,
    RecordKind,
    verify_data,
)
from exastore.storage.segment import HEAD_BYTES, Found, scan

if TYPE_CHECKING:
    from exastore.storage.chunk_store import ChunkStore

#: Bytes moved between two waits for the disk: what a crash may leave twice.
_BATCH_BYTES = 8 << 20
#: A segment's own: its head and the MARK that ends it.
_FRAME_BYTES = HEAD_BYTES + FIXED_BYTES


class Compacted(NamedTuple):
    """What compacting a segment did.

    Attributes:
        segment: Which one.
        removed: It is gone; if not, a live chunk in it is rotten.
        moved_bytes: Records written again.
        freed_bytes: Given back, less what was written again.
    """

    segment: int
    removed: bool
    moved_bytes: int
    freed_bytes: int


def garbage_bytes(usage: SegmentUsage) -> int:
    """Bytes that compacting the segment would give back, tombstones that must stay aside."""
    return max(0, usage.used_bytes - usage.live_bytes - _FRAME_BYTES)


def choose_segment(
    segments: Mapping[int, SegmentUsage], least_garbage: float, blocked: Container[int]
) -> int | None:
    """The sealed segment with the largest share of garbage, if that is at least `least_garbage`.

    Args:
        segments: All of them; the one with the highest number is growing.
        blocked: Segments to leave alone.
    """
    if not segments:
        return None
    growing = max(segments)
    shares = [
        (garbage_bytes(usage) / max(1, usage.used_bytes), -segment)
        for segment, usage in segments.items()
        if segment != growing and segment not in blocked and garbage_bytes(usage)
    ]
    share, negative = max(shares, default=(0.0, 0))
    return -negative if shares and share >= least_garbage else None


def compact(store: "ChunkStore", segment: int, pace: Callable[[int], None]) -> Compacted:
    """Move what is alive in a sealed segment and delete it.

    Args:
        store: The device.
        segment: Not the growing one.
        pace: Called with bytes read; may block, and raise StorageError to stop.

    Raises:
        NoSpace, DeviceFenced, DeviceClosed, DeviceReadFailed, OSError.
    """
    before = store.segments()
    others = before.keys() - {segment}
    waiters: list[Future[None]] = []
    moved_bytes = batch_bytes = 0
    whole = True
    for found in _records(store, segment):
        header = found.header
        waiter: Future[None] = Future()
        done = resolving(waiter)
        position = Position(segment, found.offset_bytes)
        pace(header.header_bytes)
        if header.kind is RecordKind.TOMBSTONE and _still_kills(header.kill, position, others):
            kill = Kill(*header.kill.before(position), header.kill.oldest_segment)
            store.move_tombstone(dataclasses.replace(header, kill=kill, prior_durable=False), done)
        elif header.kind is RecordKind.CHUNK and store.lies_at(header.key, position):
            pace(header.data_bytes)
            try:
                data = store.record_data(position, header)
                verify_data(header, data)
            except ChunkCorrupt:
                whole = False
                continue
            reach(Phase.COMPACT_MOVING)
            fresh = dataclasses.replace(header, prior_durable=False)
            if not store.move(position, fresh, data, done):
                continue
        else:
            continue
        waiters.append(waiter)
        moved_bytes += header.record_bytes
        batch_bytes += header.record_bytes
        if batch_bytes >= _BATCH_BYTES:
            _wait(waiters)
            batch_bytes = 0
    _wait(waiters)
    store.settle()
    reach(Phase.COMPACT_MOVED)
    freed_bytes = before[segment].used_bytes - moved_bytes if whole else -moved_bytes
    if whole:
        store.remove_segment(segment)
        reach(Phase.COMPACT_REMOVED)
    return Compacted(segment, whole, moved_bytes, freed_bytes)


def _records(store: "ChunkStore", segment: int) -> list[Found]:
    file = store.segment_file(segment)
    items = scan(file, store.device_uuid, segment, file.size_bytes())
    return [item for item in items if isinstance(item, Found)]


def _still_kills(kill: Kill, own: Position, segments: Container[int]) -> bool:
    """Whether a segment that may hold a record killed by this tombstone is left."""
    last = kill.before(own).segment
    return any(number in segments for number in range(kill.oldest_segment, last + 1))


def _wait(waiters: "list[Future[None]]") -> None:
    for waiter in waiters:
        waiter.result()
    waiters.clear()
