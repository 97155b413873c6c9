"""Checking a device that is not served: every byte of its log, and its index against its log.

Nothing is written but a scratch index (and an empty index file where the device's cannot be used,
as the next start would do). The device's own index is compared with one that is made
from the segments; damage of records is what repair mends from the other chunks of the stripes.
"""

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from exastore.storage.disk import Disk
from exastore.storage.errors import BadRecord, ChunkCorrupt, DeviceUnusable, IndexDamaged
from exastore.storage.identity import DEVICE_FILE, identify
from exastore.storage.index import ChunkIndex
from exastore.storage.index_file import Entry, SqliteIndexFile, Summary
from exastore.storage.log import segment_name, segment_numbers
from exastore.storage.record import ChunkKey, Position, RecordKind, verify_data
from exastore.storage.recovery import apply_records
from exastore.storage.segment import HEAD_BYTES, check_head, recover

#: A report names so many of each kind of problem and counts the rest.
_NAMED = 100
_SAVE_EVERY_CHUNKS = 65_536

#: Called with the bytes checked since the last call.
Progress = Callable[[int], None]


class Problem(NamedTuple):
    """Something that is not as it should be."""

    segment: int
    offset_bytes: int
    text: str


@dataclass(slots=True)
class FsckReport:
    """What is on a device.

    Attributes:
        chunk_count, chunk_bytes: Live chunks by the segments, and their data.
        dead_bytes: Bytes of records that compaction may give back.
        damage: Stretches that should hold records and do not.
        corrupt: Live chunks whose data fails its CRCs.
        torn: Unacknowledged tails that a crash left; no loss.
        index: Differences between the index file and the segments.
        problem_count: All of damage, corrupt and index, the unnamed ones too.
    """

    segment_count: int = 0
    record_count: int = 0
    chunk_count: int = 0
    chunk_bytes: int = 0
    dead_bytes: int = 0
    damage: list[Problem] = field(default_factory=list[Problem])
    corrupt: list[Problem] = field(default_factory=list[Problem])
    torn: list[Problem] = field(default_factory=list[Problem])
    index: list[Problem] = field(default_factory=list[Problem])
    problem_count: int = 0

    def note(self, problems: list[Problem], problem: Problem) -> None:
        if len(problems) < _NAMED:
            problems.append(problem)
        if problems is not self.torn:
            self.problem_count += 1


def total_bytes(disk: Disk) -> int:
    """Bytes that `check_device` will read, for a progress bar."""
    return sum(disk.open(segment_name(number)).size_bytes() for number in segment_numbers(disk))


def check_device(disk: Disk, progress: Progress = lambda _: None) -> FsckReport:
    """Read everything on the device.

    Raises:
        DeviceLocked: a node serves it: stop the node first.
        DeviceUnusable: the folder is no device.
        OSError: the disk failed.
    """
    if disk.read_small(DEVICE_FILE) is None:
        raise DeviceUnusable(f"{disk.path} is no device: it has no {DEVICE_FILE}")
    disk.lock()
    try:
        device_uuid = identify(disk, lambda: bytes(16))
        with tempfile.TemporaryDirectory(prefix="exastore-fsck-") as scratch:
            file = SqliteIndexFile(Path(scratch) / "chunks.sqlite")
            index = ChunkIndex(file, file.load(device_uuid))
            report = FsckReport()
            bad = _check_log(disk, device_uuid, index, report, progress)
            _find_corrupt(index, bad, report)
            _compare(disk, device_uuid, index, report)
            index.close()
            return report
    finally:
        disk.unlock()


def rebuild_index(disk: Disk) -> None:
    """Drop the index file; the next start makes it from the segments.

    Raises:
        DeviceLocked: a node serves the device.
    """
    disk.lock()
    try:
        file = disk.index_file()
        file.clear()
        file.close()
    finally:
        disk.unlock()


def _check_log(
    disk: Disk, device_uuid: bytes, index: ChunkIndex, report: FsckReport, progress: Progress
) -> dict[Position, str]:
    """Fill the index from the segments; returns the records whose data is bad."""
    bad: dict[Position, str] = {}
    numbers = segment_numbers(disk)
    for number in numbers:
        file = disk.open(segment_name(number))
        size_bytes = file.size_bytes()
        try:
            check_head(file.pread(HEAD_BYTES, 0), device_uuid, number)
        except BadRecord as error:
            report.note(report.damage, Problem(number, 0, str(error)))
        result = recover(file, device_uuid, number, size_bytes, last=number == numbers[-1])
        for damaged in result.damage:
            problem = Problem(number, damaged.offset_bytes, damaged.reason)
            report.note(report.damage, problem)
        for damaged in result.torn:
            report.note(report.torn, Problem(number, damaged.offset_bytes, damaged.reason))
        checked_bytes = 0
        for found in result.records:
            header = found.header
            if header.kind is RecordKind.CHUNK:
                data = file.pread(header.data_bytes, found.offset_bytes + header.header_bytes)
                try:
                    verify_data(header, data)
                except ChunkCorrupt as error:
                    bad[Position(number, found.offset_bytes)] = str(error)
            report.record_count += 1
            progress(header.record_bytes)
            checked_bytes += header.record_bytes
        progress(size_bytes - checked_bytes)
        apply_records(index, number, result.records)
        if index.fresh_count >= _SAVE_EVERY_CHUNKS:
            index.save(Position(number, 0), {})
        file.close()
        report.segment_count += 1
        report.dead_bytes += checked_bytes
    live_bytes = sum(index.live_bytes.values())
    report.dead_bytes -= live_bytes
    report.chunk_count, report.chunk_bytes = index.chunk_count, index.chunk_bytes
    return bad


def _find_corrupt(index: ChunkIndex, bad: dict[Position, str], report: FsckReport) -> None:
    """Of the records with bad data, those that are live; dead ones were punched or may rot."""
    if not bad:
        return
    for key, entry in index:
        text = bad.get(entry.position)
        if text is not None:
            problem = Problem(*entry.position, f"{_name(key)}: {text}")
            report.note(report.corrupt, problem)


def _compare(disk: Disk, device_uuid: bytes, index: ChunkIndex, report: FsckReport) -> None:
    """Compare the device's index file, brought up to the end of the log, with `index`."""
    file = disk.index_file()
    try:
        summary = file.load(device_uuid)
        if summary == Summary():
            return  # none yet, or not to be trusted: the next start makes one
        stored = ChunkIndex(file, summary)
        _catch_up(disk, device_uuid, stored, summary.position)
        for key, ours, theirs in _merged(index, stored):
            if ours is None:
                assert theirs is not None
                text = f"{_name(key)}: the index names it, the segments do not hold it"
                report.note(report.index, Problem(*theirs.position, text))
            elif theirs is None:
                text = f"{_name(key)}: not in the index"
                report.note(report.index, Problem(*ours.position, text))
            elif ours.position != theirs.position:
                text = f"{_name(key)}: the index says segment {theirs.segment}"
                report.note(report.index, Problem(*ours.position, text))
    except IndexDamaged as error:
        report.note(report.index, Problem(0, 0, str(error)))
    finally:
        file.close()


def _catch_up(disk: Disk, device_uuid: bytes, index: ChunkIndex, start: Position) -> None:
    numbers = segment_numbers(disk)
    for number in numbers:
        if number < start.segment:
            continue
        file = disk.open(segment_name(number))
        start_bytes = start.offset_bytes if number == start.segment else HEAD_BYTES
        result = recover(
            file, device_uuid, number, file.size_bytes(),
            last=number == numbers[-1], start_bytes=start_bytes,
        )  # fmt: skip
        apply_records(index, number, result.records)
        file.close()


def _merged(
    ours: ChunkIndex, theirs: ChunkIndex
) -> Iterator[tuple[ChunkKey, Entry | None, Entry | None]]:
    """Both indexes side by side, PG by PG; None where one has no such chunk."""
    for pg in sorted({*ours.pgs(), *theirs.pgs()}):
        left, right = dict(ours.of_pg(pg)), dict(theirs.of_pg(pg))
        for key in sorted({*left, *right}):
            yield key, left.get(key), right.get(key)


def _name(key: ChunkKey) -> str:
    return f"chunk {key.chunk_index} of stripe {key.stripe_id.hex()} (PG {key.pg})"
