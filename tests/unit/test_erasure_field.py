"""The field and the matrices, against independent vectors and the scalar twin."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from exastore.erasure import _reference, codec, field, matrix
from exastore.erasure.kernels import available_kernels

VECTORS_PATH = Path(__file__).parents[1] / "testdata" / "erasure" / "gf256_0x11d.json"
VECTORS: dict[str, Any] = json.loads(VECTORS_PATH.read_text())
STRIPES = [
    pytest.param(stripe, id=f"k{stripe['k']}-m{stripe['m']}") for stripe in VECTORS["stripes"]
]


def _array(lines: list[str]) -> field.Bytes:
    return np.array([list(bytes.fromhex(line)) for line in lines], dtype=np.uint8)


def test_the_polynomial_and_the_powers_of_the_generator_are_those_of_galois() -> None:
    assert VECTORS["polynomial"] == field.POLYNOMIAL
    assert [int(value) for value in field.EXP[:255]] == VECTORS["powers_of_2"]


def test_all_products_are_those_of_galois() -> None:
    assert [int(value) for value in field.MUL[0x8E]] == VECTORS["products_of_0x8e"]
    assert hashlib.sha256(field.MUL.tobytes()).hexdigest() == VECTORS["sha256_of_all_products"]


def test_inverses_are_those_of_galois() -> None:
    assert [field.inverse(value) for value in range(1, 256)] == VECTORS["inverses"]


def test_all_products_are_those_of_the_scalar_twin() -> None:
    twin = [[_reference.multiply(a, b) for b in range(256)] for a in range(256)]
    assert (field.MUL == np.array(twin, dtype=np.uint8)).all()


def test_scalar_multiply_reads_the_table() -> None:
    assert field.multiply(2, 0x80) == 0x1D
    assert field.multiply(0, 7) == 0


def test_zero_has_no_inverse() -> None:
    with pytest.raises(ZeroDivisionError):
        field.inverse(0)
    with pytest.raises(ZeroDivisionError):
        _reference.inverse(0)


def test_a_singular_matrix_has_no_inverse() -> None:
    with pytest.raises(ZeroDivisionError, match="singular"):
        field.invert(np.array([[1, 2], [2, 4]], dtype=np.uint8))


def test_inversion_swaps_rows_when_a_pivot_is_zero() -> None:
    exchange = np.array([[0, 1], [1, 0]], dtype=np.uint8)
    assert (field.invert(exchange) == exchange).all()


@pytest.mark.parametrize("size", [1, 2, 3, 17, 64])
def test_a_matrix_times_its_inverse_is_the_identity(size: int) -> None:
    square = matrix.cauchy_generator(size, size)[size:]
    product = field.matmul(field.invert(square), square)
    assert (product == np.eye(size, dtype=np.uint8)).all()


@pytest.mark.parametrize("stripe", STRIPES)
def test_the_cauchy_matrix_is_that_of_galois(stripe: dict[str, Any]) -> None:
    k, m = stripe["k"], stripe["m"]
    assert matrix.cauchy_generator(k, m)[k:].tolist() == stripe["cauchy"]
    assert _reference.generator_rows(k, m)[k:] == stripe["cauchy"]


@pytest.mark.parametrize("kernel", list(available_kernels()))
@pytest.mark.parametrize("stripe", STRIPES)
def test_parity_is_that_of_galois(stripe: dict[str, Any], kernel: str) -> None:
    code = codec(f"rs-{stripe['k']}-{stripe['m']}", kernel=kernel)
    assert (code.encode(_array(stripe["data"])) == _array(stripe["parity"])).all()


@pytest.mark.parametrize("stripe", STRIPES)
def test_parity_of_the_scalar_twin_is_that_of_galois(stripe: dict[str, Any]) -> None:
    data = [bytes.fromhex(line) for line in stripe["data"]]
    parity = _reference.encode(stripe["k"], stripe["m"], data)
    assert [chunk.hex() for chunk in parity] == stripe["parity"]
