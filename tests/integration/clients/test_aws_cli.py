"""The AWS command line: version 1 of PyPI and version 2 of Debian."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.integration.clients.conftest import Bucket, files_under
from tests.support.programs import program

pytestmark = pytest.mark.integration

Aws = Callable[..., str]


@pytest.fixture(params=["v1", "v2"])
def aws(request: pytest.FixtureRequest, bucket: Bucket) -> Aws:
    """Runs `aws` on the cluster."""
    own = Path(sys.executable).parent / "aws"
    binary = str(own) if request.param == "v1" else program("/usr/bin/aws")

    def run(*arguments: str | Path) -> str:
        return bucket.run(binary, *arguments, "--endpoint-url", bucket.endpoint)

    assert f"aws-cli/{request.param[1]}" in run("--version")
    return run


def test_aws_cli_copies_syncs_moves_and_removes(
    aws: Aws, bucket: Bucket, tree: dict[str, bytes], tmp_path: Path
) -> None:
    url = f"s3://{bucket.name}/tree"
    aws("s3", "sync", tmp_path / "tree", url, "--only-show-errors")
    assert bucket.content == {f"tree/{name}": data for name, data in tree.items()}
    assert aws("s3", "sync", tmp_path / "tree", url) == "", "all is there already"
    listed = aws("s3", "ls", "--recursive", url)
    assert f"{len(tree['large.bin'])} tree/large.bin" in listed
    aws("s3", "sync", url, tmp_path / "back", "--only-show-errors")
    assert files_under(tmp_path / "back") == tree
    aws("s3", "mv", f"{url}/small.txt", f"{url}/moved.txt")
    aws("s3", "rm", f"{url}/empty")
    wanted = sorted({*tree, "moved.txt"} - {"empty", "small.txt"}, key=str.encode)
    assert bucket.keys == [f"tree/{name}" for name in wanted]


def test_aws_s3api_shows_metadata_checksums_and_ranges(
    aws: Aws, bucket: Bucket, tmp_path: Path
) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(b"0123456789")
    name = ("--bucket", bucket.name, "--key", "a key")
    aws("s3api", "put-object", *name, "--body", source, "--metadata", "color=blue")
    head = json.loads(aws("s3api", "head-object", *name))
    assert (head["ContentLength"], head["Metadata"]) == (10, {"color": "blue"})
    aws("s3api", "get-object", *name, "--range", "bytes=2-4", target)
    assert target.read_bytes() == b"234"
    wanted = ("--object-attributes", "ETag", "ObjectSize")
    attributes = json.loads(aws("s3api", "get-object-attributes", *name, *wanted))
    assert attributes["ObjectSize"] == 10
    assert f'"{attributes["ETag"]}"' == head["ETag"]
