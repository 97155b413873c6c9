"""What fails: laws of the life of devices, and incidents that take nodes away.

Both are tables, so that one engine has every kind of failure. A law of life is a Weibull law, or a
hazard that is constant by age in pieces: the bathtub, and what is found in the field. A life that
begins at an age is drawn given that the device got so old.

An incident takes away nodes of one domain at a time: a node, a rack, a power domain of several
racks, a zone, a region, or, as a burst, nodes scattered over the whole cluster. It comes at random,
with a mean gap after the end of the last one in this domain, or by a calendar, domain after domain
within each period: maintenance. Each node of the domain is hit with `hit_share`, all for the same
time; of those hit, `death_share` lose their devices: they did not survive the power-on, or somebody
wiped them. A node that is hit while away stays away for the longer of the two.
"""

from typing import NamedTuple

import numpy as np

from exastore.erasure.jit import inner_njit, njit
from exastore.metadata.core.topology import Topology, Uint8Array
from exastore.sim.scenario import Scenario
from exastore.sim.state import Records
from exastore.sim.streams import (
    STREAM_AGE,
    STREAM_DEVICE_LIFE,
    STREAM_DURATION,
    STREAM_DURATION_ROW,
    STREAM_GAP,
    STREAM_LAW,
    bits64,
    exponential,
    trial_key,
    uniform,
    wide,
)
from exastore.sim.trace import trace_events
from exastore.sim.units import YEAR_S
from exastore.sim.user import call_life, life_address

#: One model of device. Weibull if `end_piece` == `first_piece`; `scale_s` is inf for devices that
#: never fail. At time zero ages are uniform between `age_min_s` and `age_max_s`; `until`: the
#: shares of the models up to this one. `life_address`: of a user's function instead; 0: none.
LAW = np.dtype(
    [
        ("scale_s", "f8"),
        ("shape", "f8"),
        ("age_min_s", "f8"),
        ("age_max_s", "f8"),
        ("until", "f8"),
        ("first_piece", "i8"),
        ("end_piece", "i8"),
        ("life_address", "i8"),
    ]
)
#: A hazard from this age on; `before`: the integral of the hazard up to it.
PIECE = np.dtype([("from_s", "f8"), ("per_s", "f8"), ("before", "f8")])
#: `mean_gap_s`: inf if it never comes; `period_s`: 0 if it comes at random. Domain d of
#: `domain_count` has the nodes from d * `nodes_per_domain` on, or, with a `stride` above 1, every
#: `stride`-th node from d on; a burst has `burst_max` above 0, and
#: `rack_affinity` says how often the next node is in the rack of the one before. `first_counter`:
#: where its domains begin in `State.incident_draw`.
INCIDENT = np.dtype(
    [
        ("mean_gap_s", "f8"),
        ("period_s", "f8"),
        ("hit_share", "f8"),
        ("death_share", "f8"),
        ("rack_affinity", "f8"),
        ("nodes_per_domain", "i8"),
        ("stride", "i8"),
        ("domain_count", "i8"),
        ("burst_min", "i8"),
        ("burst_max", "i8"),
        ("nodes_per_rack", "i8"),
        ("first_duration", "i8"),
        ("first_counter", "i8"),
        ("gives_up", "u1"),
    ]
)
#: A row of a law of durations: drawn if the uniform number is below `until`; exponential with this
#: mean, or just that long.
DURATION = np.dtype([("until", "f8"), ("value_s", "f8"), ("is_exponential", "u1")])
#: A failure of a device that is played back.
TRACED = np.dtype([("time_s", "f8"), ("device", "i8")])
#: An incident's entity: the kind above, the domain below.
DOMAIN_BITS = 28


class Physics(NamedTuple):
    """The tables; they do not change during a trial.

    Attributes:
        laws: Records of LAW.
        pieces: Records of PIECE.
        incidents: Records of INCIDENT.
        durations: Records of DURATION.
        traced: Records of TRACED.
    """

    laws: Records
    pieces: Records
    incidents: Records
    durations: Records
    traced: Records


@njit
def _hazard_until(physics: Physics, law: int, age_s: float) -> float:
    """The integral of a law's hazard from 0 to an age."""
    row = physics.laws[law]
    if row.first_piece == row.end_piece:
        return float((age_s / row.scale_s) ** row.shape)
    at = row.first_piece
    while at + 1 < row.end_piece and physics.pieces[at + 1].from_s <= age_s:
        at += 1
    piece = physics.pieces[at]
    return float(piece.before + (age_s - piece.from_s) * piece.per_s)


@njit
def life_s(
    physics: Physics, key: np.uint64, law: int, device: int, draw: int, age_s: float
) -> float:
    """How much longer a device of this age lives."""
    row = physics.laws[law]
    if row.life_address != 0:
        stream = bits64(key, wide(STREAM_DEVICE_LIFE), wide(device), wide(draw))
        return max(0.0, float(call_life(row.life_address, stream, age_s)))
    if row.scale_s == np.inf:
        return np.inf
    total = exponential(key, STREAM_DEVICE_LIFE, device, draw)
    if age_s > 0.0:
        total += _hazard_until(physics, law, age_s)
    if row.first_piece == row.end_piece:
        end = row.scale_s * total if row.shape == 1.0 else row.scale_s * total ** (1.0 / row.shape)
        return float(max(0.0, end - age_s))
    at = row.first_piece
    while at + 1 < row.end_piece and physics.pieces[at + 1].before <= total:
        at += 1
    piece = physics.pieces[at]
    if piece.per_s == 0.0:
        return np.inf
    return float(max(0.0, piece.from_s + (total - piece.before) / piece.per_s - age_s))


@inner_njit
def age_at_start_s(physics: Physics, key: np.uint64, law: int, device: int) -> float:
    """The age of a device at time zero."""
    row = physics.laws[law]
    if row.age_max_s == 0.0:
        return 0.0
    share = uniform(key, STREAM_AGE, device, 0)
    return float(row.age_min_s + share * (row.age_max_s - row.age_min_s))


@inner_njit
def duration_s(physics: Physics, key: np.uint64, incident: int, address: int, draw: int) -> float:
    """How long an incident lasts; `address` is that of its kind and domain."""
    at = physics.incidents[incident].first_duration
    if physics.durations[at].until < 1.0:
        share = uniform(key, STREAM_DURATION_ROW, address, draw)
        while physics.durations[at].until < share:
            at += 1
    row = physics.durations[at]
    if row.is_exponential == 0:
        return float(row.value_s)
    return float(row.value_s * exponential(key, STREAM_DURATION, address, draw))


@inner_njit
def gap_s(physics: Physics, key: np.uint64, incident: int, address: int, draw: int) -> float:
    """How long after the end of one incident in a domain the next one comes."""
    mean = float(physics.incidents[incident].mean_gap_s)
    if mean == np.inf:
        return np.inf
    return mean * exponential(key, STREAM_GAP, address, draw)


@njit
def _draw_laws(physics: Physics, key: np.uint64, node_of: Records, law: Uint8Array) -> None:
    for device in range(len(law)):
        share = uniform(key, STREAM_LAW, int(node_of[device]), 0)
        at = 0
        while at + 1 < len(physics.laws) and physics.laws[at].until < share:
            at += 1
        law[device] = at


def draw_laws(physics: Physics, topology: Topology, *, seed: int, trial: int) -> Uint8Array:
    """Shape (D,): the model of each device. Nodes are bought as one: all devices of one model."""
    law = np.zeros(topology.device_count, np.uint8)
    if len(physics.laws) > 1:
        # From Python a kernel's result comes as an int, which may be more than numba's.
        key = np.uint64(trial_key(seed, trial))
        _draw_laws(physics, key, topology.device_node, law)
    return law


def weibull_scale_s(afr_per_year: float, shape: float, horizon_years: float) -> float:
    """Scale of a Weibull law such that survival to the horizon H is (1 - AFR)**H."""
    if afr_per_year == 0:
        return float("inf")
    horizon = horizon_years if shape != 1.0 else 1.0
    return float(horizon / (-horizon * np.log1p(-afr_per_year)) ** (1.0 / shape) * YEAR_S)


def build_physics(scenario: Scenario) -> Physics:
    """The tables of a scenario."""
    models = scenario.models
    laws = np.zeros(len(models), LAW)
    pieces: list[tuple[float, float, float]] = []
    total = sum(model.share for model in models)
    until = 0.0
    for number, (law, model) in enumerate(zip(laws, models, strict=True)):
        until += model.share / total
        law["until"] = until
        law["scale_s"] = weibull_scale_s(
            model.afr_per_year, model.life_shape, model.afr_horizon_years
        )
        law["shape"] = model.life_shape
        if model.life:
            key = f"model.{number}.life"
            law["life_address"] = life_address(model.life, model.life_params, key)
        law["age_min_s"], law["age_max_s"] = (
            model.age_min_years * YEAR_S,
            model.age_max_years * YEAR_S,
        )
        law["first_piece"] = len(pieces)
        before = 0.0
        for i, (age, afr) in enumerate(
            zip(model.hazard_from_years, model.hazard_afr_per_year, strict=True)
        ):
            if i:
                from_s, per_s, earlier = pieces[-1]
                before = earlier + (age * YEAR_S - from_s) * per_s
            pieces.append((age * YEAR_S, float(-np.log1p(-afr)) / YEAR_S, before))
        law["end_piece"] = len(pieces)
        if model.hazard_from_years:
            law["scale_s"] = 0.0
    traced = np.zeros(0, TRACED)
    if scenario.device.trace:
        laws["scale_s"] = np.inf
        traced = np.array(trace_events(scenario), TRACED)
    incidents, durations = _incident_tables(scenario)
    return Physics(laws, np.array(pieces, PIECE), incidents, durations, traced)


def _incident_tables(scenario: Scenario) -> tuple[Records, Records]:
    sections = scenario.incidents
    cluster = scenario.tree
    incidents = np.zeros(len(sections), INCIDENT)
    durations: list[tuple[float, float, int]] = []
    counter = 0
    for row, section in zip(incidents, sections, strict=True):
        row["mean_gap_s"] = YEAR_S / section.per_year if section.per_year else np.inf
        row["period_s"] = section.every_years * YEAR_S
        row["hit_share"], row["death_share"] = section.hit_share, section.death_share
        row["nodes_per_rack"] = cluster.nodes_per_rack
        row["nodes_per_domain"] = scenario.nodes_per_domain(section)
        row["domain_count"] = scenario.incident_domains(section)
        row["stride"] = section.upgrade_domains if section.level == "upgrade" else 1
        if section.level == "cluster":
            row["burst_min"], row["burst_max"] = section.burst_min, section.burst_max
            row["rack_affinity"] = section.rack_affinity
        row["first_duration"], row["first_counter"] = len(durations), counter
        row["gives_up"] = section.gives_up
        counter += int(row["domain_count"])
        values = section.durations_s or (section.duration_s,)
        shares = section.duration_shares or (1.0,)
        until = np.cumsum(shares) / np.sum(shares)
        until[-1] = 1.0
        durations += [
            (float(end), float(value), int(section.duration_law == "exponential"))
            for end, value in zip(until, values, strict=True)
        ]
    return incidents, np.array(durations, DURATION)
