"""Versioning: its configuration, the list of all versions, and the headers that name a version."""

from xml.etree.ElementTree import SubElement

from exastore.gateway.errors import RequestError
from exastore.gateway.s3 import xml
from exastore.gateway.s3.context import Call, Operation
from exastore.gateway.s3.listing import (
    MAX_KEYS,
    add_common,
    add_prefixes,
    bounded,
    encoder_of,
)
from exastore.gateway.s3.message import Response
from exastore.gateway.store import NULL_VERSION, BucketChange, VersionListing


async def get_bucket_versioning(call: Call) -> Response:
    info = await call.store.get_bucket(call.bucket)
    root = xml.document("VersioningConfiguration")
    if info.versioning:
        xml.add(root, "Status", info.versioning)
    return xml.xml_response(root)


async def put_bucket_versioning(call: Call) -> Response:
    root = xml.parse_document(await call.document(), "VersioningConfiguration")
    status, mfa = xml.text_of(root, "Status"), xml.text_of(root, "MfaDelete")
    if mfa == "Enabled":
        raise RequestError("NotImplemented", "MFA delete is not implemented.")
    if status not in ("Enabled", "Suspended", None):
        raise xml.malformed()
    if status is None:
        raise RequestError(
            "IllegalVersioningConfigurationException",
            "The Versioning element must be specified",
        )
    await call.store.configure_bucket(call.bucket, BucketChange(versioning=status))
    return Response(200)


async def list_object_versions(call: Call) -> Response:
    encode, max_keys = encoder_of(call), bounded(call, "max-keys", MAX_KEYS)
    key_marker, id_marker = call.parameter("key-marker"), call.parameter("version-id-marker")
    if id_marker and not key_marker:
        raise RequestError(
            "InvalidArgument", "A version-id marker cannot be specified without a key marker."
        )
    listing = await _list(call, key_marker, id_marker, max_keys)
    root = xml.document("ListVersionsResult")
    xml.add(root, "Name", call.bucket)
    xml.add(root, "Prefix", encode(call.parameter("prefix")))
    xml.add(root, "KeyMarker", encode(key_marker))
    xml.add(root, "VersionIdMarker", id_marker)
    if listing.truncated:
        xml.add(root, "NextKeyMarker", encode(listing.next_key_marker))
        if listing.next_version_id_marker:
            xml.add(root, "NextVersionIdMarker", listing.next_version_id_marker)
    xml.add(root, "MaxKeys", max_keys)
    add_common(call, root, encode)
    xml.add(root, "IsTruncated", listing.truncated)
    for info in listing.versions:
        item = SubElement(root, "DeleteMarker" if info.delete_marker else "Version")
        xml.add(item, "Key", encode(info.key))
        xml.add(item, "VersionId", info.version_id if info.is_versioned else NULL_VERSION)
        xml.add(item, "IsLatest", info.is_latest)
        xml.add(item, "LastModified", xml.iso_time(info.modified_s))
        if not info.delete_marker:
            xml.add(item, "ETag", f'"{info.etag}"')
            for algorithm in info.checksums:
                xml.add(item, "ChecksumAlgorithm", algorithm.upper())
            xml.add(item, "Size", info.size_bytes)
            xml.add(item, "StorageClass", "STANDARD")
        xml.add_owner(item, call.owner_of(info.attributes))
    add_prefixes(root, listing.common_prefixes, encode)
    return xml.xml_response(root)


async def _list(call: Call, key_marker: str, id_marker: str, max_keys: int) -> VersionListing:
    if max_keys == 0:
        await call.store.get_bucket(call.bucket)
        return VersionListing((), (), False, "", "")
    return await call.store.list_versions(
        call.bucket,
        prefix=call.parameter("prefix"),
        delimiter=call.parameter("delimiter"),
        key_marker=key_marker,
        version_id_marker=id_marker,
        max_keys=max_keys,
    )


VERSION_OPERATIONS: dict[str, Operation] = {
    "GetBucketVersioning": get_bucket_versioning,
    "PutBucketVersioning": put_bucket_versioning,
    "ListObjectVersions": list_object_versions,
}
