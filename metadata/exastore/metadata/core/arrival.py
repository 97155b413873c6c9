"""When work on many pieces, some at a time, will be done: a smoothed recent rate, and the tail.

Theory of operation: what was moved lately, and by how many lanes, gives the rate of a lane. The
pieces that are left are dealt out to the lanes in their order, each to the lane that is free first.
In the end lanes run empty while the last pieces are finished: m lanes then move less than all did.
How much less depends on what was short. Lanes with a limit of their own keep their rate each; lanes
that share a disk or a processor get faster as others end, of which half is assumed, in logarithms:
the rate of all grows with the square root of their number.

Assumptions: pieces cost what their bytes cost, and the rate of the last moments goes on. A rate
that others bend (budgets, clients) is followed with a delay of about a fifth of the time so far.
"""

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

#: The window of smoothing: at least so many seconds, such a share of the time so far, and such a
#: number of finished units, for a rate cannot be told from two chunks.
_WINDOW_S = 2.0
_WINDOW_SHARE = 0.2
_WINDOW_UNITS = 16
#: More pieces than this are dealt out as one sum, but for the last ones.
_DEALT_COUNT = 2000


@dataclass(slots=True)
class RecentRate:
    """Bytes a second of all lanes lately, and how many lanes worked. `now` in seconds."""

    begun_s: float
    #: Exponentially decayed sums, of bytes, of seconds and of seconds of lanes.
    _bytes: float = field(init=False, default=0.0)
    _seconds: float = field(init=False, default=0.0)
    _lane_seconds: float = field(init=False, default=0.0)
    _updated_s: float = field(init=False)
    _total_bytes: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        self._updated_s = self.begun_s

    def note(self, total_bytes: int, unit_count: int, lane_count: int, now: float) -> None:
        """Bytes and units that are done by now, and how many lanes worked since the last note."""
        duration_s = now - self._updated_s
        if duration_s <= 0:
            return
        elapsed_s = now - self.begun_s
        window_s = max(
            _WINDOW_S, _WINDOW_SHARE * elapsed_s, _WINDOW_UNITS * elapsed_s / max(1, unit_count)
        )
        kept = math.exp(-duration_s / window_s)
        self._bytes = kept * self._bytes + max(0, total_bytes - self._total_bytes)
        self._seconds = kept * self._seconds + duration_s
        self._lane_seconds = kept * self._lane_seconds + lane_count * duration_s
        self._updated_s, self._total_bytes = now, total_bytes

    @property
    def updated_s(self) -> float:
        """When something was noted last."""
        return self._updated_s

    @property
    def bytes_per_s(self) -> float:
        """Of all lanes together; 0: not known."""
        return self._bytes / self._seconds if self._seconds else 0.0

    @property
    def lanes(self) -> float:
        """How many lanes worked, on average."""
        return self._lane_seconds / self._seconds if self._seconds else 0.0

    @property
    def lane_bytes_per_s(self) -> float:
        """Of one lane while it works; 0: not known."""
        return self._bytes / self._lane_seconds if self._lane_seconds else 0.0


def seconds_left(
    running: Sequence[int],
    waiting: Sequence[int],
    rate: RecentRate,
    lane_count: int,
    *,
    lanes_are_limited: bool,
) -> float | None:
    """Seconds until all is done; None: not known yet.

    Args:
        running: Bytes left of the pieces that are worked on.
        waiting: Bytes of those that wait, in their order.
        rate: What was moved lately.
        lane_count: How many pieces may be worked on at once.
        lanes_are_limited: Whether each lane has a rate of its own.
    """
    if not any(running) and not any(waiting):
        return 0.0
    if rate.lane_bytes_per_s <= 0:
        return None
    lanes = sorted(running)
    # Other limits may keep some lanes idle: count those that did work.
    usable = max(1, len(lanes), min(lane_count, round(rate.lanes)))
    lanes += [0] * (usable - len(lanes))
    dealt_s = 0.0
    if len(waiting) > _DEALT_COUNT:
        early, waiting = waiting[:-_DEALT_COUNT], waiting[-_DEALT_COUNT:]
        dealt_s = sum(early) / (usable * rate.lane_bytes_per_s)
    heapq.heapify(lanes)
    for piece in waiting:
        heapq.heapreplace(lanes, lanes[0] + piece)
    seen = max(1.0, rate.lanes)
    total_s, reached = dealt_s, 0
    lanes.sort()
    for index, level in enumerate(lanes):
        busy = len(lanes) - index
        lane_rate = rate.lane_bytes_per_s
        if not lanes_are_limited:
            lane_rate *= math.sqrt(seen / busy)
        total_s += (level - reached) / lane_rate
        reached = level
    return total_s
