"""The conditions of policies: operators over the facts of a request."""

import ipaddress
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from exastore.gateway.s3.wildcards import matches

#: Condition keys that narrow down who calls; a statement for everybody without one is public.
_CALLER_KEYS = frozenset(
    {
        "aws:sourceip",
        "aws:principalarn",
        "aws:principalaccount",
        "aws:userid",
        "aws:username",
    }
)


#: Condition keys whose facts `facts.py` gathers. A policy with another one is refused: a Deny that
#: could never apply would be worse than none.
KNOWN_KEYS = frozenset(
    {
        "aws:sourceip",
        "aws:securetransport",
        "aws:currenttime",
        "aws:epochtime",
        "aws:useragent",
        "aws:referer",
        "aws:principalarn",
        "aws:principalaccount",
        "aws:principaltype",
        "aws:userid",
        "aws:username",
        "s3:prefix",
        "s3:delimiter",
        "s3:max-keys",
        "s3:versionid",
        "s3:authtype",
        "s3:signatureage",
        "s3:signatureversion",
        "s3:requestobjecttagkeys",
        "s3:resourceaccount",
        "s3:object-lock-mode",
        "s3:object-lock-retain-until-date",
        "s3:object-lock-legal-hold",
        "s3:x-amz-acl",
        "s3:x-amz-content-sha256",
        "s3:x-amz-copy-source",
        "s3:x-amz-grant-full-control",
        "s3:x-amz-grant-read",
        "s3:x-amz-grant-read-acp",
        "s3:x-amz-grant-write",
        "s3:x-amz-grant-write-acp",
        "s3:x-amz-metadata-directive",
        "s3:x-amz-object-ownership",
        "s3:x-amz-server-side-encryption",
        "s3:x-amz-server-side-encryption-customer-algorithm",
        "s3:x-amz-storage-class",
        "s3:x-amz-website-redirect-location",
    }
)
REQUEST_TAG = "s3:requestobjecttag/"
EXISTING_TAG = "s3:existingobjecttag/"


@dataclass(frozen=True, slots=True)
class Condition:
    """One key of one operator; it holds when one of the values does."""

    operator: str
    """In lower case, without IfExists."""
    key: str
    values: tuple[str, ...]
    if_exists: bool = False
    quantifier: str = ""
    """ForAllValues or ForAnyValue."""

    @property
    def narrows_callers(self) -> bool:
        """Whether it excludes some callers for who they are."""
        if self.key not in _CALLER_KEYS or self.operator in _NEGATED or self.if_exists:
            return False
        return not ({"*", "0.0.0.0/0", "::/0"} & set(self.values))

    def check(self) -> None:
        """Raise ValueError unless the key is known, and every value of the operator's type."""
        if self.key not in KNOWN_KEYS and not self.key.startswith((REQUEST_TAG, EXISTING_TAG)):
            raise ValueError("the key is not one that is known here")
        convert = _CONVERSIONS.get(self.operator)
        for value in self.values:
            if convert is not None and "${" not in value:
                convert(value)
        if not self.values:
            raise ValueError("there is none")


def condition_holds(
    condition: Condition,
    facts: Mapping[str, Sequence[str]],
    fill: Callable[[str], str],
) -> bool:
    """Whether a condition holds; `fill` puts policy variables in."""
    present = facts.get(condition.key, ())
    if condition.operator == "null":
        return any((value.lower() == "true") == (not present) for value in condition.values)
    negated = condition.operator in _NEGATED
    if not present:
        return condition.if_exists or negated or condition.quantifier == "ForAllValues"
    compare = CONDITION_OPERATORS[condition.operator]
    wanted = [fill(value) for value in condition.values]

    def matches_one(fact: str) -> bool:
        found = any(_compared(compare, fact, value) for value in wanted)
        return found != negated

    if condition.quantifier == "ForAllValues":
        return all(map(matches_one, present))
    if negated and not condition.quantifier:
        return all(map(matches_one, present))
    return any(map(matches_one, present))


Compare = Callable[[str, str], bool]


def _compared(compare: Compare, fact: str, value: str) -> bool:
    try:
        return compare(fact, value)
    except ValueError:
        return False


def _boolean(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise ValueError(f"{text!r} is neither true nor false")
    return text.lower() == "true"


def _date(text: str) -> float:
    if re.fullmatch(r"\d{1,12}(\.\d+)?", text):
        return float(text)
    try:
        when = datetime.fromisoformat(text)
    except ValueError:
        raise ValueError(f"{text!r} is no date") from None
    return (when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp()


def _number(text: str) -> float:
    if not re.fullmatch(r"-?\d{1,30}(\.\d{1,30})?", text):
        raise ValueError(f"{text!r} is no number")
    return float(text)


Network = ipaddress.IPv4Network | ipaddress.IPv6Network


def _network(text: str) -> Network:
    return ipaddress.ip_network(text, strict=False)


def _in_network(fact: str, value: str) -> bool:
    address = ipaddress.ip_address(fact)
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    network = _network(value)
    found = mapped or address
    return found.version == network.version and found in network


def _arn_like(fact: str, value: str) -> bool:
    return matches(value, fact)


#: Operators that hold when no value compares, in lower case.
_NEGATED = frozenset(
    {
        "stringnotequals",
        "stringnotequalsignorecase",
        "stringnotlike",
        "numericnotequals",
        "datenotequals",
        "notipaddress",
        "arnnotequals",
        "arnnotlike",
    }
)

#: How an operator compares the request's value with the policy's; the negated ones as their bases.
CONDITION_OPERATORS: dict[str, Compare] = {
    "stringequals": lambda fact, value: fact == value,
    "stringnotequals": lambda fact, value: fact == value,
    "stringequalsignorecase": lambda fact, value: fact.lower() == value.lower(),
    "stringnotequalsignorecase": lambda fact, value: fact.lower() == value.lower(),
    "stringlike": lambda fact, value: matches(value, fact),
    "stringnotlike": lambda fact, value: matches(value, fact),
    "numericequals": lambda fact, value: _number(fact) == _number(value),
    "numericnotequals": lambda fact, value: _number(fact) == _number(value),
    "numericlessthan": lambda fact, value: _number(fact) < _number(value),
    "numericlessthanequals": lambda fact, value: _number(fact) <= _number(value),
    "numericgreaterthan": lambda fact, value: _number(fact) > _number(value),
    "numericgreaterthanequals": lambda fact, value: _number(fact) >= _number(value),
    "dateequals": lambda fact, value: _date(fact) == _date(value),
    "datenotequals": lambda fact, value: _date(fact) == _date(value),
    "datelessthan": lambda fact, value: _date(fact) < _date(value),
    "datelessthanequals": lambda fact, value: _date(fact) <= _date(value),
    "dategreaterthan": lambda fact, value: _date(fact) > _date(value),
    "dategreaterthanequals": lambda fact, value: _date(fact) >= _date(value),
    "bool": lambda fact, value: _boolean(fact) == _boolean(value),
    "ipaddress": _in_network,
    "notipaddress": _in_network,
    "arnequals": _arn_like,
    "arnlike": _arn_like,
    "arnnotequals": _arn_like,
    "arnnotlike": _arn_like,
    "null": lambda fact, value: False,
}

_CONVERSIONS: dict[str, Callable[[str], object]] = {
    **{name: _number for name in CONDITION_OPERATORS if name.startswith("numeric")},
    **{name: _date for name in CONDITION_OPERATORS if name.startswith("date")},
    "bool": _boolean,
    "null": _boolean,
    "ipaddress": _network,
    "notipaddress": _network,
}
