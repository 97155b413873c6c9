"""Forecasts of when work on many pieces is done, against a model of that work."""

import math
from collections.abc import Callable

import numpy as np
import pytest

from exastore.metadata.core.arrival import RecentRate, seconds_left

MIB = 1 << 20
TICK_S = 0.25
#: Bytes a second of one of so many lanes that work at this time (seconds).
LaneRate = Callable[[int, float], float]


def limited(lanes: int, now: float) -> float:
    """Each lane has a limit of its own."""
    return 0.25 * MIB


def shared(lanes: int, now: float) -> float:
    """All lanes share a disk: what one does not use, the others do."""
    return 8 * MIB / lanes


def crowded(lanes: int, now: float) -> float:
    """Lanes get in each other's way somewhat."""
    return 4 * MIB / math.sqrt(lanes)


def slowed(lanes: int, now: float) -> float:
    """Clients arrive, and repair makes way for them."""
    return (8 if now < 3 else 2) * MIB / lanes


def forecasts(
    pieces: list[int], lane_count: int, rate_of: LaneRate, *, is_limited: bool, chunk: int = MIB
) -> tuple[float, dict[int, tuple[float, float]]]:
    """Work through the pieces; (seconds, percent -> (elapsed, seconds told to be left))."""
    now, waiting, running = 0.0, list(pieces), list[float]()
    total, told = sum(pieces), dict[int, tuple[float, float]]()
    rate = RecentRate(0.0)
    lanes_before = 0
    step_s = TICK_S / 10
    turn = 0
    while waiting or running:
        while waiting and len(running) < lane_count:
            running.append(float(waiting.pop(0)))
        if turn % 10 == 0:
            # Chunks are told when they are whole.
            seen = [int(-(-left // chunk) * chunk) for left in running]
            done = total - sum(waiting) - sum(seen)
            rate.note(done, done // chunk, lanes_before, now)
            lanes_before = len(running)
            left_s = seconds_left(seen, waiting, rate, lane_count, lanes_are_limited=is_limited)
            for percent in (25, 50, 75, 90):
                if 100 * done >= percent * total and percent not in told and left_s is not None:
                    told[percent] = (now, left_s)
        moved = rate_of(len(running), now) * step_s
        running = [left - moved for left in running if left > moved]
        now += step_s
        turn += 1
    return now, told


def sizes(kind: str) -> list[int]:
    generator = np.random.Generator(np.random.PCG64(7))
    if kind == "few":
        return [2 * MIB] * 10
    if kind == "even":
        return [4 * MIB] * 24
    if kind == "one is large":
        return [2 * MIB] * 20 + [12 * MIB]
    return [int(size) * MIB for size in generator.integers(1, 9, 40)]


@pytest.mark.parametrize("kind", ["few", "even", "one is large", "random"])
@pytest.mark.parametrize("rate_of", [limited, shared, crowded, slowed])
def test_the_time_left_is_told_within_a_quarter_of_the_whole(kind: str, rate_of: LaneRate) -> None:
    took_s, told = forecasts(sizes(kind), 4, rate_of, is_limited=rate_of is limited)
    lines = {
        percent: f"{at_s:.1f} + {left_s:.1f} of {took_s:.1f}, "
        f"{100 * (at_s + left_s - took_s) / took_s:+.0f} %"
        for percent, (at_s, left_s) in told.items()
    }
    print(kind, rate_of.__name__, lines)
    assert set(told) >= {25, 50, 75}
    for percent, (at_s, left_s) in told.items():
        if rate_of is slowed and at_s < 6:
            continue  # nobody knows yet that clients have come
        assert abs(at_s + left_s - took_s) <= 0.25 * took_s, (percent, lines[percent])


def test_the_tail_of_lanes_with_limits_is_foreseen() -> None:
    # Five equal pieces on four lanes take two rounds, not one and a quarter.
    rate = RecentRate(0.0)
    rate.note(4 * MIB, 4, 4, 4.0)
    left = seconds_left([MIB] * 4, [MIB], rate, 4, lanes_are_limited=True)
    assert left == pytest.approx(8.0)


def test_nothing_is_told_before_anything_moved_and_nothing_left_takes_no_time() -> None:
    rate = RecentRate(0.0)
    assert seconds_left([MIB], [], rate, 4, lanes_are_limited=True) is None
    rate.note(0, 0, 1, 1.0)
    assert seconds_left([MIB], [MIB], rate, 4, lanes_are_limited=True) is None
    assert seconds_left([], [0], rate, 4, lanes_are_limited=True) == 0.0


def test_a_hundred_thousand_pieces_are_dealt_out_quickly_and_rightly() -> None:
    rate = RecentRate(0.0)
    rate.note(40 * MIB, 40, 4, 10.0)
    left = seconds_left([MIB] * 4, [MIB] * 100_000, rate, 4, lanes_are_limited=True)
    assert left == pytest.approx(100_004 / 4, rel=1e-3)
