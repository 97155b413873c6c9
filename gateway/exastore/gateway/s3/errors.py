"""S3's error codes with their statuses, and how the errors of the store become them."""

from email.utils import formatdate

from exastore.gateway.errors import (
    GatewayError,
    MarkerFound,
    MetadataUnavailable,
    NoSpace,
    RequestError,
    ServiceError,
    TooFewChunks,
    TooFewDevices,
)

#: Status of each S3 error code that is not 400, and of those that look as if they were not.
STATUS_OF_CODE = {
    "AccessControlListNotSupported": 400,
    "AccessDenied": 403,
    "AccessForbidden": 403,
    "BucketAlreadyExists": 409,
    "BucketAlreadyOwnedByYou": 409,
    "BucketNotEmpty": 409,
    "ConditionalRequestConflict": 409,
    "EntityAlreadyExists": 409,
    "HttpVersionNotSupported": 505,
    "InsufficientStorage": 507,
    "InternalError": 500,
    "InvalidAccessKeyId": 403,
    "InvalidBucketState": 409,
    "InvalidPartNumber": 416,
    "InvalidRange": 416,
    "MethodNotAllowed": 405,
    "MissingContentLength": 411,
    "NoSuchBucket": 404,
    "NoSuchBucketPolicy": 404,
    "NoSuchCORSConfiguration": 404,
    "NoSuchConfiguration": 404,
    "NoSuchEntity": 404,
    "NoSuchKey": 404,
    "NoSuchLifecycleConfiguration": 404,
    "NoSuchObjectLockConfiguration": 404,
    "NoSuchPublicAccessBlockConfiguration": 404,
    "NoSuchTagSet": 404,
    "NoSuchUpload": 404,
    "NoSuchVersion": 404,
    "NoSuchWebsiteConfiguration": 404,
    "NotImplemented": 501,
    "NotModified": 304,
    "ObjectLockConfigurationNotFoundError": 404,
    "OperationAborted": 409,
    "OwnershipControlsNotFoundError": 404,
    "PreconditionFailed": 412,
    "QuotaExceeded": 403,
    "ReplicationConfigurationNotFoundError": 404,
    "RequestTimeTooSkewed": 403,
    "ServerSideEncryptionConfigurationNotFoundError": 404,
    "ServiceUnavailable": 503,
    "SignatureDoesNotMatch": 403,
    "SlowDown": 503,
}


class S3Error(RequestError):
    """An S3 error with facts beside its code: fields of the XML, headers of the response."""

    def __init__(
        self,
        code: str,
        message: str,
        *,
        fields: dict[str, str] | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(code, message)
        self.fields = fields or {}
        self.headers = headers or {}


def status_of(code: str) -> int:
    """The HTTP status that goes with an S3 error code."""
    return STATUS_OF_CODE.get(code, 400)


def as_request_error(error: GatewayError) -> RequestError:
    """The S3 error that a client is shown for `error`.

    503 makes every SDK retry with back-off, which is right for what repair or a restart heals;
    a full cluster is 507, which no SDK retries.
    """
    match error:
        case MarkerFound():
            headers = {
                "x-amz-delete-marker": "true",
                "x-amz-version-id": error.version_id,
                "Last-Modified": formatdate(error.modified_s, usegmt=True),
            }
            if error.is_named:
                headers["Allow"] = "DELETE"
            return S3Error(error.code, error.message, headers=headers)
        case RequestError():
            return error
        case TooFewChunks():
            return RequestError(
                "ServiceUnavailable",
                f"Too few chunks are readable now: {error.have} of {error.need} needed.",
            )
        case TooFewDevices():
            return RequestError(
                "SlowDown",
                f"Too few devices take writes now: {error.have} of {error.need} needed.",
            )
        case NoSpace():
            return RequestError("InsufficientStorage", "The devices of the cluster are full.")
        case MetadataUnavailable():
            return RequestError("ServiceUnavailable", "No metadata server answers.")
        case ServiceError():
            return RequestError("ServiceUnavailable", "Please reduce your request rate or retry.")
        case _:
            return RequestError("InternalError", "We encountered an internal error.")
