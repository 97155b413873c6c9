"""Damage planted under running nodes: all of it is found, counted and repaired."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from tests.chaos.matrix import client_of
from tests.integration.conftest import LiveCluster, running_cluster, wait_until

from exastore.deploy.cli.scrubbing import fetch_scrub
from exastore.proto.v1 import common_pb2, storage_pb2, storage_pb2_grpc
from exastore.storage.disk import PosixDisk
from exastore.storage.identity import identify
from exastore.storage.log import segment_name, segment_numbers
from exastore.storage.record import RecordKind
from exastore.storage.segment import Found, scan

pytestmark = [pytest.mark.integration, pytest.mark.chaos]

BUCKET = "rot"
BODY_BYTES = 300_000
OBJECT_COUNT = 30


def body_of(key: str) -> bytes:
    return hashlib.shake_256(key.encode()).digest(BODY_BYTES)


def chunk_records(device: Path) -> list[tuple[Path, Found]]:
    """The chunks of a device that runs, by their records."""
    disk = PosixDisk(device)
    uuid = identify(disk, lambda: bytes(16))
    found: list[tuple[Path, Found]] = []
    for number in segment_numbers(disk):
        file = disk.open(segment_name(number))
        for item in scan(file, uuid, number, file.size_bytes()):
            if isinstance(item, Found) and item.header.kind is RecordKind.CHUNK:
                found.append((device / segment_name(number), item))
    return found


def overwrite(path: Path, offset_bytes: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset_bytes)
        file.write(data)


def flip_bits(records: list[tuple[Path, Found]]) -> int:
    """One bit in the data of each."""
    for path, found in records:
        place = found.offset_bytes + found.header.header_bytes + found.header.data_bytes // 2
        old = path.read_bytes()[place]
        overwrite(path, place, bytes([old ^ 1]))
    return len(records)


def lose_writes(records: list[tuple[Path, Found]]) -> int:
    """As if the disk had acknowledged and never written."""
    for path, found in records:
        overwrite(path, found.offset_bytes, bytes(found.header.record_bytes))
    return len(records)


def swap(records: list[tuple[Path, Found]]) -> int:
    """Two whole records in each other's places."""
    (path, first), (_, second) = records
    assert first.header.record_bytes == second.header.record_bytes
    size = first.header.record_bytes
    content = path.read_bytes()
    one = content[first.offset_bytes : first.offset_bytes + size]
    two = content[second.offset_bytes : second.offset_bytes + size]
    overwrite(path, first.offset_bytes, two)
    overwrite(path, second.offset_bytes, one)
    return 2


def cut_off(records: list[tuple[Path, Found]]) -> int:
    """Half of a record's data reads as zeros, as after a truncation that the log grew over."""
    for path, found in records:
        place = found.offset_bytes + found.header.record_bytes - found.header.data_bytes // 2
        overwrite(path, place, bytes(found.header.data_bytes // 2))
    return len(records)


def forget(live: LiveCluster, node: str, records: list[tuple[Path, Found]]) -> int:
    """Take chunks off a device behind the back of metadata."""
    entry = next(item for item in live.info["nodes"] if item["id"] == node)
    index = next(n.devices[0].index for n in live.status().nodes if n.id == node)
    keys = [found.header.key for _, found in records]
    with grpc.insecure_channel(entry["address"]) as channel:
        answer = storage_pb2_grpc.StorageServiceStub(channel).DeleteChunks(
            storage_pb2.DeleteChunksRequest(
                device_index=index,
                chunks=[
                    common_pb2.ChunkId(pg=k.pg, stripe_id=k.stripe_id, index=k.chunk_index)
                    for k in keys
                ],
            ),
            timeout=10,
        )
    return answer.deleted_count


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveCluster]:
    """One cluster for this module: each test leaves it whole."""
    directory = tmp_path_factory.mktemp("rot") / "cluster"
    with running_cluster(directory, "--nodes", "5", "--code", "rs-2-2", "--pg-count", "10") as live:
        s3 = client_of(live, attempts=3)
        s3.create_bucket(Bucket=BUCKET)
        for number in range(OBJECT_COUNT):
            s3.put_object(Bucket=BUCKET, Key=str(number), Body=body_of(str(number)))
        yield live


def check(live: LiveCluster) -> None:
    s3 = client_of(live, attempts=3)
    for number in range(OBJECT_COUNT):
        assert s3.get_object(Bucket=BUCKET, Key=str(number))["Body"].read() == body_of(str(number))


def test_a_scrub_finds_all_planted_damage_and_repairs_it(live: LiveCluster) -> None:
    first = chunk_records(live.directory / "data" / "node-1")
    second = chunk_records(live.directory / "data" / "node-2")
    assert len(first) > 13 and len(second) > 5
    corrupt = flip_bits(first[:3]) + lose_writes(first[3:6]) + swap(first[6:8])
    corrupt += cut_off(first[8:10])
    missing = forget(live, "node-2", second[:4])
    assert missing == 4

    assert live.run("cluster", "scrub", "--begin").code == 0
    wait_until(lambda: not fetch_scrub(live.info).active, "the scrub is done")
    status = fetch_scrub(live.info)
    assert (status.corrupt_count, status.missing_count) == (corrupt, missing)
    assert status.skipped_device_count == 0
    wait_until(lambda: not fetch_scrub(live.info).waiting_count, "all is repaired")
    assert fetch_scrub(live.info).repaired_count == corrupt + missing

    assert live.run("cluster", "scrub", "--begin").code == 0
    wait_until(lambda: not fetch_scrub(live.info).active, "the second scrub is done")
    again = fetch_scrub(live.info)
    assert (again.corrupt_count, again.missing_count) == (0, 0)
    assert live.run("cluster", "scrub").code == 0
    shown = live.run("cluster", "scrub", "--status", "--json").json
    assert shown["checked_chunk_count"] == str(again.checked_chunk_count)
    check(live)


def test_a_read_that_finds_a_bad_chunk_has_it_repaired(live: LiveCluster) -> None:
    before = fetch_scrub(live.info)
    rotten = chunk_records(live.directory / "data" / "node-3")
    is_data = [item for item in rotten if item[1].header.key.chunk_index < 2]
    assert is_data, "node-3 holds no data chunk"
    flip_bits(is_data)
    check(live)
    wait_until(
        lambda: fetch_scrub(live.info).repaired_count - before.repaired_count == len(is_data),
        "what was read is repaired",
    )
    status = fetch_scrub(live.info)
    assert status.corrupt_count == before.corrupt_count, "no scrub was needed"
    assert status.reported_count - before.reported_count >= len(is_data)
    assert live.run("cluster", "scrub").code == 0
