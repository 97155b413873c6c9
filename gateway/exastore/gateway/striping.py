"""How an object's bytes map to extents and chunks. Pure arithmetic.

An extent of `data_bytes` over k data chunks of `chunk_bytes`: data chunk i holds the bytes
[i * chunk_bytes, (i + 1) * chunk_bytes) of the extent, padded with zeros at the end.
"""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from math import lcm

#: Chunk sizes are multiples of this: what one step of the widest kernel takes.
KERNEL_ALIGN_BYTES = 64


@dataclass(frozen=True, slots=True)
class ExtentSlice:
    """The bytes [start, stop) of the extent at `extent_index`."""

    extent_index: int
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class ChunkSlice:
    """The bytes [start, stop) of the data chunk at `chunk_index`."""

    chunk_index: int
    start: int
    stop: int


def chunk_step_bytes(alignment_bytes: int) -> int:
    """What chunk sizes are multiples of, for a code whose chunks are multiples of so many bytes."""
    return lcm(KERNEL_ALIGN_BYTES, alignment_bytes)


def chunk_bytes_for(data_bytes: int, k: int, alignment_bytes: int = 1) -> int:
    """The smallest chunk size with which k chunks hold `data_bytes`."""
    assert data_bytes >= 0 and k >= 1
    step = chunk_step_bytes(alignment_bytes)
    return max(1, -(-data_bytes // (k * step))) * step


def largest_chunk_bytes(limit_bytes: int, alignment_bytes: int = 1) -> int:
    """The largest chunk size within the limit; one step if that is beyond it."""
    step = chunk_step_bytes(alignment_bytes)
    return max(1, limit_bytes // step) * step


class ExtentIndex:
    """Finds the extents that a range touches in O(log extents)."""

    __slots__ = ("_ends",)

    def __init__(self, extent_sizes: Sequence[int]) -> None:
        #: Where each extent ends in the object; ascending.
        self._ends = list(accumulate(extent_sizes))

    @property
    def size_bytes(self) -> int:
        return self._ends[-1] if self._ends else 0

    def slices(self, start: int, length: int) -> list[ExtentSlice]:
        """The slices that together are the bytes [start, start + length), in order."""
        assert start >= 0 and length >= 0 and start + length <= self.size_bytes
        stop = start + length
        result: list[ExtentSlice] = []
        if length == 0:
            return result
        for index in range(bisect_right(self._ends, start), len(self._ends)):
            begin = self._ends[index - 1] if index else 0
            if begin >= stop:
                break
            low, high = max(start, begin) - begin, min(stop, self._ends[index]) - begin
            if high > low:
                result.append(ExtentSlice(index, low, high))
        return result


def chunk_slices(start: int, stop: int, chunk_bytes: int) -> list[ChunkSlice]:
    """The pieces of data chunks that together are the bytes [start, stop) of an extent."""
    assert 0 <= start <= stop and chunk_bytes > 0
    if start == stop:
        return []
    first, last = start // chunk_bytes, (stop - 1) // chunk_bytes
    return [
        ChunkSlice(
            index,
            max(start - index * chunk_bytes, 0),
            min(stop - index * chunk_bytes, chunk_bytes),
        )
        for index in range(first, last + 1)
    ]
