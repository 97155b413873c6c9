"""How far a repair is, as arithmetic: from what was rebuilt to a time of arrival."""

from dataclasses import dataclass, field

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
    tasks: dict[SlotTarget, TaskProgress] = field(default_factory=dict[SlotTarget, TaskProgress])
    #: When the last task ended; None: the repair is under way.
    ended_s: float | None = None
    #: Rebuilt for slots that got another target before they were done: time spent, bytes in vain.
    dropped_bytes: int = 0
    #: The last failure in words.
    message: str = ""

    def task(self, target: SlotTarget) -> TaskProgress:
        """The task's progress, begun if it is new."""
        return self.tasks.setdefault(target, TaskProgress())

    def drop_missing(self, wanted: set[SlotTarget]) -> None:
        """Forget tasks that are not done and no longer wanted: their slot has another target."""
        for target in [t for t, p in self.tasks.items() if not p.is_done and t not in wanted]:
            self.dropped_bytes += self.tasks[target].rebuilt_bytes
            del self.tasks[target]

    def status(self, now_s: float) -> metadata_pb2.RepairStatus:
        """The progress as the status shows it."""
        tasks = self.tasks.values()
        rebuilt = sum(task.rebuilt_bytes for task in tasks)
        left = sum(
            max(0, task.expected_bytes - task.rebuilt_bytes) for task in tasks if not task.is_done
        )
        elapsed_s = (now_s if self.ended_s is None else self.ended_s) - self.begun_s
        rate = (rebuilt + self.dropped_bytes) / elapsed_s if elapsed_s > _MIN_ELAPSED_S else 0.0
        is_active = self.ended_s is None
        return metadata_pb2.RepairStatus(
            active=is_active,
            task_count=len(self.tasks),
            done_task_count=sum(task.is_done for task in tasks),
            total_chunk_bytes=rebuilt + left,
            rebuilt_chunk_bytes=rebuilt,
            rebuilt_chunk_count=sum(task.rebuilt_count for task in tasks),
            read_bytes=sum(task.read_bytes for task in tasks),
            elapsed_s=elapsed_s,
            eta_s=0.0 if not is_active else left / rate if rate > 0 else -1.0,
            bytes_per_s=rate,
            message=self.message,
        )
