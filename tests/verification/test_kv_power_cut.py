"""A power cut while SQLite commits: an ext4 on a loop device is shut down without flushing its log.

What reached the disk by fsync is there afterwards, and nothing else is. That the cut is one is
shown by the same engine with `synchronous=OFF`, which must lose what it acknowledged.
"""

import fcntl
import os
import shutil
import struct
import subprocess
import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import pytest

from exastore.metadata.kv.contract import counter_value
from exastore.metadata.kv.sqlite import SqliteEngine

pytestmark = pytest.mark.verify

#: _IOR('X', 125, u32) with EXT4_GOING_FLAGS_NOLOGFLUSH.
FS_IOC_SHUTDOWN = 0x8004587D
WITHOUT_FLUSH = struct.pack("I", 2)

WRITER = """
import asyncio, sys
from pathlib import Path
from exastore.metadata.kv.sqlite import SqliteEngine

async def write(engine, lane):
    number = 0
    while True:
        def fn(txn):
            txn.put(b"%02d-%06d" % (lane, number), b"v" * 500)
            txn.add(b"count", 1)
        await engine.transact(fn)
        sys.stdout.write(f"{lane} {number}\\n")
        sys.stdout.flush()
        number += 1

async def main():
    engine = SqliteEngine(Path(sys.argv[1]))
    engine._writer_db.execute("PRAGMA synchronous = " + sys.argv[2])
    await asyncio.gather(*(write(engine, lane) for lane in range(8)))

asyncio.run(main())
"""


@contextmanager
def mounted(image: Path, folder: Path) -> Generator[None]:
    done = subprocess.run(
        ["mount", "-o", "loop", str(image), str(folder)], capture_output=True, text=True
    )
    if done.returncode != 0:
        pytest.skip(f"cannot mount a loop device here: {done.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize(("synchronous", "acknowledged_count"), [("FULL", 60), ("FULL", 900)])
async def test_acknowledged_transactions_survive_a_power_cut(
    tmp_path: Path, synchronous: str, acknowledged_count: int
) -> None:
    acknowledged, rows = await cut_power_in_the_middle(tmp_path, synchronous, acknowledged_count)
    count = counter_value(rows.pop(b"count"))
    assert set(acknowledged) <= rows.keys()
    assert count == len(rows)


async def test_without_fsync_the_same_cut_loses_transactions(tmp_path: Path) -> None:
    acknowledged, rows = await cut_power_in_the_middle(tmp_path, "OFF", 300)
    assert not set(acknowledged) <= rows.keys()


async def cut_power_in_the_middle(
    tmp_path: Path, synchronous: str, acknowledged_count: int
) -> tuple[list[bytes], dict[bytes, bytes]]:
    """The keys acknowledged, and what is there after the machine is back."""
    if os.geteuid() != 0 or shutil.which("mkfs.ext4") is None:
        pytest.skip("needs root and mkfs.ext4")
    image, folder = tmp_path / "disk", tmp_path / "mnt"
    folder.mkdir()
    with image.open("wb") as file:
        file.truncate(96 << 20)
    subprocess.run(["mkfs.ext4", "-q", "-F", str(image)], check=True)
    path = folder / "kv.db"
    acknowledged: list[bytes] = []
    with mounted(image, folder):
        # The folder and the file are there before: the cut is about transactions.
        engine = SqliteEngine(path)
        await engine.transact(lambda txn: txn.add(b"count", 0))
        await engine.close()
        with subprocess.Popen(
            [sys.executable, "-c", WRITER, str(path), synchronous],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        ) as writer:
            assert writer.stdout is not None
            for line in writer.stdout:
                lane, _, number = line.partition(" ")
                acknowledged.append(b"%02d-%06d" % (int(lane), int(number)))
                if len(acknowledged) == acknowledged_count:
                    cut(folder)
                    writer.kill()
    assert len(acknowledged) >= acknowledged_count
    with mounted(image, folder):
        engine = SqliteEngine(path)
        rows = dict(await engine.read(lambda txn: txn.scan(b"", b"\xff")))
        await engine.close()
    return acknowledged, rows


def cut(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.ioctl(descriptor, FS_IOC_SHUTDOWN, WITHOUT_FLUSH)
    except OSError as error:
        pytest.skip(f"this file system cannot be shut down: {error}")
    finally:
        os.close(descriptor)
