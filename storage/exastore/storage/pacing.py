"""Bandwidth limits: the core's token bucket, waited for on the node's clock."""

from exastore.metadata.core.budget import TokenBucket
from exastore.metadata.core.clock import Clock

#: After a pause, this many seconds' worth of bytes pass at once.
BURST_S = 0.25


class Pacer:
    """Lets bytes pass at a rate; 0 is no limit."""

    def __init__(self, bytes_per_s: float, clock: Clock) -> None:
        self._clock = clock
        self._bucket = TokenBucket(bytes_per_s, bytes_per_s * BURST_S)

    async def take(self, byte_count: int) -> None:
        """Wait until `byte_count` more bytes may pass."""
        wait_s = self._bucket.take(byte_count, self._clock.monotonic_s())
        if wait_s > 0:
            await self._clock.sleep(wait_s)
