"""Operations on objects."""

from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import replace
from xml.etree.ElementTree import Element, SubElement

from exastore.gateway.errors import RequestError
from exastore.gateway.s3 import xml
from exastore.gateway.s3.attributes import (
    check_key,
    check_version,
    checksum_headers,
    object_headers,
    overridden_headers,
    parse_copy_source,
    read_attributes,
)
from exastore.gateway.s3.body import StoredBody
from exastore.gateway.s3.conditions import check_read, parse_range, read_precondition
from exastore.gateway.s3.context import Call, Operation
from exastore.gateway.s3.errors import S3Error
from exastore.gateway.s3.message import Response
from exastore.gateway.s3.sse import (
    COPY_SOURCE,
    data_key_of,
    encryption_headers,
    opened,
    sealing_of,
)
from exastore.gateway.store import ByteRange, ObjectInfo

_ATTRIBUTES = {"ETag", "Checksum", "ObjectParts", "StorageClass", "ObjectSize"}


async def put_object(call: Call) -> Response:
    check_key(call.key)
    headers = call.request.headers
    sealing = await sealing_of(call)
    info = await call.store.put_object(
        call.bucket,
        call.key,
        sealing.body(call.body()),
        sealing.attributes(read_attributes(headers)),
        read_precondition(headers),
    )
    shown = {"ETag": f'"{info.etag}"', **checksum_headers(info.checksums), **sealing.headers}
    return Response(headers=shown)


async def get_object(call: Call) -> Response:
    check_version(call.request.query.get("versionId"))
    reader = opened(call, await call.store.open_object(call.bucket, call.key))
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
    check_version(call.request.query.get("versionId"))
    info = await call.store.head_object(call.bucket, call.key)
    data_key_of(call, info)
    response, _ = _describe(call, info)
    return response


def _describe(call: Call, info: ObjectInfo) -> tuple[Response, ByteRange | None]:
    """The answer to GET and HEAD without its content, and the range to send."""
    request = call.request
    try:
        check_read(request.headers, info)
    except RequestError as error:
        if error.code == "NotModified":
            headers = object_headers(info)
            kept = ("ETag", "Last-Modified", "Cache-Control", "Expires")
            headers = {name: headers[name] for name in kept if name in headers}
            raise S3Error(error.code, error.message, headers=headers) from None
        raise
    headers = object_headers(info) | overridden_headers(request.query)
    headers |= encryption_headers(info.attributes.encryption)
    part = request.query.get("partNumber")
    byte_range: ByteRange | None
    if part is not None:
        byte_range = _range_of_part(part, info)
        if info.parts:
            headers["x-amz-mp-parts-count"] = str(len(info.parts))
    else:
        byte_range = parse_range(request.headers.get("range"), info.size_bytes)
    if byte_range is None:
        if (request.headers.get("x-amz-checksum-mode") or "").upper() == "ENABLED":
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
    check_key(call.key)
    check_version(call.request.query.get("versionId"))
    if "if-match" in call.request.headers:
        raise RequestError("NotImplemented", "If-Match on DeleteObject is not implemented.")
    await call.store.delete_objects(call.bucket, [call.key])
    return Response(204)


async def delete_objects(call: Call) -> Response:
    _demand_integrity(call)
    batch = xml.parse_delete(await call.document())
    root = xml.document("DeleteResult")
    keys: list[str] = []
    refused: list[tuple[str, RequestError]] = []
    for key, version_id in zip(batch.keys, batch.version_ids, strict=True):
        try:
            check_key(key)
            check_version(version_id)
            call.require_delete(key, version_id)
        except RequestError as error:
            refused.append((key, error))
        else:
            keys.append(key)
    if keys:
        await call.store.delete_objects(call.bucket, keys)
    else:
        await call.store.get_bucket(call.bucket)
    if not batch.quiet:
        for key in keys:
            xml.add(SubElement(root, "Deleted"), "Key", key)
    for key, refusal in refused:
        _add_error(root, key, refusal)
    return xml.xml_response(root)


def _add_error(root: Element, key: str, error: RequestError) -> None:
    element = SubElement(root, "Error")
    xml.add(element, "Key", key)
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
    )
    if not checked:
        raise RequestError(
            "InvalidRequest", "Missing required header for this request: Content-MD5"
        )


async def copy_object(call: Call) -> Response:
    check_key(call.key)
    headers = call.request.headers
    source = parse_copy_source(headers["x-amz-copy-source"])
    directive = headers.get("x-amz-metadata-directive", "COPY")
    if directive not in ("COPY", "REPLACE"):
        raise RequestError("InvalidArgument", "Unknown metadata directive.")
    attributes = read_attributes(headers)
    sealing = await sealing_of(call)
    reader = await call.store.open_object(*source)
    is_sealed = sealing.encryption is not None or reader.info.attributes.encryption is not None
    if directive == "COPY" and source == (call.bucket, call.key) and not is_sealed:
        raise RequestError(
            "InvalidRequest",
            "This copy request is illegal because it is trying to copy an object to itself "
            "without changing the object's metadata, storage class, website redirect location "
            "or encryption attributes.",
        )
    check_read(headers, reader.info, prefix="x-amz-copy-source-if-")
    if is_sealed:
        # What is sealed for one key cannot be shared with another.
        if directive == "COPY":
            attributes = replace(reader.info.attributes, encryption=None)
        checksums = {} if reader.info.parts else reader.info.checksums
        body = StoredBody(opened(call, reader, COPY_SOURCE).read(), checksums)
        info = await call.store.put_object(
            call.bucket,
            call.key,
            sealing.body(body),
            sealing.attributes(attributes),
            read_precondition(headers),
        )
    else:
        info = await call.store.copy_object(
            source,
            (call.bucket, call.key),
            attributes if directive == "REPLACE" else None,
            read_precondition(headers),
        )
    root = xml.document("CopyObjectResult")
    xml.add(root, "LastModified", xml.iso_time(info.modified_s))
    xml.add(root, "ETag", f'"{info.etag}"')
    for algorithm, digest in info.checksums.items():
        xml.add(root, f"Checksum{algorithm.upper()}", digest)
    response = xml.xml_response(root)
    response.headers |= sealing.headers
    return response


async def get_object_attributes(call: Call) -> Response:
    check_version(call.request.query.get("versionId"))
    wanted = {
        name.strip() for name in (call.header("x-amz-object-attributes") or "").split(",")
    } - {""}
    if not wanted or not wanted <= _ATTRIBUTES:
        raise RequestError("InvalidArgument", "Invalid attribute name specified.")
    info = await call.store.head_object(call.bucket, call.key)
    data_key_of(call, info)
    check_read(call.request.headers, info)
    root = xml.document("GetObjectAttributesResponse")
    if "ETag" in wanted:
        xml.add(root, "ETag", info.etag)
    if "Checksum" in wanted and info.checksums:
        checksum = SubElement(root, "Checksum")
        for algorithm, digest in info.checksums.items():
            xml.add(checksum, f"Checksum{algorithm.upper()}", digest)
        xml.add(checksum, "ChecksumType", checksum_headers(info.checksums)["x-amz-checksum-type"])
    if "ObjectParts" in wanted and info.parts:
        xml.add(SubElement(root, "ObjectParts"), "PartsCount", len(info.parts))
    if "StorageClass" in wanted:
        xml.add(root, "StorageClass", "STANDARD")
    if "ObjectSize" in wanted:
        xml.add(root, "ObjectSize", info.size_bytes)
    response = xml.xml_response(root)
    response.headers["Last-Modified"] = object_headers(info)["Last-Modified"]
    return response


async def get_object_tagging(call: Call) -> Response:
    await call.store.head_object(call.bucket, call.key)
    root = xml.document("Tagging")
    SubElement(root, "TagSet")
    return xml.xml_response(root)


OBJECT_OPERATIONS: dict[str, Operation] = {
    "PutObject": put_object,
    "GetObject": get_object,
    "HeadObject": head_object,
    "DeleteObject": delete_object,
    "DeleteObjects": delete_objects,
    "CopyObject": copy_object,
    "GetObjectAttributes": get_object_attributes,
    "GetObjectTagging": get_object_tagging,
}
