"""Clients over TLS, with buckets as host names."""

import io
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import boto3
import duckdb
import obstore
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import s3fs
import urllib3
from boto3.s3.transfer import TransferConfig
from botocore.config import Config
from deltalake import DeltaTable, write_deltalake
from minio import Minio
from obstore.store import S3Store
from pyarrow import fs
from tests.integration.clients.conftest import MIB, Bucket, files_under, some_bytes
from tests.integration.clients.tables import some_table
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


# ---- clients that name buckets by path, or as they are told ----


@pytest.fixture
def native(serving: tuple[TlsGateway, set[str]], monkeypatch: pytest.MonkeyPatch) -> TlsGateway:
    """The gateway, for libraries within this process that find its authority by the environment."""
    monkeypatch.setenv("SSL_CERT_FILE", str(serving[0].authority))
    return serving[0]


def rust_options(bucket: Bucket, tls: TlsGateway) -> dict[str, str]:
    """Of the object_store crate, as polars and Delta Lake take them."""
    return {
        "aws_access_key_id": bucket.access_key,
        "aws_secret_access_key": bucket.secret_key,
        "aws_region": "us-east-1",
        "aws_endpoint_url": ENDPOINT,
        "proxy_url": tls.proxy,
    }


def test_s5cmd_copies_and_lists(
    bucket: Bucket, native: TlsGateway, tree: dict[str, bytes], tmp_path: Path
) -> None:
    s5cmd = (Path(sys.executable).parent / "s5cmd", "--endpoint-url", ENDPOINT)
    env = native.environment
    bucket.run(*s5cmd, "cp", f"{tmp_path}/tree/", f"s3://{bucket.name}/t/", env=env)
    assert bucket.content == {f"t/{name}": data for name, data in tree.items()}
    bucket.run(*s5cmd, "cp", f"s3://{bucket.name}/t/*", f"{tmp_path}/back/", env=env)
    assert files_under(tmp_path / "back") == tree


def test_restic_backs_up_and_restores(
    bucket: Bucket, tls: TlsGateway, tree: dict[str, bytes], tmp_path: Path
) -> None:
    repository = f"s3:{ENDPOINT}/{bucket.name}/backup"
    restic = (program("restic"), "--cacert", tls.authority, "-o", "s3.bucket-lookup=dns")
    env = {**tls.environment, "RESTIC_PASSWORD": "secret", "RESTIC_REPOSITORY": repository}
    env["RESTIC_CACHE_DIR"] = str(tmp_path / "cache")
    bucket.run(*restic, "init", env=env)
    bucket.run(*restic, "backup", tmp_path / "tree", env=env)
    bucket.run(*restic, "check", "--read-data", env=env)
    bucket.run(*restic, "restore", "latest", "--target", tmp_path / "back", env=env)
    assert files_under(tmp_path / "back" / (tmp_path / "tree").relative_to("/")) == tree


def test_s3cmd_puts_lists_and_gets(bucket: Bucket, tls: TlsGateway, tmp_path: Path) -> None:
    host, _, port = tls.proxy.removeprefix("http://").partition(":")
    config = tmp_path / "s3cfg"
    lines = {
        "access_key": bucket.access_key,
        "secret_key": bucket.secret_key,
        "host_base": DOMAIN,
        "host_bucket": f"%(bucket)s.{DOMAIN}",
        "proxy_host": host,
        "proxy_port": port,
        "ca_certs_file": str(tls.authority),
        "use_https": "True",
        "bucket_location": "us-east-1",
    }
    text = "".join(f"{name} = {value}\n" for name, value in lines.items())
    config.write_text(f"[default]\n{text}")
    s3cmd = (Path(sys.executable).parent / "s3cmd", "-c", config)
    data = some_bytes(16 * MIB, 6)
    (tmp_path / "file").write_bytes(data)
    bucket.run(*s3cmd, "put", "--multipart-chunk-size-mb=5", tmp_path / "file", bucket_url(bucket))
    assert bucket.content == {"file": data}
    assert f"{bucket_url(bucket)}file" in bucket.run(*s3cmd, "ls", bucket_url(bucket))
    bucket.run(*s3cmd, "get", f"{bucket_url(bucket)}file", tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == data


def bucket_url(bucket: Bucket) -> str:
    return f"s3://{bucket.name}/"


def test_minio_py_uploads_in_parts(bucket: Bucket, tls: TlsGateway) -> None:
    data = some_bytes(12 * MIB, 7)
    with urllib3.ProxyManager(tls.proxy, ca_certs=str(tls.authority)) as pool:
        client = Minio(
            DOMAIN,
            access_key=bucket.access_key,
            secret_key=bucket.secret_key,
            region="us-east-1",
            http_client=pool,
        )
        client.enable_virtual_style_endpoint()  # type: ignore[no-untyped-call]
        client.put_object(bucket.name, "big", io.BytesIO(data), length=-1, part_size=5 * MIB)
        answer = client.get_object(bucket.name, "big")
        assert answer.read() == data
        answer.release_conn()
    assert bucket.content == {"big": data}


def test_duckdb_queries_what_polars_wrote(bucket: Bucket, native: TlsGateway) -> None:
    rows = some_table(20_000)
    frame = pl.DataFrame(rows)
    url = f"s3://{bucket.name}/rows.parquet"
    frame.write_parquet(url, storage_options=rust_options(bucket, native))
    files = s3fs.S3FileSystem(
        key=bucket.access_key,
        secret=bucket.secret_key,
        endpoint_url=ENDPOINT,
        client_kwargs={"region_name": "us-east-1", "verify": str(native.authority)},
        config_kwargs={"proxies": {"https": native.proxy}},
        skip_instance_cache=True,
    )
    with duckdb.connect() as duck:
        duck.register_filesystem(files)
        found = duck.execute(f"SELECT count(*), max(id) FROM '{url}' WHERE id >= 19000").fetchone()
    assert found == (1_000, 19_999)
    back = pl.scan_parquet(url, storage_options=rust_options(bucket, native))
    assert back.filter(pl.col("id") < 10).collect().height == 10


def test_delta_lake_commits_conditionally(bucket: Bucket, native: TlsGateway) -> None:
    options = {**rust_options(bucket, native), "aws_conditional_put": "etag"}
    url, rows = f"s3://{bucket.name}/table", some_table(2_000)
    write_deltalake(url, rows.slice(0, 1_000), storage_options=options)
    write_deltalake(url, rows.slice(1_000), mode="append", storage_options=options)
    table = DeltaTable(url, storage_options=options)
    assert table.version() == 1
    assert pa.table(table.to_pyarrow_table()).sort_by("id").equals(rows)


def test_obstore_streams(bucket: Bucket, tls: TlsGateway, native: TlsGateway) -> None:
    store = S3Store(
        bucket.name,
        endpoint=f"https://{bucket.name}.{DOMAIN}",
        access_key_id=bucket.access_key,
        secret_access_key=bucket.secret_key,
        region="us-east-1",
        virtual_hosted_style_request=True,
        client_options={"proxy_url": native.proxy},
    )
    data = some_bytes(13 * MIB, 8)
    obstore.put(store, "big", data, chunk_size=5 * MIB)
    assert b"".join(bytes(piece) for piece in obstore.get(store, "big").stream()) == data
    assert bucket.content == {"big": data}
