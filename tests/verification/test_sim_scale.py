"""Claims about what decades of large clusters cost: the same script that prints the table."""

from pathlib import Path

import pytest
from bench.sim_scale import GROWTH_MAX, TARGETS, measure_apart

pytestmark = [pytest.mark.verify, pytest.mark.timeout(3600)]

#: Of a run of 100 EiB, and some room.
NEEDED_GIB = 14


def _free_gib() -> float:
    lines = Path("/proc/meminfo").read_text("ascii").splitlines()
    return next(int(its.split()[1]) / 2**20 for its in lines if its.startswith("MemAvailable"))


def test_an_event_of_100_eib_costs_less_than_two_of_1_eib() -> None:
    if _free_gib() < NEEDED_GIB:
        pytest.skip(f"100 EiB takes {NEEDED_GIB} GiB of free memory")
    small = measure_apart("1eib", 10.0)
    large = measure_apart("100eib", 0.2)
    print(f"{small.event_ns:.0f} ns at 1 EiB, {large.event_ns:.0f} ns at 100 EiB")
    assert large.event_ns < GROWTH_MAX * small.event_ns
    assert large.peak_gib < TARGETS["100eib"][1]


def test_a_decade_of_10_eib_takes_a_minute_and_4_gibibytes() -> None:
    cost = measure_apart("10eib", 10.0)
    print(f"{cost.wall_s:.1f} s of wall time, {cost.cpu_s:.1f} s of CPU, {cost.peak_gib:.2f} GiB")
    assert cost.loop_s < TARGETS["10eib"][0]
    assert cost.peak_gib < TARGETS["10eib"][1]
