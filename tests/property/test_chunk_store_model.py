"""The chunk store against a dictionary, through restarts and power cuts."""

import errno

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    MultipleResults,
    RuleBasedStateMachine,
    initialize,
    invariant,
    multiple,
    precondition,
    rule,
)
from tests.support.fake_disk import FakeDisk

from exastore.storage.chunk_store import ChunkStore
from exastore.storage.compaction import compact
from exastore.storage.crc import crc32c
from exastore.storage.errors import ChunkConflict, ChunkNotFound, DeviceFenced
from exastore.storage.identity import lift_fence
from exastore.storage.log import StoreOptions
from exastore.storage.record import BLOCK_BYTES, ChunkKey

# Tiny segments, so that every run seals some.
# Upkeep happens when a rule says so.
OPTIONS = StoreOptions(
    segment_bytes=150_000, allocate_bytes=30_000, reserve_bytes=1, compact_garbage=2.0
)
SIZES = st.sampled_from([0, 1, 63, 512, 4096, BLOCK_BYTES - 1, BLOCK_BYTES, BLOCK_BYTES + 1])


def chunk_data(seed: int, size: int) -> bytes:
    return np.random.default_rng(seed).bytes(size)


class StoreMachine(RuleBasedStateMachine):
    """`model` is what must be there; `maybe` what a power cut may or may not have kept."""

    keys: Bundle[ChunkKey] = Bundle("keys")

    def __init__(self) -> None:
        super().__init__()
        self.disk = FakeDisk()
        self.model: dict[ChunkKey, bytes] = {}
        self.store = self.open()

    def open(self) -> ChunkStore:
        self.disk.locked = False
        return ChunkStore.open(self.disk, OPTIONS, new_uuid=lambda: b"u" * 16)

    @initialize(target=keys)
    def first_keys(self) -> MultipleResults[ChunkKey]:
        return multiple(*(ChunkKey(pg, bytes([pg]) * 16, pg) for pg in range(3)))

    @rule(target=keys, pg=st.integers(0, 3), number=st.integers(0, 20), index=st.integers(0, 2))
    def new_key(self, pg: int, number: int, index: int) -> ChunkKey:
        return ChunkKey(pg, number.to_bytes(16, "big"), index)

    @rule(key=keys, seed=st.integers(0, 3), size=SIZES)
    def write(self, key: ChunkKey, seed: int, size: int) -> None:
        data = chunk_data(seed, size)
        known = self.model.get(key)
        if known is not None and known != data:
            with pytest.raises(ChunkConflict):
                self.store.write(key, 0, "rs-4-2", data, crc32c(data))
            return
        self.store.write(key, 0, "rs-4-2", data, crc32c(data))
        self.model[key] = data

    @rule(key=keys)
    def delete(self, key: ChunkKey) -> None:
        assert self.store.delete([key]) == (1 if self.model.pop(key, None) is not None else 0)

    @rule(key=keys)
    def read(self, key: ChunkKey) -> None:
        if key in self.model:
            assert self.store.read(key).data == self.model[key]
        else:
            with pytest.raises(ChunkNotFound):
                self.store.read(key)

    @rule()
    def restart(self) -> None:
        self.store.close()
        self.store = self.open()
        assert self.store.recovery.torn == ()

    @rule()
    def bring_the_index_file_up_to_date(self) -> None:
        self.store.checkpoint()

    @rule(fraction=st.floats(0, 1))
    def compact(self, fraction: float) -> None:
        """Any sealed segment, however little it would give."""
        sealed = list(self.store.segments())[:-1]
        if sealed:
            segment = sealed[int(fraction * (len(sealed) - 1))]
            assert compact(self.store, segment, lambda _: None).removed
            assert segment not in self.store.segments()

    @rule()
    def lose_the_index_file(self) -> None:
        self.store.close()
        self.disk.index.clear()
        self.store = self.open()

    @rule(seed=st.integers(0, 2**32 - 1))
    def power_cut(self, seed: int) -> None:
        self.disk.crash(np.random.default_rng(seed))
        self.store.close()
        self.store = self.open()

    @rule(
        seed=st.integers(0, 2**32 - 1),
        changes=st.lists(st.tuples(keys, st.integers(0, 3), SIZES), max_size=5),
    )
    def power_cut_before_the_sync(
        self, seed: int, changes: list[tuple[ChunkKey, int, int]]
    ) -> None:
        fresh = {key: chunk_data(s, size) for key, s, size in changes if key not in self.model}
        if sum(map(len, fresh.values())) > 60_000:  # sealing a segment would sync
            return
        self.disk.syncs_may_run.clear()
        answers: list[object] = []
        try:
            for key, data in fresh.items():
                if self.store.log_end.offset_bytes + len(data) > 100_000:
                    break
                self.store.append(key, 0, "rs-4-2", data, crc32c(data), answers.append)
            assert answers == []
        finally:
            self.disk.crash(np.random.default_rng(seed))
        self.store.close()
        assert all(isinstance(answer, DeviceFenced) for answer in answers)
        self.store = self.open()
        for key, data in fresh.items():
            if self.store.get(key) is not None:
                assert self.store.read(key).data == data
                self.model[key] = data

    @rule(key=keys)
    def failing_sync(self, key: ChunkKey) -> None:
        if key in self.model:
            return
        self.disk.next_sync_error = OSError(errno.EIO, "bad")
        with pytest.raises(DeviceFenced):
            self.store.write(key, 0, "rs-4-2", b"perhaps", crc32c(b"perhaps"))
        self.disk.next_sync_error = None
        self.store.close()
        self.disk.locked = False
        assert lift_fence(self.disk)
        self.store = self.open()
        if self.store.get(key) is not None:
            self.model[key] = b"perhaps"

    @precondition(lambda self: self.model)
    @invariant()
    def one_of_them_reads_well(self) -> None:
        key = next(iter(self.model))
        assert self.store.read(key).data == self.model[key]

    @invariant()
    def nothing_is_damaged_and_the_index_is_the_model(self) -> None:
        assert self.store.recovery.damage == ()
        self.store.validate()
        found = {key for pg in self.store.pgs() for key, _ in self.store.of_pg(pg)}
        assert found == set(self.model)

    def teardown(self) -> None:
        self.disk.syncs_may_run.set()
        for key, data in self.model.items():
            assert self.store.read(key).data == data
        self.store.close()


TestStore = StoreMachine.TestCase
TestStore.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
