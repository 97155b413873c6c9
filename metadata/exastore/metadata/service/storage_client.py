"""How the metadata server reaches storage nodes."""

from collections.abc import AsyncIterator
from typing import Protocol

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
        call = self._stub(address).Rebuild(request)
        try:
            async for progress in call:
                yield progress
        except grpc.aio.AioRpcError as error:
            raise _translated(address, error) from error
        finally:
            call.cancel()

    async def delete_chunks(
        self, address: str, request: storage_pb2.DeleteChunksRequest
    ) -> storage_pb2.DeleteChunksResponse:
        try:
            return await self._stub(address).DeleteChunks(request, timeout=_CALL_TIMEOUT_S)
        except grpc.aio.AioRpcError as error:
            raise _translated(address, error) from error

    async def list_chunks(
        self, address: str, request: storage_pb2.ListChunksRequest
    ) -> list[storage_pb2.ChunkInfo]:
        call = self._stub(address).ListChunks(request, timeout=_CALL_TIMEOUT_S)
        try:
            return [info async for batch in call for info in batch.chunks]
        except grpc.aio.AioRpcError as error:
            raise _translated(address, error) from error

    async def get_pg_usage(
        self, address: str, request: storage_pb2.GetPgUsageRequest
    ) -> storage_pb2.GetPgUsageResponse:
        try:
            return await self._stub(address).GetPgUsage(request, timeout=_CALL_TIMEOUT_S)
        except grpc.aio.AioRpcError as error:
            raise _translated(address, error) from error

    async def pack_stripe(
        self, address: str, request: upkeep_pb2.PackStripeRequest
    ) -> upkeep_pb2.PackStripeResponse:
        stub: upkeep_pb2_grpc.PackServiceAsyncStub
        stub = upkeep_pb2_grpc.PackServiceStub(self._channel(address))
        try:
            return await stub.PackStripe(request, timeout=_PACK_TIMEOUT_S)
        except grpc.aio.AioRpcError as error:
            raise _translated(address, error) from error

    async def scrub(
        self, address: str, request: storage_pb2.ScrubRequest
    ) -> AsyncIterator[storage_pb2.ScrubProgress]:
        call = self._stub(address).Scrub(request)
        try:
            async for progress in call:
                yield progress
        except grpc.aio.AioRpcError as error:
            raise _translated(address, error) from error
        finally:
            call.cancel()

    async def check_chunks(
        self, address: str, request: healing_pb2.CheckChunksRequest
    ) -> healing_pb2.CheckChunksResponse:
        stub: healing_pb2_grpc.CheckServiceAsyncStub
        stub = healing_pb2_grpc.CheckServiceStub(self._channel(address))
        try:
            return await stub.CheckChunks(request, timeout=_CALL_TIMEOUT_S)
        except grpc.aio.AioRpcError as error:
            raise _translated(address, error) from error

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


def _translated(address: str, error: grpc.aio.AioRpcError) -> StorageError:
    return StorageError(f"node {address}: {error.code().name}: {error.details()}")
