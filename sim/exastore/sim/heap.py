"""A four-way heap of events ordered by (time, code): a total order, so replays cannot differ."""

from exastore.erasure.jit import njit
from exastore.metadata.core.topology import Int64Array
from exastore.sim.state import HEAP_SIZE, Records

#: Bits of an event's code below its kind.
ENTITY_BITS = 40


@njit
def event_code(kind: int, entity: int) -> int:
    """Kind and entity in one integer; kinds order events of the same time."""
    return (kind << ENTITY_BITS) | entity


@njit
def heap_push(heap: Records, counter: Int64Array, time: float, code: int) -> None:
    """Add an event; the caller has seen to the room."""
    i = counter[HEAP_SIZE]
    counter[HEAP_SIZE] = i + 1
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


@njit
def heap_pop(heap: Records, counter: Int64Array) -> tuple[float, int]:
    """Take the earliest event away."""
    first_time, first_code = heap[0].time_s, heap[0].code
    size = counter[HEAP_SIZE] - 1
    counter[HEAP_SIZE] = size
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
    return first_time, first_code
