"""The real programs that tests run against: browser, engines, oracles (see `make peers`)."""

import os
import shutil
from pathlib import Path

import pytest


def program(*names: str) -> str:
    """The path of the first of these programs that is installed.

    Args:
        names: Names to look up on the path, or absolute paths.

    Raises:
        pytest.skip.Exception: None is there; the reason says what to run.
        pytest.fail.Exception: None is there, and `EXASTORE_REQUIRE_PEERS=1` says that all must be,
            as in continuous integration, where a test that did not run proves nothing.
    """
    for name in names:
        found = name if Path(name).is_absolute() and Path(name).exists() else shutil.which(name)
        if found:
            return found
    reason = f"none of {', '.join(names)} is installed: run `make peers`"
    if os.environ.get("EXASTORE_REQUIRE_PEERS") == "1":
        pytest.fail(reason)
    pytest.skip(reason)
