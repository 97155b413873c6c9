"""Operations on a cluster of real processes under load: nothing fails, nothing is lost."""

import hashlib
import os
import shutil
import signal
import subprocess
from collections import Counter
from collections.abc import Generator
from contextlib import contextmanager
from threading import Event, Thread
from typing import Any

import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError
from tests.integration.conftest import EXASTORE, LiveCluster, NewCluster, wait_until
from tests.support.postgres_server import PostgresServer

from exastore.deploy.layout import read_cluster_file
from exastore.deploy.status import fetch_status

pytestmark = [pytest.mark.integration, pytest.mark.chaos]

#: Between two objects of a writer: what is written must be moved and checked in the end.
PACE_S = 0.05
SIZES = (500, 9_000, 60_000, 700_000)


def body_of(key: str) -> bytes:
    """Bytes that belong to a key: from inline to several stripes."""
    seed = int.from_bytes(hashlib.sha256(key.encode()).digest()[:4], "little")
    return hashlib.shake_256(key.encode()).digest(SIZES[seed % 4])


def impatient_client(live: LiveCluster) -> Any:
    """A client that sends every request once."""
    s3 = live.info["s3"]
    client = boto3.client(
        "s3",
        endpoint_url=s3["endpoint"],
        aws_access_key_id=s3["access_key"],
        aws_secret_access_key=s3["secret_key"],
        region_name="us-east-1",
        config=Config(
            retries={"total_max_attempts": 1}, s3={"addressing_style": "path"}, proxies={}
        ),
    )
    live.clients.append(client)
    return client


class Load:
    """Writes objects and reads back any of them, until told to stop."""

    def __init__(self, live: LiveCluster, bucket: str) -> None:
        self.acknowledged: list[str] = []
        self.errors: list[str] = []
        self.read_count = 0
        self._bucket = bucket
        self._stop = Event()
        live.client().create_bucket(Bucket=bucket)
        self._threads = [
            Thread(target=self._run, args=(impatient_client(live), f"w{number}"), daemon=True)
            for number in range(2)
        ]
        for thread in self._threads:
            thread.start()
        wait_until(lambda: len(self.acknowledged) > 20, "first writes")

    def stop(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def check_all(self, client: Any) -> None:
        for key in self.acknowledged:
            self._check(client, key)

    def _check(self, client: Any, key: str) -> None:
        body = client.get_object(Bucket=self._bucket, Key=key)["Body"].read()
        assert body == body_of(key), key

    def _run(self, client: Any, prefix: str) -> None:
        number = 0
        while not self._stop.wait(PACE_S):
            key = f"{prefix}/{number}"
            number += 1
            try:
                client.put_object(Bucket=self._bucket, Key=key, Body=body_of(key))
                self.acknowledged.append(key)
                self._check(client, self.acknowledged[number * 7919 % len(self.acknowledged)])
                self.read_count += 1
            except (ClientError, BotoCoreError, AssertionError) as error:
                self.errors.append(f"{key}: {error}")


@contextmanager
def load_on(live: LiveCluster, bucket: str) -> Generator[Load]:
    """Load while the block runs; no request of it fails."""
    load = Load(live, bucket)
    before = len(load.acknowledged), load.read_count
    try:
        yield load
    finally:
        load.stop()
    assert load.errors == []
    assert len(load.acknowledged) > before[0] and load.read_count > before[1]
    load.check_all(live.client())


def slots_by_node(live: LiveCluster) -> Counter[str]:
    return Counter(
        {node.id: sum(device.slot_count for device in node.devices) for node in live.status().nodes}
    )


def device_of(live: LiveCluster, node_id: str) -> int:
    (node,) = (node for node in live.status().nodes if node.id == node_id)
    return node.devices[0].index


def test_nodes_are_drained_removed_and_added_under_load(new_cluster: NewCluster) -> None:
    live = new_cluster("--nodes", "5", "--code", "rs-2-1", "--pg-count", "16")
    with load_on(live, "load") as load:
        held = slots_by_node(live)
        refused = live.run("cluster", "remove", "node-2", "--apply")
        assert refused.code == 2 and "still holds" in refused.text
        assert "drain it first" in refused.text

        plan = live.run("cluster", "drain", "node-2", "--json").json
        assert plan["move_count"] == plan["minimum_move_count"] == held["node-2"] > 0
        assert plan["violation_count"] == 0 and not plan["applied"]
        assert slots_by_node(live) == held

        # The metadata server is killed in the middle, and goes on where it was.
        device = device_of(live, "node-2")
        assert live.run("cluster", "drain", "node-2", "--apply", "--no-wait").code == 0
        wait_until(lambda: 0 < slots_by_node(live)["node-2"] < held["node-2"], "the drain begins")
        load.stop()  # with its only metadata server away, a cluster takes no requests
        os.kill(live.info["metadata"][0]["pid"], signal.SIGKILL)
        live.up_again()
        assert load.errors == []
        drained = live.run("cluster", "drain", "node-2", "--apply")
        assert drained.code == 0, drained.text
        assert "done in" in drained.text

    with load_on(live, "more"):
        assert slots_by_node(live)["node-2"] == 0
        removed = live.run("cluster", "remove", "node-2", "--apply")
        assert removed.code == 0, removed.text
        assert [node["id"] for node in read_cluster_file(live.directory)["nodes"]] == [
            "node-1",
            "node-3",
            "node-4",
            "node-5",
        ]
        assert live.status().device(device).is_removed

        added = live.run("cluster", "add", "--apply")
        assert added.code == 0, added.text
        counts = slots_by_node(live)
        assert counts["node-2"] == 0
        counts.pop("node-2")
        assert set(counts) == {"node-1", "node-3", "node-4", "node-5", "node-6"}
        assert all(abs(count - 16 * 3 / 5) <= 1 for count in counts.values()), counts
        again = live.run("cluster", "balance", "--json").json
        assert again["move_count"] == 0 and again["deviation_after"] <= 1
    load.check_all(live.client())
    wait_until(lambda: live.status().fully_redundant, "all is redundant")
    scrubbed = live.run("cluster", "scrub", "--json")
    assert scrubbed.code == 0, scrubbed.out


def test_a_wiped_device_is_replaced_slot_for_slot_under_load(new_cluster: NewCluster) -> None:
    live = new_cluster("--nodes", "5", "--code", "rs-2-1", "--pg-count", "16")
    with load_on(live, "load"):
        held = slots_by_node(live)
        (node,) = (node for node in live.info["nodes"] if node["id"] == "node-3")
        os.kill(node["pid"], signal.SIGKILL)
        wait_until(lambda: live.status().missing_slot_count > 0, "the loss is noticed")
        shutil.rmtree(node["data_dir"])
        os.mkdir(node["data_dir"])
        live.up_again()
        wait_until(lambda: len(live.status().nodes[2].devices) == 2, "the new device joins")
        plan = live.run("cluster", "replace", "node-3", "--json")
        assert plan.code == 0, plan.text
        assert plan.json["move_count"] == held["node-3"]
        replaced = live.run("cluster", "replace", "node-3", "--apply")
        assert replaced.code == 0, replaced.text
        old, new = live.status().nodes[2].devices
        assert (old.slot_count, new.slot_count) == (0, held["node-3"])
        assert slots_by_node(live) == held
        assert live.run("cluster", "remove", str(old.index), "--apply").code == 0
    wait_until(lambda: live.status().fully_redundant, "all is redundant")
    assert live.run("cluster", "scrub").code == 0
    top = live.run("cluster", "top", "--once")
    assert top.code == 0 and "node-3" in top.text


def test_a_drain_and_the_load_outlive_either_of_two_metadata_servers(
    new_cluster: NewCluster,
) -> None:
    with PostgresServer() as postgres:
        live = new_cluster(
            *("--nodes", "5", "--code", "rs-2-1", "--pg-count", "16"),
            *("--metadata-servers", "2", "--engine", postgres.new_url("drained")),
        )
        servers = live.info["metadata"]
        assert len(servers) == 2
        with load_on(live, "load"):
            # The one that does the work dies in the middle of a drain.
            leads = [fetch_status(server["address"]).does_background_work for server in servers]
            assert sorted(leads) == [False, True]
            assert live.run("cluster", "drain", "node-2", "--apply", "--no-wait").code == 0
            os.kill(servers[leads.index(True)]["pid"], signal.SIGKILL)
            other = servers[leads.index(False)]["address"]
            wait_until(lambda: fetch_status(other).does_background_work, "the other takes over")
            drained = live.run("cluster", "drain", "node-2", "--apply")
            assert drained.code == 0, drained.text
        assert all(
            not device.slot_count and not device.leaving_slot_count
            for node in fetch_status(other).nodes
            for device in node.devices
            if node.id == "node-2"
        )
        # Before the engine goes.
        assert live.run("cluster", "down").code == 0


def test_several_metadata_servers_need_an_engine_that_they_can_share(tmp_path: Any) -> None:
    done = subprocess.run(
        [*EXASTORE, "cluster", "up", "--dir", str(tmp_path / "c"), "--metadata-servers", "2"],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 2
    text = " ".join((done.stdout + done.stderr).split())
    assert "--metadata-servers 2 need an engine that several processes can share" in text
    assert "--engine postgresql://" in text
