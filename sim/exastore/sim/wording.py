"""What is wrong with a scenario, in words: field, value and remedy for each error of pydantic."""

from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from difflib import get_close_matches
from typing import Any, get_args, get_type_hints

from pydantic import ValidationError

from exastore.sim.errors import Problem
from exastore.sim.toml_lines import line_of


def problems_of(error: ValidationError, text: str, root: type[Any]) -> list[Problem]:
    """Every error as a problem with its line.

    Args:
        error: What pydantic found in the tree of `text`.
        text: The TOML text.
        root: The dataclass that the tree should be.
    """
    found: list[Problem] = []
    for item in error.errors(include_url=False):
        key = ".".join(str(part) for part in item["loc"])
        found.append(Problem(key, _say(item, root), line_of(text, key)))
    return sorted(found, key=lambda problem: (problem.line, problem.key))


def _say(item: Any, root: type[Any]) -> str:
    """A sentence for one error."""
    kind, given, path = item["type"], item.get("input"), item["loc"]
    if kind in {"missing", "missing_argument"}:
        return "is required and not given"
    if kind in {"unexpected_keyword_argument", "extra_forbidden"}:
        return _unknown(path, root)
    if kind in {"dataclass_type", "dataclass_exact_type"}:
        return f"must be one section, written as [{path[0]}], not {given!r}"
    if kind == "tuple_type":
        if isinstance(given, dict):
            return f"must be rows, each written under [[{path[0]}]], not under [{path[0]}]"
        return f"must be a list, written as [{given!r}], not {given!r}"
    if kind in {"int_type", "float_type"} and isinstance(given, str):
        return f"is {given!r}; give a plain number, the name of the key ends in its unit"
    if kind == "int_type" and isinstance(given, float) and given.is_integer():
        return f"is {given!r}; write a whole number, without a point or an exponent: {given:_.0f}"
    if kind == "string_too_short":
        return "is empty; give a text"
    message: str = item["msg"]
    return f"{message.replace('Input should', 'should')}, not {given!r}"


def _unknown(path: Sequence[str | int], root: type[Any]) -> str:
    """What to do about a key that is none: the one that may be meant, or the section it is in."""
    name = str(path[-1])
    keys = _keys(path[:-1], root)
    if close := get_close_matches(name, keys, n=1, cutoff=0.55):
        return f"is not a key of a scenario; perhaps {close[0]} is meant"
    sections = [its for its in _keys((), root) if name in _keys((its,), root)]
    if len(sections) == 1:
        return f"is not a key here; it is one of [{sections[0]}]"
    return f"is not a key of a scenario; the keys here are {', '.join(keys)}"


def _keys(path: Sequence[str | int], root: type[Any]) -> list[str]:
    """Names that may stand in the section at `path`; none if it is no section."""
    here: Any = root
    for part in path:
        if isinstance(part, str):
            here = get_type_hints(here)[part]
            here = next((its for its in get_args(here) if is_dataclass(its)), here)
    return [item.name for item in fields(here)] if is_dataclass(here) else []
