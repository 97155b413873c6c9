"""Features of S3 that are not here: what SDKs, Terraform and consoles probe them with is answered.

Reading one tells that it is off. Turning one off that is off is fine. Turning one on gets
NotImplemented: a client that was told "done" would rely on it.
"""

from exastore.gateway.errors import RequestError
from exastore.gateway.s3 import xml
from exastore.gateway.s3.context import Call, Operation
from exastore.gateway.s3.message import Response


def is_off(root_name: str) -> Operation:
    """Answer with an empty document: the feature is off."""

    async def operation(call: Call) -> Response:
        await call.store.get_bucket(call.bucket)
        return xml.xml_response(xml.document(root_name))

    return operation


def is_absent(code: str, message: str) -> Operation:
    """Answer that nothing is configured."""

    async def operation(call: Call) -> Response:
        await call.store.get_bucket(call.bucket)
        raise RequestError(code, message)

    return operation


def turned_off(root_name: str, *off: tuple[str, str]) -> Operation:
    """Take a document that turns the feature off, and refuse one that turns it on.

    Args:
        off: Elements that may be there, with the text that leaves the feature off.
    """

    async def operation(call: Call) -> Response:
        await call.store.get_bucket(call.bucket)
        root = xml.parse_document(await call.document(), root_name)
        if any((child.tag, (child.text or "").strip()) not in off for child in root):
            raise RequestError("NotImplemented", f"{root_name} cannot be turned on.")
        return Response(200)

    return operation


def _no_list(root_name: str) -> Operation:
    async def operation(call: Call) -> Response:
        await call.store.get_bucket(call.bucket)
        root = xml.document(root_name)
        xml.add(root, "IsTruncated", False)
        return xml.xml_response(root)

    return operation


async def get_request_payment(call: Call) -> Response:
    await call.store.get_bucket(call.bucket)
    root = xml.document("RequestPaymentConfiguration")
    xml.add(root, "Payer", "BucketOwner")
    return xml.xml_response(root)


async def delete_nothing(call: Call) -> Response:
    await call.store.get_bucket(call.bucket)
    return Response(204)


_NO_CONFIGURATION = is_absent("NoSuchConfiguration", "The specified configuration does not exist.")

#: Kinds of configurations of which a bucket has a list by id, and the root of that list.
_LISTED = {
    "Analytics": "ListBucketAnalyticsConfigurationResult",
    "IntelligentTiering": "ListBucketIntelligentTieringConfigurationsOutput",
    "Metrics": "ListMetricsConfigurationsResult",
}

STUB_OPERATIONS: dict[str, Operation] = {
    "GetBucketAccelerateConfiguration": is_off("AccelerateConfiguration"),
    "PutBucketAccelerateConfiguration": turned_off(
        "AccelerateConfiguration", ("Status", "Suspended")
    ),
    "GetBucketLogging": is_off("BucketLoggingStatus"),
    "PutBucketLogging": turned_off("BucketLoggingStatus"),
    "GetBucketNotificationConfiguration": is_off("NotificationConfiguration"),
    "PutBucketNotificationConfiguration": turned_off("NotificationConfiguration"),
    "GetBucketRequestPayment": get_request_payment,
    "PutBucketRequestPayment": turned_off("RequestPaymentConfiguration", ("Payer", "BucketOwner")),
    "GetBucketReplication": is_absent(
        "ReplicationConfigurationNotFoundError", "The replication configuration was not found"
    ),
    "DeleteBucketReplication": delete_nothing,
    **{f"ListBucket{kind}Configurations": _no_list(root) for kind, root in _LISTED.items()},
    **{f"GetBucket{kind}Configuration": _NO_CONFIGURATION for kind in _LISTED},
    **{f"DeleteBucket{kind}Configuration": _NO_CONFIGURATION for kind in _LISTED},
}
