"""SSE-S3, SSE-C and the default of a bucket, as clients see them, over a store in memory."""

import base64
import hashlib
import time
from collections.abc import Iterator
from typing import Any

import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import ClientError

from exastore.deploy.clock import SystemClock
from exastore.gateway.config import GatewayConfig
from exastore.gateway.encryption.frames import FRAME_BYTES
from exastore.gateway.master_key import MasterKey
from exastore.gateway.testing.memory_store import MemoryStore
from exastore.gateway.testing.served import ServedStore

SSE = "x-amz-server-side-encryption"
KEY = bytes(range(32))
OTHER = bytes(32)
DATA = hashlib.shake_128(b"data").digest(3 * FRAME_BYTES + 777)


def customer(key: bytes, prefix: str = "SSECustomer") -> dict[str, Any]:
    return {f"{prefix}Algorithm": "AES256", f"{prefix}Key": key.decode("latin-1")}


class Served:
    """A gateway with a master key, its store, and a client."""

    def __init__(self, client: Any, store: MemoryStore) -> None:
        self.client = client
        self.store = store

    def put(self, key: str, data: bytes = DATA, **options: str) -> Any:
        return self.client.put_object(Bucket="bkt", Key=key, Body=data, **options)

    def get(self, key: str, **options: Any) -> Any:
        return self.client.get_object(Bucket="bkt", Key=key, **options)

    def stored(self, key: str) -> bytes:
        """What the store holds."""
        return self.store.stored_bytes("bkt", key)


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    store = MemoryStore(time.time, min_part_bytes=1)
    config = GatewayConfig(access_key="ak", secret_key="sk")
    master = MasterKey({b"id-of-it": bytes(range(32, 64))})
    with ServedStore(lambda: store, config, clock=SystemClock(), master_key=master) as it:
        client = boto3.client(
            "s3",
            endpoint_url=f"http://{it.address}",
            aws_access_key_id="ak",
            aws_secret_access_key="sk",
            region_name="us-east-1",
            config=Config(proxies={}, retries={"max_attempts": 1}),
        )
        client.create_bucket(Bucket="bkt")
        yield Served(client, store)
        client.close()


def error_of(caught: pytest.ExceptionInfo[ClientError]) -> tuple[str, int]:
    response: Any = caught.value.response
    return response["Error"]["Code"], response["ResponseMetadata"]["HTTPStatusCode"]


@pytest.mark.parametrize("size", [0, 1, FRAME_BYTES, FRAME_BYTES + 1, len(DATA)])
def test_sse_s3_shows_what_was_put_and_stores_something_else(served: Served, size: int) -> None:
    data, key = DATA[:size], f"s3-{size}"
    put = served.put(key, data, ServerSideEncryption="AES256")
    assert put["ServerSideEncryption"] == "AES256"
    assert put["ETag"] == f'"{hashlib.md5(data).hexdigest()}"'
    got = served.get(key)
    assert got["Body"].read() == data
    assert (got["ServerSideEncryption"], got["ContentLength"]) == ("AES256", size)
    assert served.client.head_object(Bucket="bkt", Key=key)["ContentLength"] == size
    listed = served.client.list_objects_v2(Bucket="bkt", Prefix=key)["Contents"]
    assert [item["Size"] for item in listed if item["Key"] == key] == [size]
    assert not data or data[:16] not in served.stored(key)


@pytest.mark.parametrize(
    ("asked", "first", "last"),
    [
        ("bytes=0-0", 0, 1),
        ("bytes=65535-65536", 65_535, 65_537),
        ("bytes=70000-140000", 70_000, 140_001),
        ("bytes=-5", len(DATA) - 5, len(DATA)),
        ("bytes=131072-", 131_072, len(DATA)),
    ],
)
def test_ranges_of_sealed_objects_are_exact(
    served: Served, asked: str, first: int, last: int
) -> None:
    served.put("ranged", ServerSideEncryption="AES256")
    got = served.get("ranged", Range=asked)
    assert got["Body"].read() == DATA[first:last]
    assert got["ContentRange"] == f"bytes {first}-{last - 1}/{len(DATA)}"


def test_sse_c_needs_the_key_that_sealed(served: Served) -> None:
    put = served.put("mine", **customer(KEY))
    md5 = base64.b64encode(hashlib.md5(KEY).digest()).decode()
    assert (put["SSECustomerAlgorithm"], put["SSECustomerKeyMD5"]) == ("AES256", md5)
    assert put["ETag"] != f'"{hashlib.md5(DATA).hexdigest()}"'
    got = served.get("mine", **customer(KEY))
    assert got["Body"].read() == DATA
    assert got["SSECustomerKeyMD5"] == md5
    head = served.client.head_object(Bucket="bkt", Key="mine", **customer(KEY))
    assert (head["ContentLength"], head["ETag"]) == (len(DATA), put["ETag"])
    for options, expected in (
        (customer(OTHER), ("AccessDenied", 403)),
        ({}, ("InvalidRequest", 400)),
    ):
        with pytest.raises(ClientError) as caught:
            served.get("mine", **options)
        assert error_of(caught) == expected
        with pytest.raises(ClientError) as caught:
            served.client.head_object(Bucket="bkt", Key="mine", **options)
        assert error_of(caught)[1] == expected[1]
    served.put("clear")
    with pytest.raises(ClientError) as caught:
        served.get("clear", **customer(KEY))
    assert error_of(caught) == ("InvalidRequest", 400)


@pytest.mark.parametrize(
    ("headers", "code"),
    [
        ({"algorithm": "AES256"}, "InvalidArgument"),
        ({"algorithm": "AES128", "key": "k", "key-MD5": "m"}, "InvalidEncryptionAlgorithmError"),
        ({"algorithm": "AES256", "key": "c2hvcnQ=", "key-MD5": "m"}, "InvalidArgument"),
        (
            {"algorithm": "AES256", "key": base64.b64encode(KEY).decode(), "key-MD5": "m"},
            "InvalidArgument",
        ),
        ({"key": base64.b64encode(KEY).decode(), "key-MD5": "m"}, "InvalidArgument"),
    ],
)
def test_wrong_customer_keys_are_refused_and_nothing_is_stored(
    served: Served, headers: dict[str, str], code: str
) -> None:
    def add(request: Any, **_: Any) -> None:
        for name, value in headers.items():
            request.headers[f"{SSE}-customer-{name}"] = value

    events = served.client.meta.events
    events.register("before-sign.s3.PutObject", add)
    try:
        with pytest.raises(ClientError) as caught:
            served.put("refused")
    finally:
        events.unregister("before-sign.s3.PutObject", add)
    assert error_of(caught) == (code, 400)
    with pytest.raises(ClientError):
        served.client.head_object(Bucket="bkt", Key="refused")


@pytest.mark.parametrize(
    ("algorithm", "expected"),
    [("aws:kms", ("NotImplemented", 501)), ("rot13", ("InvalidArgument", 400))],
)
def test_other_algorithms_are_refused(
    served: Served, algorithm: str, expected: tuple[str, int]
) -> None:
    with pytest.raises(ClientError) as caught:
        served.put("other", ServerSideEncryption=algorithm)
    assert error_of(caught) == expected


@pytest.mark.parametrize("options", [{"ServerSideEncryption": "AES256"}, customer(KEY)])
def test_multipart_uploads_are_sealed_part_by_part(served: Served, options: dict[str, str]) -> None:
    client, name = served.client, {"Bucket": "bkt", "Key": "parts"}
    upload = client.create_multipart_upload(**name, **options)["UploadId"]
    with_key = {} if "ServerSideEncryption" in options else options
    sizes = [FRAME_BYTES + 5, FRAME_BYTES, 100]
    parts: list[dict[str, Any]] = []
    start = 0
    for number, size in zip((2, 5, 9), sizes, strict=True):
        part = client.upload_part(
            **name,
            UploadId=upload,
            PartNumber=number,
            Body=DATA[start : start + size],
            **with_key,
        )
        parts.append({"PartNumber": number, "ETag": part["ETag"]})
        start += size
    shown = client.list_parts(**name, UploadId=upload)["Parts"]
    assert [part["Size"] for part in shown] == sizes
    if with_key:
        for wrong in ({}, customer(OTHER)):
            with pytest.raises(ClientError) as caught:
                client.upload_part(**name, UploadId=upload, PartNumber=1, Body=b"x", **wrong)
            assert error_of(caught) == ("InvalidRequest", 400)
    client.complete_multipart_upload(**name, UploadId=upload, MultipartUpload={"Parts": parts})
    whole = DATA[: sum(sizes)]
    assert served.get("parts", **with_key)["Body"].read() == whole
    got = served.get("parts", Range=f"bytes={FRAME_BYTES}-{2 * FRAME_BYTES + 10}", **with_key)
    assert got["Body"].read() == whole[FRAME_BYTES : 2 * FRAME_BYTES + 11]
    got = served.get("parts", PartNumber=2, **with_key)
    assert got["Body"].read() == whole[sizes[0] : sizes[0] + sizes[1]]
    listed = client.list_objects_v2(Bucket="bkt", Prefix="parts")["Contents"]
    assert listed[0]["Size"] == len(whole)
    target = {"Bucket": "bkt", "Key": "copy-of-parts"}
    source = customer(KEY, "CopySourceSSECustomer") if with_key else {}
    client.copy_object(**target, CopySource="bkt/parts", **source)
    assert served.get("copy-of-parts")["Body"].read() == whole


def test_copies_change_keys_and_part_copies_too(served: Served) -> None:
    served.put("source", **customer(KEY))
    client = served.client
    source = {"CopySource": "bkt/source", **customer(KEY, "CopySourceSSECustomer")}
    copied = client.copy_object(Bucket="bkt", Key="target", **source, **customer(OTHER))
    assert copied["SSECustomerAlgorithm"] == "AES256"
    assert served.get("target", **customer(OTHER))["Body"].read() == DATA
    with pytest.raises(ClientError) as caught:
        client.copy_object(Bucket="bkt", Key="target", CopySource="bkt/source")
    assert error_of(caught) == ("InvalidRequest", 400)
    upload = client.create_multipart_upload(Bucket="bkt", Key="p", ServerSideEncryption="AES256")
    name = {"Bucket": "bkt", "Key": "p", "UploadId": upload["UploadId"]}
    part = client.upload_part_copy(**name, PartNumber=1, CopySourceRange="bytes=5-99999", **source)
    etag = part["CopyPartResult"]["ETag"]
    client.complete_multipart_upload(
        **name, MultipartUpload={"Parts": [{"PartNumber": 1, "ETag": etag}]}
    )
    assert served.get("p")["Body"].read() == DATA[5:100_000]


def test_the_default_of_a_bucket_seals_what_says_nothing(served: Served) -> None:
    client = served.client
    client.create_bucket(Bucket="sealed")
    with pytest.raises(ClientError) as caught:
        client.get_bucket_encryption(Bucket="sealed")
    assert error_of(caught) == ("ServerSideEncryptionConfigurationNotFoundError", 404)
    rule = {"ApplyServerSideEncryptionByDefault": {"SSEAlgorithm": "AES256"}}
    configuration = {"Rules": [rule]}
    client.put_bucket_encryption(Bucket="sealed", ServerSideEncryptionConfiguration=configuration)
    shown = client.get_bucket_encryption(Bucket="sealed")["ServerSideEncryptionConfiguration"]
    assert shown["Rules"][0]["ApplyServerSideEncryptionByDefault"] == {"SSEAlgorithm": "AES256"}
    put = client.put_object(Bucket="sealed", Key="k", Body=DATA)
    assert put["ServerSideEncryption"] == "AES256"
    assert DATA[:16] not in served.store.stored_bytes("sealed", "k")
    client.delete_bucket_encryption(Bucket="sealed")
    assert "ServerSideEncryption" not in client.put_object(Bucket="sealed", Key="k", Body=DATA)
    assert client.get_object(Bucket="sealed", Key="k")["Body"].read() == DATA


def test_a_damaged_frame_gives_an_error_and_no_bytes(served: Served) -> None:
    served.put("damaged", DATA[:1000], ServerSideEncryption="AES256")
    served.store.damage("bkt", "damaged", 500)
    with pytest.raises(ClientError) as caught:
        served.get("damaged")
    assert error_of(caught) == ("InternalError", 500)
