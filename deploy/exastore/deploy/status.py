"""The state of a cluster as its metadata server tells it."""

from dataclasses import asdict, dataclass

import grpc

from exastore.deploy.errors import ClusterUnhealthy
from exastore.metadata.core.topology import DeviceState
from exastore.proto.channel import METADATA_MESSAGE_BYTES, channel_options
from exastore.proto.v1 import metadata_pb2, metadata_pb2_grpc


@dataclass(frozen=True, slots=True)
class DeviceView:
    """A device."""

    index: int
    state: str
    capacity_bytes: int
    used_bytes: int
    chunk_count: int
    fenced: bool


@dataclass(frozen=True, slots=True)
class NodeView:
    """A storage node."""

    id: str
    address: str
    heartbeat_age_s: float
    devices: list[DeviceView]


@dataclass(frozen=True, slots=True)
class RepairView:
    """The repair that runs, or the last one."""

    active: bool
    task_count: int
    done_task_count: int
    total_chunk_bytes: int
    rebuilt_chunk_bytes: int
    rebuilt_chunk_count: int
    read_bytes: int
    elapsed_s: float
    eta_s: float | None
    bytes_per_s: float
    message: str


@dataclass(frozen=True, slots=True)
class StatusView:
    """A cluster. `pgs_by_missing[i]`: placement groups of which i slots cannot be read now."""

    cluster_id: str
    code: str
    epoch: int
    ready: bool
    bootstrap_device_count: int
    pg_count: int
    pgs_by_missing: list[int]
    degraded_stripe_count: int
    trash_extent_count: int
    nodes: list[NodeView]
    repair: RepairView

    @property
    def missing_slot_count(self) -> int:
        """PG slots that cannot be read now."""
        return sum(missing * count for missing, count in enumerate(self.pgs_by_missing))

    @property
    def fully_redundant(self) -> bool:
        """Whether every chunk has its place and is there, as far as the map knows."""
        return self.ready and self.missing_slot_count == 0 and self.degraded_stripe_count == 0

    @property
    def up_device_count(self) -> int:
        """Devices that serve."""
        return sum(device.state == "up" for node in self.nodes for device in node.devices)

    def problem_of_start(self, node_count: int) -> str:
        """Why a cluster of so many one-device nodes does not serve yet; empty when it does."""
        if not self.ready:
            joined = sum(len(node.devices) for node in self.nodes)
            return f"{joined} of {self.bootstrap_device_count} devices have joined"
        if self.up_device_count < node_count:
            return f"{self.up_device_count} of {node_count} devices are up"
        return ""

    def to_json(self) -> dict[str, object]:
        """As plain values."""
        return {
            **asdict(self),
            "missing_slot_count": self.missing_slot_count,
            "fully_redundant": self.fully_redundant,
        }


def fetch_status(address: str, *, timeout_s: float = 10.0) -> StatusView:
    """Ask a metadata server.

    Raises:
        ClusterUnhealthy: It does not answer.
    """
    with grpc.insecure_channel(address, channel_options(METADATA_MESSAGE_BYTES)) as channel:
        stub = metadata_pb2_grpc.MetadataServiceStub(channel)
        try:
            status = stub.GetStatus(metadata_pb2.GetStatusRequest(), timeout=timeout_s)
        except grpc.RpcError as error:
            detail = error.details() if isinstance(error, grpc.Call) else str(error)
            raise ClusterUnhealthy(
                f"the metadata server at {address} does not answer: {detail}",
                hint="see its log; `exastore cluster up` starts what does not run",
            ) from error
    return view_of(status)


def view_of(status: metadata_pb2.ClusterStatus) -> StatusView:
    """The message as plain values."""
    repair = status.repair
    return StatusView(
        cluster_id=status.cluster_id,
        code=status.code,
        epoch=status.epoch,
        ready=status.ready,
        bootstrap_device_count=status.bootstrap_device_count,
        pg_count=status.pg_count,
        pgs_by_missing=list(status.pgs_by_missing),
        degraded_stripe_count=status.degraded_stripe_count,
        trash_extent_count=status.trash_extent_count,
        nodes=[_node_view(node) for node in status.nodes],
        repair=RepairView(
            active=repair.active,
            task_count=repair.task_count,
            done_task_count=repair.done_task_count,
            total_chunk_bytes=repair.total_chunk_bytes,
            rebuilt_chunk_bytes=repair.rebuilt_chunk_bytes,
            rebuilt_chunk_count=repair.rebuilt_chunk_count,
            read_bytes=repair.read_bytes,
            elapsed_s=repair.elapsed_s,
            eta_s=repair.eta_s if repair.eta_s >= 0 else None,
            bytes_per_s=repair.bytes_per_s,
            message=repair.message,
        ),
    )


def _node_view(status: metadata_pb2.NodeStatus) -> NodeView:
    return NodeView(
        id=status.node.id,
        address=status.node.address,
        heartbeat_age_s=status.heartbeat_age_s,
        devices=[
            DeviceView(
                index=item.device.index,
                state=_state_name(item.device.state),
                capacity_bytes=item.device.capacity_bytes,
                used_bytes=item.used_bytes,
                chunk_count=item.chunk_count,
                fenced=item.fenced,
            )
            for item in status.devices
        ],
    )


def _state_name(number: int) -> str:
    return DeviceState(number).name.lower() if number else "joining"
