"""Configurations of inventories: XML, documents of their bucket, and the operations on them."""

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from xml.etree.ElementTree import Element, fromstring, tostring

from exastore.gateway.errors import RequestError
from exastore.gateway.inventory.columns import OPTIONAL
from exastore.gateway.inventory.files import SUFFIXES
from exastore.gateway.s3 import xml
from exastore.gateway.s3.bucket_access import change_document
from exastore.gateway.s3.context import Call, Operation
from exastore.gateway.s3.listing import decode_token, encode_token
from exastore.gateway.s3.message import Response

MAX_CONFIGURATIONS = 1000
_PAGE_COUNT = 100
_ID = re.compile(r"[A-Za-z0-9._-]{1,64}", re.ASCII)
_ARN = "arn:aws:s3:::"
_DOCUMENT = "inventory-configuration-"
_STATE = "inventory-state-"


@dataclass(frozen=True, slots=True)
class Inventory:
    """What a bucket's owner wants to be listed, where and how often."""

    id: str
    is_enabled: bool
    destination: str
    """A bucket."""
    prefix: str
    """What its keys begin with there."""
    file_format: str
    is_sealed: bool
    """Whether files are encrypted whatever the bucket does by default."""
    source_prefix: str
    """Of the keys that are listed."""
    all_versions: bool
    fields: tuple[str, ...]
    is_weekly: bool

    @property
    def document_name(self) -> str:
        return _DOCUMENT + _hashed(self.id)

    @property
    def state_name(self) -> str:
        """The document that says when it was written last, and who writes it now."""
        return _STATE + _hashed(self.id)


def _hashed(inventory_id: str) -> str:
    return hashlib.sha256(inventory_id.encode()).hexdigest()[:32]


def parse_inventory(root: Element) -> Inventory:
    """Read an InventoryConfiguration that has the elements it may have.

    Raises:
        RequestError: MalformedXML, InvalidS3DestinationBucket, InvalidConfigurationId,
            NotImplemented.
    """
    place = root.find("Destination/S3BucketDestination")
    frequency = root.findtext("Schedule/Frequency", "")
    versions = root.findtext("IncludedObjectVersions", "")
    enabled = root.findtext("IsEnabled", "").strip()
    fields = tuple((it.text or "").strip() for it in root.findall("OptionalFields/Field"))
    file_format = "" if place is None else place.findtext("Format", "")
    if (
        place is None
        or frequency not in ("Daily", "Weekly")
        or versions not in ("All", "Current")
        or enabled not in ("true", "false")
        or file_format not in SUFFIXES
        or not set(fields) <= OPTIONAL.keys()
        or len(set(fields)) < len(fields)
    ):
        raise xml.malformed()
    inventory_id = check_id(root.findtext("Id", ""))
    arn = place.findtext("Bucket", "")
    destination = arn.removeprefix(_ARN)
    if not arn.startswith(_ARN) or not re.fullmatch(r"[a-z0-9.-]{3,63}", destination):
        raise RequestError("InvalidS3DestinationBucket", "Invalid bucket ARN.")
    if place.find("Encryption/SSE-KMS") is not None:
        raise RequestError("NotImplemented", "Encryption with KMS is not implemented.")
    return Inventory(
        inventory_id,
        enabled == "true",
        destination,
        place.findtext("Prefix", ""),
        file_format,
        place.find("Encryption/SSE-S3") is not None,
        root.findtext("Filter/Prefix", ""),
        versions == "All",
        fields,
        frequency == "Weekly",
    )


def check_id(inventory_id: str) -> str:
    """The id. Raises RequestError: InvalidConfigurationId."""
    if not _ID.fullmatch(inventory_id):
        raise RequestError("InvalidConfigurationId", "The specified configuration id is invalid.")
    return inventory_id


def inventories_of(documents: Mapping[str, bytes]) -> Sequence[tuple[Inventory, Element]]:
    """The inventories among the documents of a bucket, with their XML, by id."""
    found = [
        (parse_inventory(root), root)
        for name, content in documents.items()
        if name.startswith(_DOCUMENT)
        for root in (fromstring(content),)
    ]
    return sorted(found, key=lambda it: it[0].id)


async def put_inventory(call: Call) -> Response:
    root = xml.parse_document(await call.document(), "InventoryConfiguration")
    inventory = parse_inventory(root)
    if inventory.id != call.parameter("id"):
        raise RequestError("InvalidArgument", "The id is not that of the configuration.")
    await _check_destination(call, inventory.destination)
    known = await call.store.get_bucket_documents(call.bucket)
    count = sum(name.startswith(_DOCUMENT) for name in known)
    if count >= MAX_CONFIGURATIONS and inventory.document_name not in known:
        raise RequestError(
            "TooManyConfigurations",
            "You are attempting to create a new configuration but have already reached the "
            f"{MAX_CONFIGURATIONS}-configuration limit.",
        )
    await change_document(call.store, call.bucket, inventory.document_name, tostring(root))
    await call.audit("PutBucketInventoryConfiguration")
    return Response(204)


async def _check_destination(call: Call, destination: str) -> None:
    """Reports stay within the tenant: who is told so does not learn whether a bucket exists."""
    owner = (await call.guard.buckets.get(call.bucket)).owner
    try:
        is_own = (await call.guard.buckets.get(destination)).owner == owner
    except RequestError:
        is_own = False
    if not is_own:
        raise RequestError(
            "InvalidS3DestinationBucket", "The destination is no bucket of the same owner."
        )


async def _find(call: Call) -> tuple[Inventory, Element]:
    inventory_id = check_id(call.parameter("id"))
    for inventory, root in inventories_of(await call.store.get_bucket_documents(call.bucket)):
        if inventory.id == inventory_id:
            return inventory, root
    raise RequestError("NoSuchConfiguration", "The specified configuration does not exist.")


async def get_inventory(call: Call) -> Response:
    _, root = await _find(call)
    root.set("xmlns", xml.NAMESPACE)
    return xml.xml_response(root)


async def delete_inventory(call: Call) -> Response:
    inventory, _ = await _find(call)
    for name in (inventory.document_name, inventory.state_name):
        await change_document(call.store, call.bucket, name, None)
    await call.audit("DeleteBucketInventoryConfiguration")
    return Response(204)


async def list_inventories(call: Call) -> Response:
    token = call.parameter("continuation-token")
    after = decode_token(token) if token else ""
    found = inventories_of(await call.store.get_bucket_documents(call.bucket))
    behind = [it for it in found if it[0].id > after]
    page = behind[:_PAGE_COUNT]
    root = xml.document("ListInventoryConfigurationsResult")
    if token:
        xml.add(root, "ContinuationToken", token)
    root.extend(it[1] for it in page)
    xml.add(root, "IsTruncated", len(page) < len(behind))
    if len(page) < len(behind):
        xml.add(root, "NextContinuationToken", encode_token(page[-1][0].id))
    return xml.xml_response(root)


INVENTORY_OPERATIONS: dict[str, Operation] = {
    "GetBucketInventoryConfiguration": get_inventory,
    "PutBucketInventoryConfiguration": put_inventory,
    "DeleteBucketInventoryConfiguration": delete_inventory,
    "ListBucketInventoryConfigurations": list_inventories,
}
