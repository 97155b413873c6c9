"""Turns the bytes of a request into extents: cut, hash, write behind, in bounded memory.

Theory of operation: bytes are copied once, into a buffer of one extent. A full buffer is handed to
a task that writes the stripe while the next buffer fills; at most a fixed number of buffers is
under way, so memory does not grow with the object. Digests run in threads, extent after extent.

Fault model: the body may end early or turn out wrong at any byte, the cluster may fail at any
extent. Either way nothing is committed, and what was written is deleted in the background.
"""

import asyncio
import hashlib
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import cast

import numpy as np

from exastore.gateway.chunk_stream import ByteBudget
from exastore.gateway.config import GatewayConfig
from exastore.gateway.metrics import GatewayMetrics
from exastore.gateway.store import Body, BodyDigests, DigestedBody
from exastore.gateway.stripe_writer import StripeWriter
from exastore.metadata.core.phases import Phase, reach
from exastore.metadata.core.topology import Uint8Array
from exastore.proto.v1 import common_pb2

#: Below this, hashing takes less time than handing it to a thread.
INLINE_HASH_BYTES = 64 << 10
#: Buffers kept for reuse: fresh ones cost a page fault per 4 KiB.
MAX_IDLE_BUFFERS = 16


@dataclass(frozen=True, slots=True)
class StoredBody:
    """The durable, not yet committed bytes of an object or part."""

    size_bytes: int
    etag: str
    checksums: Mapping[str, str]
    inline_data: bytes
    extents: Sequence[common_pb2.Extent]


class BodyWriter:
    """Stores bodies; shared by all requests of a gateway."""

    def __init__(
        self,
        config: GatewayConfig,
        *,
        stripes: StripeWriter,
        hashers: Executor,
        metrics: GatewayMetrics,
    ) -> None:
        self._config = config
        self._stripes = stripes
        self._hashers = hashers
        self._metrics = metrics
        self._write_bytes = ByteBudget(config.max_write_bytes)
        #: Buffers that no task and no thread refers to.
        self._idle: list[Uint8Array] = []

    async def store(
        self,
        body: Body,
        *,
        inline_bytes: int,
        packed_bytes: int = 0,
        pool: str = "",
        admit: Callable[[], Awaitable[object]] | None = None,
    ) -> StoredBody:
        """Read the body to its end and make it durable; up to `inline_bytes` come back instead.

        Args:
            body: The bytes, and what the client said of them.
            inline_bytes: A body of at most this many bytes is not striped.
            packed_bytes: A larger one of at most this many is written as copies, to be packed.
            pool: Name of the pool whose placement groups may hold it.
            admit: Asked once, when the body proves longer than one extent: raises to refuse it
                before the rest is sent. Short bodies learn at the commit, for one call less.

        Raises:
            Whatever the body or `admit` raises; ServiceError when the cluster does not take the
            bytes.
        """
        capacity = await self._stripes.extent_capacity()
        behind = max(2, self._config.max_in_flight_bytes // capacity)
        # By hand, since `isinstance` of a protocol takes longer than the rest of this function.
        if hasattr(body, "take_digests"):
            digests = cast(DigestedBody, body).take_digests()
        else:
            digests = BodyDigests(hashlib.md5(usedforsecurity=False), ())
        upload = _Upload(self, capacity, behind, inline_bytes, packed_bytes, digests, pool)
        try:
            async for piece in body:
                await upload.feed(memoryview(piece).cast("B"))
                if admit is not None and upload.size_bytes > capacity:
                    await admit()
                    admit = None
            stored = await upload.finish(body.finish)
        except BaseException:
            self._stripes.discard_results(upload.abandon())
            raise
        self._metrics.bytes.labels("write").inc(stored.size_bytes)
        return stored

    @property
    def stripes(self) -> StripeWriter:
        return self._stripes

    @property
    def write_bytes(self) -> ByteBudget:
        """What the extents of all requests together take while they are written."""
        return self._write_bytes

    @property
    def hashers(self) -> Executor:
        return self._hashers

    def take_buffer(self, size_bytes: int) -> Uint8Array:
        """A buffer of at least this size, with arbitrary contents."""
        while self._idle:
            buffer = self._idle.pop()
            if len(buffer) >= size_bytes:
                return buffer
        return np.empty(size_bytes, dtype=np.uint8)

    def give_buffer(self, buffer: Uint8Array) -> None:
        """Take back a buffer that nothing refers to."""
        if len(self._idle) < MAX_IDLE_BUFFERS:
            self._idle.append(buffer)


class _Upload:
    """One body on its way."""

    def __init__(
        self,
        writer: BodyWriter,
        capacity: int,
        behind: int,
        inline_bytes: int,
        packed_bytes: int,
        digests: BodyDigests,
        pool: str,
    ) -> None:
        self._pool = pool
        self._writer = writer
        self._capacity = capacity
        self._inline_bytes = inline_bytes
        self._packed_bytes = packed_bytes
        #: Extents that may still be handed over before one must have been written.
        self._slots = asyncio.Semaphore(behind)
        self._digests = digests
        #: The hashing of the extents so far; each one waits for its predecessor.
        self._hashing: asyncio.Task[None] | None = None
        #: One per extent, in the object's order.
        self._tasks: list[asyncio.Task[common_pb2.Extent]] = []
        self._failed = False
        self._buffer: Uint8Array | None = None
        #: Bytes in the buffer.
        self._fill = 0
        self._size = 0

    @property
    def size_bytes(self) -> int:
        """Bytes taken so far."""
        return self._size

    async def feed(self, piece: memoryview) -> None:
        """Take bytes; waits while too many extents are under way."""
        data = np.frombuffer(piece, dtype=np.uint8)
        position = 0
        while position < len(data):
            if self._buffer is None:
                self._buffer = self._writer.take_buffer(self._capacity)
            elif self._fill == self._capacity:
                await self._flush()
                continue
            take = min(len(data) - position, self._capacity - self._fill)
            self._buffer[self._fill : self._fill + take] = data[position : position + take]
            self._fill += take
            position += take
        self._size += len(data)

    async def finish(self, check: Callable[[], Mapping[str, str]]) -> StoredBody:
        """Wait until all is durable.

        Args:
            check: Called when all bytes are in the digests: raises if they are not those promised,
                and returns the checksums to store.
        """
        inline = b""
        if not self._tasks and self._size <= self._inline_bytes:
            if self._buffer is not None:
                inline = self._buffer[: self._fill].tobytes()
                self._writer.give_buffer(self._buffer)
                self._buffer = None
            _update(self._digests, inline)
        elif self._fill:
            await self._flush(is_log=not self._tasks and self._size <= self._packed_bytes)
        extents = [await task for task in self._tasks]
        if self._hashing is not None:
            await self._hashing
        checksums = dict(check())
        etag = self._digests.md5.digest().hex()
        return StoredBody(self._size, etag, checksums, inline, extents)

    def abandon(self) -> Sequence[asyncio.Task[common_pb2.Extent]]:
        """The extents under way. They end by themselves: cut off, they would leave chunks."""
        return self._tasks

    async def _flush(self, *, is_log: bool = False) -> None:
        """Hand the buffer over to be hashed and written."""
        assert self._buffer is not None and self._fill > 0
        reach(Phase.BODY_READ)
        await self._slots.acquire()
        if self._failed:
            for task in self._tasks:
                if task.done():
                    task.result()
        await self._writer.write_bytes.acquire(self._fill)  # given back by `_write`
        buffer, fill = self._buffer, self._fill
        self._buffer, self._fill = None, 0
        hashing: asyncio.Task[None] | None = None
        if fill <= INLINE_HASH_BYTES and self._hashing is None:
            _update(self._digests, buffer[:fill].data)
        else:
            hashing = asyncio.create_task(self._hash(buffer[:fill], self._hashing))
            self._hashing = hashing
        self._tasks.append(asyncio.create_task(self._write(buffer, fill, hashing, is_log)))

    async def _hash(self, data: Uint8Array, previous: asyncio.Task[None] | None) -> None:
        if previous is not None:
            await previous
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(self._writer.hashers, _update, self._digests, data.data)

    async def _write(
        self,
        buffer: Uint8Array,
        fill: int,
        hashing: asyncio.Task[None] | None,
        is_log: bool,
    ) -> common_pb2.Extent:
        try:
            extent = await self._writer.stripes.write(buffer, fill, is_log=is_log, pool=self._pool)
            if hashing is not None:
                # Shielded: a thread reads the buffer even when this task is cancelled.
                await asyncio.shield(hashing)
        except BaseException:
            self._failed = True
            raise
        finally:
            self._writer.write_bytes.release(fill)
            self._slots.release()
        self._writer.give_buffer(buffer)
        return extent


def _update(digests: BodyDigests, data: bytes | memoryview) -> None:
    for each in digests.others:
        each.update(data)
    digests.md5.update(data)  # the last: it may wait for other bodies
