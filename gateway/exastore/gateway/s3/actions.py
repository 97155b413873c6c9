"""The actions that policies name: those of the routing table, and what headers and versions add."""

from exastore.gateway.s3.routing import OPERATIONS
from exastore.gateway.s3.wildcards import matches

#: Actions that have a name of their own when a version is named.
VERSIONED = {
    "s3:GetObject": "s3:GetObjectVersion",
    "s3:GetObjectAcl": "s3:GetObjectVersionAcl",
    "s3:GetObjectAttributes": "s3:GetObjectVersionAttributes",
    "s3:GetObjectTagging": "s3:GetObjectVersionTagging",
    "s3:PutObjectAcl": "s3:PutObjectVersionAcl",
    "s3:PutObjectTagging": "s3:PutObjectVersionTagging",
    "s3:DeleteObject": "s3:DeleteObjectVersion",
    "s3:DeleteObjectTagging": "s3:DeleteObjectVersionTagging",
}
#: Headers of a write that ask for one more action.
EXTRA_ACTIONS = {
    "x-amz-tagging": "s3:PutObjectTagging",
    "x-amz-object-lock-mode": "s3:PutObjectRetention",
    "x-amz-object-lock-legal-hold": "s3:PutObjectLegalHold",
    "x-amz-bypass-governance-retention": "s3:BypassGovernanceRetention",
}

#: Actions of S3 beside those. A policy may name them; hardly any decides anything.
_OTHERS = (
    *("AssociateAccessGrantsIdentityCenter", "CreateAccessGrant", "CreateAccessPoint"),
    *("CreateBucketMetadataTableConfiguration", "CreateJob", "CreateMultiRegionAccessPoint"),
    *("CreateSession", "CreateStorageLensGroup", "DeleteAccessGrant", "DeleteAccessPoint"),
    *("DeleteAccessPointPolicy", "DeleteBucketMetadataTableConfiguration", "DeleteJobTagging"),
    *("DeleteMultiRegionAccessPoint", "DeleteStorageLensConfiguration", "DescribeJob"),
    *("GetAccessGrant", "GetAccessPoint", "GetAccessPointPolicy", "GetAccountPublicAccessBlock"),
    *("GetBucketMetadataTableConfiguration", "GetDataAccess", "GetJobTagging"),
    *("GetObjectTorrent", "GetObjectVersionForReplication", "GetObjectVersionTorrent"),
    *("GetStorageLensConfiguration", "GetStorageLensDashboard", "InitiateReplication"),
    *("ListAccessGrants", "ListAccessPoints", "ListJobs", "ListMultiRegionAccessPoints"),
    *("ListStorageLensConfigurations", "ListTagsForResource", "ObjectOwnerOverrideToBucketOwner"),
    *("PauseReplication", "PutAccessPointPolicy", "PutAccountPublicAccessBlock", "PutJobTagging"),
    *("PutBucketObjectLockConfiguration", "PutStorageLensConfiguration", "ReplicateDelete"),
    *("ReplicateObject", "ReplicateTags", "RestoreObject", "SubmitMultiRegionAccessPointRoutes"),
    *("TagResource", "UntagResource", "UpdateBucketMetadataTableConfiguration"),
    *("UpdateJobPriority", "UpdateJobStatus", "BypassGovernanceRetention", "GetObjectVersion"),
    *("PutBucketLogging", "PutBucketNotification", "GetBucketNotification", "GetBucketLogging"),
    *("PutReplicationConfiguration", "PutBucketAcl", "PutBucketTagging", "PutBucketVersioning"),
    *("ListBucketVersions", "PutInventoryConfiguration", "PutMetricsConfiguration"),
)

_KNOWN = frozenset(
    action.lower()
    for action in (
        *(route.action for route in OPERATIONS.values()),
        *VERSIONED.values(),
        *EXTRA_ACTIONS.values(),
        *(f"s3:{name}" for name in _OTHERS),
    )
)


def is_action(pattern: str) -> bool:
    """Whether a pattern in lower case, with * and ?, names an action that S3 has."""
    return pattern == "*" or any(matches(pattern, action) for action in _KNOWN)
