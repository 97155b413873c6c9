"""Claims about the 1 EiB preset: what it costs to simulate and what must come out."""

import time
import tracemalloc

import pytest

from exastore.metadata.core.balance import balance_of, recovery_spread, row_violations
from exastore.metadata.core.balancer import (
    apply_balance_to_rows,
    plan_balance_of_rows,
    report_balance,
)
from exastore.metadata.core.placement import place_with_columns, placement_columns
from exastore.metadata.core.policy import distinct_copysets
from exastore.sim import Results, load_scenario, run

pytestmark = [pytest.mark.verify, pytest.mark.timeout(1200)]


@pytest.fixture(scope="module")
def decade() -> Results:
    run(load_scenario("tiny"), trials=1)  # compiles
    return run(load_scenario("1eib"), trials=1, seed=1, monotonic_s=time.thread_time)


def test_a_decade_takes_seconds_and_less_than_a_gibibyte(decade: Results) -> None:
    run_of = decade.provenance
    print(f"placement {run_of.placement_s:.1f} s, decade {run_of.trials_s:.1f} s of one core,")
    print(f"peak memory {run_of.peak_memory_bytes / 2**20:.0f} MiB")
    assert run_of.placement_s < 60
    assert run_of.trials_s < 5
    assert run_of.peak_memory_bytes < 2**30


def test_a_placement_is_checked_in_seconds() -> None:
    scenario = load_scenario("1eib")
    columns = placement_columns(scenario.topology(), scenario.placement.rule)
    rows = place_with_columns(columns, scenario.placement.pg_count, scenario.n, seed=1)
    begin_s = time.thread_time()
    violations = int(row_violations(rows, columns).sum())
    balance = balance_of(rows, columns.device_weight)
    copysets = distinct_copysets(rows)
    taken_s = time.thread_time() - begin_s
    print(f"all rules, balance and copysets of {len(rows):,} groups in {taken_s:.2f} s of one core")
    assert violations == 0 and balance.slot_count == rows.size
    assert copysets > 0.999 * len(rows)
    assert taken_s < 10


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


def test_the_start_is_balanced_and_the_rule_holds_throughout(decade: Results) -> None:
    (trial,) = decade.trials.to_pylist()
    assert trial["violations"] == trial["violations_at_start"] == 0
    start = [row for row in decade.balance.to_pylist() if row["trial"] == -1]
    assert {row["slots"] for row in start} == {99, 100}
    assert sum(row["devices"] for row in start) == 86_400
    assert trial["slots_max"] > 120  # rebuilds are spread by hashing, and nothing rebalances them


def test_hashing_alone_is_as_uneven_as_the_arithmetic_and_balancing_moves_the_minimum() -> None:
    scenario = load_scenario("1eib")
    topology = scenario.topology()
    columns = placement_columns(topology, scenario.placement.rule)
    rows = place_with_columns(columns, scenario.placement.pg_count, scenario.n, seed=1)
    plan_balance_of_rows(columns, rows[:100])  # compiles
    begin_s = time.thread_time()
    plan = plan_balance_of_rows(columns, rows, seed=1)
    taken_s = time.thread_time() - begin_s
    tracemalloc.start()  # numpy tells it of every array
    plan_balance_of_rows(columns, rows, seed=1)
    grown = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    report = report_balance(columns, rows, plan)
    spreads = [
        recovery_spread(table, topology.device_count)
        for table in (rows, apply_balance_to_rows(rows, plan))
    ]
    print(f"planned in {taken_s:.2f} s of one core, {grown / 2**20:.0f} MiB of arrays at most")
    print(report, f"ratio {report.moves_ratio:.4f}", *spreads, sep="\n")
    mean, count = report.before.mean, topology.device_count
    assert report.before.stddev == pytest.approx((mean * (1 - 1 / count)) ** 0.5, rel=0.02)
    assert taken_s < 10
    assert 2**25 < grown < 2**29
    assert report.deviation_after < 1
    assert report.after.maximum / report.after.mean < 1.01
    assert report.moves_ratio <= 1.05
    assert report.violations_before == report.violations_after == 0
    assert spreads[1].shared_max <= spreads[0].shared_max + 2
    assert spreads[1].peer_count_mean > 0.98 * spreads[0].peer_count_mean
