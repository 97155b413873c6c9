"""The chunk store of one device: append, group commit, read, delete, recover.

Laws:
1. `done(None)` is called only after the record is fsynced; what was acknowledged is there after any
   crash, or its damage is reported.
2. A chunk is visible to readers when it is durable, never before.
3. Nothing is returned that did not pass its CRCs and its identity.
4. After an error of a write or an fsync nothing is written any more (fenced); reads go on. The
   kernel may drop dirty pages after a failed fsync and report success next time, so nothing is
   ever retried. Nor after a restart: the device says so in a file, which an operator removes.
5. A read that fails is told and counted; after some of them the device is fenced, too (`fence.py`).

Theory of operation: callers append under one lock, so records lie in order and a crash leaves at
most one torn tail. A thread makes them durable in groups (`commit.py`). An upkeep thread brings the
index file up to date and compacts segments (`upkeep.py`).

Fault model: crash of the process or the machine at any moment, torn and lost unsynced writes, bit
rot, misdirected writes, renamed or copied segments, full disk, I/O errors. Not covered: rot of the
very last group before a crash looks like a torn tail (reported as torn, and repaired from parity).
"""

import logging
import os
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future

from exastore.metadata.core.phases import Phase, reach
from exastore.storage.commit import GroupCommit
from exastore.storage.compaction import Compacted
from exastore.storage.completion import Done, PendingRecord, resolving
from exastore.storage.crc import Buffer
from exastore.storage.disk import Disk, DiskFile
from exastore.storage.errors import (
    ChunkConflict,
    ChunkCorrupt,
    ChunkNotFound,
    DeviceClosed,
    DeviceFenced,
    DeviceReadFailed,
    IndexDamaged,
    IndexFull,
    NoSpace,
    StorageError,
    TransferCorrupt,
)
from exastore.storage.fence import Fence
from exastore.storage.file_span import FileSpan
from exastore.storage.identity import identify
from exastore.storage.index_file import Entry, PgUsage, SegmentUsage
from exastore.storage.log import Purpose, StoreOptions
from exastore.storage.observer import SilentObserver, StoreObserver
from exastore.storage.reading import RecordReader, StoredChunk
from exastore.storage.record import (
    ChunkKey,
    Kill,
    Position,
    RecordHeader,
    RecordKind,
    block_crcs,
    check_key,
)
from exastore.storage.recovery import entry_of, recover
from exastore.storage.runs import ByteRun
from exastore.storage.upkeep import Upkeep

_log = logging.getLogger(__name__)


def _no_time() -> float:
    return 0.0


class ChunkStore:
    """One device. Thread-safe. Made by `ChunkStore.open`."""

    def __init__(
        self,
        disk: Disk,
        device_uuid: bytes,
        options: StoreOptions,
        *,
        monotonic_s: Callable[[], float] = _no_time,
        observer: StoreObserver | None = None,
    ) -> None:
        self._disk = disk
        self.device_uuid = device_uuid
        self._checkpoint_chunks = options.checkpoint_chunks
        self._observer: StoreObserver = observer or SilentObserver()
        #: Held while a record is appended; taken before `_state`, never after.
        self._append_lock = threading.Lock()
        #: Guards everything below; held only for moments.
        self._state = threading.Condition()
        self._fence = Fence(disk, self._observer, self._state)
        self._closing = False
        self._log, self._index, self.recovery = recover(disk, device_uuid, options)
        self._reader = RecordReader(self._log, device_uuid, self._fence.note_read_failure)
        self._commit = GroupCommit(
            self._log, self._index, self._fence, self._state, self._observer,
            monotonic_s=monotonic_s, on_durable=self._poke_upkeep,
        )  # fmt: skip
        self._upkeep = Upkeep(self, options, monotonic_s)
        self._commit.start(f"flush-{disk.path.name}")
        self._upkeep.start()

    @classmethod
    def open(
        cls,
        disk: Disk,
        options: StoreOptions | None = None,
        *,
        monotonic_s: Callable[[], float] = _no_time,
        observer: StoreObserver | None = None,
        new_uuid: Callable[[], bytes] = lambda: os.urandom(16),
    ) -> "ChunkStore":
        """Open the device, formatting an empty folder.

        Raises:
            DeviceLocked: another process has it.
            DeviceUnusable: it is no device, or of a newer format.
        """
        disk.lock()
        try:
            device_uuid = identify(disk, new_uuid)
            return cls(
                disk, device_uuid, options or StoreOptions(),
                monotonic_s=monotonic_s, observer=observer,
            )  # fmt: skip
        except BaseException:
            disk.unlock()
            raise

    # ---- state ----

    @property
    def path(self) -> str:
        return str(self._disk.path)

    @property
    def fence_reason(self) -> str | None:
        """Why the device takes no more writes; None while it does."""
        return self._fence.reason

    @property
    def capacity_bytes(self) -> int:
        return self._log.capacity_bytes

    @property
    def used_bytes(self) -> int:
        """Bytes that the log takes; the space of larger deleted chunks is given back."""
        return self._log.used_bytes

    @property
    def log_end(self) -> Position:
        """Where the next record goes."""
        return self._log.position

    @property
    def chunk_count(self) -> int:
        return self._index.chunk_count

    @property
    def chunk_bytes(self) -> int:
        """Bytes of data in chunks that are not deleted."""
        return self._index.chunk_bytes

    def get(self, key: ChunkKey) -> Entry | None:
        """What the index knows, without reading the disk."""
        with self._state:
            return self._index.get(key)

    def of_pg(self, pg: int) -> list[tuple[ChunkKey, Entry]]:
        """The chunks of a placement group, in order of stripe id."""
        with self._state:
            return self._index.of_pg(pg)

    def usage(self) -> dict[int, PgUsage]:
        with self._state:
            return self._index.usage()

    def pgs(self) -> list[int]:
        with self._state:
            return self._index.pgs()

    def validate(self) -> None:
        """Check the invariants; for tests and EXASTORE_VERIFY."""
        with self._append_lock, self._state:
            self._index.validate()
            self._commit.validate()
            assert self._log.durable <= self._log.position

    # ---- writing ----

    def append(
        self,
        key: ChunkKey,
        generation: int,
        code: str,
        data: Buffer,
        crc32c: int,
        done: Done,
        purpose: Purpose = Purpose.CLIENT,
    ) -> None:
        """Append a chunk; `done` is called once it is durable, maybe before this returns.

        Writing the same identity with the same bytes again succeeds.

        Raises (and `done` is not called):
            TransferCorrupt: `data` does not match `crc32c`.
            InvalidChunk, ChunkConflict, NoSpace, DeviceFenced, DeviceClosed.
        """
        check_key(key, generation, code, len(data))
        header = RecordHeader(RecordKind.CHUNK, key, generation, code, len(data), block_crcs(data))
        if header.crc32c != crc32c:
            raise TransferCorrupt(
                f"received bytes have CRC-32C {header.crc32c:08x}, the sender says {crc32c:08x}"
            )
        with self._append_lock:
            self._check_writable()
            latest = self._commit.latest(key)
            if not self._stored_already(header, latest):
                self._append(header, data, done, purpose, latest)
                return
        self._commit.join(key, done)

    def write(self, key: ChunkKey, generation: int, code: str, data: bytes, crc32c: int) -> None:
        """Append a chunk and wait until it is durable."""
        waiter: Future[None] = Future()
        self.append(key, generation, code, data, crc32c, resolving(waiter))
        waiter.result()

    def delete(self, keys: Iterable[ChunkKey]) -> int:
        """Delete chunks, durably; returns how many were there."""
        waiter: Future[None] | None = None
        count = 0
        with self._append_lock:
            for key in keys:
                self._check_writable()
                latest = self._commit.latest(key)
                if latest is None:
                    continue
                waiter = Future()
                header = RecordHeader(
                    RecordKind.TOMBSTONE, key, latest.generation,
                    kill=Kill(oldest_segment=latest.oldest_segment),
                )  # fmt: skip
                self._append(header, b"", resolving(waiter), Purpose.UPKEEP, latest)
                count += 1
        if waiter is not None:
            reach(Phase.TOMBSTONES_APPENDED)
            waiter.result()  # in log order: the last is durable after all others
        return count

    def _append(
        self,
        header: RecordHeader,
        data: Buffer,
        done: Done,
        purpose: Purpose,
        latest: Entry | None,
        *,
        news: bool = True,
    ) -> None:
        """Append a record that takes the place of `latest`."""
        is_chunk = header.kind is RecordKind.CHUNK
        try:
            if is_chunk:
                reach(Phase.CHUNK_APPENDING)
            position, header = self._log.append(header, data, purpose)
        except OSError as error:
            self._fence.close(f"write failed: {error}")
            raise DeviceFenced(str(error)) from error
        entry = entry_of(position, header, latest) if is_chunk else None
        self._commit.add(PendingRecord(header.key, entry, [done], news))
        if is_chunk:
            reach(Phase.CHUNK_APPENDED)

    # ---- for upkeep ----

    def move(self, position: Position, header: RecordHeader, data: bytes, done: Done) -> bool:
        """Append a live chunk that lies at `position` again; False if it does not live there.

        Raises NoSpace, DeviceFenced, DeviceClosed.
        """
        with self._append_lock:
            self._check_writable()
            latest = self._commit.latest(header.key)
            if latest is None or latest.position != position:
                return False
            self._append(header, data, done, Purpose.UPKEEP, latest)
            return True

    def move_tombstone(self, header: RecordHeader, done: Done) -> None:
        """Append a tombstone again that says where it was first. Raises as `move` does."""
        with self._append_lock:
            self._check_writable()
            self._append(header, b"", done, Purpose.UPKEEP, None, news=False)

    def segments(self) -> dict[int, SegmentUsage]:
        """All segments, in order; the last one is growing."""
        with self._state:
            live = self._index.live_bytes
            return {
                segment: SegmentUsage(used, live.get(segment, 0))
                for segment, used in self._log.segments().items()
            }

    @property
    def unsaved_count(self) -> int:
        """Chunks that the index file does not know as they are."""
        return self._index.fresh_count

    def lies_at(self, key: ChunkKey, position: Position) -> bool:
        """Whether the chunk's newest record is this one."""
        latest = self._commit.latest(key)
        return latest is not None and latest.position == position

    def segment_file(self, segment: int) -> DiskFile:
        """A segment for reading."""
        return self._log.file_of(segment)

    def record_data(self, position: Position, header: RecordHeader) -> bytes:
        """The data of a record, not verified."""
        start = position.offset_bytes + header.header_bytes
        return self._log.file_of(position.segment).pread(header.data_bytes, start)

    def settle(self) -> None:
        """Wait until all that was appended is durable and in the index, or the device fails."""
        self._commit.settle()

    def tell_compacted(self, compacted: Compacted) -> None:
        self._observer.compacted(compacted)

    def remove_segment(self, segment: int) -> None:
        """Delete a segment without live chunks. Raises DeviceFenced."""
        with self._append_lock:
            self._check_writable()
            with self._state:
                assert segment not in self._index.live_bytes
                assert segment < self._log.position.segment
            try:
                self._log.remove(segment)
            except OSError as error:
                self._fence.close(f"removing a segment failed: {error}")
                raise DeviceFenced(str(error)) from error

    def checkpoint(self) -> None:
        """Bring the index file up to date. For one thread at a time.

        Raises:
            DeviceFenced: the file cannot be written.
            IndexFull: as little as before is in the file.
        """
        with self._state:
            checkpoint = self._index.freeze(self._commit.indexed, self._log.segments())
        committed = False
        try:
            self._index.commit(checkpoint)
            reach(Phase.CHECKPOINTED)
            committed = True
        except IndexDamaged as error:
            self._fence.close(str(error))
            raise DeviceFenced(str(error)) from error
        finally:
            with self._state:
                self._index.thaw(committed=committed)

    def _stored_already(self, header: RecordHeader, latest: Entry | None) -> bool:
        """Whether these bytes are stored already, or on their way."""
        if latest is None or latest.generation < header.generation:
            return False
        if latest.generation > header.generation:
            raise ChunkConflict(
                f"generation {latest.generation} is stored, {header.generation} is older"
            )
        if latest.crc32c != header.crc32c or latest.data_bytes != header.data_bytes:
            raise ChunkConflict("the chunk exists with other bytes")
        try:
            self._reader.read(header.key, latest)
        except (ChunkCorrupt, DeviceReadFailed):
            return False  # what is there is rotten: write it again
        return True

    # ---- reading ----

    def read(self, key: ChunkKey, runs: Sequence[ByteRun] = ()) -> StoredChunk:
        """Read a chunk, or these runs of it, and verify identity and the CRCs of what is read.

        Raises:
            ChunkNotFound, ChunkCorrupt, DeviceReadFailed.
            InvalidChunk: the chunk has no such runs.
        """
        while True:
            entry = self.get(key)
            if entry is None:
                raise ChunkNotFound(f"no chunk {key.chunk_index} of stripe {key.stripe_id.hex()}")
            try:
                return self._reader.read(key, entry, runs)
            except (ChunkCorrupt, DeviceReadFailed):
                # If it was deleted or moved meanwhile, its space may be given back already.
                if self.get(key) == entry:
                    raise

    def read_cached(self, key: ChunkKey, runs: Sequence[ByteRun] = ()) -> StoredChunk | None:
        """The same, without ever waiting for the disk; None: ask `read`, which also says why."""
        entry = self.get(key)
        return None if entry is None else self._reader.read_cached(key, entry, runs)

    def span(self, key: ChunkKey, generation: int) -> tuple[FileSpan, int] | None:
        """Where the data of a chunk lie and the CRC-32C that they should have, both unchecked.

        None: ask `read`, which says why.
        """
        entry = self.get(key)
        if entry is None or entry.generation != generation or not entry.data_bytes:
            return None
        try:
            return self._reader.span(entry), entry.crc32c
        except (StorageError, OSError):
            return None

    def _poke_upkeep(self, something_died: bool) -> None:
        if something_died or self.unsaved_count >= self._checkpoint_chunks:
            self._upkeep.poke()

    def _check_writable(self) -> None:
        if self._closing:
            raise DeviceClosed("the store is closed")
        self._fence.check()

    # ---- end ----

    def close(self) -> None:
        """Make everything durable, end the log cleanly, release the device."""
        self._upkeep.stop()
        with self._append_lock:
            if self._closing:
                return
            self._closing = True
            self._commit.close()
            try:
                if self._fence.reason is None:
                    self._log.seal()
                    self._commit.indexed = self._log.position
                    self.checkpoint()
            except (OSError, NoSpace) as error:
                self._fence.close(f"closing failed: {error}")
            except IndexFull as error:
                _log.warning("%s: the next start replays more: %s", self._disk.path, error)
            except DeviceFenced:
                _log.exception("%s: the index was not written", self._disk.path)
            finally:
                self._index.close()
                self._log.close()
                self._disk.unlock()
