"""How fast storage nodes answer reads: when a read is late, and whom reads had better go around.

Laws:
1. A node is gone around only after another way to the same bytes was quicker, never for an absolute
   time: when all nodes are slow, none of them is avoided for it.
2. It is asked again after a while, which doubles each time that it is overtaken again.
"""

from dataclasses import dataclass

from exastore.metadata.core.clock import Clock

#: An answer is late after so many times what nodes typically take.
_LATE_FACTOR = 8.0
#: Weight of the newest answer in what a node typically takes.
_WEIGHT = 1 / 8
#: Of fewer nodes nothing typical can be said.
_LEAST_NODES = 3
#: How long a median is good for.
_MEDIAN_S = 0.25
_AVOIDED_MAX_S = 30.0


@dataclass(slots=True)
class _Overtaken:
    """A node that others overtook."""

    until_s: float = 0.0
    count: int = 0


class NodeSpeed:
    """Of the nodes that one gateway reads from."""

    def __init__(self, clock: Clock, *, least_s: float, most_s: float, avoided_s: float) -> None:
        """Args:
        least_s: No answer is late before so many seconds.
        most_s: Every answer is late after so many.
        avoided_s: How long a node is gone around when it was overtaken once.
        """
        self._clock = clock
        self._least_s = min(least_s, most_s)
        self._most_s = most_s
        self._avoided_s = avoided_s
        #: By address, seconds that an answer takes; a mean in which old ones fade.
        self._typical_s: dict[str, float] = {}
        self._overtaken: dict[str, _Overtaken] = {}
        self._patience_s = most_s
        self._computed_s = float("-inf")

    def note_answer(self, address: str, duration_s: float) -> None:
        """The node answered a read after so long."""
        typical_s = self._typical_s.get(address, duration_s)
        self._typical_s[address] = typical_s + (duration_s - typical_s) * _WEIGHT
        if self._overtaken and duration_s < self._patience_s:
            self._overtaken.pop(address, None)

    def note_overtaken(self, address: str) -> None:
        """The bytes asked of the node came from others, who were asked later."""
        now_s = self._clock.monotonic_s()
        found = self._overtaken.setdefault(address, _Overtaken())
        if found.until_s <= now_s:  # else the reads of one moment would count as many times
            found.until_s = now_s + min(self._avoided_s * 2**found.count, _AVOIDED_MAX_S)
            found.count += 1

    def patience_s(self) -> float:
        """After so many seconds an answer is late."""
        now_s = self._clock.monotonic_s()
        if now_s - self._computed_s >= _MEDIAN_S and len(self._typical_s) >= _LEAST_NODES:
            self._computed_s = now_s
            ordered = sorted(self._typical_s.values())
            late_s = _LATE_FACTOR * ordered[len(ordered) // 2]
            self._patience_s = min(max(late_s, self._least_s), self._most_s)
        return self._patience_s

    def slow_addresses(self) -> frozenset[str]:
        """Nodes to go around now."""
        if not self._overtaken:
            return frozenset()
        now_s = self._clock.monotonic_s()
        return frozenset(a for a, found in self._overtaken.items() if found.until_s > now_s)

    def forget(self, address: str) -> None:
        """No node has this address any more."""
        self._typical_s.pop(address, None)
        self._overtaken.pop(address, None)
