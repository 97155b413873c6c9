"""Inventories: what the job writes into a store in memory, and when."""

import asyncio
import csv
import gzip
import hashlib
import io
import json
from collections.abc import AsyncIterator
from typing import Any
from xml.etree.ElementTree import fromstring

import duckdb
import pyarrow.parquet as pq
import pytest
from pyarrow import orc

from exastore.gateway.encryption.envelopes import seal_for_master
from exastore.gateway.errors import RequestError
from exastore.gateway.inventory.columns import OPTIONAL
from exastore.gateway.inventory.job import InventoryJob
from exastore.gateway.master_key import MasterKey
from exastore.gateway.s3.body import StoredBody
from exastore.gateway.s3.inventory import parse_inventory
from exastore.gateway.store import (
    AccessList,
    BucketChange,
    Deletion,
    ObjectAttributes,
    Precondition,
)
from exastore.gateway.testing.memory_store import MemoryStore

DAY_S = 86_400.0
START_S = 1_790_000_000.0


class HandClock:
    """Moves when it is told to."""

    def __init__(self) -> None:
        self.time_s = START_S

    def now_s(self) -> float:
        return self.time_s

    def monotonic_s(self) -> float:
        return self.time_s

    async def sleep(self, duration_s: float) -> None:
        await asyncio.Event().wait()


class World:
    """A bucket and where its inventories go."""

    def __init__(self, **options: Any) -> None:
        self.clock = HandClock()
        self.store = MemoryStore(self.clock.now_s)
        self.options = options
        self.job = self.another_job()

    def another_job(self) -> InventoryJob:
        return InventoryJob(self.store, clock=self.clock, day_s=DAY_S, **self.options)

    async def make(self, file_format: str = "CSV", *, versions: str = "All", **more: str) -> None:
        """Both buckets, some versions, and a configuration."""
        for name in ("data", "reports"):
            await self.store.create_bucket(name, owner=more.get(name, "acme"))
        await self.store.configure_bucket("data", BucketChange(versioning="Enabled"))
        await self.configure(file_format, versions, **more)

    async def configure(self, file_format: str, versions: str = "All", **more: str) -> None:
        fields = "".join(f"<Field>{name}</Field>" for name in OPTIONAL)
        text = f"""<InventoryConfiguration><Destination><S3BucketDestination>
            <Bucket>arn:aws:s3:::reports</Bucket><Format>{file_format}</Format>
            <Prefix>in/</Prefix>{more.get("encryption", "")}</S3BucketDestination></Destination>
            <IsEnabled>{more.get("enabled", "true")}</IsEnabled>
            <Filter><Prefix>{more.get("prefix", "")}</Prefix></Filter><Id>all</Id>
            <IncludedObjectVersions>{versions}</IncludedObjectVersions>
            <OptionalFields>{fields}</OptionalFields>
            <Schedule><Frequency>{more.get("frequency", "Daily")}</Frequency></Schedule>
            </InventoryConfiguration>"""
        inventory = parse_inventory(fromstring(text))
        await self.store.put_bucket_document("data", inventory.document_name, text.encode())

    async def put(self, key: str, data: bytes, attributes: ObjectAttributes | None = None) -> str:
        async def pieces() -> AsyncIterator[bytes]:
            yield data

        attributes = attributes or ObjectAttributes()
        body = StoredBody(pieces())
        return (
            await self.store.put_object("data", key, body, attributes, Precondition())
        ).version_id

    async def keys(self) -> list[str]:
        page = await self.store.list_objects(
            "reports", prefix="", delimiter="", start_after="", max_keys=1000
        )
        return [info.key for info in page.objects]

    async def read(self, key: str) -> bytes:
        reader = await self.store.open_object("reports", key)
        return b"".join([bytes(piece) async for piece in reader.read()])

    async def manifests(self) -> list[dict[str, Any]]:
        found = [key for key in await self.keys() if key.endswith("manifest.json")]
        return [json.loads(await self.read(key)) for key in found]


async def test_a_csv_report_has_a_manifest_that_proves_it() -> None:
    world = World()
    await world.make()
    first = await world.put("a b/ö", b"one")
    second = await world.put("a b/ö", b"second")
    (gone,) = await world.store.delete_objects("data", [Deletion("z")])
    await world.job.run_round()
    (manifest,) = await world.manifests()
    assert manifest["sourceBucket"] == "data"
    assert manifest["destinationBucket"] == "arn:aws:s3:::reports"
    assert (manifest["version"], manifest["fileFormat"]) == ("2016-11-30", "CSV")
    assert manifest["creationTimestamp"] == str(int(START_S * 1000))
    (file,) = manifest["files"]
    content = await world.read(file["key"])
    assert file["key"].startswith("in/data/all/data/") and file["key"].endswith(".csv.gz")
    assert file["size"] == len(content)
    assert file["MD5checksum"] == hashlib.md5(content, usedforsecurity=False).hexdigest()
    titles = manifest["fileSchema"].split(", ")
    assert titles[:6] == ["Bucket", "Key", "VersionId", "IsLatest", "IsDeleteMarker", "Size"]
    rows = [
        dict(zip(titles, row, strict=True))
        for row in csv.reader(io.StringIO(gzip.decompress(content).decode()))
    ]
    assert [(row["Key"], row["VersionId"], row["IsLatest"]) for row in rows] == [
        ("a%20b/%C3%B6", second, "true"),
        ("a%20b/%C3%B6", first, "false"),
        ("z", gone.version_id, "true"),
    ]
    assert [row["Size"] for row in rows] == ["6", "3", ""]
    assert [row["IsDeleteMarker"] for row in rows] == ["false", "false", "true"]
    assert rows[0]["ETag"] == hashlib.md5(b"second", usedforsecurity=False).hexdigest()
    assert rows[0]["LastModifiedDate"] == "2026-09-21T14:13:20.000Z"
    shown = {name: rows[0][name] for name in ("EncryptionStatus", "ObjectOwner", "BucketKeyStatus")}
    assert shown == {
        "EncryptionStatus": "NOT-SSE",
        "ObjectOwner": "acme",
        "BucketKeyStatus": "DISABLED",
    }
    assert rows[0]["ChecksumAlgorithm"] == "CRC64NVME"
    folder = "in/data/all/2026-09-21T14-13Z"
    manifest_text = await world.read(f"{folder}/manifest.json")
    checksum = await world.read(f"{folder}/manifest.checksum")
    assert checksum.decode() == hashlib.md5(manifest_text, usedforsecurity=False).hexdigest()
    symlink = await world.read("in/data/all/hive/dt=2026-09-21-14-13/symlink.txt")
    assert symlink.decode() == f"s3://reports/{file['key']}"


@pytest.mark.parametrize("file_format", ["Parquet", "ORC"])
async def test_a_columnar_report_is_read_by_arrow_and_duckdb(
    file_format: str, tmp_path: Any
) -> None:
    world = World()
    await world.make(file_format, versions="Current")
    listed = ObjectAttributes(acl=AccessList("evil", (("acme", "READ"),)))
    await world.store.put_bucket_document("data", "ownership", b"ObjectWriter")
    await world.put("old", b"x")
    await world.put("old", b"four")
    await world.put("other", b"sixsix", listed)
    await world.job.run_round()
    (manifest,) = await world.manifests()
    content = await world.read(manifest["files"][0]["key"])
    if file_format == "Parquet":
        assert manifest["fileSchema"].startswith(
            "message s3.inventory { required binary bucket (UTF8); required binary key (UTF8); "
        )
        table = pq.read_table(io.BytesIO(content))
        (tmp_path / "r.parquet").write_bytes(content)
        with duckdb.connect() as db:
            asked = (
                f"select object_owner, sum(size) from '{tmp_path}/r.parquet' group by 1 order by 1"
            )
            assert db.execute(asked).fetchall() == [("acme", 4), ("evil", 6)]
    else:
        assert manifest["fileSchema"].startswith("struct<bucket:string,key:string,size:bigint,")
        table = orc.read_table(io.BytesIO(content))
    assert "version_id" not in table.column_names
    rows = table.to_pylist()
    assert [(row["key"], row["size"], row["is_multipart_uploaded"]) for row in rows] == [
        ("old", 4, False),
        ("other", 6, False),
    ]
    assert rows[0]["last_modified_date"].timestamp() == START_S
    assert rows[0]["replication_status"] is None


async def test_reports_come_day_by_day_or_week_by_week() -> None:
    for frequency, period_s in (("Daily", DAY_S), ("Weekly", 7 * DAY_S)):
        world = World()
        await world.make(frequency=frequency)
        for at_s, count in ((0.0, 1), (period_s - 1, 1), (period_s, 2), (period_s + 1, 2)):
            world.clock.time_s = START_S + at_s
            await world.job.run_round()
            assert len(await world.manifests()) == count, (frequency, at_s)


async def test_large_buckets_are_cut_into_files() -> None:
    world = World(file_rows=1000)
    await world.make(versions="Current", prefix="k")
    for number in range(2003):
        await world.put(f"k{number:05d}", b"")
    await world.put("not-k", b"")
    await world.job.run_round()
    (manifest,) = await world.manifests()
    keys: list[str] = []
    for file in manifest["files"]:
        text = gzip.decompress(await world.read(file["key"])).decode()
        keys += [row[1] for row in csv.reader(io.StringIO(text))]
    assert len(manifest["files"]) == 3
    assert keys == [f"k{number:05d}" for number in range(2003)]


async def test_an_empty_bucket_has_an_empty_report() -> None:
    world = World()
    await world.make("Parquet")
    await world.job.run_round()
    (manifest,) = await world.manifests()
    content = await world.read(manifest["files"][0]["key"])
    assert pq.read_table(io.BytesIO(content)).num_rows == 0


async def test_two_gateways_at_once_leave_one_report() -> None:
    world = World()
    await world.make()
    await world.put("k", b"x")
    await asyncio.gather(world.job.run_round(), world.another_job().run_round())
    (manifest,) = await world.manifests()
    data = [key for key in await world.keys() if "/data/" in key.removeprefix("in/data/")]
    assert data == [file["key"] for file in manifest["files"]]


async def test_a_report_under_way_is_left_alone_until_its_lease_ends() -> None:
    world = World()
    await world.make()
    inventory = "inventory-state-" + hashlib.sha256(b"all").hexdigest()[:32]
    held = json.dumps([0.0, "another", START_S + 60]).encode()
    await world.store.put_bucket_document("data", inventory, held)
    await world.job.run_round()
    assert await world.manifests() == []
    world.clock.time_s += 61
    await world.job.run_round()
    assert len(await world.manifests()) == 1


async def test_nothing_is_written_for_another_owner_or_when_it_is_off() -> None:
    for more in ({"reports": "evil"}, {"enabled": "false"}):
        world = World()
        await world.make(**more)
        await world.put("k", b"x")
        await world.job.run_round()
        assert await world.keys() == []


async def test_reports_are_sealed_where_that_is_asked_for() -> None:
    master = MasterKey({b"k" * 8: b"k" * 32})
    world = World(master_key=master)
    await world.make(encryption="<Encryption><SSE-S3/></Encryption>")
    _, sealed = seal_for_master(master)
    await world.put("k", b"x", ObjectAttributes(encryption=sealed))
    await world.job.run_round()
    for key in await world.keys():
        info = await world.store.head_object("reports", key)
        assert info.attributes.encryption is not None
    plain = World()
    await plain.make(encryption="<Encryption><SSE-S3/></Encryption>")
    await plain.job.run_round()
    assert await plain.keys() == [], "without a master key nothing is written in the clear"


async def test_a_report_that_fails_leaves_no_files_and_is_tried_again() -> None:
    world = World(file_rows=1)
    await world.make()
    for number in range(3):
        await world.put(f"k{number}", b"")
    list_versions, calls = world.store.list_versions, 0

    async def failing(*arguments: Any, **named: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise RequestError("ServiceUnavailable", "not now")
        page = await list_versions(*arguments, **{**named, "max_keys": 1})
        return page

    world.store.list_versions = failing  # type: ignore[method-assign]
    await world.job.run_round()
    assert await world.keys() == []
    await world.job.run_round()
    (manifest,) = await world.manifests()
    assert len(manifest["files"]) == 3
