"""Small files that are read by others while we write them: replaced whole or not at all."""

import json
import os
from pathlib import Path
from typing import cast

import numpy as np

JsonObject = dict[str, object]


def write_atomically(path: Path, text: str, *, mode: int = 0o644) -> None:
    """Replace `path` by `text` in one step, with permissions `mode` from the first byte on."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def write_json(path: Path, value: object, *, mode: int = 0o644) -> None:
    """Replace `path` by `value` as indented JSON; numpy's scalars count as Python's."""
    text = json.dumps(value, indent=2, default=_plain)
    write_atomically(path, text + "\n", mode=mode)


def _plain(value: object) -> object:
    if isinstance(value, np.generic):
        plain: object = value.item()
        return plain
    raise TypeError(f"no JSON form for {type(value).__name__}")


def read_json_object(path: Path) -> JsonObject | None:
    """The object in `path`; None when there is no such file or it holds no JSON object."""
    try:
        value: object = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError):
        return None
    return cast(JsonObject, value) if isinstance(value, dict) else None


def tail(path: Path, *, line_count: int = 15) -> str:
    """The last `line_count` lines of a log; empty when there is none."""
    try:
        with path.open("rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(0, file.tell() - 64 * 1024))
            lines = file.read().decode("utf-8", "replace").splitlines()
    except FileNotFoundError:
        return ""
    return "\n".join(lines[-line_count:])
