"""Failures of a whole population, one by one, without a state for each device.

Devices of one law and one age are a cohort. The first failures of N such devices are the first
points of N Poisson processes of the intensity h(age + t), and the superposition of these processes
is one of intensity N h(age + t), each point of which belongs to any of the devices with equal odds.
So the next failure costs one exponential number, one inverse of the cumulated hazard and one
uniform device, whatever N is.

Laws:
1. The point of a device that has failed before is no failure if devices age: only the first point
   of each process counts. Its replacement is new; when it fails is drawn by itself and waits in a
   heap, in which there is nobody whose end is beyond the horizon.
2. Of devices that do not age, every point at which the device is in place is a failure: the process
   goes on for the replacement. What is not in place is said by the caller, who drops the point.
3. Every number has an address: (seed, trial, stream, cohort or device, how many before).
"""

from math import inf
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from exastore.erasure.jit import inner_njit
from exastore.metadata.core.topology import Float64Array, Int32Array, Int64Array, Topology
from exastore.sim.physics import Physics, draw_laws, life_s
from exastore.sim.scenario import Scenario
from exastore.sim.state import Records
from exastore.sim.streams import exponential, uniform
from exastore.sim.units import YEAR_S

#: Streams of this engine; those of the event engine count from 1.
STREAM_ARRIVAL = 201
STREAM_ARRIVAL_DEVICE = 202
#: Devices of one model whose ages spread are this many cohorts, each of one age.
AGE_COHORTS = 16

#: `law`: of `Physics.laws`. Members are `members[first : first + count]`. `before`: the hazard
#: cumulated up to `age_s`. `ages`: whether the hazard depends on the age.
COHORT = np.dtype(
    [
        ("law", "i8"),
        ("first", "i8"),
        ("count", "i8"),
        ("age_s", "f8"),
        ("before", "f8"),
        ("ages", "i8"),
    ]
)
#: What is drawn of a cohort: the cumulated hazard of one device at its next point, when that is,
#: and how many points were drawn.
ARRIVAL = np.dtype([("hazard", "f8"), ("next_s", "f8"), ("drawn", "i8")])
#: A replacement that will fail.
RENEWED = np.dtype([("time_s", "f8"), ("device", "i8")])


class Population(NamedTuple):
    """Who can fail; does not change.

    Attributes:
        physics: The laws.
        cohorts: Records of COHORT.
        members: Shape (D,). The devices, cohort by cohort.
        horizon_s: Shape (1,). What happens later does not happen.
    """

    physics: Physics
    cohorts: Records
    members: Int32Array
    horizon_s: Float64Array


class Arrivals(NamedTuple):
    """What is drawn in one trial; each worker has its own.

    Attributes:
        cohorts: Records of ARRIVAL.
        renewed: Records of RENEWED: a binary heap.
        size: Shape (1,). Of the heap.
        failed_in: Shape (D,), or empty if nothing ages. The last trial, plus 1, in which the first
            life of the device ended.
        lives: Shape (D,), or empty. How many lives were drawn for the device in that trial.
    """

    cohorts: Records
    renewed: Records
    size: Int64Array
    failed_in: Int64Array
    lives: Int32Array


@inner_njit
def age_of(physics: Physics, law: int, hazard: float) -> float:
    """The age by which a law's hazard has cumulated to this."""
    row = physics.laws[law]
    if row.scale_s == np.inf:
        return np.inf
    if row.first_piece == row.end_piece:
        if row.shape == 1.0:
            return float(row.scale_s * hazard)
        return float(row.scale_s * hazard ** (1.0 / row.shape))
    at = row.first_piece
    while at + 1 < row.end_piece and physics.pieces[at + 1].before <= hazard:
        at += 1
    piece = physics.pieces[at]
    if piece.per_s == 0.0:
        return np.inf
    return float(piece.from_s + (hazard - piece.before) / piece.per_s)


@inner_njit
def _draw(population: Population, arrivals: Arrivals, key: np.uint64, cohort: int) -> None:
    """Draws the next point of a cohort."""
    row = population.cohorts[cohort]
    drawn = arrivals.cohorts[cohort].drawn
    step = exponential(key, STREAM_ARRIVAL, cohort, drawn) / row.count
    hazard = arrivals.cohorts[cohort].hazard + step
    arrivals.cohorts[cohort].hazard = hazard
    arrivals.cohorts[cohort].next_s = (
        age_of(population.physics, row.law, hazard + row.before) - row.age_s
    )
    arrivals.cohorts[cohort].drawn = drawn + 1


@inner_njit
def begin(population: Population, arrivals: Arrivals, key: np.uint64) -> None:
    """Begins a trial."""
    arrivals.size[0] = 0
    for cohort in range(len(population.cohorts)):
        arrivals.cohorts[cohort].hazard = 0.0
        arrivals.cohorts[cohort].drawn = 0
        _draw(population, arrivals, key, cohort)


@inner_njit
def _push(arrivals: Arrivals, time_s: float, device: int) -> None:
    heap, at = arrivals.renewed, arrivals.size[0]
    arrivals.size[0] += 1
    while at > 0 and heap[(at - 1) >> 1].time_s > time_s:
        parent = (at - 1) >> 1
        heap[at].time_s, heap[at].device = heap[parent].time_s, heap[parent].device
        at = parent
    heap[at].time_s, heap[at].device = time_s, device


@inner_njit
def _pop(arrivals: Arrivals) -> None:
    heap = arrivals.renewed
    size = arrivals.size[0] - 1
    arrivals.size[0] = size
    time_s, device, at = heap[size].time_s, heap[size].device, 0
    while 2 * at + 1 < size:
        child = 2 * at + 1
        if child + 1 < size and heap[child + 1].time_s < heap[child].time_s:
            child += 1
        if heap[child].time_s >= time_s:
            break
        heap[at].time_s, heap[at].device = heap[child].time_s, heap[child].device
        at = child
    heap[at].time_s, heap[at].device = time_s, device


@inner_njit
def next_failure(
    population: Population, arrivals: Arrivals, key: np.uint64, trial: int
) -> tuple[float, int]:
    """When the next device fails, and which; inf and -1 if none does before the horizon."""
    horizon_s = population.horizon_s[0]
    while True:
        best, time_s = 0, arrivals.cohorts[0].next_s
        for cohort in range(1, len(population.cohorts)):
            if arrivals.cohorts[cohort].next_s < time_s:
                best, time_s = cohort, arrivals.cohorts[cohort].next_s
        if arrivals.size[0] > 0 and arrivals.renewed[0].time_s < time_s:
            time_s, device = arrivals.renewed[0].time_s, arrivals.renewed[0].device
            _pop(arrivals)
            return float(time_s), int(device)
        if time_s >= horizon_s:
            return inf, -1
        row = population.cohorts[best]
        share = uniform(key, STREAM_ARRIVAL_DEVICE, best, arrivals.cohorts[best].drawn)
        device = population.members[row.first + int(share * row.count)]
        _draw(population, arrivals, key, best)
        if row.ages == 0:
            return float(time_s), int(device)
        if arrivals.failed_in[device] != trial + 1:
            arrivals.failed_in[device] = trial + 1
            arrivals.lives[device] = 0
            return float(time_s), int(device)


@inner_njit
def renew(
    population: Population, arrivals: Arrivals, key: np.uint64, device: int, law: int, from_s: float
) -> bool:
    """A new device of the law is in place from then on; False if the heap is full.

    Of one that does not age nothing is drawn: see law 2.
    """
    row = population.physics.laws[law]
    if row.shape == 1.0 and row.end_piece - row.first_piece <= 1:
        return True
    drawn = arrivals.lives[device] + 1
    arrivals.lives[device] = drawn
    time_s = from_s + life_s(population.physics, key, law, device, drawn, 0.0)
    if time_s < population.horizon_s[0]:
        if arrivals.size[0] == len(arrivals.renewed):
            return False
        _push(arrivals, time_s, device)
    return True


def build_population(
    scenario: Scenario, physics: Physics, topology: Topology, *, seed: int
) -> tuple[Population, NDArray[np.uint8]]:
    """The cohorts, and the law of each device. Shape: (D,).

    Which node has which model is drawn once for all trials. Ages that spread are taken at the
    middle of `AGE_COHORTS` equal parts, each part with as many devices as the others.
    """
    law_of = draw_laws(physics, topology, seed=seed, trial=0)
    rng = np.random.Generator(np.random.Philox(seed))
    cohorts: list[tuple[int, int, int, float, float, int]] = []
    members: list[Int32Array] = []
    first = 0
    for law, row in enumerate(physics.laws):
        devices = np.flatnonzero(law_of == law).astype(np.int32)
        ages = bool(row["shape"] != 1.0 or row["end_piece"] - row["first_piece"] > 1)
        parts = [devices]
        if ages and row["age_max_s"] > row["age_min_s"]:
            parts = np.array_split(rng.permutation(devices), AGE_COHORTS)
        for number, part in enumerate(parts):
            if len(part) == 0:
                continue
            middle = (number + 0.5) / len(parts)
            age_s = float(row["age_min_s"] + middle * (row["age_max_s"] - row["age_min_s"]))
            before = hazard_of(physics, law, age_s)
            cohorts.append((law, first, len(part), age_s, before, ages))
            members.append(np.sort(part))
            first += len(part)
    population = Population(
        physics=physics,
        cohorts=np.array(cohorts, COHORT),
        members=np.concatenate(members),
        horizon_s=np.array([scenario.run.years * YEAR_S]),
    )
    return population, law_of


def build_arrivals(population: Population) -> Arrivals:
    """Room for what one worker draws."""
    device_count = len(population.members)
    ages = bool(population.cohorts["ages"].any())
    return Arrivals(
        cohorts=np.zeros(len(population.cohorts), ARRIVAL),
        renewed=np.zeros(device_count if ages else 1, RENEWED),
        size=np.zeros(1, np.int64),
        failed_in=np.zeros(device_count if ages else 0, np.int64),
        lives=np.zeros(device_count if ages else 0, np.int32),
    )


def hazard_of(physics: Physics, law: int, age_s: float) -> float:
    """The hazard of a law, cumulated from 0 to an age."""
    row = physics.laws[law]
    if row["scale_s"] == inf:
        return 0.0
    if row["first_piece"] == row["end_piece"]:
        return float((age_s / row["scale_s"]) ** row["shape"])
    pieces = physics.pieces[row["first_piece"] : row["end_piece"]]
    piece = pieces[np.searchsorted(pieces["from_s"], age_s, side="right") - 1]
    return float(piece["before"] + (age_s - piece["from_s"]) * piece["per_s"])
