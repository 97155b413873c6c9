"""Config files: TOML, one table per service, read into the rooms' frozen dataclasses.

    [process]                       # how this process runs: every service has it
    metrics_address = "127.0.0.1:9100"
    [node]                          # or [metadata], or [gateway]: what it does
    node_id = "node-1"

A key nobody knows is an error, as is a value of the wrong type; all errors of a file are told at
once.
"""

import difflib
import json
import tomllib
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any, Literal, TypeVar, cast

from pydantic import TypeAdapter, ValidationError

from exastore.deploy.errors import BadInput

ConfigT = TypeVar("ConfigT")


@dataclass(frozen=True, slots=True)
class ProcessConfig:
    """How a process runs, whatever its service does."""

    metrics_address: str = "127.0.0.1:0"
    """host:port of the Prometheus endpoint; port 0 takes a free one; empty: no endpoint."""
    ready_file: str = ""
    """Written when the service serves: JSON with pid, address and metrics address; empty: none."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """Events below this level are not logged."""
    stop_grace_s: float = 5.0
    """Seconds that requests in flight have to finish after SIGTERM."""
    use_uvloop: bool = True
    """Run on uvloop's event loop; false: on asyncio's own."""


def read_config(path: Path, table: str, schema: type[ConfigT]) -> tuple[ConfigT, ProcessConfig]:
    """Read the `table` of a config file, and its `[process]`.

    Raises:
        BadInput: The file cannot be read, is not TOML, or does not fit the schema.
    """
    try:
        document: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BadInput(f"cannot read config file {path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise BadInput(f"{path} is not valid TOML: {error}") from error
    problems: list[str] = []
    known = {table: schema, "process": ProcessConfig}
    for name, value in document.items():
        if name not in known:
            problems.append(f"[{name}]: unknown table; this file takes [{table}] and [process]")
        elif not isinstance(value, dict):
            problems.append(f"{name}: a table is expected: [{name}]")
    service = _convert(schema, document.get(table, {}), table, problems)
    process = _convert(ProcessConfig, document.get("process", {}), "process", problems)
    if problems or service is None or process is None:
        raise BadInput("\n  ".join([f"{path} has errors:", *problems]))
    return service, process


def _convert(
    schema: type[ConfigT], values: object, table: str, problems: list[str]
) -> ConfigT | None:
    """The dataclass, or None after adding to `problems`."""
    if not isinstance(values, dict):
        return None
    table_values = cast(dict[str, object], values)
    names = field_names(schema)
    known_values: dict[str, object] = {}
    for name, value in table_values.items():
        if name in names:
            known_values[name] = value
            continue
        close = difflib.get_close_matches(name, names, n=1)
        advice = f"; did you mean {close[0]}?" if close else f"; known: {', '.join(names)}"
        problems.append(f"[{table}] {name}: unknown key{advice}")
    try:
        # JSON mode is strict about types, yet takes arrays for tuples and strings for enums.
        return TypeAdapter(schema).validate_json(json.dumps(known_values, default=str), strict=True)
    except ValidationError as error:
        for item in error.errors():
            place = ".".join(str(part) for part in item["loc"]) or "(whole table)"
            message = item["msg"].removeprefix("Value error, ")
            given = "" if item["type"] == "missing" else f" (given: {item['input']!r})"
            problems.append(f"[{table}] {place}: {message}{given}")
        return None


def field_names(schema: type[Any]) -> list[str]:
    """Names of a dataclass's fields, in order."""
    return [item.name for item in fields(schema)]


def render_table(name: str, values: Mapping[str, object]) -> str:
    """One TOML table with these values: strings, numbers, booleans and flat sequences."""
    lines = [f"[{name}]", *(f"{key} = {_toml_value(value)}" for key, value in values.items())]
    return "\n".join(lines) + "\n"


def render_defaults(name: str, schema: type[Any]) -> str:
    """One TOML table with every field of a dataclass at its default."""
    lines = [f"[{name}]"]
    for item in fields(schema):
        if item.default is not MISSING:
            lines.append(f"{item.name} = {_toml_value(item.default)}")
        elif item.default_factory is not MISSING:
            lines.append(f"{item.name} = {_toml_value(item.default_factory())}")
        else:
            lines.append(f"# {item.name}: required")
    return "\n".join(lines) + "\n"


def _toml_value(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(int(value))
    if isinstance(value, float):
        return repr(value)
    if isinstance(value, str):
        # A JSON string without surrogate escapes is a TOML basic string.
        return json.dumps(str(value), ensure_ascii=False)
    if isinstance(value, list | tuple):
        items = cast(list[object], value)
        return "[" + ", ".join(_toml_value(item) for item in items) + "]"
    raise TypeError(f"no TOML form for {type(value).__name__}")
