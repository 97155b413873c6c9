"""Several gateways behind one port."""

import os
import re
import signal
import urllib.request

import pytest
from tests.integration.conftest import LiveCluster, NewCluster, wait_until

pytestmark = pytest.mark.integration

_REQUESTS = re.compile(
    r'^exastore_gateway_s3_requests_total\{operation="PutObject".*\} (\S+)$', re.M
)


def put_count(metrics: str) -> int:
    with urllib.request.urlopen(metrics, timeout=10) as response:
        return sum(int(float(it)) for it in _REQUESTS.findall(response.read().decode()))


def put_some(cluster: LiveCluster, prefix: str) -> None:
    """Forty objects, each over a connection of its own."""
    client = cluster.client()
    for number in range(40):
        where = {"Bucket": "shared", "Key": f"{prefix}/{number}"}
        url = client.generate_presigned_url("put_object", Params=where)
        with urllib.request.urlopen(urllib.request.Request(url, b"x", method="PUT")) as answer:
            assert answer.status == 200


def test_gateways_share_the_port_and_stand_in_for_each_other(new_cluster: NewCluster) -> None:
    cluster = new_cluster("--gateways", "2", "--nodes", "3", "--code", "rs-2-1")
    gateways = cluster.info["gateways"]
    assert len({item["pid"] for item in gateways}) == 2
    assert {f"http://{item['address']}" for item in gateways} == {cluster.info["s3"]["endpoint"]}
    cluster.client().create_bucket(Bucket="shared")
    put_some(cluster, "both")
    counts = [put_count(item["metrics"]) for item in gateways]
    assert sum(counts) == 40
    assert min(counts) > 0, "the kernel deals out connections"

    os.kill(gateways[0]["pid"], signal.SIGKILL)
    wait_until(lambda: not _is_alive(gateways[0]["pid"]), "the first gateway is dead")
    put_some(cluster, "one")
    assert put_count(gateways[1]["metrics"]) == counts[1] + 40
    endpoint = cluster.info["s3"]["endpoint"]
    cluster.up_again()
    assert cluster.info["s3"]["endpoint"] == endpoint
    assert len({item["pid"] for item in cluster.info["gateways"]} - {gateways[0]["pid"]}) == 2
    listed = cluster.client().list_objects_v2(Bucket="shared")
    assert listed["KeyCount"] == 80


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    with open(f"/proc/{pid}/stat") as stat:
        return stat.read().rpartition(")")[2].split()[0] != "Z"
