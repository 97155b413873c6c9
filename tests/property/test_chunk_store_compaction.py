"""Compaction against a dictionary: few keys, many lives of each, segments of a few records.

What must never happen: a deleted chunk comes back, an older generation comes back, a chunk is lost,
whatever is compacted in whatever order, and whether or not the index file survives.
"""

import contextlib
import threading
from concurrent.futures import Future
from pathlib import Path

import numpy as np
import pytest
from tests.support.fake_disk import FakeDisk

from exastore.storage.chunk_store import ChunkStore
from exastore.storage.compaction import choose_segment, compact, garbage_bytes
from exastore.storage.crc import crc32c
from exastore.storage.disk import PosixDisk
from exastore.storage.errors import (
    ChunkCorrupt,
    ChunkNotFound,
    DeviceClosed,
    NoSpace,
    StorageError,
)
from exastore.storage.index_file import SegmentUsage
from exastore.storage.log import Purpose, StoreOptions, segment_name
from exastore.storage.record import ChunkKey

OPTIONS = StoreOptions(segment_bytes=700, allocate_bytes=700, reserve_bytes=1, compact_garbage=2.0)
KEYS = [ChunkKey(pg, bytes([pg]) * 16, 0) for pg in range(4)]
OPERATIONS = ("put", "replace", "delete", "compact", "save", "restart", "cut", "forget")
CHANCES = (0.3, 0.1, 0.2, 0.25, 0.05, 0.03, 0.04, 0.03)


class Run:
    """One random history and the dictionary that says what must be there."""

    def __init__(self, seed: int) -> None:
        self.generator = np.random.default_rng(seed)
        self.disk = FakeDisk()
        self.model: dict[ChunkKey, tuple[int, bytes]] = {}
        self.store = self.open()

    def open(self) -> ChunkStore:
        self.disk.locked = False
        return ChunkStore.open(self.disk, OPTIONS, new_uuid=lambda: b"u" * 16)

    def put(self, key: ChunkKey, generation: int) -> None:
        data = self.generator.bytes(int(self.generator.integers(0, 200)))
        self.store.write(key, generation, "rs-4-2", data, crc32c(data))
        self.model[key] = (generation, data)

    def compact(self, segment: int) -> None:
        """All of it, or it stops half-way, as when the process ends."""
        calls_left = int(self.generator.integers(1, 12))

        def pace(_: int) -> None:
            nonlocal calls_left
            calls_left -= 1
            if calls_left == 0:
                raise DeviceClosed("stop here")

        if self.generator.random() < 0.6:
            assert compact(self.store, segment, lambda _: None).removed
        else:
            with contextlib.suppress(DeviceClosed):
                compact(self.store, segment, pace)

    def step(self) -> None:
        operation = OPERATIONS[self.generator.choice(len(OPERATIONS), p=CHANCES)]
        key = KEYS[self.generator.integers(len(KEYS))]
        if operation == "put" and key not in self.model:
            self.put(key, 0)
        elif operation == "replace" and key in self.model:
            self.put(key, self.model[key][0] + 1)
        elif operation == "delete":
            assert self.store.delete([key]) == (self.model.pop(key, None) is not None)
        elif operation == "compact":
            sealed = list(self.store.segments())[:-1]
            if sealed:
                self.compact(int(self.generator.choice(sealed)))
        elif operation == "save":
            self.store.checkpoint()
        else:
            if operation == "cut":
                self.disk.crash(self.generator)
            self.store.close()
            if operation == "forget":
                self.disk.index.clear()
            self.store = self.open()

    def check(self) -> None:
        self.store.validate()
        assert self.store.recovery.damage == ()
        for key in KEYS:
            if key in self.model:
                chunk = self.store.read(key)
                assert (chunk.generation, chunk.data) == self.model[key]
            else:
                with pytest.raises(ChunkNotFound):
                    self.store.read(key)


@pytest.mark.parametrize("seed", range(24))
def test_no_order_of_lives_and_compactions_loses_or_revives_a_chunk(seed: int) -> None:
    run = Run(seed)
    for _ in range(150):
        run.step()
        run.check()
    run.store.close()
    run.disk.index.clear()
    run.store = run.open()
    run.check()
    run.store.close()


def open_with(disk: FakeDisk, options: StoreOptions = OPTIONS) -> ChunkStore:
    disk.locked = False
    return ChunkStore.open(disk, options, new_uuid=lambda: b"u" * 16)


def fill(store: ChunkStore, count: int) -> list[ChunkKey]:
    keys = [ChunkKey(number % 3, number.to_bytes(16, "big"), 0) for number in range(count)]
    for number, key in enumerate(keys):
        data = bytes([number]) * 100
        store.write(key, 0, "rs-4-2", data, crc32c(data))
    return keys


def test_the_segment_with_the_largest_share_of_garbage_is_chosen_and_the_growing_one_never() -> (
    None
):
    segments = {
        1: SegmentUsage(1_000_000, 900_000),
        2: SegmentUsage(1_000_000, 300_000),
        3: SegmentUsage(500_000, 50_000),
        4: SegmentUsage(1_000_000, 0),
    }
    assert choose_segment(segments, 0.3, ()) == 3
    assert choose_segment(segments, 0.3, {3}) == 2
    assert choose_segment(segments, 0.3, {2, 3}) is None
    assert choose_segment({}, 0.3, ()) is None


def test_a_segment_with_a_rotten_live_chunk_stays_until_the_chunk_is_written_again() -> None:
    disk = FakeDisk()
    store = open_with(disk)
    keys = fill(store, 8)
    entry = store.get(keys[0])
    assert entry is not None and entry.segment == 1
    disk.flip_bit(segment_name(1), entry.offset_bytes + entry.header_bytes)
    compacted = compact(store, 1, lambda _: None)
    assert not compacted.removed and compacted.moved_bytes > 0
    with pytest.raises(ChunkCorrupt):
        store.read(keys[0])
    store.write(keys[0], 0, "rs-4-2", bytes(100), crc32c(bytes(100)))  # repair
    assert compact(store, 1, lambda _: None).removed
    assert {store.read(key).data for key in keys} == {bytes([n]) * 100 for n in range(8)}
    store.close()


def test_clients_leave_room_for_repair_and_repair_leaves_room_for_upkeep() -> None:
    options = StoreOptions(
        segment_bytes=2_000, capacity_bytes=20_000, reserve_bytes=4_000, repair_bytes=4_000,
        compact_garbage=2.0,
    )  # fmt: skip
    store = open_with(FakeDisk(), options)

    def put_until_full(purpose: Purpose, first: int) -> int:
        for number in range(first, first + 100):
            waiter: Future[None] = Future()

            def done(error: StorageError | None, waiter: "Future[None]" = waiter) -> None:
                waiter.set_result(None)

            key = ChunkKey(0, number.to_bytes(16, "big"), 0)
            data = bytes(500)
            try:
                store.append(key, 0, "rs-4-2", data, crc32c(data), done, purpose)
            except NoSpace:
                return number - first
            waiter.result(30)
        raise AssertionError("it never filled up")

    clients = put_until_full(Purpose.CLIENT, 0)
    repairs = put_until_full(Purpose.REPAIR, 1_000)
    assert 18 <= clients <= 22 and 6 <= repairs <= 8
    assert compact(store, 1, lambda _: None).removed  # in the last reserve
    assert store.delete([ChunkKey(0, (0).to_bytes(16, "big"), 0)]) == 1
    store.close()


def test_compaction_in_the_background_gives_back_the_space_of_deleted_chunks(
    tmp_path: Path,
) -> None:
    options = StoreOptions(
        segment_bytes=20_000, allocate_bytes=20_000, reserve_bytes=1, compact_garbage=0.3,
        compact_bytes_per_s=0, checkpoint_chunks=50,
    )  # fmt: skip
    store = ChunkStore.open(PosixDisk(tmp_path), options)
    keys = fill(store, 200)
    removed = set(keys) - set(keys[::5])
    assert store.delete(removed) == 160
    deadline = threading.Event()
    for _ in range(600):
        usage = list(store.segments().values())[:-1]
        if all(garbage_bytes(u) < 0.3 * u.used_bytes for u in usage):
            break
        deadline.wait(0.05)
    else:
        raise AssertionError(f"still garbage: {store.segments()}")
    assert store.used_bytes < 30_000
    for number, key in enumerate(keys):
        if key in removed:
            with pytest.raises(ChunkNotFound):
                store.read(key)
        else:
            assert store.read(key).data == bytes([number]) * 100
    store.close()
    store = ChunkStore.open(PosixDisk(tmp_path), options)
    assert store.recovery.record_count == 0  # a clean end leaves nothing to replay
    assert store.chunk_count == 40
    store.validate()
    store.close()
