"""Losses in objects, against arithmetic and against objects that are placed one by one."""

import numpy as np
import pytest

from exastore.sim import Scenario, ScenarioError, load_scenario, parse_scenario, scenario_toml
from exastore.sim.objects import object_count, objects_lost

NONE_LOST = np.zeros(12)


def stored(sizes: str, shares: str) -> Scenario:
    text = scenario_toml(load_scenario("tiny"))
    head, _, tail = text.partition("[objects]")
    rest = tail[tail.index("\n[") :]
    return parse_scenario(f"{head}[objects]\nsizes_bytes = {sizes}\nshares = {shares}\n{rest}")


def months(*lost: float) -> np.ndarray:
    return np.array([*lost, *[0.0] * (12 - len(lost))])


def test_small_objects_are_lost_with_their_group_and_nothing_else() -> None:
    scenario = stored("[1e6]", "[1.0]")
    pgs = scenario.placement.pg_count
    found = objects_lost(scenario, months(2.0, 0.0, 1.0), NONE_LOST)
    assert found.objects == pytest.approx(3 / pgs * object_count(scenario))
    assert found.object_bytes == pytest.approx(3 / pgs * scenario.data.user_bytes)
    assert objects_lost(scenario, NONE_LOST, NONE_LOST) == (0.0, 0.0)


def test_a_stripe_holds_many_small_objects_or_a_part_of_a_large_one() -> None:
    extent = load_scenario("tiny").stripe_bytes
    small = objects_lost(stored(f"[{extent / 8}]", "[1.0]"), NONE_LOST, months(3.0))
    assert small == pytest.approx((24.0, 3.0 * extent))
    large = objects_lost(stored(f"[{extent * 5.0}]", "[1.0]"), NONE_LOST, months(3.0))
    assert large == pytest.approx((3.0, 15.0 * extent))


def test_the_formula_is_the_mean_of_objects_placed_one_by_one() -> None:
    extent = float(load_scenario("tiny").stripe_bytes)
    scenario = stored(f"[{extent / 4}, {extent * 2.5}, {extent * 40}]", "[6.0, 3.0, 1.0]")
    pgs, lost = scenario.placement.pg_count, 30
    found = objects_lost(scenario, months(float(lost)), NONE_LOST)
    generator = np.random.Generator(np.random.PCG64(3))
    count, hit, hit_bytes = 100_000, 0, 0.0
    for size, extents, share in (
        (extent / 4, 1, 0.6),
        (extent * 2.5, 3, 0.3),
        (extent * 40, 40, 0.1),
    ):
        groups = generator.integers(0, pgs, (round(count * share), extents))
        is_hit = (groups < lost).any(axis=1)
        hit += int(is_hit.sum())
        hit_bytes += size * int(is_hit.sum())
    scale = object_count(scenario) / count
    assert found.objects == pytest.approx(hit * scale, rel=0.03)
    assert found.object_bytes == pytest.approx(hit_bytes * scale, rel=0.03)


def test_sizes_without_shares_are_refused_by_name() -> None:
    with pytest.raises(ScenarioError, match=r"objects\.shares.*has 1 shares for 2 sizes"):
        stored("[1e6, 2e6]", "[1.0]")
