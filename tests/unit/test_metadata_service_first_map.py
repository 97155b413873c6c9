"""First maps that no transaction can hold: all of it or nothing, whoever dies when."""

from collections.abc import Callable
from typing import TypeVar

import pytest

from exastore.metadata.core.cluster_map import new_map
from exastore.metadata.core.topology import PlacementRule, Topology
from exastore.metadata.kv.contract import Transaction
from exastore.metadata.kv.errors import EngineUnavailable
from exastore.metadata.kv.memory import MemoryEngine
from exastore.metadata.service.convert import with_columns
from exastore.metadata.service.errors import NotReady
from exastore.metadata.service.map_store import MapStore
from exastore.proto.v1 import common_pb2

T = TypeVar("T")
RULE = PlacementRule()


def large_map(pg_count: int = 60_000, device_count: int = 40) -> common_pb2.ClusterMap:
    """Some 230 rows of 2.6 MB."""
    topology = Topology.uniform(racks_per_zone=4, nodes_per_rack=device_count // 4)
    columns = new_map(topology, RULE, "rs-10-4", 14, pg_count)
    message = common_pb2.ClusterMap(epoch=1, cluster_id="c", code="rs-10-4")
    for index in range(device_count):
        message.nodes.add(index=index, id=f"n{index}", rack=f"r{index // 10}")
        message.devices.add(index=index, uuid=f"d{index}", node_index=index, weight=1, state=1)
    return with_columns(message, columns)


LARGE = large_map()


class DyingEngine(MemoryEngine):
    """Goes away after some transactions."""

    def __init__(self) -> None:
        super().__init__()
        self.left = 1_000_000
        self.count = 0

    async def transact(self, fn: Callable[[Transaction], T]) -> T:
        if self.left <= 0:
            raise EngineUnavailable("gone")
        self.left -= 1
        self.count += 1
        return await super().transact(fn)


async def store(maps: MapStore, message: common_pb2.ClusterMap = LARGE) -> None:
    await maps.change(lambda known: message if known is None else None)


async def stored(engine: MemoryEngine) -> common_pb2.ClusterMap | None:
    maps = MapStore(engine, RULE)
    await maps.load()
    return maps.message


async def test_a_map_of_60_000_groups_is_stored_in_bounded_transactions() -> None:
    engine = DyingEngine()
    await store(MapStore(engine, RULE))
    assert await stored(engine) == LARGE
    assert engine.count == 1 + 3 + 1
    count = engine.count
    # From then on only blocks that differ are written, at once.
    maps = MapStore(engine, RULE)
    await maps.load()
    changed = common_pb2.ClusterMap()
    changed.CopyFrom(LARGE)
    changed.epoch = 2
    changed.pgs[-1].epoch = 2
    await maps.change(lambda known: changed)
    assert engine.count == count + 1
    assert await stored(engine) == changed


@pytest.mark.parametrize("left", [1, 2, 3, 4])
async def test_a_server_that_dies_leaves_no_map_and_the_next_one_stores_its_own(left: int) -> None:
    engine = DyingEngine()
    engine.left = left
    with pytest.raises(EngineUnavailable):
        await store(MapStore(engine, RULE))
    engine.left = 1_000_000
    assert await stored(engine) is None
    # The next one has heard of fewer devices, so that its blocks are others.
    other, maps = large_map(pg_count=2_000, device_count=20), MapStore(engine, RULE)
    with pytest.raises(NotReady, match="another server"):
        await store(maps, other)
    await store(maps, other)
    assert await stored(engine) == other


async def test_who_is_overtaken_takes_the_map_of_the_other() -> None:
    engine = DyingEngine()
    slow, fast = MapStore(engine, RULE), MapStore(engine, RULE)
    engine.left = 2
    with pytest.raises(EngineUnavailable):
        await store(slow)
    engine.left = 1_000_000
    with pytest.raises(NotReady):
        await store(fast)
    await store(fast)
    await store(slow, large_map(pg_count=50_000))
    assert slow.message == fast.message == LARGE
