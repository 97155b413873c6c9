"""The cluster half of the service: the map, heartbeats, device states, status.

Theory of operation: heartbeats say which nodes and devices there are; `NodeHealth` turns them and
silence into device states. What it thinks is compared with the map and the differences are written
as the next epoch, by the holder of the background lease alone. Before there is a map, heartbeats
are collected until enough devices have joined, and then the first map is placed.
"""

import asyncio
import contextlib
import logging
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from dataclasses import dataclass

from exastore.erasure import codec
from exastore.metadata.core.clock import Clock
from exastore.metadata.core.health import (
    HealthEvent,
    HealthOptions,
    Heartbeat,
    Intent,
    NodeHealth,
    SetDeviceState,
    Weights,
)
from exastore.metadata.core.topology import DeviceState
from exastore.metadata.kv.contract import Engine, Transaction
from exastore.metadata.kv.keys import pack, prefix_range, unpack
from exastore.metadata.namespace.errors import InvalidArgument
from exastore.metadata.service import membership
from exastore.metadata.service.config import MetadataConfig
from exastore.metadata.service.convert import WIRE_NO_DEVICE
from exastore.metadata.service.errors import LeaseLost, NotReady, WrongCluster
from exastore.metadata.service.lease import Lease
from exastore.metadata.service.map_store import MapStore
from exastore.metadata.service.metrics import MetadataMetrics
from exastore.metadata.service.residency import pool_statuses
from exastore.proto.v1 import budget_pb2, common_pb2, metadata_pb2

log = logging.getLogger(__name__)

#: What a node may use for repair and moves; None: another server says it.
GrantOf = Callable[[metadata_pb2.HeartbeatRequest], budget_pb2.BackgroundGrant | None]

_STATE_NAMES = {state.value: state.name.lower() for state in DeviceState}


def _wire(state: DeviceState) -> common_pb2.DeviceState.ValueType:
    return common_pb2.DeviceState.ValueType(state.value)


def intent_row(device_index: int, state: DeviceState) -> tuple[bytes, bytes]:
    """The row that keeps what an operator wants a device to be."""
    return pack("I", device_index), pack(state.value)


async def _not_started(request: metadata_pb2.OperateRequest) -> metadata_pb2.OperationPlan:
    raise NotReady("the server is starting")


@dataclass(slots=True)
class _Member:
    """A node as its last heartbeat described it."""

    heartbeat: metadata_pb2.HeartbeatRequest
    seen_s: float


@dataclass(frozen=True, slots=True)
class BackgroundStatus:
    """What background work adds to the status."""

    repair: metadata_pb2.RepairStatus
    degraded_stripe_count: int
    trash_extent_count: int


class ClusterService:
    """Map and heartbeats of MetadataService."""

    def __init__(
        self,
        config: MetadataConfig,
        engine: Engine,
        maps: MapStore,
        lease: Lease,
        clock: Clock,
        metrics: MetadataMetrics,
    ) -> None:
        self._config = config
        self._engine = engine
        self._maps = maps
        self._lease = lease
        self._clock = clock
        self._metrics = metrics
        self._n = codec(config.code).n
        #: Nodes heard of since this server started, by id.
        self._members: dict[str, _Member] = {}
        self._options = HealthOptions(
            config.down_after_s, config.out_after_s, config.max_out_fraction
        )
        self._health = NodeHealth(self._options)
        #: When `settle` ran last.
        self._settled_s = clock.monotonic_s()
        #: What the first map waits for, in words.
        self._waiting_for = ""
        self._forming = asyncio.Lock()
        #: Filled in by the background work.
        self.background_status: Callable[[], BackgroundStatus] = lambda: BackgroundStatus(
            metadata_pb2.RepairStatus(eta_s=-1), 0, 0
        )
        self.grant: GrantOf = lambda _: None
        self.add_moves: Callable[[metadata_pb2.ClusterStatus], None] = lambda _: None
        self.carry_out: Callable[
            [metadata_pb2.OperateRequest], Awaitable[metadata_pb2.OperationPlan]
        ] = _not_started

    async def start(self) -> None:
        """Load the map; every device has `down_after_s` from now to be heard of."""
        await self._maps.load()
        message = self._maps.message
        if message is None:
            return
        for what, stored, configured in (
            ("cluster_id", message.cluster_id, self._config.cluster_id),
            ("code", message.code, self._config.code),
        ):
            if stored != configured:
                raise WrongCluster(
                    f"the engine {self._config.engine} holds a cluster with {what} {stored!r}, "
                    f"the configuration says {configured!r}"
                )
        await self.take_over()
        self.publish_metrics()

    # ---- calls ----

    async def get_map(self, request: metadata_pb2.GetMapRequest) -> common_pb2.ClusterMap:
        self._require_map()
        return self._maps.update_from(request.known_epoch, takes_deltas=request.takes_deltas)

    async def watch_map(
        self, request: metadata_pb2.GetMapRequest
    ) -> AsyncIterator[common_pb2.ClusterMap]:
        known_epoch = request.known_epoch
        while True:
            message = await self._maps.wait_newer(known_epoch)
            yield self._maps.update_from(known_epoch, takes_deltas=request.takes_deltas)
            known_epoch = message.epoch

    async def heartbeat(
        self, request: metadata_pb2.HeartbeatRequest
    ) -> metadata_pb2.HeartbeatResponse:
        now_s = self._clock.monotonic_s()
        self._check_heartbeat(request, now_s)
        self._members[request.node.id] = _Member(request, now_s)
        if self._maps.message is None:
            await self._form()
        message = self._maps.message
        if message is None:
            return metadata_pb2.HeartbeatResponse(
                device_indexes=[WIRE_NO_DEVICE] * len(request.devices)
            )
        if membership.admitted(message, request) is not None:
            await self._maps.change(lambda known: known and membership.admitted(known, request))
        await self._hear(request)
        message = self._require_map()
        by_uuid = {device.uuid: device.index for device in message.devices}
        update = None
        if message.epoch > request.known_epoch:
            update = self._maps.update_from(request.known_epoch, takes_deltas=request.takes_deltas)
        return metadata_pb2.HeartbeatResponse(
            epoch=message.epoch,
            device_indexes=[by_uuid.get(d.uuid, WIRE_NO_DEVICE) for d in request.devices],
            map=update,
            grant=self.grant(request),
        )

    async def set_device_state(
        self, request: metadata_pb2.SetDeviceStateRequest
    ) -> common_pb2.ClusterMap:
        message = self._require_map()
        if request.device_index >= len(message.devices):
            raise InvalidArgument(f"there is no device {request.device_index}")
        try:
            state = DeviceState(request.state)
            await self.set_states([request.device_index], state)
        except ValueError as error:
            raise InvalidArgument(f"device state {request.state}: {error}") from None
        return self._require_map()

    async def operate(self, request: metadata_pb2.OperateRequest) -> metadata_pb2.OperationPlan:
        return await self.carry_out(request)

    async def set_states(self, devices: Iterable[int], state: DeviceState) -> None:
        """Keep what an operator wants devices to be, and make it so where they answer.

        Raises ValueError for a state that cannot be wanted.
        """
        commands = [
            command for device in devices for command in self._handle(Intent(device, state))
        ]
        rows = [intent_row(device, state) for device in devices]

        def store(txn: Transaction) -> None:
            for key, value in rows:
                txn.put(key, value)

        await self._engine.transact(store)
        states = {command.device: _wire(command.state) for command in commands}
        await self._maps.change(lambda known: known and membership.with_states(known, states))
        self.publish_metrics()

    def used_bytes(self) -> dict[int, int]:
        """Bytes in use by device, as the nodes that this server hears of say."""
        by_uuid = {device.uuid: device.index for device in self._require_map().devices}
        return {
            by_uuid[report.uuid]: report.used_bytes
            for member in self._members.values()
            for report in member.heartbeat.devices
            if report.uuid in by_uuid
        }

    async def get_status(
        self, request: metadata_pb2.GetStatusRequest
    ) -> metadata_pb2.ClusterStatus:
        del request
        background = self.background_status()
        status = metadata_pb2.ClusterStatus(
            cluster_id=self._config.cluster_id,
            code=self._config.code,
            bootstrap_device_count=self._config.bootstrap_device_count,
            repair=background.repair,
            degraded_stripe_count=background.degraded_stripe_count,
            trash_extent_count=background.trash_extent_count,
            does_background_work=self._lease.is_held,
        )
        message = self._maps.message
        if message is None:
            status.repair.message = self._waiting_message()
            self._add_joining(status)
            return status
        if self._health.held:
            status.repair.message = self._held_message()
        status.ready = True
        status.epoch = message.epoch
        status.pg_count = len(message.pgs)
        missing = self._missing_slots(message)
        status.pgs_by_missing.extend(membership.pgs_by_missing(message, missing))
        if self._maps.columns is not None:
            status.pools.extend(pool_statuses(message, self._maps.columns, missing))
        self._add_nodes(status, message)
        self.add_moves(status)
        return status

    # ---- for the background work ----

    async def take_over(self) -> None:
        """Begin to judge who is alive: all devices are as the map says, and heard of just now."""
        message = self._maps.message
        if message is None:
            return
        known = {device.index: DeviceState(device.state) for device in message.devices}
        self._health = NodeHealth(self._options, known, self._clock.monotonic_s())
        await self.load_intents()

    async def settle(self) -> None:
        """Declare the silent DOWN or OUT: write where the map differs from what health says."""
        now_s = self._clock.monotonic_s()
        # If this server itself stood still, the heartbeats of that time wait in its queues: they
        # are heard before anybody is declared dead.
        stood_still = now_s - self._settled_s > self._config.down_after_s / 2
        self._settled_s = now_s
        message = self._maps.message
        if message is not None:
            self._handle(Weights(tuple(device.weight for device in message.devices)))
        if not stood_still:
            self._health.on_deadline(now_s)
        if message is None or not self._lease.is_held:
            return
        self._expect(message)
        states = self._differing(message)
        if states:
            await self._maps.change(
                lambda known: known and membership.with_states(known, self._differing(known)),
                guard=self._lease.guard(),
            )
            for index, state in states.items():
                log.info("device %d is %s", index, _STATE_NAMES[state])

    async def load_intents(self) -> None:
        """Take over what operators intend, also through other servers."""
        rows = await self._engine.read(lambda txn: txn.scan(*prefix_range(pack("I"))))
        for key, value in rows:
            _, index = unpack(key)
            (state,) = unpack(value)
            assert isinstance(index, int) and isinstance(state, int)
            self._handle(Intent(index, DeviceState(state)))

    def address_of(self, device_index: int) -> str:
        """Where the device's node serves."""
        message = self._require_map()
        return message.nodes[message.devices[device_index].node_index].address

    def publish_metrics(self) -> None:
        """Show the map as it is now."""
        message = self._maps.message
        if message is None:
            return
        devices = Counter(_STATE_NAMES[device.state] for device in message.devices)
        best: dict[int, int] = {}
        for device in message.devices:
            # UP is best, then DRAINING; DOWN and OUT follow.
            rank = (1, 4, 2, 3).index(device.state)
            best[device.node_index] = min(rank, best.get(device.node_index, rank))
        nodes = Counter(_STATE_NAMES[(1, 4, 2, 3)[rank]] for rank in best.values())
        names = _STATE_NAMES.values()
        self._metrics.map(
            message.epoch,
            {name: devices[name] for name in names},
            {name: nodes[name] for name in names},
            membership.pgs_by_missing(message, self._missing_slots(message)),
        )

    # ---- inside ----

    def _require_map(self) -> common_pb2.ClusterMap:
        message = self._maps.message
        if message is None:
            raise NotReady(f"there is no cluster map yet: {self._waiting_message()}")
        return message

    def _check_heartbeat(self, request: metadata_pb2.HeartbeatRequest, now_s: float) -> None:
        node = request.node
        if not node.id or not node.address:
            raise InvalidArgument("a heartbeat names the node's id and address")
        uuids = {device.uuid for device in request.devices}
        if len(uuids) != len(request.devices) or "" in uuids:
            raise InvalidArgument("a heartbeat names every device once, by its uuid")
        known = self._members.get(node.id)
        if (
            known is not None
            and known.heartbeat.node.address != node.address
            and now_s - known.seen_s < self._config.down_after_s
            and uuids.isdisjoint(device.uuid for device in known.heartbeat.devices)
        ):
            raise InvalidArgument(
                f"two nodes use the id {node.id!r}: {known.heartbeat.node.address} and "
                f"{node.address}, with different devices"
            )

    def _waiting_message(self) -> str:
        if self._waiting_for:
            return self._waiting_for
        joined = sum(len(member.heartbeat.devices) for member in self._members.values())
        return f"{joined} of {self._config.bootstrap_device_count} devices have joined"

    def _held_message(self) -> str:
        return (
            f"{len(self._health.held)} devices are silent for more than out_after_s but stay DOWN: "
            f"silence may take out {self._config.max_out_fraction:.0%} of the weight at once "
            "(max_out_fraction). Bring them back, or set OUT what is lost for good"
        )

    async def _form(self) -> None:
        """Place the first map once enough devices have joined."""
        async with self._forming:
            await self._maps.load()
            if self._maps.message is not None:
                return
            heartbeats = [member.heartbeat for member in self._members.values()]
            joined = sum(len(heartbeat.devices) for heartbeat in heartbeats)
            if joined < self._config.bootstrap_device_count:
                return
            # The first call compiles the kernels: not in the event loop.
            try:
                first = await asyncio.to_thread(self._first_map, heartbeats)
            except NotReady as error:
                if self._waiting_for != str(error):
                    log.warning("%s", error)
                self._waiting_for = str(error)
                return
            await self._maps.change(lambda known: first if known is None else None)
            self._waiting_for = ""
            log.info(
                "the cluster forms with %d devices, %d placement groups of %s",
                joined,
                self._config.pg_count,
                self._config.code,
            )

    def _first_map(self, heartbeats: list[metadata_pb2.HeartbeatRequest]) -> common_pb2.ClusterMap:
        return membership.first_map(
            heartbeats,
            cluster_id=self._config.cluster_id,
            code=self._config.code,
            n=self._n,
            pg_count=self._config.pg_count,
            rule=self._config.rule,
            pools=self._config.pool_messages,
        )

    async def _hear(self, request: metadata_pb2.HeartbeatRequest) -> None:
        """Tell health which devices of the node serve, and record what that changes."""
        message = self._require_map()
        by_uuid = {device.uuid: device for device in message.devices}
        serving = [by_uuid[d.uuid] for d in request.devices if not d.fenced and d.uuid in by_uuid]
        if not serving:
            return
        node_index = serving[0].node_index
        commands = self._handle(Heartbeat(node_index, tuple(device.index for device in serving)))
        if commands:
            with contextlib.suppress(LeaseLost):  # its holder will settle it
                await self.settle()
            self.publish_metrics()

    def _expect(self, message: common_pb2.ClusterMap) -> None:
        """Count new devices as heard of now, or one that dies at once would never be missed."""
        for device in message.devices:
            if (
                device.state == common_pb2.DEVICE_STATE_UP
                and device.index not in self._health.state
            ):
                self._handle(Heartbeat(device.node_index, (device.index,)))

    def _handle(self, event: HealthEvent) -> list[SetDeviceState]:
        return self._health.handle(event, self._clock.monotonic_s())

    def _differing(
        self, message: common_pb2.ClusterMap
    ) -> dict[int, common_pb2.DeviceState.ValueType]:
        return {
            device.index: _wire(state)
            for device in message.devices
            for state in (self._health.state.get(device.index),)
            if state is not None and state.value != device.state
        }

    def _missing_slots(self, message: common_pb2.ClusterMap) -> list[int]:
        unreadable = {
            device.index for device in message.devices if device.state not in membership.READABLE
        }
        return membership.missing_slots(message, unreadable | {WIRE_NO_DEVICE})

    def _add_joining(self, status: metadata_pb2.ClusterStatus) -> None:
        now_s = self._clock.monotonic_s()
        for member in self._members.values():
            node = status.nodes.add(
                node=member.heartbeat.node, heartbeat_age_s=now_s - member.seen_s
            )
            for report in member.heartbeat.devices:
                node.devices.add(
                    device=common_pb2.Device(
                        index=WIRE_NO_DEVICE,
                        uuid=report.uuid,
                        capacity_bytes=report.capacity_bytes,
                        weight=report.weight,
                    ),
                    used_bytes=report.used_bytes,
                    chunk_count=report.chunk_count,
                    fenced=report.fenced,
                )

    def _add_nodes(
        self, status: metadata_pb2.ClusterStatus, message: common_pb2.ClusterMap
    ) -> None:
        now_s = self._clock.monotonic_s()
        reports = {
            report.uuid: report
            for member in self._members.values()
            for report in member.heartbeat.devices
        }
        for node in message.nodes:
            member = self._members.get(node.id)
            status.nodes.add(
                node=node, heartbeat_age_s=-1.0 if member is None else now_s - member.seen_s
            )
        held, leaving = self._slot_counts(message)
        for device in message.devices:
            report = reports.get(device.uuid, metadata_pb2.DeviceReport())
            status.nodes[device.node_index].devices.add(
                device=device,
                used_bytes=report.used_bytes,
                chunk_count=report.chunk_count,
                fenced=report.fenced,
                slot_count=held[device.index],
                leaving_slot_count=leaving[device.index],
            )

    def _slot_counts(self, message: common_pb2.ClusterMap) -> tuple[Counter[int], Counter[int]]:
        """PG slots by the device that they name, and by the device that they leave."""
        held, leaving = Counter[int](), Counter[int]()
        for pg in message.pgs:
            held.update(pg.device_indexes)
            leaving.update(
                device
                for device, state in zip(pg.previous_device_indexes, pg.slot_states, strict=False)
                if state == common_pb2.SLOT_STATE_MOVING
            )
        return held, leaving
