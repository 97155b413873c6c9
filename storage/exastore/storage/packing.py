"""Packs small objects into one stripe: read, lay out, encode, write n chunks.

Laws:
1. A stripe is reported only when all n chunks are durable.
2. Clients come first: what is read and written passes the budgets of background traffic.
3. An object counts as packed only if its bytes had the checksum that metadata keeps; of one that
   could not be read now the stripe has zeros, and the answer says so.

The caller decides what goes where, and makes the objects refer to the stripe. One that is cut off
leaves chunks that nothing refers to, which the collection of orphans finds.
"""

import asyncio
from collections.abc import Callable
from typing import Any

import grpc
import numpy as np

from exastore.erasure import Codec, ErasureError
from exastore.metadata.core.phases import Phase, reach
from exastore.metadata.core.topology import Uint8Array
from exastore.proto.chunk_frames import Buffer
from exastore.proto.v1 import common_pb2, storage_pb2, upkeep_pb2
from exastore.proto.v1.upkeep_pb2_grpc import PackServiceServicer
from exastore.storage.crc import crc32c
from exastore.storage.errors import InvalidChunk, PeerFailure, StorageError
from exastore.storage.metrics import StorageMetrics
from exastore.storage.runs import ByteRun
from exastore.storage.status import ChunkStatus, status_label
from exastore.storage.transfers import Transfers

#: Objects read at the same time for one stripe.
_READ_CONCURRENCY = 32
#: Stripes worked on at the same time by one node.
_STRIPE_CONCURRENCY = 2
#: No data of a stripe is longer: what a node holds of it in memory is bounded.
_STRIPE_BYTES_MAX = 64 << 20


class PackServicer(PackServiceServicer):
    """See `upkeep.proto`."""

    def __init__(
        self, transfers: Transfers, codec_of: Callable[[str], Codec], metrics: StorageMetrics
    ) -> None:
        self._transfers = transfers
        self._codec_of = codec_of
        self._metrics = metrics
        self._turn = asyncio.Semaphore(_STRIPE_CONCURRENCY)

    async def PackStripe(
        self, request: upkeep_pb2.PackStripeRequest, context: Any
    ) -> upkeep_pb2.PackStripeResponse:
        async with self._turn:
            try:
                return await self._pack(request)
            except (StorageError, ErasureError) as error:
                await context.abort(grpc.StatusCode.UNAVAILABLE, str(error))
                raise AssertionError("abort raises") from error

    async def _pack(self, request: upkeep_pb2.PackStripeRequest) -> upkeep_pb2.PackStripeResponse:
        # In a thread: the first call loads the erasure room.
        code = await asyncio.to_thread(self._codec_of, request.code)
        _check(request, code)
        data = np.zeros((code.k, request.chunk_bytes), dtype=np.uint8)
        gate = asyncio.Semaphore(_READ_CONCURRENCY)
        slices = await asyncio.gather(
            *(self._place(source, data.reshape(-1), gate) for source in request.sources)
        )
        if all(item.error for item in slices):
            raise PeerFailure(f"none of the objects could be read: {slices[0].error}")
        reach(Phase.PACK_READ)
        chunks = await asyncio.to_thread(_encoded, code, data)
        checksums = [crc32c(chunk) for chunk in chunks]
        await asyncio.gather(
            *(
                self._write(request, target, chunks[target.index], checksums[target.index])
                for target in request.targets
            )
        )
        reach(Phase.PACK_STORED)
        self._metrics.packed_objects.inc(sum(not item.error for item in slices))
        self._metrics.packed_stripes.inc()
        return upkeep_pb2.PackStripeResponse(chunk_crc32c=checksums, slices=slices)

    async def _place(
        self, source: upkeep_pb2.PackSource, data: Uint8Array, gate: asyncio.Semaphore
    ) -> upkeep_pb2.PackedSlice:
        """Read one object to its place."""
        reasons: list[str] = []
        async with gate:
            for holder in source.holders:
                found = await self._read(source.extent, holder)
                if isinstance(found, str):
                    reasons.append(found)
                    continue
                end = source.offset + len(found)
                data[source.offset : end] = np.frombuffer(found, dtype=np.uint8)
                return upkeep_pb2.PackedSlice(crc32c=crc32c(found))
        return upkeep_pb2.PackedSlice(error="; ".join(reasons) or "nobody holds it now")

    async def _read(
        self, extent: common_pb2.Extent, holder: storage_pb2.RebuildSource
    ) -> Buffer | str:
        """The object's bytes, verified, or why they cannot be had there."""
        chunk = common_pb2.ChunkId(pg=extent.pg, stripe_id=extent.stripe_id, index=holder.index)
        runs: list[ByteRun] = []
        expected = extent.slice_crc32c
        if extent.is_slice:
            runs.append(ByteRun(extent.slice_offset % extent.chunk_bytes, extent.data_bytes))
        else:
            expected = extent.chunk_crc32c[holder.index]
        try:
            response = await self._transfers.read(holder, chunk, runs, extent.data_bytes, expected)
        except PeerFailure as error:
            return str(error)
        if response.status != ChunkStatus.CHUNK_STATUS_OK:
            return f"slot {holder.index}: {status_label(response.status)} {response.message}"
        return response.data

    async def _write(
        self,
        request: upkeep_pb2.PackStripeRequest,
        target: storage_pb2.RebuildSource,
        chunk: Buffer,
        checksum: int,
    ) -> None:
        """Make one chunk durable. Raises PeerFailure."""
        write = storage_pb2.WriteChunkRequest(
            device_index=target.device_index,
            chunk=common_pb2.ChunkId(
                pg=request.pg, stripe_id=request.stripe_id, index=target.index
            ),
            code=request.code,
            epoch=request.epoch,
            crc32c=checksum,
        )
        response = await self._transfers.write(target, write, chunk)
        if response.status != ChunkStatus.CHUNK_STATUS_OK:
            label = status_label(response.status)
            raise PeerFailure(f"slot {target.index}: {label} {response.message}")


def _check(request: upkeep_pb2.PackStripeRequest, code: Codec) -> None:
    """Raises InvalidChunk for a stripe that cannot be laid out so."""
    data_bytes = code.k * request.chunk_bytes
    if not 0 < data_bytes <= _STRIPE_BYTES_MAX or request.chunk_bytes % code.alignment_bytes:
        raise InvalidChunk(f"a stripe of {code.k} chunks of {request.chunk_bytes} bytes")
    if sorted(target.index for target in request.targets) != list(range(code.n)):
        raise InvalidChunk(f"{request.code} needs {code.n} devices")
    for source in request.sources:
        size_bytes = source.extent.data_bytes
        first, last = source.offset, source.offset + size_bytes - 1
        if (
            size_bytes == 0
            or last >= data_bytes
            or first // request.chunk_bytes != last // request.chunk_bytes
        ):
            raise InvalidChunk("an object lies within one data chunk")


def _encoded(code: Codec, data: Uint8Array) -> list[Buffer]:
    """The n chunks, views of `data` among them. Shape: `data` is (k, chunk bytes)."""
    parity = np.empty((code.m, data.shape[1]), dtype=np.uint8)
    code.encode_into(data, parity)
    return [row.data for row in (*data, *parity)]
