"""What can go wrong in a code, as types.

ErasureError
├── UnknownCode          local misuse: no code of that name
├── UnknownKernel        local misuse: EXASTORE_KERNEL names no kernel, or one this CPU lacks
├── InvalidChunks        local misuse: the caller's arrays or indices
│   ├── WrongShape       number of chunks, dimensions or unequal lengths
│   │   └── WrongAlignment   the length is no multiple of the code's sub-chunks
│   ├── WrongDtype       not a NumPy array of uint8
│   ├── WrongLayout      not contiguous, read-only output, or output over an input
│   ├── WrongIndex       a chunk index outside of 0..n-1
│   └── WrongReads       a repair was given other bytes than its plan reads
└── TooFewChunks         data loss: the survivors cannot give back what is wanted
    └── Undecodable      they are k or more, but not independent (codes that are not MDS)

They can be pickled, so they pass between processes.
"""

from collections.abc import Iterable
from typing import Any


class ErasureError(Exception):
    """Base of everything that `exastore.erasure` raises on purpose."""


class UnknownCode(ErasureError, ValueError):
    """No code of this name; `reason` says what is wrong with one that has a valid form."""

    def __init__(self, name: str, valid_forms: Iterable[str], reason: str = "") -> None:
        self.name = name
        self.valid_forms = tuple(valid_forms)
        self.reason = reason
        why = f": {reason}" if reason else ""
        super().__init__(f"unknown code {name!r}{why}; valid forms: {'; '.join(self.valid_forms)}")

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.name, self.valid_forms, self.reason)


class UnknownKernel(ErasureError, ValueError):
    """The kernel asked for does not exist, or cannot run on this CPU."""

    def __init__(self, name: str, available: Iterable[str]) -> None:
        self.name = name
        self.available = tuple(available)
        super().__init__(
            f"kernel {name!r} is not available here; available: {', '.join(self.available)}"
        )

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.name, self.available)


class InvalidChunks(ErasureError, ValueError):
    """The arrays or indices given by the caller do not fit the code."""


class WrongShape(InvalidChunks):
    """Wrong number of chunks, wrong dimensions, or chunks of unequal length."""


class WrongAlignment(WrongShape):
    """The length of the chunks is not a multiple of what the code divides them into."""

    def __init__(self, chunk_bytes: int, alignment_bytes: int) -> None:
        self.chunk_bytes = chunk_bytes
        self.alignment_bytes = alignment_bytes
        super().__init__(f"chunks of {chunk_bytes} bytes: need a multiple of {alignment_bytes}")

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.chunk_bytes, self.alignment_bytes)


class WrongDtype(InvalidChunks, TypeError):
    """A chunk is not a NumPy array of uint8."""


class WrongLayout(InvalidChunks):
    """A chunk is not contiguous, an output is read-only, or an output overlaps another chunk."""


class WrongIndex(InvalidChunks, IndexError):
    """A chunk index outside of 0..n-1."""

    def __init__(self, index: object, n: int) -> None:
        self.index = index
        self.n = n
        super().__init__(f"chunk index {index!r} is not one of 0..{n - 1}")

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.index, self.n)


class WrongReads(InvalidChunks):
    """A repair was given other chunks, or another number of their bytes, than its plan reads."""


class TooFewChunks(ErasureError):
    """Fewer chunks than are needed to rebuild what is wanted."""

    def __init__(self, need: int, have: int) -> None:
        self.need = need
        self.have = have
        super().__init__(f"need {need} chunks, have {have}")

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.need, self.have)


class Undecodable(TooFewChunks):
    """The given chunks do not determine what is wanted, however many they are."""

    def __init__(self, need: int, have: Iterable[int], want: Iterable[int]) -> None:
        self.have_indexes = tuple(have)
        self.want_indexes = tuple(want)
        super().__init__(need, len(self.have_indexes))
        self.args = (
            f"chunks {list(self.have_indexes)} do not determine {list(self.want_indexes)}",
        )

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.need, self.have_indexes, self.want_indexes)
