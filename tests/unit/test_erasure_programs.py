"""Programs of matrices: they compute the product, with fewer products than coefficients."""

from collections.abc import Sequence
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from exastore.erasure.field import MUL, invert, matmul
from exastore.erasure.kernels.program import Program, make_program
from exastore.erasure.matrix import cauchy_generator

Bytes = NDArray[np.uint8]


def _run(program: Program, inputs: Bytes, outputs: Bytes) -> None:
    """The ops, one by one, on whole chunks."""
    values: dict[object, Bytes] = {}
    for op in program.ops:
        match op:
            case ("load", variable, index):
                values[variable] = inputs[program.columns[int(index)]]
            case ("read", variable, index):
                values[variable] = outputs[program.rows[int(index)]].copy()
            case ("xor", variable, a, b):
                values[variable] = values[a] ^ values[b]
            case ("mul", variable, a, slot):
                values[variable] = MUL[program.coefficients[int(slot)]][values[a]]
            case ("mac", variable, a, b, slot):
                values[variable] = values[a] ^ MUL[program.coefficients[int(slot)]][values[b]]
            case ("double", variable, a):
                values[variable] = MUL[2][values[a]] ^ np.uint8(29)
            case ("add", variable, a, constant):
                values[variable] = values[a] ^ np.uint8(int(constant))
            case ("store", row, variable):
                outputs[program.rows[int(row)]] = values[variable]
            case _:
                raise AssertionError(op)


def _product(program: Program, matrix: Bytes, start: int = 0) -> None:
    rng = np.random.default_rng(5)
    inputs = rng.integers(0, 256, (matrix.shape[1], 40), dtype=np.uint8)
    outputs = np.full((matrix.shape[0], 40), start, dtype=np.uint8)
    _run(program, inputs, outputs)
    expected = matmul(matrix, inputs)
    assert (outputs == (expected ^ start if start else expected)).all()


@pytest.mark.parametrize(
    ("k", "m", "products"),
    [(4, 2, 6), (6, 3, 15), (8, 3, 16), (10, 4, 24), (12, 4, 25), (17, 3, 35), (20, 4, 41)],
)
def test_encoding_needs_fewer_products_than_the_matrix_has_coefficients(
    k: int, m: int, products: int
) -> None:
    matrix = cauchy_generator(k, m)[k:]
    program = make_program(matrix)
    assert program.product_count == products < k * m
    _product(program, matrix)


def test_products_of_products_are_made_only_where_a_product_is_one_instruction() -> None:
    matrix = cauchy_generator(12, 4)[12:]
    counts: list[int] = []
    for by_lookup in (False, True):
        program = make_program(matrix, by_lookup=by_lookup)
        made = {op[1] for op in program.ops if op[0] == "mul"}
        multiplied = {op[-2] for op in program.ops if op[0] in ("mul", "mac")}
        assert bool(made & multiplied) == (not by_lookup)
        counts.append(program.product_count)
        _product(program, matrix)
    assert counts == [25, 27]


@pytest.mark.parametrize(("k", "m"), [(16, 3), (20, 4), (24, 6), (23, 7)])
@pytest.mark.parametrize("accumulate", [False, True])
def test_a_block_of_four_columns_and_rows_takes_four_coefficients(
    k: int, m: int, accumulate: bool
) -> None:
    matrix = cauchy_generator(k, m)[k:]
    program = make_program(matrix, accumulate=accumulate)
    assert len(program.coefficients) < program.product_count
    _product(program, matrix, start=9 if accumulate else 0)


@pytest.mark.parametrize(("k", "m"), [(16, 3), (17, 3), (20, 4), (24, 4), (32, 8)])
@pytest.mark.parametrize("accumulate", [False, True])
def test_seven_doublings_a_row_replace_the_lookups_of_many_inputs(
    k: int, m: int, accumulate: bool
) -> None:
    matrix = cauchy_generator(k, m)[k:]
    program = make_program(matrix, by_lookup=True, accumulate=accumulate)
    assert program.coefficients == b""
    assert program.product_count <= 7 * m
    _product(program, matrix, start=9 if accumulate else 0)
    assert program == make_program(matrix, by_lookup=True, accumulate=accumulate)


def test_few_inputs_and_decoding_keep_their_lookups() -> None:
    for matrix in (cauchy_generator(10, 4)[10:], _decoding(17, 3, [2, 5, 9])):
        program = make_program(matrix, by_lookup=True)
        assert len(program.coefficients) > 0
        _product(program, matrix)


def _decoding(k: int, m: int, lost: Sequence[int]) -> Bytes:
    generator = cauchy_generator(k, m)
    have = [index for index in range(k + m) if index not in lost][:k]
    return matmul(generator[list(lost)], invert(generator[have]))


@pytest.mark.parametrize(
    ("k", "m", "products"), [(8, 3, 20), (10, 4, 30), (12, 4, 25), (17, 3, 39), (20, 4, 49)]
)
def test_decoding_goes_by_syndromes_where_that_is_cheaper(k: int, m: int, products: int) -> None:
    matrix = _decoding(k, m, range(m))
    program = make_program(matrix)
    assert program.product_count == products
    _product(program, matrix)


def test_the_losses_of_a_code_share_few_shapes() -> None:
    shapes = {make_program(_decoding(10, 4, lost)).ops for lost in combinations(range(10), 4)}
    # Of 210 patterns.
    assert len(shapes) <= 25


MATRICES = st.tuples(st.integers(1, 9), st.integers(1, 12)).flatmap(
    lambda size: st.lists(
        # Few different values, so that there are equal ones, ones and zeros.
        st.lists(st.sampled_from([0, 0, 1, 2, 3, 5, 255]), min_size=size[1], max_size=size[1]),
        min_size=size[0],
        max_size=size[0],
    )
)


@settings(deadline=None)
@given(rows=MATRICES, plain=st.booleans(), accumulate=st.booleans(), by_lookup=st.booleans())
def test_a_program_computes_the_product(
    rows: list[list[int]], plain: bool, accumulate: bool, by_lookup: bool
) -> None:
    matrix = np.array(rows, dtype=np.uint8)
    program = make_program(matrix, plain=plain, accumulate=accumulate, by_lookup=by_lookup)
    _product(program, matrix, start=9 if accumulate else 0)
    assert sorted(program.rows) == list(range(matrix.shape[0]))
    assert sorted(program.columns) == list(range(matrix.shape[1]))


def test_rows_of_ones_cost_no_products() -> None:
    matrix = np.ones((1, 6), dtype=np.uint8)
    program = make_program(matrix)
    assert program.product_count == 0
    _product(program, matrix)
