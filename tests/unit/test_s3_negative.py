"""Each operation of the routing table with each kind of wrong request.

Every refusal has S3's code and status, changes nothing, tells nothing of another tenant, and leaves
a front that serves the next request.
"""

import asyncio
import re
from collections.abc import Iterator

import pytest
from tests.support import s3_wrong_documents, s3_wrong_signatures, s3_wrongs
from tests.support.s3_case import Case, Cases
from tests.support.s3_examples import CONTENT, EXAMPLES, PLAIN, SECRET, Example
from tests.support.s3_signer import Spec
from tests.support.s3_world import NOW_S, STATUS, Answer, MemoryWorld, wire_of

from exastore.gateway.s3.routing import OPERATIONS

#: Headers of which no value is wrong, or that have tests of their own.
HARMLESS = frozenset(
    {
        *("origin", "expect", "referer", "user-agent", "cache-control", "content-disposition"),
        *("content-encoding", "content-language", "content-type", "expires", "date"),
        *("x-amz-security-token", "x-amz-checksum-mode", "x-amz-bypass-governance-retention"),
    }
)

Row = tuple[str, str, str]
ROWS = sorted(EXAMPLES)
GET = Spec("GET", f"/{PLAIN}/k")


def with_time(example: Example) -> Cases:
    yield from s3_wrong_documents.forms(example, NOW_S)


KINDS = {
    "signatures": s3_wrong_signatures.signatures,
    "presigned": s3_wrong_signatures.presigned,
    "owners": s3_wrongs.owners,
    "versions": s3_wrongs.versions,
    "integrity": s3_wrongs.integrity,
    "attributes": s3_wrongs.attributes,
    "customer keys": s3_wrongs.customer_keys,
    "conditions": s3_wrongs.conditions,
    "others": s3_wrongs.others,
    "ranges": s3_wrongs.ranges,
    "lists": s3_wrongs.lists,
    "copies": s3_wrongs.copies,
    "documents": s3_wrong_documents.documents,
    "forms": with_time,
    "preflights": s3_wrong_documents.preflights,
}


def name_of(row: Row) -> str:
    method, target, sub_resource = row
    return f"{method}-{target}-{sub_resource}".rstrip("-")


def right_spec(example: Example) -> Spec:
    """The example as it is taken."""
    if "form" in example.traits:
        return s3_wrong_documents.right_form(example, NOW_S)
    if "preflight" in example.traits:
        return s3_wrong_documents.right_preflight(example)
    return example.spec


@pytest.fixture(scope="module")
def runner() -> Iterator[asyncio.Runner]:
    with asyncio.Runner() as runner:
        yield runner


@pytest.fixture(scope="module")
def worlds(runner: asyncio.Runner) -> list[MemoryWorld]:
    """The world in use; what changed one replaces it."""
    return [MemoryWorld(runner)]


def test_every_row_of_the_routing_table_has_an_example() -> None:
    routed = {(method, target.value, sub) for method, target, sub in OPERATIONS}
    assert routed == set(EXAMPLES)


@pytest.mark.parametrize("row", ROWS, ids=name_of)
def test_the_example_itself_is_taken(runner: asyncio.Runner, row: Row) -> None:
    example, world = EXAMPLES[row], MemoryWorld(runner)
    answer = world.send(wire_of(world, right_spec(example)))
    assert answer.status == example.status, answer
    takes_body = bool(example.document) or bool(example.traits & {"body", "form"})
    assert world.read_body == takes_body, "its traits do not say that it takes a body"


@pytest.mark.parametrize("row", ROWS, ids=name_of)
@pytest.mark.parametrize("kind", KINDS)
def test_every_wrong_request_is_refused_as_by_s3(
    worlds: list[MemoryWorld], runner: asyncio.Runner, row: Row, kind: str
) -> None:
    wrong: list[str] = []
    count = 0
    for case in KINDS[kind](EXAMPLES[row]):
        count += 1
        wrong += problems_of(case, EXAMPLES[row], worlds, runner)
    if not count:
        return
    assert not wrong, "\n".join(wrong)


def problems_of(
    case: Case, example: Example, worlds: list[MemoryWorld], runner: asyncio.Runner
) -> list[str]:
    """What is wrong with the answer to a case."""
    world = worlds[0]
    wire, before = wire_of(world, case.spec), world.state
    if case.tamper is not None:
        wire = case.tamper(wire)
    answer = world.send(wire)
    problems = [f"{case.name}: {it}" for it in refusal_problems(case, example, answer)]
    is_refused = bool(case.code) or case.is_harmless
    if is_refused and world.state != before:
        problems.append(f"{case.name}: something was changed")
    if SECRET.encode() in leaked(answer):
        problems.append(f"{case.name}: tells of another tenant: {answer.body[:200]!r}")
    alive = world.send(wire_of(world, GET))
    if not is_refused or world.state != before:
        worlds[0] = MemoryWorld(runner)
    elif (alive.status, alive.body) != (200, CONTENT):
        problems.append(f"{case.name}: afterwards {alive}")
    return problems


def refusal_problems(case: Case, example: Example, answer: Answer) -> Iterator[str]:
    status = STATUS.get(case.code, 400) if case.code else example.status
    if answer.status != status:
        yield f"{case.code} is {status}, not {answer.status} {answer.code}"
    has_document = case.spec.method != "HEAD" and status not in (304, 204)
    if case.code and has_document and answer.code != case.code:
        yield f"{case.code} is {answer.code}"
    if "x-amz-request-id" not in answer.headers:
        yield "no request id"
    if not case.code or not has_document:
        return
    for element in ("Message", "Resource", "RequestId"):
        if not re.search(f"<{element}>[^<]".encode(), answer.body):
            yield f"no {element}"


def leaked(answer: Answer) -> bytes:
    """What an answer tells, but for what the request itself named."""
    shown = re.sub(rb"<Resource>[^<]*</Resource>|<Key>[^<]*</Key>", b"", answer.body)
    return shown + repr(dict(answer.headers)).encode()


def test_every_header_that_is_asked_for_has_wrong_values(runner: asyncio.Runner) -> None:
    asked, tried = set[str](), set(HARMLESS)
    world = MemoryWorld(runner)
    for example in EXAMPLES.values():
        for name in KINDS.keys() - {"signatures", "presigned", "documents"}:
            for case in KINDS[name](example):
                if not case.code or case.tamper is not None:
                    continue
                wire = wire_of(world, case.spec)
                world.send(wire)
                asked |= world.asked
                right = example.spec.headers
                tried |= {name for name, text in wire.headers.items() if text != right.get(name)}
    assert not asked - tried, sorted(asked - tried)


def test_the_matrix_is_as_large_as_is_said() -> None:
    counts = [len(list(kind(example))) for kind in KINDS.values() for example in EXAMPLES.values()]
    assert sum(counts) > 5_000
