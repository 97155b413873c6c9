"""What a rebuild costs by the way that its reads take: sockets of this machine, TCP, gRPC.

All nodes are in this process, so the processor time is that of both sides. Run with:
python -m pytest -m verify -s tests/verification/test_rebuild_transport.py
"""

import os
import statistics
import time
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry
from tests.support.storage_nodes import Cluster, running_nodes

from exastore.deploy.clock import SystemClock
from exastore.deploy.process import keep_freed_memory
from exastore.erasure import codec
from exastore.proto.links import ChunkTransport
from exastore.proto.v1 import budget_pb2
from exastore.storage.budget import BackgroundBudget
from exastore.storage.metrics import StorageMetrics
from exastore.storage.peers import Peers
from exastore.storage.rebuild import Rebuilder
from exastore.storage.transfers import Transfers

pytestmark = [pytest.mark.verify, pytest.mark.slow]

STRIPES = int(os.environ.get("EXASTORE_VERIFY_REBUILD_STRIPES", "64"))
CHUNK_BYTES = 1 << 20
ROUNDS = 5


async def test_rebuilds_cost_less_over_sockets_than_over_grpc(tmp_path: Path) -> None:
    async with running_nodes(tmp_path) as cluster:
        await compare(cluster)


async def compare(cluster: Cluster) -> None:
    await cluster.store_stripes(pg=0, count=STRIPES, chunk_bytes=CHUNK_BYTES)
    keep_freed_memory()  # as every process of a cluster does
    target = cluster.pg_devices(0)[0]
    node = cluster.node_of(target)
    clock = SystemClock()
    metrics = StorageMetrics(CollectorRegistry())
    budget = BackgroundBudget("", clock, metrics)
    budget.take_grant(budget_pb2.BackgroundGrant())
    # The sources need a grant, too: this metadata server gives none.
    cluster.metadata.grant = budget_pb2.BackgroundGrant()
    answered = cluster.metadata.heartbeat_count + 4 * len(cluster.nodes)
    await cluster.until(lambda: cluster.metadata.heartbeat_count > answered)
    ways = {way: Peers(transport=way) for way in ChunkTransport}
    cpu_s: dict[str, list[float]] = {way: [] for way in ways}
    speeds: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(ROUNDS):
        for way, peers in ways.items():
            await cluster.wipe(target, pg=0)
            rebuilder = Rebuilder(
                Transfers(peers, budget, clock), codec, budget,
                parallelism=8, clock=clock, metrics=metrics,
            )  # fmt: skip
            request = cluster.rebuild_request(0, 0)
            began_s, began = time.monotonic(), os.times()
            (*_, last) = [step async for step in rebuilder.run(node.devices.lane(target), request)]
            spent, elapsed_s = os.times(), time.monotonic() - began_s
            assert last.chunk_count == STRIPES and not last.message
            used_s = spent.user + spent.system - began.user - began.system
            cpu_s[way].append(used_s * 2**30 / last.chunk_bytes)
            speeds[way].append(last.chunk_bytes / elapsed_s / 1e6)
    for peers in ways.values():
        await peers.close()
    median = {way: statistics.median(values[1:]) for way, values in cpu_s.items()}
    for way in ways:
        print(
            f"\n{way}: {median[way]:.2f} s of CPU for each GiB rebuilt, both sides; "
            f"{statistics.median(speeds[way][1:]):.0f} MB/s on this machine as it is",
            end="",
        )
    assert median[ChunkTransport.LOCAL] < median[ChunkTransport.GRPC]
