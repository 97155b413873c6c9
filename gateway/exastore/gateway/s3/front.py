"""The S3 front: authorise, find the operation, run it, turn errors into S3's."""

import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from exastore.gateway.errors import GatewayError, RequestError
from exastore.gateway.s3 import xml
from exastore.gateway.s3.auth import SecretOf, verify
from exastore.gateway.s3.buckets import BUCKET_OPERATIONS
from exastore.gateway.s3.context import Call, Operation
from exastore.gateway.s3.errors import S3Error, as_request_error, status_of
from exastore.gateway.s3.listing import LISTING_OPERATIONS
from exastore.gateway.s3.message import Request, Response, parse_query, split_target
from exastore.gateway.s3.metrics import S3Metrics
from exastore.gateway.s3.multipart import MULTIPART_OPERATIONS
from exastore.gateway.s3.objects import OBJECT_OPERATIONS
from exastore.gateway.s3.routing import route_of
from exastore.gateway.store import ObjectStore
from exastore.metadata.core.clock import Clock

HEALTH_PATH = b"/-/healthy"

HANDLERS: Mapping[str, Operation] = {
    **BUCKET_OPERATIONS,
    **LISTING_OPERATIONS,
    **MULTIPART_OPERATIONS,
    **OBJECT_OPERATIONS,
}

_logger = logging.getLogger(__name__)


def _new_request_id() -> bytes:
    return os.urandom(8)


@dataclass(frozen=True, slots=True)
class FrontOptions:
    """How the front behaves."""

    region: str = "us-east-1"
    domain: str = ""
    """Hosts below it name buckets; empty: path style only."""


class S3Front:
    """Answers S3 requests from an object store. Knows no HTTP server."""

    def __init__(
        self,
        store: ObjectStore,
        *,
        secret_of: SecretOf,
        clock: Clock,
        metrics: S3Metrics,
        options: FrontOptions | None = None,
        new_request_id: Callable[[], bytes] = _new_request_id,
    ) -> None:
        self._store = store
        self._secret_of = secret_of
        self._clock = clock
        self._metrics = metrics
        self._options = options or FrontOptions()
        self._new_request_id = new_request_id

    async def handle(self, request: Request) -> Response:
        """Answer a request; the caller sends the response and then calls its `on_sent`."""
        if request.raw_path == HEALTH_PATH:
            return Response(headers={"Content-Type": "text/plain"}, content=b"ok\n")
        started_s = self._clock.monotonic_s()
        request_id = self._new_request_id().hex().upper()
        operation = "Unknown"
        status = 0  # Of a request that was cancelled.
        self._metrics.in_flight.inc()

        def on_sent(sent_bytes: int) -> None:
            duration_s = self._clock.monotonic_s() - started_s
            self._metrics.count(operation, status, duration_s, sent_bytes)

        try:
            try:
                request.query = parse_query(request.raw_query)
                request.bucket, request.key = split_target(
                    request.raw_path, request.headers.get("host", ""), self._options.domain
                )
                operation = route_of(request).operation
                response = await self._run(operation, request)
            except GatewayError as error:
                if not isinstance(error, RequestError):
                    _logger.warning("request %s: %s: %s", request_id, operation, error)
                response = error_response(request, as_request_error(error), request_id)
            except Exception:
                _logger.exception("request %s: %s failed", request_id, operation)
                response = error_response(
                    request,
                    RequestError(
                        "InternalError", "We encountered an internal error. Please try again."
                    ),
                    request_id,
                )
            status = response.status
        except BaseException:
            on_sent(0)
            raise
        response.headers["x-amz-request-id"] = request_id
        response.headers["x-amz-id-2"] = request_id
        response.on_sent = on_sent
        return response

    async def _run(self, operation: str, request: Request) -> Response:
        identity = verify(request, self._secret_of, self._clock.now_s())
        call = Call(
            request,
            identity,
            self._store,
            self._options.region,
            self._metrics.received_bytes.inc,
        )
        return await HANDLERS[operation](call)


def error_response(request: Request, error: RequestError, request_id: str) -> Response:
    """The response to a request that failed."""
    status = status_of(error.code)
    fields: dict[str, str] = {}
    headers: dict[str, str] = {}
    if isinstance(error, S3Error):
        fields, headers = error.fields, dict(error.headers)
    content = b""
    if request.method != "HEAD" and status != 304:
        headers["Content-Type"] = "application/xml"
        resource = request.raw_path.decode("latin-1")
        content = xml.error_document(error.code, error.message, resource, request_id, fields)
    # A client that was not told to continue may or may not send its body now: start afresh.
    close = "expect" in request.headers and not request.stream.started
    return Response(status, headers, content, close=close)
