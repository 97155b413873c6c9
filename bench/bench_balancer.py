"""Speed of balancing, from what hashing gives to one slot of the ideal.

For comparison, Ceph's balancer makes 10 changes a round and stops at a deviation of 5 PGs.
"""

import zlib
from typing import Any

import numpy as np
import pytest

from exastore.metadata.core.balancer import apply_balance_to_rows, plan_balance_of_rows
from exastore.metadata.core.balancer_recovery import plan_even_recovery
from exastore.metadata.core.placement import place_with_columns, placement_columns
from exastore.metadata.core.topology import DomainLevel, PlacementRule, Topology


def topology_of(racks: int, nodes: int, devices: int, *, mixed: bool) -> Topology:
    """A regular tree; `mixed` gives devices of 16 and 24 TiB by turns."""
    even = Topology.uniform(racks_per_zone=racks, nodes_per_rack=nodes, devices_per_node=devices)
    weight = np.where(np.arange(even.device_count) % 2 == 0, 16.0, 24.0 if mixed else 16.0)
    return Topology(even.device_node, even.node_rack, even.rack_zone, even.zone_region, weight)


@pytest.mark.parametrize(
    ("racks", "nodes", "devices", "pg_count", "mixed"),
    [
        pytest.param(12, 3, 4, 1_029, False, id="n14-144-devices"),
        pytest.param(40, 12, 20, 68_571, False, id="n14-9600-devices"),
        pytest.param(40, 12, 20, 68_571, True, id="n14-9600-devices-mixed"),
    ],
)
def test_plan_balance(
    benchmark: Any, racks: int, nodes: int, devices: int, pg_count: int, mixed: bool
) -> None:
    limit = 1 if racks >= 14 else 2
    columns = placement_columns(
        topology_of(racks, nodes, devices, mixed=mixed), PlacementRule(DomainLevel.RACK, limit)
    )
    rows = place_with_columns(columns, pg_count, 14)
    plan_balance_of_rows(columns, rows)  # compiles
    plan = benchmark(plan_balance_of_rows, columns, rows)
    assert plan.outside_count == 0
    if benchmark.stats is not None:
        benchmark.extra_info["moves_per_s"] = round(len(plan) / benchmark.stats.stats.median)
    benchmark.extra_info["moves"] = len(plan)
    benchmark.extra_info["minimum_moves"] = plan.minimum_moves
    benchmark.extra_info["crc32"] = zlib.crc32(plan.target_device.tobytes())


def test_plan_even_recovery(benchmark: Any) -> None:
    columns = placement_columns(
        topology_of(24, 4, 10, mixed=False), PlacementRule(DomainLevel.RACK)
    )
    rows = place_with_columns(columns, 6_857, 14)
    rows = apply_balance_to_rows(rows, plan_balance_of_rows(columns, rows))
    plan_even_recovery(columns, rows[:10])  # compiles
    plan = benchmark(plan_even_recovery, columns, rows)
    benchmark.extra_info["moves"] = len(plan)
    benchmark.extra_info["crc32"] = zlib.crc32(plan.target_device.tobytes())
