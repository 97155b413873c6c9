"""The whole fault matrix: every phase, killed, stopped, failed: the table of docs/faults.md."""

from pathlib import Path

import pytest
from tests.chaos.matrix import OPERATION_OF, Chaos
from tests.integration.conftest import NewCluster, new_cluster

from exastore.deploy.failpoints import VARIABLE, Action
from exastore.metadata.core.phases import Phase

__all__ = ["new_cluster"]

pytestmark = [pytest.mark.verify, pytest.mark.chaos]

#: A process that stands still at these holds up nobody but itself: its peers time out.
PAUSED = [p for p in Phase if OPERATION_OF[p] and p.startswith(("node.chunk", "node.rebuild"))]
#: Where an I/O error may come from.
FAILED = [
    Phase.CHUNK_APPENDING,
    Phase.CHUNK_APPENDED,
    Phase.CHUNK_SYNCING,
    Phase.CHUNK_SYNCED,
    Phase.TOMBSTONES_APPENDED,
    Phase.REBUILD_PULLED,
    Phase.COMMIT_RECEIVED,
    Phase.TRASH_CHUNKS_DELETED,
    Phase.SLOT_VERIFIED,
]
#: The parts of the matrix, each on a cluster of its own: process hit and action.
PARTS = {
    **{
        f"{process}-kill": [
            (phase, Action.KILL)
            for phase in Phase
            if OPERATION_OF[phase] and phase.startswith(process)
        ]
        for process in ("gateway", "node", "metadata")
    },
    "node-pause": [(phase, Action.PAUSE) for phase in PAUSED],
    "device-error": [(phase, Action.ERROR) for phase in FAILED],
}


@pytest.mark.parametrize("part", PARTS)
def test_every_phase_survives_every_fault(
    new_cluster: NewCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    folder = tmp_path / "failpoints"
    folder.mkdir()
    monkeypatch.setenv(VARIABLE, str(folder))
    options = ("--nodes", "8", "--code", "rs-4-2", "--pg-count", "16")
    chaos = Chaos(
        new_cluster("--down-after-s", "1", "--out-after-s", "6", "--trash-grace-s", "0", *options),
        folder,
    )
    for phase, action in PARTS[part]:
        outcome = chaos.run(phase, action)
        print(outcome, flush=True)
    chaos.check_all()
    reclaimed = chaos.collect_orphans()
    # Each of these dies between its chunks and their commit, so the collection has something to do.
    assert reclaimed or part != "gateway-kill"
    print(chaos.table(), flush=True)
