"""Chunks of other storage nodes: read and written over one link for each of both, pipelined.

A link is frames on a socket, or a stream of gRPC where there is none (`exastore.proto.links`), as
gateways use them. It opens with the first request, and again with the next one after it broke;
whatever was under way then has failed.
"""

import asyncio
from collections.abc import Callable, Iterable
from functools import partial
from typing import TYPE_CHECKING, Generic

import grpc.aio

from exastore.proto.chunk_frames import Buffer, ReadFrame, WriteFrame
from exastore.proto.links import Call, ChunkTransport, Link, NodeLinks, NodeUnreachable, Request
from exastore.proto.requests import Answer, OpenRequests, opened
from exastore.proto.v1 import budget_pb2, common_pb2, storage_pb2
from exastore.proto.v1.storage_pb2_grpc import StorageServiceStub
from exastore.storage.channel import open_channel
from exastore.storage.errors import PeerFailure
from exastore.storage.runs import ByteRun

if TYPE_CHECKING:
    from exastore.proto.v1.storage_pb2_grpc import (
        StorageServiceAsyncStub,
    )  # exists in the stub file alone


class _Requests(Generic[Answer]):
    """Requests of one kind to one node."""

    def __init__(self, links: NodeLinks, call: Call, timeout_s: float) -> None:
        self._links = links
        self._call = call
        self._timeout_s = timeout_s
        self._link: Link | None = None
        #: Held while a link is opened.
        self._opening = asyncio.Lock()
        self._open_requests: OpenRequests[Answer] = OpenRequests()

    async def request(self, make: Callable[[int], Request]) -> Answer:
        """The answer to the request that `make` makes of its id. Raises PeerFailure."""
        answer_count = self._open_requests.answer_count
        try:
            async with asyncio.timeout(self._timeout_s):
                return await self._exchange(make)
        except TimeoutError:
            why = f"no answer within {self._timeout_s:g} s"
            if self._open_requests.answer_count == answer_count:
                self.end(why)  # not one, to nobody: the next request tries another link
            raise PeerFailure(f"{self._links.address}: {why}") from None
        except NodeUnreachable as error:
            raise PeerFailure(f"{self._links.address}: {error}") from None

    def end(self, why: str) -> None:
        """Close the link, and fail what is under way."""
        link, self._link = self._link, None
        if link is not None:
            link.close()
        self._open_requests.fail(lambda: PeerFailure(f"{self._links.address}: {why}"))

    async def _exchange(self, make: Callable[[int], Request]) -> Answer:
        return await self._open_requests.ask(self._link or await self._open(), make)

    async def _open(self) -> Link:
        async with self._opening:
            if self._link is None:
                dial = partial(self._links.open, self._call, self._open_requests.deliver)
                self._link = await opened(dial, self._lost)
            return self._link

    def _lost(self, link: Link, why: str) -> None:
        if link is self._link:
            self.end(why)


class Peer:
    """One other node."""

    def __init__(self, address: str, timeout_s: float, transport: ChunkTransport) -> None:
        self.address = address
        self._timeout_s = timeout_s
        self._channel = open_channel(address)
        self._stub: StorageServiceAsyncStub = StorageServiceStub(self._channel)
        links = NodeLinks(address, self._channel, transport)
        self._reads: _Requests[ReadFrame] = _Requests(links, Call.READ, timeout_s)
        self._writes: _Requests[storage_pb2.WriteChunkResponse] = _Requests(
            links, Call.WRITE, timeout_s
        )

    async def read(
        self,
        device_index: int,
        chunk: common_pb2.ChunkId,
        runs: Iterable[ByteRun] = (),
        *,
        background: budget_pb2.BackgroundRead,
        unchecked: bool = False,
    ) -> ReadFrame:
        """The answer, whatever its status. Raises PeerFailure when there is none in time.

        Args:
            device_index: Where the chunk is.
            chunk: Which one.
            runs: What to read of it; nothing: all.
            background: Who asks: the node answers BUSY when its budget for that is spent.
            unchecked: The node may leave it to the asker to check a whole chunk.
        """
        wanted = [
            storage_pb2.ByteRun(offset=run.offset_bytes, length=run.length_bytes) for run in runs
        ]
        return await self._reads.request(
            lambda request_id: storage_pb2.ReadChunkRequest(
                request_id=request_id,
                device_index=device_index,
                chunk=chunk,
                runs=wanted,
                background=background,
                unchecked=unchecked,
            )
        )

    async def write(
        self, header: storage_pb2.WriteChunkRequest, data: Buffer
    ) -> storage_pb2.WriteChunkResponse:
        """The answer, whatever its status; with OK the chunk is durable.

        Args:
            header: What to write where, without its data; gets a request id.
            data: The chunk.

        Raises PeerFailure.
        """

        def numbered(request_id: int) -> WriteFrame:
            header.request_id = request_id
            return WriteFrame(header, data)

        return await self._writes.request(numbered)

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
        self._reads.end("closed")
        self._writes.end("closed")
        await self._channel.close()


class Peers:
    """Clients by address, opened when first needed."""

    def __init__(
        self, timeout_s: float = 10.0, transport: ChunkTransport = ChunkTransport.LOCAL
    ) -> None:
        self._timeout_s = timeout_s
        self._transport = transport
        self._peers: dict[str, Peer] = {}

    def get(self, address: str) -> Peer:
        peer = self._peers.get(address)
        if peer is None:
            peer = self._peers[address] = Peer(address, self._timeout_s, self._transport)
        return peer

    async def close(self) -> None:
        peers, self._peers = self._peers, {}
        await asyncio.gather(*(peer.close() for peer in peers.values()))
