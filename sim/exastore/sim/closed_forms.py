"""Closed forms that published models print: for tests of the engines, and for a first look.

Each states its assumptions. All hold only where a repair is much shorter than a life; none knows
what correlated failures do.
"""

from math import comb, exp, expm1, factorial, log, log1p, prod


def clustered_loss_per_year(
    groups: int, n: int, m: int, afr_per_year: float, repair_years: float, *, restarts: bool
) -> float:
    """Rate of loss of disjoint groups of n devices that survive m losses.

    G n la prod((n - i) la tau, i = 1..m), divided by m! if each device is back `repair_years` after
    its own failure; not, if each failure in a group starts all its rebuilds anew (to first order
    the same as one exponential repair at a time).
    """
    rate = -log1p(-afr_per_year)
    found = groups * n * rate * prod((n - i) * rate * repair_years for i in range(1, m + 1))
    return found if restarts else found / factorial(m)


def declustered_loss_per_year(
    devices: int, k: int, m: int, afr_per_year: float, device_years: float
) -> float:
    """Rate of loss of one declustered pool with unlimited chunks on each device.

    `device_years`: to write one device at its own bandwidth. Stripes that miss i chunks are rebuilt
    first, by all devices that are left, and k + 1 bytes of their bandwidth rebuild one byte: the
    time T_i = f_i device_years (k + 1) / (devices - i), where f_i is the share of the last device's
    stripes that miss i chunks, C(devices - i, n - i) / C(devices - 1, n - 1). The rate is
    N la prod((N - i) la T_i, i = 1..m).
    """
    rate, n = -log1p(-afr_per_year), k + m
    found = devices * rate
    for i in range(1, m + 1):
        share = comb(devices - i, n - i) / comb(devices - 1, n - 1)
        found *= (devices - i) * rate * share * device_years * (k + 1) / (devices - i)
    return found


def weibull_first_year_loss(
    n: int, m: int, afr_per_year: float, shape: float, repair_years: float
) -> float:
    """P(a group loses data in the first year of its devices), with Weibull lives.

    The repair restarts with each failure. Survival to five years is (1 - AFR)**5. With c = m and
    b = (c + 1)(shape - 1) + 1: 1 - exp(-n! shape^(c+1) tau^c / ((n-c-1)! b scale^((c+1) shape))).
    """
    scale = 5.0 / (-5.0 * log1p(-afr_per_year)) ** (1.0 / shape)
    b = (m + 1) * (shape - 1.0) + 1.0
    ways = factorial(n) / factorial(n - m - 1)
    mean = ways * shape ** (m + 1) * repair_years**m / (b * scale ** ((m + 1) * shape))
    return -expm1(-mean)


def copyset_loss(nodes: int, failed: int, copies: int, copysets: float) -> float:
    """P(a burst of `failed` of `nodes` takes all of at least one of so many distinct copysets)."""
    hit = comb(failed, copies) / comb(nodes, copies)
    return -expm1(copysets * log1p(-hit))


def burst_group_loss(nodes: int, failed: int, n: int, m: int, groups: float) -> float:
    """The same of groups of n nodes of which more than m must fail: hypergeometric."""
    hit = sum(comb(failed, i) * comb(nodes - failed, n - i) for i in range(m + 1, n + 1)) / comb(
        nodes, n
    )
    return -expm1(groups * log1p(-hit))


def replicated_disk_loss(
    copies: int, fit: float, recovery_hours: float, peers: int, year_hours: float
) -> float:
    """P(all copies of some data of a disk are lost in a year), as RADOS's model has it.

    F(fit c, year) prod(F(fit i peers, recovery), i = c - 1 .. 1), F(x, t) = 1 - exp(-x t 1e-9):
    `fit` failures per 1e9 hours of one disk; each of the further copies is on any of `peers`.
    """
    found = -expm1(-fit * copies * year_hours * 1e-9)
    for i in range(copies - 1, 0, -1):
        found *= -expm1(-fit * i * peers * recovery_hours * 1e-9)
    return found


def replicated_read_error(
    copies: int, fit: float, recovery_hours: float, peers: int, year_hours: float, read_bytes: float
) -> float:
    """P(a read error hits the last recovery of a disk in a year), the same model.

    The product of `replicated_disk_loss` without the factor i = 1, times y exp(-y), with
    y = 8e-16 bytes: one error in 1e16 bits.
    """
    y = 8e-16 * read_bytes
    found = -expm1(-fit * copies * year_hours * 1e-9) * y * exp(-y)
    for i in range(copies - 1, 1, -1):
        found *= -expm1(-fit * i * peers * recovery_hours * 1e-9)
    return found


def serial_repair_mttf(s: int, r: int, failure: float, repair: float) -> float:
    """Mean time until fewer than r of s chunks are there, one repair at a time (Ford et al. 2010).

    (1/la) sum_j sum_(i <= j) (rho/la)^i / ((s-j+i)(s-j+i-1)...(s-j)), j = 0 .. s - r.
    """
    total = 0.0
    for j in range(s - r + 1):
        for i in range(j + 1):
            total += exp(i * log(repair / failure)) / prod(range(s - j, s - j + i + 1))
    return total / failure
