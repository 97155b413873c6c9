"""The results of a run as a page: the section on erasure coding of `docs/results.md`."""

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime

from exastore.deploy.bench import report
from exastore.deploy.bench.peers import KERNEL
from exastore.deploy.bench.provenance import Provenance
from exastore.deploy.bench.results import OURS, ROOFLINE, Record, Speed
from exastore.deploy.bench.stripes import size_label


def page(records: Sequence[Record], origin: Provenance, command: str) -> str:
    """Where and how it was measured, a table per kernel and operation, and all that was judged."""
    return "\n".join([*_head(origin, command), *_grids(records), *_rest(records), ""])


def _head(origin: Provenance, command: str) -> Iterator[str]:
    when = datetime.fromtimestamp(origin.measured_at_unix_s, UTC)
    yield f"    {command}"
    yield ""
    yield (
        f"{origin.processor}, {origin.processor_features}, one core, {when:%Y-%m-%d}, commit"
        f" {origin.commit or 'unknown'}; Python {origin.python}, {origin.packages}."
    )


def _grids(records: Sequence[Record]) -> Iterator[str]:
    speeds = report.speeds(records, "speed")
    for kernel in dict.fromkeys(speed.kernel for speed in speeds):
        for operation in dict.fromkeys(speed.operation for speed in speeds):
            cells = [s for s in speeds if (s.kernel, s.operation) == (kernel, operation)]
            yield from _grid(kernel, operation, [cell for cell in cells if cell.way == KERNEL])


def _grid(kernel: str, operation: str, cells: Sequence[Speed]) -> Iterator[str]:
    if not cells:
        return
    isal = next((cell.peer for cell in cells if cell.peer.startswith("isal")), None)
    sizes = list(dict.fromkeys(cell.chunk_bytes for cell in cells))
    found = {(cell.code, cell.chunk_bytes, cell.peer): cell for cell in cells}
    yield ""
    told = [f"Data GB/s to {operation} with {kernel}"]
    told += [f"our speed over {isal}'s"] if isal else []
    if any(cell.peer == ROOFLINE for cell in cells):
        told.append("the part of the roofline that we reach")
    yield "; ".join(told) + ":"
    yield ""
    yield "| chunk | " + " | ".join(size_label(size) for size in sizes) + " |"
    yield "|---|" + "---|" * len(sizes)
    for code in dict.fromkeys(cell.code for cell in cells):
        row: list[str] = []
        for size in sizes:
            parts: list[str] = []
            if (ours := found.get((code, size, OURS))) is not None:
                parts.append(f"{ours.data_bytes_per_s / 1e9:.1f}")
            if isal and (theirs := found.get((code, size, isal))) is not None:
                parts.append(f"{theirs.ratio:.2f}x")
            if (limit := found.get((code, size, ROOFLINE))) is not None:
                parts.append(f"{limit.ratio * 100:.0f} %")
            row.append("; ".join(parts))
        yield f"| {code} | " + " | ".join(row) + " |"


def _rest(records: Sequence[Record]) -> Iterator[str]:
    """What is not a speed of Reed-Solomon, and what was judged, as the command prints it."""
    yield ""
    yield "```text"
    yield from report.overhead_lines(records)
    yield from report.other_tables(records)
    yield ""
    yield from report.summary_lines(records)
    yield "```"
