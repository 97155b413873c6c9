"""The matrix of wrong requests against a real cluster: every operation, every kind, over HTTP."""

import http.client
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import pytest
from tests.integration.conftest import LiveCluster
from tests.support import s3_wrong_documents, s3_wrong_signatures, s3_wrongs
from tests.support.s3_case import Case
from tests.support.s3_examples import CONTENT, EXAMPLES, PLAIN, SECRET, Example
from tests.support.s3_signer import Spec, Wire
from tests.support.s3_world import STATUS, Answer, ask, furnish, wire_of

pytestmark = pytest.mark.integration

KINDS = (
    *(s3_wrong_signatures.signatures, s3_wrong_signatures.presigned, s3_wrongs.owners),
    *(s3_wrongs.versions, s3_wrongs.integrity, s3_wrongs.attributes, s3_wrongs.customer_keys),
    *(s3_wrongs.conditions, s3_wrongs.others, s3_wrongs.ranges, s3_wrongs.lists),
    *(s3_wrongs.copies, s3_wrong_documents.documents),
)


@dataclass
class ClusterWorld:
    """A gateway of a real cluster, with users of two tenants."""

    host: str
    keys: Mapping[str, tuple[str, str]]
    names: dict[str, str] = field(default_factory=dict[str, str])

    def __post_init__(self) -> None:
        self._connection = http.client.HTTPConnection(self.host, timeout=30)
        furnish(self)

    def now_s(self) -> float:
        return time.time()

    def send(self, wire: Wire) -> Answer:
        target = f"{wire.path}?{wire.query}" if wire.query else wire.path
        try:
            return self._send(wire, target)
        except (http.client.RemoteDisconnected, BrokenPipeError, ConnectionResetError):
            # The server closed a connection whose body it did not want.
            self._connection.close()
            return self._send(wire, target)

    def _send(self, wire: Wire, target: str) -> Answer:
        self._connection.request(wire.method, target, wire.body, dict(wire.headers))
        response = self._connection.getresponse()
        headers = {name.lower(): value for name, value in response.getheaders()}
        return Answer(response.status, headers, response.read())

    def listed(self) -> bytes:
        """What is in the buckets, as their owners see it."""
        answers = [
            ask(self, Spec("GET", path, query, access_key=who))
            for who in ("ANN", "EVE")
            for path, query in (
                ("/", {}),
                *((f"/{PLAIN}", {it: ""}) for it in ("versions", "uploads") if who == "ANN"),
            )
        ]
        return b"\n".join(answer.body for answer in answers)

    def close(self) -> None:
        self._connection.close()


@pytest.fixture(scope="module")
def world(cluster: LiveCluster) -> Iterator[ClusterWorld]:
    keys: dict[str, tuple[str, str]] = {}
    for alias, tenant in (("ANN", "acme"), ("EVE", "evil")):
        made = cluster.run(
            "user", "create", f"matrix-{alias.lower()}", "--tenant", tenant, "--json"
        )
        assert made.code == 0, made.text
        keys[alias] = made.json["access_key"], made.json["secret_key"]
    made_world = ClusterWorld(cluster.info["s3"]["endpoint"].removeprefix("http://"), keys)
    yield made_world
    made_world.close()


def cases_of(example: Example) -> Iterator[Case]:
    """Every refusal that a real client can ask for."""
    for kind in KINDS:
        yield from (case for case in kind(example) if case.code and not case.is_local)


def test_a_cluster_refuses_all_wrong_requests(world: ClusterWorld) -> None:
    before, wrong, count = world.listed(), list[str](), 0
    for name, example in sorted(EXAMPLES.items()):
        for case in cases_of(example):
            wire = wire_of(world, case.spec)
            answer = world.send(wire if case.tamper is None else case.tamper(wire))
            count += 1
            status = STATUS.get(case.code, 400)
            is_told = wire.method == "HEAD" or status == 304 or answer.code == case.code
            if answer.status != status or not is_told:
                wrong.append(f"{name} {case.name}: {answer.status} {answer.code}, not {case.code}")
            if SECRET.encode() in answer.body.replace(wire.path.encode(), b""):
                wrong.append(f"{name} {case.name}: tells of another tenant")
    assert not wrong, "\n".join(wrong)
    assert count > 6_000
    assert world.listed() == before, "something was changed"
    assert ask(world, Spec("GET", f"/{PLAIN}/k")).body == CONTENT
