"""From a request to the operation it asks for: a table of (method, target, sub-resource)."""

from enum import Enum

from exastore.gateway.errors import RequestError
from exastore.gateway.s3.message import Request


class Target(Enum):
    """What a path names."""

    SERVICE = "service"
    BUCKET = "bucket"
    OBJECT = "object"


#: Query parameters that select an operation. One that no row of `OPERATIONS` has is answered
#: with NotImplemented: to ignore it would do something else than was asked.
SUB_RESOURCES = frozenset(
    {
        "accelerate",
        "acl",
        "analytics",
        "annotation",
        "append",
        "attributes",
        "cors",
        "delete",
        "encryption",
        "intelligent-tiering",
        "inventory",
        "legal-hold",
        "lifecycle",
        "location",
        "logging",
        "metadataConfiguration",
        "metadataTable",
        "metrics",
        "notification",
        "object-lock",
        "ownershipControls",
        "policy",
        "policyStatus",
        "publicAccessBlock",
        "renameObject",
        "replication",
        "requestPayment",
        "restore",
        "retention",
        "select",
        "session",
        "tagging",
        "torrent",
        "uploadId",
        "uploads",
        "versioning",
        "versions",
        "website",
    }
)

_S, _B, _O = Target.SERVICE, Target.BUCKET, Target.OBJECT

#: Sub-resource "" is none; "copy" stands for the header x-amz-copy-source, "list-type=2" for V2.
OPERATIONS: dict[tuple[str, Target, str], str] = {
    ("GET", _S, ""): "ListBuckets",
    ("HEAD", _S, ""): "ListBuckets",
    ("PUT", _B, ""): "CreateBucket",
    ("HEAD", _B, ""): "HeadBucket",
    ("DELETE", _B, ""): "DeleteBucket",
    ("GET", _B, ""): "ListObjects",
    ("GET", _B, "list-type=2"): "ListObjectsV2",
    ("GET", _B, "versions"): "ListObjectVersions",
    ("GET", _B, "location"): "GetBucketLocation",
    ("GET", _B, "versioning"): "GetBucketVersioning",
    ("GET", _B, "acl"): "GetBucketAcl",
    ("GET", _B, "accelerate"): "GetBucketAccelerateConfiguration",
    ("GET", _B, "cors"): "GetBucketCors",
    ("GET", _B, "encryption"): "GetBucketEncryption",
    ("GET", _B, "lifecycle"): "GetBucketLifecycleConfiguration",
    ("GET", _B, "logging"): "GetBucketLogging",
    ("GET", _B, "notification"): "GetBucketNotificationConfiguration",
    ("GET", _B, "object-lock"): "GetObjectLockConfiguration",
    ("GET", _B, "ownershipControls"): "GetBucketOwnershipControls",
    ("GET", _B, "policy"): "GetBucketPolicy",
    ("GET", _B, "publicAccessBlock"): "GetPublicAccessBlock",
    ("GET", _B, "replication"): "GetBucketReplication",
    ("GET", _B, "requestPayment"): "GetBucketRequestPayment",
    ("GET", _B, "tagging"): "GetBucketTagging",
    ("GET", _B, "website"): "GetBucketWebsite",
    ("GET", _B, "uploads"): "ListMultipartUploads",
    ("POST", _B, "delete"): "DeleteObjects",
    ("PUT", _O, ""): "PutObject",
    ("PUT", _O, "copy"): "CopyObject",
    ("GET", _O, ""): "GetObject",
    ("HEAD", _O, ""): "HeadObject",
    ("DELETE", _O, ""): "DeleteObject",
    ("GET", _O, "attributes"): "GetObjectAttributes",
    ("GET", _O, "acl"): "GetObjectAcl",
    ("GET", _O, "tagging"): "GetObjectTagging",
    ("POST", _O, "uploads"): "CreateMultipartUpload",
    ("PUT", _O, "uploadId"): "UploadPart",
    ("PUT", _O, "uploadId+copy"): "UploadPartCopy",
    ("POST", _O, "uploadId"): "CompleteMultipartUpload",
    ("DELETE", _O, "uploadId"): "AbortMultipartUpload",
    ("GET", _O, "uploadId"): "ListParts",
}

_METHODS = frozenset({"GET", "HEAD", "PUT", "POST", "DELETE"})


def target_of(request: Request) -> Target:
    """What the path of a request names."""
    if request.key:
        return Target.OBJECT
    return Target.BUCKET if request.bucket else Target.SERVICE


def operation_of(request: Request) -> str:
    """The name of the operation that a request asks for, as in S3's reference.

    Raises:
        RequestError: NotImplemented, MethodNotAllowed.
    """
    target = target_of(request)
    sub_resource = ""
    query = request.query
    if query:
        if query.get("list-type") == "2":
            sub_resource = "list-type=2"
        for name in query:
            if name in SUB_RESOURCES:
                sub_resource = name
                break
    if request.method == "PUT" and "x-amz-copy-source" in request.headers:
        sub_resource += "+copy" if sub_resource else "copy"
    operation = OPERATIONS.get((request.method, target, sub_resource))
    if operation is not None:
        return operation
    if request.method in _METHODS and (sub_resource or request.method == "POST"):
        raise RequestError(
            "NotImplemented",
            "A header or query you provided implies functionality that is not implemented.",
        )
    raise RequestError(
        "MethodNotAllowed", "The specified method is not allowed against this resource."
    )
