"""Repair: which slots are lost, where they are rebuilt, and in what order.

Set algebra, per placement group, over its slots S (|S| = n):

    Held       = slots whose device is UP or DRAINING
    Readable   = Held and CLEAN                      every chunk can be read there
               + MOVING slots of which both devices serve: every chunk is on one of the two
    Waiting    = CLEAN slots on DOWN devices         not readable now, and not given up
               + MOVING slots of which one device is DOWN and none OUT
    Homeless   = slots on OUT devices, or without a device: need a new device
    Unfinished = REBUILDING slots not Homeless       have their device, need their chunks
               + MOVING slots not Homeless whose previous device is OUT
    Lost       = Homeless + Unfinished               S = Readable + Waiting + Lost, disjoint

    remaining redundancy = how many further losses are survived, whichever they are: |Readable| - k
                           if the code is MDS, else see `redundancy`; < 0: the data cannot be read

    A slot that is lost or moves keeps the name of the device that held it CLEAN, its *previous*
    device, until it is CLEAN again. Of the lost slots,

    Returning  = previous device serves (UP or DRAINING), and the slot is elsewhere
    Returned   = the slot is on its previous device again, which serves and catches up

Laws:
1. Most endangered first: tasks are ordered by remaining redundancy, then PG, then slot.
2. A plan is a pure function of map and seed; the same map gives the same plan.
3. Planned rows keep the placement rule and name no device twice.
4. What cannot be rebuilt now is left alone: a PG with remaining redundancy < 0 keeps its OUT
   devices in its row, for if one comes back, its chunks are good again. Such PGs are `blocked`.
   Its Returning slots go back, and its Returned ones are verified: that may make it readable.
5. Short outages are waited out: a CLEAN slot on a DOWN device is no task. Whoever turns DOWN into
   OUT (`NodeHealth`) decides how long.
6. Nothing is clean before it was verified: `apply_plan` makes slots REBUILDING, and only
   `mark_clean`, called when every chunk is in place, makes them CLEAN. That holds for Returned
   slots too: they miss what was written while their device was away.
7. A returning device gets back what was not rebuilt yet, wherever the rule allows it with the row
   as it stands; what was rebuilt stays where it is. Going back costs only what was written
   meanwhile, so it is preferred to a rebuild however far that has come. `returns_home` decides.

DRAINING devices count as readable; `moves` empties them. A move whose source goes OUT becomes a
repair where it goes to; one whose target goes OUT becomes a return to its source.
"""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from exastore.erasure.jit import njit
from exastore.metadata.core.errors import StalePlan, UnknownIndex
from exastore.metadata.core.placement import (
    PlacementColumns,
    choose_replacement,
    keeps_rule,
    placement_columns,
)
from exastore.metadata.core.pools import pools_of
from exastore.metadata.core.redundancy import redundancy_of
from exastore.metadata.core.topology import (
    NO_DEVICE,
    ClusterMap,
    DeviceState,
    Int32Array,
    Int64Array,
    SlotState,
    Uint8Array,
    frozen,
)

BoolArray = NDArray[np.bool_]

#: Room of `repair_priority` for remaining redundancy below 0.
PRIORITY_OFFSET = 256
#: States in which a device can be read.
SERVING = (DeviceState.UP, DeviceState.DRAINING)


@njit
def repair_priority(remaining_redundancy: int, pg: int, slot: int) -> int:
    """Sort key of a repair task: the smallest goes first. Shared with the simulator.

    Remaining redundancy (at least -256) decides, then PG (32 bits), then slot (16 bits), so
    that equal urgency has one order everywhere. With equal device failure rates, one redundancy
    less makes the loss of a PG more probable by a factor of (repair time x failure rate), which is
    far below 1: no number of safer PGs outweighs an endangered one.
    """
    return ((remaining_redundancy + PRIORITY_OFFSET) << 48) | (pg << 16) | slot


@dataclass(frozen=True, slots=True)
class PgHealth:
    """Classification of every PG. The sets are those of the module's text.

    Attributes:
        readable: Shape (P, n), dtype bool.
        waiting: Shape (P, n), dtype bool.
        homeless: Shape (P, n), dtype bool.
        unfinished: Shape (P, n), dtype bool.
        returning: Shape (P, n), dtype bool. Subset of `lost`.
        returned: Shape (P, n), dtype bool. Subset of `unfinished`; not counted as readable.
        readable_count: Shape (P,), dtype int32.
        remaining_redundancy: Shape (P,), dtype int32. Of the slots that are not readable.
    """

    readable: BoolArray
    waiting: BoolArray
    homeless: BoolArray
    unfinished: BoolArray
    returning: BoolArray
    returned: BoolArray
    readable_count: Int32Array
    remaining_redundancy: Int32Array

    @property
    def lost(self) -> BoolArray:
        """Shape (P, n): slots to repair."""
        return np.asarray(self.homeless | self.unfinished)

    @property
    def is_clean(self) -> BoolArray:
        """Shape (P,): every slot is readable."""
        return np.asarray(self.readable.all(axis=1))

    @property
    def is_unreadable(self) -> BoolArray:
        """Shape (P,): the readable slots do not give back the data."""
        return self.remaining_redundancy < 0


def classify(cluster_map: ClusterMap) -> PgHealth:
    """Classifies every PG of a map. Vectorised, O(P n)."""
    rows, previous = cluster_map.pg_devices, cluster_map.pg_previous
    # One more state at the end, so that NO_DEVICE (-1) reads as OUT.
    padded_state = np.append(cluster_map.device_state, np.uint8(DeviceState.OUT))
    state = padded_state[rows]
    serves = np.isin(padded_state, SERVING)
    clean = cluster_map.pg_slot_state == SlotState.CLEAN
    homeless = state == DeviceState.OUT
    down = state == DeviceState.DOWN
    readable = clean & ~homeless & ~down
    waiting = clean & down
    unfinished = ~clean & ~homeless
    is_home_back = ~clean & serves[previous]
    moving = cluster_map.pg_slot_state == SlotState.MOVING
    if moving.any():
        is_whole = is_home_back & moving & serves[rows]
        readable |= is_whole
        waiting |= moving & ~homeless & ~is_whole & (padded_state[previous] != DeviceState.OUT)
        unfinished &= ~(readable | waiting)
        is_home_back &= homeless | unfinished
    readable_count = readable.sum(axis=1).astype(np.int32)
    return PgHealth(
        readable=readable,
        waiting=waiting,
        homeless=homeless,
        unfinished=unfinished,
        returning=is_home_back & (previous != rows),
        returned=is_home_back & (previous == rows),
        readable_count=readable_count,
        remaining_redundancy=redundancy_of(cluster_map.code).of_rows(~readable),
    )


@dataclass(frozen=True, slots=True)
class RepairPlan:
    """Ordered repair tasks, in columns: row i of all of them is one task. T tasks.

    Attributes:
        epoch: Epoch of the map that was planned for.
        pg: Shape (T,), dtype int32.
        slot: Shape (T,), dtype int32.
        source_device: Shape (T,), dtype int32. What the slot names now; NO_DEVICE if nothing.
        target_device: Shape (T,), dtype int32. Where it is rebuilt; the source if it stays.
        remaining_redundancy: Shape (T,), dtype int32. Of the PG, before the repair; < 0 only for
            slots that go or went back to their previous device.
        blocked: Shape (B,), dtype int32. PGs with lost slots that cannot be read now.
        unplaced: Shape (U, 2), dtype int32. (pg, slot) that no eligible device can take.
    """

    epoch: int
    pg: Int32Array
    slot: Int32Array
    source_device: Int32Array
    target_device: Int32Array
    remaining_redundancy: Int32Array
    blocked: Int32Array
    unplaced: Int32Array

    def __len__(self) -> int:
        return len(self.pg)

    def first_moves(self, count: int) -> "RepairPlan":
        """The plan's first tasks with about `count` slots that change their device.

        The slots of a PG stay together: their targets keep the rule together, not one by one.
        """
        moves = np.cumsum(self.source_device != self.target_device)
        if not len(moves) or moves[-1] <= count:
            return self
        end = int(np.searchsorted(moves, count, side="right"))
        while 0 < end < len(self.pg) and self.pg[end - 1] == self.pg[end]:
            end += 1
        return replace(
            self,
            pg=self.pg[:end],
            slot=self.slot[:end],
            source_device=self.source_device[:end],
            target_device=self.target_device[:end],
            remaining_redundancy=self.remaining_redundancy[:end],
        )


@njit
def returns_home(
    columns: PlacementColumns, device_state: Uint8Array, row: Int32Array, slot: int, previous: int
) -> bool:
    """Whether a REBUILDING slot goes back to its previous device. Callable from other kernels.

    Args:
        columns: From `placement_columns`.
        device_state: Shape (D,), dtype uint8. Values of DeviceState.
        row: Shape (n,), dtype int32. The PG's devices as they are; other slots' count, whatever
            their state, as they may have to stay.
        slot: Which slot of the row.
        previous: The device that held the slot CLEAN; NO_DEVICE if none.
    """
    if previous < 0 or row[slot] == previous:
        return False
    # UP or DRAINING.
    if device_state[previous] != 1 and device_state[previous] != 4:
        return False
    return bool(keeps_rule(columns, row, slot, previous))


@njit
def _bring_home(
    columns: PlacementColumns,
    device_state: Uint8Array,
    rows: Int32Array,
    previous: Int32Array,
    returning: BoolArray,
) -> None:
    """Gives the returning slots of `rows` back to their previous devices, in place.

    All have Shape (T, n). A row that keeps the rule keeps it after each slot.
    """
    for i in range(len(rows)):
        for slot in range(rows.shape[1]):
            if returning[i, slot] and returns_home(
                columns, device_state, rows[i], slot, previous[i, slot]
            ):
                rows[i, slot] = previous[i, slot]


@njit
def _keep_homes(
    columns: PlacementColumns, row: Int32Array, old_row: Int32Array, homeless: BoolArray
) -> None:
    """Settles rows with fewer targets than homeless slots, so that old homes can stay named.

    A homeless slot that gets no target keeps its old device in the map, as far as that keeps the
    rule beside the targets. Where it does not, another slot whose old device fits keeps that, and
    gives its target away. There always is one: the sets of devices that keep nested limits are a
    matroid, so the targets can be extended with old devices to a row as full as the old one.
    """
    final = row.copy()
    for slot in range(len(row)):
        old = old_row[slot]
        if homeless[slot] and row[slot] < 0 and old >= 0 and keeps_rule(columns, final, slot, old):
            final[slot] = old
    for slot in range(len(row)):
        if not homeless[slot] or final[slot] >= 0 or old_row[slot] < 0:
            continue
        for other in range(len(row)):
            if not homeless[other] or row[other] < 0:
                continue
            final[slot] = row[other]
            old = old_row[other]
            if old < 0 or keeps_rule(columns, final, other, old):
                row[slot], row[other] = row[other], NO_DEVICE
                final[other] = old
                break
            final[slot] = NO_DEVICE


@njit
def _choose_targets(
    columns: PlacementColumns,
    device_state: Uint8Array,
    rows: Int32Array,
    homeless: BoolArray,
    pgs: Int32Array,
    seed: int,
) -> None:
    """Gives the homeless slots of `rows` (Shape (T, n), the rows of `pgs`) their targets, in place.

    A slot without a target becomes NO_DEVICE.
    """
    for i in range(len(pgs)):
        row = rows[i]
        old_row = row.copy()
        # All homes are given up first: an OUT device must not take its domain's room.
        for slot in range(len(row)):
            if homeless[i, slot]:
                row[slot] = NO_DEVICE
        is_short = False
        for slot in range(len(row)):
            if homeless[i, slot]:
                row[slot] = choose_replacement(columns, device_state, row, slot, pgs[i], seed)
                is_short |= row[slot] < 0
        if is_short:
            _keep_homes(columns, row, old_row, homeless[i])


def plan_repair(
    cluster_map: ClusterMap,
    *,
    columns: PlacementColumns | None = None,
    seed: int | None = None,
) -> RepairPlan:
    """What to rebuild, where, most endangered first.

    Args:
        cluster_map: The map to plan for.
        columns: Of the map's topology and rule, if at hand; of no use to a map with pools.
        seed: Choice of targets; by default the map's epoch, so that a second failure of the same
            slot does not meet the same candidates.
    """
    health = classify(cluster_map)
    has_lost = health.lost.any(axis=1)
    blocked = np.flatnonzero(has_lost & health.is_unreadable).astype(np.int32)
    has_home = (health.returning | health.returned).any(axis=1)
    pgs = np.flatnonzero(has_lost & (~health.is_unreadable | has_home)).astype(np.int32)
    before, lost = cluster_map.pg_devices[pgs], health.lost[pgs]
    after = before.copy()
    is_unreadable = health.is_unreadable[pgs][:, None]
    returning = health.returning[pgs]
    homeless = health.homeless[pgs] & ~is_unreadable
    if homeless.any() or returning.any():
        device_state = cluster_map.device_state.copy()
        attempt_seed = (cluster_map.epoch if seed is None else seed) & 0xFFFFFFFF
        previous = cluster_map.pg_previous[pgs]
        for pool in pools_of(cluster_map):
            part = slice(*np.searchsorted(pgs, (pool.first_pg, pool.pgs.stop)).tolist())
            if not (homeless[part].any() or returning[part].any()):
                continue
            if columns is None or cluster_map.pools:
                columns = placement_columns(cluster_map.topology, pool.rule)
            rows = after[part]
            _bring_home(columns, device_state, rows, previous[part], returning[part])
            is_left = homeless[part] & (rows == before[part])
            _choose_targets(columns, device_state, rows, is_left, pgs[part], attempt_seed)
    # A slot whose device is DOWN waits for it: there is nobody to rebuild on.
    padded_state = np.append(cluster_map.device_state, np.uint8(DeviceState.OUT))
    is_waiting = padded_state[after] == DeviceState.DOWN
    # Of a PG that cannot be read, only what a previous device holds can be put in place.
    is_home = health.returned[pgs] | (returning & (after != before))
    is_task = lost & (after != NO_DEVICE) & ~is_waiting & (~is_unreadable | is_home)
    row_index, slot = np.nonzero(is_task)
    remaining = health.remaining_redundancy[pgs[row_index]]
    order = np.lexsort((slot, pgs[row_index], remaining))
    row_index, slot = row_index[order], slot[order]
    nowhere_row, nowhere_slot = np.nonzero(lost & (after == NO_DEVICE) & ~is_unreadable)
    return RepairPlan(
        epoch=cluster_map.epoch,
        pg=frozen(pgs[row_index]),
        slot=frozen(slot.astype(np.int32)),
        source_device=frozen(before[row_index, slot]),
        target_device=frozen(after[row_index, slot]),
        remaining_redundancy=frozen(remaining[order]),
        blocked=frozen(blocked),
        unplaced=frozen(np.stack([pgs[nowhere_row], nowhere_slot], axis=1).astype(np.int32)),
    )


def apply_plan(cluster_map: ClusterMap, plan: RepairPlan) -> ClusterMap:
    """The map in which the plan's slots have their targets and are REBUILDING.

    A slot that was CLEAN names the device it leaves as its previous one, unless that serves; a slot
    that was REBUILDING keeps the previous one it has, for its target never held all of its chunks.
    PGs whose devices change get the new epoch, which fences writers that still use the old row.
    A plan that moves nothing (all slots already rebuild where they are) returns the same map.

    Raises:
        StalePlan: The map is not the one that was planned for.
    """
    if plan.epoch != cluster_map.epoch or not np.array_equal(
        cluster_map.pg_devices[plan.pg, plan.slot], plan.source_device
    ):
        raise StalePlan(plan.epoch, cluster_map.epoch)
    moves = plan.source_device != plan.target_device
    if not moves.any():
        return cluster_map
    pg, slot = plan.pg[moves], plan.slot[moves]
    rows = cluster_map.pg_devices.copy()
    slot_state = cluster_map.pg_slot_state.copy()
    pg_epoch = cluster_map.pg_epoch.copy()
    previous = cluster_map.pg_previous.copy()
    leaves_clean = slot_state[pg, slot] == SlotState.CLEAN
    left = plan.source_device[moves]
    # Who is left while it serves was left on purpose (balancing, draining): it is not gone back to.
    is_left_serving = np.isin(
        np.append(cluster_map.device_state, np.uint8(DeviceState.OUT))[left], SERVING
    )
    remembered = np.where(is_left_serving, np.int32(NO_DEVICE), left)
    previous[pg, slot] = np.where(leaves_clean, remembered, previous[pg, slot])
    rows[pg, slot] = plan.target_device[moves]
    slot_state[pg, slot] = SlotState.REBUILDING
    pg_epoch[pg] = cluster_map.epoch + 1
    return replace(
        cluster_map,
        epoch=cluster_map.epoch + 1,
        pg_devices=frozen(rows),
        pg_slot_state=frozen(slot_state),
        pg_epoch=frozen(pg_epoch),
        pg_previous=frozen(previous),
    )


def mark_clean(
    cluster_map: ClusterMap,
    pgs: Int32Array | Int64Array | list[int],
    slots: Int32Array | Int64Array | list[int],
) -> ClusterMap:
    """The map in which these slots, whose chunks are all in place, are CLEAN.

    The caller checks that each slot still names the device that was rebuilt. `pg_epoch` stays: the
    row names the same devices, so writes under the older epoch remain good.
    """
    pg, slot = np.asarray(pgs, dtype=np.int64), np.asarray(slots, dtype=np.int64)
    pg_count, n = cluster_map.pg_devices.shape
    for kind, indexes, count in (("PG", pg, pg_count), ("slot", slot, n)):
        strays = indexes[(indexes < 0) | (indexes >= count)]
        if len(strays):
            raise UnknownIndex(kind, int(strays[0]), count)
    slot_state = cluster_map.pg_slot_state.copy()
    slot_state[pg, slot] = SlotState.CLEAN
    if np.array_equal(slot_state, cluster_map.pg_slot_state):
        return cluster_map
    previous = cluster_map.pg_previous.copy()
    previous[pg, slot] = NO_DEVICE
    return replace(
        cluster_map,
        epoch=cluster_map.epoch + 1,
        pg_slot_state=frozen(slot_state),
        pg_previous=frozen(previous),
    )
