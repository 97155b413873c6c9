"""What a Clay code does, as lists of work: made once per pattern of losses, run on any length.

**Geometry.** q = m, and n + v = q t nodes, v of them virtual (chunks of zeros that are never
stored). Node (x, y) is number y q + x: the data chunks, then the virtual nodes, then the parity
chunks, which are the last column y = t - 1. A chunk has q^t sub-chunks, numbered by planes
z = (z_0, ..., z_(t-1)), z_0 the most significant digit.

**Code.** Sub-chunk C(x, y; z) with z_y = w != x is paired with C(w, y; z with z_y = x) as
`coupling` says; with w = x it is single, and U = C. The U of a plane are a stripe of the inner
code, Reed-Solomon with k + v data and m parity chunks [Vajha et al., "Clay Codes: Moulding MDS
Codes to Yield an MSR Code", USENIX FAST 2018, sections 3 and 4].

**Decoding** goes through the planes by the number of lost nodes (x, y) with z_y = x. In a plane, U
of a node that is there follows from C and C*, or, where the partner is lost, from C and from U* of
a plane with one such node less. Then the inner code gives U of the lost nodes, and all U give C.

**Repair** of nodes lost from one column y, at the places X, reads only the planes with z_y in X,
|X| / q of them. There, everything outside of the column is coupled within these planes, the inner
code gives U of the whole column, and with it C of the lost nodes in all planes. For |X| = 1 this is
the least that any code can read; for several it is the bound for centralised repair.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np

from exastore.erasure.chunks import Chunks, check_chunks
from exastore.erasure.coupling import Jobs, Kind, Rows
from exastore.erasure.field import Bytes
from exastore.erasure.kernels import Kernel, LinearMap
from exastore.erasure.matrix import cauchy_generator, parity_check, solve

#: Memory of one pass: larger pieces cost fewer cache and TLB misses than a smaller workspace saves.
WORKSPACE_BYTES = 6 * 1024 * 1024
#: Bytes of a sub-chunk worked on at once, at least; shorter sub-chunks are padded to words.
MIN_PIECE_BYTES = 64
WORD_BYTES = 8

Part = tuple[Kind, Rows, Rows, Rows]


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


@dataclass(frozen=True, slots=True)
class Stage:
    """Jobs, then the inner code over consecutive planes."""

    jobs: Jobs
    #: None: no inner code.
    inner: LinearMap | None = None
    #: Rows to use and to make, each the first of `plane_count` consecutive ones.
    reads: tuple[int, ...] = ()
    makes: tuple[int, ...] = ()
    plane_count: int = 0


@dataclass(frozen=True, slots=True)
class Program:
    """Stages over a workspace of rows, each a piece of one sub-chunk.

    Rows: C of every node and plane that is read, U of the same (planes perhaps in another order),
    then the results.
    """

    node_count: int
    #: Planes that are read.
    plane_count: int
    #: Rows of results, for one result after the other.
    result_count: int
    result_plane_count: int
    stages: tuple[Stage, ...]

    @property
    def row_count(self) -> int:
        """Rows of the workspace."""
        return 2 * self.node_count * self.plane_count + self.result_count * self.result_plane_count

    def run(self, chunks: dict[int, Bytes], pool: list[Bytes]) -> Iterator[tuple[slice, Bytes]]:
        """Yield piece by piece of the sub-chunks: where it is in them, and the results there.

        Args:
            chunks: node -> its planes that are read, one after the other; all equally long. Nodes
                that are not among them must be virtual, or not used.
            pool: workspaces to use again; one is taken, and given back at the end.
        """
        planes = {node: chunk.reshape(self.plane_count, -1) for node, chunk in chunks.items()}
        sub_chunk_bytes = next(iter(planes.values())).shape[1]
        piece_bytes = self._piece_bytes(sub_chunk_bytes)
        size = self.row_count * piece_bytes
        memory = pool.pop() if pool else np.empty(max(size, WORKSPACE_BYTES), dtype=np.uint8)
        if memory.size < size:
            memory = np.empty(size, dtype=np.uint8)
        rows = memory[:size].reshape(self.row_count, piece_bytes)
        stored = rows[: self.node_count * self.plane_count].reshape(
            self.node_count, self.plane_count, piece_bytes
        )
        for node in range(self.node_count):
            if node not in planes:
                stored[node] = 0
        results = rows[2 * self.node_count * self.plane_count :].reshape(
            self.result_count, self.result_plane_count, piece_bytes
        )
        steps = [self._bind(stage, rows) for stage in self.stages]
        words = rows.view(np.uint64)
        for begin in range(0, sub_chunk_bytes, piece_bytes):
            piece = slice(begin, min(begin + piece_bytes, sub_chunk_bytes))
            width = piece.stop - begin
            for node, source in planes.items():
                stored[node, :, :width] = source[:, piece]
            for jobs, inner in steps:
                jobs.run(words)
                if inner is not None:
                    inner[0](inner[1], inner[2])
            yield piece, results[:, :, :width]
        pool.append(memory)

    def _piece_bytes(self, sub_chunk_bytes: int) -> int:
        fitting = WORKSPACE_BYTES // self.row_count // MIN_PIECE_BYTES * MIN_PIECE_BYTES
        padded = -(-sub_chunk_bytes // WORD_BYTES) * WORD_BYTES
        return max(WORD_BYTES, min(padded, max(fitting, MIN_PIECE_BYTES)))

    def _bind(
        self, stage: Stage, rows: Bytes
    ) -> tuple[Jobs, tuple[LinearMap, Chunks, Chunks] | None]:
        if stage.inner is None:
            return stage.jobs, None
        sources = [rows[row : row + stage.plane_count].reshape(-1) for row in stage.reads]
        targets = [rows[row : row + stage.plane_count].reshape(-1) for row in stage.makes]
        return stage.jobs, (
            stage.inner,
            check_chunks(sources, len(sources), "given"),
            check_chunks(targets, len(targets), "made"),
        )


class Planner:
    """Makes the programs of one code."""

    def __init__(self, geometry: Geometry, kernel: Kernel) -> None:
        self.geometry = geometry
        self._kernel = kernel
        #: U of all nodes in all planes: the same for every `checking`.
        self._uncoupling: Jobs | None = None

    def decoding(self, lost: Sequence[int], want: Sequence[int]) -> Program:
        """From all chunks but `lost`, m at most, to `want`, some of these."""
        geometry = self.geometry
        nodes, planes = range(geometry.node_count), np.arange(geometry.plane_count)
        erased = [geometry.node(index) for index in lost]
        used = [node for node in nodes if node not in erased][: geometry.node_count - geometry.m]
        level = np.zeros(geometry.plane_count, dtype=np.int64)
        for node in erased:
            level += geometry.digit(planes, node // geometry.m) == node % geometry.m
        order = np.argsort(level, kind="stable")
        place = np.empty_like(order)
        place[order] = planes
        layout = _Layout(geometry, geometry.plane_count, place, place_stored=planes)
        inner = self._inner(used, erased)
        bounds = [0, *(np.flatnonzero(np.diff(level[order])) + 1).tolist(), geometry.plane_count]
        stages = [
            Stage(
                Jobs.of(
                    part for node in used for part in layout.uncouple(node, order[a:b], erased)
                ),
                inner,
                tuple(layout.inner_row(node, a) for node in used),
                tuple(layout.inner_row(node, a) for node in erased),
                b - a,
            )
            for a, b in pairwise(bounds)
        ]
        ends = Jobs.of(
            part
            for position, index in enumerate(want)
            for part in layout.couple(geometry.node(index), position, planes, erased)
        )
        return Program(
            geometry.node_count,
            geometry.plane_count,
            len(want),
            geometry.plane_count,
            (*stages, Stage(ends)),
        )

    def repair(self, lost: Sequence[int], want: Sequence[int], y: int) -> Program:
        """From the `repair_planes` of all chunks but `lost`, all of column y, to `want` of them."""
        geometry = self.geometry
        q = geometry.m
        planes = geometry.repair_planes(lost, y)
        place = np.full(geometry.plane_count, -1)
        place[planes] = np.arange(planes.size)
        layout = _Layout(geometry, planes.size, place, place_stored=place)
        column = list(range(y * q, (y + 1) * q))
        used = [node for node in range(geometry.node_count) if node not in column]
        first = Stage(
            Jobs.of(part for node in used for part in layout.uncouple(node, planes, [])),
            self._inner(used, column),
            tuple(layout.inner_row(node, 0) for node in used),
            tuple(layout.inner_row(node, 0) for node in column),
            planes.size,
        )
        erased = [geometry.node(index) for index in lost]
        ends = Jobs.of(
            part
            for position, index in enumerate(want)
            for part in layout.finish(geometry.node(index), position, erased)
        )
        return Program(
            geometry.node_count, planes.size, len(want), geometry.plane_count, (first, Stage(ends))
        )

    def checking(self, checks: Bytes) -> Program:
        """From all chunks to these checks of the inner code. Shape of checks: [checks, nodes]."""
        geometry = self.geometry
        planes = np.arange(geometry.plane_count)
        layout = _Layout(geometry, geometry.plane_count, planes, place_stored=planes)
        nodes = range(geometry.node_count)
        if self._uncoupling is None:
            self._uncoupling = Jobs.of(
                part for node in nodes for part in layout.uncouple(node, planes, [])
            )
        stage = Stage(
            self._uncoupling,
            self._kernel.prepare(checks),
            tuple(layout.inner_row(node, 0) for node in nodes),
            tuple(layout.result_row(check, 0) for check in range(len(checks))),
            geometry.plane_count,
        )
        return Program(
            geometry.node_count, geometry.plane_count, len(checks), geometry.plane_count, (stage,)
        )

    def _inner(self, used: Sequence[int], made: Sequence[int]) -> LinearMap:
        unknown = [node for node in range(self.geometry.node_count) if node not in used]
        solution = solve(self.geometry.inner_check, unknown, (), made)
        assert solution is not None and list(solution[0]) == list(used)
        return self._kernel.prepare(solution[1])


class _Layout:
    """Where the rows of a program are, and which jobs a node needs."""

    def __init__(
        self, geometry: Geometry, plane_count: int, place: Rows, *, place_stored: Rows
    ) -> None:
        """`place`, `place_stored`: plane -> its position among the U, among the C."""
        self._geometry = geometry
        self._plane_count = plane_count
        self._place = place
        self._place_stored = place_stored

    def inner_row(self, node: int, position: int) -> int:
        """The row of U."""
        return (self._geometry.node_count + node) * self._plane_count + position

    def result_row(self, result: int, plane: int) -> int:
        """The row of a plane of a result."""
        whole = self._geometry.plane_count
        return 2 * self._geometry.node_count * self._plane_count + result * whole + plane

    def _stored(self, node: int, planes: Rows) -> Rows:
        return node * self._plane_count + self._place_stored[planes]

    def _inner(self, node: int, planes: Rows) -> Rows:
        return self.inner_row(node, 0) + self._place[planes]

    def _pairs(self, node: int, planes: Rows) -> Iterator[tuple[int, Rows, Rows]]:
        """Partner node, planes with this partner, planes of the partner."""
        q = self._geometry.m
        x, y = node % q, node // q
        digits = self._geometry.digit(planes, y)
        for w in range(q):
            chosen = planes[digits == w]
            yield y * q + w, chosen, chosen + (x - w) * self._geometry.step(y)

    def uncouple(self, node: int, planes: Rows, erased: Sequence[int]) -> Iterator[Part]:
        """U of a node that is there."""
        for partner, own, other in self._pairs(node, planes):
            made, stored = self._inner(node, own), self._stored(node, own)
            if partner == node:
                yield Kind.COPY, made, stored, stored
            elif partner in erased:
                yield Kind.REACH, made, stored, self._inner(partner, other)
            else:
                yield Kind.COUPLE, made, stored, self._stored(partner, other)

    def couple(self, node: int, result: int, planes: Rows, erased: Sequence[int]) -> Iterator[Part]:
        """C of a node whose U is known everywhere."""
        for partner, own, other in self._pairs(node, planes):
            made, inner = self.result_row(result, 0) + own, self._inner(node, own)
            if partner == node:
                yield Kind.COPY, made, inner, inner
            elif partner in erased:
                yield Kind.SOLVE, made, inner, self._inner(partner, other)
            else:
                yield Kind.COUPLE, made, inner, self._stored(partner, other)

    def finish(self, node: int, result: int, erased: Sequence[int]) -> Iterator[Part]:
        """C of a lost node, in all planes, of its column's U in those that were read."""
        for partner, own, other in self._pairs(node, np.arange(self._geometry.plane_count)):
            made = self.result_row(result, 0) + own
            if partner == node:
                yield Kind.COPY, made, self._inner(node, own), self._inner(node, own)
            elif partner in erased:
                yield Kind.SOLVE, made, self._inner(node, own), self._inner(partner, other)
            else:
                yield Kind.HALVE, made, self._inner(partner, other), self._stored(partner, other)
