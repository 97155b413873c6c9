"""Which kernel runs, what an import costs, and that the next process finds the compiled code."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any, cast

import numba
import numpy as np
import pytest

from exastore.erasure import codec
from exastore.erasure.chunks import check_chunks
from exastore.erasure.errors import UnknownKernel
from exastore.erasure.field import MUL
from exastore.erasure.kernels import ENVIRONMENT_VARIABLE, available_kernels, select_kernel

HAS_GFNI = "gfni512" in available_kernels()

ENCODE = """
import numpy as np
from exastore.erasure import _reference, codec
code = codec("rs-4-2")
data = np.arange(4 * 70, dtype=np.uint32).astype(np.uint8).reshape(4, 70)
parity = code.encode(data)
assert [bytes(row) for row in parity] == _reference.encode(4, 2, [bytes(row) for row in data])
survivors = dict(enumerate(np.concatenate([data, parity])))
del survivors[0], survivors[2]
assert (code.decode(survivors)[2] == data[2]).all()
print(code.kernel)
"""


def _python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )


def test_the_fastest_kernel_is_chosen_unless_told() -> None:
    assert list(available_kernels())[-1] == "portable"
    assert select_kernel("portable").name == "portable"


def test_the_environment_forces_a_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ENVIRONMENT_VARIABLE, "portable")
    assert codec("rs-4-2").kernel == "portable"
    assert codec("rs-4-2", kernel=next(iter(available_kernels()))).kernel != "sse2"
    monkeypatch.setenv(ENVIRONMENT_VARIABLE, "")
    assert codec("rs-4-2").kernel == next(iter(available_kernels()))


def test_an_unknown_kernel_is_refused_with_those_available(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(ENVIRONMENT_VARIABLE, "sse2")
    with pytest.raises(UnknownKernel, match="portable") as error:
        codec("rs-4-2")
    assert error.value.name == "sse2"
    assert "portable" in error.value.available


@pytest.mark.parametrize("kernel", list(available_kernels()))
def test_a_kernel_multiplies_by_every_constant(kernel: str) -> None:
    every_byte = np.arange(256, dtype=np.uint8)
    products = np.empty((255, 256), dtype=np.uint8)
    matrix = np.arange(1, 256, dtype=np.uint8).reshape(255, 1)
    linear_map = select_kernel(kernel).prepare(matrix)
    linear_map(check_chunks([every_byte], 1, "in"), check_chunks(products, 255, "out"))
    assert (products == MUL[1:]).all()


@pytest.mark.parametrize("kernel", list(available_kernels()))
@pytest.mark.parametrize("chunk_bytes", [0, 1, 63, 64, 65, 127, 4095, 4097, 32 * 1024 + 1])
def test_no_byte_beside_the_output_is_touched(kernel: str, chunk_bytes: int) -> None:
    data = np.random.default_rng(0).integers(0, 256, (33, chunk_bytes), dtype=np.uint8)
    canvas = np.full((9, chunk_bytes + 128), 0xA5, dtype=np.uint8)
    codec("rs-33-9", kernel=kernel).encode_into(data, canvas[:, 64 : 64 + chunk_bytes])
    assert (canvas[:, :64] == 0xA5).all()
    assert (canvas[:, 64 + chunk_bytes :] == 0xA5).all()
    expected = codec("rs-33-9", kernel="portable").encode(data)
    assert (canvas[:, 64 : 64 + chunk_bytes] == expected).all()


def test_importing_the_codec_loads_neither_numba_nor_grpc() -> None:
    result = _python(
        "import sys, exastore.erasure; print({'numba', 'grpc', 'asyncio'} & set(sys.modules))"
    )
    assert result.stdout.strip() == "set()"


def test_without_jit_the_portable_kernel_works() -> None:
    assert _python(ENCODE, NUMBA_DISABLE_JIT="1").stdout.strip() == "portable"


def test_without_jit_the_gfni_kernel_is_unavailable() -> None:
    with pytest.raises(subprocess.CalledProcessError) as error:
        _python(ENCODE, NUMBA_DISABLE_JIT="1", EXASTORE_KERNEL="gfni512")
    assert "kernel 'gfni512' is not available here; available: portable" in error.value.stderr


def test_for_a_generic_cpu_the_portable_kernel_is_chosen(tmp_path: Path) -> None:
    result = _python(
        ENCODE, NUMBA_CPU_NAME="generic", NUMBA_DISABLE_JIT="0", NUMBA_CACHE_DIR=str(tmp_path)
    )
    assert result.stdout.strip() == "portable"


@pytest.mark.slow
@pytest.mark.parametrize("kernel", list(available_kernels()))
def test_a_second_process_compiles_nothing(kernel: str, tmp_path: Path) -> None:
    environment = {
        "EXASTORE_KERNEL": kernel,
        "NUMBA_CACHE_DIR": str(tmp_path),
        "NUMBA_DEBUG_CACHE": "1",
        "NUMBA_DISABLE_JIT": "0",
    }
    first = _python(ENCODE, **environment).stdout
    assert "data saved to" in first
    second = _python(ENCODE, **environment).stdout
    assert "data loaded from" in second
    assert "data saved to" not in second
    assert second.splitlines()[-1] == kernel


@pytest.mark.skipif(not HAS_GFNI, reason="the CPU has no GFNI with AVX-512")
def test_the_gfni_kernel_compiles_to_gfni_instructions() -> None:
    from exastore.erasure.kernels import gfni512

    # numba shows no listing of code that came from the disk, so compile it again.
    dispatcher: Any = numba.njit(cast(Any, gfni512)._set_tile.py_func)
    dispatcher((0, 0, 0), (0, 0), 0, 0, 0)
    (listing,) = dispatcher.inspect_asm().values()
    assert "vgf2p8affineqb" in listing
