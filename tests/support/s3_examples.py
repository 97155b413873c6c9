"""One right request for each row of the routing table, and what kinds of input it has.

`EXAMPLES` is checked against the table: an operation that is added to it needs an example here, and
with it gets every kind of wrong request that its traits ask for.
"""

import base64
import json
from collections.abc import Mapping
from dataclasses import dataclass

from tests.support.s3_signer import Spec

#: Buckets of the tenant acme, and one of the tenant evil. Each has the object "k".
PLAIN, LOCKED, FOREIGN = "matrix-plain", "matrix-locked", "matrix-foreign"
#: In `FOREIGN`: in the name of a key, in metadata and in bytes.
SECRET = "zz-none-of-acmes-business-zz"
CONTENT = b"hello, negative world"
ETAG = "0" * 32
UPLOAD = "UPLOAD-ID"
"""Stands for the id of the upload to /matrix-plain/up, of which part 1 is there."""
PART = "PART-ETAG"

B, K = f"/{PLAIN}", f"/{PLAIN}/k"
L = f"/{LOCKED}"
UNTIL = "2099-01-01T00:00:00Z"


@dataclass(frozen=True)
class Example:
    """A request that is answered with `status`, and what it takes.

    `traits` are: "body" (bytes of an object), "attributes" (headers that describe a new object),
    "condition" (of a write), "read" (conditions of a read), "range", "part" (a number of a part),
    "copy", "list", "version" (versionId), "sse-c"; `document`: the root of its XML, "policy" for
    JSON, "" for none.
    """

    spec: Spec
    status: int = 200
    document: str = ""
    traits: frozenset[str] = frozenset()


def _is(
    method: str,
    path: str,
    query: str = "",
    *traits: str,
    status: int = 200,
    document: str = "",
    body: bytes = b"",
    headers: Mapping[str, str] | None = None,
) -> Example:
    pairs = [pair.partition("=") for pair in query.split("&") if pair]
    parameters = {name: value for name, _, value in pairs}
    spec = Spec(method, path, parameters, headers or {}, body)
    return Example(spec, status, document, frozenset(traits))


def _puts(path: str, query: str, document: str, xml: str, status: int = 200) -> Example:
    body = xml if document == "policy" else f"<{document}>{xml}</{document}>"
    return _is("PUT", path, query, status=status, document=document, body=body.encode())


_TAG = "<Tag><Key>a</Key><Value>b</Value></Tag>"
_LIFECYCLE = (
    "<Rule><ID>r</ID><Filter><Prefix>x</Prefix></Filter><Status>Enabled</Status>"
    "<Expiration><Days>3</Days></Expiration></Rule>"
)
_CORS = (
    "<CORSRule><AllowedOrigin>https://page.example</AllowedOrigin>"
    "<AllowedMethod>GET</AllowedMethod></CORSRule>"
)
POLICY = json.dumps(
    {
        "Version": "2012-10-17",
        "Statement": [
            {
                "Effect": "Allow",
                "Principal": {"AWS": "arn:aws:iam::acme:user/bob"},
                "Action": "s3:GetObject",
                "Resource": f"arn:aws:s3:::{PLAIN}/*",
            }
        ],
    }
)
_ENCRYPTION = (
    "<Rule><ApplyServerSideEncryptionByDefault><SSEAlgorithm>AES256</SSEAlgorithm>"
    "</ApplyServerSideEncryptionByDefault></Rule>"
)
_INVENTORY = (
    f"<Destination><S3BucketDestination><Bucket>arn:aws:s3:::{PLAIN}</Bucket><Format>CSV</Format>"
    "</S3BucketDestination></Destination><IsEnabled>true</IsEnabled><Id>one</Id>"
    "<IncludedObjectVersions>All</IncludedObjectVersions>"
    "<Schedule><Frequency>Daily</Frequency></Schedule>"
)
_ACL = "<AccessControlList></AccessControlList>"
_RETENTION = f"<Mode>GOVERNANCE</Mode><RetainUntilDate>{UNTIL}</RetainUntilDate>"
_WRITE = ("attributes", "condition", "sse-c")
_READ = ("read", "version", "sse-c")

#: By the row of `exastore.gateway.s3.routing.OPERATIONS`: method, target's name, sub-resource.
EXAMPLES: dict[tuple[str, str, str], Example] = {
    ("GET", "service", ""): _is("GET", "/", "", "list"),
    ("HEAD", "service", ""): _is("HEAD", "/"),
    ("PUT", "bucket", ""): _is(
        "PUT",
        "/matrix-new",
        document="CreateBucketConfiguration",
        body=b"<CreateBucketConfiguration><LocationConstraint>eu-west-1</LocationConstraint>"
        b"</CreateBucketConfiguration>",
    ),
    ("HEAD", "bucket", ""): _is("HEAD", B),
    ("DELETE", "bucket", ""): _is("DELETE", "/matrix-empty", status=204),
    ("GET", "bucket", ""): _is("GET", B, "", "list"),
    ("GET", "bucket", "list-type=2"): _is("GET", B, "list-type=2", "list"),
    ("GET", "bucket", "versions"): _is("GET", B, "versions", "list"),
    ("GET", "bucket", "uploads"): _is("GET", B, "uploads", "list"),
    ("POST", "bucket", "delete"): _is(
        "POST",
        B,
        "delete",
        document="Delete",
        body=b"<Delete><Object><Key>none</Key></Object></Delete>",
    ),
    ("POST", "bucket", "form"): _is("POST", B, "", "form", status=204),
    ("OPTIONS", "bucket", ""): _is("OPTIONS", B, "", "preflight"),
    ("OPTIONS", "object", ""): _is("OPTIONS", K, "", "preflight"),
    # Documents of buckets.
    ("PUT", "bucket", "versioning"): _puts(
        L, "versioning", "VersioningConfiguration", "<Status>Enabled</Status>"
    ),
    ("PUT", "bucket", "tagging"): _puts(B, "tagging", "Tagging", f"<TagSet>{_TAG}</TagSet>", 204),
    ("PUT", "bucket", "lifecycle"): _puts(B, "lifecycle", "LifecycleConfiguration", _LIFECYCLE),
    ("PUT", "bucket", "object-lock"): _puts(
        L,
        "object-lock",
        "ObjectLockConfiguration",
        "<ObjectLockEnabled>Enabled</ObjectLockEnabled>",
    ),
    ("PUT", "bucket", "acl"): _puts(B, "acl", "AccessControlPolicy", _ACL),
    ("PUT", "bucket", "policy"): _puts(B, "policy", "policy", POLICY, 204),
    ("PUT", "bucket", "publicAccessBlock"): _puts(
        B,
        "publicAccessBlock",
        "PublicAccessBlockConfiguration",
        "<BlockPublicAcls>true</BlockPublicAcls>",
    ),
    ("PUT", "bucket", "ownershipControls"): _puts(
        B,
        "ownershipControls",
        "OwnershipControls",
        "<Rule><ObjectOwnership>BucketOwnerEnforced</ObjectOwnership></Rule>",
    ),
    ("PUT", "bucket", "cors"): _puts(B, "cors", "CORSConfiguration", _CORS),
    ("PUT", "bucket", "website"): _puts(
        B,
        "website",
        "WebsiteConfiguration",
        "<IndexDocument><Suffix>index.html</Suffix></IndexDocument>",
    ),
    ("PUT", "bucket", "encryption"): _puts(
        B, "encryption", "ServerSideEncryptionConfiguration", _ENCRYPTION
    ),
    ("PUT", "bucket", "logging"): _puts(B, "logging", "BucketLoggingStatus", ""),
    ("PUT", "bucket", "accelerate"): _puts(
        B, "accelerate", "AccelerateConfiguration", "<Status>Suspended</Status>"
    ),
    ("PUT", "bucket", "requestPayment"): _puts(
        B, "requestPayment", "RequestPaymentConfiguration", "<Payer>BucketOwner</Payer>"
    ),
    ("PUT", "bucket", "notification"): _puts(B, "notification", "NotificationConfiguration", ""),
    **{
        ("GET", "bucket", name): _is("GET", B, name)
        for name in (
            *("location", "versioning", "acl", "policy", "policyStatus", "publicAccessBlock"),
            *("accelerate", "cors", "encryption", "lifecycle", "logging", "notification"),
            *("ownershipControls", "requestPayment", "tagging", "website"),
            *("analytics", "inventory", "metrics", "intelligent-tiering"),
        )
    },
    ("GET", "bucket", "object-lock"): _is("GET", L, "object-lock"),
    ("GET", "bucket", "replication"): _is("GET", B, "replication", status=404),
    **{
        (method, "bucket", f"{name}+id"): _is(method, B, f"{name}&id=one", status=404)
        for method in ("GET", "DELETE")
        for name in ("analytics", "metrics", "intelligent-tiering")
    },
    ("GET", "bucket", "inventory+id"): _is("GET", B, "inventory&id=one"),
    ("PUT", "bucket", "inventory+id"): _puts(
        B, "inventory&id=one", "InventoryConfiguration", _INVENTORY, 204
    ),
    ("DELETE", "bucket", "inventory+id"): _is("DELETE", B, "inventory&id=one", status=204),
    **{
        ("DELETE", "bucket", name): _is("DELETE", B, name, status=204)
        for name in (
            *("tagging", "lifecycle", "policy", "publicAccessBlock", "ownershipControls"),
            *("cors", "website", "replication", "encryption"),
        )
    },
    # Objects.
    ("PUT", "object", ""): _is("PUT", f"{B}/new", "", "body", *_WRITE, body=b"some bytes"),
    ("PUT", "object", "copy"): _is(
        "PUT",
        f"{B}/copied",
        "",
        "copy",
        *_WRITE,
        headers={
            "x-amz-copy-source": f"{PLAIN}/k",
            "x-amz-metadata-directive": "REPLACE",
            "x-amz-tagging-directive": "REPLACE",
        },
    ),
    ("GET", "object", ""): _is("GET", K, "", "range", "part", "override", *_READ),
    ("HEAD", "object", ""): _is("HEAD", K, "", "range", "part", "override", *_READ),
    ("DELETE", "object", ""): _is("DELETE", K, "", "version", status=204),
    ("GET", "object", "attributes"): _is(
        "GET", K, "attributes", *_READ, headers={"x-amz-object-attributes": "ETag,ObjectSize"}
    ),
    ("GET", "object", "acl"): _is("GET", K, "acl", "version"),
    ("PUT", "object", "acl"): Example(
        Spec(
            "PUT", K, {"acl": ""}, {}, f"<AccessControlPolicy>{_ACL}</AccessControlPolicy>".encode()
        ),
        200,
        "AccessControlPolicy",
        frozenset({"version"}),
    ),
    ("GET", "object", "tagging"): _is("GET", K, "tagging", "version"),
    ("PUT", "object", "tagging"): Example(
        Spec("PUT", K, {"tagging": ""}, {}, f"<Tagging><TagSet>{_TAG}</TagSet></Tagging>".encode()),
        200,
        "Tagging",
        frozenset({"version"}),
    ),
    ("DELETE", "object", "tagging"): _is("DELETE", K, "tagging", "version", status=204),
    ("GET", "object", "retention"): _is("GET", f"{L}/k", "retention", "version"),
    ("PUT", "object", "retention"): Example(
        Spec(
            "PUT", f"{L}/k", {"retention": ""}, {}, f"<Retention>{_RETENTION}</Retention>".encode()
        ),
        200,
        "Retention",
        frozenset({"version"}),
    ),
    ("GET", "object", "legal-hold"): _is("GET", f"{L}/k", "legal-hold", "version"),
    ("PUT", "object", "legal-hold"): Example(
        Spec(
            "PUT", f"{L}/k", {"legal-hold": ""}, {}, b"<LegalHold><Status>ON</Status></LegalHold>"
        ),
        200,
        "LegalHold",
        frozenset({"version"}),
    ),
    # Uploads.
    ("POST", "object", "uploads"): _is("POST", f"{B}/new", "uploads", "attributes", "sse-c"),
    ("PUT", "object", "uploadId"): _is(
        "PUT", f"{B}/up", f"partNumber=2&uploadId={UPLOAD}", "body", "upload", body=b"part two"
    ),
    ("PUT", "object", "uploadId+copy"): _is(
        "PUT",
        f"{B}/up",
        f"partNumber=2&uploadId={UPLOAD}",
        "copy",
        "upload",
        headers={"x-amz-copy-source": f"{PLAIN}/k"},
    ),
    ("POST", "object", "uploadId"): _is(
        "POST",
        f"{B}/up",
        f"uploadId={UPLOAD}",
        "upload",
        document="CompleteMultipartUpload",
        body=f"<CompleteMultipartUpload><Part><PartNumber>1</PartNumber><ETag>{PART}</ETag></Part>"
        "</CompleteMultipartUpload>".encode(),
    ),
    ("DELETE", "object", "uploadId"): _is(
        "DELETE", f"{B}/up", f"uploadId={UPLOAD}", "upload", status=204
    ),
    ("GET", "object", "uploadId"): _is("GET", f"{B}/up", f"uploadId={UPLOAD}", "list", "upload"),
}


def form(
    spec: Spec, fields: Mapping[str, str], content: bytes = b"file", *, name: str = "file"
) -> Spec:
    """A form that posts a file."""
    lines: list[bytes] = []
    for field_name, value in fields.items():
        head = f'--edge\r\nContent-Disposition: form-data; name="{field_name}"\r\n\r\n'
        lines.append(head.encode() + value.encode())
    if name:
        head = f'--edge\r\nContent-Disposition: form-data; name="{name}"; filename="f"\r\n\r\n'
        lines.append(head.encode() + content)
    body = b"\r\n".join([*lines, b"--edge--\r\n"])
    headers = {**spec.headers, "content-type": "multipart/form-data; boundary=edge"}
    return Spec(spec.method, spec.path, spec.query, headers, body, access_key="")


def base64_of(data: bytes) -> str:
    """As S3's headers have digests."""
    return base64.b64encode(data).decode()
