"""From a request to the operation it asks for: a table of (method, target, sub-resource)."""

from enum import Enum
from functools import lru_cache
from typing import NamedTuple

from exastore.gateway.errors import RequestError
from exastore.gateway.s3.message import Request


class Target(Enum):
    """What a path names."""

    SERVICE = "service"
    BUCKET = "bucket"
    OBJECT = "object"


class Route(NamedTuple):
    """An operation, and the action that policies know it by."""

    operation: str
    action: str

    @property
    def kind(self) -> str:
        """What it is billed as: read, list, write or delete."""
        return _kind_of(self.operation)


@lru_cache(maxsize=512)
def _kind_of(operation: str) -> str:
    if operation.startswith("List"):
        return "list"
    if operation.startswith(("Get", "Head", "Preflight")):
        return "read"
    return "delete" if operation.startswith(("Delete", "Abort")) else "write"


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
OPERATIONS: dict[tuple[str, Target, str], Route] = {
    ("GET", _S, ""): Route("ListBuckets", "s3:ListAllMyBuckets"),
    ("HEAD", _S, ""): Route("ListBuckets", "s3:ListAllMyBuckets"),
    ("PUT", _B, ""): Route("CreateBucket", "s3:CreateBucket"),
    ("HEAD", _B, ""): Route("HeadBucket", "s3:ListBucket"),
    ("DELETE", _B, ""): Route("DeleteBucket", "s3:DeleteBucket"),
    ("GET", _B, ""): Route("ListObjects", "s3:ListBucket"),
    ("GET", _B, "list-type=2"): Route("ListObjectsV2", "s3:ListBucket"),
    ("GET", _B, "versions"): Route("ListObjectVersions", "s3:ListBucketVersions"),
    ("GET", _B, "location"): Route("GetBucketLocation", "s3:GetBucketLocation"),
    ("GET", _B, "versioning"): Route("GetBucketVersioning", "s3:GetBucketVersioning"),
    ("PUT", _B, "versioning"): Route("PutBucketVersioning", "s3:PutBucketVersioning"),
    ("PUT", _B, "tagging"): Route("PutBucketTagging", "s3:PutBucketTagging"),
    ("DELETE", _B, "tagging"): Route("DeleteBucketTagging", "s3:PutBucketTagging"),
    ("PUT", _B, "lifecycle"): Route(
        "PutBucketLifecycleConfiguration", "s3:PutLifecycleConfiguration"
    ),
    ("DELETE", _B, "lifecycle"): Route("DeleteBucketLifecycle", "s3:PutLifecycleConfiguration"),
    ("PUT", _B, "object-lock"): Route(
        "PutObjectLockConfiguration", "s3:PutBucketObjectLockConfiguration"
    ),
    ("PUT", _O, "tagging"): Route("PutObjectTagging", "s3:PutObjectTagging"),
    ("DELETE", _O, "tagging"): Route("DeleteObjectTagging", "s3:DeleteObjectTagging"),
    ("GET", _O, "retention"): Route("GetObjectRetention", "s3:GetObjectRetention"),
    ("PUT", _O, "retention"): Route("PutObjectRetention", "s3:PutObjectRetention"),
    ("GET", _O, "legal-hold"): Route("GetObjectLegalHold", "s3:GetObjectLegalHold"),
    ("PUT", _O, "legal-hold"): Route("PutObjectLegalHold", "s3:PutObjectLegalHold"),
    ("GET", _B, "acl"): Route("GetBucketAcl", "s3:GetBucketAcl"),
    ("PUT", _B, "acl"): Route("PutBucketAcl", "s3:PutBucketAcl"),
    ("PUT", _B, "policy"): Route("PutBucketPolicy", "s3:PutBucketPolicy"),
    ("DELETE", _B, "policy"): Route("DeleteBucketPolicy", "s3:DeleteBucketPolicy"),
    ("GET", _B, "policyStatus"): Route("GetBucketPolicyStatus", "s3:GetBucketPolicyStatus"),
    ("PUT", _B, "publicAccessBlock"): Route(
        "PutPublicAccessBlock", "s3:PutBucketPublicAccessBlock"
    ),
    ("DELETE", _B, "publicAccessBlock"): Route(
        "DeletePublicAccessBlock", "s3:PutBucketPublicAccessBlock"
    ),
    ("PUT", _B, "ownershipControls"): Route(
        "PutBucketOwnershipControls", "s3:PutBucketOwnershipControls"
    ),
    ("DELETE", _B, "ownershipControls"): Route(
        "DeleteBucketOwnershipControls", "s3:PutBucketOwnershipControls"
    ),
    ("PUT", _B, "cors"): Route("PutBucketCors", "s3:PutBucketCORS"),
    ("DELETE", _B, "cors"): Route("DeleteBucketCors", "s3:PutBucketCORS"),
    ("PUT", _B, "website"): Route("PutBucketWebsite", "s3:PutBucketWebsite"),
    ("DELETE", _B, "website"): Route("DeleteBucketWebsite", "s3:DeleteBucketWebsite"),
    ("PUT", _B, "logging"): Route("PutBucketLogging", "s3:PutBucketLogging"),
    ("PUT", _B, "accelerate"): Route(
        "PutBucketAccelerateConfiguration", "s3:PutAccelerateConfiguration"
    ),
    ("PUT", _B, "requestPayment"): Route("PutBucketRequestPayment", "s3:PutBucketRequestPayment"),
    ("PUT", _B, "notification"): Route(
        "PutBucketNotificationConfiguration", "s3:PutBucketNotification"
    ),
    ("DELETE", _B, "replication"): Route(
        "DeleteBucketReplication", "s3:PutReplicationConfiguration"
    ),
    ("GET", _B, "analytics"): Route(
        "ListBucketAnalyticsConfigurations", "s3:GetAnalyticsConfiguration"
    ),
    ("GET", _B, "analytics+id"): Route(
        "GetBucketAnalyticsConfiguration", "s3:GetAnalyticsConfiguration"
    ),
    ("DELETE", _B, "analytics+id"): Route(
        "DeleteBucketAnalyticsConfiguration", "s3:PutAnalyticsConfiguration"
    ),
    ("GET", _B, "inventory"): Route(
        "ListBucketInventoryConfigurations", "s3:GetInventoryConfiguration"
    ),
    ("GET", _B, "inventory+id"): Route(
        "GetBucketInventoryConfiguration", "s3:GetInventoryConfiguration"
    ),
    ("PUT", _B, "inventory+id"): Route(
        "PutBucketInventoryConfiguration", "s3:PutInventoryConfiguration"
    ),
    ("DELETE", _B, "inventory+id"): Route(
        "DeleteBucketInventoryConfiguration", "s3:PutInventoryConfiguration"
    ),
    ("GET", _B, "metrics"): Route("ListBucketMetricsConfigurations", "s3:GetMetricsConfiguration"),
    ("GET", _B, "metrics+id"): Route("GetBucketMetricsConfiguration", "s3:GetMetricsConfiguration"),
    ("DELETE", _B, "metrics+id"): Route(
        "DeleteBucketMetricsConfiguration", "s3:PutMetricsConfiguration"
    ),
    ("GET", _B, "intelligent-tiering"): Route(
        "ListBucketIntelligentTieringConfigurations", "s3:GetIntelligentTieringConfiguration"
    ),
    ("GET", _B, "intelligent-tiering+id"): Route(
        "GetBucketIntelligentTieringConfiguration", "s3:GetIntelligentTieringConfiguration"
    ),
    ("DELETE", _B, "intelligent-tiering+id"): Route(
        "DeleteBucketIntelligentTieringConfiguration", "s3:PutIntelligentTieringConfiguration"
    ),
    ("POST", _B, "form"): Route("PostObject", "s3:PutObject"),
    ("OPTIONS", _B, ""): Route("Preflight", ""),
    ("OPTIONS", _O, ""): Route("Preflight", ""),
    ("PUT", _O, "acl"): Route("PutObjectAcl", "s3:PutObjectAcl"),
    ("GET", _B, "accelerate"): Route(
        "GetBucketAccelerateConfiguration", "s3:GetAccelerateConfiguration"
    ),
    ("GET", _B, "cors"): Route("GetBucketCors", "s3:GetBucketCORS"),
    ("GET", _B, "encryption"): Route("GetBucketEncryption", "s3:GetEncryptionConfiguration"),
    ("PUT", _B, "encryption"): Route("PutBucketEncryption", "s3:PutEncryptionConfiguration"),
    ("DELETE", _B, "encryption"): Route("DeleteBucketEncryption", "s3:PutEncryptionConfiguration"),
    ("GET", _B, "lifecycle"): Route(
        "GetBucketLifecycleConfiguration", "s3:GetLifecycleConfiguration"
    ),
    ("GET", _B, "logging"): Route("GetBucketLogging", "s3:GetBucketLogging"),
    ("GET", _B, "notification"): Route(
        "GetBucketNotificationConfiguration", "s3:GetBucketNotification"
    ),
    ("GET", _B, "object-lock"): Route(
        "GetObjectLockConfiguration", "s3:GetBucketObjectLockConfiguration"
    ),
    ("GET", _B, "ownershipControls"): Route(
        "GetBucketOwnershipControls", "s3:GetBucketOwnershipControls"
    ),
    ("GET", _B, "policy"): Route("GetBucketPolicy", "s3:GetBucketPolicy"),
    ("GET", _B, "publicAccessBlock"): Route(
        "GetPublicAccessBlock", "s3:GetBucketPublicAccessBlock"
    ),
    ("GET", _B, "replication"): Route("GetBucketReplication", "s3:GetReplicationConfiguration"),
    ("GET", _B, "requestPayment"): Route("GetBucketRequestPayment", "s3:GetBucketRequestPayment"),
    ("GET", _B, "tagging"): Route("GetBucketTagging", "s3:GetBucketTagging"),
    ("GET", _B, "website"): Route("GetBucketWebsite", "s3:GetBucketWebsite"),
    ("GET", _B, "uploads"): Route("ListMultipartUploads", "s3:ListBucketMultipartUploads"),
    ("POST", _B, "delete"): Route("DeleteObjects", "s3:DeleteObject"),
    ("PUT", _O, ""): Route("PutObject", "s3:PutObject"),
    ("PUT", _O, "copy"): Route("CopyObject", "s3:PutObject"),
    ("GET", _O, ""): Route("GetObject", "s3:GetObject"),
    ("HEAD", _O, ""): Route("HeadObject", "s3:GetObject"),
    ("DELETE", _O, ""): Route("DeleteObject", "s3:DeleteObject"),
    ("GET", _O, "attributes"): Route("GetObjectAttributes", "s3:GetObjectAttributes"),
    ("GET", _O, "acl"): Route("GetObjectAcl", "s3:GetObjectAcl"),
    ("GET", _O, "tagging"): Route("GetObjectTagging", "s3:GetObjectTagging"),
    ("POST", _O, "uploads"): Route("CreateMultipartUpload", "s3:PutObject"),
    ("PUT", _O, "uploadId"): Route("UploadPart", "s3:PutObject"),
    ("PUT", _O, "uploadId+copy"): Route("UploadPartCopy", "s3:PutObject"),
    ("POST", _O, "uploadId"): Route("CompleteMultipartUpload", "s3:PutObject"),
    ("DELETE", _O, "uploadId"): Route("AbortMultipartUpload", "s3:AbortMultipartUpload"),
    ("GET", _O, "uploadId"): Route("ListParts", "s3:ListMultipartUploadParts"),
}

#: Sub-resources of which a bucket may have several, told apart by the parameter "id".
_WITH_ID = frozenset({"analytics", "intelligent-tiering", "inventory", "metrics"})
_METHODS = frozenset({"GET", "HEAD", "PUT", "POST", "DELETE"})


def target_of(request: Request) -> Target:
    """What the path of a request names."""
    if request.key:
        return Target.OBJECT
    return Target.BUCKET if request.bucket else Target.SERVICE


def route_of(request: Request) -> Route:
    """The operation that a request asks for, named as in S3's reference.

    Raises:
        RequestError: NotImplemented, MethodNotAllowed.
    """
    target = target_of(request)
    sub_resource = ""
    query = request.query
    if query and request.method != "OPTIONS":
        if query.get("list-type") == "2":
            sub_resource = "list-type=2"
        for name in query:
            if name in SUB_RESOURCES:
                sub_resource = f"{name}+id" if name in _WITH_ID and "id" in query else name
                break
    elif request.method == "POST" and target is Target.BUCKET:
        if request.headers.get("content-type", "").lower().startswith("multipart/form-data"):
            sub_resource = "form"
    if request.method == "PUT" and "x-amz-copy-source" in request.headers:
        sub_resource += "+copy" if sub_resource else "copy"
    route = OPERATIONS.get((request.method, target, sub_resource))
    if route is not None:
        return route
    if request.method in _METHODS and (sub_resource or request.method == "POST"):
        raise RequestError(
            "NotImplemented",
            "A header or query you provided implies functionality that is not implemented.",
        )
    raise RequestError(
        "MethodNotAllowed", "The specified method is not allowed against this resource."
    )
