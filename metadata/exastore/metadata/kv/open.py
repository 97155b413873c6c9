"""From an engine URL to an engine."""

from pathlib import Path
from urllib.parse import unquote

from exastore.metadata.kv.contract import Engine
from exastore.metadata.kv.errors import EngineUnavailable
from exastore.metadata.kv.memory import MemoryEngine
from exastore.metadata.kv.sqlite import SqliteEngine

_SQLITE = "sqlite://"


def open_engine(url: str) -> Engine:
    """Open "memory:" or "sqlite:///absolute/path". Raises EngineUnavailable."""
    if url == "memory:":
        return MemoryEngine()
    if url.startswith(_SQLITE + "/"):
        return SqliteEngine(Path("/" + unquote(url.removeprefix(_SQLITE)).lstrip("/")))
    raise EngineUnavailable(
        f'unknown engine URL {url!r}: use "memory:" or "sqlite:///absolute/path"'
    )
