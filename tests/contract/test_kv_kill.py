"""SIGKILL during commits: whatever the SQLite engine acknowledged is there afterwards."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from exastore.metadata.kv.contract import counter_value
from exastore.metadata.kv.sqlite import SqliteEngine

WRITER = """
import asyncio, sys
from pathlib import Path
from exastore.metadata.kv.sqlite import SqliteEngine

async def write(engine, lane):
    number = 0
    while True:
        def fn(txn):
            txn.put(b"%02d-%06d" % (lane, number), b"v" * 500)
            txn.put(b"twin-%02d-%06d" % (lane, number), b"v" * 500)
            txn.add(b"count", 1)
        await engine.transact(fn)
        sys.stdout.write(f"{lane} {number}\\n")
        sys.stdout.flush()
        number += 1

async def main():
    engine = SqliteEngine(Path(sys.argv[1]))
    await asyncio.gather(*(write(engine, lane) for lane in range(8)))

asyncio.run(main())
"""


@pytest.mark.parametrize("acknowledged_count", [1, 50, 700])
async def test_acknowledged_transactions_survive_kill_9(
    tmp_path: Path, acknowledged_count: int
) -> None:
    path = tmp_path / "kv.db"
    acknowledged: list[tuple[int, int]] = []
    with subprocess.Popen(
        [sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE, text=True
    ) as writer:
        assert writer.stdout is not None
        for line in writer.stdout:
            if not line.endswith("\n"):
                break
            lane, number = line.split()
            acknowledged.append((int(lane), int(number)))
            if len(acknowledged) == acknowledged_count:
                os.kill(writer.pid, signal.SIGKILL)
    assert writer.returncode == -signal.SIGKILL
    engine = SqliteEngine(path)
    rows = dict(await engine.read(lambda txn: txn.scan(b"", b"\xff")))
    await engine.close()
    count = counter_value(rows.pop(b"count"))
    for lane_index, step in acknowledged:
        assert b"%02d-%06d" % (lane_index, step) in rows
    # Transactions are whole: twins come together, and the counter counted each once.
    singles = {key for key in rows if not key.startswith(b"twin-")}
    assert {key.removeprefix(b"twin-") for key in rows if key.startswith(b"twin-")} == singles
    assert count == len(singles) >= len(acknowledged)
