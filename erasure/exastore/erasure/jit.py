"""The one way to JIT-compile here: `njit` with a disk cache that is safe across modules.

numba's own cache only watches the file of the cached function: a kernel that calls a jitted
function of *another* file keeps the old machine code after that file changes. So the cache folder
is keyed by a hash of every source file of this distribution and of numba's version, and set before
anything is compiled. `NUMBA_CACHE_DIR` overrides it. Where that folder cannot be written (a service
user without a home), a new temporary folder serves this process and its children.
"""

import hashlib
import os
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, TypeVar, cast

import numba
from numba.core import config as numba_config

import exastore
from exastore.erasure.cache import base_folder, writable_folder

F = TypeVar("F", bound=Callable[..., Any])


@cache
def source_digest() -> str:
    """Hash of numba's version and all our Python sources: same digest, same kernels."""
    digest = hashlib.sha256(numba.__version__.encode())
    for root in sorted(str(path) for path in exastore.__path__):
        for path in sorted(Path(root).rglob("*.py")):
            digest.update(str(path.relative_to(root)).encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def cache_dir() -> Path:
    """Where numba keeps compiled functions: `numba/<digest>` in the folder of our caches."""
    return base_folder() / "numba" / source_digest()


def writable_cache_dir() -> Path:
    """`cache_dir()`, made if need be; a private temporary folder if that is impossible."""
    return writable_folder(cache_dir())


if "NUMBA_CACHE_DIR" not in os.environ:
    # Child processes inherit the folder, so a pool of workers compiles once.
    os.environ["NUMBA_CACHE_DIR"] = str(writable_cache_dir())
    cast(Any, numba_config).reload_config()


def njit(function: F) -> F:
    """Compile `function` on first call: cached on disk, GIL released, C division semantics."""
    return cast(F, numba.njit(cache=True, nogil=True, error_model="numpy")(function))
