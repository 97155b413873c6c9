"""How many more losses a stripe survives, for every code, and what a repair of one slot reads.

The *remaining redundancy* of a stripe with a set of lost chunks is

    the least number of further losses that make the data undecodable, minus 1,

so: how many more losses are survived whichever they are. Of a stripe that is not decodable it is
minus the least number of chunks that must come back for it to be decodable again. For an MDS code
(Reed-Solomon, Clay, replication) both are m - losses. For an LRC it depends on which chunks are
lost: two losses in different groups of lrc-12-2-2 leave 2, two in one group leave 1, and 252 of the
1,820 losses of four chunks cannot be decoded.

Laws:
1. Whether a loss is decodable is said by the code itself (`Codec.decodable`), never by a formula
   for its family.
2. Up to `TABLE_SLOTS` chunks and `TABLE_PATTERNS` patterns the redundancy is exact. Beyond, as for
   lrc-48-4-3, it is the bound of the code's distance: never more than is true, and -1 if and only
   if the data is not decodable.

No numba here, as gateways start without it; `redundancy_kernels` has the compiled twin.
"""

from collections.abc import Collection, Iterable
from functools import cache
from itertools import combinations
from math import comb
from typing import Final

import numpy as np
from numpy.typing import NDArray

from exastore.erasure import Codec, RepairPlan, codec
from exastore.erasure.lrc import LocalCode
from exastore.metadata.core.topology import Int32Array, frozen

#: Codes of at most so many chunks may have a table, of 2 ** n entries.
TABLE_SLOTS: Final = 20
#: The most losses that are tried to make a table; each takes about 50 microseconds.
TABLE_PATTERNS: Final = 70_000

Int8Array = NDArray[np.int8]
BoolArray = NDArray[np.bool_]


class Redundancy:
    """The remaining redundancy of one code. Immutable; made by `redundancy_of`."""

    def __init__(self, code: Codec) -> None:
        self.code: Final = code
        #: By the mask of lost chunks (bit i: chunk i); empty for MDS codes and for wide ones.
        self.table: Final = frozen(np.empty(0, np.int8)) if code.is_mds else _table(code)
        #: How many losses of a whole stripe are survived, whichever they are.
        self.sure: Final = sure_losses(code)

    def of(self, lost: Iterable[int]) -> int:
        """The remaining redundancy with these chunks lost."""
        indexes = sorted(set(lost))
        if self.code.is_mds:
            return self.code.m - len(indexes)
        if len(self.table):
            return int(self.table[sum(1 << index for index in indexes)])
        if len(indexes) > self.code.m or not self.code.decodable(indexes):
            return min(-1, self.code.m - len(indexes))
        return max(self.sure - len(indexes), 0)

    def of_rows(self, lost: BoolArray) -> Int32Array:
        """The same for many stripes at once. Shape: (P, n) gives (P,)."""
        if self.code.is_mds:
            return np.asarray(self.code.m - lost.sum(axis=1), dtype=np.int32)
        if len(self.table):
            masks = lost @ (1 << np.arange(self.code.n, dtype=np.int64))
            return self.table[masks].astype(np.int32)
        patterns, which = np.unique(lost, axis=0, return_inverse=True)
        values = [self.of(np.flatnonzero(row).tolist()) for row in patterns]
        return np.array(values, dtype=np.int32)[which.reshape(-1)]


@cache
def redundancy_of(code: str) -> Redundancy:
    """The redundancy of the code of this name; the first call may take seconds for an LRC.

    Raises:
        UnknownCode: there is no such code.
    """
    return Redundancy(codec(code))


def remaining_of_rows(code: str, lost: BoolArray, m: int) -> Int32Array:
    """The remaining redundancy of the rows of a map. Shape: (P, n) gives (P,).

    Args:
        code: The map's code; empty in maps that nothing is stored under, which counts as MDS.
        lost: Which slots cannot be read.
        m: Losses that the code survives if it is MDS.
    """
    if not code or codec(code).is_mds:
        return np.asarray(m - lost.sum(axis=1), dtype=np.int32)
    return redundancy_of(code).of_rows(lost)


def survives(code: Codec, lost: Collection[int], further: int) -> bool:
    """Whether the data survives these losses and any `further` ones: redundancy >= further.

    Needs no table: it asks the code about every way to lose that many more.
    """
    count = len(set(lost)) + further
    if code.is_mds or count <= sure_losses(code) or count > code.m:
        return count <= code.m
    left = [index for index in range(code.n) if index not in lost]
    return len(left) >= further and all(
        code.decodable({*lost, *more}) for more in combinations(left, further)
    )


def repair_plan_for(code: Codec, wanted: Iterable[int], unreadable: Collection[int]) -> RepairPlan:
    """What to read to rebuild some chunks as cheaply as known, if `unreadable` ones are not there.

    The code's plan for the wanted chunks alone is taken, if it reads none of those; otherwise the
    ones that it would read are lost for this repair, too. So an LRC's group repairs its chunk
    whatever is lost elsewhere, and nothing that is not there is read. The plan's `lost` may name
    further chunks.

    Raises:
        TooFewChunks: the chunks cannot be rebuilt from what there is.
    """
    lost = set(wanted)
    gone = lost.union(unreadable)
    while True:
        plan = code.repair_plan(lost)
        missed = gone.intersection(plan.reads)
        if not missed:
            return plan
        lost |= missed


def sure_losses(code: Codec) -> int:
    """How many losses of a whole stripe the code survives, whichever they are."""
    if isinstance(code, LocalCode):
        # Any g + 1 losses are decoded: the distance of the construction, see `erasure.lrc`.
        return code.m - code.group_count + 1
    return code.m


def log_copies(code: Codec) -> int:
    """How many copies of a small object survive what a whole stripe of the code surely does.

    They lie in the first slots of a placement group of the code, until the object is packed.
    """
    return sure_losses(code) + 1


def log_code(code: Codec) -> Codec:
    """The code of those copies."""
    return codec(f"rep-{log_copies(code)}")


def _table(code: Codec) -> Int8Array:
    """The redundancy by mask, or nothing if there are too many patterns. Shape: (2 ** n,)."""
    n = code.n
    pattern_count = sum(comb(n, size) for size in range(code.m + 1))
    if n > TABLE_SLOTS or pattern_count > TABLE_PATTERNS:
        return frozen(np.empty(0, np.int8))
    decodable = np.zeros(1 << n, np.bool_)
    for size in range(code.m + 1):
        for lost in combinations(range(n), size):
            mask = sum(1 << index for index in lost)
            # What contains a loss that is not decodable is not either.
            if all(decodable[mask ^ (1 << index)] for index in lost):
                decodable[mask] = code.decodable(lost)
    further = _distance(~decodable, n, upwards=True) - 1
    return frozen(np.where(decodable, further, -_distance(decodable, n, upwards=False)))


def _distance(goal: BoolArray, n: int, *, upwards: bool) -> Int8Array:
    """How many losses (upwards), or returns, lead from each mask to the goal. Shape: (2 ** n,)."""
    distance = np.zeros(1 << n, np.int8)
    reached = goal
    while not reached.all():
        distance[~reached] += 1
        grown = reached.copy()
        for bit in range(n):
            old, new = (masks.reshape(-1, 2, 1 << bit) for masks in (reached, grown))
            new[:, int(not upwards)] |= old[:, int(upwards)]
        reached = grown
    return distance
