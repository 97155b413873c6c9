"""`exastore cluster ...`: a local cluster of real processes."""

from dataclasses import asdict
from typing import Annotated

import typer
from rich.progress import Progress
from rich.table import Table

from exastore.deploy.cli import operations
from exastore.deploy.cli.budget import budget
from exastore.deploy.cli.options import DEFAULT_DIR, DirOption, JsonOption
from exastore.deploy.cli.output import binary_size, duration, err, out, print_json
from exastore.deploy.cli.restart import restart
from exastore.deploy.cli.scrubbing import fetch_scrub, show_scrub
from exastore.deploy.errors import ExitCode
from exastore.deploy.launcher import LocalCluster, Started
from exastore.deploy.layout import (
    ClusterFile,
    metadata_addresses,
    metadata_name,
    read_cluster_file,
)
from exastore.deploy.spec import ClusterOptions
from exastore.deploy.status import DeviceView, StatusView, fetch_status

app = typer.Typer(help="A local cluster of real processes.", no_args_is_help=True)
operations.add_to(app)
app.command()(restart)
app.command()(budget)


@app.command()
def up(
    directory: DirOption = DEFAULT_DIR,
    nodes: Annotated[
        int | None, typer.Option(min=1, help="Storage nodes.", show_default="8, when new")
    ] = None,
    code: Annotated[
        str | None, typer.Option(help="Erasure code.", show_default="rs-4-2, when new")
    ] = None,
    pg_count: Annotated[
        int | None, typer.Option(min=1, help="Placement groups.", show_default="64, when new")
    ] = None,
    s3_port: Annotated[
        int | None,
        typer.Option(help="Port of the S3 endpoint.", show_default="0, a free one, when new"),
    ] = None,
    down_after_s: Annotated[
        float | None,
        typer.Option(help="Silence until a node counts as down.", show_default="3, when new"),
    ] = None,
    out_after_s: Annotated[
        float | None,
        typer.Option(
            help="Silence until a node is given up and repaired.", show_default="900, when new"
        ),
    ] = None,
    capacity_bytes: Annotated[
        int | None,
        typer.Option(
            min=0, help="Bytes per device.", show_default="0, its file system's, when new"
        ),
    ] = None,
    trash_grace_s: Annotated[
        float | None,
        typer.Option(
            min=0, help="Age at which deleted chunks are removed.", show_default="60, when new"
        ),
    ] = None,
    repair_bandwidth_bytes_per_s: Annotated[
        int | None,
        typer.Option(min=0, help="Limit of all repair.", show_default="0, none, when new"),
    ] = None,
    move_bandwidth_bytes_per_s: Annotated[
        int | None,
        typer.Option(min=0, help="Limit of all draining and balancing.", show_default="0, none"),
    ] = None,
    gateways: Annotated[
        int | None,
        typer.Option(min=1, help="Gateways; they share the S3 port.", show_default="1, when new"),
    ] = None,
    metadata_servers: Annotated[
        int | None, typer.Option(min=1, help="Metadata servers.", show_default="1, when new")
    ] = None,
    engine: Annotated[
        str | None,
        typer.Option(
            help="URL of the metadata engine: postgresql://... or etcd://...",
            show_default="SQLite in the directory",
        ),
    ] = None,
    partition: Annotated[
        list[str] | None,
        typer.Option(
            help="A further engine for buckets: NAME=URL, or NAME for SQLite; may be repeated.",
            show_default="none",
        ),
    ] = None,
    pool: Annotated[
        list[str] | None,
        typer.Option(
            help="A further pool, as eu:pgs=32,region=eu,per_node=1,class=ssd; may be repeated.",
            show_default="none",
        ),
    ] = None,
    rack: Annotated[
        list[str] | None,
        typer.Option(
            help="Racks that the nodes are put in, in turn; may be repeated.",
            show_default="one for all",
        ),
    ] = None,
    region: Annotated[
        list[str] | None,
        typer.Option(
            help="Regions that the nodes are put in, in turn; may be repeated.",
            show_default="one for all",
        ),
    ] = None,
    website_domain: Annotated[
        str | None,
        typer.Option(
            help="Serve buckets as websites: BUCKET.DOMAIN on the S3 port; empty: none.",
            show_default="none",
        ),
    ] = None,
    lifecycle_day_s: Annotated[
        float | None,
        typer.Option(help="Seconds of a day of lifecycle rules.", show_default="86400, when new"),
    ] = None,
    json_output: JsonOption = False,
) -> None:
    """Start a cluster, or whatever of it does not run, and leave it running."""
    options = ClusterOptions(
        nodes=nodes,
        code=code,
        pg_count=pg_count,
        s3_port=s3_port,
        down_after_s=down_after_s,
        out_after_s=out_after_s,
        capacity_bytes=capacity_bytes,
        trash_grace_s=trash_grace_s,
        repair_bandwidth_bytes_per_s=repair_bandwidth_bytes_per_s,
        move_bandwidth_bytes_per_s=move_bandwidth_bytes_per_s,
        gateways=gateways,
        metadata_servers=metadata_servers,
        engine=engine,
        partitions=tuple(partition) if partition else None,
        pools=tuple(pool) if pool else None,
        racks=tuple(rack) if rack else None,
        regions=tuple(region) if region else None,
        website_domain=website_domain,
        lifecycle_day_s=lifecycle_day_s,
    )
    cluster = LocalCluster.at(directory)
    with err.status("starting") as spinner:
        started = cluster.up(options, lambda text: spinner.update(text))
    if json_output:
        print_json(started.cluster)
    else:
        _print_started(cluster, started)


def _print_started(cluster: LocalCluster, started: Started) -> None:
    root = cluster.paths.root
    s3 = started.cluster["s3"]
    if not started.started:
        out.print(f"the cluster in {root} is running already")
    else:
        out.print(f"[bold green]the cluster serves[/]: {len(started.started)} processes started")
    out.print(f"  S3 endpoint  {s3['endpoint']}", soft_wrap=True)
    out.print(f"  access key   {s3['access_key']}", soft_wrap=True)
    out.print(f"  secret key   {s3['secret_key']}", soft_wrap=True)
    out.print(f"  more         {root / 'cluster.json'}", soft_wrap=True)
    out.print(f"  stop         exastore cluster down --dir {root}", soft_wrap=True)


@app.command()
def down(directory: DirOption = DEFAULT_DIR, json_output: JsonOption = False) -> None:
    """Stop the cluster; its data stays."""
    with err.status("stopping"):
        stopped, killed = LocalCluster.at(directory).down()
    if json_output:
        print_json({"stopped": stopped, "killed": killed})
    elif not stopped:
        out.print("nothing was running")
    else:
        out.print(f"stopped {len(stopped)} processes")
        if killed:
            out.print(f"killed after the grace period: {', '.join(killed)}")


@app.command()
def status(directory: DirOption = DEFAULT_DIR, json_output: JsonOption = False) -> None:
    """Show nodes, devices, placement groups and repair; exit code 3 unless fully redundant."""
    local = LocalCluster.at(directory)
    local.spec()
    cluster = read_cluster_file(local.paths.root)
    alive = local.children()
    view = fetch_status(metadata_addresses(cluster))
    if json_output:
        print_json({**view.to_json(), "processes": _processes(cluster, set(alive))})
    else:
        _print_status(view, set(alive))
    if not view.fully_redundant:
        raise typer.Exit(ExitCode.UNHEALTHY)


def _processes(cluster: ClusterFile, alive: set[str]) -> list[dict[str, object]]:
    """Every process of cluster.json with its pid and whether it lives."""
    named = [
        (metadata_name(number), item["pid"])
        for number, item in enumerate(cluster["metadata"], start=1)
    ]
    named += [(item["id"], item["pid"]) for item in cluster["nodes"]]
    named += [("gateway", item["pid"]) for item in cluster["gateways"]]
    return [{"name": name, "pid": pid, "alive": name in alive} for name, pid in named]


def _print_status(view: StatusView, alive: set[str]) -> None:
    table = Table(title=f"cluster {view.cluster_id}: {view.code}, map epoch {view.epoch}")
    for column in ("node", "process", "seen", "device", "state"):
        table.add_column(column, no_wrap=True)
    for column in ("chunks", "used", "capacity"):
        table.add_column(column, justify="right", no_wrap=True)
    for node in view.nodes:
        for device in node.devices:
            if device.is_removed:
                continue
            table.add_row(
                node.id,
                "runs" if node.id in alive else "[red]gone[/]",
                f"{duration(node.heartbeat_age_s)} ago",
                str(device.index),
                state_of(device),
                f"{device.chunk_count:,}",
                binary_size(device.used_bytes),
                binary_size(device.capacity_bytes),
            )
    out.print(table)
    missing = ", ".join(
        f"{count} with {index} missing"
        for index, count in enumerate(view.pgs_by_missing)
        if count and index
    )
    out.print(f"placement groups: {view.pg_count}; {missing or 'every slot readable'}")
    for pool in view.pools if len(view.pools) > 1 else ():
        out.print(
            f"  pool {pool.name}: {pool.pg_count} groups, {pool.rule}; "
            f"{pool.violation_count} break the rule",
            markup=False,
        )
    if view.degraded_stripe_count:
        out.print(f"stripes written without all their chunks: {view.degraded_stripe_count}")
    repair = view.repair
    if repair.active:
        out.print(
            f"repair: {repair.done_task_count} of {repair.task_count} slots, "
            f"{binary_size(repair.rebuilt_chunk_bytes)} of "
            f"{binary_size(repair.total_chunk_bytes)}, "
            f"{binary_size(repair.bytes_per_s)}/s, time left: {duration(repair.eta_s)}"
        )
    moves = view.moves
    if not moves.is_still:
        done, progress = moves.progress.done_task_count, moves.progress
        out.print(
            f"moves: {done} of {progress.task_count} slots, "
            f"{binary_size(progress.rebuilt_chunk_bytes)} of "
            f"{binary_size(progress.total_chunk_bytes)}, time left: {duration(progress.eta_s)}"
        )
    if repair.message:
        out.print(f"last repair problem: {repair.message}", markup=False)
    out.print(
        "[bold green]fully redundant[/]"
        if view.fully_redundant
        else "[bold yellow]not fully redundant[/]"
    )


def state_of(device: DeviceView) -> str:
    """The state, and whether the device takes writes."""
    state = device.state if device.state == "up" else f"[red]{device.state}[/]"
    return f"{state} [red]fenced[/]" if device.fenced else state


@app.command()
def df(directory: DirOption = DEFAULT_DIR, json_output: JsonOption = False) -> None:
    """Show raw space per device and in total."""
    cluster = read_cluster_file(directory)
    view = fetch_status(metadata_addresses(cluster))
    devices = [
        {
            "node": node.id,
            "device_index": device.index,
            "state": device.state,
            "capacity_bytes": device.capacity_bytes,
            "used_bytes": device.used_bytes,
        }
        for node in view.nodes
        for device in node.devices
        if not device.is_removed
    ]
    capacity_bytes = sum(int(str(device["capacity_bytes"])) for device in devices)
    used_bytes = sum(int(str(device["used_bytes"])) for device in devices)
    if json_output:
        print_json({"capacity_bytes": capacity_bytes, "used_bytes": used_bytes, "devices": devices})
        return
    table = Table()
    table.add_column("device")
    table.add_column("state")
    for column in ("used", "capacity", "used %"):
        table.add_column(column, justify="right")
    rows = [(f"{d['node']}/{d['device_index']}", str(d["state"])) for d in devices]
    sizes = [(int(str(d["used_bytes"])), int(str(d["capacity_bytes"]))) for d in devices]
    for (name, state), (used, capacity) in zip(
        [*rows, ("total", "")], [*sizes, (used_bytes, capacity_bytes)], strict=True
    ):
        percent = f"{100 * used / capacity:.1f}" if capacity else "-"
        table.add_row(name, state, binary_size(used), binary_size(capacity), percent)
    out.print(table)


@app.command()
def scrub(
    directory: DirOption = DEFAULT_DIR,
    status: Annotated[
        bool, typer.Option("--status", help="Show the scrub that the cluster does by itself.")
    ] = False,
    begin: Annotated[
        bool, typer.Option("--begin", help="Let the cluster scrub and repair now; returns at once.")
    ] = False,
    json_output: JsonOption = False,
) -> None:
    """Read every chunk and check it; exit code 1 unless all are healthy."""
    from exastore.deploy.store_access import scrub as scrub_chunks

    if status or begin:
        show_scrub(fetch_scrub(read_cluster_file(directory), begin=begin), json_output=json_output)
        return
    cluster = read_cluster_file(directory)
    with Progress(console=err, transient=True) as progress:
        task = progress.add_task("reading every chunk", total=None)
        report = scrub_chunks(
            cluster,
            lambda found: progress.update(
                task, completed=found.stripe_count, total=found.total_stripe_count
            ),
        )
    if json_output:
        print_json({**asdict(report), "fully_redundant": report.fully_redundant})
    else:
        out.print(
            f"{report.stripe_count:,} stripes, {report.chunk_count:,} chunks, "
            f"{binary_size(report.chunk_bytes)}: {report.healthy_chunk_count:,} healthy, "
            f"{report.missing_chunk_count:,} missing, {report.corrupt_chunk_count:,} corrupt, "
            f"{report.unreachable_chunk_count:,} unreachable"
        )
        for example in report.examples:
            out.print(f"  {example}", markup=False, soft_wrap=True)
        if report.lost_stripe_count:
            out.print(f"[bold red]{report.lost_stripe_count} stripes cannot be decoded[/]")
    if not report.fully_redundant:
        raise typer.Exit(ExitCode.FAILED)
