"""Moves of PG slots that hold data: draining, replacing and balancing devices that serve.

A move is a copy. The slot is given to its target and becomes MOVING, its source stays named as the
slot's previous device: chunks written from then on go to the target, older ones stay readable on
the source. When all of them were copied and verified the slot is CLEAN, and only then the source
may delete its chunks. So a move takes no redundancy away at any time.

Laws:
1. Only CLEAN slots of devices that serve move, and only in PGs of which every slot is readable and
   no other slot moves: a PG has at most one chunk that is in two places.
2. After every batch the map keeps the rule.
3. A plan is a pure function of map and seed. Nobody stores one: planning again from the map as it
   is goes on where a server died, or where an operator cancelled.
4. At most a given fraction of all slots is MOVING at once.
"""

from dataclasses import dataclass, replace

import numpy as np

from exastore.erasure.jit import njit
from exastore.metadata.core.balance import slots_per_device
from exastore.metadata.core.balancer import BalancePlan, ideal_slots, plan_balance_of_rows
from exastore.metadata.core.balancer_recovery import plan_even_recovery
from exastore.metadata.core.errors import StalePlan, UnknownIndex
from exastore.metadata.core.placement import (
    BoolArray,
    PlacementColumns,
    keeps_rule,
    placement_columns,
)
from exastore.metadata.core.pools import joined_plans, map_of_pool, pools_of
from exastore.metadata.core.topology import (
    ClusterMap,
    DeviceState,
    Int32Array,
    Pool,
    SlotState,
    frozen,
)

#: A change of so many slots fits a map delta of 10 KiB (see `map_delta`).
SLOTS_PER_EPOCH_MAX = 2048


@dataclass(frozen=True, slots=True)
class SlotMoves:
    """Slots and where they go. M moves, all of different slots.

    Attributes:
        epoch: Of the map they were planned for.
        pg: Shape (M,), dtype int32.
        slot: Shape (M,), dtype int32.
        source_device: Shape (M,), dtype int32. What the slot names now.
        target_device: Shape (M,), dtype int32.
    """

    epoch: int
    pg: Int32Array
    slot: Int32Array
    source_device: Int32Array
    target_device: Int32Array

    def __len__(self) -> int:
        return len(self.pg)

    def first(self, count: int) -> "SlotMoves":
        """The first moves."""
        return SlotMoves(
            self.epoch,
            self.pg[:count],
            self.slot[:count],
            self.source_device[:count],
            self.target_device[:count],
        )


def moves_of(plan: BalancePlan, chosen: list[int]) -> SlotMoves:
    """Some moves of a plan, by their places in it."""
    return SlotMoves(
        plan.epoch,
        frozen(plan.pg[chosen]),
        frozen(plan.slot[chosen]),
        frozen(plan.source_device[chosen]),
        frozen(plan.target_device[chosen]),
    )


def plan_moves(
    cluster_map: ClusterMap,
    *,
    is_balancing: bool,
    also_draining: tuple[int, ...] = (),
    columns: PlacementColumns | None = None,
    seed: int = 0,
) -> BalancePlan:
    """What to move so that DRAINING devices are empty, and on demand all others hold their share.

    Args:
        cluster_map: The map as it is.
        is_balancing: Whether every device shall hold its share to within one slot. If not, only as
            much moves as draining needs, to the devices that hold the least of their share.
        also_draining: Devices to be treated as DRAINING, for a plan to be shown.
        columns: Of the map's topology and rule, if at hand; of no use to a map with pools.
        seed: Decides between equals.
    """
    state = cluster_map.device_state.copy()
    for device in also_draining:
        _check_device(cluster_map, device)
        if state[device] == DeviceState.UP:
            state[device] = DeviceState.DRAINING
    cluster_map = replace(cluster_map, device_state=frozen(state))
    plans: list[tuple[Pool, BalancePlan]] = []
    for pool in pools_of(cluster_map):
        of_pool = map_of_pool(cluster_map, pool)
        if columns is None or cluster_map.pools:
            columns = placement_columns(of_pool.topology, of_pool.rule)
        plans.append((pool, _plan_pool(of_pool, columns, seed, is_balancing=is_balancing)))
    return joined_plans(plans, cluster_map.epoch)


def _plan_pool(
    cluster_map: ClusterMap, columns: PlacementColumns, seed: int, *, is_balancing: bool
) -> BalancePlan:
    """`plan_moves` for a map of one pool."""
    # To the balancer, a draining device is one that serves and whose share is nothing.
    state = cluster_map.device_state.copy()
    is_draining = state == DeviceState.DRAINING
    state[is_draining] = DeviceState.UP
    weight = np.where(is_draining, 0.0, columns.device_weight)
    columns = columns._replace(device_weight=frozen(weight))
    tolerance = 1.0
    if not is_balancing:
        if not is_draining.any():
            return _no_moves(cluster_map.epoch)
        # Whatever is uneven already may stay so.
        held = slots_per_device(cluster_map.pg_devices, len(state))
        away = np.abs(held - ideal_slots(columns, cluster_map.pg_devices, state))
        tolerance = max(1.0, float(away[(state == DeviceState.UP) & ~is_draining].max(initial=0.0)))
    return plan_balance_of_rows(
        columns,
        cluster_map.pg_devices,
        device_state=state,
        slot_state=cluster_map.pg_slot_state,
        seed=seed,
        tolerance=tolerance,
        epoch=cluster_map.epoch,
    )


def _no_moves(epoch: int) -> BalancePlan:
    none = frozen(np.zeros(0, dtype=np.int32))
    return BalancePlan(epoch, none, none, none, none, 0, 0, 0, is_cut=False)


def misplaced_count(cluster_map: ClusterMap) -> int:
    """Slots that are MOVING."""
    return int((cluster_map.pg_slot_state == SlotState.MOVING).sum())


def next_batch(
    cluster_map: ClusterMap, plan: BalancePlan, readable: BoolArray, max_misplaced_fraction: float
) -> SlotMoves:
    """The moves of the plan that may begin now, in its order.

    Args:
        cluster_map: The map that was planned for.
        plan: From `plan_moves`.
        readable: Shape (P, n). Of `repair.classify`.
        max_misplaced_fraction: Share of all slots, 0 to 1, that may be MOVING at once; one slot may
            always.
    """
    limit = max(1, int(max_misplaced_fraction * cluster_map.pg_devices.size))
    room = min(limit - misplaced_count(cluster_map), SLOTS_PER_EPOCH_MAX)
    is_moving = (cluster_map.pg_slot_state == SlotState.MOVING).any(axis=1)
    is_busy = is_moving | ~readable.all(axis=1)
    chosen: list[int] = []
    for index, pg in enumerate(plan.pg.tolist()):
        if len(chosen) >= room:
            break
        if not is_busy[pg]:
            # Later moves of the same PG may need this one: they wait for the next batch.
            is_busy[pg] = True
            chosen.append(index)
    return moves_of(plan, chosen)


def plan_recovery(cluster_map: ClusterMap, *, seed: int = 0) -> BalancePlan:
    """Swaps after which the busiest pairs of devices share fewer groups; slot counts stay.

    Each swap is two moves, one behind the other; see `balancer_recovery`.
    """
    plans: list[tuple[Pool, BalancePlan]] = []
    for pool in pools_of(cluster_map):
        of_pool = map_of_pool(cluster_map, pool)
        plan = plan_even_recovery(
            placement_columns(of_pool.topology, of_pool.rule),
            of_pool.pg_devices,
            device_state=of_pool.device_state,
            slot_state=of_pool.pg_slot_state,
            seed=seed,
            epoch=of_pool.epoch,
        )
        plans.append((pool, plan))
    return joined_plans(plans, cluster_map.epoch)


def next_swaps(
    cluster_map: ClusterMap, plan: BalancePlan, readable: BoolArray, max_misplaced_fraction: float
) -> SlotMoves:
    """The first swaps of the plan, whole ones, that may be carried out at the same time.

    As they are the plan's beginning, fewer pairs are as busy after them, and planning again ends.

    Args:
        cluster_map: The map that was planned for.
        plan: From `plan_recovery`.
        readable: Shape (P, n). Of `repair.classify`.
        max_misplaced_fraction: Share of all slots, 0 to 1, that may be MOVING at once; one swap may
            always.
    """
    limit = max(2, int(max_misplaced_fraction * cluster_map.pg_devices.size))
    room = min(limit - misplaced_count(cluster_map), SLOTS_PER_EPOCH_MAX)
    is_busy = (cluster_map.pg_slot_state == SlotState.MOVING).any(axis=1)
    is_busy |= ~readable.all(axis=1)
    chosen: list[int] = []
    pgs = plan.pg.tolist()
    for first in range(0, len(pgs) - 1, 2):
        pair = pgs[first : first + 2]
        if len(chosen) + 2 > room or is_busy[pair].any():
            break
        is_busy[pair] = True
        chosen += (first, first + 1)
    return moves_of(plan, chosen)


def begin_moves(cluster_map: ClusterMap, moves: SlotMoves) -> ClusterMap:
    """The map in which the slots are MOVING to their targets.

    Raises:
        StalePlan: The map is not the one that was planned for.
    """
    pg, slot = moves.pg, moves.slot
    is_stale = (
        moves.epoch != cluster_map.epoch
        or not np.array_equal(cluster_map.pg_devices[pg, slot], moves.source_device)
        or (cluster_map.pg_slot_state[pg, slot] != SlotState.CLEAN).any()
    )
    if is_stale:
        raise StalePlan(moves.epoch, cluster_map.epoch)
    return _moved(cluster_map, moves, SlotState.MOVING, moves.source_device)


def plan_replacement(
    cluster_map: ClusterMap, old: int, new: int, *, columns: PlacementColumns | None = None
) -> tuple[SlotMoves, int]:
    """The slots of one device, to be taken over by another.

    They are those that name `old`, and those that were its own and are being rebuilt elsewhere.

    Returns:
        The moves, and the number of slots that `new` cannot take without breaking the rule.
    """
    for device in (old, new):
        _check_device(cluster_map, device)
    is_lost = (cluster_map.pg_slot_state == SlotState.REBUILDING) & (cluster_map.pg_previous == old)
    pg, slot = np.nonzero((cluster_map.pg_devices == old) | is_lost)
    fits = np.zeros(len(pg), dtype=np.bool_)
    for pool in pools_of(cluster_map):
        part = slice(*np.searchsorted(pg, (pool.first_pg, pool.pgs.stop)).tolist())
        if columns is None or cluster_map.pools:
            columns = placement_columns(cluster_map.topology, pool.rule)
        if columns.device_weight[new] > 0:
            rows = cluster_map.pg_devices[pg[part]]
            _find_fits(columns, rows, slot[part].astype(np.int32), new, fits[part])
    pg, slot = pg[fits], slot[fits]
    source = cluster_map.pg_devices[pg, slot]
    is_elsewhere = source != new
    moves = SlotMoves(
        cluster_map.epoch,
        frozen(pg[is_elsewhere].astype(np.int32)),
        frozen(slot[is_elsewhere].astype(np.int32)),
        frozen(source[is_elsewhere]),
        frozen(np.full(int(is_elsewhere.sum()), new, dtype=np.int32)),
    )
    return moves, int((~fits).sum())


@njit
def _find_fits(
    columns: PlacementColumns, rows: Int32Array, slots: Int32Array, device: int, fits: BoolArray
) -> None:
    for i in range(len(rows)):
        fits[i] = rows[i, slots[i]] == device or keeps_rule(columns, rows[i], slots[i], device)


def begin_replacement(cluster_map: ClusterMap, moves: SlotMoves) -> ClusterMap:
    """The map in which a device that does not serve has given its slots to another.

    They are REBUILDING there. (A device that serves is replaced by `begin_moves`.)

    Raises:
        StalePlan: The map is not the one that was planned for.
    """
    pg, slot = moves.pg, moves.slot
    if moves.epoch != cluster_map.epoch or not np.array_equal(
        cluster_map.pg_devices[pg, slot], moves.source_device
    ):
        raise StalePlan(moves.epoch, cluster_map.epoch)
    is_clean = cluster_map.pg_slot_state[pg, slot] == SlotState.CLEAN
    previous = np.where(is_clean, moves.source_device, cluster_map.pg_previous[pg, slot])
    return _moved(cluster_map, moves, SlotState.REBUILDING, previous)


def _moved(
    cluster_map: ClusterMap, moves: SlotMoves, state: SlotState, previous: Int32Array
) -> ClusterMap:
    if not len(moves):
        return cluster_map
    rows = cluster_map.pg_devices.copy()
    slot_state = cluster_map.pg_slot_state.copy()
    pg_epoch = cluster_map.pg_epoch.copy()
    pg_previous = cluster_map.pg_previous.copy()
    rows[moves.pg, moves.slot] = moves.target_device
    slot_state[moves.pg, moves.slot] = state
    pg_previous[moves.pg, moves.slot] = previous
    pg_epoch[moves.pg] = cluster_map.epoch + 1
    return replace(
        cluster_map,
        epoch=cluster_map.epoch + 1,
        pg_devices=frozen(rows),
        pg_slot_state=frozen(slot_state),
        pg_epoch=frozen(pg_epoch),
        pg_previous=frozen(pg_previous),
    )


@dataclass(frozen=True, slots=True)
class Holding:
    """What still needs a device.

    Attributes:
        slot_count: Slots that name it.
        leaving_count: Slots that are moving away from it, and need it until they are CLEAN.
        sole_pg_count: PGs that cannot be read without it.
        endangered_pg_count: PGs that can, but have no redundancy left without it.
    """

    slot_count: int
    leaving_count: int
    sole_pg_count: int
    endangered_pg_count: int

    @property
    def is_empty(self) -> bool:
        """Whether nothing needs the device."""
        return not (self.slot_count or self.leaving_count)


def holding_of(
    cluster_map: ClusterMap, device: int, remaining_redundancy: Int32Array, readable: BoolArray
) -> Holding:
    """What needs the device now.

    Args:
        cluster_map: The map.
        device: The device.
        remaining_redundancy: Shape (P,). Of `repair.classify`.
        readable: Shape (P, n). Of `repair.classify`.
    """
    _check_device(cluster_map, device)
    names = cluster_map.pg_devices == device
    # A PG that cannot be read waits for every device that ever held a slot of it.
    is_wanted_back = (cluster_map.pg_previous == device) & (remaining_redundancy < 0)[:, None]
    leaves = cluster_map.pg_previous == device
    leaves &= (cluster_map.pg_slot_state == SlotState.MOVING) | is_wanted_back
    leaves &= ~names
    without = remaining_redundancy - ((names | leaves) & readable).any(axis=1)
    is_needed = (names | leaves).any(axis=1)
    return Holding(
        slot_count=int(names.sum()),
        leaving_count=int(leaves.sum()),
        sole_pg_count=int((is_needed & (without < 0)).sum()),
        endangered_pg_count=int((is_needed & (without == 0)).sum()),
    )


def _check_device(cluster_map: ClusterMap, device: int) -> None:
    count = cluster_map.topology.device_count
    if not 0 <= device < count:
        raise UnknownIndex("device", device, count)
