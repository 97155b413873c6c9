"""Iceberg through pyiceberg, its catalog in SQLite, its files on the store."""

from pathlib import Path

import pytest
from pyiceberg.catalog.sql import SqlCatalog
from tests.integration.clients.conftest import Bucket
from tests.integration.clients.tables import some_table

pytestmark = pytest.mark.integration


@pytest.mark.parametrize("io", ["PyArrowFileIO", "FsspecFileIO"])
def test_iceberg_tables_are_written_evolved_and_queried(
    bucket: Bucket, tmp_path: Path, io: str
) -> None:
    module = "pyarrow" if io == "PyArrowFileIO" else "fsspec"
    catalog = SqlCatalog(
        "test",
        **{
            "uri": f"sqlite:///{tmp_path}/catalog.db",
            "warehouse": f"s3://{bucket.name}/warehouse",
            "py-io-impl": f"pyiceberg.io.{module}.{io}",
            "s3.endpoint": bucket.endpoint,
            "s3.access-key-id": bucket.access_key,
            "s3.secret-access-key": bucket.secret_key,
            "s3.region": "us-east-1",
        },
    )
    rows = some_table(6_000)
    catalog.create_namespace("weather")
    table = catalog.create_table("weather.readings", schema=rows.schema)
    for start in range(0, 6_000, 2_000):
        table.append(rows.slice(start, 2_000))
    found = table.scan(row_filter="id >= 1500 and id < 2500", selected_fields=("id",)).to_arrow()
    assert sorted(found["id"].to_pylist()) == list(range(1_500, 2_500))
    table.delete("id < 1000")
    assert table.scan().to_arrow().sort_by("id").equals(rows.slice(1_000))
    first = table.history()[0].snapshot_id
    assert table.scan(snapshot_id=first).to_arrow().equals(rows.slice(0, 2_000))
    names = bucket.keys
    assert all(name.startswith("warehouse/weather") for name in names)
    assert any(name.endswith(".metadata.json") for name in names)
    catalog.close()
