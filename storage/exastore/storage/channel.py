"""How this room opens gRPC channels and servers."""

import grpc.aio

MAX_MESSAGE_BYTES = 8 << 20

#: Reconnect soon: servers restart within seconds, and gRPC would wait up to two minutes.
_OPTIONS = (
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
)
_CHANNEL_OPTIONS = (
    *_OPTIONS,
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
)


def open_channel(address: str) -> grpc.aio.Channel:
    return grpc.aio.insecure_channel(address, options=_CHANNEL_OPTIONS)


def make_server() -> grpc.aio.Server:
    # Without SO_REUSEPORT a second process on the same port is an error, as it should be.
    return grpc.aio.server(options=(*_OPTIONS, ("grpc.so_reuseport", 0)))
