"""Placement policies: one interface, what each is for, and that none gets past the rule."""

from collections.abc import Callable
from dataclasses import replace

import numba
import numpy as np
import pytest

from exastore.metadata.core.balance import recovery_spread, rule_violations, slots_per_device
from exastore.metadata.core.errors import ImpossibleRule, PolicyBrokeRule
from exastore.metadata.core.placement import all_up, place_pgs, placement_columns
from exastore.metadata.core.policy import (
    Copysets,
    Custom,
    PlacementPolicy,
    RandomDeclustered,
    Straw2,
    distinct_copysets,
    loss_probability,
    place_by_policy,
)
from exastore.metadata.core.topology import (
    NO_DEVICE,
    DeviceState,
    DomainLevel,
    PlacementRule,
    Topology,
    frozen,
)

RULE = PlacementRule(DomainLevel.RACK, 1, ((DomainLevel.ZONE, 2),))
RACKS = Topology.uniform(zones_per_region=3, racks_per_zone=6, nodes_per_rack=2, devices_per_node=4)
COLUMNS = placement_columns(RACKS, RULE)
POLICIES: list[PlacementPolicy] = [Straw2(), RandomDeclustered(), Copysets(10)]


@pytest.mark.parametrize("policy", POLICIES, ids=lambda policy: policy.name)
def test_rows_keep_the_rule_and_depend_on_the_seed_alone(policy: PlacementPolicy) -> None:
    state = all_up(144)
    state[7] = DeviceState.OUT
    tables = [
        place_by_policy(policy, COLUMNS, 600, 6, seed=seed, device_state=state)
        for seed in (1, 1, 2)
    ]
    assert (tables[0] == tables[1]).all()
    assert (tables[0] != tables[2]).any()
    assert (tables[0] != NO_DEVICE).all()
    assert 7 not in tables[0]
    assert not rule_violations(RACKS, RULE, tables[0]).any()


def test_straw2_is_what_placement_does() -> None:
    rows = place_by_policy(Straw2(), COLUMNS, 100, 6, seed=3)
    assert (rows == place_pgs(RACKS, RULE, 100, 6, seed=3)).all()


def test_declustered_rows_are_even_at_once_and_weighted() -> None:
    weight = np.array([4.0, 8.0])[np.arange(144) % 2]
    columns = placement_columns(replace(RACKS, device_weight=frozen(weight)), RULE)
    rows = place_by_policy(RandomDeclustered(), columns, 720, 6)
    away = slots_per_device(rows, 144) - weight * (rows.size / weight.sum())
    assert np.abs(away).max() <= 1.5
    assert distinct_copysets(rows) == 720


@pytest.mark.parametrize("scatter_width", [5, 10, 20])
def test_copysets_bound_the_peers_and_few_are_used_often(scatter_width: int) -> None:
    rows = place_by_policy(Copysets(scatter_width), COLUMNS, 2_400, 6)
    per_device = -(-scatter_width // 5)
    assert distinct_copysets(rows) == per_device * 144 // 6
    spread = recovery_spread(rows, 144)
    assert spread.peer_count_mean <= 5 * per_device
    assert spread.peer_count_mean > 0.85 * scatter_width
    # Every device takes every place of a row about equally often: parity is spread.
    places = [np.bincount(rows[:, slot], minlength=144) for slot in range(6)]
    assert (np.ptp(places, axis=0) <= 3 * per_device).all()


def test_fewer_copysets_lose_data_less_often_and_recover_from_fewer_peers() -> None:
    node = RACKS.domain_of_device(DomainLevel.NODE)
    found: list[tuple[int, float, float]] = []
    for policy in (Copysets(2), Copysets(20), Straw2()):
        rows = place_by_policy(policy, COLUMNS, 4_800, 3)
        lost = loss_probability(
            rows, node, 3, 2, trials=1_000, rng=np.random.Generator(np.random.PCG64(5))
        )
        found.append((distinct_copysets(rows), lost, recovery_spread(rows, 144).peer_count_mean))
    assert found == sorted(found)
    assert found[0][1] < 0.2 * found[2][1]


def test_a_scatter_width_below_one_copyset_is_refused() -> None:
    with pytest.raises(ImpossibleRule, match="scatter_width = 4") as caught:
        place_by_policy(Copysets(4), COLUMNS, 10, 6)
    assert caught.value.field == "scatter_width"
    assert caught.value.remedy == "choose at least 5"


def spread_by_hand(columns: object, device_state: object, seed: int, rows: object) -> None:
    """Two racks of every zone by turns."""
    assert isinstance(rows, np.ndarray)
    for pg in range(rows.shape[0]):
        for slot in range(6):
            rack = slot % 3 * 6 + (pg + seed + slot // 3) % 6
            rows[pg, slot] = rack * 8 + pg % 8


@numba.njit
def spread_compiled(columns, device_state, seed, rows):  # type: ignore[no-untyped-def]  # pyright: ignore
    for pg in range(rows.shape[0]):
        for slot in range(rows.shape[1]):
            rack = slot % 3 * 6 + (pg + seed + slot // 3) % 6
            rows[pg, slot] = rack * 8 + pg % 8


@pytest.mark.parametrize("function", [spread_by_hand, spread_compiled], ids=["python", "numba"])
def test_a_users_own_function_makes_rows(function: Callable[..., None]) -> None:
    rows = place_by_policy(Custom("by-hand", function), COLUMNS, 50, 6, seed=1)
    assert rows[3].tolist() == [35, 83, 131, 43, 91, 139]


@pytest.mark.parametrize(
    ("row", "why"),
    [([0, 8, 16, 50, 60, 70], "zone"), ([0, 0], "twice"), ([0, 999], "none"), ([0, 7], "out")],
)
def test_rows_of_a_users_own_function_that_break_the_rule_are_refused(
    row: list[int], why: str
) -> None:
    state = all_up(144)
    state[7] = DeviceState.OUT

    def fill(columns: object, device_state: object, seed: int, rows: object) -> None:
        assert isinstance(rows, np.ndarray)
        rows[2, : len(row)] = row

    with pytest.raises(PolicyBrokeRule, match=r"policy mine: 1 rows break the rule, first PG 2"):
        place_by_policy(Custom("mine", fill), COLUMNS, 5, 6, device_state=state)
