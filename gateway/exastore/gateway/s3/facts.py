"""The condition keys that a request has, for policies."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from urllib.parse import parse_qsl

from exastore.gateway.s3.auth import Identity
from exastore.gateway.s3.identity import Kind, Principal
from exastore.gateway.s3.message import Request
from exastore.gateway.s3.policy_conditions import EXISTING_TAG, KNOWN_KEYS, REQUEST_TAG

_QUERY_KEYS = {
    "prefix": "s3:prefix",
    "delimiter": "s3:delimiter",
    "max-keys": "s3:max-keys",
    "versionId": "s3:versionid",
}
#: Headers whose names are condition keys behind "s3:".
_HEADER_KEYS = tuple(
    key.removeprefix("s3:") for key in sorted(KNOWN_KEYS) if key.startswith("s3:x-amz-")
)
_LOCK_KEYS = ("object-lock-mode", "object-lock-retain-until-date", "object-lock-legal-hold")


def facts_of(
    request: Request,
    principal: Principal,
    identity: Identity,
    now_s: float,
    owner: str,
    tags: Mapping[str, str],
) -> dict[str, Sequence[str]]:
    """Every condition key of a request, in lower case.

    Args:
        owner: Tenant of the bucket.
        tags: Those the object has, if a policy asks for them.
    """
    when = datetime.fromtimestamp(now_s, UTC)
    facts: dict[str, Sequence[str]] = {
        "aws:currenttime": (f"{when:%Y-%m-%dT%H:%M:%SZ}",),
        "aws:epochtime": (str(int(now_s)),),
        "aws:securetransport": ("true" if request.secure else "false",),
        "aws:principaltype": (
            {Kind.ROOT: "Account", Kind.USER: "User", Kind.ANONYMOUS: "Anonymous"}[principal.kind],
        ),
        "s3:resourceaccount": (owner,),
    }
    if request.source_ip:
        facts["aws:sourceip"] = (request.source_ip,)
    if principal.kind is not Kind.ANONYMOUS:
        facts["aws:principalarn"] = (principal.arn,)
        facts["aws:principalaccount"] = (principal.tenant,)
        facts["aws:userid"] = (principal.name,)
        facts["aws:username"] = (principal.name,)
        facts["s3:signatureversion"] = ("AWS4-HMAC-SHA256",)
        presigned = "X-Amz-Signature" in request.query
        facts["s3:authtype"] = ("REST-QUERY-STRING" if presigned else "REST-HEADER",)
        age_ms = max(0, int((now_s - identity.signed_s) * 1000))
        facts["s3:signatureage"] = (str(age_ms),)
    for name, key in _QUERY_KEYS.items():
        if name in request.query:
            facts[key] = (request.query[name],)
    _add_headers(facts, request.headers)
    for name, value in tags.items():
        facts[EXISTING_TAG + name.lower()] = (value,)
    return facts


def _add_headers(facts: dict[str, Sequence[str]], headers: Mapping[str, str]) -> None:
    for name in _HEADER_KEYS:
        if name in headers:
            facts["s3:" + name] = (headers[name],)
    for name in _LOCK_KEYS:
        if "x-amz-" + name in headers:
            facts["s3:" + name] = (headers["x-amz-" + name],)
    for name, key in (("user-agent", "aws:useragent"), ("referer", "aws:referer")):
        if name in headers:
            facts[key] = (headers[name],)
    tagging = headers.get("x-amz-tagging")
    if tagging:
        pairs = parse_qsl(tagging, keep_blank_values=True)
        facts["s3:requestobjecttagkeys"] = tuple(name for name, _ in pairs)
        for name, value in pairs:
            facts[REQUEST_TAG + name.lower()] = (value,)
