"""The state of a cluster as its metadata server tells it."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import TypeVar

import grpc

from exastore.deploy.errors import BadInput, ClusterUnhealthy
from exastore.metadata.core.topology import DeviceState, DomainLevel
from exastore.proto.channel import METADATA_MESSAGE_BYTES, channel_options
from exastore.proto.v1 import metadata_pb2, metadata_pb2_grpc, pool_pb2

Answer = TypeVar("Answer")


@dataclass(frozen=True, slots=True)
class DeviceView:
    """A device."""

    index: int
    state: str
    capacity_bytes: int
    used_bytes: int
    chunk_count: int
    fenced: bool
    weight: float
    slot_count: int
    leaving_slot_count: int

    @property
    def is_removed(self) -> bool:
        """Whether it was taken out of the cluster for good."""
        return self.state == "out" and self.weight == 0


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
class MovesView:
    """Slots that move between devices that serve; `progress` counts them as tasks."""

    progress: RepairView
    moving_slot_count: int
    waiting_slot_count: int
    unplaced_slot_count: int
    balancing: bool
    draining_device_indexes: list[int]

    @property
    def is_still(self) -> bool:
        """Whether nothing moves and nothing is to be moved."""
        return not (self.moving_slot_count or self.waiting_slot_count or self.balancing)


@dataclass(frozen=True, slots=True)
class PoolView:
    """A pool of placement groups."""

    name: str
    pg_count: int
    rule: str
    regions: list[str]
    device_classes: list[str]
    violation_count: int
    unplaced_slot_count: int
    unreadable_pg_count: int


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
    moves: MovesView
    does_background_work: bool
    pools: list[PoolView]

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
        return sum(
            device.state in ("up", "draining") for node in self.nodes for device in node.devices
        )

    @property
    def fenced_node_ids(self) -> list[str]:
        """Nodes with a device that had an I/O error and takes no writes; one entry a device."""
        return [
            node.id
            for node in self.nodes
            for device in node.devices
            if device.fenced and device.state not in ("up", "draining")
        ]

    def device(self, index: int) -> DeviceView:
        """The device with this index."""
        return next(d for node in self.nodes for d in node.devices if d.index == index)

    def problem_of_start(self, node_count: int) -> str:
        """Why a cluster of so many one-device nodes does not serve yet; empty when it does."""
        if not self.ready:
            joined = sum(len(node.devices) for node in self.nodes)
            return f"{joined} of {self.bootstrap_device_count} devices have joined"
        # A fenced device is there, and waits for an operator: its cluster does not wait for it.
        found = self.up_device_count + len(self.fenced_node_ids)
        if found < node_count:
            return f"{found} of {node_count} devices are up"
        return ""

    def to_json(self) -> dict[str, object]:
        """As plain values."""
        return {
            **asdict(self),
            "missing_slot_count": self.missing_slot_count,
            "fully_redundant": self.fully_redundant,
        }


def fetch_status(addresses: str | Sequence[str], *, timeout_s: float = 10.0) -> StatusView:
    """Ask the metadata servers; what the one that does the background work says counts.

    Raises:
        ClusterUnhealthy: None answers.
    """
    views: list[StatusView] = []
    problem: ClusterUnhealthy | None = None
    for address in [addresses] if isinstance(addresses, str) else addresses:
        try:
            view = view_of(
                _call(
                    address,
                    lambda channel: metadata_pb2_grpc.MetadataServiceStub(channel).GetStatus(
                        metadata_pb2.GetStatusRequest(), timeout=timeout_s
                    ),
                )
            )
        except ClusterUnhealthy as error:
            problem = error
            continue
        if view.does_background_work:
            return view
        views.append(view)
    if views:
        return views[0]
    raise problem or ClusterUnhealthy("the cluster has no metadata server")


def operate(
    addresses: Sequence[str], request: metadata_pb2.OperateRequest, *, timeout_s: float = 60.0
) -> metadata_pb2.OperationPlan:
    """Plan an operation, and act if the request says so.

    Raises:
        BadInput: The cluster refuses it, and says why.
        ClusterUnhealthy: No metadata server answers.
    """
    # What failed is tried again by the server that does the work, so that one is asked first.
    leading = [a for a in addresses if _leads(a)]
    others = [a for a in addresses if a not in leading]
    return ask([*leading, *others], lambda stub: stub.Operate(request, timeout=timeout_s))


def ask(
    addresses: Sequence[str], call: Callable[[metadata_pb2_grpc.MetadataServiceStub], Answer]
) -> Answer:
    """The answer of the first metadata server that gives one.

    Raises:
        BadInput: It refuses the request, and says why.
        ClusterUnhealthy: No metadata server answers.
    """
    return ask_channel(
        addresses, lambda channel: call(metadata_pb2_grpc.MetadataServiceStub(channel))
    )


def ask_channel(addresses: Sequence[str], call: Callable[[grpc.Channel], Answer]) -> Answer:
    """As `ask`, for a call of any service."""
    problem: ClusterUnhealthy | None = None
    for address in addresses:
        try:
            return _call(address, call)
        except ClusterUnhealthy as error:
            problem = error
    raise problem or ClusterUnhealthy("the cluster has no metadata server")


def _leads(address: str) -> bool:
    try:
        return fetch_status(address).does_background_work
    except ClusterUnhealthy:
        return False


def _call(address: str, call: Callable[[grpc.Channel], Answer]) -> Answer:
    with grpc.insecure_channel(address, channel_options(METADATA_MESSAGE_BYTES)) as channel:
        try:
            return call(channel)
        except grpc.RpcError as error:
            detail = error.details() if isinstance(error, grpc.Call) else str(error)
            refused = (
                grpc.StatusCode.FAILED_PRECONDITION,
                grpc.StatusCode.INVALID_ARGUMENT,
                grpc.StatusCode.NOT_FOUND,
                grpc.StatusCode.ALREADY_EXISTS,
            )
            if isinstance(error, grpc.Call) and error.code() in refused:
                raise BadInput(str(detail)) from error
            raise ClusterUnhealthy(
                f"the metadata server at {address} does not answer: {detail}",
                hint="see its log; `exastore cluster up` starts what does not run",
            ) from error


def view_of(status: metadata_pb2.ClusterStatus) -> StatusView:
    """The message as plain values."""
    moves = status.moves
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
        repair=_repair_view(status.repair),
        moves=MovesView(
            progress=_repair_view(moves.progress),
            moving_slot_count=moves.moving_slot_count,
            waiting_slot_count=moves.waiting_slot_count,
            unplaced_slot_count=moves.unplaced_slot_count,
            balancing=moves.balancing,
            draining_device_indexes=list(moves.draining_device_indexes),
        ),
        does_background_work=status.does_background_work,
        pools=[_pool_view(item) for item in status.pools],
    )


def _pool_view(status: pool_pb2.PoolStatus) -> PoolView:
    pool = status.pool
    parts = [
        f"{item.max_chunks} per {DomainLevel(item.level).name.lower()}" for item in pool.limits
    ]
    parts += [f"in {'+'.join(pool.regions)}"] if pool.regions else []
    parts += [f"on {'+'.join(pool.device_classes)}"] if pool.device_classes else []
    return PoolView(
        name=pool.name,
        pg_count=pool.pg_count,
        rule=", ".join(parts),
        regions=list(pool.regions),
        device_classes=list(pool.device_classes),
        violation_count=status.violation_count,
        unplaced_slot_count=status.unplaced_slot_count,
        unreadable_pg_count=status.unreadable_pg_count,
    )


def _repair_view(repair: metadata_pb2.RepairStatus) -> RepairView:
    return RepairView(
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
                weight=item.device.weight,
                slot_count=item.slot_count,
                leaving_slot_count=item.leaving_slot_count,
            )
            for item in status.devices
        ],
    )


def _state_name(number: int) -> str:
    return DeviceState(number).name.lower() if number else "joining"
