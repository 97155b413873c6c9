"""Buckets, objects, listing, trash and degraded rows over the engine in memory."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.namespace_helpers import (
    BUCKET,
    an_object,
    commit,
    delete,
    extent,
    get,
    new_bucket,
    pb,
    stripe,
)

from exastore.metadata.kv.contract import Transaction
from exastore.metadata.kv.memory import MemoryEngine
from exastore.metadata.namespace import buckets, extents, listing, naming, requests, rows, trash
from exastore.metadata.namespace.errors import (
    BucketExists,
    BucketNotEmpty,
    InvalidArgument,
    NoSuchBucket,
    NoSuchKey,
    PreconditionFailed,
)
from exastore.proto.v1 import common_pb2, metadata_pb2


@pytest.fixture
async def engine() -> MemoryEngine:
    pending = [True, False, True]  # every test meets conflicts
    new = MemoryEngine(conflicts=lambda: bool(pending) and pending.pop())
    await new_bucket(new)
    return new


async def owners_in_trash(engine: MemoryEngine) -> list[str]:
    return [e.owner for e in await engine.read(lambda txn: trash.scan_trash(txn, before_s=1e9))]


def drop_bucket(txn: Transaction) -> None:
    buckets.drop_place(txn, BUCKET, buckets.delete_bucket(txn, BUCKET))


async def rows_but_counters(engine: MemoryEngine) -> list[bytes]:
    found = await engine.read(lambda txn: txn.scan(b"", b"\xff", keys_only=True))
    counters = (rows.base(1) + rows.USAGE, rows.tenant_usage("me", 0)[:-9])
    return [key for key, _ in found if not key.startswith(counters)]


# ---- buckets ----


@pytest.mark.parametrize("name", ["abc", "a-b.c", "0" * 63, "a1.b2-c3"])
def test_names_that_s3_allows_are_taken(name: str) -> None:
    naming.check_bucket_name(name)


@pytest.mark.parametrize(
    "name",
    [
        *("", "ab", "a" * 64, "Abc", "a_b", "-ab", "ab-", ".ab", "a..b", "192.168.0.1", "xn--a"),
        *("é" * 4, "abc-s3alias", "a/b", "abc\n"),
    ],
)
def test_names_that_s3_refuses_are_refused(name: str) -> None:
    with pytest.raises(InvalidArgument):
        naming.check_bucket_name(name)


async def test_a_bucket_is_created_once_and_deleted_when_empty(engine: MemoryEngine) -> None:
    request = pb.CreateBucketRequest(name=BUCKET, owner="other")
    with pytest.raises(BucketExists) as exists:
        await engine.transact(lambda txn: buckets.create_bucket(txn, request, 2.0))
    assert exists.value.owner == "me"
    await commit(engine, an_object("k", inline=b"x"))
    with pytest.raises(BucketNotEmpty):
        await engine.transact(drop_bucket)
    await delete(engine, "k")
    await engine.transact(drop_bucket)
    assert await engine.read(buckets.list_buckets) == []
    with pytest.raises(NoSuchBucket):
        await commit(engine, an_object("k", inline=b"x"))


# ---- objects ----


async def test_a_tiny_object_comes_back_whole(engine: MemoryEngine) -> None:
    item = an_object("k", inline=b"hello")
    item.user_metadata["mtime"] = "1"
    item.checksums["crc32"] = "AAAA"
    item.headers["Cache-Control"] = "no-store"
    committed = await commit(engine, item, now_s=42.0)
    got = await get(engine, "k")
    assert got.inline_data == b"hello"
    assert (got.size_bytes, got.etag, got.modified_s) == (5, "etag-k", 42.0)
    assert dict(got.user_metadata) == {"mtime": "1"}
    assert dict(got.headers) == {"Cache-Control": "no-store"}
    assert dict(got.checksums) == {"crc32": "AAAA"}
    head = await get(engine, "k", head_only=True)
    assert head == committed
    assert not head.inline_data


async def test_many_extents_keep_their_order_over_several_rows(engine: MemoryEngine) -> None:
    many = [extent(f"s{number:05d}") for number in range(3000)]
    await commit(engine, an_object("big", extents=many))
    assert list((await get(engine, "big")).extents) == many


async def test_an_empty_object_is_an_object(engine: MemoryEngine) -> None:
    await commit(engine, an_object("empty"))
    assert (await get(engine, "empty")).size_bytes == 0


@pytest.mark.parametrize("key", ["", "k" * 1025, "é" * 513])
async def test_a_key_outside_s3s_length_is_refused(engine: MemoryEngine, key: str) -> None:
    with pytest.raises(InvalidArgument):
        await commit(engine, an_object(key, "v"))


async def test_a_size_that_does_not_match_the_data_is_refused(engine: MemoryEngine) -> None:
    item = an_object("k", inline=b"hello")
    item.size_bytes = 6
    with pytest.raises(InvalidArgument, match="6 bytes"):
        await commit(engine, item)


async def test_the_same_version_committed_twice_is_one_commit(engine: MemoryEngine) -> None:
    item = an_object("k", "v1", [extent("s1")])
    first = await commit(engine, item, must_not_exist=True)
    assert await commit(engine, item, must_not_exist=True, now_s=99.0) == first
    assert await owners_in_trash(engine) == []


async def test_a_late_retry_does_not_bring_back_what_was_replaced(engine: MemoryEngine) -> None:
    old = an_object("k", "v1", [extent("s1")])
    await commit(engine, old)
    await commit(engine, an_object("k", "v2", [extent("s2")]))
    await commit(engine, old)
    assert (await get(engine, "k")).version_id == "v2"
    await delete(engine, "k")
    await commit(engine, old)
    with pytest.raises(NoSuchKey):
        await get(engine, "k")


async def test_conditions_are_checked_in_the_committing_transaction(engine: MemoryEngine) -> None:
    with pytest.raises(NoSuchKey):
        await commit(engine, an_object("k", "v0", inline=b"0"), if_match="e1")
    await commit(engine, an_object("k", "v1", inline=b"1", etag="e1"), must_not_exist=True)
    with pytest.raises(PreconditionFailed):
        await commit(engine, an_object("k", "v2", inline=b"2"), must_not_exist=True)
    with pytest.raises(PreconditionFailed):
        await commit(engine, an_object("k", "v2", inline=b"2"), if_match="e2")
    await commit(engine, an_object("k", "v3", inline=b"3"), if_match='"e1"')
    assert (await get(engine, "k")).inline_data == b"3"


async def test_a_fence_that_refuses_stores_nothing(engine: MemoryEngine) -> None:
    def refuse(txn: object, extents: object, pool: str) -> None:
        raise RuntimeError("stale")

    with pytest.raises(RuntimeError):
        await commit(engine, an_object("k", extents=[extent("s")]), fence=refuse)
    with pytest.raises(NoSuchKey):
        await get(engine, "k")


async def test_overwriting_and_deleting_put_the_old_extents_in_the_trash(
    engine: MemoryEngine,
) -> None:
    await commit(engine, an_object("k", "v1", [extent("s1")]), now_s=1.0)
    await commit(engine, an_object("k", "v2", [extent("s2")]), now_s=2.0)
    assert await delete(engine, "k", "absent", now_s=3.0) == [True, False]
    entries = await engine.read(lambda txn: trash.scan_trash(txn, before_s=2.5))
    assert [(e.owner, e.trashed_s) for e in entries] == [("v1", 2.0)]
    stats = await engine.read(trash.trash_stats)
    assert (stats.entry_count, stats.extent_count, stats.oldest_s) == (2, 2, 2.0)


async def test_collected_trash_leaves_no_row(engine: MemoryEngine) -> None:
    before = await rows_but_counters(engine)
    await commit(engine, an_object("k", "v1", [extent(f"s{n}", missing=[2]) for n in range(2000)]))
    await delete(engine, "k")
    (entry,) = await engine.read(lambda txn: trash.scan_trash(txn, before_s=1e9))
    seen: list[common_pb2.Extent] = []
    while True:
        batch = await engine.read(lambda txn: trash.entry_extents(txn, entry, row_limit=2))
        seen.extend(batch.extents)
        keys = batch.row_keys
        await engine.transact(lambda txn, keys=keys: trash.drop_rows(txn, entry, keys))  # type: ignore[misc]
        if batch.next_begin is None:
            break
    await engine.transact(lambda txn: trash.finish_entry(txn, entry))
    await engine.transact(lambda txn: requests.forget_expired(txn, before_s=1e6))
    assert len(seen) == 2000
    assert await rows_but_counters(engine) == before


async def test_all_extents_are_listed_but_not_those_in_the_trash(engine: MemoryEngine) -> None:
    await commit(engine, an_object("a", extents=[extent("a1"), extent("a2")]))
    await commit(engine, an_object("b", extents=[extent("b1")]))
    await commit(engine, an_object("inline", inline=b"x"))
    await delete(engine, "b")
    seen: list[bytes] = []
    begin: bytes | None = b""
    while begin is not None:
        found, begin = await engine.read(
            lambda txn, begin=begin: extents.list_extents(txn, begin=begin, row_limit=1)  # type: ignore[misc]
        )
        seen.extend(item.stripe_id for item in found)
    assert seen == [stripe("a1"), stripe("a2")]


async def test_a_degraded_stripe_is_listed_until_its_chunks_are_rebuilt(
    engine: MemoryEngine,
) -> None:
    await commit(
        engine,
        an_object(
            "k", extents=[extent("s1", missing=[0, 2]), extent("s2"), extent("s3", missing=[1])]
        ),
    )
    (degraded,), _ = await engine.read(extents.list_degraded)
    assert [item.stripe_id for item in degraded.extents] == [stripe("s1"), stripe("s3")]
    left = await engine.transact(
        lambda txn: extents.mark_rebuilt(txn, degraded.key, {(stripe("s1"), 0), (stripe("s3"), 1)})
    )
    assert left == 1
    got = (await get(engine, "k")).extents
    assert [list(item.missing_indexes) for item in got] == [[2], [], []]
    await engine.transact(lambda txn: extents.mark_rebuilt(txn, degraded.key, {(stripe("s1"), 2)}))
    assert await engine.read(extents.list_degraded) == ([], None)
    assert not any(item.missing_indexes for item in (await get(engine, "k")).extents)


# ---- listing ----


async def list_page(engine: MemoryEngine, **options: object) -> metadata_pb2.ListObjectsResponse:
    request = pb.ListObjectsRequest(bucket=BUCKET, **{"max_keys": 1000, **options})  # type: ignore[arg-type]
    return await engine.read(lambda txn: listing.list_objects(txn, request))


async def test_listing_a_bucket_that_is_not_there_fails(engine: MemoryEngine) -> None:
    with pytest.raises(NoSuchBucket):
        await engine.read(
            lambda txn: listing.list_objects(txn, pb.ListObjectsRequest(bucket="absent"))
        )


async def test_a_page_of_no_keys_is_empty_and_complete(engine: MemoryEngine) -> None:
    await commit(engine, an_object("k"))
    page = await list_page(engine, max_keys=0)
    assert (list(page.objects), page.truncated) == ([], False)


async def test_listings_carry_no_bytes_and_no_extents(engine: MemoryEngine) -> None:
    await commit(engine, an_object("a", inline=b"x"))
    await commit(engine, an_object("b", extents=[extent("s")]))
    page = await list_page(engine)
    assert [(o.key, o.size_bytes, o.inline_data, len(o.extents)) for o in page.objects] == [
        ("a", 1, b"", 0),
        ("b", 100, b"", 0),
    ]


async def test_a_common_prefix_is_skipped_not_scanned() -> None:
    engine = MemoryEngine()
    await new_bucket(engine)
    for folder in range(3):
        for number in range(500):
            await commit(engine, an_object(f"{folder}/{number}"))
    returned = 0
    scan = MemoryEngine.read

    class Counting:
        def __init__(self, txn: object) -> None:
            self.txn = txn

        def get(self, key: bytes) -> bytes | None:
            return self.txn.get(key)  # type: ignore[attr-defined,no-any-return]

        def scan(self, *args: object, **options: object) -> list[tuple[bytes, bytes]]:
            nonlocal returned
            found = self.txn.scan(*args, **options)  # type: ignore[attr-defined]
            returned += len(found)
            return found  # type: ignore[no-any-return]

    request = pb.ListObjectsRequest(bucket=BUCKET, delimiter="/", max_keys=1000)
    page = await scan(engine, lambda txn: listing.list_objects(Counting(txn), request))  # type: ignore[arg-type]
    assert list(page.common_prefixes) == ["0/", "1/", "2/"]
    assert returned < 100


def naive_page(
    keys: list[str], prefix: str, delimiter: str, start_after: str, max_keys: int
) -> tuple[list[str], list[str], bool]:
    """Objects, common prefixes, truncated: over all keys, entry by entry."""
    entries: list[tuple[str, bool]] = []
    for key in sorted(keys, key=str.encode):
        if not key.startswith(prefix):
            continue
        at = key.find(delimiter, len(prefix)) if delimiter else -1
        entry = (key, False) if at == -1 else (key[: at + len(delimiter)], True)
        if entry[0].encode() > start_after.encode() and entry not in entries:
            entries.append(entry)
    page = entries[:max_keys]
    return (
        [name for name, is_prefix in page if not is_prefix],
        [name for name, is_prefix in page if is_prefix],
        len(entries) > len(page) and max_keys > 0,
    )


NAMES = st.text(alphabet="ab/é", min_size=1, max_size=5)


@settings(max_examples=300, deadline=None)
@given(
    keys=st.lists(NAMES, unique=True, max_size=40),
    prefix=st.text(alphabet="ab/", max_size=2),
    delimiter=st.sampled_from(["", "/", "a/"]),
    start_after=st.one_of(st.just(""), NAMES),
    max_keys=st.integers(0, 6),
)
async def test_pages_are_those_of_a_naive_listing(
    keys: list[str], prefix: str, delimiter: str, start_after: str, max_keys: int
) -> None:
    engine = MemoryEngine()
    await new_bucket(engine)
    for key in keys:
        await commit(engine, an_object(key))
    seen: list[str] = []
    while True:
        page = await list_page(
            engine, prefix=prefix, delimiter=delimiter, start_after=start_after, max_keys=max_keys
        )
        found = ([o.key for o in page.objects], list(page.common_prefixes), page.truncated)
        assert found == naive_page(keys, prefix, delimiter, start_after, max_keys)
        seen += found[0] + found[1]
        if not page.truncated:
            break
        start_after = page.next_start_after
    assert len(seen) == len(set(seen))
