"""Chains of moves: how the balancer brings slots to where no single move leads.

Theory of operation. A breadth-first search over devices, from all that can give at once, finds the
shortest chain a -> b -> c ... whose inner devices take one slot and give another, until one that
should take is reached. A device is found once, through the first slot that it could take, so a
search costs at most one look at every slot. Searches end when no chain is left, or when they have
cost `STEPS_LEFT` checks in all.

Laws: the moves of a chain touch different groups and each keeps the rule, so any order does. Cut
short, a chain leaves no more slots outside the bounds than before.

Limit: a chain that would have to move two slots of one group is not taken, so in the tightest
clusters a table may stay a slot away from what an exact (maximum-flow) plan reaches.
"""

from typing import NamedTuple

import numpy as np

from exastore.erasure.jit import njit
from exastore.metadata.core.balancer_kernels import CHAINED, MOVED, STEPS_LEFT, Fill, move
from exastore.metadata.core.topology import Int32Array


class Search(NamedTuple):
    """A breadth-first search over devices.

    Attributes:
        parent: Shape (D,). The device that gives to it; -1 for where a chain begins.
        via: Shape (D,). The slot it would take.
        queue: Shape (D,). Devices in the order they were found.
        unseen: Shape (D,). Devices not found yet, in the bounds of their domains.
        left: Shape (G,). How many of them, per domain.
        open_domains: Shape (G,). Domains that have some.
        used: Shape (G,). Zeros.
    """

    parent: Int32Array
    via: Int32Array
    queue: Int32Array
    unseen: Int32Array
    left: Int32Array
    open_domains: Int32Array
    used: Int32Array


@njit
def _in_row(fill: Fill, code: int, device: int) -> bool:
    width = fill.rows.shape[1]
    for i in range(width):
        if fill.rows[code // width, i] == device:
            return True
    return False


@njit
def _reach(
    fill: Fill,
    search: Search,
    code: int,
    source: int,
    open_count: int,
    queued: int,
    goal: Int32Array,
) -> tuple[int, int, int]:
    """Finds the devices that can take this slot: (open domains, queued devices, goal or -1)."""
    width = fill.rows.shape[1]
    pg, slot = code // width, code % width
    used, found = search.used, -1
    for i in range(width):
        if i != slot and fill.rows[pg, i] >= 0:
            used[fill.domain_of_device[fill.rows[pg, i]]] += 1
    at = 0
    while at < open_count and found < 0:
        domain = search.open_domains[at]
        if used[domain] >= fill.max_per_domain[0]:
            at += 1
            continue
        first, j = fill.domain_start[domain], 0
        while j < search.left[domain] and found < 0:
            device = search.unseen[first + j]
            if used[domain] and _in_row(fill, code, int(device)):
                j += 1
                continue
            search.left[domain] -= 1
            search.unseen[first + j] = search.unseen[first + search.left[domain]]
            search.parent[device] = source
            search.via[device] = code
            search.queue[queued] = device
            queued += 1
            if fill.held[device] < goal[device]:
                found = int(device)
        if search.left[domain] == 0:
            open_count -= 1
            search.open_domains[at] = search.open_domains[open_count]
        else:
            at += 1
    for i in range(width):
        if fill.rows[pg, i] >= 0:
            used[fill.domain_of_device[fill.rows[pg, i]]] = 0
    return open_count, queued, found


@njit
def _shortest_chain(
    fill: Fill, search: Search, begin: Int32Array, goal: Int32Array, may_take: Int32Array
) -> int:
    """Searches from all devices above `begin` to one below `goal`; that one, or -1."""
    queued, open_count = 0, 0
    for domain in range(len(search.left)):
        first = fill.domain_start[domain]
        search.left[domain] = 0
        for j in range(first, fill.domain_start[domain + 1]):
            device = fill.domain_device[j]
            if may_take[device] and fill.held[device] <= begin[device]:
                search.unseen[first + search.left[domain]] = device
                search.left[domain] += 1
        if search.left[domain]:
            search.open_domains[open_count] = domain
            open_count += 1
    for device in range(len(fill.held)):
        if fill.held[device] > begin[device] and fill.movable[device] > 0:
            search.parent[device] = -1
            search.queue[queued] = device
            queued += 1
    at = 0
    while at < queued and open_count > 0 and fill.tally[STEPS_LEFT] > 0:
        source = int(search.queue[at])
        at += 1
        for i in range(fill.movable[source]):
            code = int(fill.slots[fill.start[source] + i])
            fill.tally[STEPS_LEFT] -= fill.rows.shape[1] + open_count
            open_count, queued, found = _reach(fill, search, code, source, open_count, queued, goal)
            if found >= 0:
                return int(found)
    return -1


@njit
def _apply_chain(fill: Fill, search: Search, found: int, from_end: bool) -> bool:
    """Moves along the chain that ends at `found`; False if it would move one group twice.

    Each move was checked by itself, and different groups do not touch each other, so any order
    keeps the rule. The order decides what a chain that is cut short leaves behind.
    """
    width = fill.rows.shape[1]
    length, device = 0, found
    while search.parent[device] >= 0:
        search.queue[length] = device  # the search is over: its queue is scratch
        length += 1
        device = search.parent[device]
    for i in range(length):
        for j in range(i):
            if search.via[search.queue[i]] // width == search.via[search.queue[j]] // width:
                return False
    for i in range(length):
        if fill.tally[MOVED] == len(fill.moves):
            return True
        target = int(search.queue[i if from_end else length - 1 - i])
        source = int(search.parent[target])
        position = 0
        while fill.slots[fill.start[source] + position] != search.via[target]:
            position += 1
        move(fill, source, position, target)
        fill.tally[CHAINED] += 1
    return True


@njit
def give_by_chain(
    fill: Fill, begin: Int32Array, goal: Int32Array, may_take: Int32Array, from_end: bool
) -> None:
    """Moves slots from devices above `begin` to devices below `goal` while a chain is found.

    Args:
        fill: The table.
        begin: Shape (D,). `fill.upper` or `fill.lower`.
        goal: Shape (D,). `fill.upper` or `fill.lower`.
        may_take: Shape (D,). 0 for devices that take no slots.
        from_end: Whether the last move of a chain comes first: then a chain that is cut short
            moves a deficit instead of filling it, else a surplus.
    """
    device_count, domain_count = len(fill.held), len(fill.domain_start) - 1
    search = Search(
        np.full(device_count, -1, dtype=np.int32),
        np.zeros(device_count, dtype=np.int32),
        np.zeros(device_count, dtype=np.int32),
        np.zeros(device_count, dtype=np.int32),
        np.zeros(domain_count, dtype=np.int32),
        np.zeros(domain_count, dtype=np.int32),
        np.zeros(domain_count, dtype=np.int32),
    )
    while fill.tally[MOVED] < len(fill.moves):
        sources, goals = 0, 0
        for device in range(device_count):
            sources += fill.held[device] > begin[device] and fill.movable[device] > 0
            goals += fill.held[device] < goal[device] and may_take[device] != 0
        if sources == 0 or goals == 0:
            return
        found = _shortest_chain(fill, search, begin, goal, may_take)
        if found < 0 or not _apply_chain(fill, search, found, from_end):
            return
