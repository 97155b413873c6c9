"""Ceph's own `crushtool` as an oracle: the same weights and rules give the same choices."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from tests.support.crush import LOGARITHM_ERROR, straws
from tests.support.programs import program

from exastore.deploy.bench.crush import Crushtool, columns_like_crush
from exastore.metadata.core.placement import place_with_columns
from exastore.metadata.core.topology import (
    DomainLevel,
    Float64Array,
    PlacementRule,
    Topology,
    frozen,
)

#: Weight vectors of flat buckets, by name: multiples of 1/16, which both sides hold exactly.
WEIGHTS: dict[str, Float64Array] = {
    "20 equal": np.full(20, 4.0),
    "12 of three sizes": np.array([4.0, 8.0, 16.0] * 4),
    "40 from 1 to 20": np.array([1.0 + i % 20 for i in range(40)]),
    "100 with four that hardly count": np.where(np.arange(100) % 25 == 0, 0.0625, 3.5),
    "7 primes": np.array([2.0, 3.0, 5.0, 7.0, 11.0, 13.0, 17.0]),
}


@dataclass(frozen=True, slots=True)
class Agreement:
    """Single choices of one weight vector, side by side.

    Attributes:
        count: Choices compared.
        differing: How many differ.
        worst: The largest difference of two straws where the choices differ, as a share of what the
            logarithms of CRUSH may be off.
    """

    count: int
    differing: int
    worst: float


def compare(tool: str, folder: Path, weight: Float64Array, count: int) -> Agreement:
    """Compares single choices, and measures how close the straws are wherever they differ."""
    rule = PlacementRule(DomainLevel.DEVICE)
    topology = replace(
        Topology.uniform(devices_per_node=len(weight)), device_weight=frozen(weight.copy())
    )
    columns = columns_like_crush(topology, rule)
    ours = place_with_columns(columns, count, 1)[:, 0]
    theirs = Crushtool(tool, folder, topology, rule).rows(0, count, 1, rule_number=0)[:, 0]
    fixed = (weight * 65536).astype(np.int64)
    worst = 0.0
    differing = np.flatnonzero(ours != theirs)
    for x in differing.tolist():
        items = [int(ours[x]), int(theirs[x])]
        longest, other = straws(fixed, x, items)
        assert longest >= other, "ours is the longest straw by exact logarithms"
        # Both logarithms may be off, and CRUSH cuts each quotient to a whole number.
        allowed = sum(LOGARITHM_ERROR / int(fixed[item]) + 1 for item in items)
        worst = max(worst, (longest - other) / allowed)
    return Agreement(count, len(differing), worst)


def check(agreement: Agreement) -> None:
    assert agreement.differing <= 0.001 * agreement.count
    assert agreement.worst <= 1, "a difference that the logarithms do not explain"


@pytest.mark.parametrize("name", ["20 equal", "12 of three sizes", "40 from 1 to 20"])
def test_single_choices_are_those_of_crushtool(name: str, tmp_path: Path) -> None:
    check(compare(program("crushtool"), tmp_path, WEIGHTS[name], 10_000))


@pytest.mark.verify
def test_half_a_million_single_choices_are_those_of_crushtool(tmp_path: Path) -> None:
    tool, total = program("crushtool"), Agreement(0, 0, 0.0)
    for name, weight in WEIGHTS.items():
        found = compare(tool, tmp_path, weight, 100_000)
        check(found)
        print(f"{name}: {found.count - found.differing:,} of {found.count:,} the same,", end=" ")
        print(f"straws of the others within {found.worst:.2f} of the error of the logarithms")
        total = Agreement(
            total.count + found.count,
            total.differing + found.differing,
            max(total.worst, found.worst),
        )
    print(f"in all: {total.count - total.differing:,} of {total.count:,} the same")
    assert total.differing <= 0.0005 * total.count


TREES = [
    pytest.param(PlacementRule(DomainLevel.RACK), 3, id="3-over-racks"),
    pytest.param(PlacementRule(DomainLevel.RACK), 14, id="14-over-racks"),
    pytest.param(PlacementRule(DomainLevel.NODE), 6, id="6-over-nodes"),
]


def tree(mixed: bool) -> Topology:
    """2 regions, 4 zones, 24 racks, 96 nodes and 384 devices."""
    even = Topology.uniform(
        region_count=2,
        zones_per_region=2,
        racks_per_zone=6,
        nodes_per_rack=4,
        devices_per_node=4,
        device_weight=8.0,
    )
    if not mixed:
        return even
    weight = np.array([4.0, 8.0, 8.0, 20.0, 16.5])[np.arange(even.device_count) % 5]
    return replace(even, device_weight=frozen(weight))


@pytest.mark.parametrize("mixed", [False, True], ids=["equal", "mixed"])
@pytest.mark.parametrize(("rule", "width"), TREES)
def test_rows_of_rules_over_a_tree_are_those_of_crushtool(
    rule: PlacementRule, width: int, mixed: bool, tmp_path: Path
) -> None:
    topology = tree(mixed)
    ours = place_with_columns(columns_like_crush(topology, rule), 1_000, width)
    theirs = Crushtool(program("crushtool"), tmp_path, topology, rule).rows(0, 1_000, width)
    # A row takes several draws at each of five levels for each slot.
    assert (ours == theirs).mean() > 0.99
    assert (ours == theirs).all(axis=1).mean() > 0.95
