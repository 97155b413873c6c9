"""Machine code from LLVM IR: compiled once per shape, kept on disk, loaded without LLVM.

Nothing of LLVM is imported unless something must be compiled, and numba never. Object code is for a
CPU named by the instruction set, not for the host, so a cache may be shared between hosts.
"""

import os
import sys
import threading
from collections.abc import Callable
from typing import Any, Final, Protocol

import llvmlite

from exastore.erasure.cache import code_cache
from exastore.erasure.kernels.linker import LinkedCode, Unlinkable

_LOCK: Final = threading.Lock()
#: The flags of the first CPU are in the first bytes of this file.
_CPU_FILE: Final = "/proc/cpuinfo"
_CPU_FILE_BYTES: Final = 16 * 1024


class Code(Protocol):
    """Functions in memory, callable as long as this lives."""

    def address(self, name: str) -> int:
        """Where a function starts."""
        ...


def host_features() -> frozenset[str]:
    """What this CPU has and its system saves, as LLVM and Linux call it; empty if not known."""
    try:
        with open(_CPU_FILE, encoding="ascii", errors="replace") as file:
            for line in file.read(_CPU_FILE_BYTES).splitlines():
                if line.startswith("flags"):
                    return frozenset(line.partition(":")[2].split())
    except OSError:
        pass
    return _features_by_llvm()


def _features_by_llvm() -> frozenset[str]:
    llvm: Any = _llvm()
    try:
        found: dict[str, bool] = llvm.get_host_cpu_features()
    except RuntimeError:
        return frozenset()
    return frozenset(name for name, present in found.items() if present)


def _llvm() -> Any:
    import llvmlite.binding as llvm

    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    return llvm


def compiler_key() -> str:
    """What, apart from the IR, decides about the code made."""
    return f"llvmlite {llvmlite.__version__} {sys.platform} {os.uname().machine}"


def compile_object(ir: str, cpu: str, features: str) -> bytes:
    """Object code for a CPU. Takes tens of milliseconds."""
    with _LOCK:
        llvm = _llvm()
        module = llvm.parse_assembly(ir)
        module.verify()
        target = llvm.Target.from_default_triple()
        machine = target.create_target_machine(
            cpu=cpu, features=features, opt=2, reloc="pic", codemodel="small"
        )
        code: bytes = machine.emit_object(module)
        return code


class LlvmLinkedCode:
    """Functions of one object, loaded by LLVM."""

    def __init__(self, code: bytes) -> None:
        with _LOCK:
            llvm = _llvm()
            machine = llvm.Target.from_default_triple().create_target_machine(jit=True)
            self._engine: Any = llvm.create_mcjit_compiler(llvm.parse_assembly(""), machine)
            self._engine.add_object_file(llvm.ObjectFileRef.from_data(code))
            self._engine.finalize_object()

    def address(self, name: str) -> int:
        """Where a function starts."""
        address: int = self._engine.get_function_address(name)
        if not address:
            raise LookupError(name)
        return address


def link(code: bytes) -> Code:
    """The object in memory: by our linker, or by LLVM's what ours does not take."""
    try:
        return LinkedCode(code)
    except Unlinkable:
        return LlvmLinkedCode(code)


def load(
    key: str, cpu: str, features: str, make_ir: Callable[[], str], *, compiles: bool = True
) -> Code | None:
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
    return link(code)
