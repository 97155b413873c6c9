"""Latent sector errors: bad places that nobody sees until a scrub or a rebuild reads them. Kernels.

The law. The first error of a device's life comes at a constant hazard; from then on further ones
come at a rate that is drawn once per life, with the mean of the scenario and the law of half the
square of an exponential variate: few devices have most of the errors. With 0.0325 a year and 14 a
year it gives what was published of nearline disks (Bairavasundaram, thesis 3.3.1 and 3.3.3;
measured / published): disks with an error after 12 months 3.2 / 3.15 %, after 32 months 8.3 /
8.5 %; errors of those 19.6 / 19.7 on average, 4 / 3 in the median; another within six months of the
first 64 / 67 %. `tests/simulation/test_sim_latent.py` holds this.

A scrub reads every run once per period, each at its own phase, and repairs what it finds. So do
rebuilds. Errors lie anywhere on a device, each in a stripe of its own.

Exactness. No event is made of an error. Given a life's onset and rate, the errors in one run are a
Poisson process; those that a rebuild meets in one source are those since the scrub last passed the
run or since the onset, a Poisson number; those in all sources together are one Poisson number with
the sum of the means, and each lies in a source with the odds of its mean (superposition and
marking). So one number is drawn when a rebuild ends, and more only if it is not 0: the same law as
with an event per error. Three things are left out, of a relative size of a scrub period over the
time between losses in one PG, below 1 % at an AFR of 2 %: what an earlier rebuild in the same
period had repaired is met again; a run that was written since the scrub passed its place counts
from the pass; and what is lost to a further failure during a rebuild is judged at its end. Two
errors in one stripe of a PG are one in the number of its stripes, and left out.
"""

from math import exp, floor

import numpy as np

from exastore.erasure.jit import inner_njit, njit
from exastore.metadata.core.redundancy_kernels import CodeColumns
from exastore.sim.accounts import LATENT_ERRORS, STRIPES_LOST, is_undecodable, log_loss
from exastore.sim.degraded import find
from exastore.sim.state import CHUNK_RUNS_REBUILT, NONE, Records, State
from exastore.sim.streams import (
    STREAM_LATENT_ERRORS,
    STREAM_LATENT_ONSET,
    STREAM_LATENT_PLACE,
    STREAM_LATENT_RATE,
    STREAM_SCRUB,
    exponential,
    uniform,
    wide,
)

#: A mean from which on the number of errors is taken to be the mean.
MANY = 500.0
#: Of a draw's address: bits for the number of the error.
ERROR_BITS = 16


@njit
def onset_s(model: Records, key: np.uint64, device: int, life: int, born_s: float) -> float:
    """When a life's first error comes; inf if it never has any."""
    if model.latent_onset_per_s == 0.0:
        return np.inf
    wait = exponential(key, STREAM_LATENT_ONSET, device, life) / model.latent_onset_per_s
    return float(born_s + wait)


@njit
def errors_per_byte_s(model: Records, key: np.uint64, device: int, life: int) -> float:
    """At which rate a life has errors from its onset on."""
    x = exponential(key, STREAM_LATENT_RATE, device, life)
    return float(model.latent_per_byte_s * 0.5 * x * x)


@inner_njit
def _mean(
    model: Records,
    state: State,
    key: np.uint64,
    device: int,
    pg: int,
    read_bytes: float,
    now: float,
) -> float:
    """How many errors a rebuild is to expect in a run of this device of which it reads so much."""
    mean = model.read_errors_per_byte * read_bytes
    age_s = now - state.devices[device].latent_from_s
    if age_s > 0.0:
        if model.scrub_period_s > 0.0:
            passes = now / model.scrub_period_s + uniform(key, STREAM_SCRUB, device, pg)
            age_s = min(age_s, (passes - floor(passes)) * model.scrub_period_s)
        life = wide(state.devices[device].draw) - 1
        mean += age_s * read_bytes * errors_per_byte_s(model, key, wide(device), life)
    return float(mean)


@inner_njit
def meet_errors(
    code: CodeColumns | None,
    model: Records,
    state: State,
    key: np.uint64,
    device: int,
    row: int,
    now: float,
) -> None:
    """A rebuild is about to end: the errors that it met in its sources, and what they cost.

    A stripe with an error is rebuilt from other chunks unless the chunks of the PG that are gone
    for good and this one leave it undecodable; then its data is lost.
    """
    run = wide(state.devices[device].active)
    slot = wide(state.runs[run].slot)
    pg = slot >> model.shift
    read_bytes = model.slot_bytes * state.runs[run].read_parts / model.m
    total = 0.0
    for source in state.sources[run]:
        if source == NONE:
            break
        total += _mean(model, state, key, wide(source), pg, read_bytes, now)
    draw = state.counter[CHUNK_RUNS_REBUILT]
    share = uniform(key, STREAM_LATENT_ERRORS, slot, draw)
    term = exp(-total)
    if share < term:
        return
    count = 0
    while share >= term and count < total + MANY:
        share -= term
        count += 1
        term *= total / count
    if total > MANY:
        count = int(total)
    state.timeline[row, LATENT_ERRORS] += count
    at = find(state.degraded, pg)
    if state.degraded[at].lost == 1:
        return
    lost = 0
    for i in range(count):
        place = total * uniform(key, STREAM_LATENT_PLACE, slot, (draw << ERROR_BITS) | i)
        index = _index_at(model, state, key, run, pg, place, read_bytes, now)
        if index != NONE:
            gone = state.degraded[at].gone | (np.int64(1) << index)
            lost += is_undecodable(code, model, state.room[0], gone)
    if lost > 0:
        state.timeline[row, STRIPES_LOST] += lost
        log_loss(state, pg, lost, now)


@inner_njit
def _index_at(
    model: Records,
    state: State,
    key: np.uint64,
    run: int,
    pg: int,
    place: float,
    read_bytes: float,
    now: float,
) -> int:
    """Which slot of the PG the source is in whose part of all errors holds this place."""
    for source in state.sources[run]:
        if source == NONE:
            break
        place -= _mean(model, state, key, wide(source), pg, read_bytes, now)
        if place <= 0.0:
            for index in range(state.pg_devices.shape[1]):
                if state.pg_devices[pg, index] == source:
                    return index
            break
    return NONE
