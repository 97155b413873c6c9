"""Puts the chunks of slots in place, some slots at a time: what repair and moves have in common.

Laws:
1. A slot is marked CLEAN only after its node rebuilt or copied, read back and verified every chunk
   of every committed stripe, and only if the PG's devices have not changed since that began.
2. CLEAN marks are written only while the background lease is held; all that are due, as far as one
   transaction can hold them, go into one epoch of the map.
3. A failure is tried again after a pause that doubles; it holds up no other slot.

Theory of operation: rounds say which slots are wanted, in order. Between rounds a slot that ends
makes room for the next at once, but its mark waits for the next round, so that there are at most a
few epochs a second however small the slots are. When nothing runs any more, `ended` asks for a
round without waiting.
"""

import asyncio
import logging
from collections import Counter, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from exastore.metadata.core.clock import Clock
from exastore.metadata.core.moves import SLOTS_PER_EPOCH_MAX
from exastore.metadata.core.phases import Phase, reach
from exastore.metadata.core.repair import mark_clean
from exastore.metadata.core.topology import NO_DEVICE, PlacementRule
from exastore.metadata.kv.errors import EngineError
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


@dataclass(frozen=True, slots=True)
class Throttle:
    """How much is worked on at once.

    Attributes:
        concurrency: Slots.
        per_device: Slots that one device takes part in, as source or target; 0: no limit.
        bandwidth_bytes_per_s: That one slot is written with; 0: no limit.
        retry_s: Seconds before a failed slot is tried again; doubles up to 30 s.
    """

    concurrency: int
    per_device: int
    bandwidth_bytes_per_s: int
    retry_s: float


def share_of(bandwidth_bytes_per_s: int, concurrency: int) -> int:
    """What one of `concurrency` slots gets of a bandwidth; 0: no limit."""
    return max(1, bandwidth_bytes_per_s // concurrency) if bandwidth_bytes_per_s else 0


@dataclass(slots=True)
class _Retry:
    """A slot that failed."""

    wait_s: float
    due_s: float


class SlotWork:
    """One kind of work on slots.

    Args:
        work: What it is, in one word, for the log.
        throttle: Its limits.
        rule: What placement keeps.
    """

    def __init__(
        self,
        work: str,
        throttle: Throttle,
        rule: PlacementRule,
        *,
        maps: MapStore,
        lease: Lease,
        rebuilder: Rebuilder,
        storage: StorageClient,
        clock: Clock,
        metrics: MetadataMetrics,
        ended: asyncio.Event,
    ) -> None:
        self._work = work
        self._throttle = throttle
        self._rule = rule
        self._maps = maps
        self._lease = lease
        self._rebuilder = rebuilder
        self._storage = storage
        self._clock = clock
        self._metrics = metrics
        #: Set when nothing runs any more: the next round need not wait.
        self._ended = ended
        #: Wanted, and neither running nor done; those that were wanted most come first.
        self._waiting: deque[SlotTarget] = deque()
        #: At most `concurrency`.
        self._running: dict[SlotTarget, asyncio.Task[None]] = {}
        #: Verified and not marked yet, with the epoch of their PG when they began.
        self._finished: dict[SlotTarget, int] = {}
        self._retries: dict[SlotTarget, _Retry] = {}
        self.progress: RepairProgress | None = None
        #: Chunk bytes by PG of each device that was asked since this work began.
        self._usage: dict[int, dict[int, int]] = {}
        self._estimates: set[asyncio.Task[None]] = set()

    @property
    def running_count(self) -> int:
        """Slots that are worked on now."""
        return len(self._running)

    def status(self) -> metadata_pb2.RepairStatus:
        """How far the current work is, or how the last one went."""
        if self.progress is None:
            return metadata_pb2.RepairStatus()
        return self.progress.status(self._clock.monotonic_s())

    def follow(
        self, wanted: Sequence[SlotTarget], *, later: Iterable[SlotTarget] = (), is_over: bool
    ) -> None:
        """Work on these slots, most urgent first, and on no others.

        Args:
            wanted: Slots to be put in place now.
            later: Slots that will be wanted, on NO_DEVICE yet, for the forecast.
            is_over: Whether the work is done when nothing is wanted.
        """
        now_s = self._clock.monotonic_s()
        wanted_set = set(wanted)
        for target in self._running.keys() - wanted_set:
            self._running.pop(target).cancel()
        for target in self._finished.keys() - wanted_set:
            del self._finished[target]
        self._retries = {t: r for t, r in self._retries.items() if t in wanted_set}
        self._tell_progress([*wanted, *later], now_s, is_over=is_over)
        self._waiting = deque(
            target
            for target in wanted
            if target not in self._running and target not in self._finished
        )
        self._start()

    async def mark_finished(self) -> None:
        """Make the slots that are verified CLEAN: one epoch for all of them."""
        batch = list(self._finished)[:SLOTS_PER_EPOCH_MAX]
        if not batch:
            return
        end = self._maps.end_of_change([target.pg for target in batch])
        due = {target: self._finished[target] for target in batch[:end]}
        good: list[SlotTarget] = []

        def edit(known: common_pb2.ClusterMap | None) -> common_pb2.ClusterMap | None:
            good.clear()
            if known is None:
                return None
            for target, pg_epoch in due.items():
                pg = known.pgs[target.pg]
                if pg.device_indexes[target.slot] == target.device and pg.epoch == pg_epoch:
                    good.append(target)
            columns = columns_of(known, self._rule)
            cleaned = mark_clean(columns, [t.pg for t in good], [t.slot for t in good])
            return None if cleaned.epoch == known.epoch else with_columns(known, cleaned)

        reach(Phase.SLOT_VERIFIED)
        await self._maps.change(edit, guard=self._lease.guard())
        reach(Phase.SLOT_CLEAN)
        for target in due:
            self._finished.pop(target, None)
            self._metrics.rebuild_ended(ok=target in good)
            if target in good and self.progress is not None:
                self.progress.task(target).is_done = True

    def retry_now(self) -> None:
        """Let what failed be tried again without waiting."""
        for retry in self._retries.values():
            retry.due_s = self._clock.monotonic_s()
        self._start()

    async def stop(self) -> None:
        """Cancel what runs; the slots stay as they are."""
        tasks: list[asyncio.Task[None]] = [*self._running.values(), *self._estimates]
        self._waiting.clear()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._running.clear()
        self._finished.clear()
        self._estimates.clear()
        self._usage.clear()

    async def wait_for_running(self) -> None:
        """Until nothing runs: those that run now and what they make room for have ended."""
        while self._running:
            await asyncio.gather(*self._running.values(), return_exceptions=True)

    # ---- running ----

    def _start(self) -> None:
        """Begin the most urgent slots that there is room for."""
        now_s = self._clock.monotonic_s()
        busy = Counter[int]()
        for target in self._running:
            busy.update(self._devices_of(target))
        passed: list[SlotTarget] = []
        while self._waiting and len(self._running) < self._throttle.concurrency:
            target = self._waiting.popleft()
            retry = self._retries.get(target)
            devices = self._devices_of(target)
            limit = self._throttle.per_device
            is_busy = limit and any(busy[device] >= limit for device in devices)
            if is_busy or (retry is not None and retry.due_s > now_s):
                passed.append(target)
                continue
            busy.update(devices)
            self._running[target] = asyncio.get_running_loop().create_task(self._run(target))
        self._waiting.extendleft(reversed(passed))

    def _devices_of(self, target: SlotTarget) -> tuple[int, ...]:
        """The devices that a slot keeps busy: its target, and where it is copied from."""
        columns = self._maps.columns
        assert columns is not None
        previous = int(columns.pg_previous[target.pg, target.slot])
        is_alone = previous in (NO_DEVICE, target.device)
        return (target.device,) if is_alone else (target.device, previous)

    async def _run(self, target: SlotTarget) -> None:
        """Put one slot in place; failures are noted, not raised."""
        progress, message = self.progress, self._maps.message
        assert progress is not None and message is not None
        progress.task(target).is_done = False
        reach(Phase.SLOT_BEGUN)
        watch = _Watch(progress, target, self._metrics)
        try:
            await self._rebuilder.rebuild_slot(
                message, target, watch.note, self._throttle.bandwidth_bytes_per_s
            )
        except (StorageError, EngineError, ServiceError) as error:
            self._failed(target, str(error))
        except Exception as error:
            log.exception("%s of slot %d of PG %d failed", self._work, target.slot, target.pg)
            self._failed(target, repr(error))
        else:
            self._retries.pop(target, None)
            self._finished[target] = message.pgs[target.pg].epoch
        finally:
            # One that was cancelled has left already, and must start nothing.
            if self._running.get(target) is asyncio.current_task():
                del self._running[target]
                self._start()
                if not self._running:
                    self._ended.set()

    def _failed(self, target: SlotTarget, why: str) -> None:
        self._metrics.rebuild_ended(ok=False)
        if self.progress is not None:
            self.progress.message = why
        known = self._retries.get(target)
        wait_s = self._throttle.retry_s
        if known is not None:
            wait_s = min(_RETRY_MAX_S, 2 * known.wait_s)
        self._retries[target] = _Retry(wait_s, self._clock.monotonic_s() + wait_s)
        log.warning(
            "%s of slot %d of PG %d on device %d failed, again in %.1f s: %s",
            self._work,
            target.slot,
            target.pg,
            target.device,
            wait_s,
            why,
        )

    # ---- progress ----

    def _tell_progress(self, known: Sequence[SlotTarget], now_s: float, *, is_over: bool) -> None:
        progress = self.progress
        if known and (progress is None or progress.ended_s is not None):
            progress = self.progress = RepairProgress(
                now_s,
                lane_count=self._throttle.concurrency,
                lanes_are_limited=bool(self._throttle.bandwidth_bytes_per_s),
            )
            self._usage.clear()
        if progress is None or progress.ended_s is not None:
            return
        new = [target for target in known if target not in progress.tasks]
        for target in new:
            progress.task(target)
        if new:
            estimate = asyncio.get_running_loop().create_task(self._estimate_all(new))
            self._estimates.add(estimate)
            estimate.add_done_callback(self._estimates.discard)
        progress.drop_missing(set(known))
        progress.sample(tuple(self._running), now_s)
        if not known and not self._running and is_over:
            progress.ended_s = now_s
            status = progress.status(now_s)
            log.info(
                "%s is done: %d slots, %d bytes in %.1f s",
                self._work,
                status.done_task_count,
                status.rebuilt_chunk_bytes,
                status.elapsed_s,
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
        """Note how much is to be written: what a readable slot of the PG holds beyond the target.

        A device that returned holds nearly all of it. It may hold chunks of deleted stripes, or
        miss some that are not counted, so this is an estimate.
        """
        progress = self.progress
        if target.device not in held:
            held[target.device] = await self._ask_usage(message, target.device) or {}
        for source in sources_of(message, target):
            usage = self._usage.get(source.device_index)
            if usage is None:
                usage = await self._ask_usage(message, source.device_index)
                if usage is None:
                    continue
                self._usage[source.device_index] = usage
            if progress is not None and target in progress.tasks:
                missing_bytes = usage.get(target.pg, 0) - held[target.device].get(target.pg, 0)
                progress.tasks[target].expected_bytes = max(0, missing_bytes)
            return

    async def _ask_usage(
        self, message: common_pb2.ClusterMap, device: int
    ) -> dict[int, int] | None:
        """Chunk bytes by PG; None if the device does not say, or is not chosen yet."""
        if device == NO_DEVICE:
            return None
        try:
            response = await self._storage.get_pg_usage(
                message.nodes[message.devices[device].node_index].address,
                storage_pb2.GetPgUsageRequest(device_index=device),
            )
        except StorageError as error:
            log.debug("no estimate from device %d: %s", device, error)
            return None
        return {usage.pg: usage.chunk_bytes for usage in response.usages}


class _Watch:
    """Adds the calls of one slot up; a later call counts from where the earlier ended."""

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
