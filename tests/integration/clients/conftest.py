"""A bucket of its own for the test of each client, and a second opinion on what is in it.

The clients are the ones that people use, unmodified, against the cluster that all integration tests
share. What they write is read with boto3, and what they read was written with it.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from tests.integration.conftest import ISOLATED, LiveCluster, run_command

MIB = 2**20

#: Loopback is reached directly, without certificates, whatever the environment says.
DIRECT = {"NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}


def some_bytes(size_bytes: int, seed: int = 0) -> bytes:
    """Bytes without a pattern, the same for the same seed."""
    return hashlib.shake_128(seed.to_bytes(8, "little")).digest(size_bytes)


@dataclass(frozen=True)
class Bucket:
    """A bucket of the cluster."""

    name: str
    cluster: LiveCluster
    s3: Any

    @property
    def endpoint(self) -> str:
        """The URL of the gateway."""
        return self.cluster.info["s3"]["endpoint"]

    @property
    def host(self) -> str:
        """host:port of the gateway."""
        return self.endpoint.removeprefix("http://")

    @property
    def access_key(self) -> str:
        return self.cluster.info["s3"]["access_key"]

    @property
    def secret_key(self) -> str:
        return self.cluster.info["s3"]["secret_key"]

    @property
    def keys(self) -> list[str]:
        """Every key, in the order of the listing."""
        pages = self.s3.get_paginator("list_objects_v2").paginate(Bucket=self.name)
        return [item["Key"] for page in pages for item in page.get("Contents", ())]

    def put(self, key: str, data: bytes) -> None:
        self.s3.put_object(Bucket=self.name, Key=key, Body=data)

    def get(self, key: str) -> bytes:
        body: bytes = self.s3.get_object(Bucket=self.name, Key=key)["Body"].read()
        return body

    @property
    def content(self) -> dict[str, bytes]:
        """Everything in the bucket."""
        return {key: self.get(key) for key in self.keys}

    def run(self, *command: str | Path, env: Mapping[str, str] | None = None) -> str:
        """Run a program with the keys in its environment; returns what it prints."""
        done = run_command(*command, env={**self.cluster.aws_env(), **(env or {})})
        assert done.code == 0, f"{command}: {done.out}{done.err}"
        return done.out


@pytest.fixture
def bucket(cluster: LiveCluster, request: pytest.FixtureRequest) -> Bucket:
    """A bucket that is named after the test."""
    name = request.node.originalname.removeprefix("test_").replace("_", "-")[:40].strip("-")
    suffix = hashlib.sha256(request.node.nodeid.encode()).hexdigest()[:8]
    client = cluster.client()
    client.create_bucket(Bucket=f"{name}-{suffix}")
    return Bucket(f"{name}-{suffix}", cluster, client)


@pytest.fixture
def tree(tmp_path: Path) -> dict[str, bytes]:
    """Files under tmp_path/tree: nested, empty, with odd names, one with several parts."""
    files = {
        "empty": b"",
        "small.txt": b"a line\n",
        "sub/folder/medium.bin": some_bytes(300_000, 1),
        "sub/räksmörgås & co.txt": "smörgås".encode(),
        "sub/with space+plus%percent.txt": some_bytes(5_000, 2),
        "large.bin": some_bytes(17 * MIB + 5, 3),
    }
    for name, data in files.items():
        path = tmp_path / "tree" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return files


def files_under(folder: Path) -> dict[str, bytes]:
    """The content of every file, by its path below the folder."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.fixture(autouse=True)
def _reach_loopback_directly(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {**ISOLATED, **DIRECT}.items():
        monkeypatch.setenv(name, value)
    # Go's SDK takes no bundle of rclone, and there is nothing to certify.
    monkeypatch.delenv("AWS_CA_BUNDLE", raising=False)
