"""Object lock: the bucket's configuration, retention and legal hold of versions."""

from xml.etree.ElementTree import Element, SubElement

from exastore.gateway.errors import RequestError
from exastore.gateway.s3 import xml
from exastore.gateway.s3.attributes import parse_lock_mode, parse_lock_time
from exastore.gateway.s3.context import Call, Operation
from exastore.gateway.s3.message import Response
from exastore.gateway.store import BucketChange, BucketLock, ObjectInfo, ObjectLock

_MAX_DAYS = 36_500
_MAX_YEARS = 100


def bypasses_governance(call: Call) -> bool:
    """Whether the request asks to; that it may was decided before."""
    return (call.header("x-amz-bypass-governance-retention") or "").lower() == "true"


async def get_object_lock_configuration(call: Call) -> Response:
    lock = (await call.store.get_bucket(call.bucket)).lock
    if lock is None:
        raise RequestError(
            "ObjectLockConfigurationNotFoundError",
            "Object Lock configuration does not exist for this bucket",
        )
    root = xml.document("ObjectLockConfiguration")
    xml.add(root, "ObjectLockEnabled", "Enabled")
    if lock.mode:
        retention = SubElement(SubElement(root, "Rule"), "DefaultRetention")
        xml.add(retention, "Mode", lock.mode)
        if lock.days:
            xml.add(retention, "Days", lock.days)
        else:
            xml.add(retention, "Years", lock.years)
    return xml.xml_response(root)


async def put_object_lock_configuration(call: Call) -> Response:
    root = xml.parse_document(await call.document(), "ObjectLockConfiguration")
    if xml.text_of(root, "ObjectLockEnabled") != "Enabled":
        raise xml.malformed()
    lock = BucketLock()
    _refuse_holds(root)
    rule = root.find("Rule")
    if rule is not None:
        retention = rule.find("DefaultRetention")
        if retention is None:
            raise xml.malformed()
        mode = xml.text_of(retention, "Mode")
        days, years = xml.text_of(retention, "Days"), xml.text_of(retention, "Years")
        if mode not in ("GOVERNANCE", "COMPLIANCE") or (days is None) == (years is None):
            raise xml.malformed()
        lock = BucketLock(
            mode, _period(days, "days", _MAX_DAYS), _period(years, "years", _MAX_YEARS)
        )
    await call.store.configure_bucket(call.bucket, BucketChange(lock=lock))
    return Response(200)


def _refuse_holds(root: Element) -> None:
    """Raise NotImplemented for what S3 has beside retention and legal hold: holds of events."""
    if any("EventHold" in element.tag for element in root.iter()):
        raise RequestError("NotImplemented", "Event holds are not implemented.")


def _period(text: str | None, unit: str, maximum: int) -> int:
    if text is None:
        return 0
    digits = text.removeprefix("-")
    if not (digits.isascii() and digits.isdigit()):
        raise xml.malformed()
    number = int(text[:9])
    if not 1 <= number <= maximum:
        raise RequestError(
            "InvalidArgument", f"Default retention period must be 1 to {maximum} {unit}"
        )
    return number


async def _locked_version(call: Call) -> ObjectInfo:
    """The version that is asked for, in a bucket with object lock."""
    if (await call.store.get_bucket(call.bucket)).lock is None:
        raise RequestError("InvalidRequest", "Bucket is missing Object Lock Configuration")
    return await call.store.head_object(call.bucket, call.key, call.version_id)


def _not_locked() -> RequestError:
    return RequestError(
        "NoSuchObjectLockConfiguration",
        "The specified object does not have a ObjectLock configuration",
    )


async def get_object_retention(call: Call) -> Response:
    lock = (await _locked_version(call)).attributes.lock
    if not lock.mode:
        raise _not_locked()
    root = xml.document("Retention")
    xml.add(root, "Mode", lock.mode)
    xml.add(root, "RetainUntilDate", xml.iso_time(lock.retain_until_s))
    return xml.xml_response(root)


async def put_object_retention(call: Call) -> Response:
    root = xml.parse_document(await call.document(), "Retention")
    _refuse_holds(root)
    mode, until = xml.text_of(root, "Mode"), xml.text_of(root, "RetainUntilDate")
    if (mode is None) != (until is None):
        raise xml.malformed()
    retention = ObjectLock()
    if mode is not None and until is not None:
        retention = ObjectLock(
            parse_lock_mode(mode, "MalformedXML"), parse_lock_time(until, "MalformedXML")
        )
    await call.store.put_lock(
        call.bucket,
        call.key,
        call.version_id,
        retention=retention,
        bypass_governance=bypasses_governance(call),
    )
    return Response(200)


async def get_object_legal_hold(call: Call) -> Response:
    lock = (await _locked_version(call)).attributes.lock
    root = xml.document("LegalHold")
    xml.add(root, "Status", "ON" if lock.legal_hold else "OFF")
    return xml.xml_response(root)


async def put_object_legal_hold(call: Call) -> Response:
    root = xml.parse_document(await call.document(), "LegalHold")
    status = xml.text_of(root, "Status")
    if status not in ("ON", "OFF"):
        raise xml.malformed()
    await call.store.put_lock(call.bucket, call.key, call.version_id, legal_hold=status == "ON")
    return Response(200)


LOCK_OPERATIONS: dict[str, Operation] = {
    "GetObjectLockConfiguration": get_object_lock_configuration,
    "PutObjectLockConfiguration": put_object_lock_configuration,
    "GetObjectRetention": get_object_retention,
    "PutObjectRetention": put_object_retention,
    "GetObjectLegalHold": get_object_legal_hold,
    "PutObjectLegalHold": put_object_legal_hold,
}
