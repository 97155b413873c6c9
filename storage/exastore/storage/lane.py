"""The asynchronous side of a device: blocking work in threads, answers on the event loop.

Writes of all streams gather in one queue; one thread appends them, so a burst of small chunks
costs one wake-up. Reads run in a pool that the devices of a node share.
"""

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Executor
from typing import NamedTuple

from exastore.storage.chunk_store import ChunkStore
from exastore.storage.completion import Done
from exastore.storage.crc import Buffer
from exastore.storage.errors import DeviceClosed, StorageError
from exastore.storage.file_span import FileSpan
from exastore.storage.log import Purpose
from exastore.storage.reading import StoredChunk
from exastore.storage.record import ChunkKey
from exastore.storage.runs import ByteRun


class ChunkWrite(NamedTuple):
    """A chunk to be stored, with the checksum that its sender computed."""

    key: ChunkKey
    generation: int
    code: str
    data: Buffer
    crc32c: int
    purpose: Purpose = Purpose.CLIENT


class LoopMailbox:
    """Brings results from threads to the loop: one wake-up for all that gathered meanwhile."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._lock = threading.Lock()
        self._calls: list[Callable[[], None]] = []

    def post(self, call: Callable[[], None]) -> None:
        with self._lock:
            self._calls.append(call)
            first = len(self._calls) == 1
        if first:
            self._loop.call_soon_threadsafe(self._deliver)

    def _deliver(self) -> None:
        with self._lock:
            calls, self._calls = self._calls, []
        for call in calls:
            call()


class DeviceLane:
    """One device for coroutines."""

    def __init__(
        self, store: ChunkStore, executor: Executor, *, reads_on_loop: bool = False
    ) -> None:
        """Args:
        store: The device.
        executor: Where reads wait for the disk.
        reads_on_loop: Whether what is in memory is read on the event loop: less work for the
            processor than to wake a thread, but devices of one process then take turns.
        """
        self._reads_on_loop = reads_on_loop
        self.store = store
        self._executor = executor
        self._loop = asyncio.get_running_loop()
        self._mailbox = LoopMailbox(self._loop)
        self._queue: deque[tuple[ChunkWrite, Done]] = deque()
        self._wake = threading.Condition()
        self._closing = False
        self._thread = threading.Thread(
            target=self._append_loop, name="append-" + store.path.rsplit("/", 1)[-1], daemon=True
        )
        self._thread.start()

    async def write(self, write: ChunkWrite) -> None:
        """Store a chunk; returns when it is durable. Raises what `ChunkStore.append` raises."""
        future: asyncio.Future[None] = self._loop.create_future()

        def finish(error: StorageError | None) -> None:
            if future.done():  # the stream is gone
                return
            if error is None:
                future.set_result(None)
            else:
                future.set_exception(error)

        def done(error: StorageError | None) -> None:
            self._mailbox.post(lambda: finish(error))

        with self._wake:
            if self._closing:
                raise DeviceClosed("the node is stopping")
            self._queue.append((write, done))
            self._wake.notify()
        await future

    async def read(self, key: ChunkKey, runs: Sequence[ByteRun] = ()) -> StoredChunk:
        """Raises what `ChunkStore.read` raises."""
        if self._reads_on_loop:
            chunk = self.store.read_cached(key, runs)
            if chunk is not None:
                return chunk
        return await self._loop.run_in_executor(self._executor, self.store.read, key, runs)

    async def load(self, span: FileSpan) -> bool:
        """Bring a chunk into memory, unchecked; false when the file cannot be read."""
        try:
            return await self._loop.run_in_executor(self._executor, span.load)
        except OSError:
            return False  # `read` says why

    async def delete(self, keys: Iterable[ChunkKey]) -> int:
        return await self._loop.run_in_executor(self._executor, self.store.delete, list(keys))

    async def close(self) -> None:
        with self._wake:
            self._closing = True
            self._wake.notify()
        await asyncio.to_thread(self._thread.join)
        await asyncio.to_thread(self.store.close)

    def _append_loop(self) -> None:
        while True:
            with self._wake:
                while not self._queue and not self._closing:
                    self._wake.wait()
                if not self._queue:
                    return
                batch, self._queue = self._queue, deque()
            for write, done in batch:
                try:
                    self.store.append(*write[:5], done, write.purpose)
                except StorageError as error:
                    done(error)
                except Exception as error:  # a mistake of ours must not leave a caller waiting
                    done(StorageError(f"unexpected: {error!r}"))
