"""Which slots of a PG are lost, for codes of which that matters. Kernels of the engine.

Whether a pattern of losses can be decoded, how many more it survives and what a repair reads under
it are the core's answers (`redundancy_kernels`), the same that the cluster goes by. `code` is None
for codes that only count their losses and read any k chunks: numba then leaves all of this out of
the engine, which compiles in half the time.
"""

import numpy as np

from exastore.erasure.jit import njit
from exastore.metadata.core.redundancy_kernels import (
    BoolArray,
    CodeColumns,
    plan_slot_repair,
    remaining_redundancy,
)
from exastore.metadata.core.topology import Float64Array, Int32Array
from exastore.sim.state import INTACT, UNAVAILABLE_PGS, Records, State

#: Value of DeviceState.UP, as a plain integer, which kernels may read.
UP = 1
#: Column of `State.timeline`.
UNAVAILABLE_EPISODES = 14


@njit
def unreadable(model: Records, state: State, pg: int, lost: BoolArray) -> None:
    """Sets which slots of a PG cannot be read. Shape: (n,)."""
    for index in range(len(lost)):
        lost[index] = (
            state.link[(pg << model.shift) | index] != INTACT
            or state.device_state[state.pg_devices[pg, index]] != UP
        )


@njit
def judge_runs(
    code: CodeColumns | None, model: Records, state: State, runs: Int32Array, cells: Float64Array
) -> None:
    """Whether the PGs of these runs are available, of codes that are not counted.

    Called when all that changed at once has changed.
    """
    if code is None:
        return
    if code.sure == code.m:
        return
    lost = np.zeros(state.pg_devices.shape[1], np.bool_)
    for slot in runs:
        pg = slot >> model.shift
        count = int(state.pg_unreadable[pg])
        if count <= code.sure and state.counter[UNAVAILABLE_PGS] == 0:
            continue  # by far the most: without a look at the PG's record, which is not in cache
        before = np.int64(state.pgs[pg].unavailable)
        after = int(count > code.sure)
        if after == 1 and count <= code.m:
            unreadable(model, state, pg, lost)
            after = int(remaining_redundancy(code, lost) < 0)
        if after != before:
            state.pgs[pg].unavailable = after
            state.counter[UNAVAILABLE_PGS] += after - before
            cells[UNAVAILABLE_EPISODES] += max(0, after - before)


@njit
def has_lost_data(
    code: CodeColumns | None, model: Records, state: State, pg: int, missing_count: int
) -> bool:
    """Whether the missing runs of a PG leave its data undecodable."""
    if code is None:
        return missing_count > int(model.m)
    if missing_count <= code.sure:
        return False
    if missing_count > code.m:
        return True
    missing = np.zeros(state.pg_devices.shape[1], np.bool_)
    for index in range(len(missing)):
        missing[index] = state.link[(pg << model.shift) | index] != INTACT
    return remaining_redundancy(code, missing) < 0


@njit
def judge_node(
    code: CodeColumns | None,
    model: Records,
    state: State,
    node: int,
    most: int,
    cells: Float64Array,
) -> None:
    """`judge_runs` of all runs of a node that went or came; `most` are unreadable in a PG of it."""
    if code is None:
        return
    if code.sure == code.m or (most <= code.sure and state.counter[UNAVAILABLE_PGS] == 0):
        return
    for device in range(state.nodes[node].first_device, state.nodes[node].end_device):
        if state.devices[device].dead == 0:
            runs = state.slots[device, : state.devices[device].slot_count]
            judge_runs(code, model, state, runs, cells)


@njit
def remaining(code: CodeColumns | None, model: Records, state: State, pg: int) -> int:
    """The remaining redundancy of a PG."""
    if code is None:
        return int(model.m) - int(state.pg_unreadable[pg])
    if code.sure == code.m:
        return code.m - int(state.pg_unreadable[pg])
    lost = np.zeros(state.pg_devices.shape[1], np.bool_)
    unreadable(model, state, pg, lost)
    return remaining_redundancy(code, lost)


@njit
def planned_rate(code: CodeColumns, model: Records, state: State, device: int, slot: int) -> float:
    """The rate of a rebuild, and its sources, by the plan of the code; 0 if it cannot be."""
    pg, index = slot >> model.shift, slot & ((1 << model.shift) - 1)
    n = state.pg_devices.shape[1]
    lost, reads = np.zeros(n, np.bool_), np.zeros(n, np.bool_)
    unreadable(model, state, pg, lost)
    share = plan_slot_repair(code, index, lost, reads)
    state.devices[device].read_parts = round(share * model.m)
    if share == 0.0:
        return 0.0
    found = 0
    rate = float(model.write_bytes_per_s)
    for i in range(n):
        if reads[i]:
            source = state.pg_devices[pg, i]
            state.sources[device, found] = source
            found += 1
            streams = state.devices[source].streams + 1
            state.devices[source].streams = streams
            rate = min(rate, float(model.read_bytes_per_s) / streams / share)
    return rate
