"""HealingService over gRPC: reports of suspect chunks, and the state of the scrub."""

from typing import Any

import grpc

from exastore.metadata.service.healer import Healer
from exastore.proto.v1 import healing_pb2

_SERVICE = "exastore.proto.v1.HealingService"

Context = Any


class HealingServicer:
    """Answers once it has a healer that leads; until then it is UNAVAILABLE."""

    def __init__(self) -> None:
        #: Set when background work begins.
        self.healer: Healer | None = None

    def add_to_server(self, server: grpc.aio.Server) -> None:
        """Register the calls; as generic handlers, see `servicer.py`."""
        handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
            "ReportSuspects": grpc.unary_unary_rpc_method_handler(
                self.report_suspects,
                request_deserializer=healing_pb2.ReportSuspectsRequest.FromString,
                response_serializer=healing_pb2.ReportSuspectsResponse.SerializeToString,
            ),
            "GetScrub": grpc.unary_unary_rpc_method_handler(
                self.get_scrub,
                request_deserializer=healing_pb2.GetScrubRequest.FromString,
                response_serializer=healing_pb2.ScrubStatus.SerializeToString,
            ),
        }
        generic = grpc.method_handlers_generic_handler(_SERVICE, handlers)
        server.add_generic_rpc_handlers((generic,))

    async def report_suspects(
        self, request: healing_pb2.ReportSuspectsRequest, context: Context
    ) -> healing_pb2.ReportSuspectsResponse:
        (await self._leading(context)).report(request.chunks)
        return healing_pb2.ReportSuspectsResponse()

    async def get_scrub(
        self, request: healing_pb2.GetScrubRequest, context: Context
    ) -> healing_pb2.ScrubStatus:
        healer = await self._leading(context)
        if request.begin:
            healer.begin()
        return healer.status()

    async def _leading(self, context: Context) -> Healer:
        if self.healer is None or not self.healer.leads:
            await context.abort(
                grpc.StatusCode.UNAVAILABLE, "another server does the background work"
            )
        assert self.healer is not None
        return self.healer
