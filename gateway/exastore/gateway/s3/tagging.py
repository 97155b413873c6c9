"""Tags of objects and of buckets."""

import json
from collections.abc import Mapping
from xml.etree.ElementTree import Element, SubElement

from exastore.gateway.errors import RequestError
from exastore.gateway.s3 import xml
from exastore.gateway.s3.attributes import MAX_OBJECT_TAGS, check_tags, version_headers
from exastore.gateway.s3.context import Call, Operation
from exastore.gateway.s3.message import Response

#: The document of a bucket that holds its tags, as JSON.
TAGGING = "tagging"
MAX_BUCKET_TAGS = 50


def parse_tagging(body: bytes, max_count: int) -> dict[str, str]:
    """Read a Tagging document.

    Raises:
        RequestError: MalformedXML, InvalidTag, BadRequest for too many.
    """
    return _tags_in(xml.parse_document(body, "Tagging")[0], max_count)


def parse_new_tags(body: bytes) -> dict[str, str]:
    """The tags that a CreateBucketConfiguration asks for. Raises as `parse_tagging`."""
    if not body.strip():
        return {}
    tags = xml.parse_document(body, "CreateBucketConfiguration").find("Tags")
    return {} if tags is None else _tags_in(tags, MAX_BUCKET_TAGS)


def _tags_in(parent: Element, max_count: int) -> dict[str, str]:
    tags: dict[str, str] = {}
    for element in parent:
        name, value = element.findtext("Key", ""), element.findtext("Value", "")
        if name in tags:
            raise RequestError("InvalidTag", "Cannot provide multiple Tags with the same key")
        tags[name] = value
    check_tags(tags, max_count)
    return tags


def _document(tags: Mapping[str, str]) -> Response:
    root = xml.document("Tagging")
    tag_set = SubElement(root, "TagSet")
    for name, value in tags.items():
        tag = SubElement(tag_set, "Tag")
        xml.add(tag, "Key", name)
        xml.add(tag, "Value", value)
    return xml.xml_response(root)


async def get_object_tagging(call: Call) -> Response:
    info = await call.store.head_object(call.bucket, call.key, call.version_id)
    response = _document(dict(sorted(info.attributes.tags.items())))
    response.headers |= version_headers(info)
    return response


async def put_object_tagging(call: Call) -> Response:
    tags = parse_tagging(await call.document(), MAX_OBJECT_TAGS)
    info = await call.store.put_tags(call.bucket, call.key, call.version_id, tags)
    return Response(200, version_headers(info))


async def delete_object_tagging(call: Call) -> Response:
    info = await call.store.put_tags(call.bucket, call.key, call.version_id, {})
    return Response(204, version_headers(info))


async def get_bucket_tagging(call: Call) -> Response:
    await call.store.get_bucket(call.bucket)
    content = await call.store.get_bucket_document(call.bucket, TAGGING)
    if content is None:
        raise RequestError("NoSuchTagSet", "The TagSet does not exist")
    return _document(json.loads(content))


async def put_bucket_tagging(call: Call) -> Response:
    tags = parse_tagging(await call.document(), MAX_BUCKET_TAGS)
    content = json.dumps(tags).encode()
    await call.store.put_bucket_document(call.bucket, TAGGING, content)
    return Response(204)


async def delete_bucket_tagging(call: Call) -> Response:
    await call.store.delete_bucket_document(call.bucket, TAGGING)
    return Response(204)


TAGGING_OPERATIONS: dict[str, Operation] = {
    "GetObjectTagging": get_object_tagging,
    "PutObjectTagging": put_object_tagging,
    "DeleteObjectTagging": delete_object_tagging,
    "GetBucketTagging": get_bucket_tagging,
    "PutBucketTagging": put_bucket_tagging,
    "DeleteBucketTagging": delete_bucket_tagging,
}
