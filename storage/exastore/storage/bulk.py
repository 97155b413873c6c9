"""Chunk requests over frames on sockets: a thin adapter on the service that gRPC's streams use.

The port itself, its secrets, limits and fault model are those of `exastore.proto.bulk_port`.
"""

import os
from collections.abc import Callable
from typing import Protocol

from exastore.metadata.core.phases import Phase, reach
from exastore.proto.bulk_frames import BadFrame, Frame, FrameKind, head_of
from exastore.proto.bulk_port import Asked, Buffers, BulkLimits, BulkPort
from exastore.proto.bulk_socket import KEPT, FileBytes, Sendable
from exastore.proto.chunk_frames import WriteFrame
from exastore.proto.v1 import storage_pb2
from exastore.storage.errors import AddressInUse
from exastore.storage.metrics import StorageMetrics


class Chunks(Protocol):
    """What answers chunk requests; its methods do not raise."""

    def write_cost_bytes(self, request: WriteFrame, /) -> int: ...
    def read_cost_bytes(self, request: storage_pb2.ReadChunkRequest, /) -> int: ...
    def unread_chunk(
        self, request: storage_pb2.ReadChunkRequest, /
    ) -> tuple[storage_pb2.ReadChunkResponse, FileBytes] | None: ...
    async def write_chunk(self, request: WriteFrame, /) -> storage_pb2.WriteChunkResponse: ...
    async def load_chunk(
        self, request: storage_pb2.ReadChunkRequest, /
    ) -> tuple[storage_pb2.ReadChunkResponse, Sendable]: ...


class BulkServer(BulkPort):
    """Serves chunks at the bulk port, and tells where it is."""

    def __init__(
        self,
        chunks: Chunks,
        limits: BulkLimits,
        metrics: StorageMetrics,
        *,
        new_secret: Callable[[int], bytes] = os.urandom,
    ) -> None:
        super().__init__(
            _Handler(chunks),
            limits,
            _Counts(metrics),
            new_secret=new_secret,
            on_half_sent=lambda: reach(Phase.ANSWER_HALF_SENT),
            on_half_received=lambda: reach(Phase.FRAME_HALF_RECEIVED),
        )

    def start(self, host: str, port: int = 0) -> None:
        """Listen; port 0 takes a free one.

        Raises:
            AddressInUse: The address is taken.
        """
        try:
            super().start(host, port)
        except OSError as error:
            raise AddressInUse(f"{host}:{port}") from error


class _Counts:
    def __init__(self, metrics: StorageMetrics) -> None:
        self._metrics = metrics

    def connections(self, count: int) -> None:
        self._metrics.bulk_connections.set(count)

    def refused(self, reason: str) -> None:
        self._metrics.bulk_refusals.labels(reason).inc()


class _Handler:
    """Chunks in frames."""

    def __init__(self, chunks: Chunks) -> None:
        self._chunks = chunks

    def asked(self, frame: Frame) -> Asked:
        chunks = self._chunks
        if frame.kind is FrameKind.WRITE:
            header = storage_pb2.WriteChunkRequest.FromString(frame.header)
            write = WriteFrame(header, frame.data)
            return Asked(chunks.write_cost_bytes(write), KEPT, lambda: self._write(write))
        if frame.kind is not FrameKind.READ:
            raise BadFrame(f"a client does not send {frame.kind.name}")
        read = storage_pb2.ReadChunkRequest.FromString(frame.header)
        unread = chunks.unread_chunk(read)
        if unread is not None:  # answered at once, from the file into the socket
            found, data = unread
            return Asked(len(data), found.request_id, None, _chunk_frame(found, data))
        return Asked(chunks.read_cost_bytes(read), read.request_id, lambda: self._read(read))

    def asks(self, frame: Frame, request_id: int) -> bool:
        return (
            frame.kind is FrameKind.READ
            and storage_pb2.ReadChunkRequest.FromString(frame.header).request_id == request_id
        )

    async def _write(self, request: WriteFrame) -> Buffers:
        response = await self._chunks.write_chunk(request)
        return [head_of(FrameKind.WRITTEN, response.SerializeToString())]

    async def _read(self, request: storage_pb2.ReadChunkRequest) -> Buffers:
        return _chunk_frame(*await self._chunks.load_chunk(request))


def _chunk_frame(header: storage_pb2.ReadChunkResponse, data: Sendable) -> Buffers:
    return [head_of(FrameKind.CHUNK, header.SerializeToString(), len(data)), data]
