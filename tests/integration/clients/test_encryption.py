"""Encryption on a real cluster: AWS CLI and boto3 with keys of the gateway and of the client."""

import sys
from pathlib import Path

import pytest
from boto3.s3.transfer import TransferConfig
from tests.integration.clients.conftest import MIB, Bucket, some_bytes

pytestmark = pytest.mark.integration

KEY = "0123456789abcdef0123456789abcdef"


def test_objects_are_sealed_on_the_devices_and_clear_to_clients(
    bucket: Bucket, tmp_path: Path
) -> None:
    marker = b"a secret that must not lie on any device "
    data = marker * (11 * MIB // len(marker)) + b"end"
    (tmp_path / "file").write_bytes(data)
    parts = TransferConfig(multipart_threshold=5 * MIB, multipart_chunksize=5 * MIB)
    for key, options in (
        ("ours", {"ServerSideEncryption": "AES256"}),
        ("theirs", {"SSECustomerAlgorithm": "AES256", "SSECustomerKey": KEY}),
    ):
        bucket.s3.upload_file(
            str(tmp_path / "file"), bucket.name, key, Config=parts, ExtraArgs=options
        )
        with_key = {} if key == "ours" else options
        bucket.s3.download_file(
            bucket.name, key, str(tmp_path / "back"), Config=parts, ExtraArgs=with_key or None
        )
        assert (tmp_path / "back").read_bytes() == data
        bucket.s3.put_object(Bucket=bucket.name, Key=f"{key}/small", Body=marker, **options)
        got = bucket.s3.get_object(Bucket=bucket.name, Key=f"{key}/small", **with_key)
        assert got["Body"].read() == marker
    sizes = {
        item["Key"]: item["Size"]
        for item in bucket.s3.list_objects_v2(Bucket=bucket.name)["Contents"]
    }
    small = len(marker)
    assert sizes == {
        "ours": len(data),
        "ours/small": small,
        "theirs": len(data),
        "theirs/small": small,
    }
    held = [path for path in bucket.cluster.directory.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in held) > 2 * len(data)
    assert not any(marker in path.read_bytes() for path in held)


def test_the_aws_cli_takes_keys(bucket: Bucket, tmp_path: Path) -> None:
    source, back = tmp_path / "source", tmp_path / "back"
    source.write_bytes(some_bytes(9 * MIB))

    def aws(*arguments: str | Path) -> str:
        binary = Path(sys.executable).parent / "aws"
        return bucket.run(binary, *arguments, "--endpoint-url", bucket.endpoint)

    url, quiet = f"s3://{bucket.name}/sealed", "--only-show-errors"
    aws("s3", "cp", source, url, "--sse-c", "AES256", "--sse-c-key", KEY, quiet)
    aws("s3", "cp", url, back, "--sse-c", "AES256", "--sse-c-key", KEY, quiet)
    assert back.read_bytes() == source.read_bytes()


def test_a_new_master_key_wraps_anew_without_touching_data(bucket: Bucket) -> None:
    data = some_bytes(200_000)
    options = {"Bucket": bucket.name, "ServerSideEncryption": "AES256"}
    for key in ("before-1", "before-2"):
        bucket.s3.put_object(Key=key, Body=data, **options)
    before = bucket.s3.head_object(Bucket=bucket.name, Key="before-1")
    assert bucket.cluster.run("key", "rotate", "--json").json["key_count"] >= 2
    done = bucket.cluster.run("key", "rewrap", "--json").json
    assert done["rewrapped"] == done["sealed"] >= 2
    assert bucket.content == {"before-1": data, "before-2": data}, (
        "running gateways read the new key"
    )
    after = bucket.s3.head_object(Bucket=bucket.name, Key="before-1")
    assert (after["ETag"], after["LastModified"]) == (before["ETag"], before["LastModified"])
    again = bucket.cluster.run("key", "rewrap", "--json").json
    assert (again["rewrapped"], again["sealed"]) == (0, done["sealed"])
