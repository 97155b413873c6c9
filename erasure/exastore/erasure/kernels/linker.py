"""Loads an object file of ours into memory, without LLVM.

Importing LLVM's binding and starting its linker costs as much as all else that a first encode needs
beside NumPy. Our objects are simple: a few functions and constants, and references between them.
Anything else in an object raises `Unlinkable`, and LLVM's linker takes it.
"""

import ctypes
import mmap
import struct
from dataclasses import dataclass
from typing import Any, Final

_READ_WRITE: Final = mmap.PROT_READ | mmap.PROT_WRITE
_READ_EXECUTE: Final = mmap.PROT_READ | mmap.PROT_EXEC

# Of ELF: kinds of sections, a flag of them, and the x86-64 relocations that are handled.
_SYMBOLS: Final = 2
_RELOCATIONS: Final = 4
_NO_BITS: Final = 8
_IN_MEMORY: Final = 2
_ABSOLUTE_64: Final = 1
_RELATIVE_32: Final = (2, 4)
_MACHINE_X86_64: Final = 62
_RELOCATABLE: Final = 1


class Unlinkable(Exception):
    """Not an object as we make them, or memory that cannot be made executable."""


@dataclass(frozen=True)
class _Section:
    name: str
    kind: int
    flags: int
    offset: int
    size: int
    link: int
    info: int
    alignment: int


class LinkedCode:
    """Functions of one object, in memory that is executable and no longer writable."""

    def __init__(self, content: bytes) -> None:
        """Load it.

        Raises:
            Unlinkable: see there.
        """
        try:
            self._functions: dict[str, int] = self._link(content)
        except (struct.error, LookupError, ValueError, OSError) as error:
            raise Unlinkable(str(error)) from error

    def address(self, name: str) -> int:
        """Where a function starts.

        Raises:
            LookupError: there is none of this name.
        """
        return self._functions[name]

    def _link(self, content: bytes) -> dict[str, int]:
        sections = _sections(content)
        places: dict[int, int] = {}
        size = 0
        for index, section in enumerate(sections):
            # Unwinding tables are not needed: nothing unwinds through the kernels.
            if section.flags & _IN_MEMORY and section.size and section.name != ".eh_frame":
                size += -size % max(section.alignment, 1)
                places[index] = size
                size += section.size
        if not places:
            raise Unlinkable("nothing to load")
        # Kept for the life of the process by whoever calls the functions; never unmapped while so.
        self._memory = mmap.mmap(-1, size, prot=_READ_WRITE)
        for index, place in places.items():
            section = sections[index]
            if section.kind != _NO_BITS:
                end = section.offset + section.size
                self._memory[place : place + section.size] = content[section.offset : end]
        self._view: Any = (ctypes.c_char * size).from_buffer(self._memory)
        base = ctypes.addressof(self._view)
        symbols: dict[int, list[tuple[str, int | None]]] = {}
        for index, section in enumerate(sections):
            if section.kind == _SYMBOLS:
                symbols[index] = _symbols(content, sections, section, places)
        for section in sections:
            if section.kind == _RELOCATIONS and section.info in places:
                self._relocate(content, section, places[section.info], symbols[section.link], base)
        libc: Any = ctypes.CDLL(None, use_errno=True)
        protect = libc.mprotect
        protect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
        if protect(base, size, _READ_EXECUTE):
            raise Unlinkable(f"mprotect: error {ctypes.get_errno()}")
        return {
            name: base + place
            for found in symbols.values()
            for name, place in found
            if name and place is not None
        }

    def _relocate(
        self,
        content: bytes,
        section: _Section,
        target: int,
        symbols: list[tuple[str, int | None]],
        base: int,
    ) -> None:
        table = content[section.offset : section.offset + section.size]
        for offset, info, addend in struct.iter_unpack("<QQq", table):
            name, place = symbols[info >> 32]
            kind = info & 0xFFFFFFFF
            if place is None:
                raise Unlinkable(f"{name!r} is not in the object")
            at = target + offset
            if kind == _ABSOLUTE_64:
                struct.pack_into("<Q", self._memory, at, base + place + addend)
            elif kind in _RELATIVE_32:
                struct.pack_into("<i", self._memory, at, place + addend - at)
            else:
                raise Unlinkable(f"relocation of kind {kind}")


def _sections(content: bytes) -> list[_Section]:
    if content[:6] != b"\x7fELF\x02\x01":
        raise Unlinkable("not a 64-bit little-endian ELF file")
    kind, machine = struct.unpack_from("<HH", content, 16)
    if (kind, machine) != (_RELOCATABLE, _MACHINE_X86_64):
        raise Unlinkable("not an object for x86-64")
    (start,) = struct.unpack_from("<Q", content, 40)
    entry_bytes, count, names_index = struct.unpack_from("<HHH", content, 58)
    raw = [
        struct.unpack_from("<IIQQQQIIQQ", content, start + entry_bytes * i) for i in range(count)
    ]
    names = raw[names_index][4]
    return [
        _Section(_string(content, names + name), kind, flags, offset, size, link, info, alignment)
        for name, kind, flags, _, offset, size, link, info, alignment, _ in raw
    ]


def _symbols(
    content: bytes, sections: list[_Section], section: _Section, places: dict[int, int]
) -> list[tuple[str, int | None]]:
    """The name of each symbol, and its place in our memory if it has one."""
    names = sections[section.link].offset
    table = content[section.offset : section.offset + section.size]
    found: list[tuple[str, int | None]] = []
    for name, _, _, index, value, _ in struct.iter_unpack("<IBBHQQ", table):
        place = places[index] + value if index in places else None
        found.append((_string(content, names + name), place))
    return found


def _string(content: bytes, start: int) -> str:
    return content[start : content.index(b"\0", start)].decode()
