"""S3's XML: written with the standard library, read with defusedxml: it comes from strangers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from urllib.parse import quote
from xml.etree.ElementTree import Element, ParseError, SubElement, tostring

from defusedxml.common import DefusedXmlException
from defusedxml.ElementTree import fromstring

from exastore.gateway.errors import RequestError
from exastore.gateway.s3.message import Response
from exastore.gateway.s3.schemas import fits
from exastore.gateway.store import Deletion

NAMESPACE = "http://s3.amazonaws.com/doc/2006-03-01/"

#: The most bytes of a document that a client may send.
MAX_DOCUMENT_BYTES = 4 << 20
MAX_BATCH_KEYS = 1000
MAX_PARTS = 10_000


@dataclass(frozen=True, slots=True)
class DeleteBatch:
    """What DeleteObjects asks for."""

    deletions: Sequence[Deletion]
    quiet: bool


@dataclass(frozen=True, slots=True)
class CompletedPart:
    """A part as CompleteMultipartUpload names it."""

    number: int
    etag: str
    checksums: Mapping[str, str]
    """Algorithm in lower case to what the client says is the part's; may be empty."""


def document(name: str) -> Element:
    """The root of a response document."""
    return Element(name, {"xmlns": NAMESPACE})


def add(parent: Element, name: str, text: str | int | bool) -> None:
    """Append an element that holds text; booleans are written as S3 does."""
    child = SubElement(parent, name)
    child.text = ("true" if text else "false") if isinstance(text, bool) else str(text)


def add_owner(parent: Element, owner: str, name: str = "Owner") -> None:
    """Append an owner: one name serves as id and display name."""
    child = SubElement(parent, name)
    add(child, "ID", owner)
    add(child, "DisplayName", owner)


def render(root: Element) -> bytes:
    """The document as bytes, with its declaration."""
    body: bytes = tostring(root, encoding="utf-8")
    return b'<?xml version="1.0" encoding="UTF-8"?>\n' + body


def xml_response(root: Element, status: int = 200) -> Response:
    """A response that carries a document."""
    return Response(status, {"Content-Type": "application/xml"}, render(root))


def iso_time(seconds: float) -> str:
    """A time as S3's documents show it."""
    when = datetime.fromtimestamp(seconds, UTC)
    return f"{when:%Y-%m-%dT%H:%M:%S}.{when.microsecond // 1000:03d}Z"


def url_encoded(text: str) -> str:
    """A key as listings show it under encoding-type=url."""
    return quote(text, safe="/")


def parse_document(body: bytes, name: str, *, code: str = "MalformedXML") -> Element:
    """The root of a client's document, without namespaces.

    Raises:
        RequestError: `code` when it is not XML, not safe, has another root than `name`, or other
            elements than S3 has there; MissingRequestBodyError when there is none.
    """
    if not body:
        raise RequestError("MissingRequestBodyError", "Request Body is empty")
    try:
        root: Element = fromstring(body, forbid_dtd=True)
    except (ParseError, DefusedXmlException, ValueError, LookupError):
        raise malformed(code) from None
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]
    if root.tag != name or not fits(root):
        raise malformed(code)
    return root


def malformed(code: str = "MalformedXML") -> RequestError:
    """The error for a document that is not what the operation takes."""
    return RequestError(
        code,
        "The XML you provided was not well-formed or did not validate against our published schema",
    )


def text_of(element: Element, name: str) -> str | None:
    """The text of a child; None: there is no such child."""
    child = element.find(name)
    return None if child is None else child.text or ""


def parse_delete(body: bytes) -> DeleteBatch:
    """Read the document of DeleteObjects."""
    root = parse_document(body, "Delete")
    deletions: list[Deletion] = []
    for element in root.findall("Object"):
        key = text_of(element, "Key")
        if not key:
            raise malformed()
        if element.find("LastModifiedTime") is not None or element.find("Size") is not None:
            raise RequestError(
                "NotImplemented",
                "Deletes on condition of size or time are for directory buckets.",
            )
        etag = (text_of(element, "ETag") or "").strip().strip('"')
        deletions.append(Deletion(key, text_of(element, "VersionId") or "", etag))
    if not 1 <= len(deletions) <= MAX_BATCH_KEYS:
        raise malformed()
    return DeleteBatch(deletions, (text_of(root, "Quiet") or "").strip() == "true")


def parse_complete(body: bytes) -> Sequence[CompletedPart]:
    """Read the document of CompleteMultipartUpload."""
    root = parse_document(body, "CompleteMultipartUpload")
    parts: list[CompletedPart] = []
    for element in root.findall("Part"):
        number, etag = text_of(element, "PartNumber"), text_of(element, "ETag")
        if number is None or etag is None:
            raise malformed()
        try:
            place = int(number)
        except ValueError:
            raise malformed() from None
        if place < 1:
            raise RequestError("InvalidArgument", "PartNumber must be >= 1")
        parts.append(CompletedPart(place, etag.strip().strip('"'), _checksums(element)))
    if not 1 <= len(parts) <= MAX_PARTS:
        raise malformed()
    return parts


def _checksums(element: Element) -> dict[str, str]:
    """The checksums that children name: ChecksumCRC32 and the like."""
    return {
        child.tag.removeprefix("Checksum").lower(): child.text or ""
        for child in element
        if child.tag.startswith("Checksum")
    }


def parse_location(body: bytes) -> str:
    """The LocationConstraint of CreateBucket; "" when there is no document.

    Raises:
        RequestError: MalformedXML; NotImplemented for a directory bucket.
    """
    if not body.strip():
        return ""
    root = parse_document(body, "CreateBucketConfiguration")
    if root.find("Location") is not None or root.find("Bucket") is not None:
        raise RequestError("NotImplemented", "There are no directory buckets.")
    return text_of(root, "LocationConstraint") or ""


def error_document(
    code: str, message: str, resource: str, request_id: str, fields: dict[str, str]
) -> bytes:
    """The body of an error; it has no namespace."""
    root = Element("Error")
    add(root, "Code", code)
    add(root, "Message", message)
    for name, text in fields.items():
        add(root, name, text)
    add(root, "Resource", resource)
    add(root, "RequestId", request_id)
    return render(root)
