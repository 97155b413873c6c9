"""Operations on what decides about a bucket: policy, list, ownership, public access, origins."""

import json
from dataclasses import asdict
from xml.etree.ElementTree import SubElement

from exastore.gateway.errors import RequestError
from exastore.gateway.s3 import bucket_access as documents
from exastore.gateway.s3 import xml
from exastore.gateway.s3.access import BucketAccess, PublicAccessBlock
from exastore.gateway.s3.acl import (
    CANNED_OF_BUCKETS,
    ENFORCED,
    OWNERSHIPS,
    acl_document,
    check_acl,
    wanted_acl,
)
from exastore.gateway.s3.context import Call, Operation
from exastore.gateway.s3.cors import parse_cors
from exastore.gateway.s3.message import Response
from exastore.gateway.s3.policy import MAX_POLICY_BYTES, parse_bucket_policy
from exastore.gateway.s3.website import parse_website

_BLOCK_FIELDS = {
    "BlockPublicAcls": "block_public_acls",
    "IgnorePublicAcls": "ignore_public_acls",
    "BlockPublicPolicy": "block_public_policy",
    "RestrictPublicBuckets": "restrict_public_buckets",
}
#: What the audit log calls a document.
_ACT_OF_KIND = {
    documents.POLICY: "BucketPolicy",
    documents.ACL: "BucketAcl",
    documents.OWNERSHIP: "BucketOwnershipControls",
    documents.BLOCK: "PublicAccessBlock",
    documents.CORS: "BucketCors",
    documents.WEBSITE: "BucketWebsite",
}


async def _bucket(call: Call) -> BucketAccess:
    """What the store has now: what was remembered may be older than another gateway's change."""
    return await call.guard.fresh_bucket(call.bucket)


async def _change(call: Call, kind: str, document: bytes | None) -> None:
    """Put a document of the bucket, or delete it; it counts from now on, and is on record."""
    await documents.change_document(call.store, call.bucket, kind, document)
    call.guard.buckets.forget(call.bucket)
    await call.audit(("Delete" if document is None else "Put") + _ACT_OF_KIND[kind])


# ---- policy ----


async def get_policy(call: Call) -> Response:
    document = await call.store.get_bucket_document(call.bucket, documents.POLICY)
    if document is None:
        raise _no_policy()
    return Response(200, {"Content-Type": "application/json"}, document)


async def put_policy(call: Call) -> Response:
    document = await call.document()
    if not document:
        raise RequestError("MissingRequestBodyError", "Request Body is empty")
    if len(document) > MAX_POLICY_BYTES:
        raise RequestError("MalformedPolicy", f"Policies have at most {MAX_POLICY_BYTES} bytes")
    policy = parse_bucket_policy(document, call.bucket)
    if policy.is_public and (await _bucket(call)).block.block_public_policy:
        raise RequestError(
            "AccessDenied",
            "The bucket's public access block (BlockPublicPolicy) does not let a policy be public.",
        )
    await _change(call, documents.POLICY, document)
    return Response(204)


async def delete_policy(call: Call) -> Response:
    await _change(call, documents.POLICY, None)
    return Response(204)


async def get_policy_status(call: Call) -> Response:
    policy = (await _bucket(call)).policy
    if policy is None:
        raise _no_policy()
    root = xml.document("PolicyStatus")
    xml.add(root, "IsPublic", policy.is_public)
    return xml.xml_response(root)


def _no_policy() -> RequestError:
    return RequestError("NoSuchBucketPolicy", "The bucket policy does not exist")


# ---- public access block, ownership ----


async def get_public_access_block(call: Call) -> Response:
    document = await call.store.get_bucket_document(call.bucket, documents.BLOCK)
    if document is None:
        raise RequestError(
            "NoSuchPublicAccessBlockConfiguration",
            "The public access block configuration was not found",
        )
    block = json.loads(document)
    root = xml.document("PublicAccessBlockConfiguration")
    for name, field in _BLOCK_FIELDS.items():
        xml.add(root, name, bool(block[field]))
    return xml.xml_response(root)


async def put_public_access_block(call: Call) -> Response:
    root = xml.parse_document(await call.document(), "PublicAccessBlockConfiguration")
    fields: dict[str, bool] = {}
    for child in root:
        text = (child.text or "").strip().lower()
        if child.tag not in _BLOCK_FIELDS or text not in ("true", "false"):
            raise xml.malformed()
        fields[_BLOCK_FIELDS[child.tag]] = text == "true"
    block = json.dumps(asdict(PublicAccessBlock(**fields))).encode()
    await _change(call, documents.BLOCK, block)
    return Response(200)


async def delete_public_access_block(call: Call) -> Response:
    await _change(call, documents.BLOCK, None)
    return Response(204)


async def get_ownership(call: Call) -> Response:
    document = await call.store.get_bucket_document(call.bucket, documents.OWNERSHIP)
    if document == documents.NO_OWNERSHIP:
        raise RequestError(
            "OwnershipControlsNotFoundError", "The bucket ownership controls were not found"
        )
    ownership = ENFORCED if document is None else document.decode()
    root = xml.document("OwnershipControls")
    xml.add(SubElement(root, "Rule"), "ObjectOwnership", ownership)
    return xml.xml_response(root)


async def put_ownership(call: Call) -> Response:
    root = xml.parse_document(await call.document(), "OwnershipControls")
    rules = root.findall("Rule")
    ownership = rules[0].findtext("ObjectOwnership", "") if len(rules) == 1 else ""
    if ownership not in OWNERSHIPS:
        raise xml.malformed()
    if (await _bucket(call)).acl.grants and ownership == OWNERSHIPS[0]:
        raise RequestError(
            "InvalidBucketAclWithObjectOwnership",
            "Bucket cannot have ACLs set with ObjectOwnership's BucketOwnerEnforced setting",
        )
    await _change(call, documents.OWNERSHIP, ownership.encode())
    return Response(200)


async def delete_ownership(call: Call) -> Response:
    await _change(call, documents.OWNERSHIP, documents.NO_OWNERSHIP)
    return Response(204)


# ---- lists ----


async def get_bucket_acl(call: Call) -> Response:
    bucket = await _bucket(call)
    return xml.xml_response(acl_document(bucket.owner, bucket.acl))


async def put_bucket_acl(call: Call) -> Response:
    bucket = await _bucket(call)
    headers, document = call.request.headers, await call.document()
    acl = wanted_acl(headers, document, bucket.owner, CANNED_OF_BUCKETS)
    check_acl(acl, bucket.ownership, bucket.block.block_public_acls)
    await _change(call, documents.ACL, acl.to_json() if acl.grants else None)
    return Response(200)


# ---- origins, website ----


async def get_cors(call: Call) -> Response:
    document = await call.store.get_bucket_document(call.bucket, documents.CORS)
    if document is None:
        raise RequestError("NoSuchCORSConfiguration", "The CORS configuration does not exist")
    return Response(200, {"Content-Type": "application/xml"}, document)


async def put_cors(call: Call) -> Response:
    document = await call.document()
    parse_cors(document)
    await _change(call, documents.CORS, document)
    return Response(200)


async def delete_cors(call: Call) -> Response:
    await _change(call, documents.CORS, None)
    return Response(204)


async def get_website(call: Call) -> Response:
    document = await call.store.get_bucket_document(call.bucket, documents.WEBSITE)
    if document is None:
        raise RequestError(
            "NoSuchWebsiteConfiguration",
            "The specified bucket does not have a website configuration",
        )
    return Response(200, {"Content-Type": "application/xml"}, document)


async def put_website(call: Call) -> Response:
    document = await call.document()
    parse_website(document)
    await _change(call, documents.WEBSITE, document)
    return Response(200)


async def delete_website(call: Call) -> Response:
    await _change(call, documents.WEBSITE, None)
    return Response(204)


ACCESS_OPERATIONS: dict[str, Operation] = {
    "GetBucketPolicy": get_policy,
    "PutBucketPolicy": put_policy,
    "DeleteBucketPolicy": delete_policy,
    "GetBucketPolicyStatus": get_policy_status,
    "GetPublicAccessBlock": get_public_access_block,
    "PutPublicAccessBlock": put_public_access_block,
    "DeletePublicAccessBlock": delete_public_access_block,
    "GetBucketOwnershipControls": get_ownership,
    "PutBucketOwnershipControls": put_ownership,
    "DeleteBucketOwnershipControls": delete_ownership,
    "GetBucketAcl": get_bucket_acl,
    "PutBucketAcl": put_bucket_acl,
    "GetBucketCors": get_cors,
    "PutBucketCors": put_cors,
    "DeleteBucketCors": delete_cors,
    "GetBucketWebsite": get_website,
    "PutBucketWebsite": put_website,
    "DeleteBucketWebsite": delete_website,
}
