"""The trials of the overlap engine, and its unlimited chunks; the model stands in `overlap`."""

from math import inf

import numpy as np

from exastore.erasure.jit import inner_njit, njit
from exastore.sim.overlap import (
    ALONE,
    DONE,
    FAILURES,
    LOSSES,
    NEEDS_ROOM,
    OVERLAPS,
    SIZE,
    TRIALS_WITH_LOSS,
    YEARS_WITH_LOSS,
    Layout,
    Missing,
    add_entry,
    advance,
    fail_device,
    is_down,
    lose_groups,
)
from exastore.sim.state import Records
from exastore.sim.streams import trial_key, wide
from exastore.sim.superposed import Arrivals, Population, begin, next_failure, renew


@inner_njit
def _count_stripes(rules: Records, missing: Missing, domain: int) -> int:
    """Of the stripes with a chunk in `domain`, how many miss how many others.

    Column 0 of `missing.shares` gets the share that misses 0, 1, ... chunks in other domains: the
    n - 1 other chunks are in that many of the other domains, all choices alike, and in a domain
    with f failed devices of B a chunk is on one of them with f / B. Returns in how many other
    domains something is missing.
    """
    entries, shares, n = missing.entries, missing.shares, rules.n
    shares[:] = 0.0
    shares[0, 0] = 1.0
    hit = 0
    for i in range(missing.counter[SIZE]):
        other = entries[i].device // rules.domain_devices
        if entries[i].slot != ALONE or other == domain:
            continue
        failed, is_first = 0, True
        for j in range(missing.counter[SIZE]):
            if entries[j].slot == ALONE and entries[j].device // rules.domain_devices == other:
                failed += 1
                is_first = is_first and j >= i
        if not is_first:
            continue
        hit += 1
        share = failed / rules.domain_devices
        # Row: chosen domains with failures; column: chunks missing in them.
        for x in range(n - 1, 0, -1):
            for y in range(x, -1, -1):
                shares[x, y] += shares[x - 1, y] * (1.0 - share)
                if y > 0:
                    shares[x, y] += shares[x - 1, y - 1] * share
    for y in range(n):
        total = 0.0
        for x in range(y, n):
            # That just these x of the domains hit have a chunk, and the other ones have none.
            weight, others = shares[x, y], rules.domain_count - 1
            for i in range(hit):
                if i < x:
                    weight *= (n - 1 - i) / (others - i)
                else:
                    weight *= (rules.domain_count - n - (i - x)) / (others - i)
            total += max(0.0, weight)
        shares[n, y] = total
    return hit


@inner_njit
def _fail_unlimited(rules: Records, missing: Missing, device: int) -> int:
    """A device with unlimited chunks fails: the chunks missing in the stripes hit worst, or -1 if
    there is no room."""
    entries = missing.entries
    domain = device // rules.domain_devices
    most = 0
    for i in range(missing.counter[SIZE]):
        if entries[i].work > 0.0 and entries[i].device // rules.domain_devices != domain:
            most = max(most, rules.sure - entries[i].redundancy)
    hit = _count_stripes(rules, missing, domain)
    most = min(most, hit, rules.sure) + 1
    if missing.counter[SIZE] + most > len(entries):
        return -1
    for chunks in range(1, most + 1):
        share = missing.shares[rules.n, chunks - 1]
        if chunks == most:
            for further in range(chunks, rules.n):
                share += missing.shares[rules.n, further]
        # The worst class stands for the device, as it is the first to be whole.
        slot = ALONE if chunks == 1 else ALONE - 1
        add_entry(rules, missing, device, slot, share * rules.runs_per_device, rules.sure - chunks)
    return int(most)


@inner_njit
def _alone_until_s(rules: Records, missing: Missing) -> float:
    """When the only entry is rebuilt if nothing else fails; inf if there are more."""
    if missing.counter[SIZE] != 1:
        return inf
    entry = missing.entries[0]
    left = min(rules.device_runs_per_s * (rules.device_count - 1), float(rules.link_runs_per_s))
    return float(entry.noticed_s + 1.0 / min(rules.runs_per_s, left / entry.count))


@inner_njit
def _run_trial(
    population: Population,
    rules: Records,
    layout: Layout,
    arrivals: Arrivals,
    missing: Missing,
    key: np.uint64,
    trial: int,
    log: Records,
    events: Records,
) -> int:
    """One trial; see `run_block`."""
    counter = missing.counter
    renewed_after_s = rules.detection_s + 1.0 / rules.runs_per_s
    begin(population, arrivals, key)
    counter[SIZE] = 0
    year_lost = np.int64(-1)
    alone_until_s = inf
    while True:
        time_s, device = next_failure(population, arrivals, key, trial)
        if device < 0:
            return DONE
        if counter[SIZE] > 0:
            if alone_until_s <= time_s:
                counter[SIZE] = 0
            else:
                advance(rules, layout, missing, time_s)
        missing.now[0] = time_s
        is_new = counter[SIZE] == 0 or not is_down(missing, device)
        if len(arrivals.lives) > 0:
            law = wide(layout.law[device])
            if not renew(population, arrivals, key, device, law, time_s + renewed_after_s):
                return NEEDS_ROOM
        if not is_new:
            continue
        if counter[FAILURES] < len(events):
            event = events[counter[FAILURES]]
            event.trial, event.time_s, event.group = trial, time_s, device
        counter[FAILURES] += 1
        counter[OVERLAPS] += counter[SIZE] > 0
        lost = _fail(rules, layout, missing, device, trial, log)
        if lost < 0:
            return NEEDS_ROOM
        if lost > 0:
            counter[LOSSES] += 1
            counter[TRIALS_WITH_LOSS] += year_lost < 0
            year = np.int64(time_s / rules.period_s)
            is_whole_year = (year + 1) * rules.period_s <= rules.horizon_s * (1 + 1e-9)
            counter[YEARS_WITH_LOSS] += year > year_lost and is_whole_year
            year_lost = year
        alone_until_s = _alone_until_s(rules, missing)


@inner_njit
def _fail(
    rules: Records, layout: Layout, missing: Missing, device: int, trial: int, log: Records
) -> int:
    """A device fails: how many groups that loses, or -1 if there is no room."""
    if rules.unlimited == 1:
        worst = _fail_unlimited(rules, missing, device)
        if worst <= rules.sure:
            return min(worst, 0)
        at = missing.counter[LOSSES]
        if at < len(log):
            loss = log[at]
            loss.trial, loss.time_s, loss.group, loss.missing = trial, missing.now[0], -1, worst
        return 1
    is_alone = missing.counter[SIZE] == 0
    if not fail_device(rules, layout, missing, device):
        return -1
    return 0 if is_alone else lose_groups(rules, layout, missing, device, trial, log)


@njit
def run_block(
    population: Population,
    rules: Records,
    layout: Layout,
    arrivals: Arrivals,
    missing: Missing,
    seed: int,
    first_trial: int,
    trial_count: int,
    log: Records,
    events: Records,
) -> int:
    """Runs trials one after the other; what they counted is in `missing.counter`.

    Args:
        population: Who fails.
        rules: A record of RULES.
        layout: What devices hold.
        arrivals: Room for what is drawn.
        missing: Room for what is missing.
        seed: Of all trials.
        first_trial: The number of the first one.
        trial_count: How many.
        log: Records of LOSS, for the first losses.
        events: Records of LOSS, for the first failures, the device as the group; for tests.

    Returns:
        DONE, or NEEDS_ROOM if `missing.entries` or `arrivals.renewed` are too short.
    """
    missing.counter[:] = 0
    for trial in range(first_trial, first_trial + trial_count):
        key = np.uint64(trial_key(seed, trial))
        status = _run_trial(population, rules, layout, arrivals, missing, key, trial, log, events)
        if status != DONE:
            return status
    return DONE
