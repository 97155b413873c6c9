"""Draining, removing, replacing and balancing devices, with nodes that are fakes."""

from collections import Counter

import pytest
from tests.unit.metadata_cluster import Cluster, pb

from exastore.metadata.core.balance import recovery_spread, rule_violations
from exastore.metadata.core.repair import classify
from exastore.metadata.kv.memory import MemoryEngine
from exastore.metadata.namespace.errors import InvalidArgument
from exastore.metadata.service.errors import Refused
from exastore.proto.v1 import budget_pb2, common_pb2, metadata_pb2

CLEAN, MOVING = common_pb2.SLOT_STATE_CLEAN, common_pb2.SLOT_STATE_MOVING
UP, OUT = common_pb2.DEVICE_STATE_UP, common_pb2.DEVICE_STATE_OUT
DRAINING = common_pb2.DEVICE_STATE_DRAINING
DRAIN, UNDRAIN = pb.OPERATION_DRAIN, pb.OPERATION_UNDRAIN
REMOVE, REPLACE, REPAIR = pb.OPERATION_REMOVE, pb.OPERATION_REPLACE, pb.OPERATION_REPAIR
BALANCE, STOP_BALANCE = pb.OPERATION_BALANCE, pb.OPERATION_STOP_BALANCE


async def with_objects(cluster: Cluster) -> Cluster:
    """Formed, with an object in every PG."""
    await cluster.form()
    await cluster.new_bucket()
    for pg in range(len(cluster.map.pgs)):
        await cluster.put(f"o{pg}", pg)
    return cluster


async def operate(
    cluster: Cluster,
    operation: metadata_pb2.Operation.ValueType,
    *devices: int,
    replacement: int = 0,
    apply: bool = True,
) -> metadata_pb2.OperationPlan:
    return await cluster.service.cluster.operate(
        pb.OperateRequest(
            operation=operation,
            device_indexes=devices,
            replacement_index=replacement,
            apply=apply,
        )
    )


def held(cluster: Cluster) -> Counter[int]:
    return Counter(int(device) for pg in cluster.map.pgs for device in pg.device_indexes)


def moving_count(cluster: Cluster) -> int:
    return sum(list(pg.slot_states).count(MOVING) for pg in cluster.map.pgs)


def is_all_readable(cluster: Cluster) -> bool:
    """Every chunk of every committed object can be read where the map says."""
    columns = cluster.service.maps.columns
    assert columns is not None
    assert not rule_violations(columns.topology, columns.rule, columns.pg_devices).any()
    if not classify(columns).readable.all():
        return False
    for pg in cluster.map.pgs:
        stripe_id = f"o{pg.index}".encode().ljust(16, b"\x00")
        for slot, device in enumerate(pg.device_indexes):
            holders = {device}
            if pg.slot_states[slot] == MOVING:
                holders.add(pg.previous_device_indexes[slot])
            if not any((pg.index, stripe_id, slot) in cluster.nodes.chunks[d] for d in holders):
                return False
    return True


async def until_still(cluster: Cluster, *, within_s: float = 120.0) -> None:
    """Until all moves are done; everything is readable on the way."""

    def is_still() -> bool:
        assert is_all_readable(cluster)
        status = metadata_pb2.ClusterStatus()
        cluster.background.slot_mover.add_status(status)
        moves = status.moves
        return not moves.moving_slot_count and not moves.waiting_slot_count and not moves.balancing

    await cluster.step()
    await cluster.until(is_still, within_s=within_s)
    await cluster.background.leftovers.run_round()


async def test_a_drained_device_ends_empty_and_nothing_is_unreadable_on_the_way() -> None:
    cluster = await with_objects(Cluster(6))
    rows = [list(pg.device_indexes) for pg in cluster.map.pgs]
    plan = await operate(cluster, DRAIN, 2, apply=False)
    assert not plan.applied and plan.move_count == plan.minimum_move_count == held(cluster)[2] > 0
    assert plan.violation_count == plan.unplaced_count == 0
    assert cluster.states()[2] == UP
    await operate(cluster, DRAIN, 2)
    assert cluster.states()[2] == DRAINING
    await until_still(cluster)
    assert held(cluster)[2] == 0
    assert not cluster.nodes.chunks[2]
    for row, pg in zip(rows, cluster.map.pgs, strict=True):
        assert [d for d in row if d != 2] == [d for d in pg.device_indexes if d in row]
    # What could be copied was copied: one chunk read for one written.
    moves = (await cluster.status()).moves
    assert moves.progress.read_bytes == moves.progress.rebuilt_chunk_bytes == 64 * plan.move_count
    assert moves.progress.task_count == moves.progress.done_task_count == plan.move_count
    assert not moves.progress.active and list(moves.draining_device_indexes) == [2]


async def test_at_most_the_allowed_fraction_moves_at_once() -> None:
    cluster = await with_objects(Cluster(6, max_misplaced_fraction=0.05, moves_per_device=1))
    cluster.nodes.gate.clear()
    await operate(cluster, DRAIN, 2)
    for _ in range(5):
        await cluster.step()
    assert moving_count(cluster) == 2  # of 48 slots
    # Both leave the same device.
    assert cluster.nodes.most_running_count == 1
    moves = (await cluster.status()).moves
    assert moves.moving_slot_count == 2
    assert moves.waiting_slot_count == held(cluster)[2]
    cluster.nodes.gate.set()
    await until_still(cluster)
    assert held(cluster)[2] == 0


async def test_objects_written_during_a_move_go_to_its_target() -> None:
    cluster = await with_objects(Cluster(6))
    cluster.nodes.gate.clear()
    await operate(cluster, DRAIN, 2)
    await cluster.step()
    for pg in range(16):
        await cluster.put(f"new{pg}", pg)
    cluster.nodes.gate.set()
    await until_still(cluster)
    for pg in range(16):
        for slot in range(3):
            assert cluster.chunk_is_stored(pg, f"new{pg}", slot)
            assert cluster.chunk_is_stored(pg, f"o{pg}", slot)


async def test_a_drain_that_is_cancelled_keeps_what_has_moved_and_ends() -> None:
    cluster = await with_objects(Cluster(6))
    before = held(cluster)[2]
    cluster.nodes.gate.clear()
    await operate(cluster, DRAIN, 2)
    await cluster.step()
    begun = moving_count(cluster)
    assert 0 < begun < before
    await operate(cluster, UNDRAIN, 2)
    cluster.nodes.gate.set()
    await until_still(cluster)
    assert held(cluster)[2] == before - begun
    assert cluster.states()[2] == UP
    await operate(cluster, DRAIN, 2)
    await until_still(cluster)
    assert held(cluster)[2] == 0


async def test_another_server_goes_on_with_a_drain() -> None:
    engine = MemoryEngine()
    first = await with_objects(Cluster(6, engine=engine))
    first.nodes.gate.clear()
    await operate(first, DRAIN, 2)
    await first.step()
    assert moving_count(first)
    await first.background.stop()
    second = Cluster(6, engine=engine, clock=first.clock, nodes=first.nodes, holder="server-2")
    await second.service.start()
    second.nodes.gate.set()
    await second.step()
    await until_still(second)
    assert held(second)[2] == 0


async def test_a_server_may_be_told_that_does_not_do_the_work() -> None:
    engine = MemoryEngine()
    first = await with_objects(Cluster(6, engine=engine))
    second = Cluster(6, engine=engine, clock=first.clock, nodes=first.nodes, holder="server-2")
    await second.service.start()
    await second.step(0.1)
    assert not second.service.lease.is_held
    await operate(second, DRAIN, 2)
    await until_still(first)
    assert held(first)[2] == 0
    assert (await first.status()).does_background_work
    assert not (await second.status()).does_background_work


@pytest.mark.parametrize("who", ["source", "target"])
async def test_a_device_that_dies_during_a_move_costs_nothing(who: str) -> None:
    cluster = await with_objects(Cluster(6))
    cluster.nodes.gate.clear()
    await operate(cluster, DRAIN, 2)
    await cluster.step()
    target = next(
        int(device)
        for pg in cluster.map.pgs
        for device, state in zip(pg.device_indexes, pg.slot_states, strict=True)
        if state == MOVING
    )
    dead = 2 if who == "source" else target
    cluster.kill(dead)
    cluster.nodes.gate.set()
    await cluster.until(cluster.is_whole, within_s=120.0)
    assert dead not in held(cluster)
    for pg in range(16):
        for slot in range(3):
            assert cluster.chunk_is_stored(pg, f"o{pg}", slot)


async def test_repair_goes_before_moves() -> None:
    cluster = await with_objects(Cluster(7))
    cluster.nodes.gate.clear()
    cluster.kill(5)
    await cluster.until(lambda: len(cluster.nodes.requests) > 0)
    await operate(cluster, DRAIN, 2)
    for _ in range(3):
        await cluster.step()
    assert moving_count(cluster) == 0
    cluster.nodes.gate.set()
    await cluster.until(lambda: moving_count(cluster) > 0)
    await until_still(cluster)
    assert held(cluster)[2] == held(cluster)[5] == 0


async def test_a_drain_without_room_is_refused() -> None:
    cluster = await with_objects(Cluster(3))
    with pytest.raises(Refused, match=r"device 1 cannot be emptied: 16 slots .* Add devices"):
        await operate(cluster, DRAIN, 1, apply=False)
    cluster.kill(0)
    await cluster.until(lambda: cluster.states()[0] != UP)
    with pytest.raises(Refused, match="device 0 is DOWN: it does not serve: use repair"):
        await operate(cluster, DRAIN, 0)
    with pytest.raises(InvalidArgument, match="there is no device 77"):
        await operate(cluster, DRAIN, 77)
    with pytest.raises(InvalidArgument, match="which device"):
        await operate(cluster, DRAIN)
    with pytest.raises(Refused, match="device 1 is UP: it is neither draining nor given up"):
        await operate(cluster, UNDRAIN, 1)


# ---- remove ----


async def test_a_device_is_removed_only_when_it_is_empty() -> None:
    cluster = await with_objects(Cluster(6))
    count = held(cluster)[2]
    with pytest.raises(Refused, match=f"device 2 still holds {count} slots; .*: drain it first"):
        await operate(cluster, REMOVE, 2)
    cluster.nodes.gate.clear()
    await operate(cluster, DRAIN, 2)
    await cluster.step()
    with pytest.raises(Refused, match=f"device 2 still holds {count} slots"):
        await operate(cluster, REMOVE, 2)
    cluster.nodes.gate.set()
    await until_still(cluster)
    plan = await operate(cluster, REMOVE, 2, apply=False)
    assert "empty" in plan.message and cluster.states()[2] == DRAINING
    await operate(cluster, REMOVE, 2)
    with pytest.raises(Refused, match="device 2 was removed: format its disk"):
        await operate(cluster, UNDRAIN, 2)
    # It stays out, even if its node goes on to answer, and counts for nothing.
    await cluster.step()
    assert cluster.states()[2] == OUT
    assert cluster.map.devices[2].weight == 0.0
    assert cluster.is_whole()
    balance = await operate(cluster, BALANCE, apply=False)
    assert balance.violation_count == 0 and balance.deviation_after <= 1


async def test_the_last_redundancy_is_named_when_a_removal_is_refused() -> None:
    cluster = await with_objects(Cluster(6, out_after_s=1000.0))
    cluster.kill(0)
    await cluster.until(lambda: cluster.states()[0] != UP)
    shared = sum({0, 3} <= set(pg.device_indexes) for pg in cluster.map.pgs)
    with pytest.raises(Refused, match=f"{shared} placement groups cannot be read without it"):
        await operate(cluster, REMOVE, 3)


# ---- balance ----


async def test_a_new_device_is_filled_to_its_share() -> None:
    cluster = await with_objects(Cluster(6))
    cluster.alive.add(6)
    await cluster.step()
    assert held(cluster)[6] == 0
    plan = await operate(cluster, BALANCE, apply=False)
    assert plan.deviation_before > 1 >= plan.deviation_after
    assert plan.move_count == plan.minimum_move_count
    assert {(d.device_index, d.in_count) for d in plan.devices if d.in_count} == {
        (6, plan.move_count)
    }
    for _ in range(3):
        await cluster.step()
    assert held(cluster)[6] == 0
    await operate(cluster, BALANCE)
    assert not (await cluster.status()).moves.balancing
    await until_still(cluster)
    counts = held(cluster)
    assert all(abs(counts[device] - 48 / 7) <= 1 for device in range(7))
    # It is over: what becomes uneven later is left alone.
    assert await cluster.background.slot_mover.balance_wanted() is None


async def test_recovery_is_evened_out_when_the_shares_are_even() -> None:
    cluster = await with_objects(Cluster(10, pg_count=60))
    cluster.alive |= {10, 11}
    await cluster.step()
    await operate(cluster, BALANCE)
    await until_still(cluster, within_s=400.0)
    request = pb.OperateRequest(operation=BALANCE, even_recovery=True)
    plan = await cluster.service.cluster.operate(request)
    assert not plan.applied and plan.recovery_move_count > 0
    assert plan.recovery_after < plan.recovery_before
    assert plan.deviation_after <= 1 and plan.violation_count == 0
    request.apply = True
    await cluster.service.cluster.operate(request)
    await until_still(cluster, within_s=400.0)
    columns = cluster.service.maps.columns
    assert columns is not None
    assert recovery_spread(columns.pg_devices, 12).max_over_mean < plan.recovery_before
    assert all(abs(count - 15) <= 1 for count in held(cluster).values())
    assert await cluster.background.slot_mover.balance_wanted() is None
    again = await cluster.service.cluster.operate(
        pb.OperateRequest(operation=BALANCE, even_recovery=True)
    )
    assert again.recovery_before <= plan.recovery_before


async def test_balancing_can_be_stopped_and_goes_on_when_asked_again() -> None:
    cluster = await with_objects(Cluster(6))
    cluster.alive.add(6)
    await cluster.step()
    cluster.nodes.gate.clear()
    await operate(cluster, BALANCE)
    await cluster.step()
    begun = moving_count(cluster)
    assert begun > 0 and (await cluster.status()).moves.balancing
    await operate(cluster, STOP_BALANCE)
    cluster.nodes.gate.set()
    await until_still(cluster)
    assert held(cluster)[6] == begun
    await operate(cluster, BALANCE)
    await until_still(cluster)
    assert held(cluster)[6] >= 6


# ---- replace ----


async def joined(cluster: Cluster, *, on_node: int) -> int:
    """A new device of an old node; its index."""
    cluster.new_devices[on_node] = f"new-{on_node}"
    await cluster.step()
    return len(cluster.map.devices) - 1


async def test_a_device_that_failed_is_replaced_slot_for_slot() -> None:
    cluster = await with_objects(Cluster(6, out_after_s=1000.0))
    rows = [list(pg.device_indexes) for pg in cluster.map.pgs]
    # Its node comes back with an empty device in place of the old one.
    cluster.kill(2)
    await cluster.until(lambda: cluster.states()[2] == common_pb2.DEVICE_STATE_DOWN)
    cluster.alive.add(2)
    new = await joined(cluster, on_node=2)
    plan = await operate(cluster, REPLACE, 2, replacement=new, apply=False)
    assert plan.move_count == held(cluster)[2] and "rebuilt from the others" in plan.message
    assert plan.violation_count == 0
    await operate(cluster, REPLACE, 2, replacement=new)
    await cluster.until(lambda: all(set(pg.slot_states) == {CLEAN} for pg in cluster.map.pgs))
    expected = [[new if device == 2 else device for device in row] for row in rows]
    assert [list(pg.device_indexes) for pg in cluster.map.pgs] == expected
    assert cluster.states()[2] == OUT
    for pg in range(16):
        for slot in range(3):
            assert cluster.chunk_is_stored(pg, f"o{pg}", slot)
    await operate(cluster, REMOVE, 2)


async def test_a_device_that_serves_is_replaced_by_copying() -> None:
    cluster = await with_objects(Cluster(6))
    rows = [list(pg.device_indexes) for pg in cluster.map.pgs]
    new = await joined(cluster, on_node=2)
    plan = await operate(cluster, REPLACE, 2, replacement=new)
    assert "copied from it" in plan.message
    await until_still(cluster)
    expected = [[new if device == 2 else device for device in row] for row in rows]
    assert [list(pg.device_indexes) for pg in cluster.map.pgs] == expected
    progress = (await cluster.status()).moves.progress
    assert progress.read_bytes == progress.rebuilt_chunk_bytes == 64 * plan.move_count


async def test_replacements_that_cannot_be_are_refused() -> None:
    cluster = await with_objects(Cluster(6))
    with pytest.raises(InvalidArgument, match="device 2 cannot replace device 2"):
        await operate(cluster, REPLACE, 2, replacement=2)
    with pytest.raises(InvalidArgument, match="one device is replaced at a time"):
        await operate(cluster, REPLACE, 2, 3, replacement=4)
    cluster.kill(4)
    await cluster.until(lambda: cluster.states()[4] != UP)
    with pytest.raises(Refused, match="device 4 is DOWN: it must be up to take slots"):
        await operate(cluster, REPLACE, 2, replacement=4)


# ---- repair ----


async def test_a_silent_device_can_be_given_up_without_waiting() -> None:
    cluster = await with_objects(Cluster(6, out_after_s=100_000.0))
    cluster.kill(2)
    await cluster.until(lambda: cluster.states()[2] == common_pb2.DEVICE_STATE_DOWN)
    for _ in range(3):
        await cluster.step()
    assert not cluster.nodes.requests
    plan = await operate(cluster, REPAIR, 2, apply=False)
    assert plan.move_count == held(cluster)[2]
    await operate(cluster, REPAIR, 2)
    await cluster.until(cluster.is_whole)
    with pytest.raises(Refused, match="device 3 is UP: it serves: use drain"):
        await operate(cluster, REPAIR, 3)


async def test_what_failed_can_be_tried_again_at_once() -> None:
    cluster = await with_objects(Cluster(4, repair_retry_s=1000.0))
    cluster.nodes.failing = {0, 1, 2, 3}
    cluster.kill(3)
    await cluster.until(lambda: len(cluster.nodes.requests) > 0)
    await cluster.step()
    cluster.nodes.failing = set()
    await cluster.step()
    assert not cluster.is_whole()
    await operate(cluster, REPAIR)
    await cluster.background.repair.work.wait_for_running()
    await cluster.until(cluster.is_whole, within_s=5.0)


async def test_what_a_plan_says_of_bytes_and_time_comes_from_the_devices_and_the_budget() -> None:
    cluster = await with_objects(Cluster(6, move_bandwidth_bytes_per_s=1000))
    cluster.used_bytes = 4800
    await cluster.step()
    plan = await operate(cluster, DRAIN, 2, apply=False)
    assert plan.move_bytes == 4800  # all that the device holds
    assert plan.bandwidth_bytes_per_s == 1000
    assert plan.eta_s == pytest.approx(4.8)
    await operate(cluster, DRAIN, 2)
    await until_still(cluster)
    assert {request.bandwidth_bytes_per_s for request in cluster.nodes.requests} == {250}


async def test_a_device_that_was_given_up_can_be_taken_back() -> None:
    cluster = await with_objects(Cluster(6, out_after_s=100_000.0))
    cluster.kill(2)
    await cluster.until(lambda: cluster.states()[2] == common_pb2.DEVICE_STATE_DOWN)
    await operate(cluster, REPAIR, 2)
    await cluster.until(cluster.is_whole)
    cluster.revive(2)
    await cluster.step()
    assert cluster.states()[2] == OUT, "an operator said so"

    plan = await operate(cluster, UNDRAIN, 2, apply=False)
    assert "takes data again once it answers" in plan.message
    await cluster.step()
    assert cluster.states()[2] == OUT, "nothing was applied"
    await operate(cluster, UNDRAIN, 2)
    await cluster.until(lambda: cluster.states()[2] == UP)
    await operate(cluster, BALANCE)
    await until_still(cluster)
    assert held(cluster)[2] > 0 and cluster.is_whole()
    assert all(cluster.chunk_is_stored(pg, f"o{pg}", slot) for pg in range(16) for slot in range(3))


async def test_a_plan_tells_the_time_at_the_budgets_of_devices_and_nodes() -> None:
    cluster = await with_objects(
        Cluster(6, device_budget_bytes_per_s=600, node_budget_bytes_per_s=1200)
    )
    cluster.used_bytes = 4800
    await cluster.step()
    plan = await operate(cluster, DRAIN, 2, apply=False)
    assert plan.eta_s == pytest.approx(8.0), "the device that is drained gives 4,800 bytes"
    wanted = budget_pb2.Budgets(node_bytes_per_s=480, floor_bytes_per_s=1)
    await cluster.service.budgets.set(budget_pb2.SetBudgetsRequest(budgets=wanted))
    plan = await operate(cluster, DRAIN, 2, apply=False)
    assert plan.eta_s == pytest.approx(10.0)


async def test_without_a_budget_a_plan_tells_the_time_at_the_speed_of_the_last_moves() -> None:
    cluster = await with_objects(Cluster(6))
    cluster.used_bytes = 4800
    await cluster.step()
    assert (await operate(cluster, DRAIN, 2, apply=False)).eta_s < 0, "nothing has moved yet"
    await operate(cluster, DRAIN, 2)
    await until_still(cluster)
    await cluster.step()
    speed = (await cluster.status()).moves.progress.bytes_per_s
    plan = await operate(cluster, DRAIN, 3, apply=False)
    assert speed > 0 and plan.eta_s == pytest.approx(plan.move_bytes / speed)
