"""The metadata service with a clock of ours and nodes that are fakes: map, liveness, lease."""

import asyncio
from collections import Counter

import pytest
from prometheus_client import generate_latest
from tests.unit.metadata_cluster import Cluster, pb

from exastore.metadata.core.map_delta import apply_deltas, checksum, table_of_message
from exastore.metadata.core.topology import DomainLevel, PlacementRule
from exastore.metadata.kv.memory import MemoryEngine
from exastore.metadata.namespace.errors import InvalidArgument
from exastore.metadata.service.config import MetadataConfig
from exastore.metadata.service.convert import columns_of, with_columns
from exastore.metadata.service.errors import LeaseLost, NotReady, StaleEpoch, WrongCluster
from exastore.metadata.service.map_store import map_of_rows, map_rows
from exastore.proto.v1 import common_pb2

UP, DOWN, OUT, DRAINING = 1, 2, 3, 4


async def test_no_map_before_all_devices_have_joined() -> None:
    cluster = Cluster(6)
    await cluster.service.start()
    cluster.alive = {0, 1, 2, 3, 4}
    await cluster.beat()
    with pytest.raises(NotReady, match="5 of 6 devices"):
        await cluster.service.cluster.get_map(pb.GetMapRequest())
    status = await cluster.status()
    assert not status.ready
    assert len(status.nodes) == 5
    assert "5 of 6" in status.repair.message
    response = await cluster.service.cluster.heartbeat(cluster.heartbeat_of(5))
    assert response.epoch == response.map.epoch == 1
    assert list(response.device_indexes) == [5]


async def test_too_few_failure_domains_are_named_and_more_nodes_help() -> None:
    cluster = Cluster(4)
    await cluster.service.start()
    for number in range(4):
        request = cluster.heartbeat_of(0)
        request.node.id = f"n{number % 2}"
        request.node.address = f"a{number % 2}"
        del request.devices[:]
        for device in range(2):
            request.devices.add(uuid=f"d{number % 2}{device}", capacity_bytes=1)
        response = await cluster.service.cluster.heartbeat(request)
        assert list(response.device_indexes) == [0xFFFFFFFF] * 2
    with pytest.raises(NotReady, match="room for 3 chunks of a stripe, at most 1 per node"):
        await cluster.service.cluster.get_map(pb.GetMapRequest())
    await cluster.service.cluster.heartbeat(cluster.heartbeat_of(9))
    assert cluster.map.epoch == 1


async def test_the_first_map_keeps_the_rule_and_loads_every_device_alike() -> None:
    cluster = Cluster(6, pg_count=64)
    message = await cluster.form()
    for pg in message.pgs:
        assert len(set(pg.device_indexes)) == 3
    assert {device for pg in message.pgs for device in pg.device_indexes} == set(range(6))
    held = Counter(device for pg in message.pgs for device in pg.device_indexes)
    assert all(abs(slots - 64 * 3 / 6) <= 1 for slots in held.values())


async def test_a_silent_node_goes_down_then_out_and_up_again_when_it_answers() -> None:
    cluster = Cluster(6, out_after_s=20.0)
    await cluster.form()
    cluster.kill(4)
    await cluster.until(lambda: cluster.states()[4] == DOWN, within_s=6.0)
    status = await cluster.status()
    held = sum(4 in pg.device_indexes for pg in cluster.map.pgs)
    assert list(status.pgs_by_missing) == [16 - held, held, 0, 0]
    epoch = cluster.map.epoch
    cluster.revive(4)
    await cluster.step()
    assert cluster.states() == [UP] * 6
    assert cluster.map.epoch == epoch + 1
    cluster.kill(4)
    await cluster.until(lambda: cluster.states()[4] == OUT, within_s=25.0)


async def test_a_server_that_stood_still_declares_nobody_dead_before_it_has_listened() -> None:
    cluster = Cluster(6)
    await cluster.form()
    cluster.clock.advance(100.0)
    await cluster.background.run_round()
    assert cluster.states() == [UP] * 6
    await cluster.step(0.1)
    assert cluster.states() == [UP] * 6


async def test_a_restarted_server_gives_every_node_time_to_be_heard() -> None:
    engine = MemoryEngine()
    first = Cluster(6, engine=engine)
    before = await first.form()
    await first.background.stop()
    again = Cluster(6, engine=engine, clock=first.clock, holder="server-2")
    first.clock.advance(1000.0)
    await again.service.start()
    assert again.map == before
    again.alive = {0, 1, 2, 3, 4}
    await again.step(1.0)
    assert again.states() == [UP] * 6
    await again.until(lambda: again.states()[5] == DOWN, within_s=6.0)


async def test_another_configuration_than_the_stored_one_is_refused() -> None:
    engine = MemoryEngine()
    await Cluster(6, engine=engine).form()
    with pytest.raises(WrongCluster, match="code"):
        await Cluster(6, engine=engine, code="rs-3-1").service.start()
    with pytest.raises(WrongCluster, match="cluster_id"):
        await Cluster(6, engine=engine, cluster_id="other").service.start()


async def test_a_new_address_is_a_new_epoch_and_a_new_node_holds_nothing() -> None:
    cluster = Cluster(6)
    await cluster.form()
    moved = cluster.heartbeat_of(2)
    moved.node.address = "10.9.9.9:1"
    assert (await cluster.service.cluster.heartbeat(moved)).epoch == 2
    assert cluster.map.nodes[2].address == "10.9.9.9:1"
    response = await cluster.service.cluster.heartbeat(cluster.heartbeat_of(7))
    assert list(response.device_indexes) == [6]
    assert not any(6 in pg.device_indexes for pg in cluster.map.pgs)
    unchanged = await cluster.service.cluster.heartbeat(cluster.heartbeat_of(7))
    assert unchanged.epoch == 3


async def test_two_nodes_with_one_id_are_told_apart() -> None:
    cluster = Cluster(6)
    await cluster.form()
    twin = cluster.heartbeat_of(3)
    twin.node.address = "10.9.9.9:1"
    twin.devices[0].uuid = "another"
    with pytest.raises(InvalidArgument, match="two nodes use the id 'n03'"):
        await cluster.service.cluster.heartbeat(twin)


async def test_a_fenced_device_goes_down_although_its_node_answers() -> None:
    cluster = Cluster(6)
    await cluster.form()
    for _ in range(5):
        cluster.alive -= {1}
        fenced = cluster.heartbeat_of(1)
        fenced.devices[0].fenced = True
        await cluster.service.cluster.heartbeat(fenced)
        await cluster.step()
    assert cluster.states()[1] == DOWN
    assert (await cluster.status()).nodes[1].devices[0].fenced


async def test_what_the_operator_sets_out_stays_out_also_over_a_restart() -> None:
    engine = MemoryEngine()
    cluster = Cluster(6, engine=engine)
    await cluster.form()
    await cluster.service.cluster.set_device_state(
        pb.SetDeviceStateRequest(device_index=2, state=common_pb2.DEVICE_STATE_OUT)
    )
    await cluster.step()
    assert cluster.states()[2] == OUT
    await cluster.background.stop()
    again = Cluster(6, engine=engine, clock=cluster.clock)
    await again.service.start()
    await again.step()
    assert again.states()[2] == OUT
    await again.service.cluster.set_device_state(
        pb.SetDeviceStateRequest(device_index=2, state=common_pb2.DEVICE_STATE_UP)
    )
    assert again.states()[2] == UP


@pytest.mark.parametrize(("device", "state"), [(99, OUT), (0, 0), (0, DOWN)])
async def test_states_that_an_operator_cannot_set_are_refused(device: int, state: int) -> None:
    cluster = Cluster(6)
    await cluster.form()
    request = pb.SetDeviceStateRequest(device_index=device)
    request.state = common_pb2.DeviceState.ValueType(state)
    with pytest.raises(InvalidArgument):
        await cluster.service.cluster.set_device_state(request)


async def test_watchers_get_the_map_at_once_and_then_every_change() -> None:
    cluster = Cluster(6)
    await cluster.service.start()
    watch = cluster.service.cluster.watch_map(pb.GetMapRequest())
    waiting = asyncio.ensure_future(anext(watch))
    await cluster.beat()
    assert (await waiting).epoch == 1
    waiting = asyncio.ensure_future(anext(watch))
    await cluster.service.cluster.heartbeat(cluster.heartbeat_of(7))
    assert (await waiting).epoch == 2


# ---- fencing ----


async def test_extents_written_under_an_older_map_of_their_pg_are_refused() -> None:
    cluster = Cluster(6)
    await cluster.form()
    await cluster.new_bucket()
    await cluster.put("fresh", 0)
    old_epoch = cluster.map.epoch
    cluster.kill(int(cluster.map.pgs[0].device_indexes[0]))
    await cluster.until(cluster.is_whole)
    assert cluster.map.pgs[0].epoch > old_epoch
    request = pb.CommitObjectRequest(
        object=pb.Object(
            bucket="bucket",
            key="late",
            version_id="v-late",
            size_bytes=1,
            extents=[
                common_pb2.Extent(
                    pg=0,
                    stripe_id=b"late",
                    code="rs-2-1",
                    epoch=old_epoch,
                    data_bytes=1,
                    chunk_bytes=64,
                    chunk_crc32c=[0, 0, 0],
                )
            ],
        )
    )
    with pytest.raises(StaleEpoch) as stale:
        await cluster.service.names.commit_object(request)
    assert (stale.value.pg, stale.value.written_epoch) == (0, old_epoch)
    request.object.extents[0].epoch = cluster.map.epoch
    await cluster.service.names.commit_object(request)


async def test_a_server_with_an_outdated_map_reloads_before_it_judges_an_extent() -> None:
    engine = MemoryEngine()
    first = Cluster(6, engine=engine)
    await first.form()
    await first.new_bucket()
    second = Cluster(6, engine=engine, clock=first.clock, nodes=first.nodes, holder="server-2")
    await second.service.start()
    first.kill(int(first.map.pgs[0].device_indexes[0]))
    await first.until(first.is_whole)
    assert second.map.epoch < first.map.epoch
    with pytest.raises(StaleEpoch):
        await second.put("late", 0)
    assert second.map == first.map


@pytest.mark.parametrize(
    "change",
    [
        {"pg": 99},
        {"code": "rs-9-1"},
        {"chunk_crc32c": [1]},
        {"epoch": 99},
        {"stripe_id": b""},
        {"chunk_bytes": 1},
        {"missing_indexes": [0, 1]},
        {"missing_indexes": [7]},
    ],
)
async def test_extents_that_cannot_be_are_refused(change: dict[str, object]) -> None:
    cluster = Cluster(6)
    await cluster.form()
    await cluster.new_bucket()
    good: dict[str, object] = {
        "pg": 0,
        "stripe_id": b"s",
        "code": "rs-2-1",
        "epoch": 1,
        "data_bytes": 9,
        "chunk_bytes": 64,
        "chunk_crc32c": [1, 2, 3],
    }
    extent = common_pb2.Extent(**{**good, **change})  # type: ignore[arg-type]
    item = pb.Object(bucket="bucket", key="k", version_id="v", size_bytes=9, extents=[extent])
    with pytest.raises(InvalidArgument):
        await cluster.service.names.commit_object(pb.CommitObjectRequest(object=item))


# ---- the lease ----


async def test_one_server_at_a_time_holds_the_lease_and_a_paused_one_cannot_commit() -> None:
    engine = MemoryEngine()
    first = Cluster(6, engine=engine)
    await first.form()
    second = Cluster(6, engine=engine, clock=first.clock, holder="server-2")
    await second.service.start()
    assert not await second.service.lease.keep()
    guard = first.service.lease.guard()
    await engine.transact(guard)
    first.clock.advance(first.config.lease_s + 0.1)
    assert await second.service.lease.keep()
    with pytest.raises(LeaseLost):
        await engine.transact(guard)
    assert not await first.service.lease.keep()


async def test_a_stopped_server_gives_the_lease_up_at_once() -> None:
    engine = MemoryEngine()
    first = Cluster(6, engine=engine)
    await first.form()
    await first.background.stop()
    second = Cluster(6, engine=engine, clock=first.clock, holder="server-2")
    assert await second.service.lease.keep()


# ---- configuration, conversion, metrics ----


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"code": "rs-x"}, "rs-K-M"),
        ({"code": "lrc-12-2-2"}, "needs 16 devices"),
        ({"code": "clay-4-2-4"}, "as helpers"),
        ({"code": "rs-8-4", "bootstrap_device_count": 8}, "needs 12 devices"),
        ({"domain": "planet"}, "zone"),
        ({"pg_count": 0}, "pg_count"),
        ({"down_after_s": 10.0, "out_after_s": 5.0}, "down_after_s"),
        ({"down_after_s": 0.5, "tick_s": 0.25}, "four times tick_s"),
        ({"repair_concurrency": 0}, "repair_concurrency"),
        ({"cluster_id": ""}, "cluster_id"),
    ],
)
def test_a_configuration_that_cannot_work_says_what_to_change(
    options: dict[str, object], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        MetadataConfig(**options)  # type: ignore[arg-type]


async def test_a_map_survives_columns_and_rows() -> None:
    message = await Cluster(20, pg_count=3000).form()
    rule = PlacementRule(level=DomainLevel.NODE)
    columns = columns_of(message, rule)
    assert with_columns(message, columns) == message
    rows = map_rows(message)
    assert map_of_rows(rows) == message
    assert max(len(value) for value in rows.values()) < 65536


def test_equal_rack_names_in_two_zones_are_two_racks() -> None:
    message = common_pb2.ClusterMap(epoch=1, code="rs-2-1")
    for index, (zone, rack) in enumerate([("a", "r1"), ("b", "r1"), ("a", "r1"), ("a", "r2")]):
        message.nodes.add(index=index, zone=zone, rack=rack, region="x")
        message.devices.add(index=index, node_index=index, weight=1.0, state=1)
    message.pgs.add(device_indexes=[0, 1, 0xFFFFFFFF], slot_states=[0, 0, 1], epoch=1)
    columns = columns_of(message, PlacementRule())
    assert columns.topology.node_rack.tolist() == [0, 1, 0, 2]
    assert columns.topology.rack_zone.tolist() == [0, 1, 0]
    assert columns.pg_devices.tolist() == [[0, 1, -1]]
    assert with_columns(message, columns) == message


async def test_metrics_show_the_map() -> None:
    cluster = Cluster(6)
    await cluster.form()
    cluster.kill(0)
    await cluster.until(lambda: cluster.states()[0] == DOWN)
    text = generate_latest(cluster.registry).decode()
    assert 'exastore_metadata_devices{state="down"} 1.0' in text
    assert 'exastore_metadata_nodes{state="up"} 5.0' in text
    assert f"exastore_metadata_map_epoch {cluster.map.epoch}.0" in text
    assert "exastore_metadata_lease_held 1.0" in text


# ---- deltas ----


async def test_who_knows_a_recent_epoch_gets_deltas_that_lead_to_the_map() -> None:
    cluster = Cluster(6)
    old = common_pb2.ClusterMap()
    old.CopyFrom(await cluster.form())
    cluster.kill(2)
    await cluster.until(lambda: cluster.states()[2] == 3)
    await cluster.until(cluster.is_whole)
    cluster.alive.add(6)
    await cluster.step()
    new = cluster.map
    assert new.epoch >= old.epoch + 3
    request = pb.GetMapRequest(known_epoch=old.epoch, takes_deltas=True)
    update = await cluster.service.cluster.get_map(request)
    assert not update.pgs and update.epoch == new.epoch
    assert update.ByteSize() < new.ByteSize()
    assert [delta.from_epoch for delta in update.deltas] == list(range(old.epoch, new.epoch))
    table = apply_deltas(table_of_message(old.epoch, old.devices, old.pgs), update.deltas)
    assert checksum(table) == checksum(table_of_message(new.epoch, new.devices, new.pgs))
    assert [d.uuid for delta in update.deltas for d in delta.devices] == ["d06"]
    assert [n.id for delta in update.deltas for n in delta.nodes] == ["n06"]


async def test_who_knows_too_little_or_takes_no_deltas_gets_the_whole_map() -> None:
    engine = MemoryEngine()
    cluster = Cluster(6, engine=engine)
    old = await cluster.form()
    cluster.kill(2)
    await cluster.until(lambda: cluster.states()[2] == 2)
    restarted = Cluster(6, engine=engine, clock=cluster.clock, nodes=cluster.nodes, holder="two")
    await restarted.service.start()
    for service, request in (
        (cluster.service, pb.GetMapRequest(known_epoch=old.epoch)),
        (cluster.service, pb.GetMapRequest(takes_deltas=True)),
        (cluster.service, pb.GetMapRequest(known_epoch=10**6, takes_deltas=True)),
        (restarted.service, pb.GetMapRequest(known_epoch=old.epoch, takes_deltas=True)),
    ):
        update = await service.cluster.get_map(request)
        assert len(update.pgs) == 16 and not update.deltas


async def test_a_heartbeat_brings_deltas() -> None:
    cluster = Cluster(6)
    old = await cluster.form()
    request = cluster.heartbeat_of(1)
    request.known_epoch, request.takes_deltas = old.epoch, True
    assert not (await cluster.service.cluster.heartbeat(request)).HasField("map")
    cluster.kill(2)
    await cluster.until(lambda: cluster.states()[2] == 2)
    answer = await cluster.service.cluster.heartbeat(request)
    assert len(answer.map.deltas) == 1 and not answer.map.pgs
