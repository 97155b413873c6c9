"""Details of operations that few clients ask for, with boto3 over the store in memory."""

from typing import Any

import pytest
from botocore.exceptions import ClientError
from tests.support.s3_front import Front, code_of, put_policy

pytestmark = pytest.mark.integration

ALGORITHMS = ("SHA512", "MD5", "XXHASH64", "XXHASH3", "XXHASH128")


def test_buckets_are_listed_over_pages(front: Front) -> None:
    eve = front.client("EVE")
    names = [f"pages-{number}" for number in range(5)]
    for name in (*names, "other"):
        eve.create_bucket(Bucket=name)
    pages = list(eve.get_paginator("list_buckets").paginate(
        Prefix="pages-", PaginationConfig={"PageSize": 2}))  # fmt: skip
    assert [[it["Name"] for it in page["Buckets"]] for page in pages] == [
        names[:2],
        names[2:4],
        names[4:],
    ]
    assert pages[0]["Prefix"] == "pages-"
    assert {it["BucketRegion"] for it in pages[0]["Buckets"]} == {"us-east-1"}
    assert "BucketRegion" not in eve.list_buckets()["Buckets"][0]
    assert eve.list_buckets(BucketRegion="mars-1")["Buckets"] == []


def test_a_bucket_is_made_with_tags(front: Front) -> None:
    eve, tags = front.client("EVE"), [{"Key": "colour", "Value": "blue"}]
    eve.create_bucket(Bucket="tagged", CreateBucketConfiguration={"Tags": tags})
    assert eve.get_bucket_tagging(Bucket="tagged")["TagSet"] == tags


def test_a_bucket_of_another_owner_than_expected_is_refused(front: Front, bucket: str) -> None:
    ann, root = front.client("ANN"), front.client("root")
    for client in (ann, root):
        expected = {"Bucket": bucket, "ExpectedBucketOwner": "acme"}
        assert client.head_object(Key="k", **expected)["ContentLength"] == 5
        expected["ExpectedBucketOwner"] = "evil"
        assert code_of(client.put_object, Key="k", Body=b"x", **expected) == "AccessDenied"
    copy = {"Bucket": bucket, "Key": "c", "CopySource": f"{bucket}/k"}
    assert ann.copy_object(ExpectedSourceBucketOwner="acme", **copy)["CopyObjectResult"]
    code = code_of(ann.copy_object, ExpectedSourceBucketOwner="evil", **copy)
    assert code == "AccessDenied"


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_the_newer_checksums_are_verified_stored_and_combined(
    front: Front, bucket: str, algorithm: str
) -> None:
    ann, name = front.client("ANN"), f"Checksum{algorithm}"
    if algorithm == "MD5":
        # boto3 computes no MD5 for this header; clients that do name it themselves.
        arguments: dict[str, Any] = {name: "XUFAKrxLKna5cZ2REBfFkg=="}
    else:
        arguments = {"ChecksumAlgorithm": algorithm}
    put = ann.put_object(Bucket=bucket, Key="sum", Body=b"hello", **arguments)
    head = ann.head_object(Bucket=bucket, Key="sum", ChecksumMode="ENABLED")
    assert head[name] == put[name]
    assert head["ChecksumType"] == "FULL_OBJECT"
    wrong = {name: "A" * len(put[name].rstrip("=")) + "=" * put[name].count("=")}
    code = code_of(ann.put_object, Bucket=bucket, Key="wrong", Body=b"hello", **wrong)
    assert code == "BadDigest"
    made = ann.create_multipart_upload(Bucket=bucket, Key="parts", ChecksumAlgorithm=algorithm)
    upload = {"Bucket": bucket, "Key": "parts", "UploadId": made["UploadId"]}
    assert made["ChecksumType"] == "COMPOSITE"
    part = ann.upload_part(PartNumber=1, Body=b"hello", **upload, **arguments)
    parts = [{"PartNumber": 1, "ETag": part["ETag"], name: part[name]}]
    done = ann.complete_multipart_upload(MultipartUpload={"Parts": parts}, **upload)
    assert done[name].endswith("-1")


def test_a_copy_gets_the_checksum_that_is_asked_for(front: Front, bucket: str) -> None:
    ann = front.client("ANN")
    copy = {"Bucket": bucket, "Key": "copied", "CopySource": f"{bucket}/k"}
    plain = ann.copy_object(**copy)["CopyObjectResult"]
    assert "ChecksumCRC32" in plain or "ChecksumCRC64NVME" in plain
    result = ann.copy_object(ChecksumAlgorithm="SHA256", **copy)["CopyObjectResult"]
    assert result["ChecksumSHA256"] == "LPJNul+wow4m6DsqxbninhsWHlwfp0JecwQzYpOLmCQ="
    head = ann.head_object(Bucket=bucket, Key="copied", ChecksumMode="ENABLED")
    assert head["ChecksumSHA256"] == result["ChecksumSHA256"]


def test_an_object_redirects_on_a_website(front: Front, bucket: str) -> None:
    ann = front.client("ANN")
    site = {"IndexDocument": {"Suffix": "index.html"}}
    ann.put_bucket_website(Bucket=bucket, WebsiteConfiguration=site)
    put_policy(front, bucket, {})
    ann.put_object(Bucket=bucket, Key="old", WebsiteRedirectLocation="/new/")
    host = {"Host": f"{bucket}.web.test"}
    status, headers, body = front.request("GET", "/old", headers=host)
    assert (status, headers["location"], body) == (301, "/new/", b"")
    assert ann.head_object(Bucket=bucket, Key="old")["WebsiteRedirectLocation"] == "/new/"
    ann.copy_object(Bucket=bucket, Key="copy", CopySource=f"{bucket}/old")
    assert "WebsiteRedirectLocation" not in ann.head_object(Bucket=bucket, Key="copy")


def test_nobody_chooses_the_headers_of_an_open_object(front: Front, bucket: str) -> None:
    put_policy(front, bucket, {})
    nobody = front.client("")
    assert nobody.get_object(Bucket=bucket, Key="k")["Body"].read() == b"hello"
    with pytest.raises(ClientError) as caught:
        nobody.get_object(Bucket=bucket, Key="k", ResponseContentType="text/html")
    assert caught.value.response["Error"]["Code"] == "InvalidRequest"
