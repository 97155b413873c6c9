"""Buffers of chunks, used again as soon as nobody refers to them.

A buffer that is new has to be cleared by the system page by page, which costs as much as to copy
into it, and is in no cache. The one that was let go last is hot.

Law: a buffer is given out again only when no view of it is left, wherever it went: a view keeps the
array alive that it was taken of, and the end of that array is what brings the buffer back.
"""

import weakref
from typing import Final

import numpy as np
import numpy.typing as npt

_Slot = npt.NDArray[np.uint8]


class BufferPool:
    """Any thread may let go of a buffer."""

    __slots__ = ("_free", "_kept_count", "_lent", "_slot_bytes")

    def __init__(self, slot_bytes: int, kept_count: int) -> None:
        """Args:
        slot_bytes: Larger buffers, and those under a quarter of it, are made anew each time.
        kept_count: Buffers that are kept for use at most; those in use are not counted.
        """
        self._slot_bytes = slot_bytes
        self._kept_count = kept_count
        #: The one that was let go last is the last.
        self._free: list[_Slot] = []
        #: What is in use, by the id of the reference to the array that ends with its last view.
        self._lent: dict[int, tuple[weakref.ref[_Slot], _Slot]] = {}

    @property
    def free_bytes(self) -> int:
        """What is kept for use."""
        return len(self._free) * self._slot_bytes

    def take(self, size_bytes: int) -> memoryview:
        """Uninitialised bytes: zeroing a chunk takes a fifth of the time to copy it."""
        if not self._slot_bytes < 4 * size_bytes <= 4 * self._slot_bytes:
            return np.empty(size_bytes, dtype=np.uint8).data
        try:
            slot = self._free.pop()
        except IndexError:
            slot = np.empty(self._slot_bytes, dtype=np.uint8)
        lent = slot[:size_bytes]
        reference = weakref.ref(lent, self._let_go)
        self._lent[id(reference)] = reference, slot
        return lent.data

    def _let_go(self, lent: "weakref.ref[_Slot]") -> None:
        _, slot = self._lent.pop(id(lent))
        if len(self._free) < self._kept_count:
            self._free.append(slot)


#: Of this process: 16 MiB are kept beyond what is in use.
chunk_buffers: Final = BufferPool(1 << 20, 16)
