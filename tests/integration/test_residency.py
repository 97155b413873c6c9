"""Pools end to end: data of a bucket in the pool "eu" never leaves the nodes in eu."""

import json
import os
import signal
from typing import Any

import pytest
from botocore.exceptions import ClientError
from tests.integration.conftest import LiveCluster, NewCluster, wait_until

pytestmark = pytest.mark.integration

SIZES = (6_000, 40_000, 300_000)


def chunks_by_region(live: LiveCluster) -> dict[str, int]:
    """What the devices of each region hold: odd nodes are in eu."""
    counts = {"eu": 0, "us": 0}
    for node in live.status().nodes:
        number = int(node.id.rpartition("-")[2])
        counts["eu" if number % 2 else "us"] += sum(d.chunk_count for d in node.devices)
    return counts


def check(live: LiveCluster, bodies: dict[str, bytes], when: str) -> None:
    """Every object is there, and none of it in us; nodes report what they hold twice a second."""
    for key, body in bodies.items():
        assert live.client().get_object(Bucket="eu-data", Key=key)["Body"].read() == body, when
    assert chunks_by_region(live)["us"] == 0, when
    pools = {pool.name: pool for pool in live.status().pools}
    assert set(pools) == {"default", "eu", "us"}
    assert all(pool.violation_count == 0 for pool in pools.values()), when


def test_data_of_a_eu_bucket_stays_in_eu_through_repair_drain_and_balance(
    new_cluster: NewCluster,
) -> None:
    live = new_cluster(
        *("--nodes", "10", "--code", "rs-2-1", "--pg-count", "12"),
        *("--region", "eu", "--region", "us"),
        *("--pool", "eu:pgs=12,region=eu", "--pool", "us:pgs=12,region=us,per_node=1"),
    )
    s3: Any = live.client()
    s3.create_bucket(Bucket="eu-data", CreateBucketConfiguration={"LocationConstraint": "eu"})
    assert live.run("bucket", "show", "eu-data", "--json").json["pool"] == "eu"
    with pytest.raises(ClientError, match="InvalidLocationConstraint"):
        s3.create_bucket(Bucket="moon", CreateBucketConfiguration={"LocationConstraint": "moon"})
    refused = live.run("bucket", "create", "moon", "--pool", "moon")
    assert refused.code == 2
    assert "no pool has the name 'moon'" in refused.text
    bodies = {f"o{number}": os.urandom(SIZES[number % len(SIZES)]) for number in range(24)}
    for key, body in bodies.items():
        s3.put_object(Bucket="eu-data", Key=key, Body=body)
    parts = s3.create_multipart_upload(Bucket="eu-data", Key="large")
    answer = s3.upload_part(
        Bucket="eu-data", Key="large", UploadId=parts["UploadId"], PartNumber=1, Body=b"p" * 900_000
    )
    s3.complete_multipart_upload(
        Bucket="eu-data",
        Key="large",
        UploadId=parts["UploadId"],
        MultipartUpload={"Parts": [{"PartNumber": 1, "ETag": answer["ETag"]}]},
    )
    bodies["large"] = b"p" * 900_000
    wait_until(lambda: chunks_by_region(live)["eu"] > 0, "chunks in eu")
    check(live, bodies, "after writing")

    victim = next(node for node in live.info["nodes"] if node["id"] == "node-1")
    os.kill(victim["pid"], signal.SIGKILL)
    wait_until(
        lambda: any(
            node.id == "node-1" and node.devices[0].state == "down" for node in live.status().nodes
        ),
        "node-1 is down",
    )
    assert live.run("cluster", "repair", "node-1", "--apply").code == 0
    wait_until(lambda: live.status().fully_redundant, "repaired")
    check(live, bodies, "after repair")

    drained = live.run("cluster", "drain", "node-3", "--apply", "--json")
    assert drained.code == 0, drained.text
    assert drained.json["violation_count"] == 0
    check(live, bodies, "after draining")

    assert live.run("cluster", "balance", "--apply").code == 0
    check(live, bodies, "after balancing")
    too_many = live.run("cluster", "drain", "node-5", "node-7", "--apply")
    assert too_many.code == 2, "eu has no room for a third node to go"
    # Groups of the default pool may cross: that is written down.
    lines = [
        json.loads(line)
        for path in live.directory.glob("logs/*-audit.jsonl")
        for line in path.read_text().splitlines()
    ]
    crossings = [line for line in lines if line["action"] == "MoveAcrossRegions"]
    assert crossings
    assert all(line["pools"] == "default" for line in crossings)
    shown = live.run("cluster", "status")
    assert "pool eu: 12 groups, 1 per node, in eu; 0 break the rule" in shown.text
