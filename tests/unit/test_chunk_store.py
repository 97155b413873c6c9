"""The chunk store on a real folder."""

import json
import os
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest

from exastore.storage.chunk_store import ChunkStore
from exastore.storage.compaction import Compacted
from exastore.storage.crc import crc32c
from exastore.storage.disk import PosixDisk
from exastore.storage.errors import (
    ChunkConflict,
    ChunkCorrupt,
    ChunkNotFound,
    DeviceClosed,
    DeviceLocked,
    DeviceUnusable,
    InvalidChunk,
    StorageError,
    TransferCorrupt,
)
from exastore.storage.index_file import Entry, PgUsage
from exastore.storage.log import StoreOptions
from exastore.storage.reading import RecordReader, StoredChunk
from exastore.storage.record import ChunkKey
from exastore.storage.runs import ByteRun

SMALL = StoreOptions(segment_bytes=100_000, allocate_bytes=20_000)


def open_store(path: Path, options: StoreOptions = SMALL) -> ChunkStore:
    return ChunkStore.open(PosixDisk(path), options)


def key(number: int, pg: int = 1, index: int = 0) -> ChunkKey:
    return ChunkKey(pg, number.to_bytes(16, "big"), index)


def put(store: ChunkStore, where: ChunkKey, data: bytes, generation: int = 0) -> None:
    store.write(where, generation, "rs-4-2", data, crc32c(data))


def segment_files(path: Path) -> list[Path]:
    return sorted((path / "segments").iterdir())


def test_chunks_are_read_back_with_what_was_said_about_them(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    put(store, key(1), b"hello", generation=3)
    chunk = store.read(key(1))
    assert chunk == (3, "rs-4-2", crc32c(b"hello"), b"hello")
    with pytest.raises(ChunkNotFound):
        store.read(key(2))
    store.validate()
    store.close()


@pytest.mark.parametrize("size", [0, 1, 65_535, 65_536, 65_537, 200_000, 4 << 20])
def test_chunks_of_any_size_survive_a_restart(tmp_path: Path, size: int) -> None:
    data = os.urandom(size)
    store = open_store(tmp_path)
    put(store, key(1), data)
    store.close()
    store = open_store(tmp_path)
    assert store.read(key(1)).data == data
    assert (store.chunk_count, store.chunk_bytes) == (1, size)
    store.close()


def test_many_segments_come_back_and_nothing_is_damaged(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    chunks = {key(n, pg=n % 3): os.urandom(n * 100) for n in range(100)}
    for where, data in chunks.items():
        put(store, where, data)
    used = store.used_bytes
    store.close()
    assert len(segment_files(tmp_path)) > 4
    store = open_store(tmp_path)
    assert store.recovery.damage == ()
    assert store.recovery.torn == ()
    assert {where: store.read(where).data for where in chunks} == chunks
    assert store.used_bytes >= used
    assert store.pgs() == [0, 1, 2]
    assert store.usage()[0] == PgUsage(34, sum(n * 100 for n in range(0, 100, 3)))
    assert [k for k, _ in store.of_pg(2)] == [key(n, pg=2) for n in range(2, 100, 3)]
    store.validate()
    store.close()


def test_deleted_chunks_stay_deleted(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    for number in range(5):
        put(store, key(number), b"x" * 1000)
    assert store.delete([key(1), key(3), key(99)]) == 2
    assert store.delete([key(1)]) == 0
    with pytest.raises(ChunkNotFound):
        store.read(key(1))
    store.close()
    store = open_store(tmp_path)
    assert [k for k, _ in store.of_pg(1)] == [key(0), key(2), key(4)]
    put(store, key(1), b"again")
    store.close()
    store = open_store(tmp_path)
    assert store.read(key(1)).data == b"again"
    store.close()


def test_the_same_bytes_again_succeed_and_take_no_space(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    put(store, key(1), b"same")
    used = store.used_bytes
    put(store, key(1), b"same")
    assert store.used_bytes == used
    with pytest.raises(ChunkConflict, match="other bytes"):
        put(store, key(1), b"else")
    assert store.read(key(1)).data == b"same"
    store.close()


def test_a_newer_generation_replaces_and_an_older_one_is_refused(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    put(store, key(1), b"old", generation=1)
    put(store, key(1), b"new", generation=2)
    with pytest.raises(ChunkConflict, match="older"):
        put(store, key(1), b"old", generation=1)
    store.close()
    store = open_store(tmp_path)
    assert store.read(key(1)).data == b"new"
    assert store.chunk_count == 1
    store.close()


def test_bytes_that_do_not_match_the_senders_checksum_are_not_stored(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    with pytest.raises(TransferCorrupt):
        store.write(key(1), 0, "rs-4-2", b"damaged", crc32c(b"intact!"))
    with pytest.raises(InvalidChunk):
        put(store, key(1)._replace(stripe_id=b"short"), b"")
    assert store.chunk_count == 0
    store.close()


def test_a_second_opener_is_told_who_has_the_device(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    with pytest.raises(DeviceLocked, match=str(os.getpid())):
        open_store(tmp_path)
    store.close()
    open_store(tmp_path).close()


def test_a_folder_of_another_format_is_refused(tmp_path: Path) -> None:
    open_store(tmp_path).close()
    identity = tmp_path / "device.json"
    text = identity.read_text()
    identity.write_text(json.dumps({**json.loads(text), "format_version": 2}))
    with pytest.raises(DeviceUnusable, match="format version 2"):
        open_store(tmp_path)
    identity.write_text("{")
    with pytest.raises(DeviceUnusable, match="damaged"):
        open_store(tmp_path)
    identity.unlink()
    with pytest.raises(DeviceUnusable, match=r"no device\.json"):
        open_store(tmp_path)
    identity.write_text(text)
    open_store(tmp_path).close()


def test_a_segment_of_another_device_or_number_is_refused(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    for path in (one, two):
        store = open_store(path)
        put(store, key(1), b"x")
        store.close()
    stranger = segment_files(two)[0].read_bytes()
    (one / "segments" / "00000002.seg").write_bytes(stranger)
    with pytest.raises(DeviceUnusable, match="copied or renamed"):
        open_store(one)


def test_a_closed_store_takes_no_writes_and_closes_twice(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    store.close()
    store.close()
    with pytest.raises(DeviceClosed):
        put(store, key(1), b"x")


def test_rot_in_the_data_is_detected_and_can_be_written_over(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    put(store, key(1), b"A" * 1000)
    put(store, key(2), b"B" * 1000)
    entry = store.get(key(1))
    assert entry is not None
    with segment_files(tmp_path)[0].open("r+b") as file:
        file.seek(entry.offset_bytes + entry.header_bytes + 500)
        file.write(b"C")
    with pytest.raises(ChunkCorrupt, match="CRC"):
        store.read(key(1))
    assert store.read(key(2)).data == b"B" * 1000
    put(store, key(1), b"A" * 1000)
    assert store.read(key(1)).data == b"A" * 1000
    store.close()


def test_many_writers_share_few_syncs(tmp_path: Path) -> None:
    syncs: list[int] = []

    class Observer:
        def synced(self, chunk_count: int, duration_s: float) -> None:
            syncs.append(chunk_count)

        def compacted(self, compacted: Compacted) -> None:
            raise AssertionError("nothing was deleted")

        def fenced(self, reason: str) -> None:
            raise AssertionError(reason)

    store = ChunkStore.open(PosixDisk(tmp_path), observer=Observer())
    left = threading.Semaphore(0)
    errors: list[StorageError | None] = []

    def done(error: StorageError | None) -> None:
        errors.append(error)
        left.release()

    def writer(first: int) -> None:
        for number in range(first, first + 250):
            data = number.to_bytes(8, "big") * 10
            store.append(key(number), 0, "rs-4-2", data, crc32c(data), done)

    threads = [threading.Thread(target=writer, args=(first,)) for first in range(0, 1000, 250)]
    for thread in threads:
        thread.start()
    for _ in range(1000):
        assert left.acquire(timeout=30)
    for thread in threads:
        thread.join()
    assert errors == [None] * 1000
    assert sum(syncs) == 1000
    assert len(syncs) < 500
    for number in range(1000):
        assert store.read(key(number)).data == number.to_bytes(8, "big") * 10
    store.validate()
    store.close()


def test_a_callback_that_raises_stops_nobody_else(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = open_store(tmp_path)

    def broken(error: StorageError | None) -> None:
        raise RuntimeError("mine")

    store.append(key(1), 0, "", b"x", crc32c(b"x"), broken)
    put(store, key(2), b"y")
    assert store.read(key(1)).data == b"x"
    store.close()
    assert "callback" in caplog.text


def test_deleted_chunks_give_their_space_back(tmp_path: Path) -> None:
    options = StoreOptions(capacity_bytes=10 << 20, reserve_bytes=1 << 20, allocate_bytes=1 << 20)
    store = open_store(tmp_path, options)
    data = os.urandom(1 << 20)
    for number in range(40):  # four times the capacity, one chunk after the other
        put(store, key(number), data)
        if number >= 3:
            assert store.delete([key(number - 3)]) == 1
    used = store.used_bytes
    assert used < 5 << 20
    assert sum(path.stat().st_blocks * 512 for path in segment_files(tmp_path)) < 8 << 20
    store.close()
    store = open_store(tmp_path, options)
    assert store.recovery.damage == store.recovery.torn == ()
    assert store.used_bytes <= used + 100
    assert [store.read(key(number)).data for number in (37, 38, 39)] == [data] * 3
    store.close()


def test_a_read_that_loses_the_race_against_a_delete_finds_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(tmp_path, StoreOptions())
    put(store, key(1), b"x" * 100_000)
    read = RecordReader.read

    def slow_read(
        reader: RecordReader, where: ChunkKey, entry: Entry, runs: Sequence[ByteRun]
    ) -> StoredChunk:
        store.delete([where])
        store.close()  # the flusher has given back the space
        return read(reader, where, entry, runs)

    monkeypatch.setattr(RecordReader, "read", slow_read)
    with pytest.raises(ChunkNotFound):
        store.read(key(1))
