"""A bucket with small objects against a plain model: put, delete, pack, die half-way, pack anew.

After every run each object that should be there is, its bytes are where its extent says, nothing
that is referred to is in the trash, and the checker finds the counters and index rows right.
"""

import asyncio
from collections.abc import Coroutine
from functools import partial
from typing import Any, TypeVar

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from tests.unit.namespace_helpers import BUCKET, delete_items, get, no_fence, pb

from exastore.erasure import codec
from exastore.metadata.core.redundancy import log_copies
from exastore.metadata.kv.contract import Transaction
from exastore.metadata.kv.keys import pack, prefix_range
from exastore.metadata.kv.memory import MemoryEngine
from exastore.metadata.namespace import (
    buckets,
    check,
    extents,
    listing,
    objects,
    packing,
    rows,
    trash,
)
from exastore.metadata.namespace.packing import Swap
from exastore.metadata.namespace.space import open_to_read
from exastore.metadata.service.packing_plan import of_logs, of_sparse, plan_stripe
from exastore.proto.v1 import common_pb2, metadata_pb2

T = TypeVar("T")

CODE = codec("rs-2-1")
CHUNK_BYTES = 4096
KEYS = st.sampled_from(["a", "a/b", "a\x00", "é/ü", "k1", "k2", "k3", "k4"])
SIZES = st.integers(1, CHUNK_BYTES)


def run(work: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(work)


def _rows(txn: Transaction, begin: bytes) -> list[tuple[bytes, bytes]]:
    return txn.scan(*prefix_range(begin))


class SmallObjects(RuleBasedStateMachine):
    """`model` has the size of the live object of each key; `bytes_at` what lies in each stripe."""

    def __init__(self) -> None:
        super().__init__()
        pending = [True, False] * 50
        self.engine = MemoryEngine(conflicts=lambda: bool(pending) and pending.pop())
        self.now_s = 1000.0
        self.count = 0
        self.model: dict[str, int] = {}
        #: (stripe id, offset) -> the version whose bytes they are.
        self.bytes_at: dict[tuple[bytes, int], str] = {}
        request = pb.CreateBucketRequest(name=BUCKET, owner="me")
        run(self.engine.transact(lambda txn: buckets.create_bucket(txn, request, 1.0)))

    def _id(self) -> bytes:
        self.count += 1
        return self.count.to_bytes(6, "big") + bytes(10)

    @rule(key=KEYS, size=SIZES)
    def put(self, key: str, size: int) -> None:
        stripe_id = self._id()
        copies = log_copies(CODE)
        log = common_pb2.Extent(
            stripe_id=stripe_id,
            code=f"rep-{copies}",
            data_bytes=size,
            chunk_bytes=size,
            chunk_crc32c=[size] * copies,
            is_log=True,
        )
        version_id = f"v{self.count}"
        item = pb.Object(
            bucket=BUCKET, key=key, version_id=version_id, size_bytes=size, etag="e", extents=[log]
        )
        request = pb.CommitObjectRequest(object=item)
        self.now_s += 1
        run(
            self.engine.transact(
                lambda txn: objects.commit_object(txn, request, self.now_s, no_fence)
            )
        )
        self.model[key] = size
        self.bytes_at[stripe_id, 0] = version_id

    @rule(key=KEYS)
    def delete(self, key: str) -> None:
        self.now_s += 1
        run(delete_items(self.engine, pb.DeleteItem(key=key), now_s=self.now_s))
        self.model.pop(key, None)

    @rule(
        state=st.sampled_from([metadata_pb2.VERSIONING_ENABLED, metadata_pb2.VERSIONING_SUSPENDED])
    )
    def configure(self, state: metadata_pb2.Versioning.ValueType) -> None:
        request = pb.ConfigureBucketRequest(name=BUCKET, versioning=state)
        run(self.engine.transact(lambda txn: buckets.configure_bucket(txn, request)))

    @rule(batch=st.integers(1, 4), batch_count=st.integers(0, 4), between=st.none() | KEYS)
    def pack(self, batch: int, batch_count: int, between: str | None) -> None:
        """Pack what waits in transactions of `batch` objects; die after `batch_count` of them."""
        for bucket_id in run(self.engine.read(packing.buckets_to_pack)):
            self._pack(bucket_id, batch, batch_count, between)

    def _pack(self, bucket_id: int, batch: int, batch_count: int, between: str | None) -> None:
        sparse = run(self.engine.read(lambda txn: packing.sparse_stripes(txn, bucket_id)))
        logs, _ = run(self.engine.read(lambda txn: packing.unpacked(txn, bucket_id)))
        waiting = of_sparse(CODE, sparse) + of_logs(CODE, logs)
        plan, _ = plan_stripe(CODE, CHUNK_BYTES, waiting)
        if plan is None:
            return
        stripe = common_pb2.Extent(
            stripe_id=self._id(),
            code=CODE.name,
            data_bytes=CODE.k * plan.chunk_bytes,
            chunk_bytes=plan.chunk_bytes,
            chunk_crc32c=[0] * CODE.n,
        )
        swaps: list[Swap] = []
        for candidate, offset in plan.placed:
            old = candidate.extent
            assert offset // plan.chunk_bytes == (offset + old.data_bytes - 1) // plan.chunk_bytes
            piece = common_pb2.Extent(
                stripe_id=stripe.stripe_id,
                data_bytes=old.data_bytes,
                chunk_bytes=plan.chunk_bytes,
                is_slice=True,
                slice_offset=offset,
            )
            self.bytes_at[stripe.stripe_id, offset] = self.bytes_at[old.stripe_id, old.slice_offset]
            swaps.append(Swap(candidate, piece))
        if between is not None:
            self.delete(between)
        self._swap(bucket_id, stripe, swaps, batch, batch_count)

    def _swap(
        self,
        bucket_id: int,
        stripe: common_pb2.Extent,
        swaps: list[Swap],
        batch: int,
        batch_count: int,
    ) -> None:
        exists = False
        for number in range(batch_count):
            part = swaps[number * batch : (number + 1) * batch]
            swap = partial(
                packing.swap,
                bucket_id=bucket_id,
                stripe=stripe,
                swaps=part,
                now_s=self.now_s,
                fence=no_fence,
                may_create=not exists,
            )
            done = run(self.engine.transact(swap))
            exists = exists or done.exists

    @invariant()
    def objects_have_their_bytes(self) -> None:
        for key, size in self.model.items():
            found = run(get(self.engine, key))
            (extent,) = found.extents
            assert extent.data_bytes == size
            owner = self.bytes_at[extent.stripe_id, extent.slice_offset]
            assert found.version_id.endswith(owner)

    def teardown(self) -> None:
        findings = run(self.engine.read(lambda txn: check.check_bucket(txn, BUCKET)))
        assert findings.is_sound, findings.wrong
        listed, _ = run(self.engine.read(lambda txn: extents.list_extents(txn)))
        known = {extent.stripe_id for extent in listed}
        assert len(known) == len(listed), "each stripe is listed once"
        entries = run(self.engine.read(lambda txn: trash.scan_trash(txn, before_s=1e9, limit=9999)))
        dead = [
            extent.stripe_id
            for entry in entries
            for extent in metadata_pb2.Part.FromString(entry.value).extents
        ]
        assert len(set(dead)) == len(dead), "nothing is given up twice"
        assert not known.intersection(dead)
        self._empty()

    def _empty(self) -> None:
        """Deleting every version and emptying the trash leaves no row of packing."""
        request = pb.ListVersionsRequest(bucket=BUCKET, max_keys=1000)
        found = run(self.engine.read(lambda txn: listing.list_versions(txn, request))).versions
        for version in found:
            item = pb.DeleteItem(key=version.key, version_id=version.version_id)
            run(delete_items(self.engine, item, now_s=self.now_s))
        entries = run(self.engine.read(lambda txn: trash.scan_trash(txn, before_s=1e9, limit=9999)))
        for entry in entries:
            run(self.engine.transact(partial(trash.finish_entry, entry=entry)))
        base = run(self.engine.read(lambda txn: open_to_read(txn, BUCKET).base))
        for begin in (base + rows.STRIPE, base + rows.MEMBERS, pack("j"), pack("J"), pack("t")):
            assert not run(self.engine.read(partial(_rows, begin=begin))), begin


TestSmallObjects = SmallObjects.TestCase
TestSmallObjects.settings = settings(max_examples=40, stateful_step_count=25, deadline=None)
