"""`exastore cluster pack|gc`: how dense small objects are, and chunks that nothing refers to.

The metadata servers do both by themselves. These commands show how far that is, and have it done
now: plan first, `--apply` to act.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, TypeVar

import grpc
import typer

from exastore.deploy.cli.options import DEFAULT_DIR, DirOption, JsonOption
from exastore.deploy.cli.output import binary_size, duration, out, print_json
from exastore.deploy.layout import metadata_addresses, read_cluster_file
from exastore.deploy.status import ask_channel
from exastore.proto.v1 import upkeep_pb2, upkeep_pb2_grpc

#: Both walk the whole namespace.
TIMEOUT_S = 600.0

Answer = TypeVar("Answer")
ApplyOption = Annotated[
    bool, typer.Option("--apply/--dry-run", help="Act; without it, tell what there is to do.")
]


def add_to(app: typer.Typer) -> None:
    """Register the commands."""
    for command in (pack, gc):
        app.command()(command)


def pack(
    directory: DirOption = DEFAULT_DIR,
    apply: ApplyOption = False,
    json_output: JsonOption = False,
) -> None:
    """Show how small objects are packed; with --apply pack now, not when stripes are full."""
    request = upkeep_pb2.GetPackingRequest(pack_now=apply)
    found = _ask(directory, lambda stub: stub.GetPacking(request, timeout=TIMEOUT_S))
    live_ratio = found.live_bytes / found.packed_bytes if found.packed_bytes else 1.0
    overhead = found.stored_bytes / found.live_bytes if found.live_bytes else 0.0
    if json_output:
        print_json(
            {
                "applied": apply,
                "waiting_objects": found.unpacked_object_count,
                "waiting_bytes": found.unpacked_bytes,
                "oldest_wait_s": found.oldest_wait_s,
                "packed_stripes": found.stripe_count,
                "packed_objects": found.object_count,
                "live_bytes": found.live_bytes,
                "packed_bytes": found.packed_bytes,
                "stored_bytes": found.stored_bytes,
                "sparse_stripes": found.sparse_stripe_count,
                "live_ratio": live_ratio,
                "stored_per_live_byte": overhead,
            }
        )
        return
    out.print(
        f"waiting   {found.unpacked_object_count} objects, {binary_size(found.unpacked_bytes)}, "
        f"the oldest for {duration(found.oldest_wait_s)}"
    )
    out.print(
        f"packed    {found.object_count} objects, {binary_size(found.live_bytes)}, "
        f"in {found.stripe_count} stripes"
    )
    if found.packed_bytes:
        out.print(
            f"live      {live_ratio:.0%} of what was packed; {found.sparse_stripe_count} stripes "
            f"are to be packed anew"
        )
        out.print(f"stored    {overhead:.2f} bytes on devices for each byte")
    if not apply and found.unpacked_object_count:
        out.print("Objects wait for others to fill a stripe. To pack now, add --apply.")


def gc(
    directory: DirOption = DEFAULT_DIR,
    apply: ApplyOption = False,
    older_than_s: Annotated[
        float,
        typer.Option(
            help="Judge chunks of stripes begun before; writes that take longer then fail.",
            show_default="what the servers are told: a day",
        ),
    ] = 0.0,
    json_output: JsonOption = False,
) -> None:
    """Look for chunks that nothing refers to, left by writes that failed; --apply deletes them."""
    request = upkeep_pb2.CollectOrphansRequest(apply=apply, older_than_s=older_than_s)
    found = _ask(directory, lambda stub: stub.CollectOrphans(request, timeout=TIMEOUT_S))
    if json_output:
        print_json(
            {
                "applied": found.applied,
                "older_than_s": found.older_than_s,
                "checked_stripes": found.checked_stripe_count,
                "orphan_stripes": found.orphan_stripe_count,
                "orphan_chunks": found.orphan_chunk_count,
                "orphan_bytes": found.orphan_bytes,
                "deleted_chunks": found.deleted_chunk_count,
                "skipped_pgs": found.skipped_pg_count,
                "message": found.message,
                "examples": [stripe_id.hex() for stripe_id in found.examples],
            }
        )
        return
    out.print(
        f"{found.checked_stripe_count} stripes older than {duration(found.older_than_s)}; "
        f"nothing refers to {found.orphan_stripe_count} of them: {found.orphan_chunk_count} "
        f"chunks, {binary_size(found.orphan_bytes)}"
    )
    if found.skipped_pg_count:
        out.print(f"{found.skipped_pg_count} placement groups are under repair or out of reach")
    if found.message:
        out.print(found.message)
    if found.applied:
        out.print(f"{found.deleted_chunk_count} chunks deleted")
    elif found.orphan_chunk_count:
        out.print("Nothing was deleted. To delete them, add --apply.")


def _ask(directory: Path, call: Callable[[upkeep_pb2_grpc.UpkeepServiceStub], Answer]) -> Answer:
    """The answer of the server that does the background work, or of any that can give one."""

    def through(channel: grpc.Channel) -> Answer:
        return call(upkeep_pb2_grpc.UpkeepServiceStub(channel))

    return ask_channel(_addresses(directory), through)


def _addresses(directory: Path) -> Sequence[str]:
    return metadata_addresses(read_cluster_file(directory))
