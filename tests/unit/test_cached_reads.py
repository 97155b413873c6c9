"""Reads of what the system has in memory, on the event loop."""

import errno
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from tests.support.fake_disk import FakeDisk

from exastore.storage.chunk_store import ChunkStore
from exastore.storage.crc import crc32c
from exastore.storage.disk import PosixDisk
from exastore.storage.errors import ChunkCorrupt, ChunkNotFound
from exastore.storage.lane import DeviceLane
from exastore.storage.log import StoreOptions, segment_name
from exastore.storage.record import BLOCK_BYTES, ChunkKey
from exastore.storage.runs import ByteRun

OPTIONS = StoreOptions(segment_bytes=4 << 20, allocate_bytes=1 << 16, reserve_bytes=1000)
KEY = ChunkKey(1, bytes(16), 0)
DATA = bytes(range(256)) * (3 * BLOCK_BYTES // 256) + b"the end"


def stored(disk: FakeDisk | PosixDisk) -> ChunkStore:
    store = ChunkStore.open(disk, OPTIONS, new_uuid=lambda: b"\x07" * 16)
    store.write(KEY, 0, "rs-4-2", DATA, crc32c(DATA))
    return store


@pytest.mark.parametrize(
    "runs",
    [(), (ByteRun(5, 10),), (ByteRun(BLOCK_BYTES - 1, 2), ByteRun(3 * BLOCK_BYTES, 7))],
    ids=["whole", "one-run", "two-runs"],
)
def test_what_is_in_memory_is_read_as_from_the_disk(runs: tuple[ByteRun, ...]) -> None:
    disk = FakeDisk()
    store = stored(disk)
    assert store.read_cached(KEY, runs) is None
    disk.is_cached = True
    cached, read = store.read_cached(KEY, runs), store.read(KEY, runs)
    assert cached is not None
    assert (bytes(cached.data), cached.crc32c) == (bytes(read.data), read.crc32c)
    assert crc32c(cached.data) == cached.crc32c
    store.close()


def test_what_is_wrong_in_memory_is_left_to_the_read_that_says_so() -> None:
    disk = FakeDisk()
    store = stored(disk)
    disk.is_cached = True
    assert store.read_cached(ChunkKey(1, bytes(16), 1)) is None
    assert store.read_cached(KEY, (ByteRun(len(DATA), 1),)) is None
    disk.next_read_error = OSError(errno.EIO, "bad sector")
    assert store.read_cached(KEY) is None
    disk.flip_bit(segment_name(1), 2 * BLOCK_BYTES)
    assert store.read_cached(KEY) is None
    with pytest.raises(ChunkCorrupt):
        store.read(KEY)
    store.close()


def test_a_file_just_written_is_in_memory_or_the_system_cannot_tell(tmp_path: Path) -> None:
    disk = PosixDisk(tmp_path / "device")
    disk.lock()
    file = disk.create("file")
    file.pwrite([DATA], 0)
    cached = file.pread_cached(100, 5)
    assert cached is None or bytes(cached) == DATA[5:105]
    assert file.pread_cached(100, len(DATA) - 50) is None  # the file ends before
    file.close()
    disk.unlock()


async def test_a_lane_wakes_a_thread_only_for_what_is_not_in_memory() -> None:
    disk = FakeDisk()
    with ThreadPoolExecutor(1) as executor:
        store = stored(disk)
        lane = DeviceLane(store, executor, reads_on_loop=True)
        disk.is_cached = True
        executor.shutdown()  # from here on a read in a thread fails
        assert (await lane.read(KEY)).data == DATA
        disk.is_cached = False
        with pytest.raises(RuntimeError, match="shutdown"):
            await lane.read(KEY)
        with pytest.raises(RuntimeError, match="shutdown"):
            await lane.read(ChunkKey(1, bytes(16), 1))
        with pytest.raises(ChunkNotFound):
            store.read(ChunkKey(1, bytes(16), 1))
        await lane.close()
