"""The whole fault matrix: every phase killed, stopped, failed: docs/fault-matrix.md."""

import contextlib
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from tests.chaos import fault_table
from tests.chaos.matrix import OPERATIONS_OF, Case, Chaos, Outcome
from tests.chaos.test_device_phases import UPKEEP
from tests.chaos.test_device_phases import (
    test_a_device_survives_death_in_its_upkeep as die_in_upkeep,
)
from tests.integration.conftest import NewCluster, new_cluster
from tests.support.etcd_cluster import EtcdCluster
from tests.support.postgres_server import PostgresServer

from exastore.deploy.failpoints import VARIABLE, Action
from exastore.metadata.core.phases import Phase

__all__ = ["new_cluster"]

pytestmark = [pytest.mark.verify, pytest.mark.chaos]

#: A node that stands still at these holds up nobody but itself: its peers time out.
STOPPED = ("node.frame", "node.chunk", "node.answer", "node.rebuild", "node.pack")
#: Where an I/O error may come from.
FAILED = (
    Phase.CHUNK_APPENDING,
    Phase.CHUNK_APPENDED,
    Phase.CHUNK_SYNCING,
    Phase.CHUNK_SYNCED,
    Phase.TOMBSTONES_APPENDED,
    Phase.REBUILD_PULLED,
    Phase.COMMIT_RECEIVED,
    Phase.TRASH_CHUNKS_DELETED,
    Phase.SLOT_VERIFIED,
)
#: Around the transactions of clients.
PROMISES = tuple(
    phase
    for phase in Phase
    if phase.startswith(
        ("metadata.commit", "metadata.part", "metadata.complete", "metadata.delete", "metadata.eng")
    )
)


def cases_of(
    phases: Sequence[Phase], action: Action, *, first: bool = False, during: str = ""
) -> list[Case]:
    """Each phase with all its operations, or with the usual one alone."""
    return [
        Case(phase, action, operation, during)
        for phase in phases
        for operation in (OPERATIONS_OF[phase][:1] if first else OPERATIONS_OF[phase])
    ]


def phases_of(*prefixes: str) -> list[Phase]:
    return [phase for phase in Phase if OPERATIONS_OF[phase] and phase.startswith(prefixes)]


KILL, PAUSE = Action.KILL, Action.PAUSE
SQLITE, POSTGRESQL, ETCD = "SQLite", "PostgreSQL", "etcd"
#: The parts of the matrix, each on a cluster of its own: engine and cases.
PARTS: dict[str, tuple[str, list[Case]]] = {
    "gateway-kill": (SQLITE, cases_of(phases_of("gateway"), KILL)),
    "gateway-stale": (
        SQLITE,
        cases_of(phases_of("gateway"), PAUSE, first=True, during="stopped, map changed"),
    ),
    "node-kill": (SQLITE, cases_of(phases_of("node"), KILL)),
    "node-pause": (SQLITE, cases_of(phases_of(*STOPPED), PAUSE, first=True)),
    "device-error": (SQLITE, cases_of(FAILED, Action.ERROR, first=True)),
    "metadata-kill": (SQLITE, cases_of(phases_of("metadata"), KILL)),
    "postgresql-kill": (POSTGRESQL, cases_of(phases_of("metadata"), KILL, first=True)),
    "postgresql-stale": (
        POSTGRESQL,
        cases_of(phases_of("metadata"), PAUSE, first=True, during="stopped, lease lost"),
    ),
    "postgresql-engine": (
        POSTGRESQL,
        cases_of(PROMISES, PAUSE, first=True, during="engine killed"),
    ),
    "etcd-kill": (ETCD, cases_of(PROMISES, KILL, first=True)),
    "etcd-engine": (ETCD, cases_of(PROMISES, PAUSE, first=True, during="engine killed")),
}


@dataclass
class RunningEngine:
    """Of the metadata servers."""

    options: tuple[str, ...] = ()
    #: kill -9 of all its processes, and their start.
    restart: Callable[[], None] = field(default=lambda: None)


@contextlib.contextmanager
def running(engine: str) -> Generator[RunningEngine]:
    if engine == POSTGRESQL:
        with PostgresServer(fsync=True) as server:

            def restart_postgres() -> None:
                server.kill()
                server.start()

            servers = ("--metadata-servers", "2", "--engine", server.new_url("matrix"))
            yield RunningEngine(servers, restart_postgres)
    elif engine == ETCD:
        with EtcdCluster() as etcd:

            def restart_etcd() -> None:
                for index in range(len(etcd.endpoints)):
                    etcd.kill(index)
                for index in range(len(etcd.endpoints)):
                    etcd.start(index)
                for index in range(len(etcd.endpoints)):
                    etcd.wait_for(index)

            servers = ("--metadata-servers", "2", "--engine", etcd.url("matrix"))
            yield RunningEngine(servers, restart_etcd)
    else:
        yield RunningEngine()


@pytest.mark.parametrize("part", PARTS)
def test_every_phase_survives_every_fault(
    new_cluster: NewCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    begun_s = time.monotonic()
    folder = tmp_path / "failpoints"
    folder.mkdir()
    monkeypatch.setenv(VARIABLE, str(folder))
    options = ("--nodes", "8", "--code", "rs-4-2", "--pg-count", "16", "--trash-grace-s", "0")
    engine, cases = PARTS[part]
    with running(engine) as served:
        live = new_cluster("--down-after-s", "1", "--out-after-s", "6", *options, *served.options)
        try:
            chaos = Chaos(live, folder)
            chaos.during["stopped, map changed"] = chaos.change_map
            chaos.during["stopped, lease lost"] = chaos.lose_lease
            chaos.during["engine killed"] = served.restart
            for case in cases:
                chaos.run(case)
            chaos.check_all()
            reclaimed = chaos.collect_orphans()
        finally:
            assert live.run("cluster", "down").code == 0
    # Each of these dies between its chunks and their commit, so the collection has something to do.
    assert reclaimed or part != "gateway-kill"
    seconds = round(time.monotonic() - begun_s)
    fault_table.save(part, chaos.outcomes, engine=engine, orphans=reclaimed, seconds=seconds)


def test_every_phase_of_upkeep_survives_death(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun_s = time.monotonic()
    for phase in UPKEEP:
        (tmp_path / phase).mkdir()
        die_in_upkeep(tmp_path / phase, phase, monkeypatch)
    outcomes = [Outcome(phase, KILL, "upkeep", "node", "none", "-") for phase in UPKEEP]
    seconds = round(time.monotonic() - begun_s)
    fault_table.save("upkeep-kill", outcomes, engine="none", orphans=0, seconds=seconds)
