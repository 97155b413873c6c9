"""The append-only log of a device: which segment grows, by how much, and when it is full.

Appending is done by one thread at a time (the store's append lock). Position moves only after the
bytes were handed to the system, so a write that runs out of space is overwritten by the next.
"""

import contextlib
import dataclasses
import errno
import threading
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum, auto

from exastore.storage.crc import Buffer
from exastore.storage.disk import Disk, DiskFile
from exastore.storage.errors import BadRecord, LogTooShort, NoSpace
from exastore.storage.index_file import Entry
from exastore.storage.record import (
    FIXED_BYTES,
    MARK_KEY,
    MAX_CHUNK_BYTES,
    Place,
    Position,
    RecordHeader,
    RecordKind,
    encode_header,
)
from exastore.storage.segment import (
    HEAD_BYTES,
    Damaged,
    Recovered,
    check_head,
    encode_head,
    recover,
)

SEGMENTS = "segments"
_OPEN_FILES = 128
_PAGE_BYTES = 4096
#: Smaller holes would cost the file system more than they give.
_RECLAIM_LEAST_BYTES = 16_384


@dataclass(frozen=True, slots=True)
class StoreOptions:
    """How a device is used.

    Attributes:
        segment_bytes: A segment is sealed before it would grow over this many bytes.
        allocate_bytes: Disk space is reserved in steps of this many bytes.
        capacity_bytes: The most that the segments may take; 0: the size of the file system.
        reserve_bytes: Free bytes that chunks must leave, so that deletes and compaction always
            find space; 0: one hundredth of the capacity, at most 1 GiB, and at least one segment
            where the device has room for 16.
        repair_bytes: Free bytes beside the reserve that clients' chunks must leave, so that
            rebuilding finds space; 0: as many as the reserve.
        checkpoint_chunks: The index file is brought up to date after so many changes.
        compact_garbage: A sealed segment is compacted when this share of its bytes is dead.
        compact_bytes_per_s: Limit for what compaction reads; 0: none.
    """

    segment_bytes: int = 256 << 20
    allocate_bytes: int = 16 << 20
    capacity_bytes: int = 0
    reserve_bytes: int = 0
    repair_bytes: int = 0
    checkpoint_chunks: int = 16_384
    compact_garbage: float = 0.3
    compact_bytes_per_s: int = 64 << 20


class Purpose(Enum):
    """What a record is written for: it decides how much free space must be left."""

    CLIENT = auto()
    REPAIR = auto()
    UPKEEP = auto()  # deletes and compaction: they make space


def segment_name(segment: int) -> str:
    return f"{SEGMENTS}/{segment:08d}.seg"


def segment_numbers(disk: Disk) -> list[int]:
    """The segments that are there, in the order in which they were written."""
    names = [name for name in disk.list(SEGMENTS) if name.endswith(".seg")]
    return sorted(int(name.removesuffix(".seg")) for name in names)


class SegmentLog:
    """Segments of one device. Raises OSError when the disk fails, NoSpace before it is full."""

    def __init__(self, disk: Disk, device_uuid: bytes, options: StoreOptions) -> None:
        self._disk = disk
        self._uuid = device_uuid
        self._options = options
        self.capacity_bytes = options.capacity_bytes or disk.space().total_bytes
        reserve_bytes = options.reserve_bytes or _default_reserve_bytes(
            self.capacity_bytes, options.segment_bytes
        )
        self._reserved_bytes = {
            Purpose.CLIENT: reserve_bytes + (options.repair_bytes or reserve_bytes),
            Purpose.REPAIR: reserve_bytes,
            Purpose.UPKEEP: 0,
        }
        #: Bytes in each segment up to its last record, less what was given back.
        self._used_bytes: dict[int, int] = {}
        #: Their sum.
        self.used_bytes = 0
        self._space_lock = threading.Lock()
        self._can_punch = True
        #: The segment that grows, in one value, so that readers never see half of a change.
        self._active: tuple[int, DiskFile] | None = None
        #: Everything in the growing segment below this was handed to the system.
        self.position = Position(0, 0)
        #: Everything in this segment below this is known to be durable.
        self.durable = Position(0, 0)
        #: Space is reserved up to here, at least to `position`.
        self._allocated_bytes = 0
        #: Sealed segments, the most recently used last.
        self._open: OrderedDict[int, DiskFile] = OrderedDict()
        self._open_lock = threading.Lock()

    @property
    def file(self) -> DiskFile:
        """The segment that grows."""
        assert self._active is not None, "recover() comes first"
        return self._active[1]

    def segments(self) -> dict[int, int]:
        """Bytes that each segment takes, in order of segments."""
        with self._space_lock:
            return dict(sorted(self._used_bytes.items()))

    def _use(self, segment: int, change_bytes: int) -> None:
        with self._space_lock:
            self._used_bytes[segment] = self._used_bytes.get(segment, 0) + change_bytes
            self.used_bytes += change_bytes

    # ---- reading ----

    def file_of(self, segment: int) -> DiskFile:
        """The segment for reading. The caller's reference keeps it open."""
        active = self._active
        if active is not None and active[0] == segment:
            return active[1]
        with self._open_lock:
            file = self._open.get(segment)
            if file is None:
                file = self._disk.open(segment_name(segment))
                self._open[segment] = file
                while len(self._open) > _OPEN_FILES:
                    self._open.popitem(last=False)
            else:
                self._open.move_to_end(segment)
            return file

    def recover(
        self, start: Position, used_bytes: Mapping[int, int]
    ) -> Iterator[tuple[int, Recovered]]:
        """Read the segments again from `start` on, one after the other, and make the last one ready
        for appending. All must be taken before anything is appended.

        Args:
            start: Everything before it is known.
            used_bytes: By segment, what those up to `start` take.

        Raises:
            DeviceUnusable: a segment is a copy of another one.
            LogTooShort: the log ends before `start`.
        """
        numbers = segment_numbers(self._disk)
        if start.segment and start.segment not in numbers:
            raise LogTooShort(f"segment {start.segment} is missing")
        for number in numbers:
            if number < start.segment:
                yield number, self._known(number, used_bytes)
                continue
            last = number == numbers[-1]
            file = self._disk.open(segment_name(number))
            start_bytes = start.offset_bytes if number == start.segment else HEAD_BYTES
            result = self._recover_segment(file, number, start_bytes, last=last)
            if result is None:  # it was being created when the power went
                file.close()
                self._disk.remove(segment_name(number))
                self._disk.sync_folder(SEGMENTS)
                continue
            known = used_bytes.get(number, 0) if number == start.segment else start_bytes
            self._use(number, known + result.end_bytes - start_bytes)
            if last:
                self._resume(file, number, result)
            yield number, result
        if self._active is None:
            self._create((numbers[-1] if numbers else 0) + 1)

    def _known(self, number: int, used_bytes: Mapping[int, int]) -> Recovered:
        if number in used_bytes:
            self._use(number, used_bytes[number])
            return Recovered([], [], [], 0, True)
        stray = Damaged(0, 0, "the index does not know this segment; it is left aside")
        return Recovered([], [stray], [], 0, True)

    def _recover_segment(
        self, file: DiskFile, number: int, start_bytes: int, *, last: bool
    ) -> Recovered | None:
        size_bytes = file.size_bytes()
        if size_bytes < start_bytes and start_bytes > HEAD_BYTES:
            raise LogTooShort(f"segment {number} ends at {size_bytes}, not at {start_bytes}")
        bad_head: Damaged | None = None
        try:
            check_head(file.pread(HEAD_BYTES, 0), self._uuid, number)
        except BadRecord as error:
            bad_head = Damaged(0, HEAD_BYTES, str(error))
        result = recover(file, self._uuid, number, size_bytes, last=last, start_bytes=start_bytes)
        if bad_head is not None:
            if last and start_bytes == HEAD_BYTES and not result.records:
                return None
            result.damage.insert(0, bad_head)
        if not last and not result.sealed:
            end = result.end_bytes
            result.damage.append(Damaged(end, size_bytes, "the end of the segment is missing"))
        return result

    def _resume(self, file: DiskFile, number: int, result: Recovered) -> None:
        for torn in result.torn:
            if torn.offset_bytes < result.end_bytes:
                self._skip(file, number, torn)
        self._active = (number, file)
        self.position = Position(number, result.end_bytes)
        file.truncate(result.end_bytes)
        # What a killed process wrote may be in memory only; from here on we answer for it.
        file.sync()
        self.durable = self.position
        self._allocated_bytes = result.end_bytes

    def _skip(self, file: DiskFile, number: int, torn: Damaged) -> None:
        offset = torn.offset_bytes
        while offset < torn.end_bytes:
            length = min(torn.end_bytes - offset, MAX_CHUNK_BYTES)
            if 0 < torn.end_bytes - offset - length < FIXED_BYTES:
                length //= 2
            skip = RecordHeader(RecordKind.SKIP, MARK_KEY, data_bytes=length - FIXED_BYTES)
            file.pwrite([encode_header(skip, Place(self._uuid, number, offset))], offset)
            offset += length

    # ---- appending ----

    def append(
        self, header: RecordHeader, data: Buffer, purpose: Purpose
    ) -> tuple[Position, RecordHeader]:
        """Hand a record to the system; returns where it lies and the header as written."""
        self._make_room(header, self._reserved_bytes[purpose])
        return self._put(header, data)

    def _put(self, header: RecordHeader, data: Buffer) -> tuple[Position, RecordHeader]:
        segment, offset = position = self.position
        if self.durable == position:
            header = dataclasses.replace(header, prior_durable=True)
        head = encode_header(header, Place(self._uuid, segment, offset))
        buffers: Sequence[Buffer] = (head, data) if len(data) else (head,)
        try:
            self.file.pwrite(buffers, offset)
        except OSError as error:
            if _is_full(error):
                raise NoSpace(header.record_bytes, 0) from error
            raise
        self.position = Position(segment, offset + header.record_bytes)
        self._use(segment, header.record_bytes)
        return position, header

    def seal(self) -> None:
        """Sync the growing segment, end it with a MARK and give back the space behind."""
        self.file.sync()
        self.durable = self.position
        self._put(RecordHeader(RecordKind.MARK, MARK_KEY), b"")
        # Before the sync: behind the MARK may be bytes of a write that failed in the middle, which
        # would look like damage in a segment that is not the last any more.
        self.file.truncate(self.position.offset_bytes)
        self.file.sync()
        self.durable = self.position
        self._allocated_bytes = self.position.offset_bytes

    def reclaim_all(self, dead: Iterable[Entry | None]) -> None:
        """Give back the space of chunks that are durably dead. Their headers stay, for the scan."""
        for entry in dead:
            if entry is not None:
                self._reclaim(entry)

    def _reclaim(self, entry: Entry) -> None:
        start = entry.offset_bytes + entry.header_bytes
        end = (start + entry.data_bytes) // _PAGE_BYTES * _PAGE_BYTES
        start = -(-start // _PAGE_BYTES) * _PAGE_BYTES
        if end - start < _RECLAIM_LEAST_BYTES or not self._can_punch:
            return
        try:
            self.file_of(entry.segment).punch(start, end - start)
        except OSError as error:
            # Space is all that is lost; a disk that is really broken shows at the next write.
            self._can_punch = error.errno not in (errno.EOPNOTSUPP, errno.ENOSYS)
            return
        self._use(entry.segment, start - end)

    def remove(self, segment: int) -> None:
        """Delete a sealed segment. Readers that hold it finish with it."""
        with self._open_lock:
            self._open.pop(segment, None)
        self._disk.remove(segment_name(segment))
        self._disk.sync_folder(SEGMENTS)
        with self._space_lock:
            self.used_bytes -= self._used_bytes.pop(segment, 0)

    def close(self) -> None:
        """Readers that still hold a file finish with it."""
        self._active = None
        with self._open_lock:
            self._open.clear()

    def _make_room(self, header: RecordHeader, reserve: int) -> None:
        needed = header.record_bytes + FIXED_BYTES  # the MARK that ends the segment
        available = self.capacity_bytes - reserve - self.used_bytes
        if needed > available:
            raise NoSpace(needed, available)
        end = self.position.offset_bytes + needed
        full = end > self._options.segment_bytes and self.position.offset_bytes > HEAD_BYTES
        if not full:
            if end > self._allocated_bytes:
                self._allocate(end, reserve)
            return
        free = self._disk.space().free_bytes - reserve
        if free < needed:
            raise NoSpace(needed, free)
        self.seal()
        old = self.position.segment
        with self._open_lock:
            self._open[old] = self.file
        self._create(old + 1)
        self._allocate(HEAD_BYTES + needed, reserve)

    def _allocate(self, end_bytes: int, reserve_bytes: int) -> None:
        start = self._allocated_bytes
        limit = max(end_bytes, self._options.segment_bytes)
        wanted = min(max(end_bytes - start, self._options.allocate_bytes), limit - start)
        free = self._disk.space().free_bytes - reserve_bytes
        if free < wanted:
            wanted = end_bytes - start
        if free < wanted:
            raise NoSpace(wanted, free)
        try:
            self.file.allocate(start, wanted)
        except OSError as error:
            if _is_full(error):
                raise NoSpace(wanted, free) from error
            raise
        self._allocated_bytes = start + wanted

    def _create(self, segment: int) -> None:
        """Begin a segment; one that could not be begun leaves no file, so that it can be later."""
        name = segment_name(segment)
        try:
            file = self._disk.create(name)
            try:
                file.pwrite([encode_head(self._uuid, segment)], 0)
                file.sync()
                self._disk.sync_folder(SEGMENTS)
            except OSError:
                file.close()
                with contextlib.suppress(OSError):
                    self._disk.remove(name)
                raise
        except OSError as error:
            if _is_full(error):
                raise NoSpace(HEAD_BYTES, 0) from error
            raise
        self._active = (segment, file)
        self.position = self.durable = Position(segment, HEAD_BYTES)
        self._allocated_bytes = HEAD_BYTES
        self._use(segment, HEAD_BYTES)


def _is_full(error: OSError) -> bool:
    """Whether the disk is full, which passes, and not broken."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT)


def _default_reserve_bytes(capacity_bytes: int, segment_bytes: int) -> int:
    least_bytes = segment_bytes if capacity_bytes >= 16 * segment_bytes else 0
    return max(min(1 << 30, capacity_bytes // 100), least_bytes)
