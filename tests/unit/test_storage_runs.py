"""Which blocks hold which bytes."""

import pytest

from exastore.storage.errors import InvalidChunk
from exastore.storage.record import BLOCK_BYTES
from exastore.storage.runs import BlockSpan, ByteRun, block_spans, cut_runs

B = BLOCK_BYTES
#: Three and a half blocks, each filled with its number.
DATA = b"".join(bytes([number]) * B for number in range(4))[: 3 * B + B // 2]


@pytest.mark.parametrize(
    ("runs", "spans"),
    [
        ([], [(0, 0, len(DATA))]),
        ([(0, 1)], [(0, 0, B)]),
        ([(B - 1, 2)], [(0, 0, 2 * B)]),
        ([(3 * B + 5, 10)], [(3, 3 * B, B // 2)]),
        ([(1, 1), (3 * B, 1)], [(0, 0, B), (3, 3 * B, B // 2)]),
        ([(1, 1), (B, 1)], [(0, 0, 2 * B)]),
        ([(1, 1), (5, 1), (2 * B, 9)], [(0, 0, B), (2, 2 * B, B)]),
    ],
)
def test_the_blocks_of_runs_are_read_once_and_cut(
    runs: list[tuple[int, int]], spans: list[tuple[int, int, int]]
) -> None:
    byte_runs = [ByteRun(*run) for run in runs]
    found = block_spans(byte_runs, len(DATA))
    assert found == [BlockSpan(*span) for span in spans]
    blocks = [DATA[span.offset_bytes : span.end_bytes] for span in found]
    if runs:
        cut = cut_runs(byte_runs, found, blocks)
        assert cut == b"".join(DATA[at : at + size] for at, size in runs)


@pytest.mark.parametrize("runs", [[(0, 0)], [(5, 5), (9, 5)], [(len(DATA), 1)], [(7, len(DATA))]])
def test_runs_that_a_chunk_does_not_have_are_refused(runs: list[tuple[int, int]]) -> None:
    with pytest.raises(InvalidChunk):
        block_spans([ByteRun(*run) for run in runs], len(DATA))
