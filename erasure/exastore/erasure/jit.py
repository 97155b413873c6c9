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
from functools import cache, partial
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


#: All that we ask for. Counted references are asked for by name, as a function that does not say
#: inherits it from its caller; numba's types do not know of it.
_njit = partial(cast(Any, numba).njit, cache=True, nogil=True, error_model="numpy")


def njit(function: F) -> F:
    """Compile `function` on first call: cached on disk, GIL released, C division semantics."""
    return cast(F, _njit(_nrt=True)(function))


def inline_njit(function: F) -> F:
    """`njit` of a line or two, which are put into each caller: no kernel for each kind of argument.

    Constants, for one, are kinds of their own.
    """
    return cast(F, _njit(_nrt=True, inline="always")(function))


def inner_njit(function: F) -> F:
    """`njit` of what only other kernels call and what allocates nothing: cheaper to make and call.

    There is no entry from Python, whose code is longer than that of most kernels, and references
    are not counted: an atomic addition per array of each tuple that is passed on. So whoever calls
    from Python keeps the arrays. An allocation in it is an error of compilation.
    """
    return cast(F, _njit(_nrt=False, no_cpython_wrapper=True, no_cfunc_wrapper=True)(function))
