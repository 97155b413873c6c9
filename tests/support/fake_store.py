"""A store for `RemoteEngine` that is a list of versions in memory: sound, or weak in one named way.

Several engines on one store conflict as several servers do, without any process: the event loop
switches between them at every call, in an order that the seed decides.
"""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import numpy as np

from exastore.metadata.kv.errors import CommitUnknown, Conflict, Unreachable
from exastore.metadata.kv.remote import RemoteEngine, Snapshot
from exastore.metadata.kv.replay import Batch, RangeRead, Reads, SnapshotCache

#: What a weak store forgets: to compare keys that were only read, ranges, or anything; or it gives
#: readers an old version, or stores the writes of a transaction one after the other.
WEAKNESSES = ("write skew", "phantom", "lost update", "stale read", "half commit")


class FakeStore:
    """`Backend` over versions in memory.

    Args:
        seed: Of the order of events and of the faults.
        weakness: One of `WEAKNESSES`, or none.
        fault_probability: That a call fails; of a commit, that its answer is lost.
    """

    name = "fake"

    def __init__(self, seed: int, *, weakness: str = "", fault_probability: float = 0.0) -> None:
        self.rng = np.random.default_rng(seed)
        self.weakness = weakness
        self.fault_probability = fault_probability
        #: All versions of the store; the last one is the newest.
        self.versions: list[dict[bytes, bytes]] = [{}]

    def engine(self) -> RemoteEngine:
        """One more server on this store."""
        return RemoteEngine(self)

    @asynccontextmanager
    async def snapshot(self, *, read_only: bool, conflict_count: int) -> AsyncGenerator[Snapshot]:
        yield _FakeSnapshot(self, read_only)

    def new_batch(self) -> Batch:
        return Batch(read_only=False, read_count_max=20, mutation_count_max=8)

    async def close(self) -> None:
        return None

    async def pause(self) -> None:
        """Let others run, for a while that the seed decides."""
        for _ in range(int(self.rng.integers(0, 4))):
            await asyncio.sleep(0)

    def fails(self) -> bool:
        """Whether this call does."""
        return bool(self.rng.random() < self.fault_probability)


class _FakeSnapshot:
    def __init__(self, store: FakeStore, read_only: bool) -> None:
        self._store = store
        self._read_only = read_only
        self._version: dict[bytes, bytes] | None = None

    async def fetch(self, reads: Reads, cache: SnapshotCache) -> None:
        await self._store.pause()
        if self._store.fails():
            raise Unreachable("fault")
        version = self._begun()
        cache.values.update((key, version.get(key)) for key in reads.keys)
        cache.rows.update((read, _rows(version, read)) for read in reads.ranges)
        await self._store.pause()

    async def finish(self) -> None:
        await self._store.pause()

    async def commit(self, batch: Batch) -> None:
        store = self._store
        version = self._begun()
        await store.pause()
        if self._has_changed(batch, version):
            raise Conflict("fake")
        is_lost = store.fails()
        if is_lost and store.fails():
            raise CommitUnknown("it did not happen")
        newest = dict(store.versions[-1])
        for number, (key, value) in enumerate(batch.writes.items()):
            newest.pop(key, None)
            if value is not None:
                newest[key] = value
            if store.weakness == "half commit" and number == 0:
                store.versions.append(dict(newest))
                await asyncio.sleep(0)
        store.versions.append(newest)
        await store.pause()
        if is_lost:
            raise CommitUnknown("it happened")

    def _begun(self) -> dict[bytes, bytes]:
        if self._version is None:
            is_stale = self._read_only and self._store.weakness == "stale read"
            behind = min(2, len(self._store.versions)) if is_stale else 1
            self._version = self._store.versions[-behind]
        return self._version

    def _has_changed(self, batch: Batch, version: dict[bytes, bytes]) -> bool:
        newest = self._store.versions[-1]
        weakness = self._store.weakness
        keys = {"write skew": batch.writes.keys(), "lost update": set[bytes]()}.get(
            weakness, batch.read_keys
        )
        if any(newest.get(key) != version.get(key) for key in keys):
            return True
        if weakness in ("write skew", "phantom", "lost update"):
            return False
        return any(_rows(newest, read) != _rows(version, read) for read in batch.read_ranges)


def _rows(version: dict[bytes, bytes], read: RangeRead) -> list[tuple[bytes, bytes]]:
    keys = sorted((k for k in version if read.begin <= k < read.end), reverse=read.reverse)
    return [(key, b"" if read.keys_only else version[key]) for key in keys[: read.limit]]
