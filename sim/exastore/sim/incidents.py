"""Incidents: when they come and which nodes they hit. Kernels of the engine; see `physics`."""

import numpy as np

from exastore.erasure.jit import inner_njit
from exastore.sim.heap import event_code, push_far, push_near
from exastore.sim.physics import DOMAIN_BITS, Physics, duration_s, gap_s
from exastore.sim.rebuild import INCIDENT, NODE_DOWN
from exastore.sim.state import Records, State
from exastore.sim.streams import (
    STREAM_BURST_PLACE,
    STREAM_BURST_SIZE,
    STREAM_DEATH,
    STREAM_HIT,
    uniform,
    wide,
)


@inner_njit
def _hit(
    physics: Physics,
    state: State,
    key: np.uint64,
    incident: int,
    draw: int,
    node: int,
    now: float,
    up_s: float,
) -> None:
    """Marks a node for what comes over it now."""
    if state.nodes[node].absent == 1:
        return
    address = (incident << DOMAIN_BITS) | node
    share = physics.incidents[incident].death_share
    if share > 0.0 and uniform(key, STREAM_DEATH, address, draw) < share:
        state.nodes[node].pending_dies = 1
    if physics.incidents[incident].gives_up == 1:
        state.nodes[node].pending_gives_up = 1
    is_new = state.nodes[node].pending_up_s == 0.0
    state.nodes[node].pending_up_s = max(state.nodes[node].pending_up_s, up_s)
    if is_new:
        push_near(state, now, event_code(NODE_DOWN, node))


@inner_njit
def _burst(
    physics: Physics,
    state: State,
    key: np.uint64,
    incident: int,
    draw: int,
    now: float,
    up_s: float,
) -> None:
    """Hits nodes one after the other, often in the rack of the one before."""
    what = physics.incidents[incident]
    spread = what.burst_max - what.burst_min + 1
    address = incident << DOMAIN_BITS
    size = what.burst_min + int(uniform(key, STREAM_BURST_SIZE, address, draw) * spread)
    first, node_count = 0, len(state.nodes)
    for i in range(size):
        address = (incident << DOMAIN_BITS) | i
        if i == 0 or uniform(key, STREAM_BURST_SIZE, address + 1, draw) >= what.rack_affinity:
            chosen = int(uniform(key, STREAM_BURST_PLACE, address, draw) * node_count)
            first = chosen // what.nodes_per_rack * what.nodes_per_rack
            node = chosen
        else:
            place = uniform(key, STREAM_BURST_PLACE, address, draw)
            node = first + int(place * what.nodes_per_rack)
        _hit(physics, state, key, incident, draw, node, now, up_s)


@inner_njit
def push_incident(
    physics: Physics, model: Records, state: State, key: np.uint64, entity: int, after: float
) -> None:
    """Draws when an incident comes next in a domain, after the end of the last one."""
    incident, domain = entity >> DOMAIN_BITS, entity & ((1 << DOMAIN_BITS) - 1)
    what = physics.incidents[incident]
    at = what.first_counter + domain
    draw = int(state.incident_draw[at])
    state.incident_draw[at] = draw + 1
    if what.period_s > 0.0:
        time = what.period_s * (draw + domain / what.domain_count)
    else:
        time = after + gap_s(physics, key, incident, entity, draw)
    if time <= model.horizon_s:
        push_far(state, time, event_code(INCIDENT, entity))


@inner_njit
def befall(
    physics: Physics, model: Records, state: State, key: np.uint64, entity: int, now: float
) -> None:
    """An incident happens: its nodes go down, one event each, and its next one is drawn."""
    incident, domain = entity >> DOMAIN_BITS, entity & ((1 << DOMAIN_BITS) - 1)
    what = physics.incidents[incident]
    draw = int(state.incident_draw[what.first_counter + domain]) - 1
    up_s = now + duration_s(physics, key, incident, entity, draw)
    if what.burst_max > 0:
        _burst(physics, state, key, incident, draw, now, up_s)
    else:
        stride = wide(what.stride)
        first, end = domain, len(state.nodes)
        if stride == 1:
            first = domain * what.nodes_per_domain
            end = min(first + what.nodes_per_domain, len(state.nodes))
        for node in range(first, end, stride):
            address = (incident << DOMAIN_BITS) | node
            if what.hit_share >= 1.0 or uniform(key, STREAM_HIT, address, draw) < what.hit_share:
                _hit(physics, state, key, incident, draw, node, now, up_s)
    push_incident(physics, model, state, key, entity, up_s)
