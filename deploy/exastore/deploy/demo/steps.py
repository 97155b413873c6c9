"""The steps of the demo, each told as it goes.

The cluster is stopped however the demo ends. A failure says in which step it happened and leaves
the cluster's folder, with its logs, for a look.
"""

import signal
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from threading import Thread

import numpy as np
from botocore.exceptions import BotoCoreError, ClientError
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TransferSpeedColumn,
)

from exastore.deploy.children import recorded
from exastore.deploy.cli.output import binary_size, duration
from exastore.deploy.clock import SystemClock
from exastore.deploy.demo.measure import Recorder, RepairMeasurement, Sample, measure_repair
from exastore.deploy.demo.s3 import DemoClient, StoredObject, run_parallel, total_bytes
from exastore.deploy.demo.workload import WorkFile, Workload, collect
from exastore.deploy.errors import DeployError
from exastore.deploy.launcher import LocalCluster
from exastore.deploy.layout import ClusterFile, node_name
from exastore.deploy.spec import ClusterOptions
from exastore.deploy.store_access import scrub
from exastore.gateway.verifier import VerifyReport

STEP_COUNT = 6
NODE_COUNT = 8
CODE = "rs-4-2"
BUCKET = "demo"
VICTIMS = (node_name(3), node_name(6))
#: Objects written while two nodes are dead: sizes in bytes, each this many times.
LATE_SIZES = (1_000, 100_000, 3_000_000)
LATE_ROUNDS = 8
REPAIR_TIMEOUT_S = 180.0


class DemoFailed(DeployError):
    """A step of the demo failed."""


@dataclass(frozen=True, slots=True)
class Transfer:
    """Objects that went one way."""

    object_count: int
    size_bytes: int
    elapsed_s: float

    @property
    def bytes_per_s(self) -> float:
        return self.size_bytes / self.elapsed_s

    @property
    def objects_per_s(self) -> float:
        return self.object_count / self.elapsed_s

    def __str__(self) -> str:
        return (
            f"{self.object_count:,} objects, {binary_size(self.size_bytes)} in "
            f"{duration(self.elapsed_s)}: {self.bytes_per_s / 1e6:.0f} MB/s, "
            f"{self.objects_per_s:.0f} objects/s"
        )


@dataclass(slots=True)
class Outcome:
    """What the steps on the real cluster found. Filled in step by step."""

    code: str = CODE
    node_count: int = NODE_COUNT
    out_after_s: float = 0.0
    stored: list[StoredObject] = field(default_factory=list[StoredObject])
    write: Transfer | None = None
    degraded_read: Transfer | None = None
    late_objects: list[StoredObject] = field(default_factory=list[StoredObject])
    final_read: Transfer | None = None
    samples: list[Sample] = field(default_factory=list[Sample])
    events: list[tuple[float, str]] = field(default_factory=list[tuple[float, str]])
    repair: RepairMeasurement | None = None
    verified: VerifyReport | None = None
    redundant_after_s: float = 0.0
    step_times_s: dict[str, float] = field(default_factory=dict[str, float])


class ClusterStory:
    """Steps 1 to 4: a cluster that stores, loses two nodes, and heals."""

    def __init__(
        self,
        directory: Path,
        scratch: Path,
        *,
        size_bytes: int,
        out_after_s: float,
        console: Console,
        clock: SystemClock,
    ) -> None:
        self.local = LocalCluster.at(directory)
        self.outcome = Outcome(out_after_s=out_after_s)
        self._scratch = scratch
        self._size_bytes = size_bytes
        self._console = console
        self._clock = clock
        self._client: DemoClient | None = None
        self._recorder: Recorder | None = None
        self._cluster: ClusterFile | None = None

    @contextmanager
    def step(self, number: int, title: str) -> Generator[None]:
        """Announce a step, time it, and say which one failed."""
        self._console.rule(f"[bold]{number}/{STEP_COUNT}  {title}", align="left")
        begin_s = self._clock.monotonic_s()
        try:
            yield
        except KeyboardInterrupt:
            self._say(f"interrupted in step {number} ({title}); the cluster is stopped")
            raise
        except (BotoCoreError, ClientError, OSError) as error:
            raise DemoFailed(f"step {number} ({title}) failed: {error}") from error
        except DemoFailed:
            raise
        except DeployError as error:
            raise DemoFailed(
                f"step {number} ({title}) failed: {error.message}", hint=error.hint
            ) from error
        self.outcome.step_times_s[title] = self._clock.monotonic_s() - begin_s

    def stop(self) -> None:
        """Stop the cluster and the recorder, whatever state they are in."""
        if self._recorder is not None:
            self._recorder.stop()
        if self.local.paths.spec.exists():
            self.local.down(grace_s=5.0)

    def run(self) -> None:
        """Steps 1 to 4."""
        with self.step(1, f"start {NODE_COUNT} storage nodes, {CODE}"):
            self.start()
        with self.step(2, "store real files through S3 with boto3"):
            self.store()
        with self.step(3, "kill two storage nodes, read everything back, write on"):
            self.lose_nodes()
        with self.step(4, "repair, then read every chunk"):
            self.heal()

    def start(self) -> None:
        """Step 1."""
        options = ClusterOptions(
            nodes=NODE_COUNT, code=CODE, out_after_s=self.outcome.out_after_s, down_after_s=3.0
        )
        with self._console.status("starting") as spinner:
            begin_s = self._clock.monotonic_s()
            started = self.local.up(options, lambda text: spinner.update(text))
        self._cluster = started.cluster
        self._client = DemoClient(started.cluster, BUCKET)
        elapsed_s = self._clock.monotonic_s() - begin_s
        self._say(
            f"{len(started.started)} processes serve after {duration(elapsed_s)}; "
            f"S3 at {started.cluster['s3']['endpoint']}"
        )

    def store(self) -> None:
        """Step 2."""
        client = self._ready_client()
        self._scratch.mkdir(exist_ok=True)
        workload = collect(self._size_bytes, self._scratch)
        self._describe(workload)
        client.create_bucket()
        stored: list[StoredObject] = []
        begin_s = self._clock.monotonic_s()
        with self._bar("storing", workload.total_bytes) as advance:
            for file, item in run_parallel(client.put_file, workload.files):
                stored.append(item)
                advance(file.size_bytes)
        self.outcome.stored = stored
        self.outcome.write = self._transfer(stored, begin_s)
        self._say(f"stored {self.outcome.write}")

    def _describe(self, workload: Workload) -> None:
        def count(prefix: str) -> int:
            return sum(file.key.startswith(prefix) for file in workload.files)

        self._say(
            f"{len(workload.files):,} files, {binary_size(workload.total_bytes)}: "
            f"{count('stdlib/'):,} of the standard library, {count('wheels/'):,} of installed "
            f"wheels, and {workload.large.path.name} of {binary_size(workload.large.size_bytes)}"
        )

    def lose_nodes(self) -> None:
        """Step 3."""
        client, cluster = self._ready_client(), self._ready_cluster()
        self._recorder = Recorder(cluster["metadata"][0]["address"], self._clock)
        for name in VICTIMS:
            child = recorded(self.local.paths, name)
            if child is None or not child.send(signal.SIGKILL):
                raise DemoFailed(f"{name} could not be killed: it does not run")
        self._recorder.start()
        self._recorder.mark("2 nodes killed")
        self._say(f"killed {' and '.join(VICTIMS)} with SIGKILL")
        late: list[StoredObject] = []
        failures: list[BaseException] = []

        def write_on() -> None:
            try:
                late.extend(client.put_bytes(key, data) for key, data in late_objects())
            except (BotoCoreError, ClientError) as error:
                failures.append(error)

        writer = Thread(target=write_on, name="late-writer", daemon=True)
        writer.start()
        self.outcome.degraded_read = self._read_back("reading degraded", self.outcome.stored)
        writer.join()
        if failures:
            raise DemoFailed(f"a write failed while two nodes were dead: {failures[0]}")
        self._read_back("reading what was written meanwhile", late)
        self.outcome.late_objects = late
        self._recorder.mark("everything read back")
        self._say(f"read degraded, every SHA-256 as stored: {self.outcome.degraded_read}")
        self._say(
            f"meanwhile wrote and read {len(late)} more objects, {binary_size(total_bytes(late))}"
        )

    def heal(self) -> None:
        """Step 4."""
        recorder = self._recorder
        assert recorder is not None, "step 3 comes first"
        self._watch_repair(recorder)
        recorder.stop()
        self.outcome.samples = recorder.samples
        self.outcome.events = recorder.events
        repair = measure_repair(recorder.samples, NODE_COUNT - len(VICTIMS))
        self.outcome.repair = repair
        self._say(
            f"rebuilt {repair.rebuilt_chunk_count:,} chunks, "
            f"{binary_size(repair.rebuilt_chunk_bytes)}, in {duration(repair.elapsed_s)}; "
            f"{repair.device_bytes_per_s / 1e6:.1f} MB/s per device that took them "
            f"({repair.target_device_count} devices on this one disk); full redundancy "
            f"{duration(self.outcome.redundant_after_s)} after the kill"
        )
        self.outcome.verified = report = self._verify()
        self._say(
            f"read every chunk: {report.chunk_count:,} chunks of {report.stripe_count:,} stripes, "
            f"{binary_size(report.chunk_bytes)}, all healthy"
        )
        everything = [*self.outcome.stored, *self.outcome.late_objects]
        self.outcome.final_read = self._read_back("reading everything again", everything)
        self._say(f"every SHA-256 as stored: {self.outcome.final_read}")

    def _watch_repair(self, recorder: Recorder) -> None:
        begin_s = self._clock.monotonic_s()
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            DownloadColumn(binary_units=True),
            TextColumn("{task.fields[note]}"),
        )
        tell = self._every(2.0)
        with self._progress(*columns) as progress:
            task = progress.add_task(
                "repairing", total=None, note="waiting for the nodes to come back"
            )
            while True:
                view = recorder.latest
                hit = any(sample.missing_slot_count for sample in recorder.samples)
                if view is not None and hit:
                    repair = view.repair
                    if view.fully_redundant and not repair.active:
                        break
                    if repair.active:
                        note = (
                            f"{view.missing_slot_count} slots missing, "
                            f"time left: {duration(repair.eta_s)}"
                        )
                        progress.update(
                            task,
                            completed=repair.rebuilt_chunk_bytes,
                            total=repair.total_chunk_bytes or None,
                            note=note,
                        )
                        tell(f"repairing: {note}")
                if self._clock.monotonic_s() - begin_s > REPAIR_TIMEOUT_S:
                    missing = view.missing_slot_count if view else "unknown"
                    reason = view.repair.message if view else "the metadata server is silent"
                    raise DemoFailed(
                        f"not repaired after {REPAIR_TIMEOUT_S:.0f} s; missing slots: {missing}; "
                        f"last problem: {reason or 'none'}"
                    )
                self._clock.sleep_blocking(0.1)
        self.outcome.redundant_after_s = recorder.elapsed_s()
        recorder.mark("fully redundant")

    def _verify(self) -> VerifyReport:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
        with self._progress(*columns) as progress:
            task = progress.add_task("reading every chunk", total=None)
            report = scrub(
                self._ready_cluster(),
                lambda found: progress.update(
                    task, completed=found.stripe_count, total=found.total_stripe_count
                ),
            )
        if not report.fully_redundant:
            examples = "; ".join(report.examples[:3])
            raise DemoFailed(
                f"{report.missing_chunk_count} chunks missing, {report.corrupt_chunk_count} "
                f"corrupt, {report.unreachable_chunk_count} unreachable: {examples}"
            )
        return report

    def _read_back(self, text: str, objects: Sequence[StoredObject]) -> Transfer:
        """Read objects and compare their SHA-256."""
        client = self._ready_client()
        begin_s = self._clock.monotonic_s()
        wrong: list[str] = []
        with self._bar(text, total_bytes(objects)) as advance:
            for item, intact in run_parallel(client.is_intact, objects):
                advance(item.size_bytes)
                if not intact:
                    wrong.append(item.key)
        if wrong:
            raise DemoFailed(f"{len(wrong)} objects read back with other bytes: {wrong[:3]}")
        return self._transfer(objects, begin_s)

    def _transfer(self, objects: Sequence[StoredObject], begin_s: float) -> Transfer:
        elapsed_s = max(1e-6, self._clock.monotonic_s() - begin_s)
        return Transfer(len(objects), total_bytes(objects), elapsed_s)

    def _ready_client(self) -> DemoClient:
        assert self._client is not None, "step 1 comes first"
        return self._client

    def _ready_cluster(self) -> ClusterFile:
        assert self._cluster is not None, "step 1 comes first"
        return self._cluster

    def _say(self, text: str) -> None:
        self._console.print(f"  {text}", markup=False, soft_wrap=True)

    @contextmanager
    def _bar(self, text: str, total: int) -> Generator[Callable[[int], None]]:
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            DownloadColumn(binary_units=True),
            TransferSpeedColumn(),
        )
        tell = self._every(3.0)
        done = 0
        with self._progress(*columns) as progress:
            task = progress.add_task(text, total=total)

            def advance(count: int) -> None:
                nonlocal done
                done += count
                progress.advance(task, count)
                tell(f"{text}: {done / max(1, total):.0%}")

            yield advance

    def _progress(self, *columns: ProgressColumn) -> Progress:
        """A bar, where there is a terminal to draw it on."""
        is_drawn = self._console.is_terminal
        return Progress(*columns, console=self._console, transient=True, disable=not is_drawn)

    def _every(self, interval_s: float) -> Callable[[str], None]:
        """Says a line from time to time where no bar is drawn."""
        last_s = self._clock.monotonic_s()

        def tell(text: str) -> None:
            nonlocal last_s
            if not self._console.is_terminal and self._clock.monotonic_s() - last_s >= interval_s:
                last_s = self._clock.monotonic_s()
                self._say(f"… {text}")

        return tell


def late_objects() -> list[tuple[str, bytes]]:
    """What is written while two nodes are dead: bytes that are the same every time."""
    generator = np.random.Generator(np.random.PCG64(2))
    return [
        (f"late/{number}-{size}", generator.bytes(size))
        for number in range(LATE_ROUNDS)
        for size in LATE_SIZES
    ]


__all__ = ["ClusterStory", "DemoFailed", "Outcome", "Transfer", "WorkFile"]
