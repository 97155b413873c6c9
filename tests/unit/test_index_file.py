"""The index on disk: what it keeps, and what is done when it cannot be trusted."""

import sqlite3
from pathlib import Path

import pytest
from tests.support.fake_disk import FakeDisk

from exastore.storage.chunk_store import ChunkStore
from exastore.storage.crc import crc32c
from exastore.storage.disk import PosixDisk
from exastore.storage.errors import ChunkCorrupt, DeviceFenced, IndexDamaged, IndexFull
from exastore.storage.index_file import (
    Entry,
    PgUsage,
    SegmentUsage,
    SqliteIndexFile,
    Summary,
)
from exastore.storage.log import StoreOptions, segment_name
from exastore.storage.record import ChunkKey, Position

UUID = b"u" * 16
OPTIONS = StoreOptions(
    segment_bytes=2_000, allocate_bytes=2_000, reserve_bytes=1, checkpoint_chunks=8
)


def entry(number: int) -> Entry:
    return Entry(1, 32 + number, 46, 100, 0, number, "rs-4-2", 1)


def key(number: int, pg: int = 1) -> ChunkKey:
    return ChunkKey(pg, number.to_bytes(16, "big"), 3)


def fill(store: ChunkStore, count: int) -> None:
    for number in range(count):
        data = bytes([number]) * 100
        store.write(key(number), 0, "rs-4-2", data, crc32c(data))


def test_a_commit_is_there_after_opening_again(tmp_path: Path) -> None:
    file = SqliteIndexFile(tmp_path / "index" / "chunks.sqlite")
    assert file.load(UUID) == Summary()
    summary = Summary(Position(1, 500), {1: PgUsage(2, 200)}, {1: SegmentUsage(500, 292)})
    places = {(key(n).stripe_id, 3): entry(n) for n in (2, 1)}
    file.commit({1: dict(places)}, summary)
    file.commit({1: {(key(9).stripe_id, 3): None}}, summary)
    file.close()
    file = SqliteIndexFile(tmp_path / "index" / "chunks.sqlite")
    assert file.load(UUID) == summary
    assert file.get(key(1)) == entry(1)
    assert file.get(key(3)) is None
    assert list(file.of_pg(1)) == sorted(places.items())
    assert list(file.of_pg(2)) == []
    file.close()


def test_a_file_of_another_device_or_that_is_no_database_is_made_anew(tmp_path: Path) -> None:
    path = tmp_path / "chunks.sqlite"
    file = SqliteIndexFile(path)
    file.load(UUID)
    file.commit({1: {(key(1).stripe_id, 3): entry(1)}}, Summary(Position(1, 99)))
    file.close()
    assert file.load(b"v" * 16) == Summary()
    assert file.get(key(1)) is None
    file.close()
    path.write_bytes(b"no database" * 1_000)
    assert file.load(UUID) == Summary()
    file.close()


def test_a_damaged_page_is_an_error_and_no_wrong_answer(tmp_path: Path) -> None:
    path = tmp_path / "chunks.sqlite"
    file = SqliteIndexFile(path)
    file.load(UUID)
    chunks = {(key(n).stripe_id, 3): entry(n) for n in range(2_000)}
    file.commit({1: dict(chunks)}, Summary(Position(1, 99), {1: PgUsage(2_000, 200_000)}))
    file.close()
    content = bytearray(path.read_bytes())
    content[16_384:] = b"\xff" * (len(content) - 16_384)
    path.write_bytes(content)
    file.load(UUID)
    with pytest.raises(IndexDamaged):
        list(file.of_pg(1))
    file.close()


def test_a_full_disk_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "chunks.sqlite"
    file = SqliteIndexFile(path)
    file.load(UUID)
    assert file._writer is not None  # pyright: ignore[reportPrivateUsage]
    file._writer.execute("PRAGMA max_page_count = 20")  # pyright: ignore[reportPrivateUsage]
    with pytest.raises(IndexFull):
        file.commit({1: {(key(n).stripe_id, 3): entry(n) for n in range(9_000)}}, Summary())
    assert list(file.of_pg(1)) == []
    file.commit({1: {(key(1).stripe_id, 3): entry(1)}}, Summary(Position(1, 9)))
    assert file.get(key(1)) == entry(1)
    file.close()


def test_only_the_tail_is_replayed_after_a_crash(tmp_path: Path) -> None:
    disk = FakeDisk()
    store = ChunkStore.open(disk, OPTIONS, new_uuid=lambda: UUID)
    fill(store, 20)
    store.checkpoint()
    fill(store, 23)
    saved = disk.index.summary
    assert saved.position > Position(1, 32)
    store.close()
    disk.index.summary = saved  # as if the process had died before the last checkpoint
    for chunks in disk.index.chunks.values():
        for place in [p for p, e in chunks.items() if e and e.position >= saved.position]:
            del chunks[place]
    disk.locked = False
    store = ChunkStore.open(disk, OPTIONS)
    assert 3 <= store.recovery.record_count <= 4  # the chunks, and the MARK of the clean end
    assert store.chunk_count == 23
    store.validate()
    store.close()


def test_a_lost_or_damaged_index_is_made_from_the_segments(tmp_path: Path) -> None:
    store = ChunkStore.open(PosixDisk(tmp_path), OPTIONS)
    fill(store, 40)
    store.delete([key(7)])
    store.close()
    database = tmp_path / "index" / "chunks.sqlite"
    for damage in (database.unlink, lambda: database.write_bytes(b"\x00" * 20_000)):
        damage()
        store = ChunkStore.open(PosixDisk(tmp_path), OPTIONS)
        assert store.chunk_count == 39
        assert store.recovery.damage == ()
        assert store.recovery.record_count > 40
        store.validate()
        assert store.read(key(39)).data == bytes([39]) * 100
        store.close()


def test_an_index_that_is_ahead_of_the_log_is_not_believed(tmp_path: Path) -> None:
    store = ChunkStore.open(PosixDisk(tmp_path), OPTIONS)
    fill(store, 5)
    store.close()
    with sqlite3.connect(tmp_path / "index" / "chunks.sqlite") as database:
        database.execute("UPDATE about SET offset = 1000000")
    database.close()
    store = ChunkStore.open(PosixDisk(tmp_path), OPTIONS)
    assert store.chunk_count == 5
    assert store.read(key(4)).data == bytes([4]) * 100
    store.close()


def test_a_missing_segment_and_one_that_nobody_knows_are_reported(tmp_path: Path) -> None:
    store = ChunkStore.open(PosixDisk(tmp_path), OPTIONS)
    fill(store, 40)
    store.close()
    segment = tmp_path / segment_name(1)
    segment.rename(tmp_path / segment_name(0))
    store = ChunkStore.open(PosixDisk(tmp_path), OPTIONS)
    assert {number for number, _ in store.recovery.damage} == {0, 1}
    assert store.read(key(39)).data == bytes([39]) * 100
    store.close()


def test_a_wrong_index_entry_never_returns_wrong_data(tmp_path: Path) -> None:
    store = ChunkStore.open(PosixDisk(tmp_path), OPTIONS)
    fill(store, 3)
    store.close()
    with sqlite3.connect(tmp_path / "index" / "chunks.sqlite") as database:
        (offset,) = database.execute(
            "SELECT offset FROM chunks WHERE stripe = ?", (key(1).stripe_id,)
        ).fetchone()
        database.execute(
            "UPDATE chunks SET offset = ? WHERE stripe = ?", (offset, key(2).stripe_id)
        )
    database.close()
    store = ChunkStore.open(PosixDisk(tmp_path), OPTIONS)
    with pytest.raises(ChunkCorrupt, match="another chunk"):
        store.read(key(2))
    store.close()


def test_an_index_file_that_cannot_be_written_fences_the_device() -> None:
    disk = FakeDisk()
    store = ChunkStore.open(disk, OPTIONS, new_uuid=lambda: UUID)
    fill(store, 3)
    disk.index.next_commit_error = IndexDamaged("bad sector")
    with pytest.raises(DeviceFenced, match="bad sector"):
        store.checkpoint()
    assert store.fence_reason is not None
    assert store.read(key(2)).data == bytes([2]) * 100
    store.close()


def test_a_full_disk_postpones_the_index_and_loses_nothing() -> None:
    disk = FakeDisk()
    store = ChunkStore.open(disk, OPTIONS, new_uuid=lambda: UUID)
    fill(store, 3)
    disk.index.next_commit_error = IndexFull("full")
    with pytest.raises(IndexFull):
        store.checkpoint()
    store.delete([key(0)])
    store.validate()
    assert store.unsaved_count == 3
    store.checkpoint()
    assert store.unsaved_count == 0
    assert store.get(key(0)) is None and store.get(key(1)) is not None
    store.validate()
    store.close()
