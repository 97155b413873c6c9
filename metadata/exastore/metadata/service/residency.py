"""What pools look like to operators, and the record of data that crosses a border."""

import logging
from collections.abc import Sequence

import numpy as np

from exastore.metadata.core.moves import SlotMoves
from exastore.metadata.core.pools import broken_rows, crosses_region, pools_of
from exastore.metadata.core.repair import RepairPlan
from exastore.metadata.core.topology import NO_DEVICE, ClusterMap, DomainLevel
from exastore.metadata.service.audit import AuditLog
from exastore.metadata.service.convert import region_numbers
from exastore.metadata.service.errors import AuditFailed
from exastore.proto.v1 import common_pb2, pool_pb2

log = logging.getLogger(__name__)


def pool_statuses(
    message: common_pb2.ClusterMap, columns: ClusterMap, missing: Sequence[int]
) -> list[pool_pb2.PoolStatus]:
    """How each pool of a map fares.

    Args:
        message: The map.
        columns: Its columns.
        missing: Slots of each group that cannot be read now.
    """
    broken = broken_rows(columns)
    is_unreadable = np.array(missing, dtype=np.int64) > 0
    unplaced = columns.pg_devices == NO_DEVICE
    named = list(message.pools)
    found: list[pool_pb2.PoolStatus] = []
    for index, pool in enumerate(pools_of(columns)):
        told = named[index] if named else pool_pb2.Pool(name=pool.name, pg_count=pool.pg_count)
        if not named:
            for level, most in pool.rule.limits:
                told.limits.add(level=level, max_chunks=most)
        found.append(
            pool_pb2.PoolStatus(
                pool=told,
                violation_count=int(broken[pool.pgs].sum()),
                unplaced_slot_count=int(unplaced[pool.pgs].sum()),
                unreadable_pg_count=int(is_unreadable[pool.pgs].sum()),
            )
        )
    return found


class BorderLog:
    """Writes down which data begins to move from one region to another."""

    def __init__(self, audit: AuditLog) -> None:
        self._audit = audit

    async def tell(
        self,
        work: str,
        message: common_pb2.ClusterMap,
        columns: ClusterMap,
        plan: RepairPlan | SlotMoves,
    ) -> None:
        """After a change of the map that began the plan's moves: one line per pair of regions.

        An audit log that takes nothing does not hold repair up; the log of the server says so.
        """
        source, target = plan.source_device, plan.target_device
        crosses = crosses_region(columns.topology, source, target)
        if not crosses.any():
            return
        names = list(region_numbers(message.nodes))
        region = columns.topology.domain_of_device(DomainLevel.REGION)
        pairs = np.stack([region[source[crosses]], region[target[crosses]]], axis=1)
        ways, counts = np.unique(pairs, axis=0, return_counts=True)
        pools = pools_of(columns)
        starts = np.array([pool.first_pg for pool in pools])
        for (leaving, entering), count in zip(ways.tolist(), counts.tolist(), strict=True):
            of_way = (pairs == (leaving, entering)).all(axis=1)
            pgs = plan.pg[crosses][of_way]
            which = sorted({int(i) for i in np.searchsorted(starts, pgs, side="right") - 1})
            details = {
                "from_region": names[leaving],
                "to_region": names[entering],
                "slots": str(count),
                "pools": " ".join(pools[i].name for i in which),
                "epoch": str(plan.epoch + 1),
            }
            try:
                await self._audit.record("cluster", "MoveAcrossRegions", work, details)
            except AuditFailed as error:
                log.error("a move across regions is not recorded (%s): %s", details, error)
