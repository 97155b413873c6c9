"""Placement of many groups at once, in rounds of draws over blocks of them.

Theory of operation. CRUSH fills a row slot by slot, and repeats in rounds what failed. What a trial
draws depends on its group and number alone, so all trials of a round are drawn together, by
`straw2.descend_many`: first their domains, then the devices in those domains that have room.
Only what is accepted depends on what came before, and that is decided in CRUSH's order.
"""

from typing import NamedTuple

import numpy as np

from exastore.erasure.jit import njit
from exastore.metadata.core.columns import PlacementColumns
from exastore.metadata.core.straw2 import (
    BLOCK,
    COUNT,
    LANES,
    ROOT_LEVEL,
    SCRATCH_ROWS,
    START,
    Uint32Array,
    descend_many,
    hash2,
)
from exastore.metadata.core.topology import Int32Array, Uint8Array
from exastore.metadata.core.trial import TRIES, UP, keeps_other_limits, scan, try_once

#: Groups whose rounds of draws are made together.
ROWS_PER_BLOCK = 512


class Round(NamedTuple):
    """A round of draws for a block of groups: one trial for each empty slot, in order. T trials.

    Attributes:
        row: Shape (T,). Row of each trial, within the block.
        slot: Shape (T,).
        domain: Shape (T,). Bucket of the domain that it drew.
        x, r: Shape (T,). Of the draw of the domain.
        device: Shape (T,). Devices drawn in the domains that have room, without gaps.
        device_x, device_r: Shape (T,). Of the draw of the device.
        used_by, used: Shape (G,). The last row that counted in a domain, and its count.
        lanes: Shape (SCRATCH_ROWS, BLOCK). Of `descend_many`.
        scratch: Shape (bucket_children_max,). Of `descend`.
    """

    row: Int32Array
    slot: Int32Array
    domain: Int32Array
    x: Uint32Array
    r: Uint32Array
    device: Int32Array
    device_x: Uint32Array
    device_r: Uint32Array
    used_by: Int32Array
    used: Int32Array
    lanes: Uint32Array
    scratch: Uint32Array


def new_round(columns: PlacementColumns, width: int) -> Round:
    size = ROWS_PER_BLOCK * width + LANES  # up to whole vectors
    row, slot, domain, device = np.zeros((4, size), dtype=np.int32)
    x, r, device_x, device_r = np.zeros((4, size), dtype=np.uint32)
    used_by, used = np.zeros((2, len(columns.domain_weight)), dtype=np.int32)
    lanes = np.zeros((SCRATCH_ROWS, BLOCK), dtype=np.uint32)
    scratch = np.empty(columns.bucket_children_max, dtype=np.uint32)
    return Round(row, slot, domain, x, r, device, device_x, device_r, used_by, used, lanes, scratch)


@njit
def _list_first(rows: Int32Array, words: Uint32Array, root: int, now: Round) -> int:
    """Lists a trial for each empty slot; how many there are."""
    width, count = rows.shape[1], 0
    for p in range(rows.shape[0]):
        for slot in range(width):
            if rows[p, slot] < 0:
                now.row[count], now.slot[count], now.domain[count] = p, slot, root
                now.x[count], now.r[count] = words[p], np.uint32(slot)
                count += 1
    return count


@njit
def _list_again(rows: Int32Array, count: int, root: int, now: Round) -> int:
    """Keeps the trials of the last round whose slots are still empty, with their next numbers."""
    kept, width = 0, np.uint32(rows.shape[1])
    row_, slot_, domain, x, r = now.row, now.slot, now.domain, now.x, now.r
    for i in range(count):
        p, slot = row_[i], slot_[i]
        slot = slot if slot >= 0 else -1 - slot
        row_[kept], slot_[kept], domain[kept] = p, slot, root
        x[kept], r[kept] = x[i], np.uint32(r[i] + width)
        kept += rows[p, slot] < 0
    return int(kept)


@njit
def _list_domains(
    columns: PlacementColumns, rows: Int32Array, count: int, trial: int, now: Round
) -> int:
    """Lists the draws of devices, in the drawn domains that have room; how many there are.

    As if each trial before it in its row found its device. The slots of the other trials are
    marked, as -1 - slot.
    """
    going, last, serial = 0, -1, 0
    base = columns.domain_bucket[0] if columns.level > 0 else 0
    domain_of_device, limit = columns.domain_of_device, columns.max_per_domain
    row_, slot_, domains, x, r = now.row, now.slot, now.domain, now.x, now.r
    device, device_x, device_r = now.device, now.device_x, now.device_r
    used_by, used = now.used_by, now.used
    for i in range(count):
        p, slot, domain = row_[i], slot_[i], domains[i] - base
        if p != last:
            last, serial = p, trial * ROWS_PER_BLOCK + p
            if trial > 0:
                for j in range(rows.shape[1]):
                    if rows[p, j] >= 0:
                        full = domain_of_device[rows[p, j]]
                        used[full] = used[full] + 1 if used_by[full] == serial else 1
                        used_by[full] = serial
        if domains[i] >= 0:
            taken = used[domain] if used_by[domain] == serial else 0
            if taken < limit:
                used[domain], used_by[domain] = taken + 1, serial
                device[going], device_x[going] = domains[i], x[i]
                device_r[going] = np.uint32(np.uint32(slot) + r[i])
                going += 1
                continue
        slot_[i] = -1 - slot
    return going


@njit
def _accept(
    columns: PlacementColumns, device_state: Uint8Array, rows: Int32Array, count: int, now: Round
) -> None:
    """Fills the slots whose draw is of use, in order.

    A domain that had room still has it: what was not expected to go there comes later. One that
    was expected to be full may have room if a draw before it in the row was of no use.
    """
    going, failed_row, width = 0, -1, rows.shape[1]
    row_, slot_, drawn = now.row, now.slot, now.device
    weight, limit_max, limit_domain = (
        columns.device_weight,
        columns.limit_max,
        columns.limit_domain,
    )
    for i in range(count):
        p, slot = row_[i], slot_[i]
        if slot >= 0:
            device = drawn[going]
            going += 1
            # As `_is_eligible`, of which a call costs more than all of it.
            is_useful = device >= 0 and device_state[device] == UP and weight[device] > 0.0
            for j in range(width):
                is_useful &= rows[p, j] != device
            if is_useful and len(limit_max) > 0:
                is_useful = keeps_other_limits(limit_max, limit_domain, rows[p], slot, device)
            if is_useful:
                rows[p, slot] = device
            else:
                failed_row = p
        elif p == failed_row:
            slot = -1 - slot
            rows[p, slot] = try_once(
                columns, device_state, rows[p], slot, now.x[i], now.r[i], now.scratch
            )


@njit
def _place_block(
    columns: PlacementColumns,
    device_state: Uint8Array,
    words: Uint32Array,
    rows: Int32Array,
    now: Round,
) -> None:
    """Fills the rows of a block; `words` are the x of its groups."""
    tree, level = columns.tree, columns.level
    root, depth = len(tree.bucket) - 1, ROOT_LEVEL - level
    while depth > 0 and tree.bucket[root, COUNT] == 1:  # all trials go the same way
        root = int(tree.child_item[tree.bucket[root, START]])
        depth -= 1
    now.used_by[:] = -1
    count = _list_first(rows, words, root, now)
    for trial in range(TRIES):
        if count == 0:
            return
        descend_many(tree, now.domain, count, depth, now.x, now.r, now.lanes, now.scratch)
        going = _list_domains(columns, rows, count, trial, now)
        descend_many(
            tree, now.device, going, level, now.device_x, now.device_r, now.lanes, now.scratch
        )
        _accept(columns, device_state, rows, count, now)
        count = _list_again(rows, count, root, now)
    width = rows.shape[1]
    for p in range(rows.shape[0]):
        for slot in range(width):
            if rows[p, slot] < 0:
                r = np.uint32(slot + width * TRIES)
                rows[p, slot] = scan(columns, device_state, rows[p], slot, words[p], r)


@njit
def place(
    columns: PlacementColumns,
    device_state: Uint8Array,
    seed: np.uint32,
    first_pg: int,
    rows: Int32Array,
    now: Round,
) -> None:
    """Fills `rows` (Shape (P, n), all NO_DEVICE) for the PGs first_pg, first_pg + 1, ..."""
    words = np.empty(ROWS_PER_BLOCK, dtype=np.uint32)
    for begin in range(0, rows.shape[0], ROWS_PER_BLOCK):
        size = min(ROWS_PER_BLOCK, rows.shape[0] - begin)
        for p in range(size):
            words[p] = np.uint32(first_pg + begin + p)
            if seed != np.uint32(0):
                words[p] = hash2(words[p], seed)
        _place_block(columns, device_state, words[:size], rows[begin : begin + size], now)
