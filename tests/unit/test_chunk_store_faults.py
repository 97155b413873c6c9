"""The chunk store on a disk that fails, fills up, rots and loses power."""

import errno
from pathlib import Path

import numpy as np
import pytest
from tests.support.fake_disk import FakeDisk

from exastore.storage.chunk_store import ChunkStore
from exastore.storage.crc import crc32c
from exastore.storage.errors import (
    ChunkCorrupt,
    ChunkNotFound,
    DeviceFenced,
    DeviceReadFailed,
    NoSpace,
    StorageError,
)
from exastore.storage.fence import READ_FAILURE_COUNT_MAX
from exastore.storage.identity import lift_fence
from exastore.storage.log import StoreOptions, segment_name
from exastore.storage.record import FIXED_BYTES, ChunkKey
from exastore.storage.segment import HEAD_BYTES

OPTIONS = StoreOptions(segment_bytes=1 << 20, allocate_bytes=1 << 16, reserve_bytes=1000)
UUID = b"\x07" * 16


def open_store(disk: FakeDisk, options: StoreOptions = OPTIONS) -> ChunkStore:
    return ChunkStore.open(disk, options, new_uuid=lambda: UUID)


def key(number: int) -> ChunkKey:
    return ChunkKey(1, number.to_bytes(16, "big"), 0)


def put(store: ChunkStore, number: int, data: bytes) -> None:
    store.write(key(number), 0, "rs-4-2", data, crc32c(data))


def switch_off(store: ChunkStore, disk: FakeDisk, seed: int = 1) -> None:
    """Power off while the store runs, and let its threads end."""
    disk.crash(np.random.default_rng(seed))
    store.close()
    disk.locked = False


def io_error() -> OSError:
    return OSError(errno.EIO, "bad sector")


def no_space() -> OSError:
    return OSError(errno.ENOSPC, "full")


def test_a_failed_fsync_fences_and_is_never_retried() -> None:
    disk = FakeDisk()
    store = open_store(disk)
    put(store, 1, b"before")
    disk.next_sync_error = io_error()
    with pytest.raises(DeviceFenced, match="bad sector"):
        put(store, 2, b"lost")
    syncs = disk.sync_count
    with pytest.raises(DeviceFenced, match="fsync failed"):
        put(store, 3, b"refused")
    with pytest.raises(DeviceFenced):
        store.delete([key(1)])
    assert disk.sync_count == syncs
    assert store.fence_reason is not None
    assert store.read(key(1)).data == b"before"
    with pytest.raises(ChunkNotFound):
        store.read(key(2))
    store.validate()
    store.close()
    assert disk.sync_count == syncs


def test_a_failed_write_fences() -> None:
    disk = FakeDisk()
    store = open_store(disk)
    put(store, 1, b"before")
    disk.next_write_error = io_error()
    with pytest.raises(DeviceFenced):
        put(store, 2, b"lost")
    with pytest.raises(DeviceFenced, match="write failed"):
        put(store, 3, b"refused")
    assert store.read(key(1)).data == b"before"
    store.close()


@pytest.mark.parametrize("short_bytes", [0, 10, 60, 400])
def test_running_out_of_space_in_a_write_leaves_no_trace(short_bytes: int) -> None:
    disk = FakeDisk()
    store = open_store(disk)
    put(store, 1, b"a" * 500)
    disk.next_write_error, disk.short_write_bytes = no_space(), short_bytes
    with pytest.raises(NoSpace):
        put(store, 2, b"b" * 500)
    assert store.fence_reason is None
    put(store, 3, b"c" * 100)
    store.close()
    store = open_store(disk)
    assert store.recovery.damage == store.recovery.torn == ()
    assert (store.read(key(1)).data, store.read(key(3)).data) == (b"a" * 500, b"c" * 100)
    assert store.chunk_count == 2
    store.close()


def test_space_ends_before_the_reserve_is_touched_and_deletes_still_work() -> None:
    disk = FakeDisk()
    store = open_store(
        disk, StoreOptions(capacity_bytes=20_000, reserve_bytes=5_000, repair_bytes=1)
    )
    stored = 0
    with pytest.raises(NoSpace, match="above the reserve"):
        while True:
            put(store, stored, b"x" * 1000)
            stored += 1
    assert stored == 14
    assert store.used_bytes <= 15_000
    assert all(store.read(key(number)).data == b"x" * 1000 for number in range(stored))
    assert store.delete([key(0)]) == 1
    assert store.fence_reason is None
    store.close()


def test_a_full_file_system_is_noticed_before_it_is_full() -> None:
    disk = FakeDisk()
    store = open_store(disk)
    put(store, 1, b"x")
    disk.free_bytes = 1500
    with pytest.raises(NoSpace):
        put(store, 2, b"x" * 70_000)
    disk.free_bytes = 1 << 30
    disk.next_allocate_error = no_space()
    with pytest.raises(NoSpace):
        put(store, 2, b"x" * 70_000)
    put(store, 2, b"x" * 70_000)
    disk.free_bytes = 500
    with pytest.raises(NoSpace):
        for number in range(3, 50):
            put(store, number, b"x" * 70_000)
    assert store.read(key(2)).data == b"x" * 70_000
    store.close()


def test_a_sector_that_cannot_be_read_fences_nothing() -> None:
    disk = FakeDisk()
    store = open_store(disk)
    put(store, 1, b"x")
    disk.next_read_error = io_error()
    with pytest.raises(DeviceReadFailed):
        store.read(key(1))
    assert store.read(key(1)).data == b"x"
    assert store.fence_reason is None
    store.close()


def test_a_write_that_joins_another_in_flight_shares_its_fate() -> None:
    disk = FakeDisk()
    store = open_store(disk)
    disk.syncs_may_run.clear()
    results: list[StorageError | None] = []
    store.append(key(1), 0, "", b"x", crc32c(b"x"), results.append)
    store.append(key(1), 0, "", b"x", crc32c(b"x"), results.append)
    with pytest.raises(ChunkNotFound):
        store.read(key(1))  # not durable, so not visible
    assert results == []
    disk.next_sync_error = io_error()
    disk.syncs_may_run.set()
    store.close()
    assert [type(result) for result in results] == [DeviceFenced, DeviceFenced]


def test_the_invariants_hold_while_a_batch_is_being_synced() -> None:
    disk = FakeDisk()
    store = open_store(disk)
    syncs = disk.sync_count
    answers = append_unsynced(store, disk, {1: b"a", 2: b"b"})
    while disk.sync_count == syncs:
        store.validate()
    store.validate()
    assert answers == []
    disk.syncs_may_run.set()
    store.settle()
    store.validate()
    assert store.read(key(1)).data == b"a"
    store.close()


def test_rot_of_an_acknowledged_header_is_reported_and_the_rest_is_kept() -> None:
    disk = FakeDisk()
    store = open_store(disk)
    for number in range(5):
        put(store, number, bytes([number]) * 1000)
    entry = store.get(key(2))
    assert entry is not None
    store.close()
    disk.index.clear()
    disk.flip_bit(segment_name(1), entry.offset_bytes + 20)
    store = open_store(disk)
    ((segment, damage),) = store.recovery.damage
    assert (segment, damage.offset_bytes) == (1, entry.offset_bytes)
    assert damage.end_bytes == entry.offset_bytes + entry.header_bytes + entry.data_bytes
    assert [k for k, _ in store.of_pg(1)] == [key(n) for n in (0, 1, 3, 4)]
    put(store, 2, bytes([2]) * 1000)
    store.close()


@pytest.mark.parametrize("where", ["header", "data"])
def test_rot_of_an_acknowledged_chunk_is_no_torn_tail_even_without_a_clean_end(where: str) -> None:
    disk = FakeDisk()
    store = open_store(disk)
    for number in range(5):
        put(store, number, bytes([number]) * 1000)
    entry = store.get(key(3))
    assert entry is not None
    switch_off(store, disk)
    offset = entry.offset_bytes + (20 if where == "header" else entry.header_bytes + 7)
    disk.flip_bit(segment_name(1), offset)
    store = open_store(disk)
    assert store.recovery.torn == ()
    if where == "header":
        assert len(store.recovery.damage) == 1
    else:
        with pytest.raises(ChunkCorrupt):
            store.read(key(3))
    assert store.read(key(4)).data == bytes([4]) * 1000
    store.close()


def test_a_sealed_segment_that_lost_its_end_is_reported() -> None:
    disk = FakeDisk()
    options = StoreOptions(segment_bytes=70_000, allocate_bytes=1 << 16, reserve_bytes=1)
    store = open_store(disk, options)
    for number in range(10):
        put(store, number, bytes([number]) * 20_000)
    store.close()
    disk.index.clear()
    inode = disk.names[segment_name(2)]
    del inode.current[50_000:], inode.durable[50_000:]
    store = open_store(disk, options)
    assert {segment for segment, _ in store.recovery.damage} == {2}
    assert "the end of the segment is missing" in {d.reason for _, d in store.recovery.damage}
    assert store.chunk_count == 9
    store.close()


def test_a_lost_write_in_the_middle_is_reported() -> None:
    disk = FakeDisk()
    store = open_store(disk)
    for number in range(4):
        put(store, number, bytes([number + 1]) * 3000)
    entry = store.get(key(1))
    assert entry is not None
    store.close()
    disk.index.clear()
    inode = disk.names[segment_name(1)]
    end = entry.offset_bytes + entry.header_bytes + entry.data_bytes
    for content in (inode.current, inode.durable):
        content[entry.offset_bytes : end] = bytes(end - entry.offset_bytes)
    store = open_store(disk)
    assert [(d.offset_bytes, d.end_bytes) for _, d in store.recovery.damage] == [
        (entry.offset_bytes, end)
    ]
    store.close()


def test_a_chunk_that_looks_like_a_record_is_not_taken_for_one() -> None:
    disk = FakeDisk()
    store = open_store(disk)
    put(store, 1, b"first")
    inner = bytes(disk.names[segment_name(1)].current[HEAD_BYTES : HEAD_BYTES + 51])
    put(store, 2, inner * 20)
    put(store, 3, b"third")
    entry = store.get(key(2))
    assert entry is not None
    store.close()
    disk.index.clear()
    disk.flip_bit(segment_name(1), entry.offset_bytes)
    store = open_store(disk)
    assert [k for k, _ in store.of_pg(1)] == [key(1), key(3)]
    store.close()


def test_power_loss_while_a_device_is_being_formatted_leaves_a_usable_one() -> None:
    for seed in range(20):
        disk = FakeDisk()
        switch_off(open_store(disk), disk, seed)
        store = open_store(disk)
        assert store.recovery.damage == ()
        put(store, 1, b"x")
        store.close()
        # A segment file whose first bytes never reached the disk.
        disk.create("segments/00000009.seg")
        disk.index.clear()
        store = open_store(disk)
        assert store.read(key(1)).data == b"x"
        assert store.recovery.damage == ()
        put(store, 2, b"y")
        store.close()


def append_unsynced(store: ChunkStore, disk: FakeDisk, chunks: dict[int, bytes]) -> list[object]:
    """Hand chunks to the disk and hold every sync; returns where the answers will be."""
    disk.syncs_may_run.clear()
    answers: list[object] = []
    for number, data in chunks.items():
        store.append(key(number), 0, "c", data, crc32c(data), answers.append)
    assert answers == []
    return answers


@pytest.mark.parametrize("seed", range(40))
def test_unacknowledged_writes_torn_by_power_loss_disturb_nothing(seed: int) -> None:
    disk = FakeDisk()
    store = open_store(disk)
    put(store, 1, b"a" * 3000)
    chunks = {number: bytes([number]) * (number * 100) for number in range(10, 16)}
    answers = append_unsynced(store, disk, chunks)
    switch_off(store, disk, seed)
    assert [type(answer) for answer in answers] == [DeviceFenced] * len(chunks)
    for opening in range(3):  # only the first finds something torn
        store = open_store(disk)
        assert store.recovery.damage == ()
        if opening:
            assert store.recovery.torn == ()
        assert store.read(key(1)).data == b"a" * 3000
        for number, data in chunks.items():
            if store.get(key(number)) is not None:
                assert store.read(key(number)).data == data
        put(store, 100 + opening, b"goes on")
        store.validate()
        store.close()


def test_a_hole_before_a_record_that_survived_is_skipped_for_ever() -> None:
    disk = FakeDisk()
    store = open_store(disk)
    put(store, 1, b"a")
    start = store.used_bytes
    append_unsynced(store, disk, {2: b"b" * 5000, 3: b"c" * 2000})
    # The disk wrote the second record first, and nothing of the first.
    (inode,) = [i for name, i in disk.names.items() if name == segment_name(1)]
    content = bytes(inode.current)
    switch_off(store, disk)
    hole = 40 + 1 + 4 + 5000
    for image in (inode.current, inode.durable):
        image[:] = content
        image[start : start + hole] = bytes(hole)
    store = open_store(disk)
    assert store.recovery.damage == ()
    assert [(t.offset_bytes, t.end_bytes) for _, t in store.recovery.torn] == [
        (start, start + hole)
    ]
    assert store.read(key(3)).data == b"c" * 2000
    put(store, 4, b"d")
    switch_off(store, disk)
    store = open_store(disk)
    assert store.recovery.damage == store.recovery.torn == ()
    assert [k for k, _ in store.of_pg(1)] == [key(1), key(3), key(4)]
    store.close()


def test_the_segment_head_and_record_sizes_are_what_the_readme_says(tmp_path: Path) -> None:
    disk = FakeDisk()
    store = open_store(disk)
    before = store.used_bytes
    assert before == HEAD_BYTES == 32
    put(store, 1, b"x" * 64)
    assert store.used_bytes - before == FIXED_BYTES + len("rs-4-2") + 4 + 64
    store.close()


def test_a_file_system_without_holes_keeps_the_space_and_works() -> None:
    disk = FakeDisk()
    store = open_store(disk)
    used = []
    for number in range(2):
        put(store, number, b"x" * 100_000)
        disk.next_punch_error = OSError(errno.EOPNOTSUPP, "no holes here")
        assert store.delete([key(number)]) == 1
        used.append(store.used_bytes)
    assert used[1] > used[0] + 100_000
    store.close()


def test_a_fenced_device_takes_writes_again_when_an_operator_says_so_and_not_before() -> None:
    disk = FakeDisk()
    store = open_store(disk)
    put(store, 1, b"before")
    disk.next_sync_error = io_error()
    with pytest.raises(DeviceFenced):
        put(store, 2, b"lost")
    store.close()

    store = open_store(disk)
    assert store.fence_reason is not None
    assert "bad sector" in store.fence_reason
    with pytest.raises(DeviceFenced, match="bad sector"):
        put(store, 3, b"refused")
    assert store.read(key(1)).data == b"before"
    store.close()

    assert lift_fence(disk)
    assert not lift_fence(disk)
    store = open_store(disk)
    put(store, 3, b"taken")
    assert store.read(key(3)).data == b"taken"
    store.close()


def test_a_device_that_fails_many_reads_is_fenced() -> None:
    disk = FakeDisk()
    store = open_store(disk)
    put(store, 1, b"x")
    for count in range(1, READ_FAILURE_COUNT_MAX + 1):
        disk.next_read_error = io_error()
        with pytest.raises(DeviceReadFailed):
            store.read(key(1))
        assert (store.fence_reason is not None) == (count == READ_FAILURE_COUNT_MAX)
    assert store.read(key(1)).data == b"x", "what can be read is served"
    store.close()
