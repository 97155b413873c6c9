"""Losses too rare to wait for: excursions of the overlap engine, with biased failures.

An excursion begins when a device fails in a cluster that misses nothing, and ends when nothing is
missing again, or at the first loss. With devices that do not age excursions are independent and of
one law, so the rate of loss is the rate of excursions times the probability that one loses data
(renewal theory), and the rate of excursions is 1 / (mean time whole + mean length).

Failures of the devices that could hurt most are drawn far more often than they come: beside the
natural process, of rate la for each device, there is a hot one. It takes a group that misses most,
or any group of a device that misses alone, and one of its other devices. Each path counts with its
likelihood ratio,

    product over failures of la / (la + hot rate q(device)) x exp(integral of the hot rate),

where q is the chance that the hot process takes that device; so the estimate has no bias, whatever
the hot process is (importance sampling by a change of intensity; Bremaud 1981, chapter VI).
"""

from math import exp, expm1, inf, sqrt

import numpy as np

from exastore.erasure.jit import inner_njit, njit
from exastore.metadata.core.topology import Float64Array, Int32Array
from exastore.sim.errors import Problem, ScenarioError
from exastore.sim.overlap import (
    ALONE,
    DONE,
    LOSS,
    NEEDS_ROOM,
    SIZE,
    Layout,
    Missing,
    advance,
    fail_device,
    is_down,
    lose_groups,
    share_rates,
)
from exastore.sim.overlap_model import OverlapOptions, build_missing
from exastore.sim.overlap_run import OverlapRun, RareEstimate
from exastore.sim.run import Progress
from exastore.sim.scenario import Scenario
from exastore.sim.state import Records
from exastore.sim.streams import exponential, trial_key, uniform, wide
from exastore.sim.units import YEAR_S

STREAM_FIRST = 203
STREAM_GAP = 204
STREAM_CHOICE = 205
#: Rows of the sums of a block: losses, their weights, squares of these, weights times groups lost,
#: squares of these, and the weighted length of all excursions.
HITS, WEIGHT, WEIGHT_2, GROUPS, GROUPS_2, LENGTH = range(6)
SUMS = 6
_BLOCK = 20_000
#: Mean failures at a time, beyond which the cluster is hardly ever whole.
_MOST_DOWN = 4.0


@inner_njit
def _next_event_s(rules: Records, missing: Missing) -> float:
    """When the next run is noticed or rebuilt."""
    share_rates(rules, missing)
    found = inf
    for i in range(missing.counter[SIZE]):
        entry = missing.entries[i]
        if entry.rate > 0.0:
            found = min(found, missing.now[0] + entry.work / entry.rate)
        elif entry.work > 0.0 and entry.noticed_s > missing.now[0]:
            found = min(found, float(entry.noticed_s))
    return float(found)


@inner_njit
def _worst(missing: Missing) -> int:
    """The least remaining redundancy of anything missing."""
    worst = np.int64(1_000_000)
    for i in range(missing.counter[SIZE]):
        if missing.entries[i].work > 0.0:
            worst = min(worst, np.int64(missing.entries[i].redundancy))
    return int(worst)


@inner_njit
def _is_hot(missing: Missing, i: int, worst: int) -> bool:
    """Whether the entry is of the worst class."""
    entry = missing.entries[i]
    return bool(entry.work > 0.0 and entry.redundancy == worst)


@inner_njit
def _hot_device(
    layout: Layout, pg_devices: Int32Array, shift: int, missing: Missing, worst: int, share: float
) -> int:
    """The device that the hot process takes: an entry of the worst class, a group, a slot of it."""
    n = pg_devices.shape[1]
    count = 0
    for i in range(missing.counter[SIZE]):
        count += _is_hot(missing, i, worst)
    at = int(share * count)
    share = share * count - at
    for i in range(missing.counter[SIZE]):
        if _is_hot(missing, i, worst):
            if at == 0:
                entry = missing.entries[i]
                group = wide(entry.slot) >> shift
                if entry.slot == ALONE:
                    held = wide(layout.slot_count[entry.device])
                    which = int(share * held)
                    share = share * held - which
                    group = wide(layout.slots[entry.device, which]) >> shift
                return int(pg_devices[group, int(share * n)])
            at -= 1
    return -1


@inner_njit
def _hot_chance(
    layout: Layout, pg_devices: Int32Array, shift: int, missing: Missing, worst: int, device: int
) -> float:
    """The chance that `_hot_device` is this one."""
    n = pg_devices.shape[1]
    count, found = 0, 0.0
    for i in range(missing.counter[SIZE]):
        if not _is_hot(missing, i, worst):
            continue
        count += 1
        entry = missing.entries[i]
        if entry.slot != ALONE:
            group = wide(entry.slot) >> shift
            for slot in range(n):
                if pg_devices[group, slot] == device:
                    found += 1.0 / n
            continue
        held, ours = wide(layout.slot_count[entry.device]), wide(layout.slot_count[device])
        a = b = common = 0
        while a < held and b < ours:
            left = layout.slots[entry.device, a] >> shift
            right = layout.slots[device, b] >> shift
            common += left == right
            a += left <= right
            b += right <= left
        found += common / (held * n)
    return found / count


@inner_njit
def _excursion(
    rules: Records,
    layout: Layout,
    pg_devices: Int32Array,
    missing: Missing,
    rate_per_s: float,
    hot_per_s: float,
    key: np.uint64,
    number: int,
    log: Records,
    sums: Float64Array,
) -> int:
    shift, devices = wide(rules.shift), wide(rules.device_count)
    natural_per_s = rate_per_s * devices
    missing.now[0] = 0.0
    missing.counter[SIZE] = 0
    device = wide(uniform(key, STREAM_FIRST, 0, 0) * devices)
    if not fail_device(rules, layout, missing, device):
        return NEEDS_ROOM
    drawn, log_weight, lost = 0, 0.0, 0
    while missing.counter[SIZE] > 0:
        now = missing.now[0]
        until_s = _next_event_s(rules, missing)
        step = exponential(key, STREAM_GAP, 0, drawn) / (natural_per_s + hot_per_s)
        drawn += 1
        if now + step >= until_s:
            log_weight += hot_per_s * (until_s - now)
            advance(rules, layout, missing, until_s)
            continue
        log_weight += hot_per_s * step
        advance(rules, layout, missing, now + step)
        worst = wide(_worst(missing))
        is_hot = uniform(key, STREAM_CHOICE, 0, drawn) * (natural_per_s + hot_per_s) < hot_per_s
        share = uniform(key, STREAM_CHOICE, 1, drawn)
        device = wide(share * devices)
        if is_hot:
            device = wide(_hot_device(layout, pg_devices, shift, missing, worst, share))
        chance = _hot_chance(layout, pg_devices, shift, missing, worst, device)
        log_weight -= np.log1p(hot_per_s * chance / rate_per_s)
        if is_down(missing, device):
            continue
        if not fail_device(rules, layout, missing, device):
            return NEEDS_ROOM
        lost = lose_groups(rules, layout, missing, device, number, log)
        if lost > 0:
            break
    weight = exp(log_weight)
    sums[LENGTH] += weight * missing.now[0]
    if lost > 0:
        sums[HITS] += 1.0
        sums[WEIGHT] += weight
        sums[WEIGHT_2] += weight * weight
        sums[GROUPS] += weight * lost
        sums[GROUPS_2] += (weight * lost) ** 2
    return DONE


@njit
def run_excursions(
    rules: Records,
    layout: Layout,
    pg_devices: Int32Array,
    missing: Missing,
    rate_per_s: float,
    hot_per_s: float,
    seed: int,
    first: int,
    count: int,
    log: Records,
    sums: Float64Array,
) -> int:
    """Runs excursions and adds to `sums`; DONE, or NEEDS_ROOM."""
    missing.counter[:] = 0
    sums[:] = 0.0
    for number in range(first, first + count):
        key = np.uint64(trial_key(seed, number))
        status = _excursion(
            rules, layout, pg_devices, missing, rate_per_s, hot_per_s, key, number, log, sums
        )
        if status != DONE:
            return status
    return DONE


def estimate_rare_loss(
    scenario: Scenario,
    *,
    excursions: int,
    options: OverlapOptions | None = None,
    seed: int | None = None,
    progress: Progress | None = None,
) -> RareEstimate:
    """Estimate losses however rare they are.

    Args:
        scenario: What to simulate; its devices have one constant rate of failure.
        excursions: How many; the standard error falls with the square root.
        options: As of `simulate_durability`, but not unlimited chunks.
        seed: Of placement and of the excursions; by default the scenario's.
        progress: As that of `run`, in excursions.

    Raises:
        ScenarioError: This method does not cover the scenario.
    """
    options = options or OverlapOptions()
    seed = scenario.run.seed if seed is None else seed
    made = OverlapRun(scenario, options, seed=seed, progress=progress)
    rules = made.model.rules
    rate_per_s = _constant_rate_per_s(scenario, made)
    window_s = float(rules["detection_s"]) + 1.0 / float(rules["runs_per_s"])
    down = rate_per_s * int(rules["device_count"]) * window_s
    if down > _MOST_DOWN:
        text = (
            f"makes {int(rules['device_count']):,} devices, of which {down:.3g} are being rebuilt"
            " at any time: it is never whole; simulate a part of it, or leave --rare out"
        )
        raise ScenarioError(scenario.name, [Problem("cluster.devices_per_node", text)])
    hot_per_s = max(1.0, 0.75 * int(rules["sure"])) / window_s
    sums, total = np.zeros(SUMS), np.zeros(SUMS)
    missing, log = build_missing(rules, 4_096), np.zeros(0, LOSS)
    for first in range(0, excursions, _BLOCK):
        count = min(_BLOCK, excursions - first)
        while (
            run_excursions(
                rules,
                made.model.layout,
                made.model.pg_devices,
                missing,
                rate_per_s,
                hot_per_s,
                seed,
                first,
                count,
                log,
                sums,
            )
            == NEEDS_ROOM
        ):
            missing = build_missing(rules, 2 * len(missing.entries))
        total += sums
        if progress:
            progress("excursions", float(first + count), float(excursions))
    natural_per_s = rate_per_s * int(rules["device_count"])
    cycle_s = 1.0 / natural_per_s + float(total[LENGTH]) / excursions
    return _estimate(total, excursions, YEAR_S / cycle_s)


def _constant_rate_per_s(scenario: Scenario, made: OverlapRun) -> float:
    cohorts, laws = made.population.cohorts, made.population.physics.laws
    if made.model.rules["unlimited"]:
        text = "is unlimited: rare losses are estimated with groups; use placed or clustered"
        raise ScenarioError(scenario.name, [Problem("layout", text)])
    if len(cohorts) != 1 or bool(cohorts["ages"].any()) or not laws["scale_s"][0] > 0:
        text = (
            "has several laws of life, or one with age; rare losses are estimated for devices of"
            " one constant rate: give one afr_per_year and life_shape = 1, or leave --rare out"
        )
        raise ScenarioError(scenario.name, [Problem("device.life_shape", text)])
    if laws["scale_s"][0] == inf:
        text = "is 0, so that nothing is ever lost; give a rate above 0"
        raise ScenarioError(scenario.name, [Problem("device.afr_per_year", text)])
    return 1.0 / float(laws["scale_s"][0])


def _estimate(total: Float64Array, excursions: int, per_year: float) -> RareEstimate:
    """The figures from the sums; `per_year` excursions begin in a year."""

    def mean_and_error(first: int, second: int) -> tuple[float, float]:
        mean = float(total[first]) / excursions
        variance = max(0.0, float(total[second]) / excursions - mean**2)
        return mean * per_year, sqrt(variance / excursions) * per_year

    rate, error = mean_and_error(WEIGHT, WEIGHT_2)
    groups, groups_error = mean_and_error(GROUPS, GROUPS_2)
    return RareEstimate(
        excursions=excursions,
        hits=int(total[HITS]),
        loss_per_year=-expm1(-rate),
        lower=-expm1(-max(0.0, rate - 1.96 * error)),
        upper=-expm1(-(rate + 1.96 * error)) if total[HITS] else 1.0,
        groups_lost_per_year=groups,
        groups_lost_error=groups_error,
        relative_error=error / rate if rate else inf,
    )
