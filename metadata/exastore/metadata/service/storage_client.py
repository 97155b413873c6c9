"""How the metadata server reaches storage nodes."""

from collections.abc import AsyncGenerator, AsyncIterator, Generator
from contextlib import asynccontextmanager, contextmanager
from typing import Protocol, TypeVar

import grpc

from exastore.proto.channel import CHUNK_MESSAGE_BYTES, channel_options
from exastore.proto.v1 import (
    healing_pb2,
    healing_pb2_grpc,
    storage_pb2,
    storage_pb2_grpc,
    upkeep_pb2,
    upkeep_pb2_grpc,
)

_Call = TypeVar("_Call", bound=grpc.aio.Call)

_CALL_TIMEOUT_S = 20.0
_PACK_TIMEOUT_S = 60.0
_OPTIONS = channel_options(CHUNK_MESSAGE_BYTES)


class StorageError(Exception):
    """A storage node did not do what it was asked to."""


class StorageClient(Protocol):
    """The calls of StorageService that background work makes. Failures raise StorageError."""

    def rebuild(
        self, address: str, request: storage_pb2.RebuildRequest
    ) -> AsyncIterator[storage_pb2.RebuildProgress]: ...

    async def delete_chunks(
        self, address: str, request: storage_pb2.DeleteChunksRequest
    ) -> storage_pb2.DeleteChunksResponse: ...

    async def list_chunks(
        self, address: str, request: storage_pb2.ListChunksRequest
    ) -> list[storage_pb2.ChunkInfo]: ...

    async def get_pg_usage(
        self, address: str, request: storage_pb2.GetPgUsageRequest
    ) -> storage_pb2.GetPgUsageResponse: ...

    async def pack_stripe(
        self, address: str, request: upkeep_pb2.PackStripeRequest
    ) -> upkeep_pb2.PackStripeResponse: ...

    def scrub(
        self, address: str, request: storage_pb2.ScrubRequest
    ) -> AsyncIterator[storage_pb2.ScrubProgress]: ...

    async def check_chunks(
        self, address: str, request: healing_pb2.CheckChunksRequest
    ) -> healing_pb2.CheckChunksResponse: ...

    async def close(self) -> None: ...


class GrpcStorageClient:
    """One channel per node, kept open."""

    def __init__(self) -> None:
        #: By address.
        self._channels: dict[str, grpc.aio.Channel] = {}

    async def rebuild(
        self, address: str, request: storage_pb2.RebuildRequest
    ) -> AsyncIterator[storage_pb2.RebuildProgress]:
        async with _stream(address, self._stub(address).Rebuild(request)) as call:
            async for progress in call:
                yield progress

    async def delete_chunks(
        self, address: str, request: storage_pb2.DeleteChunksRequest
    ) -> storage_pb2.DeleteChunksResponse:
        with _translating(address):
            return await self._stub(address).DeleteChunks(request, timeout=_CALL_TIMEOUT_S)

    async def list_chunks(
        self, address: str, request: storage_pb2.ListChunksRequest
    ) -> list[storage_pb2.ChunkInfo]:
        call = self._stub(address).ListChunks(request, timeout=_CALL_TIMEOUT_S)
        with _translating(address):
            return [info async for batch in call for info in batch.chunks]

    async def get_pg_usage(
        self, address: str, request: storage_pb2.GetPgUsageRequest
    ) -> storage_pb2.GetPgUsageResponse:
        with _translating(address):
            return await self._stub(address).GetPgUsage(request, timeout=_CALL_TIMEOUT_S)

    async def pack_stripe(
        self, address: str, request: upkeep_pb2.PackStripeRequest
    ) -> upkeep_pb2.PackStripeResponse:
        stub: upkeep_pb2_grpc.PackServiceAsyncStub
        stub = upkeep_pb2_grpc.PackServiceStub(self._channel(address))
        with _translating(address):
            return await stub.PackStripe(request, timeout=_PACK_TIMEOUT_S)

    async def scrub(
        self, address: str, request: storage_pb2.ScrubRequest
    ) -> AsyncIterator[storage_pb2.ScrubProgress]:
        async with _stream(address, self._stub(address).Scrub(request)) as call:
            async for progress in call:
                yield progress

    async def check_chunks(
        self, address: str, request: healing_pb2.CheckChunksRequest
    ) -> healing_pb2.CheckChunksResponse:
        stub: healing_pb2_grpc.CheckServiceAsyncStub
        stub = healing_pb2_grpc.CheckServiceStub(self._channel(address))
        with _translating(address):
            return await stub.CheckChunks(request, timeout=_CALL_TIMEOUT_S)

    async def close(self) -> None:
        for channel in self._channels.values():
            await channel.close()
        self._channels.clear()

    def _stub(self, address: str) -> "storage_pb2_grpc.StorageServiceAsyncStub":
        return storage_pb2_grpc.StorageServiceStub(self._channel(address))

    def _channel(self, address: str) -> grpc.aio.Channel:
        channel = self._channels.get(address)
        if channel is None:
            channel = self._channels[address] = grpc.aio.insecure_channel(address, options=_OPTIONS)
        return channel


@contextmanager
def _translating(address: str) -> Generator[None]:
    """Errors of gRPC as StorageError."""
    try:
        yield
    except grpc.aio.AioRpcError as error:
        text = f"node {address}: {error.code().name}: {error.details()}"
        raise StorageError(text) from error


@asynccontextmanager
async def _stream(address: str, call: _Call) -> AsyncGenerator[_Call]:
    """A call whose answers are taken one by one; cancelled when nobody wants more."""
    with _translating(address):
        try:
            yield call
        finally:
            call.cancel()
