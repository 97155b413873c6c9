"""What decides about a bucket, out of its settings and documents."""

import asyncio
import json

from exastore.gateway.errors import RequestError
from exastore.gateway.s3.access import BucketAccess, PublicAccessBlock
from exastore.gateway.s3.acl import ENFORCED, OBJECT_WRITER, Acl
from exastore.gateway.s3.policy import parse_bucket_policy
from exastore.gateway.store import ObjectAttributes, ObjectStore

#: Kinds of the documents of a bucket that are kept here, as the store names them.
POLICY = "policy"
ACL = "acl"
OWNERSHIP = "ownership"
BLOCK = "public-access-block"
CORS = "cors"
WEBSITE = "website"
ENCRYPTION = "encryption"
#: The ownership document of a bucket whose controls were deleted: as at S3, writers own objects.
NO_OWNERSHIP = b"none"


async def load_bucket(store: ObjectStore, name: str) -> BucketAccess:
    """Ask the store. Raises RequestError: NoSuchBucket."""
    info = await store.get_bucket(name)
    kinds = (POLICY, ACL, OWNERSHIP, BLOCK, CORS, WEBSITE, ENCRYPTION)
    documents = await asyncio.gather(*(store.get_bucket_document(name, kind) for kind in kinds))
    policy, acl, ownership, block, cors, website, encryption = documents
    return BucketAccess(
        name,
        info.owner,
        info.region,
        None if policy is None else parse_bucket_policy(policy, name),
        Acl() if acl is None else Acl.from_json(acl),
        PublicAccessBlock() if block is None else PublicAccessBlock(**json.loads(block)),
        _ownership(ownership),
        cors,
        website,
        encryption,
    )


def _ownership(document: bytes | None) -> str:
    if document is None:
        return ENFORCED
    return OBJECT_WRITER if document == NO_OWNERSHIP else document.decode()


async def change_document(
    store: ObjectStore, bucket: str, kind: str, document: bytes | None
) -> None:
    """Put a document of a bucket; None deletes it."""
    if document is None:
        await store.delete_bucket_document(bucket, kind)
    else:
        await store.put_bucket_document(bucket, kind, document)


async def load_attributes(
    store: ObjectStore, bucket: str, key: str, version_id: str | None
) -> ObjectAttributes:
    """What decides about an object; nothing, when there is no such object."""
    try:
        return (await store.head_object(bucket, key, version_id or "")).attributes
    except RequestError:
        return ObjectAttributes()
