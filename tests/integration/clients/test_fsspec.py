"""fsspec and s3fs: S3 as a file system of Python."""

from collections.abc import Iterator
from typing import Any

import fsspec
import pytest
import s3fs
from tests.integration.clients.conftest import MIB, Bucket, some_bytes

pytestmark = pytest.mark.integration


#: The types of fsspec know text files alone.
open_url: Any = fsspec.open


def options(bucket: Bucket) -> dict[str, Any]:
    return {
        "key": bucket.access_key,
        "secret": bucket.secret_key,
        "client_kwargs": {"endpoint_url": bucket.endpoint, "region_name": "us-east-1"},
        "skip_instance_cache": True,
    }


@pytest.fixture
def files(bucket: Bucket) -> Iterator[s3fs.S3FileSystem]:
    system = s3fs.S3FileSystem(**options(bucket))
    yield system
    system.close_session(system.loop, system.s3)


def test_s3fs_is_a_file_system(bucket: Bucket, files: s3fs.S3FileSystem) -> None:
    root = bucket.name
    large = some_bytes(11 * MIB + 3, 1)
    target: Any = files.open(f"{root}/a/large", "wb", block_size=5 * MIB)
    with target as file:
        for start in range(0, len(large), MIB):
            file.write(large[start : start + MIB])
    files.pipe({f"{root}/a/b/{number}": some_bytes(number, number) for number in range(20)})
    files.touch(f"{root}/a/empty")
    assert sorted(bucket.keys) == sorted(
        ["a/large", "a/empty", *(f"a/b/{number}" for number in range(20))]
    )
    assert bucket.get("a/large") == large
    assert files.info(f"{root}/a/large")["size"] == len(large)
    with files.open(f"{root}/a/large", "rb", block_size=MIB) as file:
        file.seek(7 * MIB + 1)
        assert file.read(100) == large[7 * MIB + 1 :][:100]
    assert files.cat_file(f"{root}/a/large", start=-10) == large[-10:]
    assert files.isdir(f"{root}/a/b") and not files.exists(f"{root}/a/c")
    assert sorted(files.ls(f"{root}/a", detail=False)) == [
        f"{root}/a/b",
        f"{root}/a/empty",
        f"{root}/a/large",
    ]
    assert len(files.glob(f"{root}/a/b/1*")) == 11
    files.mv(f"{root}/a/large", f"{root}/moved")
    files.rm(f"{root}/a", recursive=True)
    assert bucket.content == {"moved": large}


def test_fsspec_opens_urls(bucket: Bucket) -> None:
    with open_url(f"s3://{bucket.name}/text.gz", "wt", compression="infer", **options(bucket)) as f:
        f.write("räksmörgås\n")
    with open_url(f"s3://{bucket.name}/text.gz", "rt", compression="infer", **options(bucket)) as f:
        assert f.read() == "räksmörgås\n"
    mapper = fsspec.get_mapper(f"s3://{bucket.name}/map", **options(bucket))
    mapper["a/b"] = b"1"
    assert dict(mapper) == {"a/b": b"1"}
