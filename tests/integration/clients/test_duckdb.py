"""DuckDB over fsspec.

Its own S3 reader, the httpfs extension, is not part of its package but downloaded when first used,
so it cannot be tested offline; DuckDB reads and writes through s3fs here.
"""

from collections.abc import Iterator

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import s3fs
from tests.integration.clients.conftest import Bucket
from tests.integration.clients.tables import some_table

pytestmark = pytest.mark.integration


@pytest.fixture
def duck(bucket: Bucket) -> Iterator[duckdb.DuckDBPyConnection]:
    system = s3fs.S3FileSystem(
        key=bucket.access_key,
        secret=bucket.secret_key,
        client_kwargs={"endpoint_url": bucket.endpoint, "region_name": "us-east-1"},
        skip_instance_cache=True,
    )
    with duckdb.connect() as connection:
        connection.register_filesystem(system)
        yield connection
    system.close_session(system.loop, system.s3)


def test_duckdb_queries_parquet_and_writes_it(
    bucket: Bucket, duck: duckdb.DuckDBPyConnection
) -> None:
    url = f"s3://{bucket.name}"
    table = some_table(50_000)
    duck.register("readings", table)
    duck.execute(f"COPY readings TO '{url}/in.parquet' (FORMAT parquet, ROW_GROUP_SIZE 5000)")
    assert bucket.keys == ["in.parquet"]
    total = duck.execute(
        f"SELECT count(*), min(id), max(id) FROM '{url}/in.parquet' WHERE id BETWEEN 6000 AND 6999"
    ).fetchone()
    assert total == (1_000, 6_000, 6_999)
    duck.execute(
        f"COPY (SELECT station, count(*) AS n FROM '{url}/*.parquet' GROUP BY station ORDER BY 1) "
        f"TO '{url}/out/counts.parquet' (FORMAT parquet)"
    )
    counts = pq.read_table(pa.BufferReader(bucket.get("out/counts.parquet")))
    assert counts.num_rows == 50
    assert sum(counts["n"].to_pylist()) == 50_000
