"""Requests that share a link, as gateways and storage nodes send them."""

import asyncio
from typing import Any

import pytest
from tests.unit.test_chunk_stream import FakeLink, FakeLinks, turns

from exastore.proto.links import Call, Lost, NodeUnreachable
from exastore.proto.requests import OpenRequests, opened
from exastore.proto.v1 import storage_pb2


def test_a_link_that_is_lost_while_it_is_opened_is_none() -> None:
    links = FakeLinks()
    told: list[str] = []

    async def dial(lost: Lost) -> FakeLink:
        link = await links.open(Call.READ, print, lost)
        lost("reset")
        assert isinstance(link, FakeLink)
        return link

    with pytest.raises(NodeUnreachable, match="reset"):
        asyncio.run(opened(dial, lambda _, why: told.append(why)))
    assert told == []


async def test_who_lost_a_link_is_told_which_one() -> None:
    told: list[tuple[FakeLink, str]] = []

    async def dial(lost: Lost) -> FakeLink:
        return FakeLink(print, lost)

    link = await opened(dial, lambda its, why: told.append((its, why)))
    link.lost("reset")
    assert told == [(link, "reset")]


async def test_each_open_request_fails_with_an_error_of_its_own() -> None:
    requests: OpenRequests[Any] = OpenRequests()
    link = FakeLink(requests.deliver, print)
    asked = [
        asyncio.create_task(requests.ask(link, lambda _: storage_pb2.ReadChunkRequest()))
        for _ in range(3)
    ]
    await turns()
    link.answer()
    await turns()
    requests.fail(lambda: ConnectionError("gone"))
    failures = await asyncio.gather(*asked, return_exceptions=True)
    assert requests.answer_count == 1
    assert [type(its) for its in failures[:2]] == [ConnectionError] * 2
    assert failures[0] is not failures[1]
    assert asked[2].result().header.request_id == link.sent[2]
