"""Reading some bytes of a chunk: which blocks they lie in, and cutting them out. Pure.

A block is what has a CRC of its own, so the blocks that hold a run are read and verified whole,
whatever the run takes of them.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from exastore.storage.crc import Buffer
from exastore.storage.errors import InvalidChunk
from exastore.storage.record import BLOCK_BYTES, block_count


class ByteRun(NamedTuple):
    """Consecutive bytes of a chunk."""

    offset_bytes: int
    length_bytes: int

    @property
    def end_bytes(self) -> int:
        return self.offset_bytes + self.length_bytes


class BlockSpan(NamedTuple):
    """Consecutive blocks of a chunk, as the bytes that they take."""

    first_block: int
    offset_bytes: int
    length_bytes: int

    @property
    def end_bytes(self) -> int:
        return self.offset_bytes + self.length_bytes


def block_spans(runs: Sequence[ByteRun], data_bytes: int) -> list[BlockSpan]:
    """The blocks that hold the runs, ascending and apart from each other; all without runs.

    Raises:
        InvalidChunk: the runs are empty, out of order or beyond the chunk.
    """
    if not runs:
        return [BlockSpan(0, 0, data_bytes)]
    spans: list[BlockSpan] = []
    end_bytes = first_block = end_block = 0
    for run in runs:
        if run.length_bytes <= 0 or run.offset_bytes < end_bytes or run.end_bytes > data_bytes:
            raise InvalidChunk(
                f"{run.length_bytes} bytes at {run.offset_bytes} of a chunk of {data_bytes}"
            )
        end_bytes = run.end_bytes
        start = run.offset_bytes // BLOCK_BYTES
        if spans and start <= end_block:
            spans.pop()
        else:
            first_block = start
        end_block = block_count(end_bytes)
        offset = first_block * BLOCK_BYTES
        length = min(end_block * BLOCK_BYTES, data_bytes) - offset
        spans.append(BlockSpan(first_block, offset, length))
    return spans


def cut_runs(
    runs: Sequence[ByteRun], spans: Iterable[BlockSpan], blocks: Iterable[Buffer]
) -> bytes:
    """The bytes of the runs, one after the other, from the spans of `block_spans`."""
    pieces: list[memoryview] = []
    todo = iter(runs)
    run = next(todo, None)
    for span, data in zip(spans, blocks, strict=True):
        view = memoryview(data)
        while run is not None and run.offset_bytes < span.end_bytes:
            start = run.offset_bytes - span.offset_bytes
            pieces.append(view[start : start + run.length_bytes])
            run = next(todo, None)
    return b"".join(pieces)
