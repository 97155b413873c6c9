"""`exastore node fsck`: what it finds on a device, and that it is silent about a sound one."""

import json
import sqlite3
from pathlib import Path

import pytest
from typer.testing import CliRunner

from exastore.deploy.cli.app import app
from exastore.storage.chunk_store import ChunkStore
from exastore.storage.crc import crc32c
from exastore.storage.disk import PosixDisk
from exastore.storage.errors import DeviceLocked
from exastore.storage.fsck import check_device, rebuild_index, total_bytes
from exastore.storage.log import StoreOptions, segment_name
from exastore.storage.record import ChunkKey

OPTIONS = StoreOptions(
    segment_bytes=4_000, allocate_bytes=4_000, reserve_bytes=1, compact_garbage=2.0
)


def key(number: int) -> ChunkKey:
    return ChunkKey(number % 3, number.to_bytes(16, "big"), 0)


@pytest.fixture
def device(tmp_path: Path) -> Path:
    store = ChunkStore.open(PosixDisk(tmp_path), OPTIONS)
    for number in range(60):
        data = bytes([number]) * 200
        store.write(key(number), 0, "rs-4-2", data, crc32c(data))
    store.delete([key(n) for n in range(0, 60, 6)])
    store.close()
    return tmp_path


def flip(device: Path, segment: int, offset_bytes: int) -> None:
    path = device / segment_name(segment)
    content = bytearray(path.read_bytes())
    content[offset_bytes] ^= 1
    path.write_bytes(content)


def test_a_sound_device_has_no_problems_and_every_byte_is_counted(device: Path) -> None:
    seen: list[int] = []
    report = check_device(PosixDisk(device), seen.append)
    assert report.problem_count == 0
    assert not report.damage and not report.corrupt and not report.index and not report.torn
    assert (report.chunk_count, report.chunk_bytes) == (50, 10_000)
    assert report.dead_bytes > 10 * 200
    assert sum(seen) == total_bytes(PosixDisk(device))


def test_rot_in_data_and_in_a_header_is_found_at_its_place(device: Path) -> None:
    store = ChunkStore.open(PosixDisk(device), OPTIONS)
    rotten, headless = store.get(key(1)), store.get(key(20))
    store.close()
    assert rotten is not None and headless is not None
    flip(device, rotten.segment, rotten.offset_bytes + rotten.header_bytes + 5)
    flip(device, headless.segment, headless.offset_bytes + 9)
    report = check_device(PosixDisk(device))
    assert [(p.segment, p.offset_bytes) for p in report.corrupt] == [rotten.position]
    assert [(p.segment, p.offset_bytes) for p in report.damage] == [headless.position]
    assert len(report.index) == 1  # it names the chunk whose header is gone
    assert report.problem_count == 3


def test_an_index_that_is_wrong_is_found_and_made_anew(device: Path) -> None:
    with sqlite3.connect(device / "index" / "chunks.sqlite") as database:
        database.execute("DELETE FROM chunks WHERE stripe = ?", (key(1).stripe_id,))
        database.execute("UPDATE chunks SET offset = 7 WHERE stripe = ?", (key(2).stripe_id,))
    database.close()
    report = check_device(PosixDisk(device))
    assert len(report.index) == report.problem_count == 2
    assert "not in the index" in report.index[0].text
    rebuild_index(PosixDisk(device))
    assert check_device(PosixDisk(device)).problem_count == 0
    store = ChunkStore.open(PosixDisk(device), OPTIONS)
    assert store.chunk_count == 50
    assert store.read(key(1)).data == bytes([1]) * 200
    store.close()


def test_a_device_that_is_served_is_left_alone(device: Path) -> None:
    store = ChunkStore.open(PosixDisk(device), OPTIONS)
    with pytest.raises(DeviceLocked):
        check_device(PosixDisk(device))
    result = CliRunner().invoke(app, ["node", "fsck", str(device)], standalone_mode=False)
    assert result.exception is not None and "stop it first" in str(result.exception)
    store.close()


def test_the_command_prints_a_report_and_says_by_its_exit_code_what_it_found(device: Path) -> None:
    result = CliRunner().invoke(app, ["node", "fsck", str(device)])
    assert result.exit_code == 0 and "no problems" in result.stdout
    store = ChunkStore.open(PosixDisk(device), OPTIONS)
    entry = store.get(key(5))
    store.close()
    assert entry is not None
    flip(device, entry.segment, entry.offset_bytes + entry.header_bytes)
    result = CliRunner().invoke(app, ["node", "fsck", str(device), "--json"])
    assert result.exit_code == 1
    report = json.loads(result.stdout)
    assert report["problem_count"] == 1 and len(report["corrupt"]) == 1
    result = CliRunner().invoke(app, ["node", "fsck", str(device / "nowhere")])
    assert result.exit_code != 0
