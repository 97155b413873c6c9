"""From a matrix to a program: which products of 64 bytes to make and which to add.

A constant matrix over GF(2^8) is applied to vectors of bytes. What costs is a product by a
constant; an XOR is nearly free beside it. Two ways to need fewer products than the matrix has
coefficients:

- *Equal coefficients.* a·x + a·y = a·(x + y). Cauchy matrices 1 / (r + c) are full of them after a
  change of basis of the rows: with rows r and s, column c has in the row r + s the same coefficient
  as column c + r + s, if that is a column too. So a pair of rows needs 3 products where there were
  4, three rows r, s, t need 8 where there were 12, and four rows r, s, t, r + s + t need 9 where
  there were 16 (Karatsuba's trick, as the matrix [[a, b], [b, a]] is a polynomial product modulo
  x^2 + 1). Where three such fours of columns meet four rows, each needs 8, see `quads.py`.
- *Syndromes.* A matrix that decodes is B·[A | I] where A is a part of the generator. So A, full of
  equal coefficients, comes first, and then the small dense B.

The shape of a program does not depend on the coefficients but on which are equal: they are data, so
few shapes are compiled. Columns and rows are renamed for the same reason, see `Program.columns`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Final

from exastore.erasure import field
from exastore.erasure.field import Bytes
from exastore.erasure.kernels.doublings import with_doublings
from exastore.erasure.kernels.quads import Quad, common_factors, find_quads

#: One instruction on the variables of one vector step: a name and variable numbers.
#:   ("load", v, column)        v = 64 bytes of an input
#:   ("read", v, row)           v = 64 bytes of an output, to add to
#:   ("xor", v, a, b)           v = a + b
#:   ("mul", v, a, slot)        v = coefficient[slot] * a
#:   ("mac", v, a, b, slot)     v = a + coefficient[slot] * b
#:   ("double", v, a)       v = 2 * a + 29, in each byte
#:   ("add", v, a, constant) v = a + constant, in each byte
#:   ("store", row, v)
Op = tuple[str | int, ...]

#: More columns than this may not share coefficients: their sums would not fit the registers.
MAX_CLUSTER: Final = 8
#: An XOR costs this much of a product.
XOR_COST: Final = 0.3
#: A structured program must save this part of the products, or the plain one of its size is used,
#: which many other matrices share.
MIN_SAVING: Final = 0.08
#: With fewer zeros than this part, they are products like others: a shape for each pattern of zeros
#: would be compiled for each of them.
MIN_ZEROS: Final = 0.15


@dataclass(frozen=True, slots=True)
class Program:
    """What to do with one vector of each input."""

    ops: tuple[Op, ...]
    #: The coefficient of each slot.
    coefficients: bytes
    #: Input `i` of the ops is column `columns[i]` of the matrix.
    columns: tuple[int, ...]
    #: Output `i` of the ops is row `rows[i]` of the matrix.
    rows: tuple[int, ...]

    @property
    def product_count(self) -> int:
        """Products per vector step, by any constant; some share it."""
        return sum(op[0] in ("mul", "mac", "double") for op in self.ops)

    @property
    def cost(self) -> float:
        """What one step costs, in products."""
        xors = sum(op[0] in ("xor", "mac") for op in self.ops)
        return self.product_count + XOR_COST * xors


def make_program(
    matrix: Bytes,
    *,
    accumulate: bool = False,
    plain: bool = False,
    uniform: bool = False,
    by_lookup: bool = False,
) -> Program:
    """The cheapest program known for a matrix. Shape: [outputs, inputs].

    Args:
        matrix: coefficients.
        accumulate: add to the outputs instead of setting them.
        plain: one product per coefficient, except in rows of zeros and ones, which are sums. So all
            matrices of a size without such rows have one shape.
        uniform: one product per coefficient, so that all matrices of a size have one shape.
        by_lookup: a product takes two lookups by halves of a byte, so that doublings may be cheaper
            and products of products are dearer.
    """
    rows = [row.tobytes() for row in matrix]
    if uniform:
        return _Writer(rows, accumulate, uniform=True).write(_plain_groups(rows), share=False)
    dense = plain or int((matrix == 0).sum()) < MIN_ZEROS * matrix.size
    simplest = _Writer(rows, accumulate, dense).write(_plain_groups(rows), share=False)
    candidates = [simplest]
    if matrix.shape[0] > 1 and not plain:
        candidates.extend(
            _Writer(rows, accumulate, chains=not by_lookup).write(groups, share=True)
            for groups in _groupings(rows)
        )
        if not accumulate:
            candidates.extend(_by_syndromes(matrix, chains=not by_lookup))
    best = min(candidates, key=lambda program: program.cost)
    if best.cost >= (1 - MIN_SAVING) * simplest.cost:
        return simplest
    # Coefficients become code, so not for the many matrices that decode: they have no blocks.
    has_blocks = len(best.coefficients) < best.product_count
    doubled = with_doublings(best.ops, best.coefficients) if by_lookup and has_blocks else None
    return best if doubled is None else Program(doubled, b"", best.columns, best.rows)


# A group of rows, as numbers of rows and the sums of them that are accumulated instead: sum `i` is
# the XOR of the rows at the positions `sums[i]` of the group.
# The same sets give the rows back: row `i` is the XOR of the sums at the positions `sums[i]`.
_SUMS: Final = {
    1: ((0,),),
    2: ((0,), (0, 1)),
    3: ((0,), (0, 1), (0, 2)),
    4: ((0,), (0, 1), (0, 2), (0, 1, 2, 3)),
}

_Group = tuple[int, ...]


def _plain_groups(rows: Sequence[bytes]) -> list[_Group]:
    return [(row,) for row in range(len(rows))]


def _xor(*rows: bytes) -> bytes:
    total = 0
    for row in rows:
        total ^= int.from_bytes(row)
    return total.to_bytes(len(rows[0]))


def _repeats(row: bytes) -> int:
    """How many products are saved by adding columns of equal coefficients."""
    used = row.replace(b"\0", b"")
    return len(used) - len(set(used))


def _sums(rows: Sequence[bytes], groups: Sequence[_Group]) -> list[bytes]:
    """What is accumulated for these groups: their rows, or sums of them."""
    return [
        _xor(*(rows[group[i]] for i in positions))
        for group in groups
        for positions in _SUMS[len(group)]
    ]


def _saving(rows: Sequence[bytes], group: _Group) -> int:
    return sum(map(_repeats, _sums(rows, [group])))


def _groupings(rows: Sequence[bytes]) -> list[list[_Group]]:
    """Ways to group the rows that may be the cheapest."""
    found = [_row_groups(rows, (4, 2))]
    # Two pairs save as many products as three rows and one, with fewer XORs.
    if len(rows) % 2:
        found.append(_row_groups(rows, (4, 3, 2)))
    return found


def _row_groups(rows: Sequence[bytes], sizes: Sequence[int]) -> list[_Group]:
    """Rows that save most together: by these sizes, then alone; rows of ones stay alone."""
    free = [row for row, coefficients in enumerate(rows) if max(coefficients) > 1]
    groups: list[_Group] = []
    for size in sizes:
        while len(free) >= size:
            options = [order for chosen in combinations(free, size) for order in _orders(chosen)]
            best = max(options, key=lambda group: _saving(rows, group))
            if _saving(rows, best) < len(rows[0]) // 2:
                break
            groups.append(best)
            free = [row for row in free if row not in best]
    grouped = {row for group in groups for row in group}
    return groups + [(row,) for row in range(len(rows)) if row not in grouped]


def _orders(chosen: _Group) -> list[_Group]:
    """The orders of a group that differ in what they save."""
    match chosen:
        case (a, b, c, d):
            return [(a, b, c, d), (a, c, b, d), (a, d, b, c)]
        case (a, b, c):
            return [(a, b, c), (b, a, c), (c, a, b)]
        case _:
            return [chosen]


def _by_syndromes(matrix: Bytes, *, chains: bool) -> list[Program]:
    """The program through B·[A | I], where I takes the last columns; nothing if B is singular."""
    row_count, column_count = matrix.shape
    first = column_count - row_count
    if first < 1:
        return []
    try:
        inverse = field.invert(matrix[:, first:])
    except ZeroDivisionError:
        return []
    inner = [row.tobytes() for row in field.matmul(inverse, matrix[:, :first])]
    if any(max(row) <= 1 for row in inner):
        return []
    outer = [row.tobytes() for row in matrix[:, first:]]
    return [
        _Writer(inner, False, chains=chains).write(groups, share=True, outer=outer)
        for groups in _groupings(inner)
    ]


class _Writer:
    """Writes the ops of one program."""

    def __init__(
        self,
        rows: Sequence[bytes],
        accumulate: bool,
        dense: bool = False,
        *,
        uniform: bool = False,
        chains: bool = True,
    ) -> None:
        self._rows = rows
        self._accumulate = accumulate
        self._dense = dense
        self._uniform = uniform
        self._chains = chains
        self._ops: list[Op] = []
        self._coefficients = bytearray()
        self._columns: list[int] = []
        self._variable_count = 0
        #: Sum of a set of inputs, by their columns.
        self._sums: dict[tuple[int, ...], int] = {}

    def write(
        self, groups: Sequence[_Group], *, share: bool, outer: Sequence[bytes] | None = None
    ) -> Program:
        """Rows by groups; then, with `outer`, that matrix times (rows + further inputs)."""
        sums = _sums(self._rows, groups)
        clusters = _clusters(sums) if share else [[c] for c in range(len(sums[0]))]
        quads = find_quads(sums, groups, clusters) if share else []
        values = self._rows_back(groups, self._totals(sums, clusters, self._load, quads))
        order = [row for group in groups for row in group]
        if outer is not None:
            inner, first = dict(zip(order, values, strict=True)), len(self._rows[0])
            values = self._totals(
                outer,
                [[row] for row in order],
                lambda row: self._op("xor", inner[row], self._load(first + row)),
            )
            order = list(range(len(outer)))
        for position, value in enumerate(values):
            if self._accumulate:
                value = self._op("xor", value, self._op("read", position))
            self._ops.append(("store", position, value))
        return Program(
            tuple(self._ops), bytes(self._coefficients), tuple(self._columns), tuple(order)
        )

    def _op(self, name: str, *arguments: int) -> int:
        variable = self._variable_count
        self._variable_count += 1
        self._ops.append((name, variable, *arguments))
        return variable

    def _load(self, column: int) -> int:
        self._columns.append(column)
        return self._op("load", len(self._columns) - 1)

    def _slot(self, coefficient: int) -> int:
        self._coefficients.append(coefficient)
        return len(self._coefficients) - 1

    def _totals(
        self,
        sums: Sequence[bytes],
        clusters: Sequence[Sequence[int]],
        source: Callable[[int], int],
        quads: Sequence[Quad] = (),
    ) -> list[int]:
        """The products of sums of rows with all columns, whose variables `source` makes."""
        totals: list[int | None] = [None] * len(sums)
        self._sums = {}
        shares = common_factors(quads) if self._chains else {}
        #: Of each group of quads that have one: the sums over its quads, see `_add_factored`.
        factored: dict[int, list[int | None]] = {first: [None] * 4 for first in shares}
        for cluster in clusters:
            for column in cluster:
                self._sums[(column,)] = source(column)
            done: set[int] = set()
            for quad in quads:
                if quad.columns == tuple(cluster):
                    done.update(quad.positions)
                    if quad.positions[0] in shares:
                        self._add_factored(quad, totals, factored[quad.positions[0]])
                    else:
                        self._add_quad(quad, totals)
            self._add_cluster(cluster, sums, totals, [i for i in range(len(sums)) if i not in done])
        for first, factor in shares.items():
            self._finish_factored(first, factor, totals, factored[first])
        # A row of zeros is a product by zero, so that every output is written.
        return [self._op("mul", 0, self._slot(0)) if v is None else v for v in totals]

    def _accumulated(self, total: int | None, value: int, coefficient: int, plain: bool) -> int:
        if plain:
            return value if total is None else self._op("xor", total, value)
        slot = self._slot(coefficient)
        if total is None:
            return self._op("mul", value, slot)
        return self._op("mac", total, value, slot)

    def _add(self, totals: list[int | None], position: int, value: int) -> None:
        total = totals[position]
        totals[position] = value if total is None else self._op("xor", total, value)

    def _product(self, value: int, slot: int, total: int | None = None) -> int:
        if total is None:
            return self._op("mul", value, slot)
        return self._op("mac", total, value, slot)

    def _inputs(self, quad: Quad) -> tuple[int, int, int, int]:
        """Its columns as a, a + b, a + c and a + b + c + d."""
        a, b, c, d = (self._sums[(column,)] for column in quad.columns)
        ab, ac = self._op("xor", a, b), self._op("xor", a, c)
        return a, ab, ac, self._op("xor", self._op("xor", ab, c), d)

    def _add_quad(self, quad: Quad, totals: list[int | None]) -> None:
        one, pair, half, *every = quad.positions
        a, ab, ac, abcd = self._inputs(quad)
        w, p, q, s = (self._slot(c) for c in (quad.w, quad.p, quad.q, quad.s))
        terms = [(one, a, w), (one, ab, p), (one, ac, q), (one, abcd, s)]
        terms += [(pair, ab, w), (pair, abcd, q), (half, ac, w), (half, abcd, p)]
        terms += [(position, abcd, w) for position in every]
        for position, value, slot in terms:
            totals[position] = self._product(value, slot, totals[position])

    def _add_factored(self, quad: Quad, totals: list[int | None], parts: list[int | None]) -> None:
        """Eight products, some of products; what is summed in `parts` is for later."""
        one = quad.positions[0]
        a, ab, ac, abcd = self._inputs(quad)
        w, q, p, s = (self._slot(c) for c in (quad.w, *quad.ratios()))
        every, pair = self._product(abcd, w), self._product(ab, w)
        half = self._product(every, s, self._product(ac, w))
        totals[one] = self._product(a, w, totals[one])
        totals[one] = self._product(pair, p, totals[one])
        totals[one] = self._product(half, q, totals[one])
        parts[3] = self._product(every, q, parts[3])
        for place, value in enumerate((every, pair, half)):
            self._add(parts, place, value)

    def _finish_factored(
        self, first: int, factor: int, totals: list[int | None], parts: Sequence[int | None]
    ) -> None:
        every, pair, half, rest = (part for part in parts if part is not None)
        both = self._op("xor", every, rest)
        self._add(totals, first + 1, self._op("xor", pair, rest))
        self._add(totals, first + 2, self._product(both, self._slot(factor), half))
        self._add(totals, first + 3, every)

    def _add_cluster(
        self,
        cluster: Sequence[int],
        sums: Sequence[bytes],
        totals: list[int | None],
        positions: Sequence[int],
    ) -> None:
        """Add the products of the columns of a cluster to the totals at these positions."""
        for position in positions:
            row = sums[position]
            # A row of nothing but ones and zeros is a plain sum.
            plain = max(row) == 1 and not self._uniform
            classes = _classes(row, cluster, split=plain or len(cluster) == 1)
            if self._uniform or (self._dense and max(row) > 1):
                classes = [(column,) for column in cluster]
            for columns in classes:
                total = totals[position]
                value = self._sum_of(columns)
                totals[position] = self._accumulated(total, value, row[columns[0]], plain)

    def _sum_of(self, columns: tuple[int, ...]) -> int:
        known = self._sums.get(columns)
        if known is None:
            half = len(columns) // 2
            known = self._op("xor", self._sum_of(columns[:half]), self._sum_of(columns[half:]))
            self._sums[columns] = known
        return known

    def _rows_back(self, groups: Sequence[_Group], totals: Sequence[int]) -> list[int]:
        values: list[int] = []
        first = 0
        for group in groups:
            for parts in _SUMS[len(group)]:
                value = totals[first + parts[0]]
                for part in parts[1:]:
                    value = self._op("xor", value, totals[first + part])
                values.append(value)
            first += len(group)
        return values


def _classes(row: bytes, cluster: Sequence[int], *, split: bool) -> list[tuple[int, ...]]:
    """The columns of a cluster by equal coefficients of a row; none for zeros."""
    if split:
        return [(column,) for column in cluster if row[column]]
    found: dict[int, list[int]] = {}
    for column in cluster:
        if row[column]:
            found.setdefault(row[column], []).append(column)
    return [tuple(columns) for columns in found.values()]


def _clusters(sums: Sequence[bytes]) -> list[list[int]]:
    """Columns that share coefficients in any row, together; the largest clusters first.

    Within a cluster, the order is fixed by which rows the sharing is in, so that matrices of the
    same structure give the same program.
    """
    column_count = len(sums[0])
    shared = [row for row in sums if max(row) > 1]
    leader = list(range(column_count))
    for row in shared:
        first: dict[int, int] = {}
        for column in range(column_count):
            if row[column]:
                other = first.setdefault(row[column], column)
                _join(leader, other, column)
    members: dict[int, list[int]] = {}
    for column in range(column_count):
        members.setdefault(leader[column], []).append(column)
    made: list[list[int]] = []
    for cluster in members.values():
        if len(cluster) > MAX_CLUSTER:
            made.extend([column] for column in cluster)
            continue
        head = cluster[0]
        made.append(
            sorted(cluster, key=lambda c: (c != head, [row[c] != row[head] for row in shared]))
        )
    return sorted(made, key=lambda cluster: (-len(cluster), _pattern(cluster, shared)))


def _pattern(cluster: Sequence[int], rows: Sequence[bytes]) -> list[list[int]]:
    """Which columns of a cluster have equal coefficients, row by row."""
    return [[[row[other] for other in cluster].index(row[c]) for c in cluster] for row in rows]


def _join(leader: list[int], a: int, b: int) -> None:
    if leader[a] != leader[b]:
        old, new = leader[b], leader[a]
        for column, current in enumerate(leader):
            if current == old:
                leader[column] = new
