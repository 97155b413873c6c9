"""Weighted straw2: the draws of CRUSH, over a tree in arrays.

Theory of operation: every bucket (node, rack, zone, region, root) draws for each of its children
`log2(u) / weight`, u being 16 bits of a hash of (PG, child, trial); the largest draw wins. So a
child wins in proportion to its weight, and a change of one weight moves data only to or from it.

Deviations from Ceph's CRUSH, which the rest follows choice by choice:
- `crush_ln` is the exact floor(2**44 * log2(u + 1)); Ceph's table has an irregular part that no
  formula gives. About 0.02 % of the choices in a bucket differ.
- Weights are float64, and a draw is divided in float64, not truncated to an integer.
- Children of equal weight are compared by u alone, which is the same order and needs no table.

Two ways lead down the tree, to the same choices: `descend` draws for one trial, its vectors run
over the children of a bucket; `descend_many` draws for many trials at once, its vectors run over
the trials, so that no bucket has to be filled up and the chains of dependent steps of four children
overlap. It is bound by the 183 instructions that a hash takes, 16 lanes at a time.

`Tree` holds it in CSR form: the children of bucket b are
`child_item[bucket[b, START]:bucket[b, END]]`, filled up to whole vectors with copies of the first
child, which never win because ties keep the earlier. Buckets are numbered nodes first, then racks,
zones, regions, and the root last; items below a node are device indexes.
"""

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple, cast

import numpy as np
from numba import extending, types
from numba.core import config
from numpy.typing import NDArray

from exastore.erasure.jit import njit
from exastore.metadata.core.topology import Float64Array, Int32Array, frozen

Uint32Array = NDArray[np.uint32]

numba_config = cast(Any, config)

#: The level of the root, above DomainLevel.REGION.
ROOT_LEVEL = 5
#: Children of a bucket are filled up to a multiple of this, two vectors of 8 words.
LANES = 16
#: Columns of `Tree.bucket`.
START, END, COUNT, UNIFORM, STEP = 0, 1, 2, 3, 4
BUCKET_COLUMNS = 5
#: Trials that `descend_many` takes at a time: their words stay in the first-level cache.
BLOCK = 256
#: Rows of the scratch of `descend_many`.
FIRST_ID, ID_STEP, LAST, BEST = 0, 1, 2, 3
SCRATCH_ROWS = 4


class Tree(NamedTuple):
    """The buckets of a topology. B buckets.

    Attributes:
        bucket: Shape (B, BUCKET_COLUMNS), dtype int32. START and END of its children, COUNT of
            them without the filling, UNIFORM: 1 if all have the same positive weight, STEP: the
            difference of consecutive child_id, 0 if they are not evenly spaced.
        child_item: Bucket number, or device index below a node, of each child.
        child_id: What is hashed for each child.
        child_weight_inverse: 1 / weight, inf for weight 0.
        log_draw: Shape (65536,). floor(2**44 * log2(u + 1)) - 2**48, whole numbers up to 0.
    """

    bucket: Int32Array
    child_item: Int32Array
    child_id: Uint32Array
    child_weight_inverse: Float64Array
    log_draw: Float64Array


def _log2_fixed(value: int, bit_count: int) -> int:
    """floor(2**bit_count * log2(value)), by repeated squaring of a fixed-point number."""
    guard = 2 * bit_count
    exponent = value.bit_length() - 1
    x = value << (guard - exponent)
    result = exponent
    for _ in range(bit_count):
        x = (x * x) >> guard
        result <<= 1
        if x >> (guard + 1):
            x >>= 1
            result |= 1
    return result


@cache
def log_draw_table() -> Float64Array:
    """Shape (65536,): floor(2**44 * log2(u + 1)) - 2**48, exactly.

    Logarithms of primes come from integer arithmetic with 80 bits and add up to those of all
    numbers; 36 guard bits make each floor certain, which is checked.
    """
    precision, bits, size = 80, 44, 65536
    smallest_factor = list(range(size + 1))
    for prime in range(2, 257):
        if smallest_factor[prime] == prime:
            for multiple in range(prime * prime, size + 1, prime):
                smallest_factor[multiple] = min(smallest_factor[multiple], prime)
    logs = [0] * (size + 1)
    for value in range(2, size + 1):
        factor = smallest_factor[value]
        if factor == value:
            logs[value] = _log2_fixed(value, precision)
        else:
            logs[value] = logs[factor] + logs[value // factor]
    shift = precision - bits
    # A sum of at most 16 floors is low by less than 16 units: it must not sit under a whole number.
    floor_is_certain = all(
        value & (value - 1) == 0 or (logs[value] + 16) >> shift == logs[value] >> shift
        for value in range(1, size + 1)
    )
    assert floor_is_certain
    table = np.array([log >> shift for log in logs[1:]], dtype=np.int64) - (1 << 48)
    return frozen(table.astype(np.float64))


if numba_config.DISABLE_JIT:

    def wide_vectors() -> None:
        """Nothing, without the compiler."""

else:

    def _wide_vectors(_typing_context: Any) -> Any:
        """Lets LLVM use vectors of 512 bits in the kernel that calls it, where there are any.

        Left alone it keeps to 256 on processors that once slowed down; a hash then takes 1.6 times
        as long. What is computed does not change.
        """

        def generate(context: Any, builder: Any, _signature: Any, _arguments: Any) -> Any:
            # llvmlite's own `add` knows a fixed list of attributes only.
            set.add(builder.function.attributes, '"prefer-vector-width"="512"')
            builder.function.attributes.add("noinline")  # the caller's attributes would count
            return context.get_dummy_value()

        return types.none(), generate

    wide_vectors = cast(Callable[[], None], cast(Any, extending).intrinsic(_wide_vectors))


@njit
def mix(a: np.uint32, b: np.uint32, c: np.uint32) -> tuple[np.uint32, np.uint32, np.uint32]:
    """Jenkins' 32-bit mix. Every step is cast: numba would widen it to 64 bits."""
    a = np.uint32(np.uint32(np.uint32(a - b) - c) ^ np.uint32(c >> np.uint32(13)))
    b = np.uint32(np.uint32(np.uint32(b - c) - a) ^ np.uint32(a << np.uint32(8)))
    c = np.uint32(np.uint32(np.uint32(c - a) - b) ^ np.uint32(b >> np.uint32(13)))
    a = np.uint32(np.uint32(np.uint32(a - b) - c) ^ np.uint32(c >> np.uint32(12)))
    b = np.uint32(np.uint32(np.uint32(b - c) - a) ^ np.uint32(a << np.uint32(16)))
    c = np.uint32(np.uint32(np.uint32(c - a) - b) ^ np.uint32(b >> np.uint32(5)))
    a = np.uint32(np.uint32(np.uint32(a - b) - c) ^ np.uint32(c >> np.uint32(3)))
    b = np.uint32(np.uint32(np.uint32(b - c) - a) ^ np.uint32(a << np.uint32(10)))
    c = np.uint32(np.uint32(np.uint32(c - a) - b) ^ np.uint32(b >> np.uint32(15)))
    return a, b, c


@njit
def hash2(a: np.uint32, b: np.uint32) -> np.uint32:
    """CRUSH's rjenkins1 hash of two words."""
    h = np.uint32(np.uint32(1315423911) ^ a ^ b)
    y, z = np.uint32(231232), np.uint32(1232)
    a, b, h = mix(a, b, h)
    y, a, h = mix(y, a, h)
    b, z, h = mix(b, z, h)
    return h


@njit
def hash3(a: np.uint32, b: np.uint32, c: np.uint32) -> np.uint32:
    """CRUSH's rjenkins1 hash of three words."""
    h = np.uint32(np.uint32(1315423911) ^ a ^ b ^ c)
    y, z = np.uint32(231232), np.uint32(1232)
    a, b, h = mix(a, b, h)
    c, y, h = mix(c, y, h)
    z, a, h = mix(z, a, h)
    b, y, h = mix(b, y, h)
    z, c, h = mix(z, c, h)
    return h


# The next two repeat the body of hash3: called, it would be too large for LLVM to inline, and the
# loops would not become vector code (7 times slower). A property test holds them to hash3.


@njit
def first_largest(ids: Uint32Array, x: np.uint32, r: np.uint32) -> int:
    """Position of the largest low half of hash3(x, id, r), the first if equal; at most 65536 ids.

    One word holds the half and the reversed position, so that the loop is a plain maximum.
    """
    best = np.uint32(0)
    for i in range(len(ids)):
        a, b, c = x, ids[i], r
        h = np.uint32(np.uint32(1315423911) ^ a ^ b ^ c)
        y, z = np.uint32(231232), np.uint32(1232)
        a, b, h = mix(a, b, h)
        c, y, h = mix(c, y, h)
        z, a, h = mix(z, a, h)
        b, y, h = mix(b, y, h)
        z, c, h = mix(z, c, h)
        best = max(best, np.uint32(np.uint32(h << np.uint32(16)) | np.uint32(65535 - i)))
    return 65535 - int(best & np.uint32(65535))


@njit
def hash_all(ids: Uint32Array, x: np.uint32, r: np.uint32, out: Uint32Array) -> None:
    """out[i] = low half of hash3(x, ids[i], r)."""
    for i in range(len(ids)):
        a, b, c = x, ids[i], r
        h = np.uint32(np.uint32(1315423911) ^ a ^ b ^ c)
        y, z = np.uint32(231232), np.uint32(1232)
        a, b, h = mix(a, b, h)
        c, y, h = mix(c, y, h)
        z, a, h = mix(z, a, h)
        b, y, h = mix(b, y, h)
        z, c, h = mix(z, c, h)
        out[i] = h & np.uint32(65535)


@njit
def _choose(tree: Tree, item: int, x: np.uint32, r: np.uint32, scratch: Uint32Array) -> int:
    """The child of bucket `item` with the largest draw; -1 if it has no children."""
    start = tree.bucket[item, START]
    count = tree.bucket[item, COUNT]
    if count == 1:
        return int(tree.child_item[start])
    if count == 0:
        return -1
    ids = tree.child_id[start : tree.bucket[item, END]]
    if tree.bucket[item, UNIFORM] != 0 and count <= 65536:
        return int(tree.child_item[start + first_largest(ids, x, r)])  # largest u wins
    hash_all(ids, x, r, scratch)
    best, best_draw = 0, -np.inf
    for i in range(count):
        # For weight 0 this is -inf, or NaN: neither is ever larger.
        draw = tree.log_draw[scratch[i]] * tree.child_weight_inverse[start + i]
        if draw > best_draw:
            best, best_draw = i, draw
    return int(tree.child_item[start + best])


@njit
def descend(
    tree: Tree, item: int, depth: int, x: np.uint32, r: np.uint32, scratch: Uint32Array
) -> int:
    """straw2 from bucket `item`, `depth` levels down: a bucket number, or at the end a device.

    In each bucket the child with the largest draw wins; ties keep the earlier. -1 if the way ends
    in a bucket without children, which only happens where nothing has weight.
    """
    for _ in range(depth):
        if item < 0:
            return -1
        item = _choose(tree, item, x, r, scratch)
    return item


@njit
def _largest_of_many(
    count: int, begin: int, width: int, x: Uint32Array, r: Uint32Array, lanes: Uint32Array
) -> None:
    """lanes[BEST] = (largest low half) << 16 | 65535 - position, over `count` children each.

    For `width` lanes, a multiple of LANES, that draw with x[begin], x[begin + 1], ... A lane with
    fewer children looks at its last one again, which changes nothing: the first of equals wins.

    Each step of a hash waits for the one before. Four hashes side by side keep the processor busy:
    2.3 ns for a hash of one at a time, 2.0 of two, 1.75 of four; 1.6 is what its ports allow.
    """
    wide_vectors()
    # A sum of indexes may be negative for all that LLVM knows: it would not load whole vectors.
    x, r = x[begin : begin + width], r[begin : begin + width]
    first_id, id_step, last, best = lanes[FIRST_ID], lanes[ID_STEP], lanes[LAST], lanes[BEST]
    for j in range(width):
        best[j] = np.uint32(0)
    y, z = np.uint32(231232), np.uint32(1232)
    for i in range(0, count, 4):
        for j in range(width):
            x_, r_, end = x[j], r[j], last[j]
            p0 = min(np.uint32(i), end)
            p1 = min(np.uint32(i + 1), end)
            p2 = min(np.uint32(i + 2), end)
            p3 = min(np.uint32(i + 3), end)
            b0 = np.uint32(first_id[j] + np.uint32(p0 * id_step[j]))
            b1 = np.uint32(first_id[j] + np.uint32(p1 * id_step[j]))
            b2 = np.uint32(first_id[j] + np.uint32(p2 * id_step[j]))
            b3 = np.uint32(first_id[j] + np.uint32(p3 * id_step[j]))
            h0 = np.uint32(np.uint32(1315423911) ^ x_ ^ b0 ^ r_)
            h1 = np.uint32(np.uint32(1315423911) ^ x_ ^ b1 ^ r_)
            h2 = np.uint32(np.uint32(1315423911) ^ x_ ^ b2 ^ r_)
            h3 = np.uint32(np.uint32(1315423911) ^ x_ ^ b3 ^ r_)
            a0, b0, h0 = mix(x_, b0, h0)
            a1, b1, h1 = mix(x_, b1, h1)
            a2, b2, h2 = mix(x_, b2, h2)
            a3, b3, h3 = mix(x_, b3, h3)
            c0, y0, h0 = mix(r_, y, h0)
            c1, y1, h1 = mix(r_, y, h1)
            c2, y2, h2 = mix(r_, y, h2)
            c3, y3, h3 = mix(r_, y, h3)
            z0, a0, h0 = mix(z, a0, h0)
            z1, a1, h1 = mix(z, a1, h1)
            z2, a2, h2 = mix(z, a2, h2)
            z3, a3, h3 = mix(z, a3, h3)
            b0, y0, h0 = mix(b0, y0, h0)
            b1, y1, h1 = mix(b1, y1, h1)
            b2, y2, h2 = mix(b2, y2, h2)
            b3, y3, h3 = mix(b3, y3, h3)
            z0, c0, h0 = mix(z0, c0, h0)
            z1, c1, h1 = mix(z1, c1, h1)
            z2, c2, h2 = mix(z2, c2, h2)
            z3, c3, h3 = mix(z3, c3, h3)
            # The half above, the reversed position below: a plain maximum keeps the first.
            w0 = np.uint32(np.uint32(h0 << np.uint32(16)) | np.uint32(np.uint32(65535) - p0))
            w1 = np.uint32(np.uint32(h1 << np.uint32(16)) | np.uint32(np.uint32(65535) - p1))
            w2 = np.uint32(np.uint32(h2 << np.uint32(16)) | np.uint32(np.uint32(65535) - p2))
            w3 = np.uint32(np.uint32(h3 << np.uint32(16)) | np.uint32(np.uint32(65535) - p3))
            best[j] = max(best[j], max(max(w0, w1), max(w2, w3)))


@njit
def descend_many(
    tree: Tree,
    item: Int32Array,
    count: int,
    depth: int,
    x: Uint32Array,
    r: Uint32Array,
    lanes: Uint32Array,
    scratch: Uint32Array,
) -> None:
    """As `descend`, in place, for many trials: item[i] with (x[i], r[i]), i < count.

    Args:
        tree: The buckets.
        item: Shape (>= count,). Bucket numbers, or -1, which stays; becomes what was chosen.
        count: Trials.
        depth: Levels down.
        x: Shape (>= count, rounded up to whole LANES). First words.
        r: Shape as `x`. Trial numbers.
        lanes: Shape (SCRATCH_ROWS, BLOCK). Scratch.
        scratch: As of `descend`.
    """
    bucket, child_item, child_id = tree.bucket, tree.child_item, tree.child_id
    first_id, id_step, last, best = lanes[FIRST_ID], lanes[ID_STEP], lanes[LAST], lanes[BEST]
    for _ in range(depth):
        for begin in range(0, count, BLOCK):
            size, most, is_odd = min(BLOCK, count - begin), 1, False
            for j in range(size):
                at = item[begin + j]
                last[j] = np.uint32(0)
                if at < 0 or bucket[at, STEP] == 0:
                    is_odd = True
                    continue
                first_id[j] = child_id[bucket[at, START]]
                id_step[j] = np.uint32(bucket[at, STEP])
                last[j] = np.uint32(bucket[at, COUNT] - 1)
                most = max(most, bucket[at, COUNT])
            # Lanes from `size` on hold what they held: their result is not read.
            _largest_of_many(most, begin, -(-size // LANES) * LANES, x, r, lanes)
            for j in range(size):
                at = item[begin + j]
                if is_odd and (at < 0 or bucket[at, STEP] == 0):
                    if at >= 0:
                        chosen = _choose(tree, int(at), x[begin + j], r[begin + j], scratch)
                        item[begin + j] = np.int32(chosen)
                    continue
                position = int(np.uint32(65535) - (best[j] & np.uint32(65535)))
                item[begin + j] = child_item[bucket[at, START] + position]


def with_child_ids(tree: Tree, child_id: Uint32Array) -> Tree:
    """The tree with other identifiers, and the STEP of each bucket that `descend_many` relies on.

    STEP is 0, too, where `descend_many` cannot do without `descend`: weights that differ, no
    children, more than 65536.
    """
    bucket = tree.bucket.copy()
    start, count = bucket[:, START], bucket[:, COUNT]
    # differs[i]: whether child_id[i + 1] - child_id[i] is not the difference before.
    difference = np.diff(child_id.astype(np.uint32))
    differs = np.zeros(len(child_id) + 1, dtype=np.int64)
    differs[2 : len(difference) + 1] = np.cumsum(difference[1:] != difference[:-1])
    many = count > 1
    step = np.where(count == 1, 1, 0)
    first, last = start[many], start[many] + count[many] - 1
    # Within a bucket, changes of difference between its second and its last child.
    is_even = differs[last] == differs[first + 1]
    found = difference[first].astype(np.uint32).view(np.int32)
    step[many] = np.where(is_even, found, 0)
    bucket[:, STEP] = np.where((bucket[:, UNIFORM] != 0) & (count <= 65536), step, 0)
    return tree._replace(bucket=bucket, child_id=child_id)
