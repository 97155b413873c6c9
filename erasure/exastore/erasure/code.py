"""A code: encode, decode and plan repairs of the n chunks of a stripe."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import numpy as np

from exastore.erasure.chunks import Chunks, check_chunks, check_outputs
from exastore.erasure.errors import TooFewChunks, WrongIndex, WrongShape
from exastore.erasure.field import Bytes
from exastore.erasure.kernels import Kernel, LinearMap, select_kernel
from exastore.erasure.matrix import decoding_matrix

#: Decoding matrices kept per codec: a lost device makes one per (survivors read, chunks wanted).
DECODERS_KEPT: Final = 1024


@dataclass(frozen=True, slots=True)
class RepairPlan:
    """What must be read to rebuild lost chunks."""

    #: The chunk indexes to rebuild, ascending.
    lost: tuple[int, ...]
    #: For each chunk index to read, ascending: the fraction of its bytes that is read, in (0, 1].
    reads: Mapping[int, float]

    @property
    def read_chunk_count(self) -> int:
        """How many chunks are read from, in whole or in part."""
        return len(self.reads)

    @property
    def bytes_fraction(self) -> float:
        """Bytes read, in chunk sizes: 10.0 when ten whole chunks are read."""
        return sum(self.reads.values())

    def read_bytes(self, chunk_bytes: int) -> int:
        """Bytes read when each chunk has `chunk_bytes`."""
        return sum(round(fraction * chunk_bytes) for fraction in self.reads.values())


class Codec:
    """A systematic MDS code: chunks 0..k-1 are the data, any k chunks give back all n.

    Immutable and safe to share between threads; the GIL is released while bytes are processed.

    Arrays, in every method: uint8, contiguous along the chunk, of any length (0 included) and any
    alignment, all of one length within a call; inputs may be read-only. Nothing is copied except
    where a new array is returned.
    """

    def __init__(self, name: str, generator: Bytes, kernel: Kernel | None = None) -> None:
        """Make a codec from its generator. Shape: [n, k], systematic, MDS.

        Users call `exastore.erasure.codec(name)` instead.
        """
        self.name: Final = name
        self.n: Final = int(generator.shape[0])
        self.k: Final = int(generator.shape[1])
        self.m: Final = self.n - self.k
        #: Bytes stored per byte of data.
        self.overhead: Final = self.n / self.k
        self._generator = generator
        self._kernel = kernel or select_kernel()
        #: The name of the kernel in use.
        self.kernel: Final = self._kernel.name
        self._encoder: LinearMap | None = (
            self._kernel.prepare(np.ascontiguousarray(generator[self.k :])) if self.m else None
        )
        self._decoder = lru_cache(maxsize=DECODERS_KEPT)(self._make_decoder)

    def __repr__(self) -> str:
        return f"<Codec {self.name} on {self.kernel}>"

    def encode(self, data: Bytes | Sequence[Bytes]) -> Bytes:
        """Make the parity chunks.

        Shape: k chunks of L bytes, as [k, L] or a sequence of k arrays; the result is a new [m, L].

        Raises:
            WrongShape, WrongDtype, WrongLayout: see `errors`.
        """
        inputs = check_chunks(data, self.k, "data")
        parity = np.empty((self.m, inputs.chunk_bytes), dtype=np.uint8)
        self._encode(inputs, check_chunks(parity, self.m, "parity"))
        return parity

    def encode_into(
        self, data_chunks: Bytes | Sequence[Bytes], parity_chunks: Bytes | Sequence[Bytes]
    ) -> None:
        """Make the parity chunks in place.

        Shape: k and m chunks of L bytes, each as one 2-D array or a sequence of 1-D arrays.
        Aliasing: the parity is overwritten and must not overlap anything else.

        Raises:
            WrongShape, WrongDtype, WrongLayout: see `errors`; nothing was written.
        """
        inputs = check_chunks(data_chunks, self.k, "data")
        outputs = check_chunks(parity_chunks, self.m, "parity")
        check_outputs(inputs, outputs, "parity")
        self._encode(inputs, outputs)

    def _encode(self, inputs: Chunks, outputs: Chunks) -> None:
        if self._encoder is not None:
            self._encoder(inputs, outputs)

    def decode(
        self, chunks: Mapping[int, Bytes], want: Iterable[int] | None = None
    ) -> dict[int, Bytes]:
        """Get wanted chunks (default: all data chunks) from any k chunks.

        If more than k are given, the k of lowest index are used. The chunks must be intact: a code
        with erasures only cannot tell a rotten one.

        Aliasing: a wanted chunk that was given is returned as it is; the others are new arrays.

        Raises:
            TooFewChunks: something wanted is missing, and fewer than k chunks were given.
            WrongIndex, WrongShape, WrongDtype, WrongLayout: see `errors`.
        """
        wanted = range(self.k) if want is None else self._checked(want)
        missing = [index for index in wanted if index not in chunks]
        have, inputs = self._inputs(chunks, needed=bool(missing))
        rebuilt = np.empty((len(missing), inputs.chunk_bytes), dtype=np.uint8)
        if missing:
            outputs = check_chunks(rebuilt, len(missing), "wanted")
            self._decoder(have, tuple(missing))(inputs, outputs)
        made = dict(zip(missing, rebuilt, strict=True))
        return {index: made[index] if index in made else chunks[index] for index in wanted}

    def decode_into(self, chunks: Mapping[int, Bytes], out: Mapping[int, Bytes]) -> None:
        """Rebuild chunks in place: the keys of `out` say which, none of them may be in `chunks`.

        Aliasing: the arrays of `out` are overwritten and must not overlap anything else.

        Raises:
            TooFewChunks: fewer than k chunks were given.
            WrongIndex, WrongShape, WrongDtype, WrongLayout: see `errors`; nothing was written.
        """
        wanted = self._checked(out)
        if not wanted:
            return
        if not chunks.keys().isdisjoint(wanted):
            raise WrongShape("a chunk to rebuild is also given")
        have, inputs = self._inputs(chunks, needed=True)
        outputs = check_chunks([out[index] for index in wanted], len(wanted), "wanted")
        check_outputs(inputs, outputs, "wanted")
        self._decoder(have, tuple(wanted))(inputs, outputs)

    def decodable(self, lost: Iterable[int]) -> bool:
        """Whether the data survives the loss of these chunks.

        Raises:
            WrongIndex: an index is not one of 0..n-1.
        """
        return len(self._checked(lost)) <= self.m

    def repair_plan(self, lost: Iterable[int]) -> RepairPlan:
        """Which surviving chunks to read, to rebuild these ones.

        Raises:
            TooFewChunks: more than m chunks are lost.
            WrongIndex: an index is not one of 0..n-1.
        """
        lost_indexes = self._checked(lost)
        if not lost_indexes:
            return RepairPlan((), {})
        survivors = [index for index in range(self.n) if index not in lost_indexes]
        if len(survivors) < self.k:
            raise TooFewChunks(self.k, len(survivors))
        return RepairPlan(tuple(lost_indexes), dict.fromkeys(survivors[: self.k], 1.0))

    def _inputs(
        self, chunks: Mapping[int, Bytes], *, needed: bool
    ) -> tuple[tuple[int, ...], Chunks]:
        """The chunks to compute with and their indexes: k of them, or any number if not needed."""
        have = self._checked(chunks)
        if needed and len(have) < self.k:
            raise TooFewChunks(self.k, len(have))
        have = have[: self.k]
        inputs = check_chunks([chunks[index] for index in have], len(have), "given")
        return tuple(have), inputs

    def _make_decoder(self, have: tuple[int, ...], want: tuple[int, ...]) -> LinearMap:
        return self._kernel.prepare(decoding_matrix(self._generator, have, want))

    def _checked(self, indexes: Iterable[object]) -> list[int]:
        """The different indexes, ascending."""
        checked: set[int] = set()
        for index in indexes:
            if not isinstance(index, int | np.integer) or not 0 <= index < self.n:
                raise WrongIndex(index, self.n)
            checked.add(int(index))
        return sorted(checked)
