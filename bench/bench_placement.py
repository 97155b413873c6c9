"""Speed of placement, of single replacements, and of repair planning.

Side by side with `crushtool`: `exastore bench run placement`.
"""

import zlib
from typing import Any

import numpy as np
import pytest

from exastore.erasure.jit import njit
from exastore.metadata.core.cluster_map import new_map, with_device_state
from exastore.metadata.core.placement import (
    PlacementColumns,
    all_up,
    choose_replacement,
    place_with_columns,
    placement_columns,
)
from exastore.metadata.core.repair import plan_repair
from exastore.metadata.core.topology import (
    DeviceState,
    DomainLevel,
    Int32Array,
    PlacementRule,
    Topology,
    Uint8Array,
)

CEPH_MAP = Topology.uniform(racks_per_zone=40, nodes_per_rack=12, devices_per_node=20)
EXABYTE_MAP = Topology.uniform(racks_per_zone=60, nodes_per_rack=20, devices_per_node=84)


def record(benchmark: Any, per_call: int, unit: str, output: Int32Array) -> None:
    """Adds the rate and a checksum of the output to the result."""
    if benchmark.stats is not None:
        benchmark.extra_info[f"{unit}_per_s"] = round(per_call / benchmark.stats.stats.median)
    benchmark.extra_info["crc32"] = zlib.crc32(output.tobytes())


@pytest.mark.parametrize("n", [3, 14])
@pytest.mark.parametrize(
    "topology",
    [
        pytest.param(CEPH_MAP, id="racks40-nodes12-devices20"),
        pytest.param(EXABYTE_MAP, id="racks60-nodes20-devices84"),
    ],
)
def test_place_pgs(benchmark: Any, topology: Topology, n: int) -> None:
    columns = placement_columns(topology, PlacementRule(DomainLevel.RACK))
    place_with_columns(columns, 1, n)
    rows = benchmark(place_with_columns, columns, 2_000, n)
    record(benchmark, 2_000, "pgs", rows)


def test_place_pgs_on_mixed_weights(benchmark: Any) -> None:
    weights = np.where(np.arange(100_800) % 3 == 0, 16.0, 20.0)
    topology = Topology(
        EXABYTE_MAP.device_node,
        EXABYTE_MAP.node_rack,
        EXABYTE_MAP.rack_zone,
        EXABYTE_MAP.zone_region,
        weights,
    )
    columns = placement_columns(topology, PlacementRule(DomainLevel.RACK))
    place_with_columns(columns, 1, 14)
    rows = benchmark(place_with_columns, columns, 2_000, 14)
    record(benchmark, 2_000, "pgs", rows)


@njit
def _replace_many(
    columns: PlacementColumns, state: Uint8Array, row: Int32Array, out: Int32Array
) -> None:
    for i in range(len(out)):
        out[i] = choose_replacement(columns, state, row, i % len(row), i, 1)


def test_choose_replacement(benchmark: Any) -> None:
    columns = placement_columns(EXABYTE_MAP, PlacementRule(DomainLevel.RACK))
    row, state = place_with_columns(columns, 1, 14)[0], all_up(EXABYTE_MAP.device_count)
    out = np.empty(10_000, dtype=np.int32)
    _replace_many(columns, state, row, out[:1])
    benchmark(_replace_many, columns, state, row, out)
    record(benchmark, len(out), "replacements", out)


def test_plan_repair_of_one_rack_in_sixty(benchmark: Any) -> None:
    rule = PlacementRule(DomainLevel.RACK)
    cluster_map = new_map(EXABYTE_MAP, rule, "rs-10-4", 14, 20_000)
    failed = with_device_state(cluster_map, dict.fromkeys(range(1_680), DeviceState.OUT))
    columns = placement_columns(EXABYTE_MAP, rule)
    plan_repair(failed, columns=columns)
    plan = benchmark(plan_repair, failed, columns=columns)
    record(benchmark, len(plan), "tasks", plan.target_device)
