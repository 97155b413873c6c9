"""Processes that die at any phase of any operation: nothing acknowledged is lost."""

from pathlib import Path

import pytest
from tests.chaos.matrix import OPERATIONS_OF, Case, Chaos
from tests.integration.conftest import NewCluster

from exastore.deploy.failpoints import VARIABLE, Action
from exastore.metadata.core.phases import Phase

pytestmark = [pytest.mark.integration, pytest.mark.chaos]

#: One phase of each kind of process, around the moments at which a promise is made. The others
#: are in the whole matrix (tests/verification/test_fault_matrix.py).
FAST = (
    Case(Phase.COMMITTED, Action.KILL, "put"),
    Case(Phase.FRAME_HALF_SENT, Action.KILL, "put"),
    Case(Phase.CHUNK_APPENDED, Action.KILL, "put"),
    Case(Phase.COMMIT_DURABLE, Action.KILL, "put"),
    Case(Phase.REBUILD_WRITTEN, Action.KILL, "rebuild"),
)


def start(new_cluster: NewCluster, folder: Path, patch: pytest.MonkeyPatch, *options: str) -> Chaos:
    folder.mkdir()
    patch.setenv(VARIABLE, str(folder))
    return Chaos(
        new_cluster("--down-after-s", "1", "--out-after-s", "3", "--trash-grace-s", "0", *options),
        folder,
    )


def test_every_phase_has_an_operation_that_passes_it() -> None:
    assert set(OPERATIONS_OF) == set(Phase)


def test_processes_die_around_the_moments_of_promise(
    new_cluster: NewCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ("--nodes", "6", "--code", "rs-2-2", "--pg-count", "12")
    chaos = start(new_cluster, tmp_path / "failpoints", monkeypatch, *options)
    for case in FAST:
        chaos.run(case)
    chaos.check_all()
