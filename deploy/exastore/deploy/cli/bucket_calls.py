"""What the command line asks the metadata servers about buckets."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from exastore.deploy.cli.output import duration
from exastore.deploy.clock import SystemClock
from exastore.deploy.errors import BadInput, ClusterUnhealthy, DeployError
from exastore.deploy.layout import metadata_addresses, read_cluster_file
from exastore.deploy.status import ask, ask_channel
from exastore.proto.v1 import access_pb2, access_pb2_grpc, metadata_pb2, metadata_pb2_grpc

Answer = TypeVar("Answer")

POLL_S = 0.25
CALL_TIMEOUT_S = 30.0
#: A recount reads every row of the bucket.
RECOUNT_TIMEOUT_S = 24 * 3600.0


def phase_name(item: metadata_pb2.Move) -> str:
    """The phase of a move in words."""
    name = metadata_pb2.MovePhase.Name(item.phase)
    return name.removeprefix("MOVE_PHASE_").lower().replace("_", " ")


@dataclass(frozen=True, slots=True)
class BucketCalls:
    """What the commands ask the metadata servers of one cluster."""

    addresses: list[str]

    @classmethod
    def at(cls, directory: Path) -> "BucketCalls":
        return cls(metadata_addresses(read_cluster_file(directory)))

    def bucket(self, name: str) -> metadata_pb2.Bucket:
        request = metadata_pb2.GetBucketRequest(name=name)
        return self.ask(lambda stub: stub.GetBucket(request, timeout=CALL_TIMEOUT_S))

    def buckets(self) -> list[metadata_pb2.Bucket]:
        request = metadata_pb2.ListBucketsRequest()
        answer = self.ask(lambda stub: stub.ListBuckets(request, timeout=CALL_TIMEOUT_S))
        return list(answer.buckets)

    def create(self, request: metadata_pb2.CreateBucketRequest) -> metadata_pb2.Bucket:
        made = self.ask(lambda stub: stub.CreateBucket(request, timeout=CALL_TIMEOUT_S))
        self._record("CreateBucket", made.name, owner=made.owner)
        return made

    def delete(self, name: str) -> None:
        request = metadata_pb2.DeleteBucketRequest(name=name)
        self.ask(lambda stub: stub.DeleteBucket(request, timeout=CALL_TIMEOUT_S))
        self._record("DeleteBucket", name)

    def configure(self, request: metadata_pb2.ConfigureBucketRequest) -> metadata_pb2.Bucket:
        return self.ask(lambda stub: stub.ConfigureBucket(request, timeout=CALL_TIMEOUT_S))

    def set_quota(self, name: str, limits: metadata_pb2.Quota) -> None:
        """Set what a bucket may hold."""
        self.configure(metadata_pb2.ConfigureBucketRequest(name=name, quota=limits))
        self._record(
            "SetBucketQuota",
            name,
            max_bytes=str(limits.max_bytes),
            max_objects=str(limits.max_objects),
        )

    def _record(self, action: str, name: str, **details: str) -> None:
        """Put an act on the audit log, as gateways do with theirs."""
        entry = access_pb2.AuditEntry(action=action, target=name, details=details)
        ask_channel(
            self.addresses,
            lambda channel: access_pb2_grpc.AccessServiceStub(channel).RecordAct(
                entry, timeout=CALL_TIMEOUT_S
            ),
        )

    def usage(self, name: str) -> metadata_pb2.Usage:
        request = metadata_pb2.GetUsageRequest(bucket=name)
        return self.ask(lambda stub: stub.GetUsage(request, timeout=CALL_TIMEOUT_S))

    def check_usage(self, name: str) -> metadata_pb2.CheckUsageResponse:
        request = metadata_pb2.CheckUsageRequest(bucket=name)
        return self.ask(lambda stub: stub.CheckUsage(request, timeout=RECOUNT_TIMEOUT_S))

    def move(self, name: str, target: str) -> metadata_pb2.Move:
        request = metadata_pb2.MoveBucketRequest(bucket=name, target=target)
        return self.ask(lambda stub: stub.MoveBucket(request, timeout=CALL_TIMEOUT_S))

    def cancel_move(self, name: str) -> metadata_pb2.Move:
        request = metadata_pb2.CancelMoveRequest(bucket=name)
        return self.ask(lambda stub: stub.CancelMove(request, timeout=CALL_TIMEOUT_S))

    def moves(self) -> list[metadata_pb2.Move]:
        request = metadata_pb2.ListMovesRequest()
        return list(self.ask(lambda stub: stub.ListMoves(request, timeout=CALL_TIMEOUT_S)).moves)

    def ask(self, call: Callable[[metadata_pb2_grpc.MetadataServiceStub], Answer]) -> Answer:
        return ask(self.addresses, call)

    def watch_move(self, name: str, target: str, tell: Callable[[str, int, int], None]) -> None:
        """Until the move has ended; servers that are away are waited for.

        Args:
            name: The bucket.
            target: The partition where it is to be in the end.
            tell: Called with words, rows done and about how many rows there are.

        Raises:
            DeployError: The bucket is not where it was to go.
        """
        clock = SystemClock()
        rows = done = 0
        begun: tuple[float, int] | None = None
        while True:
            try:
                found = next((item for item in self.moves() if item.bucket == name), None)
                if found is None:
                    break
                rows = max(rows, self._row_count(name))
            except ClusterUnhealthy:
                tell("no metadata server answers; waiting", done, rows)
                clock.sleep_blocking(POLL_S)
                continue
            now_s, done = clock.monotonic_s(), found.copied_row_count
            begun = begun or (now_s, done)
            rate = (done - begun[1]) / max(now_s - begun[0], POLL_S)
            left = duration(max(0, rows - done) / rate if rate > 0 else None)
            text = f"{phase_name(found)}: {done:,} of about {rows:,} rows, time left: {left}"
            tell(text, done, rows)
            clock.sleep_blocking(POLL_S)
        place = next((b.partition for b in self.buckets() if b.name == name), None)
        if place != target:
            raise DeployError(
                f"the bucket {name} is in partition {place}, not {target}: "
                "another command cancelled the move, or deleted the bucket"
            )

    def _row_count(self, name: str) -> int:
        """About how many rows a bucket has; 0 while it is not served."""
        try:
            held = self.usage(name)
        except (ClusterUnhealthy, BadInput):
            return 0
        return held.object_count + held.marker_count + held.upload_count + held.part_count
