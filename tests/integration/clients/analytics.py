"""A Parquet data set on the store, and the same question put to three query engines.

The question names a range of the sorted column and two columns of ten, so an engine that pushes
predicate and projection down reads the footers and a few column pieces; one that does not reads
everything. The bytes are those that the gateway says it sent.
"""

import json
import re
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import duckdb
import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import s3fs
from pyarrow import fs
from tests.integration.clients.conftest import Bucket

ROWS_PER_FILE = 1_000_000
ROWS_PER_GROUP = 50_000
VALUE_COLUMNS = tuple(f"value_{number}" for number in range(9))
_SENT = re.compile(r"^exastore_gateway_s3_sent_bytes_total (\S+)$", re.MULTILINE)


@dataclass(frozen=True)
class Question:
    """How many rows have an id within [first, last), and what their first value sums to."""

    first: int
    last: int


@dataclass(frozen=True)
class Answer:
    """What an engine said, and what it read for it."""

    engine: str
    row_count: int
    total: float
    read_bytes: int
    held_bytes: int

    @property
    def share(self) -> float:
        """Bytes read as a part of the data set."""
        return self.read_bytes / self.held_bytes

    def line(self) -> str:
        """One line of JSON."""
        facts = {**self.__dict__, "share": round(self.share, 5)}
        return json.dumps(facts)


def batches(row_count: int) -> Iterator[Any]:
    """The rows, file by file: sorted ids, and values that do not compress."""
    for number, first in enumerate(range(0, row_count, ROWS_PER_FILE)):
        count = min(ROWS_PER_FILE, row_count - first)
        random = np.random.default_rng(number)
        columns: dict[str, Any] = {"id": np.arange(first, first + count)}
        columns |= {name: random.random(count) for name in VALUE_COLUMNS}
        yield pa.table(columns)


def write(bucket: Bucket, row_count: int, question: Question) -> tuple[int, float]:
    """Write the data set straight to the store; returns what is right for the question."""
    files = _pyarrow_files(bucket)
    found, total = 0, 0.0
    for number, table in enumerate(batches(row_count)):
        path = f"{bucket.name}/set/{number:04d}.parquet"
        with files.open_output_stream(path) as stream:
            pq.write_table(table, stream, row_group_size=ROWS_PER_GROUP, compression="zstd")
        ids = pc.field("id")
        mine = table.filter((ids >= question.first) & (ids < question.last))
        found += mine.num_rows
        total += float(mine[VALUE_COLUMNS[0]].to_numpy().sum())
    return found, total


def ask(bucket: Bucket, question: Question) -> list[Answer]:
    """The answers of pyarrow, polars and DuckDB."""
    pages = bucket.s3.get_paginator("list_objects_v2").paginate(Bucket=bucket.name)
    held_bytes = sum(item["Size"] for page in pages for item in page["Contents"])
    answers: list[Answer] = []
    for engine in (_pyarrow, _polars, _duckdb):
        before = sent_bytes(bucket)
        row_count, total = engine(bucket, question)
        read_bytes = sent_bytes(bucket) - before
        answers.append(
            Answer(engine.__name__.lstrip("_"), row_count, total, read_bytes, held_bytes)
        )
    return answers


def sent_bytes(bucket: Bucket) -> int:
    """Bytes of response bodies that the gateways sent so far."""
    sent = 0
    for gateway in bucket.cluster.info["gateways"]:
        with urllib.request.urlopen(gateway["metrics"], timeout=10) as response:
            found = _SENT.search(response.read().decode())
        assert found is not None
        sent += int(float(found[1]))
    return sent


def _pyarrow_files(bucket: Bucket) -> Any:
    return fs.S3FileSystem(
        access_key=bucket.access_key,
        secret_key=bucket.secret_key,
        endpoint_override=bucket.host,
        scheme="http",
        region="us-east-1",
    )


def _pyarrow(bucket: Bucket, question: Question) -> tuple[int, float]:
    data = ds.dataset(f"{bucket.name}/set", filesystem=_pyarrow_files(bucket))
    ids = pc.field("id")
    wanted = (ids >= question.first) & (ids < question.last)
    # Pre-buffering joins what lies near together: fewer requests, more bytes.
    options = ds.ParquetFragmentScanOptions(pre_buffer=False)
    scanner = data.scanner(
        filter=wanted, columns=["id", VALUE_COLUMNS[0]], fragment_scan_options=options
    )
    found = scanner.to_table()
    return found.num_rows, float(found[VALUE_COLUMNS[0]].to_numpy().sum())


def _polars(bucket: Bucket, question: Question) -> tuple[int, float]:
    options = {
        "aws_access_key_id": bucket.access_key,
        "aws_secret_access_key": bucket.secret_key,
        "aws_region": "us-east-1",
        "aws_endpoint_url": bucket.endpoint,
        "aws_allow_http": "true",
    }
    lazy = pl.scan_parquet(f"s3://{bucket.name}/set/*.parquet", storage_options=options)
    wanted = pl.col("id").is_between(question.first, question.last, closed="left")
    found = lazy.filter(wanted).select(pl.len(), pl.col(VALUE_COLUMNS[0]).sum()).collect()
    return found.item(0, 0), found.item(0, 1)


def _duckdb(bucket: Bucket, question: Question) -> tuple[int, float]:
    files = s3fs.S3FileSystem(
        key=bucket.access_key,
        secret=bucket.secret_key,
        client_kwargs={"endpoint_url": bucket.endpoint, "region_name": "us-east-1"},
        # DuckDB asks for what it needs; reading ahead would double it.
        default_cache_type="none",
        default_fill_cache=False,
        skip_instance_cache=True,
    )
    with duckdb.connect() as duck:
        duck.register_filesystem(files)
        found = duck.execute(
            f"SELECT count(*), sum({VALUE_COLUMNS[0]}) FROM 's3://{bucket.name}/set/*.parquet' "
            f"WHERE id >= {question.first} AND id < {question.last}"
        ).fetchone()
    files.close_session(files.loop, files.s3)
    assert found is not None
    return found[0], found[1]
