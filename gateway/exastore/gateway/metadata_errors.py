"""What a failed call of a metadata server means to the gateway."""

import grpc

from exastore.gateway.errors import (
    GatewayError,
    MetadataUnavailable,
    NoSpace,
    NotReady,
    RequestError,
    ServiceError,
    StaleEpoch,
)

#: The trailing metadata that carries the name of an ErrorReason, without its prefix.
REASON_KEY = "exastore-reason"

#: ErrorReason -> S3's code, for what the client did.
REQUEST_CODES = {
    "NO_SUCH_BUCKET": "NoSuchBucket",
    "NO_SUCH_KEY": "NoSuchKey",
    "NO_SUCH_UPLOAD": "NoSuchUpload",
    "BUCKET_EXISTS": "BucketAlreadyOwnedByYou",
    "BUCKET_NOT_EMPTY": "BucketNotEmpty",
    "PRECONDITION_FAILED": "PreconditionFailed",
    "INVALID_PART": "InvalidPart",
    "INVALID_PART_ORDER": "InvalidPartOrder",
    "ENTITY_TOO_SMALL": "EntityTooSmall",
    "INVALID_ARGUMENT": "InvalidArgument",
    "INVALID_TAG": "InvalidTag",
    "NO_SUCH_VERSION": "NoSuchVersion",
    "DELETE_MARKER": "MethodNotAllowed",
    "QUOTA_EXCEEDED": "QuotaExceeded",
    "OBJECT_LOCKED": "AccessDenied",
    "INVALID_BUCKET_STATE": "InvalidBucketState",
    "NO_OBJECT_LOCK": "InvalidRequest",
    "NO_SUCH_USER": "NoSuchEntity",
    "NO_SUCH_ACCESS_KEY": "InvalidAccessKeyId",
    "USER_EXISTS": "EntityAlreadyExists",
}

#: After these the same request may be sent again, to any server: it may or may not have been done.
RETRIED_REASONS = frozenset({"UNAVAILABLE", "COMMIT_UNKNOWN", "BUCKET_MOVING"})
#: Our servers give a reason for every failure. Without one the transport broke, or who answers is
#: no metadata server: its port went to another process.
RETRIED_STATUSES = frozenset(
    {
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.ABORTED,
        grpc.StatusCode.CANCELLED,
        grpc.StatusCode.UNIMPLEMENTED,
        grpc.StatusCode.UNKNOWN,
        grpc.StatusCode.INTERNAL,
    }
)


def reason_of(error: grpc.aio.AioRpcError) -> str:
    """The ErrorReason the server gave, or an empty string."""
    for key, value in error.trailing_metadata() or ():
        if key == REASON_KEY:
            return value if isinstance(value, str) else value.decode("ascii", "replace")
    return ""


def is_retried(error: grpc.aio.AioRpcError) -> bool:
    """Whether another server, or the same one later, may well answer."""
    reason = reason_of(error)
    if reason:
        return reason in RETRIED_REASONS
    return error.code() in RETRIED_STATUSES


def error_of(error: grpc.aio.AioRpcError) -> GatewayError:
    """The gateway's error for a failed call."""
    reason, text = reason_of(error), error.details() or error.code().name
    if reason in REQUEST_CODES:
        return RequestError(REQUEST_CODES[reason], text)
    if reason in ("STALE_EPOCH", "WRONG_POOL"):
        return StaleEpoch(text)
    if reason == "NOT_READY":
        return NotReady(text)
    if reason == "NO_SPACE":
        return NoSpace(text)
    if is_retried(error):
        return MetadataUnavailable(text)
    return ServiceError(f"metadata server: {error.code().name}: {text}")
