"""What every test needs."""

import pytest

from exastore.proto.channel import keep_grpc_running

pytest_plugins = ["tests.support.engine_stores"]


@pytest.fixture(scope="session", autouse=True)
def _grpc_keeps_running() -> None:
    # A call that a test leaves under way must not hang the run when its channel is collected.
    keep_grpc_running()
