"""A channel to a metadata server whose unary calls travel together, without gRPC where possible.

gRPC in Python takes 0.2 ms of the client and 0.3 ms of the server for a unary call, more than the
rest of a small PUT. Here calls are frames on a socket, or batches on one long-lived stream
(`call_links.py`, docs/adr/0016-chunks-on-sockets.md).

Theory of operation: generated stubs are made over this channel as over any; each unary method
becomes a call on the link. The first call opens it; calls wait meanwhile. When it breaks, every
call on it fails with UNAVAILABLE, and the next call opens a new one. A server without the port is
asked over the stream, one without BatchService in the plain way.

Law: a call fails with the status and reason that the plain one would fail with.
"""

import asyncio
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any, NamedTuple

import grpc

from exastore.gateway.call_links import Answer, CallLink, SocketCalls, StreamCalls, TooLarge
from exastore.gateway.metadata_errors import REASON_KEY
from exastore.proto.links import BulkDialer, NodeUnreachable

_STATUS = {status.value[0]: status for status in grpc.StatusCode}

Serialize = Callable[[Any], bytes]
Parse = Callable[[Any], Any]


class _Result(NamedTuple):
    answer: Answer
    response: bytes | memoryview


class BatchedChannel:
    """Stands in for the dialer's channel where a stub of MetadataService is made."""

    def __init__(self, dialer: BulkDialer) -> None:
        self._dialer = dialer
        self._link: CallLink | None = None
        self._opening: asyncio.Task[None] | None = None
        #: Calls that wait for the link, by id: method and request.
        self._waiting: dict[int, tuple[str, bytes]] = {}
        #: Calls sent or waiting, and not answered.
        self._pending: dict[int, asyncio.Future[_Result]] = {}
        self._next_id = 0
        #: Answers received so far; tells a slow call from a dead link.
        self._answer_count = 0
        #: False once the server proved to have no BatchService.
        self._is_supported = True

    def unary_unary(
        self, method: str, request_serializer: Serialize, response_deserializer: Parse, **more: Any
    ) -> Callable[..., Coroutine[Any, Any, Any]]:
        """A method of the stub."""
        name = method.rpartition("/")[2]
        plain: Any = self._dialer.channel.unary_unary(
            method, request_serializer, response_deserializer, **more
        )

        async def call(request: Any, timeout: float) -> Any:
            if self._is_supported:
                result = await self._exchange(name, request_serializer(request), timeout)
                if self._is_supported:
                    return response_deserializer(_response(result))
            return await plain(request, timeout=timeout)

        return call

    def unary_stream(self, method: str, *arguments: Any, **more: Any) -> Any:
        """A method of the stub; streams are streams already."""
        return self._dialer.channel.unary_stream(method, *arguments, **more)

    async def close(self) -> None:
        """Fail what is under way."""
        opening, self._opening = self._opening, None
        if opening is not None:
            opening.cancel()
            await asyncio.gather(opening, return_exceptions=True)
        self._fail(grpc.StatusCode.CANCELLED, "closed")

    async def _exchange(self, method: str, request: bytes, timeout_s: float) -> _Result:
        self._next_id += 1
        call_id = self._next_id
        if self._link is not None:
            self._send(self._link, call_id, method, request)
        else:
            self._waiting[call_id] = method, request
            if self._opening is None:
                self._opening = asyncio.create_task(self._open())
        future: asyncio.Future[_Result] = asyncio.get_running_loop().create_future()
        self._pending[call_id] = future
        answer_count = self._answer_count
        try:
            async with asyncio.timeout(timeout_s):
                return await future
        except TimeoutError:
            status, why = grpc.StatusCode.DEADLINE_EXCEEDED, f"no answer within {timeout_s:g} s"
            if self._answer_count == answer_count:
                # Not one answer all the while: the server hangs or is cut off.
                self._fail(status, why)
            raise _error(status, why) from None
        finally:
            self._pending.pop(call_id, None)
            was_waiting = self._waiting.pop(call_id, None) is not None
            is_given_up = not future.done() or future.cancelled()
            if is_given_up and not was_waiting and self._link is not None:
                self._link.forget(call_id)

    async def _open(self) -> None:
        try:
            link = await self._opened()
        except NodeUnreachable as error:
            self._opening = None
            self._fail(grpc.StatusCode.UNAVAILABLE, str(error))
            return
        self._opening = None
        self._link = link
        waiting, self._waiting = self._waiting, {}
        for call_id, (method, request) in waiting.items():
            future = self._pending[call_id]
            if future.done():  # given up, or failed by another's time-out
                continue
            try:
                self._send(link, call_id, method, request)
            except grpc.aio.AioRpcError as error:
                future.set_exception(error)

    async def _opened(self) -> CallLink:
        server = await self._dialer.described()
        if server is not None:
            link = await self._dialer.dialled(
                server, partial(SocketCalls, self._deliver, self._lost)
            )
            if link is not None:
                return link
        return StreamCalls(self._dialer.channel, self._deliver, self._lost)

    def _send(self, link: CallLink, call_id: int, method: str, request: bytes) -> None:
        try:
            link.send(call_id, method, request)
        except TooLarge as error:
            raise _error(grpc.StatusCode.RESOURCE_EXHAUSTED, str(error)) from None

    def _deliver(self, answer: Answer, response: bytes | memoryview) -> None:
        self._answer_count += 1
        future = self._pending.get(answer.call_id)
        if future is not None and not future.done():
            future.set_result(_Result(answer, response))

    def _lost(self, status: grpc.StatusCode, why: str) -> None:
        self._link = None
        self._fail(status, why)

    def _fail(self, status: grpc.StatusCode, why: str) -> None:
        """Fail what is pending; the next call opens a new link."""
        link, self._link = self._link, None
        if link is not None:
            link.close()
        self._is_supported = status is not grpc.StatusCode.UNIMPLEMENTED
        for future in self._pending.values():
            if future.done():
                continue
            if self._is_supported:
                # A link breaks for many reasons; each call may be sent again.
                future.set_exception(_error(grpc.StatusCode.UNAVAILABLE, why))
            else:
                future.set_result(_Result(Answer(), b""))


def _response(result: _Result) -> bytes | memoryview:
    answer = result.answer
    if answer.code:
        status = _STATUS.get(answer.code, grpc.StatusCode.UNKNOWN)
        raise _error(status, answer.detail, answer.reason)
    return result.response


def _error(status: grpc.StatusCode, details: str, reason: str = "") -> grpc.aio.AioRpcError:
    trailing = grpc.aio.Metadata((REASON_KEY, reason)) if reason else grpc.aio.Metadata()
    return grpc.aio.AioRpcError(status, grpc.aio.Metadata(), trailing, details=details)
