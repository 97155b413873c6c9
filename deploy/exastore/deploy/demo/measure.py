"""Watching a recovery: the cluster's status, sampled from the kill to full redundancy."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from threading import Event, Thread

from exastore.deploy.clock import SystemClock
from exastore.deploy.errors import ClusterUnhealthy
from exastore.deploy.status import StatusView, fetch_status

SAMPLE_INTERVAL_S = 0.25


@dataclass(frozen=True, slots=True)
class Sample:
    """The cluster at one moment. `time_s` counts from the kill."""

    time_s: float
    epoch: int
    up_device_count: int
    missing_slot_count: int
    worst_missing_count: int
    """Most slots that any one placement group misses."""
    rebuilt_chunk_bytes: int
    rebuilt_chunk_count: int
    read_bytes: int
    total_chunk_bytes: int
    bytes_per_s: float
    eta_s: float | None
    repair_active: bool


@dataclass(frozen=True, slots=True)
class RepairMeasurement:
    """What a finished repair did. Devices are those that took rebuilt chunks."""

    rebuilt_chunk_bytes: int
    rebuilt_chunk_count: int
    read_bytes: int
    elapsed_s: float
    target_device_count: int

    @property
    def bytes_per_s(self) -> float:
        return self.rebuilt_chunk_bytes / self.elapsed_s if self.elapsed_s > 0 else 0.0

    @property
    def device_bytes_per_s(self) -> float:
        """Rebuilt bytes per second and device that took them."""
        return self.bytes_per_s / max(1, self.target_device_count)


@dataclass(slots=True)
class Recorder:
    """A thread that samples the status until stopped."""

    address: str
    clock: SystemClock
    #: In order of time; appended by the thread alone.
    samples: list[Sample] = field(default_factory=list[Sample])
    #: What happened when: (time_s, text).
    events: list[tuple[float, str]] = field(default_factory=list[tuple[float, str]])
    latest: StatusView | None = None
    _origin_s: float = 0.0
    _stop: Event = field(default_factory=Event)
    _thread: Thread | None = None

    def start(self) -> None:
        """Begin: now is time 0."""
        self._origin_s = self.clock.monotonic_s()
        self._thread = Thread(target=self._run, name="recorder", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Take no more samples."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()

    def elapsed_s(self) -> float:
        """Seconds since `start`."""
        return self.clock.monotonic_s() - self._origin_s

    def mark(self, text: str) -> None:
        """Note an event now."""
        self.events.append((self.elapsed_s(), text))

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                view = fetch_status(self.address, timeout_s=5.0)
            except ClusterUnhealthy:
                # A late answer leaves a gap in the chart; the steps themselves report real trouble.
                self._stop.wait(SAMPLE_INTERVAL_S)
                continue
            self.latest = view
            self.samples.append(sample_of(view, self.elapsed_s()))
            self._stop.wait(SAMPLE_INTERVAL_S)


def sample_of(view: StatusView, time_s: float) -> Sample:
    """The numbers that the charts show."""
    repair = view.repair
    worst = max((index for index, count in enumerate(view.pgs_by_missing) if count), default=0)
    return Sample(
        time_s=time_s,
        epoch=view.epoch,
        up_device_count=view.up_device_count,
        missing_slot_count=view.missing_slot_count,
        worst_missing_count=worst,
        rebuilt_chunk_bytes=repair.rebuilt_chunk_bytes,
        rebuilt_chunk_count=repair.rebuilt_chunk_count,
        read_bytes=repair.read_bytes,
        total_chunk_bytes=repair.total_chunk_bytes,
        bytes_per_s=repair.bytes_per_s,
        eta_s=repair.eta_s,
        repair_active=repair.active,
    )


def measure_repair(samples: Sequence[Sample], target_device_count: int) -> RepairMeasurement:
    """What the repair between the first and the last sample did.

    The server counts anew when a repair begins after another has ended, so counts that fall begin a
    new sum. Time counts while a repair is active, from the first bytes on: before them the nodes
    load what decodes, which says nothing about devices.
    """
    rebuilt_bytes = rebuilt_count = read_bytes = 0
    elapsed_s = 0.0
    for before, after in pairwise(samples):
        anew = after.rebuilt_chunk_bytes < before.rebuilt_chunk_bytes
        base = (0, 0, 0) if anew else _counts(before)
        changes = [new - old for new, old in zip(_counts(after), base, strict=True)]
        rebuilt_bytes += changes[0]
        rebuilt_count += changes[1]
        read_bytes += changes[2]
        if rebuilt_bytes and (changes[0] > 0 or after.repair_active):
            elapsed_s += after.time_s - before.time_s
    return RepairMeasurement(
        rebuilt_chunk_bytes=rebuilt_bytes,
        rebuilt_chunk_count=rebuilt_count,
        read_bytes=read_bytes,
        elapsed_s=elapsed_s,
        target_device_count=target_device_count,
    )


def _counts(sample: Sample) -> tuple[int, int, int]:
    return (sample.rebuilt_chunk_bytes, sample.rebuilt_chunk_count, sample.read_bytes)
