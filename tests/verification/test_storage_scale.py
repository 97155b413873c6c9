"""A device with five million small chunks: how long it takes to open, how much memory it holds.

Measured in a process of its own, which has done nothing else: once after a clean end, once after a
kill that leaves a tail to replay.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from exastore.storage.chunk_store import ChunkStore
from exastore.storage.crc import crc32c
from exastore.storage.disk import PosixDisk
from exastore.storage.errors import StorageError
from exastore.storage.record import ChunkKey

#: Writing takes minutes, and on a busy machine many.
pytestmark = [pytest.mark.verify, pytest.mark.timeout(3000)]

CHUNKS = int(os.environ.get("EXASTORE_VERIFY_CHUNKS", "5000000"))
PGS = 300
OPEN = """
import json, resource, sys, time
from pathlib import Path
from exastore.storage.chunk_store import ChunkStore
from exastore.storage.disk import PosixDisk

def memory():
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(l for l in lines if l.startswith("VmRSS")).split()[1])

before = memory()
start = time.perf_counter()
store = ChunkStore.open(PosixDisk(Path(sys.argv[1])))
seconds = time.perf_counter() - start
opened = memory()
chunk = store.of_pg(7)[3][0]
store.read(chunk)
for pg in range(0, 300, 10):
    store.of_pg(pg)
print(json.dumps({"seconds": seconds, "opened": opened - before, "used": memory() - before,
                  "count": store.chunk_count, "replayed": store.recovery.record_count}), flush=True)
if sys.argv[2] == "close":
    store.close()
else:
    import os
    from exastore.storage.crc import crc32c
    from exastore.storage.record import ChunkKey
    for number in range(60_000):
        key = ChunkKey(number % 300, b"late" + number.to_bytes(12, "big"), 0)
        store.append(key, 0, "rs-4-2", bytes(64), crc32c(bytes(64)), lambda error: None)
    store.settle()
    os._exit(0)
"""


def opened(path: Path, end: str) -> dict[str, float]:
    result = subprocess.run(
        [sys.executable, "-c", OPEN, str(path), end], capture_output=True, text=True, check=True
    )
    figures: dict[str, float] = json.loads(result.stdout)
    return figures


def test_a_device_of_five_million_chunks_opens_in_two_seconds(tmp_path: Path) -> None:
    def done(error: StorageError | None) -> None:
        assert error is None

    data = bytes(64)
    store = ChunkStore.open(PosixDisk(tmp_path))
    for number in range(CHUNKS):
        # Stripe ids grow with time, as those of the gateway do.
        key = ChunkKey(number * 7 % PGS, number.to_bytes(16, "big"), number % 6)
        store.append(key, 0, "rs-4-2", data, crc32c(data), done)
    store.close()
    index_bytes = (tmp_path / "index" / "chunks.sqlite").stat().st_size
    clean = opened(tmp_path, "close")
    opened(tmp_path, "kill")
    killed = opened(tmp_path, "close")
    print(f"\n{CHUNKS:,} chunks; index {index_bytes / CHUNKS:.0f} B/chunk; {clean=} {killed=}")
    assert clean["count"] == CHUNKS and clean["replayed"] == 0
    # Upkeep saves the index now and then: only what came after that is replayed.
    assert killed["count"] == CHUNKS + 60_000 and 0 < killed["replayed"] < 60_000
    for figures in (clean, killed):
        assert figures["seconds"] <= 2.0
        assert figures["used"] <= 300 * CHUNKS
