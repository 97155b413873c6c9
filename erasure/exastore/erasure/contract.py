"""The one contract of all codes: what a codec can do, whatever its construction.

Simulator and cluster use `n`, `k`, `m`, `decodable` and `repair_plan`; the data path encodes and
decodes; repair executes plans. `LinearCode` (Reed-Solomon, replication, LRC) and `ClayCode`
implement it.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

import numpy as np

from exastore.erasure.chunks import Chunks
from exastore.erasure.errors import WrongIndex, WrongReads
from exastore.erasure.field import Bytes
from exastore.erasure.kernels import Kernel
from exastore.erasure.plan import RepairPlan

#: Checks that `Codec.verify` makes unless told otherwise.
VERIFY_ROUNDS: Final = 1
#: Shorter chunks are encoded again and compared: cheaper than to prepare a random check.
EXACT_CHUNK_BYTES = 256 * 1024
WORD_BYTES: Final = 8


class Codec(ABC):
    """A systematic code: chunks 0..k-1 are the data, chunks k..n-1 the parity.

    Immutable and safe to share between threads; the GIL is released while bytes are processed.

    Arrays, in every method: uint8, contiguous along the chunk, of any alignment, all of one length
    within a call, which is a multiple of `alignment_bytes` (0 included); inputs may be read-only.
    Nothing is copied except where a new array is returned. Arrays are checked before any byte is
    written.
    """

    def __init__(
        self, name: str, *, k: int, m: int, kernel: Kernel, sub_chunk_count: int = 1
    ) -> None:
        self.name: Final = name
        self.k: Final = k
        self.m: Final = m
        self.n: Final = k + m
        #: Bytes stored per byte of data.
        self.overhead: Final = self.n / k
        #: Sub-chunks of a chunk: what a `RepairPlan` counts in.
        self.sub_chunk_count: Final = sub_chunk_count
        #: The length of every chunk must be a multiple of this.
        self.alignment_bytes: Final = sub_chunk_count
        self._kernel: Final = kernel
        #: The name of the kernel in use.
        self.kernel: Final = kernel.name

    def __repr__(self) -> str:
        return f"<Codec {self.name} on {self.kernel}>"

    @property
    def is_mds(self) -> bool:
        """Whether any k chunks give back the data: then only the number of losses matters."""
        return True

    @abstractmethod
    def encode(self, data: Bytes | Sequence[Bytes]) -> Bytes:
        """Make the parity chunks.

        Shape: k chunks of L bytes, as [k, L] or a sequence of k arrays; the result is a new [m, L].

        Raises:
            WrongShape, WrongDtype, WrongLayout: see `errors`.
        """

    @abstractmethod
    def encode_into(
        self,
        data_chunks: Bytes | Sequence[Bytes],
        parity_chunks: Bytes | Sequence[Bytes],
        *,
        threads: int = 1,
    ) -> None:
        """Make the parity chunks in place.

        Shape: k and m chunks of L bytes, each as one 2-D array or a sequence of 1-D arrays.
        Aliasing: the parity is overwritten and must not overlap anything else.
        Threads: at most so many share the work; worth it for stripes of many MiB.

        Raises:
            WrongShape, WrongDtype, WrongLayout: see `errors`; nothing was written.
        """

    @abstractmethod
    def decode(
        self, chunks: Mapping[int, Bytes], want: Iterable[int] | None = None
    ) -> dict[int, Bytes]:
        """Get wanted chunks (default: all data chunks) from any chunks that suffice.

        If more are given than are needed, the cheapest are used. The chunks must be intact: a code
        with erasures only cannot tell a rotten one.

        Aliasing: a wanted chunk that was given is returned as it is; the others are new arrays.

        Raises:
            TooFewChunks: something wanted is missing, and the given chunks do not determine it.
            WrongIndex, WrongShape, WrongDtype, WrongLayout: see `errors`.
        """

    @abstractmethod
    def decode_into(
        self, chunks: Mapping[int, Bytes], out: Mapping[int, Bytes], *, threads: int = 1
    ) -> None:
        """Rebuild chunks in place: the keys of `out` say which, none of them may be in `chunks`.

        Aliasing: the arrays of `out` are overwritten and must not overlap anything else.
        Threads: at most so many share the work; worth it for stripes of many MiB.

        Raises:
            TooFewChunks: the given chunks do not determine what is wanted.
            WrongIndex, WrongShape, WrongDtype, WrongLayout: see `errors`; nothing was written.
        """

    @abstractmethod
    def decodable(self, lost: Iterable[int]) -> bool:
        """Whether the data survives the loss of these chunks.

        Raises:
            WrongIndex: an index is not one of 0..n-1.
        """

    @abstractmethod
    def repair_plan(self, lost: Iterable[int]) -> RepairPlan:
        """Which bytes of which surviving chunks to read, to rebuild these ones as cheaply as known.

        Raises:
            TooFewChunks: the data does not survive this loss.
            WrongIndex: an index is not one of 0..n-1.
        """

    @abstractmethod
    def repair(self, lost: Iterable[int], reads: Mapping[int, Bytes]) -> dict[int, Bytes]:
        """Rebuild chunks from exactly what `repair_plan(lost)` says to read.

        Shape: `reads[i]` are the planned runs of chunk i, one after the other, as
        `RepairPlan.take` cuts them out of a whole chunk. The result holds every lost chunk, new.

        Raises:
            TooFewChunks: the data does not survive this loss.
            WrongReads: not the chunks that the plan reads, or not as many bytes of them.
            WrongIndex, WrongShape, WrongDtype, WrongLayout: see `errors`.
        """

    @abstractmethod
    def update_parity(
        self, index: int, old: Bytes, new: Bytes, parity: Bytes | Sequence[Bytes]
    ) -> None:
        """Change the parity as the data chunk `index` changes from `old` to `new`.

        Shape: chunks of L bytes; `parity` are all m, as one 2-D array or a sequence of 1-D arrays.
        Aliasing: the parity is changed in place and must not overlap anything else.

        Raises:
            WrongIndex: no data chunk has this index.
            WrongShape, WrongDtype, WrongLayout: see `errors`; nothing was written.
        """

    @abstractmethod
    def verify(
        self, chunks: Bytes | Sequence[Bytes], seed: int, rounds: int = VERIFY_ROUNDS
    ) -> bool:
        """Whether n chunks are a stripe of this code, by random linear combinations.

        Every stripe satisfies m linear equations per byte. `rounds` random combinations of them are
        evaluated instead of all. A stripe passes always. Anything else passes with probability
        (256 - n)^-rounds at most (256^-rounds with n > 128), over seeds that whoever damaged the
        chunks did not know, and never if `rounds >= m`; nor if one chunk alone is damaged, in a
        code of one matrix with n <= 128. Cost: about that of encoding `rounds` parity chunks.
        Chunks of 256 KiB or less are encoded and compared, which is cheaper, and exact.

        Shape: all n chunks, as [n, L] or a sequence of n arrays.

        Raises:
            WrongShape, WrongDtype, WrongLayout: see `errors`.
        """

    @abstractmethod
    def warm_up(self) -> None:
        """Load from the disk, or compile and keep there, what the methods above need.

        Afterwards a loss never met before costs a millisecond or two more than one that was;
        otherwise the first loss of each size waits for its code, some 10 to 100 ms if that is not
        on the disk. For processes that serve requests, at their start: up to a second or two the
        first time on a machine, some 10 ms from then on.
        """

    def _checked(self, indexes: Iterable[object]) -> list[int]:
        """The different indexes, ascending."""
        checked: set[int] = set()
        for index in indexes:
            if not isinstance(index, int | np.integer) or not 0 <= index < self.n:
                raise WrongIndex(index, self.n)
            checked.add(int(index))
        return sorted(checked)

    def _check_data_index(self, index: int) -> int:
        (checked,) = self._checked([index])
        if checked >= self.k:
            raise WrongIndex(index, self.k)
        return checked

    def _is_encoded(self, chunks: Chunks) -> bool:
        """Whether n checked chunks are a stripe, by encoding it."""
        parity = self.encode(chunks.arrays[: self.k])
        return all(map(_equal, parity, chunks.arrays[self.k :]))

    def _check_reads(self, plan: RepairPlan, reads: Mapping[int, Bytes]) -> None:
        given = self._checked(reads)
        if given != list(plan.reads):
            raise WrongReads(f"the plan reads chunks {list(plan.reads)}, given were {given}")


def _equal(a: Bytes, b: Bytes) -> bool:
    """Whether chunks are equal, compared in words where their length allows."""
    if a.size % WORD_BYTES == 0:
        return bool((a.view(np.uint64) == b.view(np.uint64)).all())
    return bool((a == b).all())
