"""Clusters of codes that are not Reed-Solomon, as real processes: they lose a node and heal.

What repair pulls from other nodes is compared with what the code's plans say, byte for byte: the
counters count the data of the messages that arrived, without the 60 bytes of framing of each.
"""

import hashlib
import os
import re
import signal
import urllib.request
from collections import defaultdict
from typing import Any

import grpc
import pytest
from tests.integration.conftest import LiveCluster, NewCluster, wait_until

from exastore.erasure import codec
from exastore.proto.channel import METADATA_MESSAGE_BYTES, channel_options
from exastore.proto.v1 import common_pb2, metadata_pb2, metadata_pb2_grpc

pytestmark = [pytest.mark.integration, pytest.mark.chaos]

BUCKET = "codes"
# Above what is written as copies first: those are not repaired by the cluster's code.
SIZES = [65_537, 80_000, 80_000, 700_001, 5 << 20, 9 << 20]


def body_of(key: str) -> bytes:
    return hashlib.shake_256(key.encode()).digest(SIZES[int(key)])


def fetch_map(live: LiveCluster) -> common_pb2.ClusterMap:
    address = live.info["metadata"][0]["address"]
    with grpc.insecure_channel(address, channel_options(METADATA_MESSAGE_BYTES)) as channel:
        stub = metadata_pb2_grpc.MetadataServiceStub(channel)
        return stub.GetMap(metadata_pb2.GetMapRequest())


def fetch_extents(live: LiveCluster) -> list[common_pb2.Extent]:
    address = live.info["metadata"][0]["address"]
    with grpc.insecure_channel(address, channel_options(METADATA_MESSAGE_BYTES)) as channel:
        stub = metadata_pb2_grpc.MetadataServiceStub(channel)
        batches = stub.ListExtents(metadata_pb2.ListExtentsRequest())
        return [extent for batch in batches for extent in batch.extents]


def pulled_bytes(live: LiveCluster) -> float:
    """What the nodes that live have pulled for rebuilding, by their metrics."""
    total = 0.0
    for node in live.info["nodes"]:
        try:
            with urllib.request.urlopen(node["metrics"], timeout=10) as answer:
                text = answer.read().decode()
        except OSError:
            continue
        found = re.search(r"^exastore_storage_rebuild_read_bytes_total (\S+)$", text, re.MULTILINE)
        assert found is not None
        total += float(found[1])
    return total


def check(client: Any) -> None:
    for number, _ in enumerate(SIZES):
        found = client.get_object(Bucket=BUCKET, Key=str(number))["Body"].read()
        assert found == body_of(str(number)), number


@pytest.mark.parametrize(
    ("code_name", "nodes", "least", "most"),
    [
        # A local group of 3, or the 6 data chunks for a global parity.
        ("lrc-6-2-2", 11, 3.0, 6.0),
        # A part 1 / (5 - 4 + 1) of each of 5 others.
        ("clay-4-2-5", 7, 2.5, 2.5),
    ],
)
def test_a_lost_node_is_rebuilt_from_the_bytes_that_the_code_needs(
    new_cluster: NewCluster, code_name: str, nodes: int, least: float, most: float
) -> None:
    timers = ("--down-after-s", "1", "--out-after-s", "3")
    live = new_cluster("--code", code_name, "--nodes", str(nodes), *timers)
    client = live.client()
    client.create_bucket(Bucket=BUCKET)
    for number, _ in enumerate(SIZES):
        client.put_object(Bucket=BUCKET, Key=str(number), Body=body_of(str(number)))

    wait_until(lambda: live.status().fully_redundant, "every chunk is in place")

    code, cluster_map = codec(code_name), fetch_map(live)
    #: By device: (slot, chunk bytes) of all that it holds.
    held: dict[int, list[tuple[int, int]]] = defaultdict(list)
    for extent in fetch_extents(live):
        for slot, device in enumerate(cluster_map.pgs[extent.pg].device_indexes):
            held[device].append((slot, extent.chunk_bytes))
    victim = max(held, key=lambda device: sum(size for _, size in held[device]))
    lost = sum(size for _, size in held[victim])
    expected = sum(size * code.repair_plan([slot]).bytes_fraction for slot, size in held[victim])
    assert least * lost <= expected <= most * lost

    node_id = cluster_map.nodes[cluster_map.devices[victim].node_index].id
    pid = next(node["pid"] for node in live.info["nodes"] if node["id"] == node_id)
    pulled_before = pulled_bytes(live)
    os.kill(pid, signal.SIGKILL)
    check(client)  # degraded: nobody has noticed yet
    wait_until(lambda: live.status().missing_slot_count > 0, "the loss is noticed")
    check(client)
    wait_until(lambda: live.status().fully_redundant and not live.status().repair.active, "healed")
    status = live.status().repair
    assert status.rebuilt_chunk_bytes == lost
    assert status.read_bytes == expected
    assert pulled_bytes(live) - pulled_before == expected
    scrubbed = live.run("cluster", "scrub", "--json")
    assert scrubbed.code == 0 and scrubbed.json["fully_redundant"] is True, scrubbed.out
    check(client)
