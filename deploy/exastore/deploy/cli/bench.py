"""`exastore bench ...`: how fast this machine is, side by side with other software."""

import json
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from exastore.deploy.cli.output import binary_size, err, out
from exastore.deploy.errors import BadInput, EnvironmentUnfit
from exastore.deploy.files import write_atomically

if TYPE_CHECKING:
    from exastore.deploy.bench.erasure import Overhead, Result

app = typer.Typer(help="Measure this machine.", no_args_is_help=True)


@app.callback()
def bench() -> None:
    """Measure this machine."""


class Suite(StrEnum):
    """What can be measured."""

    ERASURE = "erasure"


def _numbers(text: str, what: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError as error:
        raise BadInput(f"{what} must be numbers with commas between: {text!r}") from error


def _geometries(text: str) -> list[tuple[int, int]]:
    found: list[tuple[int, int]] = []
    for part in text.split(","):
        k, plus, m = part.partition("+")
        if not (plus and k.isdigit() and m.isdigit() and int(k) and int(m)):
            raise BadInput(f"{part!r} is not a geometry: write k+m, for example 10+4")
        if int(k) + int(m) > 255:
            raise BadInput(f"{part!r} has more than 255 chunks")
        found.append((int(k), int(m)))
    return found


@app.command("run")
def run(
    suite: Annotated[Suite, typer.Argument(help="What to measure.")],
    vs: Annotated[
        str, typer.Option(help="Compare with these of isal, pyeclib, zfec; commas between.")
    ] = "isal,pyeclib,zfec",
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write the results here, as JSON lines.")
    ] = None,
    kernel: Annotated[
        str | None, typer.Option(help="Force a kernel, as EXASTORE_KERNEL does.")
    ] = None,
    geometries: Annotated[
        str, typer.Option(help="Reed-Solomon geometries.")
    ] = "4+2,6+3,8+3,10+4,12+4,17+3,20+4",
    chunk_kib: Annotated[
        str, typer.Option(help="Sizes of a chunk, in KiB.")
    ] = "4,16,64,128,256,1024,4096,16384",
    operations: Annotated[
        str, typer.Option(help="encode, decode (of m lost data chunks), or both.")
    ] = "encode,decode",
    rounds: Annotated[int, typer.Option(min=1, help="Rounds of each cell; medians count.")] = 9,
) -> None:
    """Measure one suite on one core and print it side by side with others.

    A ratio is our speed over theirs, so above 1 we are faster.
    """
    assert suite is Suite.ERASURE
    from exastore.deploy.bench import erasure, peers
    from exastore.erasure.errors import UnknownKernel
    from exastore.erasure.kernels import select_kernel

    families = [name for name in vs.split(",") if name]
    if unknown := set(families) - set(peers.FAMILIES):
        raise BadInput(f"--vs {sorted(unknown)[0]!r} is not one of {', '.join(peers.FAMILIES)}")
    kinds = operations.split(",")
    if unknown := set(kinds) - set(erasure.OPERATIONS):
        raise BadInput(f"{sorted(unknown)[0]!r} is not one of {', '.join(erasure.OPERATIONS)}")
    sizes = [size * 1024 for size in _numbers(chunk_kib, "--chunk-kib")]
    if min(sizes) < 1:
        raise BadInput("--chunk-kib must be at least 1")
    try:
        kernel_name = select_kernel(kernel).name
    except UnknownKernel as error:
        raise BadInput(str(error)) from error
    found, missing = peers.find_peers(families, kernel_name)
    for name, reason in missing.items():
        err.print(f"[yellow]not compared with {name}:[/] {reason}", soft_wrap=True)
    out.print(f"kernel {kernel_name}, one core of {erasure.machine()['processor']}", markup=False)
    _print_overheads(erasure.overheads(found, kernel_name, rounds))
    results: list[Result] = []
    chosen = erasure.cases(_geometries(geometries), sizes, kinds)
    with err.status("measuring") as status:
        for position, cell in enumerate(
            erasure.run(
                chosen,
                found,
                kernel_name,
                rounds,
                lambda case: status.update(
                    f"{case.operation} {case.code}, chunks of {binary_size(case.chunk_bytes)}"
                ),
            )
        ):
            results += cell
            status.update(f"{position + 1} of {len(chosen)}")
    _print_table(results)
    _print_summary(results)
    if json_file is not None:
        lines = "".join(json.dumps(erasure.as_json(result)) + "\n" for result in results)
        try:
            write_atomically(json_file, lines)
        except OSError as error:
            raise EnvironmentUnfit(f"cannot write {json_file}: {error}") from error


def _print_overheads(overheads: "list[Overhead]") -> None:
    for overhead in overheads:
        text = f"  one {overhead.way} costs {overhead.call_s * 1e6:6.2f} µs: {overhead.contestant}"
        out.print(text, markup=False, soft_wrap=True)


#: Width of a column of the table.
_WIDTH = 14


def _print_table(results: "list[Result]") -> None:
    """As lines of fixed width, so that a file gets the whole of it."""
    columns = list(dict.fromkeys((result.contestant, result.way) for result in results))
    rows: dict[tuple[str, str, int], dict[tuple[str, str], Result]] = {}
    for result in results:
        cell = (result.operation, result.code, result.chunk_bytes)
        rows.setdefault(cell, {})[result.contestant, result.way] = result
    lines = [
        "GB/s of data, and our speed over theirs",
        _line("", "", "", [" ".join(name.split(" ")[:2]) for name, _ in columns]),
        _line("", "", "chunk", [way for _, way in columns]),
    ]
    for (operation, code, size), found in rows.items():
        cells = [_cell(found.get(column)) for column in columns]
        lines.append(_line(operation, code, binary_size(size), cells))
    out.print("\n".join(lines), markup=False, soft_wrap=True)


def _line(operation: str, code: str, chunk: str, cells: list[str]) -> str:
    return f"{operation:7}{code:8}{chunk:>10}" + "".join(f"{cell:>{_WIDTH}}" for cell in cells)


def _cell(result: "Result | None") -> str:
    if result is None:
        return "-"
    from exastore.deploy.bench.erasure import OURS

    speed = f"{result.data_gb_per_s:.1f}"
    return speed if result.contestant == OURS else f"{speed} {result.ratio:5.2f}x"


def _print_summary(results: "list[Result]") -> None:
    from exastore.deploy.bench.erasure import summary

    for (contestant, way), (mean, least, below, cells) in summary(results).items():
        out.print(
            f"against {contestant}, {way}: {mean:.2f}x geometric mean, {least:.2f}x least,"
            f" {below} of {cells} cells below 1",
            markup=False,
            soft_wrap=True,
        )
