"""The files of an inventory: rows in, bytes out; and the manifest that names them."""

import csv
import gzip
import hashlib
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass

from exastore.gateway.inventory.columns import (
    Column,
    Kind,
    Source,
    csv_text,
    file_schema,
    time_of,
)
from exastore.gateway.store import ObjectInfo

#: Ends of the names of files, by format.
SUFFIXES = {"CSV": "csv.gz", "ORC": "orc", "Parquet": "parquet"}


@dataclass(frozen=True, slots=True)
class DataFile:
    """A file of rows as it was stored."""

    key: str
    size_bytes: int
    md5: str
    version_id: str
    """"": the bucket has no versioning."""


def data_file(
    objects: Sequence[ObjectInfo], columns: Sequence[Column], source: Source, file_format: str
) -> bytes:
    """The rows of some objects as a file."""
    if file_format == "CSV":
        return _csv(objects, columns, source)
    return _arrow(objects, columns, source, file_format)


def _csv(objects: Sequence[ObjectInfo], columns: Sequence[Column], source: Source) -> bytes:
    text = io.StringIO(newline="")
    writer = csv.writer(text, quoting=csv.QUOTE_ALL, lineterminator="\n")
    for info in objects:
        writer.writerow([csv_text(column, column.value(info, source)) for column in columns])
    return gzip.compress(text.getvalue().encode(), mtime=0)


def _arrow(
    objects: Sequence[ObjectInfo], columns: Sequence[Column], source: Source, file_format: str
) -> bytes:
    # Here, not above: a gateway that writes no inventories never loads it.
    import pyarrow as pa
    from pyarrow import orc, parquet

    types = {
        Kind.TEXT: pa.string(),
        Kind.FLAG: pa.bool_(),
        Kind.COUNT: pa.int64(),
        Kind.TIME: pa.timestamp("ms", "UTC"),
    }
    arrays: dict[str, pa.Array] = {}
    for column in columns:
        values = [column.value(info, source) for info in objects]
        if column.kind is Kind.TIME:
            times = [None if it is None else time_of(float(it)) for it in values]
            arrays[column.name] = pa.array(times, types[column.kind])
        else:
            arrays[column.name] = pa.array(values, types[column.kind])
    table, sink = pa.table(arrays), io.BytesIO()
    if file_format == "ORC":
        orc.write_table(table, sink, compression="zlib")
    else:
        parquet.write_table(table, sink, compression="snappy")
    return sink.getvalue()


@dataclass(frozen=True, slots=True)
class Manifest:
    """The documents that make files an inventory."""

    manifest: bytes
    checksum: bytes
    symlink: bytes
    """For Hive: where the files are, a line each."""


def manifest_of(
    source: Source,
    destination: str,
    created_s: float,
    columns: Sequence[Column],
    file_format: str,
    files: Sequence[DataFile],
) -> Manifest:
    """Describe an inventory."""
    document = {
        "sourceBucket": source.bucket,
        "destinationBucket": f"arn:aws:s3:::{destination}",
        "version": "2016-11-30",
        "creationTimestamp": str(int(created_s * 1000)),
        "fileFormat": file_format,
        "fileSchema": file_schema(columns, file_format),
        "files": [
            {"key": file.key, "size": file.size_bytes, "MD5checksum": file.md5} for file in files
        ],
    }
    content = json.dumps(document, indent=2).encode()
    checksum = hashlib.md5(content, usedforsecurity=False).hexdigest().encode()
    lines = [f"s3://{destination}/{file.key}" for file in files]
    return Manifest(content, checksum, "\n".join(lines).encode())
