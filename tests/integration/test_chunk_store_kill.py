"""kill -9 of a process that writes: everything it acknowledged is there afterwards."""

import contextlib
import os
import signal
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from exastore.storage.chunk_store import ChunkStore
from exastore.storage.crc import crc32c
from exastore.storage.disk import PosixDisk
from exastore.storage.log import StoreOptions
from exastore.storage.record import ChunkKey

pytestmark = pytest.mark.integration

OPTIONS = StoreOptions(segment_bytes=4 << 20, allocate_bytes=1 << 20)

WRITER = """
import os
import sys
from pathlib import Path
import numpy as np
from exastore.storage.chunk_store import ChunkStore
from exastore.storage.crc import crc32c
from exastore.storage.disk import PosixDisk
from exastore.storage.log import StoreOptions
from exastore.storage.record import ChunkKey

path, first = Path(sys.argv[1]), int(sys.argv[2])
options = StoreOptions(segment_bytes=4 << 20, allocate_bytes=1 << 20)
store = ChunkStore.open(PosixDisk(path), options)
generator = np.random.default_rng(first)
number = first
while True:
    data = generator.bytes(int(generator.choice([64, 4096, 70_000, 300_000])))
    crc = crc32c(data)
    line = f"{number} {crc} {len(data)}\\n".encode()

    def done(error, line=line):
        assert error is None, error
        os.write(1, line)  # the flusher's thread: at once, after the fsync

    store.append(ChunkKey(1, number.to_bytes(16, "big"), 0), 0, "rs-4-2", data, crc, done)
    number += 1
    if number % 7 == 0:
        os.write(1, f"{number - 3} deleting 0\\n".encode())
        store.delete([ChunkKey(1, (number - 3).to_bytes(16, "big"), 0)])
        os.write(1, f"{number - 3} deleted 0\\n".encode())
"""


@dataclass
class Told:
    """What the writers said before they were killed."""

    #: Number -> checksum and size.
    written: dict[int, tuple[int, int]] = field(default_factory=dict[int, tuple[int, int]])
    #: A delete began; if it is not in `deleted`, it may have happened or not.
    deleting: set[int] = field(default_factory=set[int])
    deleted: set[int] = field(default_factory=set[int])

    def hear(self, line: bytes) -> None:
        number, what, size = line.split()
        if what == b"deleting":
            self.deleting.add(int(number))
        elif what == b"deleted":
            self.deleted.add(int(number))
        else:
            self.written[int(number)] = (int(what), int(size))


def write_until_killed(path: Path, first: int, answer_count: int, told: Told) -> None:
    writer = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(path), str(first)], stdout=subprocess.PIPE
    )
    assert writer.stdout is not None
    with writer, contextlib.ExitStack() as at_end:
        at_end.callback(writer.kill)
        for count, line in enumerate(writer.stdout, 1):
            if count == answer_count:
                os.kill(writer.pid, signal.SIGKILL)
            if line.endswith(b"\n"):
                told.hear(line)
    assert writer.returncode == -signal.SIGKILL


def test_what_a_killed_process_acknowledged_is_intact(tmp_path: Path) -> None:
    told = Told()
    for round_number, answer_count in enumerate([1, 5, 40, 150, 77]):
        write_until_killed(tmp_path, round_number * 1_000_000, answer_count, told)
        store = ChunkStore.open(PosixDisk(tmp_path), OPTIONS)
        assert store.recovery.damage == ()
        for number, (crc, size) in told.written.items():
            key = ChunkKey(1, number.to_bytes(16, "big"), 0)
            if number in told.deleted:
                assert store.get(key) is None
            elif number not in told.deleting or store.get(key) is not None:
                chunk = store.read(key)
                assert (chunk.crc32c, len(chunk.data)) == (crc, size)
                assert crc32c(chunk.data) == crc
        # What was written and not acknowledged may be there, but never in pieces.
        for key, _ in store.of_pg(1):
            store.read(key)
        store.validate()
        if round_number % 2:
            store.close()
        else:
            abandon(store)  # the next process finds the log as the kill left it
    assert len(told.written) >= 150


def abandon(store: ChunkStore) -> None:
    """Release the device without ending the log cleanly."""
    store._log.seal = lambda: None  # type: ignore[method-assign]
    store.close()
