"""Published tables by their formulas: every row, with the parameters as printed."""

from math import log10

import pytest

from exastore.sim.closed_forms import (
    burst_group_loss,
    clustered_loss_per_year,
    copyset_loss,
    declustered_loss_per_year,
    replicated_disk_loss,
    replicated_read_error,
    serial_repair_mttf,
    weibull_first_year_loss,
)
from exastore.sim.codes import survival_shares
from exastore.sim.durability import mttdl_birth_death
from exastore.sim.units import YEAR_S

#: 20 TB with a kilo of 1024, as the data of mlec-sim were made.
CAPACITY = 20 * 1024**2 * 10**6


@pytest.mark.parametrize(
    # Cidon et al. 2013: 5,000 nodes, 50 fail at once, 3 copies; copysets, P(loss).
    ("copysets", "expected", "tolerance"),
    [
        (1e7, 0.99992, 1e-5),
        (8_000 * 5_000 / 3, 0.999997, 1e-6),
        (5_000 / 3, 0.00157, 5e-6),
        (55 * 5_000, 0.2281, 5e-5),
        (5 * 5_000 / 3, 0.00781, 5e-6),
    ],
)
def test_copysets_lose_as_often_as_cidon_prints(
    copysets: float, expected: float, tolerance: float
) -> None:
    assert copyset_loss(5_000, 50, 3, copysets) == pytest.approx(expected, abs=tolerance)


@pytest.mark.parametrize(
    # 1 % of the nodes fail. RAMCloud random with 8,000 chunks a node, HDFS random with 10,000,
    # Facebook's window of 55 copysets a node, HDFS copysets of P = 100: formula, Monte Carlo.
    ("nodes", "expected", "monte_carlo"),
    [
        (1_000, (0.854, 0.910, 0.0389, 0.0238), (0.849, 0.902, 0.040, 0.027)),
        (2_000, (0.9896, 0.9967, 0.0899, 0.0555), (0.992, 0.998, 0.086, 0.063)),
    ],
)
def test_the_sweep_of_copysets_is_reproduced(
    nodes: int, expected: tuple[float, ...], monte_carlo: tuple[float, ...]
) -> None:
    counts = (8_000 * nodes / 3, 10_000 * nodes / 3, 55 * nodes, 100 * nodes / 3)
    for copysets, printed, drawn in zip(counts, expected, monte_carlo, strict=True):
        found = copyset_loss(nodes, nodes // 100, 3, copysets)
        digits = 4 if printed < 0.1 or printed > 0.98 else 3
        assert found == pytest.approx(printed, abs=0.51 * 10**-digits)
        assert abs(drawn - found) < 3 * (found * (1 - found) / 1_000) ** 0.5


@pytest.mark.parametrize(
    # P(more than m of the n nodes of a stripe fail); P permutations give P N / n groups.
    ("n", "m", "group", "by_permutations", "of_1e7"),
    [
        (9, 3, 1.075e-6, {1: 0.060, 10: 0.60, 100: 5.8}, 100.0),
        (12, 4, 6.12e-8, {1: 0.0026, 10: 0.026, 100: 0.25}, 45.8),
        (14, 4, 1.525e-7, {1: 0.0054, 10: 0.054, 100: 0.54}, 78.2),
        (15, 6, 3.92e-11, {1: 1.3e-6, 10: 1.3e-5, 100: 1.3e-4}, 0.0392),
    ],
)
def test_a_burst_hits_coded_groups_as_computed(
    n: int, m: int, group: float, by_permutations: dict[int, float], of_1e7: float
) -> None:
    assert burst_group_loss(5_000, 50, n, m, 1) == pytest.approx(group, rel=2e-3)
    for permutations, percent in by_permutations.items():
        found = 100 * burst_group_loss(5_000, 50, n, m, permutations * 5_000 / n)
        assert found == pytest.approx(percent, rel=0.05)
    assert 100 * burst_group_loss(5_000, 50, n, m, 1e7) == pytest.approx(of_1e7, rel=2e-3)


@pytest.mark.parametrize(
    ("afr", "device", "group", "declustered"),
    [
        (2, 6.183, 5.882, 6.567),
        (3, 5.649, 5.347, 6.032),
        (5, 4.969, 4.668, 5.353),
        (7, 4.517, 4.216, 4.901),
        (10, 4.032, 3.731, 4.415),
    ],
)
def test_small_pools_lose_data_as_mlec_sims_formulas_say(
    afr: int, device: float, group: float, declustered: float
) -> None:
    tau_years = CAPACITY / 100e6 / YEAR_S
    for restarts, expected in ((False, device), (True, group)):
        found = clustered_loss_per_year(5, 10, 2, afr / 100, tau_years, restarts=restarts)
        assert -log10(found) == pytest.approx(expected, abs=0.0006)
    found = declustered_loss_per_year(50, 8, 2, afr / 100, tau_years)
    assert -log10(found) == pytest.approx(declustered, abs=0.0006)


@pytest.mark.parametrize(
    ("shape", "one", "ten", "wide"),
    [(1.0, 4.124, 3.124, 4.979), (1.4, 4.646, 3.646, 5.722), (2.0, 5.397, 4.397, 6.775)],
)
def test_weibull_lives_in_the_first_year_are_as_printed(
    shape: float, one: float, ten: float, wide: float
) -> None:
    tau_years = CAPACITY / 50e6 / YEAR_S
    found = weibull_first_year_loss(8, 1, 0.01, shape, tau_years)
    assert -log10(found) == pytest.approx(one, abs=0.001)
    assert -log10(found * 10) == pytest.approx(ten, abs=0.001)
    found = weibull_first_year_loss(10, 2, 0.02, shape, tau_years)
    assert -log10(found * 10) == pytest.approx(wide, abs=0.001)


@pytest.mark.parametrize(
    ("copies", "lost", "read_error", "bytes_lost"),
    [
        (1, 7.21457e-3, 8.65e-6, 5.411e12),
        (2, 4.948e-7, 3.442e-5, 9.704e6),
        (3, 5.090e-11, 3.541e-9, 6.655e2),
    ],
)
def test_replication_is_as_cephs_model_prints(
    copies: int, lost: float, read_error: float, bytes_lost: float
) -> None:
    # FIT 826, 8,766 h, 2e12 B 75 % full, 200 PGs a device, 150 s of rebuild after 10 min.
    hours = 12.5 / 60
    found = replicated_disk_loss(copies, 826, hours, 200, 8_766)
    assert found == pytest.approx(lost, rel=1e-3)
    moved = 1.5e12 if copies == 1 else 3e12
    errors = replicated_read_error(copies, 826, hours, 200, 8_766, moved)
    assert errors == pytest.approx(read_error, rel=1e-3)
    at_stake = 1.5e12 if copies == 1 else 1.5e12 / 400
    per_disk = found * at_stake + errors * 1024**3
    assert per_disk * 1e15 / (2e12 * copies) == pytest.approx(bytes_lost, rel=1e-3)


def test_a_lost_site_hides_the_copies() -> None:
    for copies, expected in ((1, 0.99179), (2, 0.99900), (3, 0.99900)):
        found = replicated_disk_loss(copies, 826, 12.5 / 60, 200, 8_766)
        assert (1 - found) * (1 - 1e-3) == pytest.approx(expected, abs=1.5e-5)


@pytest.mark.parametrize(("mttf_years", "expected"), [(4, 2.99e11), (5, 7.29e11)])
def test_azures_local_code_has_the_mttf_of_its_formula(mttf_years: int, expected: float) -> None:
    # Huang et al. 2012: M = 400, S = 16 TB, B = 1 Gb/s, epsilon = 0.1, T = 30 min, C = 3.6.
    year_s = 365.25 * 86_400
    failure = 1 / (mttf_years * year_s)
    slow, fast = 1 / 1_800.0, 0.1 * 399 * 125e6 / (16e12 * 3.6)
    survived = survival_shares("lrc-6-2-2")[4]
    assert survived == 180 / 210
    births = [(10 - i) * failure for i in range(4)]
    # The fourth loss is survived by that share; then one more ends it.
    found = mttdl_birth_death(
        [*births[:3], births[3] * survived, 6 * failure],
        [fast, slow, slow, slow],
        [0.0, 0.0, 0.0, births[3] * (1 - survived), 0.0],
    )
    assert found / year_s == pytest.approx(expected, rel=0.01)


@pytest.mark.parametrize(
    ("mttf_years", "copies", "coded"), [(4, 1.84e9, 4.27e10), (5, 3.59e9, 1.04e11)]
)
def test_azures_other_rows_have_the_mttf_of_the_formula(
    mttf_years: int, copies: float, coded: float
) -> None:
    year_s = 365.25 * 86_400
    failure = 1 / (mttf_years * year_s)
    slow, full = 1 / 1_800.0, 0.1 * 399 * 125e6 / 16e12
    found = mttdl_birth_death([i * failure for i in (3, 2, 1)], [full, slow])
    assert found / year_s == pytest.approx(copies, rel=0.01)
    found = mttdl_birth_death([i * failure for i in (9, 8, 7, 6)], [full / 6, slow, slow])
    assert found / year_s == pytest.approx(coded, rel=0.01)
    assert coded > 10 * copies  # and the local code above both: the ordering of table 1


@pytest.mark.parametrize(
    ("copies", "days", "tolerance"), [(2, 4.99e5, 0.005), (3, 1.35e9, 0.005), (4, 2.74e12, 0.005)]
)
def test_fords_chain_gives_the_independent_column(
    copies: int, days: float, tolerance: float
) -> None:
    found = serial_repair_mttf(copies, 1, 8.1345e-3, 66.013)
    assert found == pytest.approx(days, rel=tolerance)


def test_fords_formula_is_the_chain_with_one_repair_at_a_time() -> None:
    failure, repair = 8.1345e-3, 66.013
    chain = mttdl_birth_death([i * failure for i in (9, 8, 7, 6)], [repair] * 3)
    assert serial_repair_mttf(9, 6, failure, repair) == pytest.approx(chain, rel=1e-9)
