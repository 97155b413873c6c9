"""What every operation is given besides the request."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from exastore.gateway.s3.auth import Identity
from exastore.gateway.s3.body import RequestBody, read_document, read_promise
from exastore.gateway.s3.message import Request, Response
from exastore.gateway.s3.xml import MAX_DOCUMENT_BYTES
from exastore.gateway.store import ObjectStore

#: The owner of everything, until there are users.
OWNER = "exastore"


@dataclass(frozen=True, slots=True)
class Call:
    """A verified request on its way through an operation."""

    request: Request
    identity: Identity
    store: ObjectStore
    region: str
    count_received: Callable[[int], None]
    """Told the bytes of each piece of the body that arrives."""

    @property
    def bucket(self) -> str:
        return self.request.bucket

    @property
    def key(self) -> str:
        return self.request.key

    def header(self, name: str) -> str | None:
        """A header by its lower-case name."""
        return self.request.headers.get(name)

    def parameter(self, name: str, default: str = "") -> str:
        """A parameter of the query."""
        return self.request.query.get(name, default)

    def body(self) -> RequestBody:
        """The body of a PUT, its promises read and checked for form."""
        promise = read_promise(self.request.headers, self.identity.payload_hash)
        return RequestBody(self.request.stream, promise, self.identity, count=self.count_received)

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
