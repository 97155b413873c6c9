"""What is set for a whole cluster: websites, short days, master keys, the record, inventories."""

import json
from collections.abc import Iterator
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from pyarrow import fs
from tests.integration.conftest import LiveCluster, running_cluster, wait_until

pytestmark = pytest.mark.integration

DOMAIN = "web.example.org"
OPTIONS = ("--nodes", "3", "--code", "rs-2-1", "--pg-count", "8")


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveCluster]:
    """A small cluster that serves websites and whose days have two seconds."""
    directory = tmp_path_factory.mktemp("administration") / "cluster"
    short = ("--website-domain", DOMAIN, "--lifecycle-day-s", "2")
    with running_cluster(directory, *OPTIONS, *short) as cluster:
        yield cluster


def visited(live: LiveCluster, host: str, path: str) -> tuple[int, str, bytes]:
    """Status, content type and content that a visitor of a host gets."""
    address = live.info["s3"]["endpoint"].removeprefix("http://")
    connection = HTTPConnection(address, timeout=30)
    try:
        connection.request("GET", path, headers={"Host": host})
        answer = connection.getresponse()
        return answer.status, answer.headers.get("Content-Type", ""), answer.read()
    finally:
        connection.close()


def test_a_bucket_is_a_website_below_the_domain(live: LiveCluster) -> None:
    s3, host = live.client(), f"site.{DOMAIN}"
    s3.create_bucket(Bucket="site")
    pages = {"index.html": b"<h1>home</h1>", "docs/index.html": b"docs", "404.html": b"lost"}
    for key, page in pages.items():
        s3.put_object(Bucket="site", Key=key, Body=page, ContentType="text/html")
    website = {"IndexDocument": {"Suffix": "index.html"}, "ErrorDocument": {"Key": "404.html"}}
    s3.put_bucket_website(Bucket="site", WebsiteConfiguration=website)
    assert visited(live, host, "/")[0] == 403, "nobody was let in yet"
    statement = {
        "Effect": "Allow",
        "Principal": "*",
        "Action": "s3:GetObject",
        "Resource": "arn:aws:s3:::site/*",
    }
    s3.put_bucket_policy(Bucket="site", Policy=json.dumps({"Statement": [statement]}))
    assert visited(live, host, "/") == (200, "text/html", b"<h1>home</h1>")
    assert visited(live, host, "/docs/") == (200, "text/html", b"docs")
    # Who may not list is told nothing of what is not there; the error page is shown all the same.
    status, _, page = visited(live, host, "/none")
    assert (status, page) == (403, b"lost")
    assert visited(live, f"none.{DOMAIN}", "/")[0] == 404


def test_lifecycle_acts_when_the_days_are_over(live: LiveCluster) -> None:
    s3 = live.client()
    s3.create_bucket(Bucket="aging")
    s3.put_bucket_versioning(Bucket="aging", VersioningConfiguration={"Status": "Enabled"})
    for body in (b"1", b"2", b"3"):
        s3.put_object(Bucket="aging", Key="kept", Body=body)
    s3.put_object(Bucket="aging", Key="logs/old", Body=b"x")
    s3.create_multipart_upload(Bucket="aging", Key="logs/never")
    rules: list[dict[str, Any]] = [
        {
            "ID": "logs",
            "Filter": {"Prefix": "logs/"},
            "Status": "Enabled",
            "Expiration": {"Days": 1},
            "AbortIncompleteMultipartUpload": {"DaysAfterInitiation": 1},
        },
        {
            "ID": "versions",
            "Filter": {},
            "Status": "Enabled",
            "NoncurrentVersionExpiration": {"NoncurrentDays": 1, "NewerNoncurrentVersions": 1},
            "Expiration": {"ExpiredObjectDeleteMarker": True},
        },
    ]
    s3.put_bucket_lifecycle_configuration(Bucket="aging", LifecycleConfiguration={"Rules": rules})

    def is_settled() -> bool:
        listed = s3.list_object_versions(Bucket="aging")
        current = [item["Key"] for item in s3.list_objects_v2(Bucket="aging").get("Contents", [])]
        kept = [item for item in listed.get("Versions", []) if item["Key"] == "kept"]
        uploads = s3.list_multipart_uploads(Bucket="aging").get("Uploads", [])
        return current == ["kept"] and len(kept) == 2 and not uploads

    wait_until(is_settled, "what is old is gone, and no more than that")
    versions = s3.list_object_versions(Bucket="aging", Prefix="kept")["Versions"]
    bodies = [
        s3.get_object(Bucket="aging", Key="kept", VersionId=item["VersionId"])["Body"].read()
        for item in versions
    ]
    assert bodies == [b"3", b"2"]


def test_rewrapping_seals_the_secrets_of_users_anew(live: LiveCluster) -> None:
    made = live.run("user", "create", "ann", "--json").json
    key_file = live.directory / "conf" / "master.key"
    assert live.run("key", "rotate", "--json").code == 0
    done = live.run("key", "rewrap", "--json").json
    assert (done["resealed_secrets"], done["secrets"]) == (1, 1)
    again = live.run("key", "rewrap", "--json").json
    assert (again["resealed_secrets"], again["secrets"]) == (0, 1)
    # The old key may go: nothing needs it any more.
    newest, old = key_file.read_text().splitlines()
    key_file.write_text(newest + "\n")
    assert live.run("key", "rewrap", "--json").code == 0
    ann = live.client(access_key=made["access_key"], secret_key=made["secret_key"])
    assert ann.list_buckets()["Buckets"] == []
    # A secret that no key opens stops it, with words.
    key_file.write_text(old + "\n")
    refused = live.run("key", "rewrap")
    key_file.write_text(newest + "\n")
    assert refused.code == 2
    assert "master key that is not in the file" in refused.text


def test_what_the_command_line_does_to_buckets_is_on_record(live: LiveCluster) -> None:
    for arguments in (
        ("create", "noted", "--owner", "acme"),
        ("quota", "noted", "--max-objects", "7"),
        ("delete", "noted"),
    ):
        assert live.run("bucket", *arguments).code == 0
    record = Path(live.directory / "logs" / "metadata-audit.jsonl").read_text()
    acts = [act for line in record.splitlines() if (act := json.loads(line))["target"] == "noted"]
    assert [(act["action"], act["actor"]) for act in acts] == [
        ("CreateBucket", "administrator"),
        ("SetBucketQuota", "administrator"),
        ("DeleteBucket", "administrator"),
    ]
    assert acts[0]["owner"] == "acme"
    assert acts[1]["max_objects"] == "7"


def test_a_cluster_writes_a_report_that_arrow_reads(live: LiveCluster) -> None:
    client = live.client()
    for name in ("data", "reports"):
        client.create_bucket(Bucket=name)
    for number in range(30):
        client.put_object(Bucket="data", Key=f"k{number:02d}", Body=b"x" * number)
    wanted = {
        "Destination": {
            "S3BucketDestination": {"Bucket": "arn:aws:s3:::reports", "Format": "Parquet"}
        },
        "IsEnabled": True,
        "Id": "all",
        "IncludedObjectVersions": "Current",
        "OptionalFields": ["Size"],
        "Schedule": {"Frequency": "Daily"},
    }
    client.put_bucket_inventory_configuration(
        Bucket="data", Id="all", InventoryConfiguration=wanted
    )

    def manifests() -> list[str]:
        found = client.list_objects_v2(Bucket="reports").get("Contents", ())
        return [it["Key"] for it in found if it["Key"].endswith("manifest.json")]

    wait_until(lambda: bool(manifests()), "a manifest")
    body = client.get_object(Bucket="reports", Key=manifests()[0])["Body"].read()
    files = json.loads(body)["files"]
    s3 = live.info["s3"]
    store = fs.S3FileSystem(
        access_key=s3["access_key"],
        secret_key=s3["secret_key"],
        region="us-east-1",
        scheme="http",
        endpoint_override=s3["endpoint"].removeprefix("http://"),
    )
    tables = [pq.read_table(f"reports/{file['key']}", filesystem=store) for file in files]
    rows = [(row["key"], row["size"]) for table in tables for row in table.to_pylist()]
    assert rows == [(f"k{number:02d}", number) for number in range(30)]
