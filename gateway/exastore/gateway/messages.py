"""Values of `store.py` to and from the messages of the metadata service."""

from exastore.gateway.encryption.frames import plain_size
from exastore.gateway.store import (
    BucketInfo,
    Encryption,
    ObjectAttributes,
    ObjectInfo,
    ObjectPart,
    Precondition,
    UploadInfo,
)
from exastore.gateway.writer import StoredBody
from exastore.proto.v1 import metadata_pb2


def bucket_of(message: metadata_pb2.Bucket) -> BucketInfo:
    return BucketInfo(name=message.name, created_s=message.created_s, owner=message.owner)


def attributes_of(message: metadata_pb2.Object) -> ObjectAttributes:
    return ObjectAttributes(
        content_type=message.content_type or ObjectAttributes().content_type,
        headers=dict(message.headers),
        user_metadata=dict(message.user_metadata),
        encryption=encryption_of(message),
    )


def encryption_of(message: metadata_pb2.Object) -> Encryption | None:
    if not message.HasField("encryption"):
        return None
    sealed = message.encryption
    return Encryption(sealed.algorithm, sealed.wrapped_key, sealed.customer_key_md5)


def info_of(message: metadata_pb2.Object) -> ObjectInfo:
    return ObjectInfo(
        bucket=message.bucket,
        key=message.key,
        version_id=message.version_id,
        size_bytes=message.plain_bytes if message.HasField("encryption") else message.size_bytes,
        etag=message.etag,
        modified_s=message.modified_s,
        attributes=attributes_of(message),
        checksums=dict(message.checksums),
        parts=[
            ObjectPart(
                number=part.number,
                size_bytes=part.plain_bytes or part.size_bytes,
                etag=part.etag,
            )
            for part in message.parts
        ],
    )


def part_of(message: metadata_pb2.Part) -> ObjectPart:
    return ObjectPart(
        number=message.number,
        size_bytes=message.plain_bytes or message.size_bytes,
        etag=message.etag,
        modified_s=message.modified_s,
        checksums=dict(message.checksums),
    )


def upload_of(message: metadata_pb2.Upload) -> UploadInfo:
    return UploadInfo(
        bucket=message.bucket,
        key=message.key,
        upload_id=message.upload_id,
        initiated_s=message.initiated_s,
        attributes=attributes_of(message.attributes),
    )


def attributes_message(attributes: ObjectAttributes) -> metadata_pb2.Object:
    message = metadata_pb2.Object(
        content_type=attributes.content_type,
        headers=attributes.headers,
        user_metadata=attributes.user_metadata,
    )
    sealed = attributes.encryption
    if sealed is not None:
        message.encryption.algorithm = sealed.algorithm
        message.encryption.wrapped_key = sealed.wrapped_key
        message.encryption.customer_key_md5 = sealed.customer_key_md5
    return message


def condition_message(precondition: Precondition) -> metadata_pb2.WriteCondition:
    return metadata_pb2.WriteCondition(
        must_not_exist=precondition.must_not_exist, if_match=precondition.if_match or ""
    )


def object_message(
    bucket: str, key: str, version_id: str, attributes: ObjectAttributes, stored: StoredBody
) -> metadata_pb2.Object:
    message = attributes_message(attributes)
    message.bucket = bucket
    message.key = key
    message.version_id = version_id
    message.size_bytes = stored.size_bytes
    if attributes.encryption is not None:
        message.plain_bytes = plain_size(stored.size_bytes)
    message.etag = stored.etag
    message.checksums.update(stored.checksums)
    message.inline_data = stored.inline_data
    message.extents.extend(stored.extents)
    return message


def part_message(number: int, stored: StoredBody, *, is_sealed: bool = False) -> metadata_pb2.Part:
    return metadata_pb2.Part(
        plain_bytes=plain_size(stored.size_bytes) if is_sealed else 0,
        number=number,
        size_bytes=stored.size_bytes,
        etag=stored.etag,
        checksums=stored.checksums,
        inline_data=stored.inline_data,
        extents=stored.extents,
    )
