"""The real clock. Everything else is handed one."""

import asyncio
import time


class SystemClock:
    """`exastore.metadata.core.clock.Clock` over the operating system's clocks."""

    __slots__ = ()

    def now_s(self) -> float:
        """Unix time in seconds."""
        return time.time()

    def monotonic_s(self) -> float:
        """Seconds that never go back."""
        return time.monotonic()

    async def sleep(self, duration_s: float) -> None:
        """Wait `duration_s` seconds in the running event loop."""
        await asyncio.sleep(duration_s)

    def sleep_blocking(self, duration_s: float) -> None:
        """Wait `duration_s` seconds in the calling thread: for commands, never in a service."""
        time.sleep(duration_s)
