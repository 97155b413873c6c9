"""Latent errors in the plain twin: see `latent` for the law, `_reference` for the machine."""

from math import exp, inf
from typing import TYPE_CHECKING

import numpy as np

from exastore.sim._reference_draws import YEAR_S

if TYPE_CHECKING:
    from exastore.sim._reference import ReferenceTrial, Slot

_ONSET, _RATE, _ERRORS, _PLACE, _SCRUB = 12, 13, 14, 15, 16


def onset_s(trial: "ReferenceTrial", device: int, age: float) -> float:
    """From when on the life that begins now has errors, in the precision of the engine."""
    hazard = trial.scenario.latent.onset_per_year / YEAR_S
    if hazard == 0:
        return inf
    wait = trial.draws.exponential(_ONSET, device, trial.lives[device] - 1) / hazard
    return float(np.float32(trial.now - age + wait))


def _mean(trial: "ReferenceTrial", device: int, pg: int, read_bytes: float) -> float:
    latent = trial.scenario.latent
    mean = 8 * latent.read_error_per_bit * read_bytes
    age = trial.now - trial.latent_from[device]
    if age <= 0:
        return mean
    if latent.scrub_period_s > 0:
        passes = trial.now / latent.scrub_period_s + trial.draws.uniform(_SCRUB, device, pg)
        age = min(age, passes % 1.0 * latent.scrub_period_s)
    x = trial.draws.exponential(_RATE, device, trial.lives[device] - 1)
    per_byte = latent.errors_per_year / YEAR_S / trial.scenario.device.capacity_bytes
    return mean + age * read_bytes * (per_byte * 0.5 * x * x)


def meet_errors(trial: "ReferenceTrial", slot: "Slot", sources: list[int], share: float) -> None:
    """What the rebuild of a slot met in its sources."""
    pg, index = slot
    read_bytes = trial.model["slot_bytes"] * share
    means = [_mean(trial, source, pg, read_bytes) for source in sources]
    total = 0.0
    for mean in means:
        total += mean
    address, draw = pg << trial.model["shift"] | index, int(trial.totals["rebuilds"])
    left, term, count = trial.draws.uniform(_ERRORS, address, draw), exp(-total), 0
    while left >= term and count < total + 500:
        left -= term
        count += 1
        term *= total / count
    if total > 500:
        count = int(total)
    trial.totals["latent_errors"] += count
    if pg in trial.lost_pgs:
        return
    lost = 0
    for number in range(count):
        place = total * trial.draws.uniform(_PLACE, address, draw << 16 | number)
        for source, mean in zip(sources, means, strict=True):
            place -= mean
            if place <= 0:
                lost += _is_lost(trial, pg, source)
                break
    if lost:
        trial.totals["stripes_lost"] += lost
        trial.losses.append((trial.now, lost << 32 | pg))


def _is_lost(trial: "ReferenceTrial", pg: int, source: int) -> bool:
    """Whether a stripe is lost of which the source's chunk is bad."""
    row = trial.rows[pg].tolist()
    if source not in row:
        return False
    gone = {i for i in range(trial.code.n) if (pg, i) in trial.gone} | {row.index(source)}
    return not trial.code.decodable(sorted(gone))
