"""Values of `store.py` to and from the messages of the metadata service."""

from dataclasses import asdict

from exastore.gateway.encryption.frames import plain_size
from exastore.gateway.metadata_errors import REQUEST_CODES
from exastore.gateway.store import (
    NO_LOCK,
    NULL_VERSION,
    AccessList,
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
    UploadChecksum,
    UploadInfo,
    UploadListing,
    VersionListing,
)
from exastore.gateway.writer import StoredBody
from exastore.proto.v1 import acl_pb2, lock_pb2, metadata_pb2

#: Versioning and lock modes as S3 writes them.
_VERSIONING = {
    metadata_pb2.VERSIONING_UNSPECIFIED: "",
    metadata_pb2.VERSIONING_ENABLED: "Enabled",
    metadata_pb2.VERSIONING_SUSPENDED: "Suspended",
}
_VERSIONING_OF = {text: value for value, text in _VERSIONING.items()}
_MODES = {
    lock_pb2.LOCK_MODE_NONE: "",
    lock_pb2.LOCK_MODE_GOVERNANCE: "GOVERNANCE",
    lock_pb2.LOCK_MODE_COMPLIANCE: "COMPLIANCE",
}
_MODE_OF = {text: value for value, text in _MODES.items()}


def bucket_of(message: metadata_pb2.Bucket) -> BucketInfo:
    held = message.lock
    return BucketInfo(
        name=message.name,
        created_s=message.created_s,
        owner=message.owner,
        region=message.region,
        versioning=_VERSIONING[message.versioning],
        lock=BucketLock(_MODES[held.mode], held.days, held.years) if held.enabled else None,
        lifecycle=[rule_of(rule) for rule in message.lifecycle],
    )


def rule_of(message: metadata_pb2.LifecycleRule) -> LifecycleRule:
    return LifecycleRule(
        id=message.id,
        disabled=message.disabled,
        prefix=message.prefix,
        legacy_prefix=message.legacy_prefix,
        tags=dict(message.tags),
        larger_than_bytes=(
            message.larger_than_bytes if message.HasField("larger_than_bytes") else None
        ),
        smaller_than_bytes=message.smaller_than_bytes,
        expire_days=message.expire_days,
        expire_at_s=message.expire_at_s,
        noncurrent_days=message.noncurrent_days,
        newer_noncurrent_count=message.newer_noncurrent_count,
        abort_upload_days=message.abort_upload_days,
        drop_lone_markers=message.drop_lone_markers,
    )


def change_message(name: str, change: BucketChange) -> metadata_pb2.ConfigureBucketRequest:
    request = metadata_pb2.ConfigureBucketRequest(name=name)
    if change.versioning is not None:
        request.versioning = _VERSIONING_OF[change.versioning]
    if change.lock is not None:
        request.lock.enabled = True
        request.lock.mode = _MODE_OF[change.lock.mode]
        request.lock.days, request.lock.years = change.lock.days, change.lock.years
    if change.lifecycle is not None:
        request.lifecycle.SetInParent()
        request.lifecycle.rules.extend(
            metadata_pb2.LifecycleRule(**asdict(rule)) for rule in change.lifecycle
        )
    return request


def lock_of(message: lock_pb2.ObjectLock) -> ObjectLock:
    return ObjectLock(_MODES[message.mode], message.retain_until_s, message.legal_hold)


def lock_message(lock: ObjectLock) -> lock_pb2.ObjectLock:
    return lock_pb2.ObjectLock(
        mode=_MODE_OF[lock.mode], retain_until_s=lock.retain_until_s, legal_hold=lock.legal_hold
    )


def acl_of(message: acl_pb2.AccessList) -> AccessList:
    return AccessList(
        message.owner, tuple((grant.grantee, grant.permission) for grant in message.grants)
    )


def acl_message(acl: AccessList) -> acl_pb2.AccessList:
    grants = [
        acl_pb2.AccessGrant(grantee=grantee, permission=permission)
        for grantee, permission in acl.grants
    ]
    return acl_pb2.AccessList(owner=acl.owner, grants=grants)


def deletion_message(deletion: Deletion) -> metadata_pb2.DeleteItem:
    return metadata_pb2.DeleteItem(
        key=deletion.key, version_id=deletion.version_id, if_match=deletion.if_match
    )


def deleted_of(message: metadata_pb2.DeletedItem) -> Deleted:
    reason = metadata_pb2.ErrorReason.Name(message.reason).removeprefix("ERROR_REASON_")
    return Deleted(
        existed=message.existed,
        delete_marker=message.delete_marker,
        version_id=message.version_id,
        refused=REQUEST_CODES.get(reason, "InternalError") if message.reason else "",
    )


def versions_of(page: metadata_pb2.ListVersionsResponse) -> VersionListing:
    return VersionListing(
        versions=[info_of(message) for message in page.versions],
        common_prefixes=list(page.common_prefixes),
        truncated=page.truncated,
        next_key_marker=page.next_key_marker,
        next_version_id_marker=page.next_version_id_marker,
    )


def uploads_of(page: metadata_pb2.ListUploadsResponse) -> UploadListing:
    return UploadListing(
        uploads=[upload_of(upload) for upload in page.uploads],
        common_prefixes=list(page.common_prefixes),
        truncated=page.truncated,
        next_key_marker=page.next_key_marker,
        next_upload_id_marker=page.next_upload_id_marker,
    )


def attributes_of(message: metadata_pb2.Object) -> ObjectAttributes:
    return ObjectAttributes(
        content_type=message.content_type or ObjectAttributes().content_type,
        headers=dict(message.headers),
        user_metadata=dict(message.user_metadata),
        tags=dict(message.tags),
        lock=lock_of(message.lock) if message.HasField("lock") else NO_LOCK,
        acl=acl_of(message.acl) if message.HasField("acl") else None,
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
                checksums=dict(part.checksums),
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
        checksum=UploadChecksum(message.checksum_algorithm, message.checksum_type),
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
    if attributes.acl is not None:
        message.acl.CopyFrom(acl_message(attributes.acl))
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
