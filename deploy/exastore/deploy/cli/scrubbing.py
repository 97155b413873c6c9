"""What `exastore cluster scrub --status` and `--begin` ask and show."""

from datetime import UTC, datetime

from google.protobuf.json_format import MessageToDict

from exastore.deploy.cli.output import binary_size, duration, out, print_json
from exastore.deploy.layout import ClusterFile, metadata_addresses
from exastore.deploy.status import ask_channel
from exastore.proto.v1 import healing_pb2, healing_pb2_grpc

TIMEOUT_S = 10.0


def fetch_scrub(cluster: ClusterFile, *, begin: bool = False) -> healing_pb2.ScrubStatus:
    """How far the cluster's own scrub is; with `begin`, it begins a round now.

    Raises:
        ClusterUnhealthy: No metadata server that does the background work answers.
    """
    request = healing_pb2.GetScrubRequest(begin=begin)
    return ask_channel(
        metadata_addresses(cluster),
        lambda channel: healing_pb2_grpc.HealingServiceStub(channel).GetScrub(
            request, timeout=TIMEOUT_S
        ),
    )


def show_scrub(status: healing_pb2.ScrubStatus, *, json_output: bool) -> None:
    """The status for people, or as JSON."""
    if json_output:
        print_json(
            MessageToDict(
                status, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
            )
        )
        return
    if status.active:
        share = 100 * status.checked_bytes / max(1, status.total_bytes)
        out.print(
            f"a scrub is under way: {binary_size(status.checked_bytes)} of "
            f"{binary_size(status.total_bytes)} read, {share:.0f} %"
        )
    elif status.ended_s:
        ended = datetime.fromtimestamp(status.ended_s, UTC)
        out.print(
            f"the last scrub ended {ended:%Y-%m-%d %H:%M} UTC: "
            f"{status.checked_chunk_count:,} chunks, {binary_size(status.checked_bytes)}"
        )
    else:
        out.print("no scrub was made since the metadata server started")
    period = duration(status.period_s) if status.period_s else "only when asked"
    out.print(f"  every chunk within  {period}")
    out.print(f"  corrupt             {status.corrupt_count}")
    out.print(f"  missing             {status.missing_count}")
    out.print(f"  reported by reads   {status.reported_count}")
    out.print(f"  repaired            {status.repaired_count}")
    out.print(f"  waiting             {status.waiting_count}")
    if status.skipped_device_count:
        out.print(f"  devices not read    {status.skipped_device_count}", style="yellow")
    if status.message:
        out.print(f"  last problem        {status.message}", markup=False)
