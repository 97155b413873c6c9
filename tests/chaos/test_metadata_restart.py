"""The metadata server dies or is restarted under load: gateways hold requests back, none fails."""

import os
import signal
from functools import partial
from typing import Any

import pytest
from botocore.exceptions import BotoCoreError, ClientError
from tests.chaos.matrix import client_of
from tests.integration.conftest import LiveCluster, NewCluster, new_cluster, wait_until
from tests.support.steady_load import SteadyLoad, body_of

__all__ = ["new_cluster"]

pytestmark = [pytest.mark.integration, pytest.mark.chaos]

BUCKET = "steady"
#: Inline, packed, and a stripe of its own.
SIZES = (900, 20_000, 300_000)
KILLS = int(os.environ.get("EXASTORE_CHAOS_METADATA_KILLS", "2"))


class OnceTried(SteadyLoad):
    """PUT, GET, list and DELETE one after the other, each tried once: nothing hides a failure."""

    def __init__(self, live: LiveCluster, name: str) -> None:
        self.count = 0
        self.failures: list[str] = []
        self._client: Any = client_of(live, attempts=1)
        self._name = name
        super().__init__()

    def _run(self) -> None:
        s3 = self._client
        while not self._stop.is_set():
            key = f"{self._name}/{self.count}"
            try:
                s3.put_object(Bucket=BUCKET, Key=key, Body=body_of(key, SIZES))
                if s3.get_object(Bucket=BUCKET, Key=key)["Body"].read() != body_of(key, SIZES):
                    self.failures.append(f"{key}: wrong bytes")
                s3.head_object(Bucket=BUCKET, Key=key)
                listed = s3.list_objects_v2(Bucket=BUCKET, Prefix=key)["KeyCount"]
                if not listed:
                    self.failures.append(f"{key}: not listed")
                if self.count % 3 == 0:
                    s3.delete_object(Bucket=BUCKET, Key=key)
            except (ClientError, BotoCoreError) as error:
                self.failures.append(f"{key}: {error!r}")
            self.count += 1


def all_went_on(loads: list[OnceTried], counts: list[int]) -> bool:
    return all(load.count > count + 2 for load, count in zip(loads, counts, strict=True))


def test_no_request_fails_when_the_metadata_server_restarts(new_cluster: NewCluster) -> None:
    live = new_cluster("--nodes", "5", "--code", "rs-2-2", "--pg-count", "10")
    client_of(live, attempts=1).create_bucket(Bucket=BUCKET)
    loads = [OnceTried(live, f"load-{number}") for number in range(4)]
    try:
        for turn in range(KILLS):
            wait_until(partial(all_went_on, loads, [load.count for load in loads]), "it runs")
            if turn % 2:
                assert live.run("cluster", "restart", "metadata", "--apply").code == 0
            else:
                os.kill(live.info["metadata"][0]["pid"], signal.SIGKILL)
                live.up_again()
            live.info = live.run("cluster", "up", "--json").json
    finally:
        for load in loads:
            load.stop()
    log = (live.directory / "logs" / "gateway.log").read_text()
    assert "Traceback" not in log, log[log.index("Traceback") - 500 :]
    assert [load.failures for load in loads] == [[]] * len(loads)
