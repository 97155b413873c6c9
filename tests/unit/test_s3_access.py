"""Who may do what: policies, conditions, lists, public access, tenants. Pure."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exastore.gateway.errors import RequestError
from exastore.gateway.s3.access import BucketAccess, PublicAccessBlock, may
from exastore.gateway.s3.acl import (
    ALL_USERS,
    CANNED_OF_BUCKETS,
    Acl,
    acl_document,
    acl_of_document,
    acl_of_headers,
    check_acl,
)
from exastore.gateway.s3.identity import ANONYMOUS, ROOT, Kind, Principal
from exastore.gateway.s3.policy import (
    Policy,
    Query,
    Verdict,
    parse_bucket_policy,
    parse_user_policy,
)
from exastore.gateway.s3.wildcards import literal, matches
from exastore.gateway.s3.xml import render

ANN = Principal(Kind.USER, "acme", "ann")
EVE = Principal(Kind.USER, "evil", "eve")
BUCKET = BucketAccess("data", "acme")
Facts = Mapping[str, Sequence[str]]


def statement(**fields: Any) -> dict[str, Any]:
    """A statement that allows everybody to read every object, with changes."""
    base: dict[str, Any] = {
        "Effect": "Allow",
        "Principal": "*",
        "Action": "s3:GetObject",
        "Resource": "arn:aws:s3:::data/*",
    }
    base |= fields
    return {name: value for name, value in base.items() if value is not None}


def policy(*statements: dict[str, Any]) -> Policy:
    document = {"Version": "2012-10-17", "Statement": list(statements)}
    return parse_bucket_policy(json.dumps(document).encode(), "data")


def user_policy(**fields: Any) -> Policy:
    document = {"Statement": {"Effect": "Allow", "Action": "s3:*", "Resource": "*"} | fields}
    return parse_user_policy(json.dumps(document).encode())


def allowed(
    principal: Principal,
    bucket: BucketAccess | None,
    action: str = "s3:GetObject",
    resource: str = "data/key",
    facts: Facts | None = None,
) -> bool:
    return may(principal, bucket, action, resource, lambda: facts or {})


def with_policy(*statements: dict[str, Any]) -> BucketAccess:
    return replace(BUCKET, policy=policy(*statements))


# ---- tenants ----


@pytest.mark.parametrize(
    ("principal", "expected"), [(ROOT, True), (ANN, True), (EVE, False), (ANONYMOUS, False)]
)
def test_a_bucket_without_policy_is_its_tenants(principal: Principal, expected: bool) -> None:
    for action in ("s3:GetObject", "s3:PutObject", "s3:DeleteBucket", "s3:PutBucketPolicy"):
        assert allowed(principal, BUCKET, action) is expected


def test_everybody_known_may_create_and_list_buckets_of_its_own() -> None:
    for action in ("s3:CreateBucket", "s3:ListAllMyBuckets"):
        assert allowed(ANN, None, action, "*")
        assert not allowed(ANONYMOUS, None, action, "*")
        reader = replace(ANN, policy=user_policy(Action="s3:Get*"))
        assert not allowed(reader, None, action, "*")


@given(
    st.sampled_from(["s3:GetObject", "s3:ListBucket", "s3:PutObject", "s3:DeleteBucket"]),
    st.text(max_size=20),
)
def test_a_stranger_may_nothing_that_no_policy_gives(action: str, key: str) -> None:
    own_allows_all = replace(EVE, policy=user_policy())
    for stranger in (EVE, own_allows_all, ANONYMOUS):
        assert not allowed(stranger, BUCKET, action, f"data/{key}")


def test_the_administrator_mends_what_a_policy_locked() -> None:
    locked = with_policy(statement(Effect="Deny", Action="*", Resource="arn:aws:s3:::data"))
    assert not allowed(ANN, locked, "s3:PutBucketPolicy", "data")
    assert allowed(ROOT, locked, "s3:PutBucketPolicy", "data")


def test_a_users_policy_narrows_and_a_bucket_policy_may_widen_it() -> None:
    reader = replace(ANN, policy=user_policy(Action=["s3:GetObject"]))
    assert allowed(reader, BUCKET)
    assert not allowed(reader, BUCKET, "s3:PutObject")
    widened = with_policy(
        statement(Principal={"AWS": "arn:aws:iam::acme:user/ann"}, Action="s3:PutObject")
    )
    assert allowed(reader, widened, "s3:PutObject")
    denier = replace(ANN, policy=user_policy(Effect="Deny", Action="s3:PutObject"))
    assert not allowed(denier, widened, "s3:PutObject")


def test_another_tenants_user_needs_both_policies() -> None:
    shared = with_policy(statement(Principal={"AWS": ["arn:aws:iam::evil:root"]}))
    assert allowed(EVE, shared)
    assert not allowed(EVE, shared, "s3:PutObject")
    assert not allowed(replace(EVE, policy=user_policy(Action="s3:List*")), shared)
    assert not allowed(ANONYMOUS, shared)


# ---- statements ----


@pytest.mark.parametrize(
    ("changes", "action", "resource", "expected"),
    [
        ({}, "s3:GetObject", "data/a/b", True),
        ({}, "s3:getobject", "data/a/b", True),
        ({}, "s3:GetObjectVersion", "data/a", False),
        ({}, "s3:GetObject", "data", False),
        ({"Action": "s3:Get*"}, "s3:GetObjectVersion", "data/a", True),
        ({"Action": "*"}, "s3:DeleteObject", "data/a", True),
        ({"Action": "s3:GetObject???????"}, "s3:GetObjectTagging", "data/a", True),
        ({"Action": None, "NotAction": "s3:Put*"}, "s3:GetObject", "data/a", True),
        ({"Action": None, "NotAction": "s3:Put*"}, "s3:PutObject", "data/a", False),
        ({"Resource": "arn:aws:s3:::data/a?c/*"}, "s3:GetObject", "data/abc/x", True),
        ({"Resource": "arn:aws:s3:::data/a?c/*"}, "s3:GetObject", "data/ac/x", False),
        ({"Resource": "arn:aws:s3:::data/[a]"}, "s3:GetObject", "data/a", False),
        ({"Resource": "*"}, "s3:GetObject", "data/a", True),
        (
            {"Resource": None, "NotResource": "arn:aws:s3:::data/secret/*"},
            "s3:GetObject",
            "data/secret/x",
            False,
        ),
        (
            {"Resource": None, "NotResource": "arn:aws:s3:::data/secret/*"},
            "s3:GetObject",
            "data/open/x",
            True,
        ),
    ],
)
def test_actions_and_resources_are_patterns(
    changes: dict[str, Any], action: str, resource: str, expected: bool
) -> None:
    assert allowed(ANONYMOUS, with_policy(statement(**changes)), action, resource) is expected


@pytest.mark.parametrize(
    ("principal", "who", "expected"),
    [
        ("*", ANONYMOUS, True),
        ({"AWS": "*"}, ANONYMOUS, True),
        ({"AWS": "evil"}, EVE, True),
        ({"AWS": "arn:aws:iam::evil:root"}, EVE, True),
        ({"AWS": "arn:aws:iam::evil:user/eve"}, EVE, True),
        ({"AWS": "arn:aws:iam::evil:user/adam"}, EVE, False),
        ({"AWS": "arn:aws:iam::other:user/eve"}, EVE, False),
        ({"CanonicalUser": "evil"}, EVE, True),
        ({"AWS": "evil"}, ANONYMOUS, False),
    ],
)
def test_principals_are_users_tenants_or_everybody(
    principal: Any, who: Principal, expected: bool
) -> None:
    assert allowed(who, with_policy(statement(Principal=principal))) is expected


def test_not_principal_denies_all_others() -> None:
    only_ann = statement(
        Effect="Deny", Principal=None, NotPrincipal={"AWS": "arn:aws:iam::acme:user/ann"}
    )
    bucket = with_policy(only_ann)
    assert allowed(ANN, bucket)
    assert not allowed(replace(ANN, name="bob"), bucket)


def test_an_explicit_deny_wins_in_any_order() -> None:
    allow, deny = statement(Action="s3:*"), statement(Effect="Deny")
    for statements in ((allow, deny), (deny, allow)):
        bucket = with_policy(*statements)
        assert not allowed(ANN, bucket) and not allowed(ANONYMOUS, bucket)
        assert allowed(ANN, bucket, "s3:PutObject")


# ---- conditions ----

IP = "aws:SourceIp"


@pytest.mark.parametrize(
    ("condition", "facts", "expected"),
    [
        ({"IpAddress": {IP: "10.0.0.0/8"}}, {IP: "10.1.2.3"}, True),
        ({"IpAddress": {IP: "10.0.0.0/8"}}, {IP: "11.1.2.3"}, False),
        ({"IpAddress": {IP: ["10.0.0.0/8", "2001:db8::/32"]}}, {IP: "2001:db8::1"}, True),
        ({"IpAddress": {IP: "10.0.0.0/8"}}, {IP: "::ffff:10.1.2.3"}, True),
        ({"IpAddress": {IP: "10.0.0.0/8"}}, {}, False),
        ({"NotIpAddress": {IP: "10.0.0.0/8"}}, {IP: "11.1.2.3"}, True),
        ({"NotIpAddress": {IP: ["10.0.0.0/8", "11.0.0.0/8"]}}, {IP: "11.1.2.3"}, False),
        ({"Bool": {"aws:SecureTransport": "false"}}, {"aws:SecureTransport": "false"}, True),
        ({"Bool": {"aws:SecureTransport": False}}, {"aws:SecureTransport": "true"}, False),
        ({"StringEquals": {"s3:prefix": ["a/", "b/"]}}, {"s3:prefix": "b/"}, True),
        ({"StringEquals": {"s3:prefix": "a/"}}, {"s3:prefix": "A/"}, False),
        ({"StringEqualsIgnoreCase": {"s3:prefix": "a/"}}, {"s3:prefix": "A/"}, True),
        ({"StringNotEquals": {"s3:prefix": "a/"}}, {"s3:prefix": "b/"}, True),
        ({"StringNotEquals": {"s3:prefix": "a/"}}, {}, True),
        ({"StringLike": {"s3:prefix": "home/*"}}, {"s3:prefix": "home/x/y"}, True),
        ({"StringLike": {"s3:prefix": "home/?"}}, {"s3:prefix": "home/xy"}, False),
        ({"StringNotLike": {"s3:prefix": "home/*"}}, {"s3:prefix": "etc"}, True),
        ({"StringEqualsIfExists": {"s3:prefix": "a/"}}, {}, True),
        ({"StringEqualsIfExists": {"s3:prefix": "a/"}}, {"s3:prefix": "b"}, False),
        ({"NumericLessThanEquals": {"s3:max-keys": "10"}}, {"s3:max-keys": "10"}, True),
        ({"NumericLessThan": {"s3:max-keys": 10}}, {"s3:max-keys": "10"}, False),
        ({"NumericGreaterThan": {"s3:max-keys": "10"}}, {"s3:max-keys": "9"}, False),
        ({"NumericEquals": {"s3:max-keys": "10"}}, {"s3:max-keys": "ten"}, False),
        ({"NumericNotEquals": {"s3:max-keys": "10"}}, {"s3:max-keys": "11"}, True),
        (
            {"DateLessThan": {"aws:CurrentTime": "2026-01-01T00:00:00Z"}},
            {"aws:CurrentTime": "2025-12-31T23:59:59Z"},
            True,
        ),
        (
            {"DateGreaterThan": {"aws:EpochTime": "1767225600"}},
            {"aws:EpochTime": "1767225599"},
            False,
        ),
        ({"Null": {"s3:x-amz-acl": "true"}}, {}, True),
        ({"Null": {"s3:x-amz-acl": "true"}}, {"s3:x-amz-acl": "private"}, False),
        ({"Null": {"s3:x-amz-acl": "false"}}, {"s3:x-amz-acl": "private"}, True),
        (
            {"StringEquals": {"s3:ExistingObjectTag/class": "open"}},
            {"s3:ExistingObjectTag/class": "open"},
            True,
        ),
        ({"StringEquals": {"s3:ExistingObjectTag/class": "open"}}, {}, False),
        (
            {"ForAllValues:StringEquals": {"s3:RequestObjectTagKeys": ["a", "b"]}},
            {"s3:RequestObjectTagKeys": ["a", "c"]},
            False,
        ),
        (
            {"ForAnyValue:StringEquals": {"s3:RequestObjectTagKeys": ["a", "b"]}},
            {"s3:RequestObjectTagKeys": ["a", "c"]},
            True,
        ),
        (
            {"StringEquals": {"s3:prefix": "a"}, "IpAddress": {IP: "10.0.0.0/8"}},
            {"s3:prefix": "a", IP: "11.0.0.1"},
            False,
        ),
        ({"ArnLike": {"aws:PrincipalArn": "arn:aws:iam::evil:*"}}, {}, False),
    ],
)
def test_conditions(condition: Any, facts: dict[str, Any], expected: bool) -> None:
    bucket = with_policy(statement(Condition=condition))
    given_facts = {
        name.lower(): tuple(value) if isinstance(value, list) else (str(value),)
        for name, value in facts.items()
    }
    assert allowed(ANONYMOUS, bucket, facts=given_facts) is expected


def test_policy_variables_are_filled_and_never_widen() -> None:
    home = statement(Principal={"AWS": "acme"}, Resource="arn:aws:s3:::data/home/${aws:username}/*")
    bucket = with_policy(home)

    def verdict(name: str, resource: str) -> Verdict:
        facts = {"aws:username": (name,)} if name else {}
        query = Query("s3:GetObject", resource, "arn:aws:iam::acme:root", "acme", facts)
        assert bucket.policy is not None
        return bucket.policy.verdict(query)

    assert verdict("ann", "data/home/ann/x") is Verdict.ALLOW
    assert verdict("ann", "data/home/bob/x") is Verdict.SILENT
    assert verdict("*", "data/home/bob/x") is Verdict.SILENT
    assert verdict("*", "data/home/*/x") is Verdict.ALLOW
    assert verdict("", "data/home/bob/x") is Verdict.SILENT


WRONG: list[dict[str, Any]] = [
    {"Effect": "allow"},
    {"Principal": None},
    {"Principal": {"Service": "x"}},
    {"Principal": {"AWS": []}},
    {"Principal": {"AWS": "arn:aws:iam::acme:role/x"}},
    {"NotPrincipal": "*"},
    {"Action": None},
    {"Action": "ec2:Run"},
    {"Action": []},
    {"Action": [1]},
    {"Resource": "arn:aws:s3:::other/*"},
    {"Resource": "data/*"},
    {"Resource": None},
    {"Extra": 1},
    {"Condition": {"Like": {IP: "1"}}},
    {"Condition": {"IpAddress": {IP: "1.2.3.4.5"}}},
    {"Condition": {"NumericEquals": {"s3:max-keys": "x"}}},
    {"Condition": {"DateEquals": {"aws:CurrentTime": "soon"}}},
    {"Condition": {"Bool": {"aws:SecureTransport": "maybe"}}},
    {"Condition": {"StringEquals": {"aws:Unknown": "x"}}},
    {"Condition": {"StringEquals": {"s3:prefix": []}}},
    {"Condition": {"NullIfExists": {"s3:prefix": "true"}}},
    {"Condition": {"StringEquals": {"s3:prefix": {"a": 1}}}},
    {"Condition": "x"},
]


@pytest.mark.parametrize(
    "document",
    [
        b"",
        b"[]",
        b"{",
        b'"x"',
        b"[" * 100_000,
        b'{"Statement": []}',
        b'{"Version": "2020-01-01", "Statement": [{}]}',
        b'{"Statement": {}, "Statement": {}}',
        *(json.dumps({"Statement": [statement(**one)]}).encode() for one in WRONG),
        b" " * 20_481 + b"{}",
    ],
)
def test_what_is_not_understood_is_refused_when_it_is_put(document: bytes) -> None:
    with pytest.raises(RequestError, match="MalformedPolicy"):
        parse_bucket_policy(document, "data")


@given(st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
def test_no_bytes_break_the_parser(document: bytes) -> None:
    try:
        parse_bucket_policy(document, "data")
    except RequestError as error:
        assert error.code == "MalformedPolicy"


@given(st.text("ab*?", max_size=8), st.text("ab*?", max_size=8))
def test_patterns_match_as_their_definition_says(pattern: str, text: str) -> None:
    def slow(p: str, t: str) -> bool:
        if not p:
            return not t
        if p[0] == "*":
            return any(slow(p[1:], t[i:]) for i in range(len(t) + 1))
        return bool(t) and p[0] in ("?", t[0]) and slow(p[1:], t[1:])

    assert matches(pattern, text) is slow(pattern, text)
    assert matches(literal(pattern), text) is (pattern == text)


def test_a_pattern_of_many_stars_takes_no_time() -> None:
    assert not matches("a*" * 40 + "c", "a" * 1024 + "b")


# ---- public access ----


def test_a_policy_is_public_unless_a_condition_narrows_who_calls() -> None:
    assert policy(statement()).is_public
    assert not policy(statement(Principal={"AWS": "acme"})).is_public
    assert not policy(statement(Effect="Deny")).is_public
    narrowed = {"IpAddress": {IP: "10.0.0.0/8"}}
    assert not policy(statement(Condition=narrowed)).is_public
    assert policy(statement(Condition={"IpAddress": {IP: "0.0.0.0/0"}})).is_public
    assert policy(statement(Condition={"StringLike": {"s3:prefix": "x"}})).is_public


def test_restricting_a_public_bucket_leaves_it_to_its_tenant() -> None:
    shared = statement(Principal={"AWS": "evil"})
    bucket = with_policy(statement(), shared)
    assert allowed(ANONYMOUS, bucket) and allowed(EVE, bucket)
    blocked = replace(bucket, block=PublicAccessBlock(restrict_public_buckets=True))
    assert not allowed(ANONYMOUS, blocked) and not allowed(EVE, blocked)
    assert allowed(ANN, blocked)
    private = replace(blocked, policy=policy(shared))
    assert allowed(EVE, private), "a policy that is not public is not restricted"


# ---- lists ----


@pytest.mark.parametrize(
    ("canned", "who", "action", "expected"),
    [
        ("private", ANONYMOUS, "s3:ListBucket", False),
        ("public-read", ANONYMOUS, "s3:ListBucket", True),
        ("public-read", ANONYMOUS, "s3:PutObject", False),
        ("public-read", ANONYMOUS, "s3:GetObject", False),
        ("public-read-write", ANONYMOUS, "s3:PutObject", True),
        ("authenticated-read", ANONYMOUS, "s3:ListBucket", False),
        ("authenticated-read", EVE, "s3:ListBucket", True),
        ("bucket-owner-full-control", EVE, "s3:ListBucket", False),
        ("log-delivery-write", EVE, "s3:PutObject", False),
    ],
)
def test_canned_lists(canned: str, who: Principal, action: str, expected: bool) -> None:
    acl = acl_of_headers({"x-amz-acl": canned})
    assert acl is not None
    bucket = replace(BUCKET, acl=acl, ownership="ObjectWriter")
    assert allowed(who, bucket, action, "data") is expected
    assert not allowed(who, replace(bucket, ownership="BucketOwnerEnforced"), action, "data")
    ignoring = replace(bucket, block=PublicAccessBlock(ignore_public_acls=True))
    assert not allowed(who, ignoring, action, "data")


def test_lists_survive_xml_json_and_headers() -> None:
    for canned, grants in CANNED_OF_BUCKETS.items():
        acl = acl_of_headers({"x-amz-acl": canned})
        assert acl == Acl(grants)
        document = render(acl_document("acme", Acl(grants)))
        assert acl_of_document(document, "acme") == acl
        assert Acl.from_json(Acl(grants).to_json()) == acl
    granted = acl_of_headers({"x-amz-grant-read": f'uri="{ALL_USERS}", id="evil"'})
    assert granted == Acl(((ALL_USERS, "READ"), ("evil", "READ")))
    assert acl_of_headers({}) is None


@pytest.mark.parametrize(
    ("headers", "code"),
    [
        ({"x-amz-acl": "mine"}, "InvalidArgument"),
        ({"x-amz-acl": "private", "x-amz-grant-read": "id=x"}, "InvalidRequest"),
        ({"x-amz-grant-read": "emailAddress=a@b"}, "UnresolvableGrantByEmailAddress"),
        ({"x-amz-grant-read": "uri=http://other"}, "InvalidArgument"),
        ({"x-amz-grant-read": "nonsense"}, "InvalidArgument"),
    ],
)
def test_wrong_grants_are_named(headers: dict[str, str], code: str) -> None:
    with pytest.raises(RequestError, match=code):
        acl_of_headers(headers)


def test_an_enforced_owner_takes_no_lists_but_its_own() -> None:
    public = Acl(CANNED_OF_BUCKETS["public-read"])
    check_acl(Acl(), "BucketOwnerEnforced")
    with pytest.raises(RequestError, match="AccessControlListNotSupported"):
        check_acl(public, "BucketOwnerEnforced")
    check_acl(public, "ObjectWriter")
    with pytest.raises(RequestError, match="AccessDenied"):
        check_acl(public, "ObjectWriter", blocks_public=True)
    other = render(acl_document("evil", Acl()))
    with pytest.raises(RequestError, match="AccessDenied"):
        acl_of_document(other, "acme")
    for document in (b"<AccessControlPolicy/>", b"<x/>"):
        with pytest.raises(RequestError, match="MalformedACLError"):
            acl_of_document(document, "acme")
