"""Four-way heaps of events ordered by (time, code): a total order, so replays cannot differ.

There are two. The far one holds what is drawn years ahead, the lives of devices and the next
incidents: a million entries at 100 EiB, of which one is popped per failure. The near one holds what
is under way, rebuilds and returns: some thousands, which stay in the second-level cache, for nearly
all events pass through it. The earlier of the two tops is the next event.
"""

from math import inf

from exastore.erasure.jit import inline_njit, inner_njit
from exastore.metadata.core.topology import Int64Array
from exastore.sim.state import FAR_SIZE, NEAR_SIZE, Records, State
from exastore.sim.streams import wide

#: Bits of an event's code below its kind.
ENTITY_BITS = 40


@inline_njit
def event_code(kind: int, entity: int) -> int:
    """Kind and entity in one integer; kinds order events of the same time."""
    return (kind << ENTITY_BITS) | entity


@inner_njit
def _push(heap: Records, size: int, time: float, code: int) -> None:
    i = size
    while i > 0:
        parent = (i - 1) >> 2
        parent_time = heap[parent].time_s
        if parent_time < time or (parent_time == time and heap[parent].code <= code):
            break
        heap[i].time_s = parent_time
        heap[i].code = heap[parent].code
        i = parent
    heap[i].time_s = time
    heap[i].code = code


@inner_njit
def _pop(heap: Records, size: int) -> None:
    """Takes the top away, so that `size` events are left."""
    time, code = heap[size].time_s, heap[size].code
    i = 0
    while True:
        child = 4 * i + 1
        if child >= size:
            break
        best = child
        for other in range(child + 1, min(child + 4, size)):
            if heap[other].time_s < heap[best].time_s or (
                heap[other].time_s == heap[best].time_s and heap[other].code < heap[best].code
            ):
                best = other
        if time < heap[best].time_s or (time == heap[best].time_s and code <= heap[best].code):
            break
        heap[i].time_s = heap[best].time_s
        heap[i].code = heap[best].code
        i = best
    heap[i].time_s = time
    heap[i].code = code


@inner_njit
def push_near(state: State, time: float, code: int) -> None:
    """Add an event that comes soon; the caller has seen to the room."""
    size = state.counter[NEAR_SIZE]
    state.counter[NEAR_SIZE] = size + 1
    _push(state.near, size, time, code)


@inner_njit
def push_far(state: State, time: float, code: int) -> None:
    """Add an event that is far off; the caller has seen to the room."""
    size = state.counter[FAR_SIZE]
    state.counter[FAR_SIZE] = size + 1
    _push(state.far, size, time, code)


@inner_njit
def _near_is_first(state: State) -> bool:
    if state.counter[NEAR_SIZE] == 0 or state.counter[FAR_SIZE] == 0:
        return bool(state.counter[NEAR_SIZE] > 0)
    near, far = state.near[0], state.far[0]
    return bool(near.time_s < far.time_s or (near.time_s == far.time_s and near.code < far.code))


@inner_njit
def next_time(state: State) -> float:
    """When the next event is; inf if there is none."""
    if state.counter[NEAR_SIZE] == 0 and state.counter[FAR_SIZE] == 0:
        return inf
    return float(state.near[0].time_s if _near_is_first(state) else state.far[0].time_s)


@inner_njit
def pop_event(state: State) -> tuple[float, int]:
    """Take the earliest event away; there must be one."""
    if _near_is_first(state):
        time, code = state.near[0].time_s, state.near[0].code
        size = state.counter[NEAR_SIZE] - 1
        state.counter[NEAR_SIZE] = size
        _pop(state.near, size)
    else:
        time, code = state.far[0].time_s, state.far[0].code
        size = state.counter[FAR_SIZE] - 1
        state.counter[FAR_SIZE] = size
        _pop(state.far, size)
    return time, code


@inner_njit
def _sink(rows: Int64Array, at: int, count: int) -> None:
    """Lets a row of a binary heap sink until none below it is larger."""
    while 2 * at + 1 < count:
        child = 2 * at + 1
        if child + 1 < count and rows[child, 0] < rows[child + 1, 0]:
            child += 1
        if rows[child, 0] <= rows[at, 0]:
            return
        for i in range(rows.shape[1]):
            rows[at, i], rows[child, i] = rows[child, i], rows[at, i]
        at = child


@inner_njit
def sort_rows(rows: Int64Array) -> None:
    """Sorts rows by their first entry, in place. numba takes 2 s to compile NumPy's own sort."""
    count = len(rows)
    for i in range(count):
        _sink(rows, count - 1 - i, count)
    for i in range(1, count):
        last = count - i
        for j in range(rows.shape[1]):
            rows[0, j], rows[last, j] = rows[last, j], rows[0, j]
        _sink(rows, wide(0), last)
