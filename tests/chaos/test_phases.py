"""Processes that die at any phase of any operation: nothing acknowledged is lost."""

from pathlib import Path

import pytest
from tests.chaos.matrix import OPERATION_OF, Chaos
from tests.integration.conftest import NewCluster

from exastore.deploy.failpoints import VARIABLE, Action
from exastore.metadata.core.phases import Phase

pytestmark = [pytest.mark.integration, pytest.mark.chaos]

#: One phase of each kind of process, around the moments at which a promise is made. The others
#: are in the whole matrix (tests/verification/test_fault_matrix.py).
FAST = (
    (Phase.COMMITTED, Action.KILL),
    (Phase.CHUNK_APPENDED, Action.KILL),
    (Phase.COMMIT_DURABLE, Action.KILL),
    (Phase.REBUILD_WRITTEN, Action.KILL),
)


def start(new_cluster: NewCluster, folder: Path, patch: pytest.MonkeyPatch, *options: str) -> Chaos:
    folder.mkdir()
    patch.setenv(VARIABLE, str(folder))
    return Chaos(
        new_cluster("--down-after-s", "1", "--out-after-s", "3", "--trash-grace-s", "0", *options),
        folder,
    )


def test_every_phase_has_an_operation_that_passes_it() -> None:
    assert set(OPERATION_OF) == set(Phase)


def test_processes_die_around_the_moments_of_promise(
    new_cluster: NewCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ("--nodes", "6", "--code", "rs-2-2", "--pg-count", "12")
    chaos = start(new_cluster, tmp_path / "failpoints", monkeypatch, *options)
    for phase, action in FAST:
        chaos.run(phase, action)
    chaos.check_all()
    print(chaos.table())
