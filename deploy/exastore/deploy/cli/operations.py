"""`exastore cluster drain|remove|replace|add|balance|repair|top`: plan first, `--apply` to act.

What is begun is carried out by the metadata servers. The command only watches: interrupting it
stops nothing, and `cluster status` shows how far it is.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.live import Live
from rich.progress import Progress
from rich.table import Table

from exastore.deploy.cli.options import DEFAULT_DIR, DirOption, JsonOption
from exastore.deploy.cli.output import binary_size, duration, err, out, print_json
from exastore.deploy.clock import SystemClock
from exastore.deploy.errors import BadInput, ClusterUnhealthy
from exastore.deploy.launcher import LocalCluster
from exastore.deploy.layout import metadata_addresses, read_cluster_file
from exastore.deploy.status import DeviceView, StatusView, fetch_status, operate
from exastore.proto.v1 import metadata_pb2

POLL_S = 0.25
#: The servers notice within a round or two what was wanted; so long nothing may be seen of it.
NOTICE_S = 3.0

ApplyOption = Annotated[bool, typer.Option("--apply", help="Act; without it, show the plan.")]
WaitOption = Annotated[
    bool, typer.Option("--wait/--no-wait", help="With --apply: watch until it is done.")
]
Targets = Annotated[
    list[str], typer.Argument(help="Nodes (node-3) or device indexes (7).", show_default=False)
]
IsDone = Callable[[StatusView], bool]


def add_to(app: typer.Typer) -> None:
    """Register the commands."""
    for command in (drain, remove, replace, add, balance, repair, top):
        app.command()(command)


def drain(
    targets: Targets,
    directory: DirOption = DEFAULT_DIR,
    apply: ApplyOption = False,
    cancel: Annotated[
        bool,
        typer.Option(
            "--cancel", help="Let them take data again instead; also what `repair` gave up."
        ),
    ] = False,
    wait: WaitOption = True,
    json_output: JsonOption = False,
) -> None:
    """Empty devices while they serve: their chunks are copied to others."""
    run = _Run.at(directory, json_output=json_output)
    kind = metadata_pb2.OPERATION_UNDRAIN if cancel else metadata_pb2.OPERATION_DRAIN
    devices = [device.index for device in run.devices(targets)]

    def is_done(view: StatusView) -> bool:
        found = [view.device(index) for index in devices]
        return cancel or not any(d.slot_count or d.leaving_slot_count for d in found)

    run.carry_out(
        metadata_pb2.OperateRequest(operation=kind, device_indexes=devices),
        apply=apply,
        is_done=is_done if wait else None,
    )


def remove(
    targets: Targets,
    directory: DirOption = DEFAULT_DIR,
    apply: ApplyOption = False,
    json_output: JsonOption = False,
) -> None:
    """Take empty devices out of the cluster for good, and stop nodes that have no other."""
    run = _Run.at(directory, json_output=json_output)
    devices = [device.index for device in run.devices(targets)]
    run.carry_out(
        metadata_pb2.OperateRequest(
            operation=metadata_pb2.OPERATION_REMOVE, device_indexes=devices
        ),
        apply=apply,
        is_done=None,
    )
    if apply:
        known = set(run.local.spec().node_names)
        for node in run.status().nodes:
            if node.id in known and all(device.is_removed for device in node.devices):
                run.local.forget_node(node.id)


def replace(
    old: Annotated[str, typer.Argument(help="A node or device that failed, or will.")],
    new: Annotated[
        str | None, typer.Argument(help="Who takes its slots.", show_default="same node's new one")
    ] = None,
    directory: DirOption = DEFAULT_DIR,
    apply: ApplyOption = False,
    wait: WaitOption = True,
    json_output: JsonOption = False,
) -> None:
    """Give the slots of one device to another, and move nothing else."""
    run = _Run.at(directory, json_output=json_output)
    leaving, taking = run.pair(old, new)

    def is_done(view: StatusView) -> bool:
        found = view.device(leaving)
        is_gone = not (found.slot_count or found.leaving_slot_count)
        return is_gone and not view.missing_slot_count and view.moves.is_still

    run.carry_out(
        metadata_pb2.OperateRequest(
            operation=metadata_pb2.OPERATION_REPLACE,
            device_indexes=[leaving],
            replacement_index=taking,
        ),
        apply=apply,
        is_done=is_done if wait else None,
    )


def add(
    directory: DirOption = DEFAULT_DIR,
    nodes: Annotated[int, typer.Option(min=1, help="How many nodes.")] = 1,
    apply: ApplyOption = False,
    wait: WaitOption = True,
    json_output: JsonOption = False,
) -> None:
    """Start more nodes, and fill them to their share."""
    run = _Run.at(directory, json_output=json_output)
    if not apply:
        view = run.status()
        held = sum(device.slot_count for node in view.nodes for device in node.devices)
        count = len(run.local.spec().node_names)
        moved = held * nodes // (count + nodes)
        used = sum(device.used_bytes for node in view.nodes for device in node.devices)
        move_bytes = used * moved // held if held else 0
        plan = {"nodes": nodes, "move_count": moved, "move_bytes": move_bytes, "applied": False}
        if json_output:
            print_json(plan)
        else:
            out.print(
                f"{nodes} nodes join the {count} that there are; about {moved} slots, "
                f"{binary_size(move_bytes)}, move to them"
            )
            out.print("nothing was changed: add --apply to act")
        return
    with err.status("starting") as spinner:
        run.local.add_nodes(nodes, lambda text: spinner.update(text))
    _Run.at(directory, json_output=json_output).carry_out(
        metadata_pb2.OperateRequest(operation=metadata_pb2.OPERATION_BALANCE),
        apply=True,
        is_done=_is_balanced if wait else None,
    )


def balance(
    directory: DirOption = DEFAULT_DIR,
    apply: ApplyOption = False,
    cancel: Annotated[bool, typer.Option("--cancel", help="Begin no more moves.")] = False,
    recovery: Annotated[
        bool,
        typer.Option(
            "--recovery", help="Then also even out who reads for whom when a device dies."
        ),
    ] = False,
    wait: WaitOption = True,
    json_output: JsonOption = False,
) -> None:
    """Bring every device to its share, to within one slot."""
    kind = metadata_pb2.OPERATION_STOP_BALANCE if cancel else metadata_pb2.OPERATION_BALANCE
    _Run.at(directory, json_output=json_output).carry_out(
        metadata_pb2.OperateRequest(operation=kind, even_recovery=recovery),
        apply=apply,
        is_done=_is_balanced if wait else None,
    )


def repair(
    targets: Annotated[
        list[str] | None,
        typer.Argument(help="Silent nodes or devices to give up now.", show_default="none"),
    ] = None,
    directory: DirOption = DEFAULT_DIR,
    apply: ApplyOption = False,
    wait: WaitOption = True,
    json_output: JsonOption = False,
) -> None:
    """Rebuild what silent devices hold without waiting for them; try again what failed."""
    run = _Run.at(directory, json_output=json_output)
    devices = [device.index for device in run.devices(targets or [])]
    run.carry_out(
        metadata_pb2.OperateRequest(
            operation=metadata_pb2.OPERATION_REPAIR, device_indexes=devices
        ),
        apply=apply,
        is_done=(lambda view: not view.repair.active and not view.missing_slot_count)
        if wait
        else None,
    )


def top(
    directory: DirOption = DEFAULT_DIR,
    interval_s: Annotated[float, typer.Option(min=0.1, help="Seconds between two looks.")] = 1.0,
    once: Annotated[bool, typer.Option("--once", help="Look once, and end.")] = False,
    json_output: JsonOption = False,
) -> None:
    """Watch devices, and what moves between them, until interrupted."""
    run = _Run.at(directory, json_output=json_output)
    before = run.status()
    if once or json_output:
        if json_output:
            print_json(before.to_json())
        else:
            out.print(_top_table(before, before, interval_s))
        return
    with Live(_top_table(before, before, interval_s), console=out, auto_refresh=False) as live:
        while True:
            run.clock.sleep_blocking(interval_s)
            view = run.status()
            live.update(_top_table(before, view, interval_s), refresh=True)
            before = view


def _is_balanced(view: StatusView) -> bool:
    return view.moves.is_still


class _Run:
    """One command on one cluster."""

    def __init__(self, directory: Path, *, json_output: bool) -> None:
        self.local = LocalCluster.at(directory)
        self.addresses = metadata_addresses(read_cluster_file(self.local.paths.root))
        self.clock = SystemClock()
        self._json_output = json_output

    @classmethod
    def at(cls, directory: Path, *, json_output: bool) -> "_Run":
        return cls(directory, json_output=json_output)

    def status(self) -> StatusView:
        return fetch_status(self.addresses)

    def devices(self, targets: Sequence[str]) -> list[DeviceView]:
        """The devices that the arguments name.

        Raises:
            BadInput: There is no such node or device.
        """
        view = self.status()
        found: dict[int, DeviceView] = {}
        for target in targets:
            named = [
                device
                for node in view.nodes
                for device in node.devices
                if target in (node.id, str(device.index)) and not device.is_removed
            ]
            if not named:
                nodes = ", ".join(node.id for node in view.nodes)
                raise BadInput(f"there is no node or device {target!r}; nodes: {nodes}")
            found.update({device.index: device for device in named})
        return list(found.values())

    def pair(self, old: str, new: str | None) -> tuple[int, int]:
        """Who is replaced by whom.

        Raises:
            BadInput: It is not clear.
        """
        leaving = [device for device in self.devices([old]) if device.slot_count]
        if new is None:
            taking = [
                device
                for node in self.status().nodes
                if any(device.index == old_device.index for device in node.devices
                       for old_device in leaving)
                for device in node.devices
                if device.state == "up" and not device.slot_count
            ]  # fmt: skip
        else:
            taking = [device for device in self.devices([new]) if device.state == "up"]
        if len(leaving) != 1 or len(taking) != 1:
            raise BadInput(
                f"{old!r} has {len(leaving)} devices with slots, and there are {len(taking)} "
                "that could take them: name one device each",
                hint="exastore cluster top --once shows the devices and their slots",
            )
        return leaving[0].index, taking[0].index

    def carry_out(
        self,
        request: metadata_pb2.OperateRequest,
        *,
        apply: bool,
        is_done: IsDone | None,
    ) -> None:
        """Show the plan; with `apply` act, and watch until it is done."""
        request.apply = apply
        plan = operate(self.addresses, request)
        if not self._json_output:
            _print_plan(plan)
        if apply and is_done is not None:
            self._watch(plan, is_done)
        if self._json_output:
            print_json(_plan_json(plan))

    def _watch(self, plan: metadata_pb2.OperationPlan, is_done: IsDone) -> None:
        """Until it is done; servers that are away are waited for."""
        begun_s = self.clock.monotonic_s()
        is_seen = not plan.move_count
        with Progress(console=err, transient=True) as progress:
            task = progress.add_task("moving", total=None)
            while True:
                try:
                    view = self.status()
                except ClusterUnhealthy:
                    progress.update(task, description="no metadata server answers; waiting")
                else:
                    is_seen |= not view.moves.is_still or view.repair.active
                    is_late = self.clock.monotonic_s() - begun_s > NOTICE_S
                    if (is_seen or is_late) and is_done(view):
                        break
                    work = view.repair if view.repair.active else view.moves.progress
                    progress.update(
                        task,
                        completed=work.rebuilt_chunk_bytes,
                        total=work.total_chunk_bytes or None,
                        description=f"{work.done_task_count} of {work.task_count} slots, "
                        f"time left: {duration(work.eta_s)}",
                    )
                self.clock.sleep_blocking(POLL_S)
        if not self._json_output:
            out.print(f"[bold green]done[/] in {duration(self.clock.monotonic_s() - begun_s)}")


def _print_plan(plan: metadata_pb2.OperationPlan) -> None:
    out.print(plan.message, markup=False, soft_wrap=True)
    if plan.recovery_before:
        out.print(
            f"  recovery    the busiest pair of devices shares {plan.recovery_before:.2f} times "
            f"what a mean pair does now, {plan.recovery_after:.2f} times then; "
            f"{plan.recovery_move_count} slots move for that",
            soft_wrap=True,
        )
    if plan.move_count:
        budget = plan.bandwidth_bytes_per_s
        out.print(f"  slots       {plan.move_count} (no plan needs fewer than "
                  f"{plan.minimum_move_count})", soft_wrap=True)  # fmt: skip
        out.print(f"  bytes       about {binary_size(plan.move_bytes)}")
        out.print(f"  violations  {plan.violation_count} of the placement rule")
        out.print(f"  evenness    largest distance from a device's share: "
                  f"{plan.deviation_before:.1f} slots now, {plan.deviation_after:.1f} then",
                  soft_wrap=True)  # fmt: skip
        time = duration(plan.eta_s) if plan.eta_s >= 0 else "as long as the nodes need: no budget"
        out.print(f"  time        {time}" + (f" at {binary_size(budget)}/s" if budget else ""))
        if plan.unplaced_count:
            out.print(f"  unplaced    {plan.unplaced_count} slots have no eligible device")
        for device in plan.devices:
            out.print(
                f"  device {device.device_index}: {device.in_count} come, {device.out_count} go"
            )
    if not plan.applied:
        out.print("nothing was changed: add --apply to act")


def _plan_json(plan: metadata_pb2.OperationPlan) -> dict[str, Any]:
    return {
        "epoch": plan.epoch,
        "applied": plan.applied,
        "message": plan.message,
        "move_count": plan.move_count,
        "minimum_move_count": plan.minimum_move_count,
        "move_bytes": plan.move_bytes,
        "violation_count": plan.violation_count,
        "unplaced_count": plan.unplaced_count,
        "bandwidth_bytes_per_s": plan.bandwidth_bytes_per_s,
        "eta_s": plan.eta_s if plan.eta_s >= 0 else None,
        "deviation_before": plan.deviation_before,
        "deviation_after": plan.deviation_after,
        "recovery_move_count": plan.recovery_move_count,
        "recovery_before": plan.recovery_before,
        "recovery_after": plan.recovery_after,
        "devices": [
            {"device_index": d.device_index, "in_count": d.in_count, "out_count": d.out_count}
            for d in plan.devices
        ],
    }


def _top_table(before: StatusView, view: StatusView, interval_s: float) -> Table:
    used = {d.index: d.used_bytes for node in before.nodes for d in node.devices}
    table = Table(
        title=f"epoch {view.epoch}; {view.missing_slot_count} slots missing, "
        f"{view.moves.moving_slot_count} moving, {view.moves.waiting_slot_count} to be moved"
    )
    for column in ("node", "device", "state"):
        table.add_column(column, no_wrap=True)
    for column in ("slots", "leaving", "used", "growth/s"):
        table.add_column(column, justify="right", no_wrap=True)
    for node in view.nodes:
        for device in node.devices:
            if not device.is_removed:
                growth = (device.used_bytes - used.get(device.index, 0)) / interval_s
                table.add_row(
                    node.id,
                    str(device.index),
                    device.state,
                    str(device.slot_count),
                    str(device.leaving_slot_count),
                    binary_size(device.used_bytes),
                    binary_size(growth),
                )
    return table
