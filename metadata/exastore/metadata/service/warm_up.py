"""Compiles a metadata server's kernels: places, balances and repairs a tiny cluster."""

import numpy as np

from exastore.erasure import codec
from exastore.metadata.core.balancer import apply_balance_to_rows, plan_balance_of_rows
from exastore.metadata.core.balancer_recovery import plan_even_recovery
from exastore.metadata.core.placement import place_with_columns, placement_columns
from exastore.metadata.core.repair import plan_repair
from exastore.metadata.core.topology import (
    NO_DEVICE,
    ClusterMap,
    DeviceState,
    DomainLevel,
    Topology,
    frozen,
)
from exastore.metadata.service.config import MetadataConfig


def warm_up(config: MetadataConfig) -> None:
    """Run the kernels once; with a warm cache on disk this takes a fraction of a second."""
    code = codec(config.code)
    topology = Topology.uniform(racks_per_zone=code.n + 1)
    rule = config.rule
    if rule.level > DomainLevel.RACK:
        topology = Topology.uniform(region_count=code.n + 1)
    columns = placement_columns(topology, rule)
    rows = place_with_columns(columns, 1, code.n)
    uneven = np.repeat(rows, 16, axis=0)
    apply_balance_to_rows(uneven, plan_balance_of_rows(columns, uneven))
    plan_even_recovery(columns, uneven)
    state = np.full(topology.device_count, DeviceState.UP, dtype=np.uint8)
    if code.m:
        state[rows[0, 0]] = DeviceState.OUT
    plan_repair(
        ClusterMap(
            epoch=1,
            code=code.name,
            topology=topology,
            rule=rule,
            device_state=frozen(state),
            pg_devices=frozen(rows.copy()),
            pg_slot_state=frozen(np.zeros(rows.shape, dtype=np.uint8)),
            pg_epoch=frozen(np.ones(1, dtype=np.int64)),
            pg_previous=frozen(np.full(rows.shape, NO_DEVICE, dtype=np.int32)),
        )
    )
