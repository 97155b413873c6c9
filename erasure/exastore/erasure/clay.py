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

from exastore.erasure.chunks import Chunks, check_chunks, check_outputs
from exastore.erasure.clay_program import Geometry, Planner, Program
from exastore.erasure.contract import VERIFY_ROUNDS, Codec
from exastore.erasure.errors import TooFewChunks, WrongAlignment, WrongReads, WrongShape
from exastore.erasure.field import Bytes
from exastore.erasure.kernels import Kernel, select_kernel
from exastore.erasure.matrix import random_checks
from exastore.erasure.plan import RepairPlan, Run

#: Programs kept per codec: one per pattern of losses, of some 100 KB each.
PROGRAMS_KEPT: Final = 256


class ClayCode(Codec):
    """A coupled-layer MSR code with d = k + m - 1; see `clay_program` for the construction."""

    def __init__(self, name: str, k: int, m: int, kernel: Kernel | None = None) -> None:
        """Users call `exastore.erasure.codec(name)` instead. m is 2 or more."""
        self._geometry: Final = Geometry(k, m)
        chosen = kernel or select_kernel()
        super().__init__(name, k=k, m=m, kernel=chosen, sub_chunk_count=self._geometry.plane_count)
        self._planner: Final = Planner(self._geometry, chosen)
        self._decoding = lru_cache(maxsize=PROGRAMS_KEPT)(self._planner.decoding)
        self._repairing = lru_cache(maxsize=PROGRAMS_KEPT)(self._planner.repair)
        #: Workspaces not in use; a list, as its pop and append are atomic.
        self._pool: list[Bytes] = []

    def encode(self, data: Bytes | Sequence[Bytes]) -> Bytes:
        """See `Codec.encode`."""
        inputs = self._check(data, self.k, "data")
        parity = np.empty((self.m, inputs.chunk_bytes), dtype=np.uint8)
        self._make(dict(enumerate(inputs.arrays)), range(self.k, self.n), list(parity))
        return parity

    def encode_into(
        self,
        data_chunks: Bytes | Sequence[Bytes],
        parity_chunks: Bytes | Sequence[Bytes],
        *,
        threads: int = 1,
    ) -> None:
        """See `Codec.encode_into`. One thread does it all."""
        inputs = self._check(data_chunks, self.k, "data")
        outputs = check_chunks(parity_chunks, self.m, "parity")
        check_outputs(inputs, outputs, "parity")
        self._make(dict(enumerate(inputs.arrays)), range(self.k, self.n), outputs.arrays)

    def decode(
        self, chunks: Mapping[int, Bytes], want: Iterable[int] | None = None
    ) -> dict[int, Bytes]:
        """See `Codec.decode`. If all lost chunks are in one column, few sub-chunks are used."""
        wanted = range(self.k) if want is None else self._checked(want)
        missing = [index for index in wanted if index not in chunks]
        given, chunk_bytes = self._given(chunks, needed=bool(missing))
        rebuilt = np.empty((len(missing), chunk_bytes), dtype=np.uint8)
        if missing:
            self._make(given, missing, list(rebuilt))
        made = dict(zip(missing, rebuilt, strict=True))
        return {index: made[index] if index in made else chunks[index] for index in wanted}

    def decode_into(
        self, chunks: Mapping[int, Bytes], out: Mapping[int, Bytes], *, threads: int = 1
    ) -> None:
        """See `Codec.decode_into`. One thread does it all."""
        wanted = self._checked(out)
        if not wanted:
            return
        if not chunks.keys().isdisjoint(wanted):
            raise WrongShape("a chunk to rebuild is also given")
        given, _ = self._given(chunks, needed=True)
        inputs = check_chunks(list(given.values()), len(given), "given")
        outputs = check_chunks([out[index] for index in wanted], len(wanted), "wanted")
        check_outputs(inputs, outputs, "wanted")
        self._make(given, wanted, outputs.arrays)

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
        given = dict(zip(plan.reads, parts.arrays, strict=True))
        self._repair_column(plan.lost, plan.lost, given, list(rebuilt))
        return dict(zip(plan.lost, rebuilt, strict=True))

    def update_parity(
        self, index: int, old: Bytes, new: Bytes, parity: Bytes | Sequence[Bytes]
    ) -> None:
        """See `Codec.update_parity`. Costs as much as encoding a stripe."""
        data_index = self._check_data_index(index)
        change = self._check([old, new], 2, "changed")
        outputs = check_chunks(parity, self.m, "parity")
        check_outputs(change, outputs, "parity")
        data = [np.zeros_like(old)] * self.k
        data[data_index] = old ^ new
        for target, difference in zip(outputs.arrays, self.encode(data), strict=True):
            target ^= difference

    def verify(
        self, chunks: Bytes | Sequence[Bytes], seed: int, rounds: int = VERIFY_ROUNDS
    ) -> bool:
        """See `Codec.verify`."""
        inputs = self._check(chunks, self.n, "given")
        check_count = min(rounds, self.m)
        if check_count <= 0 or not inputs.chunk_bytes:
            return True
        rng = np.random.Generator(np.random.Philox(seed))
        checks = random_checks(self._geometry.inner_check, check_count, rng)
        pieces = self._planner.checking(checks).run(
            self._by_node(dict(enumerate(inputs.arrays))), self._pool
        )
        # Rows are whole words; what is beyond the bytes of a piece is cut off only where need be.
        return not any(
            (sums.view(np.uint64) if sums.shape[2] % 8 == 0 else sums).any() for _, sums in pieces
        )

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

    def _by_node(self, chunks: Mapping[int, Bytes]) -> dict[int, Bytes]:
        return {self._geometry.node(index): chunk for index, chunk in chunks.items()}

    def _make(
        self, given: Mapping[int, Bytes], want: Sequence[int], outputs: Sequence[Bytes]
    ) -> None:
        """Make the chunks `want` of those given, the checks done."""
        lost = tuple([index for index in range(self.n) if index not in given])
        y = self._geometry.column_of(lost)
        if y is not None and len(lost) < self.m:
            plan = self.repair_plan(lost)
            if not plan.reads_whole_chunks:
                parts = {index: plan.take(index, given[index]) for index in plan.reads}
                self._repair_column(lost, want, parts, outputs)
                return
        self._execute(self._decoding(lost, tuple(want)), given, outputs)

    def _repair_column(
        self,
        lost: tuple[int, ...],
        want: Sequence[int],
        parts: Mapping[int, Bytes],
        outputs: Sequence[Bytes],
    ) -> None:
        y = self._geometry.column_of(lost)
        assert y is not None
        self._execute(self._repairing(lost, tuple(want), y), parts, outputs)

    def _execute(
        self, program: Program, given: Mapping[int, Bytes], outputs: Sequence[Bytes]
    ) -> None:
        if not outputs or not outputs[0].size:
            return
        targets = [output.reshape(self.sub_chunk_count, -1) for output in outputs]
        for piece, results in program.run(self._by_node(given), self._pool):
            for target, result in zip(targets, results, strict=True):
                target[:, piece] = result


def _runs(positions: Iterable[int]) -> tuple[Run, ...]:
    """Ascending positions as (first, count)."""
    runs: list[Run] = []
    for position in positions:
        if runs and sum(runs[-1]) == position:
            runs[-1] = (runs[-1][0], runs[-1][1] + 1)
        else:
            runs.append((position, 1))
    return tuple(runs)
