"""The demo from its first line to its report."""

import signal
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType

from rich.console import Console
from rich.table import Table

from exastore.deploy.cli.output import binary_size, duration
from exastore.deploy.clock import SystemClock
from exastore.deploy.demo.decade import Decade, simulate
from exastore.deploy.demo.folder import prepare, remove
from exastore.deploy.demo.report import write_report
from exastore.deploy.demo.steps import ClusterStory, Outcome, Transfer
from exastore.deploy.errors import DeployError
from exastore.deploy.files import write_json
from exastore.deploy.version import version


@dataclass(frozen=True, slots=True)
class DemoOptions:
    """What the command line says.

    Attributes:
        out: Folder for report, summary and simulation results.
        size_bytes: Least bytes stored.
        keep: Whether the stopped cluster's data stays.
        out_after_s: Silence after which a node is given up and its chunks are rebuilt.
        preset: Scenario of the simulated decade.
    """

    out: Path
    size_bytes: int = 256 * 2**20
    keep: bool = False
    out_after_s: float = 12.0
    preset: str = "1eib"


def run_demo(options: DemoOptions, console: Console, clock: SystemClock) -> Path:
    """Run all six steps; returns the report's path.

    Raises:
        DeployError: A step failed; the cluster is stopped, its logs are kept.
    """
    begin_s = clock.monotonic_s()
    prepare(options.out)
    cluster_dir, scratch = options.out / "cluster", options.out / "scratch"
    story = ClusterStory(
        cluster_dir,
        scratch,
        size_bytes=options.size_bytes,
        out_after_s=options.out_after_s,
        console=console,
        clock=clock,
    )
    with _sigterm_interrupts():
        try:
            story.run()
        except DeployError as error:
            logs = cluster_dir / "logs"
            error.hint = " ".join(part for part in (error.hint, f"logs are kept in {logs}") if part)
            raise
        finally:
            # However it ends: no process of the demo outlives it.
            with console.status("stopping the cluster"):
                story.stop()
            remove(scratch)
        with story.step(5, f"simulate ten years of {options.preset}"):
            decade = simulate(options.preset, options.out / "sim", story.outcome, console, clock)
        report = options.out / "report.html"
        with story.step(6, "write the report"):
            write_report(report, story.outcome, decade)
            console.print(f"  {report} opens offline", soft_wrap=True)
    if not options.keep:
        remove(cluster_dir)
    elapsed_s = clock.monotonic_s() - begin_s
    write_json(options.out / "summary.json", summary(story.outcome, decade, elapsed_s))
    console.print(summary_table(story.outcome, decade, elapsed_s))
    console.print(f"[bold green]done[/] in {duration(elapsed_s)}: {report}", soft_wrap=True)
    return report


@contextmanager
def _sigterm_interrupts() -> Generator[None]:
    """SIGTERM ends the demo as Ctrl-C does: with the cluster stopped."""

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def summary(outcome: Outcome, decade: Decade, elapsed_s: float) -> dict[str, object]:
    """Every figure of the demo, for programs."""
    repair, verified = outcome.repair, outcome.verified
    assert repair is not None and verified is not None, "a summary follows a finished story"

    def transfer(value: Transfer | None) -> dict[str, object]:
        assert value is not None
        return {**asdict(value), "bytes_per_s": value.bytes_per_s}

    return {
        "version": version(),
        "elapsed_s": elapsed_s,
        "step_times_s": outcome.step_times_s,
        "code": outcome.code,
        "node_count": outcome.node_count,
        "out_after_s": outcome.out_after_s,
        "write": transfer(outcome.write),
        "degraded_read": transfer(outcome.degraded_read),
        "final_read": transfer(outcome.final_read),
        "late_object_count": len(outcome.late_objects),
        "repair": {
            **asdict(repair),
            "bytes_per_s": repair.bytes_per_s,
            "device_bytes_per_s": repair.device_bytes_per_s,
            "redundant_after_s": outcome.redundant_after_s,
        },
        "verified": {
            "stripe_count": verified.stripe_count,
            "chunk_count": verified.chunk_count,
            "healthy_chunk_count": verified.healthy_chunk_count,
            "fully_redundant": verified.fully_redundant,
        },
        "decade": decade.to_json(),
    }


def summary_table(outcome: Outcome, decade: Decade, elapsed_s: float) -> Table:
    """The figures that matter, for people."""
    repair, verified = outcome.repair, outcome.verified
    assert repair is not None and verified is not None, "a summary follows a finished story"
    table = Table(title="what happened", show_header=False, title_justify="left")
    table.add_column(style="bold")
    table.add_column()
    rows: list[tuple[str, str]] = [
        ("cluster", f"{outcome.node_count} storage nodes, {outcome.code}"),
        ("written", str(outcome.write)),
        ("read with 2 nodes dead", str(outcome.degraded_read)),
        ("written with 2 nodes dead", f"{len(outcome.late_objects)} objects"),
        (
            "repaired",
            f"{repair.rebuilt_chunk_count:,} chunks, {binary_size(repair.rebuilt_chunk_bytes)}, in "
            f"{duration(repair.elapsed_s)}: {repair.device_bytes_per_s / 1e6:.1f} MB/s per device",
        ),
        ("fully redundant", f"{duration(outcome.redundant_after_s)} after the kill"),
        ("verified", f"{verified.chunk_count:,} chunks, all healthy; every SHA-256 as stored"),
        *decade.rows(),
        ("time", duration(elapsed_s)),
    ]
    for label, text in rows:
        table.add_row(label, text)
    return table
