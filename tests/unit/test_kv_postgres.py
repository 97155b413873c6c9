"""What an error of PostgreSQL's client says about a commit that was under way."""

import psycopg
import pytest
from psycopg import errors as sql

from exastore.metadata.kv.postgres import says_aborted


@pytest.mark.parametrize(
    "error", [sql.SerializationFailure(), sql.DeadlockDetected(), sql.DiskFull()]
)
def test_an_error_that_the_server_answered_with_is_an_abort(error: psycopg.Error) -> None:
    assert says_aborted(error)


@pytest.mark.parametrize(
    "error",
    [
        # Seen when a server was told to end while it committed: it had committed.
        psycopg.OperationalError("cannot exit pipeline mode while busy"),
        psycopg.OperationalError("consuming input failed"),
        sql.AdminShutdown(),
        sql.CrashShutdown(),
        sql.ConnectionFailure(),
    ],
)
def test_an_error_of_the_client_or_of_a_server_that_ends_leaves_a_commit_unknown(
    error: psycopg.Error,
) -> None:
    assert not says_aborted(error)
