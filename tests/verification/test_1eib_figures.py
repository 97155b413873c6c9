"""Claims about the 1 EiB preset: what it costs to simulate and what must come out."""

import time

import pytest

from exastore.sim import Results, load_scenario, run

pytestmark = [pytest.mark.verify, pytest.mark.timeout(1200)]


@pytest.fixture(scope="module")
def decade() -> Results:
    run(load_scenario("tiny"), trials=1)  # compiles
    return run(load_scenario("1eib"), trials=1, seed=1, monotonic_s=time.thread_time)


def test_a_decade_takes_seconds_and_less_than_1_5_gib(decade: Results) -> None:
    run_of = decade.provenance
    print(f"placement {run_of.placement_s:.1f} s, decade {run_of.trials_s:.1f} s of one core,")
    print(f"peak memory {run_of.peak_memory_bytes / 2**20:.0f} MiB")
    assert run_of.placement_s < 60
    assert run_of.trials_s < 60
    assert run_of.peak_memory_bytes < 1.5 * 2**30


def test_repair_traffic_is_that_of_the_arithmetic(decade: Results) -> None:
    # field-data: RS(10,4), 24 TB devices, AFR 1.36 %, per usable 1e18 B: 2.72 device failures,
    # 52.2 TB rebuilt and 522 TB read per day. Here AFR is taken as 1 - exp(-rate): 0.7 % more.
    (trial,) = decade.trials.to_pylist()
    days, exabytes = 3652.5, 2**60 / 1e18
    # At 77.8 % fill there are 80 / 77.8 times as many devices for the same bytes.
    more_devices = 0.8 / decade.scenario.fill
    failures = trial["device_failures"] / days
    assert failures == pytest.approx(2.72 * exabytes * more_devices, rel=0.04)
    assert trial["rebuilt_bytes"] / days / 1e12 == pytest.approx(52.2 * exabytes, rel=0.05)
    assert trial["read_bytes"] / days / 1e12 == pytest.approx(522 * exabytes, rel=0.05)


def test_balance_is_that_of_hashing_and_the_rule_holds(decade: Results) -> None:
    (trial,) = decade.trials.to_pylist()
    assert trial["violations"] == trial["violations_at_start"] == 0
    start = [row for row in decade.balance.to_pylist() if row["trial"] == -1]
    devices = sum(row["devices"] for row in start)
    mean = sum(row["slots"] * row["devices"] for row in start) / devices
    variance = sum((row["slots"] - mean) ** 2 * row["devices"] for row in start) / devices
    assert variance**0.5 == pytest.approx(mean**0.5, rel=0.02)
