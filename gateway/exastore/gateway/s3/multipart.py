"""Operations on multipart uploads."""

import re
from collections.abc import Mapping
from itertools import pairwise
from xml.etree.ElementTree import Element, SubElement

from exastore.gateway.errors import RequestError
from exastore.gateway.s3 import xml
from exastore.gateway.s3.attributes import (
    add_checksums,
    checksum_headers,
    parse_copy_source,
    version_headers,
)
from exastore.gateway.s3.body import MAX_PUT_BYTES, StoredBody
from exastore.gateway.s3.checksums import DEFAULT_ALGORITHM, DIGEST_BYTES, is_combinable
from exastore.gateway.s3.completion import check_whole_object
from exastore.gateway.s3.conditions import check_read, read_precondition
from exastore.gateway.s3.context import Call, Operation
from exastore.gateway.s3.listing import (
    MAX_KEYS,
    add_common,
    add_prefixes,
    bounded,
    encoder_of,
)
from exastore.gateway.s3.message import Response
from exastore.gateway.s3.objects import attributes_of_new_object, open_copy_source
from exastore.gateway.s3.sse import (
    COPY_SOURCE,
    encryption_headers,
    opened,
    sealing_of,
    sealing_of_part,
)
from exastore.gateway.store import (
    NO_UPLOAD_CHECKSUM,
    ByteRange,
    UploadChecksum,
    UploadInfo,
    UploadListing,
)

_COPY_RANGE = re.compile(r"bytes=(\d{1,18})-(\d{1,18})", re.ASCII)


async def create_upload(call: Call) -> Response:
    headers = call.request.headers
    checksum = _read_checksum(headers)
    sealing = await sealing_of(call)
    upload = await call.store.create_upload(
        call.bucket, call.key, sealing.attributes(await attributes_of_new_object(call)), checksum
    )
    root = xml.document("InitiateMultipartUploadResult")
    xml.add(root, "Bucket", call.bucket)
    xml.add(root, "Key", call.key)
    xml.add(root, "UploadId", upload.upload_id)
    response = xml.xml_response(root)
    if checksum.algorithm:
        response.headers["x-amz-checksum-algorithm"] = checksum.algorithm.upper()
        response.headers["x-amz-checksum-type"] = checksum.type
    response.headers |= sealing.headers
    return response


def _read_checksum(headers: Mapping[str, str]) -> UploadChecksum:
    """Which checksum an upload is begun with. Raises RequestError: InvalidRequest."""
    algorithm = headers.get("x-amz-checksum-algorithm", "").lower()
    kind = headers.get("x-amz-checksum-type", "").upper()
    if not algorithm:
        if kind:
            raise RequestError(
                "InvalidRequest",
                "The x-amz-checksum-type header can only be used with the "
                "x-amz-checksum-algorithm header.",
            )
        return NO_UPLOAD_CHECKSUM
    if algorithm not in DIGEST_BYTES:
        raise RequestError(
            "InvalidRequest",
            "Checksum algorithm provided is unsupported. Please try again with "
            f"any of the valid types: [{', '.join(DIGEST_BYTES).upper()}]",
        )
    # CRC64NVME is of the whole object alone, the hashes are of the parts alone.
    kind = kind or ("FULL_OBJECT" if algorithm == DEFAULT_ALGORITHM else "COMPOSITE")
    if kind not in ("FULL_OBJECT", "COMPOSITE"):
        raise RequestError("InvalidRequest", "Value for x-amz-checksum-type header is invalid.")
    is_whole = kind == "FULL_OBJECT"
    if (algorithm == DEFAULT_ALGORITHM) > is_whole or is_whole > is_combinable(algorithm):
        raise RequestError(
            "InvalidRequest",
            f"The {kind} checksum type cannot be used with the {algorithm} checksum algorithm.",
        )
    return UploadChecksum(algorithm, kind)


async def _upload(call: Call) -> UploadInfo:
    """The upload that a part is for. Raises RequestError: NoSuchUpload."""
    upload, _, _ = await call.store.list_parts(
        call.bucket, call.key, call.parameter("uploadId"), after_number=0, max_parts=1
    )
    return upload


def _part_number(call: Call) -> int:
    text = call.parameter("partNumber")
    if not (text.isascii() and text.isdigit()) or not 1 <= int(text[:9]) <= xml.MAX_PARTS:
        raise RequestError(
            "InvalidArgument", "Part number must be an integer between 1 and 10000, inclusive"
        )
    return int(text)


async def upload_part(call: Call) -> Response:
    number = _part_number(call)
    upload = await _upload(call)
    sealing = sealing_of_part(call, upload)
    body = call.body(upload.checksum.algorithm or DEFAULT_ALGORITHM)
    _check_algorithm(body.algorithms, upload.checksum)
    part = await call.store.put_part(
        call.bucket, call.key, upload.upload_id, number, sealing.body(body, number)
    )
    # The checksum that the client named, or its default: it compares.
    checksums = checksum_headers(part.checksums or body.finish())
    checksums.pop("x-amz-checksum-type", None)
    return Response(headers={"ETag": f'"{part.etag}"', **checksums, **sealing.headers})


def _check_algorithm(named: tuple[str, ...], wanted: UploadChecksum) -> None:
    """Hold a part to the algorithm of its upload. Raises RequestError: InvalidRequest.

    Parts without a checksum are taken where that of the whole object will be checked.
    """
    if not wanted.algorithm or wanted.algorithm in named:
        return
    if named or wanted.type == "COMPOSITE":
        raise RequestError(
            "InvalidRequest",
            f"Checksum Type mismatch occurred, expected checksum Type: {wanted.algorithm}, "
            f"actual checksum Type: {named[0] if named else 'null'}",
        )


async def upload_part_copy(call: Call) -> Response:
    number = _part_number(call)
    headers = call.request.headers
    source = parse_copy_source(headers["x-amz-copy-source"])
    upload = await _upload(call)
    sealing = sealing_of_part(call, upload)
    reader = opened(call, await open_copy_source(call, source), COPY_SOURCE)
    check_read(headers, reader.info, prefix="x-amz-copy-source-if-")
    byte_range = _copy_range(headers.get("x-amz-copy-source-range"), reader.info.size_bytes)
    if byte_range.length > MAX_PUT_BYTES:
        raise RequestError(
            "InvalidRequest", "The specified copy source is larger than the maximum allowable size"
        )
    algorithm = upload.checksum.algorithm or DEFAULT_ALGORITHM
    body = StoredBody(reader.read(byte_range), algorithm=algorithm)
    part = await call.store.put_part(
        call.bucket, call.key, upload.upload_id, number, sealing.body(body, number)
    )
    root = xml.document("CopyPartResult")
    xml.add(root, "LastModified", xml.iso_time(part.modified_s))
    xml.add(root, "ETag", f'"{part.etag}"')
    for algorithm, digest in part.checksums.items():
        xml.add(root, f"Checksum{algorithm.upper()}", digest)
    response = xml.xml_response(root)
    response.headers |= sealing.headers
    if reader.info.is_versioned:
        response.headers["x-amz-copy-source-version-id"] = reader.info.version_id
    return response


def _copy_range(header: str | None, size_bytes: int) -> ByteRange:
    if header is None:
        return ByteRange(0, size_bytes)
    match = _COPY_RANGE.fullmatch(header)
    if match is None:
        raise RequestError(
            "InvalidArgument",
            "The x-amz-copy-source-range value must be of the form bytes=first-last",
        )
    first, last = int(match[1]), int(match[2])
    if first > last or last >= size_bytes:
        raise RequestError(
            "InvalidArgument",
            f"Range specified is not valid for source object of size: {size_bytes}",
        )
    return ByteRange(first, last - first + 1)


async def complete_upload(call: Call) -> Response:
    parts = xml.parse_complete(await call.document(own_checksum=False))
    numbers = [part.number for part in parts]
    if any(a >= b for a, b in pairwise(numbers)):
        raise RequestError(
            "InvalidPartOrder",
            "The list of parts was not in ascending order. Parts must be ordered by part number.",
        )
    checksums = await check_whole_object(call, parts)
    info = await call.store.complete_upload(
        call.bucket,
        call.key,
        call.parameter("uploadId"),
        [(part.number, part.etag) for part in parts],
        read_precondition(call.request.headers),
        checksums,
    )
    root = xml.document("CompleteMultipartUploadResult")
    xml.add(root, "Location", f"/{call.bucket}/{call.key}")
    xml.add(root, "Bucket", call.bucket)
    xml.add(root, "Key", call.key)
    xml.add(root, "ETag", f'"{info.etag}"')
    add_checksums(root, info.checksums)
    response = xml.xml_response(root)
    response.headers |= encryption_headers(info.attributes.encryption) | version_headers(info)
    return response


async def abort_upload(call: Call) -> Response:
    if "x-amz-if-match-initiated-time" in call.request.headers:
        raise RequestError("NotImplemented", "Aborts on condition are for directory buckets.")
    await call.store.abort_upload(call.bucket, call.key, call.parameter("uploadId"))
    return Response(204)


async def list_parts(call: Call) -> Response:
    max_parts = bounded(call, "max-parts", MAX_KEYS)
    marker = (
        bounded(call, "part-number-marker", xml.MAX_PARTS)
        if call.parameter("part-number-marker")
        else 0
    )
    upload, parts, truncated = await call.store.list_parts(
        call.bucket,
        call.key,
        call.parameter("uploadId"),
        after_number=marker,
        max_parts=max_parts,
    )
    root = xml.document("ListPartsResult")
    xml.add(root, "Bucket", call.bucket)
    xml.add(root, "Key", encoder_of(call)(call.key))
    xml.add(root, "UploadId", upload.upload_id)
    owner = call.owner_of(upload.attributes)
    xml.add_owner(root, owner, "Initiator")
    xml.add_owner(root, owner)
    xml.add(root, "StorageClass", "STANDARD")
    xml.add(root, "PartNumberMarker", marker)
    xml.add(root, "NextPartNumberMarker", parts[-1].number if parts else marker)
    xml.add(root, "MaxParts", max_parts)
    xml.add(root, "IsTruncated", truncated)
    _add_checksum_kind(root, upload)
    for part in parts:
        item = SubElement(root, "Part")
        xml.add(item, "PartNumber", part.number)
        xml.add(item, "LastModified", xml.iso_time(part.modified_s))
        xml.add(item, "ETag", f'"{part.etag}"')
        xml.add(item, "Size", part.size_bytes)
        for algorithm, digest in part.checksums.items():
            xml.add(item, f"Checksum{algorithm.upper()}", digest)
    return xml.xml_response(root)


async def list_uploads(call: Call) -> Response:
    encode, max_uploads = encoder_of(call), bounded(call, "max-uploads", MAX_KEYS)
    prefix, delimiter = call.parameter("prefix"), call.parameter("delimiter")
    key_marker, id_marker = call.parameter("key-marker"), call.parameter("upload-id-marker")
    page = UploadListing((), (), False, "", "")
    if max_uploads == 0:
        await call.store.get_bucket(call.bucket)
    else:
        page = await call.store.list_uploads(
            call.bucket,
            prefix=prefix,
            delimiter=delimiter,
            key_marker=key_marker,
            upload_id_marker=id_marker if key_marker else "",
            max_uploads=max_uploads,
        )
    root = xml.document("ListMultipartUploadsResult")
    xml.add(root, "Bucket", call.bucket)
    xml.add(root, "KeyMarker", encode(key_marker))
    xml.add(root, "UploadIdMarker", id_marker)
    if page.truncated:
        xml.add(root, "NextKeyMarker", encode(page.next_key_marker))
        xml.add(root, "NextUploadIdMarker", page.next_upload_id_marker)
    xml.add(root, "Prefix", encode(prefix))
    add_common(call, root, encode)
    xml.add(root, "MaxUploads", max_uploads)
    xml.add(root, "IsTruncated", page.truncated)
    for upload in page.uploads:
        _add_upload(root, upload, encode(upload.key), call.owner_of(upload.attributes))
    add_prefixes(root, page.common_prefixes, encode)
    return xml.xml_response(root)


def _add_upload(root: Element, upload: UploadInfo, key: str, owner: str) -> None:
    item = SubElement(root, "Upload")
    xml.add(item, "Key", key)
    xml.add(item, "UploadId", upload.upload_id)
    xml.add_owner(item, owner, "Initiator")
    xml.add_owner(item, owner)
    xml.add(item, "StorageClass", "STANDARD")
    xml.add(item, "Initiated", xml.iso_time(upload.initiated_s))
    _add_checksum_kind(item, upload)


def _add_checksum_kind(parent: Element, upload: UploadInfo) -> None:
    if upload.checksum.algorithm:
        xml.add(parent, "ChecksumAlgorithm", upload.checksum.algorithm.upper())
        xml.add(parent, "ChecksumType", upload.checksum.type)


MULTIPART_OPERATIONS: dict[str, Operation] = {
    "CreateMultipartUpload": create_upload,
    "UploadPart": upload_part,
    "UploadPartCopy": upload_part_copy,
    "CompleteMultipartUpload": complete_upload,
    "AbortMultipartUpload": abort_upload,
    "ListParts": list_parts,
    "ListMultipartUploads": list_uploads,
}
