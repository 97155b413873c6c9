"""Object lock: what keeps versions from being deleted. Pure, but for `put_lock`.

Laws:
1. A version under compliance or a legal hold is deleted by nobody, one under governance by who may
   bypass it. This is decided in the transaction that deletes, by the server's clock.
2. Retention under compliance only grows; under governance it shrinks for who may bypass it.
3. A bucket with object lock has versioning, so nothing is replaced without a version staying.
"""

from exastore.metadata.kv.contract import Transaction
from exastore.metadata.namespace import versions
from exastore.metadata.namespace.errors import (
    InvalidArgument,
    InvalidBucketState,
    NoObjectLock,
    ObjectLocked,
)
from exastore.metadata.namespace.objects import find_with_bytes
from exastore.metadata.namespace.space import DEFAULT_TERMS, Terms, open_to_write
from exastore.proto.v1 import lock_pb2, metadata_pb2

_NONE = lock_pb2.LOCK_MODE_NONE
_COMPLIANCE = lock_pb2.LOCK_MODE_COMPLIANCE


def put_lock(
    txn: Transaction, request: lock_pb2.PutLockRequest, now_s: float, terms: Terms = DEFAULT_TERMS
) -> None:
    """Change the retention or the legal hold of a version.

    Raises NoObjectLock, ObjectLocked, InvalidArgument, NoSuchBucket, NoSuchKey, NoSuchVersion,
    IsDeleteMarker, BucketMoving.
    """
    space = open_to_write(txn, request.bucket)
    if not space.bucket.lock.enabled:
        raise NoObjectLock(request.bucket)
    holder, record = find_with_bytes(space, request.key, request.version_id)
    versions.unindex(space, holder, record)
    if request.HasField("retention"):
        new = request.retention
        versions.check_retention(new, now_s)
        if _shrinks(record.lock, new, now_s, bypass=request.bypass_governance):
            raise ObjectLocked(request.key, "its retention may only grow")
        record.lock.mode = new.mode
        record.lock.retain_until_s = new.retain_until_s if new.mode != _NONE else 0.0
    if request.HasField("legal_hold"):
        record.lock.legal_hold = request.legal_hold
    record.kept_until_ms = 0
    versions.put_record(space, holder, request.key, record, terms)


def check_bucket_lock(bucket: metadata_pb2.Bucket, new: lock_pb2.BucketLock) -> None:
    """Raises InvalidArgument, InvalidBucketState unless the bucket may be locked so."""
    if bucket.versioning != metadata_pb2.VERSIONING_ENABLED:
        raise InvalidBucketState("object lock needs versioning to be enabled")
    if not new.enabled:
        raise InvalidBucketState("object lock stays once it is enabled")
    if bool(new.mode) != bool(new.days or new.years) or (new.days and new.years):
        raise InvalidArgument("a default retention has a mode, and days or years")


def _shrinks(
    known: lock_pb2.ObjectLock, new: lock_pb2.ObjectLock, now_s: float, *, bypass: bool
) -> bool:
    """Whether `new` takes away what `known` promised, and nobody may do that, or not this one."""
    if known.mode == _NONE or known.retain_until_s <= now_s:
        return False
    if known.mode != _COMPLIANCE and bypass:
        return False
    return new.retain_until_s < known.retain_until_s or new.mode < known.mode
