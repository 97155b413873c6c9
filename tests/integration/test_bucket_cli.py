"""`exastore bucket ...` on a cluster of real processes whose buckets are on two engines."""

import json
from pathlib import Path

import pytest
from tests.integration.conftest import LiveCluster, NewCluster

pytestmark = pytest.mark.integration

SMALL = ("--nodes", "3", "--code", "rs-2-1", "--pg-count", "8")


def test_buckets_are_configured_counted_and_moved_between_partitions(
    new_cluster: NewCluster, tmp_path: Path
) -> None:
    live = new_cluster(*SMALL, "--partition", "cold")
    made = live.run("bucket", "create", "photos", "--partition", "main", "--json")
    assert made.json["partition"] == "main"
    live.run("bucket", "create", "logs", "--partition", "cold")
    listed = live.run("bucket", "list", "--json").json
    assert [(item["name"], item["partition"]) for item in listed] == [
        ("logs", "cold"),
        ("photos", "main"),
    ]
    settings_are_shown_and_set(live, tmp_path)
    s3 = live.client()
    for number in range(300):
        s3.put_object(Bucket="photos", Key=f"{number:03d}", Body=b"x" * number)
    usage = live.run("bucket", "usage", "photos", "--json").json
    assert (usage["object_count"], usage["object_bytes"]) == (300, 300 * 299 // 2)
    the_bucket_moves_and_keeps_all_of_it(live)
    refused = live.run("bucket", "delete", "photos")
    assert refused.code == 2
    assert "not empty" in refused.text
    assert live.run("bucket", "delete", "logs").code == 0
    assert [item["name"] for item in live.run("bucket", "list", "--json").json] == ["photos"]


def settings_are_shown_and_set(live: LiveCluster, tmp_path: Path) -> None:
    assert live.run("bucket", "versioning", "logs", "enabled").code == 0
    rules = tmp_path / "rules.json"
    rules.write_text(json.dumps([{"id": "old", "prefix": "a/", "expire_days": 30}]))
    assert live.run("bucket", "lifecycle", "logs", "--set", rules).json == json.loads(
        rules.read_text()
    )
    assert live.run("bucket", "quota", "logs", "--max-bytes", "1KiB").code == 0
    limited = live.run("bucket", "quota", "logs", "--max-objects", "5", "--json").json
    assert limited["quota"] == {"max_bytes": 1024, "max_objects": 5}
    shown = live.run("bucket", "show", "logs", "--json").json
    assert shown["versioning"] == "enabled"
    assert shown["lifecycle"][0]["expire_days"] == 30
    assert live.run("bucket", "lifecycle", "logs", "--clear").json == []
    rules.write_text('[{"expire_dayz": 1}]')
    refused = live.run("bucket", "lifecycle", "logs", "--set", rules)
    assert refused.code == 2
    assert "expire_dayz" in refused.text
    assert live.run("bucket", "quota", "logs", "--max-bytes", "much").code == 2


def the_bucket_moves_and_keeps_all_of_it(live: LiveCluster) -> None:
    moved = live.run("bucket", "move", "photos", "cold")
    assert moved.code == 0, moved.text
    assert "photos is in partition cold" in moved.text
    checked = live.run("bucket", "check-usage", "photos", "--json")
    assert checked.code == 0, checked.text
    assert checked.json["equal"] is True
    assert checked.json["counted"]["object_count"] == 300
    assert live.client().get_object(Bucket="photos", Key="299")["Body"].read() == b"x" * 299
    assert live.run("bucket", "moves", "--json").json == []
    again = live.run("bucket", "move", "photos", "cold")
    assert again.code == 2
    assert "already" in again.text
    idle = live.run("bucket", "cancel-move", "photos")
    assert idle.code == 2
    assert "not moving" in idle.text
    nowhere = live.run("bucket", "move", "photos", "warm")
    assert nowhere.code == 2
    assert "no partition has the name 'warm'" in nowhere.text
    missing = live.run("bucket", "show", "nothing")
    assert missing.code == 2
    assert "nothing" in missing.text


def test_a_partition_of_a_cluster_cannot_be_left_out(new_cluster: NewCluster) -> None:
    live = new_cluster(*SMALL, "--partition", "cold")
    other = live.run("cluster", "up", "--partition", "warm")
    assert other.code == 2
    assert "partitions can be added, not left out" in other.text
