"""BudgetService over gRPC: budgets of background traffic, and what gateways see of nodes."""

from typing import Any

import grpc

from exastore.metadata.namespace.errors import InvalidArgument
from exastore.metadata.service.budgets import Budgets
from exastore.proto.v1 import budget_pb2

_SERVICE = "exastore.proto.v1.BudgetService"

Context = Any


class BudgetServicer:
    """Answers for `budgets`; but for SetBudgets, only while this server does background work."""

    def __init__(self, budgets: Budgets) -> None:
        self._budgets = budgets

    def add_to_server(self, server: grpc.aio.Server) -> None:
        """Register the calls; as generic handlers, see `servicer.py`."""
        handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
            "GetBudgets": grpc.unary_unary_rpc_method_handler(
                self.get_budgets,
                request_deserializer=budget_pb2.GetBudgetsRequest.FromString,
                response_serializer=budget_pb2.BudgetStatus.SerializeToString,
            ),
            "SetBudgets": grpc.unary_unary_rpc_method_handler(
                self.set_budgets,
                request_deserializer=budget_pb2.SetBudgetsRequest.FromString,
                response_serializer=budget_pb2.Budgets.SerializeToString,
            ),
            "ReportLatency": grpc.unary_unary_rpc_method_handler(
                self.report_latency,
                request_deserializer=budget_pb2.ReportLatencyRequest.FromString,
                response_serializer=budget_pb2.ReportLatencyResponse.SerializeToString,
            ),
        }
        generic = grpc.method_handlers_generic_handler(_SERVICE, handlers)
        server.add_generic_rpc_handlers((generic,))

    async def get_budgets(
        self, request: budget_pb2.GetBudgetsRequest, context: Context
    ) -> budget_pb2.BudgetStatus:
        await self._require_leading(context)
        return self._budgets.status()

    async def set_budgets(
        self, request: budget_pb2.SetBudgetsRequest, context: Context
    ) -> budget_pb2.Budgets:
        try:
            return await self._budgets.set(request)
        except InvalidArgument as error:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
            raise

    async def report_latency(
        self, request: budget_pb2.ReportLatencyRequest, context: Context
    ) -> budget_pb2.ReportLatencyResponse:
        await self._require_leading(context)
        self._budgets.report(request)
        return budget_pb2.ReportLatencyResponse()

    async def _require_leading(self, context: Context) -> None:
        if not self._budgets.leads:
            await context.abort(
                grpc.StatusCode.UNAVAILABLE, "another server does the background work"
            )
