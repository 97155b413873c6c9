"""A rolling restart under load: every request is answered."""

from typing import Any

import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError
from tests.integration.conftest import LiveCluster, NewCluster, wait_until
from tests.support.steady_load import SteadyLoad, body_of

pytestmark = [pytest.mark.integration, pytest.mark.chaos]

BUCKET = "rolling"
SIZES = (900, 60_000, 1_500_000)


def usual_client(live: LiveCluster) -> Any:
    """A client as it comes: its retries are the SDK's own."""
    s3 = live.info["s3"]
    client = boto3.client(
        "s3",
        endpoint_url=s3["endpoint"],
        aws_access_key_id=s3["access_key"],
        aws_secret_access_key=s3["secret_key"],
        region_name="us-east-1",
        config=Config(s3={"addressing_style": "path"}, proxies={}),
    )
    live.clients.append(client)
    return client


class Load(SteadyLoad):
    """Writes objects and reads them back, one after the other, until told to stop."""

    def __init__(self, live: LiveCluster, name: str) -> None:
        self.written: list[str] = []
        self.failures: list[str] = []
        self._client, self._name = usual_client(live), name
        super().__init__()

    def _run(self) -> None:
        number = 0
        while not self._stop.wait(0.02):
            key = f"{self._name}-{number}"
            number += 1
            try:
                self._client.put_object(Bucket=BUCKET, Key=key, Body=body_of(key, SIZES))
                self.written.append(key)
                got = self._client.get_object(Bucket=BUCKET, Key=key)["Body"].read()
            except (ClientError, BotoCoreError) as error:
                self.failures.append(f"{key}: {error!r}")
            else:
                if got != body_of(key, SIZES):
                    self.failures.append(f"{key}: wrong bytes")


def test_a_rolling_restart_of_all_processes_fails_no_request(new_cluster: NewCluster) -> None:
    live = new_cluster("--nodes", "5", "--code", "rs-2-2", "--pg-count", "10", "--gateways", "2")
    usual_client(live).create_bucket(Bucket=BUCKET)
    before = {item["id"]: item["pid"] for item in live.info["nodes"]}
    plan = live.run("cluster", "restart", "--json")
    assert plan.json["processes"] == [
        *(f"node-{number}" for number in range(1, 6)), "gateway", "gateway-2", "metadata",
    ]  # fmt: skip
    assert not plan.json["applied"]
    refused = live.run("cluster", "restart", "node-9", "--apply")
    assert refused.code == 2
    assert "there is no process 'node-9'" in refused.text

    loads = [Load(live, f"load-{number}") for number in range(2)]
    wait_until(lambda: all(load.written for load in loads), "the load runs")
    counts = [len(load.written) for load in loads]
    done = live.run("cluster", "restart", "--apply", "--json")
    assert done.code == 0, done.text
    wait_until(
        lambda: all(
            len(load.written) > count + 5 for load, count in zip(loads, counts, strict=True)
        ),
        "the load goes on",
    )
    for load in loads:
        load.stop()
    assert [load.failures for load in loads] == [[], []]
    assert len(done.json["processes"]) == 8
    live.up_again()
    after = {item["id"]: item["pid"] for item in live.info["nodes"]}
    assert all(after[name] != pid for name, pid in before.items())
    client = usual_client(live)
    for load in loads:
        for key in load.written:
            assert client.get_object(Bucket=BUCKET, Key=key)["Body"].read() == body_of(key, SIZES)
