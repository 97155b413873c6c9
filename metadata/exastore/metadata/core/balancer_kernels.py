"""The kernels of the balancer: greedy moves over an inverse index from devices to their slots.

Theory of operation. `Fill` holds a working copy of the PG table, and for each device the list of
its slots that may move. Devices have bounds: above `upper` they have a surplus, below `lower` a
deficit.

Of the slots that a giver may give to a receiver, the one is taken that spreads recovery most: the
receiver shares the fewest placement groups with the slot's other devices.

1. `give_surplus`: levels from the largest surplus down; at each level every device with so much
   gives one slot to the device with the largest deficit in a domain that can take one of its slots.
   Receivers are a heap per domain and a heap of domains, so a move costs a few row checks.
2. `take_for_deficit`: what deficits remain draw from any device above its lower bound.

What they leave over is for the chains of `balancer_chains.py`.

Laws: every move keeps the rule at once, so every prefix of the moves does. A greedy move goes from
a device above its ideal to one at or below its own and more than one slot apart, so it makes the
table more even.

A slot is coded as pg * n + slot.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from exastore.erasure.jit import njit
from exastore.metadata.core.topology import Int32Array, Int64Array
from exastore.metadata.core.trial import keeps_other_limits

#: How many domains, or giving devices, one greedy move tries before it is left to the chains.
ATTEMPTS = 64
#: Bits below a heap key's level that break ties at random.
TIE_BITS = 24
#: Heap key of a domain without receivers.
NOTHING = -(1 << 62)
#: Rows of `Fill.tally`: moves so far, of them in chains, steps of search left, and of the rule.
MOVED, CHAINED, STEPS_LEFT, MAX_PER_DOMAIN = 0, 1, 2, 3
#: Columns of `Fill.device`: slots it holds, whether they may move or not; the fewest and the most
#: it should hold; where its list begins in `Fill.slots`, and how many are in it; a random number of
#: TIE_BITS bits; one of the roles below.
HELD, LOWER, UPPER, START, MOVABLE, TIE, ROLE = 0, 1, 2, 3, 4, 5, 6
DEVICE_COLUMNS = 7
#: Keeps what it has; gives alone; gives and takes.
STAYS, GIVES, TAKES = 0, 1, 2


class Fill(NamedTuple):
    """A table under change. D devices, G domains of the rule's level, P groups of n slots.

    Few arrays: each costs time to compile.

    Attributes:
        rows: Shape (P, n). The PG table; changes with every move.
        device: Shape (D, DEVICE_COLUMNS). Columns named above.
        slots: The slots of each device that may move, with room for what it may take.
        domain_of_device: Shape (D,).
        domain_start: Shape (G + 1,). Bounds of each domain in `domain_device`.
        domain_device: Shape (D,). Devices by domain.
        limit_max: Shape (A,). The most slots of a PG at each other level that the rule limits.
        limit_domain: Shape (A, D). Domain of each device at these levels.
        marks: Shape (D,). Zeros, to count with.
        moves: Shape (M, 3). Code, source and target of each move; M is the most there may be.
        tally: Shape (4,). Rows named above.
    """

    rows: Int32Array
    device: Int32Array
    slots: Int32Array
    domain_of_device: Int32Array
    domain_start: Int32Array
    domain_device: Int32Array
    limit_max: Int32Array
    limit_domain: Int32Array
    marks: Int32Array
    moves: Int32Array
    tally: Int64Array


@njit
def list_slots(fill: Fill, may_move: NDArray[np.bool_]) -> None:
    """Fills the inverse index with the slots that have a device and `may_move` (empty: all may)."""
    width = fill.rows.shape[1]
    for pg in range(fill.rows.shape[0]):
        for slot in range(width):
            device = fill.rows[pg, slot]
            if device < 0 or fill.device[device, ROLE] == STAYS:
                continue
            if len(may_move) > 0 and not may_move[pg * width + slot]:
                continue
            fill.slots[fill.device[device, START] + fill.device[device, MOVABLE]] = (
                pg * width + slot
            )
            fill.device[device, MOVABLE] += 1


@njit
def permits(fill: Fill, code: int, target: int) -> bool:
    """Whether the rule lets `target` take over this slot."""
    width = fill.rows.shape[1]
    pg, slot = code // width, code % width
    domain, used = fill.domain_of_device[target], 0
    for i in range(width):
        device = fill.rows[pg, i]
        if device == target:
            return False
        if i != slot and device >= 0 and fill.domain_of_device[device] == domain:
            used += 1
    if used >= fill.tally[MAX_PER_DOMAIN]:
        return False
    return len(fill.limit_max) == 0 or keeps_other_limits(
        fill.limit_max, fill.limit_domain, fill.rows[pg], slot, target
    )


@njit
def mark_peers(fill: Fill, device: int, step: int) -> None:
    """Adds `step` to the mark of every device, for each group that it shares with this one."""
    width, rows, marks, slots = fill.rows.shape[1], fill.rows, fill.marks, fill.slots
    start = fill.device[device, START]
    for i in range(fill.device[device, MOVABLE]):
        pg = slots[start + i] // width
        for j in range(width):
            if rows[pg, j] >= 0:
                marks[rows[pg, j]] += step


@njit
def _find(fill: Fill, source: int, target: int) -> int:
    """Position in the list of `source` of the slot that `target` takes best; -1 if there is none.

    Best is where the slot's other devices share the fewest groups with the target.
    """
    count, width = fill.device[source, MOVABLE], fill.rows.shape[1]
    if count == 0:
        return -1
    mark_peers(fill, target, 1)
    rows, marks, slots, start = fill.rows, fill.marks, fill.slots, fill.device[source, START]
    best, best_score = -1, 1 << 30
    offset = fill.device[source, TIE] % count
    for i in range(count):
        position = (offset + i) % count
        code = slots[start + position]
        pg, slot = code // width, code % width
        score = 0
        for j in range(width):
            if j != slot and rows[pg, j] >= 0:
                score += marks[rows[pg, j]]
        if score < best_score and permits(fill, int(code), target):
            best, best_score = int(position), score
            if score == 0:
                break
    mark_peers(fill, target, -1)
    return best


@njit
def move(fill: Fill, source: int, position: int, target: int) -> None:
    """Moves the slot at `position` of the list of `source`."""
    width = fill.rows.shape[1]
    at = fill.device[source, START] + position
    code = fill.slots[at]
    fill.device[source, MOVABLE] -= 1
    fill.slots[at] = fill.slots[fill.device[source, START] + fill.device[source, MOVABLE]]
    fill.slots[fill.device[target, START] + fill.device[target, MOVABLE]] = code
    fill.device[target, MOVABLE] += 1
    fill.device[source, HELD] -= 1
    fill.device[target, HELD] += 1
    fill.rows[code // width, code % width] = target
    moved = fill.tally[MOVED]
    fill.moves[moved, 0] = code
    fill.moves[moved, 1] = source
    fill.moves[moved, 2] = target
    fill.tally[MOVED] = moved + 1


@njit
def _sift_down(heap: Int32Array, first: int, size: int, at: int, key: Int64Array) -> None:
    """Restores a maximum heap in `heap[first : first + size]` after the key at `at` fell."""
    while True:
        child = 2 * at + 1
        if child >= size:
            return
        if child + 1 < size and key[heap[first + child + 1]] > key[heap[first + child]]:
            child += 1
        if key[heap[first + child]] <= key[heap[first + at]]:
            return
        heap[first + at], heap[first + child] = heap[first + child], heap[first + at]
        at = child


@njit
def _sift_up(heap: Int32Array, at: int, key: Int64Array) -> None:
    """Restores a maximum heap after an item was put at its end."""
    while at > 0:
        parent = (at - 1) // 2
        if key[heap[parent]] >= key[heap[at]]:
            return
        heap[parent], heap[at] = heap[at], heap[parent]
        at = parent


class Receivers(NamedTuple):
    """Devices with room, the neediest first: a heap of devices per domain, a heap of domains.

    Attributes:
        key: Shape (D,). lower - held above TIE_BITS random bits.
        heap: Shape (D,). Heaps of devices, in the bounds of `Fill.domain_start`.
        size: Shape (G,). Devices in each.
        domain_key: Shape (G,). Key of the first device, or NOTHING.
        domain_heap: Shape (G,). Heap of domains.
        used: Shape (G,). Zeros, to count with.
        blocked: Shape (G,). Zeros, to count with.
    """

    key: Int64Array
    heap: Int32Array
    size: Int32Array
    domain_key: Int64Array
    domain_heap: Int32Array
    used: Int32Array
    blocked: Int32Array


def new_receivers(device_count: int, domain_count: int) -> Receivers:
    """Without any device yet; made outside of the kernels, which compile faster so."""
    return Receivers(
        key=np.zeros(device_count, dtype=np.int64),
        heap=np.zeros(device_count, dtype=np.int32),
        size=np.zeros(domain_count, dtype=np.int32),
        domain_key=np.full(domain_count, NOTHING, dtype=np.int64),
        domain_heap=np.arange(domain_count, dtype=np.int32),
        used=np.zeros(domain_count, dtype=np.int32),
        blocked=np.zeros(domain_count, dtype=np.int32),
    )


@njit
def _collect(fill: Fill, receivers: Receivers) -> None:
    """Puts every device with room into the heaps."""
    key, heap = receivers.key, receivers.heap
    domain_count = len(receivers.size)
    for domain in range(domain_count):
        first, size = int(fill.domain_start[domain]), 0
        for j in range(first, fill.domain_start[domain + 1]):
            device = fill.domain_device[j]
            held = fill.device[device, HELD]
            if held < fill.device[device, UPPER]:
                need = np.int64(fill.device[device, LOWER] - held)
                key[device] = (need << TIE_BITS) + fill.device[device, TIE]
                heap[first + size] = device
                size += 1
        for at in range(size // 2, -1, -1):
            _sift_down(heap, first, size, at, key)
        receivers.size[domain] = size
        if size > 0:
            receivers.domain_key[domain] = key[heap[first]]
    for at in range(domain_count // 2, -1, -1):
        _sift_down(receivers.domain_heap, 0, domain_count, at, receivers.domain_key)


@njit
def _received(fill: Fill, receivers: Receivers, domain: int) -> None:
    """Brings the heap of `domain` in order after its first device took a slot."""
    first = int(fill.domain_start[domain])
    device = receivers.heap[first]
    receivers.key[device] -= np.int64(1) << TIE_BITS
    if fill.device[device, HELD] >= fill.device[device, UPPER]:
        receivers.size[domain] -= 1
        receivers.heap[first] = receivers.heap[first + receivers.size[domain]]
    size = int(receivers.size[domain])
    if size == 0:
        receivers.domain_key[domain] = NOTHING
        return
    _sift_down(receivers.heap, first, size, 0, receivers.key)
    receivers.domain_key[domain] = receivers.key[receivers.heap[first]]


@njit
def _count_blocked(fill: Fill, source: int, used: Int32Array, blocked: Int32Array) -> None:
    """blocked[g] = slots of `source` that no device of domain g can take, as g is full there."""
    width, limit = fill.rows.shape[1], fill.tally[MAX_PER_DOMAIN]
    for i in range(fill.device[source, MOVABLE]):
        code = fill.slots[fill.device[source, START] + i]
        pg, slot = code // width, code % width
        for j in range(width):
            device = fill.rows[pg, j]
            if j != slot and device >= 0:
                domain = fill.domain_of_device[device]
                used[domain] += 1
                if used[domain] == limit:
                    blocked[domain] += 1
        for j in range(width):
            if fill.rows[pg, j] >= 0:
                used[fill.domain_of_device[fill.rows[pg, j]]] = 0


@njit
def _clear_blocked(fill: Fill, source: int, blocked: Int32Array) -> None:
    width = fill.rows.shape[1]
    for i in range(fill.device[source, MOVABLE]):
        pg = fill.slots[fill.device[source, START] + i] // width
        for j in range(width):
            if fill.rows[pg, j] >= 0:
                blocked[fill.domain_of_device[fill.rows[pg, j]]] = 0


@njit
def _give_one(fill: Fill, receivers: Receivers, source: int) -> bool:
    """Moves one slot of `source` to the neediest receiver that can take one."""
    heap, key, blocked = receivers.domain_heap, receivers.domain_key, receivers.blocked
    last, given, is_counted = len(heap), -1, False
    for _ in range(min(ATTEMPTS, len(heap))):
        domain = int(heap[0])
        if key[domain] == NOTHING:
            break
        if blocked[domain] < fill.device[source, MOVABLE]:
            given = _find(fill, source, int(receivers.heap[fill.domain_start[domain]]))
            if given >= 0:
                break
        if not is_counted:
            _count_blocked(fill, source, receivers.used, blocked)
            is_counted = True
        last -= 1  # out of the heap for this search: the next domain comes first
        heap[0], heap[last] = heap[last], heap[0]
        _sift_down(heap, 0, last, 0, key)
    if is_counted:
        _clear_blocked(fill, source, blocked)
    if given >= 0:
        domain = int(heap[0])
        move(fill, source, given, int(receivers.heap[fill.domain_start[domain]]))
        _received(fill, receivers, domain)
        _sift_down(heap, 0, last, 0, key)
    while last < len(heap):
        _sift_up(heap, last, key)
        last += 1
    return given >= 0


@njit
def give_surplus(fill: Fill, givers: Int32Array, receivers: Receivers) -> None:
    """Every device above its bound gives, level by level, the fullest first.

    Args:
        fill: The table.
        givers: Devices above their bound, by surplus, the largest first.
        receivers: From `new_receivers`.
    """
    _collect(fill, receivers)
    is_stuck = np.zeros(len(givers), dtype=np.bool_)
    level = 0
    if len(givers):
        level = fill.device[givers[0], HELD] - fill.device[givers[0], UPPER]
    while level > 0:
        for i in range(len(givers)):
            if fill.tally[MOVED] == len(fill.moves):
                return
            source = givers[i]
            if is_stuck[i]:
                continue
            if fill.device[source, HELD] - fill.device[source, UPPER] < level:
                break
            is_stuck[i] = not _give_one(fill, receivers, int(source))
        level -= 1


@njit
def _take_one(fill: Fill, target: int, givers: Int32Array, size: int, cursor: int) -> int:
    """Moves one slot to `target`; returns the giver's place in `givers`, or -1."""
    for i in range(min(ATTEMPTS, size)):
        at = (cursor + i) % size
        position = _find(fill, givers[at], target)
        if position >= 0:
            move(fill, givers[at], position, target)
            return at
    domain = fill.domain_of_device[target]
    for j in range(fill.domain_start[domain], fill.domain_start[domain + 1]):
        source = fill.domain_device[j]
        if fill.device[source, HELD] > fill.device[source, LOWER]:
            position = _find(fill, source, target)
            if position >= 0:
                move(fill, source, position, target)
                return 0
    return -1


@njit
def take_for_deficit(fill: Fill, takers: Int32Array, givers: Int32Array) -> None:
    """Every device below its bound takes, level by level, the emptiest first.

    Args:
        fill: The table.
        takers: Devices below their bound, by deficit, the largest first.
        givers: Devices above their lower bound; changes.
    """
    is_stuck = np.zeros(len(takers), dtype=np.bool_)
    size, cursor, level = len(givers), 0, 0
    if len(takers):
        level = fill.device[takers[0], LOWER] - fill.device[takers[0], HELD]
    while level > 0:
        for i in range(len(takers)):
            target = takers[i]
            if is_stuck[i]:
                continue
            if fill.device[target, LOWER] - fill.device[target, HELD] < level:
                break
            while size > 0:
                cursor %= size
                if fill.device[givers[cursor], HELD] > fill.device[givers[cursor], LOWER]:
                    break
                size -= 1
                givers[cursor] = givers[size]
            if size == 0 or fill.tally[MOVED] == len(fill.moves):
                return
            at = _take_one(fill, target, givers, size, cursor)
            is_stuck[i] = at < 0
            cursor += 1
        level -= 1
