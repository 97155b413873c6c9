"""polars: its own object store client, with predicate push-down."""

import polars as pl
import pytest
from polars.testing import assert_frame_equal
from tests.integration.clients.conftest import Bucket
from tests.integration.clients.tables import some_table

pytestmark = pytest.mark.integration


def test_polars_writes_scans_and_sinks(bucket: Bucket) -> None:
    options = {
        "aws_access_key_id": bucket.access_key,
        "aws_secret_access_key": bucket.secret_key,
        "aws_region": "us-east-1",
        "aws_endpoint_url": bucket.endpoint,
        "aws_allow_http": "true",
    }
    url = f"s3://{bucket.name}/set"
    frame = pl.DataFrame(pl.from_arrow(some_table(30_000)))
    frame.write_parquet(f"{url}/a.parquet", storage_options=options, row_group_size=3_000)
    lazy = pl.scan_parquet(f"{url}/*.parquet", storage_options=options)
    wanted = pl.col("id").is_between(4_000, 4_999)
    assert_frame_equal(lazy.filter(wanted).collect(), frame.filter(wanted))
    counts = lazy.group_by("station").len().sort("station")
    counts.sink_csv(f"{url}/counts.csv", storage_options=options)
    assert bucket.get("set/counts.csv").decode() == counts.collect().write_csv()
    assert bucket.keys == ["set/a.parquet", "set/counts.csv"]
