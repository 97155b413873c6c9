"""Operations on objects."""

from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from dataclasses import replace
from xml.etree.ElementTree import Element, SubElement

from exastore.gateway.errors import MarkerFound, RequestError
from exastore.gateway.s3 import xml
from exastore.gateway.s3.attributes import (
    REDIRECT_LOCATION,
    CopySource,
    add_checksums,
    check_key,
    checksum_headers,
    object_headers,
    overridden_headers,
    parse_copy_source,
    read_attributes,
    version_headers,
)
from exastore.gateway.s3.body import StoredBody
from exastore.gateway.s3.checksums import DEFAULT_ALGORITHM, DIGEST_BYTES
from exastore.gateway.s3.conditions import check_read, parse_range, read_precondition
from exastore.gateway.s3.context import Call, Operation
from exastore.gateway.s3.errors import S3Error
from exastore.gateway.s3.identity import Kind
from exastore.gateway.s3.listing import MAX_KEYS
from exastore.gateway.s3.lock import bypasses_governance
from exastore.gateway.s3.message import Response
from exastore.gateway.s3.object_acl import acl_of_new_object
from exastore.gateway.s3.sse import (
    COPY_SOURCE,
    data_key_of,
    encryption_headers,
    opened,
    sealing_of,
)
from exastore.gateway.store import (
    ByteRange,
    Deleted,
    Deletion,
    ObjectAttributes,
    ObjectInfo,
    ObjectReader,
)

_ATTRIBUTES = {"ETag", "Checksum", "ObjectParts", "StorageClass", "ObjectSize"}


async def put_object(call: Call) -> Response:
    headers = call.request.headers
    sealing = await sealing_of(call)
    attributes = await attributes_of_new_object(call)
    info = await call.store.put_object(
        call.bucket,
        call.key,
        sealing.body(call.body()),
        sealing.attributes(attributes),
        read_precondition(headers),
    )
    shown = {"ETag": f'"{info.etag}"', **checksum_headers(info.checksums), **sealing.headers}
    return Response(headers=shown | version_headers(info))


async def attributes_of_new_object(call: Call) -> ObjectAttributes:
    """What the headers of a write say about the object, and the list that it gets."""
    attributes = read_attributes(call.request.headers)
    acl = await acl_of_new_object(call)
    return attributes if acl is None else replace(attributes, acl=acl)


async def get_object(call: Call) -> Response:
    reader = opened(
        call,
        await call.store.open_object(
            call.bucket, call.key, call.version_id, part_checksums=_wants_part_checksum(call)
        ),
    )
    call.access.confirm(reader.info.attributes)
    response, byte_range = _describe(call, reader.info)
    if response.length:
        # The first bytes come before the headers: what cannot be read is then still an error.
        pieces = reader.read(byte_range)
        first = await anext(pieces, b"")
        rest = _Resumed(first, pieces)
        if len(first) == response.length:
            await rest.aclose()
            response.content = bytes(first)
        else:
            response.content = rest
    return response


class _Resumed:
    """An iterator whose first piece was taken already."""

    def __init__(self, first: bytes | memoryview, rest: AsyncIterator[bytes | memoryview]) -> None:
        self._first: bytes | memoryview | None = first
        self._rest = rest

    def __aiter__(self) -> "_Resumed":
        return self

    async def __anext__(self) -> bytes | memoryview:
        if self._first is not None:
            first, self._first = self._first, None
            return first
        return await anext(self._rest)

    async def aclose(self) -> None:
        """Stop reading, when the client went away."""
        if isinstance(self._rest, AsyncGenerator):
            await self._rest.aclose()


async def head_object(call: Call) -> Response:
    info = await call.store.head_object(
        call.bucket, call.key, call.version_id, part_checksums=_wants_part_checksum(call)
    )
    call.access.confirm(info.attributes)
    data_key_of(call, info)
    response, _ = _describe(call, info)
    return response


def _wants_checksums(call: Call) -> bool:
    return (call.header("x-amz-checksum-mode") or "").upper() == "ENABLED"


def _wants_part_checksum(call: Call) -> bool:
    return "partNumber" in call.request.query and _wants_checksums(call)


def _describe(call: Call, info: ObjectInfo) -> tuple[Response, ByteRange | None]:
    """The answer to GET and HEAD without its content, and the range to send."""
    request = call.request
    try:
        check_read(request.headers, info)
    except RequestError as error:
        if error.code == "NotModified":
            headers = object_headers(info)
            kept = ("ETag", "Last-Modified", "Cache-Control", "Expires", "x-amz-version-id")
            headers = {name: headers[name] for name in kept if name in headers}
            raise S3Error(error.code, error.message, headers=headers) from None
        raise
    overridden = overridden_headers(request.query)
    if overridden and call.access.principal.kind is Kind.ANONYMOUS:
        raise RequestError(
            "InvalidRequest",
            "Request specific response headers cannot be used for anonymous GET requests.",
        )
    headers = object_headers(info) | overridden
    headers |= encryption_headers(info.attributes.encryption)
    part = request.query.get("partNumber")
    byte_range: ByteRange | None
    if part is not None:
        if "range" in request.headers:
            raise RequestError(
                "InvalidRequest",
                "Cannot specify both Range header and partNumber query parameter",
            )
        byte_range = _range_of_part(part, info)
        if info.parts:
            headers["x-amz-mp-parts-count"] = str(len(info.parts))
        if _wants_checksums(call):
            found = info.parts[int(part) - 1].checksums if info.parts else info.checksums
            headers |= {f"x-amz-checksum-{name}": digest for name, digest in found.items()}
    else:
        byte_range = parse_range(request.headers.get("range"), info.size_bytes)
    if byte_range is None:
        if _wants_checksums(call):
            headers |= checksum_headers(info.checksums)
        return Response(200, headers, length=info.size_bytes), None
    if byte_range.length:
        end = byte_range.start + byte_range.length - 1
        headers["Content-Range"] = f"bytes {byte_range.start}-{end}/{info.size_bytes}"
    return Response(206, headers, length=byte_range.length), byte_range


def _range_of_part(text: str, info: ObjectInfo) -> ByteRange:
    if not (text.isascii() and text.isdigit()) or not 1 <= int(text[:9]) <= xml.MAX_PARTS:
        raise RequestError(
            "InvalidArgument", "Part number must be an integer between 1 and 10000, inclusive"
        )
    number, start = int(text), 0
    if not info.parts and number == 1:
        return ByteRange(0, info.size_bytes)
    for index, part in enumerate(info.parts, start=1):
        # Parts of an object count from 1 without gaps, whatever their numbers in the upload.
        if index == number:
            return ByteRange(start, part.size_bytes)
        start += part.size_bytes
    raise RequestError("InvalidPartNumber", "The requested partnumber is not satisfiable")


async def delete_object(call: Call) -> Response:
    if any(name in call.request.headers for name in _DIRECTORY_CONDITIONS):
        raise RequestError(
            "NotImplemented", "Deletes on condition of size or time are for directory buckets."
        )
    if_match = (call.header("if-match") or "").strip().strip('"')
    deletion = Deletion(call.key, call.version_id, if_match)
    (deleted,) = await call.store.delete_objects(
        call.bucket, [deletion], bypass_governance=bypasses_governance(call)
    )
    if deleted.refused:
        raise _refusal(deleted)
    headers: dict[str, str] = {}
    if deleted.version_id:
        headers["x-amz-version-id"] = deleted.version_id
    if deleted.delete_marker:
        headers["x-amz-delete-marker"] = "true"
    return Response(204, headers)


#: Conditions of a delete that S3 has for directory buckets alone.
_DIRECTORY_CONDITIONS = ("x-amz-if-match-last-modified-time", "x-amz-if-match-size")

#: Why something was not deleted, in S3's words.
_REFUSALS = {
    "AccessDenied": "Access Denied because object protected by object lock.",
    "NoSuchKey": "The specified key does not exist.",
    "PreconditionFailed": "At least one of the pre-conditions you specified did not hold",
}


def _refusal(deleted: Deleted) -> RequestError:
    code = deleted.refused
    return RequestError(code, _REFUSALS.get(code, "We encountered an internal error."))


async def delete_objects(call: Call) -> Response:
    _demand_integrity(call)
    batch = xml.parse_delete(await call.document())
    root = xml.document("DeleteResult")
    allowed: list[Deletion] = []
    refused: list[tuple[Deletion, RequestError]] = []
    for deletion in batch.deletions:
        try:
            check_key(deletion.key)
            call.require_delete(deletion.key, deletion.version_id or None)
            if bypasses_governance(call):
                call.access.require("s3:BypassGovernanceRetention", deletion.key)
        except RequestError as error:
            refused.append((deletion, error))
        else:
            allowed.append(deletion)
    results: Sequence[Deleted] = ()
    if allowed:
        results = await call.store.delete_objects(
            call.bucket, allowed, bypass_governance=bypasses_governance(call)
        )
    else:
        await call.store.get_bucket(call.bucket)
    for deletion, deleted in zip(allowed, results, strict=True):
        if deleted.refused:
            refused.append((deletion, _refusal(deleted)))
        elif not batch.quiet:
            _add_deleted(root, deletion, deleted)
    for deletion, refusal in refused:
        _add_error(root, deletion, refusal)
    return xml.xml_response(root)


def _add_deleted(root: Element, deletion: Deletion, deleted: Deleted) -> None:
    element = SubElement(root, "Deleted")
    xml.add(element, "Key", deletion.key)
    if deletion.version_id:
        xml.add(element, "VersionId", deletion.version_id)
    if deleted.delete_marker:
        xml.add(element, "DeleteMarker", True)
        xml.add(element, "DeleteMarkerVersionId", deleted.version_id)


def _add_error(root: Element, deletion: Deletion, error: RequestError) -> None:
    element = SubElement(root, "Error")
    xml.add(element, "Key", deletion.key)
    if deletion.version_id:
        xml.add(element, "VersionId", deletion.version_id)
    xml.add(element, "Code", error.code)
    xml.add(element, "Message", error.message)


def _demand_integrity(call: Call) -> None:
    headers = call.request.headers
    checked = (
        "content-md5" in headers
        or "x-amz-trailer" in headers
        or any(
            name.startswith("x-amz-checksum-") and name != "x-amz-checksum-mode" for name in headers
        )
        or len(call.identity.payload_hash) == 64
        or call.identity.payload_hash.startswith("STREAMING-AWS4-")
    )
    if not checked:
        raise RequestError(
            "InvalidRequest", "Missing required header for this request: Content-MD5"
        )


async def copy_object(call: Call) -> Response:
    headers = call.request.headers
    source = parse_copy_source(headers["x-amz-copy-source"])
    target = call.bucket, call.key
    sealing = await sealing_of(call)
    reader = await open_copy_source(call, source)
    given = await attributes_of_new_object(call)
    attributes = _copied_attributes(headers, given, reader.info.attributes)
    is_sealed = sealing.encryption is not None or reader.info.attributes.encryption is not None
    is_changed = (
        source.version_id
        or _directive(headers, "metadata") == "REPLACE"
        or headers.get("x-amz-storage-class", "STANDARD") != "STANDARD"
        or any(name.startswith(_CHANGES_OF_COPY) for name in headers)
    )
    if source.place == target and not is_changed:
        raise RequestError(
            "InvalidRequest",
            "This copy request is illegal because it is trying to copy an object to itself "
            "without changing the object's metadata, storage class, website redirect location "
            "or encryption attributes.",
        )
    check_read(headers, reader.info, prefix="x-amz-copy-source-if-")
    algorithm = _wanted_algorithm(headers)
    known = {} if reader.info.parts else reader.info.checksums
    if is_sealed or algorithm not in {"", *known}:
        # What is sealed for one key cannot be shared with another.
        checksums = known if algorithm in {"", *known} else {}
        body = StoredBody(
            opened(call, reader, COPY_SOURCE).read(), checksums, algorithm or DEFAULT_ALGORITHM
        )
        info = await call.store.put_object(
            *target, sealing.body(body), sealing.attributes(attributes), read_precondition(headers)
        )
    else:
        info = await call.store.copy_object(
            source.place,
            target,
            attributes,
            read_precondition(headers),
            source_version_id=source.version_id,
        )
    shown = version_headers(info) | sealing.headers
    if reader.info.is_versioned:
        shown["x-amz-copy-source-version-id"] = reader.info.version_id
    root = xml.document("CopyObjectResult")
    xml.add(root, "LastModified", xml.iso_time(info.modified_s))
    xml.add(root, "ETag", f'"{info.etag}"')
    add_checksums(root, info.checksums)
    response = xml.xml_response(root)
    response.headers |= shown
    return response


def _wanted_algorithm(headers: Mapping[str, str]) -> str:
    """The checksum that a copy is asked to have; "": that of its source."""
    algorithm = headers.get("x-amz-checksum-algorithm", "").lower()
    if algorithm and algorithm not in DIGEST_BYTES:
        raise RequestError(
            "InvalidRequest",
            "Checksum algorithm provided is unsupported. Please try again with "
            f"any of the valid types: [{', '.join(DIGEST_BYTES).upper()}]",
        )
    return algorithm


#: Headers with which an object may be copied onto itself.
_CHANGES_OF_COPY = ("x-amz-server-side-encryption", REDIRECT_LOCATION)


async def open_copy_source(call: Call, source: CopySource) -> ObjectReader:
    """Open what a copy reads. Raises RequestError: NoSuchKey, NoSuchVersion, InvalidRequest."""
    try:
        reader = await call.store.open_object(*source)
        if call.access.source is not None:
            call.access.source.confirm(reader.info.attributes)
        return reader
    except MarkerFound as marker:
        if marker.is_named:
            raise RequestError(
                "InvalidRequest",
                "The source of a copy request may not specifically refer to a delete marker by "
                "version id.",
            ) from None
        raise RequestError(marker.code, marker.message) from None


def _directive(headers: Mapping[str, str], what: str) -> str:
    directive = headers.get(f"x-amz-{what}-directive", "COPY")
    if directive not in ("COPY", "REPLACE"):
        raise RequestError("InvalidArgument", f"Unknown {what} directive.")
    return directive


def _copied_attributes(
    headers: Mapping[str, str], given: ObjectAttributes, source: ObjectAttributes
) -> ObjectAttributes:
    """The attributes of a copy; locks, lists and redirects are never copied."""
    base = given if _directive(headers, "metadata") == "REPLACE" else source
    tags = given.tags if _directive(headers, "tagging") == "REPLACE" else source.tags
    kept = {name: text for name, text in base.headers.items() if name != REDIRECT_LOCATION}
    if REDIRECT_LOCATION in given.headers:
        kept[REDIRECT_LOCATION] = given.headers[REDIRECT_LOCATION]
    return replace(base, headers=kept, tags=tags, lock=given.lock, acl=given.acl, encryption=None)


async def get_object_attributes(call: Call) -> Response:
    wanted = {
        name.strip() for name in (call.header("x-amz-object-attributes") or "").split(",")
    } - {""}
    if not wanted or not wanted <= _ATTRIBUTES:
        raise RequestError("InvalidArgument", "Invalid attribute name specified.")
    room = _count_header(call, "x-amz-max-parts", MAX_KEYS) or MAX_KEYS
    marker = _count_header(call, "x-amz-part-number-marker", 0)
    info = await call.store.head_object(
        call.bucket, call.key, call.version_id, part_checksums="ObjectParts" in wanted
    )
    data_key_of(call, info)
    check_read(call.request.headers, info)
    root = xml.document("GetObjectAttributesResponse")
    if "ETag" in wanted:
        xml.add(root, "ETag", info.etag)
    if "Checksum" in wanted and info.checksums:
        add_checksums(SubElement(root, "Checksum"), info.checksums)
    if "ObjectParts" in wanted and info.parts:
        _add_parts(SubElement(root, "ObjectParts"), info, room, marker)
    if "StorageClass" in wanted:
        xml.add(root, "StorageClass", "STANDARD")
    if "ObjectSize" in wanted:
        xml.add(root, "ObjectSize", info.size_bytes)
    response = xml.xml_response(root)
    response.headers["Last-Modified"] = object_headers(info)["Last-Modified"]
    response.headers |= version_headers(info)
    response.headers.pop("x-amz-expiration", None)
    return response


def _add_parts(parent: Element, info: ObjectInfo, room: int, marker: int) -> None:
    """A page of the parts of an object, counted from 1."""
    page = list(enumerate(info.parts, start=1))[marker : marker + room]
    xml.add(parent, "PartsCount", len(info.parts))
    xml.add(parent, "PartNumberMarker", marker)
    xml.add(parent, "NextPartNumberMarker", page[-1][0] if page else marker)
    xml.add(parent, "MaxParts", room)
    xml.add(parent, "IsTruncated", marker + len(page) < len(info.parts))
    for number, part in page:
        item = SubElement(parent, "Part")
        xml.add(item, "PartNumber", number)
        xml.add(item, "Size", part.size_bytes)
        for algorithm, digest in part.checksums.items():
            xml.add(item, f"Checksum{algorithm.upper()}", digest)


def _count_header(call: Call, name: str, default: int) -> int:
    text = call.header(name)
    if text is None:
        return default
    if not (text.isascii() and text.isdigit()):
        raise RequestError("InvalidArgument", f"{name} is not a number.")
    return min(int(text[:9]), xml.MAX_PARTS)


OBJECT_OPERATIONS: dict[str, Operation] = {
    "PutObject": put_object,
    "GetObject": get_object,
    "HeadObject": head_object,
    "DeleteObject": delete_object,
    "DeleteObjects": delete_objects,
    "CopyObject": copy_object,
    "GetObjectAttributes": get_object_attributes,
}
