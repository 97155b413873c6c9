"""How our processes reach each other: the options of every gRPC channel, in one place."""

from typing import Final

import grpc.aio

#: A chunk travels whole in one message.
CHUNK_MESSAGE_BYTES: Final = 8 << 20
#: A large object's extents and a large map travel in one message.
METADATA_MESSAGE_BYTES: Final = 64 << 20

Options = tuple[tuple[str, int], ...]


def keep_grpc_running() -> None:
    """Keep gRPC's poller for the life of this process; call it once, before the first channel.

    Otherwise gRPC stops it with the last channel or server, wherever that is collected, and waits
    there, for ever if a call is still under way.
    """
    grpc.aio.init_grpc_aio()


def _message_options(max_message_bytes: int) -> Options:
    return (
        ("grpc.max_receive_message_length", max_message_bytes),
        ("grpc.max_send_message_length", max_message_bytes),
    )


def server_options(max_message_bytes: int) -> Options:
    """Options of a server whose messages have at most so many bytes.

    Without SO_REUSEPORT a second process on the same port is an error, as it should be; with it,
    it would take half of the calls.
    """
    return (*_message_options(max_message_bytes), ("grpc.so_reuseport", 0))


def channel_options(max_message_bytes: int) -> Options:
    """Options of a client's channel.

    Reconnects soon, for servers restart within seconds and gRPC would wait up to two minutes. What
    gRPC calls the least backoff is the time that one attempt has to connect: a busy server needs
    more than the pause between two attempts. Never through a proxy: those that the environment
    names are for the outside world.
    """
    return (
        *_message_options(max_message_bytes),
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.min_reconnect_backoff_ms", 3000),
        ("grpc.max_reconnect_backoff_ms", 1000),
        ("grpc.enable_http_proxy", 0),
    )
