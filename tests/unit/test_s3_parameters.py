"""Every header and parameter that AWS publishes is read, or docs/s3.md says why it is not.

Each operation is sent a right request whose headers and query note what they are asked for.
"""

import asyncio
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from botocore.loaders import Loader
from tests.support.s3_examples import EXAMPLES
from tests.support.s3_world import Headers, MemoryWorld, wire_of

from exastore.gateway.s3 import front
from exastore.gateway.s3.checksums import DIGEST_BYTES
from exastore.gateway.s3.message import parse_query
from exastore.gateway.s3.routing import OPERATIONS, SUB_RESOURCES

PAGE = (Path(__file__).parents[2] / "docs" / "s3.md").read_text()
#: A header, or a parameter with "?", and the operations that take it to no effect.
ROW = re.compile(r"^\| `(\??[\w-]+)` \| ([\w, ]+) \| [^|]+ \|$", re.MULTILINE)
MODEL: Mapping[str, Any] = Loader().load_service_model("s3", "service-2", "2006-03-01")
CHECKSUMS = {f"x-amz-checksum-{name}" for name in DIGEST_BYTES}


def published(operation: str) -> Iterator[str]:
    """Headers, and parameters with "?", of an operation."""
    shape = MODEL["operations"][operation].get("input", {}).get("shape", "")
    for name, member in MODEL["shapes"].get(shape, {}).get("members", {}).items():
        where, written = member.get("location"), member.get("locationName", name)
        if where == "header":
            yield written.lower()
        elif where == "querystring" and written not in SUB_RESOURCES:
            yield f"?{written}"


@pytest.fixture(scope="module")
def unread() -> dict[str, set[str]]:
    """What is published and not read, with the operations that do not."""
    queries: list[Headers] = []

    def noting(raw_query: bytes) -> Headers:
        queries.append(Headers(parse_query(raw_query)))
        return queries[-1]

    found: dict[str, set[str]] = {}
    with asyncio.Runner() as runner, pytest.MonkeyPatch.context() as patch:
        patch.setattr(front, "parse_query", noting)
        for (method, target, sub_resource), route in OPERATIONS.items():
            if route.operation not in MODEL["operations"]:
                continue
            world, example = MemoryWorld(runner), EXAMPLES[method, target.value, sub_resource]
            answer = world.send(wire_of(world, example.spec))
            assert answer.status == example.status, (route.operation, answer)
            read = {name.lower() for name in world.asked}
            read |= {f"?{name}" for name in queries[-1].asked | set(example.spec.query)}
            for name in set(published(route.operation)) - read - CHECKSUMS:
                found.setdefault(name, set()).add(route.operation)
    return found


def test_what_is_published_is_read_or_listed_with_a_reason(unread: dict[str, set[str]]) -> None:
    everywhere = {it.operation for it in OPERATIONS.values() if it.operation in MODEL["operations"]}
    listed: dict[str, set[str]] = {}
    for name, operations in ROW.findall(PAGE):
        whole = {operation for operation in everywhere if name in published(operation)}
        listed[name] = whole if operations == "all" else set(operations.split(", "))
    assert unread == listed


@pytest.mark.parametrize("row", [("PUT", "object", ""), ("PUT", "object", "uploadId")])
def test_every_checksum_that_may_be_promised_is_held_to(row: tuple[str, str, str]) -> None:
    example = EXAMPLES[row]
    with asyncio.Runner() as runner:
        world = MemoryWorld(runner)
        for name in CHECKSUMS:
            spec = replace(example.spec, headers={name: "AAAA"})
            answer = world.send(wire_of(world, spec))
            assert (answer.status, answer.code) == (400, "InvalidRequest"), name
