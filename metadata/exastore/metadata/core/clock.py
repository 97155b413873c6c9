"""The clock that shells are given. The core never asks for the time: `now` is an argument."""

from typing import Protocol


class Clock(Protocol):
    """Time as a service sees it; the real one is in `exastore.deploy.clock`."""

    def now_s(self) -> float:
        """Unix time in seconds: for what is stored or shown."""
        ...

    def monotonic_s(self) -> float:
        """Seconds that never go back: for timeouts and rates."""
        ...

    async def sleep(self, duration_s: float) -> None:
        """Wait `duration_s` seconds."""
        ...
