"""`exastore bench ...`: how fast this machine is, side by side with other software."""

import json
import os
import re
import shlex
import signal
import sys
from collections.abc import Generator, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from exastore.deploy.cli.output import duration, err, out
from exastore.deploy.clock import SystemClock
from exastore.deploy.errors import BadInput, EnvironmentUnfit, ExitCode
from exastore.deploy.files import write_atomically

if TYPE_CHECKING:
    from exastore.deploy.bench import placement, store
    from exastore.deploy.bench.erasure import Options, Step
    from exastore.deploy.bench.results import Record

app = typer.Typer(help="Measure this machine.", no_args_is_help=True)

#: Without a terminal, progress is told this often.
_TELL_S = 15.0


@app.callback()
def bench() -> None:
    """Measure this machine."""


class Suite(StrEnum):
    """What can be measured."""

    ERASURE = "erasure"
    PLACEMENT = "placement"
    STORE = "store"


@app.command("run")
def run(
    suite: Annotated[Suite, typer.Argument(help="What to measure.")],
    vs: Annotated[
        str | None,
        typer.Option(
            help="Compare with these, commas between. Of erasure isal, pyeclib, zfec; of store "
            'seaweedfs. By default all; "" for none.'
        ),
    ] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write the results here, as JSON lines.")
    ] = None,
    markdown_file: Annotated[
        Path | None, typer.Option("--markdown", help="Write the results here, as a page.")
    ] = None,
    kernel: Annotated[
        str | None,
        typer.Option(
            help="Force a kernel, as EXASTORE_KERNEL does, and measure it alone. "
            "By default the fastest, then avx2 and portable."
        ),
    ] = None,
    isal_functions: Annotated[
        str,
        typer.Option(
            help="ISA-L's functions: own (its choice), base, sse, avx, avx2, avx512, avx2_gfni, "
            "avx512_gfni; auto: those for the instructions of our kernel."
        ),
    ] = "auto",
    isal_library: Annotated[
        Path | None, typer.Option(help="One more libisal.so to compare with.")
    ] = None,
    codes: Annotated[
        str | None, typer.Option(help="Reed-Solomon codes, as 10+4 or rs-10-4; commas between.")
    ] = None,
    sizes: Annotated[
        str | None, typer.Option(help="Sizes of a chunk, as 64KiB or 1MiB; commas between.")
    ] = None,
    operations: Annotated[
        str, typer.Option(help="encode, decode (of the first min(4, m) data chunks), or both.")
    ] = "encode,decode",
    tables: Annotated[
        str, typer.Option(help="Of speed, lrc, repair, first-use; commas between.")
    ] = "speed,lrc,repair,first-use",
    parts: Annotated[
        str,
        typer.Option(
            help="Of store: large, small, degraded, rebuild, memory, huge; commas between."
        ),
    ] = "large,small,degraded,rebuild,memory,huge",
    directory: Annotated[
        Path | None,
        typer.Option("--dir", help="Of store: where the stores' data lie while it runs."),
    ] = None,
    rounds: Annotated[
        int | None,
        typer.Option(min=1, help="Rounds of each cell; medians count. [default: 11, of store 5]"),
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Three codes, three sizes, one kernel, few rounds.")
    ] = False,
    core: Annotated[
        int | None, typer.Option(min=0, help="The core to use; by default the last one.")
    ] = None,
) -> None:
    """Measure one suite on one core and print it side by side with others.

    A ratio is our speed over theirs, so above 1 we are faster.
    """
    if suite is Suite.PLACEMENT:
        _measure_placement(min(rounds or 11, 3) if quick else rounds or 11, json_file, core)
        return
    if suite is Suite.STORE:
        _measure_store(vs, parts, directory, rounds or (2 if quick else 5), json_file)
        return
    rounds = rounds or 11
    from exastore.deploy.bench import erasure, peers, stripes

    kernels = _kernels(kernel, quick)
    default_codes = erasure.QUICK_CODES if quick else erasure.CODES
    default_sizes = erasure.QUICK_CHUNK_SIZES if quick else erasure.CHUNK_SIZES
    options = erasure.Options(
        kernels=kernels,
        families=_names(",".join(peers.FAMILIES) if vs is None else vs, peers.FAMILIES, "--vs"),
        codes=default_codes if codes is None else _codes(codes),
        chunk_sizes=default_sizes if sizes is None else _sizes(sizes),
        operations=_names(operations, stripes.OPERATIONS, "--operations"),
        tables=_names(tables, erasure.TABLES, "--tables"),
        rounds=min(rounds, 5) if quick else rounds,
        isal_functions=isal_functions,
        isal_library=isal_library,
    )
    _measure(options, json_file, markdown_file, core)


def _measure_placement(rounds: int, json_file: Path | None, core: int | None) -> None:
    """Placement and balance, side by side with crushtool; all other options are of erasure."""
    import shutil

    from exastore.deploy.bench import placement
    from exastore.deploy.bench.provenance import provenance

    tool = shutil.which("crushtool")
    if tool is None:
        err.print("[yellow]not compared with crushtool:[/] not installed: apt install ceph-base")
    figures: list[placement.Figure] = []
    with _on_core(core) as used:
        origin = provenance(used, SystemClock().now_s())
        _say(f"{origin.processor}, {origin.processor_features}, core {used}, one thread")
        _say(f"commit {origin.commit or 'unknown'}, {origin.packages}")
        for name, step in placement.steps(tool, rounds):
            _say(f"\n{name}")
            for figure in step():
                figures.append(figure)
                _say_figure(figure)
    if json_file is not None:
        about = {"suite": Suite.PLACEMENT, **asdict(origin)}
        lines = (json.dumps({**placement.as_json(figure), **about}) for figure in figures)
        _write(json_file, "".join(f"{line}\n" for line in lines))


def _say_figure(figure: "placement.Figure | store.Figure") -> None:
    values = "  ".join(f"{key} {value:,.6g}" for key, value in figure.values.items())
    verdict = f"  {'reached' if figure.is_reached else 'MISSED'}: {figure.target}"
    _say(f"  {figure.case}: {values}{verdict if figure.target else ''}")


def _measure_store(
    vs: str | None, parts: str, directory: Path | None, rounds: int, json_file: Path | None
) -> None:
    """The store over S3, side by side with others."""
    from exastore.deploy.bench import store, stores
    from exastore.deploy.bench.provenance import provenance

    options = store.Options(
        peers=_names(",".join(stores.PEERS) if vs is None else vs, stores.PEERS, "--vs"),
        parts=_names(parts, store.PARTS, "--parts"),
        rounds=rounds,
        folder=directory,
    )
    origin = provenance(None, SystemClock().now_s())
    _say(f"{origin.processor}, {origin.processor_features}, {os.cpu_count()} cores")
    _say(f"commit {origin.commit or 'unknown'}, {origin.packages}")
    lines: list[str] = []
    with _ended_by_sigterm():
        for figure in store.measure(options, lambda text: err.print(text, markup=False)):
            _say_figure(figure)
            lines.append(json.dumps({**store.as_json(figure), "suite": "store", **asdict(origin)}))
    if json_file is not None:
        _write(json_file, "".join(f"{line}\n" for line in lines))


@contextmanager
def _ended_by_sigterm() -> Generator[None]:
    """Let SIGTERM end this process as an interrupt does, so that what was started is stopped."""

    def end(number: int, _frame: object) -> None:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _measure(
    options: "Options", json_file: Path | None, markdown_file: Path | None, core: int | None
) -> None:
    from exastore.deploy.bench import erasure, markdown, report
    from exastore.deploy.bench.provenance import provenance
    from exastore.deploy.bench.results import as_json

    steps, peers, missing = erasure.plan(options)
    for name, reason in missing.items():
        err.print(f"[yellow]not compared with {name}:[/] {reason}", soft_wrap=True)
    for path in (json_file, markdown_file):
        if path is not None and not os.access(path.parent, os.W_OK):
            raise EnvironmentUnfit(f"cannot write {path}: no folder to write in")
    records: list[Record] = []
    interrupted = False
    with _on_core(core) as used:
        origin = provenance(used, SystemClock().now_s())
        _say(f"{origin.processor}, {origin.processor_features}, core {used}, one thread")
        _say(f"commit {origin.commit or 'unknown'}, {origin.packages}")
        for peer in peers:
            _say(f"{peer.name}: {peer.details}")
        try:
            for step in _with_progress(steps):
                records += step.run()
        except KeyboardInterrupt:
            interrupted = True
    for line in report.all_tables(records):
        _say(line)
    if json_file is not None:
        lines = [as_json(record, origin) for record in records]
        _write(json_file, "".join(json.dumps(line) + "\n" for line in lines))
    if markdown_file is not None:
        command = shlex.join(["exastore", *sys.argv[1:]])
        _write(markdown_file, markdown.page(records, origin, command))
    if interrupted:
        err.print("[yellow]interrupted:[/] these are the results so far")
        raise typer.Exit(ExitCode.INTERRUPTED)


@contextmanager
def _on_core(core: int | None) -> Generator[int | None]:
    from exastore.deploy.bench.timing import pinned

    with ExitStack() as stack:
        try:
            used = stack.enter_context(pinned(core))
        except OSError as error:
            raise BadInput(f"--core {core}: {error.strerror}") from error
        yield used


def _with_progress(steps: "Sequence[Step]") -> "Iterator[Step]":
    """Each step, and on stderr what is done and how long the rest will take."""
    clock = SystemClock()
    total_s = sum(step.weight_s for step in steps)
    begin_s = told_s = clock.monotonic_s()
    done_s = 0.0
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TimeElapsedColumn(),
        TextColumn("left: {task.fields[left]}"),
    )
    with Progress(*columns, console=err, transient=True, disable=not err.is_terminal) as progress:
        task = progress.add_task("measuring", total=total_s, left="not known yet")
        for number, step in enumerate(steps):
            now_s = clock.monotonic_s()
            left_s = (now_s - begin_s) / done_s * (total_s - done_s) if done_s else total_s
            label = f"{number + 1} of {len(steps)}: {step.label}"
            progress.update(task, description=label, completed=done_s, left=duration(left_s))
            if not err.is_terminal and now_s - told_s >= _TELL_S:
                err.print(f"{label}, {duration(left_s)} left", markup=False, soft_wrap=True)
                told_s = now_s
            yield step
            done_s += step.weight_s


@app.command("export")
def export(
    results: Annotated[
        Path, typer.Argument(help="JSON lines of `bench run`, or pytest-benchmark's JSON.")
    ],
    output: Annotated[
        Path | None, typer.Option("--output", help="Write here instead of to stdout.")
    ] = None,
    timestamps: Annotated[
        bool,
        typer.Option(help="Give each sample the time of its run, as backfilling needs."),
    ] = True,
) -> None:
    """Results as OpenMetrics, for Prometheus."""
    from exastore.deploy.bench.openmetrics import exposition

    try:
        text = results.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"cannot read {results}: {error}") from error
    made = exposition(text, str(results), with_timestamps=timestamps)
    if output is None:
        print(made, end="")
    else:
        _write(output, made)


def _say(line: str) -> None:
    out.print(line, markup=False, soft_wrap=True)


def _write(path: Path, text: str) -> None:
    try:
        write_atomically(path, text)
    except OSError as error:
        raise EnvironmentUnfit(f"cannot write {path}: {error}") from error


def _kernels(name: str | None, quick: bool) -> tuple[str, ...]:
    from exastore.deploy.bench.erasure import default_kernels
    from exastore.erasure.errors import UnknownKernel
    from exastore.erasure.kernels import ENVIRONMENT_VARIABLE, select_kernel

    try:
        chosen = select_kernel(name).name
    except UnknownKernel as error:
        raise BadInput(str(error)) from error
    is_forced = quick or name is not None or ENVIRONMENT_VARIABLE in os.environ
    return (chosen,) if is_forced else default_kernels(chosen)


def _names(text: str, known: Sequence[str], option: str) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(name for name in text.split(",") if name))
    for name in names:
        if name not in known:
            raise BadInput(f"{option} {name!r} is not one of {', '.join(known)}")
    return names


def _codes(text: str) -> tuple[str, ...]:
    found: list[str] = []
    for part in text.split(","):
        match = re.fullmatch(r"(?:rs-)?([0-9]{1,3})[+-]([0-9]{1,3})", part)
        if match is None or not int(match[1]) or not int(match[2]):
            raise BadInput(f"{part!r} is not a code: write k+m, for example 10+4")
        if int(match[1]) + int(match[2]) > 255:
            raise BadInput(f"{part!r} has more than 255 chunks")
        found.append(f"rs-{int(match[1])}-{int(match[2])}")
    return tuple(dict.fromkeys(found))


_UNITS = {"": 1, "B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}


def _sizes(text: str) -> tuple[int, ...]:
    found: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"([0-9]+)\s*([KMG]iB|B?)", part)
        if match is None or not int(match[1]):
            raise BadInput(f"{part!r} is not a size: write for example 64KiB or 1MiB")
        found.append(int(match[1]) * _UNITS[match[2]])
    return tuple(dict.fromkeys(found))
