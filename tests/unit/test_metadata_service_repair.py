"""Repair, degraded stripes and trash of the metadata service, with nodes that are fakes."""

import pytest
from prometheus_client import generate_latest
from tests.unit.metadata_cluster import Cluster, pb

from exastore.metadata.kv.memory import MemoryEngine
from exastore.proto.v1 import common_pb2

REBUILDING = common_pb2.SLOT_STATE_REBUILDING


async def with_objects(cluster: Cluster) -> Cluster:
    """Formed, with an object in every PG."""
    await cluster.form()
    await cluster.new_bucket()
    for pg in range(len(cluster.map.pgs)):
        await cluster.put(f"o{pg}", pg)
    return cluster


def all_chunks_stored(cluster: Cluster) -> bool:
    return all(
        cluster.chunk_is_stored(pg, f"o{pg}", index)
        for pg in range(len(cluster.map.pgs))
        for index in range(len(cluster.map.pgs[pg].device_indexes))
    )


async def test_lost_slots_are_rebuilt_elsewhere_and_then_clean() -> None:
    cluster = await with_objects(Cluster(6))
    cluster.kill(2)
    await cluster.until(cluster.is_whole)
    assert all_chunks_stored(cluster)
    await cluster.step()
    repair = (await cluster.status()).repair
    assert not repair.active
    assert repair.task_count == repair.done_task_count > 0
    assert repair.rebuilt_chunk_bytes == 64 * repair.task_count
    assert repair.eta_s == 0
    assert list((await cluster.status()).pgs_by_missing) == [16, 0, 0, 0]
    assert max(len(request.sources) for request in cluster.nodes.requests) == 2
    text = generate_latest(cluster.registry).decode()
    assert 'exastore_metadata_repair_results_total{result="ok"}' in text


async def test_at_most_so_many_rebuilds_run_at_once_and_progress_has_an_eta() -> None:
    cluster = await with_objects(Cluster(6, repair_concurrency=2))
    cluster.nodes.gate.clear()
    cluster.kill(1)
    await cluster.until(lambda: any(REBUILDING in pg.slot_states for pg in cluster.map.pgs))
    for _ in range(3):
        await cluster.step()
    assert cluster.nodes.running_count == cluster.nodes.most_running_count == 2
    repair = (await cluster.status()).repair
    assert repair.active
    assert repair.eta_s == -1
    # The forecast covers the slots that wait, too: each will hold one chunk.
    assert repair.total_chunk_bytes == 64 * repair.task_count > 64 * 2
    cluster.nodes.gate.set()
    await cluster.background.repair.work.wait_for_running()
    assert (await cluster.status()).repair.eta_s >= 0
    await cluster.until(cluster.is_whole)
    assert cluster.nodes.most_running_count == 2


async def test_the_bandwidth_is_shared_by_the_rebuilds() -> None:
    cluster = await with_objects(
        Cluster(6, repair_concurrency=4, repair_bandwidth_bytes_per_s=4000)
    )
    cluster.kill(1)
    await cluster.until(cluster.is_whole)
    assert {request.bandwidth_bytes_per_s for request in cluster.nodes.requests} == {1000}


async def test_a_failed_rebuild_is_not_clean_and_is_tried_again_later() -> None:
    cluster = await with_objects(Cluster(4))
    cluster.nodes.failing = {0, 1, 2, 3}
    cluster.kill(3)
    await cluster.until(lambda: len(cluster.nodes.requests) > 0)
    for _ in range(5):
        await cluster.step()
    repair = (await cluster.status()).repair
    assert repair.active
    assert repair.done_task_count == 0
    assert "could not be rebuilt" in repair.message
    assert any(REBUILDING in pg.slot_states for pg in cluster.map.pgs)
    cluster.nodes.failing = set()
    await cluster.until(cluster.is_whole, within_s=120.0)
    assert all_chunks_stored(cluster)


async def test_leftovers_of_writes_never_committed_do_not_hold_repair_up() -> None:
    cluster = await with_objects(Cluster(6))
    for pg in range(len(cluster.map.pgs)):
        device = cluster.map.pgs[pg].device_indexes[0]
        cluster.nodes.chunks[device].add((pg, b"leftover", 0))
    cluster.kill(2)
    await cluster.until(cluster.is_whole)
    assert all_chunks_stored(cluster)


async def test_a_target_that_dies_is_replaced_by_another() -> None:
    cluster = await with_objects(Cluster(7, code="rs-2-2"))
    cluster.nodes.gate.clear()
    cluster.kill(0)
    await cluster.until(lambda: len(cluster.nodes.requests) > 0)
    target = cluster.nodes.requests[0].device_index
    cluster.kill(target)
    cluster.nodes.gate.set()
    await cluster.until(cluster.is_whole)
    assert all_chunks_stored(cluster)


async def test_pgs_that_cannot_be_read_wait_for_their_devices() -> None:
    cluster = await with_objects(Cluster(6))
    row = list(cluster.map.pgs[0].device_indexes)
    cluster.kill(*row[:2])
    await cluster.until(lambda: cluster.states().count(3) == 2)
    for _ in range(3):
        await cluster.step()
    assert list(cluster.map.pgs[0].device_indexes) == row
    assert "too few readable slots" in (await cluster.status()).repair.message
    cluster.revive(*row[:2])
    await cluster.until(cluster.is_whole)
    await cluster.step()
    assert all_chunks_stored(cluster)
    assert not (await cluster.status()).repair.active


async def test_another_server_goes_on_with_a_repair_that_was_begun() -> None:
    engine = MemoryEngine()
    first = await with_objects(Cluster(6, engine=engine))
    first.nodes.gate.clear()
    first.kill(5)
    await first.until(lambda: any(REBUILDING in pg.slot_states for pg in first.map.pgs))
    await first.background.stop()
    second = Cluster(6, engine=engine, clock=first.clock, nodes=first.nodes, holder="server-2")
    second.alive = set(first.alive)
    await second.service.start()
    second.nodes.gate.set()
    await second.until(second.is_whole)
    assert all_chunks_stored(second)


# ---- degraded stripes ----


async def test_a_stripe_committed_with_a_missing_chunk_is_completed() -> None:
    cluster = await with_objects(Cluster(6))
    device = int(cluster.map.pgs[3].device_indexes[1])
    cluster.kill(device)
    await cluster.until(lambda: cluster.states()[device] == 2)
    await cluster.put("short", 3, missing=(1,))
    await cluster.background.degraded.run_round()
    assert (await cluster.status()).degraded_stripe_count == 1
    assert not cluster.chunk_is_stored(3, "short", 1)
    cluster.revive(device)
    await cluster.step()
    await cluster.background.degraded.run_round()
    assert (await cluster.status()).degraded_stripe_count == 0
    assert cluster.chunk_is_stored(3, "short", 1)
    got = await cluster.service.names.get_object(pb.GetObjectRequest(bucket="bucket", key="short"))
    assert not got.extents[0].missing_indexes


async def test_one_stripe_that_fails_does_not_keep_others_degraded() -> None:
    cluster = await with_objects(Cluster(6))
    await cluster.put("good", 3, missing=(1,))
    await cluster.put("bad", 3, missing=(1,))
    for chunks in cluster.nodes.chunks.values():
        chunks -= {(3, b"bad".ljust(16, b"\x00"), 0)}
    await cluster.background.degraded.run_round()
    assert (await cluster.status()).degraded_stripe_count == 1
    assert cluster.chunk_is_stored(3, "good", 1)


# ---- trash ----


async def delete(cluster: Cluster, *keys: str) -> None:
    await cluster.service.names.delete_objects(pb.DeleteObjectsRequest(bucket="bucket", keys=keys))


async def test_chunks_of_deleted_objects_go_after_the_grace_period() -> None:
    cluster = await with_objects(Cluster(6))
    await delete(cluster, "o1", "o2")
    await cluster.background.trash.run_round()
    assert (await cluster.status()).trash_extent_count == 2
    assert cluster.chunk_is_stored(1, "o1", 0)
    await cluster.step(2.9)
    await cluster.step(2.9)
    await cluster.background.trash.run_round()
    assert (await cluster.status()).trash_extent_count == 0
    for index in range(3):
        assert not cluster.chunk_is_stored(1, "o1", index)
        assert not cluster.chunk_is_stored(2, "o2", index)
        assert cluster.chunk_is_stored(0, "o0", index)


async def test_trash_waits_for_devices_that_are_away() -> None:
    cluster = await with_objects(Cluster(6, out_after_s=1000.0))
    device = int(cluster.map.pgs[1].device_indexes[0])
    cluster.kill(device)
    await cluster.until(lambda: cluster.states()[device] == 2)
    await delete(cluster, *(f"o{pg}" for pg in range(16)))
    for _ in range(4):
        await cluster.step(2.0)
    await cluster.background.trash.run_round()
    held = sum(device in pg.device_indexes for pg in cluster.map.pgs)
    assert (await cluster.status()).trash_extent_count == held > 0
    cluster.revive(device)
    await cluster.step()
    await cluster.background.trash.run_round()
    assert (await cluster.status()).trash_extent_count == 0
    assert not any(cluster.nodes.chunks.values())


async def test_trash_whose_deletion_fails_is_kept() -> None:
    cluster = await with_objects(Cluster(6))
    await delete(cluster, "o0")
    for _ in range(4):
        await cluster.step(2.0)
    device = int(cluster.map.pgs[0].device_indexes[0])
    cluster.nodes.dead = {device}  # not noticed yet
    await cluster.background.trash.run_round()
    assert (await cluster.status()).trash_extent_count == 1
    cluster.nodes.dead = set()
    await cluster.background.trash.run_round()
    assert (await cluster.status()).trash_extent_count == 0
    assert not cluster.chunk_is_stored(0, "o0", 0)


async def test_a_server_without_the_lease_deletes_and_rebuilds_nothing() -> None:
    engine = MemoryEngine()
    first = await with_objects(Cluster(6, engine=engine))
    second = Cluster(6, engine=engine, clock=first.clock, nodes=first.nodes, holder="server-2")
    await second.service.start()
    await delete(first, "o0")
    await first.put("short", 3, missing=(1,))
    for _ in range(4):
        await first.step(1.9)
        await second.background.run_round()
    await second.background.trash.run_round()
    await second.background.degraded.run_round()
    assert first.chunk_is_stored(0, "o0", 0)
    assert not first.chunk_is_stored(3, "short", 1)


@pytest.mark.parametrize("work", ["run", "stop"])
async def test_the_loops_start_and_stop(work: str) -> None:
    cluster = Cluster(6)
    await cluster.service.start()
    cluster.background.start()
    if work == "run":
        await cluster.beat()
    await cluster.background.stop()
    assert not cluster.service.lease.is_held


async def test_slots_that_end_together_are_clean_in_one_epoch() -> None:
    cluster = await with_objects(Cluster(6))
    cluster.kill(1)
    await cluster.until(lambda: any(REBUILDING in pg.slot_states for pg in cluster.map.pgs))
    rebuilding = sum(REBUILDING in pg.slot_states for pg in cluster.map.pgs)
    before = cluster.map.epoch
    await cluster.until(cluster.is_whole)
    # Only as many rebuild at once as the limit says, yet all of them end within a round or two.
    assert rebuilding > 4
    assert cluster.map.epoch <= before + 2


async def test_a_slot_whose_pg_changed_meanwhile_is_verified_again() -> None:
    cluster = await with_objects(Cluster(7, code="rs-2-2"))
    cluster.nodes.gate.clear()
    cluster.kill(1)
    await cluster.until(lambda: len(cluster.nodes.requests) > 0)
    first = cluster.nodes.requests[0]
    other = next(
        int(device)
        for slot, device in enumerate(cluster.map.pgs[first.pg].device_indexes)
        if slot != first.index
    )
    cluster.kill(other)
    await cluster.until(lambda: cluster.states()[other] == 3)
    cluster.nodes.gate.set()
    await cluster.until(cluster.is_whole)
    asked = [r for r in cluster.nodes.requests if (r.pg, r.index) == (first.pg, first.index)]
    assert len(asked) > 1
    assert all_chunks_stored(cluster)
