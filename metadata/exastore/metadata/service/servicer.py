"""MetadataService over gRPC: decode, call, count, map errors."""

import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from typing import Any, TypeVar, cast

import grpc
from grpc.aio import ServicerContext

from exastore.metadata.core.clock import Clock
from exastore.metadata.core.phases import PHASES_OF_CALL, reach
from exastore.metadata.service.batches import BatchServicer
from exastore.metadata.service.core import MetadataService
from exastore.metadata.service.error_map import REASON_KEY, status_and_reason
from exastore.metadata.service.metrics import MetadataMetrics
from exastore.proto.v1 import (
    access_pb2_grpc,
    acl_pb2_grpc,
    batch_pb2_grpc,
    documents_pb2_grpc,
    lock_pb2_grpc,
    metadata_pb2_grpc,
    sealing_pb2_grpc,
    upkeep_pb2_grpc,
)

log = logging.getLogger(__name__)

Request = TypeVar("Request")
Response = TypeVar("Response")
Context = ServicerContext[Any, Any]


def add_to_server(
    service: MetadataService, metrics: MetadataMetrics, clock: Clock, server: grpc.aio.Server
) -> BatchServicer:
    """Register every call of the service. Returns what serves those that come in batches."""
    adapter = _Adapter(service, metrics, clock)
    handlers = cast(grpc.aio.Server, _GenericHandlers(server))
    metadata_pb2_grpc.add_MetadataServiceServicer_to_server(adapter.servicer(), handlers)
    batches = BatchServicer(adapter.unary_calls, metrics, clock)
    batch_pb2_grpc.add_BatchServiceServicer_to_server(batches, handlers)
    documents_pb2_grpc.add_DocumentServiceServicer_to_server(adapter.document_servicer(), handlers)
    lock_pb2_grpc.add_LockServiceServicer_to_server(adapter.lock_servicer(), handlers)
    acl_pb2_grpc.add_AclServiceServicer_to_server(adapter.acl_servicer(), handlers)
    sealing_pb2_grpc.add_SealingServiceServicer_to_server(adapter.sealing_servicer(), handlers)
    access_pb2_grpc.add_AccessServiceServicer_to_server(adapter.access_servicer(), handlers)
    upkeep_pb2_grpc.add_UpkeepServiceServicer_to_server(adapter.upkeep_servicer(), handlers)
    return batches


class _GenericHandlers:
    """Takes the handlers of a server, and gives it the generic ones alone.

    For each registered method grpc.aio keeps a future, and at every call it waits for all of them
    anew: with our thirty methods that costs more than the look-up. Generic handlers do the same.
    """

    def __init__(self, server: grpc.aio.Server) -> None:
        self._server = server

    def add_generic_rpc_handlers(self, handlers: Iterable[grpc.GenericRpcHandler]) -> None:
        self._server.add_generic_rpc_handlers(tuple(handlers))

    def add_registered_method_handlers(self, *_: object) -> None:
        """Left out on purpose."""


class _Adapter:
    def __init__(self, service: MetadataService, metrics: MetadataMetrics, clock: Clock) -> None:
        self._service = service
        #: The service's unary methods by their names, once `servicer` was called.
        self.unary_calls: dict[str, Callable[[Any], Awaitable[Any]]] = {}
        self._metrics = metrics
        self._clock = clock

    def servicer(self) -> metadata_pb2_grpc.MetadataServiceServicer:
        """An object with one method per call, each an adapter around the service's."""
        cluster, names = self._service.cluster, self._service.names
        mover = self._service.mover
        methods: dict[str, Any] = {
            "GetMap": self._unary("GetMap", cluster.get_map),
            "WatchMap": self._stream("WatchMap", cluster.watch_map),
            "Heartbeat": self._unary("Heartbeat", cluster.heartbeat),
            "GetStatus": self._unary("GetStatus", cluster.get_status),
            "SetDeviceState": self._unary("SetDeviceState", cluster.set_device_state),
            "Operate": self._unary("Operate", cluster.operate),
            "ListExtents": self._stream("ListExtents", names.list_extents),
            "CreateBucket": self._unary("CreateBucket", names.create_bucket),
            "GetBucket": self._unary("GetBucket", names.get_bucket),
            "DeleteBucket": self._unary("DeleteBucket", names.delete_bucket),
            "ListBuckets": self._unary("ListBuckets", names.list_buckets),
            "ConfigureBucket": self._unary("ConfigureBucket", names.configure_bucket),
            "GetUsage": self._unary("GetUsage", names.get_usage),
            "SetTenantQuota": self._unary("SetTenantQuota", names.set_tenant_quota),
            "CheckUsage": self._unary("CheckUsage", names.check_usage),
            "MoveBucket": self._unary("MoveBucket", mover.move_bucket),
            "CancelMove": self._unary("CancelMove", mover.cancel_move),
            "ListMoves": self._unary("ListMoves", mover.list_moves),
            "CommitObject": self._unary("CommitObject", names.commit_object),
            "GetObject": self._unary("GetObject", names.get_object),
            "DeleteObjects": self._unary("DeleteObjects", names.delete_objects),
            "ListObjects": self._unary("ListObjects", names.list_objects),
            "ListVersions": self._unary("ListVersions", names.list_versions),
            "PutTags": self._unary("PutTags", names.put_tags),
            "CreateUpload": self._unary("CreateUpload", names.create_upload),
            "CommitPart": self._unary("CommitPart", names.commit_part),
            "CompleteUpload": self._unary("CompleteUpload", names.complete_upload),
            "AbortUpload": self._unary("AbortUpload", names.abort_upload),
            "ListParts": self._unary("ListParts", names.list_parts),
            "ListUploads": self._unary("ListUploads", names.list_uploads),
        }
        kind = type("MetadataServicer", (metadata_pb2_grpc.MetadataServiceServicer,), methods)
        servicer = kind()
        assert isinstance(servicer, metadata_pb2_grpc.MetadataServiceServicer)
        return servicer

    def upkeep_servicer(self) -> upkeep_pb2_grpc.UpkeepServiceServicer:
        """The same for UpkeepService."""
        upkeep = self._service.upkeep
        methods: dict[str, Any] = {
            "GetPacking": self._unary("GetPacking", upkeep.get_packing),
            "CollectOrphans": self._unary("CollectOrphans", upkeep.collect_orphans),
        }
        servicer = type("UpkeepServicer", (upkeep_pb2_grpc.UpkeepServiceServicer,), methods)()
        assert isinstance(servicer, upkeep_pb2_grpc.UpkeepServiceServicer)
        return servicer

    def document_servicer(self) -> documents_pb2_grpc.DocumentServiceServicer:
        """The same for DocumentService."""
        documents = self._service.documents
        methods: dict[str, Any] = {
            "GetDocuments": self._unary("GetDocuments", documents.get_documents),
            "PutDocument": self._unary("PutDocument", documents.put_document),
            "DeleteDocument": self._unary("DeleteDocument", documents.delete_document),
        }
        servicer = type(
            "DocumentServicer", (documents_pb2_grpc.DocumentServiceServicer,), methods
        )()
        assert isinstance(servicer, documents_pb2_grpc.DocumentServiceServicer)
        return servicer

    def lock_servicer(self) -> lock_pb2_grpc.LockServiceServicer:
        """The same for LockService."""
        methods: dict[str, Any] = {"PutLock": self._unary("PutLock", self._service.names.put_lock)}
        servicer = type("LockServicer", (lock_pb2_grpc.LockServiceServicer,), methods)()
        assert isinstance(servicer, lock_pb2_grpc.LockServiceServicer)
        return servicer

    def acl_servicer(self) -> acl_pb2_grpc.AclServiceServicer:
        """The same for AclService."""
        methods: dict[str, Any] = {"PutAcl": self._unary("PutAcl", self._service.names.put_acl)}
        servicer = type("AclServicer", (acl_pb2_grpc.AclServiceServicer,), methods)()
        assert isinstance(servicer, acl_pb2_grpc.AclServiceServicer)
        return servicer

    def sealing_servicer(self) -> sealing_pb2_grpc.SealingServiceServicer:
        """The same for SealingService."""
        replace = self._unary("ReplaceWrappedKey", self._service.names.replace_wrapped_key)
        methods: dict[str, Any] = {"ReplaceWrappedKey": replace}
        servicer = type("SealingServicer", (sealing_pb2_grpc.SealingServiceServicer,), methods)()
        assert isinstance(servicer, sealing_pb2_grpc.SealingServiceServicer)
        return servicer

    def access_servicer(self) -> access_pb2_grpc.AccessServiceServicer:
        """The same for AccessService."""
        access = self._service.access
        methods: dict[str, Any] = {
            "CreateUser": self._unary("CreateUser", access.create_user),
            "GetUser": self._unary("GetUser", access.get_user),
            "ListUsers": self._unary("ListUsers", access.list_users),
            "ChangeUser": self._unary("ChangeUser", access.change_user),
            "DeleteUser": self._unary("DeleteUser", access.delete_user),
            "FindKey": self._unary("FindKey", access.find_key),
            "AddTraffic": self._unary("AddTraffic", access.add_traffic),
            "GetTraffic": self._unary("GetTraffic", access.get_traffic),
            "RecordAct": self._unary("RecordAct", access.record_act),
        }
        servicer = type("AccessServicer", (access_pb2_grpc.AccessServiceServicer,), methods)()
        assert isinstance(servicer, access_pb2_grpc.AccessServiceServicer)
        return servicer

    def _unary(
        self, method: str, call: Callable[[Request], Awaitable[Response]]
    ) -> Callable[[object, Request, Context], Awaitable[Response]]:
        phases = PHASES_OF_CALL.get(method)

        async def run(request: Request) -> Response:
            if phases is not None:
                reach(phases[0])
            response = await call(request)
            if phases is not None:
                reach(phases[1])
            return response

        self.unary_calls[method] = run

        async def serve(_: object, request: Request, context: Context) -> Response:
            begun_s = self._clock.monotonic_s()
            try:
                response = await run(request)
            except Exception as error:
                await self._fail(method, error, context, self._clock.monotonic_s() - begun_s)
                raise
            self._metrics.request(method, "ok", self._clock.monotonic_s() - begun_s)
            return response

        return serve

    def _stream(
        self, method: str, call: Callable[[Request], AsyncIterator[Response]]
    ) -> Callable[[object, Request, Context], AsyncIterator[Response]]:
        async def serve(_: object, request: Request, context: Context) -> AsyncIterator[Response]:
            try:
                async for response in call(request):
                    yield response
            except Exception as error:
                await self._fail(method, error, context, None)
                raise
            self._metrics.request(method, "ok", None)

        return serve

    async def _fail(
        self, method: str, error: Exception, context: Context, duration_s: float | None
    ) -> None:
        """End the call with the error's status and reason; `abort` raises."""
        found = status_and_reason(error)
        if found is None:
            log.error("%s failed", method, exc_info=error)
            found = grpc.StatusCode.INTERNAL, "UNSPECIFIED"
        status, reason = found
        self._metrics.request(method, reason.lower(), duration_s)
        await context.abort(status, str(error), ((REASON_KEY, reason),))
