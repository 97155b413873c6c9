"""boto3: client, resource, transfer manager, paginators, waiters."""

from pathlib import Path
from typing import Any

import boto3
import pytest
from boto3.s3.transfer import TransferConfig
from botocore.config import Config
from botocore.exceptions import WaiterError
from tests.integration.clients.conftest import MIB, Bucket, some_bytes

pytestmark = pytest.mark.integration


@pytest.fixture
def resource(bucket: Bucket) -> Any:
    """boto3 with objects, as its defaults are."""
    made: Any = boto3.resource(
        "s3",
        endpoint_url=bucket.endpoint,
        aws_access_key_id=bucket.access_key,
        aws_secret_access_key=bucket.secret_key,
        region_name="us-east-1",
        config=Config(proxies={}),
    )
    yield made.Bucket(bucket.name)
    made.meta.client.close()


def test_a_boto3_resource_is_a_bucket_of_objects(bucket: Bucket, resource: Any) -> None:
    data = {f"folder/{number:03d}": some_bytes(number * 100, number) for number in range(30)}
    for key, value in data.items():
        resource.put_object(Key=key, Body=value)
    assert {item.key: item.get()["Body"].read() for item in resource.objects.all()} == data
    assert [item.key for item in resource.objects.filter(Prefix="folder/01")] == [
        f"folder/{number:03d}" for number in range(10, 20)
    ]
    copied = resource.Object("copy")
    copied.copy_from(CopySource={"Bucket": bucket.name, "Key": "folder/029"})
    assert copied.content_length == 2_900
    resource.objects.filter(Prefix="folder/").delete()
    assert bucket.content == {"copy": data["folder/029"]}


@pytest.mark.parametrize("algorithm", ["CRC32", "CRC32C", "CRC64NVME", "SHA1", "SHA256"])
def test_the_transfer_manager_sends_parts_with_every_checksum(
    bucket: Bucket, resource: Any, algorithm: str, tmp_path: Path
) -> None:
    data = some_bytes(11 * MIB + 1, 7)
    (tmp_path / "file").write_bytes(data)
    parts = TransferConfig(multipart_threshold=5 * MIB, multipart_chunksize=5 * MIB)
    resource.upload_file(
        str(tmp_path / "file"), "parts", Config=parts, ExtraArgs={"ChecksumAlgorithm": algorithm}
    )
    head = bucket.s3.head_object(Bucket=bucket.name, Key="parts", ChecksumMode="ENABLED")
    assert head["ETag"].endswith('-3"')
    assert head[f"Checksum{algorithm}"]
    whole = algorithm == "CRC64NVME"
    assert head["ChecksumType"] == ("FULL_OBJECT" if whole else "COMPOSITE")
    # Ranges in parallel, each verified by the client where it can.
    resource.download_file("parts", str(tmp_path / "back"), Config=parts)
    assert (tmp_path / "back").read_bytes() == data
    part = bucket.s3.get_object(Bucket=bucket.name, Key="parts", PartNumber=3)
    assert part["Body"].read() == data[10 * MIB :]
    assert part["PartsCount"] == 3


def test_boto3_pages_and_waits(bucket: Bucket) -> None:
    for number in range(25):
        bucket.put(f"{number % 5}/{number:02d}", b"")
    pages = bucket.s3.get_paginator("list_objects_v2").paginate(
        Bucket=bucket.name, PaginationConfig={"PageSize": 7}
    )
    sizes = [len(page["Contents"]) for page in pages]
    assert sizes == [7, 7, 7, 4]
    old = bucket.s3.get_paginator("list_objects").paginate(
        Bucket=bucket.name, Delimiter="/", PaginationConfig={"PageSize": 2}
    )
    prefixes = [item["Prefix"] for page in old for item in page["CommonPrefixes"]]
    assert prefixes == [f"{number}/" for number in range(5)]
    quick = {"Delay": 1, "MaxAttempts": 2}
    bucket.s3.get_waiter("bucket_exists").wait(Bucket=bucket.name, WaiterConfig=quick)
    where = {"Bucket": bucket.name, "Key": "0/00", "WaiterConfig": quick}
    bucket.s3.get_waiter("object_exists").wait(**where)
    with pytest.raises(WaiterError, match="Max attempts exceeded"):
        bucket.s3.get_waiter("object_not_exists").wait(**where)
    bucket.s3.delete_object(Bucket=bucket.name, Key="0/00")
    bucket.s3.get_waiter("object_not_exists").wait(**where)
