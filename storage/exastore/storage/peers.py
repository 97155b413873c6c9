"""Reading from other storage nodes: one channel and one long-lived read stream per node."""

import asyncio
import itertools
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, cast

import grpc.aio

from exastore.proto.chunk_frames import ReadFrame
from exastore.proto.v1 import budget_pb2, common_pb2, storage_pb2
from exastore.proto.v1.storage_pb2_grpc import StorageServiceStub
from exastore.storage.channel import open_channel
from exastore.storage.errors import PeerFailure
from exastore.storage.runs import ByteRun

if TYPE_CHECKING:
    from exastore.proto.v1.storage_pb2_grpc import (
        StorageServiceAsyncStub,
    )  # exists in the stub file alone

_ReadStream = grpc.aio.StreamStreamCall[storage_pb2.ReadChunkRequest, ReadFrame]


class Peer:
    """One other node. Reads are pipelined over one stream, which is opened again when it broke."""

    def __init__(self, address: str, timeout_s: float) -> None:
        self.address = address
        self._timeout_s = timeout_s
        self._channel = open_channel(address)
        self._stub: StorageServiceAsyncStub = StorageServiceStub(self._channel)
        self._read_chunks: Any = self._channel.stream_stream(
            "/exastore.proto.v1.StorageService/ReadChunks",
            request_serializer=storage_pb2.ReadChunkRequest.SerializeToString,
            response_deserializer=ReadFrame.decode,
        )
        self._request_ids = itertools.count(1)
        self._stream: _ReadStream | None = None
        self._receiver: asyncio.Task[None] | None = None
        self._writing = asyncio.Lock()
        #: Requests of the present stream that have no answer yet.
        self._waiting: dict[int, asyncio.Future[ReadFrame]] = {}

    async def read(
        self,
        device_index: int,
        chunk: common_pb2.ChunkId,
        runs: Iterable[ByteRun] = (),
        *,
        background: budget_pb2.BackgroundRead | None = None,
    ) -> ReadFrame:
        """The answer, whatever its status. Raises PeerFailure when there is none in time.

        Args:
            device_index: Where the chunk is.
            chunk: Which one.
            runs: What to read of it; nothing: all.
            background: Set for repair and moves: the node answers BUSY when its budget is spent.
        """
        request = storage_pb2.ReadChunkRequest(
            request_id=next(self._request_ids),
            device_index=device_index,
            chunk=chunk,
            runs=[
                storage_pb2.ByteRun(offset=run.offset_bytes, length=run.length_bytes)
                for run in runs
            ],
            background=background,
        )
        answer: asyncio.Future[ReadFrame] = asyncio.get_running_loop().create_future()
        try:
            async with asyncio.timeout(self._timeout_s):
                async with self._writing:
                    stream = self._stream or self._open()
                    self._waiting[request.request_id] = answer
                    await stream.write(request)
                return await answer
        except TimeoutError:
            raise PeerFailure(f"{self.address} did not answer in {self._timeout_s} s") from None
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError) as error:
            raise PeerFailure(f"{self.address}: {error}") from error
        finally:
            self._waiting.pop(request.request_id, None)

    async def write(self, request: storage_pb2.WriteChunkRequest) -> storage_pb2.WriteChunkResponse:
        """The answer, whatever its status; with OK the chunk is durable.

        A stream of its own: chunks that nodes write are few and large.

        Raises PeerFailure.
        """
        call = self._stub.WriteChunks(iter((request,)), timeout=self._timeout_s)
        try:
            async for response in call:
                return response
        except grpc.aio.AioRpcError as error:
            raise PeerFailure(f"{self.address}: {error.details()}") from error
        finally:
            call.cancel()
        raise PeerFailure(f"{self.address}: the stream ended")

    async def list_chunks(self, device_index: int, pg: int) -> list[storage_pb2.ChunkInfo]:
        """Raises PeerFailure."""
        request = storage_pb2.ListChunksRequest(device_index=device_index, pg=pg)
        chunks: list[storage_pb2.ChunkInfo] = []
        try:
            async for batch in self._stub.ListChunks(request, timeout=self._timeout_s):
                chunks.extend(batch.chunks)
        except grpc.aio.AioRpcError as error:
            raise PeerFailure(f"{self.address}: {error.details()}") from error
        return chunks

    async def close(self) -> None:
        if self._stream is not None:
            self._stream.cancel()
        if self._receiver is not None:
            await asyncio.gather(self._receiver, return_exceptions=True)
        await self._channel.close()

    def _open(self) -> _ReadStream:
        stream: _ReadStream = self._read_chunks()
        self._stream = stream
        self._receiver = asyncio.create_task(self._receive(stream))
        return stream

    async def _receive(self, stream: _ReadStream) -> None:
        reason = "the stream ended"
        try:
            async for response in cast(Any, stream):
                answer = self._waiting.pop(response.request_id, None)
                if answer is not None and not answer.done():
                    answer.set_result(response)
        except grpc.aio.AioRpcError as error:
            reason = str(error.details())
        except asyncio.CancelledError:
            reason = "closed"
        finally:
            if self._stream is stream:
                self._stream = None
            waiting, self._waiting = self._waiting, {}
            for answer in waiting.values():
                if not answer.done():
                    answer.set_exception(PeerFailure(f"{self.address}: {reason}"))


class Peers:
    """Clients by address, opened when first needed."""

    def __init__(self, timeout_s: float = 10.0) -> None:
        self._timeout_s = timeout_s
        self._peers: dict[str, Peer] = {}

    def get(self, address: str) -> Peer:
        peer = self._peers.get(address)
        if peer is None:
            peer = self._peers[address] = Peer(address, self._timeout_s)
        return peer

    async def close(self) -> None:
        peers, self._peers = self._peers, {}
        await asyncio.gather(*(peer.close() for peer in peers.values()))
