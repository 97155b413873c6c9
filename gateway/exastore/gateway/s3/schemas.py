"""What elements S3's documents have: a table, and the check of a document against it.

A name ends with how often it may be there: "!" once, "+" once or more, "*" any number; without one,
once at most. Its value is the same for its children; `TEXT` is an element without any. What S3 has
and is not done here is in the table, too, and refused by the operation with its own code.

Source: the schema of the service, as AWS publishes it for its SDKs; a test compares the two.
"""

from collections.abc import Mapping
from typing import NamedTuple
from xml.etree.ElementTree import Element

#: As written here; a schema holds schemas.
Schema = Mapping[str, "Schema"]

TEXT: Schema = {}
#: An element that may be empty or hold anything: of features that are not here.
ANY: Schema = {"*": TEXT}

_TAG: Schema = {"Key!": TEXT, "Value!": TEXT}
_GRANTEE: Schema = {"DisplayName": TEXT, "EmailAddress": TEXT, "ID": TEXT, "URI": TEXT}
_GRANTS: Schema = {"Grant*": {"Grantee!": _GRANTEE, "Permission!": TEXT}}
_SIZES: Schema = {"ObjectSizeGreaterThan": TEXT, "ObjectSizeLessThan": TEXT}
_CHECKSUMS: Schema = {
    f"Checksum{name}": TEXT
    for name in (
        *("CRC32", "CRC32C", "CRC64NVME", "SHA1", "SHA256", "SHA512"),
        *("MD5", "XXHASH64", "XXHASH3", "XXHASH128"),
    )
}

#: Documents by their roots.
SCHEMAS: Schema = {
    "AccelerateConfiguration": {"Status": TEXT},
    "AccessControlPolicy": {
        "AccessControlList!": _GRANTS,
        "Owner": {"DisplayName": TEXT, "ID": TEXT},
    },
    "BucketLoggingStatus": {"LoggingEnabled": ANY},
    "CORSConfiguration": {
        "CORSRule+": {
            "ID": TEXT,
            "AllowedHeader*": TEXT,
            "AllowedMethod+": TEXT,
            "AllowedOrigin+": TEXT,
            "ExposeHeader*": TEXT,
            "MaxAgeSeconds": TEXT,
        }
    },
    "CompleteMultipartUpload": {"Part+": {"PartNumber!": TEXT, "ETag!": TEXT, **_CHECKSUMS}},
    "CreateBucketConfiguration": {
        "LocationConstraint": TEXT,
        "Location": ANY,
        "Bucket": ANY,
        "Tags": {"Tag*": _TAG},
    },
    "Delete": {
        "Object+": {
            "Key!": TEXT,
            "VersionId": TEXT,
            "ETag": TEXT,
            "LastModifiedTime": TEXT,
            "Size": TEXT,
        },
        "Quiet": TEXT,
    },
    "InventoryConfiguration": {
        "Destination!": {
            "S3BucketDestination!": {
                "AccountId": TEXT,
                "Bucket!": TEXT,
                "Format!": TEXT,
                "Prefix": TEXT,
                "Encryption": {"SSE-S3": TEXT, "SSE-KMS": {"KeyId!": TEXT}},
            }
        },
        "IsEnabled!": TEXT,
        "Filter": {"Prefix!": TEXT},
        "Id!": TEXT,
        "IncludedObjectVersions!": TEXT,
        "OptionalFields": {"Field*": TEXT},
        "Schedule!": {"Frequency!": TEXT},
    },
    "LegalHold": {"Status!": TEXT},
    "LifecycleConfiguration": {
        "Rule+": {
            "ID": TEXT,
            "Prefix": TEXT,
            "Status!": TEXT,
            "Filter": {
                "Prefix": TEXT,
                "Tag": _TAG,
                **_SIZES,
                "And": {"Prefix": TEXT, "Tag*": _TAG, **_SIZES},
            },
            "Expiration": {"Date": TEXT, "Days": TEXT, "ExpiredObjectDeleteMarker": TEXT},
            "Transition*": {"Date": TEXT, "Days": TEXT, "StorageClass": TEXT},
            "NoncurrentVersionTransition*": {
                "NoncurrentDays": TEXT,
                "StorageClass": TEXT,
                "NewerNoncurrentVersions": TEXT,
            },
            "NoncurrentVersionExpiration": {
                "NoncurrentDays": TEXT,
                "NewerNoncurrentVersions": TEXT,
            },
            "AbortIncompleteMultipartUpload": {"DaysAfterInitiation!": TEXT},
        }
    },
    "NotificationConfiguration": {
        "TopicConfiguration*": ANY,
        "QueueConfiguration*": ANY,
        "CloudFunctionConfiguration*": ANY,
        "EventBridgeConfiguration": ANY,
    },
    "ObjectLockConfiguration": {
        "ObjectLockEnabled": TEXT,
        "Rule": {
            "DefaultRetention!": {
                "Mode": TEXT,
                "Days": TEXT,
                "Years": TEXT,
                "DefaultEventHold": ANY,
            }
        },
    },
    "OwnershipControls": {"Rule!": {"ObjectOwnership!": TEXT}},
    "PublicAccessBlockConfiguration": {
        "BlockPublicAcls": TEXT,
        "IgnorePublicAcls": TEXT,
        "BlockPublicPolicy": TEXT,
        "RestrictPublicBuckets": TEXT,
    },
    "RequestPaymentConfiguration": {"Payer!": TEXT},
    "Retention": {
        "Mode": TEXT,
        "RetainUntilDate": TEXT,
        "EventHold": TEXT,
        "EventHoldDuration": ANY,
    },
    "ServerSideEncryptionConfiguration": {
        "Rule!": {
            "ApplyServerSideEncryptionByDefault": {"SSEAlgorithm!": TEXT, "KMSMasterKeyID": TEXT},
            "BucketKeyEnabled": TEXT,
            "BlockedEncryptionTypes": {"EncryptionType*": TEXT},
        }
    },
    "Tagging": {"TagSet!": {"Tag*": _TAG}},
    "VersioningConfiguration": {"Status": TEXT, "MfaDelete": TEXT},
    "WebsiteConfiguration": {
        "ErrorDocument": {"Key!": TEXT},
        "IndexDocument": {"Suffix!": TEXT},
        "RedirectAllRequestsTo": {"HostName!": TEXT, "Protocol": TEXT},
        "RoutingRules": {
            "RoutingRule*": {
                "Condition": {"HttpErrorCodeReturnedEquals": TEXT, "KeyPrefixEquals": TEXT},
                "Redirect!": {
                    "HostName": TEXT,
                    "HttpRedirectCode": TEXT,
                    "Protocol": TEXT,
                    "ReplaceKeyPrefixWith": TEXT,
                    "ReplaceKeyWith": TEXT,
                },
            }
        },
    },
}


class _Shape(NamedTuple):
    """A schema, as it is looked up."""

    children: Mapping[str, "_Shape"]
    single: frozenset[str]
    """Children of which there is one at most."""
    required: frozenset[str]


def _shape_of(schema: Schema) -> _Shape:
    return _Shape(
        {name.rstrip("!+*"): _shape_of(inner) for name, inner in schema.items()},
        frozenset(name.rstrip("!") for name in schema if not name.endswith(("+", "*"))),
        frozenset(name[:-1] for name in schema if name.endswith(("!", "+"))),
    )


_SHAPES = _shape_of(SCHEMAS).children


def fits(root: Element) -> bool:
    """Whether a document, free of namespaces, has the elements that its root's schema allows."""
    shape = _SHAPES.get(root.tag)
    return shape is None or _fits(root, shape)


def _fits(element: Element, shape: _Shape) -> bool:
    seen: set[str] = set()
    for child in element:
        inner = shape.children.get(child.tag)
        if inner is None:
            if "" in shape.children:
                continue
            return False
        if child.tag in seen and child.tag in shape.single:
            return False
        seen.add(child.tag)
        if len(child) or inner.required:
            if not _fits(child, inner):
                return False
    return seen >= shape.required
