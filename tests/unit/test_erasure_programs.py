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


def test_products_of_products_are_made_only_where_they_are_allowed() -> None:
    matrix = cauchy_generator(20, 4)[20:]
    counts: list[int] = []
    for chains in (True, False):
        program = make_program(matrix, chains=chains)
        made = {op[1] for op in program.ops if op[0] == "mul"}
        multiplied = {op[-2] for op in program.ops if op[0] in ("mul", "mac")}
        assert bool(made & multiplied) == chains
        counts.append(program.product_count)
        _product(program, matrix)
    assert counts == [41, 45]


@pytest.mark.parametrize(("k", "m"), [(16, 3), (20, 4), (24, 6), (23, 7)])
def test_a_block_of_four_columns_and_rows_takes_four_coefficients(k: int, m: int) -> None:
    matrix = cauchy_generator(k, m)[k:]
    for chains in (True, False):
        program = make_program(matrix, chains=chains)
        assert len(program.coefficients) < program.product_count
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
@given(rows=MATRICES, plain=st.booleans(), accumulate=st.booleans())
def test_a_program_computes_the_product(
    rows: list[list[int]], plain: bool, accumulate: bool
) -> None:
    matrix = np.array(rows, dtype=np.uint8)
    program = make_program(matrix, plain=plain, accumulate=accumulate)
    _product(program, matrix, start=9 if accumulate else 0)
    assert sorted(program.rows) == list(range(matrix.shape[0]))
    assert sorted(program.columns) == list(range(matrix.shape[1]))


def test_rows_of_ones_cost_no_products() -> None:
    matrix = np.ones((1, 6), dtype=np.uint8)
    program = make_program(matrix)
    assert program.product_count == 0
    _product(program, matrix)
