"""Durability: what the trials say, with an exact interval, and what a Markov chain says beside it.

"P(loss)" is always the probability that the whole cluster loses data of at least one PG within one
year; nines are -log10 of it. Trials of a durable cluster see no loss: then they give an upper bound
alone, and the chain gives an estimate under assumptions that `ChainEstimate` names.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import exp, expm1, inf, isinf, lgamma, log, log1p, log10

import numpy as np

from exastore.sim.codes import survival_shares
from exastore.sim.results import Results
from exastore.sim.scenario import Scenario
from exastore.sim.units import YEAR_S

#: Confidence of every interval here.
CONFIDENCE = 0.95


@dataclass(frozen=True, slots=True)
class ChainEstimate:
    """A birth-death chain of one PG, times the number of PGs.

    Its state is the number of missing chunks. Of an LRC some patterns of more than its sure losses
    are lost: each further failure ends the chain with the share of patterns of that size that are
    not decoded among those that were decoded before, as if all were equally likely.

    Assumptions: devices fail independently at the constant rate -ln(1 - AFR); each missing chunk is
    rebuilt by itself, in exponential time with the mean that the run measured; outages of nodes
    lose nothing; PGs are lost independently of each other. They share devices, so real losses come
    in clumps: the number of PGs lost is right, P(any loss) is an upper estimate. Correlated
    failures, latent errors and mistakes of software or people are not in it.

    Attributes:
        failure_rate_per_year: Of one device.
        repair_mean_s: Mean time from the loss of a chunk until it is rebuilt.
        is_measured: Whether `repair_mean_s` comes from the run; else it is detection plus an
            undisturbed rebuild.
        pg_mttdl_years: Mean time to the loss of one PG; inf if nothing fails.
        pgs_lost_per_year: In the whole cluster.
        loss_per_year: P(loss).
    """

    failure_rate_per_year: float
    repair_mean_s: float
    is_measured: bool
    pg_mttdl_years: float
    pgs_lost_per_year: float
    loss_per_year: float

    @property
    def nines(self) -> float:
        return nines(self.loss_per_year)


@dataclass(frozen=True, slots=True)
class Durability:
    """What a run says about one year.

    Attributes:
        periods: Observed periods of `period_years`, all trials together.
        periods_with_loss: Those in which a PG, or a stripe of one, lost data.
        pgs_lost: How many PGs lost all their data.
        stripes_lost: How many stripes of other PGs were lost to latent errors.
        loss_per_year: Estimate of P(loss); 0 if none was seen.
        lower, upper: Exact interval of P(loss) per year: Clopper-Pearson, two-sided 95 %; if no
            loss was seen, lower is 0 and upper the one-sided 95 % bound 1 - 0.05 ** (1 / N).
        chain: The analytic estimate.
    """

    period_years: float
    periods: int
    periods_with_loss: int
    pgs_lost: int
    stripes_lost: int
    loss_per_year: float
    lower: float
    upper: float
    chain: ChainEstimate


def nines(probability: float) -> float:
    """-log10 of a probability; inf for 0."""
    return -log10(probability) if probability > 0 else inf


def mttdl_birth_death(
    births: Sequence[float], deaths: Sequence[float], losses: Sequence[float] = ()
) -> float:
    """Mean time from state 0 until the chain steps past its last state, or is lost from any.

    The states are eliminated from the last one down. Per unit of time in state i, seen from below,
    the states from i on are lost at the rate l[i] and take w[i] time:

        l[i] = losses[i] + births[i] l[i+1] / (deaths[i] + l[i+1]),
        w[i] = 1         + births[i] w[i+1] / (deaths[i] + l[i+1]),

    and the mean is w[0] / l[0]. All terms are positive and nothing is subtracted, as in GTH
    elimination (Grassmann, Taksar and Heyman 1985), so no digits cancel however rare the end is.

    Args:
        births: Rate from state i to i + 1, i = 0 .. m; from the last one, to the end.
        deaths: Rate from state i + 1 to i, i = 0 .. m - 1.
        losses: Rate from state i to the end, i = 0 .. m; nothing: only the last birth ends.
    """
    assert len(births) == len(deaths) + 1
    ends = losses or [0.0] * len(births)
    assert len(ends) == len(births)
    lost, spent = births[-1] + ends[-1], 1.0
    for birth, death, end in zip(births[-2::-1], deaths[::-1], ends[-2::-1], strict=True):
        lost, spent = (
            end + birth * lost / (death + lost),
            1.0 + birth * spent / (death + lost),
        )
    return spent / lost


def window_loss(n: int, lost: int, rate_per_year: float, window_years: float) -> float:
    """P(at least `lost` of n independent chunks fail in one window): binomial, summed upwards."""
    p = -expm1(-rate_per_year * window_years)
    if p == 0.0:
        return 0.0
    if p == 1.0:
        return 1.0
    terms = [
        exp(_log_choose(n, i) + i * log(p) + (n - i) * log1p(-p)) for i in range(n, lost - 1, -1)
    ]
    return sum(sorted(terms))


def any_in_year(per_window: float, window_years: float) -> float:
    """P(it happens in at least one of a year's windows), a fraction of a window counted as such."""
    return -expm1(log1p(-per_window) / window_years) if per_window < 1 else 1.0


def chain_estimate(scenario: Scenario, *, mean_missing_s: float) -> ChainEstimate:
    """The chain with a measured repair time; 0 takes the time of an undisturbed rebuild."""
    repair = scenario.repair
    rate = min(repair.write_bandwidth_bytes_per_s, repair.read_bandwidth_bytes_per_s)
    undisturbed_s = repair.detection_delay_s + scenario.slot_bytes / rate
    repair_s = mean_missing_s or undisturbed_s
    failure = -log1p(-scenario.device.afr_per_year)
    if failure == 0.0:
        return ChainEstimate(0.0, repair_s, mean_missing_s > 0, inf, 0.0, 0.0)
    repairs_per_year = YEAR_S / repair_s
    n, m = scenario.n, scenario.m
    shares = [*survival_shares(scenario.code), 0.0]
    #: Of the failures in state i, the share after which the data can be decoded.
    survived = [shares[i + 1] / shares[i] for i in range(m + 1)]
    mttdl = mttdl_birth_death(
        [(n - i) * failure * survived[i] for i in range(m + 1)],
        [(i + 1) * repairs_per_year for i in range(m)],
        [(n - i) * failure * (1.0 - survived[i]) for i in range(m + 1)],
    )
    lost_per_year = scenario.placement.pg_count / mttdl
    return ChainEstimate(
        failure_rate_per_year=failure,
        repair_mean_s=repair_s,
        is_measured=bool(mean_missing_s > 0),
        pg_mttdl_years=mttdl,
        pgs_lost_per_year=lost_per_year,
        loss_per_year=-expm1(-lost_per_year),
    )


def durability(results: Results) -> Durability:
    """Durability from the tables of a run."""
    years = results.provenance.years
    whole_years = int(years + 1e-9)
    months = results.timeline["month"].to_numpy()
    trial = results.timeline["trial"].to_numpy()
    pgs_lost = results.timeline["pgs_lost"].to_numpy()
    stripes_lost = results.timeline["stripes_lost"].to_numpy()
    losses = pgs_lost + stripes_lost
    if whole_years >= 1:
        period_years, per_trial = 1.0, whole_years
        kept = months < 12 * whole_years
        period = trial[kept] * per_trial + months[kept] // 12
    else:
        period_years, per_trial = years, 1
        kept = np.ones(len(months), np.bool_)
        period = trial
    count = results.provenance.trials * per_trial
    with_loss = int((np.bincount(period, weights=losses[kept], minlength=count) > 0).sum())
    lower, upper = binomial_interval(with_loss, count)

    def yearly(probability: float) -> float:
        if probability >= 1.0:
            return 1.0
        return -expm1(log1p(-probability) / period_years)

    runs_lost = results.trials["chunk_runs_lost"].to_numpy().astype(float)
    missing_s = float((results.trials["mean_missing_s"].to_numpy() * runs_lost).sum())
    mean_missing_s = missing_s / runs_lost.sum() if runs_lost.sum() else 0.0
    return Durability(
        period_years=period_years,
        periods=count,
        periods_with_loss=with_loss,
        pgs_lost=int(pgs_lost.sum()),
        stripes_lost=int(stripes_lost.sum()),
        loss_per_year=yearly(with_loss / count),
        lower=yearly(lower),
        upper=yearly(upper),
        chain=chain_estimate(results.scenario, mean_missing_s=mean_missing_s),
    )


def binomial_interval(hits: int, trials: int) -> tuple[float, float]:
    """Exact interval of a probability after `hits` in `trials`: Clopper and Pearson 1934.

    Two-sided 95 %, except that no hits, or nothing but hits, give the one-sided 95 % bound.
    """
    assert 0 <= hits <= trials and trials > 0
    error = 1.0 - CONFIDENCE
    if hits == 0:
        return 0.0, -expm1(log(error) / trials)
    if hits == trials:
        return exp(log(error) / trials), 1.0
    lower = _beta_quantile(error / 2, hits, trials - hits + 1)
    upper = _beta_quantile(1 - error / 2, hits + 1, trials - hits)
    return lower, upper


def _log_choose(n: int, i: int) -> float:
    return lgamma(n + 1) - lgamma(i + 1) - lgamma(n - i + 1)


def _beta_quantile(p: float, a: float, b: float) -> float:
    """x with I_x(a, b) = p, by bisection to the last bit but few."""
    low, high = 0.0, 1.0
    for _ in range(200):
        middle = (low + high) / 2
        if beta_cdf(middle, a, b) < p:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def beta_cdf(x: float, a: float, b: float) -> float:
    """Regularised incomplete beta function I_x(a, b).

    Continued fraction of Abramowitz and Stegun 26.5.8, evaluated by Lentz's method; converges fast
    for x below the mean, and the symmetry I_x(a, b) = 1 - I_(1-x)(b, a) serves the rest.
    """
    if x <= 0.0:
        return 0.0
    if x >= 1.0:
        return 1.0
    if x > (a + 1) / (a + b + 2):
        return 1.0 - beta_cdf(1.0 - x, b, a)
    front = exp(lgamma(a + b) - lgamma(a) - lgamma(b) + a * log(x) + b * log1p(-x)) / a
    tiny = 1e-300
    c, d = 1.0, 1.0 / _away_from_zero(1.0 - (a + b) * x / (a + 1.0), tiny)
    fraction = d
    for i in range(1, 10_000):
        even = i * (b - i) * x / ((a + 2 * i - 1) * (a + 2 * i))
        d = 1.0 / _away_from_zero(1.0 + even * d, tiny)
        c = _away_from_zero(1.0 + even / c, tiny)
        fraction *= c * d
        odd = -(a + i) * (a + b + i) * x / ((a + 2 * i) * (a + 2 * i + 1))
        d = 1.0 / _away_from_zero(1.0 + odd * d, tiny)
        c = _away_from_zero(1.0 + odd / c, tiny)
        step = c * d
        fraction *= step
        if abs(step - 1.0) < 1e-15:
            break
    return front * fraction


def _away_from_zero(value: float, tiny: float) -> float:
    return tiny if abs(value) < tiny else value


def probability_text(probability: float) -> str:
    """Three digits, or "0"."""
    return "0" if probability == 0 else f"{probability:.3g}"


def nines_text(probability: float) -> str:
    """Nines with one decimal; "no limit" for probability 0."""
    value = nines(probability)
    return "no limit" if isinf(value) else f"{value + 0.0:.1f}"  # 0.0, not -0.0
