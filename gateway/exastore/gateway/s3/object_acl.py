"""Lists of objects: who owns a new object, what its list grants, and the operations on it.

Laws:
1. Under BucketOwnerEnforced an object has no list: it is its bucket's owner's. What was kept with
   it before counts again once ownership allows lists.
2. Otherwise who writes an object owns it; under BucketOwnerPreferred it gives it away by the canned
   list bucket-owner-full-control. Copies and completed uploads follow the same rules.
3. The owner's full control is part of every list, shown and never taken away.
"""

from exastore.gateway.s3 import xml
from exastore.gateway.s3.access import BucketAccess
from exastore.gateway.s3.acl import (
    ACL_HEADERS,
    ANONYMOUS_OWNER,
    ENFORCED,
    PREFERRED,
    Acl,
    acl_document,
    canned_for_objects,
    check_acl,
    wanted_acl,
)
from exastore.gateway.s3.context import Call, Operation
from exastore.gateway.s3.identity import Kind
from exastore.gateway.s3.message import Response
from exastore.gateway.store import AccessList, ObjectAttributes


async def acl_of_new_object(call: Call) -> AccessList | None:
    """The list that a new object gets by the request that writes it; None: it needs none.

    Raises:
        RequestError: AccessControlListNotSupported, AccessDenied, InvalidArgument, ...
    """
    headers, bucket = call.request.headers, call.access.bucket
    asks = not ACL_HEADERS.isdisjoint(headers)
    if not asks and (bucket is None or bucket.ownership == ENFORCED):
        return None
    if bucket is None:
        bucket = await call.guard.buckets.get(call.bucket)
    acl = (
        wanted_acl(headers, b"", bucket.owner, canned_for_objects(bucket.owner)) if asks else Acl()
    )
    _check(acl, bucket)
    is_given = headers.get("x-amz-acl") == "bucket-owner-full-control"
    if bucket.ownership == PREFERRED and is_given:
        return None
    return _listed(acl, _writer(call, bucket), bucket)


def _writer(call: Call, bucket: BucketAccess) -> str:
    """Who owns what the caller writes. The administrator acts for the owner of the bucket."""
    principal = call.access.principal
    match principal.kind:
        case Kind.ROOT:
            return bucket.owner
        case Kind.USER:
            return principal.tenant
        case Kind.ANONYMOUS:
            return ANONYMOUS_OWNER


def _check(acl: Acl, bucket: BucketAccess) -> None:
    """Raise for a list that the bucket's ownership or its public access block rule out."""
    if acl.grants != ((bucket.owner, "FULL_CONTROL"),):
        check_acl(acl, bucket.ownership, bucket.block.block_public_acls)


def _listed(acl: Acl, owner: str, bucket: BucketAccess) -> AccessList | None:
    """What is kept with the object; None when that says nothing."""
    grants = tuple(grant for grant in acl.grants if grant != (owner, "FULL_CONTROL"))
    if bucket.ownership == ENFORCED or (owner == bucket.owner and not grants):
        return None
    return AccessList(owner, grants)


def _current(attributes: ObjectAttributes, bucket: BucketAccess) -> AccessList:
    """The list that an object has."""
    if attributes.acl is None or bucket.ownership == ENFORCED:
        return AccessList(bucket.owner)
    return attributes.acl


async def get_object_acl(call: Call) -> Response:
    info = await call.store.head_object(call.bucket, call.key, call.version_id)
    found = _current(info.attributes, await call.guard.buckets.get(call.bucket))
    response = xml.xml_response(acl_document(found.owner, Acl(found.grants)))
    if info.is_versioned:
        response.headers["x-amz-version-id"] = info.version_id
    return response


async def put_object_acl(call: Call) -> Response:
    info = await call.store.head_object(call.bucket, call.key, call.version_id)
    bucket = await call.guard.fresh_bucket(call.bucket)
    owner = _current(info.attributes, bucket).owner
    canned = canned_for_objects(bucket.owner)
    acl = wanted_acl(call.request.headers, await call.document(), owner, canned)
    _check(acl, bucket)
    if bucket.ownership != ENFORCED:
        version_id = info.version_id if info.is_versioned else ""
        listed = _listed(acl, owner, bucket)
        await call.store.put_acl(call.bucket, call.key, version_id, listed)
        await call.audit("PutObjectAcl")
    return Response(headers={"x-amz-version-id": info.version_id} if info.is_versioned else {})


OBJECT_ACL_OPERATIONS: dict[str, Operation] = {
    "GetObjectAcl": get_object_acl,
    "PutObjectAcl": put_object_acl,
}
