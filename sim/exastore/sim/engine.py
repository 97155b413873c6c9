"""The event engine: one trial of one cluster, compiled, over columns.

Laws:
1. A trial is a pure function of (model, placement): the same bits on any worker, in any order.
2. Where a chunk goes and what is rebuilt first is decided by `exastore.metadata.core`, by the
   kernels that the cluster runs.
3. `exastore.sim._reference` is the same machine in plain Python; a test holds the two equal,
   event for event.

The model, in the order of a chunk's life. A "chunk run" is all that one PG keeps on one device.

- A device fails for good (law of life) and takes its chunk runs with it. After the detection delay
  the cluster marks it OUT and gives every run a new device; after the replacement delay an empty
  device is in the failed one's place.
- A node goes away and comes back with its data. Its chunks are unreadable meanwhile. At the
  out-timer the cluster gives it up and its runs are rebuilt elsewhere; they count as missing until
  then even if the node returns, for the map already names the new devices. Look-ahead: if the
  node returns before even an undisturbed rebuild could end, nothing is planned, as every rebuild
  would be abandoned; what they would have written is charged as `abandoned_bytes`, and they delay
  no other rebuild. Short outages repair nothing.
- A target rebuilds one run at a time, always the one of its queue that `repair_priority` puts
  first: the PG with the least remaining redundancy. A rebuild reads what the code's plan reads: the
  first k readable chunks of the PG, its group of an LRC, a part of all others of a Clay code. Its
  rate is set when it starts: the least of the target's write budget and each source's read budget,
  divided by the rebuilds that then read from it and by the share of a chunk that it reads. A source
  lost on the way is taken to be replaced by another at the same rate. If what the plan needs cannot
  be read the target tries again after a minute. A target whose node is away finishes when the node
  is back.
- A PG whose missing runs the code cannot decode has lost data: more than m, or fewer in a pattern
  that an LRC does not cover. It counts once, is restored from outside at repair speed, and can be
  lost again once it is whole. A PG whose readable runs do not suffice to decode it is unavailable,
  which is counted apart.

Codes of which any m losses are survived are counted and never looked at slot by slot; of the others
only PGs with more losses than are surely survived are.
"""

from math import inf, log2

import numpy as np

from exastore.erasure.jit import njit
from exastore.metadata.core.placement import PlacementColumns, choose_replacement
from exastore.metadata.core.redundancy_kernels import CodeColumns
from exastore.metadata.core.repair import repair_priority
from exastore.metadata.core.topology import Float64Array, Int32Array, Int64Array, Uint8Array
from exastore.sim.heap import ENTITY_BITS, event_code, heap_pop, heap_push
from exastore.sim.patterns import (
    UNAVAILABLE_EPISODES,
    UP,
    has_lost_data,
    judge_node,
    judge_runs,
    planned_rate,
    remaining,
)
from exastore.sim.state import (
    CHOICES,
    CHUNK_RUNS_LOST,
    CHUNK_RUNS_REBUILT,
    DEGRADED_PGS,
    EVENTS,
    HEAP_SIZE,
    HISTOGRAM,
    HISTOGRAM_BINS,
    INTACT,
    LOG_COUNT,
    LOSS_COUNT,
    MISSING_PGS,
    MISSING_SLOTS,
    NONE,
    PLAN_NOW,
    SLOT_COUNT_MAX,
    STARTED,
    UNAVAILABLE_PGS,
    UNREADABLE_PGS,
    WAITING_HEAD,
    WAITING_TAIL,
    Records,
    State,
)
from exastore.sim.streams import (
    STREAM_DEVICE_LIFE,
    STREAM_NODE_OUTAGE,
    STREAM_NODE_UPTIME,
    STREAM_REPLACEMENT,
    bits64,
    trial_key,
    weibull,
)

# Kinds of events, in the order in which those of the same time happen.
NODE_UP = 0
DEVICE_REPLACED = 1
REBUILT = 2
RETRY = 3
DEVICE_DETECTED = 4
NODE_OUT = 5
DEVICE_FAILED = 6
NODE_DOWN = 7

# Values of DeviceState, as plain integers, which kernels may read.
DOWN = 2
OUT = 3

# Columns of the timeline, in the order of `state.TIMELINE_COLUMNS`.
DEVICE_FAILURES = 0
NODE_OUTAGES = 1
NODE_OUTS = 2
REBUILDS = 3
REBUILT_BYTES = 4
READ_BYTES = 5
ABANDONED_BYTES = 6
DEGRADED_S = 7
UNREADABLE_S = 8
UNAVAILABLE_S = 9
MISSING_S = 10
MAX_MISSING = 11
MAX_UNREADABLE = 12
PGS_LOST = 13
RUNS_LOST = 15

#: What `run_until` returns.
DONE = 0
NEEDS_ROOM = 1


@njit
def _bucket(model: Records, state: State, time: float) -> int:
    return min(int(time / model.bucket_s), int(state.timeline.shape[0]) - 1)


@njit
def _advance(model: Records, state: State, now: float) -> None:
    """Adds the time since the last event to the integrals, bucket by bucket."""
    time = state.clock[0]
    last = state.timeline.shape[0] - 1
    bucket = _bucket(model, state, time)
    missing = state.counter[MISSING_SLOTS]
    if missing > 0:
        for i in range(1, state.pg_devices.shape[1] + 1):
            if state.counter[MISSING_PGS + i] > 0:
                state.missing_s[i] += state.counter[MISSING_PGS + i] * (now - time)
    while time < now:
        end = now
        if bucket < last:
            end = min(now, (bucket + 1) * model.bucket_s)
        row = state.timeline[bucket]
        row[DEGRADED_S] += state.counter[DEGRADED_PGS] * (end - time)
        row[UNREADABLE_S] += state.counter[UNREADABLE_PGS] * (end - time)
        row[UNAVAILABLE_S] += state.counter[UNAVAILABLE_PGS] * (end - time)
        row[MISSING_S] += missing * (end - time)
        time = end
        bucket += 1
    state.clock[0] = now


@njit
def _hide_runs(
    runs: Int32Array,
    shift: int,
    limit: int,
    pg_unreadable: Uint8Array,
    counter: Int64Array,
    cells: Float64Array,
) -> int:
    """These runs cannot be read from now on; returns the most that cannot in one of their PGs.

    The hot loop: few arrays, no records.
    """
    unreadable, unavailable, most = 0, 0, 0
    for slot in runs:
        count = int(pg_unreadable[slot >> shift]) + 1
        pg_unreadable[slot >> shift] = count
        unreadable += count == 1
        unavailable += count == limit + 1
        most = max(most, count)
    counter[UNREADABLE_PGS] += unreadable
    counter[UNAVAILABLE_PGS] += unavailable
    cells[UNAVAILABLE_EPISODES] += unavailable
    cells[MAX_UNREADABLE] = max(cells[MAX_UNREADABLE], most)
    return most


@njit
def _show_runs(
    runs: Int32Array, shift: int, limit: int, pg_unreadable: Uint8Array, counter: Int64Array
) -> None:
    """These runs can be read again."""
    unreadable, unavailable = 0, 0
    for slot in runs:
        count = int(pg_unreadable[slot >> shift])
        pg_unreadable[slot >> shift] = count - 1
        unreadable += count == 1
        unavailable += count == limit + 1
    counter[UNREADABLE_PGS] -= unreadable
    counter[UNAVAILABLE_PGS] -= unavailable


@njit
def _lose_run(
    code: CodeColumns | None, model: Records, state: State, slot: int, row: int, now: float
) -> None:
    """The chunk run is no longer anywhere; it was readable unless its node is away."""
    pg = slot >> model.shift
    state.link[slot] = NONE
    count = np.int64(state.pgs[pg].missing) + 1
    state.pgs[pg].missing = count
    state.counter[MISSING_PGS + count] += 1
    if count == 1:
        state.pgs[pg].since_s = now
        state.counter[DEGRADED_PGS] += 1
    else:
        state.counter[MISSING_PGS + count - 1] -= 1
    state.counter[MISSING_SLOTS] += 1
    state.counter[CHUNK_RUNS_LOST] += 1
    state.timeline[row, RUNS_LOST] += 1
    if count > state.timeline[row, MAX_MISSING]:
        state.timeline[row, MAX_MISSING] = count
    if state.pgs[pg].lost == 0 and has_lost_data(code, model, state, pg, int(count)):
        state.pgs[pg].lost = 1
        state.timeline[row, PGS_LOST] += 1
        kept = state.counter[LOSS_COUNT]
        state.counter[LOSS_COUNT] += 1
        if kept < len(state.losses):
            state.losses[kept].time_s = now
            state.losses[kept].code = pg


@njit
def _regain_run(model: Records, state: State, slot: int, now: float) -> None:
    """The chunk run is whole again on its new device."""
    pg = slot >> model.shift
    state.link[slot] = INTACT
    count = np.int64(state.pgs[pg].missing)
    state.pgs[pg].missing = count - 1
    state.counter[MISSING_PGS + count] -= 1
    state.counter[MISSING_SLOTS] -= 1
    state.counter[CHUNK_RUNS_REBUILT] += 1
    if count > 1:
        state.counter[MISSING_PGS + count - 1] += 1
        return
    state.counter[DEGRADED_PGS] -= 1
    state.pgs[pg].lost = 0
    degraded_s = now - state.pgs[pg].since_s
    bin_index = 0 if degraded_s < 60.0 else int(2.0 * log2(degraded_s / 60.0))
    state.counter[HISTOGRAM + min(bin_index, HISTOGRAM_BINS - 1)] += 1


@njit
def _enqueue(state: State, device: int, slot: int) -> None:
    state.link[slot] = NONE
    tail = state.devices[device].queue_tail
    if tail == NONE:
        state.devices[device].queue_head = slot
    else:
        state.link[tail] = slot
    state.devices[device].queue_tail = slot


@njit
def _take_most_urgent(code: CodeColumns | None, model: Records, state: State, device: int) -> int:
    """Unlinks the run of the queue that repair puts first."""
    best, before_best, before = NONE, NONE, NONE
    best_priority = 0
    mask = (1 << model.shift) - 1
    slot = int(state.devices[device].queue_head)
    while slot != NONE:
        pg = slot >> model.shift
        priority = repair_priority(remaining(code, model, state, pg), pg, slot & mask)
        if best == NONE or priority < best_priority:
            best, before_best, best_priority = slot, before, priority
        before = slot
        slot = int(state.link[slot])
    if best != NONE:
        after = int(state.link[best])
        if before_best == NONE:
            state.devices[device].queue_head = after
        else:
            state.link[before_best] = after
        if state.devices[device].queue_tail == best:
            state.devices[device].queue_tail = before_best
    return best


@njit
def _rebuild_rate(
    code: CodeColumns | None, model: Records, state: State, device: int, slot: int
) -> float:
    """Picks the sources of a rebuild and returns its rate; 0 if too few are readable."""
    pg, mask = slot >> model.shift, (1 << model.shift) - 1
    sources = state.sources[device]
    sources[:] = NONE
    if state.pgs[pg].lost == 1:
        return float(model.write_bytes_per_s)
    if code is not None:
        return planned_rate(code, model, state, device, slot)
    found = 0
    rate = float(model.write_bytes_per_s)
    for i in range(state.pg_devices.shape[1]):
        if found == model.k:
            break
        if i == slot & mask or state.link[(pg << model.shift) | i] != INTACT:
            continue
        source = state.pg_devices[pg, i]
        if state.device_state[source] != UP:
            continue
        sources[found] = source
        found += 1
        rate = min(rate, float(model.read_bytes_per_s) / (state.devices[source].streams + 1))
    if found < model.k:
        sources[:] = NONE
        return 0.0
    for i in range(model.k):
        state.devices[sources[i]].streams += 1
    return rate


@njit
def _release_sources(state: State, device: int) -> int:
    """Ends the reads of the device's rebuild; returns how many sources it had."""
    released = 0
    for i in range(state.sources.shape[1]):
        source = state.sources[device, i]
        if source != NONE:
            state.devices[source].streams -= 1
            state.sources[device, i] = NONE
            released += 1
    return released


@njit
def _start_next(
    code: CodeColumns | None, model: Records, state: State, device: int, now: float
) -> None:
    """Starts the target's next rebuild if it is idle and may work."""
    if (
        state.devices[device].active != NONE
        or state.devices[device].retrying == 1
        or state.devices[device].dead != 0
        or state.device_state[device] != UP
    ):
        return
    slot = _take_most_urgent(code, model, state, device)
    if slot == NONE:
        return
    rate = _rebuild_rate(code, model, state, device, slot)
    if rate == 0.0:
        _enqueue(state, device, slot)
        state.devices[device].retrying = 1
        heap_push(state.heap, state.counter, now + 60.0, event_code(RETRY, device))
        return
    done = now + model.slot_bytes / rate
    state.devices[device].active = slot
    state.devices[device].active_done_s = done
    heap_push(state.heap, state.counter, done, event_code(REBUILT, device))


@njit
def _wait(state: State, slot: int) -> None:
    """Puts a missing run on the list of those that need a device."""
    state.link[slot] = NONE
    tail = state.counter[WAITING_TAIL]
    if tail == NONE:
        state.counter[WAITING_HEAD] = slot
    else:
        state.link[tail] = slot
    state.counter[WAITING_TAIL] = slot


@njit
def _plan_waiting(
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
    while following != NONE:
        slot = following
        following = int(state.link[slot])
        pg, index = slot >> model.shift, slot & ((1 << model.shift) - 1)
        row = state.pg_devices[pg]
        row[index] = NONE
        draw = state.counter[CHOICES]
        state.counter[CHOICES] = draw + 1
        seed = int(bits64(key, STREAM_REPLACEMENT, slot, draw) >> np.uint64(32))
        target = choose_replacement(columns, state.device_state, row, index, pg, seed)
        if target == NONE:
            _wait(state, slot)
            continue
        row[index] = target
        _enqueue(state, target, slot)
        _start_next(code, model, state, target, now)


@njit
def _abort(state: State, device: int) -> None:
    """Puts the run that is being rebuilt back into the queue."""
    slot = state.devices[device].active
    if slot != NONE:
        state.devices[device].active = NONE
        _release_sources(state, device)
        _enqueue(state, device, slot)


@njit
def _evacuate(
    code: CodeColumns | None, model: Records, state: State, device: int, row: int, now: float
) -> None:
    """The device is OUT: all that it held or was to hold needs a new device."""
    for j in range(state.devices[device].slot_count):
        slot = state.slots[device, j]
        if state.link[slot] == INTACT:
            _lose_run(code, model, state, slot, row, now)
        _wait(state, slot)
    state.devices[device].slot_count = 0
    _abort(state, device)
    slot = int(state.devices[device].queue_head)
    state.devices[device].queue_head = NONE
    state.devices[device].queue_tail = NONE
    while slot != NONE:
        following = int(state.link[slot])
        _wait(state, slot)
        slot = following
    state.counter[PLAN_NOW] = 1


@njit
def _push_failure(model: Records, state: State, key: np.uint64, device: int, now: float) -> None:
    """Draws the life of a new device; one that outlives the run is not scheduled."""
    if model.life_scale_s == inf:
        return
    draw = state.devices[device].draw
    state.devices[device].draw = draw + 1
    life = weibull(key, STREAM_DEVICE_LIFE, device, draw, model.life_scale_s, model.life_shape)
    if now + life <= model.horizon_s:
        heap_push(state.heap, state.counter, now + life, event_code(DEVICE_FAILED, device))


@njit
def _push_outage(model: Records, state: State, key: np.uint64, node: int, now: float) -> None:
    if model.uptime_mean_s == inf:
        return
    draw = state.nodes[node].draw
    state.nodes[node].draw = draw + 1
    uptime = weibull(key, STREAM_NODE_UPTIME, node, draw, model.uptime_mean_s, 1.0)
    if now + uptime <= model.horizon_s:
        heap_push(state.heap, state.counter, now + uptime, event_code(NODE_DOWN, node))


@njit
def _device_failed(
    code: CodeColumns | None, model: Records, state: State, device: int, row: int, now: float
) -> None:
    cells = state.timeline[row]
    cells[DEVICE_FAILURES] += 1
    state.devices[device].dead = 1
    runs = state.slots[device, : state.devices[device].slot_count]
    if state.nodes[state.devices[device].node].up_at_s == 0.0:
        _hide_runs(runs, model.shift, model.limit, state.pg_unreadable, state.counter, cells)
    for slot in runs:
        _lose_run(code, model, state, slot, row, now)
    judge_runs(code, model, state, runs, cells)
    _abort(state, device)
    time = now + model.detection_delay_s
    heap_push(state.heap, state.counter, time, event_code(DEVICE_DETECTED, device))


@njit
def _device_detected(
    code: CodeColumns | None, model: Records, state: State, device: int, row: int, now: float
) -> None:
    state.devices[device].dead = 2
    state.device_state[device] = OUT
    _evacuate(code, model, state, device, row, now)
    time = now + model.replacement_delay_s
    heap_push(state.heap, state.counter, time, event_code(DEVICE_REPLACED, device))


@njit
def _device_replaced(model: Records, state: State, key: np.uint64, device: int, now: float) -> None:
    state.devices[device].dead = 0
    _push_failure(model, state, key, device, now)
    if state.nodes[state.devices[device].node].up_at_s > 0.0:
        state.device_state[device] = DOWN
        return
    state.device_state[device] = UP
    state.counter[PLAN_NOW] = 1


@njit
def _node_down(
    code: CodeColumns | None,
    model: Records,
    state: State,
    key: np.uint64,
    node: int,
    row: int,
    now: float,
) -> None:
    cells = state.timeline[row]
    cells[NODE_OUTAGES] += 1
    draw = state.nodes[node].draw - 1
    outage = weibull(key, STREAM_NODE_OUTAGE, node, draw, model.outage_mean_s, 1.0)
    state.nodes[node].up_at_s = now + outage
    most = 0
    for device in range(state.nodes[node].first_device, state.nodes[node].end_device):
        if state.devices[device].dead != 2:
            state.device_state[device] = DOWN
        if state.devices[device].dead == 0:
            runs = state.slots[device, : state.devices[device].slot_count]
            hidden = _hide_runs(
                runs, model.shift, model.limit, state.pg_unreadable, state.counter, cells
            )
            most = max(most, hidden)
    judge_node(code, model, state, node, most, cells)
    heap_push(state.heap, state.counter, now + outage, event_code(NODE_UP, node))
    if outage > model.out_after_s:
        time = now + model.out_after_s
        heap_push(state.heap, state.counter, time, event_code(NODE_OUT, node))


@njit
def _node_out(
    code: CodeColumns | None, model: Records, state: State, node: int, row: int, now: float
) -> None:
    state.timeline[row, NODE_OUTS] += 1
    rate = min(model.write_bytes_per_s, model.read_bytes_per_s)
    if now + model.slot_bytes / rate > state.nodes[node].up_at_s:
        state.nodes[node].let_go = 1
    for device in range(state.nodes[node].first_device, state.nodes[node].end_device):
        if state.devices[device].dead == 0:
            state.device_state[device] = OUT
    if state.nodes[node].let_go == 1:
        return
    for device in range(state.nodes[node].first_device, state.nodes[node].end_device):
        if state.devices[device].dead == 0:
            _evacuate(code, model, state, device, row, now)


@njit
def _node_up(
    code: CodeColumns | None,
    model: Records,
    state: State,
    key: np.uint64,
    node: int,
    row: int,
    now: float,
) -> None:
    state.nodes[node].up_at_s = 0.0
    run_count = 0
    for device in range(state.nodes[node].first_device, state.nodes[node].end_device):
        if state.devices[device].dead != 2:
            state.device_state[device] = UP
        if state.devices[device].dead == 0:
            runs = state.slots[device, : state.devices[device].slot_count]
            _show_runs(runs, model.shift, model.limit, state.pg_unreadable, state.counter)
            run_count += len(runs)
    judge_node(code, model, state, node, 0, state.timeline[row])
    if state.nodes[node].let_go == 1:
        state.nodes[node].let_go = 0
        rate = min(model.write_bytes_per_s, model.read_bytes_per_s)
        draw = state.nodes[node].draw - 1
        outage = weibull(key, STREAM_NODE_OUTAGE, node, draw, model.outage_mean_s, 1.0)
        elapsed_s = outage - model.out_after_s
        state.timeline[row, ABANDONED_BYTES] += run_count * min(rate * elapsed_s, model.slot_bytes)
    _push_outage(model, state, key, node, now)
    for device in range(state.nodes[node].first_device, state.nodes[node].end_device):
        _start_next(code, model, state, device, now)
    state.counter[PLAN_NOW] = 1


@njit
def _rebuilt(
    code: CodeColumns | None, model: Records, state: State, device: int, row: int, now: float
) -> None:
    slot = state.devices[device].active
    if slot == NONE or state.devices[device].active_done_s != now:
        return  # that rebuild was aborted
    if state.device_state[device] != UP:
        time = state.nodes[state.devices[device].node].up_at_s
        state.devices[device].active_done_s = time
        heap_push(state.heap, state.counter, time, event_code(REBUILT, device))
        return
    state.devices[device].active = NONE
    read_bytes = _release_sources(state, device) * model.slot_bytes
    if code is not None:
        read_bytes *= state.devices[device].read_parts / model.m
    state.timeline[row, REBUILDS] += 1
    state.timeline[row, REBUILT_BYTES] += model.slot_bytes
    state.timeline[row, READ_BYTES] += read_bytes
    count = state.devices[device].slot_count
    state.slots[device, count] = slot
    state.devices[device].slot_count = count + 1
    state.counter[SLOT_COUNT_MAX] = max(state.counter[SLOT_COUNT_MAX], count + 1)
    _regain_run(model, state, slot, now)
    rebuilt = state.slots[device, count : count + 1]
    _show_runs(rebuilt, model.shift, model.limit, state.pg_unreadable, state.counter)
    judge_runs(code, model, state, rebuilt, state.timeline[row])
    _start_next(code, model, state, device, now)


@njit
def _log(state: State, now: float, code: int) -> None:
    state.counter[EVENTS] += 1
    logged = state.counter[LOG_COUNT]
    if logged < len(state.log):
        state.log[logged].time_s = now
        state.log[logged].code = code
        state.counter[LOG_COUNT] = logged + 1


@njit
def _has_room(state: State) -> bool:
    """One event adds at most one slot to one device, and two events per device and node."""
    slots_room = state.slots.shape[1]
    if state.counter[SLOT_COUNT_MAX] >= slots_room and slots_room < len(state.pgs):
        return False
    pushes = 2 * len(state.devices) + len(state.nodes) + 8
    return int(state.counter[HEAP_SIZE]) + pushes <= len(state.heap)


@njit
def run_until(
    columns: PlacementColumns,
    code: CodeColumns | None,
    model: Records,
    state: State,
    until_s: float,
) -> int:
    """Run the events up to `until_s`, a time within the horizon.

    Returns:
        DONE, or NEEDS_ROOM: call again with `with_more_room(state)`.
    """
    key = trial_key(model.seed, model.trial)
    counter = state.counter
    if counter[STARTED] == 0:
        if not _has_room(state):
            return NEEDS_ROOM
        counter[STARTED] = 1
        for device in range(len(state.devices)):
            _push_failure(model, state, key, device, 0.0)
        for node in range(len(state.nodes)):
            _push_outage(model, state, key, node, 0.0)
    while counter[HEAP_SIZE] > 0 and state.heap[0].time_s <= until_s:
        if not _has_room(state):
            return NEEDS_ROOM
        now, event = heap_pop(state.heap, counter)
        _advance(model, state, now)
        _log(state, now, event)
        kind, entity = event >> ENTITY_BITS, event & ((1 << ENTITY_BITS) - 1)
        row = _bucket(model, state, now)
        if kind == REBUILT:
            _rebuilt(code, model, state, entity, row, now)
        elif kind == NODE_DOWN:
            _node_down(code, model, state, key, entity, row, now)
        elif kind == NODE_UP:
            _node_up(code, model, state, key, entity, row, now)
        elif kind == NODE_OUT:
            _node_out(code, model, state, entity, row, now)
        elif kind == DEVICE_FAILED:
            _device_failed(code, model, state, entity, row, now)
        elif kind == DEVICE_DETECTED:
            _device_detected(code, model, state, entity, row, now)
        elif kind == DEVICE_REPLACED:
            _device_replaced(model, state, key, entity, now)
        elif kind == RETRY:
            state.devices[entity].retrying = 0
            _start_next(code, model, state, entity, now)
        if counter[PLAN_NOW] == 1 and counter[WAITING_HEAD] != NONE:
            _plan_waiting(columns, code, model, state, key, now)
    _advance(model, state, until_s)
    return DONE
