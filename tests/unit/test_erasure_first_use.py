"""What a first use costs: nothing is compiled for a loss never met before, once a code is warm."""

import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from exastore.erasure import code as code_module
from exastore.erasure import codec
from exastore.erasure.kernels import available_kernels, select_kernel

KERNELS = list(available_kernels())

WARM = """
from itertools import combinations
import sys
import numpy as np
from exastore.erasure import codec
from exastore.erasure.kernels import native

def refuse(*arguments):
    raise AssertionError("compiled after the warm-up")

code = codec(sys.argv[1])
code.warm_up()
native.compile_object = refuse
data = np.random.default_rng(1).integers(0, 256, (code.k, 216), dtype=np.uint8)
stripe = np.concatenate([data, code.encode(data)])
count = 0
for lost_count in range(1, code.m + 1):
    for lost in combinations(range(code.n), lost_count):
        if code.decodable(lost):
            plan = code.repair_plan(lost)
            made = code.repair(lost, {i: plan.take(i, stripe[i]) for i in plan.reads})
            made |= code.decode({i: stripe[i] for i in range(code.n) if i not in lost}, want=lost)
            assert all((made[i] == stripe[i]).all() for i in lost), lost
            count += 1
assert code.verify(stripe, seed=1)
code.update_parity(1, stripe[1], stripe[0], stripe[code.k :].copy())
print(count, 'numba' in sys.modules)
"""


@pytest.mark.skipif(KERNELS == ["portable"], reason="the CPU has no vector kernel")
@pytest.mark.parametrize(
    ("name", "losses"), [("rs-5-3", 92), ("lrc-4-2-2", 152), ("clay-4-2-5", 21), ("clay-5-3-7", 92)]
)
def test_a_warm_code_compiles_nothing_for_any_loss(name: str, losses: int, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", WARM, name],
        env=os.environ | {"EXASTORE_CACHE_DIR": str(tmp_path), "EXASTORE_KERNEL": KERNELS[0]},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [str(losses), "False"]


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("name", ["rs-4-2", "rs-20-4", "lrc-6-2-2", "rs-3-9"])
def test_a_decoder_gives_the_same_bytes_before_and_after_it_has_code_of_its_own(
    name: str, kernel: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(code_module, "USES_TO_SPECIALISE", 3)
    code = codec(name, kernel=kernel)
    data = np.random.default_rng(1).integers(0, 256, (code.k, 777), dtype=np.uint8)
    stripe = np.concatenate([data, code.encode(data)])
    for lost in [(0,), (0, code.n - 1), tuple(range(min(3, code.m)))]:
        survivors = {i: stripe[i] for i in range(code.n) if i not in lost}
        for _ in range(5):
            rebuilt = code.decode(survivors, want=lost)
            assert all((rebuilt[i] == stripe[i]).all() for i in lost), lost


def test_a_decoder_has_code_of_its_own_after_some_uses() -> None:
    kernel = select_kernel()
    decoder = code_module.Decoder((0, 1), np.array([[2, 3]], dtype=np.uint8), kernel)
    maps = [decoder.map() for _ in range(2 * code_module.USES_TO_SPECIALISE)]
    changes = [use for use, (old, new) in enumerate(pairwise(maps), 1) if old is not new]
    assert changes == [code_module.USES_TO_SPECIALISE - 1]
