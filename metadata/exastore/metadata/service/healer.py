"""Heals chunks that are rotten or missing although their device serves.

Who finds them: the scrub, which reads every chunk of every device within `scrub_period_s` and
compares the index of each device with the namespace; and gateways, which report the chunks that
they had to read around.

Laws:
1. A suspect is repaired by its own node from the other chunks, read back and compared; a chunk that
   turns out to be sound is left as it is.
2. A chunk whose checksum is not that of the commit is deleted before it is rebuilt: the node would
   take it for sound. This happens only if the code can do without it and all other suspects.
3. Only the holder of the lease scrubs and repairs; a round that is cut short begins anew.

Rounds take half of the period, so that no chunk waits longer than the period, whenever it was
written. Bad chunks of devices that do not serve are the business of repair.
"""

import asyncio
import logging
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from exastore.erasure import codec
from exastore.metadata.core.clock import Clock
from exastore.metadata.kv.contract import Engine, Transaction
from exastore.metadata.kv.keys import pack
from exastore.metadata.namespace.extents import list_extents
from exastore.metadata.service import membership
from exastore.metadata.service.config import MetadataConfig
from exastore.metadata.service.lease import Lease
from exastore.metadata.service.map_store import MapStore
from exastore.metadata.service.metrics import MetadataMetrics
from exastore.metadata.service.rebuild import Rebuilder, SlotTarget
from exastore.metadata.service.storage_client import StorageClient, StorageError
from exastore.proto.v1 import common_pb2, healing_pb2, storage_pb2

log = logging.getLogger(__name__)

_ROUND_KEY = pack("S", "scrub")
#: Suspects kept; more are found again by the next round.
_SUSPECT_COUNT_MAX = 100_000
#: Suspects repaired in one go, over all slots.
_BATCH_COUNT = 1_000
#: A suspect that cannot be repaired is tried so often, then the next round has to find it again.
_TRY_COUNT_MAX = 5
#: Share of half a period that reading takes: the rest is slack.
_RATE_SLACK = 0.9


@dataclass(frozen=True, slots=True)
class Suspect:
    """A chunk that may not be as it should be."""

    pg: int
    stripe_id: bytes
    index: int


class Healer:
    """Lives on the event loop; `repair_round` and `scrub_round` are loops of their own."""

    def __init__(
        self,
        config: MetadataConfig,
        engine: Engine,
        maps: MapStore,
        lease: Lease,
        rebuilder: Rebuilder,
        storage: StorageClient,
        clock: Clock,
        metrics: MetadataMetrics,
    ) -> None:
        self._config = config
        self._engine = engine
        self._maps = maps
        self._lease = lease
        self._rebuilder = rebuilder
        self._storage = storage
        self._clock = clock
        self._metrics = metrics
        #: Not repaired yet -> how often that was tried.
        self._suspects: dict[Suspect, int] = {}
        self._status = healing_pb2.ScrubStatus(period_s=config.scrub_period_s)
        self._is_asked = False

    @property
    def leads(self) -> bool:
        """Whether this server does the background work."""
        return self._lease.is_held

    def status(self) -> healing_pb2.ScrubStatus:
        """How far the current round is, or how the last one went."""
        status = healing_pb2.ScrubStatus()
        status.CopyFrom(self._status)
        status.waiting_count = len(self._suspects)
        return status

    def begin(self) -> None:
        """Begin a round as soon as none is under way."""
        self._is_asked = True
        self._status.active = True

    def report(self, chunks: Iterable[common_pb2.ChunkId]) -> None:
        """Somebody could not read these."""
        for chunk in chunks:
            self._status.reported_count += 1
            self._suspect(Suspect(chunk.pg, chunk.stripe_id, chunk.index))

    # ---- repairing ----

    async def repair_round(self) -> None:
        """Try every suspect once."""
        message = self._maps.message
        if not self._lease.is_held or message is None:
            return
        groups: dict[SlotTarget, list[Suspect]] = defaultdict(list)
        for suspect in list(self._suspects)[:_BATCH_COUNT]:
            if membership.is_quiet(message, suspect.pg):
                device = message.pgs[suspect.pg].device_indexes[suspect.index]
                groups[SlotTarget(suspect.pg, suspect.index, device)].append(suspect)
        for target, suspects in groups.items():
            if not await self._rebuild(message, target, suspects) and len(suspects) > 1:
                for suspect in suspects:
                    await self._rebuild(message, target, [suspect])
        self._metrics.suspects(len(self._suspects))

    async def _rebuild(
        self, message: common_pb2.ClusterMap, target: SlotTarget, suspects: list[Suspect]
    ) -> bool:
        last = storage_pb2.RebuildProgress()
        ids = [suspect.stripe_id for suspect in suspects]
        try:
            await self._rebuilder.rebuild_stripes(message, target, ids, last.CopyFrom)
        except StorageError as error:
            self._status.message = str(error)
            log.warning("a suspect chunk was not repaired: %s", error)
            if len(suspects) == 1:
                self._give_up_some(suspects[0])
            return False
        for suspect in suspects:
            self._suspects.pop(suspect, None)
        self._status.repaired_count += len(suspects)
        self._metrics.healed(len(suspects))
        return True

    def _give_up_some(self, suspect: Suspect) -> None:
        tries = self._suspects.pop(suspect, 0) + 1
        if tries < _TRY_COUNT_MAX:
            self._suspects[suspect] = tries  # to the end: others come first
        else:
            log.error("chunk %d of stripe %s stays bad", suspect.index, suspect.stripe_id.hex())

    def _suspect(self, suspect: Suspect) -> None:
        if len(self._suspects) < _SUSPECT_COUNT_MAX:
            self._suspects.setdefault(suspect, 0)

    # ---- scrubbing ----

    async def scrub_round(self) -> None:
        """Scrub everything once if it is time to, or if somebody asked for it."""
        message = self._maps.message
        if not self._lease.is_held or message is None or not message.devices:
            return
        begun_s = await self._engine.read(_read_begun)
        period_s, now_s = self._config.scrub_period_s, self._clock.now_s()
        if begun_s == 0.0:  # a new cluster, or one that was never scrubbed: not at once
            await self._engine.transact(self._write_begun(now_s))
            begun_s = now_s
        is_due = bool(period_s) and now_s - begun_s >= period_s / 2
        if not is_due and not self._is_asked:
            return
        is_asked, self._is_asked = self._is_asked, False
        reported = self._status.reported_count
        self._status = healing_pb2.ScrubStatus(
            active=True, begun_s=now_s, period_s=period_s, ended_s=self._status.ended_s,
            reported_count=reported,
        )  # fmt: skip
        try:
            await self._scrub_all(message, is_asked)
            await self._engine.transact(self._write_begun(now_s))
            self._status.ended_s = self._clock.now_s()
        finally:
            self._status.active = self._is_asked
        log.info(
            "scrub: %d chunks read, %d corrupt, %d missing",
            self._status.checked_chunk_count,
            self._status.corrupt_count,
            self._status.missing_count,
        )

    async def _scrub_all(self, message: common_pb2.ClusterMap, is_asked: bool) -> None:
        serving = [d for d in message.devices if membership.serves(message, d.index)]
        self._status.skipped_device_count = len(message.devices) - len(serving)
        await asyncio.gather(
            *(self._scrub_device(message, device.index, is_asked) for device in serving),
            self._compare(message),
        )

    async def _scrub_device(
        self, message: common_pb2.ClusterMap, device: int, is_asked: bool
    ) -> None:
        """Let the node read every chunk of a device; as fast as it can when somebody waits."""
        address = message.nodes[message.devices[device].node_index].address
        try:
            usage = await self._storage.get_pg_usage(
                address, storage_pb2.GetPgUsageRequest(device_index=device)
            )
            held_bytes = sum(item.chunk_bytes for item in usage.usages)
            self._status.total_bytes += held_bytes
            rate = 0 if is_asked else self._rate(held_bytes)
            request = storage_pb2.ScrubRequest(device_index=device, bandwidth_bytes_per_s=rate)
            last = storage_pb2.ScrubProgress()
            async for progress in self._storage.scrub(address, request):
                self._status.checked_chunk_count += progress.chunk_count - last.chunk_count
                self._status.checked_bytes += progress.chunk_bytes - last.chunk_bytes
                self._status.corrupt_count += len(progress.corrupt)
                self._metrics.scrub_found("corrupt", len(progress.corrupt))
                for chunk in progress.corrupt:
                    self._suspect(Suspect(chunk.pg, chunk.stripe_id, chunk.index))
                last.CopyFrom(progress)
        except StorageError as error:
            self._status.skipped_device_count += 1
            self._status.message = str(error)
            log.warning("scrub of device %d: %s", device, error)

    def _rate(self, held_bytes: int) -> int:
        """Bytes per second: what was set, or more if the period asks for it."""
        needed = held_bytes / (self._config.scrub_period_s / 2 * _RATE_SLACK)
        return max(self._config.scrub_bandwidth_bytes_per_s, int(needed) + 1)

    async def _compare(self, message: common_pb2.ClusterMap) -> None:
        """Ask the devices whether they have the chunks that metadata knows."""
        for engine in self._rebuilder.engines:
            begin: bytes | None = b""
            while begin is not None and self._lease.is_held:
                found, begin = await _extents_from(engine, begin)
                await self._compare_batch(message, found)

    async def _compare_batch(
        self, message: common_pb2.ClusterMap, extents: list[common_pb2.Extent]
    ) -> None:
        chunks: dict[int, list[tuple[common_pb2.Extent, int]]] = defaultdict(list)
        for extent in extents:
            if not membership.is_quiet(message, extent.pg):
                continue
            for index in range(len(extent.chunk_crc32c)):
                if index not in extent.missing_indexes:
                    chunks[message.pgs[extent.pg].device_indexes[index]].append((extent, index))
        bad = await asyncio.gather(
            *(self._ask(message, device, known) for device, known in chunks.items())
        )
        wrong_of: dict[bytes, list[tuple[common_pb2.Extent, int, bool]]] = defaultdict(list)
        for extent, index, is_wrong in (item for found in bad for item in found):
            wrong_of[extent.stripe_id].append((extent, index, is_wrong))
        for found in wrong_of.values():
            await self._take_bad(message, found)

    async def _ask(
        self,
        message: common_pb2.ClusterMap,
        device: int,
        known: list[tuple[common_pb2.Extent, int]],
    ) -> list[tuple[common_pb2.Extent, int, bool]]:
        """Those of the chunks that the device lacks, or has with other bytes (then True)."""
        request = healing_pb2.CheckChunksRequest(
            device_index=device,
            chunks=[
                common_pb2.ChunkId(pg=extent.pg, stripe_id=extent.stripe_id, index=index)
                for extent, index in known
            ],
            crc32c=[extent.chunk_crc32c[index] for extent, index in known],
        )
        address = message.nodes[message.devices[device].node_index].address
        try:
            answer = await self._storage.check_chunks(address, request)
        except StorageError as error:
            log.warning("scrub: %s", error)
            return []
        missing = [(*known[position], False) for position in answer.missing]
        return missing + [(*known[position], True) for position in answer.wrong]

    async def _take_bad(
        self, message: common_pb2.ClusterMap, found: list[tuple[common_pb2.Extent, int, bool]]
    ) -> None:
        """Note the bad chunks of one stripe; those with other bytes are deleted first."""
        extent = found[0][0]
        bad = {index for _, index, _ in found}
        known_bad = {s.index for s in self._suspects if s.stripe_id == extent.stripe_id}
        can_do_without = codec(extent.code).decodable(sorted(bad | known_bad))
        for _, index, is_wrong in found:
            if is_wrong and can_do_without:
                device = message.pgs[extent.pg].device_indexes[index]
                chunk = common_pb2.ChunkId(pg=extent.pg, stripe_id=extent.stripe_id, index=index)
                address = message.nodes[message.devices[device].node_index].address
                request = storage_pb2.DeleteChunksRequest(device_index=device, chunks=[chunk])
                await self._storage.delete_chunks(address, request)
            self._suspect(Suspect(extent.pg, extent.stripe_id, index))
        wrong_count = sum(is_wrong for _, _, is_wrong in found)
        self._status.corrupt_count += wrong_count
        self._status.missing_count += len(found) - wrong_count
        self._metrics.scrub_found("corrupt", wrong_count)
        self._metrics.scrub_found("missing", len(found) - wrong_count)

    def _write_begun(self, begun_s: float) -> Callable[[Transaction], None]:
        """A transaction that notes when the last complete round began."""
        guard = self._lease.guard()

        def write(txn: Transaction) -> None:
            guard(txn)
            txn.put(_ROUND_KEY, repr(begun_s).encode())

        return write


def _read_begun(txn: Transaction) -> float:
    value = txn.get(_ROUND_KEY)
    return 0.0 if value is None else float(value)


async def _extents_from(
    engine: Engine, begin: bytes
) -> tuple[list[common_pb2.Extent], bytes | None]:
    return await engine.read(lambda txn: list_extents(txn, begin=begin))
