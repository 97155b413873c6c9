"""What is readable, missing and lost, PG by PG, and the integrals over time. Kernels of the engine.

Whether a pattern of losses can be decoded and how many more it survives are the core's answers
(`redundancy_kernels`), the same that the cluster goes by. `code` is None for codes that only count
their losses and read any k chunks: numba then leaves all of that out of the engine, which compiles
in half the time.
"""

from math import log2

import numpy as np

from exastore.erasure.jit import inner_njit
from exastore.metadata.core.redundancy_kernels import BoolArray, CodeColumns, remaining_redundancy
from exastore.metadata.core.topology import Float64Array, Int32Array, Int64Array
from exastore.sim.degraded import drop, find, find_or_add
from exastore.sim.state import (
    CHUNK_RUNS_LOST,
    DEGRADED_PGS,
    HISTOGRAM,
    HISTOGRAM_BINS,
    LOSS_COUNT,
    MISSING_PGS,
    MISSING_SLOTS,
    NONE,
    PG_BITS,
    STUCK_RUNS,
    UNAVAILABLE_PGS,
    UNREADABLE_PGS,
    Records,
    State,
)
from exastore.sim.streams import Uint16Array, wide

#: Value of DeviceState.UP, as a plain integer, which kernels may read.
UP = 1

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
UNAVAILABLE_EPISODES = 14
RUNS_LOST = 15
MOVED_RUNS = 16
MOVED_BYTES = 17
LATENT_ERRORS = 18
STRIPES_LOST = 19
STUCK_S = 20


@inner_njit
def bucket_of(model: Records, state: State, time: float) -> int:
    """The row of the timeline that a time belongs to."""
    return min(int(time / model.bucket_s), int(state.timeline.shape[0]) - 1)


@inner_njit
def advance(model: Records, state: State, now: float) -> None:
    """Adds the time since the last event to the integrals, bucket by bucket."""
    time = state.clock[0]
    last = state.timeline.shape[0] - 1
    bucket = bucket_of(model, state, time)
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
        row[STUCK_S] += state.counter[STUCK_RUNS] * (end - time)
        time = end
        bucket += 1
    state.clock[0] = now


@inner_njit
def _count_up(runs: Int32Array, shift: int, mask: int, touched: Uint16Array) -> tuple[int, int]:
    """Adds the runs to `touched`: how many were first there, and the most now. The hot loop."""
    first, most = 0, 0
    for slot in runs:
        at = (slot >> shift) & mask
        count = int(touched[at]) + 1
        touched[at] = count
        first += count == 1
        most = max(most, count)
    return first, most


@inner_njit
def _count_down(runs: Int32Array, shift: int, mask: int, touched: Uint16Array) -> int:
    """Takes the runs out of `touched`: how many were last there."""
    last = 0
    for slot in runs:
        at = (slot >> shift) & mask
        count = int(touched[at]) - 1
        touched[at] = count
        last += count == 0
    return last


@inner_njit
def hide_runs(model: Records, state: State, runs: Int32Array) -> int:
    """These runs cannot be read from now on; returns a bound of how many in one of their PGs."""
    first, most = _count_up(runs, model.shift, model.touched_mask, state.touched)
    state.counter[UNREADABLE_PGS] += len(runs) if model.is_shared else first
    return most


@inner_njit
def show_runs(model: Records, state: State, runs: Int32Array) -> None:
    """These runs can be read again."""
    last = _count_down(runs, model.shift, model.touched_mask, state.touched)
    state.counter[UNREADABLE_PGS] -= len(runs) if model.is_shared else last


@inner_njit
def unreadable(model: Records, state: State, pg: int, lost: BoolArray) -> int:
    """Sets which slots of a PG cannot be read, and counts them. Shape: (n,)."""
    at = find(state.degraded, pg)
    missing = np.int64(0) if at == NONE else state.degraded[at].missing
    count = 0
    for index in range(len(lost)):
        is_missing = (missing >> index) & 1 == 1
        lost[index] = is_missing or state.device_state[state.pg_devices[pg, index]] != UP
        count += lost[index]
    return count


@inner_njit
def remaining(
    code: CodeColumns | None, model: Records, state: State, pg: int, lost: BoolArray
) -> int:
    """The remaining redundancy of a PG; below 0 if it cannot be read. `lost` is room."""
    count = unreadable(model, state, pg, lost)
    if code is None:
        return int(model.m) - count
    if code.sure == code.m:
        return code.m - count
    return remaining_redundancy(code, lost)


@inner_njit
def sure_losses(code: CodeColumns | None, model: Records) -> int:
    """Losses that are survived whichever they are."""
    return int(model.m) if code is None else code.sure


@inner_njit
def judge_runs(
    code: CodeColumns | None, model: Records, state: State, runs: Int32Array, cells: Float64Array
) -> None:
    """Whether the PGs of these runs are available, and the most unreadable slots of one.

    Called when all that changed at once has changed. By far most PGs are passed over at the sight
    of their counter.
    """
    sure = sure_losses(code, model)
    lost = state.room[0]
    for slot in runs:
        pg = slot >> model.shift
        bound = int(state.touched[pg & model.touched_mask])
        if bound > cells[MAX_UNREADABLE]:
            cells[MAX_UNREADABLE] = max(cells[MAX_UNREADABLE], unreadable(model, state, pg, lost))
        if bound <= sure and state.counter[UNAVAILABLE_PGS] == 0:
            continue
        at = find(state.degraded, pg)
        before = np.int64(0) if at == NONE else np.int64(state.degraded[at].unavailable)
        after = 0
        if bound > sure:
            after = int(remaining(code, model, state, pg, lost) < 0)
        if after == before:
            continue
        state.counter[UNAVAILABLE_PGS] += after - before
        if after == 1:
            cells[UNAVAILABLE_EPISODES] += 1
            state.degraded[find_or_add(state, pg)].unavailable = 1
        elif state.degraded[at].missing == 0:
            drop(state, at)
        else:
            state.degraded[at].unavailable = 0


@inner_njit
def judge_node(
    code: CodeColumns | None,
    model: Records,
    state: State,
    node: int,
    cells: Float64Array,
) -> None:
    """`judge_runs` of all runs of a node that went or came."""
    for device in range(wide(state.nodes[node].first_device), wide(state.nodes[node].end_device)):
        if state.devices[device].dead == 0:
            runs = state.slots[device, : state.devices[device].slot_count]
            judge_runs(code, model, state, runs, cells)


@inner_njit
def _count_loss(state: State, at: int, row: int, now: float) -> None:
    state.degraded[at].lost = 1
    state.timeline[row, PGS_LOST] += 1
    log_loss(state, wide(state.degraded[at].pg), wide(0), now)


@inner_njit
def log_loss(state: State, pg: int, stripes: int, now: float) -> None:
    """Adds a loss to the list: of so many stripes of a PG, or, if 0, of all of it."""
    kept = state.counter[LOSS_COUNT]
    state.counter[LOSS_COUNT] = kept + 1
    if kept < len(state.losses):
        state.losses[kept].time_s = now
        state.losses[kept].code = (stripes << PG_BITS) | pg


@inner_njit
def is_undecodable(code: CodeColumns | None, model: Records, lost: BoolArray, gone: int) -> bool:
    """Whether what is gone for good leaves the data undecodable. `lost` is room."""
    count = 0
    for index in range(len(lost)):
        lost[index] = (gone >> index) & 1 == 1
        count += lost[index]
    if count <= sure_losses(code, model):
        return False
    if code is None:
        return True
    if count > code.m:
        return True
    return remaining_redundancy(code, lost) < 0


@inner_njit
def mark_gone(
    code: CodeColumns | None, model: Records, state: State, slot: int, row: int, now: float
) -> None:
    """The data of a missing run is no longer on any device."""
    at = find(state.degraded, slot >> model.shift)
    gone = state.degraded[at].gone | (np.int64(1) << (slot & ((1 << model.shift) - 1)))
    state.degraded[at].gone = gone
    if state.degraded[at].lost == 0 and is_undecodable(code, model, state.room[0], gone):
        _count_loss(state, at, row, now)


@inner_njit
def lose_run(model: Records, state: State, slot: int, row: int, now: float) -> None:
    """The run is no longer where the map says; it was readable unless its node is away."""
    pg, index = slot >> model.shift, slot & ((1 << model.shift) - 1)
    at = find_or_add(state, pg)
    missing = state.degraded[at].missing
    count = 1
    for i in range(state.pg_devices.shape[1]):
        count += (missing >> i) & 1
    state.degraded[at].missing = missing | (np.int64(1) << index)
    state.counter[MISSING_PGS + count] += 1
    if count == 1:
        state.degraded[at].since_s = now
        state.counter[DEGRADED_PGS] += 1
    else:
        state.counter[MISSING_PGS + count - 1] -= 1
    state.counter[MISSING_SLOTS] += 1
    state.counter[CHUNK_RUNS_LOST] += 1
    state.timeline[row, RUNS_LOST] += 1
    if count > state.timeline[row, MAX_MISSING]:
        state.timeline[row, MAX_MISSING] = count


@inner_njit
def regain_run(model: Records, state: State, slot: int, device: int, now: float) -> None:
    """The run is whole again on a device: rebuilt there, or back on it."""
    count = state.devices[device].slot_count
    state.slots[device, count] = slot
    state.devices[device].slot_count = count + 1
    pg, index = slot >> model.shift, slot & ((1 << model.shift) - 1)
    at = find(state.degraded, pg)
    left = state.degraded[at].missing & ~(np.int64(1) << index)
    state.degraded[at].missing = left
    state.degraded[at].gone &= ~(np.int64(1) << index)
    still = 0
    for i in range(state.pg_devices.shape[1]):
        still += (left >> i) & 1
    state.counter[MISSING_PGS + still + 1] -= 1
    state.counter[MISSING_SLOTS] -= 1
    if still > 0:
        state.counter[MISSING_PGS + still] += 1
        return
    state.counter[DEGRADED_PGS] -= 1
    _count_time(state.counter, now - state.degraded[at].since_s)
    state.degraded[at].lost = 0
    if state.degraded[at].unavailable == 0:
        drop(state, at)


@inner_njit
def _count_time(counter: Int64Array, degraded_s: float) -> None:
    bin_index = 0 if degraded_s < 60.0 else int(2.0 * log2(degraded_s / 60.0))
    counter[HISTOGRAM + min(bin_index, HISTOGRAM_BINS - 1)] += 1
