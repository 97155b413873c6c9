"""Rates of rebuilds over shared links against exact sharing, worked out by hand (ADR 0015)."""

import numpy as np

from exastore.erasure.jit import njit
from exastore.sim import parse_scenario, place
from exastore.sim.accounts import lose_run
from exastore.sim.build import build_model, build_state
from exastore.sim.physics import build_physics
from exastore.sim.rebuild import new_run, release_sources, start_next
from exastore.sim.state import Records, State
from exastore.sim.streams import wide

FIVE = """
name = "five"
code = "rep-2"
[cluster]
racks_per_zone = 5
nodes_per_rack = 1
devices_per_node = 2
[device]
capacity_bytes = 1_000_000_000_000
[placement]
pg_count = 200
balanced = false
[data]
user_bytes = 200_000_000_000
[repair]
write_bandwidth_bytes_per_s = 1e9
read_bandwidth_bytes_per_s = 1e9
{limit} = 1e6
[run]
years = 1
"""


@njit
def _begin(model: Records, state: State, target: int, slot: int, now_s: float) -> None:
    lose_run(model, state, slot, 0, now_s)
    run = new_run(state, slot, -1, 0)
    state.devices[target].queue_head = run
    state.devices[target].queue_tail = run
    start_next(None, model, state, target, now_s)


@njit
def _end(model: Records, state: State, target: int) -> None:
    release_sources(model, state, target, wide(state.devices[target].active))


def ends_s(limit: str, starts_s: tuple[float, ...]) -> list[float]:
    """When rebuilds that all read from node 0 end; a run is of 1e9 bytes, so alone in 1,000 s."""
    scenario = parse_scenario(FIVE.format(limit=limit))
    placement = place(scenario, seed=1)
    physics = build_physics(scenario)
    model = build_model(scenario, physics, seed=1, trial=0)
    state = build_state(model, physics, placement.topology, placement.pg_devices)
    ends: list[float] = []
    under_way: list[tuple[int, float]] = []
    for number, start_s in enumerate(starts_s):
        for target, end_s in list(under_way):
            if end_s <= start_s:
                _end(model, state, target)
                under_way.remove((target, end_s))
        target = 2 + 2 * number
        start_one(model, state, target, start_s)
        ends.append(float(state.devices[target]["active_done_s"]))
        under_way.append((target, ends[-1]))
    return ends


def start_one(model: np.void, state: State, target: int, now_s: float) -> None:
    """Starts a rebuild on the target of a run whose other copy is on node 0."""
    node = state.devices["node"]
    for pg, row in enumerate(state.pg_devices.tolist()):
        is_free = not (state.degraded["pg"] == pg).any()
        if is_free and node[row[0]] == 0 and node[row[1]] != 0:
            slot = pg << 1 | 1
            state.pg_devices[pg, 1] = target
            _begin(model, state, target, slot, now_s)
            return
    raise AssertionError("no group has its first copy on node 0 alone")


def test_one_rebuild_has_the_link_for_itself() -> None:
    for limit in ("node_bandwidth_bytes_per_s", "rack_bandwidth_bytes_per_s"):
        assert ends_s(limit, (0.0,)) == [1000.0]


def test_the_last_of_a_burst_ends_when_exact_sharing_ends_all() -> None:
    assert ends_s("node_bandwidth_bytes_per_s", (0.0, 0.0)) == [1000.0, 2000.0]
    assert ends_s("rack_bandwidth_bytes_per_s", (0.0, 0.0, 0.0)) == [1000.0, 2000.0, 3000.0]


def test_a_late_one_keeps_its_share_and_ends_a_quarter_late() -> None:
    # Exactly: 1,500 and 2,000 s.
    assert ends_s("node_bandwidth_bytes_per_s", (0.0, 500.0)) == [1000.0, 2500.0]


def test_a_link_is_free_again_when_a_rebuild_has_ended() -> None:
    assert ends_s("node_bandwidth_bytes_per_s", (0.0, 1000.0)) == [1000.0, 2000.0]
