"""Pools: runs of placement groups, each under a rule of its own.

Laws:
1. The pools of a map cover its placement groups, in order, without gaps. A map that names none has
   one, `DEFAULT_POOL`, of all its groups under the map's rule.
2. Planning a pool looks at its rows and its rule alone, so no plan takes data out of the regions or
   device classes that the rule allows.
3. Each pool is balanced by itself: a device of several pools is within one slot of its share of
   each of them.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from exastore.metadata.core.balance import rule_violations
from exastore.metadata.core.balancer import BalancePlan
from exastore.metadata.core.columns import BoolArray
from exastore.metadata.core.errors import InvalidClusterMap
from exastore.metadata.core.topology import (
    ClusterMap,
    DomainLevel,
    Int32Array,
    Pool,
    Topology,
    frozen,
)

#: Of groups that no other pool has, and of buckets that name no pool.
DEFAULT_POOL = "default"


def pools_of(cluster_map: ClusterMap) -> tuple[Pool, ...]:
    """The pools of a map; at least one."""
    if cluster_map.pools:
        return cluster_map.pools
    return (Pool(DEFAULT_POOL, cluster_map.rule, 0, len(cluster_map.pg_devices)),)


def check_pools(pools: Sequence[Pool], pg_count: int) -> None:
    """Whether pools cover the groups of a map.

    Raises:
        InvalidClusterMap: They do not, or two have one name.
    """
    end = 0
    for pool in pools:
        if pool.first_pg != end or pool.pg_count < 1:
            raise InvalidClusterMap(f"pool {pool.name!r} does not begin at PG {end}, or is empty")
        end += pool.pg_count
    if pools and end != pg_count:
        raise InvalidClusterMap(f"the pools have {end} PGs, the map has {pg_count}")
    if len({pool.name for pool in pools}) != len(pools):
        raise InvalidClusterMap("two pools have one name")


def map_of_pool(cluster_map: ClusterMap, pool: Pool) -> ClusterMap:
    """The map as if the pool's groups were all: PG 0 is the pool's first. Shares all arrays."""
    if not cluster_map.pools:
        return cluster_map
    return replace(
        cluster_map,
        rule=pool.rule,
        pools=(),
        pg_devices=cluster_map.pg_devices[pool.pgs],
        pg_slot_state=cluster_map.pg_slot_state[pool.pgs],
        pg_epoch=cluster_map.pg_epoch[pool.pgs],
        pg_previous=cluster_map.pg_previous[pool.pgs],
    )


def broken_rows(cluster_map: ClusterMap, rows: Int32Array | None = None) -> BoolArray:
    """Shape (P,): groups that break the rule of their pool.

    Args:
        cluster_map: Whose pools and topology count.
        rows: Shape (P, n). The PG table to be judged; None: the map's own.
    """
    table = cluster_map.pg_devices if rows is None else rows
    parts = [
        rule_violations(cluster_map.topology, pool.rule, table[pool.pgs])
        for pool in pools_of(cluster_map)
    ]
    return np.concatenate(parts)


def violations(cluster_map: ClusterMap) -> int:
    """How many PGs of the map break the rule of their pool; 0 in a healthy cluster, always."""
    return int(broken_rows(cluster_map).sum())


def joined_plans(plans: Sequence[tuple[Pool, BalancePlan]], epoch: int) -> BalancePlan:
    """Plans of pools, made of `map_of_pool`, as one plan of the map."""

    def column(parts: Sequence[Int32Array]) -> Int32Array:
        return frozen(np.concatenate([np.zeros(0, dtype=np.int32), *parts]))

    return BalancePlan(
        epoch=epoch,
        pg=column([plan.pg + np.int32(pool.first_pg) for pool, plan in plans]),
        slot=column([plan.slot for _, plan in plans]),
        source_device=column([plan.source_device for _, plan in plans]),
        target_device=column([plan.target_device for _, plan in plans]),
        minimum_moves=sum(plan.minimum_moves for _, plan in plans),
        chained_moves=sum(plan.chained_moves for _, plan in plans),
        outside_count=sum(plan.outside_count for _, plan in plans),
        is_cut=any(plan.is_cut for _, plan in plans),
    )


def crosses_region(topology: Topology, source: Int32Array, target: Int32Array) -> BoolArray:
    """Shape (M,): moves between two devices that are in different regions.

    What has no source or no target crosses nothing.
    """
    region = np.append(topology.domain_of_device(DomainLevel.REGION), np.int32(-1))
    is_move = (source >= 0) & (target >= 0)
    return np.asarray(is_move & (region[source] != region[target]))
