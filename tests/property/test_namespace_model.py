"""A bucket against a plain model: versions, uploads, deletions, lifecycle, duplicate requests.

After every run the checker must find the counters, the index rows and the order of versions right.
"""

import asyncio
import hashlib
from collections.abc import Coroutine
from typing import Any, TypeVar

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from tests.unit.namespace_helpers import BUCKET, extent, no_fence, pb

from exastore.metadata.kv.memory import MemoryEngine
from exastore.metadata.namespace import (
    buckets,
    check,
    expiry,
    lifecycle,
    listing,
    objects,
    requests,
    trash,
    uploads,
    usage,
)
from exastore.metadata.namespace.errors import NoSuchKey, QuotaExceeded
from exastore.metadata.namespace.space import Terms
from exastore.proto.v1 import metadata_pb2

T = TypeVar("T")

TERMS = Terms(day_s=10.0, request_ttl_s=30.0)
KEYS = st.sampled_from(["a", "a/b", "a\x00", "é/ü", "logs/1", "logs/2"])
SIZES = st.sampled_from([0, 1, 100, 5000])
QUOTA_BYTES = 40_000
RULES = [
    [],
    [pb.LifecycleRule(id="logs", prefix="logs/", expire_days=2, abort_upload_days=1)],
    [
        pb.LifecycleRule(id="all", expire_days=3, tags={"keep": "no"}),
        pb.LifecycleRule(id="old", noncurrent_days=1, drop_lone_markers=True),
    ],
]


def run(work: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(work)


class Bucket(RuleBasedStateMachine):
    """`model` has the live current object of each key: its commit id and size."""

    def __init__(self) -> None:
        super().__init__()
        pending = [True, False] * 50
        self.engine = MemoryEngine(conflicts=lambda: bool(pending) and pending.pop())
        self.now_s = 1000.0
        self.count = 0
        self.model: dict[str, tuple[str, int]] = {}
        #: Key and ETags by part number of each upload in progress.
        self.uploads: dict[str, tuple[str, dict[int, str]]] = {}
        self.last: metadata_pb2.CommitObjectRequest | None = None
        request = pb.CreateBucketRequest(name=BUCKET, owner="me")
        run(self.engine.transact(lambda txn: buckets.create_bucket(txn, request, 1.0)))
        self.configure(quota=pb.Quota(max_bytes=QUOTA_BYTES))

    def configure(self, **changes: Any) -> None:
        request = pb.ConfigureBucketRequest(name=BUCKET, **changes)
        run(self.engine.transact(lambda txn: buckets.configure_bucket(txn, request)))

    def new_id(self) -> str:
        self.count += 1
        return f"id{self.count}"

    # ---- what clients do ----

    @rule(key=KEYS, size=SIZES, inline=st.booleans(), tagged=st.booleans(), missing=st.booleans())
    def commit(self, key: str, size: int, inline: bool, tagged: bool, missing: bool) -> None:
        name = self.new_id()
        item = pb.Object(bucket=BUCKET, key=key, version_id=name, size_bytes=size, etag=name)
        if inline:
            item.inline_data = b"x" * size
        elif size:
            item.extents.append(extent(name, data_bytes=size, missing=[1] if missing else []))
        if tagged:
            item.tags["keep"] = "no"
        self.last = pb.CommitObjectRequest(object=item)
        try:
            self._commit(self.last)
        except QuotaExceeded:
            assert self.used_bytes() + size > QUOTA_BYTES
            self.last = None
        else:
            self.model[key] = (name, size)

    @precondition(lambda self: self.last is not None)
    @rule()
    def commit_again(self) -> None:
        assert self.last is not None
        before = self.versions()
        self._commit(self.last)
        assert self.versions() == before

    @rule(key=KEYS, again=st.booleans())
    def delete(self, key: str, again: bool) -> None:
        request_id = self.new_id()
        items = [pb.DeleteItem(key=key)]
        answers = [
            run(
                self.engine.transact(
                    lambda txn: objects.delete_objects(
                        txn, BUCKET, items, self.now_s, request_id=request_id, terms=TERMS
                    )
                )
            )
            for _ in range(2 if again else 1)
        ]
        assert answers[0] == answers[-1]
        assert answers[0].existed[0] == (key in self.model)
        self.model.pop(key, None)

    @precondition(lambda self: bool(self.versions()))
    @rule(data=st.data())
    def delete_version(self, data: st.DataObject) -> None:
        version = data.draw(st.sampled_from(self.versions()))
        items = [pb.DeleteItem(key=version.key, version_id=version.version_id or "null")]
        if not version.versioned:
            items = [pb.DeleteItem(key=version.key, version_id="null")]
        deleted = run(
            self.engine.transact(
                lambda txn: objects.delete_objects(txn, BUCKET, items, self.now_s, terms=TERMS)
            )
        )
        assert deleted.existed[0]
        assert version not in self.versions()
        self.refresh(version.key)

    @rule(versioning=st.sampled_from([pb.VERSIONING_ENABLED, pb.VERSIONING_SUSPENDED]))
    def set_versioning(self, versioning: metadata_pb2.Versioning.ValueType) -> None:
        self.configure(versioning=versioning)

    @precondition(lambda self: bool(self.model))
    @rule(data=st.data(), value=st.sampled_from(["no", "yes"]))
    def put_tags(self, data: st.DataObject, value: str) -> None:
        key = data.draw(st.sampled_from(sorted(self.model)))
        request = pb.PutTagsRequest(bucket=BUCKET, key=key, tags={"keep": value})
        run(self.engine.transact(lambda txn: objects.put_tags(txn, request, TERMS)))
        assert dict(self.head(key).tags) == {"keep": value}

    # ---- uploads ----

    @rule(key=KEYS)
    def create_upload(self, key: str) -> None:
        upload_id = self.new_id()
        request = pb.CreateUploadRequest(bucket=BUCKET, key=key, upload_id=upload_id)
        run(self.engine.transact(lambda t: uploads.create_upload(t, request, self.now_s, TERMS)))
        self.uploads[upload_id] = (key, {})

    @precondition(lambda self: bool(self.uploads))
    @rule(data=st.data(), number=st.integers(1, 3), size=SIZES)
    def add_part(self, data: st.DataObject, number: int, size: int) -> None:
        upload_id = data.draw(st.sampled_from(sorted(self.uploads)))
        key, parts = self.uploads[upload_id]
        name = self.new_id()
        etag = hashlib.md5(name.encode()).hexdigest()
        part = pb.Part(number=number, size_bytes=size, etag=etag)
        if size:
            part.extents.append(extent(name, data_bytes=size))
        request = pb.CommitPartRequest(bucket=BUCKET, key=key, upload_id=upload_id, part=part)
        try:
            run(
                self.engine.transact(
                    lambda txn: uploads.commit_part(txn, request, self.now_s, no_fence)
                )
            )
        except QuotaExceeded:
            assert self.used_bytes() + size > QUOTA_BYTES
        else:
            parts[number] = etag

    @precondition(lambda self: any(parts for _, parts in self.uploads.values()))
    @rule(data=st.data(), skip_first=st.booleans())
    def complete(self, data: st.DataObject, skip_first: bool) -> None:
        ready = sorted(name for name, (_, parts) in self.uploads.items() if parts)
        upload_id = data.draw(st.sampled_from(ready))
        key, parts = self.uploads.pop(upload_id)
        listed = sorted(parts.items())[1 if skip_first and len(parts) > 1 else 0 :]
        request = pb.CompleteUploadRequest(
            bucket=BUCKET,
            key=key,
            upload_id=upload_id,
            parts=[pb.CompletedPart(number=number, etag=etag) for number, etag in listed],
        )
        done = [self._complete(request) for _ in range(2)]
        assert done[0] == done[1]
        self.model[key] = (upload_id, done[0].size_bytes)

    @precondition(lambda self: bool(self.uploads))
    @rule(data=st.data())
    def abort(self, data: st.DataObject) -> None:
        upload_id = data.draw(st.sampled_from(sorted(self.uploads)))
        key, _ = self.uploads.pop(upload_id)
        run(
            self.engine.transact(
                lambda txn: uploads.abort_upload(txn, BUCKET, key, upload_id, self.now_s)
            )
        )

    # ---- what happens by itself ----

    @rule(rules=st.sampled_from(RULES))
    def set_rules(self, rules: list[metadata_pb2.LifecycleRule]) -> None:
        self.configure(lifecycle=pb.LifecycleRules(rules=rules))
        for bucket_id in run(self.engine.read(expiry.buckets_to_index)):
            while run(
                self.engine.transact(
                    lambda txn, bucket_id=bucket_id: expiry.index_some(txn, bucket_id, TERMS)  # type: ignore[misc]
                )
            ):
                pass

    @rule(duration_s=st.sampled_from([-20.0, 1.0, 15.0, 40.0]))
    def time_passes(self, duration_s: float) -> None:
        """Forwards, or backwards when someone sets the clock."""
        self.now_s += duration_s

    @rule()
    def act(self) -> None:
        """Lifecycle deletes what is due, and the answers that expired are forgotten."""
        while True:
            keys = run(self.engine.read(lambda txn: lifecycle.scan_due(txn, before_s=self.now_s)))
            for key in keys:
                run(
                    self.engine.transact(
                        lambda txn, key=key: expiry.act(txn, key, self.now_s, TERMS)  # type: ignore[misc]
                    )
                )
            if not keys:
                break
        run(self.engine.transact(lambda t: requests.forget_expired(t, before_s=self.now_s)))
        self.last = None  # its answer may be forgotten
        for name in list(self.model):
            self.refresh(name)
        request = pb.ListUploadsRequest(bucket=BUCKET)
        left = run(self.engine.read(lambda txn: uploads.list_uploads(txn, request))).uploads
        ids = {upload.upload_id for upload in left}
        self.uploads = {name: value for name, value in self.uploads.items() if name in ids}

    @rule()
    def collect(self) -> None:
        """The trash is emptied."""
        for entry in run(self.engine.read(lambda txn: trash.scan_trash(txn, before_s=1e9))):
            begin: bytes | None = None
            while True:
                batch = run(
                    self.engine.read(
                        lambda txn, entry=entry, begin=begin: trash.entry_extents(  # type: ignore[misc]
                            txn, entry, begin=begin
                        )
                    )
                )
                run(
                    self.engine.transact(
                        lambda txn, entry=entry, keys=batch.row_keys: trash.drop_rows(  # type: ignore[misc]
                            txn, entry, keys
                        )
                    )
                )
                begin = batch.next_begin
                if begin is None:
                    break
            run(self.engine.transact(lambda txn, entry=entry: trash.finish_entry(txn, entry)))  # type: ignore[misc]

    # ---- what must hold ----

    @invariant()
    def listing_is_the_model(self) -> None:
        request = pb.ListObjectsRequest(bucket=BUCKET, max_keys=1000)
        page = run(self.engine.read(lambda txn: listing.list_objects(txn, request)))
        assert [item.key for item in page.objects] == sorted(self.model, key=str.encode)
        for item in page.objects:
            name, size = self.model[item.key]
            assert (item.version_id.endswith(name), item.size_bytes) == (True, size)

    @invariant()
    def checker_finds_nothing(self) -> None:
        findings = run(self.engine.read(lambda txn: check.check_bucket(txn, BUCKET)))
        assert findings.wrong == []
        assert findings.counters == findings.counted
        counters, sums = run(self.engine.read(lambda txn: check.check_tenant(txn, "me")))
        assert counters == sums
        assert min(findings.counters) >= 0
        assert self.used_bytes() <= QUOTA_BYTES

    # ---- helpers ----

    def _commit(self, request: metadata_pb2.CommitObjectRequest) -> metadata_pb2.Object:
        return run(
            self.engine.transact(
                lambda txn: objects.commit_object(txn, request, self.now_s, no_fence, TERMS)
            )
        )

    def _complete(self, request: metadata_pb2.CompleteUploadRequest) -> metadata_pb2.Object:
        plan = run(
            self.engine.read(
                lambda txn: uploads.plan_completion(txn, request, min_part_bytes=0, terms=TERMS)
            )
        )
        if isinstance(plan, metadata_pb2.Object):
            return plan
        return run(
            self.engine.transact(
                lambda txn: uploads.complete_upload(txn, request, plan, self.now_s, TERMS)
            )
        )

    def head(self, key: str) -> metadata_pb2.Object:
        return run(self.engine.read(lambda t: objects.get_object(t, BUCKET, key, head_only=True)))

    def versions(self) -> list[metadata_pb2.Object]:
        request = pb.ListVersionsRequest(bucket=BUCKET, max_keys=1000)
        return list(run(self.engine.read(lambda t: listing.list_versions(t, request))).versions)

    def refresh(self, key: str) -> None:
        """Take over from the store which version came back."""
        try:
            found = self.head(key)
        except NoSuchKey:
            self.model.pop(key, None)
            assert not [
                v for v in self.versions() if v.key == key and v.is_latest and not v.delete_marker
            ]
        else:
            self.model[key] = (found.version_id, found.size_bytes)

    def used_bytes(self) -> int:
        used = run(self.engine.read(lambda txn: buckets.bucket_usage(txn, BUCKET)))
        assert (
            used.object_count
            == run(self.engine.read(lambda t: check.count_bucket(t, BUCKET))).counted[usage.OBJECTS]
        )
        return used.object_bytes + used.part_bytes


TestBucket = Bucket.TestCase
TestBucket.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
