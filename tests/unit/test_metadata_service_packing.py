"""Packing and the collection of orphans by the metadata service, with nodes that are fakes."""

import asyncio
from typing import Any

import pytest
from prometheus_client import generate_latest
from tests.unit.metadata_cluster import Cluster, FakeNodes, pb

from exastore.metadata.namespace import check, moving
from exastore.metadata.service.errors import NotReady
from exastore.metadata.service.storage_client import StorageError
from exastore.proto.v1 import common_pb2, metadata_pb2, upkeep_pb2

SIZE = 1000
#: Objects of a full stripe: two data chunks of 4 KiB.
FULL = 8


class PackingNodes(FakeNodes):
    """Nodes that pack: they have chunks, no bytes."""

    def __init__(self) -> None:
        super().__init__(k=2)
        self.packed: list[upkeep_pb2.PackStripeRequest] = []
        #: The chunks of a stripe are written, but the answer never comes.
        self.lose_answers = False

    async def pack_stripe(
        self, address: str, request: upkeep_pb2.PackStripeRequest
    ) -> upkeep_pb2.PackStripeResponse:
        self.packed.append(request)
        slices: list[upkeep_pb2.PackedSlice] = []
        for source in request.sources:
            extent = source.extent
            is_there = any(
                (extent.pg, extent.stripe_id, holder.index) in self.chunks[holder.device_index]
                for holder in source.holders
            )
            crc32c = extent.slice_crc32c if extent.is_slice else extent.chunk_crc32c[0]
            slices.append(
                upkeep_pb2.PackedSlice(crc32c=crc32c, error="" if is_there else "not there")
            )
        for target in request.targets:
            key = (request.pg, request.stripe_id, target.index)
            self.chunks[target.device_index].add(key)
        if self.lose_answers:
            raise StorageError("the node died")
        return upkeep_pb2.PackStripeResponse(chunk_crc32c=[1, 2, 3], slices=slices)


class PackingCluster(Cluster):
    """Formed, with a bucket."""

    def __init__(self, **options: object) -> None:
        self.packing_nodes = PackingNodes()
        options["packed_chunk_bytes"] = 4096
        super().__init__(6, nodes=self.packing_nodes, **options)  # type: ignore[arg-type]  # of a test

    def stripe_id(self, number: int, age_s: float = 0.0) -> bytes:
        ms = int((self.clock.now_s() - age_s) * 1000)
        return ms.to_bytes(6, "big") + number.to_bytes(10, "big")

    def write(self, number: int, *, age_s: float = 0.0) -> common_pb2.Extent:
        """The copies of a small object that is not committed yet."""
        pg = number % len(self.map.pgs)
        stripe_id = self.stripe_id(number, age_s)
        for index in range(2):
            device = self.map.pgs[pg].device_indexes[index]
            self.nodes.chunks[device].add((pg, stripe_id, index))
        return common_pb2.Extent(
            pg=pg,
            stripe_id=stripe_id,
            code="rep-2",
            epoch=self.map.epoch,
            data_bytes=SIZE,
            chunk_bytes=SIZE,
            chunk_crc32c=[number, number],
            is_log=True,
        )

    async def put_small(self, number: int) -> None:
        await self.commit(number, self.write(number))

    async def commit(self, number: int, extent: common_pb2.Extent) -> None:
        item = pb.Object(
            bucket="bucket",
            key=f"k{number:03d}",
            version_id=f"v{number}",
            size_bytes=SIZE,
            etag="e",
            extents=[extent],
        )
        await self.service.names.commit_object(pb.CommitObjectRequest(object=item))

    async def delete_small(self, *numbers: int) -> None:
        keys = [f"k{number:03d}" for number in numbers]
        await self.service.names.delete_objects(pb.DeleteObjectsRequest(bucket="bucket", keys=keys))

    async def extent_of(self, number: int) -> common_pb2.Extent:
        request = pb.GetObjectRequest(bucket="bucket", key=f"k{number:03d}")
        return (await self.service.names.get_object(request)).extents[0]

    async def packing(self) -> upkeep_pb2.PackingStatus:
        return await self.service.upkeep.get_packing(upkeep_pb2.GetPackingRequest())

    async def collect(self, *, apply: bool, older_than_s: float = 60.0) -> upkeep_pb2.OrphanReport:
        return await self.service.upkeep.collect_orphans(
            upkeep_pb2.CollectOrphansRequest(apply=apply, older_than_s=older_than_s)
        )

    async def empty_trash(self) -> None:
        await self.step(10.0)
        await self.background.trash.run_round()

    def stored(self) -> int:
        return sum(len(chunks) for chunks in self.nodes.chunks.values())

    async def is_sound(self) -> bool:
        return (await self.engine.read(lambda txn: check.check_bucket(txn, "bucket"))).is_sound


async def formed(**options: object) -> PackingCluster:
    cluster = PackingCluster(**options)
    await cluster.form()
    await cluster.new_bucket()
    return cluster


async def test_full_stripes_are_packed_at_once_and_the_rest_when_it_has_waited() -> None:
    cluster = await formed(pack_wait_s=30.0)
    for number in range(2 * FULL + 4):
        await cluster.put_small(number)
    await cluster.background.packer.run_round()
    status = await cluster.packing()
    assert (status.object_count, status.stripe_count) == (2 * FULL, 2)
    assert status.unpacked_object_count == 4
    cluster.clock.advance(31.0)
    await cluster.background.packer.run_round()
    assert (await cluster.packing()).unpacked_object_count == 0
    await cluster.empty_trash()
    assert cluster.stored() == 3 * 3, "the copies are gone, three stripes of three chunks stay"
    assert await cluster.is_sound()
    await cluster.background.packer.count()
    text = generate_latest(cluster.registry).decode()
    assert "exastore_metadata_packed_stripes 3.0" in text
    assert "exastore_metadata_unpacked_objects 0.0" in text


async def test_objects_lie_within_a_chunk_and_are_slices_of_groups_with_all_their_devices() -> None:
    cluster = await formed()
    cluster.kill(5)
    await cluster.until(lambda: common_pb2.DEVICE_STATE_DOWN in cluster.states())
    for number in range(FULL):
        await cluster.put_small(number)
    await cluster.background.packer.run_round()
    for number in range(FULL):
        extent = await cluster.extent_of(number)
        if not extent.is_slice:
            continue
        assert extent.slice_offset % extent.chunk_bytes + SIZE <= extent.chunk_bytes
        assert extent.slice_crc32c == number
        assert 5 not in cluster.map.pgs[extent.pg].device_indexes
    assert (await cluster.packing()).object_count > 0


async def test_a_packer_that_dies_leaves_everything_as_it_was_but_for_orphans() -> None:
    cluster = await formed()
    for number in range(FULL):
        await cluster.put_small(number)
    cluster.packing_nodes.lose_answers = True
    cluster.nodes.dead = set(range(6))  # so that what was written cannot be deleted either
    await cluster.background.packer.run_round()
    cluster.nodes.dead = set()
    assert (await cluster.packing()).unpacked_object_count == FULL
    assert (await cluster.extent_of(0)).is_log
    assert cluster.stored() == 2 * FULL + 3
    cluster.packing_nodes.lose_answers = False
    await cluster.background.packer.run_round()
    assert (await cluster.packing()).object_count == FULL
    await cluster.step(100.0)
    report = await cluster.collect(apply=True)
    assert (report.orphan_stripe_count, report.deleted_chunk_count) == (1, 3)
    assert (await cluster.extent_of(0)).is_slice
    await cluster.empty_trash()
    assert cluster.stored() == 3


async def test_an_object_deleted_while_it_is_packed_is_not_brought_back() -> None:
    cluster = await formed()
    for number in range(FULL):
        await cluster.put_small(number)
    pack_stripe = cluster.packing_nodes.pack_stripe

    async def slow(
        address: str, request: upkeep_pb2.PackStripeRequest
    ) -> upkeep_pb2.PackStripeResponse:
        await cluster.delete_small(*range(1, FULL))
        return await pack_stripe(address, request)

    cluster.packing_nodes.pack_stripe = slow  # type: ignore[method-assign]  # a slow node
    await cluster.background.packer.run_round()
    status = await cluster.packing()
    assert (status.object_count, status.unpacked_object_count) == (1, 0)
    assert await cluster.is_sound()


async def test_a_sparse_stripe_is_packed_anew_and_an_empty_one_goes() -> None:
    cluster = await formed()
    for number in range(2 * FULL):
        await cluster.put_small(number)
    await cluster.background.packer.run_round()
    before = {(await cluster.extent_of(n)).stripe_id for n in range(2 * FULL)}
    await cluster.delete_small(*range(FULL), *range(FULL, 2 * FULL - 3))
    status = await cluster.packing()
    assert (status.stripe_count, status.sparse_stripe_count) == (1, 1)
    await cluster.background.packer.run_round()
    await cluster.empty_trash()
    assert (await cluster.extent_of(2 * FULL - 1)).stripe_id not in before
    status = await cluster.packing()
    assert (status.stripe_count, status.object_count, status.sparse_stripe_count) == (1, 3, 0)
    assert cluster.stored() == 3
    assert await cluster.is_sound()


async def test_packed_objects_move_with_their_bucket_and_are_let_go_there() -> None:
    cluster = await formed(partitions=("cold=memory:",))
    place = await cluster.service.names.get_bucket(pb.GetBucketRequest(name="bucket"))
    target = "cold" if place.partition == "main" else "main"
    for number in range(FULL + 2):
        await cluster.put_small(number)
    await cluster.background.packer.run_round()
    await cluster.service.mover.move_bucket(pb.MoveBucketRequest(bucket="bucket", target=target))
    while (await cluster.service.mover.list_moves(pb.ListMovesRequest())).moves:
        await cluster.step()
        await cluster.service.mover.run_round()
    status = await cluster.packing()
    assert (status.object_count, status.unpacked_object_count) == (FULL, 2)
    engine = cluster.service.names.partitions.named(target).engine
    assert (await engine.read(lambda txn: check.check_bucket(txn, "bucket"))).is_sound
    await cluster.background.packer.pack_now()
    await cluster.delete_small(*range(FULL + 2))
    assert (await cluster.packing()).stripe_count == 0
    await cluster.empty_trash()
    assert cluster.stored() == 0


async def test_only_the_holder_of_the_lease_packs_and_collects() -> None:
    first = await formed()
    second = Cluster(6, engine=first.engine, clock=first.clock, nodes=first.nodes, holder="other")
    await second.service.start()
    await second.background.run_round()
    for number in range(FULL):
        await first.put_small(number)
    await second.background.packer.run_round()
    assert not first.packing_nodes.packed
    with pytest.raises(NotReady):
        await second.service.upkeep.collect_orphans(upkeep_pb2.CollectOrphansRequest(apply=True))
    with pytest.raises(NotReady):
        await second.service.upkeep.get_packing(upkeep_pb2.GetPackingRequest(pack_now=True))


async def test_orphans_are_deleted_and_whatever_is_known_stays() -> None:
    cluster = await formed()
    for number in range(FULL + 2):
        await cluster.put_small(number)
    await cluster.background.packer.run_round()  # some are slices, the copies are in the trash
    await cluster.delete_small(FULL)
    known = cluster.stored()
    cluster.write(50, age_s=10_000.0)
    cluster.write(51, age_s=10_000.0)
    await cluster.step(100.0)
    cluster.write(52)  # under way
    plan = await cluster.collect(apply=False)
    assert (plan.orphan_stripe_count, plan.orphan_chunk_count, plan.orphan_bytes) == (2, 4, 256)
    assert plan.deleted_chunk_count == 0 and cluster.stored() == known + 6
    done = await cluster.collect(apply=True)
    assert done.deleted_chunk_count == 4
    assert cluster.stored() == known + 2
    assert not (await cluster.collect(apply=True)).orphan_chunk_count
    text = generate_latest(cluster.registry).decode()
    assert "exastore_metadata_orphan_deleted_chunks_total 4.0" in text
    assert "exastore_metadata_orphan_chunks 0.0" in text


async def test_chunks_that_the_trash_collection_deletes_meanwhile_are_no_orphans() -> None:
    cluster = await formed()
    await cluster.put_small(1)
    await cluster.delete_small(1)
    await cluster.step(100.0)
    orphans: Any = cluster.background.orphans
    first_walk = orphans._drop_known  # where it is overtaken

    async def overtaken(found: dict[bytes, Any]) -> None:
        await cluster.background.trash.run_round()
        await first_walk(found)

    cluster.background.orphans._drop_known = overtaken  # type: ignore[method-assign]
    report = await cluster.collect(apply=False)
    assert report.checked_stripe_count == 1 and report.orphan_chunk_count == 0
    assert cluster.stored() == 0


async def test_a_write_that_is_older_than_the_grace_time_cannot_be_committed_any_more() -> None:
    cluster = await formed()
    paused = cluster.write(1, age_s=1000.0)
    assert (await cluster.collect(apply=True)).deleted_chunk_count == 2
    with pytest.raises(Exception, match="too long ago"):
        await cluster.commit(1, paused)


async def test_groups_under_repair_and_buckets_that_move_are_left_for_later() -> None:
    cluster = await formed()
    cluster.write(1, age_s=1000.0)
    engine = cluster.engine
    move = metadata_pb2.Move(bucket="bucket", bucket_id=1)
    await engine.transact(lambda txn: moving.put_move(txn, move))
    report = await cluster.collect(apply=True)
    assert report.message and not report.deleted_chunk_count
    await engine.transact(lambda txn: moving.finish(txn, move))
    for device in cluster.map.pgs[1].device_indexes[:1]:
        cluster.kill(device)
    await cluster.until(lambda: common_pb2.DEVICE_STATE_DOWN in cluster.states())
    report = await cluster.collect(apply=True)
    assert report.skipped_pg_count and not report.deleted_chunk_count


async def test_orphans_are_collected_by_themselves_now_and_then() -> None:
    cluster = await formed(orphan_interval_s=3600.0, orphan_grace_s=500.0)
    cluster.write(1, age_s=1000.0)
    await cluster.background.orphans.run_round()
    assert cluster.stored() == 2
    for _ in range(40):
        await cluster.step(100.0)
    await cluster.background.orphans.run_round()
    assert cluster.stored() == 0
    await asyncio.sleep(0)
