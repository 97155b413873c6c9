"""Quotas and lifecycle: exact limits, due times, clocks that jump, and the executor."""

from typing import Any

import pytest
from tests.unit.metadata_cluster import Cluster
from tests.unit.namespace_helpers import (
    BUCKET,
    an_object,
    commit,
    commit_part,
    complete,
    create_upload,
    delete,
    extent,
    get,
    new_bucket,
    no_fence,
    pb,
)

from exastore.metadata.kv.keys import pack, prefix_range
from exastore.metadata.kv.memory import MemoryEngine
from exastore.metadata.namespace import buckets, check, expiry, lifecycle, objects, rows, usage
from exastore.metadata.namespace.errors import InvalidArgument, NoSuchKey, QuotaExceeded
from exastore.metadata.namespace.space import Terms
from exastore.proto.v1 import metadata_pb2

TERMS = Terms(day_s=100.0)


@pytest.fixture
async def engine() -> MemoryEngine:
    new = MemoryEngine()
    await new_bucket(new)
    return new


async def configure(engine: MemoryEngine, **changes: Any) -> None:
    request = pb.ConfigureBucketRequest(name=BUCKET, **changes)
    await engine.transact(lambda txn: buckets.configure_bucket(txn, request))


async def used(engine: MemoryEngine) -> metadata_pb2.Usage:
    return await engine.read(lambda txn: buckets.bucket_usage(txn, BUCKET))


async def fill(engine: MemoryEngine, count: int, size: int) -> int:
    """Commit objects until one is refused; how many there are."""
    for number in range(count):
        try:
            await commit(engine, an_object(f"k{number}", inline=b"x" * size))
        except QuotaExceeded:
            return number
    return count


# ---- quotas ----


async def test_a_quota_of_objects_is_exact(engine: MemoryEngine) -> None:
    await configure(engine, quota=pb.Quota(max_objects=37))
    assert await fill(engine, 100, 1) == 37
    assert (await used(engine)).object_count == 37
    await commit(engine, an_object("k0", "again", inline=b"yy"))  # replacing needs no room
    await delete(engine, "k1")
    await commit(engine, an_object("new", inline=b"x"))
    with pytest.raises(QuotaExceeded):
        await commit(engine, an_object("newer", inline=b"x"))


async def test_a_quota_of_bytes_counts_versions_and_parts(engine: MemoryEngine) -> None:
    await configure(engine, quota=pb.Quota(max_bytes=1000), versioning=pb.VERSIONING_ENABLED)
    for number in range(5):
        await commit(engine, an_object("k", f"v{number}", inline=b"x" * 100))
    await create_upload(engine, "big", "u")
    etag = "0" * 32
    for number in (1, 2):
        part = pb.Part(
            number=number, size_bytes=250, etag=etag, extents=[extent(f"p{number}", data_bytes=250)]
        )
        await commit_part(engine, "big", "u", part)
    with pytest.raises(QuotaExceeded) as exceeded:
        await commit(engine, an_object("one", inline=b"x"))
    assert (exceeded.value.what, exceeded.value.used, exceeded.value.allowed) == (
        "bytes",
        1001,
        1000,
    )
    await complete(engine, "big", "u", [(1, etag), (2, etag)])
    now = await used(engine)
    assert (now.object_count, now.object_bytes, now.part_bytes) == (6, 1000, 0)


async def test_a_quota_below_what_is_used_lets_things_shrink(engine: MemoryEngine) -> None:
    assert await fill(engine, 20, 10) == 20
    await configure(engine, quota=pb.Quota(max_bytes=50))
    with pytest.raises(QuotaExceeded):
        await commit(engine, an_object("new", inline=b"x"))
    await commit(engine, an_object("k0", "smaller", inline=b"x"))
    for first in (1, 3):
        await delete(engine, f"k{first}", f"k{first + 1}")
    await configure(engine, quota=pb.Quota())
    await commit(engine, an_object("new", inline=b"x" * 100))


async def test_a_tenant_has_a_quota_over_its_buckets(engine: MemoryEngine) -> None:
    other = pb.CreateBucketRequest(name="other", owner="me")
    await engine.transact(lambda txn: buckets.create_bucket(txn, other, 1.0))
    quota = pb.Quota(max_objects=10)
    await engine.transact(lambda txn: usage.shrink_share(txn, "me", quota, 1, is_over=False))
    assert await fill(engine, 6, 1) == 6
    item = an_object("x", inline=b"1")
    item.bucket = "other"
    for number in range(4):
        item.key = item.version_id = f"o{number}"
        await commit(engine, item)
    item.key = item.version_id = "more"
    with pytest.raises(QuotaExceeded) as exceeded:
        await commit(engine, item)
    assert exceeded.value.whose == "tenant 'me'"
    counters, sums = await engine.read(lambda txn: check.check_tenant(txn, "me"))
    assert counters == sums


async def test_the_checker_sees_a_counter_that_drifted(engine: MemoryEngine) -> None:
    await fill(engine, 5, 10)
    findings = await engine.read(lambda txn: check.count_bucket(txn, BUCKET))
    assert findings.is_sound

    def spoil(txn: Any) -> None:
        ((key, value), *_) = txn.scan(*_counters())
        txn.put(key, (int.from_bytes(value[:8], "little") + 1).to_bytes(8, "little") + value[8:])

    await engine.transact(spoil)
    findings = await engine.read(lambda txn: check.count_bucket(txn, BUCKET))
    assert not findings.is_sound


def _counters() -> tuple[bytes, bytes]:
    return rows.base(1) + b"c", rows.base(1) + b"d"


# ---- lifecycle: rules and index ----


def rule(**values: Any) -> metadata_pb2.LifecycleRule:
    return pb.LifecycleRule(id="r", **values)


async def due_times(engine: MemoryEngine) -> list[float]:
    keys = await engine.read(lambda txn: lifecycle.scan_due(txn, before_s=1e12, limit=1000))
    return [rows.timed_place(key)[0] / 1000 for key in keys]


async def put(engine: MemoryEngine, key: str, *, now_s: float, size: int = 1, **tags: str) -> None:
    item = an_object(key, f"{key}-{now_s}", inline=b"x" * size)
    item.tags.update(tags)
    request = pb.CommitObjectRequest(object=item)
    await engine.transact(lambda txn: objects.commit_object(txn, request, now_s, no_fence, TERMS))


async def act(engine: MemoryEngine, now_s: float) -> list[str]:
    keys = await engine.read(lambda txn: lifecycle.scan_due(txn, before_s=now_s))
    return [
        await engine.transact(lambda txn, key=key: expiry.act(txn, key, now_s, TERMS))  # type: ignore[misc]
        for key in keys
    ]


async def test_rules_choose_by_prefix_tags_and_size(engine: MemoryEngine) -> None:
    await configure(
        engine,
        lifecycle=pb.LifecycleRules(
            rules=[
                rule(prefix="logs/", expire_days=3),
                rule(tags={"tmp": "yes"}, expire_days=1),
                rule(larger_than_bytes=10, smaller_than_bytes=20, expire_days=2),
                rule(expire_days=1, disabled=True),
            ]
        ),
    )
    await put(engine, "plain", now_s=1000.0)
    await put(engine, "logs/a", now_s=1000.0)
    await put(engine, "logs/b", now_s=1000.0, tmp="yes")  # the earliest rule wins
    await put(engine, "sized", now_s=1000.0, size=11)
    await put(engine, "too-large", now_s=1000.0, size=20)
    assert await due_times(engine) == [1100.0, 1200.0, 1300.0]
    assert await act(engine, 1099.0) == []
    assert await act(engine, 1300.5) == ["expired"] * 3
    for key in ("plain", "too-large"):
        await get(engine, key)
    for key in ("logs/a", "logs/b", "sized"):
        with pytest.raises(NoSuchKey):
            await get(engine, key)


async def test_new_rules_reach_old_objects_and_dropped_rules_let_go(engine: MemoryEngine) -> None:
    for number in range(35):
        await put(engine, f"k{number}", now_s=1000.0)
    await configure(engine, lifecycle=pb.LifecycleRules(rules=[rule(expire_days=1)]))
    assert await due_times(engine) == []
    while await engine.transact(lambda txn: expiry.index_some(txn, 1, TERMS)):
        pass
    assert await due_times(engine) == [1100.0] * 35
    assert await engine.read(expiry.buckets_to_index) == []
    await configure(engine, lifecycle=pb.LifecycleRules(rules=[rule(expire_days=2)]))
    # Before the bucket is indexed again, acting asks today's rules.
    assert set(await act(engine, 1150.0)) == {"indexed"}
    assert await due_times(engine) == [1200.0] * 35
    await configure(engine, lifecycle=pb.LifecycleRules())
    while await engine.transact(lambda txn: expiry.index_some(txn, 1, TERMS)):
        pass
    assert await due_times(engine) == []
    assert (await used(engine)).object_count == 35


async def test_a_clock_that_went_back_makes_lifecycle_late_not_early(engine: MemoryEngine) -> None:
    await configure(engine, lifecycle=pb.LifecycleRules(rules=[rule(expire_days=1)]))
    await put(engine, "k", now_s=5000.0)
    await put(engine, "k", now_s=3000.0)  # replaces, by a clock that was set back
    assert await due_times(engine) == [3100.0]
    assert await act(engine, 2000.0) == []
    assert await act(engine, 3200.0) == ["expired"]


async def test_old_versions_uploads_and_lone_markers_go(engine: MemoryEngine) -> None:
    rules = [rule(expire_days=5, noncurrent_days=1, abort_upload_days=2, drop_lone_markers=True)]
    await configure(
        engine, versioning=pb.VERSIONING_ENABLED, lifecycle=pb.LifecycleRules(rules=rules)
    )
    await put(engine, "k", now_s=1000.0)
    await put(engine, "k", now_s=1010.0)
    assert await due_times(engine) == [1110.0, 1510.0]
    assert await act(engine, 1111.0) == ["noncurrent"]
    assert await act(engine, 1511.0) == ["expired"]  # leaves a marker
    assert await due_times(engine) == [1611.0, 1611.0]
    # The marker is looked at first, when it is not alone, and goes with the version.
    assert await act(engine, 1612.0) == ["kept", "noncurrent"]
    now = await used(engine)
    assert (now.object_count, now.marker_count) == (0, 0)


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"expire_days": 1, "expire_at_s": 5.0},
        {"abort_upload_days": 1, "tags": {"a": "b"}},
        {"expire_days": 1, "larger_than_bytes": 9, "smaller_than_bytes": 10},
        {"expire_days": 1, "tags": {"": ""}},
    ],
)
async def test_rules_that_cannot_be_kept_are_refused(
    engine: MemoryEngine, values: dict[str, Any]
) -> None:
    with pytest.raises(InvalidArgument):
        await configure(engine, lifecycle=pb.LifecycleRules(rules=[rule(**values)]))


# ---- the executor ----


async def served() -> Cluster:
    cluster = Cluster(lifecycle_day_s=100.0, request_ttl_s=50.0)
    await cluster.form()
    await cluster.new_bucket()
    rules = pb.LifecycleRules(rules=[rule(expire_days=1)])
    await cluster.service.names.configure_bucket(
        pb.ConfigureBucketRequest(name=BUCKET, lifecycle=rules)
    )
    return cluster


def overdue_s(cluster: Cluster) -> float | None:
    return cluster.registry.get_sample_value("exastore_metadata_lifecycle_oldest_overdue_seconds")


async def keys(cluster: Cluster) -> list[str]:
    request = pb.ListObjectsRequest(bucket=BUCKET, max_keys=1000)
    return [item.key for item in (await cluster.service.names.list_objects(request)).objects]


async def test_the_executor_expires_and_tells_how_late_it_is() -> None:
    cluster = await served()
    for number in range(150):
        await cluster.put(f"k{number}", 0)
    await cluster.step(40.0)
    await cluster.background.lifecycle.run_round()
    assert len(await keys(cluster)) == 150
    assert overdue_s(cluster) == 0.0
    for _ in range(5):
        await cluster.step(40.0)
    assert cluster.service.lease.is_held
    await cluster.background.lifecycle.run_round()
    assert await keys(cluster) == []
    done = cluster.registry.get_sample_value(
        "exastore_metadata_lifecycle_actions_total", {"action": "expired"}
    )
    assert done == 150


async def test_a_server_without_the_lease_expires_nothing() -> None:
    cluster = await served()
    await cluster.put("k", 0)
    other = Cluster(
        engine=cluster.engine, clock=cluster.clock, holder="server-2", lifecycle_day_s=100.0
    )
    await other.service.start()
    for _ in range(8):
        await cluster.step(20.0)
    await other.background.lifecycle.run_round()
    assert await keys(cluster) == ["k"]
    assert (overdue_s(other) or 0.0) >= 60.0


async def test_a_clock_that_jumps_ahead_is_doubted_before_things_are_deleted() -> None:
    cluster = await served()
    await cluster.put("k", 0)
    jump_s = 1e6
    real_now_s = cluster.clock.now_s
    cluster.clock.now_s = lambda: real_now_s() + jump_s  # type: ignore[method-assign]
    await cluster.background.run_round()
    await cluster.background.lifecycle.run_round()
    assert await keys(cluster) == ["k"]
    jump_s = 0.0  # somebody sets it right
    await cluster.background.lifecycle.run_round()
    assert await keys(cluster) == ["k"]


async def test_expired_answers_are_forgotten_in_bounded_space() -> None:
    cluster = await served()
    for number in range(60):
        await cluster.put(f"k{number % 3}", 0) if number < 3 else None
        await cluster.service.names.delete_objects(
            pb.DeleteObjectsRequest(bucket=BUCKET, keys=["k0"], request_id=f"r{number}")
        )
    for _ in range(3):
        await cluster.step(40.0)
    await cluster.background.lifecycle.run_round()
    left = await cluster.engine.read(lambda txn: txn.scan(*prefix_range(pack("e"))))
    assert {rows.timed_place(key)[2] for key, _ in left} == {b"v-k1", b"v-k2"}  # expired just now


@pytest.mark.parametrize(
    ("bounds", "size_bytes", "plain_bytes", "matches"),
    [
        ({"larger_than_bytes": 0}, 0, None, False),
        ({"larger_than_bytes": 0}, 1, None, True),
        ({}, 0, None, True),
        ({"smaller_than_bytes": 1}, 0, None, True),
        ({"smaller_than_bytes": 110}, 128, 100, True),
        ({"larger_than_bytes": 110}, 128, 100, False),
    ],
)
def test_a_size_is_what_the_owner_knows_and_nothing_is_a_size(
    bounds: dict[str, Any], size_bytes: int, plain_bytes: int | None, matches: bool
) -> None:
    record = pb.Object(modified_s=1.0, size_bytes=size_bytes)
    if plain_bytes is not None:
        record.plain_bytes = plain_bytes
        record.encryption.algorithm = "AES256"
    rules = [rule(expire_days=1, **bounds)]
    lifecycle.check_rules(rules)
    assert bool(lifecycle.object_due_ms(rules, "k", record, TERMS)) == matches
