"""Operations on buckets."""

import json
import re
from xml.etree.ElementTree import SubElement

from exastore.gateway.errors import RequestError
from exastore.gateway.s3 import xml
from exastore.gateway.s3.acl import ENFORCED, OWNERSHIPS, Acl, acl_of_headers
from exastore.gateway.s3.bucket_access import ACL, OWNERSHIP, change_document
from exastore.gateway.s3.context import Call, Operation
from exastore.gateway.s3.listing import decode_token, encode_token
from exastore.gateway.s3.message import Response
from exastore.gateway.s3.tagging import TAGGING, parse_new_tags

_NAME = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]", re.ASCII)
MAX_BUCKETS = 10_000
#: Parameters with which ListBuckets tells regions, too.
_PAGING = frozenset({"bucket-region", "continuation-token", "max-buckets", "prefix"})
_RESERVED_PREFIXES = ("xn--", "sthree-", "amzn-s3-demo-")
_RESERVED_SUFFIXES = ("-s3alias", "--ol-s3", ".mrap", "--x-s3", "--table-s3")
_IP_ADDRESS = re.compile(r"\d+\.\d+\.\d+\.\d+", re.ASCII)


def check_bucket_name(name: str) -> None:
    """Raise InvalidBucketName unless a new bucket may have this name."""
    if (
        not _NAME.fullmatch(name)
        or _IP_ADDRESS.fullmatch(name)
        or ".." in name
        or ".-" in name
        or "-." in name
        or name.startswith(_RESERVED_PREFIXES)
        or name.endswith(_RESERVED_SUFFIXES)
    ):
        raise RequestError("InvalidBucketName", "The specified bucket is not valid.")


def with_bad_name(error: RequestError, name: str) -> RequestError:
    """The error to show: a bucket that is not there because none can have its name is told so."""
    if error.code == "NoSuchBucket":
        try:
            check_bucket_name(name)
        except RequestError as bad:
            return bad
    return error


async def list_buckets(call: Call) -> Response:
    prefix, region = call.parameter("prefix"), call.parameter("bucket-region")
    room, after = _max_buckets(call), call.request.query.get("continuation-token")
    after_name = "" if after is None else decode_token(after)
    found = [
        info
        for info in await call.store.list_buckets()
        # A tenant learns of its own buckets alone; the administrator, of all.
        if (call.is_administrator or info.owner == call.owner)
        and info.name.startswith(prefix)
        and info.name > after_name
        and region in ("", info.region or call.region)
    ]
    found.sort(key=lambda info: info.name)
    root = xml.document("ListAllMyBucketsResult")
    xml.add_owner(root, call.owner)
    buckets = SubElement(root, "Buckets")
    for info in found[:room]:
        bucket = SubElement(buckets, "Bucket")
        xml.add(bucket, "Name", info.name)
        xml.add(bucket, "CreationDate", xml.iso_time(info.created_s))
        if not _PAGING.isdisjoint(call.request.query):
            xml.add(bucket, "BucketRegion", info.region or call.region)
    if len(found) > room:
        xml.add(root, "ContinuationToken", encode_token(found[room - 1].name))
    if prefix:
        xml.add(root, "Prefix", prefix)
    return xml.xml_response(root)


def _max_buckets(call: Call) -> int:
    text = call.parameter("max-buckets", str(MAX_BUCKETS))
    if not (text.isascii() and text.isdigit()) or not 1 <= int(text[:9]) <= MAX_BUCKETS:
        raise RequestError(
            "InvalidArgument",
            f"Argument max-buckets must be an integer between 1 and {MAX_BUCKETS}",
        )
    return int(text)


async def create_bucket(call: Call) -> Response:
    check_bucket_name(call.bucket)
    # A location may name a pool of the cluster; where there are none, any is accepted.
    document = await call.document()
    location, tags = xml.parse_location(document), parse_new_tags(document)
    if tags:
        call.access.require("s3:TagResource")
    acl, ownership = _lists_of_new_bucket(call)
    if call.header("x-amz-bucket-namespace") not in (None, "global"):
        raise RequestError("NotImplemented", "There is one namespace of buckets.")
    lock = (call.header("x-amz-bucket-object-lock-enabled") or "false").lower()
    if lock not in ("true", "false"):
        raise RequestError("InvalidArgument", "x-amz-bucket-object-lock-enabled is true or false")
    await call.store.create_bucket(
        call.bucket,
        owner=call.owner,
        location=location,
        object_lock=lock == "true",
    )
    if tags:
        await change_document(call.store, call.bucket, TAGGING, json.dumps(tags).encode())
    if ownership is not None:
        await change_document(call.store, call.bucket, OWNERSHIP, ownership.encode())
    if acl is not None and acl.grants:
        await change_document(call.store, call.bucket, ACL, acl.to_json())
    call.guard.buckets.forget(call.bucket)
    await call.audit("CreateBucket")
    return Response(headers={"Location": f"/{call.bucket}"})


def _lists_of_new_bucket(call: Call) -> tuple[Acl | None, str | None]:
    """The access control list and the ownership that a new bucket is asked to have."""
    acl, ownership = acl_of_headers(call.request.headers), call.header("x-amz-object-ownership")
    if ownership not in (None, *OWNERSHIPS):
        raise RequestError("InvalidArgument", "Invalid x-amz-object-ownership header")
    if acl is not None and acl.grants and ownership in (None, ENFORCED):
        raise RequestError(
            "InvalidBucketAclWithObjectOwnership",
            "Bucket cannot have ACLs set with ObjectOwnership's BucketOwnerEnforced setting",
        )
    return acl, ownership


async def head_bucket(call: Call) -> Response:
    info = await call.store.get_bucket(call.bucket)
    region = info.region or call.region
    return Response(headers={"x-amz-bucket-region": region, "x-amz-access-point-alias": "false"})


async def delete_bucket(call: Call) -> Response:
    await call.store.delete_bucket(call.bucket)
    call.guard.buckets.forget(call.bucket)
    await call.audit("DeleteBucket")
    return Response(204)


async def get_bucket_location(call: Call) -> Response:
    region = (await call.store.get_bucket(call.bucket)).region or call.region
    root = xml.document("LocationConstraint")
    # S3 writes its first region as nothing.
    root.text = "" if region == "us-east-1" else region
    return xml.xml_response(root)


BUCKET_OPERATIONS: dict[str, Operation] = {
    "ListBuckets": list_buckets,
    "CreateBucket": create_bucket,
    "HeadBucket": head_bucket,
    "DeleteBucket": delete_bucket,
    "GetBucketLocation": get_bucket_location,
}
