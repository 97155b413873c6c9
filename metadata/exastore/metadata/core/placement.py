"""Placement: weighted straw2 (CRUSH) down the failure domains, under a domain rule.

Laws:
1. A choice is a pure function of topology, rule, device states, PG, slot and seed.
2. A row never names a device twice and never breaks the rule.
3. Slots keep their position (CRUSH's `indep`): an empty slot is filled where it is.
4. A slot is NO_DEVICE only if no eligible device keeps the rule: when the draws run out, an exact
   scan over the domains decides. The rule's limits are nested, so filling slots one by one in any
   order fills as many as can be filled.

The draws are in `straw2.py`. A trial draws a domain of the rule's level from the root and then a
device in it; one that meets a full domain, a device that breaks another limit of the rule, or an
ineligible device is repeated with the next trial number, in rounds over the slots that are still
empty, as in CRUSH's `chooseleaf indep`. `_place` draws a round for a block of groups at once: what
is drawn depends on (group, trial) alone, so the order of drawing is free. Devices that residency or
class keep out have no weight in the columns, which every user of the columns respects. For PG p
without a seed the choices are those of CRUSH for input p, up to the deviations named there and the
identifiers of buckets: (level, index) here, so that growth of one level renames no other.
"""

import numpy as np

from exastore.erasure.jit import inline_njit, njit
from exastore.metadata.core.columns import (
    INDEX_BITS,
    BoolArray,
    PlacementColumns,
    placement_columns,
)
from exastore.metadata.core.rounds import new_round, place
from exastore.metadata.core.rules import (
    check_placeable,
    domain_count_with_weight,
    placeable_slots,
)
from exastore.metadata.core.straw2 import (
    BLOCK,
    ROOT_LEVEL,
    SCRATCH_ROWS,
    descend_many,
    hash2,
)
from exastore.metadata.core.topology import (
    NO_DEVICE,
    DeviceState,
    Int32Array,
    PlacementRule,
    Topology,
    Uint8Array,
)
from exastore.metadata.core.trial import TRIES, keeps_rule, may_take, scan, try_once

__all__ = [
    "DRAWS_MAX",
    "DRAW_DEVICE",
    "DRAW_DOMAIN",
    "DRAW_PG",
    "DRAW_ROWS",
    "DRAW_SEED",
    "DRAW_SLOT",
    "INDEX_BITS",
    "BoolArray",
    "PlacementColumns",
    "all_up",
    "check_placeable",
    "choose_drawn",
    "choose_replacement",
    "domain_count_with_weight",
    "draw_replacements",
    "keeps_rule",
    "place_pgs",
    "place_with_columns",
    "placeable_slots",
    "placement_columns",
]

#: Rows of the draws of `draw_replacements`, and how many it takes at once.
DRAW_PG, DRAW_SLOT, DRAW_SEED, DRAW_DOMAIN, DRAW_DEVICE = 0, 1, 2, 3, 4
DRAW_ROWS = 5
DRAWS_MAX = BLOCK


@njit
def choose_replacement(
    columns: PlacementColumns,
    device_state: Uint8Array,
    row: Int32Array,
    slot: int,
    pg: int,
    attempt_seed: int,
) -> int:
    """A new device for one slot of a placement group. Callable from other kernels.

    Eligible is a device that is UP, has a weight above 0, is not in the row, and keeps the rule
    with the row's other slots. Usually a few descents of the tree, whatever the number of devices.

    Args:
        columns: From `placement_columns`.
        device_state: Shape (D,), dtype uint8. Values of DeviceState.
        row: Shape (n,), dtype int32. The PG's devices; `row[slot]` may still be the old one, which
            is never chosen again.
        slot: Which slot of the row.
        pg: Index of the PG, 32 bits are used.
        attempt_seed: Another value gives an independent choice; 32 bits are used.

    Returns:
        A device index, or NO_DEVICE if there is no eligible device.
    """
    x = hash2(np.uint32(pg), np.uint32(attempt_seed))
    return _choose_from_trial(columns, device_state, row, int(np.int64(slot)), x, int(np.int64(0)))


@njit
def _choose_from_trial(
    columns: PlacementColumns,
    device_state: Uint8Array,
    row: Int32Array,
    slot: int,
    x: np.uint32,
    first_trial: int,
) -> int:
    scratch = np.empty(columns.bucket_children_max, dtype=np.uint32)
    width = len(row)
    for trial in range(first_trial, TRIES):
        device = try_once(
            columns, device_state, row, slot, x, np.uint32(slot + width * trial), scratch
        )
        if device >= 0:
            return device
    return scan(columns, device_state, row, slot, x, np.uint32(slot + width * TRIES))


@njit
def draw_replacements(columns: PlacementColumns, count: int, draws: Int32Array) -> None:
    """The first draws of many choices at once, for `choose_drawn`. Callable from other kernels.

    To draw side by side takes a tenth of the time of one after the other, and what is drawn does
    not depend on rows or states.

    Args:
        columns: From `placement_columns`.
        count: Choices, at most DRAWS_MAX.
        draws: Shape (>= DRAW_ROWS, DRAWS_MAX). Rows DRAW_PG, DRAW_SLOT and DRAW_SEED are as of
            `choose_replacement`; DRAW_DOMAIN and DRAW_DEVICE are set.
    """
    words = np.empty((2, DRAWS_MAX), np.uint32)
    lanes = np.empty((SCRATCH_ROWS, DRAWS_MAX), np.uint32)
    lanes[:] = 0
    words[:] = 0
    scratch = np.empty(columns.bucket_children_max, np.uint32)
    tree, level = columns.tree, int(columns.level)
    x, r, slots = words[0], words[1], draws[DRAW_SLOT]
    domains, devices = draws[DRAW_DOMAIN], draws[DRAW_DEVICE]
    root = np.int32(len(tree.bucket) - 1)
    for i in range(count):
        x[i] = hash2(np.uint32(draws[DRAW_PG, i]), np.uint32(draws[DRAW_SEED, i]))
        r[i] = np.uint32(slots[i])
        domains[i] = root
    descend_many(tree, domains, count, ROOT_LEVEL - level, x, r, lanes, scratch)
    for i in range(count):
        devices[i] = domains[i]
        r[i] = np.uint32(slots[i] + slots[i])
    descend_many(tree, devices, count, level, x, r, lanes, scratch)


@inline_njit
def choose_drawn(
    columns: PlacementColumns,
    device_state: Uint8Array,
    row: Int32Array,
    draws: Int32Array,
    at: int,
) -> int:
    """As `choose_replacement`, after `draw_replacements`; `at`: which of the draws.

    Put into its callers, for a call with all columns takes longer than what is done.
    """
    device = draws[DRAW_DEVICE, at]
    if not may_take(
        columns.domain_of_device,
        columns.max_per_domain,
        columns.device_weight,
        columns.limit_max,
        columns.limit_domain,
        device_state,
        row,
        draws[DRAW_SLOT, at],
        device,
    ):
        device = _choose_after_draw(columns, device_state, row, draws, at)
    return int(device)


@njit
def _choose_after_draw(
    columns: PlacementColumns,
    device_state: Uint8Array,
    row: Int32Array,
    draws: Int32Array,
    at: int,
) -> np.int32:
    x = hash2(np.uint32(draws[DRAW_PG, at]), np.uint32(draws[DRAW_SEED, at]))
    # One width for all callers, as numba compiles each anew.
    slot, first_trial = int(np.int64(draws[DRAW_SLOT, at])), int(np.int64(1))
    return np.int32(_choose_from_trial(columns, device_state, row, slot, x, first_trial))


def all_up(device_count: int) -> Uint8Array:
    """Shape (D,): every device UP."""
    return np.full(device_count, DeviceState.UP, dtype=np.uint8)


def place_with_columns(
    columns: PlacementColumns,
    pg_count: int,
    n: int,
    *,
    seed: int = 0,
    device_state: Uint8Array | None = None,
    first_pg: int = 0,
) -> Int32Array:
    """As `place_pgs`, for columns that are at hand; may be called in blocks of PGs."""
    device_count = len(columns.device_weight)
    state = all_up(device_count) if device_state is None else np.array(device_state, np.uint8)
    if len(state) != device_count:
        raise ValueError(f"device_state has {len(state)} entries for {device_count} devices")
    rows = np.full((pg_count, n), NO_DEVICE, dtype=np.int32)
    if device_count > 0:
        now = new_round(columns, n)
        place(columns, state, np.uint32(seed & 0xFFFFFFFF), first_pg, rows, now)
    return rows


def place_pgs(
    topology: Topology,
    rule: PlacementRule,
    pg_count: int,
    n: int,
    *,
    seed: int = 0,
    device_state: Uint8Array | None = None,
) -> Int32Array:
    """Places `pg_count` placement groups of n slots.

    Args:
        topology: The failure domains.
        rule: What every row keeps.
        pg_count: Number of placement groups.
        n: Slots of each.
        seed: 32 bits; another seed gives an independent placement.
        device_state: Shape (D,). Only UP devices take slots. None: all are UP.

    Returns:
        Shape (pg_count, n), dtype int32: device of each slot; NO_DEVICE only where no eligible
        device is left.
    """
    columns = placement_columns(topology, rule)
    return place_with_columns(columns, pg_count, n, seed=seed, device_state=device_state)
