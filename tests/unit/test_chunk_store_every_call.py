"""Every call that a chunk store makes of its disk fails once: nothing acknowledged is lost.

One fixed course of writes, deletes, a checkpoint and a compaction is run without a fault, and its
calls are counted. Then it is run once for each call and each error. What is acknowledged must be
there after the power was cut, and after a clean end.
"""

import contextlib
import errno
import os
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from tests.support.fake_disk import FakeDisk, FakeFile

from exastore.storage.chunk_store import ChunkStore
from exastore.storage.crc import crc32c
from exastore.storage.disk import Disk, PosixDisk, PosixFile
from exastore.storage.errors import ChunkNotFound, StorageError
from exastore.storage.identity import lift_fence
from exastore.storage.log import StoreOptions
from exastore.storage.record import ChunkKey
from exastore.storage.upkeep import Upkeep

UUID = b"\x05" * 16
#: Nothing is done by itself, so that the calls are the same each time.
OPTIONS = StoreOptions(
    segment_bytes=70_000,
    allocate_bytes=1 << 14,
    reserve_bytes=1000,
    checkpoint_chunks=1 << 30,
    compact_garbage=2.0,
    compact_bytes_per_s=0,
)
SOON = StoreOptions(compact_garbage=0.2, compact_bytes_per_s=0)
FILE_CALLS = ("pwrite", "pread", "sync", "allocate", "punch", "truncate", "size_bytes")
DISK_CALLS = (
    "list", "read_small", "write_small", "create", "open", "remove", "sync_folder", "space",
)  # fmt: skip
#: Of these some bytes may reach the file all the same.
SHORT = (0, 45, 3000)


@dataclass
class Faults:
    """Counts calls, and lets one of them fail."""

    kind: str = ""
    number: int = -1
    error: int = errno.EIO
    short_bytes: int = 0
    counts: Counter[str] = field(default_factory=Counter[str])
    #: From the opening of the store to the beginning of its end.
    is_armed: bool = False
    has_fired: bool = False

    def meet(self, kind: str) -> bool:
        """Whether this call fails."""
        if not self.is_armed:
            return False
        self.counts[kind] += 1
        if kind != self.kind or self.counts[kind] - 1 != self.number:
            return False
        self.has_fired = True
        return True

    def raised(self) -> OSError:
        return OSError(self.error, os.strerror(self.error))


class FaultyFile(FakeFile):
    """Of a FaultyDisk."""

    faults: Faults

    def pwrite(self, buffers: Any, offset_bytes: int) -> None:
        if self.faults.meet("pwrite"):
            data = b"".join(buffers)[: self.faults.short_bytes]
            if data:
                super().pwrite([data], offset_bytes)
            raise self.faults.raised()
        super().pwrite(buffers, offset_bytes)


def _failing(name: str) -> Callable[..., Any]:
    plain = getattr(FakeFile, name)

    def call(self: FaultyFile, *arguments: Any) -> Any:
        if self.faults.meet(name):
            raise self.faults.raised()
        return plain(self, *arguments)

    return call


for _name in FILE_CALLS:
    if _name != "pwrite":
        setattr(FaultyFile, _name, _failing(_name))


class FaultyDisk:
    """A `FakeDisk` of which one call fails."""

    def __init__(self, disk: FakeDisk, faults: Faults) -> None:
        self._disk = disk
        self._faults = faults

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._disk, name)
        if name not in DISK_CALLS:
            return found

        def call(*arguments: Any) -> Any:
            if self._faults.meet(name):
                raise self._faults.raised()
            answer = found(*arguments)
            if name in ("create", "open"):
                answer.__class__ = FaultyFile
                answer.faults = self._faults
            return answer

        return call


def key(number: int) -> ChunkKey:
    return ChunkKey(1, number.to_bytes(16, "big"), 0)


def data_of(number: int) -> bytes:
    return bytes([number]) * (20_000 if number % 3 == 0 else 7_000)


@dataclass
class Course:
    """What was done to a store, and what it said."""

    #: Number -> whether it must be there; what was refused or failed may be there or not.
    known: dict[int, bool] = field(default_factory=dict[int, bool])
    doubtful: set[int] = field(default_factory=set[int])
    errors: list[Exception] = field(default_factory=list[Exception])

    def run(self, store: ChunkStore) -> None:
        for number in range(12):
            self.write(store, number)
        for number in (0, 1, 3, 4, 6):
            self.delete(store, number)
        self.attempt(store.checkpoint)
        for _ in range(2):
            with contextlib.suppress(OSError):  # of reading a segment; told to nobody
                self.attempt(lambda: Upkeep(store, SOON, lambda: 0.0).compact_one())
        for number in range(12, 16):
            self.write(store, number)
        for number, there in self.known.items():
            if there:
                self.attempt(lambda number=number: self.read(store, number))  # type: ignore[misc]

    def write(self, store: ChunkStore, number: int) -> None:
        data = data_of(number)
        write = lambda: store.write(key(number), 0, "rs-4-2", data, crc32c(data))  # noqa: E731
        if self.attempt(write):
            self.known[number] = True
        else:
            self.doubtful.add(number)

    def delete(self, store: ChunkStore, number: int) -> None:
        if self.attempt(lambda: store.delete([key(number)])):
            self.known[number] = False
            self.doubtful.discard(number)
        else:
            self.known.pop(number, None)
            self.doubtful.add(number)

    def read(self, store: ChunkStore, number: int) -> None:
        assert store.read(key(number)).data == data_of(number)

    def attempt(self, act: Callable[[], Any]) -> bool:
        """Whether it succeeded; only errors of this room may come out."""
        try:
            act()
        except StorageError as error:
            self.errors.append(error)
            return False
        return True

    def check(self, store: ChunkStore) -> None:
        for number, there in self.known.items():
            if there:
                self.read(store, number)
            else:
                with pytest.raises(ChunkNotFound):
                    store.read(key(number))
        for number in self.doubtful:
            if store.get(key(number)) is not None:
                self.read(store, number)
        store.validate()


def run_course(faults: Faults, *, power_cut: bool) -> tuple[FakeDisk, Course, str | None]:
    """Run it with a fault, and end by a cut of the power or cleanly; why the device is fenced."""
    disk, course = FakeDisk(), Course()
    faulty = cast(Disk, FaultyDisk(disk, faults))
    store = ChunkStore.open(faulty, OPTIONS, new_uuid=lambda: UUID)
    faults.is_armed = True
    try:
        course.run(store)
    finally:
        reason = store.fence_reason
        faults.is_armed = False
        if power_cut:
            disk.crash(np.random.default_rng(faults.number + 1))
        store.close()
        disk.locked = False
    return disk, course, reason


def calls() -> Counter[str]:
    faults = Faults()
    _, course, reason = run_course(faults, power_cut=False)
    assert not course.errors and reason is None
    return faults.counts


CALLS = calls()


def test_the_course_makes_every_kind_of_call() -> None:
    assert set(CALLS) >= {
        "pwrite", "pread", "sync", "allocate", "punch", "truncate", "create", "remove",
        "sync_folder", "space", "size_bytes",
    }  # fmt: skip
    again = calls()
    # How many appends share a sync is not for us to say.
    assert abs(again.pop("sync") - CALLS["sync"]) < 4
    assert again == {kind: count for kind, count in CALLS.items() if kind != "sync"}


@pytest.mark.parametrize("power_cut", [False, True], ids=["closed", "power cut"])
@pytest.mark.parametrize("error", [errno.EIO, errno.ENOSPC], ids=["EIO", "ENOSPC"])
@pytest.mark.parametrize("kind", sorted(CALLS))
def test_whichever_call_fails_nothing_acknowledged_is_lost(
    kind: str, error: int, *, power_cut: bool
) -> None:
    shorts = SHORT if kind == "pwrite" else (0,)
    for number in range(CALLS[kind]):
        for short_bytes in shorts:
            faults = Faults(kind, number, error, short_bytes)
            disk, course, reason = run_course(faults, power_cut=power_cut)
            case = f"{kind} {number} {errno.errorcode[error]} {short_bytes}"
            assert faults.has_fired or (kind == "sync" and number > CALLS[kind] // 2), case
            if error == errno.ENOSPC and kind in ("pwrite", "allocate", "create"):
                assert reason is None, f"{case}: a full disk is no broken one: {reason}"
                assert len(course.errors) <= 1, f"{case}: {course.errors}"
            if error == errno.EIO and kind in ("pwrite", "sync") and faults.has_fired:
                assert reason is not None, f"{case}: went on writing"
            lift_fence(disk)
            store = ChunkStore.open(disk, OPTIONS, new_uuid=lambda: UUID)
            try:
                assert store.recovery.damage == (), case
                course.check(store)
                course.write(store, 99)
                assert course.known[99], f"{case}: {course.errors[-1]}"
            finally:
                store.close()
            store = ChunkStore.open(disk, OPTIONS, new_uuid=lambda: UUID)
            assert store.recovery.damage == (), case
            course.check(store)
            store.close()


# ---- the system's own calls ----


PWRITE, PREAD, WRITE = os.pwrite, os.pread, os.write


@pytest.mark.parametrize("step", [1, 7, 255, 4096])
def test_a_short_write_goes_on_where_the_system_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    data = bytes(range(256)) * 40

    def pwritev(fd: int, buffers: list[bytes], at: int) -> int:
        return PWRITE(fd, b"".join(buffers)[:step], at)

    def pwrite(fd: int, buffer: memoryview, at: int) -> int:
        return PWRITE(fd, buffer[:step], at)

    def pread(fd: int, count: int, at: int) -> bytes:
        return PREAD(fd, min(count, step), at)

    monkeypatch.setattr(os, "pwritev", pwritev)
    monkeypatch.setattr(os, "pwrite", pwrite)
    monkeypatch.setattr(os, "pread", pread)
    file = PosixDisk(tmp_path).create("a")
    file.pwrite([data[:100], data[100:]], 5)
    assert file.pread(len(data) + 100, 5) == data
    file.close()


def test_a_write_of_nothing_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = PosixDisk(tmp_path).create("a")
    assert isinstance(file, PosixFile)

    def nothing(fd: int, data: object, at: int) -> int:
        return 0

    monkeypatch.setattr(os, "pwritev", nothing)
    monkeypatch.setattr(os, "pwrite", nothing)
    with pytest.raises(OSError, match="wrote nothing"):
        file.pwrite([b"abc"], 0)
    file.close()


def test_a_small_file_is_replaced_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = PosixDisk(tmp_path)
    disk.write_small("a", b"old and whole")

    def some(fd: int, data: memoryview) -> int:
        return WRITE(fd, data[:3])

    monkeypatch.setattr(os, "write", some)
    disk.write_small("a", b"new and whole")
    assert disk.read_small("a") == b"new and whole"

    def full(fd: int, data: bytes) -> int:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(OSError, match="full"):
        disk.write_small("a", b"newest")
    assert disk.read_small("a") == b"new and whole"
    assert os.listdir(tmp_path) == ["a"]
