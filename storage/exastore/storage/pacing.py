"""Bandwidth limits."""

from exastore.metadata.core.clock import Clock


class Pacer:
    """Lets bytes pass at a rate, after a burst of a quarter of a second; 0 is no limit."""

    def __init__(self, bytes_per_s: float, clock: Clock) -> None:
        self._bytes_per_s = bytes_per_s
        self._clock = clock
        self._burst_s = 0.25
        #: When everything let through so far would have passed at the rate.
        self._paid_until_s = clock.monotonic_s() - self._burst_s

    async def take(self, byte_count: int) -> None:
        """Wait until `byte_count` more bytes may pass."""
        if self._bytes_per_s <= 0:
            return
        now_s = self._clock.monotonic_s()
        earliest_s = max(self._paid_until_s, now_s - self._burst_s)
        self._paid_until_s = earliest_s + byte_count / self._bytes_per_s
        if self._paid_until_s > now_s:
            await self._clock.sleep(self._paid_until_s - now_s)
