"""The event engine: one trial of one cluster, compiled, over columns.

Laws:
1. A trial is a pure function of (model, physics, placement): the same bits on any worker, in any
   order, and after a stop and a restart at any event.
2. Where a chunk goes, what is rebuilt first and what goes home is decided by
   `exastore.metadata.core`, by the kernels that the cluster runs.
3. `exastore.sim._reference` is the same machine in plain Python; a test holds the two equal,
   event for event.

The model, in the order of a chunk's life. A "chunk run" is all that one PG keeps on one device.

- A device fails for good (law of life) and takes its chunk runs with it. After the detection delay
  the cluster marks it OUT and gives every run a new device; after the replacement delay an empty
  device of the same model is in the failed one's place.
- An incident takes nodes away (`physics`). Their chunks are unreadable meanwhile. A node that
  stays away gets to the out-timer, unless the incident is one that the cluster waits out: then the
  cluster gives it up, and its runs are rebuilt elsewhere and count as missing. Look-ahead: if the
  node returns before even an undisturbed rebuild could end, nothing is planned, as every rebuild
  would be abandoned; what they would have written is charged as `abandoned_bytes`, and they delay
  no other rebuild. A node that returns later gets back what was not rebuilt yet, as `returns_home`
  decides, and the rebuilds of it stop (`docs/adr/0007-returning-devices.md`). Short outages repair
  nothing.
- A node that an incident kills loses its devices at once; they are replaced like any others, and
  the node is back when the outage ends.
- A target rebuilds one run at a time, always the one of its queue that `repair_priority` puts
  first: the PG with the least remaining redundancy. A rebuild reads what the code's plan reads: the
  first k readable chunks of the PG, its group of an LRC, a part of all others of a Clay code. See
  `rebuild` for its rate. A source lost on the way is taken to be replaced by another at the same
  rate. If what the plan needs cannot be read the target tries again after a minute. A target whose
  node is away finishes when the node is back. Latent errors that it meets are repaired too, or
  cost a stripe if nothing else holds its data (`latent`).
- A PG of which so much is gone for good that the code cannot decode has lost data: more than m, or
  fewer in a pattern that an LRC does not cover. It counts once, is restored from outside at repair
  speed, and can be lost again once it is whole. A PG whose readable runs do not suffice to decode
  it is unavailable, which is counted apart.
"""

import numpy as np

from exastore.erasure.jit import inner_njit, njit
from exastore.metadata.core.placement import PlacementColumns
from exastore.metadata.core.redundancy_kernels import CodeColumns
from exastore.sim.accounts import (
    ABANDONED_BYTES,
    DEVICE_FAILURES,
    MAX_UNREADABLE,
    NODE_OUTAGES,
    NODE_OUTS,
    READ_BYTES,
    REBUILDS,
    REBUILT_BYTES,
    UP,
    advance,
    bucket_of,
    hide_runs,
    judge_node,
    judge_runs,
    lose_run,
    mark_gone,
    show_runs,
    sure_losses,
)
from exastore.sim.heap import (
    ENTITY_BITS,
    event_code,
    next_time,
    pop_event,
    push_far,
    push_near,
)
from exastore.sim.incidents import befall, push_incident
from exastore.sim.latent import meet_errors, onset_s
from exastore.sim.limits import spare_at_s, wait_or_put_off
from exastore.sim.physics import DOMAIN_BITS, Physics, age_at_start_s, life_s
from exastore.sim.prefetch import prefetch, prefetch_list, prefetch_rebuilt
from exastore.sim.rebuild import (
    DEVICE_DETECTED,
    DEVICE_FAILED,
    DEVICE_REPLACED,
    INCIDENT,
    NODE_DOWN,
    NODE_OUT,
    NODE_UP,
    REBUILT,
    RETRY,
    abort,
    come_home,
    finish,
    lose_homes,
    new_run,
    plan_waiting,
    send_on,
    start_next,
)
from exastore.sim.state import (
    DEGRADED_ENTRIES,
    EVENTS,
    FAR_SIZE,
    LOG_COUNT,
    NEAR_SIZE,
    NONE,
    PLAN_NOW,
    RUN_COUNT,
    SLOT_COUNT_MAX,
    STARTED,
    STRAYS,
    UNAVAILABLE_PGS,
    WAITING_HEAD,
    Records,
    State,
)
from exastore.sim.streams import trial_key, wide

# Values of DeviceState, as plain integers, which kernels may read.
DOWN = 2
OUT = 3

#: What `run_until` returns.
DONE = 0
NEEDS_ROOM = 1
PAUSED = 2
#: For `run_until`: no limit of events.
NO_LIMIT = 2**62


@inner_njit
def _evacuate(
    code: CodeColumns | None, model: Records, state: State, device: int, row: int, now: float
) -> None:
    """The device is OUT: all that it held or was to hold needs a new device."""
    is_gone = state.devices[device].dead != 0
    home = NONE if is_gone else device
    for j in range(state.devices[device].slot_count):
        slot = state.slots[device, j]
        if not is_gone:
            lose_run(model, state, slot, row, now)
        run = new_run(state, slot, home, state.devices[device].draw)
        wait_or_put_off(code, model, state, run)
    state.devices[device].slot_count = 0
    send_on(model, state, device)
    state.counter[PLAN_NOW] = 1


@inner_njit
def push_failure(
    physics: Physics,
    model: Records,
    state: State,
    key: np.uint64,
    device: int,
    now: float,
    age: float,
) -> None:
    """Draws the life of a device; one that outlives the run is not scheduled."""
    draw = int(state.devices[device].draw)
    state.devices[device].draw = draw + 1
    time = now + life_s(physics, key, state.devices[device].law, device, draw, age)
    state.devices[device].fails_at_s = time
    if model.has_latent == 1:
        state.devices[device].latent_from_s = onset_s(model, key, device, draw, now - age)
    if time <= model.horizon_s:
        push_far(state, time, event_code(DEVICE_FAILED, device))


@inner_njit
def _kill_device(
    code: CodeColumns | None, model: Records, state: State, device: int, row: int, now: float
) -> None:
    """The device's data is gone; the cluster does not know it yet."""
    cells = state.timeline[row]
    cells[DEVICE_FAILURES] += 1
    node = state.devices[device].node
    state.devices[device].dead = 1
    runs = state.slots[device, : state.devices[device].slot_count]
    if state.nodes[node].up_at_s == 0.0:
        most = hide_runs(model, state, runs)
        for slot in runs:
            lose_run(model, state, slot, row, now)
        if most > 0:
            judge_runs(code, model, state, runs, cells)
    else:
        for slot in runs:
            lose_run(model, state, slot, row, now)
    for slot in runs:
        mark_gone(code, model, state, wide(slot), row, now)
    if state.nodes[node].out == 2 or state.counter[STRAYS] == 1:
        lose_homes(code, model, state, device, row, now)
    abort(model, state, device)
    time = now + model.detection_delay_s
    push_near(state, time, event_code(DEVICE_DETECTED, device))


@inner_njit
def _device_detected(
    code: CodeColumns | None, model: Records, state: State, device: int, row: int, now: float
) -> None:
    _evacuate(code, model, state, device, row, now)
    state.devices[device].dead = 2
    state.device_state[device] = OUT
    time = spare_at_s(model, state, device, now) + model.replacement_delay_s
    push_near(state, time, event_code(DEVICE_REPLACED, device))


@inner_njit
def _device_replaced(
    physics: Physics, model: Records, state: State, key: np.uint64, device: int, now: float
) -> None:
    state.devices[device].dead = 0
    push_failure(physics, model, state, key, device, now, 0.0)
    if state.nodes[state.devices[device].node].up_at_s > 0.0:
        state.device_state[device] = DOWN
        return
    state.device_state[device] = UP
    state.counter[PLAN_NOW] = 1


@inner_njit
def _node_down(
    code: CodeColumns | None, model: Records, state: State, node: int, row: int, now: float
) -> None:
    """What incidents of this moment do to a node."""
    cells = state.timeline[row]
    cells[NODE_OUTAGES] += 1
    up_s, before_s = state.nodes[node].pending_up_s, state.nodes[node].up_at_s
    state.nodes[node].pending_up_s = 0.0
    first, end = wide(state.nodes[node].first_device), wide(state.nodes[node].end_device)
    if before_s == 0.0:
        state.nodes[node].down_at_s = now
        state.nodes[node].up_at_s = up_s
        state.nodes[node].gives_up = 0
        most = 0
        for device in range(first, end):
            if state.devices[device].dead != 2:
                state.device_state[device] = DOWN
            if device + 1 < end:
                prefetch_list(state, device + 1)
            if state.devices[device].dead == 0:
                runs = state.slots[device, : state.devices[device].slot_count]
                most = max(most, hide_runs(model, state, runs))
        if (
            most > sure_losses(code, model)
            or most > cells[MAX_UNREADABLE]
            or state.counter[UNAVAILABLE_PGS] > 0
        ):
            judge_node(code, model, state, node, cells)
    if state.nodes[node].pending_gives_up == 1:
        state.nodes[node].gives_up = 1
    state.nodes[node].pending_gives_up = 0
    if up_s > before_s:
        state.nodes[node].up_at_s = up_s
        push_near(state, up_s, event_code(NODE_UP, node))
    out_s = state.nodes[node].down_at_s + model.out_after_s
    if state.nodes[node].gives_up == 1 and state.nodes[node].out != 2:
        if state.nodes[node].up_at_s > out_s:
            push_near(state, max(now, out_s), event_code(NODE_OUT, node))
    if state.nodes[node].pending_dies == 1:
        for device in range(first, end):
            if state.devices[device].dead == 0:
                _kill_device(code, model, state, device, row, now)
    state.nodes[node].pending_dies = 0


@inner_njit
def _node_out(
    code: CodeColumns | None, model: Records, state: State, node: int, row: int, now: float
) -> None:
    out_s = state.nodes[node].down_at_s + model.out_after_s
    up_s, out = state.nodes[node].up_at_s, state.nodes[node].out
    if up_s == 0.0 or out == 2 or now < out_s:
        return  # of an outage that is over
    first, end = wide(state.nodes[node].first_device), wide(state.nodes[node].end_device)
    if out == 0:
        state.timeline[row, NODE_OUTS] += 1
        for device in range(first, end):
            if state.devices[device].dead == 0:
                state.device_state[device] = OUT
    rate = min(model.write_bytes_per_s, model.read_bytes_per_s)
    state.nodes[node].out = 1
    if now + model.slot_bytes / rate > up_s:
        return
    state.nodes[node].out = 2
    for device in range(first, end):
        if state.devices[device].dead == 0:
            _evacuate(code, model, state, device, row, now)


@inner_njit
def _node_up(
    columns: PlacementColumns,
    code: CodeColumns | None,
    model: Records,
    state: State,
    node: int,
    row: int,
    now: float,
) -> None:
    if state.nodes[node].up_at_s != now:
        return  # it stays away for longer
    out = state.nodes[node].out
    state.nodes[node].up_at_s = 0.0
    state.nodes[node].out = 0
    run_count = 0
    first, end = wide(state.nodes[node].first_device), wide(state.nodes[node].end_device)
    for device in range(first, end):
        if state.devices[device].dead != 2:
            state.device_state[device] = UP
        if device + 1 < end:
            prefetch_list(state, device + 1)
        if state.devices[device].dead == 0:
            runs = state.slots[device, : state.devices[device].slot_count]
            show_runs(model, state, runs)
            run_count += len(runs)
    if state.counter[UNAVAILABLE_PGS] > 0:
        judge_node(code, model, state, node, state.timeline[row])
    if out == 1:
        rate = min(model.write_bytes_per_s, model.read_bytes_per_s)
        elapsed_s = now - (state.nodes[node].down_at_s + model.out_after_s)
        state.timeline[row, ABANDONED_BYTES] += run_count * min(rate * elapsed_s, model.slot_bytes)
    if out == 2:
        come_home(columns, code, model, state, node, row, now)
    for device in range(first, end):
        start_next(code, model, state, device, now)
    state.counter[PLAN_NOW] = 1


@inner_njit
def _rebuilt(
    code: CodeColumns | None,
    model: Records,
    state: State,
    key: np.uint64,
    device: int,
    row: int,
    now: float,
) -> None:
    run = wide(state.devices[device].active)
    if run == NONE or state.devices[device].active_done_s != now:
        return  # that rebuild was aborted
    if state.device_state[device] != UP:
        time = state.nodes[state.devices[device].node].up_at_s
        state.devices[device].active_done_s = time
        push_near(state, time, event_code(REBUILT, device))
        return
    if model.has_latent == 1:
        meet_errors(code, model, state, key, device, row, now)
    share = state.runs[run].read_parts / model.m
    read_bytes = finish(code, model, state, device, row, now) * model.slot_bytes * share
    state.timeline[row, REBUILDS] += 1
    state.timeline[row, REBUILT_BYTES] += model.slot_bytes
    state.timeline[row, READ_BYTES] += read_bytes
    count = np.int64(state.devices[device].slot_count)
    state.counter[SLOT_COUNT_MAX] = max(state.counter[SLOT_COUNT_MAX], count)
    start_next(code, model, state, device, now)


@inner_njit
def _log(state: State, now: float, code: int) -> None:
    state.counter[EVENTS] += 1
    logged = state.counter[LOG_COUNT]
    if logged < len(state.log):
        state.log[logged].time_s = now
        state.log[logged].code = code
        state.counter[LOG_COUNT] = logged + 1


@inner_njit
def _prefetch_next(state: State) -> None:
    """Asks for the memory of the next event, and of those of which one comes after it."""
    size = state.counter[NEAR_SIZE]
    if size > 0 and state.near[0].code >> ENTITY_BITS == REBUILT:
        prefetch_rebuilt(state, state.near[0].code & ((1 << ENTITY_BITS) - 1))
    for child in range(1, min(size, 5)):
        device = state.near[child].code & ((1 << ENTITY_BITS) - 1)
        if state.near[child].code >> ENTITY_BITS == REBUILT:
            prefetch(state.devices, device)
            prefetch(state.device_state, device)


@njit
def lacks_room(model: Records, state: State) -> int:
    """Which column is too short for any next event: 1 slots, 2 near, 3 far, 4 degraded, 5 runs.

    An event touches one node: all its devices and their runs, and it starts as many rebuilds as
    there are runs on their way. An incident hits some nodes, which is known.
    """
    counter = state.counter
    if counter[SLOT_COUNT_MAX] >= state.slots.shape[1]:
        return 1
    devices = wide(state.nodes[0].end_device)
    runs = devices * counter[SLOT_COUNT_MAX] + devices
    if counter[NEAR_SIZE] + counter[RUN_COUNT] + runs + model.hit_max + 64 > len(state.near):
        return 2
    if counter[FAR_SIZE] + 64 > len(state.far):
        return 3
    if 2 * (counter[DEGRADED_ENTRIES] + runs) > len(state.degraded):
        return 4
    return 5 if counter[RUN_COUNT] + runs > len(state.runs) else 0


@inner_njit
def _start(physics: Physics, model: Records, state: State, key: np.uint64) -> None:
    for device in range(len(state.devices)):
        if state.nodes[state.devices[device].node].absent == 1:
            continue
        age = age_at_start_s(physics, key, state.devices[device].law, device)
        push_failure(physics, model, state, key, device, 0.0, age)
    for i in range(len(physics.traced)):
        time = physics.traced[i].time_s
        if time <= model.horizon_s:
            push_far(state, time, event_code(DEVICE_FAILED, physics.traced[i].device))
    for incident in range(len(physics.incidents)):
        for domain in range(physics.incidents[incident].domain_count):
            push_incident(physics, model, state, key, (incident << DOMAIN_BITS) | domain, 0.0)


@njit
def run_until(
    columns: PlacementColumns,
    code: CodeColumns | None,
    physics: Physics,
    model: Records,
    state: State,
    until_s: float,
    event_limit: int,
) -> int:
    """Run the events up to `until_s`, a time within the horizon, and at most `event_limit`.

    Returns:
        DONE; PAUSED at the limit; or NEEDS_ROOM: call again with `with_more_room(model, state)`.
    """
    key = trial_key(model.seed, model.trial)
    counter = state.counter
    if counter[STARTED] == 0:
        counter[STARTED] = 1
        _start(physics, model, state, key)
    stop = counter[EVENTS] + event_limit
    while next_time(state) <= until_s:
        if counter[EVENTS] >= stop:
            return PAUSED
        if lacks_room(model, state):
            return NEEDS_ROOM
        now, event = pop_event(state)
        _prefetch_next(state)
        advance(model, state, now)
        _log(state, now, event)
        kind, entity = event >> ENTITY_BITS, event & ((1 << ENTITY_BITS) - 1)
        row = bucket_of(model, state, now)
        if kind == REBUILT:
            _rebuilt(code, model, state, key, entity, row, now)
        elif kind == INCIDENT:
            befall(physics, model, state, key, entity, now)
        elif kind == NODE_DOWN:
            _node_down(code, model, state, entity, row, now)
        elif kind == NODE_UP:
            _node_up(columns, code, model, state, entity, row, now)
        elif kind == NODE_OUT:
            _node_out(code, model, state, entity, row, now)
        elif kind == DEVICE_FAILED:
            device = state.devices[entity]
            if device.dead == 0 and (model.is_trace == 1 or device.fails_at_s == now):
                _kill_device(code, model, state, entity, row, now)
        elif kind == DEVICE_DETECTED:
            _device_detected(code, model, state, entity, row, now)
        elif kind == DEVICE_REPLACED:
            _device_replaced(physics, model, state, key, entity, now)
        elif kind == RETRY:
            state.devices[entity].retrying = 0
            start_next(code, model, state, entity, now)
        if counter[PLAN_NOW] == 1 and counter[WAITING_HEAD] != NONE:
            plan_waiting(columns, code, model, state, key, now)
    advance(model, state, until_s)
    return DONE
