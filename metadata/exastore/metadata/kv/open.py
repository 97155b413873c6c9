"""From an engine URL to an engine."""

from pathlib import Path
from urllib.parse import unquote

from exastore.metadata.kv.contract import Engine
from exastore.metadata.kv.errors import EngineUnavailable
from exastore.metadata.kv.memory import MemoryEngine
from exastore.metadata.kv.sqlite import SqliteEngine

_SQLITE = "sqlite://"


def open_engine(url: str) -> Engine:
    """Open an engine. Raises EngineUnavailable.

    Args:
        url: "memory:", "sqlite:///absolute/path", "postgresql://user@host:port/database" or
            "etcd://host:port,host:port,host:port/prefix". The last two connect when they are used.
    """
    if url == "memory:":
        return MemoryEngine()
    if url.startswith(_SQLITE + "/"):
        return SqliteEngine(Path("/" + unquote(url.removeprefix(_SQLITE)).lstrip("/")))
    # The clients of servers are loaded only where they are used: start-up and memory.
    if url.startswith("postgresql://"):
        from exastore.metadata.kv.postgres import open_postgres

        return open_postgres(url)
    if url.startswith("etcd://"):
        from exastore.metadata.kv.etcd import open_etcd

        return open_etcd(url)
    raise EngineUnavailable(
        f'unknown engine URL {url!r}: use "memory:", "sqlite:///absolute/path", '
        '"postgresql://user@host:port/database" or "etcd://host:port,host:port,host:port/prefix"'
    )
