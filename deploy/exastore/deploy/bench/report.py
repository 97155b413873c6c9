"""The tables and the summary of a run, as lines of fixed width, so that a file gets all of it."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import geometric_mean, median
from typing import Final

from exastore.deploy.bench.peers import CALL, KERNEL, POINTERS
from exastore.deploy.bench.results import (
    OURS,
    PRODUCTS,
    ROOFLINE,
    FirstUse,
    Overhead,
    Record,
    Repair,
    Speed,
)

#: What is to be reached: against ISA-L in every cell and on the geometric mean, of the roofline,
#: of Reed-Solomon's speed by local codes, by Clay repair, by a warm first use, by `portable`.
ISAL_EACH: Final = 1.0
ISAL_MEAN: Final = 1.3
ROOFLINE_EACH: Final = 0.85
LRC_EACH: Final = 1.0
REPAIR_EACH: Final = 1.0
FIRST_USE_S: Final = 0.3
PORTABLE_BYTES_PER_S: Final = 1e9

_WIDTH: Final = 13


@dataclass(frozen=True, slots=True)
class Summary:
    """Our speed over that of one peer, over all cells of an operation."""

    kernel: str
    operation: str
    peer: str
    way: str
    mean: float
    least: float
    least_geometry: str
    cells: int
    #: What each cell and the mean should reach; None where nothing was promised.
    target_each: float | None
    target_mean: float | None
    #: Cells below `target_each`, the worst first, each with what its limits are.
    below: tuple[str, ...]

    @property
    def is_met(self) -> bool:
        """Whether all that was promised is reached."""
        return not self.below and self.mean >= (self.target_mean or 0)


def speeds(records: Iterable[Record], table: str) -> list[Speed]:
    """The speeds of one table."""
    return [r for r in records if isinstance(r, Speed) and r.table == table]


def summarise(records: Sequence[Record]) -> list[Summary]:
    """By kernel, operation, peer and way, in the order of the records."""
    groups: dict[tuple[str, str, str, str], list[Speed]] = {}
    for record in speeds(records, "speed"):
        if record.peer not in (OURS, PRODUCTS):
            key = (record.kernel, record.operation, record.peer, record.way)
            groups.setdefault(key, []).append(record)
    kernels = list(dict.fromkeys(key[0] for key in groups))
    isals = {kernel: _newest_isal(groups, kernel) for kernel in kernels}
    limits = _limits(records)
    found: list[Summary] = []
    for (kernel, operation, peer, way), cells in groups.items():
        is_first = kernel == kernels[0]
        each = mean = None
        if peer == ROOFLINE and is_first:
            each = ROOFLINE_EACH
        elif peer == isals[kernel] and kernel != "portable" and way != POINTERS:
            each, mean = ISAL_EACH, ISAL_MEAN if is_first and kernel != "avx2" else None
        worst_first = sorted(cells, key=lambda cell: cell.ratio)
        found.append(
            Summary(
                kernel,
                operation,
                peer,
                way,
                geometric_mean(cell.ratio for cell in cells),
                worst_first[0].ratio,
                worst_first[0].geometry,
                len(cells),
                each,
                mean,
                tuple(_below(c, limits) for c in worst_first if each and c.ratio < each),
            )
        )
    return found


def _limits(records: Sequence[Record]) -> dict[tuple[str, str, str], Speed]:
    """What bounds a cell, by kernel, geometry, and which limit."""
    return {
        (record.kernel, record.geometry, record.peer): record
        for record in speeds(records, "speed")
        if record.peer in (ROOFLINE, PRODUCTS)
    }


def _below(cell: Speed | Repair, limits: Mapping[tuple[str, str, str], Speed]) -> str:
    """A cell below its target, and how near to the limits we are."""
    if isinstance(cell, Repair):
        return f"{cell.geometry} {cell.ratio:.3f}"
    told = [f"{cell.ratio_low:.3f}-{cell.ratio_high:.3f}"] if cell.peer != ROOFLINE else []
    for name in (ROOFLINE, PRODUCTS):
        limit = limits.get((cell.kernel, cell.geometry, name))
        if limit is not None and cell.way == KERNEL and name != cell.peer:
            told.append(f"{limit.ratio * 100:.0f} % of the {name}")
    return f"{cell.geometry} {cell.ratio:.3f}" + (f" ({', '.join(told)})" if told else "")


def _newest_isal(groups: Iterable[tuple[str, str, str, str]], kernel: str) -> str | None:
    """The first one: peers come with the newest first."""
    return next((k[2] for k in groups if k[0] == kernel and k[2].startswith("isal")), None)


def all_tables(records: Sequence[Record]) -> Iterator[str]:
    """Every table that there are records for, then the summary, line by line."""
    yield from overhead_lines(records)
    for kernel in dict.fromkeys(record.kernel for record in speeds(records, "speed")):
        own = [r for r in speeds(records, "speed") if r.kernel == kernel]
        yield f"\nkernel {kernel}: GB/s of data, and our speed over theirs (of the limits: in %)"
        yield from _grid(own)
    yield from other_tables(records)
    if any(isinstance(record, Speed | Repair | FirstUse) for record in records):
        yield ""
        yield from summary_lines(records)


def other_tables(records: Sequence[Record]) -> Iterator[str]:
    """The tables of local codes, of repair, and of first use."""
    if local := speeds(records, "lrc"):
        yield "\nLRC encode: GB/s of data, and our LRC's speed over that of Reed-Solomon"
        yield from _local_lines(local)
    if repairs := [r for r in records if isinstance(r, Repair)]:
        rate = repairs[0].read_rate_bytes_per_s / 1e6
        yield f"\nrepair of one chunk, reads at {rate:.0f} MB/s and what was measured to compute"
        yield from _repair_lines(repairs)
    if firsts := [r for r in records if isinstance(r, FirstUse)]:
        yield f"\nfirst use in a new process, medians of {firsts[0].rounds}"
        yield from _first_use_lines(firsts)


def overhead_lines(records: Iterable[Record]) -> Iterator[str]:
    """What a call costs apart from the bytes."""
    first = True
    for record in records:
        if isinstance(record, Overhead):
            if first:
                yield "what a call costs: rs-10-4 with chunks of 64 bytes; ctypes by itself"
                first = False
            cost = f"{record.call_s * 1e6:8.3f} µs"
            yield f"  {cost}  {record.peer}, {record.way} (kernel {record.kernel})"


def _grid(cells: Sequence[Speed]) -> Iterator[str]:
    shown = [KERNEL, CALL]
    columns = list(dict.fromkeys((c.way, c.peer) for c in cells if c.way in shown))
    columns.sort(key=lambda column: shown.index(column[0]))
    rows: dict[str, dict[tuple[str, str], Speed]] = {}
    for cell in cells:
        rows.setdefault(cell.geometry, {})[cell.way, cell.peer] = cell
    yield _line("", (way for way, _ in columns))
    yield _line("", (peer for _, peer in columns))
    for geometry, found in rows.items():
        yield _line(geometry, (_cell(found.get(column)) for column in columns))


def _line(label: str, cells: Iterable[str]) -> str:
    return (f"{label:24}" + "".join(f" {cell:>{_WIDTH}}" for cell in cells)).rstrip()


def _cell(cell: Speed | None) -> str:
    if cell is None:
        return "-"
    speed = f"{cell.data_bytes_per_s / 1e9:.2f}"
    if cell.peer == OURS:
        return speed
    if cell.peer in (ROOFLINE, PRODUCTS):
        return f"{speed} {cell.ratio * 100:4.0f}%"
    return f"{speed} {cell.ratio:5.2f}x"


def _local_lines(cells: Sequence[Speed]) -> Iterator[str]:
    by_cell: dict[str, list[Speed]] = {}
    for cell in cells:
        by_cell.setdefault(cell.geometry, []).append(cell)
    for geometry, found in by_cell.items():
        parts = [f"{c.way} {c.peer} {_cell(c)}" for c in sorted(found, key=lambda c: c.way)]
        yield f"{geometry:28}" + ";  ".join(parts)


def _repair_lines(repairs: Sequence[Repair]) -> Iterator[str]:
    for r in repairs:
        even = r.break_even_bytes_per_s
        yield (
            f"{r.geometry:36} reads {r.read_bytes / r.chunk_bytes:5.2f} chunks,"
            f" computes {r.compute_s * 1e3:8.3f} ms, in all {r.total_s * 1e3:9.2f} ms;"
            f"  {r.peer}: {r.peer_read_bytes / r.chunk_bytes:5.2f},"
            f" {r.peer_compute_s * 1e3:7.3f} ms, {r.peer_total_s * 1e3:9.2f} ms;"
            f"  {r.ratio:5.2f}x, faster "
            + (f"up to {even / 1e6:.0f} MB/s" if even else "at any rate")
        )


def _first_use_lines(firsts: Sequence[FirstUse]) -> Iterator[str]:
    for first in firsts:
        yield (
            f"{first.code:14} cache {first.cache:5} {first.first_stripe_s * 1e3:7.0f} ms from the"
            f" start to the first stripe, {first.numpy_s * 1e3:.0f} of them Python and NumPy,"
            f" {first.import_to_stripe_s * 1e3:.0f} ours"
        )


def summary_lines(records: Sequence[Record]) -> Iterator[str]:
    """What was reached, what was promised, and every cell below it."""
    for summary in summarise(records):
        yield (
            f"{summary.operation} with {summary.kernel} against {summary.peer}, {summary.way}:"
            f" {summary.mean:.2f}x geometric mean, {summary.least:.3f}x least"
            f" ({summary.least_geometry}) of {summary.cells}{_verdict(summary)}"
        )
        if summary.below:
            yield "    below: " + ", ".join(summary.below)
    yield from _copies_lines(records)
    yield from _other_targets(records)


def _verdict(summary: Summary) -> str:
    promised: list[str] = []
    if summary.target_each is not None:
        promised.append(f"each {summary.target_each:g}")
    if summary.target_mean is not None:
        promised.append(f"mean {summary.target_mean:g}")
    if not promised:
        return ""
    return f"; target {', '.join(promised)}: {'met' if summary.is_met else 'MISSED'}"


def _copies_lines(records: Sequence[Record]) -> Iterator[str]:
    """How much of pyeclib's time is not coding: the ISA-L that it calls was timed beside it."""
    cells: dict[tuple[str, str], dict[tuple[str, str], Speed]] = {}
    for record in speeds(records, "speed"):
        cell = cells.setdefault((record.kernel, record.geometry), {})
        # Of several ISA-Ls the first one, which is the newest.
        cell.setdefault((record.peer.partition("-")[0], record.way), record)
    for operation in dict.fromkeys(r.operation for r in speeds(records, "speed")):
        shares = [
            1 - found["isal", KERNEL].call_s / found["pyeclib", CALL].call_s
            for found in cells.values()
            if {("isal", KERNEL), ("pyeclib", CALL)} <= found.keys()
            and found["pyeclib", CALL].operation == operation
        ]
        if shares:
            yield (
                f"{operation} by pyeclib: in the median cell {median(shares) * 100:.0f} % of a call"
                " is not coding but copies, allocation, tables and headers"
            )


def _other_targets(records: Sequence[Record]) -> Iterator[str]:
    for way in (KERNEL, CALL):
        found = [c for c in speeds(records, "lrc") if c.peer != OURS and c.way == way]
        yield from _each(f"LRC encode over Reed-Solomon, {way}", found, LRC_EACH)
    repairs = [record for record in records if isinstance(record, Repair)]
    yield from _each("Clay repair over Reed-Solomon's", repairs, REPAIR_EACH)
    for first in records:
        if isinstance(first, FirstUse) and first.cache == "warm":
            met = "met" if first.first_stripe_s <= FIRST_USE_S else "MISSED"
            yield (
                f"first stripe of {first.code}, warm cache: {first.first_stripe_s:.3f} s;"
                f" target {FIRST_USE_S:g} s: {met}"
            )
    portable = [
        cell
        for cell in speeds(records, "speed")
        if (cell.kernel, cell.peer, cell.code) == ("portable", OURS, "rs-10-4")
    ]
    if portable:
        least = min(portable, key=lambda cell: cell.data_bytes_per_s)
        met = "met" if least.data_bytes_per_s >= PORTABLE_BYTES_PER_S else "MISSED"
        yield (
            f"portable kernel, rs-10-4: {least.data_bytes_per_s / 1e9:.2f} GB/s least"
            f" ({least.geometry}, {least.way}); target 1 GB/s: {met}"
        )


def _each(what: str, found: Sequence[Speed | Repair], target: float) -> Iterator[str]:
    if not found:
        return
    worst_first = sorted(found, key=lambda cell: cell.ratio)
    below = [cell for cell in worst_first if cell.ratio < target]
    mean = geometric_mean(cell.ratio for cell in found)
    yield (
        f"{what}: {mean:.2f}x geometric mean, {worst_first[0].ratio:.3f}x least"
        f" ({worst_first[0].geometry}) of {len(found)}; target each {target:g}:"
        f" {'MISSED' if below else 'met'}"
    )
    if below:
        yield "    below: " + ", ".join(_below(cell, {}) for cell in below)
