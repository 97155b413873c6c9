"""StorageService over the devices of this node: decode, ask, encode."""

import logging
from collections.abc import AsyncIterator
from typing import Any, NoReturn, cast

import grpc

from exastore.metadata.core.clock import Clock
from exastore.metadata.core.phases import Phase, reach
from exastore.proto.bulk_socket import Sendable
from exastore.proto.chunk_frames import ReadFrame, WriteFrame
from exastore.proto.v1 import storage_pb2
from exastore.proto.v1.storage_pb2_grpc import (
    StorageServiceServicer,
    add_StorageServiceServicer_to_server,
)
from exastore.storage.budget import BackgroundBudget
from exastore.storage.devices import Devices, RefreshMap
from exastore.storage.errors import ChunkCorrupt, ChunkNotFound, StorageError, TransferCorrupt
from exastore.storage.file_span import FileSpan
from exastore.storage.lane import ChunkWrite
from exastore.storage.metrics import StorageMetrics
from exastore.storage.rebuild import Rebuilder
from exastore.storage.runs import ByteRun
from exastore.storage.scrub import scrub
from exastore.storage.status import ChunkStatus, Status, id_of, key_of, status_label, status_of
from exastore.storage.streams import answer_stream

_log = logging.getLogger(__name__)
#: What a request costs beside its data, in bytes of the stream's budget.
_REQUEST_BYTES = 4096
_LIST_BATCH = 512

# The stubs type a servicer for the synchronous and the asynchronous server at once.
Context = Any


class StorageServicer(StorageServiceServicer):
    """See `storage.proto`."""

    def __init__(
        self,
        devices: Devices,
        refresh_map: RefreshMap,
        rebuilder: Rebuilder,
        budget: BackgroundBudget,
        *,
        stream_bytes: int,
        clock: Clock,
        metrics: StorageMetrics,
    ) -> None:
        self._devices = devices
        self._refresh_map = refresh_map
        self._rebuilder = rebuilder
        self._budget = budget
        self._stream_bytes = stream_bytes
        self._clock = clock
        self._metrics = metrics

    # ---- chunk streams ----

    # Their messages are those of `add_to_server`, which the generated types do not know.
    async def WriteChunks(  # type: ignore[override]
        self, request_iterator: AsyncIterator[WriteFrame], context: Context
    ) -> AsyncIterator[storage_pb2.WriteChunkResponse]:
        answers = answer_stream(
            request_iterator,
            self.write_chunk,
            self.write_cost_bytes,
            self._stream_bytes,
        )
        async for answer in answers:
            yield answer

    async def ReadChunks(  # type: ignore[override]
        self, request_iterator: AsyncIterator[storage_pb2.ReadChunkRequest], context: Context
    ) -> AsyncIterator[ReadFrame]:
        answers = answer_stream(
            request_iterator, self.read_chunk, self.read_cost_bytes, self._stream_bytes
        )
        async for answer in answers:
            yield answer

    # ---- one chunk, however it came; see `bulk.Chunks` ----

    def write_cost_bytes(self, frame: WriteFrame) -> int:
        """What the request takes of its stream's memory."""
        return len(frame.data) + _REQUEST_BYTES

    async def write_chunk(self, frame: WriteFrame) -> storage_pb2.WriteChunkResponse:
        """Durable on return when the status is OK."""
        request, data = frame.header, frame.data
        is_background = request.HasField("background")
        if is_background:
            wait_s = await self._budget.accept(
                request.device_index, len(data), request.background.rack
            )
            if wait_s:
                return storage_pb2.WriteChunkResponse(
                    request_id=request.request_id,
                    status=ChunkStatus.CHUNK_STATUS_BUSY,
                    retry_after_s=wait_s,
                    epoch=self._devices.epoch,
                )
        started_s = self._clock.monotonic_s()
        status: Status = ChunkStatus.CHUNK_STATUS_OK
        message = ""
        reach(Phase.CHUNK_RECEIVED)
        try:
            chunk = request.chunk
            lane = await self._devices.lane_for_write(
                request.device_index, chunk.pg, chunk.index, request.epoch, self._refresh_map
            )
            await lane.write(
                ChunkWrite(key_of(chunk), chunk.generation, request.code, data, request.crc32c)
            )
            self._metrics.written_bytes.inc(len(data))
            duration_s = self._clock.monotonic_s() - started_s
            self._metrics.write_seconds.observe(duration_s)
            if not is_background:
                self._budget.note_foreground(duration_s)
        except StorageError as error:
            status, message = status_of(error), str(error)
            if isinstance(error, TransferCorrupt):
                self._metrics.corrupt_transfers.inc()
        self._metrics.written_chunks.labels(status_label(status)).inc()
        reach(Phase.CHUNK_ANSWERING)
        return storage_pb2.WriteChunkResponse(
            request_id=request.request_id,
            status=status,
            message=message,
            epoch=self._devices.epoch,
        )

    def read_cost_bytes(self, request: storage_pb2.ReadChunkRequest) -> int:
        """What the answer is expected to take of its stream's memory."""
        try:
            entry = self._devices.lane(request.device_index).store.get(key_of(request.chunk))
        except StorageError:
            entry = None
        if request.runs:
            return _REQUEST_BYTES + sum(run.length for run in request.runs)
        return _REQUEST_BYTES + (entry.data_bytes if entry else 0)

    def unread_chunk(
        self, request: storage_pb2.ReadChunkRequest
    ) -> tuple[storage_pb2.ReadChunkResponse, FileSpan] | None:
        """The chunk as it lies in the file, for who checks it; None: ask `load_chunk`."""
        started_s = self._clock.monotonic_s()
        found = self._unread(request)
        if found is None or not found[1].is_cached:
            return None
        if request.HasField("background") and not self._budget.send_now(
            request.device_index, len(found[1]), request.background.rack
        ):
            return None
        self._passed_on(request, found[1], started_s)
        return found

    async def load_chunk(
        self, request: storage_pb2.ReadChunkRequest
    ) -> tuple[storage_pb2.ReadChunkResponse, Sendable]:
        """The chunk, for who checks it as it lies in the file, or why not."""
        found = self._unread(request)
        if found is None:
            frame = await self.read_chunk(request)
            return frame.header, frame.data
        busy = await self._busy(request)
        if busy is not None:
            return busy, b""
        started_s = self._clock.monotonic_s()
        lane = self._devices.lane(request.device_index)
        if await lane.load(found[1]):
            self._passed_on(request, found[1], started_s)
            return found
        frame = await self._checked_chunk(request)
        return frame.header, frame.data

    def _unread(
        self, request: storage_pb2.ReadChunkRequest
    ) -> tuple[storage_pb2.ReadChunkResponse, FileSpan] | None:
        if not request.unchecked or request.runs:
            return None
        try:
            store = self._devices.lane(request.device_index).store
        except StorageError:
            return None
        found = store.span(key_of(request.chunk), request.chunk.generation)
        if found is None:
            return None
        span, crc32c = found
        response = storage_pb2.ReadChunkResponse(
            request_id=request.request_id, status=ChunkStatus.CHUNK_STATUS_OK, crc32c=crc32c
        )
        reach(Phase.CHUNK_READ)
        return response, span

    def _passed_on(
        self, request: storage_pb2.ReadChunkRequest, span: FileSpan, started_s: float
    ) -> None:
        duration_s = self._clock.monotonic_s() - started_s
        self._metrics.read_bytes.inc(len(span))
        self._metrics.read_seconds.observe(duration_s)
        self._metrics.read_chunks.labels("ok").inc()
        if not request.HasField("background"):
            self._budget.note_foreground(duration_s)

    async def _busy(
        self, request: storage_pb2.ReadChunkRequest
    ) -> storage_pb2.ReadChunkResponse | None:
        """Wait for the budget of background work; an answer if that would take too long."""
        if not request.HasField("background"):
            return None
        wait_s = await self._budget.send(
            request.device_index, self.read_cost_bytes(request), request.background.rack
        )
        if not wait_s:
            return None
        return storage_pb2.ReadChunkResponse(
            request_id=request.request_id,
            status=ChunkStatus.CHUNK_STATUS_BUSY,
            retry_after_s=wait_s,
        )

    async def read_chunk(self, request: storage_pb2.ReadChunkRequest) -> ReadFrame:
        """The chunk, or why not."""
        busy = await self._busy(request)
        return await self._checked_chunk(request) if busy is None else ReadFrame(busy, b"")

    async def _checked_chunk(self, request: storage_pb2.ReadChunkRequest) -> ReadFrame:
        started_s = self._clock.monotonic_s()
        response = storage_pb2.ReadChunkResponse(
            request_id=request.request_id, status=ChunkStatus.CHUNK_STATUS_OK
        )
        data: bytes | memoryview = b""
        try:
            runs = [ByteRun(run.offset, run.length) for run in request.runs]
            lane = self._devices.lane(request.device_index)
            chunk = await lane.read(key_of(request.chunk), runs)
            if chunk.generation != request.chunk.generation:
                raise ChunkNotFound(f"generation {chunk.generation} is stored")
            response.crc32c, data = chunk.crc32c, chunk.data
            self._metrics.read_bytes.inc(len(chunk.data))
            duration_s = self._clock.monotonic_s() - started_s
            self._metrics.read_seconds.observe(duration_s)
            if not request.HasField("background"):
                self._budget.note_foreground(duration_s)
        except StorageError as error:
            response.status, response.message = status_of(error), str(error)
            if isinstance(error, ChunkCorrupt):
                self._metrics.corrupt_chunks.inc()
                _log.error("corrupt chunk on device %d: %s", request.device_index, error)
        self._metrics.read_chunks.labels(status_label(response.status)).inc()
        reach(Phase.CHUNK_READ)
        return ReadFrame(response, data)

    # ---- other calls ----

    async def DeleteChunks(
        self, request: storage_pb2.DeleteChunksRequest, context: Context
    ) -> storage_pb2.DeleteChunksResponse:
        try:
            if request.given_up_epoch:
                lane = await self._devices.lane_of_given_up(
                    request.device_index,
                    {(chunk.pg, chunk.index) for chunk in request.chunks},
                    request.given_up_epoch,
                    self._refresh_map,
                )
            else:
                lane = self._devices.lane(request.device_index)
            count = await lane.delete([key_of(chunk) for chunk in request.chunks])
        except StorageError as error:
            await _abort(context, error)
        self._metrics.deleted_chunks.inc(count)
        reach(Phase.TOMBSTONES_DURABLE)
        return storage_pb2.DeleteChunksResponse(deleted_count=count)

    async def ListChunks(
        self, request: storage_pb2.ListChunksRequest, context: Context
    ) -> AsyncIterator[storage_pb2.ListChunksResponse]:
        try:
            store = self._devices.lane(request.device_index).store
        except StorageError as error:
            await _abort(context, error)
        chunks = store.of_pg(request.pg)
        for start in range(0, len(chunks), _LIST_BATCH):
            yield storage_pb2.ListChunksResponse(
                chunks=[
                    storage_pb2.ChunkInfo(
                        chunk=id_of(key, entry.generation),
                        code=entry.code,
                        chunk_bytes=entry.data_bytes,
                        crc32c=entry.crc32c,
                    )
                    for key, entry in chunks[start : start + _LIST_BATCH]
                ]
            )

    async def GetPgUsage(
        self, request: storage_pb2.GetPgUsageRequest, context: Context
    ) -> storage_pb2.GetPgUsageResponse:
        try:
            usage = self._devices.lane(request.device_index).store.usage()
        except StorageError as error:
            await _abort(context, error)
        return storage_pb2.GetPgUsageResponse(
            usages=[
                storage_pb2.PgUsage(
                    pg=pg, chunk_count=used.chunk_count, chunk_bytes=used.chunk_bytes
                )
                for pg, used in sorted(usage.items())
            ]
        )

    async def Rebuild(
        self, request: storage_pb2.RebuildRequest, context: Context
    ) -> AsyncIterator[storage_pb2.RebuildProgress]:
        try:
            lane = await self._devices.lane_for_write(
                request.device_index, request.pg, request.index, request.epoch, self._refresh_map
            )
        except StorageError as error:
            await _abort(context, error)
        async for progress in self._rebuilder.run(lane, request):
            yield progress

    async def Scrub(
        self, request: storage_pb2.ScrubRequest, context: Context
    ) -> AsyncIterator[storage_pb2.ScrubProgress]:
        try:
            lane = self._devices.lane(request.device_index)
        except StorageError as error:
            await _abort(context, error)
        scrubbed = scrub(lane, request, self._budget, clock=self._clock, metrics=self._metrics)
        async for progress in scrubbed:
            yield progress


def add_to_server(servicer: StorageServicer, server: grpc.aio.Server) -> None:
    """Register every call; chunks pass as frames, without protobuf's copies of their bytes."""
    add_StorageServiceServicer_to_server(servicer, cast(grpc.aio.Server, _FramedHandlers(server)))


class _FramedHandlers:
    """Takes the handlers that the generated code makes, and changes how chunks are read and made.

    Registered handlers would come before generic ones, and each costs grpc.aio a future that all
    calls wait for; generic handlers do the same without.
    """

    def __init__(self, server: grpc.aio.Server) -> None:
        self._server = server

    def add_generic_rpc_handlers(self, handlers: object) -> None:
        """Left out on purpose: they are made below."""

    def add_registered_method_handlers(self, service: str, handlers: dict[str, Any]) -> None:
        write, read = handlers["WriteChunks"], handlers["ReadChunks"]
        framed = {
            **handlers,
            "WriteChunks": write._replace(request_deserializer=WriteFrame.decode),
            "ReadChunks": read._replace(response_serializer=ReadFrame.encode),
        }
        handler = grpc.method_handlers_generic_handler(service, framed)
        self._server.add_generic_rpc_handlers((handler,))


async def _abort(context: Context, error: StorageError) -> NoReturn:
    status = ChunkStatus.Name(status_of(error)).removeprefix("CHUNK_STATUS_")
    await context.abort(
        grpc.StatusCode.FAILED_PRECONDITION, f"{status}: {error}", (("exastore-reason", status),)
    )
    raise AssertionError("abort raises")
