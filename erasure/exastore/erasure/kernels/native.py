"""Machine code from LLVM IR: compiled once per shape, kept on disk, loaded without numba.

`llvmlite.binding` is the layer below numba; importing it takes a tenth of numba's time. Object code
is compiled for a CPU named by the instruction set, not for the host, so a cache may be shared.
"""

import threading
from collections.abc import Callable
from functools import cache
from typing import Any, Final

import llvmlite
import llvmlite.binding as llvm

from exastore.erasure.cache import code_cache

_LOCK: Final = threading.Lock()


def host_features() -> frozenset[str]:
    """What this CPU has, as LLVM calls it; empty if LLVM cannot tell."""
    try:
        found: dict[str, bool] = llvm.get_host_cpu_features()
    except RuntimeError:
        return frozenset()
    return frozenset(name for name, present in found.items() if present)


@cache
def _target() -> Any:
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    return llvm.Target.from_default_triple()


def compiler_key() -> str:
    """What, apart from the IR, decides about the code made."""
    return f"llvmlite {llvmlite.__version__} {llvm.get_default_triple()}"


def compile_object(ir: str, cpu: str, features: str) -> bytes:
    """Object code for a CPU. Takes tens of milliseconds."""
    with _LOCK:
        module = llvm.parse_assembly(ir)
        module.verify()
        machine = _target().create_target_machine(cpu=cpu, features=features, opt=2, jit=True)
        code: bytes = machine.emit_object(module)
        return code


class LoadedCode:
    """Functions of one object, callable as long as this lives."""

    def __init__(self, code: bytes) -> None:
        with _LOCK:
            machine = _target().create_target_machine(opt=0, jit=True)
            self._engine: Any = llvm.create_mcjit_compiler(llvm.parse_assembly(""), machine)
            self._engine.add_object_file(llvm.ObjectFileRef.from_data(code))
            self._engine.finalize_object()

    def address(self, name: str) -> int:
        """Where a function starts."""
        address: int = self._engine.get_function_address(name)
        if not address:
            raise LookupError(name)
        return address


def load(
    key: str, cpu: str, features: str, make_ir: Callable[[], str], *, compiles: bool = True
) -> LoadedCode | None:
    """The code of a key from the disk, or else compiled from `make_ir()` and kept.

    The key must say everything that the IR depends on. None if it had to be compiled and may not.
    """
    full_key = "\0".join([compiler_key(), cpu, features, key]).encode()
    code = code_cache().load(full_key)
    if code is None:
        if not compiles:
            return None
        code = compile_object(make_ir(), cpu, features)
        code_cache().store(full_key, code)
    return LoadedCode(code)
