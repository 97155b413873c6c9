"""The real front over a dictionary, with users of two tenants, for clients that block."""

import hashlib
import http.client
import json
import os
import time
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import boto3
import pytest
from botocore import UNSIGNED
from botocore.config import Config
from botocore.exceptions import ClientError

from exastore.deploy.clock import SystemClock
from exastore.gateway.config import GatewayConfig
from exastore.gateway.s3.identity import Credential, Kind, Principal
from exastore.gateway.testing.memory_store import MemoryStore
from exastore.gateway.testing.served import ServedStore

ROOT_KEY, ROOT_SECRET = "root", "root-secret"
USERS = {
    "ANN": Credential("ann-secret", Principal(Kind.USER, "acme", "ann")),
    "BOB": Credential("bob-secret", Principal(Kind.USER, "acme", "bob")),
    "EVE": Credential("eve-secret", Principal(Kind.USER, "evil", "eve")),
}
ORIGIN = "https://page.example"


@dataclass
class Front:
    """The front over a dictionary, and what it told of."""

    address: str = ""
    traffic: list[tuple[str, str, int, int]] = field(default_factory=list)
    acts: list[tuple[str, str, str]] = field(default_factory=list)
    clients: dict[str, Any] = field(default_factory=dict)

    def count(self, tenant: str, kind: str, received_bytes: int, sent_bytes: int) -> None:
        self.traffic.append((tenant, kind, received_bytes, sent_bytes))

    async def record(
        self, actor: str, action: str, target: str, details: Mapping[str, str]
    ) -> None:
        self.acts.append((actor, action, target))

    def client(self, name: str) -> Any:
        """A client of a user, of the administrator ("root"), or of nobody ("")."""
        if name not in self.clients:
            secret = ROOT_SECRET if name == ROOT_KEY else ""
            if name in USERS:
                secret = USERS[name].secret_key
            with pytest.MonkeyPatch.context() as patch:
                for key in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
                    patch.setenv(key, os.devnull)
                patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
                self.clients[name] = boto3.client(
                    "s3",
                    endpoint_url=f"http://{self.address}",
                    aws_access_key_id=name or "x",
                    aws_secret_access_key=secret or "x",
                    region_name="us-east-1",
                    config=Config(
                        proxies={},
                        retries={"max_attempts": 1},
                        signature_version="s3v4" if name else UNSIGNED,
                        s3={"addressing_style": "path"},
                    ),
                )
        return self.clients[name]

    def request(
        self,
        method: str,
        target: str,
        *,
        headers: Mapping[str, str] | None = None,
        body: bytes | None = None,
    ) -> tuple[int, dict[str, str], bytes]:
        """A request as a browser sends it."""
        connection = http.client.HTTPConnection(self.address, timeout=10)
        try:
            connection.request(method, target, body, dict(headers or {}))
            response = connection.getresponse()
            found = {name.lower(): value for name, value in response.getheaders()}
            return response.status, found, response.read()
        finally:
            connection.close()


@contextmanager
def serving_front() -> Generator[Front]:
    """A front that serves while the block runs."""
    made = Front()

    async def look_up(access_key: str) -> Credential | None:
        return USERS.get(access_key)

    config = GatewayConfig(
        access_key=ROOT_KEY,
        secret_key=ROOT_SECRET,
        domain="s3.test",
        website_domain="web.test",
    )
    with ServedStore(
        lambda: MemoryStore(time.time),
        config,
        clock=SystemClock(),
        look_up=look_up,
        count_traffic=made.count,
        record_act=made.record,
    ) as served:
        made.address = served.address
        yield made
        for client in made.clients.values():
            client.close()


def new_bucket(front: Front, seed: str) -> str:
    """A bucket of the tenant acme, with one object."""
    name = "b" + hashlib.sha256(seed.encode()).hexdigest()[:16]
    ann = front.client("ANN")
    ann.create_bucket(Bucket=name)
    ann.put_object(Bucket=name, Key="k", Body=b"hello", ContentType="text/plain")
    return name


def code_of(call: Any, **arguments: Any) -> str:
    """The code of the error that a call ends with."""
    with pytest.raises(ClientError) as caught:
        call(**arguments)
    return str(caught.value.response["Error"]["Code"])


def put_policy(front: Front, bucket: str, *statements: Mapping[str, Any]) -> None:
    """Statements that let everybody read every object, each with changes."""
    base = {
        "Effect": "Allow",
        "Principal": "*",
        "Action": "s3:GetObject",
        "Resource": f"arn:aws:s3:::{bucket}/*",
    }
    document = {"Version": "2012-10-17", "Statement": [{**base, **one} for one in statements]}
    front.client("ANN").put_bucket_policy(Bucket=bucket, Policy=json.dumps(document))
