"""`exastore sim ...`: years of a cluster, simulated with the cluster's own code."""

import os
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.progress import (
    BarColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from exastore.deploy.cli.options import JsonOption
from exastore.deploy.cli.output import duration, err, out, print_json
from exastore.deploy.clock import SystemClock
from exastore.deploy.errors import BadInput, EnvironmentUnfit, ExitCode
from exastore.deploy.files import write_atomically

if TYPE_CHECKING:
    from exastore.metadata.core.balancer import BalanceReport
    from exastore.sim import Results

app = typer.Typer(help="Simulate years of a cluster.", no_args_is_help=True)

ScenarioArgument = Annotated[
    str, typer.Argument(help="Scenario file, or a preset's name.", show_default=False)
]
SeedOption = Annotated[int | None, typer.Option(min=0, help="Seed.", show_default="the scenario's")]


#: As `exastore.sim.run` calls it: what is being done, how much is done, how much there is.
SimProgress = Callable[[str, float, float], None]


@contextmanager
def sim_errors() -> Generator[None]:
    """Errors of the simulator as errors of the command line."""
    from exastore.sim.errors import SimError

    try:
        yield
    except SimError as error:
        raise BadInput(str(error)) from error
    except OSError as error:
        raise EnvironmentUnfit(f"cannot write the results: {error}") from error


@app.command()
def presets(
    json_output: JsonOption = False,
    markdown: Annotated[
        bool, typer.Option("--markdown", help="Print the table of docs/simulator.md.")
    ] = False,
) -> None:
    """List the scenarios that come with exastore."""
    from exastore.sim.catalogue import preset_markdown, preset_rows

    if markdown:
        out.print(preset_markdown(), markup=False, soft_wrap=True)
        return
    head, *rows = preset_rows()
    if json_output:
        print_json({row[0]: dict(zip(head[1:], row[1:], strict=True)) for row in rows})
        return
    for name, *_, description, source in rows:
        published = f" ({source})" if source else ""
        out.print(f"{name:18} {description}{published}", markup=False, soft_wrap=True)


@contextmanager
def sim_progress() -> Generator[SimProgress]:
    """A bar that shows what the simulator does; to be passed as its `progress`."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TimeElapsedColumn(),
        TextColumn("left:"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=err, transient=True) as progress:
        tasks: dict[str, TaskID] = {}

        def tell(what: str, done: float, total: float) -> None:
            if what not in tasks:
                tasks[what] = progress.add_task(what, total=total)
            progress.update(tasks[what], completed=done, total=total)

        yield tell


@app.command("place")
def place_command(
    scenario: ScenarioArgument, seed: SeedOption = None, json_output: JsonOption = False
) -> None:
    """Place the scenario's groups and show how evenly, and whether the rule is kept."""
    from exastore.metadata.core.balance import balance_of
    from exastore.sim import load_scenario, place

    clock = SystemClock()
    with sim_errors(), sim_progress() as progress:
        loaded = load_scenario(scenario)
        used_seed = loaded.run.seed if seed is None else seed
        begin_s = clock.monotonic_s()
        placement = place(loaded, seed=used_seed, progress=progress)
        elapsed_s = clock.monotonic_s() - begin_s
    balance = balance_of(placement.pg_devices, placement.topology.device_weight)
    figures: dict[str, object] = {
        "scenario": loaded.name,
        "seed": used_seed,
        "code": loaded.code,
        "device_count": placement.topology.device_count,
        "pg_count": len(placement.pg_devices),
        "slots_per_device_mean": balance.mean,
        "slots_per_device_stddev": balance.stddev,
        "slots_per_device_min": balance.minimum,
        "slots_per_device_max": balance.maximum,
        "violations": placement.violations,
        "elapsed_s": elapsed_s,
        "balanced": placement.balancing is not None,
    }
    balancing = placement.balancing
    if balancing is not None:
        figures |= {
            "slots_per_device_stddev_before": balancing.before.stddev,
            "slots_per_device_min_before": balancing.before.minimum,
            "slots_per_device_max_before": balancing.before.maximum,
            "largest_deviation_before": balancing.deviation_before,
            "largest_deviation": balancing.deviation_after,
            "moved_slot_count": balancing.moved_slot_count,
            "minimum_moves": balancing.minimum_moves,
            "violations_before": balancing.violations_before,
        }
    if json_output:
        print_json(figures)
    else:
        out.print(
            f"{loaded.name}: {figures['pg_count']:,} placement groups of {loaded.code} on "
            f"{figures['device_count']:,} devices, seed {used_seed}, in {duration(elapsed_s)}\n"
            f"slots per device: mean {balance.mean:.2f}, stddev {balance.stddev:.2f}, "
            f"min {balance.minimum:.0f}, max {balance.maximum:.0f}\n"
            + _balancing_text(balancing)
            + f"groups that break the domain rule: {placement.violations}",
            soft_wrap=True,
        )
    if placement.violations:
        raise typer.Exit(ExitCode.FAILED)


def _balancing_text(report: "BalanceReport | None") -> str:
    """A line on what the balancer did to the placement."""
    if report is None:
        return "not balanced: balanced = false in [placement]\n"
    before = report.before
    return (
        f"before balancing: stddev {before.stddev:.2f}, min {before.minimum:.0f}, "
        f"max {before.maximum:.0f}; moved {report.moved_slot_count:,} slots, at least "
        f"{report.minimum_moves:,} had to; now at most {report.deviation_after:.2f} slots "
        "from the ideal\n"
    )


@app.command("run")
def run_command(
    scenario: ScenarioArgument,
    directory: Annotated[
        Path, typer.Option("--out", help="Folder for the results.", show_default=False)
    ],
    trials: Annotated[
        int | None, typer.Option(min=1, help="Trials.", show_default="the scenario's")
    ] = None,
    seed: SeedOption = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Threads.", show_default="one per core")
    ] = None,
    metrics_address: Annotated[
        str,
        typer.Option(
            help="Serve the progress to Prometheus at host:port while the run lasts.",
            show_default="not served",
        ),
    ] = "",
    checkpoint: Annotated[
        Path | None,
        typer.Option(help="Folder that keeps what a stopped run needs.", show_default="none kept"),
    ] = None,
    checkpoint_every: Annotated[
        float, typer.Option(min=0.25, help="Years of a trial between two checkpoints.")
    ] = 1.0,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the checkpoints, to the same tables.")
    ] = False,
    check: Annotated[
        bool,
        typer.Option("--check", help="Check every invariant after every event; small clusters."),
    ] = False,
    json_output: JsonOption = False,
) -> None:
    """Simulate a scenario; the same seed gives the same tables, whatever the workers."""
    from exastore.sim import load_scenario, run, summarize

    if resume and checkpoint is None:
        raise BadInput("--resume goes on from checkpoints; give their folder with --checkpoint")
    with sim_errors(), sim_progress() as bar, ExitStack() as stack:
        loaded = load_scenario(scenario)
        progress = _also_to_prometheus(bar, loaded.name, metrics_address, stack)
        results = run(
            loaded,
            trials=trials,
            seed=seed,
            workers=workers or os.cpu_count() or 1,
            progress=progress,
            monotonic_s=SystemClock().monotonic_s,
            out=directory,
            checkpoint=checkpoint,
            checkpoint_every_years=checkpoint_every,
            resume=resume,
            checked=check,
        )
        write_report(results, directory / "report.html")
    summary = summarize(results)
    if json_output:
        print_json(
            {
                "scenario": loaded.name,
                "seed": results.provenance.seed,
                "trials": results.provenance.trials,
                "out": str(directory),
                "summary": [
                    {"label": label, "value": value, "text": text} for label, value, text in summary
                ],
            }
        )
        return
    table = Table(show_header=False)
    for label, value, text in summary:
        table.add_row(label, value, text)
    out.print(table)
    out.print(
        f"results are in {directory}, its page is {directory / 'report.html'}", soft_wrap=True
    )


def _also_to_prometheus(
    bar: SimProgress, scenario: str, address: str, stack: ExitStack
) -> SimProgress:
    """A progress that is shown and served; the port is closed with the stack."""
    if not address:
        return bar
    from exastore.deploy.process import new_registry, serve_metrics
    from exastore.deploy.sim_metrics import SimMetrics

    registry = new_registry("sim")
    metrics = SimMetrics(registry, SystemClock().monotonic_s)
    endpoint = serve_metrics(address, registry)
    stack.callback(endpoint.stop)
    err.print(f"metrics are at http://{endpoint.address}/metrics", markup=False, soft_wrap=True)

    def tell(what: str, done: float, total: float) -> None:
        bar(what, done, total)
        metrics.tell(scenario, what, done, total)

    return tell


@app.command("report")
def report_command(
    directory: Annotated[
        Path,
        typer.Argument(help="Folder of `sim run` or `sim durability`.", show_default=False),
    ],
    file: Annotated[
        Path | None, typer.Option("--out", help="Page to write.", show_default="DIR/report.html")
    ] = None,
) -> None:
    """Write the page of a run: one file with charts that opens offline."""
    from exastore.sim import DurabilityResults, Results
    from exastore.sim.report.durability import durability_report

    path = file or directory / "report.html"
    is_counted = (directory / "durability.parquet").exists()
    with sim_errors():
        if is_counted and not (directory / "trials.parquet").exists():
            write_atomically(path, durability_report(DurabilityResults.read(directory)))
        else:
            write_report(Results.read(directory), path)
    out.print(str(path), markup=False, soft_wrap=True)


@app.command("compare")
def compare_command(
    directories: Annotated[
        list[Path], typer.Argument(help="Folders that `sim run` wrote.", show_default=False)
    ],
    file: Annotated[
        Path | None, typer.Option("--out", help="Also write a page with charts.")
    ] = None,
    json_output: JsonOption = False,
) -> None:
    """Show several runs side by side."""
    from exastore.sim import Results
    from exastore.sim.report import comparison_report, comparison_rows

    with sim_errors():
        runs = list(
            zip(_run_names(directories), map(Results.read, directories), strict=True),
        )
        try:
            head, *rows = comparison_rows(runs)
        except ValueError as error:
            raise BadInput(str(error)) from error
        if file is not None:
            write_atomically(file, comparison_report(runs))
    if json_output:
        print_json({name: {row[0]: row[1 + i] for row in rows} for i, name in enumerate(head[1:])})
        return
    table = Table(*head)
    for row in rows:
        table.add_row(*row)
    out.print(table)
    if file is not None:
        out.print(f"the page is {file}", markup=False, soft_wrap=True)


def _run_names(directories: list[Path]) -> list[str]:
    """What to call the runs: the folders' names, or their paths where these are not different."""
    names = [path.resolve().name for path in directories]
    return names if len(set(names)) == len(names) else [str(path) for path in directories]


def write_report(results: "Results", path: Path) -> None:
    """Write the page of a run."""
    from exastore.sim.report import simulation_report

    write_atomically(path, simulation_report(results))
