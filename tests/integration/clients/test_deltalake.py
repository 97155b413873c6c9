"""Delta Lake: several writers at once, kept apart by conditional PUT alone."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pyarrow as pa
import pytest
from deltalake import DeltaTable, write_deltalake
from deltalake.exceptions import CommitFailedError
from tests.integration.clients.conftest import Bucket
from tests.integration.clients.tables import some_table

pytestmark = pytest.mark.integration

WRITER_COUNT = 4
WRITES_EACH = 4


def rows_of(table: DeltaTable) -> Any:
    return pa.table(table.to_pyarrow_table()).sort_by("id")


def test_delta_tables_take_concurrent_writers(bucket: Bucket) -> None:
    options = {
        "aws_access_key_id": bucket.access_key,
        "aws_secret_access_key": bucket.secret_key,
        "aws_region": "us-east-1",
        "aws_endpoint_url": bucket.endpoint,
        "aws_allow_http": "true",
        "aws_conditional_put": "etag",
    }
    url = f"s3://{bucket.name}/table"
    rows = some_table(1_000 * (1 + WRITER_COUNT * WRITES_EACH))
    write_deltalake(url, rows.slice(0, 1_000), storage_options=options)

    def append(writer: int) -> None:
        for turn in range(WRITES_EACH):
            start = 1_000 * (1 + writer * WRITES_EACH + turn)
            write_deltalake(url, rows.slice(start, 1_000), mode="append", storage_options=options)

    with ThreadPoolExecutor(WRITER_COUNT) as pool:
        list(pool.map(append, range(WRITER_COUNT)))
    table = DeltaTable(url, storage_options=options)
    assert table.version() == WRITER_COUNT * WRITES_EACH
    assert rows_of(table).equals(rows), "no writer lost a row to another"
    log = [key for key in bucket.keys if key.endswith(".json") and "_delta_log" in key]
    assert len(log) == 1 + WRITER_COUNT * WRITES_EACH
    # Two that change the same rows cannot both win.
    first, second = (DeltaTable(url, storage_options=options) for _ in range(2))
    first.delete("id < 500")
    with pytest.raises(CommitFailedError):
        second.delete("id < 100")
    table.update_incremental()
    assert rows_of(table).equals(rows.slice(500))
    table.optimize.compact()
    table.vacuum(retention_hours=0, enforce_retention_duration=False, dry_run=False)
    assert rows_of(DeltaTable(url, storage_options=options)).equals(rows.slice(500))
    before = DeltaTable(url, version=table.version(), storage_options=options)
    assert before.version() == table.version()
