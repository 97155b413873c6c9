"""The operations in docs/s3.md are those of the routing table."""

import re
from pathlib import Path

from exastore.gateway.s3.front import HANDLERS
from exastore.gateway.s3.routing import OPERATIONS, SUB_RESOURCES, Target
from exastore.gateway.s3.stubs import STUB_OPERATIONS

PAGE = (Path(__file__).parents[2] / "docs" / "s3.md").read_text()
#: An operation, its requests, its kind.
ROW = re.compile(r"^\| (\w+) \| (`[^|]+`) \| (\w+) \| ([^|]*) \|$", re.MULTILINE)
PATHS = {Target.SERVICE: "/", Target.BUCKET: "/b", Target.OBJECT: "/b/k"}
WITH_SOURCE = " with x-amz-copy-source"


def shape(method: str, target: Target, sub_resource: str) -> str:
    """How the page writes a request of the table."""
    path, tail = PATHS[target], ""
    match sub_resource.partition("+"):
        case ("copy", _, _):
            sub_resource, tail = "", WITH_SOURCE
        case ("form", _, _):
            sub_resource, tail = "", " as a form"
        case (name, _, "copy"):
            sub_resource, tail = name, WITH_SOURCE
        case (name, _, "id"):
            sub_resource = f"{name}&id"
        case _:
            pass
    return f"{method} {path}{'?' if sub_resource else ''}{sub_resource}{tail}"


def test_the_page_names_every_request_and_no_other() -> None:
    listed = {
        (operation, request)
        for operation, requests, _, _ in ROW.findall(PAGE)
        for request in re.findall(r"`([^`]+)`", requests)
    }
    routed = {(route.operation, shape(*request)) for request, route in OPERATIONS.items()}
    assert listed == routed


def test_every_operation_has_one_row_and_one_handler() -> None:
    operations = [row[0] for row in ROW.findall(PAGE)]
    assert operations == sorted(set(operations), key=str)
    # The front itself answers preflights, and turns a form into the PUT that it stands for.
    assert set(operations) - set(HANDLERS) == {"PostObject", "Preflight"}


def test_what_differs_says_how_and_what_is_off_is_a_stub() -> None:
    for operation, _, kind, notes in ROW.findall(PAGE):
        assert kind in ("exact", "differs", "off"), operation
        assert (kind == "off") == (operation in STUB_OPERATIONS), operation
        assert kind != "differs" or notes.strip(), f"{operation} differs without saying how"


def test_the_page_names_what_is_refused() -> None:
    served = {request[2].partition("+")[0] for request in OPERATIONS}
    (refused,) = re.findall(r"\(501\) here: ([^.]+)\.", PAGE)
    assert set(re.findall(r"`(\w[\w-]*)`", refused)) == SUB_RESOURCES - served
