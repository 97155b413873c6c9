"""The repair executor: makes the map's lost slots clean again.

Laws:
1. Which slots, where to and in what order is `plan_repair`'s decision; here it is carried out.
2. New targets and CLEAN marks are written only while the background lease is held.
3. A slot is marked CLEAN only if its node rebuilt, read back and verified every chunk of every
   committed stripe, and only if the slot still names the device that was rebuilt.
4. A failure is tried again after a pause that doubles; it holds up no other slot.
5. A device that returns gets back the slots that were not rebuilt yet; their rebuilds elsewhere are
   cancelled, and what those have written is recorded as left over.

Theory of operation: every round compares the plan for the current map with the rebuilds that run:
starts the most endangered that wait, up to `repair_concurrency`, and cancels those whose slot has
got another target.
"""

import asyncio
import logging
from dataclasses import dataclass

from exastore.erasure import codec
from exastore.metadata.core.clock import Clock
from exastore.metadata.core.repair import RepairPlan, apply_plan, mark_clean, plan_repair
from exastore.metadata.core.topology import SlotState
from exastore.metadata.kv.contract import Transaction
from exastore.metadata.kv.errors import EngineError
from exastore.metadata.service import leftovers
from exastore.metadata.service.config import MetadataConfig
from exastore.metadata.service.convert import columns_of, with_columns
from exastore.metadata.service.errors import ServiceError
from exastore.metadata.service.lease import Lease
from exastore.metadata.service.map_store import MapStore
from exastore.metadata.service.metrics import MetadataMetrics
from exastore.metadata.service.progress import RepairProgress
from exastore.metadata.service.rebuild import Rebuilder, SlotTarget, sources_of
from exastore.metadata.service.storage_client import StorageClient, StorageError
from exastore.proto.v1 import common_pb2, metadata_pb2, storage_pb2

log = logging.getLogger(__name__)

_RETRY_MAX_S = 30.0


@dataclass(slots=True)
class _Retry:
    """A slot whose rebuild failed."""

    wait_s: float
    due_s: float


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
    ) -> None:
        self._config = config
        self._k = codec(config.code).k
        self._maps = maps
        self._lease = lease
        self._rebuilder = rebuilder
        self._storage = storage
        self._clock = clock
        self._metrics = metrics
        #: Set when a rebuild has ended: the next slot need not wait for the next round.
        self.ended = asyncio.Event()
        #: The plan for the map of its epoch; None: not planned yet.
        self._plan: RepairPlan | None = None
        #: At most `repair_concurrency` rebuilds.
        self._running: dict[SlotTarget, asyncio.Task[None]] = {}
        self._retries: dict[SlotTarget, _Retry] = {}
        self._progress: RepairProgress | None = None
        #: Chunk bytes by PG of each device that was asked in this repair.
        self._usage: dict[int, dict[int, int]] = {}
        self._estimates: set[asyncio.Task[None]] = set()

    def status(self) -> metadata_pb2.RepairStatus:
        """How far the current repair is, or how the last one went."""
        if self._progress is None:
            status = metadata_pb2.RepairStatus()
        else:
            status = self._progress.status(self._clock.monotonic_s())
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
        """Plan if the map changed, move lost slots to new targets, start and cancel rebuilds."""
        if not self._lease.is_held:
            await self.stop()
            return
        if self._maps.columns is None:
            return
        plan = await self._planned()
        if (plan.source_device != plan.target_device).any():
            await self._apply(plan)
            plan = await self._planned()
        self._start_and_cancel(plan)
        self._publish()

    async def stop(self) -> None:
        """Cancel what runs; the slots stay REBUILDING."""
        tasks: list[asyncio.Task[None]] = [*self._running.values(), *self._estimates]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._running.clear()
        self._estimates.clear()
        self._usage.clear()
        self._plan = None

    async def wait_for_running(self) -> None:
        """Until the rebuilds that run now have ended."""
        await asyncio.gather(*self._running.values(), return_exceptions=True)

    async def _planned(self) -> RepairPlan:
        columns = self._maps.columns
        assert columns is not None
        if self._plan is None or self._plan.epoch != columns.epoch:
            # The first call compiles the kernels: not in the event loop.
            self._plan = await asyncio.to_thread(plan_repair, columns, self._k)
        return self._plan

    async def _apply(self, plan: RepairPlan) -> None:
        def edit(known: common_pb2.ClusterMap | None) -> common_pb2.ClusterMap | None:
            if known is None or known.epoch != plan.epoch:
                return None
            columns = apply_plan(columns_of(known, self._config.rule), plan)
            return None if columns.epoch == known.epoch else with_columns(known, columns)

        guard = self._lease.guard()

        def guard_and_record(txn: Transaction) -> None:
            guard(txn)
            leftovers.record(txn, plan)

        await self._maps.change(edit, guard=guard_and_record)
        log.info("repair of %d slots begins", len(plan))

    def _start_and_cancel(self, plan: RepairPlan) -> None:
        now_s = self._clock.monotonic_s()
        wanted = [
            SlotTarget(pg, slot, device)
            for pg, slot, source, device in zip(
                plan.pg.tolist(),
                plan.slot.tolist(),
                plan.source_device.tolist(),
                plan.target_device.tolist(),
                strict=True,
            )
            if source == device  # the others wait for the map that names their targets
        ]
        for target in self._running.keys() - set(wanted):
            self._running.pop(target).cancel()
        self._retries = {t: r for t, r in self._retries.items() if t in set(wanted)}
        self._begin_or_end(wanted, now_s)
        for target in wanted:
            if len(self._running) >= self._config.repair_concurrency:
                break
            retry = self._retries.get(target)
            if target not in self._running and (retry is None or retry.due_s <= now_s):
                self._running[target] = asyncio.get_running_loop().create_task(self._run(target))

    def _begin_or_end(self, wanted: list[SlotTarget], now_s: float) -> None:
        progress = self._progress
        if wanted and (progress is None or progress.ended_s is not None):
            progress = self._progress = RepairProgress(begun_s=now_s)
            self._usage.clear()
        if progress is None or progress.ended_s is not None:
            return
        new = [target for target in wanted if target not in progress.tasks]
        for target in new:
            progress.task(target)
        if new:
            estimate = asyncio.get_running_loop().create_task(self._estimate_all(new))
            self._estimates.add(estimate)
            estimate.add_done_callback(self._estimates.discard)
        progress.drop_missing(set(wanted))
        if not wanted and not self._running and not self._is_waiting():
            progress.ended_s = now_s
            status = progress.status(now_s)
            log.info(
                "repair is done: %d slots, %d bytes in %.1f s",
                status.done_task_count,
                status.rebuilt_chunk_bytes,
                status.elapsed_s,
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

    async def _run(self, target: SlotTarget) -> None:
        """Rebuild one slot and mark it CLEAN; failures are noted, not raised."""
        progress = self._progress
        message = self._maps.message
        assert progress is not None and message is not None
        task = progress.task(target)
        task.is_done = False
        watch = _Watch(progress, target, self._metrics)
        try:
            await self._rebuilder.rebuild_slot(message, target, watch.note)
            is_clean = await self._mark_clean(target)
        except (StorageError, EngineError, ServiceError) as error:
            self._failed(target, str(error))
        except Exception as error:
            log.exception("rebuild of slot %d of PG %d failed", target.slot, target.pg)
            self._failed(target, repr(error))
        else:
            self._metrics.rebuild_ended(ok=is_clean)
            self._retries.pop(target, None)
            task.is_done = is_clean
        finally:
            if self._running.get(target) is asyncio.current_task():
                del self._running[target]
            self.ended.set()

    def _failed(self, target: SlotTarget, why: str) -> None:
        self._metrics.rebuild_ended(ok=False)
        if self._progress is not None:
            self._progress.message = why
        known = self._retries.get(target)
        wait_s = self._config.repair_retry_s
        if known is not None:
            wait_s = min(_RETRY_MAX_S, 2 * known.wait_s)
        self._retries[target] = _Retry(wait_s, self._clock.monotonic_s() + wait_s)
        log.warning(
            "rebuild of slot %d of PG %d on device %d failed, again in %.1f s: %s",
            target.slot,
            target.pg,
            target.device,
            wait_s,
            why,
        )

    async def _mark_clean(self, target: SlotTarget) -> bool:
        """Whether the slot is CLEAN on the target now; if not, it has got another."""

        def edit(known: common_pb2.ClusterMap | None) -> common_pb2.ClusterMap | None:
            if known is None:
                return None
            pg = known.pgs[target.pg]
            if pg.device_indexes[target.slot] != target.device:
                return None
            columns = columns_of(known, self._config.rule)
            cleaned = mark_clean(columns, [target.pg], [target.slot])
            return None if cleaned.epoch == known.epoch else with_columns(known, cleaned)

        message = await self._maps.change(edit, guard=self._lease.guard())
        return message is not None and message.pgs[target.pg].device_indexes[target.slot] == (
            target.device
        )

    async def _estimate_all(self, targets: list[SlotTarget]) -> None:
        """Note how much each slot will hold, so that the forecast covers those that wait too."""
        message = self._maps.message
        assert message is not None
        #: Chunk bytes by PG of the targets, asked anew: they may have been away since.
        held: dict[int, dict[int, int]] = {}
        for target in targets:
            await self._estimate(message, target, held)

    async def _estimate(
        self,
        message: common_pb2.ClusterMap,
        target: SlotTarget,
        held: dict[int, dict[int, int]],
    ) -> None:
        """Note how much is to be rebuilt: what a readable slot of the PG holds beyond the target.

        A device that returned holds nearly all of it. It may hold chunks of deleted stripes, or
        miss some that are not counted, so this is an estimate.
        """
        progress = self._progress
        if target.device not in held:
            try:
                held[target.device] = await self._ask_usage(message, target.device)
            except StorageError as error:
                log.debug("no estimate from device %d: %s", target.device, error)
                held[target.device] = {}
        for source in sources_of(message, target):
            usage = self._usage.get(source.device_index)
            if usage is None:
                try:
                    usage = await self._ask_usage(message, source.device_index)
                except StorageError as error:
                    log.debug("no estimate from device %d: %s", source.device_index, error)
                    continue
                self._usage[source.device_index] = usage
            if progress is not None and target in progress.tasks:
                missing_bytes = usage.get(target.pg, 0) - held[target.device].get(target.pg, 0)
                progress.tasks[target].expected_bytes = max(0, missing_bytes)
            return

    async def _ask_usage(self, message: common_pb2.ClusterMap, device: int) -> dict[int, int]:
        response = await self._storage.get_pg_usage(
            message.nodes[message.devices[device].node_index].address,
            storage_pb2.GetPgUsageRequest(device_index=device),
        )
        return {usage.pg: usage.chunk_bytes for usage in response.usages}

    def _publish(self) -> None:
        status = self.status()
        waiting = int(status.task_count - status.done_task_count) - len(self._running)
        self._metrics.repair(
            max(0, waiting),
            len(self._running),
            status.eta_s,
            status.elapsed_s if status.active else 0.0,
        )


class _Watch:
    """Adds the calls of one rebuild up; a later call counts from where the earlier ended."""

    def __init__(
        self, progress: RepairProgress, target: SlotTarget, metrics: MetadataMetrics
    ) -> None:
        self._task = progress.task(target)
        self._metrics = metrics
        #: What the call under way has told last.
        self._last = storage_pb2.RebuildProgress()

    def note(self, told: storage_pb2.RebuildProgress) -> None:
        """A node told its progress."""
        last = self._last
        self._task.rebuilt_bytes += told.chunk_bytes - last.chunk_bytes
        self._task.read_bytes += told.read_bytes - last.read_bytes
        self._task.rebuilt_count = max(self._task.rebuilt_count, told.chunk_count)
        self._metrics.rebuilt(
            told.chunk_bytes - last.chunk_bytes, told.read_bytes - last.read_bytes
        )
        self._last = storage_pb2.RebuildProgress()
        if not told.done:
            self._last.CopyFrom(told)
