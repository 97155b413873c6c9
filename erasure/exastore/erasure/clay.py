"""Clay codes: MDS like Reed-Solomon, but a lost chunk is rebuilt from a fraction of the others.

`clay-k-m-d` rebuilds a chunk from d = k + m - 1 others, reading 1/m of each: d/m chunks instead of
k, the least that is possible [Vajha et al., USENIX FAST 2018]. The price: chunks consist of
m^ceil((k + m) / m) sub-chunks, so their length must be a multiple of that (`alignment_bytes`), and
the bytes that a repair reads are scattered: up to that many runs, unless sub-chunks are large.
"""

from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Final

import numpy as np

from exastore.erasure import contract
from exastore.erasure.chunks import Chunks, check_chunks, check_outputs
from exastore.erasure.clay_program import Geometry, Planner, Work
from exastore.erasure.contract import VERIFY_ROUNDS, Codec
from exastore.erasure.errors import TooFewChunks, WrongAlignment, WrongReads, WrongShape
from exastore.erasure.field import Bytes
from exastore.erasure.kernels import Kernel, select_kernel
from exastore.erasure.matrix import random_checks
from exastore.erasure.plan import RepairPlan, Run
from exastore.erasure.steps import BLOCK_BYTES, Buffer

#: Work kept per codec: one per pattern of losses, of some 50 KB each.
WORK_KEPT: Final = 256
#: The workspace of a call at most, for what is made on the way: it stays in the cache.
WORKSPACE_BYTES: Final = 1024 * 1024
#: Threads share a call, and workspaces are cut, in whole cache lines.
LINE_BYTES: Final = 64

_ZEROS: Final = np.zeros((1, BLOCK_BYTES), dtype=np.uint8)
_ZEROS.flags.writeable = False


class ClayCode(Codec):
    """A coupled-layer MSR code with d = k + m - 1; see `clay_program` for the construction."""

    def __init__(self, name: str, k: int, m: int, kernel: Kernel | None = None) -> None:
        """Users call `exastore.erasure.codec(name)` instead. m is 2 or more."""
        self._geometry: Final = Geometry(k, m)
        chosen = kernel or select_kernel()
        super().__init__(name, k=k, m=m, kernel=chosen, sub_chunk_count=self._geometry.plane_count)
        self._planner: Final = Planner(self._geometry, chosen)
        self._decoding = lru_cache(maxsize=WORK_KEPT)(self._planner.decoding)
        self._repairing = lru_cache(maxsize=WORK_KEPT)(self._make_repairing)
        self._updating = lru_cache(maxsize=k)(self._planner.updating)

    def encode(self, data: Bytes | Sequence[Bytes]) -> Bytes:
        """See `Codec.encode`."""
        inputs = self._check(data, self.k, "data")
        parity = np.empty((self.m, inputs.chunk_bytes), dtype=np.uint8)
        made = dict(zip(range(self.k, self.n), parity, strict=True))
        self._make(dict(enumerate(inputs.arrays)), made)
        return parity

    def encode_into(
        self,
        data_chunks: Bytes | Sequence[Bytes],
        parity_chunks: Bytes | Sequence[Bytes],
        *,
        threads: int = 1,
    ) -> None:
        """See `Codec.encode_into`."""
        inputs = self._check(data_chunks, self.k, "data")
        outputs = check_chunks(parity_chunks, self.m, "parity")
        check_outputs(inputs, outputs, "parity")
        made = dict(zip(range(self.k, self.n), outputs.arrays, strict=True))
        self._make(dict(enumerate(inputs.arrays)), made, threads)

    def decode(
        self, chunks: Mapping[int, Bytes], want: Iterable[int] | None = None
    ) -> dict[int, Bytes]:
        """See `Codec.decode`. If all lost chunks are in one column, few sub-chunks are used."""
        wanted = range(self.k) if want is None else self._checked(want)
        missing = [index for index in wanted if index not in chunks]
        given, chunk_bytes = self._given(chunks, needed=bool(missing))
        rebuilt = np.empty((len(missing), chunk_bytes), dtype=np.uint8)
        made = dict(zip(missing, rebuilt, strict=True))
        if missing:
            self._make(given, made)
        return {index: made[index] if index in made else chunks[index] for index in wanted}

    def decode_into(
        self, chunks: Mapping[int, Bytes], out: Mapping[int, Bytes], *, threads: int = 1
    ) -> None:
        """See `Codec.decode_into`."""
        wanted = self._checked(out)
        if not wanted:
            return
        if not chunks.keys().isdisjoint(wanted):
            raise WrongShape("a chunk to rebuild is also given")
        given, _ = self._given(chunks, needed=True)
        inputs = check_chunks(list(given.values()), len(given), "given")
        outputs = check_chunks([out[index] for index in wanted], len(wanted), "wanted")
        check_outputs(inputs, outputs, "wanted")
        self._make(given, dict(zip(wanted, outputs.arrays, strict=True)), threads)

    def decodable(self, lost: Iterable[int]) -> bool:
        """See `Codec.decodable`."""
        return len(self._checked(lost)) <= self.m

    def repair_plan(self, lost: Iterable[int]) -> RepairPlan:
        """See `Codec.repair_plan`.

        Chunks lost from one column (every single loss is one) are rebuilt from a part of all
        others, all other losses from k whole chunks.
        """
        lost_indexes = self._checked(lost)
        survivors = [index for index in range(self.n) if index not in lost_indexes]
        whole = ((0, self.sub_chunk_count),)
        if not lost_indexes:
            return RepairPlan((), {}, self.sub_chunk_count, whole)
        if len(survivors) < self.k:
            raise TooFewChunks(self.k, len(survivors))
        y = self._geometry.column_of(lost_indexes)
        if y is not None and len(lost_indexes) < min(self.m, self.k):
            share = len(lost_indexes) / self.m
            runs = _runs(self._geometry.repair_planes(lost_indexes, y).tolist())
            reads = dict.fromkeys(survivors, share)
        else:
            runs, reads = whole, dict.fromkeys(survivors[: self.k], 1.0)
        return RepairPlan(tuple(lost_indexes), reads, self.sub_chunk_count, runs)

    def repair(self, lost: Iterable[int], reads: Mapping[int, Bytes]) -> dict[int, Bytes]:
        """See `Codec.repair`."""
        plan = self.repair_plan(lost)
        self._check_reads(plan, reads)
        if not plan.lost:
            return {}
        if plan.reads_whole_chunks:
            return self.decode(reads, plan.lost)
        parts = check_chunks([reads[index] for index in plan.reads], len(plan.reads), "read")
        plane_count = sum(count for _, count in plan.runs)
        if parts.chunk_bytes % plane_count:
            raise WrongReads(
                f"the plan reads {plane_count} of {self.sub_chunk_count} sub-chunks of a chunk; "
                f"{parts.chunk_bytes} bytes were given"
            )
        chunk_bytes = parts.chunk_bytes // plane_count * self.sub_chunk_count
        rebuilt = np.empty((len(plan.lost), chunk_bytes), dtype=np.uint8)
        given = {
            index: part.reshape(plane_count, -1)
            for index, part in zip(plan.reads, parts.arrays, strict=True)
        }
        made = dict(zip(plan.lost, rebuilt, strict=True))
        self._execute(self._repairing(plan.lost, packed=True), given, made)
        return made

    def update_parity(
        self, index: int, old: Bytes, new: Bytes, parity: Bytes | Sequence[Bytes]
    ) -> None:
        """See `Codec.update_parity`."""
        data_index = self._check_data_index(index)
        change = self._check([old, new], 2, "changed")
        outputs = check_chunks(parity, self.m, "parity")
        check_outputs(change, outputs, "parity")
        made = dict(zip(range(self.k, self.n), outputs.arrays, strict=True))
        given = {data_index: self._rows(old), self.n + 1 + self.m: self._rows(new)}
        self._execute(self._updating(data_index), given, made)

    def verify(
        self, chunks: Bytes | Sequence[Bytes], seed: int, rounds: int = VERIFY_ROUNDS
    ) -> bool:
        """See `Codec.verify`."""
        inputs = self._check(chunks, self.n, "given")
        check_count = min(rounds, self.m)
        if check_count <= 0 or not inputs.chunk_bytes:
            return True
        if inputs.chunk_bytes <= contract.EXACT_CHUNK_BYTES:
            return self._is_encoded(inputs)
        rng = np.random.Generator(np.random.Philox(seed))
        work = self._planner.checking(random_checks(self._geometry.inner_check, check_count, rng))
        given = {index: self._rows(chunk) for index, chunk in enumerate(inputs.arrays)}
        # The sums of a part of every sub-chunk at a time. Zeros, as a part need not be whole words.
        size = inputs.chunk_bytes // self.sub_chunk_count
        part = min(size, _fitting_bytes(check_count * self.sub_chunk_count))
        words = np.zeros((check_count, self.sub_chunk_count, -(-part // 8)), dtype=np.uint64)
        sums = dict(enumerate(words.view(np.uint8), self.n + 1))
        buffers, _ = self._buffers(work, given | sums, {})
        for begin in range(0, size, part):
            for index, rows in sums.items():
                buffers[index] = Buffer(rows, first=begin)
            work.run(buffers, begin, min(begin + part, size))
            # All of it: beyond a last part that is short is what passed before.
            if np.bitwise_or.reduce(words.reshape(-1)):
                return False
        return True

    def warm_up(self) -> None:
        """See `Codec.warm_up`."""
        self._decoding(tuple(range(self.k, self.n)))
        for count in range(1, self.m + 1):
            # The code depends on how many are lost.
            self._planner.decoding(range(count))
        for first in {0, self.k - 1, self.k}:
            # Columns differ by their virtual nodes: none, some in the last of the data, any.
            y = self._geometry.column_of([first])
            column = [i for i in range(self.n) if self._geometry.column_of([i]) == y]
            for count in range(1, min(self.m, self.k, len(column) + 1)):
                self._repairing(tuple(column[:count]), packed=True)
        self._updating(0)
        self._planner.checking(np.ones((1, self._geometry.node_count), dtype=np.uint8))

    def _check(self, source: Bytes | Sequence[Bytes], count: int, what: str) -> Chunks:
        chunks = check_chunks(source, count, what)
        if chunks.chunk_bytes % self.alignment_bytes:
            raise WrongAlignment(chunks.chunk_bytes, self.alignment_bytes)
        return chunks

    def _given(self, chunks: Mapping[int, Bytes], *, needed: bool) -> tuple[dict[int, Bytes], int]:
        have = self._checked(chunks)
        if needed and len(have) < self.k:
            raise TooFewChunks(self.k, len(have))
        inputs = self._check([chunks[index] for index in have], len(have), "given")
        return dict(zip(have, inputs.arrays, strict=True)), inputs.chunk_bytes

    def _rows(self, chunk: Bytes) -> Bytes:
        return chunk.reshape(self.sub_chunk_count, -1)

    def _make(
        self, given: Mapping[int, Bytes], made: Mapping[int, Bytes], threads: int = 1
    ) -> None:
        """Make chunks of those given, the checks done."""
        lost = tuple([index for index in range(self.n) if index not in given])
        y = self._geometry.column_of(lost)
        if y is not None and len(lost) < min(self.m, self.k):
            work = self._repairing(lost, packed=False)
        else:
            work = self._decoding(lost)
        self._execute(
            work, {index: self._rows(chunk) for index, chunk in given.items()}, made, threads
        )

    def _make_repairing(self, lost: tuple[int, ...], *, packed: bool) -> Work:
        y = self._geometry.column_of(lost)
        assert y is not None
        return self._planner.repair(lost, y, packed=packed)

    def _execute(
        self,
        work: Work,
        given: Mapping[int, Bytes],
        made: Mapping[int, Bytes],
        threads: int = 1,
    ) -> None:
        """Do the work from rows of sub-chunks to chunks."""
        end = next(iter(given.values())).shape[1]
        part = -(-end // threads)
        part += -part % LINE_BYTES

        def run(begin: int) -> None:
            buffers, _ = self._buffers(work, given, made)
            work.run(buffers, begin, min(begin + part, end))

        if part >= end:
            run(0)
            return
        # Imported here because most calls use one thread.
        from concurrent.futures import ThreadPoolExecutor

        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(run, range(0, end, part)))

    def _buffers(
        self, work: Work, given: Mapping[int, Bytes], made: Mapping[int, Bytes]
    ) -> tuple[list[Buffer], Bytes]:
        """What `clay_program.Layout` says, and the memory of the workspaces.

        Chunks that the work makes but nobody wants are in a workspace, too. Shape of the memory:
        [workspaces, planes, bytes of a block].
        """
        indexes = range(self.n + 1 + work.workspace_count)
        spaces = [
            index
            for index in indexes
            if (index in work.makes or index > self.n) and index not in made and index not in given
        ]
        needed = -(-next(iter(given.values())).shape[1] // LINE_BYTES) * LINE_BYTES
        fitting = _fitting_bytes(len(spaces) * self.sub_chunk_count)
        block = min(max(needed, LINE_BYTES), fitting, BLOCK_BYTES)
        memory = np.zeros((len(spaces), self.sub_chunk_count, block), dtype=np.uint8)
        buffers = [Buffer(_ZEROS, is_whole=False)] * len(indexes)
        for index, chunk in made.items():
            buffers[index] = Buffer(self._rows(chunk))
        for index, rows in given.items():
            buffers[index] = Buffer(rows)
        for index, rows in zip(spaces, memory, strict=True):
            buffers[index] = Buffer(rows, is_whole=False)
        return buffers, memory


def _fitting_bytes(row_count: int) -> int:
    """The length of so many rows of a workspace: some cache lines."""
    return max(WORKSPACE_BYTES // max(row_count, 1) // LINE_BYTES, 1) * LINE_BYTES


def _runs(positions: Iterable[int]) -> tuple[Run, ...]:
    """Ascending positions as (first, count)."""
    runs: list[Run] = []
    for position in positions:
        if runs and sum(runs[-1]) == position:
            runs[-1] = (runs[-1][0], runs[-1][1] + 1)
        else:
            runs.append((position, 1))
    return tuple(runs)
