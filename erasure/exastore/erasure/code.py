"""Codes that are one matrix: encode, decode, repair and verify the n chunks of a stripe."""

from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Final

import numpy as np

from exastore.erasure import contract
from exastore.erasure.chunks import Chunks, check_chunks, check_outputs
from exastore.erasure.contract import VERIFY_ROUNDS, Codec
from exastore.erasure.errors import TooFewChunks, Undecodable, WrongShape
from exastore.erasure.field import Bytes
from exastore.erasure.kernels import Kernel, LinearMap, select_kernel
from exastore.erasure.matrix import parity_check, random_checks, solve
from exastore.erasure.plan import RepairPlan

#: Decoding matrices kept per codec: a lost device makes one per (survivors read, chunks wanted).
DECODERS_KEPT: Final = 1024
#: Pieces in which parity is updated, so that temporaries stay in cache.
BLOCK_BYTES: Final = 64 * 1024
#: Pieces of a chunk in which a stripe is verified.
VERIFY_BLOCK_BYTES: Final = 1024 * 1024


#: A decoder used so often is worth code of its own: to compile it takes as long as some hundred
#: uses with chunks of a few KiB. Losses are many, and most are met a few times.
USES_TO_SPECIALISE: Final = 32


class Decoder:
    """How to make some chunks from others. Shared by threads."""

    def __init__(self, reads: tuple[int, ...], matrix: Bytes, kernel: Kernel) -> None:
        #: The chunks that are used, ascending.
        self.reads: Final = reads
        self._matrix: Final = matrix
        self._kernel: Final = kernel
        self._map = kernel.prepare(matrix, uniform=True)
        self._uses = 0

    def map(self) -> LinearMap:
        """What makes the chunks, for one use."""
        # Threads may miss each other's uses: then it comes a little later, or twice.
        self._uses += 1
        if self._uses == USES_TO_SPECIALISE:
            self._map = self._kernel.prepare(self._matrix)
        return self._map


class LinearCode(Codec):
    """A code that is one matrix over GF(2^8): chunk i is row i of the generator times the data.

    This class itself is for MDS codes, where any k chunks give back all n; `LocalCode` differs in
    which chunks it takes, and in whether they are enough.
    """

    def __init__(self, name: str, generator: Bytes, kernel: Kernel | None = None) -> None:
        """Make a codec from its generator. Shape: [n, k], systematic, MDS.

        Users call `exastore.erasure.codec(name)` instead.
        """
        n, k = (int(size) for size in generator.shape)
        super().__init__(name, k=k, m=n - k, kernel=kernel or select_kernel())
        #: A vector of n chunks is a stripe if and only if this matrix times it is 0.
        self._parity_check: Final = parity_check(generator)
        self._encoder: LinearMap | None = (
            self._kernel.prepare(np.ascontiguousarray(generator[self.k :])) if self.m else None
        )
        self._decoder = lru_cache(maxsize=DECODERS_KEPT)(self._make_decoder)
        #: By the chunks given and wanted in the caller's order, all checked; errors are not kept.
        self._route = lru_cache(maxsize=DECODERS_KEPT)(self._find_route)
        self._updater = lru_cache(maxsize=self.k)(self._make_updater)

    def encode(self, data: Bytes | Sequence[Bytes]) -> Bytes:
        """See `Codec.encode`."""
        if self._encoder is not None and isinstance(data, np.ndarray) and data.ndim == 2:
            made = np.empty((self.m, data.shape[1]), dtype=np.uint8)
            if self._encoder.apply(data, made):
                return made
        inputs = check_chunks(data, self.k, "data")
        parity = np.empty((self.m, inputs.chunk_bytes), dtype=np.uint8)
        self._encode(inputs, check_chunks(parity, self.m, "parity"))
        return parity

    def encode_into(
        self,
        data_chunks: Bytes | Sequence[Bytes],
        parity_chunks: Bytes | Sequence[Bytes],
        *,
        threads: int = 1,
    ) -> None:
        """See `Codec.encode_into`."""
        if threads == 1 and self._encoder is not None:
            if self._encoder.apply(data_chunks, parity_chunks):
                return
        inputs = check_chunks(data_chunks, self.k, "data")
        outputs = check_chunks(parity_chunks, self.m, "parity")
        check_outputs(inputs, outputs, "parity")
        self._encode(inputs, outputs, threads)

    def _encode(self, inputs: Chunks, outputs: Chunks, threads: int = 1) -> None:
        if self._encoder is not None:
            self._encoder(inputs, outputs, threads)

    def decode(
        self, chunks: Mapping[int, Bytes], want: Iterable[int] | None = None
    ) -> dict[int, Bytes]:
        """See `Codec.decode`."""
        wanted = range(self.k) if want is None else self._checked(want)
        missing = tuple([index for index in wanted if index not in chunks])
        decoder, inputs = self._prepare(chunks, missing)
        rebuilt = np.empty((len(missing), inputs.chunk_bytes), dtype=np.uint8)
        if decoder is not None:
            decoder.map()(inputs, check_chunks(rebuilt, len(missing), "wanted"))
        made = dict(zip(missing, rebuilt, strict=True))
        return {index: made[index] if index in made else chunks[index] for index in wanted}

    def decode_into(
        self, chunks: Mapping[int, Bytes], out: Mapping[int, Bytes], *, threads: int = 1
    ) -> None:
        """See `Codec.decode_into`."""
        if not out:
            return
        decoder, wanted = self._route(tuple(chunks), tuple(out))
        sources = [chunks[index] for index in decoder.reads]
        targets = [out[index] for index in wanted]
        linear_map = decoder.map()
        if threads == 1 and linear_map.apply(sources, targets):
            return
        inputs = check_chunks(sources, len(sources), "given")
        outputs = check_chunks(targets, len(targets), "wanted")
        check_outputs(inputs, outputs, "wanted")
        linear_map(inputs, outputs, threads)

    def decodable(self, lost: Iterable[int]) -> bool:
        """See `Codec.decodable`."""
        return len(self._checked(lost)) <= self.m

    def repair_plan(self, lost: Iterable[int]) -> RepairPlan:
        """See `Codec.repair_plan`."""
        lost_indexes = tuple(self._checked(lost))
        if not lost_indexes:
            return RepairPlan((), {})
        survivors = [index for index in range(self.n) if index not in lost_indexes]
        decoder = self._decoder(self._usable(survivors), lost_indexes)
        return RepairPlan(lost_indexes, dict.fromkeys(decoder.reads, 1.0))

    def repair(self, lost: Iterable[int], reads: Mapping[int, Bytes]) -> dict[int, Bytes]:
        """See `Codec.repair`."""
        plan = self.repair_plan(lost)
        self._check_reads(plan, reads)
        return self.decode(reads, plan.lost) if plan.lost else {}

    def update_parity(
        self, index: int, old: Bytes, new: Bytes, parity: Bytes | Sequence[Bytes]
    ) -> None:
        """See `Codec.update_parity`."""
        data_index = self._check_data_index(index)
        change = check_chunks([old, new], 2, "changed")
        outputs = check_chunks(parity, self.m, "parity")
        check_outputs(change, outputs, "parity")
        rows, updater = self._updater(data_index)
        targets = [outputs.arrays[row] for row in rows]
        products = np.empty((len(rows), min(BLOCK_BYTES, change.chunk_bytes)), dtype=np.uint8)
        for begin in range(0, change.chunk_bytes if rows else 0, BLOCK_BYTES):
            block = slice(begin, min(begin + BLOCK_BYTES, change.chunk_bytes))
            delta = old[block] ^ new[block]
            part = products[:, : delta.size]
            updater(check_chunks([delta], 1, "changed"), check_chunks(part, len(rows), "parity"))
            for target, product in zip(targets, part, strict=True):
                target[block] ^= product

    def verify(
        self, chunks: Bytes | Sequence[Bytes], seed: int, rounds: int = VERIFY_ROUNDS
    ) -> bool:
        """See `Codec.verify`."""
        inputs = check_chunks(chunks, self.n, "given")
        check_count = min(rounds, self.m)
        if check_count <= 0:
            return True
        if inputs.chunk_bytes <= contract.EXACT_CHUNK_BYTES:
            return self._is_encoded(inputs)
        rng = np.random.Generator(np.random.Philox(seed))
        check = self._kernel.prepare(random_checks(self._parity_check, check_count, rng))
        piece_bytes = min(VERIFY_BLOCK_BYTES, inputs.chunk_bytes)
        # Zeros, because the last word may go beyond the last byte.
        sums = np.zeros((check_count, -(-piece_bytes // 8)), dtype=np.uint64)
        for begin in range(0, inputs.chunk_bytes, VERIFY_BLOCK_BYTES):
            block = inputs
            if inputs.chunk_bytes > VERIFY_BLOCK_BYTES:
                pieces = [array[begin : begin + VERIFY_BLOCK_BYTES] for array in inputs.arrays]
                block = check_chunks(pieces, self.n, "given")
            results = sums.view(np.uint8)[:, : block.chunk_bytes]
            check(block, check_chunks(results, check_count, "sum"))
            if sums[:, : -(-block.chunk_bytes // 8)].any():
                return False
        return True

    def warm_up(self) -> None:
        """See `Codec.warm_up`."""
        for row_count in range(1, self.m + 1):
            for width in self._decoder_widths():
                ones = np.ones((row_count, width), dtype=np.uint8)
                _try(self._kernel.prepare(ones, uniform=True), row_count, width)
        if self._encoder is not None:
            _try(self._encoder, self.m, self.k)
            rows, updater = self._updater(0)
            _try(updater, len(rows), 1)
            _try(self._kernel.prepare(np.full((1, self.n), 2, dtype=np.uint8)), 1, self.n)

    def _decoder_widths(self) -> Iterable[int]:
        """How many chunks decoders read."""
        return (self.k,)

    def _find_route(
        self, given: tuple[int, ...], out: tuple[int, ...]
    ) -> tuple[Decoder, tuple[int, ...]]:
        """How to make the chunks `out` of those given, and their order."""
        wanted = tuple(self._checked(out))
        if not set(given).isdisjoint(wanted):
            raise WrongShape("a chunk to rebuild is also given")
        return self._decoder(self._usable(self._checked(given)), wanted), wanted

    def _prepare(
        self, chunks: Mapping[int, Bytes], want: tuple[int, ...]
    ) -> tuple[Decoder | None, Chunks]:
        """How to make `want`, none of them given, and what of; no decoder if nothing is wanted."""
        have = self._checked(chunks)
        decoder = self._decoder(self._usable(have), want) if want else None
        reads = tuple(have) if decoder is None else decoder.reads
        return decoder, check_chunks([chunks[index] for index in reads], len(reads), "given")

    def _usable(self, have: list[int]) -> tuple[int, ...]:
        """The chunks to decode with, of those that there are: an MDS code needs no more than k."""
        if len(have) < self.k:
            raise TooFewChunks(self.k, len(have))
        return tuple(have[: self.k])

    def _spares(self, unknown: tuple[int, ...]) -> tuple[int, ...]:
        """Chunks that are there but better not read, the least wanted first."""
        assert len(unknown) == self.m, unknown
        return ()

    def _make_decoder(self, have: tuple[int, ...], want: tuple[int, ...]) -> Decoder:
        unknown = tuple([index for index in range(self.n) if index not in have])
        solution = solve(self._parity_check, unknown, self._spares(unknown), want)
        if solution is None:
            raise Undecodable(self.k, have, want)
        reads, matrix = solution
        return Decoder(reads, matrix, self._kernel)

    def _make_updater(self, index: int) -> tuple[tuple[int, ...], LinearMap]:
        """The parity rows that depend on a data chunk, and their coefficients of it."""
        column = self._parity_check[:, index]
        rows = np.flatnonzero(column)
        updater = self._kernel.prepare(np.ascontiguousarray(column[rows, None]), uniform=True)
        return tuple(int(row) for row in rows), updater


def _try(linear_map: LinearMap, row_count: int, width: int) -> None:
    """Use a map once, so that it is compiled."""
    made = np.empty((row_count, 1), dtype=np.uint8)
    read = np.zeros((width, 1), dtype=np.uint8)
    linear_map(check_chunks(read, width, "given"), check_chunks(made, row_count, "made"))
