"""Pools in a metadata server: from the configuration to commits, repair, status and audit."""

import json
from pathlib import Path

import pytest
from tests.unit.metadata_cluster import Cluster, pb

from exastore.metadata.core.topology import DomainLevel
from exastore.metadata.namespace.errors import InvalidArgument
from exastore.metadata.service.config import parsed_pool
from exastore.metadata.service.errors import NotReady, WrongPool
from exastore.proto.v1 import metadata_pb2

EU = "eu:pgs=8,region=eu"
FAST = "fast:pgs=8,class=ssd,per_node=1"


class WorldCluster(Cluster):
    """Even nodes are in eu, odd ones in us; every third has SSDs."""

    def heartbeat_of(self, number: int) -> metadata_pb2.HeartbeatRequest:
        request = super().heartbeat_of(number)
        request.node.region = "us" if number % 2 else "eu"
        request.devices[0].device_class = "" if number % 3 else "ssd"
        return request

    def devices_of(self, first_pg: int, count: int) -> set[int]:
        """Devices that the groups name."""
        pgs = self.map.pgs[first_pg : first_pg + count]
        return {device for pg in pgs for device in pg.device_indexes}


async def test_a_map_without_pools_is_stored_as_before() -> None:
    cluster = Cluster()
    await cluster.form()
    assert not cluster.map.pools
    (pool,) = (await cluster.status()).pools
    assert (pool.pool.name, pool.pool.pg_count, pool.violation_count) == ("default", 16, 0)


async def test_groups_lie_where_their_pool_lets_them(tmp_path: Path) -> None:
    cluster = WorldCluster(12, pools=(EU, FAST))
    await cluster.form()
    assert cluster.devices_of(0, 16) == set(range(12))
    assert cluster.devices_of(16, 8) == {0, 2, 4, 6, 8, 10}
    assert cluster.devices_of(24, 8) == {0, 3, 6, 9}
    again = WorldCluster(12, engine=cluster.engine, pools=(EU, FAST))
    await again.service.start()
    assert [pool.name for pool in again.map.pools] == ["default", "eu", "fast"]


async def test_a_bucket_names_its_pool_or_its_region_does() -> None:
    cluster = WorldCluster(12, pools=(EU,))
    await cluster.form()
    names = cluster.service.names
    by_name = await names.create_bucket(pb.CreateBucketRequest(name="by-name", pool="eu"))
    by_region = await names.create_bucket(pb.CreateBucketRequest(name="by-region", region="eu"))
    plain = await names.create_bucket(pb.CreateBucketRequest(name="plain", region="us-east-1"))
    assert (by_name.pool, by_region.pool, plain.pool) == ("eu", "eu", "")
    with pytest.raises(InvalidArgument, match="no pool has the name 'moon'"):
        await names.create_bucket(pb.CreateBucketRequest(name="moon", pool="moon"))


@pytest.mark.parametrize(("pool", "good", "wrong"), [("eu", 16, 15), ("", 15, 16)])
async def test_extents_outside_the_pool_are_refused(pool: str, good: int, wrong: int) -> None:
    cluster = WorldCluster(12, pools=(EU,))
    await cluster.form()
    await cluster.service.names.create_bucket(pb.CreateBucketRequest(name="bucket", pool=pool))
    with pytest.raises(WrongPool):
        await cluster.put("wrong", wrong)
    assert (await cluster.put("good", good)).key == "good"


async def test_repair_and_drain_stay_in_the_pool_and_crossings_are_recorded(
    tmp_path: Path,
) -> None:
    audit = tmp_path / "audit.jsonl"
    cluster = WorldCluster(12, pools=(EU,), audit_file=str(audit))
    await cluster.form()
    cluster.kill(0)
    await cluster.until(cluster.is_whole, within_s=120.0)
    assert cluster.devices_of(16, 8) <= {2, 4, 6, 8, 10}
    request = pb.OperateRequest(operation=pb.OPERATION_DRAIN, device_indexes=[2], apply=True)
    plan = await cluster.service.cluster.operate(request)
    assert plan.violation_count == 0
    await cluster.until(lambda: 2 not in cluster.devices_of(0, 24), within_s=120.0)
    assert cluster.devices_of(16, 8) <= {4, 6, 8, 10}
    assert [pool.violation_count for pool in (await cluster.status()).pools] == [0, 0]
    lines = [json.loads(line) for line in audit.read_text().splitlines()]
    assert {line["action"] for line in lines} == {"MoveAcrossRegions"}
    assert {line["pools"] for line in lines} == {"default"}
    assert {line["target"] for line in lines} <= {"repair", "balance or drain"}
    assert all(line["from_region"] != line["to_region"] for line in lines)


async def test_the_cluster_waits_until_a_pool_has_its_devices() -> None:
    cluster = WorldCluster(4, pools=(EU,))
    await cluster.service.start()
    await cluster.beat()
    with pytest.raises(NotReady, match="pool 'eu': rs-2-1 needs room for 3 chunks"):
        await cluster.service.cluster.get_map(pb.GetMapRequest())


@pytest.mark.parametrize(
    ("item", "problem"),
    [
        ("eu", "NAME:key=value"),
        ("default:pgs=1", "is taken"),
        ("eu:region=eu", "pgs=NUMBER is needed"),
        ("eu:pgs=0", "not understood"),
        ("eu:pgs=4,per_moon=1", "not understood"),
        ("eu:pgs=4,per_rack=0", "at least 1"),
        ("eu:pgs=4,region=", "not understood"),
    ],
)
def test_a_pool_that_makes_no_sense_is_refused(item: str, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        parsed_pool(item, DomainLevel.NODE)


def test_limits_of_a_pool_begin_with_the_smallest_domain() -> None:
    pool = parsed_pool("a:pgs=4, per_region=4 ,per_rack=2,per_node=1", DomainLevel.RACK)
    assert [(item.level, item.max_chunks) for item in pool.limits] == [(1, 1), (2, 2), (4, 4)]
    (only,) = parsed_pool("a:pgs=4", DomainLevel.RACK).limits
    assert (only.level, only.max_chunks) == (2, 1)


def test_pools_need_different_names() -> None:
    with pytest.raises(ValueError, match="names must differ"):
        Cluster(pools=("a:pgs=1", "a:pgs=2"))
