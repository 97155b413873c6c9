"""What the holder of the background lease grants to nodes."""

import pytest
from tests.unit.metadata_cluster import Cluster

from exastore.metadata.namespace.errors import InvalidArgument
from exastore.proto.v1 import budget_pb2

MIB = 1 << 20


class Node:
    """A node that moves as much as it may, or as much as it wants."""

    def __init__(self, cluster: Cluster, number: int, rack: str = "") -> None:
        self.cluster = cluster
        self.request = cluster.heartbeat_of(number)
        if rack:
            self.request.node.rack = rack
        self.request.load.SetInParent()

    def beat(self) -> budget_pb2.BackgroundGrant | None:
        return self.cluster.service.budgets.grant(self.request)

    def move(self, byte_count: int, *, p99_s: float = 0.0, requests: int = 0) -> None:
        load = self.request.load
        load.sent_bytes += byte_count
        load.rack_sent_bytes += byte_count
        load.foreground_p99_s, load.foreground_count = p99_s, requests


async def formed(**options: object) -> Cluster:
    cluster = Cluster(**options)  # type: ignore[arg-type]  # options of the configuration
    await cluster.form()
    return cluster


async def test_budgets_are_those_of_the_configuration_until_somebody_sets_others() -> None:
    cluster = await formed(device_budget_bytes_per_s=7, node_budget_bytes_per_s=9 * MIB)
    node = Node(cluster, 0)
    grant = node.beat()
    assert grant is not None
    assert (grant.device_bytes_per_s, grant.node_bytes_per_s) == (7, 9 * MIB)
    assert not grant.has_rack_limit
    wanted = budget_pb2.Budgets(device_bytes_per_s=8, floor_bytes_per_s=MIB)
    await cluster.service.budgets.set(budget_pb2.SetBudgetsRequest(budgets=wanted))
    grant = node.beat()
    assert grant is not None and grant.device_bytes_per_s == 8
    # Another server of the same engine learns it in its next round.
    other = Cluster(engine=cluster.engine, clock=cluster.clock, holder="server-2")
    await other.service.start()
    await other.background.run_round()
    assert other.service.budgets.status().budgets == wanted
    assert Node(other, 0).beat() is None, "it does not hold the lease"


async def test_budgets_that_would_stop_repair_for_good_are_refused() -> None:
    cluster = await formed()
    with pytest.raises(InvalidArgument):
        await cluster.service.budgets.set(budget_pb2.SetBudgetsRequest())


async def test_a_node_is_paced_by_the_latency_that_it_or_a_gateway_sees() -> None:
    cluster = await formed(foreground_p99_s=0.1, budget_floor_bytes_per_s=MIB)
    node, spared = Node(cluster, 0), Node(cluster, 1)
    for one in (node, spared):
        grant = one.beat()
        assert grant is not None and grant.node_bytes_per_s == 0, "no limit"
    grant = None
    for _ in range(30):
        cluster.clock.advance(1.0)
        report = budget_pb2.ReportLatencyRequest()
        report.nodes.add(address=node.request.node.address, p99_s=0.5, count=100)
        cluster.service.budgets.report(report)
        for one in (node, spared):
            one.move(64 * MIB, p99_s=0.01, requests=100)
            grant = one.beat()
    assert grant is not None and grant.node_bytes_per_s == 0, "clients do not wait for this one"
    grant = node.beat()
    assert grant is not None and grant.node_bytes_per_s == MIB
    found = {told.node_id: told for told in cluster.service.budgets.status().nodes}
    assert found["n00"].foreground_p99_s == 0.5
    assert found["n00"].background_bytes_per_s == 64 * MIB


async def test_clients_are_not_heeded_while_one_more_loss_would_cost_data() -> None:
    cluster = await formed(foreground_p99_s=0.1, out_after_s=1000.0)
    node = Node(cluster, 0)
    node.beat()
    cluster.kill(5)
    await cluster.until(lambda: 2 in cluster.states())
    assert cluster.service.budgets.status().is_urgent
    grant = None
    for _ in range(10):
        cluster.clock.advance(1.0)
        node.move(64 * MIB, p99_s=5.0, requests=100)
        grant = node.beat()
    assert grant is not None and grant.node_bytes_per_s == 0


async def test_a_rack_shares_its_uplink_among_its_nodes_and_never_gives_more() -> None:
    rate = 12 * MIB
    cluster = await formed(rack_budget_bytes_per_s=rate)
    nodes = [Node(cluster, number, rack="ab"[number // 4]) for number in range(6)]
    for turn in range(30):
        cluster.clock.advance(0.5)
        for node in nodes:
            node.move(100 * MIB)
            node.request.load.rack_wait_count += 1
            grant = node.beat()
            assert grant is not None and grant.has_rack_limit
            if turn < 9:
                assert not grant.rack_share_bytes_per_s, "a predecessor may have given it all"
            node.request.load.rack_share_bytes_per_s = grant.rack_share_bytes_per_s
        for rack in (nodes[:4], nodes[4:]):
            used = sum(node.request.load.rack_share_bytes_per_s for node in rack)
            assert used <= rate * 1.000001
    shares = [node.request.load.rack_share_bytes_per_s for node in nodes]
    assert shares == pytest.approx([rate / 4] * 4 + [rate / 2] * 2)
    status = cluster.service.budgets.status()
    assert [told.leased_bytes_per_s for told in status.racks] == pytest.approx([rate, rate])
