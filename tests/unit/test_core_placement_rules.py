"""Rules: limits at several levels at once, residency, device classes, and rules nobody can keep."""

from dataclasses import replace

import numpy as np
import pytest

from exastore.metadata.core.balance import rule_violations
from exastore.metadata.core.balancer import apply_balance_to_rows, plan_balance_of_rows
from exastore.metadata.core.errors import ImpossibleRule, TooFewDomains
from exastore.metadata.core.placement import (
    all_up,
    check_placeable,
    choose_replacement,
    place_pgs,
    place_with_columns,
    placeable_slots,
    placement_columns,
)
from exastore.metadata.core.topology import (
    NO_DEVICE,
    DeviceState,
    DomainLevel,
    Int32Array,
    PlacementRule,
    Pool,
    Topology,
    frozen,
)

NODE, RACK, ZONE, REGION = list(DomainLevel)[1:]
#: 3 regions, 6 zones, 24 racks, 96 nodes, 384 devices.
WORLD = Topology.uniform(
    region_count=3, zones_per_region=2, racks_per_zone=4, nodes_per_rack=4, devices_per_node=4
)
ALL_LEVELS = PlacementRule(RACK, 2, ((NODE, 1), (ZONE, 3), (REGION, 5)))


def most_per_domain(rows: Int32Array, level: DomainLevel) -> int:
    domain = WORLD.domain_of_device(level)[rows]
    return max(int(np.bincount(row).max()) for row in domain)


def test_limits_of_all_levels_hold_at_once_and_each_is_used() -> None:
    rows = place_pgs(WORLD, ALL_LEVELS, 400, 14)
    assert (rows != NO_DEVICE).all()
    assert [most_per_domain(rows, level) for level in (NODE, RACK, ZONE, REGION)] == [1, 2, 3, 5]
    assert not rule_violations(WORLD, ALL_LEVELS, rows).any()


@pytest.mark.parametrize("index", range(3))
def test_a_row_that_breaks_one_of_the_limits_is_told(index: int) -> None:
    rows = place_pgs(WORLD, replace(ALL_LEVELS, also=()), 400, 14)
    one = replace(ALL_LEVELS, also=ALL_LEVELS.also[index : index + 1])
    domain = WORLD.domain_of_device(one.also[0][0])[rows]
    expected = [np.bincount(row).max() > one.also[0][1] for row in domain]
    assert rule_violations(WORLD, one, rows).tolist() == expected
    assert any(expected)


def test_balancing_and_repair_keep_all_limits() -> None:
    columns = placement_columns(WORLD, ALL_LEVELS)
    rows = place_with_columns(columns, 2_400, 14)
    plan = plan_balance_of_rows(columns, rows)
    assert plan.outside_count == 0
    assert len(plan) <= 1.05 * plan.minimum_moves
    rows = apply_balance_to_rows(rows, plan)
    state = all_up(384)
    state[:64] = DeviceState.OUT
    for pg in range(200):
        for slot in range(14):
            if rows[pg, slot] < 64:
                rows[pg, slot] = choose_replacement(columns, state, rows[pg], slot, pg, 1)
    assert not rule_violations(WORLD, ALL_LEVELS, rows).any()
    # Without its first zone, region 0 has room for 3: 13 of 14 slots is what can be kept.
    assert ((rows[:200] >= 0).sum(axis=1) == 13).all()


def test_data_stays_in_its_regions_through_placement_balance_and_repair() -> None:
    # Two pools of one table: the first may live in regions 0 and 2 alone, the other anywhere.
    pools = [
        Pool("europe", PlacementRule(RACK, 1, (), regions=(0, 2)), 0, 600),
        Pool("anywhere", PlacementRule(RACK), 600, 600),
    ]
    region = WORLD.domain_of_device(REGION)
    for pool in pools:
        columns = placement_columns(WORLD, pool.rule)
        rows = place_with_columns(columns, pool.pg_count, 6, first_pg=pool.first_pg)
        plan = plan_balance_of_rows(columns, rows)
        rows = apply_balance_to_rows(rows, plan)
        assert plan.outside_count == 0
        state = all_up(384)
        state[rows[0, 0]] = DeviceState.OUT
        rows[0, 0] = choose_replacement(columns, state, rows[0], 0, 0, 1)
        found = set(region[rows].ravel().tolist())
        assert found == ({0, 2} if pool.name == "europe" else {0, 1, 2})
        assert not rule_violations(WORLD, pool.rule, rows).any()
        assert rule_violations(WORLD, pools[0].rule, rows).any() == (pool.name == "anywhere")
    assert pools[1].pgs == slice(600, 1200)


def test_a_bucket_that_has_to_leave_a_region_is_moved_out_by_balancing() -> None:
    rows = place_pgs(WORLD, PlacementRule(RACK), 300, 6)
    rule = PlacementRule(RACK, regions=(1,))
    plan = plan_balance_of_rows(placement_columns(WORLD, rule), rows)
    moved = apply_balance_to_rows(rows, plan)
    assert not rule_violations(WORLD, rule, moved).any()
    assert (plan.source_device // 128 != 1).sum() >= (rows // 128 != 1).sum()


def test_device_classes_choose_devices_and_weights_still_count() -> None:
    classes = (np.arange(384) % 4 == 3).astype(np.int32)
    weight = np.where(np.arange(384) % 8 == 7, 2.0, 1.0)
    topology = replace(WORLD, device_class=frozen(classes), device_weight=frozen(weight))
    rule = PlacementRule(NODE, device_classes=(1,))
    rows = place_pgs(topology, rule, 2_000, 6)
    assert (rows % 4 == 3).all()
    assert (rows % 8 == 7).mean() == pytest.approx(2 / 3, abs=0.03)
    both = PlacementRule(NODE, device_classes=(0, 1))
    assert (place_pgs(topology, both, 50, 6) == place_pgs(topology, PlacementRule(), 50, 6)).all()


def test_devices_beyond_the_classes_that_are_told_are_of_class_0() -> None:
    topology = replace(WORLD, device_class=frozen(np.ones(4, dtype=np.int32)))
    assert topology.class_of_device.tolist() == [1] * 4 + [0] * 380
    assert 0 not in place_pgs(topology, PlacementRule(device_classes=(0,)), 100, 6)


def test_placeable_slots_are_counted_through_all_levels() -> None:
    assert placeable_slots(WORLD, ALL_LEVELS) == 15
    assert placeable_slots(WORLD, PlacementRule(RACK, 2, ((REGION, 100), (ZONE, 3)))) == 18
    assert placeable_slots(WORLD, replace(ALL_LEVELS, regions=(0, 1))) == 10
    state = all_up(384)
    state[:60] = DeviceState.OUT
    assert placeable_slots(WORLD, PlacementRule(NODE, 1, ((RACK, 9),)), state) == 81


@pytest.mark.parametrize(
    ("rule", "field", "value", "remedy"),
    [
        (PlacementRule(RACK, 0), "max_per_domain", 0, "allow at least 1 per rack"),
        (PlacementRule(RACK, 1, ((ZONE, 0),)), "also[0]", 0, "allow at least 1 per zone"),
        (PlacementRule(regions=()), "regions", (), "name at least one region"),
        (PlacementRule(regions=(0, 7)), "regions", (0, 7), "name some of those there: 0, 1, 2"),
        (PlacementRule(device_classes=(3,)), "device_classes", (3,), "name some of those there: 0"),
    ],
)
def test_a_rule_that_makes_no_sense_says_which_field_and_what_to_do(
    rule: PlacementRule, field: str, value: object, remedy: str
) -> None:
    with pytest.raises(ImpossibleRule) as caught:
        check_placeable(WORLD, rule, 6)
    assert (caught.value.field, caught.value.value) == (field, value)
    assert caught.value.remedy == remedy
    assert f"{field} = {value}" in str(caught.value)


def test_too_few_domains_blame_the_limit_that_binds() -> None:
    rule = PlacementRule(RACK, 2, ((NODE, 1), (REGION, 4)))
    with pytest.raises(TooFewDomains, match="at most 4 per region leaves room for 12") as caught:
        check_placeable(WORLD, rule, 14)
    assert (caught.value.field, caught.value.need, caught.value.have) == ("also[1]", 14, 12)
    check_placeable(WORLD, rule, 12)
