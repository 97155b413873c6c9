"""S3 clients against the real HTTP server, over an object store in memory."""

import base64
import hashlib
import io
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import zlib
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import boto3
import pytest
from boto3.s3.transfer import TransferConfig
from botocore.config import Config
from botocore.exceptions import ClientError

from exastore.deploy.clock import SystemClock
from exastore.gateway.config import GatewayConfig
from exastore.gateway.s3.http import AddressInUse, BadCertificate
from exastore.gateway.testing.memory_store import MemoryStore
from exastore.gateway.testing.served import ServedStore

pytestmark = pytest.mark.integration

ACCESS_KEY = "test-access"
SECRET_KEY = "test-secret"
BIN = Path(sys.executable).parent
MIB = 1 << 20

TESTDATA = Path(__file__).parents[1] / "testdata" / "s3"

#: No configuration, credential or metadata service of the machine is consulted.
ISOLATED = {
    "AWS_EC2_METADATA_DISABLED": "true",
    "AWS_CONFIG_FILE": os.devnull,
    "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
}


@pytest.fixture(scope="module")
def served() -> Iterator[ServedStore]:
    config = GatewayConfig(access_key=ACCESS_KEY, secret_key=SECRET_KEY)
    with ServedStore(lambda: MemoryStore(time.time), config, clock=SystemClock()) as served:
        yield served


def new_client(
    served: ServedStore,
    *,
    secret_key: str = SECRET_KEY,
    scheme: str = "http",
    verify: str | None = None,
) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in ISOLATED.items():
            patch.setenv(name, value)
        return boto3.client(
            "s3",
            endpoint_url=f"{scheme}://{served.address}",
            verify=verify,
            aws_access_key_id=ACCESS_KEY,
            aws_secret_access_key=secret_key,
            region_name="us-east-1",
            # Presigned URLs are of the old signature version unless asked for.
            config=Config(proxies={}, retries={"max_attempts": 1}, signature_version="s3v4"),
        )


@pytest.fixture(scope="module")
def client(served: ServedStore) -> Iterator[Any]:
    with closing(new_client(served)) as client:
        yield client


@pytest.fixture
def bucket(client: Any, request: pytest.FixtureRequest) -> str:
    name = "b-" + hashlib.sha256(request.node.name.encode()).hexdigest()[:16]
    client.create_bucket(Bucket=name)
    return name


def error_of(call: Any, **arguments: Any) -> tuple[int, str]:
    with pytest.raises(ClientError) as caught:
        call(**arguments)
    response = caught.value.response
    return response["ResponseMetadata"]["HTTPStatusCode"], response["Error"]["Code"]


# ---- objects ----


@pytest.mark.parametrize(
    "key", ["plain", "a b+c/ü%~(1)", "//x//", "dir/", "a/../b", "%2F", "k" * 1024]
)
def test_an_object_comes_back_as_it_was_put(client: Any, bucket: str, key: str) -> None:
    put = client.put_object(
        Bucket=bucket,
        Key=key,
        Body=b"hello",
        ContentType="text/plain",
        CacheControl="no-store",
        ContentEncoding="gzip",
        Metadata={"Colour": "Blue"},
    )
    got = client.get_object(Bucket=bucket, Key=key)
    assert got["Body"].read() == b"hello"
    assert got["ETag"] == put["ETag"] == '"5d41402abc4b2a76b9719d911017c592"'
    assert got["ContentType"] == "text/plain"
    assert got["CacheControl"] == "no-store"
    assert got["ContentEncoding"] == "gzip"
    assert got["Metadata"] == {"colour": "Blue"}
    assert got["ChecksumCRC32"] == put["ChecksumCRC32"]
    assert [item["Key"] for item in client.list_objects_v2(Bucket=bucket)["Contents"]] == [key]


def test_an_empty_object_is_an_object(client: Any, bucket: str) -> None:
    client.put_object(Bucket=bucket, Key="empty", Body=b"")
    got = client.get_object(Bucket=bucket, Key="empty")
    assert (got["ContentLength"], got["Body"].read()) == (0, b"")
    assert client.head_object(Bucket=bucket, Key="empty")["ContentLength"] == 0


def test_ranges_are_cut_and_impossible_ones_refused(client: Any, bucket: str) -> None:
    client.put_object(Bucket=bucket, Key="k", Body=b"0123456789")
    for wanted, expected, shown in (
        ("bytes=2-4", b"234", "bytes 2-4/10"),
        ("bytes=7-", b"789", "bytes 7-9/10"),
        ("bytes=-3", b"789", "bytes 7-9/10"),
        ("bytes=5-500", b"56789", "bytes 5-9/10"),
    ):
        got = client.get_object(Bucket=bucket, Key="k", Range=wanted)
        assert (got["Body"].read(), got["ContentRange"]) == (expected, shown)
        assert got["ResponseMetadata"]["HTTPStatusCode"] == 206
    assert error_of(client.get_object, Bucket=bucket, Key="k", Range="bytes=10-") == (
        416,
        "InvalidRange",
    )


def test_conditional_reads_follow_the_etag_and_the_time(client: Any, bucket: str) -> None:
    etag = client.put_object(Bucket=bucket, Key="k", Body=b"x")["ETag"]
    assert client.get_object(Bucket=bucket, Key="k", IfMatch=etag)["Body"].read() == b"x"
    assert error_of(client.get_object, Bucket=bucket, Key="k", IfMatch='"no"')[0] == 412
    assert error_of(client.get_object, Bucket=bucket, Key="k", IfNoneMatch=etag)[0] == 304
    assert error_of(client.head_object, Bucket=bucket, Key="k", IfNoneMatch=etag)[0] == 304
    modified = client.head_object(Bucket=bucket, Key="k")["LastModified"]
    assert error_of(client.get_object, Bucket=bucket, Key="k", IfModifiedSince=modified)[0] == 304
    client.get_object(Bucket=bucket, Key="k", IfUnmodifiedSince=modified)


def test_conditional_writes_decide_on_what_is_there(client: Any, bucket: str) -> None:
    etag = client.put_object(Bucket=bucket, Key="k", Body=b"1", IfNoneMatch="*")["ETag"]
    again: dict[str, Any] = {"Bucket": bucket, "Key": "k", "Body": b"2"}
    assert error_of(client.put_object, **again, IfNoneMatch="*") == (412, "PreconditionFailed")
    assert error_of(client.put_object, **again, IfMatch='"no"') == (412, "PreconditionFailed")
    missing: dict[str, Any] = {"Bucket": bucket, "Key": "other", "Body": b"2"}
    assert error_of(client.put_object, **missing, IfMatch=etag) == (404, "NoSuchKey")
    client.put_object(**again, IfMatch=etag)
    assert client.get_object(Bucket=bucket, Key="k")["Body"].read() == b"2"


def test_the_query_overrides_headers_of_a_read(client: Any, bucket: str) -> None:
    client.put_object(Bucket=bucket, Key="k", Body=b"x")
    got = client.get_object(
        Bucket=bucket,
        Key="k",
        ResponseContentType="text/csv",
        ResponseContentDisposition='attachment; filename="a.csv"',
    )
    assert got["ContentType"] == "text/csv"
    assert got["ContentDisposition"] == 'attachment; filename="a.csv"'


@pytest.mark.parametrize("algorithm", ["CRC32", "CRC32C", "CRC64NVME", "SHA1", "SHA256"])
def test_every_checksum_is_verified_stored_and_shown(
    client: Any, bucket: str, algorithm: str
) -> None:
    put = client.put_object(Bucket=bucket, Key="k", Body=b"hello", ChecksumAlgorithm=algorithm)
    head = client.head_object(Bucket=bucket, Key="k", ChecksumMode="ENABLED")
    assert head[f"Checksum{algorithm}"] == put[f"Checksum{algorithm}"]
    assert head["ChecksumType"] == "FULL_OBJECT"
    assert client.get_object(Bucket=bucket, Key="k")["Body"].read() == b"hello"
    wrong = base64.b64encode(bytes(len(base64.b64decode(put[f"Checksum{algorithm}"])))).decode()
    arguments = {f"Checksum{algorithm}": wrong}
    assert error_of(client.put_object, Bucket=bucket, Key="w", Body=b"x", **arguments) == (
        400,
        "BadDigest",
    )
    assert error_of(client.head_object, Bucket=bucket, Key="w")[0] == 404


def test_wrong_and_malformed_md5_are_refused(client: Any, bucket: str) -> None:
    right = base64.b64encode(hashlib.md5(b"x").digest()).decode()
    client.put_object(Bucket=bucket, Key="k", Body=b"x", ContentMD5=right)
    put: dict[str, Any] = {"Bucket": bucket, "Key": "w", "Body": b"y"}
    assert error_of(client.put_object, **put, ContentMD5=right) == (400, "BadDigest")
    assert error_of(client.put_object, **put, ContentMD5="short") == (400, "InvalidDigest")


def test_copies_keep_or_replace_the_metadata(client: Any, bucket: str) -> None:
    client.put_object(Bucket=bucket, Key="a ü", Body=b"x", Metadata={"m": "1"})
    source = {"Bucket": bucket, "Key": "a ü"}
    client.copy_object(Bucket=bucket, Key="kept", CopySource=source)
    assert client.head_object(Bucket=bucket, Key="kept")["Metadata"] == {"m": "1"}
    client.copy_object(
        Bucket=bucket,
        Key="replaced",
        CopySource=source,
        MetadataDirective="REPLACE",
        Metadata={"m": "2"},
    )
    assert client.head_object(Bucket=bucket, Key="replaced")["Metadata"] == {"m": "2"}
    assert error_of(client.copy_object, Bucket=bucket, Key="a ü", CopySource=source) == (
        400,
        "InvalidRequest",
    )
    assert error_of(
        client.copy_object,
        Bucket=bucket,
        Key="x",
        CopySource=source,
        CopySourceIfMatch='"no"',
    ) == (412, "PreconditionFailed")


def test_deleting_is_idempotent(client: Any, bucket: str) -> None:
    client.put_object(Bucket=bucket, Key="k", Body=b"x")
    for _ in range(2):
        response = client.delete_object(Bucket=bucket, Key="k")
        assert response["ResponseMetadata"]["HTTPStatusCode"] == 204
    assert error_of(client.get_object, Bucket=bucket, Key="k") == (404, "NoSuchKey")
    assert error_of(client.head_object, Bucket=bucket, Key="k")[0] == 404


def test_batches_are_deleted_with_an_error_per_key(client: Any, bucket: str) -> None:
    for key in ("a", "b&<c>"):
        client.put_object(Bucket=bucket, Key=key, Body=b"x")
    objects = [{"Key": "a"}, {"Key": "b&<c>"}, {"Key": "absent"}, {"Key": "k" * 1025}]
    result = client.delete_objects(Bucket=bucket, Delete={"Objects": objects})
    assert [item["Key"] for item in result["Deleted"]] == ["a", "b&<c>", "absent"]
    assert [item["Code"] for item in result["Errors"]] == ["KeyTooLongError"]
    quiet = client.delete_objects(Bucket=bucket, Delete={"Objects": [{"Key": "a"}], "Quiet": True})
    assert "Deleted" not in quiet
    many = [{"Key": str(number)} for number in range(1001)]
    assert error_of(client.delete_objects, Bucket=bucket, Delete={"Objects": many}) == (
        400,
        "MalformedXML",
    )


def test_limits_are_kept(client: Any, bucket: str) -> None:
    assert error_of(client.put_object, Bucket=bucket, Key="k" * 1025, Body=b"") == (
        400,
        "KeyTooLongError",
    )
    large = {"m": "x" * 2048}
    assert error_of(client.put_object, Bucket=bucket, Key="k", Body=b"", Metadata=large) == (
        400,
        "MetadataTooLarge",
    )


# ---- buckets and listings ----


def test_buckets_live_and_die(client: Any, bucket: str) -> None:
    assert bucket in [item["Name"] for item in client.list_buckets()["Buckets"]]
    client.head_bucket(Bucket=bucket)
    assert client.get_bucket_location(Bucket=bucket)["LocationConstraint"] is None
    assert "Status" not in client.get_bucket_versioning(Bucket=bucket)
    assert error_of(client.create_bucket, Bucket=bucket)[0] == 409
    client.put_object(Bucket=bucket, Key="k", Body=b"x")
    assert error_of(client.delete_bucket, Bucket=bucket) == (409, "BucketNotEmpty")
    client.delete_object(Bucket=bucket, Key="k")
    client.delete_bucket(Bucket=bucket)
    assert error_of(client.head_bucket, Bucket=bucket)[0] == 404


def test_unknown_buckets_and_names_are_refused(client: Any) -> None:
    for call, arguments in (
        (client.list_objects_v2, {}),
        (client.get_object, {"Key": "k"}),
        (client.put_object, {"Key": "k", "Body": b"x"}),
        (client.get_bucket_location, {}),
        (client.delete_bucket, {}),
    ):
        assert error_of(call, Bucket="absent", **arguments) == (404, "NoSuchBucket")
    assert error_of(client.create_bucket, Bucket="Upper") == (400, "InvalidBucketName")


def test_features_that_are_off_answer_as_such(client: Any, bucket: str) -> None:
    assert error_of(client.get_bucket_policy, Bucket=bucket) == (404, "NoSuchBucketPolicy")
    assert error_of(client.get_bucket_cors, Bucket=bucket)[1] == "NoSuchCORSConfiguration"
    assert error_of(client.get_bucket_tagging, Bucket=bucket)[1] == "NoSuchTagSet"
    assert client.get_bucket_acl(Bucket=bucket)["Grants"][0]["Permission"] == "FULL_CONTROL"
    kms = {"Bucket": bucket, "Key": "k", "ServerSideEncryption": "aws:kms"}
    assert error_of(client.put_object, **kms) == (501, "NotImplemented")


@pytest.mark.parametrize("version", ["list_objects", "list_objects_v2"])
def test_pages_of_a_listing_join_without_gap_or_double(
    client: Any, bucket: str, version: str
) -> None:
    keys = sorted([f"d{n}/x y+{m}" for n in range(4) for m in range(3)] + ["a", "z", "é"])
    for key in keys:
        client.put_object(Bucket=bucket, Key=key, Body=b"x")
    pages = client.get_paginator(version).paginate
    plain = [i["Key"] for p in pages(Bucket=bucket, MaxKeys=2) for i in p.get("Contents", [])]
    assert plain == keys
    objects: list[str] = []
    prefixes: list[str] = []
    for page in pages(Bucket=bucket, MaxKeys=2, Delimiter="/"):
        objects += [item["Key"] for item in page.get("Contents", [])]
        prefixes += [item["Prefix"] for item in page.get("CommonPrefixes", [])]
    assert (objects, prefixes) == (["a", "z", "é"], ["d0/", "d1/", "d2/", "d3/"])
    below = [i["Key"] for p in pages(Bucket=bucket, Prefix="d1/") for i in p["Contents"]]
    assert below == [key for key in keys if key.startswith("d1/")]


def test_a_listing_takes_its_parameters(client: Any, bucket: str) -> None:
    for key in "abc":
        client.put_object(Bucket=bucket, Key=key, Body=b"x")
    page = client.list_objects_v2(Bucket=bucket, StartAfter="a", FetchOwner=True)
    assert [item["Key"] for item in page["Contents"]] == ["b", "c"]
    assert page["Contents"][0]["Owner"]["ID"]
    empty = client.list_objects_v2(Bucket=bucket, MaxKeys=0)
    assert (empty["KeyCount"], empty["IsTruncated"]) == (0, False)
    assert error_of(client.list_objects_v2, Bucket=bucket, ContinuationToken="?") == (
        400,
        "InvalidArgument",
    )


def test_an_object_has_one_version(client: Any, bucket: str) -> None:
    for key in "abc":
        client.put_object(Bucket=bucket, Key=key, Body=b"x")
    pages = client.get_paginator("list_object_versions").paginate(Bucket=bucket, MaxKeys=2)
    versions = [item for page in pages for item in page["Versions"]]
    assert [(item["Key"], item["VersionId"]) for item in versions] == [
        ("a", "null"),
        ("b", "null"),
        ("c", "null"),
    ]
    objects = [{"Key": item["Key"], "VersionId": item["VersionId"]} for item in versions]
    client.delete_objects(Bucket=bucket, Delete={"Objects": objects})
    assert "Contents" not in client.list_objects_v2(Bucket=bucket)
    get = client.get_object
    unknown = error_of(get, Bucket=bucket, Key="a", VersionId="0" * 32)
    assert unknown == (404, "NoSuchVersion")
    for malformed in ("7", "x" * 32, "0" * 31):
        refused = error_of(get, Bucket=bucket, Key="a", VersionId=malformed)
        assert refused == (400, "InvalidArgument")


def test_boto3_signs_again_for_the_region_that_a_refusal_names() -> None:
    config = GatewayConfig(
        access_key=ACCESS_KEY, secret_key=SECRET_KEY, region="eu-north-1", check_region=True
    )
    clock = SystemClock()
    with ServedStore(lambda: MemoryStore(clock.now_s), config, clock=clock) as served:

        def client_of(region: str) -> Any:
            return boto3.client(
                "s3",
                endpoint_url=f"http://{served.address}",
                aws_access_key_id=ACCESS_KEY,
                aws_secret_access_key=SECRET_KEY,
                region_name=region,
                config=Config(
                    s3={"addressing_style": "path"}, proxies={}, retries={"max_attempts": 1}
                ),
            )

        with closing(client_of("eu-north-1")) as right, closing(client_of("us-west-2")) as wrong:
            right.create_bucket(Bucket="north")
            with pytest.raises(ClientError) as caught:
                wrong.list_buckets()
            error = caught.value.response["Error"]
            assert error["Code"] == "AuthorizationHeaderMalformed"
            assert error["Region"] == "eu-north-1"
            wrong.put_object(Bucket="north", Key="k", Body=b"x")
            assert right.get_object(Bucket="north", Key="k")["Body"].read() == b"x"


def test_attributes_are_shown_as_asked_for(client: Any, bucket: str) -> None:
    put = client.put_object(Bucket=bucket, Key="k", Body=b"hello", ChecksumAlgorithm="CRC32C")
    shown = client.get_object_attributes(
        Bucket=bucket, Key="k", ObjectAttributes=["ETag", "Checksum", "ObjectSize"]
    )
    assert shown["ETag"] == put["ETag"].strip('"')
    assert shown["ObjectSize"] == 5
    assert shown["Checksum"]["ChecksumCRC32C"] == put["ChecksumCRC32C"]
    assert "StorageClass" not in shown
    assert error_of(
        client.get_object_attributes, Bucket=bucket, Key="k", ObjectAttributes=["Colour"]
    ) == (400, "InvalidArgument")


# ---- multipart ----


def test_a_transfer_in_parts_comes_back_whole(client: Any, bucket: str) -> None:
    data = bytes(range(256)) * (17 * MIB // 256) + b"tail"
    transfer = TransferConfig(multipart_threshold=8 * MIB, multipart_chunksize=8 * MIB)
    client.upload_fileobj(io.BytesIO(data), bucket, "big", Config=transfer)
    head = client.head_object(Bucket=bucket, Key="big")
    assert head["ContentLength"] == len(data)
    assert head["ETag"].endswith('-3"')
    received = io.BytesIO()
    client.download_fileobj(bucket, "big", received, Config=transfer)
    assert received.getvalue() == data
    part = client.get_object(Bucket=bucket, Key="big", PartNumber=3)
    assert part["Body"].read() == data[16 * MIB :]
    assert part["PartsCount"] == 3


def test_an_upload_is_listed_completed_or_aborted(client: Any, bucket: str) -> None:
    upload = client.create_multipart_upload(Bucket=bucket, Key="k", Metadata={"m": "1"})
    it: dict[str, Any] = {"Bucket": bucket, "Key": "k", "UploadId": upload["UploadId"]}
    etags = [
        client.upload_part(**it, PartNumber=n, Body=body)["ETag"]
        for n, body in ((1, b"x" * 5 * MIB), (2, b"tail"))
    ]
    listed = client.list_parts(**it, MaxParts=1)
    assert (listed["Parts"][0]["ETag"], listed["IsTruncated"]) == (etags[0], True)
    uploads = client.list_multipart_uploads(Bucket=bucket)["Uploads"]
    assert [item["UploadId"] for item in uploads] == [upload["UploadId"]]
    parts = [{"PartNumber": n, "ETag": etag} for n, etag in enumerate(etags, start=1)]
    complete = client.complete_multipart_upload
    assert error_of(complete, **it, MultipartUpload={"Parts": parts[::-1]})[1] == "InvalidPartOrder"
    wrong = [{"PartNumber": 1, "ETag": '"no"'}]
    assert error_of(complete, **it, MultipartUpload={"Parts": wrong}) == (400, "InvalidPart")
    assert error_of(complete, **it, MultipartUpload={"Parts": []}) == (400, "MalformedXML")
    done = complete(**it, MultipartUpload={"Parts": parts})
    assert done["ETag"].endswith('-2"')
    assert client.head_object(Bucket=bucket, Key="k")["Metadata"] == {"m": "1"}
    other = client.create_multipart_upload(Bucket=bucket, Key="o")
    aborted: dict[str, Any] = {"Bucket": bucket, "Key": "o", "UploadId": other["UploadId"]}
    client.abort_multipart_upload(**aborted)
    assert error_of(client.list_parts, **aborted) == (404, "NoSuchUpload")
    assert error_of(client.upload_part, **aborted, PartNumber=10001, Body=b"x") == (
        400,
        "InvalidArgument",
    )


def test_the_whole_of_an_upload_is_checked_when_it_is_completed(client: Any, bucket: str) -> None:
    upload = client.create_multipart_upload(
        Bucket=bucket, Key="k", ChecksumAlgorithm="CRC32", ChecksumType="FULL_OBJECT"
    )
    it: dict[str, Any] = {"Bucket": bucket, "Key": "k", "UploadId": upload["UploadId"]}
    bodies = [b"x" * 5 * MIB, b"tail"]
    parts: list[dict[str, Any]] = []
    for n, body in enumerate(bodies, start=1):
        part = client.upload_part(**it, PartNumber=n, Body=body, ChecksumAlgorithm="CRC32")
        parts.append(
            {"PartNumber": n, "ETag": part["ETag"], "ChecksumCRC32": part["ChecksumCRC32"]}
        )
    whole = base64.b64encode(zlib.crc32(b"".join(bodies)).to_bytes(4, "big")).decode()
    digests = b"".join(base64.b64decode(part["ChecksumCRC32"]) for part in parts)
    composite = base64.b64encode(zlib.crc32(digests).to_bytes(4, "big")).decode() + "-2"
    it["MultipartUpload"] = {"Parts": parts}
    complete = client.complete_multipart_upload
    assert error_of(complete, **it, ChecksumCRC32="AAAAAA==") == (400, "BadDigest")
    assert error_of(complete, **it, ChecksumCRC32="AAAAAA==-2") == (400, "BadDigest")
    assert error_of(complete, **it, ChecksumSHA256="AAAA") == (400, "InvalidRequest")
    assert error_of(complete, **it, MpuObjectSize=7) == (400, "InvalidRequest")
    # A wrong ETag is the store's to refuse, checksum or not.
    wrong = {**it, "MultipartUpload": {"Parts": [{"PartNumber": 1, "ETag": "no"}]}}
    assert error_of(complete, **wrong, ChecksumCRC32=composite) == (400, "InvalidPart")
    complete(**it, ChecksumCRC32=whole, MpuObjectSize=5 * MIB + 4)
    assert client.head_object(Bucket=bucket, Key="k")["ContentLength"] == 5 * MIB + 4


def test_a_part_can_be_copied(client: Any, bucket: str) -> None:
    client.put_object(Bucket=bucket, Key="source", Body=b"0123456789")
    upload = client.create_multipart_upload(Bucket=bucket, Key="k")
    it: dict[str, Any] = {"Bucket": bucket, "Key": "k", "UploadId": upload["UploadId"]}
    copied = client.upload_part_copy(
        **it, PartNumber=1, CopySource=f"{bucket}/source", CopySourceRange="bytes=2-5"
    )
    parts = [{"PartNumber": 1, "ETag": copied["CopyPartResult"]["ETag"]}]
    client.complete_multipart_upload(**it, MultipartUpload={"Parts": parts})
    assert client.get_object(Bucket=bucket, Key="k")["Body"].read() == b"2345"


# ---- authorisation ----


def fetch(url: str, data: bytes | None = None, method: str = "GET") -> tuple[int, bytes]:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    request = urllib.request.Request(url, data=data, method=method)
    try:
        with opener.open(request) as response:
            return response.status, response.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read()


def test_presigned_urls_need_no_credentials(client: Any, bucket: str) -> None:
    it = {"Bucket": bucket, "Key": "a b/ü+~"}
    put = client.generate_presigned_url("put_object", Params=it, ExpiresIn=60)
    assert fetch(put, b"hello", "PUT")[0] == 200
    get = client.generate_presigned_url("get_object", Params=it, ExpiresIn=60)
    assert fetch(get) == (200, b"hello")
    status, body = fetch(get[:-1] + ("0" if get[-1] != "0" else "1"))
    assert (status, b"<Code>SignatureDoesNotMatch</Code>" in body) == (403, True)
    long = client.generate_presigned_url("get_object", Params=it, ExpiresIn=604801)
    assert fetch(long)[0] == 400


def test_wrong_credentials_and_strangers_are_refused(
    client: Any, served: ServedStore, bucket: str
) -> None:
    with closing(new_client(served, secret_key="wrong")) as wrong:
        assert error_of(wrong.list_buckets) == (403, "SignatureDoesNotMatch")
        assert error_of(wrong.put_object, Bucket=bucket, Key="k", Body=b"x")[0] == 403
    status, body = fetch(f"http://{served.address}/{bucket}/k")
    assert (status, b"<Code>AccessDenied</Code>" in body) == (403, True)
    assert "Contents" not in client.list_objects_v2(Bucket=bucket)


def test_health_is_for_everyone(served: ServedStore) -> None:
    assert fetch(f"http://{served.address}/-/healthy") == (200, b"ok\n")


# ---- TLS ----


@pytest.fixture
def tls_client() -> Iterator[Any]:
    config = GatewayConfig(
        access_key=ACCESS_KEY,
        secret_key=SECRET_KEY,
        tls_certificate=str(TESTDATA / "certificate.pem"),
        tls_key=str(TESTDATA / "key.pem"),
    )
    with ServedStore(lambda: MemoryStore(time.time), config, clock=SystemClock()) as served:
        client = new_client(served, scheme="https", verify=str(TESTDATA / "certificate.pem"))
        with closing(client):
            yield client


def test_over_tls_checksums_come_as_trailers(tls_client: Any) -> None:
    # Over TLS, boto3 frames the body and signs neither it nor the trailer.
    sent: list[str] = []

    def record(request: Any, **_: Any) -> None:
        sent.append(request.headers["x-amz-content-sha256"].decode())

    tls_client.meta.events.register("before-send.s3.PutObject", record)
    data = bytes(range(256)) * 4096 * 3 + b"tail"
    tls_client.create_bucket(Bucket="tls")
    for algorithm in ("CRC32", "CRC64NVME", "SHA256"):
        put = tls_client.put_object(
            Bucket="tls", Key="k", Body=io.BytesIO(data), ChecksumAlgorithm=algorithm
        )
        got = tls_client.get_object(Bucket="tls", Key="k")
        assert got["Body"].read() == data
        assert got[f"Checksum{algorithm}"] == put[f"Checksum{algorithm}"]
        assert "ContentEncoding" not in got
    assert set(sent) == {"STREAMING-UNSIGNED-PAYLOAD-TRAILER"}
    transfer = TransferConfig(multipart_threshold=5 * MIB, multipart_chunksize=5 * MIB)
    tls_client.upload_fileobj(io.BytesIO(data * 3), "tls", "big", Config=transfer)
    assert tls_client.get_object(Bucket="tls", Key="big")["Body"].read() == data * 3


def test_a_certificate_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    missing = str(tmp_path / "none.pem")
    config = GatewayConfig(access_key="a", secret_key="s", tls_certificate=missing, tls_key=missing)
    served = ServedStore(lambda: MemoryStore(time.time), config, clock=SystemClock())
    with pytest.raises(BadCertificate, match=r"none\.pem"), served:
        pass


# ---- broken requests over a raw socket ----


def test_a_head_without_end_is_refused(served: ServedStore) -> None:
    line = b"GET / HTTP/1.1\r\nHost: h\r\n"
    assert talk(served, line + b"x-a: " + b"a" * 60_000 + b"\r\n\r\n", half_close=True).startswith(
        b"HTTP/1.1 403 "
    )
    host, port = served.address.rsplit(":", 1)
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        connection.sendall(line + b"x-a: ")
        with pytest.raises(OSError):  # Reset or broken pipe, as the kernel has it.
            for _ in range(10_000):
                connection.sendall(b"a" * 65_536)


def test_an_address_is_taken_once(served: ServedStore) -> None:
    config = GatewayConfig(served.address, access_key="a", secret_key="s")
    second = ServedStore(lambda: MemoryStore(time.time), config, clock=SystemClock())
    with pytest.raises(AddressInUse, match=served.address), second:
        pass


def signed_put(client: Any, bucket: str, key: str) -> str:
    url: str = client.generate_presigned_url("put_object", Params={"Bucket": bucket, "Key": key})
    return url.split("/", 3)[3]


def talk(served: ServedStore, request: bytes, *, half_close: bool = False) -> bytes:
    host, port = served.address.rsplit(":", 1)
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        connection.sendall(request)
        if half_close:
            connection.shutdown(socket.SHUT_WR)
        return b"".join(iter(lambda: connection.recv(65536), b""))


def test_a_truncated_upload_stores_nothing(client: Any, served: ServedStore, bucket: str) -> None:
    target = signed_put(client, bucket, "k")
    head = f"PUT /{target} HTTP/1.1\r\nHost: {served.address}\r\nContent-Length: 100\r\n\r\n"
    talk(served, head.encode() + b"x" * 50, half_close=True)
    assert "Contents" not in client.list_objects_v2(Bucket=bucket)


def test_a_body_needs_a_length(client: Any, served: ServedStore, bucket: str) -> None:
    target = signed_put(client, bucket, "k")
    head = (
        f"PUT /{target} HTTP/1.1\r\nHost: {served.address}\r\nTransfer-Encoding: chunked\r\n"
        "Connection: close\r\n\r\n1\r\nx\r\n0\r\n\r\n"
    )
    answer = talk(served, head.encode())
    assert answer.startswith(b"HTTP/1.1 411 ")
    assert b"<Code>MissingContentLength</Code>" in answer


def test_a_client_is_told_to_continue_only_when_authorised(
    client: Any, served: ServedStore, bucket: str
) -> None:
    target = signed_put(client, bucket, "k")
    rest = f"HTTP/1.1\r\nHost: {served.address}\r\nExpect: 100-continue\r\nContent-Length: 2\r\n"
    refused = talk(served, f"PUT /{bucket}/k {rest}\r\n".encode())
    assert refused.startswith(b"HTTP/1.1 403 ")
    assert b"connection: close" in refused.lower()
    host, port = served.address.rsplit(":", 1)
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        connection.sendall(f"PUT /{target} {rest}Connection: close\r\n\r\n".encode())
        assert connection.recv(1000) == b"HTTP/1.1 100 Continue\r\n\r\n"
        connection.sendall(b"ok")
        assert connection.recv(1000).startswith(b"HTTP/1.1 200 ")
    assert client.get_object(Bucket=bucket, Key="k")["Body"].read() == b"ok"


def test_requests_are_counted(client: Any, served: ServedStore, bucket: str) -> None:
    client.put_object(Bucket=bucket, Key="k", Body=b"hello")
    client.get_object(Bucket=bucket, Key="k")["Body"].read()
    value = served.registry.get_sample_value
    labels = {"operation": "PutObject", "status": "200"}
    assert value("exastore_gateway_s3_requests_total", labels)
    assert value("exastore_gateway_s3_request_duration_seconds_count", {"operation": "GetObject"})
    assert value("exastore_gateway_s3_received_bytes_total")
    assert value("exastore_gateway_s3_sent_bytes_total")


# ---- command line clients ----


def run(served: ServedStore, *command: str) -> str:
    environment = {
        **{name: value for name, value in os.environ.items() if "proxy" not in name.lower()},
        **ISOLATED,
        "AWS_ACCESS_KEY_ID": ACCESS_KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
        "AWS_REGION": "us-east-1",
        "AWS_DEFAULT_REGION": "us-east-1",
        "S3_ENDPOINT_URL": f"http://{served.address}",
        "AWS_ENDPOINT_URL": f"http://{served.address}",
        "AWS_PAGER": "",
    }
    done = subprocess.run(
        [str(BIN / command[0]), *command[1:]], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_aws_cli_works(served: ServedStore, tmp_path: Path) -> None:
    small, large = tmp_path / "small", tmp_path / "large"
    small.write_bytes(b"hello")
    large.write_bytes(os.urandom(9 * MIB))
    run(served, "aws", "s3", "mb", "s3://cli")
    run(served, "aws", "s3", "cp", str(small), "s3://cli/d/small")
    run(served, "aws", "s3", "cp", str(large), "s3://cli/large")
    assert "PRE d/" in run(served, "aws", "s3", "ls", "s3://cli")
    run(served, "aws", "s3", "cp", "s3://cli/large", str(tmp_path / "back"))
    assert (tmp_path / "back").read_bytes() == large.read_bytes()
    run(served, "aws", "s3", "cp", "s3://cli/d/small", "s3://cli/copied")
    head = run(served, "aws", "s3api", "head-object", "--bucket", "cli", "--key", "copied")
    assert '"ContentLength": 5' in head
    run(served, "aws", "s3", "rm", "s3://cli/copied")
    assert "copied" not in run(served, "aws", "s3", "ls", "s3://cli")
    run(served, "aws", "s3", "rb", "--force", "s3://cli")
    assert "cli" not in run(served, "aws", "s3", "ls")


def test_s5cmd_works(served: ServedStore, tmp_path: Path) -> None:
    folder, large = tmp_path / "in", tmp_path / "large"
    folder.mkdir()
    for number in range(20):
        (folder / f"f {number}").write_bytes(b"%d" % number)
    large.write_bytes(os.urandom(12 * MIB))
    run(served, "s5cmd", "mb", "s3://five")
    run(served, "s5cmd", "cp", f"{folder}/", "s3://five/in/")
    run(served, "s5cmd", "cp", "--part-size", "5", str(large), "s3://five/large")
    assert run(served, "s5cmd", "ls", "s3://five/in/").count("f ") == 20
    run(served, "s5cmd", "cp", "s3://five/*", f"{tmp_path}/out/")
    assert (tmp_path / "out" / "large").read_bytes() == large.read_bytes()
    assert (tmp_path / "out" / "in" / "f 7").read_bytes() == b"7"
    run(served, "s5cmd", "cp", "s3://five/in/f 7", "s3://five/seven")
    assert run(served, "s5cmd", "cat", "s3://five/seven") == "7"
    run(served, "s5cmd", "rm", "s3://five/*")
    run(served, "s5cmd", "rb", "s3://five")
