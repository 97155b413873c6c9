"""Where the matrix of wrong requests happens: two tenants' buckets behind a front, in this process.

The same furniture is put into a real cluster by `furnish`.
"""

import asyncio
import re
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Protocol

from prometheus_client import CollectorRegistry
from tests.support.clocks import FrozenClock
from tests.support.s3_examples import (
    CONTENT,
    EXAMPLES,
    FOREIGN,
    LOCKED,
    PART,
    PLAIN,
    SECRET,
    UNTIL,
    UPLOAD,
)
from tests.support.s3_front import USERS
from tests.support.s3_signer import REGION, Spec, Wire, signed

from exastore.gateway.master_key import MasterKey
from exastore.gateway.s3.front import FrontOptions, S3Front
from exastore.gateway.s3.identity import Credential
from exastore.gateway.s3.message import Request, Response
from exastore.gateway.s3.metrics import S3Metrics
from exastore.gateway.testing.memory_store import MemoryStore

NOW_S = 1_790_000_000.0
HOST = "s3.test"

#: S3's statuses of what is not 400.
STATUS = {
    "AccessDenied": 403,
    "AccessForbidden": 403,
    "BucketAlreadyExists": 409,
    "BucketAlreadyOwnedByYou": 409,
    "InvalidAccessKeyId": 403,
    "InvalidBucketState": 409,
    "InvalidPartNumber": 416,
    "InvalidRange": 416,
    "MissingContentLength": 411,
    "NoSuchBucket": 404,
    "NoSuchKey": 404,
    "NoSuchUpload": 404,
    "NoSuchVersion": 404,
    "NotImplemented": 501,
    "NotModified": 304,
    "PreconditionFailed": 412,
    "RequestTimeTooSkewed": 403,
    "SignatureDoesNotMatch": 403,
}


@dataclass(frozen=True)
class Answer:
    """What came back."""

    status: int
    headers: Mapping[str, str]
    """Lower-case names."""
    body: bytes

    @property
    def code(self) -> str:
        """Of an error; "" when there is no document of one."""
        found = re.search(rb"<Code>(\w+)</Code>", self.body)
        return found[1].decode() if found and b"<Error>" in self.body else ""


class World(Protocol):
    """Something that answers S3 requests, furnished for the matrix."""

    host: str
    keys: Mapping[str, tuple[str, str]]
    names: dict[str, str]
    """What stands for ids that only the world knows."""

    def now_s(self) -> float: ...
    def send(self, wire: Wire) -> Answer: ...


def wire_of(world: World, spec: Spec) -> Wire:
    """A request as it is sent to a world."""
    query, body = dict(spec.query), spec.body
    for token, value in world.names.items():
        query = {name: text.replace(token, value) for name, text in query.items()}
        body = body.replace(token.encode(), value.encode())
    return signed(replace(spec, query=query, body=body), world.host, world.now_s(), world.keys)


def ask(world: World, spec: Spec) -> Answer:
    """Send a request that must succeed."""
    answer = world.send(wire_of(world, spec))
    assert answer.status < 300, (spec, answer)
    return answer


def furnish(world: World) -> None:
    """Make the buckets, objects, upload and documents that the examples speak of."""
    for name in (PLAIN, "matrix-empty"):
        ask(world, Spec("PUT", f"/{name}"))
    ask(world, Spec("PUT", f"/{LOCKED}", headers={"x-amz-bucket-object-lock-enabled": "true"}))
    ask(world, Spec("PUT", f"/{FOREIGN}", access_key="EVE"))
    secret = {"x-amz-meta-note": SECRET, "x-amz-tagging": f"note={SECRET}"}
    for key in ("k", SECRET):
        ask(world, Spec("PUT", f"/{FOREIGN}/{key}", {}, secret, SECRET.encode(), "EVE"))
    ask(world, Spec("PUT", f"/{PLAIN}/k", body=CONTENT))
    lock = {"x-amz-object-lock-mode": "GOVERNANCE", "x-amz-object-lock-retain-until-date": UNTIL}
    ask(world, Spec("PUT", f"/{LOCKED}/k", {}, lock, CONTENT))
    for path, access_key in ((f"/{PLAIN}/up", "ANN"), (f"/{FOREIGN}/up", "EVE")):
        begun = ask(world, Spec("POST", path, {"uploads": ""}, access_key=access_key))
        (upload_id,) = re.findall(rb"<UploadId>([^<]+)<", begun.body)
        query = {"uploadId": upload_id.decode(), "partNumber": "1"}
        part = ask(world, Spec("PUT", path, query, {}, b"part one", access_key))
        if access_key == "ANN":
            world.names[UPLOAD] = upload_id.decode()
            world.names[PART] = part.headers["etag"].strip('"')
        else:
            world.names["FOREIGN-UPLOAD"] = upload_id.decode()
    for (method, target, sub_resource), example in EXAMPLES.items():
        if (
            method == "PUT"
            and target == "bucket"
            and sub_resource
            and example.spec.path[1:] == PLAIN
        ):
            ask(world, example.spec)


class _Stream:
    """A request's body, in pieces."""

    def __init__(self, body: bytes) -> None:
        self._pieces = [body[at : at + 4096] for at in range(0, len(body), 4096)]
        self.started = False

    async def read(self) -> bytes | None:
        self.started = True
        return self._pieces.pop(0) if self._pieces else None


class _Keys:
    """The users of the tests."""

    def cached(self, access_key: str) -> Credential | None:
        return USERS.get(access_key)

    async def find(self, access_key: str) -> Credential | None:
        return USERS.get(access_key)


class _Store(MemoryStore):
    """One that tells all that it holds."""

    @property
    def state(self) -> str:
        return repr(self._buckets)


class Headers(dict[str, str]):
    """The headers of a request, which note what an operation asks them for."""

    asked: set[str]

    def __init__(self, headers: Mapping[str, str]) -> None:
        super().__init__(headers)
        self.asked = set()

    def __contains__(self, name: object) -> bool:
        self.asked.add(str(name))
        return super().__contains__(name)

    def __getitem__(self, name: str) -> str:
        self.asked.add(name)
        return super().__getitem__(name)

    def get(self, name: str, default: str | None = None) -> str | None:  # type: ignore[override]
        self.asked.add(name)
        return super().get(name, default)


@dataclass
class MemoryWorld:
    """A front over a dictionary, without a server."""

    runner: asyncio.Runner
    host: str = HOST
    keys: Mapping[str, tuple[str, str]] = field(
        default_factory=lambda: {name: (name, it.secret_key) for name, it in USERS.items()}
    )
    names: dict[str, str] = field(default_factory=dict[str, str])
    asked: set[str] = field(default_factory=set[str])
    """Names of the headers that the last request was asked for."""
    read_body: bool = False
    """Whether the last request's body was read."""

    def __post_init__(self) -> None:
        self._store = _Store(lambda: NOW_S)
        self._front = S3Front(
            self._store,
            keys=_Keys(),
            clock=FrozenClock(NOW_S),
            metrics=S3Metrics(CollectorRegistry()),
            options=FrontOptions(region=REGION, check_region=True),
            master_key=MasterKey({b"k" * 8: b"k" * 32}),
        )
        furnish(self)

    def now_s(self) -> float:
        return NOW_S

    @property
    def state(self) -> str:
        """All that is stored."""
        return self._store.state

    def send(self, wire: Wire) -> Answer:
        return self.runner.run(self._send(wire))

    async def _send(self, wire: Wire) -> Answer:
        headers, stream = Headers(wire.headers), _Stream(wire.body)
        request = Request(
            wire.method, wire.path.encode("latin-1"), wire.query.encode(), headers, stream
        )
        response = await self._front.handle(request)
        self.asked, self.read_body = headers.asked, stream.started
        body = await _body_of(response)
        if response.on_sent is not None:
            response.on_sent(len(body))
        shown = {name.lower(): text for name, text in response.headers.items()}
        return Answer(response.status, shown, body)


async def _body_of(response: Response) -> bytes:
    content = response.content
    if isinstance(content, bytes):
        return content
    assert isinstance(content, AsyncIterator)
    return b"".join([bytes(piece) async for piece in content])
