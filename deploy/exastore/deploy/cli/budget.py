"""`exastore cluster budget`: how much repair and moves may take, shown and changed."""

from typing import Annotated

import typer
from google.protobuf.json_format import MessageToDict
from rich.table import Table

from exastore.deploy.cli.bucket import parsed_size
from exastore.deploy.cli.options import DEFAULT_DIR, DirOption, JsonOption
from exastore.deploy.cli.output import binary_size, out, print_json
from exastore.deploy.errors import BadInput
from exastore.deploy.layout import metadata_addresses, read_cluster_file
from exastore.deploy.status import ask_channel
from exastore.proto.v1 import budget_pb2, budget_pb2_grpc

TIMEOUT_S = 10.0
_ROWS = (
    ("device_bytes_per_s", "each device"),
    ("node_bytes_per_s", "each node, each way"),
    ("rack_bytes_per_s", "each rack, each way"),
    ("floor_bytes_per_s", "each node, at least"),
)


def budget(
    directory: DirOption = DEFAULT_DIR,
    device: Annotated[
        str | None,
        typer.Option(help="A second, of each device, as 50MiB; 0: no limit.", show_default="as is"),
    ] = None,
    node: Annotated[
        str | None,
        typer.Option(help="A second, through each node's network.", show_default="as is"),
    ] = None,
    rack: Annotated[
        str | None,
        typer.Option(help="A second, between each rack and the others.", show_default="as is"),
    ] = None,
    floor: Annotated[
        str | None,
        typer.Option(help="A second, that a node may always move.", show_default="as is"),
    ] = None,
    p99_ms: Annotated[
        float | None,
        typer.Option(
            min=0,
            help="What 99 % of clients' chunk requests shall take at most; 0: not heeded.",
            show_default="as is",
        ),
    ] = None,
    apply: Annotated[bool, typer.Option("--apply", help="Act; without it, show the plan.")] = False,
    json_output: JsonOption = False,
) -> None:
    """Show or change what repair, draining and balancing may take while clients are served."""
    addresses = metadata_addresses(read_cluster_file(directory))
    status = fetch_budgets(addresses)
    before = budget_pb2.Budgets()
    before.CopyFrom(status.budgets)
    wanted = budget_pb2.Budgets()
    wanted.CopyFrom(before)
    sizes = zip(_ROWS, (device, node, rack, floor), strict=True)
    for (field, _), text in sizes:
        if text is not None:
            setattr(wanted, field, parsed_size(text))
    if p99_ms is not None:
        wanted.foreground_p99_s = p99_ms / 1000
    if not wanted.floor_bytes_per_s:
        raise BadInput("without a floor repair might never end: give more than 0")
    if apply and wanted != before:
        ask_channel(
            addresses,
            lambda channel: budget_pb2_grpc.BudgetServiceStub(channel).SetBudgets(
                budget_pb2.SetBudgetsRequest(budgets=wanted), timeout=TIMEOUT_S
            ),
        )
        status.budgets.CopyFrom(wanted)
    if json_output:
        told = MessageToDict(
            status, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
        )
        known = {"budgets": _as_dict(before), "wanted": _as_dict(wanted), "applied": apply}
        print_json({**told, **known})
        return
    _print(before, wanted)
    if wanted != before:
        out.print("set" if apply else "nothing was changed: add --apply to act")
    _print_use(status)


def fetch_budgets(addresses: list[str]) -> budget_pb2.BudgetStatus:
    """The budgets, and what nodes use of them.

    Raises:
        ClusterUnhealthy: No metadata server that does the background work answers.
    """
    return ask_channel(
        addresses,
        lambda channel: budget_pb2_grpc.BudgetServiceStub(channel).GetBudgets(
            budget_pb2.GetBudgetsRequest(), timeout=TIMEOUT_S
        ),
    )


def _as_dict(budgets: budget_pb2.Budgets) -> dict[str, float]:
    values = {field: int(getattr(budgets, field)) for field, _ in _ROWS}
    return {**values, "foreground_p99_s": budgets.foreground_p99_s}


def _print(before: budget_pb2.Budgets, wanted: budget_pb2.Budgets) -> None:
    out.print("repair, draining and balancing may use")
    for field, name in _ROWS:
        old, new = _rate(getattr(before, field)), _rate(getattr(wanted, field))
        out.print(f"  {name:<20} {old}" + (f" -> {new}" if new != old else ""))
    old, new = _target(before), _target(wanted)
    out.print(f"  {'until clients wait':<20} {old}" + (f" -> {new}" if new != old else ""))


def _print_use(status: budget_pb2.BudgetStatus) -> None:
    if status.is_urgent:
        out.print("some data would be lost with one more device: clients are not heeded now")
    table = Table()
    table.add_column("node", no_wrap=True)
    for column in ("may move", "moves", "clients' p99", "requests"):
        table.add_column(column, justify="right", no_wrap=True)
    for node in status.nodes:
        table.add_row(
            node.node_id,
            _rate(node.rate_bytes_per_s),
            f"{binary_size(node.background_bytes_per_s)}/s",
            f"{1000 * node.foreground_p99_s:.0f} ms" if node.foreground_count else "-",
            str(node.foreground_count),
        )
    out.print(table)
    if status.budgets.rack_bytes_per_s:
        for rack in status.racks:
            out.print(
                f"rack {rack.rack}: {binary_size(rack.used_bytes_per_s)}/s to and from others, "
                f"{binary_size(rack.leased_bytes_per_s)}/s leased to its nodes",
                markup=False,
            )


def _rate(bytes_per_s: float) -> str:
    return f"{binary_size(bytes_per_s)}/s" if bytes_per_s else "no limit"


def _target(budgets: budget_pb2.Budgets) -> str:
    target_s = budgets.foreground_p99_s
    return f"p99 above {1000 * target_s:g} ms" if target_s else "not heeded"
