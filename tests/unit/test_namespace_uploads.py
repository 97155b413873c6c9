"""Multipart uploads over the engine in memory."""

import hashlib

import pytest
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
    pb,
    stripe,
)

from exastore.metadata.kv.memory import MemoryEngine
from exastore.metadata.namespace import buckets, extents, trash, uploads
from exastore.metadata.namespace.errors import (
    BucketNotEmpty,
    EntityTooSmall,
    InvalidArgument,
    InvalidPart,
    InvalidPartOrder,
    NoSuchBucket,
    NoSuchUpload,
    PlanOutdated,
    PreconditionFailed,
)
from exastore.proto.v1 import metadata_pb2

KEY, UPLOAD = "big", "upload-1"


@pytest.fixture
async def engine() -> MemoryEngine:
    new = MemoryEngine()
    await new_bucket(new)
    await create_upload(new, KEY, UPLOAD)
    return new


def md5(text: str) -> str:
    return hashlib.md5(text.encode()).hexdigest()


def a_part(number: int, name: str = "", *, size: int = 100) -> metadata_pb2.Part:
    name = name or f"p{number}"
    return pb.Part(
        number=number,
        size_bytes=size,
        etag=md5(name),
        extents=[extent(name, data_bytes=size)] if size else [],
    )


async def add(engine: MemoryEngine, part: metadata_pb2.Part) -> tuple[int, str]:
    await commit_part(engine, KEY, UPLOAD, part)
    return part.number, part.etag


async def test_a_completed_upload_is_an_object_made_of_its_parts(engine: MemoryEngine) -> None:
    listed = [await add(engine, a_part(number)) for number in (1, 2, 5)]
    done = await complete(engine, KEY, UPLOAD, listed)
    digest = hashlib.md5(b"".join(bytes.fromhex(etag) for _, etag in listed)).hexdigest()
    assert done.etag == f"{digest}-3"
    assert (done.size_bytes, done.content_type, done.version_id) == (300, "text/plain", UPLOAD)
    got = await get(engine, KEY)
    assert [item.stripe_id for item in got.extents] == [stripe("p1"), stripe("p2"), stripe("p5")]
    assert [(p.number, p.size_bytes) for p in got.parts] == [(1, 100), (2, 100), (5, 100)]
    head = await get(engine, KEY, head_only=True)
    assert len(head.parts) == 3
    assert not head.extents
    with pytest.raises(NoSuchUpload):
        await commit_part(engine, KEY, UPLOAD, a_part(9))


async def test_ten_thousand_parts_are_completed_in_one_small_transaction(
    engine: MemoryEngine,
) -> None:
    listed = [await add(engine, a_part(number)) for number in range(1, 10_001)]
    done = await complete(engine, KEY, UPLOAD, listed)  # the engine enforces its limits
    assert done.etag.endswith("-10000")
    got = await get(engine, KEY)
    assert len(got.extents) == len(got.parts) == 10_000
    assert [p.number for p in got.parts] == list(range(1, 10_001))


async def test_completing_again_is_success_even_after_an_overwrite(engine: MemoryEngine) -> None:
    listed = [await add(engine, a_part(1))]
    done = await complete(engine, KEY, UPLOAD, listed)
    assert await complete(engine, KEY, UPLOAD, listed) == done
    await commit(engine, an_object(KEY, "v2", inline=b"new"))
    assert await complete(engine, KEY, UPLOAD, listed) == done
    assert (await get(engine, KEY)).inline_data == b"new"


async def test_the_last_upload_of_a_part_wins_and_the_first_goes_to_the_trash(
    engine: MemoryEngine,
) -> None:
    await add(engine, a_part(1, "old"))
    listed = [await add(engine, a_part(1, "new"))]
    (entry,) = await engine.read(lambda txn: trash.scan_trash(txn, before_s=1e9))
    batch = await engine.read(lambda txn: trash.entry_extents(txn, entry))
    assert [item.stripe_id for item in batch.extents] == [stripe("old")]
    await complete(engine, KEY, UPLOAD, listed)
    assert [item.stripe_id for item in (await get(engine, KEY)).extents] == [stripe("new")]


async def test_the_same_part_again_is_no_new_part(engine: MemoryEngine) -> None:
    await add(engine, a_part(1))
    await add(engine, a_part(1))
    assert await engine.read(lambda txn: trash.scan_trash(txn, before_s=1e9)) == []


async def test_parts_not_listed_are_not_in_the_object_and_go_to_the_trash(
    engine: MemoryEngine,
) -> None:
    listed = [await add(engine, a_part(number)) for number in range(1, 7)]
    await complete(engine, KEY, UPLOAD, listed[1::2])
    kept = [stripe("p2"), stripe("p4"), stripe("p6")]
    assert [item.stripe_id for item in (await get(engine, KEY)).extents] == kept
    (entry,) = await engine.read(lambda txn: trash.scan_trash(txn, before_s=1e9))
    dropped: list[bytes] = []
    begin: bytes | None = None
    while True:
        batch = await engine.read(
            lambda txn, begin=begin: trash.entry_extents(txn, entry, begin=begin, row_limit=2)  # type: ignore[misc]
        )
        dropped += [item.stripe_id for item in batch.extents]
        keys = batch.row_keys
        await engine.transact(lambda txn, keys=keys: trash.drop_rows(txn, entry, keys))  # type: ignore[misc]
        begin = batch.next_begin
        if begin is None:
            break
    await engine.transact(lambda txn: trash.finish_entry(txn, entry))
    assert dropped == [stripe("p1"), stripe("p3"), stripe("p5")]
    assert [item.stripe_id for item in (await get(engine, KEY)).extents] == kept


@pytest.mark.parametrize(
    ("listed", "error"),
    [
        ([], InvalidArgument),
        ([(2, md5("p2")), (1, md5("p1"))], InvalidPartOrder),
        ([(1, md5("p1")), (1, md5("p1"))], InvalidPartOrder),
        ([(3, md5("p3"))], InvalidPart),
        ([(1, md5("other"))], InvalidPart),
    ],
)
async def test_a_completion_that_lists_wrong_parts_is_refused(
    engine: MemoryEngine, listed: list[tuple[int, str]], error: type[Exception]
) -> None:
    await add(engine, a_part(1))
    await add(engine, a_part(2))
    with pytest.raises(error):
        await complete(engine, KEY, UPLOAD, listed)
    await complete(engine, KEY, UPLOAD, [(1, f'"{md5("p1")}"'), (2, md5("p2"))])


async def test_all_parts_but_the_last_have_the_minimum_size(engine: MemoryEngine) -> None:
    listed = [
        await add(engine, a_part(1, size=99)),
        await add(engine, a_part(2, size=100)),
        await add(engine, a_part(3, size=1)),
    ]
    with pytest.raises(EntityTooSmall) as small:
        await complete(engine, KEY, UPLOAD, listed, min_part_bytes=100)
    assert (small.value.number, small.value.size_bytes) == (1, 99)
    await complete(engine, KEY, UPLOAD, listed[1:], min_part_bytes=100)


async def test_a_part_that_arrives_while_completing_makes_the_plan_outdated(
    engine: MemoryEngine,
) -> None:
    number, etag = await add(engine, a_part(1))
    request = pb.CompleteUploadRequest(
        bucket=BUCKET, key=KEY, upload_id=UPLOAD, parts=[pb.CompletedPart(number=number, etag=etag)]
    )
    plan = await engine.read(lambda txn: uploads.plan_completion(txn, request, min_part_bytes=1))
    assert isinstance(plan, uploads.CompletionPlan)
    await add(engine, a_part(2))
    with pytest.raises(PlanOutdated):
        await engine.transact(lambda txn: uploads.complete_upload(txn, request, plan, 9.0))


async def test_a_completion_replaces_under_its_condition(engine: MemoryEngine) -> None:
    await commit(engine, an_object(KEY, "v1", [extent("old")], etag="e1"))
    listed = [await add(engine, a_part(1))]
    with pytest.raises(PreconditionFailed):
        await complete(
            engine, KEY, UPLOAD, listed, condition=pb.WriteCondition(must_not_exist=True)
        )
    await complete(engine, KEY, UPLOAD, listed, condition=pb.WriteCondition(if_match="e1"))
    entries = await engine.read(lambda txn: trash.scan_trash(txn, before_s=1e9))
    assert [entry.owner for entry in entries] == ["v1"]


async def test_an_aborted_upload_is_gone_with_its_parts(engine: MemoryEngine) -> None:
    await add(engine, a_part(1))
    await engine.transact(lambda txn: uploads.abort_upload(txn, BUCKET, KEY, UPLOAD, 7.0))
    with pytest.raises(NoSuchUpload):
        await engine.transact(lambda txn: uploads.abort_upload(txn, BUCKET, KEY, UPLOAD, 7.0))
    with pytest.raises(NoSuchUpload):
        await complete(engine, KEY, UPLOAD, [(1, md5("p1"))])
    assert await engine.read(extents.list_extents) == ([], None)
    assert (await engine.read(trash.trash_stats)).extent_count == 1


async def test_pending_parts_are_among_all_extents(engine: MemoryEngine) -> None:
    await add(engine, a_part(1))
    found, _ = await engine.read(extents.list_extents)
    assert [item.stripe_id for item in found] == [stripe("p1")]


async def test_parts_are_listed_in_pages(engine: MemoryEngine) -> None:
    many = [extent(f"x{n}", data_bytes=1) for n in range(1500)]  # more than one row
    await add(engine, pb.Part(number=2, size_bytes=1500, etag=md5("x"), extents=many))
    for number in (1, 3, 7):
        await add(engine, a_part(number))
    pages: list[list[int]] = []
    after = 0
    while True:
        request = pb.ListPartsRequest(
            bucket=BUCKET, key=KEY, upload_id=UPLOAD, after_number=after, max_parts=2
        )
        page = await engine.read(lambda txn, request=request: uploads.list_parts(txn, request))  # type: ignore[misc]
        assert not any(part.extents for part in page.parts)
        pages.append([part.number for part in page.parts])
        if not page.truncated:
            break
        after = page.parts[-1].number
    assert pages == [[1, 2], [3, 7]]


async def test_uploads_are_listed_by_key_and_prefix(engine: MemoryEngine) -> None:
    for key, upload_id in (("a", "u3"), ("big", "upload-0"), ("bigger", "u2"), ("c", "u4")):
        await create_upload(engine, key, upload_id)
    found = await engine.read(
        lambda txn: uploads.list_uploads(txn, pb.ListUploadsRequest(bucket=BUCKET, prefix="big"))
    )
    assert [(u.key, u.upload_id) for u in found.uploads] == [
        ("big", "upload-0"),
        ("big", "upload-1"),
        ("bigger", "u2"),
    ]
    everything = pb.ListUploadsRequest(bucket=BUCKET)
    assert len((await engine.read(lambda txn: uploads.list_uploads(txn, everything))).uploads) == 5


async def test_uploads_and_parts_outside_the_rules_are_refused(engine: MemoryEngine) -> None:
    for number in (0, 10_001):
        with pytest.raises(InvalidArgument, match=str(number)):
            await commit_part(engine, KEY, UPLOAD, a_part(number))
    with pytest.raises(NoSuchUpload):
        await commit_part(engine, "other-key", UPLOAD, a_part(1))
    request = pb.CreateUploadRequest(bucket="absent", key="k", upload_id="u")
    with pytest.raises(NoSuchBucket):
        await engine.transact(lambda txn: uploads.create_upload(txn, request, 1.0))


async def test_a_bucket_with_an_upload_is_not_empty(engine: MemoryEngine) -> None:
    await add(engine, a_part(1))
    with pytest.raises(BucketNotEmpty):
        await engine.transact(lambda txn: buckets.delete_bucket(txn, BUCKET))
    await engine.transact(lambda txn: uploads.abort_upload(txn, BUCKET, KEY, UPLOAD, 7.0))
    await engine.transact(lambda txn: buckets.delete_bucket(txn, BUCKET))
    assert (await engine.read(trash.trash_stats)).extent_count == 1


async def test_a_deleted_multipart_object_leaves_with_one_entry(engine: MemoryEngine) -> None:
    listed = [await add(engine, a_part(number)) for number in range(1, 200)]
    await complete(engine, KEY, UPLOAD, listed)
    await delete(engine, KEY)
    stats = await engine.read(trash.trash_stats)
    assert (stats.entry_count, stats.extent_count) == (1, 199)


async def test_completing_again_says_again_that_it_made_the_null_version(
    engine: MemoryEngine,
) -> None:
    listed = [await add(engine, a_part(1))]
    request = pb.ConfigureBucketRequest(name=BUCKET, versioning=pb.VERSIONING_SUSPENDED)
    await engine.transact(lambda txn: buckets.configure_bucket(txn, request))
    done = await complete(engine, KEY, UPLOAD, listed)
    assert done.null_version
    assert await complete(engine, KEY, UPLOAD, listed) == done
