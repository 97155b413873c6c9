"""Bounded memory of a stream: how many bytes may be in flight before the sender has to wait."""

import asyncio
from collections import deque


class ByteBudget:
    """First come, first served. One item larger than the budget passes alone."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        #: Sum of what is taken and not given back; over the limit only with a single item.
        self.taken_bytes = 0
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    async def take(self, byte_count: int) -> None:
        if not self._waiting and self._fits(byte_count):
            self.taken_bytes += byte_count
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((byte_count, turn))
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self.give(byte_count)
            raise

    def give(self, byte_count: int) -> None:
        self.taken_bytes -= byte_count
        while self._waiting:
            wanted, turn = self._waiting[0]
            if not turn.cancelled() and not self._fits(wanted):
                return
            self._waiting.popleft()
            if not turn.cancelled():
                self.taken_bytes += wanted
                turn.set_result(None)

    def _fits(self, byte_count: int) -> bool:
        return not self.taken_bytes or self.taken_bytes + byte_count <= self._limit_bytes
