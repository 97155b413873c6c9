"""Durability: intervals against known values, chains and windows against published numbers."""

from math import comb, log1p, log10

import numpy as np
import pytest

from exastore.sim import load_scenario, parse_scenario, run, scenario_toml
from exastore.sim.codes import survival_shares
from exastore.sim.durability import (
    any_in_year,
    beta_cdf,
    binomial_interval,
    chain_estimate,
    durability,
    mttdl_birth_death,
    nines,
    window_loss,
)
from exastore.sim.units import YEAR_S


@pytest.mark.parametrize(
    ("lost", "per_window", "per_year"),
    [
        (1, 1.441e-3, 7.781e-2),
        (2, 9.874e-7, 5.545e-5),
        (3, 4.273e-10, 2.399e-8),
        (4, 1.310e-13, 7.354e-12),
        (5, 3.022e-17, 1.697e-15),
    ],
)
def test_backblaze_17_of_20_is_reproduced(lost: int, per_window: float, per_year: float) -> None:
    window_years = 6.5 / 365
    found = window_loss(20, lost, 0.00405, window_years)
    assert found == pytest.approx(per_window, rel=1e-3)
    assert any_in_year(found, window_years) == pytest.approx(per_year, rel=1e-3)


def test_the_second_backblaze_case_is_reproduced() -> None:
    found = any_in_year(window_loss(6, 3, 0.10, 1 / 365), 1 / 365)
    assert found == pytest.approx(1.500e-7, rel=1e-3)


def test_replication_follows_the_closed_forms_of_venkatesan_and_iliadis() -> None:
    # QEST 2012, clustered, exponential rebuild: mu / (n la**2), and mu**2 / (2 n la**3) for three
    # copies, per group of as many nodes as copies; one node rebuilds whatever the group has lost.
    failure, rebuild = 1 / 10_000, 1 / 34.72
    two = mttdl_birth_death([2 * failure, failure], [rebuild])
    assert two == pytest.approx(rebuild / (2 * failure**2), rel=0.02)
    failure = 1 / 100_000
    three = mttdl_birth_death([3 * failure, 2 * failure, failure], [rebuild, 2 * rebuild])
    assert three == pytest.approx(2 * rebuild**2 / (6 * failure**3), rel=0.01)
    serial = mttdl_birth_death([3 * failure, 2 * failure, failure], [rebuild, rebuild])
    assert three / serial == pytest.approx(2, rel=0.01)


def test_azure_chains_give_the_leading_terms() -> None:
    # Huang et al. 2012: M = 400, S = 16 TB, B = 1 Gb/s, epsilon = 0.1, T = 30 min, MTTF 4 years.
    hour = 3600.0
    year = 365.25 * 86400

    def rho(reads: float) -> float:
        return 0.1 * 399 * 125e6 / (16e12 * reads)

    failure, slow = 1 / (4 * year), 1 / (0.5 * hour)
    copies = mttdl_birth_death([3 * failure, 2 * failure, failure], [rho(1), slow])
    assert copies / year == pytest.approx(1.84e9, rel=0.01)
    rates = [i * failure for i in (9, 8, 7, 6)]
    coded = mttdl_birth_death(rates, [rho(6), slow, slow])
    assert coded / year == pytest.approx(4.27e10, rel=0.01)


def test_a_chain_of_many_parities_keeps_its_digits() -> None:
    failure, rebuild, n, m = 1e-2, 1e4, 20, 8
    found = mttdl_birth_death(
        [(n - i) * failure for i in range(m + 1)], [(i + 1) * rebuild for i in range(m)]
    )
    # Leading term: the product of all rebuild rates over that of all failure rates.
    births = 1.0
    deaths = 1.0
    for i in range(m + 1):
        births *= (n - i) * failure
    for i in range(m):
        deaths *= (i + 1) * rebuild
    assert found == pytest.approx(deaths / births, rel=1e-4)


def test_no_hits_give_the_rule_of_three_exactly() -> None:
    lower, upper = binomial_interval(0, 1000)
    assert lower == 0
    assert (1 - upper) ** 1000 == pytest.approx(0.05)
    assert upper == pytest.approx(3 / 1000, rel=0.01)
    assert binomial_interval(7, 7) == pytest.approx((0.05 ** (1 / 7), 1.0))


@pytest.mark.parametrize(
    # Clopper-Pearson 95 % intervals as tables print them.
    ("hits", "trials", "lower", "upper"),
    [(1, 10, 0.002529, 0.445016), (5, 10, 0.187086, 0.812914), (3, 100, 0.006230, 0.085176)],
)
def test_intervals_equal_those_of_tables(
    hits: int, trials: int, lower: float, upper: float
) -> None:
    assert binomial_interval(hits, trials) == pytest.approx((lower, upper), abs=1e-5)


@pytest.mark.parametrize("x", [0.0, 0.03, 0.3, 0.5, 0.9, 1.0])
def test_the_beta_function_equals_sums_of_binomials(x: float) -> None:
    a, n = 4, 17
    expected = sum(comb(n, i) * x**i * (1 - x) ** (n - i) for i in range(a, n + 1))
    assert beta_cdf(x, a, n - a + 1) == pytest.approx(expected, rel=1e-12)


def test_the_chain_of_the_1eib_preset_is_the_product_formula() -> None:
    scenario = load_scenario("1eib")
    chain = chain_estimate(scenario, mean_missing_s=0)
    assert not chain.is_measured
    assert chain.repair_mean_s == pytest.approx(60 + 2**60 / 6_144_000 / 50e6)
    rate, tau = -log1p(-0.0136), chain.repair_mean_s / YEAR_S
    expected = 614_400 * (14 * 13 * 12 * 11 * 10) * rate**5 * tau**4 / 24
    assert chain.pgs_lost_per_year == pytest.approx(expected, rel=1e-3)
    assert chain.nines == pytest.approx(-log10(expected), abs=0.01)


def test_a_run_without_loss_gives_an_upper_bound_and_a_run_with_losses_an_interval() -> None:
    tiny = load_scenario("tiny")
    safe = durability(run(tiny, trials=3, seed=1))
    assert (safe.periods, safe.periods_with_loss, safe.loss_per_year, safe.lower) == (6, 0, 0, 0)
    assert safe.upper == pytest.approx(1 - 0.05 ** (1 / 6))
    assert safe.chain.is_measured
    text = scenario_toml(tiny)
    for old, new in (
        ("afr_per_year = 0.05", "afr_per_year = 0.9"),
        ("write_bandwidth_bytes_per_s = 50000000.0", "write_bandwidth_bytes_per_s = 100000"),
        ("years = 2.0", "years = 0.5"),
    ):
        assert old in text
        text = text.replace(old, new)
    unsafe = durability(run(parse_scenario(text), trials=20, seed=1))
    assert unsafe.periods == 20
    assert unsafe.pgs_lost >= unsafe.periods_with_loss > 0
    assert 0 < unsafe.lower < unsafe.loss_per_year <= unsafe.upper <= 1


def test_nines_of_nothing_are_without_limit() -> None:
    assert nines(0.0) == float("inf")
    assert nines(1e-9) == pytest.approx(9)


def test_the_shares_of_losses_that_an_lrc_survives() -> None:
    assert survival_shares("rs-4-2") == (1.0, 1.0, 1.0)
    shares = survival_shares("lrc-12-2-2")
    assert shares[:4] == (1.0, 1.0, 1.0, 1.0)
    assert shares[4] == 1568 / 1820
    # Of 3,478,761 losses of five chunks 19,442 cannot be decoded: the drawn ones are near.
    wide = survival_shares("lrc-48-4-3")
    assert wide[:5] == (1.0,) * 5
    assert 1.0 - wide[5] == pytest.approx(19_442 / 3_478_761, rel=0.15)


def test_a_chain_that_can_end_anywhere_is_solved_like_its_equations() -> None:
    births, deaths, losses = [3.0, 2.0, 1.0], [40.0, 70.0], [0.1, 0.4, 0.5]
    rates = np.zeros((3, 3))
    for i in range(3):
        rates[i, i] = births[i] + losses[i] + (deaths[i - 1] if i else 0.0)
        if i < 2:
            rates[i, i + 1] = -births[i]
            rates[i + 1, i] = -deaths[i]
    expected = np.linalg.solve(rates, np.ones(3))[0]
    assert mttdl_birth_death(births, deaths, losses) == pytest.approx(expected, rel=1e-12)
