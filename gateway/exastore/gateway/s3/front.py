"""The S3 front: authorise, find the operation, run it, turn errors into S3's."""

import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from exastore.gateway.errors import GatewayError, RequestError
from exastore.gateway.master_key import MasterKey
from exastore.gateway.s3 import xml
from exastore.gateway.s3.access_operations import ACCESS_OPERATIONS
from exastore.gateway.s3.auth import (
    Identity,
    anonymous_identity,
    check_region,
    hoist_headers,
    is_anonymous,
    parse_authorization,
    verify,
)
from exastore.gateway.s3.bucket_access import load_attributes, load_bucket
from exastore.gateway.s3.buckets import BUCKET_OPERATIONS, with_bad_name
from exastore.gateway.s3.context import Call, Operation
from exastore.gateway.s3.cors import headers_for, preflight
from exastore.gateway.s3.errors import S3Error, as_request_error, status_of
from exastore.gateway.s3.guard import Access, BucketCache, Guard, RecordAct, denied, record_nothing
from exastore.gateway.s3.identity import ANONYMOUS, KeySource, Kind, Principal
from exastore.gateway.s3.inventory import INVENTORY_OPERATIONS
from exastore.gateway.s3.lifecycle import LIFECYCLE_OPERATIONS
from exastore.gateway.s3.listing import LISTING_OPERATIONS
from exastore.gateway.s3.lock import LOCK_OPERATIONS
from exastore.gateway.s3.message import Request, Response, parse_query, split_target
from exastore.gateway.s3.metrics import S3Metrics
from exastore.gateway.s3.multipart import MULTIPART_OPERATIONS
from exastore.gateway.s3.object_acl import OBJECT_ACL_OPERATIONS
from exastore.gateway.s3.objects import OBJECT_OPERATIONS
from exastore.gateway.s3.post import Upload, read_upload
from exastore.gateway.s3.routing import Route, route_of
from exastore.gateway.s3.sse import ENCRYPTION_OPERATIONS
from exastore.gateway.s3.stubs import STUB_OPERATIONS
from exastore.gateway.s3.tagging import TAGGING_OPERATIONS
from exastore.gateway.s3.versions import VERSION_OPERATIONS
from exastore.gateway.s3.website_server import serve_website
from exastore.gateway.store import ObjectStore
from exastore.metadata.core.clock import Clock

#: Told of every request that is over: tenant, kind, bytes received and sent.
CountTraffic = Callable[[str, str, int, int], None]

HEALTH_PATH = b"/-/healthy"
#: What every 503 tells clients to wait: a request was held back for long enough before it failed.
RETRY_AFTER_S = "1"

#: Operations that the front itself carries out, and what a website's requests are.
PREFLIGHT, POST_OBJECT = "Preflight", "PostObject"
WEBSITE = Route("Website", "s3:GetObject")

HANDLERS: Mapping[str, Operation] = {
    **ACCESS_OPERATIONS,
    **BUCKET_OPERATIONS,
    **ENCRYPTION_OPERATIONS,
    **INVENTORY_OPERATIONS,
    **LIFECYCLE_OPERATIONS,
    **LISTING_OPERATIONS,
    **LOCK_OPERATIONS,
    **MULTIPART_OPERATIONS,
    **OBJECT_ACL_OPERATIONS,
    **OBJECT_OPERATIONS,
    **STUB_OPERATIONS,
    **TAGGING_OPERATIONS,
    **VERSION_OPERATIONS,
}

_logger = logging.getLogger(__name__)


def count_nothing(tenant: str, kind: str, received_bytes: int, sent_bytes: int) -> None:
    """A `CountTraffic` for who bills nobody."""


def _new_request_id() -> bytes:
    return os.urandom(8)


@dataclass(frozen=True, slots=True)
class FrontOptions:
    """How the front behaves."""

    region: str = "us-east-1"
    check_region: bool = False
    """Whether signatures of other regions are refused."""
    domain: str = ""
    """Hosts below it name buckets; empty: path style only."""
    website_domain: str = ""
    """Hosts below it name buckets that are served as websites; empty: none are."""
    bucket_ttl_s: float = 1.0
    """How long what is known of a bucket's owner and policy is trusted."""


class S3Front:
    """Answers S3 requests from an object store. Knows no HTTP server."""

    def __init__(
        self,
        store: ObjectStore,
        *,
        keys: KeySource,
        clock: Clock,
        metrics: S3Metrics,
        count_traffic: CountTraffic = count_nothing,
        record_act: RecordAct = record_nothing,
        options: FrontOptions | None = None,
        master_key: MasterKey | None = None,
        new_request_id: Callable[[], bytes] = _new_request_id,
    ) -> None:
        self._store = store
        self._keys = keys
        self._clock = clock
        self._metrics = metrics
        self._count_traffic = count_traffic
        self._options = options or FrontOptions()
        self._master_key = master_key
        self._new_request_id = new_request_id
        buckets = BucketCache(
            lambda name: load_bucket(store, name),
            ttl_s=self._options.bucket_ttl_s,
            monotonic_s=clock.monotonic_s,
        )
        self._guard = Guard(
            buckets,
            lambda bucket, key, version: load_attributes(store, bucket, key, version),
            record_act,
        )

    async def handle(self, request: Request) -> Response:
        """Answer a request; the caller sends the response and then calls its `on_sent`."""
        if request.raw_path == HEALTH_PATH:
            return Response(headers={"Content-Type": "text/plain"}, content=b"ok\n")
        started_s = self._clock.monotonic_s()
        request_id = self._new_request_id().hex().upper()
        traffic = _Traffic(self._metrics)
        operation = "Unknown"
        status = 0  # Of a request that was cancelled.
        self._metrics.in_flight.inc()

        def on_sent(sent_bytes: int) -> None:
            duration_s = self._clock.monotonic_s() - started_s
            self._metrics.count(operation, status, duration_s, sent_bytes)
            if traffic.tenant:
                self._count_traffic(
                    traffic.tenant, traffic.kind, traffic.received_bytes, sent_bytes
                )

        try:
            try:
                request.query = parse_query(request.raw_query)
                route = self._route(request)
                operation = route.operation
                response = await self._run(route, request, traffic)
            except GatewayError as error:
                if not isinstance(error, RequestError):
                    _logger.warning("request %s: %s: %s", request_id, operation, error)
                shown = with_bad_name(as_request_error(error), request.bucket)
                response = error_response(request, shown, request_id)
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
            if "origin" in request.headers and request.bucket and operation != PREFLIGHT:
                response.headers.update(await self._cors_headers(request, status, request_id))
        except BaseException:
            on_sent(0)
            raise
        response.headers["x-amz-request-id"] = request_id
        response.headers["x-amz-id-2"] = request_id
        response.on_sent = on_sent
        return response

    def _route(self, request: Request) -> Route:
        """Where a request goes; its bucket and key are filled in."""
        options, host = self._options, request.headers.get("host", "")
        if options.website_domain:
            name = host.rsplit(":", 1)[0].lower()
            if name.endswith("." + options.website_domain):
                request.bucket, request.key = split_target(
                    request.raw_path, host, options.website_domain
                )
                return WEBSITE
        request.bucket, request.key = split_target(request.raw_path, host, options.domain)
        return route_of(request)

    async def _cors_headers(self, request: Request, status: int, request_id: str) -> dict[str, str]:
        """What a browser must see to give the answer to a page of another origin.

        Nothing here may cost the client its answer: without the headers a page sees less of it.
        """
        buckets = self._guard.buckets
        try:
            if status >= 500:
                # The cluster could not be asked just now: nobody waits for it a second time.
                bucket = buckets.last_known(request.bucket)
            else:
                bucket = await buckets.get(request.bucket)
            if bucket is not None:
                return headers_for(bucket.cors, request.method, request.headers["origin"])
        except GatewayError as error:
            _logger.info("request %s: no CORS headers: %s", request_id, error)
        except Exception:
            _logger.exception("request %s: no CORS headers", request_id)
        return {}

    async def _run(self, route: Route, request: Request, traffic: "_Traffic") -> Response:
        now_s = self._clock.now_s()
        if route is WEBSITE:

            async def read(it: Request) -> Response:
                get = Route("HeadObject" if it.method == "HEAD" else "GetObject", "s3:GetObject")
                return await self._carry_out(
                    get, it, ANONYMOUS, anonymous_identity(it), now_s, traffic
                )

            return await serve_website(request, self._guard.buckets, read)
        if route.operation == PREFLIGHT:
            # A browser asks without the signature of what it is going to send.
            return preflight((await self._guard.buckets.get(request.bucket)).cors, request.headers)
        if route.operation == POST_OBJECT:
            upload = await read_upload(request, self._keys.find, now_s)
            put = Route("PutObject", route.action)
            done = await self._carry_out(
                put, upload.request, upload.principal, upload.identity, now_s, traffic, upload
            )
            return upload.answer(done)
        principal, identity = await self._identify(request, now_s)
        return await self._carry_out(route, request, principal, identity, now_s, traffic)

    async def _carry_out(
        self,
        route: Route,
        request: Request,
        principal: Principal,
        identity: Identity,
        now_s: float,
        traffic: "_Traffic",
        upload: Upload | None = None,
    ) -> Response:
        """Run the operation of a request whose sender is known, if that one may do it."""
        access = await self._guard.admit(request, route, principal, identity, now_s)
        traffic.tenant = principal.tenant if access.bucket is None else access.bucket.owner
        traffic.kind = route.kind
        call = Call(
            request,
            identity,
            self._store,
            self._options.region,
            traffic.count_received,
            access,
            self._guard,
            self._master_key,
        )
        if upload is not None:
            call = upload.call(call)
        try:
            return await HANDLERS[route.operation](call)
        except RequestError as error:
            raise _hidden(error, access) from None

    async def _identify(self, request: Request, now_s: float) -> tuple[Principal, Identity]:
        """Who sent the request, once its signature holds."""
        if is_anonymous(request):
            return ANONYMOUS, anonymous_identity(request)
        authorization = parse_authorization(request)
        if self._options.check_region:
            check_region(authorization, self._options.region)
        access_key = authorization.access_key
        found = self._keys.cached(access_key) or await self._keys.find(access_key)
        secret_key = None if found is None else found.secret_key
        identity = verify(request, authorization, secret_key, now_s)
        assert found is not None, "an unknown key does not verify"
        if authorization.expires_s is not None:
            hoist_headers(request)
        return found.principal, identity


class _Traffic:
    """What one request is billed as."""

    __slots__ = ("_metrics", "kind", "received_bytes", "tenant")

    def __init__(self, metrics: S3Metrics) -> None:
        self._metrics = metrics
        #: Who pays: the owner of the bucket where that is known, else who asks; "": nobody.
        self.tenant = ""
        self.kind = "other"
        self.received_bytes = 0

    def count_received(self, size_bytes: int) -> None:
        self.received_bytes += size_bytes
        self._metrics.received_bytes.inc(size_bytes)


def _hidden(error: RequestError, access: Access) -> RequestError:
    """The error that may be shown: who may not list a bucket is not told what it lacks.

    And who writes into another tenant's bucket, not what that tenant uses.
    """
    bucket, principal = access.bucket, access.principal
    if error.code == "QuotaExceeded" and bucket and principal.tenant != bucket.owner:
        return RequestError(error.code, "The bucket or its owner may not store more.")
    if error.code not in ("NoSuchKey", "NoSuchVersion") or access.principal.kind is Kind.ROOT:
        return error
    return error if access.may("s3:ListBucket") else denied()


def error_response(request: Request, error: RequestError, request_id: str) -> Response:
    """The response to a request that failed."""
    status = status_of(error.code)
    fields: dict[str, str] = {}
    headers: dict[str, str] = {}
    if isinstance(error, S3Error):
        fields, headers = error.fields, dict(error.headers)
    content = b""
    if status == 503:
        headers["Retry-After"] = RETRY_AFTER_S
    if request.method != "HEAD" and status != 304:
        headers["Content-Type"] = "application/xml"
        resource = request.raw_path.decode("latin-1")
        content = xml.error_document(error.code, error.message, resource, request_id, fields)
    # A client that was not told to continue may or may not send its body now: start afresh.
    close = "expect" in request.headers and not request.stream.started
    return Response(status, headers, content, close=close)
