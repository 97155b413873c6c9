"""Moves of chunk runs between devices that serve, and nodes that join and leave. Kernels.

They are called between two events, never from the loop.
"""

from exastore.erasure.jit import njit
from exastore.metadata.core.placement import PlacementColumns, keeps_rule
from exastore.metadata.core.topology import Float64Array, Int32Array, Int64Array
from exastore.sim.accounts import MOVED_BYTES, MOVED_RUNS, UP, bucket_of
from exastore.sim.degraded import find
from exastore.sim.engine import push_failure
from exastore.sim.physics import Physics
from exastore.sim.state import NONE, PLAN_NOW, SLOT_COUNT_MAX, Records, State
from exastore.sim.streams import trial_key, wide

#: Columns of a plan.
PG, SLOT, SOURCE, TARGET = 0, 1, 2, 3


@njit
def _take_out(state: State, device: int, slot: int) -> None:
    """Removes a run from the list of a device; the others keep their order."""
    count = wide(state.devices[device].slot_count) - 1
    at = 0
    while state.slots[device, at] != slot:
        at += 1
    for i in range(at, count):
        state.slots[device, i] = state.slots[device, i + 1]
    state.devices[device].slot_count = count


@njit
def _is_whole(state: State, pg: int) -> bool:
    """Whether every run of the PG can be read where it is."""
    if find(state.degraded, pg) != NONE:
        return False
    for device in state.pg_devices[pg]:
        if state.device_state[device] != UP or state.devices[device].dead != 0:
            return False
    return True


@njit
def carry_out(
    columns: PlacementColumns,
    model: Records,
    state: State,
    plan: Int32Array,
    free_s: Float64Array,
    room: Int64Array,
    last_period: Int32Array,
    period: int,
    earliest_s: float,
    now: float,
    cost_s: float,
    most: int,
) -> int:
    """Carries out the moves of a plan that end in this period; returns how many are left.

    Each device sends one run at a time and takes one at a time. A PG has at most one run in two
    places, so that one period moves at most one of it, and only if all of it can be read. What
    must wait stays in `plan`, in its order; what is no longer so is dropped.

    Args:
        columns: Of the devices that take data now.
        model: The constants.
        state: Changed.
        plan: Shape (M, 4). PG, slot, source and target of each move; what is left comes first.
        free_s: Shape (2, D). When each device ends to send, and to take.
        room: Shape (D,). Most runs that fit.
        last_period: Shape (P,). In which period each PG moved last.
        period: The number of this one, from 1.
        earliest_s: Before this, no move of this period began.
        now: The end of the period.
        cost_s: How long a move takes.
        most: The most moves of a period.
    """
    kept, moved = 0, 0
    row = bucket_of(model, state, now)
    for i in range(len(plan)):
        pg, index = wide(plan[i, PG]), wide(plan[i, SLOT])
        source, target = wide(plan[i, SOURCE]), wide(plan[i, TARGET])
        if state.pg_devices[pg, index] != source or columns.device_weight[target] == 0.0:
            continue
        end_s = max(free_s[0, source], free_s[1, target], earliest_s) + cost_s
        if (
            moved >= most
            or end_s > now
            or last_period[pg] == period
            or state.devices[target].slot_count >= room[target]
            or state.device_state[target] != UP
            or state.devices[target].dead != 0
            or not _is_whole(state, pg)
            or not keeps_rule(columns, state.pg_devices[pg], index, target)
        ):
            plan[kept] = plan[i]
            kept += 1
            continue
        slot = (pg << wide(model.shift)) | index
        _take_out(state, source, slot)
        count = wide(state.devices[target].slot_count)
        state.slots[target, count] = slot
        state.devices[target].slot_count = count + 1
        state.counter[SLOT_COUNT_MAX] = max(state.counter[SLOT_COUNT_MAX], count + 1)
        state.pg_devices[pg, index] = target
        free_s[0, source] = free_s[1, target] = end_s
        last_period[pg] = period
        moved += 1
        state.timeline[row, MOVED_RUNS] += 1
        state.timeline[row, MOVED_BYTES] += model.slot_bytes
    return kept


@njit
def join_node(physics: Physics, model: Records, state: State, node: int, now: float) -> None:
    """A node joins with empty, new devices; the caller saw to the room of their failures."""
    key = trial_key(model.seed, model.trial)
    state.nodes[node].absent = 0
    for device in range(wide(state.nodes[node].first_device), wide(state.nodes[node].end_device)):
        state.devices[device].dead = 0
        state.device_state[device] = UP
        push_failure(physics, model, state, key, device, now, 0.0)
    state.counter[PLAN_NOW] = 1


@njit
def may_leave(state: State, node: int) -> bool:
    """Whether nothing needs the node: all its devices are there, empty, and expect nothing."""
    if state.nodes[node].up_at_s != 0.0:
        return False
    for device in range(wide(state.nodes[node].first_device), wide(state.nodes[node].end_device)):
        its = state.devices[device]
        if its.dead != 0 or its.slot_count > 0 or its.active != NONE:
            return False
        run = wide(its.queue_head)
        while run != NONE:
            if state.runs[run].slot != NONE:
                return False
            run = wide(state.runs[run].next)
    for run in range(len(state.runs)):
        home = state.runs[run].home
        if (
            state.runs[run].slot != NONE
            and home != NONE
            and state.devices[home].node == node
            and state.devices[home].draw == state.runs[run].home_life
        ):
            return False  # it may come home
    return True
