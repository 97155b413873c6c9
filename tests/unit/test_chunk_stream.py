"""A link to a storage node that goes mute, is lost at once, or is a makeshift."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, cast

import pytest
from tests.unit.test_gateway_clients import SetClock

from exastore.gateway import chunk_stream
from exastore.gateway.chunk_stream import IMPROVE_AFTER_S, ChunkStream, StreamOptions
from exastore.gateway.errors import NodeUnavailable
from exastore.proto.chunk_frames import ReadFrame
from exastore.proto.links import Call, Deliver, Link, Lost, NodeLinks, NodeUnreachable, Request
from exastore.proto.v1 import storage_pb2

OPTIONS = StreamOptions(max_in_flight_bytes=1000, backoff_min_s=0.05, backoff_max_s=2.0, mute_s=1.0)


class FakeLink:
    """Answers when told to."""

    def __init__(self, deliver: Deliver, lost: Lost, *, is_makeshift: bool = False) -> None:
        self.deliver = deliver
        self.lost = lost
        self.is_makeshift = is_makeshift
        self.is_closed = False
        self.sent: list[int] = []

    def send(self, request_id: int, request: Request) -> None:
        assert not self.is_closed
        self.sent.append(request_id)

    def forget(self, request_id: int) -> None:
        pass

    def close(self) -> None:
        self.is_closed = True

    def answer(self) -> None:
        """Answer the last request."""
        header = storage_pb2.ReadChunkResponse(request_id=self.sent[-1])
        self.deliver(ReadFrame(header, b""))


class FakeLinks:
    """Opens fake links."""

    address = "node:1"

    def __init__(self) -> None:
        self.opened: list[FakeLink] = []
        self.has_socket = True
        self.on_open: Callable[[FakeLink], Awaitable[None]] | None = None

    async def open(self, call: Call, deliver: Deliver, lost: Lost) -> Link:
        link = FakeLink(deliver, lost, is_makeshift=not self.has_socket)
        self.opened.append(link)
        if self.on_open is not None:
            await self.on_open(link)
        return link

    async def open_socket(self, call: Call, deliver: Deliver, lost: Lost) -> Link | None:
        return await self.open(call, deliver, lost) if self.has_socket else None


def stream_over(links: FakeLinks, clock: SetClock) -> "ChunkStream[Any]":
    return ChunkStream(cast(NodeLinks, links), Call.READ, clock=clock, options=OPTIONS)


def request(stream: "ChunkStream[Any]") -> "asyncio.Task[Any]":
    read = storage_pb2.ReadChunkRequest()
    return asyncio.create_task(stream.request(lambda _: read, 10, timeout_s=60))


async def turns() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


async def give_up(stream: "ChunkStream[Any]", clock: SetClock, after_s: float) -> None:
    """A request that nobody waits for any longer."""
    waiting = request(stream)
    await turns()
    clock.s += after_s
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting


async def test_a_link_that_answers_nobody_fails_although_every_request_is_given_up() -> None:
    links, clock = FakeLinks(), SetClock()
    stream = stream_over(links, clock)
    await give_up(stream, clock, 0.4)
    await give_up(stream, clock, 0.4)
    clock.s += 3600  # nobody asks: that says nothing
    assert not links.opened[0].is_closed
    await give_up(stream, clock, 0.4)
    assert links.opened[0].is_closed
    clock.s += 10
    after = request(stream)
    await turns()
    links.opened[1].answer()
    await after
    await stream.close()


async def test_requests_that_wait_at_the_same_time_count_once_until_an_answer_comes() -> None:
    links, clock = FakeLinks(), SetClock()
    stream = stream_over(links, clock)
    together = [request(stream) for _ in range(5)]
    await turns()
    clock.s += 0.6
    for waiting in together:
        waiting.cancel()
    await asyncio.gather(*together, return_exceptions=True)
    assert not links.opened[0].is_closed
    answered = request(stream)
    await turns()
    links.opened[0].answer()
    await answered
    await give_up(stream, clock, 0.6)
    assert not links.opened[0].is_closed
    await stream.close()


async def test_a_link_that_is_lost_in_the_turn_it_was_opened_fails_at_once() -> None:
    links, clock = FakeLinks(), SetClock()

    async def lose(link: FakeLink) -> None:
        link.lost("reset")

    links.on_open = lose
    stream = stream_over(links, clock)
    with pytest.raises(NodeUnavailable, match="reset"):
        await asyncio.wait_for(request(stream), 5)
    await stream.close()


async def test_a_request_that_waits_for_a_link_fails_when_the_stream_is_closed() -> None:
    links, clock = FakeLinks(), SetClock()

    async def hang(link: FakeLink) -> None:
        await asyncio.Event().wait()

    links.on_open = hang
    stream = stream_over(links, clock)
    waiting = request(stream)
    await turns()
    await stream.close()
    with pytest.raises(NodeUnavailable, match="closed"):
        await waiting


async def test_a_makeshift_is_left_for_a_socket_and_its_requests_are_still_answered(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(chunk_stream, "LEFT_LINK_S", 0.01)
    links, clock = FakeLinks(), SetClock()
    links.has_socket = False
    stream = stream_over(links, clock)
    early = request(stream)
    await turns()
    clock.s += IMPROVE_AFTER_S
    links.has_socket = True
    late = request(stream)  # begins the search, and is sent over what there is
    await turns()
    stream_link, socket_link = links.opened
    assert len(stream_link.sent) == 2
    newest = request(stream)
    await turns()
    assert len(socket_link.sent) == 1
    stream_link.answer()
    await late
    socket_link.answer()
    await newest
    assert not early.done()
    while not stream_link.is_closed:
        await asyncio.sleep(0.005)
    early.cancel()
    await stream.close()
    assert socket_link.is_closed


async def test_a_node_that_stays_without_a_socket_is_used_over_grpc() -> None:
    links, clock = FakeLinks(), SetClock()
    links.has_socket = False
    stream = stream_over(links, clock)
    for _ in range(3):
        answered = request(stream)
        await turns()
        links.opened[0].answer()
        await answered
        clock.s += IMPROVE_AFTER_S
    assert len(links.opened) == 1
    links.has_socket = True

    async def refuse(link: FakeLink) -> None:
        raise NodeUnreachable("gone")

    links.on_open = refuse
    answered = request(stream)
    await turns()
    links.opened[0].answer()
    await answered
    await stream.close()
