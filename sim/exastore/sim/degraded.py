"""The PGs that miss something: a hash table, so that a healthy PG costs no byte of state.

Of 72 million PGs some thousands are degraded at any time. Their records lie together here and stay
in the cache, where an array over all PGs would not. Open addressing with linear probing; a removal
shifts back what follows, so there are no marks of deleted entries. No record is looked at by its
place after a removal.
"""

import numpy as np

from exastore.erasure.jit import inner_njit, njit
from exastore.sim.state import DEGRADED, DEGRADED_ENTRIES, NONE, Records, State
from exastore.sim.streams import wide


@njit
def _home(pg: int, mask: int) -> int:
    """The place of a PG if nobody is there: the high bits of a product (Knuth)."""
    return ((pg * 0x9E3779B1) & 0xFFFFFFFF) * 0x85EBCA6B >> 20 & mask


@inner_njit
def _probe(table: Records, pg: int) -> int:
    """Where the record of a PG is, or the free place that it would take."""
    mask = len(table) - 1
    at = _home(pg, mask)
    while table[at].pg != pg and table[at].pg != NONE:
        at = (at + 1) & mask
    return at


@inner_njit
def find(table: Records, pg: int) -> int:
    """Where the record of a PG is, or NONE."""
    at = _probe(table, pg)
    return at if table[at].pg == pg else NONE


@inner_njit
def find_or_add(state: State, pg: int) -> int:
    """Where the record of a PG is; a new one if there was none. The caller saw to the room."""
    table = state.degraded
    at = _probe(table, pg)
    if table[at].pg == pg:
        return at
    table[at].pg = pg
    table[at].missing = 0
    table[at].gone = 0
    table[at].put_off = NONE
    table[at].lost = 0
    table[at].unavailable = 0
    state.counter[DEGRADED_ENTRIES] += 1
    return at


@inner_njit
def drop(state: State, at: int) -> None:
    """Removes the record at `at`."""
    table = state.degraded
    mask = len(table) - 1
    hole = at
    at = (at + 1) & mask
    while table[at].pg != NONE:
        home = _home(wide(table[at].pg), mask)
        # An entry may fill the hole unless its home lies behind it, cyclically.
        if ((at - home) & mask) >= ((at - hole) & mask):
            table[hole].pg = table[at].pg
            table[hole].since_s = table[at].since_s
            table[hole].missing = table[at].missing
            table[hole].gone = table[at].gone
            table[hole].put_off = table[at].put_off
            table[hole].lost = table[at].lost
            table[hole].unavailable = table[at].unavailable
            hole = at
        at = (at + 1) & mask
    table[hole].pg = NONE
    state.counter[DEGRADED_ENTRIES] -= 1


@njit
def _move_all(old: Records, new: Records) -> None:
    mask = len(new) - 1
    for i in range(len(old)):
        if old[i].pg == NONE:
            continue
        at = _home(wide(old[i].pg), mask)
        while new[at].pg != NONE:
            at = (at + 1) & mask
        new[at] = old[i]


def new_table(size: int) -> Records:
    """An empty table of `size` places, a power of 2."""
    table = np.zeros(size, DEGRADED)
    table["pg"] = NONE
    return table


def grown(table: Records) -> Records:
    """The same records in twice the room."""
    larger = new_table(2 * len(table))
    _move_all(table, larger)
    return larger
