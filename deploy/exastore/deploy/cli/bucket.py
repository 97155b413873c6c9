"""`exastore bucket ...`: buckets, their settings and usage, and which partition holds them.

A move is carried out by the metadata servers. The command only watches: interrupting it stops
nothing, and `exastore bucket moves` shows how far it is.
"""

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from google.protobuf import json_format
from google.protobuf.message import Message
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Table

from exastore.deploy.cli.bucket_calls import BucketCalls, phase_name
from exastore.deploy.cli.options import DEFAULT_DIR, DirOption, JsonOption
from exastore.deploy.cli.output import binary_size, err, out, print_json
from exastore.deploy.errors import BadInput, ExitCode
from exastore.proto.v1 import metadata_pb2

app = typer.Typer(help="Buckets: settings, usage, partitions.", no_args_is_help=True)

NameArgument = Annotated[str, typer.Argument(help="Name of the bucket.", show_default=False)]
WaitOption = Annotated[bool, typer.Option("--wait/--no-wait", help="Watch until it is done.")]

_SIZES = {
    unit + suffix: base**power
    for base, suffix in ((1000, ""), (1024, "i"))
    for power, unit in enumerate(("k", "m", "g", "t", "p"), start=1)
}


def parsed_size(text: str) -> int:
    """Bytes of "10GiB", "1.5 TB" or "4096".

    Raises:
        BadInput: It is no size.
    """
    lowered = text.strip().lower().removesuffix("b").strip()
    digits = lowered.rstrip("kmgtpi").strip()
    unit = lowered[len(digits) :].strip()
    try:
        size = float(digits) * (_SIZES[unit] if unit else 1)
    except (ValueError, KeyError):
        raise BadInput(f"{text!r} is no size: write for example 4096, 10GiB or 1.5TB") from None
    if not 0 <= size < 2**63:
        raise BadInput(f"{text!r} is no size that a quota can have")
    return int(size)


# ---- buckets ----


@app.command("list")
def list_command(directory: DirOption = DEFAULT_DIR, json_output: JsonOption = False) -> None:
    """List all buckets and the partitions that hold them."""
    found = BucketCalls.at(directory).buckets()
    if json_output:
        print_json([_bucket_json(bucket) for bucket in found])
        return
    table = Table()
    for column in ("bucket", "owner", "pool", "partition", "state"):
        table.add_column(column, no_wrap=True)
    for bucket in found:
        table.add_row(
            bucket.name,
            bucket.owner,
            bucket.pool or "default",
            bucket.partition,
            _state_name(bucket),
        )
    out.print(table)


@app.command()
def show(
    name: NameArgument, directory: DirOption = DEFAULT_DIR, json_output: JsonOption = False
) -> None:
    """Show a bucket's settings."""
    _print_bucket(BucketCalls.at(directory).bucket(name), json_output=json_output)


@app.command()
def create(
    name: NameArgument,
    directory: DirOption = DEFAULT_DIR,
    owner: Annotated[str, typer.Option(help="The tenant that it belongs to.")] = "exastore",
    partition: Annotated[
        str, typer.Option(help="The engine that holds it.", show_default="chosen by its name")
    ] = "",
    pool: Annotated[
        str, typer.Option(help="The pool that holds its data.", show_default="the default one")
    ] = "",
    json_output: JsonOption = False,
) -> None:
    """Create a bucket."""
    request = metadata_pb2.CreateBucketRequest(
        name=name, owner=owner, partition=partition, pool=pool
    )
    made = BucketCalls.at(directory).create(request)
    _print_bucket(made, json_output=json_output)


@app.command()
def delete(
    name: NameArgument, directory: DirOption = DEFAULT_DIR, json_output: JsonOption = False
) -> None:
    """Delete an empty bucket: one without objects, versions, delete markers and uploads."""
    BucketCalls.at(directory).delete(name)
    if json_output:
        print_json({"deleted": name})
    else:
        out.print(f"deleted {name}", markup=False)


@app.command()
def versioning(
    name: NameArgument,
    state: Annotated[
        str, typer.Argument(help="enabled or suspended.", show_default="show what it is")
    ] = "",
    directory: DirOption = DEFAULT_DIR,
    json_output: JsonOption = False,
) -> None:
    """Show or set whether old versions are kept. Once enabled it can only be suspended."""
    calls = BucketCalls.at(directory)
    if not state:
        bucket = calls.bucket(name)
    elif state not in ("enabled", "suspended"):
        raise BadInput(f"versioning is enabled or suspended, not {state!r}")
    else:
        value = metadata_pb2.Versioning.Value(f"VERSIONING_{state.upper()}")
        bucket = calls.configure(metadata_pb2.ConfigureBucketRequest(name=name, versioning=value))
    if json_output:
        print_json({"name": name, "versioning": _versioning_name(bucket)})
    else:
        out.print(f"versioning of {name}: {_versioning_name(bucket)}", markup=False)


@app.command()
def quota(
    name: NameArgument,
    max_bytes: Annotated[
        str | None,
        typer.Option(help="Bytes of all versions and parts, as 10GiB; 0: no limit."),
    ] = None,
    max_objects: Annotated[
        int | None, typer.Option(min=0, help="Objects, with all their versions; 0: no limit.")
    ] = None,
    directory: DirOption = DEFAULT_DIR,
    json_output: JsonOption = False,
) -> None:
    """Show or set what a bucket may hold; a limit that is not given stays."""
    calls = BucketCalls.at(directory)
    if max_bytes is not None or max_objects is not None:
        limits = metadata_pb2.Quota()
        limits.CopyFrom(calls.bucket(name).quota)
        if max_bytes is not None:
            limits.max_bytes = parsed_size(max_bytes)
        if max_objects is not None:
            limits.max_objects = max_objects
        calls.set_quota(name, limits)
    _print_usage(name, calls.usage(name), json_output=json_output)


@app.command()
def usage(
    name: NameArgument, directory: DirOption = DEFAULT_DIR, json_output: JsonOption = False
) -> None:
    """Show what a bucket holds, by its counters, and its quota."""
    _print_usage(name, BucketCalls.at(directory).usage(name), json_output=json_output)


@app.command("check-usage")
def check_usage(
    name: NameArgument, directory: DirOption = DEFAULT_DIR, json_output: JsonOption = False
) -> None:
    """Recount a bucket and compare with its counters; exit code 1 if they differ."""
    calls = BucketCalls.at(directory)
    expected = calls.usage(name)
    rows = expected.object_count + expected.marker_count + expected.part_count
    with err.status(f"recounting about {rows:,} versions and parts"):
        found = calls.check_usage(name)
    counters, counted = _numbers(found.counters), _numbers(found.counted)
    if json_output:
        print_json({"name": name, "equal": found.equal, "counters": counters, "counted": counted})
    else:
        table = Table()
        table.add_column("of the bucket")
        for column in ("counter", "recounted"):
            table.add_column(column, justify="right")
        for field, number in counted.items():
            table.add_row(field.replace("_", " "), f"{counters[field]:,}", f"{number:,}")
        out.print(table)
        out.print("[bold green]equal[/]" if found.equal else "[bold red]they differ[/]")
    if not found.equal:
        raise typer.Exit(ExitCode.FAILED)


@app.command()
def lifecycle(
    name: NameArgument,
    file: Annotated[
        Path | None,
        typer.Option("--set", help="JSON file with the rules that replace what there is."),
    ] = None,
    clear: Annotated[bool, typer.Option("--clear", help="Take all rules away.")] = False,
    directory: DirOption = DEFAULT_DIR,
    json_output: JsonOption = False,
) -> None:
    """Show or set when objects expire and uploads are aborted; the rules are JSON."""
    calls = BucketCalls.at(directory)
    if clear and file is not None:
        raise BadInput("--set and --clear contradict each other")
    if clear or file is not None:
        rules = metadata_pb2.LifecycleRules() if file is None else parsed_rules(file)
        bucket = calls.configure(metadata_pb2.ConfigureBucketRequest(name=name, lifecycle=rules))
    else:
        bucket = calls.bucket(name)
    # Rules are JSON in either form: what is shown can be edited and set.
    print_json([_plain(rule) for rule in bucket.lifecycle])
    if not json_output and not bucket.lifecycle:
        err.print(f"{name} has no lifecycle rules", markup=False)


def parsed_rules(file: Path) -> metadata_pb2.LifecycleRules:
    """The rules of a JSON file: a list of objects with the fields of `LifecycleRule`.

    Raises:
        BadInput: It cannot be read, or is no such list.
    """
    rules = metadata_pb2.LifecycleRules()
    try:
        value: Any = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(value, list):
            raise BadInput(f"{file}: a list of rules is expected")
        json_format.ParseDict({"rules": value}, rules)
    except OSError as error:
        raise BadInput(f"cannot read {file}: {error.strerror}") from error
    except (ValueError, json_format.ParseError) as error:
        raise BadInput(
            f"{file}: {error}",
            hint='a rule is for example {"id": "old", "prefix": "logs/", "expire_days": 30}; '
            "`exastore bucket lifecycle BUCKET` shows rules in this form",
        ) from error
    return rules


# ---- moves ----


@app.command()
def move(
    name: NameArgument,
    target: Annotated[str, typer.Argument(help="The partition to go to.", show_default=False)],
    wait: WaitOption = True,
    directory: DirOption = DEFAULT_DIR,
    json_output: JsonOption = False,
) -> None:
    """Move a bucket's metadata to another partition while it is served."""
    calls = BucketCalls.at(directory)
    begun = calls.move(name, target)
    if wait:
        _watch(calls, name, begun.target)
    if json_output:
        print_json({**_move_json(begun), "done": wait})
    elif wait:
        out.print(f"{name} is in partition {target}", markup=False)
    else:
        out.print(f"{name} is moving: exastore bucket moves shows how far it is", markup=False)


@app.command()
def moves(directory: DirOption = DEFAULT_DIR, json_output: JsonOption = False) -> None:
    """Show the moves that are under way."""
    found = BucketCalls.at(directory).moves()
    if json_output:
        print_json([_move_json(item) for item in found])
        return
    if not found:
        out.print("no bucket moves")
        return
    table = Table()
    for column in ("bucket", "from", "to", "phase"):
        table.add_column(column, no_wrap=True)
    table.add_column("rows copied", justify="right")
    for item in found:
        table.add_row(
            item.bucket, item.source, item.target, phase_name(item), f"{item.copied_row_count:,}"
        )
    out.print(table)


@app.command("cancel-move")
def cancel_move(
    name: NameArgument,
    wait: WaitOption = True,
    directory: DirOption = DEFAULT_DIR,
    json_output: JsonOption = False,
) -> None:
    """Leave a moving bucket where it was; refused once it is being switched over."""
    calls = BucketCalls.at(directory)
    cancelled = calls.cancel_move(name)
    if wait:
        _watch(calls, name, cancelled.source)
    if json_output:
        print_json({**_move_json(cancelled), "done": wait})
    else:
        out.print(f"{name} stays in partition {cancelled.source}", markup=False)


def _watch(calls: BucketCalls, name: str, target: str) -> None:
    columns = (TextColumn("{task.description}"), BarColumn())
    with Progress(*columns, console=err, transient=True) as progress:
        task = progress.add_task(f"moving {name}", total=None)
        calls.watch_move(
            name,
            target,
            lambda text, done, rows: progress.update(
                task, description=text, completed=done, total=rows or None
            ),
        )


# ---- output ----


def _plain(message: Message) -> dict[str, Any]:
    """A message as plain values: fields that are set, under their names."""
    values: dict[str, Any] = {}
    for field, value in message.ListFields():
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            values[field.name] = dict(value)
        else:
            values[field.name] = value
    return values


def _numbers(message: metadata_pb2.Usage) -> dict[str, int]:
    names = [field.name for field in message.DESCRIPTOR.fields if field.name != "quota"]
    return {name: getattr(message, name) for name in names}


def _state_name(bucket: metadata_pb2.Bucket) -> str:
    name = metadata_pb2.BucketState.Name(bucket.state)
    return name.removeprefix("BUCKET_STATE_").lower()


def _versioning_name(bucket: metadata_pb2.Bucket) -> str:
    if not bucket.versioning:
        return "off"
    return metadata_pb2.Versioning.Name(bucket.versioning).removeprefix("VERSIONING_").lower()


def _bucket_json(bucket: metadata_pb2.Bucket) -> dict[str, Any]:
    return {
        "name": bucket.name,
        "owner": bucket.owner,
        "region": bucket.region,
        "created_s": bucket.created_s,
        "partition": bucket.partition,
        "pool": bucket.pool or "default",
        "state": _state_name(bucket),
        "versioning": _versioning_name(bucket),
        "quota": _quota_json(bucket.quota),
        "lifecycle": [_plain(rule) for rule in bucket.lifecycle],
    }


def _quota_json(limits: metadata_pb2.Quota) -> dict[str, int | None]:
    return {
        "max_bytes": limits.max_bytes or None,
        "max_objects": limits.max_objects or None,
    }


def _move_json(item: metadata_pb2.Move) -> dict[str, Any]:
    return {
        "bucket": item.bucket,
        "source": item.source,
        "target": item.target,
        "phase": phase_name(item),
        "copied_row_count": item.copied_row_count,
        "begun_s": item.begun_s,
    }


def _print_bucket(bucket: metadata_pb2.Bucket, *, json_output: bool) -> None:
    values = _bucket_json(bucket)
    if json_output:
        print_json(values)
        return
    limits = bucket.quota
    values["quota"] = _limits_text(limits)
    values["lifecycle"] = f"{len(bucket.lifecycle)} rules"
    for name, value in values.items():
        if name != "created_s":
            out.print(f"{name:12}{value}", markup=False, soft_wrap=True)


def _limits_text(limits: metadata_pb2.Quota) -> str:
    parts = [f"{binary_size(limits.max_bytes)}"] if limits.max_bytes else []
    parts += [f"{limits.max_objects:,} objects"] if limits.max_objects else []
    return ", ".join(parts) or "none"


def _print_usage(name: str, held: metadata_pb2.Usage, *, json_output: bool) -> None:
    if json_output:
        print_json({"name": name, **_numbers(held), "quota": _quota_json(held.quota)})
        return
    out.print(
        f"{name}: {held.object_count:,} objects, {binary_size(held.object_bytes)}", markup=False
    )
    if held.marker_count:
        out.print(f"  delete markers  {held.marker_count:,}")
    if held.upload_count:
        out.print(
            f"  uploads         {held.upload_count:,} with {held.part_count:,} parts, "
            f"{binary_size(held.part_bytes)}"
        )
    out.print(f"  quota           {_limits_text(held.quota)}")
