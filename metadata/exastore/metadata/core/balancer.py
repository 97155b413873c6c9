"""The balancer: which PG slots to move so that every device holds its share.

The ideal of a device is its share, by weight, of all slots on UP devices; where the rule caps a
domain (at most `max_per_domain` slots of each PG) or a device (one slot of each PG), the rest goes
to the others in proportion. A plan brings every device to within `tolerance` slots of its ideal
wherever moves that keep the rule lead there, with the fewest moves or close to it.

Laws:
1. A plan is a pure function of table, columns, states and seed, bit for bit.
2. Every prefix of a plan keeps the rule, and leaves no more slots outside the bounds than there
   were.
3. Only CLEAN slots of UP devices move, and only to UP devices with weight.
4. A plan cut at `max_moves` is the beginning of the whole plan; after applying it, planning again
   goes on.
5. A table within the bounds has an empty plan.

Devices that are DOWN, OUT or DRAINING keep what they have: repair and draining empty them.

The seam to a live cluster: `apply_balance_to_rows` is for a table without data (a new cluster, time
zero of a simulation). Where there is data, a move is a copy: the slot becomes REBUILDING on the
target while the source stays readable until the target is verified, and epochs fence the change.
That is work of the service that executes plans and is not here; plans are the same.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from exastore.erasure.jit import njit
from exastore.metadata.core.balance import (
    BalanceStats,
    balance_of,
    row_violations,
    slots_per_device,
)
from exastore.metadata.core.balancer_chains import give_by_chain
from exastore.metadata.core.balancer_ideal import ideal_slots
from exastore.metadata.core.balancer_kernels import (
    CHAINED,
    DEVICE_COLUMNS,
    GIVES,
    HELD,
    LOWER,
    MAX_PER_DOMAIN,
    MOVABLE,
    MOVED,
    ROLE,
    START,
    STAYS,
    STEPS_LEFT,
    TAKES,
    TIE,
    TIE_BITS,
    UPPER,
    Fill,
    give_surplus,
    list_slots,
    new_receivers,
    take_for_deficit,
)
from exastore.metadata.core.errors import StaleBalancePlan
from exastore.metadata.core.placement import (
    BoolArray,
    PlacementColumns,
    all_up,
    placement_columns,
)
from exastore.metadata.core.straw2 import hash2
from exastore.metadata.core.topology import (
    ClusterMap,
    DeviceState,
    Float64Array,
    Int32Array,
    SlotState,
    Uint8Array,
    frozen,
)

__all__ = [
    "BalancePlan",
    "BalanceReport",
    "apply_balance_to_rows",
    "ideal_slots",
    "plan_balance",
    "plan_balance_of_rows",
    "report_balance",
]

#: Row checks that the search for chains may cost: some seconds.
SEARCH_STEPS_MAX = 1 << 30
#: Bounds are whole numbers: sums of weights may be off by this many slots.
ROUNDING = 1e-6


@dataclass(frozen=True, slots=True)
class BalancePlan:
    """Moves, in the order to carry them out. M moves.

    Attributes:
        epoch: Of the map it was made from; 0 for a plan over bare columns.
        pg: Shape (M,). The placement group.
        slot: Shape (M,). Which of its slots.
        source_device: Shape (M,). Where the slot is when its turn comes.
        target_device: Shape (M,). Where it goes.
        minimum_moves: No plan to the same bounds has fewer moves (were there no rule).
        chained_moves: Moves that are links of chains over devices in between.
        outside_count: Slots beyond the bounds after the plan; 0 if it reaches the tolerance.
        is_cut: Whether `max_moves` ended it.
    """

    epoch: int
    pg: Int32Array
    slot: Int32Array
    source_device: Int32Array
    target_device: Int32Array
    minimum_moves: int
    chained_moves: int
    outside_count: int
    is_cut: bool

    def __len__(self) -> int:
        return len(self.pg)

    def __iter__(self) -> Iterator[tuple[int, int, int, int]]:
        """(pg, slot, source_device, target_device) of each move."""
        columns = (self.pg, self.slot, self.source_device, self.target_device)
        return zip(*(column.tolist() for column in columns), strict=True)

    def first(self, move_count: int) -> "BalancePlan":
        """The plan's first moves; `outside_count` stays that of the whole."""
        return replace(
            self,
            pg=self.pg[:move_count],
            slot=self.slot[:move_count],
            source_device=self.source_device[:move_count],
            target_device=self.target_device[:move_count],
            chained_moves=min(self.chained_moves, move_count),
            is_cut=self.is_cut or move_count < len(self),
        )


@dataclass(frozen=True, slots=True)
class BalanceReport:
    """What a plan does.

    Attributes:
        before: Load of the devices before it.
        after: Load after it.
        moved_slot_count: Its moves.
        minimum_moves: Fewest moves that any plan to the same bounds needs.
        violations_before: PGs that break the rule before it.
        violations_after: After it; never more.
        deviation_before: Largest distance of an UP device from its ideal, in slots.
        deviation_after: The same after it.
    """

    before: BalanceStats
    after: BalanceStats
    moved_slot_count: int
    minimum_moves: int
    violations_before: int
    violations_after: int
    deviation_before: float
    deviation_after: float

    @property
    def moves_ratio(self) -> float:
        """Moves against the minimum; 1 if nothing is to be moved."""
        return self.moved_slot_count / self.minimum_moves if self.minimum_moves else 1.0


def _bounds(
    ideal: Float64Array, pg_count: int, tolerance: float, takes: BoolArray
) -> tuple[Int32Array, Int32Array]:
    """Whole numbers of slots within `tolerance` of the ideal; (0, 0) for devices that take none."""
    lower = np.maximum(np.ceil(ideal - tolerance - ROUNDING), 0)
    upper = np.minimum(np.floor(ideal + tolerance + ROUNDING), pg_count)
    lower, upper = np.where(takes, lower, 0), np.where(takes, upper, 0)
    return lower.astype(np.int32), upper.astype(np.int32)


def _ties(device_count: int, seed: int) -> Int32Array:
    """Shape (D,): random numbers of TIE_BITS bits."""
    out = np.empty(device_count, dtype=np.int32)
    _hash_all(np.uint32(seed & 0xFFFFFFFF), out)
    return out


@njit
def _hash_all(seed: np.uint32, out: Int32Array) -> None:
    for device in range(len(out)):
        out[device] = hash2(np.uint32(device), seed) & np.uint32((1 << TIE_BITS) - 1)


def plan_balance_of_rows(
    columns: PlacementColumns,
    rows: Int32Array,
    *,
    device_state: Uint8Array | None = None,
    slot_state: Uint8Array | None = None,
    max_moves: int | None = None,
    seed: int = 0,
    tolerance: float = 1.0,
    epoch: int = 0,
) -> BalancePlan:
    """Plans the moves that flatten a PG table.

    Args:
        columns: From `placement_columns`.
        rows: Shape (P, n), dtype int32. The PG table; not changed.
        device_state: Shape (D,). None: all are UP.
        slot_state: Shape (P, n). None: all are CLEAN.
        max_moves: The most moves; None for as many as it takes.
        seed: Decides between equals, 32 bits.
        tolerance: Slots that a device may be away from its ideal, at least 1: below it no whole
            number of slots may do.
        epoch: Kept in the plan.

    Raises:
        ValueError: The tolerance is below 1, `max_moves` is negative, or the table is too large.
    """
    if not tolerance >= 1.0:
        raise ValueError(f"tolerance is at least 1 slot, not {tolerance}")
    if max_moves is not None and max_moves < 0:
        raise ValueError(f"max_moves is at least 0, not {max_moves}")
    if rows.size >= 2**31:
        raise ValueError(f"{rows.size} slots are more than a plan can number")
    device_count = len(columns.device_weight)
    state = all_up(device_count) if device_state is None else np.asarray(device_state)
    is_up = state == DeviceState.UP
    role = roles(columns, state)
    takes = role == TAKES
    count = slots_per_device(rows, device_count).astype(np.int32)
    lower, upper = _bounds(ideal_slots(columns, rows, state), len(rows), tolerance, takes)
    # Devices that stay as they are hold what they should.
    lower = np.where(is_up, lower, count).astype(np.int32)
    upper = np.where(is_up, upper, count).astype(np.int32)
    fill = new_fill(columns, rows, count, lower, upper, role, seed, slot_state)
    surplus = int(np.minimum(np.maximum(count - upper, 0), fill.device[:, MOVABLE]).sum())
    deficit = int(np.maximum(lower - count, 0).sum())
    # Chains are of a few moves; more than four for each slot out of place are not worth it.
    room = 4 * (surplus + deficit)
    room = room if max_moves is None else min(room, max_moves)
    fill = fill._replace(moves=np.empty((room, 3), dtype=np.int32))
    if room:
        _flatten(fill)
    is_full = max_moves is not None and int(fill.tally[MOVED]) == max_moves
    plan = plan_of(fill, rows.shape[1], epoch, max(surplus, deficit), is_cut=is_full)
    return plan if plan.outside_count else replace(plan, is_cut=False)


def roles(columns: PlacementColumns, device_state: Uint8Array) -> Int32Array:
    """Shape (D,): UP devices give, those with weight take too, all others stay as they are."""
    is_up = device_state == DeviceState.UP
    takes = is_up & (columns.device_weight > 0)
    return np.where(takes, TAKES, np.where(is_up, GIVES, STAYS)).astype(np.int32)


def plan_of(fill: Fill, width: int, epoch: int, minimum_moves: int, *, is_cut: bool) -> BalancePlan:
    """The moves that were made in `fill`, as a plan."""
    moved = int(fill.tally[MOVED])
    code, source, target = (frozen(column.copy()) for column in fill.moves[:moved].T)
    held, lower, upper = (fill.device[:, column] for column in (HELD, LOWER, UPPER))
    outside = int((np.maximum(held - upper, 0) + np.maximum(lower - held, 0)).sum())
    return BalancePlan(
        epoch=epoch,
        pg=frozen((code // width).astype(np.int32)),
        slot=frozen((code % width).astype(np.int32)),
        source_device=source,
        target_device=target,
        minimum_moves=minimum_moves,
        chained_moves=int(fill.tally[CHAINED]),
        outside_count=outside,
        is_cut=is_cut,
    )


def new_fill(
    columns: PlacementColumns,
    rows: Int32Array,
    count: Int32Array,
    lower: Int32Array,
    upper: Int32Array,
    role: Int32Array,
    seed: int,
    slot_state: Uint8Array | None,
) -> Fill:
    device_count = len(count)
    # One more than there can be: a device inside a chain may take before it gives.
    room = np.where(role == STAYS, 0, np.maximum(count, upper).astype(np.int64) + 1)
    if int(room.sum()) >= 2**31:
        raise ValueError(f"{rows.size} slots are more than a plan can number")
    device = np.zeros((device_count, DEVICE_COLUMNS), dtype=np.int32)
    device[:, HELD], device[:, LOWER], device[:, UPPER] = count, lower, upper
    device[1:, START] = np.cumsum(room)[:-1]
    device[:, TIE] = _ties(device_count, seed)
    device[:, ROLE] = role
    may_move = np.zeros(0, dtype=np.bool_)
    if slot_state is not None:
        may_move = np.asarray(slot_state).ravel() == SlotState.CLEAN
    tally = np.zeros(4, dtype=np.int64)
    tally[STEPS_LEFT], tally[MAX_PER_DOMAIN] = SEARCH_STEPS_MAX, columns.max_per_domain
    fill = Fill(
        rows=rows.astype(np.int32, copy=True),
        device=device,
        slots=np.empty(int(room.sum()), dtype=np.int32),
        domain_of_device=columns.domain_of_device,
        domain_start=columns.domain_device_start,
        domain_device=columns.domain_device,
        limit_max=columns.limit_max,
        limit_domain=columns.limit_domain,
        marks=np.zeros(device_count, dtype=np.int32),
        moves=np.empty((0, 3), dtype=np.int32),
        tally=tally,
    )
    list_slots(fill, may_move)
    return fill


def _by_excess(fill: Fill, excess: Int32Array, chosen: BoolArray) -> Int32Array:
    """The chosen devices by excess, the largest first, ties at random."""
    devices = np.flatnonzero(chosen)
    order = np.lexsort((fill.device[devices, TIE], -excess[devices]))
    return devices[order].astype(np.int32)


def _flatten(fill: Fill) -> None:
    """Greedy moves, then chains for what they left."""
    held, lower, upper, role = (fill.device[:, column] for column in (HELD, LOWER, UPPER, ROLE))
    surplus: Int32Array = held - upper
    givers = _by_excess(fill, surplus, surplus > 0)
    give_surplus(fill, givers, new_receivers(len(held), len(fill.domain_start) - 1))
    deficit: Int32Array = lower - held
    takers = _by_excess(fill, deficit, (deficit > 0) & (role == TAKES))
    if len(takers):
        givers = _by_excess(fill, held - upper, (held > lower) & (role != STAYS))
        take_for_deficit(fill, takers, givers)
    if (held > upper).any() or (held < lower).any():
        give_by_chain(fill, UPPER, LOWER, True)
        give_by_chain(fill, UPPER, UPPER, False)
        give_by_chain(fill, LOWER, LOWER, True)


def plan_balance(
    cluster_map: ClusterMap,
    *,
    max_moves: int | None = None,
    seed: int = 0,
    columns: PlacementColumns | None = None,
    tolerance: float = 1.0,
) -> BalancePlan:
    """As `plan_balance_of_rows`, for a map; `columns` saves building them."""
    if columns is None:
        columns = placement_columns(cluster_map.topology, cluster_map.rule)
    return plan_balance_of_rows(
        columns,
        cluster_map.pg_devices,
        device_state=cluster_map.device_state,
        slot_state=cluster_map.pg_slot_state,
        max_moves=max_moves,
        seed=seed,
        tolerance=tolerance,
        epoch=cluster_map.epoch,
    )


@njit
def _apply(
    rows: Int32Array, pg: Int32Array, slot: Int32Array, source: Int32Array, target: Int32Array
) -> int:
    """The first move whose slot is not where the plan says, or -1."""
    for i in range(len(pg)):
        if pg[i] >= rows.shape[0] or slot[i] >= rows.shape[1] or rows[pg[i], slot[i]] != source[i]:
            return i
        rows[pg[i], slot[i]] = target[i]
    return -1


def apply_balance_to_rows(rows: Int32Array, plan: BalancePlan) -> Int32Array:
    """The table after the plan, as a new array: for tables that hold no data yet.

    Raises:
        StaleBalancePlan: A slot is not on the device that the plan moves it from.
    """
    out = rows.astype(np.int32, copy=True)
    failed = _apply(out, plan.pg, plan.slot, plan.source_device, plan.target_device)
    if failed >= 0:
        raise StaleBalancePlan(failed, int(plan.pg[failed]), int(plan.slot[failed]))
    return out


def report_balance(
    columns: PlacementColumns,
    rows: Int32Array,
    plan: BalancePlan,
    *,
    device_state: Uint8Array | None = None,
) -> BalanceReport:
    """What the plan does to the table it was made from.

    Raises:
        StaleBalancePlan: It was made from another table.
    """
    device_count = len(columns.device_weight)
    state = all_up(device_count) if device_state is None else np.asarray(device_state)
    after = apply_balance_to_rows(rows, plan)
    ideal = ideal_slots(columns, rows, state)
    is_up = state == DeviceState.UP

    def deviation(table: Int32Array) -> float:
        away = np.abs(slots_per_device(table, device_count) - ideal)[is_up]
        return float(away.max(initial=0.0))

    def broken(table: Int32Array) -> int:
        found = row_violations(table, columns)
        return int(found.sum())

    return BalanceReport(
        before=balance_of(rows, columns.device_weight),
        after=balance_of(after, columns.device_weight),
        moved_slot_count=len(plan),
        minimum_moves=plan.minimum_moves,
        violations_before=broken(rows),
        violations_after=broken(after),
        deviation_before=deviation(rows),
        deviation_after=deviation(after),
    )
