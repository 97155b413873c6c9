"""One rebuild: the chunks of a slot, or of some stripes of it, by the node that shall hold them."""

import asyncio
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from exastore.erasure import codec
from exastore.metadata.core.redundancy import log_copies
from exastore.metadata.kv.contract import Engine
from exastore.metadata.namespace import extents
from exastore.metadata.service import membership
from exastore.metadata.service.config import MetadataConfig
from exastore.metadata.service.storage_client import StorageClient, StorageError
from exastore.proto.v1 import common_pb2, storage_pb2

#: Stripe ids per call: 16 bytes each, far below the limit of a message.
_STRIPE_BATCH_COUNT = 20_000

OnProgress = Callable[[storage_pb2.RebuildProgress], None]


@dataclass(frozen=True, slots=True)
class SlotTarget:
    """A slot and the device that shall hold its chunks."""

    pg: int
    slot: int
    device: int


class Rebuilder:
    """Calls the target's node and watches over its progress."""

    def __init__(self, config: MetadataConfig, engine: Engine, storage: StorageClient) -> None:
        #: All engines that hold buckets.
        self.engines: Sequence[Engine] = [engine]
        self._storage = storage
        self._idle_timeout_s = config.rebuild_idle_timeout_s

    async def rebuild_slot(
        self,
        message: common_pb2.ClusterMap,
        target: SlotTarget,
        on_progress: OnProgress,
        bandwidth_bytes_per_s: int = 0,
    ) -> None:
        """Rebuild every chunk of a slot. Raises StorageError unless all of them are in place.

        Of a slot that moves, they are copied from the device that it leaves.

        First the sources are asked which stripes they hold: cheap, but it includes leftovers of
        writes that were never committed, which cannot be rebuilt. If some stripes fail, the
        namespace decides which must be there, and those alone are tried. It also decides when the
        sources that are left do not give back the data, so that they may have missed a stripe
        together: then a device that returned may still have all that is needed.
        """
        code = codec(message.code)
        sources = {source.index for source in sources_of(message, target)}
        # A log extent may be on one device alone, so all that could hold one must be asked.
        may_hide = target.slot < log_copies(code) and any(
            slot not in sources for slot in range(log_copies(code)) if slot != target.slot
        )
        if not may_hide and code.decodable(set(range(code.n)) - sources):
            final = await self._call(message, target, (), on_progress, bandwidth_bytes_per_s)
            if not final.failed_chunk_count:
                return
        stripe_ids = await self.committed_stripes(target.pg, target.slot)
        await self.rebuild_stripes(message, target, stripe_ids, on_progress, bandwidth_bytes_per_s)

    async def rebuild_stripes(
        self,
        message: common_pb2.ClusterMap,
        target: SlotTarget,
        stripe_ids: Sequence[bytes],
        on_progress: OnProgress,
        bandwidth_bytes_per_s: int = 0,
    ) -> None:
        """Rebuild the chunks of these stripes. Raises StorageError unless all are in place."""
        for first in range(0, len(stripe_ids), _STRIPE_BATCH_COUNT):
            batch = stripe_ids[first : first + _STRIPE_BATCH_COUNT]
            final = await self._call(message, target, batch, on_progress, bandwidth_bytes_per_s)
            if final.failed_chunk_count:
                raise StorageError(
                    f"{final.failed_chunk_count} of {final.total_chunk_count} chunks of slot "
                    f"{target.slot} of PG {target.pg} could not be rebuilt: {final.message}"
                )

    async def committed_stripes(self, pg: int, slot: int = 0) -> list[bytes]:
        """The stripes with a chunk in this slot that objects and parts refer to.

        Reads the whole namespace.
        """
        found: list[bytes] = []
        for engine in self.engines:
            begin: bytes | None = b""
            while begin is not None:
                batch, begin = await self._extents_from(engine, begin)
                found.extend(
                    extent.stripe_id
                    for extent in batch
                    if extent.pg == pg and slot < len(extent.chunk_crc32c)
                )
        return list(dict.fromkeys(found))  # a bucket on the move is in two engines

    async def _extents_from(
        self, engine: Engine, begin: bytes
    ) -> tuple[list[common_pb2.Extent], bytes | None]:
        return await engine.read(lambda txn: extents.list_extents(txn, begin=begin))

    async def _call(
        self,
        message: common_pb2.ClusterMap,
        target: SlotTarget,
        stripe_ids: Iterable[bytes],
        on_progress: OnProgress,
        bandwidth_bytes_per_s: int,
    ) -> storage_pb2.RebuildProgress:
        request = storage_pb2.RebuildRequest(
            pg=target.pg,
            index=target.slot,
            device_index=target.device,
            code=message.code,
            epoch=message.epoch,
            sources=sources_of(message, target),
            stripe_ids=stripe_ids,
            bandwidth_bytes_per_s=bandwidth_bytes_per_s,
            rack=membership.rack_of(message, target.device),
        )
        address = message.nodes[message.devices[target.device].node_index].address
        progress = storage_pb2.RebuildProgress()
        stream = aiter(self._storage.rebuild(address, request))
        while True:
            try:
                async with asyncio.timeout(self._idle_timeout_s):
                    progress = await anext(stream)
            except StopAsyncIteration:
                break
            except TimeoutError:
                raise StorageError(
                    f"node {address}: no progress for {self._idle_timeout_s:g} s"
                ) from None
            on_progress(progress)
        if not progress.done:
            raise StorageError(f"node {address}: the rebuild ended early: {progress.message}")
        return progress


def sources_of(
    message: common_pb2.ClusterMap, target: SlotTarget
) -> list[storage_pb2.RebuildSource]:
    """The devices to read from, which together hold every chunk of the slots they stand for.

    The first is the device that the slot itself leaves, if it moves. Another slot that moves has
    two sources: what was written before the move is on the one, what came later on the other.
    """
    pg = message.pgs[target.pg]
    own: list[storage_pb2.RebuildSource] = []
    others: list[storage_pb2.RebuildSource] = []
    for slot in range(len(pg.device_indexes)):
        devices = membership.holders(pg, slot)
        if not all(membership.serves(message, device) for device in devices):
            continue
        for device in devices:
            address = message.nodes[message.devices[device].node_index].address
            source = storage_pb2.RebuildSource(
                index=slot,
                device_index=device,
                address=address,
                rack=membership.rack_of(message, device),
            )
            if slot != target.slot:
                others.append(source)
            elif device != target.device:
                own.append(source)
    return own + others
