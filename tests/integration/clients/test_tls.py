"""Clients over TLS, with buckets as host names."""

import io
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import boto3
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import s3fs
from boto3.s3.transfer import TransferConfig
from botocore.config import Config
from pyarrow import fs
from tests.integration.clients.conftest import MIB, Bucket, files_under, some_bytes
from tests.integration.conftest import LiveCluster
from tests.support.programs import program
from tests.support.tls_gateway import DOMAIN, ENDPOINT, TlsGateway, tls_gateway_of

pytestmark = pytest.mark.integration

CLI_CONFIG = """\
[default]
s3 =
    addressing_style = virtual
    multipart_threshold = 8MB
"""


@pytest.fixture(scope="module")
def serving(
    cluster: LiveCluster, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[TlsGateway, set[str]]]:
    with tls_gateway_of(cluster.directory, tmp_path_factory.mktemp("tls")) as made:
        yield made


@pytest.fixture
def tls(serving: tuple[TlsGateway, set[str]], bucket: Bucket) -> Iterator[TlsGateway]:
    """The gateway; afterwards, the bucket must have been asked for by its host name."""
    yield serving[0]
    assert f"{bucket.name}.{DOMAIN}" in serving[1]


def test_boto3_sends_trailers_and_parts_to_the_host_of_a_bucket(
    bucket: Bucket, tls: TlsGateway
) -> None:
    client: Any = boto3.client(
        "s3",
        endpoint_url=ENDPOINT,
        verify=str(tls.authority),
        aws_access_key_id=bucket.access_key,
        aws_secret_access_key=bucket.secret_key,
        region_name="us-east-1",
        config=Config(
            s3={"addressing_style": "virtual"},
            proxies={"https": tls.proxy},
            signature_version="s3v4",
        ),
    )
    data = some_bytes(12 * MIB + 7)
    with closing(client):
        client.put_object(Bucket=bucket.name, Key="a b/+%", Body=b"small")
        config = TransferConfig(multipart_threshold=5 * MIB, multipart_chunksize=5 * MIB)
        client.upload_fileobj(io.BytesIO(data), bucket.name, "big", Config=config)
        pages = client.get_paginator("list_objects_v2").paginate(Bucket=bucket.name)
        assert [it["Key"] for page in pages for it in page["Contents"]] == ["a b/+%", "big"]
        url = client.generate_presigned_url(
            "get_object", Params={"Bucket": bucket.name, "Key": "big"}
        )
        assert url.startswith(f"https://{bucket.name}.{DOMAIN}/big?")
        assert client.get_object(Bucket=bucket.name, Key="big")["Body"].read() == data
    assert bucket.content == {"a b/+%": b"small", "big": data}


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_the_aws_cli_syncs(
    bucket: Bucket, tls: TlsGateway, tree: dict[str, bytes], tmp_path: Path, version: str
) -> None:
    own = Path(sys.executable).parent / "aws"
    command = str(own) if version == "v1" else program("/usr/bin/aws")
    config = tmp_path / "config"
    config.write_text(CLI_CONFIG)
    env = {**tls.environment, "AWS_CONFIG_FILE": str(config)}
    base = (command, "--endpoint-url", ENDPOINT, "s3", "sync", "--only-show-errors")
    bucket.run(*base, tmp_path / "tree", f"s3://{bucket.name}/t", env=env)
    assert bucket.content == {f"t/{name}": data for name, data in tree.items()}
    bucket.run(*base, f"s3://{bucket.name}/t", tmp_path / "back", env=env)
    assert files_under(tmp_path / "back") == tree


def test_rclone_copies_and_checks(
    bucket: Bucket, tls: TlsGateway, tree: dict[str, bytes], tmp_path: Path
) -> None:
    remote = ":s3,provider=AWS,env_auth=true,region=us-east-1,force_path_style=false"
    remote += f',endpoint="{ENDPOINT}":{bucket.name}'
    env = {name: text for name, text in tls.environment.items() if name != "AWS_CA_BUNDLE"}
    options = ("--config", "/dev/null", "--ca-cert", tls.authority)
    rclone = program("rclone")
    bucket.run(rclone, "copy", *options, tmp_path / "tree", remote, env=env)
    assert bucket.content == tree
    bucket.run(rclone, "check", *options, tmp_path / "tree", remote, env=env)


def test_pyarrow_reads_and_writes_parquet(bucket: Bucket, tls: TlsGateway) -> None:
    files = fs.S3FileSystem(
        access_key=bucket.access_key,
        secret_key=bucket.secret_key,
        region="us-east-1",
        scheme="https",
        endpoint_override=DOMAIN,
        proxy_options=tls.proxy,
        force_virtual_addressing=True,
        tls_ca_file_path=str(tls.authority),
    )
    table = pa.table({"number": range(100_000), "square": [it * it for it in range(100_000)]})
    pq.write_table(table, f"{bucket.name}/t.parquet", filesystem=files)
    back = pq.read_table(
        f"{bucket.name}/t.parquet", filesystem=files, filters=[("number", ">", 99_990)]
    )
    assert back["number"].to_pylist() == list(range(99_991, 100_000))


def test_s3fs_is_a_file_system(
    bucket: Bucket, tls: TlsGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = s3fs.S3FileSystem(
        key=bucket.access_key,
        secret=bucket.secret_key,
        endpoint_url=ENDPOINT,
        client_kwargs={"region_name": "us-east-1", "verify": str(tls.authority)},
        config_kwargs={
            "s3": {"addressing_style": "virtual"},
            "proxies": {"https": tls.proxy},
        },
        skip_instance_cache=True,
    )
    data = some_bytes(6 * MIB, 4)
    files.pipe_file(f"{bucket.name}/folder/file", data)
    assert files.ls(f"{bucket.name}/folder") == [f"{bucket.name}/folder/file"]
    assert files.cat_file(f"{bucket.name}/folder/file", start=10, end=20) == data[10:20]
    assert bucket.content == {"folder/file": data}
