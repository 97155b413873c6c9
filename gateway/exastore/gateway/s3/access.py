"""Whether a request may be carried out. Pure: who asks, what the bucket says, what is asked.

Laws:
1. The administrator may do everything, and no policy binds it: it mends what others locked.
2. An explicit Deny, of the bucket's policy or of the user's own, wins over everything else.
3. A user may do within its tenant what its own policy allows (all, without one), and besides what
   a bucket's policy allows it. In another tenant's bucket it may do only what that bucket's policy
   or list allows, and its own policy does not leave out.
4. The anonymous one may do what a bucket allows to everybody, unless its public access block
   forbids it.
5. An object that another tenant owns is that one's to read, describe and list for others; of the
   bucket's policy only what is denied counts. Its deletion and replacement are the bucket's.
6. Nothing is told of a bucket that may not be used, but that its name is taken.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from exastore.gateway.s3.acl import ENFORCED, Acl
from exastore.gateway.s3.identity import Kind, Principal
from exastore.gateway.s3.policy import Policy, Query, Verdict
from exastore.gateway.store import AccessList

Facts = Mapping[str, Sequence[str]]


@dataclass(frozen=True, slots=True)
class PublicAccessBlock:
    """What a bucket does not let its own policy and list do."""

    block_public_acls: bool = False
    ignore_public_acls: bool = False
    block_public_policy: bool = False
    restrict_public_buckets: bool = False


_NO_ACL = Acl()
_NO_BLOCK = PublicAccessBlock()


@dataclass(frozen=True, slots=True)
class BucketAccess:
    """What decides about requests for a bucket."""

    name: str
    owner: str
    """The tenant."""
    region: str = ""
    policy: Policy | None = None
    acl: Acl = _NO_ACL
    block: PublicAccessBlock = _NO_BLOCK
    ownership: str = ENFORCED
    cors: bytes | None = None
    """Its CORS document, unparsed."""
    website: bytes | None = None
    """Its website document, unparsed."""
    encryption: bytes | None = None
    """How new objects are sealed unless they say otherwise: an algorithm's name."""


def may(
    principal: Principal,
    bucket: BucketAccess | None,
    action: str,
    resource: str,
    facts: Callable[[], Facts],
    listed: AccessList | None = None,
    *,
    list_action: str = "",
) -> bool:
    """Whether it may be done.

    Args:
        bucket: None for what concerns no bucket that exists: listing and creating them.
        action: As policies name it, "s3:GetObject".
        resource: bucket or bucket/key; "*" without a bucket.
        facts: Gives the condition keys of the request; asked only when a policy has to be read.
        listed: The list of the object that is to be read or described; None: it has none.
        list_action: The action that lists are asked for; empty: the same.
    """
    if principal.kind is Kind.ROOT:
        return True
    own_policy = principal.policy
    if bucket is None:
        if principal.kind is Kind.ANONYMOUS:
            return False
        if own_policy is None:
            return True
        query = _query(principal, action, resource, facts)
        return own_policy.verdict(query) is Verdict.ALLOW
    owner = bucket.owner if listed is None else listed.owner
    is_own = principal.kind is Kind.USER and principal.tenant == owner
    if bucket.policy is None and own_policy is None:
        return is_own or _acl_allows(principal, bucket, list_action or action, listed)
    query = _query(principal, action, resource, facts)
    own = Verdict.ALLOW if own_policy is None else own_policy.verdict(query)
    said = _bucket_verdict(bucket, query)
    if Verdict.DENY in (own, said):
        return False
    if owner != bucket.owner:
        said = Verdict.SILENT
    if is_own:
        return Verdict.ALLOW in (own, said)
    if own is not Verdict.ALLOW:
        return False
    if said is Verdict.ALLOW:
        return True
    return _acl_allows(principal, bucket, list_action or action, listed)


def _bucket_verdict(bucket: BucketAccess, query: Query) -> Verdict:
    policy = bucket.policy
    if policy is None:
        return Verdict.SILENT
    said = policy.verdict(query)
    is_stranger = query.tenant != bucket.owner
    blocked = bucket.block.restrict_public_buckets and is_stranger and policy.is_public
    return Verdict.SILENT if blocked and said is Verdict.ALLOW else said


def _acl_allows(
    principal: Principal, bucket: BucketAccess, action: str, listed: AccessList | None
) -> bool:
    if bucket.ownership == ENFORCED:
        return False
    tenant, ignore_public = principal.tenant, bucket.block.ignore_public_acls
    if listed is not None and Acl(listed.grants).allows(
        action, tenant, ignore_public=ignore_public, of_object=True
    ):
        return True
    return bucket.acl.allows(action, tenant, ignore_public=ignore_public)


def _query(principal: Principal, action: str, resource: str, facts: Callable[[], Facts]) -> Query:
    return Query(action, resource, principal.arn, principal.tenant, facts())
