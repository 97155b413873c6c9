"""Rebuilds: queues of targets, sources, rates, and runs that wait or go home. Kernels.

The rate of a rebuild is set when it starts and kept: the least of what each resource on its way
gives if it is shared equally among the rebuilds that use it then, this one included. Resources are
the target's write budget, each source's read budget, and, where they are limited, both directions
of the links of nodes, racks (their uplinks) and zones that the data crosses. This is a reservation:
a later rebuild gets its own share, and an earlier one keeps what it has, so that a resource can be
promised up to 1 + 1/2 + 1/3 + ... times; `docs/adr/0015-bandwidth.md` compares with exact sharing.
"""

import numpy as np

from exastore.erasure.jit import inner_njit, njit
from exastore.metadata.core.placement import (
    DRAW_PG,
    DRAW_ROWS,
    DRAW_SEED,
    DRAW_SLOT,
    DRAWS_MAX,
    PlacementColumns,
    choose_drawn,
    choose_replacement,
    draw_replacements,
)
from exastore.metadata.core.redundancy_kernels import BoolArray, CodeColumns, plan_slot_repair
from exastore.metadata.core.repair import repair_priority, returns_home
from exastore.sim.accounts import (
    UP,
    judge_runs,
    mark_gone,
    regain_run,
    remaining,
    show_runs,
    unreadable,
)
from exastore.sim.degraded import find
from exastore.sim.heap import event_code, push_near, sort_rows
from exastore.sim.links import count_links, links_rate
from exastore.sim.prefetch import PLANS_AHEAD, prefetch_cell, prefetch_plan
from exastore.sim.state import (
    CHOICES,
    CHUNK_RUNS_REBUILT,
    CHUNK_RUNS_RETURNED,
    FREE_RUN,
    NONE,
    PLAN_NOW,
    PUT_OFF,
    RUN_COUNT,
    STRAYS,
    STUCK_RUNS,
    WAITING_HEAD,
    WAITING_TAIL,
    Records,
    State,
)
from exastore.sim.streams import STREAM_REPLACEMENT, bits64, wide
from exastore.sim.user import call_priority

# Kinds of events, in the order in which those of the same time happen.
NODE_UP = 0
DEVICE_REPLACED = 1
REBUILT = 2
RETRY = 3
DEVICE_DETECTED = 4
NODE_OUT = 5
DEVICE_FAILED = 6
INCIDENT = 7
NODE_DOWN = 8

#: What a rebuild adds to the counts of its links. As arguments they go through `wide`.
BEGINS = 1
ENDS = -1
#: A target of which the next run has too few readable sources tries again after this.
RETRY_S = 60.0
#: So many draws that give full devices, and a run waits.
FULL_DRAWS = 16


@inner_njit
def new_run(state: State, slot: int, home: int, home_life: int) -> int:
    """A record for a missing run; the caller saw to the room."""
    run = state.counter[FREE_RUN]
    state.counter[FREE_RUN] = state.runs[run].next
    state.counter[RUN_COUNT] += 1
    state.runs[run].slot = slot
    state.runs[run].next = NONE
    state.runs[run].target = NONE
    state.runs[run].home = home
    state.runs[run].home_life = home_life
    return int(run)


@inner_njit
def _free_run(state: State, run: int) -> None:
    state.runs[run].slot = NONE
    state.runs[run].home = NONE
    state.runs[run].next = state.counter[FREE_RUN]
    state.counter[FREE_RUN] = run
    state.counter[RUN_COUNT] -= 1


@inner_njit
def _enqueue(state: State, device: int, run: int) -> None:
    state.runs[run].next = NONE
    state.runs[run].target = device
    tail = wide(state.devices[device].queue_tail)
    if tail == NONE:
        state.devices[device].queue_head = run
    else:
        state.runs[tail].next = run
    state.devices[device].queue_tail = run


@inner_njit
def _take_most_urgent(
    code: CodeColumns | None, model: Records, state: State, device: int, lost: BoolArray
) -> int:
    """Unlinks the run of the queue that repair puts first; frees the void ones on the way."""
    best, before_best, before = wide(NONE), wide(NONE), wide(NONE)
    best_priority = 0
    mask = (1 << model.shift) - 1
    run = wide(state.devices[device].queue_head)
    while run != NONE:
        following, slot = wide(state.runs[run].next), wide(state.runs[run].slot)
        if slot == NONE:
            _unlink(state, device, run, before)
            _free_run(state, run)
        else:
            pg = slot >> model.shift
            left = remaining(code, model, state, pg, lost)
            if model.priority_address == 0:
                priority = repair_priority(left, pg, slot & mask)
            else:
                priority = call_priority(model.priority_address, left, pg, slot & mask)
            if best == NONE or priority < best_priority:
                best, before_best, best_priority = run, before, priority
            elif priority == best_priority and slot < state.runs[best].slot:
                best, before_best = run, before
            before = run
        run = following
    if best != NONE:
        _unlink(state, device, best, before_best)
    return int(best)


@inner_njit
def _unlink(state: State, device: int, run: int, before: int) -> None:
    after = state.runs[run].next
    if before == NONE:
        state.devices[device].queue_head = after
    else:
        state.runs[before].next = after
    if state.devices[device].queue_tail == run:
        state.devices[device].queue_tail = before


@inner_njit
def _plan_sources(
    code: CodeColumns | None, model: Records, state: State, run: int, lost: BoolArray
) -> float:
    """Sets the sources of a rebuild; the share of a chunk that each reads, 0 if it cannot be."""
    slot = wide(state.runs[run].slot)
    pg, index = slot >> model.shift, slot & ((1 << model.shift) - 1)
    n = state.pg_devices.shape[1]
    unreadable(model, state, pg, lost)
    sources = state.sources[run]
    found = 0
    if code is None:
        for i in range(n):
            if not lost[i] and found < model.k:
                sources[found] = state.pg_devices[pg, i]
                found += 1
        state.runs[run].read_parts = model.m
        return 1.0 if found == model.k else 0.0
    reads = state.room[1]
    share = plan_slot_repair(code, index, lost, reads)
    state.runs[run].read_parts = round(share * model.m)
    if share > 0.0:
        for i in range(n):
            if reads[i]:
                sources[found] = state.pg_devices[pg, i]
                found += 1
    return float(share)


@inner_njit
def _rebuild_rate(
    code: CodeColumns | None, model: Records, state: State, device: int, run: int, lost: BoolArray
) -> float:
    """Picks the sources of a rebuild and returns its rate; 0 if too few are readable."""
    sources = state.sources[run]
    sources[:] = NONE
    rate = float(model.write_bytes_per_s)
    at = find(state.degraded, wide(state.runs[run].slot) >> model.shift)
    if state.degraded[at].lost == 1:
        return rate
    share = _plan_sources(code, model, state, run, lost)
    if share == 0.0:
        sources[:] = NONE
        return 0.0
    count = wide(0)
    for source in sources:
        if source == NONE:
            break
        count += 1
        streams = int(state.streams[source]) + 1
        state.streams[source] = streams
        rate = min(rate, float(model.read_bytes_per_s) / streams / share)
    if model.has_links:
        count_links(model, state, run, device, wide(BEGINS))
        rate = min(rate, float(links_rate(model, state, run, device, share, count)))
    return rate


@inner_njit
def release_sources(model: Records, state: State, device: int, run: int) -> int:
    """Ends the reads of a rebuild; returns how many sources it had."""
    if model.has_links:
        count_links(model, state, run, device, wide(ENDS))
    released = 0
    for i in range(state.sources.shape[1]):
        source = state.sources[run, i]
        if source == NONE:
            break
        state.streams[source] -= 1
        state.sources[run, i] = NONE
        released += 1
    return released


@inner_njit
def start_next(
    code: CodeColumns | None, model: Records, state: State, device: int, now: float
) -> None:
    """Starts the target's next rebuild if it is idle and may work."""
    if (
        state.devices[device].queue_head == NONE
        or state.devices[device].active != NONE
        or state.devices[device].retrying == 1
        or state.devices[device].dead != 0
        or state.device_state[device] != UP
    ):
        return
    lost = state.room[0]
    run = _take_most_urgent(code, model, state, device, lost)
    if run == NONE:
        return
    rate = _rebuild_rate(code, model, state, device, run, lost)
    if rate == 0.0:
        _enqueue(state, device, run)
        state.devices[device].retrying = 1
        push_near(state, now + RETRY_S, event_code(RETRY, device))
        return
    done = now + model.slot_bytes / rate
    state.devices[device].active = run
    state.devices[device].active_done_s = done
    push_near(state, done, event_code(REBUILT, device))


@inner_njit
def finish(
    code: CodeColumns | None, model: Records, state: State, device: int, row: int, now: float
) -> int:
    """The run in work is whole on its target; returns how many sources it read."""
    run = wide(state.devices[device].active)
    state.devices[device].active = NONE
    source_count = release_sources(model, state, device, run)
    slot = wide(state.runs[run].slot)
    _free_run(state, run)
    at = state.devices[device].slot_count
    regain_run(model, state, slot, device, now)
    state.counter[CHUNK_RUNS_REBUILT] += 1
    rebuilt = state.slots[device, at : at + 1]
    show_runs(model, state, rebuilt)
    judge_runs(code, model, state, rebuilt, state.timeline[row])
    return source_count


@inner_njit
def wait(state: State, run: int) -> None:
    """Puts a missing run on the list of those that need a device."""
    state.runs[run].next = NONE
    state.runs[run].target = NONE
    tail = state.counter[WAITING_TAIL]
    if tail == NONE:
        state.counter[WAITING_HEAD] = run
    else:
        state.runs[tail].next = run
    state.counter[WAITING_TAIL] = run


@inner_njit
def _is_full(model: Records, state: State, device: int) -> bool:
    """Whether one more run, beside those held and on their way, is more than the device takes."""
    count = state.devices[device].slot_count + 1
    if state.devices[device].active != NONE:
        count += 1
    run = wide(state.devices[device].queue_head)
    while run != NONE:
        count += state.runs[run].slot != NONE
        run = wide(state.runs[run].next)
    return bool(count * model.slot_bytes > model.fill_limit_bytes)


@njit
def _one_with_room(
    columns: PlacementColumns,
    model: Records,
    state: State,
    key: np.uint64,
    slot: int,
    seed: int,
    target: int,
) -> int:
    """The target that was drawn with this seed or, if it is full, another one; NONE if none is."""
    pg, index = slot >> model.shift, slot & ((1 << model.shift) - 1)
    for again in range(1, FULL_DRAWS + 1):
        if target == NONE or not _is_full(model, state, target):
            return target
        address = (again << 32) | seed
        other = int(bits64(key, wide(STREAM_REPLACEMENT), slot, address) >> np.uint64(32))
        row = state.pg_devices[pg]
        target = wide(choose_replacement(columns, state.device_state, row, index, pg, other))
    return int(NONE)


@inner_njit
def plan_waiting(
    columns: PlacementColumns,
    code: CodeColumns | None,
    model: Records,
    state: State,
    key: np.uint64,
    now: float,
) -> None:
    """Gives every waiting run a device, chosen by placement; those that find none wait on."""
    following = int(state.counter[WAITING_HEAD])
    state.counter[WAITING_HEAD] = NONE
    state.counter[WAITING_TAIL] = NONE
    state.counter[PLAN_NOW] = 0
    state.counter[STUCK_RUNS] = 0
    draws = state.draws
    while following != NONE:
        count = 0
        while following != NONE and count < DRAWS_MAX:
            run = following
            following = wide(state.runs[run].next)
            slot = wide(state.runs[run].slot)
            if slot == NONE:
                _free_run(state, run)
                continue
            draw = state.counter[CHOICES]
            state.counter[CHOICES] = draw + 1
            seed = bits64(key, wide(STREAM_REPLACEMENT), slot, draw) >> np.uint64(32)
            pg = slot >> model.shift
            prefetch_cell(state.pg_devices, pg, 0)
            prefetch_cell(state.pg_devices, pg, state.pg_devices.shape[1] - 1)
            draws[DRAW_PG, count] = pg
            draws[DRAW_SLOT, count] = slot & ((1 << model.shift) - 1)
            draws[DRAW_SEED, count] = np.uint32(seed)
            draws[DRAW_ROWS, count] = run
            count += 1
        draw_replacements(columns, count, draws)
        for at in range(count):
            if at + PLANS_AHEAD < count:
                prefetch_plan(columns, state, at + PLANS_AHEAD)
            run, index = wide(draws[DRAW_ROWS, at]), wide(draws[DRAW_SLOT, at])
            row = state.pg_devices[draws[DRAW_PG, at]]
            row[index] = NONE
            target = wide(choose_drawn(columns, state.device_state, row, draws, at))
            if model.fill_limit_bytes != np.inf:
                slot, seed = wide(state.runs[run].slot), wide(draws[DRAW_SEED, at]) & 0xFFFFFFFF
                target = _one_with_room(columns, model, state, key, slot, seed, target)
            if target == NONE:
                wait(state, run)
                state.counter[STUCK_RUNS] += 1
                continue
            row[index] = target
            _enqueue(state, target, run)
            start_next(code, model, state, target, now)


@inner_njit
def abort(model: Records, state: State, device: int) -> None:
    """Puts the run that is being rebuilt back into the queue."""
    run = wide(state.devices[device].active)
    if run != NONE:
        state.devices[device].active = NONE
        release_sources(model, state, device, run)
        _enqueue(state, device, run)


@inner_njit
def send_on(model: Records, state: State, device: int) -> None:
    """What was to be rebuilt on the device needs another one."""
    abort(model, state, device)
    run = wide(state.devices[device].queue_head)
    state.devices[device].queue_head = NONE
    state.devices[device].queue_tail = NONE
    while run != NONE:
        following = wide(state.runs[run].next)
        wait(state, run)
        run = following


@inner_njit
def _is_at_home(state: State, run: int, node: int) -> bool:
    """Whether the run was given up with this node and its old copy is still there."""
    home = state.runs[run].home
    if state.runs[run].slot == NONE or home == NONE or state.devices[home].node != node:
        return False
    return bool(
        state.devices[home].dead == 0 and state.devices[home].draw == state.runs[run].home_life
    )


@inner_njit
def _unlink_put_off(model: Records, state: State, run: int) -> None:
    """A run that was put off is back: it leaves the list of its PG."""
    at = find(state.degraded, wide(state.runs[run].slot) >> model.shift)
    here = wide(state.degraded[at].put_off)
    if here == run:
        state.degraded[at].put_off = state.runs[run].next
        return
    while state.runs[here].next != run:
        here = wide(state.runs[here].next)
    state.runs[here].next = state.runs[run].next


@njit
def come_home(
    columns: PlacementColumns,
    code: CodeColumns | None,
    model: Records,
    state: State,
    node: int,
    row: int,
    now: float,
) -> None:
    """A node that had been given up is back: its runs that were not rebuilt yet are whole there.

    `returns_home` decides, as in the cluster, run by run in the order of their slots. What was
    under way elsewhere stops.
    """
    count = 0
    for run in range(len(state.runs)):
        count += _is_at_home(state, run, node)
    order = np.empty((count, 2), np.int64)
    count = 0
    for run in range(len(state.runs)):
        if _is_at_home(state, run, node):
            order[count, 0], order[count, 1] = state.runs[run].slot, run
            count += 1
    sort_rows(order)
    targets = np.full(count, NONE, np.int32)
    for i in range(count):
        slot, run = order[i, 0], order[i, 1]
        home, target = wide(state.runs[run].home), wide(state.runs[run].target)
        pg, index = slot >> model.shift, slot & ((1 << model.shift) - 1)
        pg_row = state.pg_devices[pg]
        if not returns_home(columns, state.device_state, pg_row, index, home):
            state.counter[STRAYS] = 1
            continue
        pg_row[index] = home
        if target != PUT_OFF:
            targets[i] = target
        if target == PUT_OFF:
            _unlink_put_off(model, state, run)
            _free_run(state, run)
        elif target != NONE and state.devices[target].active == run:
            state.devices[target].active = NONE
            release_sources(model, state, target, run)
            _free_run(state, run)
        else:
            state.runs[run].slot = NONE  # its list drops it
        at = state.devices[home].slot_count
        regain_run(model, state, slot, home, now)
        state.counter[CHUNK_RUNS_RETURNED] += 1
        back = state.slots[home, at : at + 1]
        show_runs(model, state, back)
        judge_runs(code, model, state, back, state.timeline[row])
    for target in targets:
        if target != NONE:
            start_next(code, model, state, wide(target), now)


@inner_njit
def lose_homes(
    code: CodeColumns | None, model: Records, state: State, device: int, row: int, now: float
) -> None:
    """A device died on a node that had been given up: its old copies are gone, in no order."""
    for run in range(len(state.runs)):
        if (
            state.runs[run].slot != NONE
            and state.runs[run].home == device
            and state.runs[run].home_life == state.devices[device].draw
        ):
            state.runs[run].home = NONE
            mark_gone(code, model, state, wide(state.runs[run].slot), row, now)
