"""Byte for byte what ISA-L computes, by every ISA-L there is: Debian's, and that of pyeclib."""

import ctypes
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from tests.support.programs import program

from exastore.erasure import codec
from exastore.erasure.chunks import check_chunks
from exastore.erasure.kernels import available_kernels, select_kernel
from exastore.erasure.lrc import lrc_generator
from exastore.erasure.matrix import cauchy_generator

Bytes = NDArray[np.uint8]
KERNELS = list(available_kernels())
GEOMETRIES = [(4, 2), (6, 3), (8, 3), (10, 4), (12, 4), (17, 3), (20, 4)]
#: A whole number of vectors, and not.
LENGTHS = [64, 4096, 5003]


def debian_library() -> str:
    return program("/usr/lib/x86_64-linux-gnu/libisal.so.2", "/usr/lib64/libisal.so.2")


def pyeclib_library() -> str:
    spec = importlib.util.find_spec("pyeclib")
    assert spec is not None and spec.origin is not None, "pyeclib is among the test dependencies"
    (path,) = (Path(spec.origin).parent.parent / "pyeclib.libs").glob("libisal*")
    return str(path)


class Isal:
    """The functions of one library that are documented in `erasure_code.h`."""

    def __init__(self, path: str) -> None:
        self._library: Any = ctypes.CDLL(path)

    def generator(self, kind: str, n: int, k: int) -> Bytes:
        made = np.zeros((n, k), dtype=np.uint8)
        getattr(self._library, f"gf_gen_{kind}_matrix")(ctypes.c_void_p(made.ctypes.data), n, k)
        return made

    def inverted(self, matrix: Bytes) -> Bytes:
        given, made = matrix.copy(), np.zeros_like(matrix)
        invert = self._library.gf_invert_matrix
        arguments = [ctypes.c_void_p(array.ctypes.data) for array in (given, made)]
        assert invert(*arguments, len(matrix)) == 0
        return made

    def product(self, matrix: Bytes, chunks: Bytes | Sequence[Bytes]) -> Bytes:
        rows, columns = matrix.shape
        length = chunks[0].size
        tables = np.zeros(32 * rows * columns, dtype=np.uint8)
        dense = np.ascontiguousarray(matrix)
        table = ctypes.c_void_p(tables.ctypes.data)
        self._library.ec_init_tables(columns, rows, ctypes.c_void_p(dense.ctypes.data), table)
        made = np.zeros((rows, length), dtype=np.uint8)
        sources = (ctypes.c_void_p * columns)(*[chunk.ctypes.data for chunk in chunks])
        targets = (ctypes.c_void_p * rows)(*[row.ctypes.data for row in made])
        self._library.ec_encode_data(length, columns, rows, table, sources, targets)
        return made


@pytest.fixture(params=[debian_library, pyeclib_library], ids=["debian", "pyeclib"])
def isal(request: pytest.FixtureRequest) -> Isal:
    return Isal(request.param())


def random_chunks(count: int, length: int) -> Bytes:
    return np.random.default_rng(count).integers(0, 256, (count, length), dtype=np.uint8)


def test_the_generators_are_those_of_gf_gen_cauchy1_matrix(isal: Isal) -> None:
    for k in range(1, 40):
        for m in (1, 2, 3, 4, 6, 9, 215):
            assert (isal.generator("cauchy1", k + m, k) == cauchy_generator(k, m)).all(), (k, m)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize(("k", "m"), GEOMETRIES)
def test_parity_is_that_of_isal_with_its_cauchy_matrix(
    isal: Isal, k: int, m: int, kernel: str
) -> None:
    matrix = isal.generator("cauchy1", k + m, k)
    for length in LENGTHS:
        data = random_chunks(k, length)
        expected = isal.product(matrix[k:], data)
        assert (codec(f"rs-{k}-{m}", kernel=kernel).encode(data) == expected).all(), length


@pytest.mark.parametrize("kernel", KERNELS)
def test_products_are_those_of_isal_with_its_vandermonde_matrix(isal: Isal, kernel: str) -> None:
    for k, m in GEOMETRIES:
        matrix = np.ascontiguousarray(isal.generator("rs", k + m, k)[k:])
        data = random_chunks(k, 5003)
        made = np.zeros((m, 5003), dtype=np.uint8)
        select_kernel(kernel).prepare(matrix)(
            check_chunks(data, k, "data"), check_chunks(made, m, "parity")
        )
        assert (made == isal.product(matrix, data)).all(), (k, m)


@pytest.mark.parametrize(("k", "m"), GEOMETRIES)
def test_each_decodes_what_the_other_encoded(isal: Isal, k: int, m: int) -> None:
    code, data = codec(f"rs-{k}-{m}"), random_chunks(k, 4096)
    ours = np.concatenate([data, code.encode(data)])
    generator = isal.generator("cauchy1", k + m, k)
    theirs = np.concatenate([data, isal.product(generator[k:], data)])
    for lost in (list(range(m)), list(range(1, m + 1)), [0, *range(k + 1, k + m)]):
        have = [index for index in range(k + m) if index not in lost][:k]
        rebuilt = code.decode({index: theirs[index] for index in have}, want=range(k))
        assert all((rebuilt[index] == data[index]).all() for index in range(k))
        again = isal.product(isal.inverted(generator[have]), [ours[index] for index in have])
        assert (again == data).all()


@pytest.mark.parametrize("shape", [(6, 2, 2), (12, 2, 2), (48, 4, 3)])
def test_local_and_global_parity_is_what_isal_makes_of_the_same_rows(
    isal: Isal, shape: tuple[int, int, int]
) -> None:
    data = random_chunks(shape[0], 5003)
    expected = isal.product(lrc_generator(*shape)[shape[0] :], data)
    assert (codec("lrc-{}-{}-{}".format(*shape)).encode(data) == expected).all()
