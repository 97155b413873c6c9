"""Links of nodes, racks and zones: what they give to a rebuild, and who uses them. Kernels.

Whole chunks: every source sends its part to the target. Pipelined: the sources form a chain in the
order of their slots, each adds its part to what it gets and sends one chunk on, the last one to the
target; the chain is as fast as its slowest hop. The bytes on all links are the same (ADR 0014).
"""

import numpy as np

from exastore.erasure.jit import inner_njit
from exastore.sim.state import NONE, Records, State
from exastore.sim.streams import wide


@inner_njit
def _hop_rate(
    model: Records,
    state: State,
    source: int,
    target: int,
    share: float,
    crossing: tuple[int, int, int],
) -> float:
    """What the links between two devices give to a rebuild that reads this share over them.

    `crossing`: how many such shares go into the target's node, rack and zone for it.
    """
    from_node = state.nodes[state.devices[source].node]
    to_node = state.nodes[state.devices[target].node]
    if state.devices[source].node == state.devices[target].node:
        return np.inf
    node_count, links = len(state.nodes), state.links
    rack_count = int(state.nodes[node_count - 1].rack) + 1
    rate = model.node_bytes_per_s / share / links[state.devices[source].node]
    into = links[node_count + state.devices[target].node] * crossing[0]
    rate = min(rate, model.node_bytes_per_s / share / into)
    if from_node.rack != to_node.rack:
        first = 2 * node_count
        rate = min(rate, model.rack_bytes_per_s / share / links[first + from_node.rack])
        into = links[first + rack_count + to_node.rack] * crossing[1]
        rate = min(rate, model.rack_bytes_per_s / share / into)
    if from_node.zone != to_node.zone:
        first = 2 * (node_count + rack_count)
        zone_count = int(state.nodes[node_count - 1].zone) + 1
        rate = min(rate, model.zone_bytes_per_s / share / links[first + from_node.zone])
        into = links[first + zone_count + to_node.zone] * crossing[2]
        rate = min(rate, model.zone_bytes_per_s / share / into)
    return float(rate)


@inner_njit
def _next_hop(model: Records, state: State, run: int, i: int, target: int) -> int:
    """To which device the i-th source sends."""
    following = i + 1
    if model.is_pipelined == 1 and following < state.sources.shape[1]:
        if state.sources[run, following] != NONE:
            return int(wide(state.sources[run, following]))
    return target


@inner_njit
def _crossing(state: State, run: int, target: int, count: int) -> tuple[int, int, int]:
    """How many of the sources send their parts into the target's node, rack and zone."""
    to = wide(state.devices[target].node)
    nodes, racks, zones = 0, 0, 0
    for i in range(count):
        node = wide(state.devices[state.sources[run, i]].node)
        nodes += node != to
        racks += state.nodes[node].rack != state.nodes[to].rack
        zones += state.nodes[node].zone != state.nodes[to].zone
    return nodes, racks, zones


@inner_njit
def links_rate(
    model: Records, state: State, run: int, target: int, share: float, count: int
) -> float:
    """What the links give to a rebuild, counted already, that reads this share of each source."""
    rate = np.inf
    crossing = _crossing(state, run, target, count)
    if model.is_pipelined == 1:
        crossing = (wide(1), wide(1), wide(1))
    for i in range(count):
        to = _next_hop(model, state, run, i, target)
        rate = min(rate, _hop_rate(model, state, wide(state.sources[run, i]), to, share, crossing))
    return rate


@inner_njit
def count_links(model: Records, state: State, run: int, target: int, sign: int) -> None:
    """Counts a rebuild in every link it uses: per hop, but into the target of whole chunks once."""
    node_count, links = len(state.nodes), state.links
    rack_count = int(state.nodes[node_count - 1].rack) + 1
    zone_count = int(state.nodes[node_count - 1].zone) + 1
    racks, zones = 2 * node_count, 2 * (node_count + rack_count)
    into_node, into_rack, into_zone = 0, 0, 0
    for i in range(state.sources.shape[1]):
        if state.sources[run, i] == NONE:
            break
        node = wide(state.devices[state.sources[run, i]].node)
        to = wide(state.devices[_next_hop(model, state, run, i, target)].node)
        if model.is_pipelined == 1:
            into_node, into_rack, into_zone = 0, 0, 0
        if node == to:
            continue
        rack, to_rack = wide(state.nodes[node].rack), wide(state.nodes[to].rack)
        zone, to_zone = wide(state.nodes[node].zone), wide(state.nodes[to].zone)
        links[node] += sign
        if into_node == 0:
            links[node_count + to] += sign
            into_node = 1
        if rack != to_rack:
            links[racks + rack] += sign
            if into_rack == 0:
                links[racks + rack_count + to_rack] += sign
                into_rack = 1
        if zone != to_zone:
            links[zones + zone] += sign
            if into_zone == 0:
                links[zones + zone_count + to_zone] += sign
                into_zone = 1
