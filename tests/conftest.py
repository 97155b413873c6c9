"""What every test needs."""

import pytest
from hypothesis import settings

from exastore.proto.channel import keep_grpc_running

pytest_plugins = ["tests.support.engine_stores"]

# How long an example takes says more about what else the machine does.
settings.register_profile("exastore", parent=settings(), deadline=None)
settings.load_profile("exastore")


@pytest.fixture(scope="session", autouse=True)
def _grpc_keeps_running() -> None:
    # A call that a test leaves under way must not hang the run when its channel is collected.
    keep_grpc_running()
