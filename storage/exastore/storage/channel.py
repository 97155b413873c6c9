"""How this room opens gRPC channels and servers."""

import grpc.aio

from exastore.proto.channel import CHUNK_MESSAGE_BYTES, channel_options, server_options


def open_channel(address: str) -> grpc.aio.Channel:
    return grpc.aio.insecure_channel(address, options=channel_options(CHUNK_MESSAGE_BYTES))


def make_server() -> grpc.aio.Server:
    return grpc.aio.server(options=server_options(CHUNK_MESSAGE_BYTES))
