"""What operators do to a cluster: plans first, and acts only when told to.

Laws:
1. Without `apply` nothing changes.
2. A plan tells what would happen by the map of its epoch. Acting decides again, inside the change
   of the map: what is refused then leaves everything as it was.
3. No operation takes the last redundancy of anything: a device is removed only when nothing names
   it, and only devices that do not serve are given up.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from exastore.metadata.core.balance import recovery_spread, slots_per_device
from exastore.metadata.core.balancer import BalancePlan, apply_balance_to_rows, ideal_slots
from exastore.metadata.core.cluster_map import with_device_state
from exastore.metadata.core.errors import CoreError
from exastore.metadata.core.moves import (
    Holding,
    SlotMoves,
    begin_moves,
    begin_replacement,
    holding_of,
    plan_moves,
    plan_recovery,
    plan_replacement,
)
from exastore.metadata.core.placement import placement_columns
from exastore.metadata.core.pools import broken_rows, pools_of
from exastore.metadata.core.repair import SERVING, RepairPlan, classify, plan_repair
from exastore.metadata.core.topology import (
    ClusterMap,
    DeviceState,
    Float64Array,
    Int32Array,
    SlotState,
    frozen,
)
from exastore.metadata.kv.contract import Transaction
from exastore.metadata.namespace.errors import InvalidArgument
from exastore.metadata.service import leftovers
from exastore.metadata.service.budgets import Budgets
from exastore.metadata.service.cluster import ClusterService, intent_row
from exastore.metadata.service.config import MetadataConfig
from exastore.metadata.service.convert import columns_of, with_columns
from exastore.metadata.service.errors import Refused
from exastore.metadata.service.map_store import MapStore
from exastore.metadata.service.repair import Repairer
from exastore.metadata.service.residency import BorderLog
from exastore.metadata.service.slot_mover import SlotMover
from exastore.proto.v1 import common_pb2, metadata_pb2

log = logging.getLogger(__name__)

Plan = metadata_pb2.OperationPlan
Request = metadata_pb2.OperateRequest


@dataclass(frozen=True, slots=True)
class _Moves:
    """Slots and their ends, wherever they come from."""

    pg: Int32Array
    slot: Int32Array
    source: Int32Array
    target: Int32Array


class Operations:
    """The Operate call of MetadataService."""

    def __init__(
        self,
        config: MetadataConfig,
        maps: MapStore,
        cluster: ClusterService,
        budgets: Budgets,
        repair: Repairer,
        mover: SlotMover,
        borders: BorderLog,
    ) -> None:
        self._config = config
        self._borders = borders
        self._maps = maps
        self._cluster = cluster
        self._budgets = budgets
        self._repair = repair
        self._mover = mover

    async def operate(self, request: Request) -> Plan:
        """Plan, and act if told to. Raises InvalidArgument, Refused."""
        await self._maps.load()
        columns = self._columns()
        for device in request.device_indexes:
            if device >= columns.topology.device_count:
                raise InvalidArgument(f"there is no device {device}")
        kind = metadata_pb2.Operation
        handlers = {
            kind.OPERATION_DRAIN: self._drain,
            kind.OPERATION_UNDRAIN: self._undrain,
            kind.OPERATION_REMOVE: self._remove,
            kind.OPERATION_REPLACE: self._replace,
            kind.OPERATION_BALANCE: self._balance,
            kind.OPERATION_STOP_BALANCE: self._stop_balance,
            kind.OPERATION_REPAIR: self._repair_now,
        }
        handler = handlers.get(request.operation)
        if handler is None:
            raise InvalidArgument(f"operation {request.operation} is unknown")
        try:
            plan = await handler(columns, request)
        except CoreError as error:
            raise Refused(f"the map changed meanwhile, ask again: {error}") from error
        plan.epoch = columns.epoch
        plan.applied = request.apply
        return plan

    # ---- one method per operation ----

    async def _drain(self, columns: ClusterMap, request: Request) -> Plan:
        devices = _some(request.device_indexes)
        self._need_state(columns, devices, SERVING, "does not serve: use repair to give it up")
        moves = await asyncio.to_thread(
            plan_moves, columns, is_balancing=False, also_draining=tuple(devices)
        )
        draining = with_device_state(columns, dict.fromkeys(devices, DeviceState.DRAINING))
        plan = self._told(draining, _Moves(*_ends(moves)))
        plan.minimum_move_count = moves.minimum_moves
        plan.unplaced_count = self._left_on(draining, devices, moves)
        plan.message = f"{_named(devices)}: {plan.move_count} slots move to other devices"
        if plan.unplaced_count:
            raise Refused(
                f"{_named(devices)} cannot be emptied: {plan.unplaced_count} slots have no other "
                "device that keeps the placement rule. Add devices first"
            )
        if request.apply:
            await self._cluster.set_states(devices, DeviceState.DRAINING)
        return plan

    async def _undrain(self, columns: ClusterMap, request: Request) -> Plan:
        devices = _some(request.device_indexes)
        returnable = (DeviceState.DRAINING, DeviceState.OUT)
        self._need_state(columns, devices, returnable, "is neither draining nor given up")
        given_up = [d for d in devices if columns.device_state[d] == DeviceState.OUT]
        for device in given_up:
            if not columns.topology.device_weight[device]:
                raise Refused(f"device {device} was removed: format its disk to use it again")
        when = " once it answers" if given_up else ""
        plan = Plan(
            message=f"{_named(devices)}: takes data again{when}; what has moved stays", eta_s=0.0
        )
        if request.apply:
            await self._cluster.set_states(devices, DeviceState.UP)
        return plan

    async def _remove(self, columns: ClusterMap, request: Request) -> Plan:
        devices = _some(request.device_indexes)
        for device in devices:
            self._need_empty(columns, device)
        plan = Plan(
            message=f"{_named(devices)}: empty, taken out of the cluster for good", eta_s=0.0
        )
        if request.apply:

            def edit(known: common_pb2.ClusterMap) -> common_pb2.ClusterMap:
                current = columns_of(known, self._config.rule)
                for device in devices:
                    self._need_empty(current, device)
                changed = _copy(known)
                for device in devices:
                    changed.devices[device].state = common_pb2.DEVICE_STATE_OUT
                    changed.devices[device].weight = 0.0
                return changed

            await self._change(edit, out=devices)
        return plan

    async def _replace(self, columns: ClusterMap, request: Request) -> Plan:
        old, *more = _some(request.device_indexes)
        new = request.replacement_index
        if more:
            raise InvalidArgument("one device is replaced at a time")
        if new >= columns.topology.device_count or new == old:
            raise InvalidArgument(f"device {new} cannot replace device {old}")
        self._need_state(columns, [new], (DeviceState.UP,), "must be up to take slots")
        is_serving = columns.device_state[old] in SERVING
        moves, refused = plan_replacement(columns, old, new)
        if is_serving:
            moves = self._movable(columns, moves)
        plan = self._told(columns, _Moves(*_ends(moves)))
        plan.minimum_move_count = plan.move_count
        how = "copied from it" if is_serving else "rebuilt from the others"
        plan.message = f"device {new} takes {plan.move_count} slots of device {old}, {how}"
        if refused:
            plan.message += f"; {refused} go elsewhere, as the placement rule says"
        if request.apply:
            begin = begin_moves if is_serving else begin_replacement

            def edit(known: common_pb2.ClusterMap) -> common_pb2.ClusterMap:
                current = begin(columns_of(known, self._config.rule), moves)
                changed = _copy(known) if not len(moves) else with_columns(known, current)
                if not is_serving:
                    changed.devices[old].state = common_pb2.DEVICE_STATE_OUT
                return changed

            await self._change(
                edit,
                out=[] if is_serving else [old],
                record=lambda txn: leftovers.record(txn, moves),
            )
            if self._maps.message is not None:
                await self._borders.tell("replace", self._maps.message, columns, moves)
            if is_serving:
                await self._cluster.set_states([old], DeviceState.DRAINING)
        return plan

    async def _balance(self, columns: ClusterMap, request: Request) -> Plan:
        moves = await asyncio.to_thread(plan_moves, columns, is_balancing=True)
        told = _Moves(*_ends(moves))
        balanced = apply_balance_to_rows(columns.pg_devices, moves)
        after, swap_count = balanced, 0
        if request.even_recovery:
            swaps = await asyncio.to_thread(
                plan_recovery, replace(columns, pg_devices=frozen(balanced))
            )
            after, swap_count = apply_balance_to_rows(balanced, swaps), len(swaps)
            both = zip(_ends(moves), _ends(swaps), strict=True)
            told = _Moves(*(np.concatenate(pair) for pair in both))
        plan = self._told(columns, told)
        plan.minimum_move_count = moves.minimum_moves + swap_count
        plan.recovery_move_count = swap_count
        count = columns.topology.device_count
        plan.recovery_before = recovery_spread(columns.pg_devices, count).max_over_mean
        plan.recovery_after = recovery_spread(after, count).max_over_mean
        plan.message = "every device holds its share to within one slot"
        if plan.move_count:
            plan.message = f"{plan.move_count} slots move"
        if request.apply:
            await self._mover.want_balance(True, even_recovery=request.even_recovery)
        return plan

    async def _stop_balance(self, columns: ClusterMap, request: Request) -> Plan:
        count = int((columns.pg_slot_state == SlotState.MOVING).sum())
        plan = Plan(message=f"no more moves begin; {count} under way are finished", eta_s=0.0)
        if request.apply:
            await self._mover.want_balance(False)
        return plan

    async def _repair_now(self, columns: ClusterMap, request: Request) -> Plan:
        devices = list(request.device_indexes)
        silent = (DeviceState.DOWN, DeviceState.OUT)
        self._need_state(columns, devices, silent, "serves: use drain to empty it")
        given_up = with_device_state(columns, dict.fromkeys(devices, DeviceState.OUT))
        tasks = await asyncio.to_thread(plan_repair, given_up)
        plan = self._told(given_up, _Moves(*_ends(tasks)))
        plan.minimum_move_count = plan.move_count
        plan.unplaced_count = len(tasks.unplaced)
        plan.message = f"{plan.move_count} slots are rebuilt"
        if len(tasks.blocked):
            plan.message += f"; {len(tasks.blocked)} PGs have too few readable slots"
        if request.apply:
            await self._cluster.set_states(devices, DeviceState.OUT)
            self._repair.work.retry_now()
        return plan

    # ---- what a plan tells ----

    def _told(self, columns: ClusterMap, moves: _Moves) -> Plan:
        """Counts, bytes and time of moves by the map that they were planned for."""
        after = columns.pg_devices.copy()
        after[moves.pg, moves.slot] = moves.target
        slot_bytes = self._bytes_of(columns, moves)
        move_bytes = round(float(slot_bytes.sum()))
        plan = Plan(
            move_count=len(moves.pg),
            move_bytes=move_bytes,
            violation_count=int(broken_rows(columns, after).sum()),
            bandwidth_bytes_per_s=self._config.move_bandwidth_bytes_per_s,
            eta_s=self._forecast(columns, moves, slot_bytes),
            deviation_before=_deviation(columns, columns.pg_devices),
            deviation_after=_deviation(columns, after),
        )
        device_count = columns.topology.device_count
        moved = moves.source != moves.target
        gets = np.bincount(moves.target[moved & (moves.target >= 0)], minlength=device_count)
        gives = np.bincount(moves.source[moved & (moves.source >= 0)], minlength=device_count)
        for device in np.flatnonzero(gets + gives).tolist():
            plan.devices.add(
                device_index=device, in_count=int(gets[device]), out_count=int(gives[device])
            )
        return plan

    def _forecast(self, columns: ClusterMap, moves: _Moves, slot_bytes: Float64Array) -> float:
        """Seconds at the budgets, or at the speed of the last moves; negative: nothing is known."""
        budgets, total = self._budgets.budgets, float(slot_bytes.sum())
        node_of = columns.topology.device_node
        count = columns.topology.device_count
        is_moved = (moves.source >= 0) & (moves.target >= 0)
        moved = slot_bytes[is_moved]
        gives = np.bincount(moves.source[is_moved], moved, count)
        gets = np.bincount(moves.target[is_moved], moved, count)
        by_node = np.maximum(np.bincount(node_of, gives), np.bincount(node_of, gets))
        limits = (
            (total, self._config.move_bandwidth_bytes_per_s),
            (float((gives + gets).max(initial=0.0)), budgets.device_bytes_per_s),
            (float(by_node.max(initial=0.0)), budgets.node_bytes_per_s),
        )
        times_s = [needed / rate for needed, rate in limits if rate]
        last = self._mover.work.status().bytes_per_s
        return max(times_s) if times_s else total / last if last > 0 else -1.0

    def _bytes_of(self, columns: ClusterMap, moves: _Moves) -> Float64Array:
        """What each move takes, shape (M,).

        An estimate: a device's slots are alike, and a device that does not say is average.
        """
        held = slots_per_device(columns.pg_devices, columns.topology.device_count)
        used = self._cluster.used_bytes()
        known = [device for device in used if held[device]]
        slots = sum(int(held[device]) for device in known)
        average = sum(used[device] for device in known) / slots if slots else 0.0
        per_slot = np.full(len(held) + 1, average)
        for device in known:
            per_slot[device] = used[device] / held[device]
        return np.asarray(per_slot[moves.source])

    def _left_on(self, columns: ClusterMap, devices: Sequence[int], moves: BalancePlan) -> int:
        """Slots of the devices that the moves leave there, though they could be moved."""
        is_left = np.isin(columns.pg_devices, devices)
        is_left &= columns.pg_slot_state == SlotState.CLEAN
        is_left[moves.pg, moves.slot] = False
        return int(is_left.sum())

    # ---- what is refused ----

    def _columns(self) -> ClusterMap:
        columns = self._maps.columns
        if columns is None:
            raise InvalidArgument("there is no cluster map yet")
        return columns

    def _need_state(
        self,
        columns: ClusterMap,
        devices: Sequence[int],
        states: Sequence[DeviceState],
        otherwise: str,
    ) -> None:
        for device in devices:
            state = DeviceState(int(columns.device_state[device]))
            if state not in states:
                raise Refused(f"device {device} is {state.name}: it {otherwise}")

    def _need_empty(self, columns: ClusterMap, device: int) -> None:
        health = classify(columns)
        holding = holding_of(columns, device, health.remaining_redundancy, health.readable)
        if not holding.is_empty:
            raise Refused(_why_not_removed(device, holding))

    def _movable(self, columns: ClusterMap, moves: SlotMoves) -> SlotMoves:
        """Those that may begin now: of PGs that are readable and in which nothing moves."""
        is_still = classify(columns).readable.all(axis=1)
        is_still &= ~(columns.pg_slot_state == SlotState.MOVING).any(axis=1)
        chosen = is_still[moves.pg]
        return replace(
            moves,
            pg=moves.pg[chosen],
            slot=moves.slot[chosen],
            source_device=moves.source_device[chosen],
            target_device=moves.target_device[chosen],
        )

    async def _change(
        self,
        edit: Callable[[common_pb2.ClusterMap], common_pb2.ClusterMap],
        *,
        out: Sequence[int],
        record: Callable[[Transaction], None] = lambda _: None,
    ) -> None:
        """Change the map, and note in the same transaction that these devices stay OUT."""

        def guard(txn: Transaction) -> None:
            for device in out:
                txn.put(*intent_row(device, DeviceState.OUT))
            record(txn)

        await self._maps.change(lambda known: None if known is None else edit(known), guard=guard)
        await self._cluster.load_intents()


def _ends(
    moves: SlotMoves | BalancePlan | RepairPlan,
) -> tuple[Int32Array, Int32Array, Int32Array, Int32Array]:
    return moves.pg, moves.slot, moves.source_device, moves.target_device


def _deviation(columns: ClusterMap, table: Int32Array) -> float:
    """The largest distance of an UP device from its share of a pool, in slots."""
    state = columns.device_state.copy()
    is_up = state == DeviceState.UP
    state[np.isin(state, SERVING)] = DeviceState.UP
    largest = 0.0
    for pool in pools_of(columns):
        placement = placement_columns(columns.topology, pool.rule)
        takes = np.where(is_up, placement.device_weight, 0.0)
        rows = table[pool.pgs]
        held = slots_per_device(rows, len(state))
        away = np.abs(held - ideal_slots(placement._replace(device_weight=takes), rows, state))
        largest = max(largest, float(away[is_up].max(initial=0.0)))
    return largest


def _some(devices: Sequence[int]) -> list[int]:
    if not devices:
        raise InvalidArgument("which device?")
    return sorted(set(devices))


def _named(devices: Sequence[int]) -> str:
    names = ", ".join(map(str, devices))
    return f"device {names}" if len(devices) == 1 else f"devices {names}"


def _copy(message: common_pb2.ClusterMap) -> common_pb2.ClusterMap:
    """A copy with the next epoch."""
    changed = common_pb2.ClusterMap()
    changed.CopyFrom(message)
    changed.epoch += 1
    return changed


def _why_not_removed(device: int, holding: Holding) -> str:
    why = f"device {device} still holds {holding.slot_count + holding.leaving_count} slots"
    if holding.sole_pg_count:
        why += f"; {holding.sole_pg_count} placement groups cannot be read without it"
    if holding.endangered_pg_count:
        why += f"; {holding.endangered_pg_count} have no redundancy left without it"
    if holding.leaving_count and not holding.slot_count:
        return f"{why}; they are moving away: wait until the drain is done"
    return f"{why}: drain it first, or repair if it does not serve"
