"""Calls in frames on sockets: a thin adapter on the methods that `BatchService` serves.

The port itself, its secrets, limits and fault model are those of `exastore.proto.bulk_port`.
"""

from collections.abc import Awaitable, Callable

import grpc
from google.protobuf.message import DecodeError

from exastore.metadata.service.batches import Outcome
from exastore.metadata.service.metrics import MetadataMetrics
from exastore.proto.bulk_frames import BadFrame, Frame, FrameKind, head_of
from exastore.proto.bulk_port import Asked, Buffers, BulkLimits, BulkPort
from exastore.proto.channel import METADATA_MESSAGE_BYTES
from exastore.proto.v1 import batch_pb2

#: What a call takes beside its request: so many of one connection are under way at once.
_CALL_BYTES = 64 << 10
LIMITS = BulkLimits(limit_bytes=1024 * _CALL_BYTES, data_bytes=METADATA_MESSAGE_BYTES)

Answer = Callable[[str, bytes | memoryview], Awaitable[Outcome]]


def call_port(answer: Answer, metrics: MetadataMetrics, limits: BulkLimits = LIMITS) -> BulkPort:
    """The port of a metadata server; `answer` is given a method and its request."""
    return BulkPort(CallHandler(answer), limits, metrics)


class CallHandler:
    """Calls in frames."""

    def __init__(self, answer: Answer) -> None:
        self._answer = answer

    def asked(self, frame: Frame) -> Asked:
        if frame.kind is not FrameKind.CALL:
            raise BadFrame(f"a client does not send {frame.kind.name}")
        call = batch_pb2.BatchedCall.FromString(frame.header)
        method, call_id, request = call.method, call.call_id, frame.data
        cost_bytes = _CALL_BYTES + len(request)
        return Asked(cost_bytes, call_id, lambda: self._answered(call_id, method, request))

    def asks(self, frame: Frame, request_id: int) -> bool:
        try:
            return batch_pb2.BatchedCall.FromString(frame.header).call_id == request_id
        except DecodeError:
            return False

    async def _answered(self, call_id: int, method: str, request: memoryview) -> Buffers:
        response, code, reason, detail = await self._answer(method, request)
        answer = batch_pb2.BatchedAnswer(call_id=call_id)
        if len(response) > METADATA_MESSAGE_BYTES:
            code, detail = (
                grpc.StatusCode.RESOURCE_EXHAUSTED.value[0],
                (f"the answer has {len(response)} bytes; {METADATA_MESSAGE_BYTES} are possible"),
            )
            response = b""
        if code:
            answer.code, answer.reason, answer.detail = code, reason, _short(detail)
        header = answer.SerializeToString()
        data_bytes = len(response)
        head = head_of(FrameKind.ANSWER, header, data_bytes, max_data_bytes=METADATA_MESSAGE_BYTES)
        return [head, response]


def _short(detail: str) -> str:
    """A header has a limit, and nobody reads so much."""
    return detail if len(detail) <= 4096 else f"{detail[:4096]} …"
