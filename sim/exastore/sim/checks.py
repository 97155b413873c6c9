"""What holds of repairs, spares and links after every event, worked out anew in plain Python."""

from collections import Counter, defaultdict
from itertools import pairwise

from exastore.metadata.core.redundancy import redundancy_of
from exastore.sim.state import (
    NONE,
    PLAN_NOW,
    PUT_OFF,
    SPARE_WAIT_S,
    SPARE_WAITS,
    STUCK_RUNS,
    TIMELINE_COLUMNS,
    WAITING_HEAD,
    Records,
    State,
)


def validate_repairs(model: Records, state: State, code: str) -> None:
    """Check that every missing run on its way is in one place, and that all counts add up."""
    places = Counter[int]()
    for device, head in enumerate(state.devices["queue_head"].tolist()):
        _follow(state, head, places, device)
    active = state.devices["active"]
    places.update(run for run in active.tolist() if run != NONE)
    stuck = _follow(state, int(state.counter[WAITING_HEAD]), places, NONE)
    assert state.counter[PLAN_NOW] == 1 or stuck == int(state.counter[STUCK_RUNS])
    table = state.degraded[state.degraded["pg"] != NONE]
    redundancy, shift = redundancy_of(code), int(model["shift"])
    used = [run for run, slot in enumerate(state.runs["slot"].tolist()) if slot != NONE]
    noticed = defaultdict[int, set[int]](set)
    for slot in state.runs["slot"][used].tolist():
        noticed[slot >> shift].add(slot & ((1 << shift) - 1))
    for record in table[table["put_off"] != NONE]:
        put_off = _follow(state, int(record["put_off"]), places, PUT_OFF)
        missing = noticed[int(record["pg"])]
        assert 0 < put_off <= len(missing)
        assert redundancy.of(missing) > int(model["lazy_redundancy"])
    assert all(places[run] == 1 for run in used)
    assert max(places.values(), default=1) == 1
    assert (state.links == _links(model, state)).all()
    _validate_spares(model, state)
    timeline = dict(zip(TIMELINE_COLUMNS, state.timeline.sum(axis=0).tolist(), strict=True))
    assert 0 <= timeline["stripes_lost"] <= timeline["latent_errors"]
    assert model["has_latent"] or timeline["latent_errors"] == 0


def _follow(state: State, run: int, places: Counter[int], target: int) -> int:
    """Counts the runs of a list that are not void; all have this target."""
    count = 0
    while run != NONE:
        places[run] += 1
        if state.runs["slot"][run] != NONE:
            assert state.runs["target"][run] == target
            count += 1
        run = int(state.runs["next"][run])
    return count


def _links(model: Records, state: State) -> list[int]:
    """How many streams use each link, from the rebuilds that are in work."""
    node_of, nodes = state.devices["node"].tolist(), state.nodes
    counts = (len(nodes), int(nodes["rack"][-1]) + 1, int(nodes["zone"][-1]) + 1)
    domains = (list(range(len(nodes))), nodes["rack"].tolist(), nodes["zone"].tolist())
    used = [0] * len(state.links)
    if not model["has_links"]:
        return used
    for target, run in enumerate(state.devices["active"].tolist()):
        if run == NONE:
            continue
        way = [node_of[source] for source in state.sources[run].tolist() if source != NONE]
        hops = [(node, node_of[target]) for node in way]
        if model["is_pipelined"]:
            hops = list(pairwise([*way, node_of[target]]))
        first = 0
        for count, domain in zip(counts, domains, strict=True):
            out = [domain[a] for a, b in hops if domain[a] != domain[b]]
            into = [domain[b] for a, b in hops if domain[a] != domain[b]]
            for link in out:
                used[first + link] += 1
            for link in into if model["is_pipelined"] else set(into):
                used[first + count + link] += 1
            first += 2 * count
    return used


def _validate_spares(model: Records, state: State) -> None:
    """Each zone's ring holds the deliveries of its last orders, none later than one from now."""
    waits, waited_s = int(state.counter[SPARE_WAITS]), int(state.counter[SPARE_WAIT_S])
    assert 0 <= waited_s <= waits * float(model["reorder_s"])
    stock = int(model["spare_count"])
    rings = state.clock[1:].reshape(-1, stock + 1)
    for ring in rings if stock else ():
        taken = int(ring[0])
        due = [float(ring[1 + i % stock]) for i in range(max(0, taken - stock), taken)]
        assert due == sorted(due)
        assert all(at <= state.clock[0] + float(model["reorder_s"]) for at in due)
        assert all(at == 0.0 for at in ring[1 + taken :])
