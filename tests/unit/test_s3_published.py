"""What AWS publishes for its SDKs, held against our tables: documents, error codes, algorithms."""

import re
from collections.abc import Mapping
from typing import Any, cast

import pytest
from botocore.loaders import Loader

from exastore.gateway.s3.checksums import DIGEST_BYTES
from exastore.gateway.s3.errors import STATUS_OF_CODE, status_of
from exastore.gateway.s3.routing import OPERATIONS
from exastore.gateway.s3.schemas import ANY, SCHEMAS, Schema

Shape = dict[str, Any]

#: Beside its services' model, so that nothing is asked of the network.
MODEL: Mapping[str, Any] = Loader().load_service_model("s3", "service-2", "2006-03-01")
SHAPES: Mapping[str, Shape] = MODEL["shapes"]


def documents() -> dict[str, str]:
    """Roots of what clients send in XML to operations that are served, with their shapes."""
    served = {route.operation for route in OPERATIONS.values()}
    found: dict[str, str] = {}
    for name, operation in MODEL["operations"].items():
        shape = SHAPES.get(cast(Shape, operation.get("input", {})).get("shape", ""), {})
        payload = shape.get("payload")
        if name not in served or payload is None:
            continue
        member = shape["members"][payload]
        if SHAPES[member["shape"]]["type"] == "structure":
            found[member.get("locationName", payload)] = member["shape"]
    return found


def published(shape_name: str) -> dict[str, Any]:
    """The elements of a shape: name to (whether it may be repeated, its own elements)."""
    found: dict[str, Any] = {}
    for name, member in SHAPES[shape_name].get("members", {}).items():
        if member.get("location") or member.get("xmlAttribute"):
            continue
        shape = SHAPES[member["shape"]]
        element, is_repeated, inner = member.get("locationName", name), False, member["shape"]
        if shape["type"] == "list":
            item = shape["member"]
            is_flat = shape.get("flattened") or member.get("flattened")
            if not is_flat:
                found[element] = (False, {item["locationName"]: (True, published(item["shape"]))})
                continue
            is_repeated, inner = True, item["shape"]
        found[element] = (is_repeated, published(inner))
    return found


def differences(schema: Schema, wanted: Mapping[str, Any], where: str) -> list[str]:
    """Where a schema of ours is another than the published one."""
    if schema is ANY:
        return []
    ours = {name.rstrip("!+*"): (name, inner) for name, inner in schema.items()}
    found = [f"{where}: {name}" for name in ours.keys() ^ wanted.keys()]
    for name in ours.keys() & wanted.keys():
        written, inner = ours[name]
        is_repeated, inside = wanted[name]
        if is_repeated != written.endswith(("+", "*")) and where + "/" + name not in NARROWER:
            found.append(f"{where}/{name} may be repeated: {is_repeated}")
        found += differences(inner, inside, f"{where}/{name}")
    return found


#: Rules of which S3 takes one, though its model has a list.
NARROWER = {"OwnershipControls/Rule", "ServerSideEncryptionConfiguration/Rule"}


@pytest.mark.parametrize(("root", "shape"), sorted(documents().items()))
def test_our_schemas_are_those_that_aws_publishes(root: str, shape: str) -> None:
    assert differences(SCHEMAS[root], published(shape), root) == []


def test_every_schema_is_of_an_operation_that_is_served() -> None:
    assert set(SCHEMAS) == set(documents())


def test_error_codes_have_the_statuses_that_aws_publishes() -> None:
    text = re.sub("<[^>]+>", " ", SHAPES["Error"]["members"]["Code"]["documentation"])
    statuses = dict(re.findall(r"Code:\s*(\w+)\s.*?HTTP Status Code:\s*(\d+)", text, re.DOTALL))
    assert len(statuses) > 60
    wrong = {
        code: (status_of(code), int(status))
        for code, status in statuses.items()
        if code in STATUS_OF_CODE and status_of(code) != int(status)
    }
    assert wrong == {}


def test_every_checksum_that_aws_publishes_is_taken() -> None:
    assert {name.lower() for name in SHAPES["ChecksumAlgorithm"]["enum"]} == set(DIGEST_BYTES)


def test_operations_are_named_as_by_aws() -> None:
    served = {route.operation for route in OPERATIONS.values()} - {"Preflight", "PostObject"}
    assert served <= set(MODEL["operations"])
