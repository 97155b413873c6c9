"""`exastore cluster restart`: every process anew, one at a time, while the cluster serves."""

from pathlib import Path
from typing import Annotated, Any

import typer

from exastore.deploy.cli.options import DEFAULT_DIR, DirOption, JsonOption
from exastore.deploy.cli.output import duration, err, out, print_json
from exastore.deploy.clock import SystemClock
from exastore.deploy.errors import BadInput, ClusterUnhealthy
from exastore.deploy.launcher import LocalCluster
from exastore.deploy.layout import (
    is_gateway,
    is_metadata,
    is_node,
    metadata_addresses,
    read_cluster_file,
)
from exastore.deploy.status import fetch_status

POLL_S = 0.25
#: A node that was away for seconds catches up in seconds; something else is wrong after this.
CLEAN_TIMEOUT_S = 600.0


def restart(
    targets: Annotated[
        list[str] | None,
        typer.Argument(help="Processes, as in `cluster status`.", show_default="all"),
    ] = None,
    directory: DirOption = DEFAULT_DIR,
    apply: Annotated[bool, typer.Option("--apply", help="Act; without it, show the plan.")] = False,
    json_output: JsonOption = False,
) -> None:
    """Restart processes one at a time; the next only when the cluster is fully redundant again."""
    local, clock = LocalCluster.at(directory), SystemClock()
    names = plan_of(local, targets or [])
    problem = redundancy_problem(local.paths.root)
    note = note_on(local, names)
    if not apply:
        if json_output:
            print_json({"processes": names, "applied": False, "problem": problem, "note": note})
            return
        for line in ["one after the other:", *(f"  {name}" for name in names), note, problem]:
            if line:
                out.print(line, markup=False)
        out.print("nothing was changed: add --apply to act")
        return
    took: list[dict[str, Any]] = []
    with err.status("restarting") as spinner:
        for name in names:
            begun_s = clock.monotonic_s()
            wait_until_clean(local.paths.root, clock)
            local.restart(name, lambda text: spinner.update(text))
            wait_until_clean(local.paths.root, clock)
            took.append({"process": name, "seconds": round(clock.monotonic_s() - begun_s, 2)})
    if json_output:
        print_json({"processes": took, "applied": True, "note": note})
    else:
        total_s = sum(float(item["seconds"]) for item in took)
        out.print(f"[bold green]restarted[/] {len(took)} processes in {duration(total_s)}")


def plan_of(local: LocalCluster, targets: list[str]) -> list[str]:
    """What is restarted, in order: nodes, gateways, and the metadata servers last.

    Raises:
        BadInput: There is no such process.
    """
    known = local.spec().process_names
    unknown = [name for name in targets if name not in known]
    if unknown:
        raise BadInput(f"there is no process {unknown[0]!r}; there are {', '.join(known)}")
    wanted = [name for name in known if not targets or name in targets]
    return [name for kind in (is_node, is_gateway, is_metadata) for name in wanted if kind(name)]


def note_on(local: LocalCluster, names: list[str]) -> str:
    """What clients will notice, if anything."""
    if local.spec().gateways == 1 and any(is_gateway(name) for name in names):
        return "there is one gateway: while it restarts, connections are refused (see --gateways)"
    return ""


def redundancy_problem(root: Path) -> str:
    """Why no process can be spared now; empty: one can."""
    try:
        view = fetch_status(metadata_addresses(read_cluster_file(root)))
    except ClusterUnhealthy as error:
        return error.message
    if not view.fully_redundant:
        slots, stripes = view.missing_slot_count, view.degraded_stripe_count
        return f"{slots} slots and {stripes} stripes are not whole"
    if view.repair.active or not view.moves.is_still:
        return "chunks are being repaired or moved"
    if view.fenced_node_ids:
        return f"devices are fenced: {', '.join(view.fenced_node_ids)}"
    return ""


def wait_until_clean(root: Path, clock: SystemClock) -> None:
    """Until the cluster can spare a process.

    Raises:
        ClusterUnhealthy: That takes too long.
    """
    deadline_s = clock.monotonic_s() + CLEAN_TIMEOUT_S
    while problem := redundancy_problem(root):
        if clock.monotonic_s() > deadline_s:
            raise ClusterUnhealthy(
                f"the restart stops here: {problem}", hint="exastore cluster status"
            )
        clock.sleep_blocking(POLL_S)
