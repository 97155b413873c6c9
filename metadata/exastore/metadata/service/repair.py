"""The repair executor: makes the map's lost slots clean again.

Laws:
1. Which slots, where to and in what order is `plan_repair`'s decision; here it is carried out.
2. New targets and CLEAN marks are written only while the background lease is held.
3. A device that returns gets back the slots that were not rebuilt yet; their rebuilds elsewhere are
   cancelled, and what those have written is recorded as left over.

Theory of operation: every round gives lost slots their targets, as many as one change of the map
can hold, and lets `SlotWork` rebuild those that have theirs, most endangered first.
"""

import asyncio
import logging

from exastore.metadata.core.clock import Clock
from exastore.metadata.core.moves import SLOTS_PER_EPOCH_MAX
from exastore.metadata.core.repair import RepairPlan, apply_plan, plan_repair
from exastore.metadata.core.topology import NO_DEVICE, SlotState
from exastore.metadata.service import leftovers
from exastore.metadata.service.config import MetadataConfig
from exastore.metadata.service.convert import columns_of, with_columns
from exastore.metadata.service.lease import Lease
from exastore.metadata.service.map_store import MapStore
from exastore.metadata.service.metrics import MetadataMetrics
from exastore.metadata.service.rebuild import Rebuilder, SlotTarget
from exastore.metadata.service.residency import BorderLog
from exastore.metadata.service.slot_work import SlotWork, Throttle, share_of
from exastore.metadata.service.storage_client import StorageClient
from exastore.proto.v1 import common_pb2, metadata_pb2

log = logging.getLogger(__name__)


class Repairer:
    """Carries out repair plans; `run_round` is called by the background loop."""

    def __init__(
        self,
        config: MetadataConfig,
        maps: MapStore,
        lease: Lease,
        rebuilder: Rebuilder,
        storage: StorageClient,
        clock: Clock,
        metrics: MetadataMetrics,
        borders: BorderLog,
    ) -> None:
        self._config = config
        self._borders = borders
        self._maps = maps
        self._lease = lease
        self._metrics = metrics
        #: Set when no rebuild runs any more: the next slots need not wait for the next round.
        self.ended = asyncio.Event()
        #: The plan for the map of its epoch; None: not planned yet.
        self._plan: RepairPlan | None = None
        concurrency = config.repair_concurrency
        self.work = SlotWork(
            "rebuild",
            Throttle(
                concurrency,
                0,
                share_of(config.repair_bandwidth_bytes_per_s, concurrency),
                config.repair_retry_s,
            ),
            config.rule,
            maps=maps,
            lease=lease,
            rebuilder=rebuilder,
            storage=storage,
            clock=clock,
            metrics=metrics,
            ended=self.ended,
        )

    @property
    def is_idle(self) -> bool:
        """Whether there is nothing to rebuild, as of the last round."""
        return self._plan is not None and not len(self._plan)

    def status(self) -> metadata_pb2.RepairStatus:
        """How far the current repair is, or how the last one went."""
        status = self.work.status()
        plan = self._plan
        if plan is not None and len(plan.blocked):
            status.message = (
                f"{len(plan.blocked)} PGs have too few readable slots: waiting for devices to "
                "return"
            )
        elif plan is not None and len(plan.unplaced) and not status.message:
            status.message = f"{len(plan.unplaced)} slots have no eligible device: add devices"
        return status

    async def run_round(self) -> None:
        """Mark what is done, plan if the map changed, give targets, start and cancel rebuilds."""
        if not self._lease.is_held:
            await self.stop()
            return
        if self._maps.columns is None:
            return
        await self.work.mark_finished()
        plan = await self._planned()
        if (plan.source_device != plan.target_device).any():
            await self._apply(plan)
            plan = await self._planned()
        self._follow(plan)
        self._publish()

    async def stop(self) -> None:
        """Cancel what runs; the slots stay REBUILDING."""
        await self.work.stop()
        self._plan = None

    async def _planned(self) -> RepairPlan:
        columns = self._maps.columns
        assert columns is not None
        if self._plan is None or self._plan.epoch != columns.epoch:
            # The first call compiles the kernels: not in the event loop.
            self._plan = await asyncio.to_thread(plan_repair, columns)
        return self._plan

    async def _apply(self, plan: RepairPlan) -> None:
        moved = plan.pg[plan.source_device != plan.target_device][:SLOTS_PER_EPOCH_MAX]
        batch = plan.first_moves(self._maps.end_of_change(moved.tolist()))
        columns = self._maps.columns

        def edit(known: common_pb2.ClusterMap | None) -> common_pb2.ClusterMap | None:
            if known is None or known.epoch != plan.epoch:
                return None
            columns = apply_plan(columns_of(known, self._config.rule), batch)
            return None if columns.epoch == known.epoch else with_columns(known, columns)

        guard = leftovers.recording(self._lease.guard(), batch)
        changed = await self._maps.change(edit, guard=guard)
        if changed is not None and columns is not None and changed.epoch == plan.epoch + 1:
            await self._borders.tell("repair", changed, columns, batch)
        log.info("repair of %d slots begins, %d are planned", len(batch), len(plan))

    def _follow(self, plan: RepairPlan) -> None:
        """Rebuild the slots that have their targets; the others wait for a map that names them."""
        columns = (plan.pg, plan.slot, plan.source_device, plan.target_device)
        rows = list(zip(*(column.tolist() for column in columns), strict=True))
        self.work.follow(
            [SlotTarget(pg, slot, to) for pg, slot, source, to in rows if source == to],
            later=[SlotTarget(pg, slot, NO_DEVICE) for pg, slot, a, b in rows if a != b],
            is_over=not self._is_waiting(),
        )

    def _is_waiting(self) -> bool:
        """Slots are lost that cannot be rebuilt now: their devices are away or there are none."""
        plan, columns = self._plan, self._maps.columns
        return (
            plan is not None
            and columns is not None
            and bool(
                len(plan.blocked)
                or len(plan.unplaced)
                or (columns.pg_slot_state == SlotState.REBUILDING).any()
            )
        )

    def _publish(self) -> None:
        status = self.status()
        waiting = int(status.task_count - status.done_task_count) - self.work.running_count
        self._metrics.repair(
            max(0, waiting),
            self.work.running_count,
            status.eta_s,
            status.elapsed_s if status.active else 0.0,
        )
