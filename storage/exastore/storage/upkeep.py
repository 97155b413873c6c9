"""The upkeep of a device: a thread that writes the index file and compacts segments."""

import logging
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

from exastore.storage.compaction import Compacted, choose_segment, compact
from exastore.storage.errors import (
    DeviceClosed,
    DeviceFenced,
    IndexFull,
    NoSpace,
    StorageError,
)
from exastore.storage.log import StoreOptions

if TYPE_CHECKING:
    from exastore.storage.chunk_store import ChunkStore

_log = logging.getLogger(__name__)
#: Between two looks for something to do.
_REST_S = 1.0
#: After a failure that may pass, such as a full disk.
_RETRY_S = 5.0


class Upkeep:
    """Runs while the store is open; `stop` returns when it has ended."""

    def __init__(
        self, store: "ChunkStore", options: StoreOptions, monotonic_s: Callable[[], float]
    ) -> None:
        self._store = store
        self._options = options
        self._monotonic_s = monotonic_s
        self._wake = threading.Condition()
        self._poked = True
        self._stopping = False
        #: When compaction may read on; see `_pace`.
        self._paid_s = 0.0
        #: Segments with a rotten live chunk -> their live bytes then; tried again when less.
        self._blocked: dict[int, int] = {}
        self._thread = threading.Thread(
            target=self._run, name="upkeep-" + store.path.rsplit("/", 1)[-1], daemon=True
        )

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        with self._wake:
            self._stopping = True
            self._wake.notify_all()
        self._thread.join()

    def poke(self) -> None:
        """There may be something to do."""
        with self._wake:
            self._poked = True
            self._wake.notify_all()

    def _run(self) -> None:
        while True:
            with self._wake:
                while not self._poked and not self._stopping:
                    self._wake.wait()
                if self._stopping:
                    return
                self._poked = False
            try:
                while self.step():
                    pass
                self._rest(_REST_S)
            except (DeviceClosed, DeviceFenced):
                return
            except (NoSpace, IndexFull) as error:
                _log.warning("upkeep of %s waits: %s", self._store.path, error)
                self._retry()
            except (StorageError, OSError):
                _log.exception("upkeep of %s failed", self._store.path)
                self._retry()

    def _retry(self) -> None:
        self._rest(_RETRY_S)
        self._poked = True

    def _rest(self, seconds: float) -> None:
        with self._wake:
            self._wake.wait_for(lambda: self._stopping, timeout=seconds)

    def step(self) -> bool:
        """Do one thing; False if there was nothing to do.

        Raises:
            DeviceClosed: the store is being closed.
            DeviceFenced, NoSpace, IndexFull, DeviceReadFailed, OSError.
        """
        if self._store.unsaved_count >= self._options.checkpoint_chunks:
            self._store.checkpoint()
            return True
        return self.compact_one() is not None

    def compact_one(self) -> Compacted | None:
        """Compact the segment that is worth it most, if one is."""
        segments = self._store.segments()
        self._blocked = {
            segment: live
            for segment, live in self._blocked.items()
            if segment in segments and segments[segment].live_bytes >= live
        }
        segment = choose_segment(segments, self._options.compact_garbage, self._blocked)
        if segment is None:
            return None
        compacted = compact(self._store, segment, self._pace)
        if not compacted.removed:
            self._blocked[segment] = self._store.segments()[segment].live_bytes
            _log.error(
                "segment %d of %s holds rotten live chunks; it stays until they are rebuilt",
                segment, self._store.path,
            )  # fmt: skip
        self._store.tell_compacted(compacted)
        return compacted

    def _pace(self, read_bytes: int) -> None:
        """Let on average `compact_bytes_per_s` pass. Raises DeviceClosed when it is time to end."""
        limit = self._options.compact_bytes_per_s
        if limit == 0:
            return self._check_stopping()
        now_s = self._monotonic_s()
        self._paid_s = max(self._paid_s, now_s - 0.1) + read_bytes / limit
        if self._paid_s <= now_s:
            return self._check_stopping()
        with self._wake:
            self._wake.wait_for(lambda: self._stopping, timeout=self._paid_s - now_s)
        return self._check_stopping()

    def _check_stopping(self) -> None:
        if self._stopping:
            raise DeviceClosed("the store is being closed")
