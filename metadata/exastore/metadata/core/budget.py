"""TokenBucket: a bandwidth budget as arithmetic, for repair and whatever else must be throttled."""

from dataclasses import dataclass, field


@dataclass(slots=True)
class TokenBucket:
    """Lets `rate_bytes_per_s` through on average, and up to `burst_bytes` at once.

    Whoever takes more than is there goes into debt and waits until the debt is paid, so a request
    may exceed the burst, and requests are served in the order in which they came.

    Attributes:
        rate_bytes_per_s: Bytes per second; 0 means no limit.
        burst_bytes: Bytes that may pass at once after a pause.
    """

    rate_bytes_per_s: float
    burst_bytes: float
    #: At most burst_bytes; negative while takers wait.
    level_bytes: float = field(init=False)
    #: When `level_bytes` was true; None before the first take.
    updated_s: float | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        if self.rate_bytes_per_s < 0 or self.burst_bytes < 0:
            raise ValueError("rate and burst must not be negative")
        self.level_bytes = self.burst_bytes

    def take(self, count_bytes: int, now: float) -> float:
        """Takes tokens and returns the seconds to wait before the bytes may move; 0 if none."""
        if self.rate_bytes_per_s == 0:
            return 0.0
        self._earn(now)
        self.level_bytes -= count_bytes
        return max(0.0, -self.level_bytes / self.rate_bytes_per_s)

    def ready_in(self, now: float) -> float:
        """Seconds until what others took is paid for: whoever takes then need not wait."""
        if self.rate_bytes_per_s == 0:
            return 0.0
        self._earn(now)
        return max(0.0, -self.level_bytes / self.rate_bytes_per_s)

    def set_rate(self, rate_bytes_per_s: float, burst_bytes: float, now: float) -> None:
        """Another rate from now on; what is owed stays owed, and is paid at the new rate."""
        if rate_bytes_per_s == self.rate_bytes_per_s:
            return
        if self.rate_bytes_per_s:
            self._earn(now)
        self.rate_bytes_per_s, self.burst_bytes = rate_bytes_per_s, burst_bytes
        self.level_bytes = min(self.level_bytes, burst_bytes)
        self.updated_s = now

    def _earn(self, now: float) -> None:
        if self.updated_s is not None:
            earned = (now - self.updated_s) * self.rate_bytes_per_s
            self.level_bytes = min(self.burst_bytes, self.level_bytes + max(0.0, earned))
        self.updated_s = now if self.updated_s is None else max(now, self.updated_s)
