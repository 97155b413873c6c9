"""Products by constants as XORs and doublings, for instruction sets without GFNI.

A row of products, a·x + b·y + .., is the sum over the bits i of 2^i times the sum of those inputs
whose coefficient has bit i. So a row takes seven doublings (Horner's rule), however many inputs it
has, and the sums share what they have in common: the pair of values that most sums contain is made
once, then the next one (RePair, as in Uezato, "Accelerating XOR-based erasure coding using program
optimization techniques", SC '21). There, whole planes of bits are XORed, a format of its own; here,
bytes stay bytes. The coefficients become a part of the code, which is compiled for one matrix.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from itertools import combinations
from typing import Final

#: One instruction, see `program`.
Op = tuple[str | int, ...]

#: What ("double", v, a) adds to every byte besides: it is cheaper to correct the sum at the end.
DOUBLING_CONSTANT: Final = 0x1D
#: Instructions of a doubling, of a product by two lookups, and to cut a value in halves for it.
_DOUBLING_COST: Final = 3
_PRODUCT_COST: Final = 4
_CUT_COST: Final = 3
#: It must save this part of the instructions: the many values that are alive cost as well.
_MIN_SAVING: Final = 0.15


def with_doublings(ops: Sequence[Op], coefficients: bytes) -> tuple[Op, ...] | None:
    """The same program without products, if that is cheaper.

    None also for a product of a product, as in a program by syndromes, and for one by zero.
    """
    writer = _Writer(ops, coefficients)
    if not writer.understands():
        return None
    made = writer.write()
    products = [op for op in ops if op[0] in ("mul", "mac")]
    old = _PRODUCT_COST * len(products) + _CUT_COST * len({op[-2] for op in products})
    old += sum(op[0] == "xor" for op in ops)
    new = sum(_DOUBLING_COST if op[0] == "double" else op[0] == "xor" for op in made)
    return tuple(made) if new < (1 - _MIN_SAVING) * old else None


class _Writer:
    def __init__(self, ops: Sequence[Op], coefficients: bytes) -> None:
        self._ops = ops
        self._coefficients = coefficients
        #: What products may be of: loaded, or a sum of such.
        self._inputs: set[int] = set()
        #: How to make such a value, or one that sums share, until it is made.
        self._pending: dict[int, Op] = {}
        #: Of each value with products in it, the inputs to sum for each bit of the coefficients.
        self._bits: dict[int, list[frozenset[int]]] = {}
        self._made: list[Op] = []
        self._variable_count = 1 + max(int(op[1]) for op in ops)

    def understands(self) -> bool:
        """Whether all products are of inputs; finds out what is one, and what each total sums."""
        for op in self._ops:
            name, variable, *values = op[0], *map(int, op[1:])
            if name == "load" or (name == "xor" and self._inputs.issuperset(values)):
                self._inputs.add(variable)
                self._pending[variable] = op
            elif name in ("mul", "mac"):
                *total, source, slot = values
                coefficient = self._coefficients[slot]
                if not coefficient or source not in self._inputs:
                    return False
                if total and total[0] not in self._bits:
                    return False
                sums = self._bits[total[0]] if total else [frozenset[int]()] * 8
                self._bits[variable] = [
                    known ^ {source} if coefficient >> bit & 1 else known
                    for bit, known in enumerate(sums)
                ]
        return bool(self._bits)

    def write(self) -> list[Op]:
        """All ops, with the totals made in another way."""
        totals = self._used_totals()
        parts, sums = _repair([s for total in totals for s in self._bits[total]], self._fresh)
        self._pending.update((value, ("xor", value, a, b)) for value, a, b in parts)
        names = dict(zip(totals, self._horner(sums, len(totals)), strict=True))
        for op in self._ops:
            name, first, *values = op[0], *map(int, op[1:])
            if name == "read":
                self._made.append(op)
            elif name == "store" or (name == "xor" and first not in self._inputs):
                uses = [names[v] if v in names else self._needed(v) for v in values]
                self._made.append((name, first, *uses))
        return self._made

    def _used_totals(self) -> list[int]:
        """Those that are used as they are, not only to add to them."""
        used = {value for op in self._ops if op[0] in ("xor", "store") for value in op[2:]}
        return [total for total in self._bits if total in used]

    def _horner(self, sums: Sequence[set[int]], total_count: int) -> list[int]:
        """The totals, all at once, so that what their sums share is at hand."""
        made: list[int | None] = [None] * total_count
        constants = [0] * total_count
        for bit in reversed(range(8)):
            for place, total in enumerate(made):
                values = [self._needed(value) for value in sorted(sums[8 * place + bit])]
                if total is not None:
                    values.append(self._op("double", total))
                    doubled = constants[place] << 1
                    constants[place] = doubled ^ DOUBLING_CONSTANT ^ (0x11D if doubled > 255 else 0)
                for value in values[1:]:
                    values[0] = self._op("xor", values[0], value)
                made[place] = values[0] if values else None
        return [
            self._op("add", total, constant) if constant else total
            for total, constant in zip(made, constants, strict=True)
            if total is not None
        ]

    def _needed(self, value: int) -> int:
        """The value, made if it was not."""
        op = self._pending.pop(value, None)
        if op is not None:
            if op[0] == "xor":
                self._needed(int(op[2]))
                self._needed(int(op[3]))
            self._made.append(op)
        return value

    def _fresh(self) -> int:
        self._variable_count += 1
        return self._variable_count - 1

    def _op(self, name: str, *arguments: int) -> int:
        variable = self._fresh()
        self._made.append((name, variable, *arguments))
        return variable


def _repair(
    sums: Sequence[frozenset[int]], fresh: Callable[[], int]
) -> tuple[list[tuple[int, int, int]], list[set[int]]]:
    """Pairs that several sums contain become values: (value, a, b) in order, and the sums then."""
    rows = [set(row) for row in sums]
    counts = Counter(pair for row in rows for pair in combinations(sorted(row), 2))
    parts: list[tuple[int, int, int]] = []
    while counts:
        # The oldest of equal ones, so that the same matrix always gives the same program.
        (a, b), count = max(counts.items(), key=lambda item: (item[1], -item[0][1], -item[0][0]))
        if count < 2:
            break
        value = fresh()
        parts.append((value, a, b))
        for row in rows:
            if a in row and b in row:
                counts.subtract(combinations(sorted(row), 2))
                row -= {a, b}
                row.add(value)
                counts.update(combinations(sorted(row), 2))
        counts += Counter()
    return parts, rows
