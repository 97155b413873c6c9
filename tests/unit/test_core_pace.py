"""Budgets of background traffic as arithmetic: token buckets, leases of rate, and the pace."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from exastore.metadata.core.budget import TokenBucket
from exastore.metadata.core.latency import RecentLatency
from exastore.metadata.core.pace import DECREASE_PAUSE_S, Pace, PaceOptions, PaceSample, next_pace
from exastore.metadata.core.rate_leases import Demand, RateLedger, fair_shares

MIB = float(1 << 20)
OPTIONS = PaceOptions(target_s=0.1, floor_bytes_per_s=2 * MIB)


def run(pace: Pace, sample: PaceSample, seconds: float, options: PaceOptions = OPTIONS) -> Pace:
    """The pace after so long of the same sample, twice a second."""
    for _ in range(round(2 * seconds)):
        pace = next_pace(pace, sample, options, pace.updated_s + 0.5)
    return pace


def test_slow_clients_halve_the_rate_of_what_moves_once_per_pause() -> None:
    slow = PaceSample(p99_s=0.5, request_count=100, background_bytes_per_s=64 * MIB)
    pace = next_pace(Pace(0.0, 0.0), slow, OPTIONS, 0.5)
    assert pace.rate_bytes_per_s == 32 * MIB
    pace = next_pace(pace, slow, OPTIONS, 1.0)
    assert pace.rate_bytes_per_s == 32 * MIB, "too early to see what the first step did"
    pace = next_pace(pace, slow, OPTIONS, 0.5 + DECREASE_PAUSE_S)
    assert pace.rate_bytes_per_s == 16 * MIB


def test_the_rate_never_falls_below_the_floor() -> None:
    slow = PaceSample(p99_s=9.0, request_count=100, background_bytes_per_s=3 * MIB)
    assert run(Pace(64 * MIB, 0.0), slow, 60).rate_bytes_per_s == OPTIONS.floor_bytes_per_s


def test_a_node_that_moves_nothing_is_not_slowed_down() -> None:
    slow = PaceSample(p99_s=9.0, request_count=100, background_bytes_per_s=0.0)
    assert run(Pace(64 * MIB, 0.0), slow, 60).rate_bytes_per_s == 64 * MIB
    assert run(Pace(0.0, 0.0), slow, 60).rate_bytes_per_s == 0.0


def test_fast_clients_let_a_rate_that_is_used_grow_by_the_floor_each_second() -> None:
    fast = PaceSample(p99_s=0.01, request_count=100, background_bytes_per_s=20 * MIB)
    assert run(Pace(20 * MIB, 0.0), fast, 5).rate_bytes_per_s == 30 * MIB
    idle = PaceSample(p99_s=0.01, request_count=100, background_bytes_per_s=1 * MIB)
    assert run(Pace(20 * MIB, 0.0), idle, 5).rate_bytes_per_s == 20 * MIB


def test_near_the_target_the_rate_stays() -> None:
    near = PaceSample(p99_s=0.09, request_count=100, background_bytes_per_s=20 * MIB)
    assert run(Pace(20 * MIB, 0.0), near, 30).rate_bytes_per_s == 20 * MIB


def test_without_clients_the_limit_goes_away() -> None:
    alone = PaceSample(p99_s=0.0, request_count=0, background_bytes_per_s=4 * MIB)
    assert run(Pace(4 * MIB, 0.0), alone, 1).rate_bytes_per_s == pytest.approx(8 * MIB)
    assert run(Pace(4 * MIB, 0.0), alone, 20).rate_bytes_per_s == 0.0


def test_the_ceiling_holds_whatever_clients_do() -> None:
    options = PaceOptions(0.1, 2 * MIB, ceiling_bytes_per_s=10 * MIB)
    alone = PaceSample(p99_s=0.0, request_count=0, background_bytes_per_s=10 * MIB)
    assert run(Pace(0.0, 0.0), alone, 20, options).rate_bytes_per_s == 10 * MIB
    unheeded = PaceOptions(0.0, 2 * MIB, ceiling_bytes_per_s=10 * MIB)
    slow = PaceSample(p99_s=9.0, request_count=9, background_bytes_per_s=10 * MIB)
    assert run(Pace(3 * MIB, 0.0), slow, 1, unheeded).rate_bytes_per_s == 10 * MIB


def test_in_closed_loop_the_latency_settles_around_the_target_and_repair_goes_on() -> None:
    """Clients' latency grows with the share of the disk that repair takes, as of an M/M/1 queue."""
    disk, service_s, clients = 100 * MIB, 0.02, 0.3
    pace, seen, rates = Pace(0.0, 0.0), list[float](), list[float]()
    for turn in range(400):
        used = min(pace.rate_bytes_per_s or math.inf, 0.68 * disk)
        latency_s = service_s / (1 - clients - used / disk)
        sample = PaceSample(latency_s, 50, used)
        pace = next_pace(pace, sample, OPTIONS, 0.5 * (turn + 1))
        seen.append(latency_s)
        rates.append(used)
    assert seen[0] > 5 * OPTIONS.target_s, "unlimited repair would starve the clients"
    # At the target repair could have half of the disk: 1 - 0.3 - 0.02 / 0.1.
    assert np.mean(np.array(seen[40:]) <= OPTIONS.target_s) > 0.95
    assert 0.3 * disk < float(np.mean(rates[40:])) < 0.5 * disk


@given(
    st.floats(1.0, 1e12),
    st.dictionaries(
        st.text(max_size=3), st.tuples(st.floats(0.0, 1e12), st.booleans()), min_size=1
    ),
)
def test_shares_never_exceed_the_rate_and_hungry_holders_get_equal_parts(
    rate: float, wants: dict[str, tuple[float, bool]]
) -> None:
    demands = {name: Demand(used, held_up) for name, (used, held_up) in wants.items()}
    shares = fair_shares(rate, demands)
    assert shares.keys() == demands.keys()
    assert sum(shares.values()) <= rate * (1 + 1e-9)
    assert all(share > 0 for share in shares.values())
    hungry = [shares[name] for name, demand in demands.items() if demand.is_held_up]
    if hungry:
        assert max(hungry) == pytest.approx(min(hungry))
        assert max(hungry) >= rate / len(demands) * (1 - 1e-9), "never less than an equal part"


@given(st.lists(st.tuples(st.integers(0, 3), st.booleans(), st.booleans(), st.floats(0.0, 2.0))))
def test_leases_in_force_never_exceed_the_rate_whatever_answers_are_lost(
    beats: list[tuple[int, bool, bool, float]],
) -> None:
    rate, lease_s, now = 100.0, 5.0, 0.0
    ledger = RateLedger(lease_s, now)
    #: What each holder uses, and until when by its own clock.
    in_force: dict[int, tuple[float, float]] = {}
    for holder, is_lost, is_hungry, pause_s in beats:
        now += pause_s
        used, until_s = in_force.get(holder, (0.0, 0.0))
        used = used if until_s > now else 0.0
        granted = ledger.grant(str(holder), used, Demand(used, is_hungry), rate, now)
        if not is_lost:
            in_force[holder] = (granted, now + lease_s)
        total = sum(share for share, until_s in in_force.values() if until_s > now)
        assert total <= rate * (1 + 1e-9)


def test_a_ledger_that_begins_anew_waits_until_its_predecessors_leases_are_over() -> None:
    ledger = RateLedger(5.0, 100.0)
    hungry = Demand(0.0, True)
    assert ledger.grant("a", 0.0, hungry, 10.0, 104.0) == 0.0
    assert ledger.grant("a", 3.0, hungry, 10.0, 104.9) == 3.0, "what it has is renewed"
    assert ledger.grant("a", 3.0, hungry, 10.0, 105.0) == 10.0
    assert ledger.grant("b", 0.0, hungry, 10.0, 105.1) == 0.0, "a has all until it tells"
    assert ledger.grant("a", 10.0, hungry, 10.0, 105.5) == 5.0
    assert ledger.grant("a", 5.0, hungry, 10.0, 106.0) == 5.0, "now it has told that it uses less"
    assert ledger.grant("b", 0.0, hungry, 10.0, 106.1) == 5.0
    assert ledger.held(106.1) == {"a": 5.0, "b": 5.0}


def test_the_share_of_a_holder_that_fell_silent_goes_to_the_others() -> None:
    ledger = RateLedger(5.0, 0.0)
    hungry = Demand(0.0, True)
    ledger.grant("a", 0.0, hungry, 10.0, 5.0)
    assert ledger.grant("b", 0.0, hungry, 10.0, 9.9) == 0.0
    assert ledger.grant("b", 0.0, hungry, 10.0, 10.1) == 10.0


def test_the_99th_percentile_of_the_last_seconds_forgets_what_is_older() -> None:
    recent = RecentLatency(window_s=2.0)
    assert recent.p99(0.0) == (0.0, 0)
    for number in range(1000):
        recent.note(0.5 if number % 50 == 0 else 0.01, 0.0)
    p99_s, count = recent.p99(1.0)
    assert p99_s == pytest.approx(0.5, rel=0.13)
    assert count == 1000
    for _ in range(100):
        recent.note(0.01, 2.5)
    assert recent.p99(2.5)[0] == pytest.approx(0.5, rel=0.13), "still within two windows"
    recent.note(0.01, 5.0)
    p99_s, count = recent.p99(5.0)
    assert p99_s == pytest.approx(0.01, rel=0.13)
    assert count == 101
    assert recent.p99(50.0) == (0.0, 0)


def test_a_bucket_tells_when_its_debt_is_paid_and_keeps_it_when_the_rate_changes() -> None:
    bucket = TokenBucket(10.0, 5.0)
    assert bucket.ready_in(0.0) == 0.0
    bucket.take(25, 0.0)
    assert bucket.ready_in(0.0) == 2.0
    bucket.set_rate(5.0, 2.0, 1.0)
    assert bucket.ready_in(1.0) == 2.0, "10 bytes are owed, at half the rate"
    assert bucket.ready_in(3.0) == 0.0
    bucket.set_rate(0.0, 0.0, 3.0)
    bucket.take(1000, 3.0)
    assert bucket.ready_in(3.0) == 0.0, "no limit"
