"""How fast background traffic of a node may be, so that clients keep their latency: AIMD.

Laws:
1. While clients are slower than the target and the node moves background bytes, its rate is halved,
   at most once per `DECREASE_PAUSE_S`: what a change does shows in the latency only then.
2. While they are faster than `HEADROOM` times the target and the rate is used, it grows by
   `floor_bytes_per_s` each second. Between the two it stays.
3. Without clients it doubles each second, and after a while there is no limit of ours.
4. The rate is never below the floor, or repair would never end, nor above the ceiling.
5. Who moves no background bytes is not to blame: its rate stays.

The scheme is that of Chiu and Jain, "Analysis of the Increase and Decrease Algorithms for
Congestion Avoidance in Computer Networks", 1989: additive increase and multiplicative decrease is
what converges to fair shares when several nodes react to one bottleneck.
"""

from dataclasses import dataclass

#: Seconds between two decreases; about what latencies are measured over.
DECREASE_PAUSE_S = 2.0
DECREASE = 0.5
#: Share of the target below which there is room for more.
HEADROOM = 0.7
#: A rate is in use when at least this share of it is moved.
IN_USE = 0.5
#: Without clients: a limit that is so many times what is moved limits nothing.
_FREE_FACTOR = 8.0


@dataclass(frozen=True, slots=True)
class PaceOptions:
    """What is aimed at.

    Attributes:
        target_s: What 99 % of the chunk requests of clients shall take at most, in seconds; 0:
            clients are not heeded.
        floor_bytes_per_s: What repair may always move, and the step by which it speeds up.
        ceiling_bytes_per_s: What it may move at most; 0: no limit.
    """

    target_s: float
    floor_bytes_per_s: float
    ceiling_bytes_per_s: float = 0.0


@dataclass(frozen=True, slots=True)
class PaceSample:
    """What was seen of one node lately.

    Attributes:
        p99_s: What 99 % of the chunk requests of clients took at most, in seconds.
        request_count: How many there were.
        background_bytes_per_s: Bytes of repair and moves, sent or received, whichever is more.
    """

    p99_s: float
    request_count: int
    background_bytes_per_s: float


@dataclass(frozen=True, slots=True)
class Pace:
    """The state of one node.

    Attributes:
        rate_bytes_per_s: What it may move; 0: no limit.
        updated_s: When it was decided.
        decreased_s: When it was last halved.
    """

    rate_bytes_per_s: float
    updated_s: float
    decreased_s: float = float("-inf")


def next_pace(pace: Pace, sample: PaceSample, options: PaceOptions, now: float) -> Pace:
    """The pace after a sample; `now` in seconds, never before `pace.updated_s`."""
    ceiling, used = options.ceiling_bytes_per_s, sample.background_bytes_per_s
    elapsed_s = max(0.0, now - pace.updated_s)
    rate, decreased_s = pace.rate_bytes_per_s, pace.decreased_s
    if not options.target_s:
        return Pace(ceiling, now, decreased_s)
    if not sample.request_count:
        rate *= 2.0**elapsed_s
        if not ceiling and rate >= _FREE_FACTOR * max(used, options.floor_bytes_per_s):
            rate = 0.0
    elif sample.p99_s > options.target_s:
        is_to_blame = used >= IN_USE * min(rate or used, options.floor_bytes_per_s) and used > 0
        if is_to_blame and now - decreased_s >= DECREASE_PAUSE_S:
            rate = DECREASE * min(rate or used, used)
            decreased_s = now
            rate = max(rate, options.floor_bytes_per_s)
    elif sample.p99_s < HEADROOM * options.target_s and rate and used >= IN_USE * rate:
        rate += elapsed_s * options.floor_bytes_per_s
    return Pace(_within(rate, options), now, decreased_s)


def _within(rate: float, options: PaceOptions) -> float:
    """The rate, brought between the floor and the ceiling; 0 is no limit."""
    ceiling = options.ceiling_bytes_per_s
    if rate:
        rate = max(rate, options.floor_bytes_per_s)
    if ceiling:
        rate = min(rate or ceiling, ceiling)
    return rate
