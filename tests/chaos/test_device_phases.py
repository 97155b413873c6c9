"""A process that dies while a device is compacted or its index is written: no chunk is lost."""

import subprocess
import sys
from pathlib import Path

import pytest

from exastore.deploy.failpoints import Action, arm, fired_by
from exastore.metadata.core.phases import Phase
from exastore.storage.chunk_store import ChunkStore
from exastore.storage.disk import PosixDisk
from exastore.storage.log import StoreOptions
from exastore.storage.record import ChunkKey

pytestmark = [pytest.mark.integration, pytest.mark.chaos]

SEGMENT_BYTES = 1 << 20
CHUNK_BYTES = 4096
#: Two of three chunks are deleted again, so that every sealed segment is worth a compaction.
WRITER = """
import os
import sys
from pathlib import Path
from exastore.deploy.failpoints import listen_if_asked
from exastore.storage.chunk_store import ChunkStore
from exastore.storage.crc import crc32c
from exastore.storage.disk import PosixDisk
from exastore.storage.log import StoreOptions
from exastore.storage.record import ChunkKey

listen_if_asked(os.environ)
options = StoreOptions(
    segment_bytes=1 << 20, allocate_bytes=1 << 18, checkpoint_chunks=256, compact_bytes_per_s=0
)
store = ChunkStore.open(PosixDisk(Path(sys.argv[1])), options)
number = 0
while True:
    data = number.to_bytes(4, "big") * 1024
    store.write(ChunkKey(1, number.to_bytes(16, "big"), 0), 0, "rs-4-2", data, crc32c(data))
    os.write(1, f"{number}\\n".encode())
    if number % 3:
        store.delete([ChunkKey(1, number.to_bytes(16, "big"), 0)])
    number += 1
"""


#: Of a device that is no part of a cluster.
UPKEEP = (Phase.COMPACT_MOVING, Phase.COMPACT_MOVED, Phase.COMPACT_REMOVED, Phase.CHECKPOINTED)


def key_of(number: int) -> ChunkKey:
    return ChunkKey(1, number.to_bytes(16, "big"), 0)


@pytest.mark.parametrize("phase", UPKEEP)
def test_a_device_survives_death_in_its_upkeep(
    tmp_path: Path, phase: Phase, monkeypatch: pytest.MonkeyPatch
) -> None:
    device, failpoints = tmp_path / "device", tmp_path / "failpoints"
    device.mkdir()
    failpoints.mkdir()
    arm(failpoints, phase, Action.KILL)
    monkeypatch.setenv("EXASTORE_FAILPOINTS", str(failpoints))
    with subprocess.Popen(
        [sys.executable, "-c", WRITER, str(device)], stdout=subprocess.PIPE
    ) as writer:
        out, _ = writer.communicate(timeout=60)
    assert writer.returncode == -9
    assert fired_by(failpoints, phase) == writer.pid

    acknowledged = [int(line) for line in out.split()]
    assert acknowledged
    options = StoreOptions(segment_bytes=SEGMENT_BYTES, compact_bytes_per_s=0)
    store = ChunkStore.open(PosixDisk(device), options)
    try:
        assert store.recovery.damage == ()
        for number in acknowledged[:-1]:
            chunk = store.get(key_of(number))
            assert (chunk is None) == bool(number % 3), number
        for number in acknowledged[::3]:
            assert store.read(key_of(number)).data == number.to_bytes(4, "big") * 1024
    finally:
        store.close()
