"""The move executor: empties DRAINING devices, and balances when an operator wants it.

Laws:
1. What moves where is `plan_moves`' decision, made anew from the map as it is. What the operator
   wants is all that is stored: DRAINING states in the map, and a row that says "balance". So a
   server that takes over goes on where the map is, and cancelling is changing one's mind.
2. A slot becomes MOVING, and later CLEAN, only in a transaction that checks the lease's token.
3. Repair comes first: no move begins while a slot is to be rebuilt.
4. At most `max_misplaced_fraction` of all slots is MOVING; at most `moves_per_device` are copied
   from or to one device at a time, within `move_bandwidth_bytes_per_s` for all together.
5. A move that was begun is finished, whatever the operator wants by then, unless a device dies:
   then it is a repair (see `core.repair`).

Rows: (B, balance) exists while devices are to be balanced; its value says whether recovery is to be
evened out after that.
"""

import asyncio
import logging

import numpy as np

from exastore.metadata.core.balancer import BalancePlan
from exastore.metadata.core.clock import Clock
from exastore.metadata.core.moves import (
    SlotMoves,
    begin_moves,
    misplaced_count,
    next_batch,
    next_swaps,
    plan_recovery,
)
from exastore.metadata.core.moves import plan_moves as plan_slot_moves
from exastore.metadata.core.phases import Phase, reach
from exastore.metadata.core.repair import classify
from exastore.metadata.core.topology import NO_DEVICE, ClusterMap, DeviceState, SlotState
from exastore.metadata.kv.contract import Engine, Transaction
from exastore.metadata.kv.keys import pack
from exastore.metadata.service import leftovers
from exastore.metadata.service.config import MetadataConfig
from exastore.metadata.service.convert import columns_of, with_columns
from exastore.metadata.service.lease import Lease
from exastore.metadata.service.map_store import MapStore
from exastore.metadata.service.metrics import MetadataMetrics
from exastore.metadata.service.rebuild import Rebuilder, SlotTarget
from exastore.metadata.service.repair import Repairer
from exastore.metadata.service.residency import BorderLog
from exastore.metadata.service.slot_work import SlotWork, Throttle, share_of
from exastore.metadata.service.storage_client import StorageClient
from exastore.proto.v1 import common_pb2, metadata_pb2

log = logging.getLogger(__name__)

_BALANCE_KEY = pack("B", "balance")
_RECOVERY = "recovery"


class SlotMover:
    """Carries out moves; `run_round` is called by the background loop."""

    def __init__(
        self,
        config: MetadataConfig,
        engine: Engine,
        maps: MapStore,
        lease: Lease,
        rebuilder: Rebuilder,
        repair: Repairer,
        storage: StorageClient,
        clock: Clock,
        metrics: MetadataMetrics,
        borders: BorderLog,
    ) -> None:
        self._config = config
        self._borders = borders
        self._engine = engine
        self._maps = maps
        self._lease = lease
        self._repair = repair
        #: What is left to be begun, by the map of its epoch; None: not planned yet.
        self._plan: BalancePlan | None = None
        #: Whether the plan is one that balances.
        self._is_balancing = False
        #: Whether it is one of swaps: everything is balanced, and recovery is evened out.
        self._is_swapping = False
        concurrency = config.move_concurrency
        self.work = SlotWork(
            "move",
            Throttle(
                concurrency,
                config.moves_per_device,
                share_of(config.move_bandwidth_bytes_per_s, concurrency),
                config.repair_retry_s,
            ),
            config.rule,
            maps=maps,
            lease=lease,
            rebuilder=rebuilder,
            storage=storage,
            clock=clock,
            metrics=metrics,
            ended=repair.ended,
        )

    async def want_balance(self, wanted: bool, *, even_recovery: bool = False) -> None:
        """Begin to balance, or stop; any server may be told.

        Args:
            wanted: Whether to balance.
            even_recovery: Whether to even out, then, who reads for whom when a device dies.
        """

        def store(txn: Transaction) -> None:
            if wanted:
                txn.put(_BALANCE_KEY, pack(_RECOVERY if even_recovery else ""))
            else:
                txn.delete(_BALANCE_KEY)

        await self._engine.transact(store)

    async def balance_wanted(self) -> bytes | None:
        """What somebody began that is neither done nor stopped; None: nothing."""
        return await self._engine.read(lambda txn: txn.get(_BALANCE_KEY))

    async def run_round(self) -> None:
        """Mark what is done, begin the next batch, follow the map."""
        if not self._lease.is_held:
            await self.stop()
            return
        if self._maps.columns is None:
            return
        await self.work.mark_finished()
        wanted = await self.balance_wanted()
        await self._replan(wanted is not None)
        await self._plan_swaps(wanted)
        if self._repair.is_idle:
            await self._begin_batch()
        columns = self._maps.columns
        self._follow(columns)
        if wanted is not None and self._is_done(columns):
            await self._end_balance()

    async def stop(self) -> None:
        """Cancel what runs; the slots stay MOVING."""
        await self.work.stop()
        self._plan = None

    def add_status(self, status: metadata_pb2.ClusterStatus) -> None:
        """Fill in what moves."""
        columns = self._maps.columns
        if columns is None:
            return
        moves, plan = status.moves, self._plan
        moves.progress.CopyFrom(self.work.status())
        moves.moving_slot_count = misplaced_count(columns)
        moves.balancing = self._is_balancing
        draining = np.flatnonzero(columns.device_state == DeviceState.DRAINING)
        moves.draining_device_indexes.extend(draining.tolist())
        if plan is not None:
            moves.waiting_slot_count = len(plan)
            moves.unplaced_slot_count = self._unplaced_count(columns, plan)

    # ---- inside ----

    async def _replan(self, is_balancing: bool) -> None:
        columns, plan = self._maps.columns, self._plan
        assert columns is not None
        is_known = plan is not None and plan.epoch == columns.epoch
        if is_known and is_balancing == self._is_balancing:
            return
        self._is_balancing = is_balancing
        self._is_swapping = False
        # The first call compiles the kernels: not in the event loop.
        self._plan = await asyncio.to_thread(plan_slot_moves, columns, is_balancing=is_balancing)

    async def _plan_swaps(self, wanted: bytes | None) -> None:
        """When every device holds its share and nothing moves: even out recovery, if wanted."""
        columns, plan = self._maps.columns, self._plan
        if columns is None or plan is None or len(plan) or plan.epoch != columns.epoch:
            return
        if wanted == pack(_RECOVERY) and not self._is_swapping and not misplaced_count(columns):
            self._plan = await asyncio.to_thread(plan_recovery, columns)
            self._is_swapping = True

    async def _begin_batch(self) -> None:
        columns, plan = self._maps.columns, self._plan
        if columns is None or plan is None or not len(plan) or plan.epoch != columns.epoch:
            return
        readable = classify(columns).readable
        choose = next_swaps if self._is_swapping else next_batch
        batch = choose(columns, plan, readable, self._config.max_misplaced_fraction)
        count = self._maps.end_of_change(batch.pg.tolist())
        # Half a swap would take two devices from their share. One always fits.
        batch = batch.first(count // 2 * 2 if self._is_swapping else count)
        if len(batch):
            await self._begin(batch)
            await self._replan(self._is_balancing)

    async def _begin(self, batch: SlotMoves) -> None:
        columns = self._maps.columns

        def edit(known: common_pb2.ClusterMap | None) -> common_pb2.ClusterMap | None:
            if known is None or known.epoch != batch.epoch:
                return None
            return with_columns(known, begin_moves(columns_of(known, self._config.rule), batch))

        guard = leftovers.recording(self._lease.guard(), batch)
        changed = await self._maps.change(edit, guard=guard)
        if changed is not None and columns is not None and changed.epoch == batch.epoch + 1:
            await self._borders.tell("balance or drain", changed, columns, batch)
        reach(Phase.MOVES_BEGUN)
        log.info("%d slots begin to move", len(batch))

    def _follow(self, columns: ClusterMap | None) -> None:
        plan = self._plan
        if columns is None or plan is None:
            return
        # A move that has lost a device is a repair, or waits for the device.
        is_moving = columns.pg_slot_state == SlotState.MOVING
        is_moving &= classify(columns).readable
        pgs, slots = np.nonzero(is_moving)
        devices = columns.pg_devices[pgs, slots]
        moving = zip(pgs.tolist(), slots.tolist(), devices.tolist(), strict=True)
        later = zip(plan.pg.tolist(), plan.slot.tolist(), strict=True)
        self.work.follow(
            [SlotTarget(pg, slot, device) for pg, slot, device in moving],
            later=[SlotTarget(pg, slot, NO_DEVICE) for pg, slot in later],
            is_over=not misplaced_count(columns),
        )

    def _is_done(self, columns: ClusterMap | None) -> bool:
        plan = self._plan
        return (
            columns is not None
            and plan is not None
            and plan.epoch == columns.epoch
            and self._is_balancing
            and not len(plan)
            and not misplaced_count(columns)
        )

    async def _end_balance(self) -> None:
        guard = self._lease.guard()

        def end(txn: Transaction) -> None:
            guard(txn)
            txn.delete(_BALANCE_KEY)

        await self._engine.transact(end)
        log.info("balanced")

    def _unplaced_count(self, columns: ClusterMap, plan: BalancePlan) -> int:
        """Slots of DRAINING devices that the plan leaves there."""
        is_draining = columns.device_state == DeviceState.DRAINING
        held = np.append(is_draining, False)[columns.pg_devices]
        held[plan.pg, plan.slot] = False
        return int((held & (columns.pg_slot_state == SlotState.CLEAN)).sum())
