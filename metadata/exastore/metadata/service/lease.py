"""The background lease: one server at a time repairs, collects trash and declares devices dead.

Laws:
1. The token grows with every change of holder, and only the holder of the stored token may commit
   background work: `guard` checks it inside each such transaction, so a holder that was paused past
   its expiry cannot commit.
2. The lease is taken over after its expiry by the taker's wall clock, or when the taker has seen it
   unchanged for its duration by a clock that does not jump. So a wall clock that is wrong lets a
   lease be taken early, which the token makes harmless, but never keeps it from being taken.
"""

from collections.abc import Callable

from exastore.metadata.core.clock import Clock
from exastore.metadata.kv.contract import Engine, Transaction
from exastore.metadata.kv.keys import pack, unpack
from exastore.metadata.service.errors import LeaseLost

_KEY = pack("L", "background")


class Lease:
    """One server's view of the lease.

    Args:
        holder: Unique for this server process.
        duration_s: Seconds for which it is valid without renewal.
    """

    def __init__(self, engine: Engine, holder: str, duration_s: float, clock: Clock) -> None:
        self._engine = engine
        self._holder = holder
        self._duration_s = duration_s
        self._clock = clock
        #: The token under which we hold the lease; 0: we do not.
        self._token = 0
        #: When we last renewed, in monotonic seconds.
        self._renewed_s = 0.0
        #: The row of another holder, and since when we have seen it unchanged.
        self._seen: tuple[bytes | None, float] = (None, 0.0)

    @property
    def is_held(self) -> bool:
        """Whether this server held the lease when it last asked."""
        return self._token != 0

    @property
    def token(self) -> int:
        """The token under which this server holds the lease; 0: it does not."""
        return self._token

    async def keep(self) -> bool:
        """Take or renew the lease if it is time to; whether we hold it."""
        now_s = self._clock.monotonic_s()
        if self._token and now_s - self._renewed_s < self._duration_s / 3:
            return True
        row, since_s = self._seen
        dead_row = row if now_s - since_s >= self._duration_s else None
        self._token, row = await self._engine.transact(self._taken(self._clock.now_s(), dead_row))
        if row != self._seen[0]:
            self._seen = row, now_s
        self._renewed_s = now_s
        return self.is_held

    async def release(self) -> None:
        """Let another server take over at once."""
        if not self._token:
            return
        token, self._token = self._token, 0

        def release(txn: Transaction) -> None:
            holder, stored_token, _ = _read(txn)
            if holder == self._holder and stored_token == token:
                txn.put(_KEY, pack("", token, 0))

        await self._engine.transact(release)

    def guard(self) -> Callable[[Transaction], None]:
        """A check, for use inside a transaction, that we still hold the lease; else LeaseLost."""
        token = self._token

        def check(txn: Transaction) -> None:
            holder, stored_token, _ = _read(txn)
            if not token or (holder, stored_token) != (self._holder, token):
                raise LeaseLost("another server does the background work now")

        return check

    def _taken(
        self, now_s: float, dead_row: bytes | None
    ) -> Callable[[Transaction], tuple[int, bytes | None]]:
        """Takes or renews the lease; the token, or 0 and the row of the other holder."""
        expiry_ms = int((now_s + self._duration_s) * 1000)

        def take(txn: Transaction) -> tuple[int, bytes | None]:
            holder, token, stored_expiry_ms = _read(txn)
            if holder == self._holder:
                txn.put(_KEY, pack(holder, token, expiry_ms))
                return token, None
            row = txn.get(_KEY)
            if holder and stored_expiry_ms > now_s * 1000 and row != dead_row:
                return 0, row
            txn.put(_KEY, pack(self._holder, token + 1, expiry_ms))
            return token + 1, None

        return take


def _read(txn: Transaction) -> tuple[str, int, int]:
    """(holder, token, expiry in ms); no holder: ("", last token, 0)."""
    value = txn.get(_KEY)
    if value is None:
        return "", 0, 0
    holder, token, expiry_ms = unpack(value)
    assert isinstance(holder, str) and isinstance(token, int) and isinstance(expiry_ms, int)
    return holder, token, expiry_ms
