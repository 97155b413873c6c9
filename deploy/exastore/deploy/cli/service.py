"""`exastore metadata run`, `node run`, `gateway run`: one process each, from a config file."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from exastore.deploy.cli.options import JsonOption
from exastore.deploy.cli.output import bar, binary_size, out, print_json
from exastore.deploy.clock import SystemClock
from exastore.deploy.config import read_config
from exastore.deploy.errors import BadInput
from exastore.deploy.process import run_process

if TYPE_CHECKING:
    from exastore.storage.fsck import FsckReport

ConfigOption = Annotated[
    Path, typer.Option("--config", help="TOML file with [process] and the service's own table.")
]

metadata = typer.Typer(help="Metadata servers.", no_args_is_help=True)
node = typer.Typer(help="Storage nodes.", no_args_is_help=True)
gateway = typer.Typer(help="S3 gateways.", no_args_is_help=True)


@metadata.callback()
@gateway.callback()
def _group() -> None:
    """Keep `run` a sub-command of its own."""


@metadata.command("run")
def metadata_run(config: ConfigOption) -> None:
    """Run one metadata server until SIGTERM."""
    from exastore.metadata.kv.errors import EngineError
    from exastore.metadata.service.config import MetadataConfig
    from exastore.metadata.service.errors import ServiceError
    from exastore.metadata.service.server import MetadataServer

    values, process = read_config(config, "metadata", MetadataConfig)
    code = run_process(
        "metadata",
        values.address,
        process,
        lambda registry: MetadataServer(values, clock=SystemClock(), registry=registry),
        (EngineError, ServiceError, ValueError),
    )
    raise typer.Exit(code)


@node.command("run")
def node_run(config: ConfigOption) -> None:
    """Run one storage node until SIGTERM."""
    from exastore.storage.config import StorageConfig
    from exastore.storage.errors import StorageError
    from exastore.storage.server import StorageNode

    values, process = read_config(config, "node", StorageConfig)
    code = run_process(
        "node",
        values.address,
        process,
        lambda registry: StorageNode(values, clock=SystemClock(), registry=registry),
        (StorageError, ValueError),
    )
    raise typer.Exit(code)


@node.command("fsck")
def node_fsck(
    device: Annotated[Path, typer.Argument(help="Folder of the device.", show_default=False)],
    rebuild_index: Annotated[
        bool,
        typer.Option("--rebuild-index", help="Then drop the index; the next start makes it anew."),
    ] = False,
    lift_fence: Annotated[
        bool,
        typer.Option("--lift-fence", help="Then let a device that had an error take writes again."),
    ] = False,
    json_output: JsonOption = False,
) -> None:
    """Check a device whose node is stopped: every record, and the index. Exit code 1: problems."""
    from exastore.storage import fsck, identity
    from exastore.storage.disk import PosixDisk
    from exastore.storage.errors import DeviceLocked, StorageError

    if not device.is_dir():
        raise BadInput(f"there is no folder {device}")
    disk = PosixDisk(device)
    try:
        with bar("checking", fsck.total_bytes(disk)) as done:
            report = fsck.check_device(disk, done)
        if rebuild_index:
            fsck.rebuild_index(disk)
        fence = identity.fence_of(disk)
        if lift_fence:
            identity.lift_fence(disk)
    except DeviceLocked as error:
        raise BadInput(str(error), hint="stop the node that serves the device") from error
    except (StorageError, OSError) as error:
        raise BadInput(f"{device} cannot be checked: {error}") from error
    if json_output:
        print_json({**asdict(report), "fence": fence})
    else:
        print_fsck(report)
        if fence is not None:
            state = "lifted" if lift_fence else "kept: --lift-fence lets it take writes again"
            out.print(f"fenced: {fence} ({state})", markup=False)
    if report.problem_count:
        raise typer.Exit(1)


def print_fsck(report: "FsckReport") -> None:
    """The report for people."""
    out.print(
        f"{report.chunk_count:,} chunks, {binary_size(report.chunk_bytes)}, in"
        f" {report.record_count:,} records of {report.segment_count:,} segments;"
        f" {binary_size(report.dead_bytes)} of them dead"
    )
    kinds = {
        "damaged stretch": report.damage,
        "corrupt chunk": report.corrupt,
        "wrong index entry": report.index,
        "torn tail (no loss)": report.torn,
    }
    for kind, problems in kinds.items():
        for problem in problems:
            out.print(
                f"{kind}: segment {problem.segment}, offset {problem.offset_bytes}: {problem.text}",
                markup=False,
            )
    if report.problem_count:
        out.print(
            f"{report.problem_count:,} problems: start the node and run `exastore cluster scrub`;"
            " repair writes damaged chunks again",
            style="bold red",
        )
    else:
        out.print("no problems", style="green")


@gateway.command("run")
def gateway_run(config: ConfigOption) -> None:
    """Run one S3 gateway until SIGTERM."""
    from exastore.gateway.config import GatewayConfig
    from exastore.gateway.errors import GatewayError
    from exastore.gateway.server import Gateway

    values, process = read_config(config, "gateway", GatewayConfig)
    code = run_process(
        "gateway",
        values.address,
        process,
        lambda registry: Gateway(values, clock=SystemClock(), registry=registry),
        (GatewayError, ValueError),
    )
    raise typer.Exit(code)
