"""Object lock, and replaced versions that lifecycle has to keep, over the engine in memory."""

from collections import Counter
from typing import Any

import pytest
from tests.unit.namespace_helpers import BUCKET, an_object, new_bucket, no_fence, pb

from exastore.metadata.kv.memory import MemoryEngine
from exastore.metadata.namespace import (
    acl,
    buckets,
    check,
    expiry,
    lifecycle,
    listing,
    lock,
    objects,
)
from exastore.metadata.namespace.errors import (
    InvalidArgument,
    InvalidBucketState,
    NoObjectLock,
    ObjectLocked,
)
from exastore.metadata.namespace.space import Terms
from exastore.proto.v1 import acl_pb2, lock_pb2, metadata_pb2

TERMS = Terms(day_s=100.0)
GOVERNANCE, COMPLIANCE = lock_pb2.LOCK_MODE_GOVERNANCE, lock_pb2.LOCK_MODE_COMPLIANCE
DAY_S = 86_400.0


@pytest.fixture
async def engine() -> MemoryEngine:
    new = MemoryEngine()
    request = pb.CreateBucketRequest(name=BUCKET, owner="me", object_lock=True)
    await new.transact(lambda txn: buckets.create_bucket(txn, request, 1.0))
    return new


async def configure(engine: MemoryEngine, **changes: Any) -> None:
    request = pb.ConfigureBucketRequest(name=BUCKET, **changes)
    await engine.transact(lambda txn: buckets.configure_bucket(txn, request))


async def put(engine: MemoryEngine, name: str, now_s: float, **held: Any) -> metadata_pb2.Object:
    new = an_object("k", name, inline=b"x")
    new.lock.CopyFrom(lock_pb2.ObjectLock(**held))
    request = pb.CommitObjectRequest(object=new)
    return await engine.transact(
        lambda txn: objects.commit_object(txn, request, now_s, no_fence, TERMS)
    )


async def put_lock(engine: MemoryEngine, version_id: str, now_s: float, **changes: Any) -> None:
    request = lock_pb2.PutLockRequest(bucket=BUCKET, key="k", version_id=version_id, **changes)
    await engine.transact(lambda txn: lock.put_lock(txn, request, now_s, TERMS))


async def delete(
    engine: MemoryEngine, version_id: str, now_s: float, *, bypass: bool = False
) -> str:
    """Why the version stays; "UNSPECIFIED": it does not."""
    items = [pb.DeleteItem(key="k", version_id=version_id)]
    response = await engine.transact(
        lambda txn: objects.delete_objects(
            txn, BUCKET, items, now_s, bypass_governance=bypass, terms=TERMS
        )
    )
    return pb.ErrorReason.Name(response.deleted[0].reason).removeprefix("ERROR_REASON_")


async def act(engine: MemoryEngine, now_s: float) -> list[str]:
    """One round of lifecycle."""
    due = await engine.read(lambda txn: lifecycle.scan_due(txn, before_s=now_s))
    done = [
        await engine.transact(
            lambda txn, key=key: (txn.get(b"lease"), expiry.act(txn, key, now_s, TERMS))[1]  # type: ignore[misc]
        )
        for key in due
    ]
    found = await engine.read(lambda txn: check.check_bucket(txn, BUCKET))
    assert found.is_sound, found.wrong
    return done


async def version_ids(engine: MemoryEngine) -> list[str]:
    request = pb.ListVersionsRequest(bucket=BUCKET, max_keys=200)
    found = await engine.read(lambda txn: listing.list_versions(txn, request))
    return [version.version_id for version in found.versions]


async def test_governance_gives_way_to_who_may_bypass_it(engine: MemoryEngine) -> None:
    version = (await put(engine, "v", 10.0, mode=GOVERNANCE, retain_until_s=100.0)).version_id
    assert await delete(engine, version, 99.0) == "OBJECT_LOCKED"
    shorter = lock_pb2.ObjectLock(mode=GOVERNANCE, retain_until_s=50.0)
    with pytest.raises(ObjectLocked):
        await put_lock(engine, version, 20.0, retention=shorter)
    await put_lock(engine, version, 20.0, retention=shorter, bypass_governance=True)
    assert await delete(engine, version, 49.0) == "OBJECT_LOCKED"
    assert await delete(engine, version, 49.0, bypass=True) == "UNSPECIFIED"
    assert await version_ids(engine) == []


async def test_compliance_gives_way_to_nobody_and_only_grows(engine: MemoryEngine) -> None:
    version = (await put(engine, "v", 10.0, mode=COMPLIANCE, retain_until_s=100.0)).version_id
    assert await delete(engine, version, 99.0, bypass=True) == "OBJECT_LOCKED"
    for mode, until_s in [(COMPLIANCE, 99.0), (GOVERNANCE, 200.0), (lock_pb2.LOCK_MODE_NONE, 0.0)]:
        less = lock_pb2.ObjectLock(mode=mode, retain_until_s=until_s)
        with pytest.raises(ObjectLocked):
            await put_lock(engine, version, 20.0, retention=less, bypass_governance=True)
    more = lock_pb2.ObjectLock(mode=COMPLIANCE, retain_until_s=150.0)
    await put_lock(engine, version, 20.0, retention=more)
    assert await delete(engine, version, 101.0, bypass=True) == "OBJECT_LOCKED"
    assert await delete(engine, version, 151.0) == "UNSPECIFIED"


async def test_a_legal_hold_holds_until_it_is_taken_off(engine: MemoryEngine) -> None:
    version = (await put(engine, "v", 10.0, legal_hold=True)).version_id
    assert await delete(engine, version, 1e9, bypass=True) == "OBJECT_LOCKED"
    await put_lock(engine, version, 20.0, legal_hold=False)
    assert await delete(engine, version, 30.0) == "UNSPECIFIED"


async def test_a_marker_hides_a_locked_version_and_leaves_it(engine: MemoryEngine) -> None:
    version = (await put(engine, "v", 10.0, mode=COMPLIANCE, retain_until_s=100.0)).version_id
    assert await delete(engine, "", 20.0) == "UNSPECIFIED"
    assert version in await version_ids(engine)


async def test_the_bucket_locks_what_says_nothing_itself(engine: MemoryEngine) -> None:
    await configure(engine, lock=lock_pb2.BucketLock(enabled=True, mode=COMPLIANCE, days=2))
    await put(engine, "v", 10.0)
    found = await engine.read(lambda txn: objects.get_object(txn, BUCKET, "k"))
    assert (found.lock.mode, found.lock.retain_until_s) == (COMPLIANCE, 10.0 + 2 * DAY_S)
    own = await put(engine, "w", 10.0, mode=GOVERNANCE, retain_until_s=20.0)
    assert own.lock.retain_until_s == 20.0


async def test_lock_and_versioning_go_together(engine: MemoryEngine) -> None:
    with pytest.raises(InvalidBucketState):
        await configure(engine, versioning=pb.VERSIONING_SUSPENDED)
    with pytest.raises(InvalidBucketState):
        await configure(engine, lock=lock_pb2.BucketLock(enabled=False))
    for wrong in (
        lock_pb2.BucketLock(enabled=True, mode=GOVERNANCE),
        lock_pb2.BucketLock(enabled=True, days=1),
        lock_pb2.BucketLock(enabled=True, mode=GOVERNANCE, days=1, years=1),
    ):
        with pytest.raises(InvalidArgument):
            await configure(engine, lock=wrong)
    plain = MemoryEngine()
    await new_bucket(plain)
    with pytest.raises(InvalidBucketState):
        await configure(plain, lock=lock_pb2.BucketLock(enabled=True))
    with pytest.raises(NoObjectLock):
        await put(plain, "v", 10.0, mode=GOVERNANCE, retain_until_s=20.0)


async def test_lifecycle_waits_for_locks(engine: MemoryEngine) -> None:
    rules = [pb.LifecycleRule(id="r", noncurrent_days=1)]
    await configure(engine, lifecycle=pb.LifecycleRules(rules=rules))
    held = await put(engine, "a", 10.0, mode=GOVERNANCE, retain_until_s=1000.0)
    await put(engine, "b", 20.0)
    assert await act(engine, 130.0) == ["kept"]
    assert await act(engine, 999.0) == [], "it is not looked at again before"
    assert held.version_id in await version_ids(engine)
    assert await act(engine, 1001.0) == ["noncurrent"]
    assert held.version_id not in await version_ids(engine)


async def test_lifecycle_keeps_so_many_newer_versions(engine: MemoryEngine) -> None:
    rules = [pb.LifecycleRule(id="r", noncurrent_days=1, newer_noncurrent_count=2)]
    await configure(engine, lifecycle=pb.LifecycleRules(rules=rules))
    ids = [(await put(engine, f"v{n}", 10.0 + n)).version_id for n in range(5)]
    assert sorted(await act(engine, 200.0)) == ["kept", "kept", "noncurrent", "noncurrent"]
    assert await version_ids(engine) == [ids[4], ids[3], ids[2]]
    assert await act(engine, 299.0) == []
    ids.append((await put(engine, "v5", 299.0)).version_id)
    assert await act(engine, 301.0) == ["kept", "noncurrent"]
    assert await version_ids(engine) == [ids[5], ids[4], ids[3]]


async def test_lifecycle_keeps_a_hundred_newer_versions_and_not_one_more(
    engine: MemoryEngine,
) -> None:
    rules = [pb.LifecycleRule(id="r", noncurrent_days=1, newer_noncurrent_count=100)]
    await configure(engine, lifecycle=pb.LifecycleRules(rules=rules))
    ids = [(await put(engine, f"v{n}", 10.0 + n)).version_id for n in range(103)]
    await delete(engine, "", 120.0)  # the rows read are the most: a marker is among them
    done = Counter(await act(engine, 900.0))  # a hundred rows, the oldest first
    assert done + Counter(await act(engine, 900.0)) == {"noncurrent": 3, "kept": 100}
    assert (await version_ids(engine))[1:] == ids[:2:-1]
    rules[0].newer_noncurrent_count = 101
    with pytest.raises(InvalidArgument):
        await configure(engine, lifecycle=pb.LifecycleRules(rules=rules))


async def test_a_delete_marker_left_alone_goes(engine: MemoryEngine) -> None:
    rules = [pb.LifecycleRule(id="r", drop_lone_markers=True)]
    await configure(engine, lifecycle=pb.LifecycleRules(rules=rules))
    version = (await put(engine, "v", 10.0)).version_id
    await delete(engine, "", 20.0)
    assert await act(engine, 121.0) == ["kept"]
    assert await delete(engine, version, 130.0) == "UNSPECIFIED"
    assert await act(engine, 300.0) == ["marker"]
    assert await version_ids(engine) == []


async def test_an_answer_tells_when_an_object_will_go(engine: MemoryEngine) -> None:
    rules = [
        pb.LifecycleRule(id="late", expire_days=9),
        pb.LifecycleRule(id="soon", expire_days=2, prefix="k"),
        pb.LifecycleRule(id="off", expire_days=1, disabled=True),
    ]
    await configure(engine, lifecycle=pb.LifecycleRules(rules=rules))
    made = await put(engine, "v", 10.0)
    found = await engine.read(lambda txn: objects.get_object(txn, BUCKET, "k", terms=TERMS))
    for answer in (made, found):
        assert (answer.expiry_rule_id, answer.expires_s) == ("soon", 210.0)


async def test_a_list_is_kept_with_its_version_and_bounded(engine: MemoryEngine) -> None:
    rules = [pb.LifecycleRule(id="r", expire_days=2)]
    await configure(engine, lifecycle=pb.LifecycleRules(rules=rules))
    first = (await put(engine, "v1", 10.0)).version_id
    await put(engine, "v2", 20.0)
    grant = acl_pb2.AccessGrant(grantee="evil", permission="READ")
    wanted = acl_pb2.AccessList(owner="acme", grants=[grant])

    async def put_acl(version_id: str, found: acl_pb2.AccessList | None) -> None:
        request = acl_pb2.PutAclRequest(bucket=BUCKET, key="k", version_id=version_id, acl=found)
        await engine.transact(lambda txn: acl.put_acl(txn, request, TERMS))

    async def read(version_id: str) -> metadata_pb2.Object:
        return await engine.read(
            lambda txn: objects.get_object(txn, BUCKET, "k", version_id=version_id, terms=TERMS)
        )

    await put_acl(first, wanted)
    assert (await read(first)).acl == wanted
    current = await read("")
    assert not current.HasField("acl") and current.expires_s == 220.0
    await put_acl("", wanted)
    assert (await engine.read(lambda txn: check.check_bucket(txn, BUCKET))).is_sound
    await put_acl("", None)
    assert not (await read("")).HasField("acl")
    for wrong in (
        acl_pb2.AccessList(owner="o" * 257),
        acl_pb2.AccessList(owner="o", grants=[grant] * 101),
    ):
        with pytest.raises(InvalidArgument):
            await put_acl("", wrong)
