"""Packing in the namespace: what may become a slice, when, and what goes with the last of them."""

from collections.abc import Sequence
from functools import partial

import pytest
from tests.unit.namespace_helpers import (
    BUCKET,
    an_object,
    commit,
    delete,
    get,
    new_bucket,
    no_fence,
    pb,
)

from exastore.erasure import codec
from exastore.metadata.kv.memory import MemoryEngine
from exastore.metadata.namespace import (
    buckets,
    check,
    extents,
    objects,
    orphans,
    packed,
    packing,
    rows,
    trash,
)
from exastore.metadata.namespace.errors import StripeTooOld
from exastore.metadata.namespace.packing import Candidate, Swap, Swapped
from exastore.metadata.service.packing_plan import of_logs, plan_stripe
from exastore.proto.v1 import common_pb2, metadata_pb2


def log_extent(
    number: int, data_bytes: int = 1000, missing: Sequence[int] = ()
) -> common_pb2.Extent:
    return common_pb2.Extent(
        stripe_id=number.to_bytes(6, "big") + bytes(10),
        code="rep-2",
        data_bytes=data_bytes,
        chunk_bytes=data_bytes,
        chunk_crc32c=[number, number],
        missing_indexes=missing,
        is_log=True,
    )


def whole(number: int) -> common_pb2.Extent:
    return common_pb2.Extent(
        stripe_id=number.to_bytes(6, "big") + b"packed".ljust(10, b"\x00"),
        code="rs-2-1",
        data_bytes=8192,
        chunk_bytes=4096,
        chunk_crc32c=[1, 2, 3],
    )


@pytest.fixture
async def engine() -> MemoryEngine:
    made = MemoryEngine()
    await new_bucket(made)
    return made


async def waiting(engine: MemoryEngine) -> list[Candidate]:
    found: list[Candidate] = []
    for bucket_id in await engine.read(packing.buckets_to_pack):
        more, _ = await engine.read(partial(packing.unpacked, bucket_id=bucket_id))
        found += more
    return found


async def swap(
    engine: MemoryEngine,
    stripe: common_pb2.Extent,
    candidates: Sequence[Candidate],
    *,
    first_offset: int = 0,
    may_create: bool = True,
) -> Swapped:
    swaps = [
        Swap(
            candidate,
            common_pb2.Extent(
                stripe_id=stripe.stripe_id,
                data_bytes=candidate.extent.data_bytes,
                chunk_bytes=stripe.chunk_bytes,
                is_slice=True,
                slice_offset=first_offset + 1000 * number,
            ),
        )
        for number, candidate in enumerate(candidates)
    ]
    return await engine.transact(
        lambda txn: packing.swap(txn, 1, stripe, swaps, 50.0, no_fence, may_create=may_create)
    )


async def given_up(engine: MemoryEngine) -> list[bytes]:
    entries = await engine.read(lambda txn: trash.scan_trash(txn, before_s=1e9))
    return [
        extent.stripe_id
        for entry in entries
        for extent in metadata_pb2.Part.FromString(entry.value).extents
    ]


async def test_an_object_that_was_replaced_meanwhile_is_not_packed(engine: MemoryEngine) -> None:
    await commit(engine, an_object("k", "v1", [log_extent(1)]))
    candidates = await waiting(engine)
    await commit(engine, an_object("k", "v2", [log_extent(2)]))
    done = await swap(engine, whole(9), candidates)
    assert done == Swapped(0, exists=False)
    assert (await get(engine, "k")).extents[0].stripe_id == log_extent(2).stripe_id
    assert await given_up(engine) == [log_extent(1).stripe_id]


async def test_a_stripe_that_is_in_the_trash_is_not_referred_to_again(
    engine: MemoryEngine,
) -> None:
    await commit(engine, an_object("a", "v1", [log_extent(1)]))
    await commit(engine, an_object("b", "v2", [log_extent(2)]))
    first, second = await waiting(engine)
    assert (await swap(engine, whole(9), [first])).exists
    await delete(engine, "a")
    assert whole(9).stripe_id in await given_up(engine)
    done = await swap(engine, whole(9), [second], first_offset=1000, may_create=False)
    assert done == Swapped(0, exists=False)
    assert (await get(engine, "b")).extents[0].is_log


async def test_an_object_with_missing_copies_waits_until_they_are_rebuilt(
    engine: MemoryEngine,
) -> None:
    await commit(engine, an_object("k", "v1", [log_extent(1, missing=[1])]))
    assert not await waiting(engine)
    rows_found, _ = await engine.read(extents.list_degraded)
    missing = {(log_extent(1).stripe_id, 1)}
    await engine.transact(lambda txn: extents.mark_rebuilt(txn, rows_found[0].key, missing))
    assert len(await waiting(engine)) == 1
    assert (await engine.read(lambda txn: check.check_bucket(txn, BUCKET))).is_sound


async def test_a_sparse_stripe_tells_its_objects_wherever_their_versions_went(
    engine: MemoryEngine,
) -> None:
    request = pb.ConfigureBucketRequest(name=BUCKET, versioning=pb.VERSIONING_ENABLED)
    await engine.transact(lambda txn: buckets.configure_bucket(txn, request))
    kept = []
    for number, key in enumerate("abcd", 1):
        kept.append(await commit(engine, an_object(key, f"v{number}", [log_extent(number)])))
    assert (await swap(engine, whole(9), await waiting(engine))).count == 4
    await commit(engine, an_object("a", "newer", [log_extent(7)]), now_s=60.0)  # a's old one stays
    for old in kept[1:]:
        item = pb.DeleteItem(key=old.key, version_id=old.version_id)
        await engine.transact(
            partial(objects.delete_objects, bucket=BUCKET, items=[item], now_s=70.0)
        )
    ((stripe, members),) = await engine.read(lambda txn: packing.sparse_stripes(txn, 1))
    assert (stripe.live_count, stripe.live_bytes) == (1, 1000)
    (member,) = members
    assert member.holder.startswith(rows.versions_of("a"))
    assert (await swap(engine, whole(10), members)).count == 1
    assert whole(9).stripe_id in await given_up(engine)
    assert (await engine.read(lambda txn: check.check_bucket(txn, BUCKET))).is_sound


async def test_commits_of_stripes_that_orphans_were_sought_among_are_refused(
    engine: MemoryEngine,
) -> None:
    await engine.transact(lambda txn: orphans.raise_fence(txn, 100))
    with pytest.raises(StripeTooOld):
        await commit(engine, an_object("old", "v1", [log_extent(99)]))
    await commit(engine, an_object("new", "v2", [log_extent(100)]))
    await engine.transact(lambda txn: orphans.raise_fence(txn, 50))
    with pytest.raises(StripeTooOld):
        await commit(engine, an_object("old", "v3", [log_extent(99)]))


async def test_every_stripe_that_anything_refers_to_is_known(engine: MemoryEngine) -> None:
    await commit(engine, an_object("a", "v1", [log_extent(1)]))
    await commit(engine, an_object("b", "v2", [log_extent(2)]))
    await swap(engine, whole(9), (await waiting(engine))[:1])
    await delete(engine, "b")
    ids: set[bytes] = set()
    begin: bytes | None = b""
    while begin is not None:
        batch = await engine.read(partial(orphans.known_stripes, begin=begin, row_limit=2))
        ids.update(batch.stripe_ids)
        begin = batch.next_begin
    assert ids == {log_extent(1).stripe_id, log_extent(2).stripe_id, whole(9).stripe_id}


async def test_the_totals_tell_what_waits_and_how_much_is_live(engine: MemoryEngine) -> None:
    for number, key in enumerate("abc", 1):
        await commit(engine, an_object(key, f"v{number}", [log_extent(number)]))
    await swap(engine, whole(9), (await waiting(engine))[:2])
    await delete(engine, "a")
    found = await engine.read(packed.totals)
    assert (found.unpacked_count, found.unpacked_bytes) == (1, 1000)
    assert (found.stripe_count, found.object_count) == (1, 1)
    assert (found.live_bytes, found.packed_bytes, found.stored_bytes) == (1000, 2000, 3 * 4096)
    assert found.sparse_count == 0


def test_no_object_of_a_plan_crosses_a_chunk_and_the_space_is_as_promised() -> None:
    code, size = codec("rs-4-2"), 16 << 10
    candidates = [
        Candidate(f"o{n}".encode(), log_extent(n + 1, data_bytes=size), 0.0) for n in range(1000)
    ]
    left = of_logs(code, candidates)
    stored_bytes = packed_bytes = 0
    while left:
        plan, left = plan_stripe(code, 1 << 20, left)
        assert plan is not None and plan.pays
        if not plan.is_full:
            break
        for candidate, offset in plan.placed:
            last = offset + candidate.extent.data_bytes - 1
            assert offset // plan.chunk_bytes == last // plan.chunk_bytes
        stored_bytes += code.n * plan.chunk_bytes
        packed_bytes += size * len(plan.placed)
    assert packed_bytes >= 700 * size
    assert stored_bytes <= 1.01 * code.n / code.k * packed_bytes


def test_a_stripe_that_would_take_more_room_than_the_copies_does_not_pay() -> None:
    code = codec("rs-4-2")
    one = [Candidate(b"o1", log_extent(1, data_bytes=5000), 0.0)]
    plan, left = plan_stripe(code, 1 << 20, of_logs(code, one))
    assert plan is not None and not plan.pays and not left
