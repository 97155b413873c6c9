"""`exastore user ...` against a real cluster: keys count, tenants are apart, all is billed."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import urlopen

import pytest
from botocore.exceptions import ClientError
from tests.integration.conftest import LiveCluster, wait_until

pytestmark = pytest.mark.integration


@pytest.fixture
def users(cluster: LiveCluster) -> Iterator[list[str]]:
    """Names of users that are deleted at the end."""
    names: list[str] = []
    yield names
    for name in names:
        cluster.run("user", "delete", name)


def new_user(cluster: LiveCluster, users: list[str], name: str, *options: str) -> Any:
    made = cluster.run("user", "create", name, "--json", *options)
    assert made.code == 0, made.text
    users.append(name)
    value = made.json
    return cluster.client(access_key=value["access_key"], secret_key=value["secret_key"])


def code_of(call: Any, **arguments: Any) -> str:
    with pytest.raises(ClientError) as caught:
        call(**arguments)
    return str(caught.value.response["Error"]["Code"])


def test_a_user_works_in_its_tenant_and_sees_nothing_of_another(
    cluster: LiveCluster, users: list[str]
) -> None:
    # Not tenants that other tests of this cluster give buckets.
    ann = new_user(cluster, users, "ann", "--tenant", "apex")
    bea = new_user(cluster, users, "bea", "--tenant", "apex")
    eve = new_user(cluster, users, "eve", "--tenant", "rival")
    ann.create_bucket(Bucket="acme-data")
    ann.put_object(Bucket="acme-data", Key="k", Body=b"x" * 1000)
    assert bea.get_object(Bucket="acme-data", Key="k")["Body"].read() == b"x" * 1000
    assert [b["Name"] for b in bea.list_buckets()["Buckets"]] == ["acme-data"]
    assert eve.list_buckets()["Buckets"] == []
    assert eve.list_buckets()["Owner"]["ID"] == "rival"
    for call, arguments in (
        (eve.get_object, {"Key": "k"}),
        (eve.list_objects_v2, {}),
        (eve.put_object, {"Key": "k", "Body": b""}),
        (eve.delete_bucket, {}),
    ):
        assert code_of(call, Bucket="acme-data", **arguments) == "AccessDenied"
    assert code_of(eve.create_bucket, Bucket="acme-data") == "BucketAlreadyExists"
    ann.delete_object(Bucket="acme-data", Key="k")
    ann.delete_bucket(Bucket="acme-data")


def test_rotation_and_disabling_count_within_seconds(
    cluster: LiveCluster, users: list[str]
) -> None:
    old = new_user(cluster, users, "rot")
    old.list_buckets()
    made = cluster.run("user", "rotate", "rot", "--json").json
    new = cluster.client(access_key=made["access_key"], secret_key=made["secret_key"])
    new.list_buckets()

    def is_refused(client: Any) -> bool:
        try:
            client.list_buckets()
        except ClientError as error:
            return str(error.response["Error"]["Code"]) == "InvalidAccessKeyId"
        return False

    wait_until(lambda: is_refused(old), "the old key is refused", timeout_s=10)
    assert cluster.run("user", "disable", "rot", "--json").json["disabled"]
    wait_until(lambda: is_refused(new), "the disabled user is refused", timeout_s=10)
    assert not cluster.run("user", "enable", "rot", "--json").json["disabled"]
    wait_until(lambda: not is_refused(new), "the user is back", timeout_s=10)


def test_a_users_policy_leaves_it_only_what_it_says(
    cluster: LiveCluster, users: list[str], tmp_path: Path
) -> None:
    policy = tmp_path / "reader.json"
    statement = {"Effect": "Allow", "Action": ["s3:Get*", "s3:List*"], "Resource": "*"}
    policy.write_text(json.dumps({"Statement": statement}))
    writer = new_user(cluster, users, "writer", "--tenant", "pol")
    reader = new_user(cluster, users, "reader", "--tenant", "pol", "--policy", str(policy))
    writer.create_bucket(Bucket="pol-data")
    writer.put_object(Bucket="pol-data", Key="k", Body=b"1")
    assert reader.get_object(Bucket="pol-data", Key="k")["Body"].read() == b"1"
    put = {"Bucket": "pol-data", "Key": "k", "Body": b"2"}
    assert code_of(reader.put_object, **put) == "AccessDenied"
    deleted = reader.delete_objects(Bucket="pol-data", Delete={"Objects": [{"Key": "k"}]})
    assert [e["Code"] for e in deleted["Errors"]] == ["AccessDenied"]
    policy.write_text('{"Statement": {"Effect": "Maybe"}}')
    refused = cluster.run("user", "policy", "reader", str(policy))
    assert refused.code == 2 and "Invalid effect" in refused.text
    writer.delete_object(Bucket="pol-data", Key="k")
    writer.delete_bucket(Bucket="pol-data")


def test_a_tenant_is_billed_and_held_to_its_quota(cluster: LiveCluster, users: list[str]) -> None:
    client = new_user(cluster, users, "payer", "--tenant", "billed")
    client.create_bucket(Bucket="billed-data")
    quota = cluster.run("user", "quota", "billed", "--max-bytes", "100kB", "--json")
    assert quota.json == {"tenant": "billed", "max_bytes": 100_000, "max_objects": 0}
    client.put_object(Bucket="billed-data", Key="k", Body=b"x" * 60_000)
    client.get_object(Bucket="billed-data", Key="k")["Body"].read()
    over = {"Bucket": "billed-data", "Key": "l", "Body": b"x" * 60_000}
    with pytest.raises(ClientError) as caught:
        client.put_object(**over)
    response = caught.value.response
    assert response["Error"]["Code"] == "QuotaExceeded"
    assert response["ResponseMetadata"]["HTTPStatusCode"] == 403

    def usage() -> Any:
        (value,) = cluster.run("user", "usage", "--tenant", "billed", "--json").json
        return value

    wait_until(lambda: bool(usage()["requests"].get("read")), "traffic is counted", timeout_s=30)
    found = usage()
    assert (found["stored_bytes"], found["objects"]) == (60_000, 1)
    assert found["requests"] == {"read": 1, "write": 3}
    assert found["received_bytes"] >= 120_000 and found["sent_bytes"] >= 60_000
    assert sum(day["requests"]["read"] for day in found["days"]) == 1
    client.delete_object(Bucket="billed-data", Key="k")
    client.delete_bucket(Bucket="billed-data")


def test_secrets_are_nowhere_readable_and_acts_are_logged(
    cluster: LiveCluster, users: list[str]
) -> None:
    value = cluster.run("user", "create", "sec", "--json").json
    users.append("sec")
    shown = cluster.run("user", "show", "sec", "--json")
    assert value["secret_key"] not in shown.out
    assert "sec" in [user["name"] for user in cluster.run("user", "list", "--json").json]
    root = cluster.directory
    secret = value["secret_key"].encode()
    for folder in ("data/metadata", "logs", "conf"):
        for path in (root / folder).rglob("*"):
            assert not path.is_file() or secret not in path.read_bytes(), path
    assert (root / "conf" / "master.key").stat().st_mode & 0o777 == 0o600
    lines = (root / "logs" / "metadata-audit.jsonl").read_text().splitlines()
    last = json.loads(lines[-1])
    assert (last["action"], last["target"], last["actor"]) == (
        "CreateUser",
        "sec",
        "administrator",
    )


def fetched(url: str) -> tuple[int, bytes]:
    """What anybody gets."""
    try:
        with urlopen(url, timeout=30) as response:
            return response.status, response.read()
    except HTTPError as error:
        with error:
            return error.code, error.read()


def test_a_bucket_is_opened_to_everybody_and_closed_again(
    cluster: LiveCluster, users: list[str]
) -> None:
    client = new_user(cluster, users, "open", "--tenant", "opener")
    client.create_bucket(Bucket="open-data")
    client.put_object(Bucket="open-data", Key="free/k", Body=b"for all")
    url = f"{cluster.info['s3']['endpoint']}/open-data/free/k"
    assert fetched(url)[0] == 403
    statement = {
        "Effect": "Allow",
        "Principal": "*",
        "Action": "s3:GetObject",
        "Resource": "arn:aws:s3:::open-data/free/*",
    }
    client.put_bucket_policy(Bucket="open-data", Policy=json.dumps({"Statement": [statement]}))
    assert fetched(url) == (200, b"for all"), "a change counts at once where it was made"
    client.delete_bucket_policy(Bucket="open-data")
    assert fetched(url)[0] == 403
    client.delete_object(Bucket="open-data", Key="free/k")
    client.delete_bucket(Bucket="open-data")
    text = (cluster.directory / "logs" / "metadata-audit.jsonl").read_text()
    acts = [json.loads(line) for line in text.splitlines()]
    by_user = [act for act in acts if act["actor"] == "arn:aws:iam::opener:user/open"]
    assert [act["action"] for act in by_user] == [
        "CreateBucket",
        "PutBucketPolicy",
        "DeleteBucketPolicy",
        "DeleteBucket",
    ]
    assert {(act["target"], act["source_ip"]) for act in by_user} == {("open-data", "127.0.0.1")}


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("show", "nobody"), "no user 'nobody'"),
        (("create", "bad name"), "a user's name has"),
        (("rotate", "nobody"), "no user 'nobody'"),
        (("quota", "t", "--max-bytes", "many"), "is no size"),
        (("create", "x", "--policy", "/does/not/exist"), "cannot read"),
    ],
)
def test_wrong_requests_are_told_in_words(
    cluster: LiveCluster, arguments: tuple[str, ...], told: str
) -> None:
    result = cluster.run("user", *arguments)
    assert result.code == 2
    assert told in result.text


def test_a_name_is_taken_once(cluster: LiveCluster, users: list[str]) -> None:
    new_user(cluster, users, "once")
    again = cluster.run("user", "create", "once")
    assert again.code == 2 and "already" in again.text
