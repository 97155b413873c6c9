"""Chunks of slots that devices have given up, and their deletion.

A device gives a slot up when the slot moves: it was OUT and the slot was rebuilt elsewhere, it was
rebuilding the slot when the device that held it before came back, or it is drained or balanced.

Laws:
1. That a device gives a slot up is recorded in the transaction that moves the slot.
2. Its chunks are deleted only when the whole PG is clean and reachable without it: until then they
   may be the last that there are.
3. The node checks, too, by a map at least as new as ours, that the device does not hold the slot;
   a device that got the slot meanwhile keeps its chunks.
4. A record is forgotten when the chunks are gone, or when the device holds the slot CLEAN again.

Rows: (G, epoch, block) holds triples of int32: PG, slot, device. Few rows, as many slots move at
once. Records of devices that never come back stay: 12 bytes per slot.
"""

import logging
from collections import defaultdict
from collections.abc import Callable, Iterable

import numpy as np

from exastore.metadata.core.moves import SlotMoves
from exastore.metadata.core.repair import RepairPlan
from exastore.metadata.core.topology import NO_DEVICE
from exastore.metadata.kv.contract import Engine, Transaction
from exastore.metadata.kv.keys import pack, prefix_range
from exastore.metadata.service import membership
from exastore.metadata.service.lease import Lease
from exastore.metadata.service.map_store import MapStore
from exastore.metadata.service.metrics import MetadataMetrics
from exastore.metadata.service.rebuild import SlotTarget
from exastore.metadata.service.storage_client import StorageClient, StorageError
from exastore.proto.v1 import common_pb2, storage_pb2

log = logging.getLogger(__name__)

_PREFIX = pack("G")
_SLOTS_PER_ROW = 4096
_ROWS_PER_READ = 16
_CHUNKS_PER_CALL = 4096
_DTYPE = np.dtype("<i4")


def record(txn: Transaction, plan: RepairPlan | SlotMoves) -> None:
    """Note what devices give up when `plan` is applied; part of that transaction."""
    moves = (plan.source_device != plan.target_device) & (plan.source_device != NO_DEVICE)
    columns = (plan.pg[moves], plan.slot[moves], plan.source_device[moves])
    triples = np.stack(columns, axis=1).astype(_DTYPE)
    for first in range(0, len(triples), _SLOTS_PER_ROW):
        key = pack("G", plan.epoch, first // _SLOTS_PER_ROW)
        txn.put(key, triples[first : first + _SLOTS_PER_ROW].tobytes())


def recording(
    guard: Callable[[Transaction], None], plan: RepairPlan | SlotMoves
) -> Callable[[Transaction], None]:
    """A guard of the change that applies `plan`: it checks `guard`, then records."""

    def check_and_record(txn: Transaction) -> None:
        guard(txn)
        record(txn, plan)

    return check_and_record


class Leftovers:
    """Deletes in rounds."""

    def __init__(
        self,
        engine: Engine,
        maps: MapStore,
        lease: Lease,
        storage: StorageClient,
        metrics: MetadataMetrics,
    ) -> None:
        self._engine = engine
        self._maps = maps
        self._lease = lease
        self._storage = storage
        self._metrics = metrics
        #: Slots recorded, as of the last round.
        self.slot_count = 0

    async def run_round(self) -> None:
        """Go through all records once; delete what can be."""
        slot_count = 0
        begin, end = prefix_range(_PREFIX)
        while self._lease.is_held:
            rows = await self._rows(begin, end)
            for key, value in rows:
                slot_count += await self._go_through(key, value)
            if len(rows) < _ROWS_PER_READ:
                break
            begin = rows[-1][0] + b"\x00"
        self.slot_count = slot_count

    async def _rows(self, begin: bytes, end: bytes) -> list[tuple[bytes, bytes]]:
        return await self._engine.read(lambda txn: list(txn.scan(begin, end, limit=_ROWS_PER_READ)))

    async def _go_through(self, key: bytes, value: bytes) -> int:
        """Take off a row what is done; how many records stay."""
        triples = np.frombuffer(value, dtype=_DTYPE).reshape(-1, 3)
        records = [SlotTarget(pg, slot, device) for pg, slot, device in triples.tolist()]
        message = self._maps.message
        if message is None or not self._lease.is_held:
            return len(records)
        done = {given_up for given_up in records if _is_back(message, given_up)}
        due: dict[int, list[SlotTarget]] = defaultdict(list)
        for given_up in records:
            if _may_be_deleted(message, given_up):
                due[given_up.device].append(given_up)
        for device, slots in due.items():
            done |= await self._delete(message, device, slots)
        left = [index for index, given_up in enumerate(records) if given_up not in done]
        if len(left) < len(records):
            await self._store(key, triples[left].tobytes())
        return len(left)

    async def _store(self, key: bytes, value: bytes) -> None:
        guard = self._lease.guard()

        def store(txn: Transaction) -> None:
            guard(txn)
            if value:
                txn.put(key, value)
            else:
                txn.delete(key)

        await self._engine.transact(store)

    async def _delete(
        self, message: common_pb2.ClusterMap, device: int, slots: Iterable[SlotTarget]
    ) -> set[SlotTarget]:
        """Delete the chunks of these slots of one device; the slots that are done."""
        address = message.nodes[message.devices[device].node_index].address
        done: set[SlotTarget] = set()
        for given_up in slots:
            try:
                await self._delete_slot(address, message.epoch, given_up)
            except StorageError as error:
                log.warning("chunks of slots given up: %s", error)
                self._metrics.background_error("leftovers")
                break  # the device's other slots will not do better now
            done.add(given_up)
        return done

    async def _delete_slot(self, address: str, epoch: int, given_up: SlotTarget) -> None:
        listed = await self._storage.list_chunks(
            address,
            storage_pb2.ListChunksRequest(device_index=given_up.device, pg=given_up.pg),
        )
        chunks = [info.chunk for info in listed if info.chunk.index == given_up.slot]
        for first in range(0, len(chunks), _CHUNKS_PER_CALL):
            request = storage_pb2.DeleteChunksRequest(
                device_index=given_up.device,
                chunks=chunks[first : first + _CHUNKS_PER_CALL],
                given_up_epoch=epoch,
            )
            response = await self._storage.delete_chunks(address, request)
            self._metrics.chunks_deleted(response.deleted_count)


def _is_back(message: common_pb2.ClusterMap, given_up: SlotTarget) -> bool:
    """The device holds the slot CLEAN again."""
    group = message.pgs[given_up.pg]
    return (
        group.device_indexes[given_up.slot] == given_up.device
        and group.slot_states[given_up.slot] == common_pb2.SLOT_STATE_CLEAN
    )


def _may_be_deleted(message: common_pb2.ClusterMap, given_up: SlotTarget) -> bool:
    """Nobody can need the chunks, and the device is there to delete them.

    In a quiet PG no slot has a previous device, so the device cannot be one that is waited for.
    """
    return (
        membership.is_quiet(message, given_up.pg)
        and message.pgs[given_up.pg].device_indexes[given_up.slot] != given_up.device
        and message.devices[given_up.device].state in membership.READABLE
    )
