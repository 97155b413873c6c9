"""Checks of the caller's arrays, and their addresses for the kernels."""

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from exastore.erasure.errors import WrongDtype, WrongLayout, WrongShape
from exastore.erasure.field import Bytes


@dataclass(frozen=True, slots=True)
class Chunks:
    """Checked chunks of one length.

    `arrays` are 1-D contiguous uint8 views of the caller's memory and keep it alive;
    `addresses[i]` is where `arrays[i]` starts.
    """

    arrays: tuple[Bytes, ...]
    addresses: tuple[int, ...]
    chunk_bytes: int


def address_of(array: NDArray[Any]) -> int:
    """The address of the first byte."""
    buffer: Any = array
    try:
        # Several times as fast as NumPy's own way, and a call asks for it chunk by chunk.
        return ctypes.addressof(ctypes.c_char.from_buffer(buffer))
    except (TypeError, ValueError):
        # Not writable, not contiguous, or no byte at all.
        return cast(int, array.__array_interface__["data"][0])


def check_chunks(source: Bytes | Sequence[Bytes], count: int, what: str) -> Chunks:
    """Accept a 2-D array or a sequence of 1-D arrays, without a copy.

    Raises:
        WrongShape: not `count` chunks, not 1-D, or unequal lengths.
        WrongDtype: not arrays of uint8.
        WrongLayout: the bytes of a chunk are not contiguous.
    """
    if isinstance(source, np.ndarray):
        return _rows_of(source, count, what)
    arrays = tuple(source)
    if len(arrays) != count:
        raise WrongShape(f"expected {count} {what} chunks, got {len(arrays)}")
    for position, array in enumerate(arrays):
        _check_dtype(array, what)
        if array.ndim != 1:
            raise WrongShape(f"{what} chunk {position} has {array.ndim} dimensions, not 1")
        if array.size != arrays[0].size:
            raise WrongShape(
                f"{what} chunk {position} has {array.size} bytes, the first {arrays[0].size}"
            )
        if not array.flags.c_contiguous:
            raise WrongLayout(f"{what} chunk {position} is not contiguous")
    addresses = tuple([address_of(array) for array in arrays])
    return Chunks(arrays, addresses, arrays[0].size if arrays else 0)


def _rows_of(array: Bytes, count: int, what: str) -> Chunks:
    _check_dtype(array, what)
    if array.ndim != 2 or array.shape[0] != count:
        raise WrongShape(f"expected {what} of shape ({count}, L), got {array.shape}")
    chunk_bytes = array.shape[1]
    if array.size and chunk_bytes > 1 and array.strides[1] != 1:
        raise WrongLayout(f"the rows of {what} are not contiguous")
    base, stride = address_of(array), array.strides[0]
    return Chunks(tuple(array), tuple([base + row * stride for row in range(count)]), chunk_bytes)


def _check_dtype(array: object, what: str) -> None:
    if not isinstance(array, np.ndarray):
        raise WrongDtype(f"{what} chunks must be NumPy arrays of uint8, got {type(array).__name__}")
    if array.dtype != np.uint8:
        raise WrongDtype(f"{what} chunks must be uint8, got {array.dtype}")


def check_outputs(inputs: Chunks, outputs: Chunks, what: str) -> None:
    """Outputs must be writable, as long as the inputs, and overlap no other chunk.

    Raises:
        WrongShape, WrongLayout
    """
    if not outputs.arrays:
        return
    if outputs.chunk_bytes != inputs.chunk_bytes:
        raise WrongShape(
            f"{what} chunks have {outputs.chunk_bytes} bytes, the inputs {inputs.chunk_bytes}"
        )
    for position, array in enumerate(outputs.arrays):
        if not array.flags.writeable:
            raise WrongLayout(f"{what} chunk {position} is read-only")
    # All chunks are equally long, so whatever overlaps an output is its neighbour in this order.
    starts = [(address, False) for address in inputs.addresses]
    starts += [(address, True) for address in outputs.addresses]
    starts.sort()
    for (start, start_is_output), (end, end_is_output) in pairwise(starts):
        if end - start < outputs.chunk_bytes and (start_is_output or end_is_output):
            raise WrongLayout(f"a {what} chunk overlaps another chunk")
