"""Opening a device: the index file, and behind the place it speaks up to, the segments."""

import logging
from dataclasses import dataclass

from exastore.storage.disk import Disk
from exastore.storage.errors import IndexDamaged, LogTooShort
from exastore.storage.index import ChunkIndex
from exastore.storage.index_file import Entry, IndexFile, Summary
from exastore.storage.log import SegmentLog, StoreOptions
from exastore.storage.record import Position, RecordHeader, RecordKind
from exastore.storage.segment import Damaged, Found

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Recovery:
    """What opening a device found.

    Attributes:
        segment_count: Segments of the device.
        record_count: Good records that the index file did not cover.
        damage: Segment and stretch of acknowledged records that cannot be read; needs repair.
        torn: Segment and stretch of writes that a crash cut off before they were acknowledged.
    """

    segment_count: int
    record_count: int
    damage: tuple[tuple[int, Damaged], ...]
    torn: tuple[tuple[int, Damaged], ...]


def recover(
    disk: Disk, device_uuid: bytes, options: StoreOptions
) -> tuple[SegmentLog, ChunkIndex, Recovery]:
    """The log, ready for appending, and the index, which speaks of all of it.

    Raises:
        DeviceUnusable: a segment is a copy of another one.
        IndexDamaged: no index file can be made.
        OSError: the disk failed.
    """
    file = disk.index_file()
    summary = file.load(device_uuid)
    try:
        return _replay(disk, device_uuid, options, file, summary)
    except (IndexDamaged, LogTooShort) as error:
        if summary.position == Position(0, 0):
            raise
        _log.warning("%s: making the index anew: %s", disk.path, error)
        file.clear()
        return _replay(disk, device_uuid, options, file, Summary())


def _replay(
    disk: Disk, device_uuid: bytes, options: StoreOptions, file: IndexFile, summary: Summary
) -> tuple[SegmentLog, ChunkIndex, Recovery]:
    log = SegmentLog(disk, device_uuid, options)
    index = ChunkIndex(file, summary)
    segment_count = record_count = 0
    damage: list[tuple[int, Damaged]] = []
    torn: list[tuple[int, Damaged]] = []
    used_bytes = {segment: usage.used_bytes for segment, usage in summary.segments.items()}
    for segment, result in log.recover(summary.position, used_bytes):
        segment_count += 1
        record_count += len(result.records)
        damage += [(segment, item) for item in result.damage]
        torn += [(segment, item) for item in result.torn]
        # Giving back space is idempotent: maybe it was done before, maybe a crash came first.
        log.reclaim_all(apply_records(index, segment, result.records))
        if index.fresh_count >= options.checkpoint_chunks and result.sealed:
            # No more than this in memory, however long the log is.
            index.save(Position(segment, result.end_bytes), log.segments())
    there = log.segments()
    for segment, lost_bytes in sorted(index.live_bytes.items()):
        if segment not in there:
            damage.append((segment, Damaged(0, lost_bytes, "the segment is missing")))
    return log, index, Recovery(segment_count, record_count, tuple(damage), tuple(torn))


def apply_records(index: ChunkIndex, segment: int, records: list[Found]) -> list[Entry | None]:
    """Bring an index up to the end of a segment's records; returns what died by them."""
    dead: list[Entry | None] = []
    for offset_bytes, header in records:
        position = Position(segment, offset_bytes)
        latest = index.get(header.key)
        if header.kind is RecordKind.CHUNK:
            dead.append(index.apply(header.key, entry_of(position, header, latest)))
        elif header.kind is RecordKind.TOMBSTONE:
            if latest is not None and latest.position < header.kill.before(position):
                dead.append(index.apply(header.key, None))
    return dead


def entry_of(position: Position, header: RecordHeader, latest: Entry | None) -> Entry:
    """The index entry of a chunk's record that takes the place of `latest`."""
    oldest_segment = position.segment if latest is None else latest.oldest_segment
    return Entry(
        position.segment, position.offset_bytes, header.header_bytes, header.data_bytes,
        header.generation, header.crc32c, header.code, oldest_segment,
    )  # fmt: skip
