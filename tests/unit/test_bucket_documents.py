"""Documents of buckets: rows in the bucket's space, and what a gateway remembers of them."""

import asyncio
from collections.abc import Mapping

import pytest
from tests.unit.namespace_helpers import BUCKET, new_bucket

from exastore.gateway.bucket_documents import DocumentCache
from exastore.metadata.kv.keys import prefix_range
from exastore.metadata.kv.memory import MemoryEngine
from exastore.metadata.namespace import buckets, documents, moving, rows
from exastore.metadata.namespace.errors import InvalidArgument, NoSuchBucket


@pytest.fixture
async def engine() -> MemoryEngine:
    pending = [True, False, True]  # every test meets conflicts
    new = MemoryEngine(conflicts=lambda: bool(pending) and pending.pop())
    await new_bucket(new)
    return new


async def put(engine: MemoryEngine, name: str, content: bytes) -> None:
    await engine.transact(lambda txn: documents.put_document(txn, BUCKET, name, content))


async def found(engine: MemoryEngine) -> Mapping[str, bytes]:
    return await engine.read(lambda txn: documents.get_documents(txn, BUCKET))


async def test_a_document_is_replaced_and_deleted(engine: MemoryEngine) -> None:
    await put(engine, "policy", b"a")
    await put(engine, "policy", b"b")
    await put(engine, "public-access-block", b"")
    assert await found(engine) == {"policy": b"b", "public-access-block": b""}
    for _ in range(2):
        await engine.transact(lambda txn: documents.delete_document(txn, BUCKET, "policy"))
    assert await found(engine) == {"public-access-block": b""}


async def test_documents_go_with_their_bucket(engine: MemoryEngine) -> None:
    for number in range(documents.DOCUMENT_COUNT_MAX):
        await put(engine, f"d{number}", b"x")
    await engine.transact(lambda txn: buckets.delete_bucket(txn, BUCKET))
    left = await engine.read(lambda txn: txn.scan(*prefix_range(rows.base(1))))
    assert left == []
    with pytest.raises(NoSuchBucket):
        await found(engine)


async def test_what_is_too_large_too_many_or_misnamed_is_refused(engine: MemoryEngine) -> None:
    await put(engine, "d0", b"x" * documents.DOCUMENT_BYTES_MAX)
    for name, content in [("d1", b"x" * (64 * 1024 + 1)), ("", b""), ("A", b""), ("a" * 65, b"")]:
        with pytest.raises(InvalidArgument):
            await put(engine, name, content)
    for number in range(1, documents.DOCUMENT_COUNT_MAX):
        await put(engine, f"d{number}", b"x")
    with pytest.raises(InvalidArgument):
        await put(engine, "one-more", b"x")
    await put(engine, "d0", b"still replaced")


async def test_documents_move_with_their_bucket(engine: MemoryEngine) -> None:
    await put(engine, "cors", b"before")
    await engine.transact(lambda txn: moving.begin_copy(txn, BUCKET, 1))
    batch = await engine.read(lambda txn: moving.read_rows(txn, 1, b""))
    assert (rows.base(1) + rows.document("cors"), b"before") in batch.pairs
    await put(engine, "cors", b"after")
    marked = await engine.read(lambda txn: moving.read_marked(txn, 1))
    assert marked == [(rows.base(1) + rows.document("cors"), b"after")]


class Source:
    """Documents that change behind the cache's back."""

    def __init__(self) -> None:
        self.content = b"old"
        self.count = 0
        self.fails = False
        self.now_s = 0.0

    async def load(self, bucket: str) -> Mapping[str, bytes]:
        self.count += 1
        content = self.content
        await asyncio.sleep(0)
        if self.fails:
            raise ConnectionError(bucket)
        return {"cors": content}


async def test_a_gateway_asks_again_after_its_time_and_after_its_own_change() -> None:
    source = Source()
    cache = DocumentCache(source.load, ttl_s=1.0, monotonic_s=lambda: source.now_s)
    together = await asyncio.gather(*(cache.get("b") for _ in range(5)))
    assert [found["cors"] for found in together] == [b"old"] * 5
    assert source.count == 1, "requests that come together ask once"
    source.content = b"new"
    source.now_s = 0.9
    assert (await cache.get("b"))["cors"] == b"old"
    source.now_s = 1.1
    assert (await cache.get("b"))["cors"] == b"new"
    source.content = b"own"
    cache.forget("b")
    assert (await cache.get("b"))["cors"] == b"own"


async def test_an_answer_that_failed_is_not_remembered() -> None:
    source = Source()
    source.fails = True
    cache = DocumentCache(source.load, ttl_s=1.0, monotonic_s=lambda: 0.0)
    with pytest.raises(ConnectionError):
        await cache.get("b")
    source.fails = False
    assert (await cache.get("b"))["cors"] == b"old"
