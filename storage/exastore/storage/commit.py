"""Group commit: one fsync makes all records durable that were appended before it began.

Laws:
1. Who waits for a record is told it is durable only after an fsync that began when it was appended.
2. A record reaches the index when it is durable, in log order, never before.
3. After a failed fsync nothing is retried: the device is fenced, and all who wait are told.

Theory of operation: one thread takes all that waits, fsyncs, acknowledges; while it waits for the
disk, the next group gathers.
"""

import threading
from collections.abc import Callable

from exastore.metadata.core.phases import Phase, reach
from exastore.storage.completion import Done, PendingRecord
from exastore.storage.errors import DeviceFenced, StorageError
from exastore.storage.fence import Fence
from exastore.storage.index import ChunkIndex
from exastore.storage.index_file import Entry
from exastore.storage.log import SegmentLog
from exastore.storage.observer import StoreObserver, tell_synced
from exastore.storage.record import ChunkKey, Position


class GroupCommit:
    """Of one device. Thread-safe; `start` before the first record, `close` after the last one.

    Args:
        log: Records are appended to it by the caller, who then says so with `add`.
        index: Learns of what is durable.
        fence: Is closed when an fsync fails.
        state: Guards the index and everything in here; held only for moments.
        observer: Hears of each fsync.
        monotonic_s: Measures them.
        on_durable: Called after each group, with whether something died; on the thread.
    """

    def __init__(
        self,
        log: SegmentLog,
        index: ChunkIndex,
        fence: Fence,
        state: threading.Condition,
        observer: StoreObserver,
        *,
        monotonic_s: Callable[[], float],
        on_durable: Callable[[bool], None],
    ) -> None:
        self._log = log
        self._index = index
        self._fence = fence
        self._state = state
        self._observer = observer
        self._monotonic_s = monotonic_s
        self._on_durable = on_durable
        #: Appended, in log order, not yet fsynced.
        self._pending: list[PendingRecord] = []
        #: What is being made durable; no longer in `_pending`.
        self._flushing: list[PendingRecord] = []
        #: The last pending record of each key.
        self._in_flight: dict[ChunkKey, PendingRecord] = {}
        #: End of the log as of the last record in `_pending`.
        self._written = Position(0, 0)
        #: The index, which knows the durable chunks, speaks of all records before this place.
        self.indexed = log.position
        self._closing = False
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self, name: str) -> None:
        self._thread.name = name
        self._thread.start()

    def add(self, record: PendingRecord) -> None:
        """The record is the last of the log."""
        with self._state:
            self._pending.append(record)
            if record.news:
                self._in_flight[record.key] = record
            self._written = self._log.position
            self._state.notify_all()

    def latest(self, key: ChunkKey) -> Entry | None:
        """The newest record of a chunk, durable or not; None: there is no such chunk."""
        with self._state:
            pending = self._in_flight.get(key)
            return pending.entry if pending else self._index.get(key)

    def join(self, key: ChunkKey, done: Done) -> None:
        """Tell `done` with the write of the same bytes that is stored or on its way.

        Raises:
            DeviceFenced: that write failed just now.
        """
        with self._state:
            pending = self._in_flight.get(key)
            if pending is not None:
                pending.done.append(done)
                return
            reason = self._fence.reason if self._index.get(key) is None else None
        if reason is not None:
            raise DeviceFenced(reason)
        done(None)

    def settle(self) -> None:
        """Wait until all that was appended is durable and in the index, or the device fails."""
        with self._state:
            written = self._written
            self._state.wait_for(
                lambda: self.indexed >= written or self._fence.reason is not None or self._closing
            )

    def close(self) -> None:
        """Make durable what waits, and end."""
        with self._state:
            self._closing = True
            self._state.notify_all()
        self._thread.join()

    def validate(self) -> None:
        """Check the invariants; the caller holds the state."""
        waiting = {record.key for record in (*self._pending, *self._flushing)}
        assert waiting >= set(self._in_flight)

    def _run(self) -> None:
        while True:
            with self._state:
                while not self._pending and not self._closing:
                    self._state.wait()
                if not self._pending:
                    return
                batch = self._flushing = self._pending
                self._pending = []
                written, file = self._written, self._log.file_of(self._written.segment)
            error: StorageError | None = None
            started_s = self._monotonic_s()
            try:
                self._fence.check()
                reach(Phase.CHUNK_SYNCING)
                file.sync()
                reach(Phase.CHUNK_SYNCED)
            except DeviceFenced as failure:
                error = failure
            except Exception as failure:  # whatever it was, nothing is known to be durable
                self._fence.close(f"fsync failed: {failure}")
                error = DeviceFenced(str(failure))
            if error is None:
                tell_synced(self._observer, len(batch), self._monotonic_s() - started_s)
            self._finish(batch, written, error)

    def _finish(
        self, batch: list[PendingRecord], written: Position, error: StorageError | None
    ) -> None:
        dead: list[Entry | None] = []
        with self._state:
            if error is None:
                self._log.durable = self.indexed = written
            for record in batch:
                if error is None and record.news:
                    dead.append(self._index.apply(record.key, record.entry))
                if self._in_flight.get(record.key) is record:
                    del self._in_flight[record.key]
            self._flushing = []
            self._state.notify_all()
        for record in batch:
            record.tell(error)
        self._log.reclaim_all(dead)
        self._on_durable(any(dead))
