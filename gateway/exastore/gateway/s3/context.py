"""What every operation is given besides the request."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from exastore.gateway.master_key import MasterKey
from exastore.gateway.s3.acl import ENFORCED
from exastore.gateway.s3.attributes import check_version_id
from exastore.gateway.s3.auth import Identity
from exastore.gateway.s3.body import RequestBody, read_document, read_promise
from exastore.gateway.s3.checksums import DEFAULT_ALGORITHM
from exastore.gateway.s3.guard import Access, Guard
from exastore.gateway.s3.identity import ROOT_TENANT, Kind
from exastore.gateway.s3.message import Request, Response
from exastore.gateway.s3.xml import MAX_DOCUMENT_BYTES
from exastore.gateway.store import ObjectAttributes, ObjectStore

#: The owner of what the administrator makes.
OWNER = ROOT_TENANT


@dataclass(frozen=True, slots=True)
class Call:
    """A verified request on its way through an operation."""

    request: Request
    identity: Identity
    store: ObjectStore
    region: str
    count_received: Callable[[int], None]
    """Told the bytes of each piece of the body that arrives."""
    access: Access
    """Who asks, and what else it may do."""
    guard: Guard
    """What this gateway knows of buckets."""
    master_key: MasterKey | None
    """What wraps the keys of objects; None: only clients' own keys encrypt."""

    @property
    def bucket(self) -> str:
        return self.request.bucket

    @property
    def key(self) -> str:
        return self.request.key

    @property
    def version_id(self) -> str:
        """The version that is asked for; "": the current one. Raises InvalidArgument."""
        version_id = self.request.query.get("versionId")
        if version_id is None:
            return ""
        check_version_id(version_id)
        return version_id

    @property
    def owner(self) -> str:
        """The owner of the bucket and all in it, where that is known; else of what is made."""
        bucket = self.access.bucket
        return self.access.principal.tenant if bucket is None else bucket.owner

    def owner_of(self, attributes: ObjectAttributes) -> str:
        """The owner of an object of the bucket, as lists show it."""
        bucket, acl = self.access.bucket, attributes.acl
        if acl is None or (bucket is not None and bucket.ownership == ENFORCED):
            return self.owner
        return acl.owner

    @property
    def is_administrator(self) -> bool:
        return self.access.principal.kind is Kind.ROOT

    def may(self, action: str, key: str = "") -> bool:
        """Whether the caller may do this too, with the bucket or with an object of it."""
        return self.access.may(action, key)

    async def audit(self, action: str) -> None:
        """Put an administrative act on the bucket on record."""
        actor = "" if self.is_administrator else self.access.principal.arn
        details = {"source_ip": self.request.source_ip, "tenant": self.access.principal.tenant}
        await self.guard.record(actor, action, self.bucket, details)

    def require_delete(self, key: str, version_id: str | None) -> None:
        """Raise AccessDenied unless the caller may delete this; for batches of keys."""
        self.access.require_delete(key, version_id)

    def header(self, name: str) -> str | None:
        """A header by its lower-case name."""
        return self.request.headers.get(name)

    def parameter(self, name: str, default: str = "") -> str:
        """A parameter of the query."""
        return self.request.query.get(name, default)

    def body(self, default_checksum: str = DEFAULT_ALGORITHM) -> RequestBody:
        """The body of a PUT, its promises read and checked for form."""
        promise = read_promise(self.request.headers, self.identity.payload_hash)
        return RequestBody(
            self.request.stream,
            promise,
            self.identity,
            count=self.count_received,
            default_checksum=default_checksum,
        )

    async def document(self, *, own_checksum: bool = True) -> bytes:
        """The whole body, for operations that take XML.

        Args:
            own_checksum: Whether x-amz-checksum-* is of the document, not of an object.
        """
        return await read_document(
            self.request,
            self.identity,
            max_bytes=MAX_DOCUMENT_BYTES,
            own_checksum=own_checksum,
        )


Operation = Callable[[Call], Awaitable[Response]]
