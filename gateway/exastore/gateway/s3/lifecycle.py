"""Lifecycle configurations, in XML and as the rules that metadata servers keep."""

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from xml.etree.ElementTree import Element, SubElement, tostring

from exastore.gateway.errors import RequestError
from exastore.gateway.s3 import xml
from exastore.gateway.s3.bucket_access import change_document
from exastore.gateway.s3.context import Call, Operation
from exastore.gateway.s3.message import Response
from exastore.gateway.store import BucketChange, LifecycleRule

_MAX_RULES = 1000
_MAX_ID_CHARACTERS = 255
_SECONDS_PER_DAY = 86_400
#: Which objects transitions pass over. There are none; but Terraform waits to be told its choice.
_MINIMUM_SIZE_HEADER = "x-amz-transition-default-minimum-object-size"
_MINIMUM_SIZES = (b"all_storage_classes_128K", b"varies_by_storage_class")
#: The document that keeps it.
_MINIMUM_SIZE = "transition-minimum-size"
_TRANSITIONS = ("Transition", "NoncurrentVersionTransition")


def parse_lifecycle(body: bytes) -> Sequence[LifecycleRule]:
    """Read a LifecycleConfiguration.

    Raises:
        RequestError: MalformedXML, InvalidArgument, InvalidRequest, NotImplemented.
    """
    root = xml.parse_document(body, "LifecycleConfiguration")
    rules = [_parse_rule(element) for element in root.findall("Rule")]
    if not rules or len(rules) != len(root):
        raise xml.malformed()
    if len(rules) > _MAX_RULES:
        raise RequestError("InvalidRequest", f"The number of rules exceeds {_MAX_RULES}")
    if len({rule.id for rule in rules}) < len(rules):
        raise RequestError("InvalidArgument", "Rule ID must be unique. Found same ID for more")
    return rules


def _parse_rule(element: Element) -> LifecycleRule:
    status = xml.text_of(element, "Status")
    if status not in ("Enabled", "Disabled"):
        raise xml.malformed()
    if any(element.find(name) is not None for name in _TRANSITIONS):
        raise RequestError("NotImplemented", "There is one storage class: transitions are refused.")
    # Without an id a rule gets one that says what it is.
    generated = hashlib.sha256(tostring(element)).hexdigest()[:32]
    rule_id = xml.text_of(element, "ID") or generated
    if len(rule_id) > _MAX_ID_CHARACTERS:
        raise RequestError("InvalidArgument", "ID length should not exceed allowed limit of 255")
    rule = _with_filter(LifecycleRule(rule_id, disabled=status == "Disabled"), element)
    rule = _with_expiration(rule, element.find("Expiration"))
    noncurrent = element.find("NoncurrentVersionExpiration")
    if noncurrent is not None:
        rule = replace(
            rule,
            noncurrent_days=_positive(noncurrent, "NoncurrentDays"),
            newer_noncurrent_count=_positive(noncurrent, "NewerNoncurrentVersions", default=0),
        )
    abort = element.find("AbortIncompleteMultipartUpload")
    if abort is not None:
        if _has_object_filter(rule):
            raise RequestError(
                "InvalidRequest",
                "AbortIncompleteMultipartUpload cannot be specified with tags or sizes",
            )
        rule = replace(rule, abort_upload_days=_positive(abort, "DaysAfterInitiation"))
    acts = (rule.expire_days, rule.expire_at_s, rule.noncurrent_days, rule.abort_upload_days)
    if not any(acts) and not rule.drop_lone_markers:
        raise RequestError("InvalidRequest", "At least one action needs to be specified in a rule")
    return rule


def _with_filter(rule: LifecycleRule, element: Element) -> LifecycleRule:
    chosen, prefix = element.find("Filter"), xml.text_of(element, "Prefix")
    if (chosen is None) == (prefix is None):
        raise xml.malformed()
    if chosen is None:
        return replace(rule, prefix=prefix or "", legacy_prefix=True)
    together = chosen.find("And")
    if together is None:
        if len(chosen) > 1:
            raise xml.malformed()
    elif len(chosen) > 1 or len(together) < 2:
        raise xml.malformed()
    parts = chosen if together is None else together
    tags: dict[str, str] = {}
    for tag in parts.findall("Tag"):
        name, value = xml.text_of(tag, "Key"), xml.text_of(tag, "Value")
        if not name or value is None:
            raise xml.malformed()
        if name in tags:
            raise RequestError("InvalidRequest", "Duplicate Tag Keys are not allowed")
        tags[name] = value
    return replace(
        rule,
        prefix=xml.text_of(parts, "Prefix") or "",
        tags=tags,
        larger_than_bytes=(
            None
            if parts.find("ObjectSizeGreaterThan") is None
            else _number(parts, "ObjectSizeGreaterThan")
        ),
        smaller_than_bytes=_number(parts, "ObjectSizeLessThan", default=0),
    )


def _has_object_filter(rule: LifecycleRule) -> bool:
    """Whether it chooses objects by what uploads and markers do not have."""
    return bool(rule.tags or rule.smaller_than_bytes) or rule.larger_than_bytes is not None


def _with_expiration(rule: LifecycleRule, element: Element | None) -> LifecycleRule:
    if element is None:
        return rule
    days, date = xml.text_of(element, "Days"), xml.text_of(element, "Date")
    marker = xml.text_of(element, "ExpiredObjectDeleteMarker")
    if sum(text is not None for text in (days, date, marker)) != 1:
        raise xml.malformed()
    if days is not None:
        return replace(rule, expire_days=_positive(element, "Days"))
    if date is not None:
        return replace(rule, expire_at_s=_midnight(date))
    if marker not in ("true", "false"):
        raise xml.malformed()
    if _has_object_filter(rule):
        raise RequestError(
            "InvalidRequest", "ExpiredObjectDeleteMarker cannot be specified with tags or sizes"
        )
    return replace(rule, drop_lone_markers=marker == "true")


def _midnight(text: str) -> float:
    try:
        when = datetime.fromisoformat(text)
    except ValueError:
        raise xml.malformed() from None
    seconds = when.timestamp() if when.tzinfo is not None else -1.0
    if seconds < 0 or seconds % _SECONDS_PER_DAY:
        raise RequestError("InvalidArgument", "'Date' must be at midnight GMT")
    return seconds


def _positive(parent: Element, name: str, default: int | None = None) -> int:
    number = _number(parent, name, default)
    if number < 1 and xml.text_of(parent, name) is not None:
        raise RequestError("InvalidArgument", f"'{name}' must be a positive integer")
    return number


def _number(parent: Element, name: str, default: int | None = None) -> int:
    text = xml.text_of(parent, name)
    if text is None and default is not None:
        return default
    text = (text or "").strip()
    digits = text.removeprefix("-")
    if not (digits.isascii() and digits.isdigit()) or len(digits) > 15:
        raise xml.malformed()
    if text != digits:
        raise RequestError("InvalidArgument", f"'{name}' must be a positive integer")
    if name.endswith(("Days", "Versions", "Initiation")) and int(digits) > 2**31 - 1:
        raise RequestError("InvalidArgument", f"'{name}' is too large")
    return int(digits)


def add_rule(root: Element, rule: LifecycleRule) -> None:
    """Append a rule as S3 shows it."""
    element = SubElement(root, "Rule")
    xml.add(element, "ID", rule.id)
    if rule.legacy_prefix:
        xml.add(element, "Prefix", rule.prefix)
    else:
        _add_filter(SubElement(element, "Filter"), rule)
    xml.add(element, "Status", "Disabled" if rule.disabled else "Enabled")
    if rule.expire_days:
        xml.add(SubElement(element, "Expiration"), "Days", rule.expire_days)
    elif rule.expire_at_s:
        xml.add(SubElement(element, "Expiration"), "Date", xml.iso_time(rule.expire_at_s))
    elif rule.drop_lone_markers:
        xml.add(SubElement(element, "Expiration"), "ExpiredObjectDeleteMarker", True)
    if rule.noncurrent_days:
        noncurrent = SubElement(element, "NoncurrentVersionExpiration")
        xml.add(noncurrent, "NoncurrentDays", rule.noncurrent_days)
        if rule.newer_noncurrent_count:
            xml.add(noncurrent, "NewerNoncurrentVersions", rule.newer_noncurrent_count)
    if rule.abort_upload_days:
        abort = SubElement(element, "AbortIncompleteMultipartUpload")
        xml.add(abort, "DaysAfterInitiation", rule.abort_upload_days)


def _add_filter(element: Element, rule: LifecycleRule) -> None:
    count = (
        bool(rule.prefix)
        + len(rule.tags)
        + (rule.larger_than_bytes is not None)
        + bool(rule.smaller_than_bytes)
    )
    if count > 1:
        element = SubElement(element, "And")
    if rule.prefix or not count:
        xml.add(element, "Prefix", rule.prefix)
    for name, value in rule.tags.items():
        tag = SubElement(element, "Tag")
        xml.add(tag, "Key", name)
        xml.add(tag, "Value", value)
    if rule.larger_than_bytes is not None:
        xml.add(element, "ObjectSizeGreaterThan", rule.larger_than_bytes)
    if rule.smaller_than_bytes:
        xml.add(element, "ObjectSizeLessThan", rule.smaller_than_bytes)


async def get_lifecycle(call: Call) -> Response:
    info = await call.store.get_bucket(call.bucket)
    if not info.lifecycle:
        raise RequestError(
            "NoSuchLifecycleConfiguration", "The lifecycle configuration does not exist"
        )
    root = xml.document("LifecycleConfiguration")
    for rule in info.lifecycle:
        add_rule(root, rule)
    response = xml.xml_response(root)
    chosen = await call.store.get_bucket_document(call.bucket, _MINIMUM_SIZE)
    response.headers[_MINIMUM_SIZE_HEADER] = (chosen or _MINIMUM_SIZES[0]).decode()
    return response


async def put_lifecycle(call: Call) -> Response:
    chosen = (call.header(_MINIMUM_SIZE_HEADER) or _MINIMUM_SIZES[0].decode()).encode("latin-1")
    if chosen not in _MINIMUM_SIZES:
        raise RequestError("InvalidRequest", "Invalid transition default minimum object size")
    rules = parse_lifecycle(await call.document())
    await call.store.configure_bucket(call.bucket, BucketChange(lifecycle=rules))
    await change_document(
        call.store, call.bucket, _MINIMUM_SIZE, None if chosen == _MINIMUM_SIZES[0] else chosen
    )
    return Response(200, {_MINIMUM_SIZE_HEADER: chosen.decode()})


async def delete_lifecycle(call: Call) -> Response:
    await call.store.configure_bucket(call.bucket, BucketChange(lifecycle=()))
    await change_document(call.store, call.bucket, _MINIMUM_SIZE, None)
    return Response(204)


LIFECYCLE_OPERATIONS: dict[str, Operation] = {
    "GetBucketLifecycleConfiguration": get_lifecycle,
    "PutBucketLifecycleConfiguration": put_lifecycle,
    "DeleteBucketLifecycle": delete_lifecycle,
}
