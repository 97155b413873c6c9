"""Writes one extent as a stripe: encode, choose a placement group, send n chunks, judge.

Laws:
1. An extent is returned only when the chunks that were acknowledged, so durable, give back its data
   and survive `write_quorum_extra` further losses, whichever they are: of an MDS code any k + 1, of
   an LRC it depends on which ones are missing.
2. Chunks that were not acknowledged are named in `missing_indexes`; only those.
3. Every attempt has its own stripe id: chunks of an abandoned attempt can never be taken for these.

An attempt that fails turns to another placement group. With the quorum but not all chunks, it turns
only to a group whose devices all take chunks; otherwise what is durable stands.
"""

import asyncio
import logging
from collections.abc import Callable, Collection, Coroutine, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from exastore.erasure import Codec, codec
from exastore.gateway.cluster_view import ClusterView, PgChooser
from exastore.gateway.config import GatewayConfig
from exastore.gateway.crc import crc32c
from exastore.gateway.errors import NodeSlow, NodeUnavailable, NoSpace, ServiceError, TooFewDevices
from exastore.gateway.map_cache import MapCache
from exastore.gateway.metrics import GatewayMetrics
from exastore.gateway.node_client import ChunkAddress, ChunkWrite, NodePool
from exastore.gateway.striping import chunk_bytes_for, largest_chunk_bytes
from exastore.metadata.core.clock import Clock
from exastore.metadata.core.phases import Phase, reach
from exastore.metadata.core.redundancy import log_code, sure_losses, survives
from exastore.metadata.core.topology import NO_DEVICE, DeviceState, Uint8Array
from exastore.proto.v1 import common_pb2, storage_pb2

logger = logging.getLogger(__name__)

#: How many stale epochs one extent puts up with: each one means that the map changed again.
MAX_STALE_COUNT = 8


@dataclass(slots=True)
class Attempt:
    """What became of the n chunks of one attempt."""

    durable: set[int] = field(default_factory=set[int])
    #: Chunk index -> why it is not durable.
    failures: dict[int, str] = field(default_factory=dict[int, str])
    #: The newest epoch of a node that found ours too old; 0: none did.
    newer_epoch: int = 0
    no_space_count: int = 0
    #: Chunk indexes that were still under way when the wait for them ended; also in `failures`.
    slow: set[int] = field(default_factory=set[int])

    def take(self, index: int, response: storage_pb2.WriteChunkResponse) -> None:
        """Note a node's answer for one chunk."""
        if response.status == storage_pb2.CHUNK_STATUS_OK:
            self.durable.add(index)
            return
        name = storage_pb2.ChunkStatus.Name(response.status).removeprefix("CHUNK_STATUS_")
        self.failures[index] = f"{name}: {response.message}" if response.message else name
        if response.status == storage_pb2.CHUNK_STATUS_STALE_EPOCH:
            self.newer_epoch = max(self.newer_epoch, response.epoch, 1)
        if response.status == storage_pb2.CHUNK_STATUS_NO_SPACE:
            self.no_space_count += 1

    def summary(self) -> str:
        """The failures in words, each text once."""
        return "; ".join(dict.fromkeys(self.failures.values()))


@dataclass(frozen=True, slots=True)
class Stripe:
    """An encoded extent: n chunks and their checksums."""

    code: Codec
    data_bytes: int
    chunk_bytes: int
    chunks: Sequence[memoryview]
    crc32cs: Sequence[int]
    #: Copies of a small object, to be packed later.
    is_log: bool = False
    #: Where it may be stored.
    pool: str = ""


def encode_stripe(code: Codec, buffer: Uint8Array, data_bytes: int) -> Stripe:
    """Encode the first `data_bytes` of `buffer`.

    Aliasing: the data chunks are views of the buffer, and the padding behind the data is zeroed.
    """
    chunk_bytes = chunk_bytes_for(data_bytes, code.k, code.alignment_bytes)
    padded_bytes = chunk_bytes * code.k
    assert 0 < data_bytes <= padded_bytes <= len(buffer)
    buffer[data_bytes:padded_bytes] = 0
    data = buffer[:padded_bytes].reshape(code.k, chunk_bytes)
    parity = np.empty((code.m, chunk_bytes), dtype=np.uint8)
    code.encode_into(data, parity)
    chunks = [row.data for row in (*data, *parity)]
    return Stripe(code, data_bytes, chunk_bytes, chunks, [crc32c(chunk) for chunk in chunks])


def log_stripe(code: Codec, buffer: Uint8Array, data_bytes: int) -> Stripe:
    """Copies of the first `data_bytes` of `buffer`, as many as survive what the code surely does.

    Aliasing: all of them are one view of the buffer.
    """
    copies = log_code(code)
    data = buffer[:data_bytes].data
    count = copies.n
    return Stripe(
        copies, data_bytes, data_bytes, [data] * count, [crc32c(data)] * count, is_log=True
    )


class StripeWriter:
    """Writes extents to the cluster of a map cache."""

    def __init__(
        self,
        config: GatewayConfig,
        *,
        maps: MapCache,
        nodes: NodePool,
        clock: Clock,
        metrics: GatewayMetrics,
        new_id: Callable[[], bytes],
    ) -> None:
        self._config = config
        self._maps = maps
        self._nodes = nodes
        self._clock = clock
        self._metrics = metrics
        self._new_id = new_id
        self._first_turn = int.from_bytes(new_id()[:4], "big")
        #: By the number of chunks that a stripe has: those of log extents have fewer.
        self._choosers: dict[int, PgChooser] = {}
        #: Deletions of abandoned chunks under way; they may fail, which leaves unused bytes.
        self._discards: set[asyncio.Task[None]] = set()

    async def extent_capacity(self) -> int:
        """The most data bytes of an extent under the current map."""
        code = codec((await self._maps.view()).code)
        return code.k * largest_chunk_bytes(self._config.chunk_bytes, code.alignment_bytes)

    async def write(
        self, buffer: Uint8Array, data_bytes: int, *, is_log: bool = False, pool: str = ""
    ) -> common_pb2.Extent:
        """Store the first `data_bytes` of `buffer` and describe where they are.

        Args:
            buffer: Not to be changed until the extent is returned.
            data_bytes: At least 1.
            is_log: Write copies instead of a coded stripe.
            pool: Name of the pool whose placement groups may hold it.

        Raises:
            TooFewDevices, NoSpace: no placement group took a quorum of the chunks.
        """
        began_s = self._clock.monotonic_s()
        view = await self._maps.view()
        make = log_stripe if is_log else encode_stripe
        stripe = replace(make(codec(view.code), buffer, data_bytes), pool=pool)
        reach(Phase.ENCODED)
        extent = await self._write_stripe(view, stripe)
        self._metrics.extent_seconds.labels("write").observe(self._clock.monotonic_s() - began_s)
        return extent

    def is_enough(self, code: Codec, durable: Collection[int]) -> bool:
        """Whether these durable chunks make a write."""
        lost = [index for index in range(code.n) if index not in durable]
        return not lost or survives(code, lost, self._config.write_quorum_extra)

    def discard(self, extents: Sequence[common_pb2.Extent]) -> None:
        """Delete, in the background, the chunks of extents that nothing refers to."""
        if extents:
            self._in_background(self._delete(list(extents)))

    def discard_results(self, writes: Sequence[asyncio.Task[common_pb2.Extent]]) -> None:
        """The same for extents that are still being written."""
        if writes:
            self._in_background(self._delete_results(list(writes)))

    async def close(self) -> None:
        for task in self._discards:
            task.cancel()
        await asyncio.gather(*self._discards, return_exceptions=True)

    async def _write_stripe(self, view: ClusterView, stripe: Stripe) -> common_pb2.Extent:
        code = stripe.code
        chooser = self._chooser_of(code)
        tried: set[int] = set()
        stale_count = 0
        best = Attempt()
        while len(tried) < self._config.write_attempt_count:
            avoided = self._nodes.avoided(view)
            pg = chooser.choose(view, avoided, tried, stripe.pool)
            if pg is None:
                break
            tried.add(pg)
            if not self.is_enough(code, chooser.writable(view, avoided, pg)):
                # Suspicion is a guess: rather than to fail because of it, ask the suspects too.
                avoided = frozenset()
            stripe_id = self._new_id()
            attempt = await self._send(view, pg, stripe_id, stripe, avoided)
            extent = _describe(view, pg, stripe_id, stripe, attempt)
            if len(attempt.durable) == code.n:
                return extent
            if attempt.newer_epoch and stale_count < MAX_STALE_COUNT:
                stale_count += 1
                tried.discard(pg)
                self._metrics.write_retries.labels("stale_epoch").inc()
                view = await self._newer_view(view)
            elif self.is_enough(code, attempt.durable) and (
                # Slow is not failed: to send everything again would make that worse.
                len(attempt.durable) + len(attempt.slow) == code.n
                or not self._better_exists(view, stripe, tried)
            ):
                self._metrics.partial_writes.inc()
                return extent
            else:
                self._metrics.write_retries.labels("chunk_failure").inc()
            logger.info("extent not stored in pg %d: %s", pg, attempt.summary())
            self.discard([extent])
            if len(attempt.durable) >= len(best.durable):
                best = attempt
        if best.no_space_count:
            raise NoSpace(f"the devices are full: {best.summary()}")
        need = min(code.n, code.n - sure_losses(code) + self._config.write_quorum_extra)
        raise TooFewDevices(need, len(best.durable), best.summary())

    def _better_exists(self, view: ClusterView, stripe: Stripe, tried: Collection[int]) -> bool:
        """Whether a group not yet tried can be expected to take all chunks."""
        if len(tried) >= self._config.write_attempt_count:
            return False
        avoided = self._nodes.avoided(view)
        chooser = self._chooser_of(stripe.code)
        pg = chooser.choose(view, avoided, tried, stripe.pool)
        return pg is not None and len(chooser.writable(view, avoided, pg)) == stripe.code.n

    def _chooser_of(self, code: Codec) -> PgChooser:
        chooser = self._choosers.get(code.n)
        if chooser is None:
            chooser = self._choosers[code.n] = PgChooser(self._first_turn, slot_limit=code.n)
        return chooser

    async def _newer_view(self, view: ClusterView) -> ClusterView:
        """The map that a node spoke of; it may be on its way to the metadata server we ask."""
        newest = await self._maps.refresh()
        if newest is None or newest.epoch <= view.epoch:
            await self._clock.sleep(self._config.backoff_min_s)
        return newest or view

    async def _send(
        self,
        view: ClusterView,
        pg: int,
        stripe_id: bytes,
        stripe: Stripe,
        avoided: Collection[int],
    ) -> Attempt:
        attempt = Attempt()
        tasks: set[asyncio.Task[None]] = set()
        for index, device in enumerate(view.devices_of(pg)[: stripe.code.n]):
            if device == NO_DEVICE:
                attempt.failures[index] = "the group has no device for it"
            elif view.device_state[device] in (DeviceState.DOWN, DeviceState.OUT):
                attempt.failures[index] = f"device {device} is down"
            elif device in avoided:
                attempt.failures[index] = f"device {device} failed just now"
            else:
                chunk = ChunkWrite(
                    address=ChunkAddress(device, pg, stripe_id, index),
                    code=stripe.code.name,
                    epoch=view.epoch,
                    crc32c=stripe.crc32cs[index],
                    data=stripe.chunks[index],
                )
                tasks.add(asyncio.create_task(self._send_chunk(view, chunk, attempt)))
        try:
            pending = tasks
            while pending and not self.is_enough(stripe.code, attempt.durable):
                _, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
                reach(Phase.CHUNK_ANSWERED)
            reach(Phase.QUORUM_REACHED)
            if pending:
                await asyncio.wait(pending, timeout=self._config.straggler_wait_s)
        finally:
            # What is still under way may yet arrive: harmless, it carries its own stripe's bytes.
            await _cancel(tasks)
        for index in range(stripe.code.n):
            if index not in attempt.durable and index not in attempt.failures:
                attempt.failures[index] = "too slow"
                attempt.slow.add(index)
        return attempt

    async def _send_chunk(self, view: ClusterView, chunk: ChunkWrite, attempt: Attempt) -> None:
        try:
            response = await self._nodes.write(view, chunk)
        except NodeUnavailable as error:
            attempt.failures[chunk.address.index] = str(error)
            if isinstance(error, NodeSlow):
                attempt.slow.add(chunk.address.index)
            return
        attempt.take(chunk.address.index, response)

    def _in_background(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work)
        self._discards.add(task)
        task.add_done_callback(self._discards.discard)

    async def _delete_results(self, writes: Sequence[asyncio.Task[common_pb2.Extent]]) -> None:
        results = await asyncio.gather(*writes, return_exceptions=True)
        await self._delete([r for r in results if isinstance(r, common_pb2.Extent)])

    async def _delete(self, extents: Sequence[common_pb2.Extent]) -> None:
        view = await self._maps.view()
        chunks_of: dict[int, list[common_pb2.ChunkId]] = {}
        for extent in extents:
            devices = view.devices_of(extent.pg)[: len(extent.chunk_crc32c)]
            for index, device in enumerate(devices):
                if device != NO_DEVICE and index not in extent.missing_indexes:
                    chunk = common_pb2.ChunkId(
                        pg=extent.pg, stripe_id=extent.stripe_id, index=index
                    )
                    chunks_of.setdefault(device, []).append(chunk)
        for device, chunks in chunks_of.items():
            try:
                await self._nodes.delete(view, device, chunks)
            except ServiceError as error:
                logger.info("unused chunks stay on device %d: %s", device, error)


def _describe(
    view: ClusterView, pg: int, stripe_id: bytes, stripe: Stripe, attempt: Attempt
) -> common_pb2.Extent:
    return common_pb2.Extent(
        pg=pg,
        stripe_id=stripe_id,
        code=stripe.code.name,
        epoch=view.epoch,
        data_bytes=stripe.data_bytes,
        chunk_bytes=stripe.chunk_bytes,
        chunk_crc32c=stripe.crc32cs,
        missing_indexes=sorted(set(range(stripe.code.n)) - attempt.durable),
        is_log=stripe.is_log,
    )


async def _cancel(tasks: Collection[asyncio.Task[None]]) -> None:
    """Cancel what still runs and see every task end."""
    running = [task for task in tasks if not task.done()]
    for task in running:
        task.cancel()
    if running:
        await asyncio.wait(running)
    for task in tasks:
        if not task.cancelled():
            task.result()
