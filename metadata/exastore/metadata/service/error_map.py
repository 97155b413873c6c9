"""From our errors to a gRPC status and the reason that gateways read."""

import grpc

from exastore.metadata.kv import errors as kv
from exastore.metadata.namespace import errors as namespace
from exastore.metadata.service import errors as service
from exastore.proto.v1 import metadata_pb2

#: The trailing metadata that carries the reason.
REASON_KEY = "exastore-reason"

_PREFIX = "ERROR_REASON_"
_Status = grpc.StatusCode
_Reason = metadata_pb2.ErrorReason

_TABLE: dict[type[Exception], tuple[grpc.StatusCode, metadata_pb2.ErrorReason.ValueType]] = {
    namespace.NoSuchBucket: (_Status.NOT_FOUND, _Reason.ERROR_REASON_NO_SUCH_BUCKET),
    namespace.NoSuchKey: (_Status.NOT_FOUND, _Reason.ERROR_REASON_NO_SUCH_KEY),
    namespace.NoSuchUpload: (_Status.NOT_FOUND, _Reason.ERROR_REASON_NO_SUCH_UPLOAD),
    namespace.BucketExists: (_Status.ALREADY_EXISTS, _Reason.ERROR_REASON_BUCKET_EXISTS),
    namespace.BucketNotEmpty: (
        _Status.FAILED_PRECONDITION,
        _Reason.ERROR_REASON_BUCKET_NOT_EMPTY,
    ),
    namespace.PreconditionFailed: (
        _Status.FAILED_PRECONDITION,
        _Reason.ERROR_REASON_PRECONDITION_FAILED,
    ),
    namespace.InvalidPart: (_Status.INVALID_ARGUMENT, _Reason.ERROR_REASON_INVALID_PART),
    namespace.InvalidPartOrder: (
        _Status.INVALID_ARGUMENT,
        _Reason.ERROR_REASON_INVALID_PART_ORDER,
    ),
    namespace.EntityTooSmall: (_Status.INVALID_ARGUMENT, _Reason.ERROR_REASON_ENTITY_TOO_SMALL),
    namespace.NoSuchVersion: (_Status.NOT_FOUND, _Reason.ERROR_REASON_NO_SUCH_VERSION),
    namespace.IsDeleteMarker: (_Status.FAILED_PRECONDITION, _Reason.ERROR_REASON_DELETE_MARKER),
    namespace.QuotaExceeded: (_Status.RESOURCE_EXHAUSTED, _Reason.ERROR_REASON_QUOTA_EXCEEDED),
    namespace.ObjectLocked: (
        _Status.FAILED_PRECONDITION,
        _Reason.ERROR_REASON_OBJECT_LOCKED,
    ),
    namespace.NoObjectLock: (
        _Status.FAILED_PRECONDITION,
        _Reason.ERROR_REASON_NO_OBJECT_LOCK,
    ),
    namespace.InvalidBucketState: (
        _Status.FAILED_PRECONDITION,
        _Reason.ERROR_REASON_INVALID_BUCKET_STATE,
    ),
    namespace.BucketMoving: (_Status.UNAVAILABLE, _Reason.ERROR_REASON_BUCKET_MOVING),
    namespace.MoveConflict: (_Status.FAILED_PRECONDITION, _Reason.ERROR_REASON_MOVE_CONFLICT),
    namespace.NoSuchUser: (_Status.NOT_FOUND, _Reason.ERROR_REASON_NO_SUCH_USER),
    namespace.NoSuchAccessKey: (_Status.NOT_FOUND, _Reason.ERROR_REASON_NO_SUCH_ACCESS_KEY),
    namespace.UserExists: (_Status.ALREADY_EXISTS, _Reason.ERROR_REASON_USER_EXISTS),
    namespace.PlanOutdated: (_Status.UNAVAILABLE, _Reason.ERROR_REASON_UNAVAILABLE),
    namespace.StripeTooOld: (_Status.ABORTED, _Reason.ERROR_REASON_STALE_EPOCH),
    namespace.InvalidTag: (_Status.INVALID_ARGUMENT, _Reason.ERROR_REASON_INVALID_TAG),
    namespace.InvalidArgument: (_Status.INVALID_ARGUMENT, _Reason.ERROR_REASON_INVALID_ARGUMENT),
    service.StaleEpoch: (_Status.ABORTED, _Reason.ERROR_REASON_STALE_EPOCH),
    service.WrongPool: (_Status.ABORTED, _Reason.ERROR_REASON_WRONG_POOL),
    service.Refused: (
        _Status.FAILED_PRECONDITION,
        _Reason.ERROR_REASON_PRECONDITION_FAILED,
    ),
    service.NotReady: (_Status.UNAVAILABLE, _Reason.ERROR_REASON_NOT_READY),
    kv.LimitExceeded: (_Status.INVALID_ARGUMENT, _Reason.ERROR_REASON_INVALID_ARGUMENT),
    kv.CommitUnknown: (_Status.UNAVAILABLE, _Reason.ERROR_REASON_COMMIT_UNKNOWN),
    kv.EngineFull: (_Status.RESOURCE_EXHAUSTED, _Reason.ERROR_REASON_NO_SPACE),
    kv.EngineError: (_Status.UNAVAILABLE, _Reason.ERROR_REASON_UNAVAILABLE),
    service.ServiceError: (_Status.UNAVAILABLE, _Reason.ERROR_REASON_UNAVAILABLE),
}


def status_and_reason(error: BaseException) -> tuple[grpc.StatusCode, str] | None:
    """The status and the reason's name without its prefix; None: not one of ours, so a bug."""
    for kind in type(error).__mro__:
        found = _TABLE.get(kind)
        if found is not None:
            return found[0], _Reason.Name(found[1]).removeprefix(_PREFIX)
    return None
