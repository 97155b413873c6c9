"""Completes stripes that were committed with chunks missing, once their devices serve again."""

import asyncio
import logging
from collections import defaultdict

from exastore.metadata.kv.contract import Transaction
from exastore.metadata.namespace.errors import BucketMoving
from exastore.metadata.namespace.extents import DegradedRow, list_degraded, mark_rebuilt
from exastore.metadata.service.map_store import MapStore
from exastore.metadata.service.metrics import MetadataMetrics
from exastore.metadata.service.partitions import Partition, Partitions
from exastore.metadata.service.rebuild import Rebuilder, SlotTarget
from exastore.metadata.service.storage_client import StorageError
from exastore.proto.v1 import common_pb2, storage_pb2

log = logging.getLogger(__name__)

#: A group that fails is tried stripe by stripe, at most so many per round.
_SINGLE_COUNT_MAX = 50

Missing = tuple[bytes, int]


class DegradedStripes:
    """The degraded rows and what is done about them."""

    def __init__(
        self,
        partitions: Partitions,
        maps: MapStore,
        rebuilder: Rebuilder,
        metrics: MetadataMetrics,
    ) -> None:
        self._partitions = partitions
        self._maps = maps
        self._rebuilder = rebuilder
        self._metrics = metrics
        #: Stripes with missing chunks, as of the last round.
        self.stripe_count = 0
        self.message = ""

    async def run_round(self) -> None:
        """Go through all degraded rows once; rebuild what can be."""
        stripe_count = 0
        for partition in self._partitions.all:
            begin: bytes | None = b""
            while begin is not None:
                rows, begin = await self._rows_from(partition, begin)
                stripe_count += sum(len(row.extents) for row in rows)
                if rows and partition.lease.is_held:
                    stripe_count -= await self._complete(partition, rows)
        self.stripe_count = stripe_count
        self._metrics.degraded(stripe_count)

    async def _rows_from(
        self, partition: Partition, begin: bytes
    ) -> tuple[list[DegradedRow], bytes | None]:
        return await partition.engine.read(lambda txn: list_degraded(txn, begin=begin))

    async def _complete(self, partition: Partition, rows: list[DegradedRow]) -> int:
        """Rebuild what is missing in `rows`; the number of stripes that are whole now."""
        message = self._maps.message
        if message is None:
            return 0
        groups: dict[SlotTarget, list[bytes]] = defaultdict(list)
        for row in rows:
            for extent in row.extents:
                for index in extent.missing_indexes:
                    target = _serving_slot(message, extent.pg, index)
                    if target is not None:
                        groups[target].append(extent.stripe_id)
        answers = await asyncio.gather(
            *(self._rebuild(message, target, ids) for target, ids in groups.items())
        )
        rebuilt: set[Missing] = set().union(*answers)
        completed = 0
        for row in rows:
            if any((e.stripe_id, i) in rebuilt for e in row.extents for i in e.missing_indexes):
                completed += len(row.extents) - await self._mark(partition, row, rebuilt)
        return completed

    async def _mark(self, partition: Partition, row: DegradedRow, rebuilt: set[Missing]) -> int:
        guard = partition.lease.guard()

        def mark(txn: Transaction) -> int:
            guard(txn)
            return mark_rebuilt(txn, row.key, rebuilt)

        try:
            return await partition.engine.transact(mark)
        except BucketMoving:
            return len(row.extents)  # the next round finds the row where it is then

    async def _rebuild(
        self, message: common_pb2.ClusterMap, target: SlotTarget, stripe_ids: list[bytes]
    ) -> set[Missing]:
        """Those of the stripes whose chunk is in place now."""
        if await self._try(message, target, stripe_ids):
            return {(stripe_id, target.slot) for stripe_id in stripe_ids}
        if len(stripe_ids) == 1:
            return set()
        return {
            (stripe_id, target.slot)
            for stripe_id in stripe_ids[:_SINGLE_COUNT_MAX]
            if await self._try(message, target, [stripe_id])
        }

    async def _try(
        self, message: common_pb2.ClusterMap, target: SlotTarget, stripe_ids: list[bytes]
    ) -> bool:
        last = storage_pb2.RebuildProgress()

        def note(told: storage_pb2.RebuildProgress) -> None:
            self._metrics.rebuilt(
                told.chunk_bytes - last.chunk_bytes, told.read_bytes - last.read_bytes
            )
            last.CopyFrom(told)

        try:
            await self._rebuilder.rebuild_stripes(message, target, stripe_ids, note)
        except StorageError as error:
            if self.message != str(error):
                log.warning("degraded stripes: %s", error)
            self.message = str(error)
            return False
        return True


def _serving_slot(message: common_pb2.ClusterMap, pg: int, index: int) -> SlotTarget | None:
    """The slot, if its device serves and holds all older chunks: else repair comes first."""
    if pg >= len(message.pgs) or index >= len(message.pgs[pg].device_indexes):
        return None
    device = message.pgs[pg].device_indexes[index]
    if (
        message.pgs[pg].slot_states[index] != common_pb2.SLOT_STATE_CLEAN
        or device >= len(message.devices)
        or message.devices[device].state != common_pb2.DEVICE_STATE_UP
    ):
        return None
    return SlotTarget(pg, index, device)
