"""A cluster of real processes that loses some: nothing acknowledged is lost, and it heals."""

import hashlib
import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from botocore.exceptions import BotoCoreError, ClientError
from tests.integration.conftest import EXASTORE, LiveCluster, NewCluster, wait_until
from tests.support.steady_load import SteadyLoad

from exastore.deploy.launcher import LocalCluster

pytestmark = [pytest.mark.integration, pytest.mark.chaos]

MIB = 2**20


def body_of(key: str) -> bytes:
    """Bytes that belong to a key: from inline to several stripes."""
    seed = int.from_bytes(hashlib.sha256(key.encode()).digest()[:4], "little")
    size_bytes = (500, 60_000, 1_500_000, 5 * MIB)[seed % 4]
    return hashlib.shake_256(key.encode()).digest(size_bytes)


class Writer(SteadyLoad):
    """Puts objects until told to stop; remembers what was acknowledged."""

    def __init__(self, client: Any, bucket: str, prefix: str) -> None:
        self.acknowledged: list[str] = []
        self.errors: list[str] = []
        self._client, self._bucket, self._prefix = client, bucket, prefix
        super().__init__()

    def _run(self) -> None:
        number = 0
        while not self._stop.is_set():
            key = f"{self._prefix}/{number}"
            number += 1
            try:
                self._client.put_object(Bucket=self._bucket, Key=key, Body=body_of(key))
            except (ClientError, BotoCoreError) as error:
                self.errors.append(str(error))
            else:
                self.acknowledged.append(key)


def kill(live: LiveCluster, *node_ids: str) -> None:
    """kill -9 of nodes of this cluster, which this test started."""
    pids = {node["id"]: node["pid"] for node in live.info["nodes"]}
    for node_id in node_ids:
        os.kill(pids[node_id], signal.SIGKILL)


def is_gone(pid: int) -> bool:
    """Whether a process has ended, collected by its parent or not."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def check(client: Any, bucket: str, keys: list[str]) -> None:
    for key in keys:
        assert client.get_object(Bucket=bucket, Key=key)["Body"].read() == body_of(key), key


def redundant(live: LiveCluster) -> Callable[[], bool]:
    return lambda: live.status().fully_redundant and not live.status().repair.active


def test_a_cluster_survives_dead_nodes_and_heals(new_cluster: NewCluster) -> None:
    live = new_cluster("--down-after-s", "1", "--out-after-s", "6")
    s3 = live.client()
    s3.create_bucket(Bucket="faults")
    before = [f"before/{number}" for number in range(30)]
    for key in before:
        s3.put_object(Bucket="faults", Key=key, Body=body_of(key))

    # Two nodes die while objects are being written.
    writers = [Writer(live.client(), "faults", f"during-{number}") for number in range(3)]
    wait_until(lambda: all(writer.acknowledged for writer in writers), "first writes")
    kill(live, "node-2", "node-5")
    counts = [len(writer.acknowledged) for writer in writers]
    wait_until(
        lambda: all(
            len(writer.acknowledged) > count + 3
            for writer, count in zip(writers, counts, strict=True)
        ),
        "writes go on with two nodes dead",
    )
    for writer in writers:
        writer.stop()
        assert writer.errors == []
    acknowledged = before + [key for writer in writers for key in writer.acknowledged]
    check(s3, "faults", acknowledged)

    wait_until(lambda: live.status().missing_slot_count > 0, "the loss is noticed")
    damaged = live.run("cluster", "status", "--json")
    assert damaged.code == 3
    gone = [item["name"] for item in damaged.json["processes"] if not item["alive"]]
    assert gone == ["node-2", "node-5"]

    wait_until(redundant(live), "repaired onto the other nodes")
    scrubbed = live.run("cluster", "scrub", "--json")
    assert scrubbed.code == 0, scrubbed.out
    check(s3, "faults", acknowledged)

    # The dead come back, then everything is stopped and started: the same data, the same endpoint.
    endpoint = live.info["s3"]["endpoint"]
    live.up_again()
    assert live.run("cluster", "down").code == 0
    for kind in (live.info["metadata"], live.info["gateways"]):
        for item in kind:
            assert is_gone(item["pid"])
    live.up_again()
    assert live.info["s3"]["endpoint"] == endpoint
    check(s3, "faults", acknowledged)
    wait_until(redundant(live), "redundant after the restart")
    assert live.run("cluster", "scrub").code == 0


def test_a_full_cluster_refuses_writes_and_keeps_what_it_has(new_cluster: NewCluster) -> None:
    live = new_cluster(
        "--nodes",
        "3",
        "--code",
        "rs-2-1",
        "--capacity-bytes",
        str(48 * MIB),
        "--trash-grace-s",
        "0",
    )
    s3 = live.client()
    s3.create_bucket(Bucket="full")
    stored: list[str] = []
    refused: ClientError | None = None
    body = hashlib.shake_256(b"full").digest(6 * MIB)
    for number in range(40):
        try:
            s3.put_object(Bucket="full", Key=str(number), Body=body)
        except ClientError as error:
            refused = error
            break
        stored.append(str(number))
    assert refused is not None, "a cluster of 3 devices of 48 MiB took 240 MiB"
    response: Any = refused.response
    assert response["ResponseMetadata"]["HTTPStatusCode"] in (503, 507)
    assert "full" in response["Error"]["Message"].lower() or "space" in str(refused).lower()
    assert len(stored) >= 4
    for key in stored:
        assert s3.get_object(Bucket="full", Key=key)["Body"].read() == body
    with pytest.raises(ClientError) as caught:
        s3.head_object(Bucket="full", Key=str(len(stored)))
    answer: Any = caught.value.response
    assert answer["ResponseMetadata"]["HTTPStatusCode"] == 404


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_demo_leaves_no_process_behind(tmp_path: Path, number: int) -> None:
    out = tmp_path / "demo"
    # A shell without job control starts background jobs with SIGINT ignored, which is inherited: a
    # test run of that kind would send a signal that a demo rightly ignores.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        started_demo = subprocess.Popen(
            [*EXASTORE, "demo", "--out", str(out)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
    finally:
        signal.signal(signal.SIGINT, before)
    with started_demo as demo:
        # Interrupted in the middle of the start, when some processes run already.
        wait_until(lambda: (out / "cluster" / "run" / "node-1.pid").exists(), "a node starts")
        started = LocalCluster.at(out / "cluster").children()
        assert "metadata" in started
        demo.send_signal(number)
        text, _ = demo.communicate(timeout=60)
    assert demo.returncode == 130, text
    assert "interrupted in step 1" in text
    assert "Traceback" not in text
    assert all(is_gone(child.pid) for child in started.values())
    # Recorded or not: nothing runs with a config of this cluster.
    left = [
        process.info["cmdline"]
        for process in psutil.process_iter(["cmdline", "status"])
        if process.info["status"] != psutil.STATUS_ZOMBIE
        and any(str(out) in argument for argument in process.info["cmdline"] or [])
    ]
    assert left == []


def test_a_process_that_dies_at_start_is_told_with_its_log(new_cluster: NewCluster) -> None:
    live = new_cluster("--nodes", "3", "--code", "rs-2-1")
    assert live.run("cluster", "down").code == 0
    device = live.directory / "data" / "node-2"
    for path in device.iterdir():
        if path.is_file():
            path.write_bytes(b"not what was here")
    result = live.run("cluster", "up")
    assert result.code == 1
    assert "node-2 ended while it started" in result.text
    assert "last lines of the log of node-2" in result.text
    assert not (live.directory / "cluster.json").exists()
    status = live.run("cluster", "status")
    assert status.code == 3
