"""How far a repair is, as arithmetic: from what was rebuilt to a time of arrival."""

from collections.abc import Collection
from dataclasses import dataclass, field

from exastore.metadata.core.arrival import RecentRate, seconds_left
from exastore.metadata.core.topology import NO_DEVICE
from exastore.metadata.service.rebuild import SlotTarget
from exastore.proto.v1 import metadata_pb2

#: Time that tasks of unknown size are judged by is not worth a forecast before this.
_MIN_ELAPSED_S = 0.05


@dataclass(slots=True)
class TaskProgress:
    """One slot. Bytes are of chunks."""

    #: Estimated from a surviving slot of the same PG; 0: not known yet.
    expected_bytes: int = 0
    rebuilt_bytes: int = 0
    rebuilt_count: int = 0
    read_bytes: int = 0
    is_done: bool = False


@dataclass(slots=True)
class RepairProgress:
    """One repair: from the first slot to be rebuilt until none is left."""

    begun_s: float
    #: How many slots may be worked on at once, and whether each has a rate of its own.
    lane_count: int = 1
    lanes_are_limited: bool = False
    tasks: dict[SlotTarget, TaskProgress] = field(default_factory=dict[SlotTarget, TaskProgress])
    #: When the last task ended; None: the repair is under way.
    ended_s: float | None = None
    #: Rebuilt for slots that got another target before they were done: time spent, bytes in vain.
    dropped_bytes: int = 0
    #: Slots that are worked on.
    running: Collection[SlotTarget] = ()
    #: The last failure in words.
    message: str = ""
    _rate: RecentRate = field(init=False)

    def __post_init__(self) -> None:
        self._rate = RecentRate(self.begun_s)

    def task(self, target: SlotTarget) -> TaskProgress:
        """The task's progress, begun if it is new.

        What was estimated for the slot before its device was chosen is taken over.
        """
        known = self.tasks.get(target)
        if known is None:
            before = self.tasks.get(SlotTarget(target.pg, target.slot, NO_DEVICE))
            expected_bytes = 0 if before is None else before.expected_bytes
            known = self.tasks[target] = TaskProgress(expected_bytes=expected_bytes)
        return known

    def sample(self, running: Collection[SlotTarget], now_s: float) -> None:
        """Note what is done by now; `running` are the slots that were worked on until now."""
        self.running = running
        tasks = self.tasks.values()
        moved = self.dropped_bytes + sum(task.rebuilt_bytes for task in tasks)
        count = sum(task.rebuilt_count for task in tasks)
        self._rate.note(moved, count, len(running), now_s)

    def drop_missing(self, wanted: set[SlotTarget]) -> None:
        """Forget tasks that are not done and no longer wanted: their slot has another target."""
        for target in [t for t, p in self.tasks.items() if not p.is_done and t not in wanted]:
            self.dropped_bytes += self.tasks[target].rebuilt_bytes
            del self.tasks[target]

    def status(self, now_s: float) -> metadata_pb2.RepairStatus:
        """The progress as the status shows it."""
        tasks = self.tasks.values()
        rebuilt = sum(task.rebuilt_bytes for task in tasks)
        running, waiting = self._left()
        elapsed_s = (now_s if self.ended_s is None else self.ended_s) - self.begun_s
        rate = (rebuilt + self.dropped_bytes) / elapsed_s if elapsed_s > _MIN_ELAPSED_S else 0.0
        is_active = self.ended_s is None
        eta_s = seconds_left(
            running,
            waiting,
            self._rate,
            self.lane_count,
            lanes_are_limited=self.lanes_are_limited,
        )
        if eta_s is not None:
            eta_s = max(0.0, eta_s - (now_s - self._rate.updated_s))
        return metadata_pb2.RepairStatus(
            active=is_active,
            task_count=len(self.tasks),
            done_task_count=sum(task.is_done for task in tasks),
            total_chunk_bytes=rebuilt + sum(running) + sum(waiting),
            rebuilt_chunk_bytes=rebuilt,
            rebuilt_chunk_count=sum(task.rebuilt_count for task in tasks),
            read_bytes=sum(task.read_bytes for task in tasks),
            elapsed_s=elapsed_s,
            eta_s=0.0 if not is_active else -1.0 if eta_s is None else eta_s,
            bytes_per_s=rate,
            message=self.message,
        )

    def _left(self) -> tuple[list[int], list[int]]:
        """Bytes left of the slots that are worked on, and of those that wait, in their order."""
        running: list[int] = []
        waiting: list[int] = []
        for target, task in self.tasks.items():
            left = max(0, task.expected_bytes - task.rebuilt_bytes)
            if left and not task.is_done:
                (running if target in self.running else waiting).append(left)
        return running, waiting
