"""Keys as tuples of bytes, text and numbers, encoded so that bytewise order is tuple order.

Each element begins with a tag; bytes and text end with 0x00, and a 0x00 inside them is escaped as
0x00 0xFF; numbers are unsigned and fixed at 8 bytes. Elements sort bytes < text < numbers.
"""

from typing import TypeAlias

Element: TypeAlias = bytes | str | int

_BYTES = 0x01
_TEXT = 0x02
_NUMBER = 0x03
_NUMBER_BYTES = 8


def pack(*elements: Element) -> bytes:
    """Encode a tuple; the encoding of a tuple's head is a prefix of the encoding of the tuple."""
    parts: list[bytes] = []
    for element in elements:
        if isinstance(element, bytes):
            parts += (b"\x01", element.replace(b"\x00", b"\x00\xff"), b"\x00")
        elif isinstance(element, str):
            parts += (b"\x02", element.encode().replace(b"\x00", b"\x00\xff"), b"\x00")
        else:
            parts += (b"\x03", element.to_bytes(_NUMBER_BYTES, "big"))
    return b"".join(parts)


def unpack(key: bytes) -> tuple[Element, ...]:
    """Decode what `pack` encoded. Raises ValueError for anything else."""
    elements: list[Element] = []
    at = 0
    while at < len(key):
        tag = key[at]
        at += 1
        if tag == _NUMBER:
            if at + _NUMBER_BYTES > len(key):
                raise ValueError(f"number cut short in key {key!r}")
            elements.append(int.from_bytes(key[at : at + _NUMBER_BYTES], "big"))
            at += _NUMBER_BYTES
        elif tag in (_BYTES, _TEXT):
            end = key.find(b"\x00", at)
            while end != -1 and key[end + 1 : end + 2] == b"\xff":
                end = key.find(b"\x00", end + 2)
            if end == -1:
                raise ValueError(f"unterminated element in key {key!r}")
            raw = key[at:end].replace(b"\x00\xff", b"\x00")
            elements.append(raw if tag == _BYTES else raw.decode())
            at = end + 1
        else:
            raise ValueError(f"unknown tag {tag} in key {key!r}")
    return tuple(elements)


def after_prefix(prefix: bytes) -> bytes:
    """The smallest key greater than every key that begins with `prefix`."""
    trimmed = prefix.rstrip(b"\xff")
    if not trimmed:
        raise ValueError("no key follows all keys with this prefix")
    return trimmed[:-1] + bytes((trimmed[-1] + 1,))


def prefix_range(prefix: bytes) -> tuple[bytes, bytes]:
    """(begin, end) of the keys that begin with `prefix`."""
    return prefix, after_prefix(prefix)
