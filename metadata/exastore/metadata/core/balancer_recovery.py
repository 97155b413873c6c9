"""Evening out recovery: who reads for whom when a device dies.

Theory of operation. Two devices that share many placement groups burden each other: the one has to
read for the other when it dies. A swap exchanges two devices between two groups, so that every
device keeps its number of slots, and the balance stays what it was. From the most groups that any
pair shares downwards, each pair that shares so many is parted by a swap that makes no other pair
share as many. So the number of such pairs falls with every swap; the first pair that no swap parts
ends the plan, without the swaps of its level.

A swap is two moves, of different groups, each of which keeps the rule: plans of swaps are plans
like others. As they cost moves that balance does not need, they are for tables without data, or for
a budget of moves.

A device that shares s groups with each of its peers reads s times as much as one that shares one:
the floor is the mean, slots * (n - 1) / (devices it may share with), rounded up.
"""

import numpy as np

from exastore.erasure.jit import njit
from exastore.metadata.core.balance import slots_per_device
from exastore.metadata.core.balancer import BalancePlan, new_fill, plan_of, roles
from exastore.metadata.core.balancer_kernels import (
    MOVABLE,
    MOVED,
    ROLE,
    START,
    TAKES,
    Fill,
    mark_peers,
    move,
    permits,
)
from exastore.metadata.core.columns import PlacementColumns
from exastore.metadata.core.placement import all_up
from exastore.metadata.core.straw2 import hash3
from exastore.metadata.core.topology import Int32Array, Uint8Array

#: Swaps that are tried for one pair before the search ends.
SWAP_ATTEMPTS = 512


def plan_even_recovery(
    columns: PlacementColumns,
    rows: Int32Array,
    *,
    device_state: Uint8Array | None = None,
    slot_state: Uint8Array | None = None,
    max_moves: int | None = None,
    seed: int = 0,
    epoch: int = 0,
) -> BalancePlan:
    """Plans swaps that lower the most groups that any two devices share; slot counts stay.

    Args:
        columns: From `placement_columns`.
        rows: Shape (P, n), dtype int32. The PG table; not changed.
        device_state: Shape (D,). None: all are UP.
        slot_state: Shape (P, n). None: all are CLEAN.
        max_moves: The most moves, two for a swap; None: as many as there are slots.
        seed: Of the swaps that are tried, 32 bits.
        epoch: Kept in the plan.

    Returns:
        A plan whose `outside_count` is 0: it moves nobody from the share that he has.

    Raises:
        ValueError: `max_moves` is negative, or the table is too large.
    """
    if max_moves is not None and max_moves < 0:
        raise ValueError(f"max_moves is at least 0, not {max_moves}")
    device_count = len(columns.device_weight)
    state = all_up(device_count) if device_state is None else np.asarray(device_state)
    count = slots_per_device(rows, device_count).astype(np.int32)
    fill = new_fill(columns, rows, count, count, count, roles(columns, state), seed, slot_state)
    room = rows.size if max_moves is None else min(rows.size, max_moves)
    fill = fill._replace(moves=np.empty((room // 2 * 2, 3), dtype=np.int32))
    taking = np.flatnonzero(fill.device[:, ROLE] == TAKES).astype(np.int32)
    is_done = _part_pairs(fill, taking, np.uint32(seed & 0xFFFFFFFF)) if len(taking) else True
    return plan_of(fill, rows.shape[1], epoch, minimum_moves=0, is_cut=not is_done)


@njit
def _busiest_pair(fill: Fill, taking: Int32Array) -> int:
    """The most groups that two devices share, as far as their slots may move."""
    most, width = 0, fill.rows.shape[1]
    for i in range(len(taking)):
        device = int(taking[i])
        mark_peers(fill, device, 1)
        start = fill.device[device, START]
        for at in range(fill.device[device, MOVABLE]):
            pg = fill.slots[start + at] // width
            for j in range(width):
                peer = fill.rows[pg, j]
                if peer >= 0 and peer != device:
                    most = max(most, fill.marks[peer])
        mark_peers(fill, device, -1)
    return int(most)


@njit
def _part_pairs(fill: Fill, taking: Int32Array, seed: np.uint32) -> bool:
    """Swaps from the busiest pairs down; whether it ended by itself, and not for want of moves."""
    level, turn, width = _busiest_pair(fill, taking), 0, fill.rows.shape[1]
    while level > 1:
        is_stuck, before = False, fill.tally[MOVED]
        for i in range(len(taking)):
            device = int(taking[i])
            mark_peers(fill, device, 1)
            at = 0
            while at < fill.device[device, MOVABLE]:
                code = int(fill.slots[fill.device[device, START] + at])
                is_busy = False
                for j in range(width):
                    peer = fill.rows[code // width, j]
                    is_busy |= peer >= 0 and peer != device and fill.marks[peer] >= level
                if not is_busy:
                    at += 1
                    continue
                if fill.tally[MOVED] + 2 > len(fill.moves):
                    mark_peers(fill, device, -1)
                    return False
                turn += 1
                # The swap puts another slot in this place of the list.
                if not _swap(fill, taking, device, at, level, turn, seed):
                    is_stuck = True
                    break
            mark_peers(fill, device, -1)
            if is_stuck:
                break
        if is_stuck:
            # The busiest pair stays as busy: what was moved at this level was for little.
            fill.tally[MOVED] = before
            break
        level -= 1
    return True


@njit
def _makes_busy(fill: Fill, code: int, level: int) -> bool:
    """Whether a device with these marks would share `level` groups with a peer of this slot."""
    width = fill.rows.shape[1]
    pg, slot = code // width, code % width
    for j in range(width):
        peer = fill.rows[pg, j]
        if j != slot and peer >= 0 and fill.marks[peer] + 1 >= level:
            return True
    return False


@njit
def _swap(
    fill: Fill, taking: Int32Array, device: int, at: int, level: int, turn: int, seed: np.uint32
) -> bool:
    """Exchanges the slot at `at` of `device`, whose peers are marked, with another device's."""
    width, start = fill.rows.shape[1], fill.device[device, START]
    code = int(fill.slots[start + at])
    domain = fill.domain_of_device[device]
    first, last = fill.domain_start[domain], fill.domain_start[domain + 1]
    for attempt in range(SWAP_ATTEMPTS):
        draw = int(hash3(np.uint32(turn), np.uint32(attempt), seed))
        # Within the domain, a swap keeps the limits of the domain and of all above it.
        if attempt % 2 == 0 and last - first > 1:
            other = int(fill.domain_device[first + draw % (last - first)])
        else:
            other = int(taking[draw % len(taking)])
        held = int(fill.device[other, MOVABLE])
        if other == device or fill.device[other, ROLE] != TAKES or held == 0:
            continue
        other_at = (draw >> 12) % held
        other_code = int(fill.slots[fill.device[other, START] + other_at])
        if (
            other_code // width == code // width
            or _makes_busy(fill, other_code, level)
            or not permits(fill, other_code, device)
            or not permits(fill, code, other)
        ):
            continue
        mark_peers(fill, device, -1)
        mark_peers(fill, other, 1)
        is_good = not _makes_busy(fill, code, level)
        mark_peers(fill, other, -1)
        if is_good:
            move(fill, device, at, other)
            move(fill, other, other_at, device)
        mark_peers(fill, device, 1)
        if is_good:
            return True
    return False
