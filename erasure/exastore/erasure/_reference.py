"""The slow scalar twin of the codec: no tables, no NumPy tricks, kept forever.

Tests compare every kernel with it. It shares no code with the fast path: products are made bit by
bit from the polynomial, and decoding solves the linear equations by plain elimination.
"""

from collections.abc import Mapping, Sequence

Row = list[int]


def multiply(a: int, b: int) -> int:
    """Carry-less product of two bytes modulo 0x11D, bit by bit."""
    product = 0
    for bit in range(8):
        if b >> bit & 1:
            product ^= a << bit
    for bit in range(14, 7, -1):
        if product >> bit & 1:
            product ^= 0x11D << (bit - 8)
    return product


def inverse(a: int) -> int:
    """The one b with a * b = 1, found by trying them all."""
    for b in range(1, 256):
        if multiply(a, b) == 1:
            return b
    raise ZeroDivisionError(a)


def generator_rows(k: int, m: int) -> list[Row]:
    """The n rows of the code: the identity, then the Cauchy rows 1 / ((k + i) + j)."""
    identity = [[int(row == column) for column in range(k)] for row in range(k)]
    cauchy = [[inverse((k + row) ^ column) for column in range(k)] for row in range(m)]
    return identity + cauchy


def power(a: int, exponent: int) -> int:
    """a * a * ... * a."""
    result = 1
    for _ in range(exponent):
        result = multiply(result, a)
    return result


def lrc_rows(k: int, group_count: int, global_count: int) -> list[Row]:
    """The n rows of an LRC: identity, sums of the groups, global rows as `lrc.py` defines them."""
    width = k // group_count
    identity = [[int(row == column) for column in range(k)] for row in range(k)]
    local = [[int(j // width == group) for j in range(k)] for group in range(group_count)]
    for size in (2, 4, 16, 256):
        step = 255 // (size - 1)
        if global_count == 2 and width < size and group_count <= step:
            row = [power(2, j // width + step * (j % width)) for j in range(k)]
            return [*identity, *local, row, [multiply(a, a) for a in row]]
    points = range(global_count + 1, global_count + 1 + k)
    cauchy = [[multiply(y, inverse(x ^ y)) for y in points] for x in range(1, global_count + 1)]
    return identity + local + cauchy


def combine(coefficients: Sequence[int], chunks: Sequence[bytes]) -> bytes:
    """The sum of coefficient times chunk, byte by byte."""
    result = bytearray(len(chunks[0]))
    for coefficient, chunk in zip(coefficients, chunks, strict=True):
        for position, value in enumerate(chunk):
            result[position] ^= multiply(coefficient, value)
    return bytes(result)


def encode(k: int, m: int, data: Sequence[bytes]) -> list[bytes]:
    """The m parity chunks of k data chunks."""
    return [combine(row, data) for row in generator_rows(k, m)[k:]]


def decode(k: int, m: int, chunks: Mapping[int, bytes]) -> list[bytes]:
    """All n chunks from any k of them: solve rows * data = chunks, then encode again."""
    indexes = sorted(chunks)[:k]
    rows = generator_rows(k, m)
    equations = [list(rows[index]) for index in indexes]
    values = [bytearray(chunks[index]) for index in indexes]
    for column in range(k):
        pivot = next(row for row in range(column, k) if equations[row][column])
        equations[column], equations[pivot] = equations[pivot], equations[column]
        values[column], values[pivot] = values[pivot], values[column]
        scale = inverse(equations[column][column])
        equations[column] = [multiply(scale, value) for value in equations[column]]
        values[column] = bytearray(multiply(scale, value) for value in values[column])
        for row in range(k):
            factor = equations[row][column]
            if row == column or factor == 0:
                continue
            for j in range(k):
                equations[row][j] ^= multiply(factor, equations[column][j])
            for position, value in enumerate(values[column]):
                values[row][position] ^= multiply(factor, value)
    data = [bytes(value) for value in values]
    return data + encode(k, m, data)


def is_clay_stripe(k: int, m: int, chunks: Sequence[bytes]) -> bool:
    """Whether n chunks are a stripe of clay-k-m-(k+m-1), by the definition of the code.

    Plane by plane: uncouple every symbol, then check that they are a stripe of the inner code. The
    uncoupling is invertible and the inner code systematic, so one stripe at most has given data.
    """
    q = m
    virtual = -(k + m) % q
    zeros = bytes(len(chunks[0]))
    nodes = [*chunks[:k], *[zeros] * virtual, *chunks[k:]]
    digit_count = len(nodes) // q
    size = len(zeros) // q**digit_count
    rows = generator_rows(k + virtual, m)[k + virtual :]

    def symbol(node: int, digits: Sequence[int]) -> bytes:
        plane = 0
        for digit in digits:
            plane = plane * q + digit
        return nodes[node][plane * size : (plane + 1) * size]

    for number in range(q**digit_count):
        digits = [number // q**power_ % q for power_ in reversed(range(digit_count))]
        plane: list[bytes] = []
        for node in range(len(nodes)):
            x, y = node % q, node // q
            own = symbol(node, digits)
            if digits[y] == x:
                plane.append(own)
                continue
            swapped = [*digits[:y], x, *digits[y + 1 :]]
            plane.append(combine([1, 2], [own, symbol(y * q + digits[y], swapped)]))
        if [combine(row, plane[: k + virtual]) for row in rows] != plane[k + virtual :]:
            return False
    return True
