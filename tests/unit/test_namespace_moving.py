"""Moving a bucket between engines: killed at every step, with writers at work, and cancelled."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

import pytest
from prometheus_client import CollectorRegistry
from tests.unit.metadata_cluster import ManualClock
from tests.unit.namespace_helpers import BUCKET, an_object, extent, pb

from exastore.metadata.kv.contract import Engine, Transaction
from exastore.metadata.kv.keys import prefix_range
from exastore.metadata.kv.memory import MemoryEngine
from exastore.metadata.namespace import check, moving, rows
from exastore.metadata.namespace.buckets import FIRST
from exastore.metadata.namespace.errors import (
    BucketExists,
    BucketMoving,
    InvalidArgument,
    MoveConflict,
    MoverReplaced,
    NoSuchBucket,
    NoSuchKey,
    QuotaExceeded,
)
from exastore.metadata.service.config import MetadataConfig
from exastore.metadata.service.core import MetadataService
from exastore.metadata.service.metrics import MetadataMetrics

T = TypeVar("T")

OTHER = "other"


class Killed(Exception):
    """The server died here."""


class Fragile:
    """An engine whose calls may run something first, and die before or after they took effect."""

    def __init__(self, engine: MemoryEngine, before: Callable[[], Awaitable[None]]) -> None:
        self._engine = engine
        self._before = before
        #: Calls left until the server dies; None: it does not. Shared by all engines of a server.
        self.fuse: list[int] = []

    async def transact(self, fn: Callable[[Transaction], T]) -> T:
        await self._before()
        self._burn()
        result = await self._engine.transact(fn)
        self._burn()
        return result

    async def read(self, fn: Callable[[Transaction], T], *, brief: bool = False) -> T:
        return await self._engine.read(fn)

    async def close(self) -> None:
        await self._engine.close()

    def _burn(self) -> None:
        if self.fuse:
            self.fuse[0] -= 1
            if self.fuse[0] < 0:
                raise Killed


class Site:
    """Two engines, and metadata servers that die."""

    def __init__(self) -> None:
        self.engines = {FIRST: MemoryEngine(), OTHER: MemoryEngine()}
        self.clock = ManualClock()
        self.fuse: list[int] = []
        #: What happens between the steps of a move.
        self.meanwhile: Callable[[], Awaitable[None]] = nothing
        self._server_count = 0

    async def server(self, *, fragile: bool = False) -> MetadataService:
        """A new server; it holds the lease."""
        self._server_count += 1
        engines: dict[str, Engine] = dict(self.engines)
        if fragile:
            for name, engine in self.engines.items():
                wrapped = Fragile(engine, self._run_meanwhile)
                wrapped.fuse = self.fuse
                engines[name] = wrapped
        self.clock.advance(60.0)  # whoever held the lease is gone
        service = MetadataService(
            MetadataConfig(),
            engines[FIRST],
            holder=f"server-{self._server_count}",
            clock=self.clock,
            metrics=MetadataMetrics(CollectorRegistry()),
        )
        service.names.partitions.add(OTHER, engines[OTHER], service.lease)
        fuse, self.fuse[:] = list(self.fuse), []
        await service.start()
        assert await service.lease.keep()
        await service.names.hold_partitions()
        self.fuse[:] = fuse
        return service

    async def _run_meanwhile(self) -> None:
        await self.meanwhile()

    async def everything(self) -> dict[str, list[bytes]]:
        """The keys of all rows by engine."""
        return {
            name: [
                key
                for key, _ in await engine.read(lambda txn: txn.scan(b"", b"\xff", keys_only=True))
            ]
            for name, engine in self.engines.items()
        }


async def nothing() -> None:
    """Nobody else is at work."""


async def put(service: MetadataService, key: str, version_id: str) -> None:
    item = an_object(key, version_id, inline=b"x")
    await service.names.commit_object(pb.CommitObjectRequest(object=item))


async def keys_of(service: MetadataService) -> dict[str, str]:
    """Version id by key."""
    found: dict[str, str] = {}
    start_after = ""
    while True:
        page = await service.names.list_objects(
            pb.ListObjectsRequest(bucket=BUCKET, max_keys=50, start_after=start_after)
        )
        found.update((item.key, item.version_id[-8:]) for item in page.objects)
        if not page.truncated:
            return found
        start_after = page.next_start_after


@pytest.fixture
async def site() -> Site:
    """A bucket in the first engine with versions, an upload, trash, due times and a neighbour."""
    new = Site()
    service = await new.server()
    names = service.names
    for name in (BUCKET, "neighbour"):
        await names.create_bucket(pb.CreateBucketRequest(name=name, owner="me", partition=FIRST))
    return new


async def fill(site: Site, service: MetadataService) -> dict[str, str]:
    rules = [pb.LifecycleRule(id="r", expire_days=30, noncurrent_days=1, abort_upload_days=1)]
    await service.names.configure_bucket(
        pb.ConfigureBucketRequest(
            name=BUCKET,
            versioning=pb.VERSIONING_ENABLED,
            quota=pb.Quota(max_objects=10_000),
            lifecycle=pb.LifecycleRules(rules=rules),
        )
    )
    for number in range(130):
        await put(service, f"k{number:03}", f"v{number:07}")
    for number in range(0, 130, 7):
        await put(service, f"k{number:03}", f"w{number:07}")
    await service.names.delete_objects(
        pb.DeleteObjectsRequest(bucket=BUCKET, keys=["k001", "k002"], request_id="gone")
    )
    upload = pb.CreateUploadRequest(bucket=BUCKET, key="big", upload_id="upload")
    await service.names.create_upload(upload)
    return await keys_of(service)


async def check_all(site: Site, service: MetadataService, where: str) -> None:
    """The bucket is whole, in one engine, and nothing of it is anywhere else."""
    engine = site.engines[where]
    findings = await engine.read(lambda txn: check.check_bucket(txn, BUCKET))
    assert (findings.wrong, findings.counters) == ([], findings.counted)
    for partition in site.engines.values():
        counters, sums = await partition.read(lambda txn: check.check_tenant(txn, "me"))
        assert counters == sums
    bucket = await service.names.get_bucket(pb.GetBucketRequest(name=BUCKET))
    assert bucket.partition == where
    (left,) = [name for name in site.engines if name != where]
    base = prefix_range(rows.base(bucket.id))
    assert not await site.engines[left].read(lambda txn: txn.scan(*base))
    timed = [key for key in (await site.everything())[left] if _names(key, bucket.id)]
    assert timed == []
    moves = await service.mover.list_moves(pb.ListMovesRequest())
    assert not moves.moves


def _names(key: bytes, bucket_id: int) -> bool:
    return key[:3] in (b"\x02t\x00", b"\x02x\x00", b"\x02e\x00", b"\x02g\x00", b"\x02l\x00") and (
        rows.base(bucket_id)[3:] in key
    )


async def test_a_bucket_moves_with_all_its_rows_and_back(site: Site) -> None:
    service = await site.server()
    before = await fill(site, service)
    usage = await service.names.get_usage(pb.GetUsageRequest(bucket=BUCKET))
    await service.mover.move_bucket(pb.MoveBucketRequest(bucket=BUCKET, target=OTHER))
    await service.mover.run_round()
    await check_all(site, service, OTHER)
    assert await keys_of(service) == before
    assert await service.names.get_usage(pb.GetUsageRequest(bucket=BUCKET)) == usage
    again = await service.names.delete_objects(
        pb.DeleteObjectsRequest(bucket=BUCKET, keys=["k001", "k002"], request_id="gone")
    )
    assert list(again.existed) == [True, True], "the answers of requests moved, too"
    await service.mover.move_bucket(pb.MoveBucketRequest(bucket=BUCKET, target=FIRST))
    await service.mover.run_round()
    await check_all(site, service, FIRST)
    assert await keys_of(service) == before


async def test_a_server_that_knows_the_old_place_finds_the_new_one(site: Site) -> None:
    old = await site.server()
    await put(old, "k", "v1")
    service = await site.server()
    await service.mover.move_bucket(pb.MoveBucketRequest(bucket=BUCKET, target=OTHER))
    await service.mover.run_round()
    await put(old, "k2", "v2")
    assert set(await keys_of(old)) == set(await keys_of(service)) == {"k", "k2"}


async def test_nothing_is_lost_wherever_the_server_dies_while_others_write(site: Site) -> None:
    """Kill the mover before and after each of its transactions; a writer works all the time."""
    writer = await site.server()
    expected = await fill(site, writer)
    count = 0
    refused = 0

    async def write() -> None:
        nonlocal count, refused
        count += 1
        key, version_id = f"k{count * 37 % 150:03}", f"z{count:07}"
        try:
            if count % 5:
                await put(writer, key, version_id)
                expected[key] = version_id
            else:
                await writer.names.delete_objects(
                    pb.DeleteObjectsRequest(bucket=BUCKET, keys=[key], request_id=version_id)
                )
                expected.pop(key, None)
        except BucketMoving:
            refused += 1

    target = OTHER
    for step in range(0, 400, 3):
        service = await site.server(fragile=True)
        moves = (await service.mover.list_moves(pb.ListMovesRequest())).moves
        if not moves:
            await service.mover.move_bucket(pb.MoveBucketRequest(bucket=BUCKET, target=target))
        site.meanwhile = write
        site.fuse[:] = [step % 61]
        try:
            await service.mover.run_round()
        except Killed:
            continue
        finally:
            site.meanwhile = nothing
            site.fuse.clear()
        await check_all(site, writer, target)
        assert await keys_of(writer) == expected
        target = FIRST if target == OTHER else OTHER
    service = await site.server()
    await service.mover.run_round()
    assert await keys_of(writer) == expected
    assert count > 300
    assert 0 < refused < count // 3


async def test_a_mover_that_was_replaced_writes_nothing(site: Site) -> None:
    first = await site.server()
    await fill(site, first)
    await first.mover.move_bucket(pb.MoveBucketRequest(bucket=BUCKET, target=OTHER))
    second: list[MetadataService] = []

    async def take_over() -> None:
        if not second:
            second.append(first)
            second.append(await site.server())
            await second[1].mover.carry_out(BUCKET)

    slow = await site.server(fragile=True)
    steps = 0

    async def after_a_while() -> None:
        nonlocal steps
        steps += 1
        if steps == 6:
            await take_over()

    site.meanwhile = after_a_while
    with pytest.raises(Exception, match=r"another server|" + BUCKET) as raised:
        await slow.mover.carry_out(BUCKET)
    assert not isinstance(raised.value, AssertionError)
    site.meanwhile = nothing
    await check_all(site, second[1], OTHER)


async def test_a_move_is_cancelled_until_the_switch(site: Site) -> None:
    service = await site.server(fragile=True)
    before = await fill(site, service)
    await service.mover.move_bucket(pb.MoveBucketRequest(bucket=BUCKET, target=OTHER))
    site.fuse[:] = [16]
    with pytest.raises(Killed):
        await service.mover.carry_out(BUCKET)
    site.fuse.clear()
    service = await site.server()
    await put(service, "k000", "x0000000")  # leaves marks
    move = await service.mover.cancel_move(pb.CancelMoveRequest(bucket=BUCKET))
    assert move.phase == pb.MOVE_PHASE_CANCELLING
    await service.mover.run_round()
    await check_all(site, service, FIRST)
    assert await keys_of(service) == {**before, "k000": "x0000000"}
    with pytest.raises(MoveConflict):
        await service.mover.cancel_move(pb.CancelMoveRequest(bucket=BUCKET))


async def test_a_move_that_makes_no_sense_is_refused(site: Site) -> None:
    service = await site.server()
    with pytest.raises(InvalidArgument):
        await service.mover.move_bucket(pb.MoveBucketRequest(bucket=BUCKET, target="absent"))
    with pytest.raises(NoSuchBucket):
        await service.mover.move_bucket(pb.MoveBucketRequest(bucket="absent", target=OTHER))
    with pytest.raises(MoveConflict):
        await service.mover.move_bucket(pb.MoveBucketRequest(bucket=BUCKET, target=FIRST))
    await service.mover.move_bucket(pb.MoveBucketRequest(bucket=BUCKET, target=OTHER))
    with pytest.raises(MoveConflict):
        await service.mover.move_bucket(pb.MoveBucketRequest(bucket=BUCKET, target=OTHER))


async def test_buckets_spread_over_partitions_and_their_names_stay_unique(site: Site) -> None:
    service = await site.server()
    names = service.names
    made = [
        await names.create_bucket(pb.CreateBucketRequest(name=f"bucket-{n}", owner="me"))
        for n in range(12)
    ]
    assert {bucket.partition for bucket in made} == {FIRST, OTHER}
    listed = (await names.list_buckets(pb.ListBucketsRequest())).buckets
    assert len(listed) == 12 + 2
    for bucket in made:
        with pytest.raises(BucketExists):
            await names.create_bucket(pb.CreateBucketRequest(name=bucket.name, owner="you"))
        await names.delete_bucket(pb.DeleteBucketRequest(name=bucket.name))
        with pytest.raises(NoSuchBucket):
            await names.get_bucket(pb.GetBucketRequest(name=bucket.name))
    assert len((await names.list_buckets(pb.ListBucketsRequest())).buckets) == 2


async def test_a_creation_or_deletion_cut_short_gives_the_name_back(site: Site) -> None:
    whole = await site.server()
    for fuse in range(8):
        service = await site.server(fragile=True)
        request = pb.CreateBucketRequest(name="far-away", owner="me", partition=OTHER)
        site.fuse[:] = [fuse]
        try:
            await service.names.create_bucket(request)
        except Killed:
            site.fuse.clear()
            try:
                await whole.names.create_bucket(request)
            except BucketExists:
                assert fuse >= 3, "the bucket was established before the server died"
        site.fuse[:] = [fuse]
        item = an_object("k", f"v{fuse}", inline=b"x")
        item.bucket = "far-away"
        try:
            await service.names.delete_bucket(pb.DeleteBucketRequest(name="far-away"))
        except Killed:
            site.fuse.clear()
            with_rest = pb.DeleteBucketRequest(name="far-away")
            try:
                await whole.names.delete_bucket(with_rest)
            except NoSuchBucket:
                pass
        site.fuse.clear()
        listed = (await whole.names.list_buckets(pb.ListBucketsRequest())).buckets
        assert "far-away" not in {bucket.name for bucket in listed}


async def test_commits_under_an_old_map_are_refused_in_every_partition(site: Site) -> None:
    service = await site.server()
    names = service.names
    await names.create_bucket(pb.CreateBucketRequest(name="far-away", partition=OTHER))
    item = an_object("k", "v", [extent("s")])
    item.bucket = "far-away"
    await names.partitions.raise_map_fence(7)
    task = asyncio.ensure_future(names.commit_object(pb.CommitObjectRequest(object=item)))
    for _ in range(60):
        await asyncio.sleep(0)
        site.clock.advance(1.0)
    with pytest.raises(Exception, match="map"):
        await task
    with pytest.raises(NoSuchKey):
        await names.get_object(pb.GetObjectRequest(bucket="far-away", key="k"))


async def test_a_tenants_quota_holds_over_all_partitions(site: Site) -> None:
    service = await site.server()
    names = service.names
    await names.create_bucket(pb.CreateBucketRequest(name="far-away", owner="me", partition=OTHER))
    await names.set_tenant_quota(
        pb.SetTenantQuotaRequest(tenant="me", quota=pb.Quota(max_objects=20))
    )
    stored = 0
    for number in range(40):
        item = an_object(f"k{number}", f"v{number}", inline=b"x")
        item.bucket = "far-away" if number % 4 else BUCKET
        await names.tenants.level()
        try:
            await names.commit_object(pb.CommitObjectRequest(object=item))
        except Exception as error:
            assert "quota" in str(error)
        else:
            stored += 1
    used = await names.get_usage(pb.GetUsageRequest(tenant="me"))
    assert used.object_count == stored
    assert 19 <= stored <= 21


async def test_no_race_of_writers_with_shares_and_moves_goes_beyond_a_tenants_quota(
    site: Site,
) -> None:
    writer = (await site.server()).names
    # It does the background work; before each of its transactions the writer writes into both.
    service = await site.server(fragile=True)
    await writer.create_bucket(pb.CreateBucketRequest(name="far-away", owner="me", partition=OTHER))
    count = refused = 0

    async def write() -> None:
        nonlocal count, refused
        for bucket in (BUCKET, "far-away"):
            count += 1
            item = an_object(f"k{count}", f"v{count}", inline=b"x" * 10)
            item.bucket = bucket
            try:
                await writer.commit_object(pb.CommitObjectRequest(object=item))
            except (QuotaExceeded, BucketMoving):
                refused += 1

    async def used() -> pb.Usage:
        return await writer.get_usage(pb.GetUsageRequest(tenant="me"))

    site.meanwhile = write
    highest = 0
    for limit in (60, 90, 40, 150, 150, 151, 300):
        before = (await used()).object_count
        quota = pb.Quota(max_objects=limit, max_bytes=10 * limit)
        await service.names.set_tenant_quota(pb.SetTenantQuotaRequest(tenant="me", quota=quota))
        after_set = (await used()).object_count
        for number in range(12):
            await service.names.tenants.level()
            for _ in range(9):
                await write()
            if number == 5 and limit in (150, 300):
                target = OTHER if limit == 150 else FIRST
                place = await writer.get_bucket(pb.GetBucketRequest(name="far-away"))
                if place.partition != target:
                    await service.mover.move_bucket(
                        pb.MoveBucketRequest(bucket="far-away", target=target)
                    )
                    await service.mover.carry_out("far-away")
        now = (await used()).object_count
        # What was written before the quota was set everywhere is not taken away.
        assert now <= max(limit + 1, before, after_set), (limit, before, after_set, now)
        if limit >= highest:
            highest = limit
            assert now >= limit - limit // 16 - 2, "what is free is given out"
    assert refused > 20


async def test_a_replaced_mover_cannot_write_into_the_copy() -> None:
    engine = MemoryEngine()
    bucket = pb.Bucket(name=BUCKET, id=7)
    pairs = [(rows.base(7) + rows.current("k"), b"old")]
    await engine.transact(lambda txn: moving.prepare(txn, bucket, 1))
    await engine.transact(lambda txn: moving.write_copied(txn, bucket, 1, pairs))
    await engine.transact(lambda txn: moving.prepare(txn, bucket, 2))
    with pytest.raises(MoverReplaced):
        await engine.transact(lambda txn: moving.write_copied(txn, bucket, 1, pairs))
    with pytest.raises(MoverReplaced):
        await engine.transact(lambda txn: moving.prepare(txn, bucket, 1))
    with pytest.raises(MoverReplaced):
        await engine.transact(lambda txn: moving.attach(txn, bucket, 1, OTHER))
