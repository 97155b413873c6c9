"""Versions, delete markers, the null version, tags, conditions, and their listing."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.namespace_helpers import (
    BUCKET,
    an_object,
    commit,
    delete,
    delete_items,
    extent,
    get,
    new_bucket,
    pb,
)

from exastore.metadata.kv.memory import MemoryEngine
from exastore.metadata.namespace import buckets, check, listing, naming, objects, requests, rows
from exastore.metadata.namespace.errors import (
    BucketNotEmpty,
    InvalidArgument,
    InvalidTag,
    IsDeleteMarker,
    NoSuchKey,
    NoSuchVersion,
)
from exastore.proto.v1 import metadata_pb2


@pytest.fixture
async def engine() -> MemoryEngine:
    new = MemoryEngine()
    await new_bucket(new)
    return new


async def set_versioning(
    engine: MemoryEngine, versioning: metadata_pb2.Versioning.ValueType
) -> None:
    request = pb.ConfigureBucketRequest(name=BUCKET, versioning=versioning)
    await engine.transact(lambda txn: buckets.configure_bucket(txn, request))


async def versions(engine: MemoryEngine, **options: object) -> list[metadata_pb2.Object]:
    request = pb.ListVersionsRequest(bucket=BUCKET, **{"max_keys": 1000, **options})  # type: ignore[arg-type]
    return list((await engine.read(lambda txn: listing.list_versions(txn, request))).versions)


async def get_version(engine: MemoryEngine, key: str, version_id: str) -> metadata_pb2.Object:
    return await engine.read(
        lambda txn: objects.get_object(txn, BUCKET, key, version_id=version_id)
    )


async def delete_version(
    engine: MemoryEngine, key: str, version_id: str
) -> metadata_pb2.DeletedItem:
    item = pb.DeleteItem(key=key, version_id=version_id)
    return (await delete_items(engine, item)).deleted[0]


async def sound(engine: MemoryEngine) -> None:
    findings = await engine.read(lambda txn: check.check_bucket(txn, BUCKET))
    assert (findings.wrong, findings.counters) == ([], findings.counted)


async def test_each_commit_makes_a_version_and_ids_sort_newest_first(engine: MemoryEngine) -> None:
    await set_versioning(engine, pb.VERSIONING_ENABLED)
    made = [
        await commit(engine, an_object("k", f"v{n}", inline=bytes([n])), now_s=now_s)
        for n, now_s in enumerate([100.0, 200.0, 50.0, 50.0])  # the clock goes back
    ]
    ids = [item.version_id for item in made]
    assert sorted(ids) == ids[::-1]
    assert (await get(engine, "k")).inline_data == b"\x03"
    for number, version_id in enumerate(ids):
        assert (await get_version(engine, "k", version_id)).inline_data == bytes([number])
    listed = await versions(engine)
    assert [item.version_id for item in listed] == ids[::-1]
    assert [item.is_latest for item in listed] == [True, False, False, False]
    await sound(engine)


async def test_a_deletion_hides_the_key_and_deleting_the_marker_brings_it_back(
    engine: MemoryEngine,
) -> None:
    await set_versioning(engine, pb.VERSIONING_ENABLED)
    first = await commit(engine, an_object("k", "v1", [extent("s1", missing=[1])]))
    deleted = (await delete_items(engine, pb.DeleteItem(key="k"), request_id="r1")).deleted[0]
    assert (deleted.existed, deleted.delete_marker) == (True, True)
    with pytest.raises(NoSuchKey):
        await get(engine, "k")
    with pytest.raises(IsDeleteMarker):
        await get_version(engine, "k", deleted.version_id)
    assert [v.delete_marker for v in await versions(engine)] == [True, False]
    await sound(engine)
    undone = await delete_version(engine, "k", deleted.version_id)
    assert (undone.existed, undone.delete_marker) == (True, True)
    got = await get(engine, "k")
    assert got.version_id == first.version_id
    assert list(got.extents[0].missing_indexes) == [1]
    await sound(engine)
    await delete_version(engine, "k", first.version_id)
    assert await versions(engine) == []
    with pytest.raises(NoSuchVersion):
        await get_version(engine, "k", first.version_id)
    assert not (await delete_version(engine, "k", first.version_id)).existed
    await sound(engine)


async def test_a_marker_counts_as_absent_for_conditions(engine: MemoryEngine) -> None:
    await set_versioning(engine, pb.VERSIONING_ENABLED)
    await commit(engine, an_object("k", "v1", inline=b"1"))
    await delete(engine, "k")
    with pytest.raises(NoSuchKey):
        await commit(engine, an_object("k", "v2", inline=b"2"), if_match="etag-v1")
    await commit(engine, an_object("k", "v3", inline=b"3"), must_not_exist=True)
    assert len(await versions(engine)) == 3


async def test_suspended_writes_replace_the_null_version_alone(engine: MemoryEngine) -> None:
    await commit(engine, an_object("k", "null-1", inline=b"1"))
    await set_versioning(engine, pb.VERSIONING_ENABLED)
    await commit(engine, an_object("k", "kept", inline=b"2"))
    assert (await get_version(engine, "k", "null")).inline_data == b"1"
    await set_versioning(engine, pb.VERSIONING_SUSPENDED)
    await commit(engine, an_object("k", "null-2", inline=b"3"))
    listed = await versions(engine)
    assert [(v.versioned, v.is_latest) for v in listed] == [(False, True), (True, False)]
    assert (await get_version(engine, "k", "null")).inline_data == b"3"
    await delete(engine, "k")  # a null delete marker takes its place
    assert [(v.versioned, v.delete_marker) for v in await versions(engine)] == [
        (False, True),
        (True, False),
    ]
    await delete_version(engine, "k", "null")
    assert (await get(engine, "k")).inline_data == b"2"
    await sound(engine)


async def test_the_cost_of_a_listing_does_not_depend_on_old_versions(engine: MemoryEngine) -> None:
    await set_versioning(engine, pb.VERSIONING_ENABLED)
    for number in range(200):
        await commit(engine, an_object("k", f"v{number}"))
        await delete(engine, "gone")
    request = pb.ListObjectsRequest(bucket=BUCKET, max_keys=10)
    returned: list[int] = []

    class Counting:
        def __init__(self, txn: object) -> None:
            self.txn = txn

        def get(self, key: bytes) -> bytes | None:
            return self.txn.get(key)  # type: ignore[attr-defined,no-any-return]

        def scan(self, *args: object, **options: object) -> list[tuple[bytes, bytes]]:
            found = self.txn.scan(*args, **options)  # type: ignore[attr-defined]
            returned.append(len(found))
            return found  # type: ignore[no-any-return]

    page = await engine.read(lambda txn: listing.list_objects(Counting(txn), request))  # type: ignore[arg-type]
    assert [item.key for item in page.objects] == ["k"]
    assert returned == [1]


async def test_a_bucket_with_versions_or_markers_alone_is_not_empty(engine: MemoryEngine) -> None:
    await set_versioning(engine, pb.VERSIONING_ENABLED)
    await delete(engine, "never-there")
    with pytest.raises(BucketNotEmpty):
        await engine.transact(lambda txn: buckets.delete_bucket(txn, BUCKET))
    (marker,) = await versions(engine)
    await delete_version(engine, "never-there", marker.version_id)
    await engine.transact(lambda txn: buckets.delete_bucket(txn, BUCKET))


async def test_a_deletion_is_conditional_and_says_so_for_each_item(engine: MemoryEngine) -> None:
    await commit(engine, an_object("a", etag="e1"))
    await commit(engine, an_object("b", etag="e2"))
    answer = await delete_items(
        engine,
        pb.DeleteItem(key="a", if_match="other"),
        pb.DeleteItem(key="b", if_match='"e2"'),
        pb.DeleteItem(key="absent", if_match="e3"),
    )
    assert [item.reason for item in answer.deleted] == [
        pb.ERROR_REASON_PRECONDITION_FAILED,
        pb.ERROR_REASON_UNSPECIFIED,
        pb.ERROR_REASON_NO_SUCH_KEY,
    ]
    assert list(answer.existed) == [False, True, False]
    assert (await get(engine, "a")).etag == "e1"


async def test_a_repeated_deletion_gets_the_first_answer_until_it_expires(
    engine: MemoryEngine,
) -> None:
    await set_versioning(engine, pb.VERSIONING_ENABLED)
    await commit(engine, an_object("k"))
    item = pb.DeleteItem(key="k")
    first = await delete_items(engine, item, request_id="r", now_s=100.0)
    assert await delete_items(engine, item, request_id="r", now_s=101.0) == first
    assert len(await versions(engine)) == 2
    await engine.transact(lambda txn: requests.forget_expired(txn, before_s=100_000.0))
    assert not await engine.read(lambda txn: txn.scan(rows.base(1) + b"q", rows.base(1) + b"r"))
    assert await delete_items(engine, item, request_id="r", now_s=102.0) != first


async def test_an_id_of_one_key_is_refused_for_another(engine: MemoryEngine) -> None:
    await commit(engine, an_object("a", "v1", inline=b"1"))
    await commit(engine, an_object("a", "v2", inline=b"2"))
    with pytest.raises(InvalidArgument, match="another request"):
        await commit(engine, an_object("b", "v1", inline=b"1"))


# ---- tags ----


async def put_tags(engine: MemoryEngine, tags: dict[str, str]) -> metadata_pb2.Object:
    request = pb.PutTagsRequest(bucket=BUCKET, key="k", tags=tags)
    return await engine.transact(lambda txn: objects.put_tags(txn, request))


async def test_tags_are_set_with_the_object_and_replaced_later(engine: MemoryEngine) -> None:
    item = an_object("k", "v1", [extent("s")])
    item.tags["project"] = "überall 7"
    await commit(engine, item)
    assert dict((await get(engine, "k")).tags) == {"project": "überall 7"}
    await put_tags(engine, {"a": "", "b": "2"})
    got = await get(engine, "k")
    assert dict(got.tags) == {"a": "", "b": "2"}
    assert len(got.extents) == 1
    await put_tags(engine, {})
    assert not (await get(engine, "k")).tags


@pytest.mark.parametrize(
    "tags",
    [
        {f"k{n}": "" for n in range(11)},
        {"": "v"},
        {"k" * 129: "v"},
        {"k": "v" * 257},
        {"aws:x": "v"},
        {"k": "semi;colon"},
        {"k": "nul\x00"},
    ],
)
async def test_tags_outside_s3s_rules_are_refused(
    engine: MemoryEngine, tags: dict[str, str]
) -> None:
    await commit(engine, an_object("k"))
    with pytest.raises(InvalidTag):
        await put_tags(engine, tags)
    item = an_object("k2")
    item.tags.update(tags)
    with pytest.raises(InvalidTag):
        await commit(engine, item)
    naming.check_tags({"k" * 128: "v" * 256, **{f"k{n}": "ok + - = . _ : / @" for n in range(9)}})


# ---- keys ----


@pytest.mark.parametrize(
    "key",
    [
        "\x00" * 1024,
        "\U0010ffff" * 256,
        "é" * 512,
        "a" * 1024,
        "/",
        "a\x00b",
        "..//../",
        "\x7f\x01",
    ],
)
async def test_any_utf8_key_of_up_to_1024_bytes_can_have_versions(
    engine: MemoryEngine, key: str
) -> None:
    await set_versioning(engine, pb.VERSIONING_ENABLED)
    for name in ("v1", "v2"):
        await commit(engine, an_object(key, name, inline=b"x"))
    await delete(engine, key)
    listed = await versions(engine)
    assert [item.key for item in listed] == [key] * 3
    for item in listed:
        assert (await delete_version(engine, key, item.version_id)).existed
    assert await versions(engine) == []


# ---- listing ----


NAMES = st.text(alphabet="ab/\x00é", min_size=1, max_size=4)


@settings(max_examples=60, deadline=None)
@given(
    keys=st.lists(NAMES, max_size=25),
    deleted=st.sets(NAMES, max_size=4),
    prefix=st.text(alphabet="ab/", max_size=2),
    delimiter=st.sampled_from(["", "/"]),
    max_keys=st.integers(1, 4),
)
async def test_pages_of_versions_are_those_of_a_naive_listing(
    keys: list[str], deleted: set[str], prefix: str, delimiter: str, max_keys: int
) -> None:
    engine = MemoryEngine()
    await new_bucket(engine)
    expected: dict[str, list[str]] = {}
    for number, key in enumerate(keys):
        if number == len(keys) // 3:
            await set_versioning(engine, pb.VERSIONING_ENABLED)
        if number < len(keys) // 3:
            expected[key] = []  # the null version is replaced
        committed = await commit(engine, an_object(key, f"v{number}"))
        expected.setdefault(key, []).insert(0, committed.etag)
    await set_versioning(engine, pb.VERSIONING_ENABLED)
    for key in deleted:
        await delete(engine, key)
        expected.setdefault(key, []).insert(0, "")
    entries: list[str] = []
    for key in sorted(expected, key=str.encode):
        if key.startswith(prefix):
            at = key.find(delimiter, len(prefix)) if delimiter else -1
            rolled = [key[: at + 1] + " (prefix)"] if at != -1 else []
            entries += [] if rolled and rolled[0] in entries else rolled
            entries += [] if rolled else [f"{key} {etag}" for etag in expected[key]]
    seen: list[str] = []
    request = pb.ListVersionsRequest(
        bucket=BUCKET, prefix=prefix, delimiter=delimiter, max_keys=max_keys
    )
    while True:
        page = await engine.read(lambda txn: listing.list_versions(txn, request))
        found = [f"{item.key} {item.etag}" for item in page.versions]
        found += [f"{common} (prefix)" for common in page.common_prefixes]
        assert len(found) <= max_keys
        assert page.truncated is (len(seen) + len(found) < len(entries))
        seen += found
        if not page.truncated:
            break
        request.key_marker = page.next_key_marker
        request.version_id_marker = page.next_version_id_marker
    assert sorted(seen) == sorted(entries)
    objects_seen = [entry for entry in seen if not entry.endswith(" (prefix)")]
    assert objects_seen == [entry for entry in entries if not entry.endswith(" (prefix)")]
