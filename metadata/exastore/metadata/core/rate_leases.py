"""Sharing out one rate among many, through leases: the uplink of a rack among its nodes.

Laws:
1. What all holders together may use never exceeds the rate, whatever answers are lost: a lease
   counts in full until its holder has told what it uses now, or until it has run out. (After the
   rate was lowered it takes one lease time until that is true again.)
2. Who wants more than its share gets an equal part of what the others leave (max-min fairness).
3. Everyone gets something at once, so that new work begins without waiting for a round.

Fault model: a holder that falls silent keeps its lease until it runs out, by its own clock, which
began to count later than ours; so `lease_s` here must not be shorter than there. A ledger that
begins anew only renews for one lease time: holders may still have leases of its predecessor.
"""

from collections.abc import Mapping
from dataclasses import dataclass

#: Share of the rate, divided by the number of holders, that is kept for each who needs nothing now.
_RESERVE = 0.1
#: Who is not held up may need a little more than it used.
_GROWTH = 1.5


@dataclass(frozen=True, slots=True)
class Demand:
    """What a holder has told.

    Attributes:
        used_bytes_per_s: What it moved lately.
        is_held_up: Whether its lease made it wait: then it could use more.
    """

    used_bytes_per_s: float
    is_held_up: bool


def fair_shares(rate: float, demands: Mapping[str, Demand]) -> dict[str, float]:
    """Max-min fair shares; their sum is at most `rate`. Shape: one for each of `demands`."""
    if not demands:
        return {}
    reserve = _RESERVE * rate / len(demands)
    wants = {
        name: float("inf") if d.is_held_up else max(reserve, _GROWTH * d.used_bytes_per_s)
        for name, d in demands.items()
    }
    shares: dict[str, float] = {}
    left, open_count = rate, len(wants)
    for name, want in sorted(wants.items(), key=lambda item: item[1]):
        shares[name] = min(want, left / open_count)
        left -= shares[name]
        open_count -= 1
    # What nobody asked for lies ready for whoever needs it first.
    return {name: share + left / len(shares) for name, share in shares.items()}


@dataclass(slots=True)
class _Lease:
    demand: Demand
    #: The most that the holder may be using; counts until `until_s`.
    held: float
    until_s: float


class RateLedger:
    """The leases of one rate. `now` in seconds, never going back."""

    def __init__(self, lease_s: float, now: float) -> None:
        self._lease_s = lease_s
        self._grants_from_s = now + lease_s
        #: By holder.
        self._leases: dict[str, _Lease] = {}

    def grant(self, holder: str, in_use: float, demand: Demand, rate: float, now: float) -> float:
        """A new lease for a holder, which replaces the one it has.

        Args:
            holder: Who asks.
            in_use: The rate of the lease that it has now, as it tells; 0: none.
            demand: What it needs.
            rate: All that there is, in bytes per second.
            now: Seconds.

        Returns:
            Bytes per second. While a predecessor's leases may be in force, what the holder has.
        """
        self._leases = {h: lease for h, lease in self._leases.items() if lease.until_s > now}
        self._leases[holder] = _Lease(demand, in_use, now + self._lease_s)
        if now < self._grants_from_s:
            return min(in_use, rate)
        demands = {name: lease.demand for name, lease in self._leases.items()}
        others = sum(lease.held for name, lease in self._leases.items() if name != holder)
        granted = max(0.0, min(fair_shares(rate, demands)[holder], rate - others))
        # Until the holder tells, it may use the old lease or the new one.
        self._leases[holder].held = max(in_use, granted)
        return granted

    def held(self, now: float) -> dict[str, float]:
        """What each holder may be using now."""
        return {name: lease.held for name, lease in self._leases.items() if lease.until_s > now}
