"""The namespace on SQLite: listings, bytes per record, commits and look-ups through gRPC.

EXASTORE_BENCH_KEYS says how many keys the large bucket has: 1,000,000 unless told; the target is
for 10,000,000. A loader writes the rows that commits write (a test compares them), in the order of
their keys. The server is a process of its own, with an fsync for every commit; this one is the
clients.
"""

import asyncio
import json
import os
import sqlite3
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import grpc
import numpy as np
import psutil
import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from exastore.gateway.batched_channel import BatchedChannel
from exastore.metadata.kv.sqlite import SqliteEngine
from exastore.metadata.namespace import buckets, listing, objects, rows
from exastore.proto.channel import METADATA_MESSAGE_BYTES, channel_options
from exastore.proto.links import BulkDialer, ChunkTransport
from exastore.proto.v1 import common_pb2, metadata_pb2, metadata_pb2_grpc

pb = metadata_pb2
BUCKET = "bench-bucket"
SMALL_KEY_COUNT = 10_000
LARGE_KEY_COUNT = int(os.environ.get("EXASTORE_BENCH_KEYS", "1000000"))
LISTED_KEY_COUNT = 100_000
PREFIX_COUNT = 3
CLIENT_COUNT = int(os.environ.get("EXASTORE_BENCH_CLIENTS", "64"))
CHANNEL_COUNT = 4
CALL_COUNT = int(os.environ.get("EXASTORE_BENCH_CALLS", "20000"))
ROUNDS = 3
PG_COUNT = 64
KEY_COUNTS = [
    pytest.param(SMALL_KEY_COUNT, id="10k-keys"),
    pytest.param(LARGE_KEY_COUNT, id="large", marks=pytest.mark.large),
]
#: With benchmarks disabled: a few, to see that it works.
FEW = 300


def key_of(number: int) -> str:
    """A key of 33 characters under one of PREFIX_COUNT prefixes, in the order of numbers."""
    return f"photos/2026/{number % PREFIX_COUNT:02d}/IMG_{number:013d}.jpg"


def object_of(number: int, key: str, rng: np.random.Generator) -> metadata_pb2.Object:
    """An object of one stripe, as a gateway commits it: RS(4, 2), a checksum, a content type."""
    ids = rng.bytes(48)
    item = pb.Object(
        bucket=BUCKET,
        key=key,
        version_id=ids[:16].hex(),
        size_bytes=65_536 + number % 1000,
        etag=ids[16:32].hex(),
        content_type="image/jpeg",
    )
    item.checksums["crc64nvme"] = "AAAAAAAAAAA="
    item.extents.append(
        common_pb2.Extent(
            pg=number % PG_COUNT,
            stripe_id=ids[32:48],
            code="rs-4-2",
            epoch=1,
            data_bytes=item.size_bytes,
            chunk_bytes=16_640,
            chunk_crc32c=[number * 7919 % (1 << 32)] * 6,
        )
    )
    return item


def stored(item: metadata_pb2.Object, now_s: float) -> bytes:
    """The value of an object's row."""
    record = objects.new_record(item, now_s)
    record.extents.extend(item.extents)
    return record.SerializeToString()


async def create_bucket(path: Path) -> int:
    """Make an engine with an empty bucket; the bucket's id."""
    engine = SqliteEngine(path)
    request = pb.CreateBucketRequest(name=BUCKET, owner="bench")
    bucket = await engine.transact(lambda txn: buckets.create_bucket(txn, request, 1.0))
    await engine.close()
    return bucket.id


def fill(path: Path, key_count: int) -> None:
    """Write the rows of `key_count` objects in the order of their keys, without fsync."""
    base = rows.base(asyncio.run(create_bucket(path)))
    rng = np.random.default_rng(1)

    def pairs() -> Iterator[tuple[bytes, bytes]]:
        for prefix in range(PREFIX_COUNT):
            for number in range(prefix, key_count, PREFIX_COUNT):
                key = key_of(number)
                value = stored(object_of(number, key, rng), 1.7e9 + number * 1e-3)
                yield base + rows.current(key), value

    db = sqlite3.connect(path, isolation_level=None)
    db.execute("PRAGMA synchronous = OFF")
    db.execute("PRAGMA cache_size = -200000")
    db.execute("BEGIN")
    db.executemany("INSERT INTO kv (k, v) VALUES (?, ?)", pairs())
    db.execute("COMMIT")
    db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    db.close()


@pytest.fixture(scope="session")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Path]:
    """Gives the store with so many keys; each is made once."""
    folder = tmp_path_factory.mktemp("namespace")

    def get(key_count: int) -> Path:
        path = folder / f"{key_count}.db"
        if not path.exists():
            fill(path, key_count)
        return path

    return get


# ---- in the server ----


@pytest.mark.parametrize("key_count", KEY_COUNTS)
def test_list_in_server(
    benchmark: BenchmarkFixture, filled: Callable[[int], Path], key_count: int
) -> None:
    """Target: 100,000 keys/s, as fast for 10 M keys as for 10 k."""
    count = _few(benchmark, min(key_count, LISTED_KEY_COUNT))
    with asyncio.Runner() as runner:
        engine = SqliteEngine(filled(_few(benchmark, key_count)))

        async def page(
            request: metadata_pb2.ListObjectsRequest,
        ) -> metadata_pb2.ListObjectsResponse:
            return await engine.read(lambda txn: listing.list_objects(txn, request))

        def work() -> None:
            runner.run(_list_all(page, count))

        _run(benchmark, "list-in-server", count, "keys_per_s", work)
        benchmark.extra_info["bytes_per_record"] = _record_bytes(filled, benchmark, key_count)
        scans = runner.run(_scans_of_a_delimiter_listing(engine))
        assert scans <= 2 * PREFIX_COUNT + 2
        runner.run(engine.close())


def test_bytes_of_records_committed_at_random(benchmark: BenchmarkFixture, tmp_path: Path) -> None:
    """Target: 400 bytes. Real commits whose keys come in no order, so pages are two thirds full."""
    count = _few(benchmark, 100_000)
    path = tmp_path / "random.db"
    with asyncio.Runner() as runner:
        runner.run(create_bucket(path))
        engine = SqliteEngine(path)
        rng = np.random.default_rng(2)
        numbers = iter(rng.permutation(count).tolist())

        def work() -> None:
            runner.run(_commit_all(engine, numbers, rng))

        pedantic: Any = benchmark.pedantic
        pedantic(work, rounds=1)
        runner.run(engine.close())
    db = sqlite3.connect(path)
    db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    db.close()
    benchmark.extra_info["bytes_per_record"] = round(path.stat().st_size / count)


def test_the_loader_writes_the_rows_that_commits_write(tmp_path: Path) -> None:
    async def committed() -> dict[bytes, bytes]:
        await create_bucket(tmp_path / "a.db")
        engine = SqliteEngine(tmp_path / "a.db")
        item = object_of(0, key_of(0), np.random.default_rng(1))
        request = pb.CommitObjectRequest(object=item)
        await engine.transact(
            lambda txn: objects.commit_object(txn, request, 1.7e9, lambda txn, extents, pool: None)
        )
        found = await engine.read(lambda txn: txn.scan(rows.base(1) + b"o", rows.base(1) + b"p"))
        await engine.close()
        return dict(found)

    fill(tmp_path / "b.db", 1)
    db = sqlite3.connect(tmp_path / "b.db")
    begin, end = rows.base(1) + b"o", rows.base(1) + b"p"
    loaded = db.execute("SELECT k, v FROM kv WHERE k >= ? AND k < ?", (begin, end)).fetchall()
    db.close()
    assert dict(loaded) == asyncio.run(committed())


# ---- through gRPC ----


@pytest.mark.parametrize("key_count", KEY_COUNTS)
def test_list_over_grpc(
    benchmark: BenchmarkFixture, filled: Callable[[int], Path], tmp_path: Path, key_count: int
) -> None:
    """Target: 30,000 keys/s, as fast for 10 M keys as for 10 k."""
    count = _few(benchmark, min(key_count, LISTED_KEY_COUNT))
    with (
        served(f"sqlite://{filled(_few(benchmark, key_count))}", tmp_path) as address,
        asyncio.Runner() as run,
    ):
        channels = run.run(open_channels(address))
        stub: Any = metadata_pb2_grpc.MetadataServiceStub(channels[0])

        def work() -> None:
            run.run(_list_all(lambda request: stub.ListObjects(request), count))

        _run(benchmark, "list-over-grpc", count, "keys_per_s", work)
        run.run(close_channels(channels))


@pytest.mark.parametrize("transport", ["local", "batched", "unary"])
@pytest.mark.parametrize("method", ["CommitObject", "GetObject"])
def test_calls_of_64_clients(
    benchmark: BenchmarkFixture, tmp_path: Path, method: str, transport: str
) -> None:
    """Targets: 4,000 durable commits/s, 6,000 look-ups/s.

    Gateways send their calls in frames on a socket; batched over gRPC where there is none; unary
    calls are what a client without either pays.
    """
    count = _few(benchmark, CALL_COUNT)
    rng = np.random.default_rng(3)
    with served(f"sqlite://{tmp_path}/meta.db", tmp_path) as address, asyncio.Runner() as runner:
        channels = runner.run(open_channels(address))
        runner.run(form(channels[0]))
        call: UnaryCaller | BatchedCaller
        if transport == "unary":
            call = UnaryCaller(channels)
        else:
            kind = ChunkTransport.GRPC if transport == "batched" else ChunkTransport.LOCAL
            call = BatchedCaller(address, channels, kind)
        server = psutil.Process(json.loads((tmp_path / "ready.json").read_text())["pid"])
        known: list[metadata_pb2.Object] = []

        def commits() -> list[bytes]:
            first = len(known)
            for number in range(first, first + count):
                known.append(object_of(number, f"{rng.bytes(4).hex()}/{number:012d}.jpg", rng))
            requests = [pb.CommitObjectRequest(object=item) for item in known[first:]]
            return [request.SerializeToString() for request in requests]

        def look_ups() -> list[bytes]:
            requests = [pb.GetObjectRequest(bucket=BUCKET, key=item.key) for item in known]
            return [request.SerializeToString() for request in requests]

        if method == "GetObject":
            runner.run(_call_all(call, "CommitObject", commits()))
        rounds = iter(
            [commits() if method == "CommitObject" else look_ups() for _ in range(ROUNDS)]
        )

        def work() -> None:
            runner.run(_call_all(call, method, next(rounds)))

        before = _cpu_s(server), time.process_time()
        _run(benchmark, method, count, "calls_per_s", work)
        used_s = _cpu_s(server) - before[0], time.process_time() - before[1]
        for side, cpu_s in zip(("server", "client"), used_s, strict=True):
            benchmark.extra_info[f"{side}_cpu_us_per_call"] = round(
                1e6 * cpu_s / (ROUNDS * count), 1
            )
        runner.run(call.close())
        runner.run(close_channels(channels))


# ---- helpers ----


def _few(benchmark: BenchmarkFixture, count: int) -> int:
    return FEW if benchmark.disabled else count


def _cpu_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return times.user + times.system


def _run(
    benchmark: BenchmarkFixture, group: str, count: int, unit: str, work: Callable[[], None]
) -> None:
    benchmark.group = group
    pedantic: Any = benchmark.pedantic
    pedantic(work, rounds=ROUNDS)
    if benchmark.stats is not None:  # None when benchmarks are disabled
        stats: Any = benchmark.stats.stats
        benchmark.extra_info[unit] = round(count / stats.median)


def _record_bytes(
    filled: Callable[[int], Path], benchmark: BenchmarkFixture, key_count: int
) -> int:
    """Bytes of the file per object: the row with its key, and what SQLite adds."""
    count = _few(benchmark, key_count)
    return round(filled(count).stat().st_size / count)


async def _list_all(
    page: Callable[[metadata_pb2.ListObjectsRequest], Awaitable[metadata_pb2.ListObjectsResponse]],
    key_count: int,
) -> None:
    """List so many keys in pages of 1,000, one after the other."""
    seen = 0
    start_after = ""
    while seen < key_count:
        found = await page(
            pb.ListObjectsRequest(bucket=BUCKET, max_keys=1000, start_after=start_after)
        )
        seen += len(found.objects)
        start_after = found.next_start_after
        if not found.truncated:
            break
    assert seen >= key_count


async def _scans_of_a_delimiter_listing(engine: SqliteEngine) -> int:
    """How many scans it takes to list the common prefixes."""
    request = pb.ListObjectsRequest(
        bucket=BUCKET, prefix="photos/2026/", delimiter="/", max_keys=1000
    )
    count = 0

    class Counting:
        def __init__(self, txn: Any) -> None:
            self.get = txn.get
            self._txn = txn

        def scan(self, *args: Any, **options: Any) -> Any:
            nonlocal count
            count += 1
            return self._txn.scan(*args, **options)

    def list_it(txn: Any) -> metadata_pb2.ListObjectsResponse:
        return listing.list_objects(cast(Any, Counting(txn)), request)

    page = await engine.read(list_it)
    assert len(page.common_prefixes) == PREFIX_COUNT
    return count


async def _commit_all(
    engine: SqliteEngine, numbers: Iterator[int], rng: np.random.Generator
) -> None:
    def commit(number: int) -> Awaitable[metadata_pb2.Object]:
        request = pb.CommitObjectRequest(object=object_of(number, key_of(number), rng))
        return engine.transact(
            lambda txn: objects.commit_object(txn, request, 1.7e9, lambda txn, extents, pool: None)
        )

    while batch := [number for _, number in zip(range(256), numbers, strict=False)]:
        await asyncio.gather(*map(commit, batch))


@contextmanager
def served(engine_url: str, folder: Path) -> Generator[str]:
    """A metadata server process over an engine; its address."""
    ready, config = folder / "ready.json", folder / "metadata.toml"
    config.write_text(
        f'[process]\nready_file = "{ready}"\nlog_level = "warning"\n'
        f'[metadata]\naddress = "127.0.0.1:0"\nengine = "{engine_url}"\npg_count = {PG_COUNT}\n'
        "down_after_s = 600.0\nout_after_s = 6000.0\n"
    )
    command = [sys.executable, "-m", "exastore.deploy", "metadata", "run", "--config", str(config)]
    process = subprocess.Popen(command)
    try:
        deadline_s = time.monotonic() + 180.0
        while not ready.exists():
            assert process.poll() is None, "the server ended"
            assert time.monotonic() < deadline_s, "the server does not start"
            time.sleep(0.02)
        yield _address(ready)
    finally:
        process.terminate()
        process.wait(20)


def _address(ready: Path) -> str:
    address: str = json.loads(ready.read_text())["address"]
    return address


async def open_channels(address: str) -> list[grpc.aio.Channel]:
    options = (*channel_options(METADATA_MESSAGE_BYTES), ("grpc.use_local_subchannel_pool", 1))
    return [grpc.aio.insecure_channel(address, options=options) for _ in range(CHANNEL_COUNT)]


async def close_channels(channels: list[grpc.aio.Channel]) -> None:
    for channel in channels:
        await channel.close()


async def form(channel: grpc.aio.Channel) -> None:
    """Let eight nodes join, and make the bucket."""
    stub: Any = metadata_pb2_grpc.MetadataServiceStub(channel)
    for number in range(8):
        node = common_pb2.Node(
            id=f"n{number}", address=f"127.0.0.1:{9 + number}", rack=f"r{number}"
        )
        device = pb.DeviceReport(uuid=f"d{number}", capacity_bytes=1 << 40)
        await stub.Heartbeat(pb.HeartbeatRequest(node=node, devices=[device]))
    deadline_s = time.monotonic() + 30.0
    while not (await stub.GetStatus(pb.GetStatusRequest())).ready:
        assert time.monotonic() < deadline_s, "no map"
        await asyncio.sleep(0.05)
    await stub.CreateBucket(pb.CreateBucketRequest(name=BUCKET, owner="bench"))


class UnaryCaller:
    """Each call a message of its own."""

    def __init__(self, channels: list[grpc.aio.Channel]) -> None:
        self._channels = channels

    async def __call__(self, number: int, method: str, request: bytes) -> None:
        channel = self._channels[number % len(self._channels)]
        call: Any = channel.unary_unary(f"/exastore.proto.v1.MetadataService/{method}")
        await call(request)

    async def close(self) -> None:
        """Nothing is held."""


class BatchedCaller:
    """Calls as gateways send them: on one link for each channel, a socket or a stream of gRPC."""

    def __init__(
        self, address: str, channels: list[grpc.aio.Channel], transport: ChunkTransport
    ) -> None:
        self._batched = [
            BatchedChannel(BulkDialer(address, channel, transport)) for channel in channels
        ]

    async def __call__(self, number: int, method: str, request: bytes) -> None:
        batched = self._batched[number % len(self._batched)]
        await batched.unary_unary(f"/MetadataService/{method}", bytes, bytes)(request, timeout=60.0)

    async def close(self) -> None:
        for batched in self._batched:
            await batched.close()


async def _call_all(call: UnaryCaller | BatchedCaller, method: str, requests: list[bytes]) -> None:
    """Send all requests from CLIENT_COUNT clients, each waiting for its answer."""
    left = iter(requests)

    async def client(number: int) -> None:
        for request in left:
            await call(number, method, request)

    await asyncio.gather(*map(client, range(CLIENT_COUNT)))
