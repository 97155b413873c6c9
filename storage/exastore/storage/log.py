"""The append-only log of a device: which segment grows, by how much, and when it is full.

Appending is done by one thread at a time (the store's append lock). Position moves only after the
bytes were handed to the system, so a write that runs out of space is overwritten by the next.
"""

import dataclasses
import errno
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from exastore.storage.crc import Buffer
from exastore.storage.disk import Disk, DiskFile
from exastore.storage.errors import BadRecord, NoSpace
from exastore.storage.record import (
    FIXED_BYTES,
    MARK_KEY,
    MAX_CHUNK_BYTES,
    Place,
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
        reserve_bytes: Free bytes that chunks must leave, so that deletes always find space;
            0: one hundredth of the capacity, at most 1 GiB.
    """

    segment_bytes: int = 256 << 20
    allocate_bytes: int = 16 << 20
    capacity_bytes: int = 0
    reserve_bytes: int = 0


class Position(NamedTuple):
    """Where the next record goes."""

    segment: int
    offset_bytes: int


def segment_name(segment: int) -> str:
    return f"{SEGMENTS}/{segment:08d}.seg"


class SegmentLog:
    """Segments of one device. Raises OSError when the disk fails, NoSpace before it is full."""

    def __init__(self, disk: Disk, device_uuid: bytes, options: StoreOptions) -> None:
        self._disk = disk
        self._uuid = device_uuid
        self._options = options
        self.capacity_bytes = options.capacity_bytes or disk.space().total_bytes
        self.reserve_bytes = options.reserve_bytes or min(1 << 30, self.capacity_bytes // 100)
        #: Bytes in all segments up to their last record, less what was given back.
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

    def recover(self) -> list[tuple[int, Recovered]]:
        """Read all segments again and make the last one ready for appending."""
        names = [name for name in self._disk.list(SEGMENTS) if name.endswith(".seg")]
        numbers = sorted(int(name.removesuffix(".seg")) for name in names)
        recovered: list[tuple[int, Recovered]] = []
        for number in numbers:
            last = number == numbers[-1]
            file = self._disk.open(segment_name(number))
            result = self._recover_segment(file, number, last=last)
            if result is None:  # it was being created when the power went
                file.close()
                self._disk.remove(segment_name(number))
                self._disk.sync_folder(SEGMENTS)
                continue
            recovered.append((number, result))
            self.used_bytes += result.end_bytes
            if last:
                self._resume(file, number, result)
        if self._active is None:
            self._create((numbers[-1] if numbers else 0) + 1)
        return recovered

    def _recover_segment(self, file: DiskFile, number: int, *, last: bool) -> Recovered | None:
        size_bytes = file.size_bytes()
        bad_head: Damaged | None = None
        try:
            check_head(file.pread(HEAD_BYTES, 0), self._uuid, number)
        except BadRecord as error:
            bad_head = Damaged(0, HEAD_BYTES, str(error))
        result = recover(file, self._uuid, number, size_bytes, last=last)
        if bad_head is not None:
            if last and not result.records:
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

    def append(self, header: RecordHeader, data: Buffer) -> tuple[Position, RecordHeader]:
        """Hand a record to the system; returns where it lies and the header as written."""
        self._make_room(header)
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
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise NoSpace(header.record_bytes, 0) from error
            raise
        self.position = Position(segment, offset + header.record_bytes)
        with self._space_lock:
            self.used_bytes += header.record_bytes
        return position, header

    def seal(self) -> None:
        """Sync the growing segment, end it with a MARK and give back the space behind."""
        self.file.sync()
        self.durable = self.position
        self._put(RecordHeader(RecordKind.MARK, MARK_KEY), b"")
        self.file.sync()
        self.file.truncate(self.position.offset_bytes)
        self.durable = self.position
        self._allocated_bytes = self.position.offset_bytes

    def reclaim(self, position: Position, header_bytes: int, data_bytes: int) -> None:
        """Give back the space of a chunk that is durably dead. Its header stays, for the scan."""
        start = position.offset_bytes + header_bytes
        end = (start + data_bytes) // _PAGE_BYTES * _PAGE_BYTES
        start = -(-start // _PAGE_BYTES) * _PAGE_BYTES
        if end - start < _RECLAIM_LEAST_BYTES or not self._can_punch:
            return
        try:
            self.file_of(position.segment).punch(start, end - start)
        except OSError as error:
            # Space is all that is lost; a disk that is really broken shows at the next write.
            self._can_punch = error.errno not in (errno.EOPNOTSUPP, errno.ENOSYS)
            return
        with self._space_lock:
            self.used_bytes -= end - start

    def close(self) -> None:
        """Readers that still hold a file finish with it."""
        self._active = None
        with self._open_lock:
            self._open.clear()

    def _make_room(self, header: RecordHeader) -> None:
        needed = header.record_bytes + FIXED_BYTES  # the MARK that ends the segment
        reserve = self.reserve_bytes if header.kind is RecordKind.CHUNK else 0
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
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise NoSpace(wanted, free) from error
            raise
        self._allocated_bytes = start + wanted

    def _create(self, segment: int) -> None:
        file = self._disk.create(segment_name(segment))
        file.pwrite([encode_head(self._uuid, segment)], 0)
        file.sync()
        self._disk.sync_folder(SEGMENTS)
        self._active = (segment, file)
        self.position = self.durable = Position(segment, HEAD_BYTES)
        self._allocated_bytes = HEAD_BYTES
        with self._space_lock:
            self.used_bytes += HEAD_BYTES
