"""Empty stores for tests of engines, on servers of the test run's own that all its tests share.

A plugin of pytest (see `tests/conftest.py`). Tests that kill a server start one for themselves.
"""

import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from tests.support.etcd_cluster import EtcdCluster
from tests.support.postgres_server import PostgresServer

#: The engines, by the scheme of their URLs.
KINDS = ("memory", "sqlite", "postgresql", "etcd")
#: Those that several processes can open.
SHARED_KINDS = ("postgresql", "etcd")


class EngineStores:
    """Gives URLs of new, empty stores; starts a server when it is first needed."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack
        self._count = 0
        self._folder: Path | None = None
        self._postgres: PostgresServer | None = None
        self._etcd: EtcdCluster | None = None

    def url(self, kind: str) -> str:
        """The URL of a store that was never used. Skips if its server is not installed."""
        self._count += 1
        if kind == "memory":
            return "memory:"
        if kind == "sqlite":
            if self._folder is None:
                self._folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory()))
            return f"sqlite://{self._folder}/{self._count}.db"
        if kind == "postgresql":
            if self._postgres is None:
                self._postgres = self._stack.enter_context(PostgresServer())
            return self._postgres.new_url(f"store_{self._count}")
        assert kind == "etcd"
        if self._etcd is None:
            self._etcd = self._stack.enter_context(EtcdCluster())
        return self._etcd.url(f"store-{self._count}")


@pytest.fixture(scope="session")
def engine_stores() -> Iterator[EngineStores]:
    """Empty stores of every engine."""
    with ExitStack() as stack:
        yield EngineStores(stack)
