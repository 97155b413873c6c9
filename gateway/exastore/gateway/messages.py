"""Values of `store.py` to and from the messages of the metadata service."""

from dataclasses import asdict

from exastore.gateway.encryption.frames import plain_size
from exastore.gateway.metadata_errors import REQUEST_CODES
from exastore.gateway.store import (
    NO_LOCK,
    NULL_VERSION,
    BucketChange,
    BucketInfo,
    BucketLock,
    Deleted,
    Deletion,
    Encryption,
    LifecycleRule,
    ObjectAttributes,
    ObjectInfo,
    ObjectLock,
    ObjectPart,
    Precondition,
    UploadInfo,
    UploadListing,
    VersionListing,
)
from exastore.gateway.writer import StoredBody
from exastore.proto.v1 import lock_pb2, metadata_pb2


def bucket_of(message: metadata_pb2.Bucket) -> BucketInfo:
    return BucketInfo(message.name, message.created_s, message.owner, region=message.region)


def attributes_of(message: metadata_pb2.Object) -> ObjectAttributes:
    return ObjectAttributes(
        content_type=message.content_type or ObjectAttributes().content_type,
        headers=dict(message.headers),
        user_metadata=dict(message.user_metadata),
        tags=dict(message.tags),
        lock=lock_of(message.lock) if message.HasField("lock") else NO_LOCK,
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
        version_id=NULL_VERSION if message.null_version else message.version_id,
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
        is_versioned=message.versioned or message.null_version,
        delete_marker=message.delete_marker,
        is_latest=message.is_latest,
        expires_s=message.expires_s,
        expiry_rule_id=message.expiry_rule_id,
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
        tags=attributes.tags,
    )
    if attributes.lock != NO_LOCK:
        message.lock.CopyFrom(lock_message(attributes.lock))
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
