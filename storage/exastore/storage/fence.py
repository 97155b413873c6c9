"""Whether a device may still be written: after an error it may not, nor after a restart.

Laws:
1. The first reason stays. It is in a file on the device, which an operator removes.
2. A read that fails is counted; `READ_FAILURE_COUNT_MAX` of them fence the device, too.
"""

import logging
import threading

from exastore.storage.disk import Disk
from exastore.storage.errors import DeviceFenced
from exastore.storage.identity import fence_of, note_fence
from exastore.storage.observer import StoreObserver, tell_fenced

_log = logging.getLogger(__name__)

#: Reads that the system may fail before a device counts as broken.
READ_FAILURE_COUNT_MAX = 8


class Fence:
    """Of one device. Thread-safe.

    Args:
        state: Held while the reason changes, and notified then: who waits for writes learns of it.
    """

    def __init__(self, disk: Disk, observer: StoreObserver, state: threading.Condition) -> None:
        self._disk = disk
        self._observer = observer
        self._state = state
        self._reason = fence_of(disk)
        self._read_failure_count = 0

    @property
    def reason(self) -> str | None:
        """Why the device takes no writes; None: it does."""
        return self._reason

    def check(self) -> None:
        """Raises DeviceFenced."""
        if self._reason is not None:
            raise DeviceFenced(self._reason)

    def close(self, reason: str) -> None:
        """Let nothing be written any more."""
        with self._state:
            if self._reason is not None:
                return
            self._reason = reason
        try:
            note_fence(self._disk, reason)
        except OSError:
            _log.exception("%s is fenced, but cannot say so", self._disk.path)
        tell_fenced(self._observer, reason)

    def note_read_failure(self, error: OSError) -> None:
        """The system could not read."""
        with self._state:
            self._read_failure_count += 1
            count = self._read_failure_count
        if count >= READ_FAILURE_COUNT_MAX:
            self.close(f"{count} reads failed, the last: {error}")
