"""The audit log: one JSON line per administrative act and per move of data between regions.

    {"time": "2026-11-24T12:30:00.123Z", "actor": "administrator", "action": "CreateUser",
     "target": "alice", "tenant": "acme"}

A line is written and fsynced after its act was committed and before the act is answered, so what
was answered is in the log. The file is only ever appended to; rename it to rotate it, and the next
line opens a new one. Every metadata server writes a file of its own.
"""

import asyncio
import json
import os
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

from exastore.metadata.core.clock import Clock
from exastore.metadata.service.errors import AuditFailed


class AuditLog:
    """Appends to one file.

    Args:
        path: The file; empty: nothing is written.
    """

    def __init__(self, path: str, clock: Clock) -> None:
        self._path = Path(path) if path else None
        self._clock = clock
        self._writing = asyncio.Lock()

    async def record(
        self, actor: str, action: str, target: str, details: Mapping[str, str] | None = None
    ) -> None:
        """Write a line, durably. Raises AuditFailed."""
        if self._path is None:
            return
        when = datetime.fromtimestamp(self._clock.now_s(), UTC)
        line = {
            "time": f"{when:%Y-%m-%dT%H:%M:%S}.{when.microsecond // 1000:03d}Z",
            "actor": actor or "administrator",
            "action": action,
            "target": target,
            **{name: text for name, text in (details or {}).items() if text},
        }
        async with self._writing:
            try:
                await asyncio.to_thread(_append, self._path, json.dumps(line) + "\n")
            except OSError as error:
                raise AuditFailed(f"the audit log {self._path} takes nothing: {error}") from error


def _append(path: Path, line: str) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        os.write(descriptor, line.encode())
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
