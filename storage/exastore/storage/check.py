"""Tells metadata which of its chunks a device does not have, or has with other bytes."""

from typing import Any

import grpc

from exastore.proto.v1 import healing_pb2
from exastore.storage.devices import Devices
from exastore.storage.errors import StorageError
from exastore.storage.status import key_of

_SERVICE = "exastore.proto.v1.CheckService"


def check_chunks(
    devices: Devices, request: healing_pb2.CheckChunksRequest
) -> healing_pb2.CheckChunksResponse:
    """Compare with the index alone: whether the bytes are still there is what a scrub finds.

    Raises:
        WrongDevice: the device is not on this node.
    """
    store = devices.lane(request.device_index).store
    response = healing_pb2.CheckChunksResponse()
    for position, (chunk, crc) in enumerate(zip(request.chunks, request.crc32c, strict=True)):
        entry = store.get(key_of(chunk))
        if entry is None:
            response.missing.append(position)
        elif entry.crc32c != crc:
            response.wrong.append(position)
    return response


def add_to_server(devices: Devices, server: grpc.aio.Server) -> None:
    """Register the service; as a generic handler, see `servicer.py`."""

    async def serve(
        request: healing_pb2.CheckChunksRequest, context: Any
    ) -> healing_pb2.CheckChunksResponse:
        try:
            return check_chunks(devices, request)
        except (StorageError, ValueError) as error:
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, str(error))
            raise

    handler = grpc.unary_unary_rpc_method_handler(
        serve,
        request_deserializer=healing_pb2.CheckChunksRequest.FromString,
        response_serializer=healing_pb2.CheckChunksResponse.SerializeToString,
    )
    generic = grpc.method_handlers_generic_handler(_SERVICE, {"CheckChunks": handler})
    server.add_generic_rpc_handlers((generic,))
