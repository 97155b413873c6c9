"""The files of one device, behind an interface that tests replace to inject faults."""

import ctypes
import errno
import fcntl
import mmap
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np

from exastore.storage.crc import Buffer
from exastore.storage.errors import DeviceLocked
from exastore.storage.index_file import IndexFile, SqliteIndexFile

# The standard library has posix_fallocate alone. Flags: FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE.
_PUNCH_HOLE_KEEP_SIZE = 3
_fallocate = ctypes.CDLL(None, use_errno=True).fallocate
_fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)

_LOAD_BYTES = 64 << 10

#: cachestat(2) has this number on all architectures, and no function in the C library yet.
_CACHESTAT = 451
_syscall = ctypes.CDLL(None).syscall
_syscall.restype = ctypes.c_long


class _Range(ctypes.Structure):
    """`struct cachestat_range`."""

    _fields_ = (("offset_bytes", ctypes.c_uint64), ("length_bytes", ctypes.c_uint64))


class _CacheStat(ctypes.Structure):
    """`struct cachestat`: counts of pages."""

    _fields_ = tuple(
        (name, ctypes.c_uint64)
        for name in ("cached_count", "dirty", "writeback", "evicted", "recently_evicted")
    )


class DiskSpace(NamedTuple):
    """Of the file system that holds the device."""

    total_bytes: int
    free_bytes: int


class DiskFile(Protocol):
    """An open file. Every method raises OSError as the system does."""

    def pwrite(self, buffers: Sequence[Buffer], offset_bytes: int) -> None:
        """Write all buffers one after the other, or raise."""
        ...

    def pread(self, length_bytes: int, offset_bytes: int) -> bytes:
        """Fewer bytes only at the end of the file."""
        ...

    def pread_cached(self, length_bytes: int, offset_bytes: int) -> memoryview | None:
        """The bytes if all of them are in memory; does not wait for the disk."""
        ...

    def is_cached(self, length_bytes: int, offset_bytes: int) -> bool:
        """Whether all of these bytes are in memory; false also where the system cannot tell."""
        ...

    def load(self, length_bytes: int, offset_bytes: int) -> bool:
        """Bring bytes into memory, waiting for the disk; false when the file ends before."""
        ...

    def send(self, target: int, length_bytes: int, offset_bytes: int) -> int:
        """Send bytes into the socket of this number; how many it took, 0 at the end of the file."""
        ...

    def sync(self) -> None:
        """Return when everything written is durable."""
        ...

    def allocate(self, offset_bytes: int, length_bytes: int) -> None:
        """Reserve space, so that writes there cannot run out of it; the new bytes read as zero."""
        ...

    def punch(self, offset_bytes: int, length_bytes: int) -> None:
        """Give space back to the file system; the bytes read as zero, the size stays."""
        ...

    def truncate(self, size_bytes: int) -> None: ...

    def size_bytes(self) -> int: ...

    def close(self) -> None: ...


class Disk(Protocol):
    """The folder of one device. Names are relative to it, with `/`."""

    @property
    def path(self) -> Path: ...

    def lock(self) -> None:
        """Take the device for this process. Raises DeviceLocked."""
        ...

    def unlock(self) -> None: ...

    def list(self, folder: str) -> list[str]:
        """Sorted names in `folder`; none if there is no folder."""
        ...

    def read_small(self, name: str) -> bytes | None:
        """The file's bytes; None if there is no file."""
        ...

    def write_small(self, name: str, data: bytes) -> None:
        """Replace the file, durably and in one step."""
        ...

    def create(self, name: str) -> DiskFile:
        """A new empty file in an existing or new folder; FileExistsError if there is one."""
        ...

    def open(self, name: str) -> DiskFile: ...

    def remove(self, name: str) -> None: ...

    def sync_folder(self, folder: str) -> None:
        """Make created, renamed and removed names in `folder` durable."""
        ...

    def space(self) -> DiskSpace: ...

    def index_file(self) -> IndexFile:
        """Where the index of the device is kept; not open yet."""
        ...


class PosixFile:
    """A file descriptor, closed when nobody holds it any more."""

    __slots__ = ("_fd",)

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def pwrite(self, buffers: Sequence[Buffer], offset_bytes: int) -> None:
        total = sum(len(buffer) for buffer in buffers)
        written = os.pwritev(self._fd, buffers, offset_bytes)
        if written == total:
            return
        # A short write is no error: go on where the system stopped.
        rest = memoryview(b"".join(buffers))
        while written < total:
            count = os.pwrite(self._fd, rest[written:], offset_bytes + written)
            if count == 0:
                raise OSError(errno.EIO, "the system wrote nothing")
            written += count

    def pread(self, length_bytes: int, offset_bytes: int) -> bytes:
        data = os.pread(self._fd, length_bytes, offset_bytes)
        if len(data) == length_bytes or not data:
            return data
        pieces = [data]
        got = len(data)
        while got < length_bytes:
            data = os.pread(self._fd, length_bytes - got, offset_bytes + got)
            if not data:
                break
            pieces.append(data)
            got += len(data)
        return b"".join(pieces)

    def pread_cached(self, length_bytes: int, offset_bytes: int) -> memoryview | None:
        buffer = np.empty(length_bytes, dtype=np.uint8).data  # bytes would be zeroed first
        try:
            count = os.preadv(self._fd, [buffer], offset_bytes, os.RWF_NOWAIT)
        except OSError:  # EAGAIN: not in memory; EOPNOTSUPP: the file system cannot tell
            return None
        return buffer if count == length_bytes else None

    def is_cached(self, length_bytes: int, offset_bytes: int) -> bool:
        wanted, found = _Range(offset_bytes, length_bytes), _CacheStat()
        if _syscall(_CACHESTAT, self._fd, ctypes.byref(wanted), ctypes.byref(found), 0) != 0:
            return False  # Linux before 6.5
        end_bytes = offset_bytes + length_bytes
        page_count = -(-end_bytes // mmap.PAGESIZE) - offset_bytes // mmap.PAGESIZE
        return bool(found.cached_count == page_count)

    def load(self, length_bytes: int, offset_bytes: int) -> bool:
        # Read into one small buffer over and over, which stays in the processor's cache.
        piece = memoryview(bytearray(min(length_bytes, _LOAD_BYTES)))
        whole_count, rest_bytes = divmod(length_bytes, len(piece))
        pieces = [*[piece] * whole_count, piece[:rest_bytes]]
        return os.preadv(self._fd, pieces, offset_bytes) == length_bytes

    def send(self, target: int, length_bytes: int, offset_bytes: int) -> int:
        return os.sendfile(target, self._fd, offset_bytes, length_bytes)

    def sync(self) -> None:
        os.fdatasync(self._fd)

    def allocate(self, offset_bytes: int, length_bytes: int) -> None:
        os.posix_fallocate(self._fd, offset_bytes, length_bytes)

    def punch(self, offset_bytes: int, length_bytes: int) -> None:
        if _fallocate(self._fd, _PUNCH_HOLE_KEEP_SIZE, offset_bytes, length_bytes) != 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))

    def truncate(self, size_bytes: int) -> None:
        os.ftruncate(self._fd, size_bytes)

    def size_bytes(self) -> int:
        return os.fstat(self._fd).st_size

    def close(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def __del__(self) -> None:
        # Readers may still hold a file that the store no longer lists.
        if self._fd >= 0:
            os.close(self._fd)


class PosixDisk:
    """A folder of a file system."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock_fd = -1

    @property
    def path(self) -> Path:
        return self._path

    def lock(self) -> None:
        self._path.mkdir(parents=True, exist_ok=True)
        fd = os.open(self._path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(fd, 32, 0).decode("ascii", "replace").strip() or "unknown"
            os.close(fd)
            raise DeviceLocked(self._path, holder) from None
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
        self._lock_fd = fd

    def unlock(self) -> None:
        fd, self._lock_fd = self._lock_fd, -1
        if fd >= 0:
            os.close(fd)

    def list(self, folder: str) -> list[str]:
        try:
            return sorted(os.listdir(self._path / folder))
        except FileNotFoundError:
            return []

    def read_small(self, name: str) -> bytes | None:
        try:
            return (self._path / name).read_bytes()
        except FileNotFoundError:
            return None

    def write_small(self, name: str, data: bytes) -> None:
        target = self._path / name
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(target.name + ".new")
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
        try:
            rest = memoryview(data)
            while rest:  # a disk that is nearly full takes a part
                rest = rest[os.write(fd, rest) :]
            os.fsync(fd)
        except OSError:
            temporary.unlink()
            raise
        finally:
            os.close(fd)
        os.replace(temporary, target)
        self.sync_folder(str(Path(name).parent))

    def create(self, name: str) -> DiskFile:
        target = self._path / name
        if not target.parent.exists():
            target.parent.mkdir(parents=True)
            self.sync_folder(str(Path(name).parent.parent))
        return PosixFile(os.open(target, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644))

    def open(self, name: str) -> DiskFile:
        return PosixFile(os.open(self._path / name, os.O_RDWR | os.O_CLOEXEC))

    def remove(self, name: str) -> None:
        (self._path / name).unlink()

    def sync_folder(self, folder: str) -> None:
        fd = os.open(self._path / folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    def space(self) -> DiskSpace:
        stat = os.statvfs(self._path)
        return DiskSpace(stat.f_blocks * stat.f_frsize, stat.f_bavail * stat.f_frsize)

    def index_file(self) -> IndexFile:
        return SqliteIndexFile(self._path / "index" / "chunks.sqlite")
