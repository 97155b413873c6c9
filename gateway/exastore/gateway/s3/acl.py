"""Access control lists of buckets and objects: canned ones, S3's XML, and what they allow.

Ownership decides whether there are any: under BucketOwnerEnforced, the default, everything is the
bucket owner's, and an ACL that says something else is refused.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from xml.etree.ElementTree import Element, SubElement

from exastore.gateway.errors import RequestError
from exastore.gateway.s3 import xml

ALL_USERS = "http://acs.amazonaws.com/groups/global/AllUsers"
AUTHENTICATED = "http://acs.amazonaws.com/groups/global/AuthenticatedUsers"
LOG_DELIVERY = "http://acs.amazonaws.com/groups/s3/LogDelivery"
_GROUPS = (ALL_USERS, AUTHENTICATED, LOG_DELIVERY)
_PERMISSIONS = ("FULL_CONTROL", "WRITE", "WRITE_ACP", "READ", "READ_ACP")
MAX_GRANTS = 100
_MAX_ID_CHARACTERS = 128

#: Pairs of grantee (a tenant, or a group's URI) and permission.
Grants = tuple[tuple[str, str], ...]

ENFORCED = "BucketOwnerEnforced"
PREFERRED = "BucketOwnerPreferred"
OBJECT_WRITER = "ObjectWriter"
OWNERSHIPS = (ENFORCED, PREFERRED, OBJECT_WRITER)

#: Owner of what nobody known wrote, as at S3.
ANONYMOUS_OWNER = "65a011a29cdf8ec533ec3d1ccaae921c"

#: Actions that a permission on an object allows.
_ALLOWED_ON_OBJECTS: dict[str, tuple[str, ...]] = {
    "READ": ("s3:GetObject", "s3:GetObjectVersion"),
    "WRITE": (),
    "READ_ACP": ("s3:GetObjectAcl", "s3:GetObjectVersionAcl"),
    "WRITE_ACP": ("s3:PutObjectAcl", "s3:PutObjectVersionAcl"),
}
_ALLOWED_ON_OBJECTS["FULL_CONTROL"] = tuple(
    action for actions in _ALLOWED_ON_OBJECTS.values() for action in actions
)

_XSI = "http://www.w3.org/2001/XMLSchema-instance"

#: Actions that a permission on a bucket allows.
_ALLOWED: dict[str, tuple[str, ...]] = {
    "READ": ("s3:ListBucket", "s3:ListBucketVersions", "s3:ListBucketMultipartUploads"),
    "WRITE": ("s3:PutObject", "s3:DeleteObject", "s3:AbortMultipartUpload"),
    "READ_ACP": ("s3:GetBucketAcl",),
    "WRITE_ACP": ("s3:PutBucketAcl",),
}
_ALLOWED["FULL_CONTROL"] = tuple(action for actions in _ALLOWED.values() for action in actions)

#: What a canned ACL grants beside the owner's full control: (grantee, permission).
_CANNED: dict[str, Grants] = {
    "private": (),
    "public-read": ((ALL_USERS, "READ"),),
    "public-read-write": ((ALL_USERS, "READ"), (ALL_USERS, "WRITE")),
    "authenticated-read": ((AUTHENTICATED, "READ"),),
    "aws-exec-read": (),
}
#: Of buckets alone. Those for the owner of the bucket grant it nothing that it has not.
CANNED_OF_BUCKETS = {
    **_CANNED,
    "log-delivery-write": ((LOG_DELIVERY, "WRITE"), (LOG_DELIVERY, "READ_ACP")),
    "bucket-owner-read": (),
    "bucket-owner-full-control": (),
}

#: Headers that ask for a list.
ACL_HEADERS = frozenset(
    {
        "x-amz-acl",
        "x-amz-grant-full-control",
        "x-amz-grant-read",
        "x-amz-grant-read-acp",
        "x-amz-grant-write",
        "x-amz-grant-write-acp",
    }
)

_GRANT_HEADERS = {
    "x-amz-grant-full-control": "FULL_CONTROL",
    "x-amz-grant-write": "WRITE",
    "x-amz-grant-write-acp": "WRITE_ACP",
    "x-amz-grant-read": "READ",
    "x-amz-grant-read-acp": "READ_ACP",
}


@dataclass(frozen=True, slots=True)
class Acl:
    """What is granted beside the owner's full control: (tenant or group's URI, permission)."""

    grants: Grants = ()

    def allows(
        self, action: str, tenant: str, *, ignore_public: bool, of_object: bool = False
    ) -> bool:
        """Whether a tenant ("" is the anonymous one) may do it."""
        allowed = _ALLOWED_ON_OBJECTS if of_object else _ALLOWED
        for grantee, permission in self.grants:
            if grantee in (ALL_USERS, AUTHENTICATED):
                named = not ignore_public and (grantee == ALL_USERS or bool(tenant))
            else:
                named = bool(tenant) and grantee == tenant
            if named and action in allowed[permission]:
                return True
        return False

    @property
    def is_public(self) -> bool:
        return any(grantee in (ALL_USERS, AUTHENTICATED) for grantee, _ in self.grants)

    def to_json(self) -> bytes:
        return json.dumps(self.grants).encode()

    @classmethod
    def from_json(cls, text: bytes) -> "Acl":
        return cls(tuple((grantee, permission) for grantee, permission in json.loads(text)))


def canned_for_objects(bucket_owner: str) -> Mapping[str, Grants]:
    """What canned ACLs grant on an object, beside its owner's full control."""
    return {
        **_CANNED,
        "bucket-owner-read": ((bucket_owner, "READ"),),
        "bucket-owner-full-control": ((bucket_owner, "FULL_CONTROL"),),
    }


def acl_of_headers(
    headers: Mapping[str, str], canned_acls: Mapping[str, Grants] = CANNED_OF_BUCKETS
) -> Acl | None:
    """The list that x-amz-acl or x-amz-grant-* ask for; None: they are not there.

    Raises:
        RequestError: InvalidArgument, InvalidRequest, UnresolvableGrantByEmailAddress.
    """
    canned = headers.get("x-amz-acl")
    given = [name for name in _GRANT_HEADERS if name in headers]
    if canned is not None:
        if given:
            raise RequestError(
                "InvalidRequest", "Specifying both Canned ACLs and Header Grants is not allowed"
            )
        if canned not in canned_acls:
            raise RequestError("InvalidArgument", "The canned ACL is not one of S3's.")
        return Acl(canned_acls[canned])
    if not given:
        return None
    grants: list[tuple[str, str]] = []
    for name in given:
        for item in headers[name].split(","):
            kind, _, value = item.strip().partition("=")
            value = value.strip().strip('"')
            grants.append((_grantee(kind.strip().lower(), value), _GRANT_HEADERS[name]))
    if len(grants) > MAX_GRANTS:
        raise RequestError("InvalidArgument", f"A list has at most {MAX_GRANTS} grants.")
    return Acl(tuple(grants))


def _grantee(kind: str, value: str) -> str:
    if kind == "emailaddress":
        raise RequestError(
            "UnresolvableGrantByEmailAddress", "Grants name tenants here, not e-mail addresses."
        )
    if kind == "uri" and value in _GROUPS:
        return value
    if kind == "id" and 0 < len(value) <= _MAX_ID_CHARACTERS and ":" not in value:
        return value
    raise RequestError("InvalidArgument", "A grant names no grantee that S3 knows.")


def acl_of_document(document: bytes, owner: str) -> Acl:
    """Read an AccessControlPolicy. Raises RequestError: MalformedACLError and those of grants."""
    root = xml.parse_document(document, "AccessControlPolicy", code="MalformedACLError")
    listed = root.find("AccessControlList")
    if listed is None or len(listed) > MAX_GRANTS:
        raise xml.malformed("MalformedACLError")
    named_owner = root.findtext("Owner/ID")
    if named_owner is not None and named_owner != owner:
        raise RequestError("AccessDenied", "Access Denied")
    grants: list[tuple[str, str]] = []
    for grant in listed.findall("Grant"):
        permission, grantee = grant.findtext("Permission"), grant.find("Grantee")
        if permission not in _PERMISSIONS or grantee is None:
            raise xml.malformed("MalformedACLError")
        identity, uri = grantee.findtext("ID"), grantee.findtext("URI")
        if grantee.find("EmailAddress") is not None:
            who = _grantee("emailaddress", "")
        else:
            who = _grantee("uri", uri) if uri is not None else _grantee("id", identity or "")
        if (who, permission) != (owner, "FULL_CONTROL"):
            grants.append((who, permission))
    return Acl(tuple(grants))


def wanted_acl(
    headers: Mapping[str, str], document: bytes, owner: str, canned_acls: Mapping[str, Grants]
) -> Acl:
    """The list that a request asks for, in headers or as a document.

    Args:
        owner: Whose full control every list has.

    Raises:
        RequestError: MissingSecurityHeader, UnexpectedContent, MalformedACLError, ...
    """
    acl = acl_of_headers(headers, canned_acls)
    if acl is None:
        if not document:
            raise RequestError(
                "MissingSecurityHeader", "Your request was missing a required header"
            )
        return acl_of_document(document, owner)
    if document.strip():
        raise RequestError(
            "UnexpectedContent", "This request does not support content: it has ACL headers."
        )
    return acl


def check_acl(acl: Acl, ownership: str, blocks_public: bool = False) -> None:
    """Raise for a list that the bucket rules out.

    Raises:
        RequestError: AccessControlListNotSupported by its ownership, AccessDenied by its block.
    """
    if acl.grants and ownership == ENFORCED:
        raise RequestError("AccessControlListNotSupported", "The bucket does not allow ACLs")
    if blocks_public and acl.is_public:
        raise RequestError(
            "AccessDenied",
            "The bucket's public access block (BlockPublicAcls) does not let a list be public.",
        )


def acl_document(owner: str, acl: Acl) -> Element:
    """An owner and its list as S3 shows them."""
    root = xml.document("AccessControlPolicy")
    xml.add_owner(root, owner)
    listed = SubElement(root, "AccessControlList")
    for grantee, permission in ((owner, "FULL_CONTROL"), *acl.grants):
        grant = SubElement(listed, "Grant")
        is_group = grantee in _GROUPS
        element = SubElement(
            grant,
            "Grantee",
            {"xmlns:xsi": _XSI, "xsi:type": "Group" if is_group else "CanonicalUser"},
        )
        if is_group:
            xml.add(element, "URI", grantee)
        else:
            xml.add(element, "ID", grantee)
            xml.add(element, "DisplayName", grantee)
        xml.add(grant, "Permission", permission)
    return root
