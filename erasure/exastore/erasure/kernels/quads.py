"""Four columns and four rows of a Cauchy matrix, as they are in the additive transform.

`Quad` says what the structure is and which products it needs; `program` writes them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from exastore.erasure import field

#: So many quads save more by a common factor than it costs.
MIN_FACTORED: Final = 3


@dataclass(frozen=True, slots=True)
class Quad:
    """Four columns a, b, c, d, of which a group of rows r, s, t (and r + s + t) are permutations.

    Their coefficients are those of an element of the group algebra of Z2 x Z2. In the basis a,
    a + b, a + c, a + b + c + d, it takes but four of them, the sums of the rows being

        r             =  w·a + p·(a + b) + q·(a + c) + s·(a + b + c + d)
        r + s         =        w·(a + b)             + q·(a + b + c + d)
        r + t         =                    w·(a + c) + p·(a + b + c + d)
        r + s + t + u =                                w·(a + b + c + d)

    of nine products. In a Cauchy matrix, p/w + s/q = h (1 + q/w) with the same h for all quads (it
    is where the columns are points of a transform over cosets, see Lin, Chung and Han, "Novel
    polynomial basis and its application to Reed-Solomon erasure codes", 2014). So with E = w·(a +
    b + c + d), U = w·(a + b) and T = w·(a + c) + (s/q)·E, row r is w·a + (p/w)·U + (q/w)·T, the
    next is U + (q/w)·E, and the third T + h·(E + (q/w)·E): eight products, and that with h is made
    once for the sum of all quads.
    """

    columns: tuple[int, ...]
    #: Where the sums of the rows of its group are accumulated, three or four.
    positions: tuple[int, ...]
    w: int
    p: int
    q: int
    s: int

    def ratios(self) -> tuple[int, int, int]:
        """q / w, p / w and s / q."""
        by_w = field.inverse(self.w)
        return (
            field.multiply(self.q, by_w),
            field.multiply(self.p, by_w),
            field.multiply(self.s, field.inverse(self.q)),
        )

    def factor(self) -> int | None:
        """The h of above, if there is one and the group has four rows."""
        if len(self.positions) < 4 or 0 in (self.w, self.q) or self.w == self.q:
            return None
        q, p, s = self.ratios()
        return field.multiply(p ^ s, field.inverse(1 ^ q))


def find_quads(
    sums: Sequence[bytes], groups: Sequence[tuple[int, ...]], clusters: Sequence[Sequence[int]]
) -> list[Quad]:
    """The clusters that are one, group by group."""
    found: list[Quad] = []
    first = 0
    for group in groups:
        positions = tuple(range(first, first + len(group)))
        first += len(group)
        for cluster in clusters:
            if len(group) > 2 and len(cluster) == 4:
                found.extend(_as_quad(cluster, sums, positions))
    return found


def _as_quad(
    cluster: Sequence[int], sums: Sequence[bytes], positions: tuple[int, ...]
) -> list[Quad]:
    one, pair, half, *every = ([sums[i][column] for column in cluster] for i in positions)
    s = one[3]
    w, p, q = one[0] ^ one[1] ^ one[2] ^ s, one[1] ^ s, one[2] ^ s
    is_quad = (
        pair == [w ^ q, w ^ q, q, q]
        and half == [w ^ p, p, w ^ p, p]
        and all(row == [w] * 4 for row in every)
    )
    return [Quad(tuple(cluster), positions, w, p, q, s)] if is_quad else []


def common_factors(quads: Sequence[Quad]) -> dict[int, int]:
    """The factor that all quads of a group have, by its first position."""
    by_group: dict[int, list[int | None]] = {}
    for quad in quads:
        by_group.setdefault(quad.positions[0], []).append(quad.factor())
    return {
        first: factors[0]
        for first, factors in by_group.items()
        if len(factors) >= MIN_FACTORED and len(set(factors)) == 1 and factors[0] is not None
    }
