"""Devices that return after they were OUT, with nodes that are fakes."""

import pytest
from tests.unit.metadata_cluster import Cluster, pb

from exastore.metadata.kv.memory import MemoryEngine
from exastore.metadata.service.config import MetadataConfig
from exastore.metadata.service.convert import columns_of, with_columns
from exastore.metadata.service.storage_client import StorageError
from exastore.proto.v1 import common_pb2, storage_pb2

CLEAN, REBUILDING = common_pb2.SLOT_STATE_CLEAN, common_pb2.SLOT_STATE_REBUILDING
OUT = common_pb2.DEVICE_STATE_OUT
Slots = set[tuple[int, int]]


async def with_objects(cluster: Cluster) -> Cluster:
    """Formed, with an object in every PG."""
    await cluster.form()
    await cluster.new_bucket()
    for pg in range(len(cluster.map.pgs)):
        await cluster.put(f"o{pg}", pg)
    return cluster


def slots_of(cluster: Cluster, device: int) -> Slots:
    return {
        (pg.index, slot)
        for pg in cluster.map.pgs
        for slot, named in enumerate(pg.device_indexes)
        if named == device
    }


def slots_in(cluster: Cluster, state: common_pb2.SlotState.ValueType) -> Slots:
    return {
        (pg.index, slot)
        for pg in cluster.map.pgs
        for slot, found in enumerate(pg.slot_states)
        if found == state
    }


async def given_up(cluster: Cluster, device: int) -> Slots:
    """Kill a device; its slots, all of which rebuild elsewhere, held up by the gate."""
    lost = slots_of(cluster, device)
    cluster.nodes.gate.clear()
    cluster.kill(device)
    await cluster.until(lambda: bool(slots_in(cluster, REBUILDING)))
    await cluster.step()
    assert slots_in(cluster, REBUILDING) == lost
    assert cluster.nodes.running_count > 0
    return lost


async def test_a_device_that_returns_mid_rebuild_gets_its_slots_back() -> None:
    cluster = await with_objects(Cluster(6))
    rows = [list(pg.device_indexes) for pg in cluster.map.pgs]
    lost = await given_up(cluster, 2)
    running = cluster.nodes.running_count
    cluster.revive(2)
    await cluster.step()
    assert [list(pg.device_indexes) for pg in cluster.map.pgs] == rows
    # Those that ran for other devices are cancelled: what runs now, runs on the device itself.
    assert {request.device_index for request in cluster.nodes.requests[running:]} == {2}
    assert cluster.nodes.running_count <= cluster.config.repair_concurrency
    # Nothing is clean before it was verified.
    assert slots_in(cluster, REBUILDING) == lost
    assert sum((await cluster.status()).pgs_by_missing[1:]) == len(lost)
    cluster.nodes.gate.set()
    await cluster.until(cluster.is_whole)
    await cluster.step()
    assert [list(pg.device_indexes) for pg in cluster.map.pgs] == rows
    repair = (await cluster.status()).repair
    assert not repair.active
    assert repair.task_count == repair.done_task_count == len(lost)
    assert repair.rebuilt_chunk_bytes == 0
    assert repair.eta_s == 0


async def test_what_was_rebuilt_before_the_return_stays_where_it_is() -> None:
    cluster = await with_objects(Cluster(6, repair_concurrency=2))
    lost = await given_up(cluster, 2)
    # The gate opens once: the slots that run end, and those that take their room wait again.
    cluster.nodes.pass_gate(2)
    await cluster.until(lambda: len(slots_in(cluster, REBUILDING)) < len(lost))
    kept = lost - slots_in(cluster, REBUILDING)
    assert len(kept) == 2
    cluster.revive(2)
    cluster.nodes.gate.set()
    await cluster.until(cluster.is_whole)
    assert slots_of(cluster, 2) == lost - kept


async def test_a_device_that_returns_after_the_repair_gets_nothing_back_and_is_cleared() -> None:
    cluster = await with_objects(Cluster(6))
    cluster.kill(2)
    await cluster.until(cluster.is_whole)
    assert cluster.nodes.chunks[2]
    await cluster.background.leftovers.run_round()
    assert cluster.background.leftovers.slot_count > 0  # it is away
    cluster.revive(2)
    await cluster.step()
    assert not slots_of(cluster, 2)
    await cluster.background.leftovers.run_round()
    assert cluster.nodes.chunks[2] == set()
    assert cluster.background.leftovers.slot_count == 0
    assert all(cluster.chunk_is_stored(pg, f"o{pg}", i) for pg in range(16) for i in range(3))


async def test_stripes_written_meanwhile_are_completed_on_the_device_that_returned() -> None:
    cluster = await with_objects(Cluster(6))
    lost = await given_up(cluster, 2)
    for pg, _ in lost:
        await cluster.put(f"new{pg}", pg)
    cluster.revive(2)
    await cluster.step()
    cluster.nodes.gate.set()
    await cluster.until(cluster.is_whole)
    await cluster.step()
    for pg, slot in lost:
        assert cluster.map.pgs[pg].device_indexes[slot] == 2
        assert cluster.chunk_is_stored(pg, f"new{pg}", slot)
        assert cluster.chunk_is_stored(pg, f"o{pg}", slot)
    assert (await cluster.status()).repair.rebuilt_chunk_bytes == 64 * len(lost)


async def test_a_returned_slot_whose_verification_fails_is_not_clean() -> None:
    cluster = await with_objects(Cluster(6))
    lost = await given_up(cluster, 2)
    for pg, _ in lost:
        await cluster.put(f"new{pg}", pg)
    cluster.nodes.failing = {2}
    cluster.revive(2)
    await cluster.step()
    cluster.nodes.gate.set()
    for _ in range(5):
        await cluster.step()
    assert slots_in(cluster, REBUILDING) == lost
    assert "could not be rebuilt" in (await cluster.status()).repair.message
    cluster.nodes.failing = set()
    await cluster.until(cluster.is_whole, within_s=120.0)


async def test_a_device_that_flaps_ends_with_all_its_slots_and_no_leftovers() -> None:
    cluster = await with_objects(Cluster(6))
    rows = [list(pg.device_indexes) for pg in cluster.map.pgs]
    for turn in range(3):
        lost = await given_up(cluster, 2)
        for pg, _ in lost:
            await cluster.put(f"turn{turn}-{pg}", pg)
        cluster.revive(2)
        await cluster.step()
    cluster.nodes.gate.set()
    await cluster.until(cluster.is_whole)
    assert [list(pg.device_indexes) for pg in cluster.map.pgs] == rows
    await cluster.background.leftovers.run_round()
    assert cluster.background.leftovers.slot_count == 0
    held = {device: len(chunks) for device, chunks in cluster.nodes.chunks.items()}
    assert sum(held.values()) == 3 * (16 + 3 * len(slots_of(cluster, 2)))


async def test_leftovers_wait_until_the_slot_is_clean_and_name_our_epoch() -> None:
    cluster = await with_objects(Cluster(6))
    lost = await given_up(cluster, 2)
    interim = {(pg, slot): cluster.map.pgs[pg].device_indexes[slot] for pg, slot in lost}
    for pg, _ in lost:
        await cluster.put(f"new{pg}", pg)
    cluster.revive(2)
    await cluster.step()
    await cluster.background.leftovers.run_round()
    assert not cluster.nodes.deletions
    cluster.nodes.gate.set()
    await cluster.until(cluster.is_whole)
    await cluster.background.leftovers.run_round()
    deleted = {
        (chunk.pg, chunk.index): request.device_index
        for request in cluster.nodes.deletions
        for chunk in request.chunks
    }
    assert deleted == interim
    assert {request.given_up_epoch for request in cluster.nodes.deletions} == {cluster.map.epoch}
    for pg, slot in lost:
        assert cluster.chunk_is_stored(pg, f"new{pg}", slot)


async def test_leftovers_whose_deletion_fails_are_kept() -> None:
    cluster = await with_objects(Cluster(6))
    cluster.kill(2)
    await cluster.until(cluster.is_whole)
    cluster.revive(2)
    await cluster.step()

    async def refuse(
        address: str, request: storage_pb2.DeleteChunksRequest
    ) -> storage_pb2.DeleteChunksResponse:
        raise StorageError(f"{address} has given up nothing in {request.given_up_epoch}")

    delete = cluster.nodes.delete_chunks
    cluster.nodes.delete_chunks = refuse  # type: ignore[method-assign]
    await cluster.background.leftovers.run_round()
    assert cluster.background.leftovers.slot_count > 0
    assert cluster.nodes.chunks[2]
    cluster.nodes.delete_chunks = delete  # type: ignore[method-assign]
    await cluster.background.leftovers.run_round()
    assert cluster.background.leftovers.slot_count == 0


async def test_a_group_too_short_to_read_is_saved_by_a_device_that_returns() -> None:
    cluster = await with_objects(Cluster(6))
    await given_up(cluster, 2)
    pg, slot = min(slots_in(cluster, REBUILDING))
    other = next(
        int(device)
        for index, device in enumerate(cluster.map.pgs[pg].device_indexes)
        if index != slot
    )
    cluster.kill(other)
    await cluster.until(lambda: cluster.states()[other] == OUT)
    await cluster.step()
    assert "too few readable slots" in (await cluster.status()).repair.message
    cluster.revive(2)
    cluster.nodes.gate.set()
    await cluster.until(cluster.is_whole, within_s=120.0)
    assert all(cluster.chunk_is_stored(pg, f"o{pg}", i) for pg in range(16) for i in range(3))


async def test_another_server_knows_who_is_waited_for() -> None:
    engine = MemoryEngine()
    first = await with_objects(Cluster(6, engine=engine))
    lost = await given_up(first, 2)
    await first.background.stop()
    second = Cluster(6, engine=engine, clock=first.clock, nodes=first.nodes, holder="server-2")
    second.alive = set(first.alive)
    await second.service.start()
    second.revive(2)
    for _ in range(2):  # takes the lease over, then hears the device
        await second.step()
    second.nodes.gate.set()
    await second.until(second.is_whole)
    assert lost <= slots_of(second, 2)


async def test_maps_stored_before_there_were_previous_devices_load() -> None:
    cluster = Cluster(6)
    message = await cluster.form()
    assert not any(pg.previous_device_indexes for pg in message.pgs)
    columns = columns_of(message, cluster.config.rule)
    assert (columns.pg_previous == -1).all()
    assert with_columns(message, columns) == message


async def test_half_of_the_devices_at_most_are_given_up_and_the_status_says_so() -> None:
    cluster = await with_objects(Cluster(6))
    cluster.kill(0, 1, 2, 3)
    await cluster.until(lambda: cluster.states().count(OUT) == 3)
    for _ in range(3):
        await cluster.step()
    assert cluster.states().count(OUT) == 3
    assert cluster.states()[3] == common_pb2.DEVICE_STATE_DOWN
    message = (await cluster.status()).repair.message
    assert "1 devices are silent" in message and "50%" in message
    request = pb.SetDeviceStateRequest(device_index=3, state=OUT)
    await cluster.service.cluster.set_device_state(request)
    assert cluster.states()[3] == OUT
    cluster.revive(0, 1, 2, 3)
    await cluster.step()
    assert "silent" not in (await cluster.status()).repair.message


@pytest.mark.parametrize("fraction", [-0.1, 1.1])
def test_a_fraction_beyond_all_is_refused(fraction: float) -> None:
    with pytest.raises(ValueError, match="max_out_fraction must be 0 to 1"):
        MetadataConfig(max_out_fraction=fraction)
