"""Errors of the namespace: what a request asked for cannot be. Nothing was changed.

NamespaceError
├── NoSuchBucket
├── NoSuchKey
├── NoSuchVersion
├── NoSuchUpload
├── IsDeleteMarker          the version named is a delete marker, which has no bytes and no tags
├── BucketExists
├── BucketNotEmpty
├── BucketMoving            frozen or on its way to another partition: try again soon
├── PreconditionFailed
├── ObjectLocked            retention or a legal hold keeps the version
├── NoObjectLock            the bucket has none
├── InvalidBucketState      versioning and object lock do not go together so
├── QuotaExceeded           of the bucket or its tenant
├── InvalidPart             a part is missing or has another ETag
├── InvalidPartOrder        part numbers do not ascend
├── EntityTooSmall          a part other than the last is below the minimum
├── InvalidArgument         a name, a key or a number is outside its rules
│   └── InvalidTag          too many tags, or one outside its rules
├── NoSuchUser
├── NoSuchAccessKey
├── UserExists              or one of its keys
├── MoveConflict            a move cannot begin, or cannot be cancelled any more
├── StripeTooOld            its chunks may have been taken for orphans: write the bytes again
├── PlanOutdated            internal: the upload changed between reading and completing it
└── MoverReplaced           internal: another server carries this move out now
"""


class NamespaceError(Exception):
    """Base of all errors here."""


class NoSuchBucket(NamespaceError):
    def __init__(self, bucket: str) -> None:
        super().__init__(f"no bucket {bucket!r}")
        self.bucket = bucket


class NoSuchKey(NamespaceError):
    def __init__(self, bucket: str, key: str) -> None:
        super().__init__(f"no object {key!r} in bucket {bucket!r}")
        self.bucket = bucket
        self.key = key


class NoSuchVersion(NamespaceError):
    def __init__(self, bucket: str, key: str, version_id: str) -> None:
        super().__init__(f"object {key!r} in bucket {bucket!r} has no version {version_id!r}")
        self.bucket = bucket
        self.key = key
        self.version_id = version_id


class IsDeleteMarker(NamespaceError):
    def __init__(self, bucket: str, key: str, version_id: str) -> None:
        super().__init__(
            f"version {version_id!r} of {key!r} in bucket {bucket!r} is a delete marker"
        )
        self.bucket = bucket
        self.key = key
        self.version_id = version_id


class NoSuchUpload(NamespaceError):
    def __init__(self, upload_id: str) -> None:
        super().__init__(f"no multipart upload {upload_id!r}: unknown, completed or aborted")
        self.upload_id = upload_id


class BucketExists(NamespaceError):
    def __init__(self, bucket: str, owner: str) -> None:
        super().__init__(f"bucket {bucket!r} exists")
        self.bucket = bucket
        self.owner = owner


class BucketNotEmpty(NamespaceError):
    def __init__(self, bucket: str) -> None:
        super().__init__(f"bucket {bucket!r} is not empty: versions and uploads count")
        self.bucket = bucket


class BucketMoving(NamespaceError):
    def __init__(self, bucket: str) -> None:
        super().__init__(f"bucket {bucket!r} is changing its partition: try again soon")
        self.bucket = bucket


class PreconditionFailed(NamespaceError):
    def __init__(self, condition: str) -> None:
        super().__init__(f"the condition {condition} does not hold")
        self.condition = condition


class ObjectLocked(NamespaceError):
    def __init__(self, key: str, why: str) -> None:
        super().__init__(f"object {key!r} is locked: {why}")
        self.key = key


class NoObjectLock(NamespaceError):
    def __init__(self, bucket: str) -> None:
        super().__init__(f"bucket {bucket!r} is missing an object lock configuration")
        self.bucket = bucket


class InvalidBucketState(NamespaceError):
    """The message says what does not go together."""


class QuotaExceeded(NamespaceError):
    """`what` is bytes or objects, `whose` a bucket or a tenant."""

    def __init__(self, whose: str, what: str, used: int, allowed: int) -> None:
        super().__init__(f"{whose} would use {used} {what}; its quota is {allowed}")
        self.whose = whose
        self.what = what
        self.used = used
        self.allowed = allowed


class InvalidPart(NamespaceError):
    def __init__(self, number: int, why: str) -> None:
        super().__init__(f"part {number}: {why}")
        self.number = number


class InvalidPartOrder(NamespaceError):
    def __init__(self, number: int, previous: int) -> None:
        super().__init__(f"part {number} is listed after part {previous}: numbers must ascend")
        self.number = number
        self.previous = previous


class EntityTooSmall(NamespaceError):
    def __init__(self, number: int, size_bytes: int, min_bytes: int) -> None:
        super().__init__(f"part {number} has {size_bytes} bytes; all but the last need {min_bytes}")
        self.number = number
        self.size_bytes = size_bytes
        self.min_bytes = min_bytes


class InvalidArgument(NamespaceError):
    """The message says which argument and what its rule is."""


class InvalidTag(InvalidArgument):
    """The message says which tag and what its rule is."""


class NoSuchUser(NamespaceError):
    def __init__(self, name: str) -> None:
        super().__init__(f"no user {name!r}")
        self.name = name


class NoSuchAccessKey(NamespaceError):
    def __init__(self, key_id: str) -> None:
        super().__init__(f"no access key {key_id!r}")
        self.key_id = key_id


class UserExists(NamespaceError):
    """The message says what exists: the user or a key."""


class MoveConflict(NamespaceError):
    """The message says what stands in the way."""


class StripeTooOld(NamespaceError):
    """Its chunks may have been taken for orphans: the bytes have to be written again."""


class PlanOutdated(NamespaceError):
    """Plan the completion again."""


class MoverReplaced(NamespaceError):
    """The copy has another token: another server took the move over."""
