"""Patterns with * and ?, as policies have them."""

import re
from functools import lru_cache

#: What stands for characters that are not wildcards within a pattern, and for what never matches.
_STAR, _QUESTION, UNMATCHED = "\x01", "\x02", "\x00"


def literal(text: str) -> str:
    """A text as a pattern that matches it alone."""
    return text.replace("*", _STAR).replace("?", _QUESTION)


def matches(pattern: str, text: str) -> bool:
    """Whether the whole text fits."""
    if pattern == "*" or (pattern == text and UNMATCHED not in pattern):
        return True
    if not _is_special(pattern):
        return False
    return _compiled(pattern).fullmatch(text) is not None


def _is_special(pattern: str) -> bool:
    return "*" in pattern or "?" in pattern or _STAR in pattern or _QUESTION in pattern


@lru_cache(maxsize=4096)
def _compiled(pattern: str) -> re.Pattern[str]:
    first, *others = (_piece(piece) for piece in re.sub(r"\*+", "*", pattern).split("*"))
    if not others:
        return re.compile(first, re.DOTALL)
    *middle, last = others
    # The first place of a piece is as good as any later one. Atomic groups keep to it, so that a
    # pattern of many stars takes no time that grows with their number's power.
    return re.compile(
        first + "".join(f"(?>.*?{piece})" for piece in middle) + f".*{last}", re.DOTALL
    )


def _piece(piece: str) -> str:
    parts: list[str] = []
    for character in piece:
        if character == "?":
            parts.append(".")
        elif character == UNMATCHED:
            parts.append(r"(?!)")
        else:
            plain = {_STAR: "*", _QUESTION: "?"}.get(character, character)
            parts.append(re.escape(plain))
    return "".join(parts)
