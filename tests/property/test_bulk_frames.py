"""Frames on a socket: whatever is sent, in whatever pieces."""

import asyncio
import contextlib
import socket

from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from exastore.proto.bulk_frames import (
    MAX_DATA_BYTES,
    MAX_HEADER_BYTES,
    PREFIX,
    BadFrame,
    Frame,
    FrameKind,
    FrameReader,
    head_of,
)
from exastore.proto.bulk_port import BulkLimits
from exastore.proto.chunk_frames import WriteFrame
from exastore.proto.v1 import bulk_pb2, storage_pb2
from exastore.storage.bulk import BulkServer
from exastore.storage.metrics import StorageMetrics

KINDS = st.sampled_from(FrameKind)
FRAMES = st.tuples(
    KINDS,
    st.one_of(st.binary(max_size=80), st.integers(4000, 9000).map(bytes)),
    st.one_of(st.binary(max_size=80), st.integers(4000, 20_000).map(bytes)),
)
#: Bytes that begin like a frame as often as not.
NEARLY = st.tuples(
    st.tuples(
        st.just(b"xb"),
        st.integers(0, 255),
        st.sampled_from([0, 0, 0, 1]),
        st.one_of(st.integers(0, 64), st.integers(0, 2**32 - 1)),
        st.one_of(st.just(0), st.integers(0, 2**32 - 1)),
    ),
    st.binary(max_size=200),
).map(lambda parts: PREFIX.pack(*parts[0]) + parts[1])


def feed(reader: FrameReader, data: bytes, sizes: list[int]) -> list[Frame]:
    """Give the reader the bytes in pieces of at most these sizes, over and over."""
    frames: list[Frame] = []
    turn = 0
    while data:
        space = reader.space()
        assert len(space) > 0
        count = min(len(data), len(space), sizes[turn % len(sizes)])
        space[:count] = data[:count]
        data = data[count:]
        turn += 1
        frames += reader.received(count)
    return frames


@given(st.lists(FRAMES, max_size=8), st.lists(st.integers(1, 10_000), min_size=1, max_size=5))
def test_frames_come_out_as_they_went_in_whatever_the_pieces(
    sent: list[tuple[FrameKind, bytes, bytes]], sizes: list[int]
) -> None:
    reader = FrameReader()
    stream = b"".join(head_of(kind, head, len(data)) + data for kind, head, data in sent)
    frames = feed(reader, stream, sizes)
    assert [(frame.kind, frame.header, bytes(frame.data)) for frame in frames] == sent
    assert not reader.is_within_frame


@given(st.lists(st.one_of(NEARLY, st.binary(max_size=100)), min_size=1, max_size=4))
def test_anything_is_frames_or_refused_and_never_takes_more_than_its_limit(
    pieces: list[bytes],
) -> None:
    taken: list[int] = []

    def allocate(size_bytes: int) -> memoryview:
        taken.append(size_bytes)
        return memoryview(bytearray(size_bytes))

    reader = FrameReader(max_header_bytes=5000, max_data_bytes=10_000, allocate=allocate)
    with contextlib.suppress(BadFrame):
        feed(reader, b"".join(pieces), [7, 4096])
        assert len(reader.space()) <= 10_000
    assert all(size <= 10_000 for size in taken)


def test_frames_that_the_other_side_would_refuse_are_not_made() -> None:
    for header, data_bytes in ((bytes(MAX_HEADER_BYTES + 1), 0), (b"", MAX_DATA_BYTES + 1)):
        with contextlib.suppress(BadFrame):
            head_of(FrameKind.WRITE, header, data_bytes)
            raise AssertionError("it was made")


class _Echo:
    """Answers everything."""

    def write_cost_bytes(self, request: WriteFrame, /) -> int:
        return len(request.data)

    def read_cost_bytes(self, request: storage_pb2.ReadChunkRequest, /) -> int:
        return 1

    async def write_chunk(self, request: WriteFrame, /) -> storage_pb2.WriteChunkResponse:
        return storage_pb2.WriteChunkResponse(request_id=request.header.request_id)

    def unread_chunk(self, request: storage_pb2.ReadChunkRequest, /) -> None:
        return None

    async def load_chunk(
        self, request: storage_pb2.ReadChunkRequest, /
    ) -> tuple[storage_pb2.ReadChunkResponse, bytes]:
        return storage_pb2.ReadChunkResponse(request_id=request.request_id), b"x" * 100


async def _attack(streams: list[tuple[bool, bytes, bool]]) -> None:
    """Each: whether it knows the secret, what it sends, whether it waits for the end."""
    loop = asyncio.get_running_loop()
    metrics = StorageMetrics(CollectorRegistry())
    bulk = BulkServer(_Echo(), BulkLimits(1000, hello_s=0.05, stall_s=0.05), metrics)
    bulk.start("127.0.0.1")
    node = await bulk.Describe(bulk_pb2.DescribeBulkRequest(), None)
    failures: list[object] = []
    loop.set_exception_handler(lambda _, context: failures.append(context))
    try:
        for knows, data, waits in streams:
            connected = socket.socket()
            connected.setblocking(False)
            await loop.sock_connect(connected, ("127.0.0.1", node.port))
            with contextlib.suppress(ConnectionError):
                if knows:
                    await loop.sock_sendall(connected, head_of(FrameKind.HELLO, node.client_secret))
                await loop.sock_sendall(connected, data)
                if waits:
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(0.3):
                            while await loop.sock_recv(connected, 65536):
                                pass
            connected.close()
    finally:
        await bulk.stop(0)
    assert failures == []
    left = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
    assert left == []


@settings(max_examples=30, deadline=None)
@given(
    st.lists(
        st.tuples(st.booleans(), st.one_of(NEARLY, st.binary(max_size=300)), st.booleans()),
        min_size=1,
        max_size=4,
    )
)
def test_no_input_breaks_the_port_or_leaves_anything_behind(
    streams: list[tuple[bool, bytes, bool]],
) -> None:
    asyncio.run(_attack(streams))
