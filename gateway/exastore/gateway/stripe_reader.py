"""Reads bytes of one extent: from its data chunks, or decoded from chunks that suffice.

Laws:
1. A chunk counts only when its size and CRC-32C are those the metadata recorded at commit.
2. Bytes that cannot be proven right are not returned: TooFewChunks instead.

Theory of operation: chunks are sought in order of trust. First the wanted data chunks on slots that
should answer. Each one that fails, or is slow, is answered by reading the others that give it back
as cheaply as the code can: any k, or its local group of an LRC. Slots in doubt (missing at commit,
under repair, suspect, down) come last. When all fails and the cluster map has changed since,
everything is tried once more: a repair may have moved the slots.
"""

import asyncio
import logging
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from exastore.erasure import Codec, RepairPlan, codec
from exastore.erasure import TooFewChunks as TooFewSurvivors
from exastore.gateway.chunk_stream import ByteBudget
from exastore.gateway.cluster_view import ClusterView
from exastore.gateway.config import GatewayConfig
from exastore.gateway.crc import crc32c
from exastore.gateway.errors import GatewayError, NodeUnavailable, ObjectChanged, TooFewChunks
from exastore.gateway.map_cache import MapCache
from exastore.gateway.metrics import GatewayMetrics
from exastore.gateway.node_client import ChunkAddress, NodePool
from exastore.gateway.striping import chunk_slices
from exastore.metadata.core.clock import Clock
from exastore.metadata.core.redundancy import repair_plan_for
from exastore.metadata.core.topology import NO_DEVICE, DeviceState, SlotState, Uint8Array
from exastore.proto.chunk_frames import ReadFrame
from exastore.proto.v1 import common_pb2, storage_pb2

logger = logging.getLogger(__name__)

READABLE = (DeviceState.UP, DeviceState.DRAINING)
#: With these a device that serves says that it does not have what was written to it.
BAD_STATUSES = (
    storage_pb2.CHUNK_STATUS_NOT_FOUND,
    storage_pb2.CHUNK_STATUS_CORRUPT,
    storage_pb2.CHUNK_STATUS_IO_ERROR,
)


def ranked_slots(
    view: ClusterView, extent: common_pb2.Extent, avoided: Collection[int]
) -> tuple[list[int], list[int]]:
    """Chunk indexes that should be readable, and those in doubt, each in ascending order."""
    trusted: list[int] = []
    doubtful: list[int] = []
    states = view.pg_slot_state[extent.pg]
    devices = view.devices_of(extent.pg)
    if extent.is_log:
        devices = devices[: len(extent.chunk_crc32c)]
    for index, device in enumerate(devices):
        if device == NO_DEVICE:
            continue
        good = (
            states[index] != SlotState.REBUILDING
            and index not in extent.missing_indexes
            and all(
                view.device_state[holder] in READABLE and holder not in avoided
                for holder in view.holders(extent.pg, index, extent.epoch)
            )
        )
        (trusted if good else doubtful).append(index)
    return trusted, doubtful


def next_reads(
    code: Codec,
    wanted: Collection[int],
    counted: Collection[int],
    candidates: Sequence[int],
) -> list[int] | None:
    """What to read beyond `counted` (had or on their way), in the order of `candidates`.

    Wanted chunks alone when all of them can be had; else the fewest that make up for the others.
    None when the candidates do not suffice.
    """
    direct = [index for index in wanted if index not in counted]
    if all(index in candidates for index in direct):
        return direct
    if not code.is_mds:
        plan = _plan(code, direct, {*counted, *candidates})
        if plan is None:
            return None
        needed = {*direct, *plan.reads}.difference(counted)
        return [index for index in candidates if index in needed]
    lost = {index for index in range(code.n) if index not in counted}
    reads: list[int] = []
    for index in candidates:
        if code.decodable(lost):
            break
        if index in lost:
            lost.remove(index)
            reads.append(index)
    return reads if code.decodable(lost) else None


def _plan(code: Codec, wanted: Collection[int], there: Collection[int]) -> RepairPlan | None:
    """How to get the wanted chunks that are not there from those that are; None: not at all."""
    gone = [index for index in range(code.n) if index not in there]
    try:
        return repair_plan_for(code, [index for index in wanted if index in gone], gone)
    except TooFewSurvivors:
        return None


@dataclass(slots=True)
class _Search:
    """The chunks of one extent as they come in, or a window of each."""

    wanted: list[int]
    #: (offset, length) of what is read of every chunk; None: all of it.
    window: tuple[int, int] | None = None
    #: Checked chunks.
    have: dict[int, memoryview] = field(default_factory=dict[int, memoryview])
    #: Chunk index -> why it cannot be had.
    failures: dict[int, str] = field(default_factory=dict[int, str])
    #: Chunk indexes that no device has: all failures are of this kind when the object is gone.
    not_found: set[int] = field(default_factory=set[int])
    #: Chunk indexes whose device serves, but does not have the bytes that were written.
    bad: set[int] = field(default_factory=set[int])
    running: dict[asyncio.Task[None], int] = field(default_factory=dict[asyncio.Task[None], int])
    #: Chunk index -> the device that was asked last.
    asked: dict[int, int] = field(default_factory=dict[int, int])

    def complete(self, code: Codec) -> bool:
        """Whether the wanted chunks are there or can be computed."""
        if all(index in self.have for index in self.wanted):
            return True
        if code.is_mds:
            return len(self.have) >= code.k
        return _plan(code, self.wanted, self.have) is not None


class StripeReader:
    """Reads extents from the cluster of a map cache."""

    def __init__(
        self,
        config: GatewayConfig,
        *,
        maps: MapCache,
        nodes: NodePool,
        clock: Clock,
        metrics: GatewayMetrics,
        suspect: Callable[[Iterable[tuple[int, bytes, int]]], None] = lambda chunks: None,
    ) -> None:
        #: Told the (PG, stripe id, index) of chunks that a read had to do without.
        self._suspect = suspect
        #: What all requests together read ahead.
        self.read_ahead = ByteBudget(config.max_read_ahead_bytes)
        self._config = config
        self._maps = maps
        self._nodes = nodes
        self._clock = clock
        self._metrics = metrics

    async def read(self, extent: common_pb2.Extent, start: int, stop: int) -> list[memoryview]:
        """The bytes [start, stop) of the extent, as pieces in order.

        Raises:
            TooFewChunks: the bytes cannot be had now.
            ObjectChanged: no node knows the stripe any more.
        """
        assert 0 <= start <= stop <= extent.data_bytes
        if start == stop:
            return []
        began_s = self._clock.monotonic_s()
        if extent.is_slice:
            data = await self._slice(extent)
            self._metrics.extent_seconds.labels("read").observe(self._clock.monotonic_s() - began_s)
            return [data[start:stop]]
        slices = chunk_slices(start, stop, extent.chunk_bytes)
        chunks = await self._chunks(extent, [piece.chunk_index for piece in slices])
        self._metrics.extent_seconds.labels("read").observe(self._clock.monotonic_s() - began_s)
        return [chunks[piece.chunk_index][piece.start : piece.stop] for piece in slices]

    async def read_into(self, extent: common_pb2.Extent, buffer: Uint8Array) -> None:
        """All bytes of the extent to the front of `buffer`."""
        position = 0
        for piece in await self.read(extent, 0, extent.data_bytes):
            buffer[position : position + len(piece)] = np.frombuffer(piece, dtype=np.uint8)
            position += len(piece)
        assert position == extent.data_bytes

    async def _slice(self, extent: common_pb2.Extent) -> memoryview:
        """The bytes of a slice: one read of one chunk, or decoded from the others.

        A rotten chunk is found out by its node, or by the checksum of the slice. If what was
        decoded is wrong, one of the chunks used was; leaving each of them out in turn finds it.
        """
        code = codec(extent.code)
        home, offset = divmod(extent.slice_offset, extent.chunk_bytes)
        # Codes with sub-chunks mix bytes from all over a chunk, the others byte by byte.
        window = (offset, extent.data_bytes) if code.sub_chunk_count == 1 else None
        search = _Search([home], window)
        begin = 0 if window else offset
        suspects: list[int] | None = None
        while True:
            chunks = await self._chunks(extent, [home], search)
            data = chunks[home][begin : begin + extent.data_bytes]
            if crc32c(data) == extent.slice_crc32c:
                return data
            self._metrics.chunks.labels("read", "wrong_bytes").inc()
            used = sorted(search.have)
            logger.error("stripe %s: wrong bytes, from chunks %s", extent.stripe_id.hex(), used)
            if home in search.have:
                del search.have[home]
                search.failures[home] = "the node sent other bytes than were written"
                continue
            suspects = used if suspects is None else suspects
            if not suspects:
                raise TooFewChunks(code.k, 0, extent.stripe_id)
            failures = {home: "not to be had", suspects.pop(0): "in doubt"}
            have = {i: chunk for i, chunk in search.have.items() if i not in failures}
            search = _Search([home], window, have, failures)

    async def _chunks(
        self, extent: common_pb2.Extent, wanted: list[int], search: _Search | None = None
    ) -> dict[int, memoryview]:
        code = codec(extent.code)
        view = await self._maps.view()
        search = search or _Search(wanted)
        for last in (False, True):
            try:
                if await self._seek(view, code, extent, search):
                    self._suspect((extent.pg, extent.stripe_id, index) for index in search.bad)
                    return self._decoded(code, search)
            finally:
                await _cancel(search.running)
            if not last:
                newer = await self._newer_view(view)
                if newer is None:
                    break
                view, search = newer, _Search(wanted, search.window, search.have)
        logger.warning("stripe %s: %s", extent.stripe_id.hex(), search.failures)
        if not search.have and len(search.not_found) == len(search.failures):
            raise ObjectChanged("the object was replaced or deleted while it was being read")
        raise TooFewChunks(code.k, code.n - len(search.failures), extent.stripe_id)

    async def _newer_view(self, view: ClusterView) -> ClusterView | None:
        """A view newer than this one, if there is any."""
        try:
            newest = await self._maps.refresh()
        except GatewayError:
            return None
        return newest if newest is not None and newest.epoch > view.epoch else None

    def _decoded(self, code: Codec, search: _Search) -> dict[int, memoryview]:
        """The wanted chunks."""
        have = search.have
        if all(index in have for index in search.wanted):
            return have
        self._metrics.degraded_reads.inc()
        used: Collection[int] = have
        if not code.is_mds:
            plan = _plan(code, search.wanted, have)
            assert plan is not None, "the search was complete"
            used = {*plan.reads, *have.keys() & search.wanted}
        arrays = {index: np.frombuffer(have[index], dtype=np.uint8) for index in used}
        decoded = code.decode(arrays, want=search.wanted)
        return {index: array.data for index, array in decoded.items()}

    async def _seek(
        self, view: ClusterView, code: Codec, extent: common_pb2.Extent, search: _Search
    ) -> bool:
        """Read until the wanted chunks are complete; false when they cannot be."""
        trusted, doubtful = ranked_slots(view, extent, self._nodes.gone_around(view))
        for index in set(range(code.n)).difference(trusted, doubtful):
            search.failures[index] = "its slot has no device"
        hedged: set[int] = set()
        while not search.complete(code):
            on_the_way = set(search.running.values())
            counted = search.have.keys() | (on_the_way - hedged)
            excluded = search.failures.keys() | hedged
            usable = [index for index in trusted if index not in excluded]
            reads = next_reads(code, search.wanted, counted, usable)
            if reads is None:
                usable += [index for index in doubtful if index not in excluded]
                reads = next_reads(code, search.wanted, counted, usable)
            for index in reads or ():
                self._start(view, extent, index, search)
            if not search.running:
                return False
            is_all_hedged = hedged.issuperset(search.running.values())
            done, _ = await asyncio.wait(
                search.running,
                timeout=None if is_all_hedged else self._nodes.speed.patience_s(),
                return_when=asyncio.FIRST_COMPLETED,
            )
            for task in done:
                del search.running[task]
                task.result()
            if not done:
                hedged |= set(search.running.values())
                self._metrics.hedged_reads.inc()
        for index in hedged.intersection(search.running.values()):
            self._nodes.speed.note_overtaken(view.device_address[search.asked[index]])
        return True

    def _start(
        self, view: ClusterView, extent: common_pb2.Extent, index: int, search: _Search
    ) -> None:
        task = asyncio.create_task(self._read_slot(view, extent, index, search))
        search.running[task] = index

    async def _read_slot(
        self, view: ClusterView, extent: common_pb2.Extent, index: int, search: _Search
    ) -> None:
        """The chunk from the first device that has it: a slot that moves is on two."""
        for device in view.holders(extent.pg, index, extent.epoch):
            search.asked[index] = device
            address = ChunkAddress(device, extent.pg, extent.stripe_id, index)
            await self._read_chunk(view, extent, address, search)
            if index in search.have:
                search.failures.pop(index, None)
                return

    async def _read_chunk(
        self,
        view: ClusterView,
        extent: common_pb2.Extent,
        address: ChunkAddress,
        search: _Search,
    ) -> None:
        index = address.index
        try:
            response, is_right = await self._fetch(view, extent, address, search)
        except NodeUnavailable as error:
            search.failures[index] = str(error)
            return
        if response.status != storage_pb2.CHUNK_STATUS_OK:
            name = storage_pb2.ChunkStatus.Name(response.status).removeprefix("CHUNK_STATUS_")
            search.failures[index] = f"{name}: {response.message}"
            if response.status == storage_pb2.CHUNK_STATUS_NOT_FOUND:
                search.not_found.add(index)
            if response.status in BAD_STATUSES and index not in extent.missing_indexes:
                search.bad.add(index)
            return
        if not is_right:
            self._metrics.chunks.labels("read", "wrong_bytes").inc()
            search.failures[index] = "the node sent other bytes than were written"
            search.bad.add(index)
            logger.error(
                "stripe %s: chunk %d on device %d is not what was written",
                extent.stripe_id.hex(),
                index,
                address.device_index,
            )
            return
        search.have[index] = memoryview(response.data)

    async def _fetch(
        self,
        view: ClusterView,
        extent: common_pb2.Extent,
        address: ChunkAddress,
        search: _Search,
    ) -> tuple[ReadFrame, bool]:
        """What the device says of the chunk, and whether its bytes are those that were written.

        First as it lies on the disk, since it is compared here with what the metadata know. When it
        is not right, the node has to look: it finds and counts what has rotted, and if the chunk
        was moved meanwhile it sends the right bytes. Of a slice's stripe the metadata know the
        slice alone, so there the node's checksum must do until the slice is together.
        """
        offset, size_bytes = search.window or (None, extent.chunk_bytes)
        unchecked = not extent.is_slice
        while True:
            response = await self._nodes.read(
                view, address, size_bytes, offset, unchecked=unchecked
            )
            if response.status != storage_pb2.CHUNK_STATUS_OK:
                return response, False
            expected = response.crc32c if extent.is_slice else extent.chunk_crc32c[address.index]
            is_right = len(response.data) == size_bytes and crc32c(response.data) == expected
            if is_right or not unchecked:
                return response, is_right
            unchecked = False


async def _cancel(running: dict[asyncio.Task[None], int]) -> None:
    for task in running:
        task.cancel()
    if running:
        await asyncio.wait(running)
    running.clear()
