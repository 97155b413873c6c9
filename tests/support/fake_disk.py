"""A disk in memory that forgets what was not synced, and fails when told to."""

import errno
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from exastore.storage.crc import Buffer
from exastore.storage.disk import DiskFile, DiskSpace
from exastore.storage.errors import DeviceLocked, StorageError
from exastore.storage.index_file import Changes, Entry, Summary
from exastore.storage.record import ChunkKey

SECTOR_BYTES = 512


@dataclass
class _Write:
    offset_bytes: int
    data: bytes


@dataclass
class _Resize:
    size_bytes: int


@dataclass
class _Inode:
    """What is on the platter, what processes see, and how the one differs from the other."""

    durable: bytearray = field(default_factory=bytearray)
    current: bytearray = field(default_factory=bytearray)
    unsynced: list[_Write | _Resize] = field(default_factory=list[_Write | _Resize])


def _apply(content: bytearray, operation: _Write | _Resize) -> None:
    if isinstance(operation, _Resize):
        size = operation.size_bytes
        content.extend(bytes(max(0, size - len(content))))
        del content[size:]
        return
    end = operation.offset_bytes + len(operation.data)
    content.extend(bytes(max(0, end - len(content))))
    content[operation.offset_bytes : end] = operation.data


class FakeIndexFile:
    """See `exastore.storage.index_file.IndexFile`: what is committed survives every crash."""

    def __init__(self) -> None:
        self.device_uuid = b""
        self.summary = Summary()
        self.chunks: Changes = {}
        self.commit_count = 0
        #: Raised once by the next commit.
        self.next_commit_error: StorageError | None = None

    def load(self, device_uuid: bytes) -> Summary:
        if device_uuid != self.device_uuid:
            self.clear()
            self.device_uuid = device_uuid
        return self.summary

    def clear(self) -> None:
        self.summary = Summary()
        self.chunks = {}

    def get(self, key: ChunkKey) -> Entry | None:
        return self.chunks.get(key.pg, {}).get((key.stripe_id, key.chunk_index))

    def of_pg(self, pg: int) -> Iterator[tuple[tuple[bytes, int], Entry]]:
        for place, entry in sorted(self.chunks.get(pg, {}).items(), key=lambda item: item[0]):
            assert entry is not None
            yield place, entry

    def commit(self, changes: Changes, summary: Summary) -> None:
        if self.next_commit_error is not None:
            error, self.next_commit_error = self.next_commit_error, None
            raise error
        for pg, chunks in changes.items():
            for place, entry in chunks.items():
                if entry is None:
                    self.chunks.get(pg, {}).pop(place, None)
                else:
                    self.chunks.setdefault(pg, {})[place] = entry
        self.summary = summary
        self.commit_count += 1

    def close(self) -> None:
        pass


class FakeDisk:
    """See `exastore.storage.disk.Disk`."""

    def __init__(self, total_bytes: int = 1 << 40) -> None:
        self.path = Path("/fake-device")
        self.total_bytes = total_bytes
        self.free_bytes = total_bytes
        self.names: dict[str, _Inode] = {}
        self.durable_names: dict[str, _Inode] = {}
        self.locked = False
        #: From a crash until somebody takes the device again.
        self.is_off = False
        self.index = FakeIndexFile()
        self.sync_count = 0
        #: Whether what is read lies in the memory of the system.
        self.is_cached = False
        #: Syncs wait while this is not set.
        self.syncs_may_run = threading.Event()
        self.syncs_may_run.set()
        #: Handles opened before the last crash are dead.
        self.boot = 0
        #: Raised once by the next sync, write, read or allocation.
        self.next_sync_error: OSError | None = None
        self.next_write_error: OSError | None = None
        self.next_read_error: OSError | None = None
        self.next_allocate_error: OSError | None = None
        self.next_punch_error: OSError | None = None
        #: Bytes of the failing write that reach the file all the same.
        self.short_write_bytes = 0

    # ---- faults ----

    def crash(self, generator: np.random.Generator) -> None:
        """Power off: unsynced writes and names survive by chance, writes in whole sectors."""
        self.boot += 1
        self.is_off = True
        self.syncs_may_run.set()
        self.locked = False
        names = dict(self.durable_names)
        for name, inode in self.names.items():
            if name not in names and generator.random() < 0.5:
                names[name] = inode
        for inode in {id(i): i for i in names.values()}.values():
            content = inode.durable
            for operation in inode.unsynced:
                if isinstance(operation, _Resize):
                    if generator.random() < 0.5:
                        _apply(content, operation)
                    continue
                self._tear(content, operation, generator)
            inode.current = bytearray(content)
            inode.unsynced = []
        self.names = dict(names)
        self.durable_names = dict(names)

    @staticmethod
    def _tear(content: bytearray, write: _Write, generator: np.random.Generator) -> None:
        mode = generator.integers(3)
        start, end = write.offset_bytes, write.offset_bytes + len(write.data)
        at = start
        while at < end:
            sector_end = min(end, (at // SECTOR_BYTES + 1) * SECTOR_BYTES)
            if mode == 1 or (mode == 2 and generator.random() < 0.5):
                _apply(content, _Write(at, write.data[at - start : sector_end - start]))
            at = sector_end

    def flip_bit(self, name: str, offset_bytes: int, bit: int = 0) -> None:
        """Rot, on the platter and in what processes see."""
        inode = self.names[name]
        inode.current[offset_bytes] ^= 1 << bit
        inode.durable[offset_bytes] ^= 1 << bit

    def take(self, attribute: str) -> None:
        error = getattr(self, attribute)
        if error is not None:
            setattr(self, attribute, None)
            raise error

    # ---- Disk ----

    def lock(self) -> None:
        if self.locked:
            raise DeviceLocked(self.path, "another")
        self.locked = True
        self.is_off = False

    def unlock(self) -> None:
        self.locked = False

    def list(self, folder: str) -> list[str]:
        prefix = folder + "/"
        return sorted(name[len(prefix) :] for name in self.names if name.startswith(prefix))

    def read_small(self, name: str) -> bytes | None:
        inode = self.names.get(name)
        return None if inode is None else bytes(inode.current)

    def write_small(self, name: str, data: bytes) -> None:
        if self.is_off:
            raise OSError(errno.EIO, "the power is off")
        inode = _Inode(bytearray(data), bytearray(data))
        self.names[name] = self.durable_names[name] = inode

    def create(self, name: str) -> DiskFile:
        if name in self.names:
            raise FileExistsError(name)
        self.names[name] = _Inode()
        return FakeFile(self, self.names[name])

    def open(self, name: str) -> DiskFile:
        if name not in self.names:
            raise FileNotFoundError(name)
        return FakeFile(self, self.names[name])

    def remove(self, name: str) -> None:
        del self.names[name]

    def sync_folder(self, folder: str) -> None:
        prefix = folder + "/"
        kept = {n: i for n, i in self.durable_names.items() if not n.startswith(prefix)}
        kept.update({n: i for n, i in self.names.items() if n.startswith(prefix)})
        self.durable_names = kept

    def space(self) -> DiskSpace:
        return DiskSpace(self.total_bytes, self.free_bytes)

    def index_file(self) -> FakeIndexFile:
        return self.index


class FakeFile:
    """See `exastore.storage.disk.DiskFile`."""

    def __init__(self, disk: FakeDisk, inode: _Inode) -> None:
        self._disk = disk
        self._inode = inode
        self._boot = disk.boot

    def _alive(self) -> None:
        if self._boot != self._disk.boot:
            raise OSError(errno.EIO, "the machine was switched off")

    def _do(self, operation: _Write | _Resize) -> None:
        _apply(self._inode.current, operation)
        self._inode.unsynced.append(operation)

    def pwrite(self, buffers: Sequence[Buffer], offset_bytes: int) -> None:
        self._alive()
        data = b"".join(buffers)
        if self._disk.next_write_error is not None and self._disk.short_write_bytes:
            self._do(_Write(offset_bytes, data[: self._disk.short_write_bytes]))
        self._disk.take("next_write_error")
        self._do(_Write(offset_bytes, data))

    def pread(self, length_bytes: int, offset_bytes: int) -> bytes:
        self._alive()
        self._disk.take("next_read_error")
        return bytes(self._inode.current[offset_bytes : offset_bytes + length_bytes])

    def pread_cached(self, length_bytes: int, offset_bytes: int) -> memoryview | None:
        if not self._disk.is_cached:
            return None
        data = self.pread(length_bytes, offset_bytes)
        return memoryview(data) if len(data) == length_bytes else None

    def is_cached(self, length_bytes: int, offset_bytes: int) -> bool:
        return False  # what there is here cannot be sent without being read

    def load(self, length_bytes: int, offset_bytes: int) -> bool:
        return len(self.pread(length_bytes, offset_bytes)) == length_bytes

    def send(self, target: int, length_bytes: int, offset_bytes: int) -> int:
        raise NotImplementedError

    def sync(self) -> None:
        self._alive()
        self._disk.sync_count += 1
        assert self._disk.syncs_may_run.wait(30)
        self._alive()
        self._disk.take("next_sync_error")
        inode = self._inode
        operations, inode.unsynced = inode.unsynced, []
        for operation in operations:
            _apply(inode.durable, operation)

    def allocate(self, offset_bytes: int, length_bytes: int) -> None:
        self._alive()
        self._disk.take("next_allocate_error")
        size = max(len(self._inode.current), offset_bytes + length_bytes)
        self._do(_Resize(size))

    def punch(self, offset_bytes: int, length_bytes: int) -> None:
        self._alive()
        self._disk.take("next_punch_error")
        self._do(_Write(offset_bytes, bytes(length_bytes)))

    def truncate(self, size_bytes: int) -> None:
        self._alive()
        self._do(_Resize(size_bytes))

    def size_bytes(self) -> int:
        return len(self._inode.current)

    def close(self) -> None:
        pass
