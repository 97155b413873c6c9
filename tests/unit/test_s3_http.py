"""HTTP as the gateway speaks it: what is malformed, pipelined, slow, or about to end."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.test_s3_connections import CONTINUE, Client, StillClock

from exastore.gateway.errors import RequestError
from exastore.gateway.s3.http import HttpServer
from exastore.gateway.s3.http_body import BODY_BYTES
from exastore.gateway.s3.http_head import BadHead, absolute_target, head_of
from exastore.gateway.s3.http_hub import Patience
from exastore.gateway.s3.message import Request, Response

GET = b"GET /a HTTP/1.1\r\nHost: h\r\n\r\n"
POST = b"POST /p HTTP/1.1\r\nHost: h\r\n"


async def echo(request: Request) -> Response:
    """Answer with the path, the query and the body, or with the error of the body."""
    body = b""
    try:
        while (piece := await request.stream.read()) is not None:
            body += piece
    except RequestError as error:
        return Response(400, content=error.code.encode())
    return Response(content=b"%s|%s|%s" % (request.raw_path, request.raw_query, body))


async def refuse_early(request: Request) -> Response:
    """Answer without a look at the body."""
    return Response(403, content=b"no")


async def said(*pieces: bytes) -> tuple[bytes, Client]:
    client = Client(echo)
    client.send(*pieces)
    return await client.answers(), client


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (POST + b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
        (POST + b"Transfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n0\r\n\r\n", 400),
        (POST + b"Content-Length: 3\r\nContent-Length: 3\r\n\r\nabc", 400),
        (POST + b"Content-Length: 3\r\nContent-Length: 4\r\n\r\nabc", 400),
        (POST + b"Content-Length: 3, 3\r\n\r\nabc", 400),
        (POST + b"Content-Length: +3\r\n\r\nabc", 400),
        (POST + b"Content-Length: -1\r\n\r\n", 400),
        (POST + b"Content-Length: 0x3\r\n\r\nabc", 400),
        (POST + b"Content-Length: 99999999999999999999999\r\n\r\n", 400),
        (POST + b"Content-Length:\r\n\r\n", 400),
        (POST + b"Content-Length : 3\r\n\r\nabc", 400),
        (POST + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
        (POST + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", 501),
        (POST + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n", 501),
        (POST + b"Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n", 400),
        (POST + b"Transfer-Encoding: chunked\r\n\r\n-3\r\nabc\r\n0\r\n\r\n", 400),
        (POST + b"Transfer-Encoding: chunked\r\n\r\nxyz\r\n", 400),
        (POST + b"Transfer-Encoding: chunked\r\n\r\nffffffffffffffffff\r\n", 400),
        (POST + b"Transfer-Encoding: chunked\r\n\r\n3\r\nabcd\r\n0\r\n\r\n", 400),
        (POST + b"Transfer-Encoding: chunked\r\n\r\n3\nabc\r\n0\r\n\r\n", 400),
        (b"POST /p HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
        (b"GET /a HTTP/1.1\nHost: h\n\n", 400),
        (b"GET /a HTTP/1.1\r\nHost: h\n\r\n", 400),
        (b"GET /a HTTP/1.1\r\nHost: h\r\nX: a\rb\r\n\r\n", 400),
        (b"GET /a HTTP/1.1\r\nHost: h\r\nX: a\0b\r\n\r\n", 400),
        (b"GET /a HTTP/1.1\r\nHost: h\r\n folded\r\n\r\n", 400),
        (b"GET /a HTTP/1.1\r\nHost: h\r\nno colon\r\n\r\n", 400),
        (b"GET /a HTTP/1.1\r\nHost: h\r\n: nameless\r\n\r\n", 400),
        (b"GET /a HTTP/1.1\r\n\r\n", 400),
        (b"GET /a HTTP/1.1\r\nHost: h\r\nHost: i\r\n\r\n", 400),
        (b"GET /a HTTP/9.9\r\nHost: h\r\n\r\n", 400),
        (b"GET /a HTTP/2.0\r\nHost: h\r\n\r\n", 505),
        (b"GET /a\r\n\r\n", 505),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
        (b"GET /a b HTTP/1.1\r\nHost: h\r\n\r\n", 400),
        (b"GET /a#b HTTP/1.1\r\nHost: h\r\n\r\n", 400),
        (b"GET * HTTP/1.1\r\nHost: h\r\n\r\n", 400),
        (b"GET http://other/a HTTP/1.1\r\nHost: h\r\n\r\n", 400),
        (b"GET http://u@h/a HTTP/1.1\r\nHost: h\r\n\r\n", 400),
        (b"CONNECT h:80 HTTP/1.1\r\nHost: h\r\n\r\n", 405),
        (b"NONSENSE /a HTTP/1.1\r\nHost: h\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400),
        (b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\nHost: h\r\n\r\n", 400),
        (b"GET /a HTTP/1.1\r\nHost: h\r\n" + b"x: y\r\n" * 20_000 + b"\r\n", 400),
        (POST + b"Transfer-Encoding: chunked\r\n\r\n0\r\n" + b"x: yyyyyyyy\r\n" * 9000, 400),
    ],
)
async def test_what_could_be_read_in_two_ways_is_refused(request_bytes: bytes, status: int) -> None:
    smuggled = b"GET /smuggled HTTP/1.1\r\nHost: h\r\n\r\n"
    size = len(request_bytes)
    for cut in (size, size // 2, 7, 1):
        if cut == 1 and size > 1000:
            continue
        client = Client(echo)
        for at in range(0, size, cut):
            client.send(request_bytes[at : at + cut])
            await asyncio.sleep(0)
        client.send(smuggled)
        answer = await client.answers()
        assert answer.startswith(b"HTTP/1.1 %d " % status), (answer, cut)
        assert answer.count(b"HTTP/1.1 ") == 1
        assert b"Connection: close\r\n" in answer
        assert b"smuggled" not in answer
        assert client.transport.is_closed or client.transport.sent_eof


async def test_an_error_waits_for_the_answers_that_are_due() -> None:
    answer, client = await said(GET + GET + b"nonsense\r\n\r\n")
    assert [part[:3] for part in answer.split(b"HTTP/1.1 ")[1:]] == [b"200", b"200", b"400"]
    assert client.transport.sent_eof


async def test_pipelined_requests_are_answered_in_turn() -> None:
    more = POST + b"Content-Length: 2\r\n\r\nhi" + POST.replace(b"/p", b"/q?x=1")
    answer, client = await said(
        GET + more + b"Transfer-Encoding: chunked\r\n\r\n2\r\nho\r\n0\r\n\r\n"
    )
    bodies = [part.rpartition(b"\r\n\r\n")[2] for part in answer.split(b"HTTP/1.1 200 OK")[1:]]
    assert bodies == [b"/a||", b"/p||hi", b"/q|x=1|ho"]
    assert not client.transport.is_closed


async def test_nothing_is_received_while_a_request_waits_its_turn() -> None:
    client = Client(echo)
    client.send(POST + b"Content-Length: 2\r\n\r\nh")
    await client.settle()
    assert not client.transport.is_paused
    client.send(b"i" + GET + GET)
    assert client.transport.is_paused
    await client.answers()
    assert not client.transport.is_paused


async def test_a_body_that_nobody_reads_fills_no_memory() -> None:
    release = asyncio.Event()

    async def wait(request: Request) -> Response:
        await release.wait()
        return await echo(request)

    client = Client(wait)
    body = bytes(BODY_BYTES + 1)
    client.send(POST + b"Content-Length: %d\r\n\r\n" % (len(body) + 3), body)
    assert client.transport.is_paused
    release.set()
    await client.settle()
    assert not client.transport.is_paused
    client.send(b"end")
    assert (await client.answers()).endswith(b"end")


async def test_the_rest_of_a_refused_body_is_forgotten_and_the_connection_stays() -> None:
    client = Client(refuse_early)
    client.send(POST + b"Content-Length: 6\r\n\r\nab")
    assert (await client.answers()).startswith(b"HTTP/1.1 403 ")
    client.send(b"cdef" + GET)
    assert (await client.answers()).count(b"HTTP/1.1 403 ") == 2
    assert not client.transport.is_closed


async def test_old_clients_are_served_and_may_stay() -> None:
    answer, client = await said(b"GET /a HTTP/1.0\r\n\r\n")
    assert b"Connection: close\r\n" in answer and client.transport.is_closed
    answer, client = await said(b"GET /a HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
    assert b"Connection: keep-alive\r\n" in answer and not client.transport.is_closed


async def test_an_upgrade_is_not_taken_up() -> None:
    upgrade = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAA\r\n"
    head = b"GET /a HTTP/1.1\r\nHost: h\r\n" + upgrade + b"\r\n"
    answer, client = await said(head + GET)
    assert answer.count(b"HTTP/1.1 200 OK") == 2
    assert not client.transport.is_closed


async def test_a_head_has_no_body() -> None:
    answer, _ = await said(b"HEAD /a HTTP/1.1\r\nHost: h\r\n\r\n")
    assert b"Content-Length: 4\r\n" in answer and answer.endswith(b"\r\n\r\n")


async def test_a_half_closed_client_gets_all_its_answers() -> None:
    client = Client(echo)
    client.send(GET + GET)
    assert client.connection.eof_received()
    assert (await client.answers()).count(b"HTTP/1.1 200 OK") == 2
    assert client.transport.is_closed


async def test_a_slow_head_is_given_up_and_an_idle_connection_closed() -> None:
    client = Client(echo)
    client.send(b"GET /a HTTP/1.1\r\nHo")
    for _ in range(29):
        client.pass_ticks(1)
        client.send(b"s")
    assert await client.answers() == b""
    client.pass_ticks(1)
    assert b"<Code>RequestTimeout</Code>" in await client.answers()
    client = Client(echo)
    client.send(GET)
    await client.answers()
    client.pass_ticks(74)
    assert not client.transport.is_closed
    client.pass_ticks(1)
    assert client.transport.is_closed


async def test_who_does_not_stop_sending_is_cut_off() -> None:
    client = Client(echo)
    client.send(b"nonsense\r\n\r\n")
    await client.answers()
    client.send(bytes(1 << 20))
    assert not client.transport.was_aborted
    client.pass_ticks(2)
    assert client.transport.was_aborted
    client = Client(echo)
    client.send(b"nonsense\r\n\r\n")
    await client.answers()
    client.send(*[bytes(1 << 20)] * 17)
    assert client.transport.was_aborted


async def test_a_server_that_stops_answers_what_was_asked() -> None:
    client = Client(echo)
    client.send(POST + b"Content-Length: 2\r\n\r\nh")
    await client.settle()
    client.hub.stopping = True
    client.connection.shut()
    client.send(b"i")
    answer = await client.answers()
    assert answer.startswith(b"HTTP/1.1 200 OK") and b"Connection: close\r\n" in answer
    assert client.transport.is_closed
    fresh = Client(echo)
    fresh.hub.stopping = True
    fresh.connection.shut()
    assert not fresh.transport.is_closed  # It came as we went: it may ask once.
    fresh.send(GET)
    assert b"Connection: close\r\n" in await fresh.answers()
    assert fresh.transport.is_closed


def test_no_header_can_end_its_line() -> None:
    for text in ("a\r\nb: c", "a\nb", "a\rb", "a\0b"):
        with pytest.raises(BadHead):
            head_of(Response(headers={"x": text}), 0, "", keep_alive=True, is_http_10=False)


def test_a_target_may_name_the_host_that_was_asked() -> None:
    assert absolute_target(b"http://h:80/a", "H:80") == (b"/a", None)
    assert absolute_target(b"http://h", "h") == (b"/", None)


SERVED = [
    GET,
    POST + b"Content-Length: 3\r\n\r\nabc",
    POST + b"Transfer-Encoding: chunked\r\n\r\n",
    b"3\r\nabc\r\n",
    b"0\r\n\r\n",
    b"\r\n",
    b"\n",
    b"Host: h\r\n",
    b"GET ",
    CONTINUE,
]


@settings(max_examples=150, deadline=None)
@given(st.lists(st.sampled_from(SERVED) | st.binary(max_size=20), max_size=8), st.integers(1, 60))
def test_no_bytes_break_a_connection_and_each_answer_is_whole(
    pieces: list[bytes], cut: int
) -> None:
    text = b"".join(pieces)

    async def run() -> bytes:
        client = Client(echo)
        for at in range(0, len(text), cut):
            client.send(text[at : at + cut])
            await asyncio.sleep(0)
        client.connection.eof_received()
        await client.settle()
        client.leave()
        answer = await client.answers()
        assert not client.hub.tasks and not client.hub.connections
        return answer.replace(b"Connection: close\r\n", b"")  # A matter of when the end comes.

    one_by_one = asyncio.run(run())
    cut = len(text) or 1
    assert asyncio.run(run()) == one_by_one
    for part in one_by_one.split(b"HTTP/1.1 ")[1:]:
        assert part[:3] in (b"200", b"400", b"405", b"501", b"505")


# ---- the server ----


async def ask(address: str, request: bytes) -> bytes:
    host, port = address.rsplit(":", 1)
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        writer.write(request)
        return await reader.read()
    finally:
        writer.close()
        with suppress(ConnectionResetError):
            await writer.wait_closed()


async def pieces_of(*pieces: bytes) -> AsyncIterator[bytes]:
    for piece in pieces:
        yield piece


async def test_a_stop_answers_connections_that_nobody_took_yet() -> None:
    server = HttpServer(echo, "127.0.0.1:0", clock=StillClock())
    host, port = (await server.start()).rsplit(":", 1)
    clients = [socket.create_connection((host, int(port))) for _ in range(20)]
    for client in clients:
        client.sendall(GET)
    await server.stop(5.0)  # Nothing ran since: all of them wait in the kernel's queue.
    for client in clients:
        with client:
            assert client.recv(65536).startswith(b"HTTP/1.1 200 OK")


async def test_a_stop_cuts_off_what_takes_too_long() -> None:
    begun = asyncio.Event()

    async def wait(request: Request) -> Response:
        begun.set()
        await asyncio.Event().wait()
        raise AssertionError("unreachable")

    server = HttpServer(wait, "127.0.0.1:0", clock=StillClock())
    address = await server.start()
    asked = asyncio.create_task(ask(address, GET))
    await begun.wait()
    await server.stop(0.01)
    assert await asked == b""


async def test_silent_connections_end_by_the_clock_of_the_server() -> None:
    server = HttpServer(
        echo, "127.0.0.1:0", clock=StillClock(), tick_s=0.01, patience=Patience(idle=2, head=2)
    )
    address = await server.start()
    assert await ask(address, b"") == b""
    assert b"RequestTimeout" in await ask(address, b"GET /")
    await server.stop()


async def test_a_streamed_response_has_a_length() -> None:
    async def stream(request: Request) -> Response:
        return Response(content=pieces_of(b"ab", b"cd"), length=4)

    server = HttpServer(stream, "127.0.0.1:0", clock=StillClock())
    address = await server.start()
    answer = await ask(address, GET.replace(b"Host", b"Connection: close\r\nHost"))
    assert b"Content-Length: 4\r\n" in answer and answer.endswith(b"\r\n\r\nabcd")
    await server.stop()
