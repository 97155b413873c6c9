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
from exastore.metadata.core.balancer_kernels import (
    CHAINED,
    HELD,
    MAX_PER_DOMAIN,
    MOVABLE,
    MOVED,
    ROLE,
    START,
    STEPS_LEFT,
    TAKES,
    Fill,
    move,
)
from exastore.metadata.core.topology import Int32Array
from exastore.metadata.core.trial import keeps_other_limits

#: Columns of `Search.device`: the device that gives to it, -1 where a chain begins; the slot it
#: would take; devices in the order they were found; those not found yet, in the bounds of their
#: domains.
PARENT, VIA, QUEUE, UNSEEN = 0, 1, 2, 3
#: Columns of `Search.domain`: how many of its devices are not found yet; the domains that have such
#: devices; zeros, to count with.
LEFT, OPEN, USED = 0, 1, 2


class Search(NamedTuple):
    """A breadth-first search over devices.

    Attributes:
        device: Shape (D, 4). Columns named above.
        domain: Shape (G, 3). Columns named above.
    """

    device: Int32Array
    domain: Int32Array


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
    goal: int,
) -> tuple[int, int, int]:
    """Finds the devices that can take this slot: (open domains, queued devices, goal or -1)."""
    width = fill.rows.shape[1]
    pg, slot = code // width, code % width
    used, found = search.domain[:, USED], -1
    for i in range(width):
        if i != slot and fill.rows[pg, i] >= 0:
            used[fill.domain_of_device[fill.rows[pg, i]]] += 1
    at = 0
    while at < open_count and found < 0:
        domain = search.domain[at, OPEN]
        if used[domain] >= fill.tally[MAX_PER_DOMAIN]:
            at += 1
            continue
        first, j = fill.domain_start[domain], 0
        while j < search.domain[domain, LEFT] and found < 0:
            device = search.device[first + j, UNSEEN]
            if (used[domain] and _in_row(fill, code, int(device))) or (
                len(fill.limit_max) > 0
                and not keeps_other_limits(
                    fill.limit_max, fill.limit_domain, fill.rows[pg], slot, device
                )
            ):
                j += 1
                continue
            search.domain[domain, LEFT] -= 1
            last = search.device[first + search.domain[domain, LEFT], UNSEEN]
            search.device[first + j, UNSEEN] = last
            search.device[device, PARENT] = source
            search.device[device, VIA] = code
            search.device[queued, QUEUE] = device
            queued += 1
            if fill.device[device, HELD] < fill.device[device, goal]:
                found = int(device)
        if search.domain[domain, LEFT] == 0:
            open_count -= 1
            search.domain[at, OPEN] = search.domain[open_count, OPEN]
        else:
            at += 1
    for i in range(width):
        if fill.rows[pg, i] >= 0:
            used[fill.domain_of_device[fill.rows[pg, i]]] = 0
    return open_count, queued, found


@njit
def _shortest_chain(fill: Fill, search: Search, begin: int, goal: int) -> int:
    """Searches from all devices above `begin` to one below `goal`; that one, or -1."""
    queued, open_count = 0, 0
    for domain in range(len(search.domain)):
        first = fill.domain_start[domain]
        search.domain[domain, LEFT] = 0
        for j in range(first, fill.domain_start[domain + 1]):
            device = fill.domain_device[j]
            if (
                fill.device[device, ROLE] == TAKES
                and fill.device[device, HELD] <= fill.device[device, begin]
            ):
                search.device[first + search.domain[domain, LEFT], UNSEEN] = device
                search.domain[domain, LEFT] += 1
        if search.domain[domain, LEFT]:
            search.domain[open_count, OPEN] = domain
            open_count += 1
    for device in range(len(fill.device)):
        if (
            fill.device[device, HELD] > fill.device[device, begin]
            and fill.device[device, MOVABLE] > 0
        ):
            search.device[device, PARENT] = -1
            search.device[queued, QUEUE] = device
            queued += 1
    at = 0
    while at < queued and open_count > 0 and fill.tally[STEPS_LEFT] > 0:
        source = int(search.device[at, QUEUE])
        at += 1
        for i in range(fill.device[source, MOVABLE]):
            code = int(fill.slots[fill.device[source, START] + i])
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
    while search.device[device, PARENT] >= 0:
        search.device[length, QUEUE] = device  # the search is over: its queue is scratch
        length += 1
        device = search.device[device, PARENT]
    for i in range(length):
        for j in range(i):
            one, other = search.device[i, QUEUE], search.device[j, QUEUE]
            if search.device[one, VIA] // width == search.device[other, VIA] // width:
                return False
    for i in range(length):
        if fill.tally[MOVED] == len(fill.moves):
            return True
        target = int(search.device[i if from_end else length - 1 - i, QUEUE])
        source = int(search.device[target, PARENT])
        position = 0
        while fill.slots[fill.device[source, START] + position] != search.device[target, VIA]:
            position += 1
        move(fill, source, position, target)
        fill.tally[CHAINED] += 1
    return True


@njit
def give_by_chain(fill: Fill, begin: int, goal: int, from_end: bool) -> None:
    """Moves slots from devices above `begin` to devices below `goal` while a chain is found.

    Args:
        fill: The table.
        begin: Column of the bound, UPPER or LOWER.
        goal: Column of the bound, UPPER or LOWER.
        from_end: Whether the last move of a chain comes first: then a chain that is cut short
            moves a deficit instead of filling it, else a surplus.
    """
    search = Search(
        np.full((len(fill.device), 4), -1, dtype=np.int32),
        np.zeros((len(fill.domain_start) - 1, 3), dtype=np.int32),
    )
    while fill.tally[MOVED] < len(fill.moves):
        sources, goals = 0, 0
        for device in range(len(fill.device)):
            held = fill.device[device, HELD]
            if held > fill.device[device, begin] and fill.device[device, MOVABLE] > 0:
                sources += 1
            if held < fill.device[device, goal] and fill.device[device, ROLE] == TAKES:
                goals += 1
        if sources == 0 or goals == 0:
            return
        found = _shortest_chain(fill, search, begin, goal)
        if found < 0 or not _apply_chain(fill, search, found, from_end):
            return
