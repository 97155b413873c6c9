"""Policies in AWS's JSON: read once into a `Policy`, evaluated without I/O.

A bucket policy says who may do what with a bucket; a user's policy, the same without `Principal`,
what that user may do. Laws:

1. What is not understood is refused when the policy is put, never skipped when it is evaluated.
2. A Deny that matches wins over every Allow.
3. A condition on a key that the request does not have is false, except for `...IfExists`, negated
   operators and `Null`.

Source: the grammar and evaluation logic of AWS's IAM user guide.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, cast

from exastore.gateway.errors import RequestError
from exastore.gateway.s3.actions import is_action
from exastore.gateway.s3.policy_conditions import (
    CONDITION_OPERATORS,
    EXISTING_TAG,
    Condition,
    condition_holds,
)
from exastore.gateway.s3.wildcards import UNMATCHED, literal, matches

MAX_POLICY_BYTES = 20 * 1024
_VERSIONS = ("2012-10-17", "2008-10-17")
_STATEMENT_FIELDS = {
    "Sid",
    "Effect",
    "Principal",
    "NotPrincipal",
    "Action",
    "NotAction",
    "Resource",
    "NotResource",
    "Condition",
}
_ARN = "arn:aws:s3:::"
_VARIABLE = re.compile(r"\$\{([^}]*)\}")


class Verdict(Enum):
    """What a policy says of a request."""

    ALLOW = "allow"
    DENY = "deny"
    SILENT = "silent"


@dataclass(frozen=True, slots=True)
class Query:
    """What is asked of a policy."""

    action: str
    resource: str
    """bucket or bucket/key, without the ARN's beginning."""
    principal_arn: str
    """"*" for the anonymous one."""
    tenant: str
    facts: Mapping[str, Sequence[str]]
    """Condition keys in lower case, with the values that the request has."""


@dataclass(frozen=True, slots=True)
class Statement:
    """One statement; patterns have * and ?."""

    allows: bool
    principals: tuple[str, ...]
    """ARNs, tenants or "*"; empty in a user's policy, which speaks of its user."""
    principals_negated: bool
    actions: tuple[str, ...]
    actions_negated: bool
    resources: tuple[str, ...]
    resources_negated: bool
    conditions: tuple[Condition, ...]

    def applies(self, query: Query) -> bool:
        """Whether the statement speaks of the request."""
        if self.principals and self._names(query) == self.principals_negated:
            return False
        action = query.action.lower()
        if any(matches(p, action) for p in self.actions) == self.actions_negated:
            return False
        resource_is_named = any(
            matches(_filled(pattern, query), query.resource) for pattern in self.resources
        )
        if resource_is_named == self.resources_negated:
            return False
        return all(
            condition_holds(condition, query.facts, lambda text: _filled(text, query))
            for condition in self.conditions
        )

    def _names(self, query: Query) -> bool:
        for named in self.principals:
            if named == "*":
                return True
            if query.principal_arn != "*" and named in (
                query.principal_arn,
                query.tenant,
                f"arn:aws:iam::{query.tenant}:root",
            ):
                return True
        return False

    @property
    def is_public(self) -> bool:
        """Whether it lets everybody in, as AWS understands it: no condition narrows who."""
        if not self.allows or "*" not in self.principals or self.principals_negated:
            return False
        return not any(condition.narrows_callers for condition in self.conditions)


@dataclass(frozen=True, slots=True)
class Policy:
    """A policy as it is evaluated."""

    statements: tuple[Statement, ...]

    def verdict(self, query: Query) -> Verdict:
        """What the policy says of a request."""
        found = Verdict.SILENT
        for statement in self.statements:
            if found is Verdict.ALLOW and statement.allows:
                continue
            if statement.applies(query):
                if not statement.allows:
                    return Verdict.DENY
                found = Verdict.ALLOW
        return found

    @property
    def asks_for_tags(self) -> bool:
        """Whether a condition needs the tags that the object has."""
        return any(
            condition.key.startswith(EXISTING_TAG)
            for statement in self.statements
            for condition in statement.conditions
        )

    @property
    def is_public(self) -> bool:
        return any(statement.is_public for statement in self.statements)


def parse_bucket_policy(document: bytes, bucket: str) -> Policy:
    """Read the policy of a bucket.

    Raises:
        RequestError: MalformedPolicy, with what is wrong.
    """
    policy = _parse(document, with_principal=True)
    for statement in policy.statements:
        for resource in statement.resources:
            head = resource.partition("/")[0]
            if not matches(head, bucket):
                raise _malformed("Policy has invalid resource")
    return policy


def parse_user_policy(document: bytes) -> Policy:
    """Read the policy of a user. Raises RequestError: MalformedPolicy."""
    return _parse(document, with_principal=False)


def _parse(document: bytes, *, with_principal: bool) -> Policy:
    if len(document) > MAX_POLICY_BYTES:
        raise _malformed(f"Policies have at most {MAX_POLICY_BYTES} bytes")
    try:
        value: Any = json.loads(document, object_pairs_hook=_unique)
    except (ValueError, RecursionError):
        raise _malformed("Policies must be valid JSON and the first byte must be '{'") from None
    if not isinstance(value, dict):
        raise _malformed("Policies must be valid JSON and the first byte must be '{'")
    policy = cast(dict[str, Any], value)
    unknown = policy.keys() - {"Version", "Id", "Statement"}
    if unknown:
        raise _malformed(f"Unknown field {min(unknown)}")
    if policy.get("Version", _VERSIONS[0]) not in _VERSIONS:
        raise _malformed("The policy must contain a valid version string")
    statements = policy.get("Statement")
    if isinstance(statements, dict):
        statements = [statements]
    if not isinstance(statements, list) or not statements:
        raise _malformed("Missing required field Statement")
    items = cast(list[object], statements)
    return Policy(tuple(_statement(item, with_principal=with_principal) for item in items))


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name twice")
    return found


def _statement(value: object, *, with_principal: bool) -> Statement:
    if not isinstance(value, dict):
        raise _malformed("A statement must be an object")
    fields = cast(dict[str, Any], value)
    unknown = fields.keys() - _STATEMENT_FIELDS
    if unknown:
        raise _malformed(f"Unknown field {min(unknown)}")
    effect = fields.get("Effect")
    if effect not in ("Allow", "Deny"):
        raise _malformed("Invalid effect: " + str(effect))
    principals: tuple[str, ...] = ()
    negated = False
    if with_principal:
        name, negated = _one_of(fields, "Principal", "NotPrincipal")
        principals = _principals(fields[name])
    elif "Principal" in fields or "NotPrincipal" in fields:
        raise _malformed("The policy of a user names no Principal")
    action_field, actions_negated = _one_of(fields, "Action", "NotAction")
    resource_field, resources_negated = _one_of(fields, "Resource", "NotResource")
    return Statement(
        effect == "Allow",
        principals,
        negated,
        tuple(_action(text) for text in _texts(fields[action_field], "Action")),
        actions_negated,
        tuple(_resource(text) for text in _texts(fields[resource_field], "Resource")),
        resources_negated,
        _conditions(fields.get("Condition", {})),
    )


def _one_of(fields: Mapping[str, Any], name: str, negation: str) -> tuple[str, bool]:
    if (name in fields) == (negation in fields):
        raise _malformed(f"Missing required field {name}")
    return (name, False) if name in fields else (negation, True)


def _texts(value: Any, what: str) -> tuple[str, ...]:
    values = cast(list[object], value) if isinstance(value, list) else [value]
    if not values or not all(isinstance(item, str) and item for item in values):
        raise _malformed(f"{what} must be a string or a list of strings")
    return tuple(cast(list[str], values))


def _action(text: str) -> str:
    is_pattern = text == "*" or re.fullmatch(r"s3:[A-Za-z*?]+", text)
    if not is_pattern or not is_action(text.lower()):
        raise _malformed("Policy has invalid action")
    return text.lower()


def _resource(text: str) -> str:
    if text == "*":
        return "*"
    if not text.startswith(_ARN) or text == _ARN:
        raise _malformed("Policy has invalid resource")
    return text.removeprefix(_ARN)


def _principals(value: Any) -> tuple[str, ...]:
    if value == "*":
        return ("*",)
    if not isinstance(value, dict) or not value:
        raise _malformed("Invalid principal in policy")
    found: list[str] = []
    for kind, names in cast(dict[str, Any], value).items():
        if kind not in ("AWS", "CanonicalUser"):
            raise _malformed("Invalid principal in policy")
        for name in _texts(names, "Principal"):
            # A role or a federated user would never match, so it is told now.
            if ":" in name and not re.fullmatch(r"arn:aws:iam::[^:/]+:(root|user/[^/]+)", name):
                raise _malformed("Invalid principal in policy")
            found.append(name)
    return tuple(found)


def _conditions(value: Any) -> tuple[Condition, ...]:
    if not isinstance(value, dict):
        raise _malformed("Condition must be an object")
    found: list[Condition] = []
    for operator, keys in cast(dict[str, Any], value).items():
        quantifier, colon, name = operator.rpartition(":")
        if_exists = name.endswith("IfExists")
        base = name.removesuffix("IfExists").lower()
        known = base in CONDITION_OPERATORS and not (base == "null" and if_exists)
        if not known or (colon and quantifier not in ("ForAllValues", "ForAnyValue")):
            raise _malformed(f"Invalid Condition type : {operator}")
        if not isinstance(keys, dict) or not keys:
            raise _malformed("A condition names its keys")
        for key, values in cast(dict[str, Any], keys).items():
            listed = cast(list[object], values) if isinstance(values, list) else [values]
            texts = tuple(_condition_text(item) for item in listed)
            try:
                condition = Condition(base, key.lower(), texts, if_exists, quantifier)
                condition.check()
            except ValueError as error:
                raise _malformed(f"Invalid value of condition {key}: {error}") from None
            found.append(condition)
    return tuple(found)


def _condition_text(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str | int | float):
        return str(value)
    raise _malformed("The values of a condition are strings")


def _filled(text: str, query: Query) -> str:
    """A pattern with its policy variables; an unknown one matches nothing."""
    if "${" not in text:
        return text

    def value(match: re.Match[str]) -> str:
        name = match[1].lower()
        if name in ("*", "?", "$"):
            return literal(name)
        values = query.facts.get(name)
        return literal(values[0]) if values else UNMATCHED

    return _VARIABLE.sub(value, text)


def _malformed(message: str) -> RequestError:
    return RequestError("MalformedPolicy", message)
