"""What a Clay code does, as steps: made once per pattern of losses, run on any length.

**Geometry.** q = m, and n + v = q t nodes, v of them virtual (chunks of zeros that are never
stored). Node (x, y) is number y q + x: the data chunks, then the virtual nodes, then the parity
chunks, which are the last column y = t - 1. A chunk has q^t sub-chunks, numbered by planes
z = (z_0, ..., z_(t-1)), z_0 the most significant digit.

**Code.** Sub-chunk C(x, y; z) with z_y = w != x is paired with C* = C(w, y; z with z_y = x): the
inner code sees U = C + 2 C* and U* = C* + 2 C. With w = x it is single, and U = C. The U of a plane
are a stripe of the inner code, Reed-Solomon with k + v data and m parity chunks [Vajha et al.,
"Clay Codes: Moulding MDS Codes to Yield an MSR Code", USENIX FAST 2018, sections 3 and 4].

**Decoding** goes through the planes by their level, the number of lost nodes (x, y) with z_y = x.
In a plane, U of a node that is there is C + 2 C*, where a lost C* was made in a plane of one level
less. The inner code gives U of the lost nodes, and C = U + 2 C* if C* is there. Where both of a
pair are lost, U takes the place of C until both planes, of one level, are done; then
C = (U + 2 U*) / 5 and C* = (U* + 2 U) / 5. So one step does a plane, and no U is stored but these.

**Repair** of nodes lost from one column y, at the places X, reads only the planes with z_y in X,
|X| / q of them. There, everything outside of the column is coupled within these planes, and the
inner code gives U of the whole column. That of a lost node is its C, or makes it as above; that of
any other, in plane z, gives the lost C* = (U + C) / 2 of its pair, in a plane that is not read.
For |X| = 1 this is the least that any code can read; for several it is the bound for centralised
repair.

**Update.** As data chunk (x, y) changes by D, so does U(x, y; z) by D(z), and in the planes with
z_y = x also U(w, y; z) by 2 D(z with z_y = w). So for q planes 2 q - 1 columns of the inner code
are computed instead of q (k + v).
"""

from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import combinations
from typing import Final

import numpy as np
from numpy.typing import NDArray

from exastore.erasure import field
from exastore.erasure.field import MUL, Bytes
from exastore.erasure.kernels import Kernel
from exastore.erasure.matrix import cauchy_generator, parity_check, solve
from exastore.erasure.steps import (
    POSITION_BITS,
    Family,
    Runner,
    Stage,
    Steps,
    coupled_family,
    pair_family,
    runner,
    sum_family,
)

Rows = NDArray[np.int64]

#: U = C + COUPLING C*.
COUPLING: Final = 2
#: 1 / (1 + COUPLING^2): C = UNCOUPLING (U + COUPLING U*).
UNCOUPLING: Final = field.inverse(1 ^ field.multiply(COUPLING, COUPLING))
#: 1 / COUPLING: C* = HALF (U + C).
HALF: Final = field.inverse(COUPLING)
#: Rows that a step makes at most: their sums stay in registers.
MAX_MADE: Final = 8


@dataclass(frozen=True)
class Geometry:
    """The nodes and planes of clay-k-m-(k+m-1)."""

    k: int
    m: int

    @cached_property
    def virtual_count(self) -> int:
        """Nodes without a chunk, to make the number of nodes a multiple of q = m."""
        return -(self.k + self.m) % self.m

    @cached_property
    def node_count(self) -> int:
        """Nodes, the virtual ones included."""
        return self.k + self.m + self.virtual_count

    @cached_property
    def digit_count(self) -> int:
        """t: columns of nodes, and digits of a plane."""
        return self.node_count // self.m

    @cached_property
    def plane_count(self) -> int:
        """Sub-chunks of a chunk."""
        return int(self.m**self.digit_count)

    @cached_property
    def inner_check(self) -> Bytes:
        """The parity check of the inner code. Shape: [m, nodes]."""
        return parity_check(cauchy_generator(self.node_count - self.m, self.m))

    def node(self, index: int) -> int:
        """The node of a chunk."""
        return index if index < self.k else index + self.virtual_count

    def is_virtual(self, node: int) -> bool:
        """Whether a node has no chunk."""
        return self.k <= node < self.k + self.virtual_count

    def step(self, y: int) -> int:
        """The distance of two planes that differ by 1 in digit y alone."""
        return int(self.m ** (self.digit_count - 1 - y))

    def digit(self, planes: Rows, y: int) -> Rows:
        """Digit y of each plane."""
        return planes // self.step(y) % self.m

    def column_of(self, indexes: Sequence[int]) -> int | None:
        """The column that all these chunks are in, if they are in one."""
        columns = {self.node(index) // self.m for index in indexes}
        return columns.pop() if len(columns) == 1 else None

    def repair_planes(self, indexes: Sequence[int], y: int) -> Rows:
        """The planes to read for the repair of chunks of column y, ascending."""
        places = [self.node(index) % self.m for index in indexes]
        planes = np.arange(self.plane_count)
        return planes[np.isin(self.digit(planes, y), places)]


class Layout:
    """Which buffers there are, and where the sub-chunks are in them.

    Buffers are the chunks by their indexes, a row of zeros, and workspaces of a row per plane.
    """

    def __init__(self, geometry: Geometry, place: Rows) -> None:
        """`place`: plane -> its position in the chunks that are read."""
        self._geometry: Final = geometry
        self._place: Final = place
        self.zeros: Final = geometry.k + geometry.m

    def workspace(self, number: int) -> int:
        """A buffer of the workspace."""
        return self.zeros + 1 + number

    def buffer(self, node: int) -> int:
        """The buffer of a node's chunk: zeros for a virtual node."""
        geometry = self._geometry
        if geometry.is_virtual(node):
            return self.zeros
        return node if node < geometry.k else node - geometry.virtual_count

    def row(self, buffer: int, positions: Rows) -> Rows:
        """Codes of rows."""
        if buffer == self.zeros:
            return np.full_like(positions, self.zeros << POSITION_BITS)
        return (buffer << POSITION_BITS) | positions

    def read(self, node: int, planes: Rows) -> Rows:
        """A node's sub-chunks that are read."""
        return self.row(self.buffer(node), self._place[planes])

    def made(self, node: int, planes: Rows) -> Rows:
        """A node's sub-chunks that are made: of a whole chunk."""
        return self.row(self.buffer(node), planes)

    def partners(self, node: int, planes: Rows, absent: Container[int] = ()) -> Rows:
        """What the sub-chunks are paired with: zeros if with nothing, or with an `absent` node."""
        q = self._geometry.m
        x, y = node % q, node // q
        digits = self._geometry.digit(planes, y)
        codes = np.full_like(planes, self.zeros << POSITION_BITS)
        for w in range(q):
            partner = y * q + w
            if w != x and partner not in absent:
                chosen = digits == w
                other = planes[chosen] + (x - w) * self._geometry.step(y)
                codes[chosen] = self.read(partner, other)
        return codes


@dataclass(frozen=True, slots=True)
class Work:
    """What to do to some chunks."""

    run: Runner
    #: The chunks that it makes.
    makes: tuple[int, ...]
    workspace_count: int = 0


class Planner:
    """Makes the work of one code."""

    def __init__(self, geometry: Geometry, kernel: Kernel) -> None:
        self.geometry: Final = geometry
        self._kernel: Final = kernel
        self._planes: Final = np.arange(geometry.plane_count)
        self._whole: Final = Layout(geometry, self._planes)
        self._checking_steps: Final = lru_cache(maxsize=geometry.m)(self._make_checking_steps)

    def decoding(self, lost: Sequence[int]) -> Work:
        """From all chunks but `lost`, 1 to m of them, to these."""
        geometry, planes, layout = self.geometry, self._planes, self._whole
        erased = [geometry.node(index) for index in lost]
        alive = [node for node in range(geometry.node_count) if node not in erased]
        used = self._virtual_last(alive)[-(geometry.node_count - geometry.m) :]
        level = np.zeros_like(planes)
        for node in erased:
            level += geometry.digit(planes, node // geometry.m) == node % geometry.m
        # Encoding is worth a program of its own. No partner of the parity is there, and pairs are
        # done as soon as their planes are, while they are in the cache.
        is_encoding = min(erased) == geometry.node_count - geometry.m and len(erased) == geometry.m
        keys = planes // geometry.m if is_encoding else level
        families: list[Family] = [_pairs_family()]
        tiles = list(
            self._tiles(
                self._inner(used, erased),
                used,
                late={} if is_encoding else dict.fromkeys(range(len(erased)), COUPLING),
                structured=is_encoding,
            )
        )
        families += [family for _, family in tiles]
        pairs = self._pairs(erased)
        pair_level = level[pairs[0]]
        stages: list[Stage] = []
        for step in np.unique(level):
            chosen = planes[level == step]
            for number, (first, family) in enumerate(tiles, 1):
                made = erased[first:]
                late = {row: layout.partners(node, chosen, erased) for row, node in enumerate(made)}
                columns = self._inputs(family, layout, used, chosen, late)
                columns += [layout.made(made[row], chosen) for row in family.outputs]
                stages.append(_stage(number, columns, keys[chosen]))
            own, partner = (rows[pair_level == step] for rows in pairs[1:])
            stages.append(
                _stage(0, [own, partner, own, partner], keys[pairs[0][pair_level == step]])
            )
        return Work(runner(self._kernel, families, Steps(stages)), tuple(lost))

    def repair(self, lost: Sequence[int], y: int, *, packed: bool) -> Work:
        """From the `repair_planes` of all chunks but `lost`, all of column y, to these.

        Args:
            lost: chunks.
            y: their column.
            packed: chunks that are read have these planes only, one after the other.
        """
        geometry = self.geometry
        q = geometry.m
        planes = geometry.repair_planes(lost, y)
        place = self._planes
        if packed:
            place = np.full(geometry.plane_count, -1)
            place[planes] = np.arange(planes.size)
        layout = Layout(geometry, place)
        erased = [geometry.node(index) for index in lost]
        # The erased first, so that families differ by their number alone.
        column = sorted(range(y * q, (y + 1) * q), key=lambda node: node not in erased)
        used = self._virtual_last(
            [node for node in range(geometry.node_count) if node not in column]
        )
        digits = geometry.digit(planes, y)
        matrix = self._inner(used, column)
        late: dict[int, int] = {}
        made: list[Rows] = []
        for row, node in enumerate(column):
            if node in erased:
                made.append(layout.made(node, planes))
                continue
            matrix[row] = MUL[HALF, matrix[row]]
            late[row] = HALF
            rows = np.empty_like(planes)
            for other in erased:
                w = other % q
                chosen = digits == w
                rows[chosen] = layout.made(
                    other, planes[chosen] + (node - other) * geometry.step(y)
                )
            made.append(rows)
        families: list[Family] = [_pairs_family()]
        stages: list[Stage] = []
        keys = np.zeros_like(planes)
        for first, family in self._tiles(matrix, used, late=late):
            stored = {row: layout.read(node, planes) for row, node in enumerate(column[first:])}
            columns = self._inputs(family, layout, used, planes, stored)
            columns += [made[first + row] for row in family.outputs]
            stages.append(_stage(len(families), columns, keys))
            families.append(family)
        paired, own, partner = self._pairs(erased)
        stages.append(_stage(0, [own, partner, own, partner], np.zeros_like(paired)))
        return Work(runner(self._kernel, families, Steps(stages)), tuple(lost))

    def checking(self, checks: Bytes) -> Work:
        """From all chunks to these checks of the inner code, in the workspaces.

        Shape of checks: [checks, nodes].
        """
        nodes = range(self.geometry.node_count)
        families = [family for _, family in self._tiles(checks, nodes)]
        steps = self._checking_steps(len(checks))
        return Work(runner(self._kernel, families, steps), (), len(checks))

    def _make_checking_steps(self, count: int) -> Steps:
        nodes = range(self.geometry.node_count)
        stages: list[Stage] = []
        # The coefficients make no difference to the steps.
        ones = np.ones((count, len(nodes)), dtype=np.uint8)
        for number, (first, family) in enumerate(self._tiles(ones, nodes)):
            columns = self._inputs(family, self._whole, nodes, self._planes, {})
            columns += [
                self._whole.row(self._whole.workspace(first + row), self._planes)
                for row in family.outputs
            ]
            stages.append(_stage(number, columns, self._planes))
        return Steps(stages)

    def updating(self, index: int) -> Work:
        """From a data chunk before and after a change, to the parity.

        The new chunk is in workspace m; workspaces 0 to m - 1 take U of the parity.
        """
        geometry, layout, planes = self.geometry, self._whole, self._planes
        q = geometry.m
        x, y = index % q, index // q
        column = list(range(y * q, (y + 1) * q))
        parity = list(range(geometry.node_count - q, geometry.node_count))
        matrix = geometry.inner_check[:, column]
        others = [w for w in range(q) if w != x]
        matrix[:, others] = MUL[COUPLING, matrix[:, others]]
        digits = geometry.digit(planes, y)
        families: list[Family] = [_pairs_family(accumulates=True), sum_family()]
        stages: list[Stage] = []
        for columns, chosen in (([x], planes[digits != x]), (range(q), planes[digits == x])):
            part = np.ascontiguousarray(matrix[:, columns])
            for first, family in self._tiles(part, [], factor=1):
                codes: list[Rows] = []
                for used in family.inputs:
                    buffer = index if used.role == "own" else layout.workspace(q)
                    shift = (columns[used.place] - x) * geometry.step(y)
                    codes.append(layout.row(buffer, chosen + shift))
                codes += [
                    layout.row(layout.workspace(first + row), chosen) for row in family.outputs
                ]
                stages.append(_stage(len(families), codes, chosen // q))
                families.append(family)
        work = {node: layout.workspace(number) for number, node in enumerate(parity)}
        paired, *made = self._pairs(parity)
        _, *inner = self._pairs(parity, work)
        stages.append(_stage(0, [*inner, *made], paired // q))
        for node, buffer in work.items():
            single = planes[geometry.digit(planes, node // q) == node % q]
            codes = [layout.row(buffer, single), layout.made(node, single)]
            stages.append(_stage(1, codes, single // q))
        made_chunks = tuple(range(geometry.k, geometry.k + q))
        return Work(runner(self._kernel, families, Steps(stages)), made_chunks, q + 1)

    def _inner(self, used: Sequence[int], made: Sequence[int]) -> Bytes:
        """The matrix that makes U of nodes from U of others, in the order of these."""
        unknown = [node for node in range(self.geometry.node_count) if node not in used]
        solution = solve(self.geometry.inner_check, unknown, (), made)
        assert solution is not None and list(solution[0]) == sorted(used)
        return np.ascontiguousarray(solution[1][:, np.argsort(np.argsort(used))])

    def _virtual_last(self, nodes: Sequence[int]) -> list[int]:
        """Nodes with the virtual ones last, so that families differ by their numbers alone."""
        return sorted(nodes, key=self.geometry.is_virtual)

    def _tiles(
        self,
        matrix: Bytes,
        used: Sequence[int],
        *,
        factor: int = COUPLING,
        late: Mapping[int, int] | None = None,
        structured: bool = False,
    ) -> Iterator[tuple[int, Family]]:
        """Families that make a few rows each: the first row, and the family. See there."""
        virtual = [i for i, node in enumerate(used) if self.geometry.is_virtual(node)]
        for first in range(0, len(matrix), MAX_MADE):
            rows = range(first, min(first + MAX_MADE, len(matrix)))
            yield (
                first,
                coupled_family(
                    matrix[rows.start : rows.stop],
                    factor=factor,
                    without_own=virtual,
                    late={row - first: late[row] for row in rows if row in late} if late else {},
                    structured=structured,
                ),
            )

    def _inputs(
        self,
        family: Family,
        layout: Layout,
        used: Sequence[int],
        planes: Rows,
        late: Mapping[int, Rows],
    ) -> list[Rows]:
        """The rows that a family reads in these planes."""
        rows: list[Rows] = []
        for place in family.inputs:
            match place.role:
                case "own":
                    rows.append(layout.read(used[place.place], planes))
                case "partner":
                    rows.append(layout.partners(used[place.place], planes))
                case _:
                    rows.append(late[place.place])
        return rows

    def _pairs(
        self, nodes: Sequence[int], buffers: Mapping[int, int] | None = None
    ) -> tuple[Rows, Rows, Rows]:
        """All pairs among these nodes: the plane of the first, its row, that of the second.

        The rows are of the nodes' own buffers, or of these.
        """
        geometry, layout = self.geometry, self._whole
        q = geometry.m
        none = self._planes[:0]
        found: list[tuple[Rows, Rows, Rows]] = [(none, none, none)]
        for one, other in combinations(nodes, 2):
            y = one // q
            if other // q == y:
                planes = self._planes[geometry.digit(self._planes, y) == other % q]
                partner = planes + (one - other) * geometry.step(y)
                places = [
                    layout.buffer(node) if buffers is None else buffers[node]
                    for node in (one, other)
                ]
                found.append(
                    (planes, layout.row(places[0], planes), layout.row(places[1], partner))
                )
        planes, own, partner = (np.concatenate(rows) for rows in zip(*found, strict=True))
        return planes, own, partner


def _pairs_family(*, accumulates: bool = False) -> Family:
    """C and C* of U and U*."""
    return pair_family(UNCOUPLING, field.multiply(COUPLING, UNCOUPLING), accumulates=accumulates)


def _stage(family: int, columns: Sequence[Rows], keys: Rows) -> Stage:
    return Stage(family, np.stack(columns, axis=1).astype(np.int32), keys)
