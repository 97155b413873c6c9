"""pyarrow: its own S3 file system (the C++ SDK), and partitioned data sets on it."""

from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pytest
from pyarrow import fs
from tests.integration.clients.conftest import MIB, Bucket, some_bytes
from tests.integration.clients.tables import some_table

pytestmark = pytest.mark.integration


@pytest.fixture
def files(bucket: Bucket) -> Any:
    return fs.S3FileSystem(
        access_key=bucket.access_key,
        secret_key=bucket.secret_key,
        endpoint_override=bucket.host,
        scheme="http",
        region="us-east-1",
    )


def test_pyarrow_fs_reads_writes_lists_and_deletes(bucket: Bucket, files: Any) -> None:
    root, large = bucket.name, some_bytes(21 * MIB + 1, 5)
    files.create_dir(f"{root}/folder/sub")
    with files.open_output_stream(f"{root}/folder/large") as stream:
        stream.write(large)
    assert bucket.get("folder/large") == large
    with files.open_input_file(f"{root}/folder/large") as file:
        assert file.size() == len(large)
        assert file.read_at(1_000, 12 * MIB) == large[12 * MIB :][:1_000]
    found = files.get_file_info(fs.FileSelector(f"{root}/folder"))
    assert {info.base_name: info.type for info in found} == {
        "large": fs.FileType.File,
        "sub": fs.FileType.Directory,
    }
    files.copy_file(f"{root}/folder/large", f"{root}/copy")
    files.move(f"{root}/copy", f"{root}/moved")
    files.delete_dir(f"{root}/folder")
    assert bucket.content == {"moved": large}


def test_a_pyarrow_data_set_is_written_and_filtered(bucket: Bucket, files: Any) -> None:
    table = some_table(20_000)
    root = f"{bucket.name}/set"
    ds.write_dataset(table, root, filesystem=files, format="parquet", partitioning=["station"])
    assert len([key for key in bucket.keys if key.endswith(".parquet")]) == 50
    stored = ds.dataset(root, filesystem=files, partitioning=["station"])
    assert stored.count_rows() == 20_000
    wanted = (pc.field("station") == "station-07") & (pc.field("id") < 10_000)
    got = stored.to_table(filter=wanted, columns=["id", "reading"]).sort_by("id")
    mine = table.filter(wanted).select(["id", "reading"])
    assert mine.num_rows > 100
    assert got.equals(mine)
    assert isinstance(got, pa.Table)
