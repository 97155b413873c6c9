"""ListObjects, in both versions."""

import base64
import binascii
from collections.abc import Callable, Sequence
from xml.etree.ElementTree import Element, SubElement

from exastore.gateway.errors import RequestError
from exastore.gateway.s3 import xml
from exastore.gateway.s3.context import Call, Operation
from exastore.gateway.s3.message import Response
from exastore.gateway.store import Listing, ObjectAttributes

MAX_KEYS = 1000

Encoder = Callable[[str], str]
OwnerOf = Callable[[ObjectAttributes], str]


def bounded(call: Call, name: str, maximum: int) -> int:
    """A count from the query, at most `maximum`, which is also the default.

    Raises:
        RequestError: InvalidArgument when it is not a number from 0, of 31 bits.
    """
    text = call.parameter(name)
    if not text:
        return maximum
    if not (text.isascii() and text.isdigit()) or int(text[:11]) >= 1 << 31:
        raise RequestError(
            "InvalidArgument", f"Provided {name} not an integer or within integer range"
        )
    return min(int(text), maximum)


def encoder_of(call: Call) -> Encoder:
    """How keys are written: as encoding-type asks for."""
    match call.parameter("encoding-type"):
        case "":
            return str
        case "url":
            return xml.url_encoded
        case _:
            raise RequestError("InvalidArgument", "Invalid Encoding Method specified in Request")


def encode_token(start_after: str) -> str:
    """A continuation token: opaque to clients, the last key behind it."""
    return base64.urlsafe_b64encode(start_after.encode()).decode()


def decode_token(token: str) -> str:
    """The key within a continuation token."""
    try:
        return base64.b64decode(token, altchars=b"-_", validate=True).decode()
    except (binascii.Error, ValueError):
        raise RequestError(
            "InvalidArgument", "The continuation token provided is incorrect"
        ) from None


async def _list(call: Call, start_after: str, max_keys: int) -> Listing:
    if max_keys == 0:
        await call.store.get_bucket(call.bucket)
        return Listing((), (), False, "")
    return await call.store.list_objects(
        call.bucket,
        prefix=call.parameter("prefix"),
        delimiter=call.parameter("delimiter"),
        start_after=start_after,
        max_keys=max_keys,
    )


def _add_page(root: Element, listing: Listing, encode: Encoder, owner_of: OwnerOf | None) -> None:
    for info in listing.objects:
        item = SubElement(root, "Contents")
        xml.add(item, "Key", encode(info.key))
        xml.add(item, "LastModified", xml.iso_time(info.modified_s))
        xml.add(item, "ETag", f'"{info.etag}"')
        for algorithm in info.checksums:
            xml.add(item, "ChecksumAlgorithm", algorithm.upper())
        xml.add(item, "Size", info.size_bytes)
        if owner_of is not None:
            xml.add_owner(item, owner_of(info.attributes))
        xml.add(item, "StorageClass", "STANDARD")
    add_prefixes(root, listing.common_prefixes, encode)


def add_prefixes(root: Element, prefixes: Sequence[str], encode: Encoder) -> None:
    """Append CommonPrefixes."""
    for prefix in prefixes:
        xml.add(SubElement(root, "CommonPrefixes"), "Prefix", encode(prefix))


async def list_objects(call: Call) -> Response:
    encode, max_keys = encoder_of(call), bounded(call, "max-keys", MAX_KEYS)
    marker = call.parameter("marker")
    listing = await _list(call, marker, max_keys)
    root = xml.document("ListBucketResult")
    xml.add(root, "Name", call.bucket)
    xml.add(root, "Prefix", encode(call.parameter("prefix")))
    xml.add(root, "Marker", encode(marker))
    if listing.truncated:
        xml.add(root, "NextMarker", encode(listing.next_start_after))
    xml.add(root, "MaxKeys", max_keys)
    add_common(call, root, encode)
    xml.add(root, "IsTruncated", listing.truncated)
    _add_page(root, listing, encode, call.owner_of)
    return xml.xml_response(root)


async def list_objects_v2(call: Call) -> Response:
    encode, max_keys = encoder_of(call), bounded(call, "max-keys", MAX_KEYS)
    start_after = call.parameter("start-after")
    token = call.request.query.get("continuation-token")
    if token == "":
        raise RequestError("InvalidArgument", "The continuation token provided is incorrect")
    listing = await _list(call, start_after if token is None else decode_token(token), max_keys)
    root = xml.document("ListBucketResult")
    xml.add(root, "Name", call.bucket)
    xml.add(root, "Prefix", encode(call.parameter("prefix")))
    if token is not None:
        xml.add(root, "ContinuationToken", token)
    if start_after:
        xml.add(root, "StartAfter", encode(start_after))
    if listing.truncated:
        xml.add(root, "NextContinuationToken", encode_token(listing.next_start_after))
    xml.add(root, "KeyCount", len(listing.objects) + len(listing.common_prefixes))
    xml.add(root, "MaxKeys", max_keys)
    add_common(call, root, encode)
    xml.add(root, "IsTruncated", listing.truncated)
    wanted = call.parameter("fetch-owner") == "true"
    _add_page(root, listing, encode, call.owner_of if wanted else None)
    return xml.xml_response(root)


def add_common(call: Call, root: Element, encode: Encoder) -> None:
    """Append the delimiter and the encoding that were asked for."""
    if call.parameter("delimiter"):
        xml.add(root, "Delimiter", encode(call.parameter("delimiter")))
    if call.parameter("encoding-type"):
        xml.add(root, "EncodingType", call.parameter("encoding-type"))


LISTING_OPERATIONS: dict[str, Operation] = {
    "ListObjects": list_objects,
    "ListObjectsV2": list_objects_v2,
}
