"""What can go wrong in a code, as types.

ErasureError
├── UnknownCode          local misuse: no code of that name
├── UnknownKernel        local misuse: EXASTORE_KERNEL names no kernel, or one this CPU lacks
├── InvalidChunks        local misuse: the caller's arrays or indices
│   ├── WrongShape       number of chunks, dimensions or unequal lengths
│   ├── WrongDtype       not a NumPy array of uint8
│   ├── WrongLayout      not contiguous, read-only output, or output over an input
│   └── WrongIndex       a chunk index outside of 0..n-1
└── TooFewChunks         data loss: the survivors cannot give back what is wanted

They can be pickled, so they pass between processes.
"""

from collections.abc import Iterable
from typing import Any


class ErasureError(Exception):
    """Base of everything that `exastore.erasure` raises on purpose."""


class UnknownCode(ErasureError, ValueError):
    """No code of this name."""

    def __init__(self, name: str, valid_forms: Iterable[str]) -> None:
        self.name = name
        self.valid_forms = tuple(valid_forms)
        super().__init__(f"unknown code {name!r}; valid forms: {'; '.join(self.valid_forms)}")

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.name, self.valid_forms)


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


class TooFewChunks(ErasureError):
    """Fewer chunks than are needed to rebuild what is wanted."""

    def __init__(self, need: int, have: int) -> None:
        self.need = need
        self.have = have
        super().__init__(f"need {need} chunks, have {have}")

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.need, self.have)
